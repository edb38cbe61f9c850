"""A deterministic model that needs no network and no key, so that everything can be seen working.

It follows a script where there is one, calls a tool where a plain sentence asks for one (see
`phrases`), shows a tool's result as it is, and otherwise says that no model is configured and how
to configure one. It runs on the caller's thread; its delays end when the token is cancelled.

A script is a JSON list of steps, from `ProviderSettings.script` (a list, JSON text, or the path of
a file; followed in each turn) or from the prompt: `[[script [{"text": "Looking. "}, {"tool":
"file_list", "arguments": {"path": "/shared"}}, {"text": "Done."}]]]`. The steps:

    {"text": "…", "delay_ms": 0}      streamed word by word, with so long a pause before each
    {"reasoning": "…"}                the same, as reasoning
    {"delay_ms": 500}                 a pause
    {"tool": "name", "arguments": {}} a call, which ends the reply; a string goes out as it is
    {"parallel": [{"tool": …}, …]}    several calls in one reply
    {"error": "…", "status": 500, "retryable": true, "retry_after": 1}   the provider fails

A reply goes as far as its first call or error; the next reply of the turn goes on behind it, and
when no steps are left, results are shown as without a script. A list of lists has a script for each
turn of a session, the last one for all that follow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from oxydra.errors import ConfigError, FrameError, ProviderError
from oxydra.frames import compact, parse
from oxydra.providers.abilities import check_attachments, visible
from oxydra.providers.base import Assembly, PendingCall, ProviderSettings, count
from oxydra.providers.phrases import REMINDER, fitted, understand
from oxydra.threads import CancelToken
from oxydra.transport import Transport
from oxydra.types import ASIDE, Message, ModelRequest, StreamEvent, ToolSpec, Usage

PIECES = 200  # the most deltas one text is cut into
CHARS_PER_TOKEN = 4

NO_MODEL = (
    "No model is configured, so I can only follow plain requests, for instance: list the files in "
    '/shared, read notes.txt, write "hello" to hello.txt, search for "word", delete old.txt, run '
    "`date`, remember that …, what do you remember about …, remind me in 10 minutes to ….\n\n"
    "To talk to a real model, set one of OPENAI_API_KEY, ANTHROPIC_API_KEY or GEMINI_API_KEY (or "
    "store a key with `oxydra-runner key set NAME`, or start a local Ollama) and then "
    "`oxydra-runner restart`; provider and model are chosen in the [selection] section of "
    "agent.toml."
)

_SHOWN_AS = {
    "file_list": "Here is what is there:",
    "file_read": "Here is what the file says:",
    "file_search": "Here is what I found:",
    "shell_exec": "The command answered:",
}
_DONE = {"memory_save": "It is noted:", "schedule_create": "It is scheduled:"}
_DIRECTIVE = re.compile(r"\[\[script\s+(?=[\[{])")

Step = Mapping[str, Any]


class Offline:
    """See the module's docstring. `transport` is not used."""

    def __init__(self, settings: ProviderSettings, transport: Transport) -> None:
        self.name = settings.name
        self._script = _load(settings)

    def stream(self, request: ModelRequest, token: CancelToken) -> Iterator[StreamEvent]:
        """See the `Provider` Protocol."""
        token.check()
        check_attachments(
            self.name, request.model, visible(request.messages, request.model, ()), ()
        )
        turn = _turn(request.messages)
        steps = self._steps(request, turn)
        answer = Assembly(waits_for_bytes=False)
        for step in steps:
            yield from self._follow(step, answer, request, token)
        token.check()
        answer.usage = _usage(request, answer)
        yield answer.completed(request.messages)

    def _steps(self, request: ModelRequest, turn: Sequence[Message]) -> list[Step]:
        """What to do in this reply."""
        prompt = turn[0].content if turn else ""
        try:
            script = script_in(prompt)
        except ConfigError as error:
            return [{"text": str(error)}]
        if script is None:
            script = _for_turn(self._script, request.messages)
        done = sum(message.role == "assistant" for message in turn)
        steps = reply_of(script or [], done)
        if steps:
            return steps
        if results := _last_results(turn):
            return [{"text": present(results)}]
        if script:
            return [{"text": "The script has no steps left."}]
        return [_plain(prompt, request.tools)]

    def _follow(
        self, step: Step, answer: Assembly, request: ModelRequest, token: CancelToken
    ) -> Iterator[StreamEvent]:
        pause = count(step.get("delay_ms")) / 1000
        said = step.get("text") or step.get("reasoning") or ""
        add = answer.reasoning if "reasoning" in step else answer.text
        for piece in pieces(said) or [""]:
            token.check()
            if pause and token.wait(pause):
                token.check()
            if piece:
                yield add(piece)
        if "error" in step:
            wait = step.get("retry_after")
            raise ProviderError(
                f"{self.name} ({request.model.id}): {step['error']}",
                remedy="The script asked for this error.",
                provider=self.name,
                model=request.model.id,
                status=count(step.get("status")),
                retryable=bool(step.get("retryable", False)),
                retry_after=float(wait) if wait is not None else None,
            )
        for call in _calls(step):
            arguments = call.get("arguments", {})
            text = arguments if isinstance(arguments, str) else compact(arguments)
            answer.calls.append(PendingCall(name=call["tool"], arguments=[text]))


def script_in(prompt: str) -> list[Step] | None:
    """The script that a prompt holds, None if it holds none; raises `ConfigError`."""
    match = _DIRECTIVE.search(prompt)
    if match is None:
        return None
    try:
        script, _ = json.JSONDecoder().raw_decode(prompt, match.end())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"The script in the prompt is not valid JSON: {error}.") from None
    return _checked(script if isinstance(script, list) else [script], "the script in the prompt")


def reply_of(script: Sequence[Step], index: int) -> list[Step]:
    """The steps of a turn's reply number `index`, counted from 0; none when the script is over."""
    replies: list[list[Step]] = [[]]
    for step in script:
        replies[-1].append(step)
        if _calls(step) or "error" in step:
            replies.append([])
    return replies[index] if index < len(replies) else []


def pieces(text: str) -> list[str]:
    """`text` cut after words, into at most about `PIECES` pieces."""
    words = re.findall(r"\s*\S+\s*", text) or ([text] if text else [])
    size = -(-len(words) // PIECES) or 1
    return ["".join(words[at : at + size]) for at in range(0, len(words), size)]


def present(results: Sequence[Message]) -> str:
    """Tool results for a person: as they are, under a line that says what they are."""
    parts = []
    for result in results:
        if result.is_error:
            parts.append(f"{result.name} did not work:\n\n{result.content}")
        elif result.name == "memory_search":
            parts.append(_remembered(result.content))
        elif result.name in _SHOWN_AS:
            parts.append(f"{_SHOWN_AS[result.name]}\n\n{result.content or '(nothing)'}")
        elif result.name in _DONE:
            parts.append(f"{_DONE[result.name]}\n\n{_fields(result.content)}")
        else:
            parts.append(result.content or "Done.")
    return "\n\n".join(parts)


def _remembered(content: str) -> str:
    """The passages that were found, an item each."""
    told = []
    for line in content.split("\n"):
        try:
            row = parse(line)
        except FrameError:
            continue  # what is said about them
        if isinstance(row, dict) and row.get("text"):
            text = " ".join(str(row["text"]).split())
            told.append(f"- {str(row.get('time'))[:10]}, {row.get('role')}: {text}")
    return "\n".join(["Here is what I remember:", "", *told]) if told else content


def _fields(content: str) -> str:
    """What an object's fields say, a line each; other text as it is."""
    try:
        found = parse(content)
    except FrameError:
        return content
    if not isinstance(found, dict):
        return content
    told = []
    for name, value in found.items():
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            value = ", ".join(value)
        if isinstance(value, str | int | float) and not isinstance(value, bool) and value != "":
            told.append(f"- {name.replace('_', ' ')}: {value}")
    return "\n".join(told)


def _plain(prompt: str, tools: Sequence[ToolSpec]) -> Step:
    """The one step with which a sentence is answered."""
    now = datetime.now().astimezone()
    task = prompt.partition("\n\n")[2]  # of a scheduled run, below what is said about it
    if task.startswith(REMINDER):
        return {"text": f"[NOTIFY] Reminder: {task.removeprefix(REMINDER)}"}
    wanted = understand(prompt, now) or understand(task, now)
    if wanted is None:
        return {"text": NO_MODEL}
    for tool in tools:
        if tool.name == wanted.tool:
            return {"tool": tool.name, "arguments": fitted(wanted.arguments, tool)}
    offered = ", ".join(tool.name for tool in tools) or "none"
    return {
        "text": f"I would need the tool {wanted.tool} for that, and it is not available here. "
        f"Available: {offered}."
    }


def _turn(messages: Sequence[Message]) -> Sequence[Message]:
    """The messages from the last one of the user's on."""
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].role == "user":
            return messages[index:]
    return ()


def _last_results(turn: Sequence[Message]) -> list[Message]:
    """The tool results that nothing has followed yet."""
    results: list[Message] = []
    for message in reversed(turn):
        if message.role != "tool":
            break
        results.insert(0, message)
    return results


def _calls(step: Step) -> list[Step]:
    if "tool" in step:
        return [step]
    return list(step.get("parallel", ()))


def _for_turn(script: list[Any], messages: Sequence[Message]) -> list[Step]:
    if script and isinstance(script[0], list):
        turn = sum(m.role == "user" and not m.content.startswith(ASIDE) for m in messages)
        chosen: list[Step] = script[min(max(turn, 1), len(script)) - 1]
        return chosen
    return script


def _load(settings: ProviderSettings) -> list[Any]:
    """The script of the settings, checked."""
    script = settings.script
    if not script:
        return []
    source = f"the script of provider {settings.name}"
    if isinstance(script, str):
        try:
            text = script if script.lstrip()[:1] in "[{" else Path(script).read_text("utf-8")
            script = json.loads(text)
        except OSError as error:
            raise ConfigError(f"{source} can't be read: {error.strerror}.", file=script) from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{source} is not valid JSON: {error}.") from None
    if isinstance(script, list) and script and all(isinstance(part, list) for part in script):
        return [_checked(part, source) for part in script]
    return _checked(script if isinstance(script, list) else [script], source)


def _checked(script: list[Any], source: str) -> list[Step]:
    for number, step in enumerate(script, 1):
        known = isinstance(step, dict) and {"text", "reasoning", "delay_ms", "error"} & set(step)
        calls = _calls(step) if isinstance(step, dict) else []
        sound = all(isinstance(c, dict) and isinstance(c.get("tool"), str) for c in calls)
        if not (known or calls) or not sound:
            raise ConfigError(
                f"Step {number} of {source} makes no sense.",
                remedy='A step is an object with "text", "reasoning", "delay_ms", "tool", '
                '"parallel" or "error".',
            )
    return script


def _usage(request: ModelRequest, answer: Assembly) -> Usage:
    """An estimate, so that displays have something to show; it costs nothing."""
    prompt = sum(len(message.content) for message in request.messages)
    return Usage(
        prompt // CHARS_PER_TOKEN + 1, answer.length // CHARS_PER_TOKEN + 1, cost_usd=Decimal(0)
    )
