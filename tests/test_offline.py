"""The offline provider: plain sentences, scripts, honesty, cancelling."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from oxydra.errors import Cancelled, ConfigError, ProviderError
from oxydra.providers import ProviderSettings, create
from oxydra.providers.offline import present
from oxydra.providers.phrases import Wanted, fitted, understand
from oxydra.threads import CancelToken
from oxydra.transport import DirectTransport
from oxydra.types import (
    Completed,
    Message,
    ModelRequest,
    ModelSpec,
    ReasoningDelta,
    StreamEvent,
    TextDelta,
    ToolSpec,
)

NOW = datetime(2026, 11, 22, 16, 30, tzinfo=UTC)
MODEL = ModelSpec("offline", "offline", 100_000, 4_096)
ARGUMENTS = {
    "file_list": ("path",),
    "file_read": ("path",),
    "file_write": ("path", "content"),
    "file_edit": ("path", "old", "new"),
    "file_search": ("pattern", "path"),
    "file_delete": ("path",),
    "shell_exec": ("command",),
    "memory_save": ("content", "tags"),
    "memory_search": ("query",),
    "schedule_create": ("goal", "cadence_type", "cadence_value"),
}
TOOLS = [
    ToolSpec(name, "", {"type": "object", "properties": {key: {"type": "string"} for key in keys}})
    for name, keys in ARGUMENTS.items()
]


def user(text: str) -> Message:
    return Message("user", text)


def result_of(answer: Completed, content: str, *, is_error: bool = False) -> Message:
    call = answer.message.tool_calls[0]
    return Message("tool", content, tool_call_id=call.id, name=call.name, is_error=is_error)


class Talk:
    """A conversation with the offline provider."""

    def __init__(self, script: Any = None, tools: list[ToolSpec] = TOOLS) -> None:
        settings = ProviderSettings("offline", "offline", script=script)
        self.provider = create(settings, DirectTransport())
        self.tools = tools
        self.messages = [Message("system", "You are helpful.")]
        self.events: list[StreamEvent] = []

    def say(self, *messages: Message) -> Completed:
        self.messages += messages
        request = ModelRequest(MODEL, self.messages, self.tools)
        self.events = list(self.provider.stream(request, CancelToken()))
        *deltas, end = self.events
        assert isinstance(end, Completed)
        text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
        assert text == end.message.content
        self.messages.append(end.message)
        return end


@pytest.mark.parametrize(
    ("sentence", "tool", "arguments"),
    [
        ("list the files in /shared", "file_list", {"path": "/shared"}),
        ("List files in /shared.", "file_list", {"path": "/shared"}),
        ("Please show me the files in the folder a", "file_list", {"path": "/shared/a"}),
        ("what files are there?", "file_list", {"path": "/shared"}),
        ("which files are in /tmp", "file_list", {"path": "/tmp"}),
        ("ls", "file_list", {"path": "/shared"}),
        ("ls /vault/", "file_list", {"path": "/vault"}),
        ("list my files", "file_list", {"path": "/shared"}),
        ("what is in /tmp?", "file_list", {"path": "/tmp"}),
        ("read notes.txt", "file_read", {"path": "/shared/notes.txt"}),
        ("Can you please read the file /tmp/a.md?", "file_read", {"path": "/tmp/a.md"}),
        ("what does todo.txt say?", "file_read", {"path": "/shared/todo.txt"}),
        ("what's in notes.txt", "file_read", {"path": "/shared/notes.txt"}),
        ("show me 'my notes.txt'", "file_read", {"path": "/shared/my notes.txt"}),
        ('write "hello world" to hello.txt', "file_write",
         {"path": "/shared/hello.txt", "content": "hello world"}),
        ("create a file called a.txt with the text 'one\ntwo'", "file_write",
         {"path": "/shared/a.txt", "content": "one\ntwo"}),
        ("create a.txt containing buy milk", "file_write",
         {"path": "/shared/a.txt", "content": "buy milk"}),
        ("save hello into /tmp/x.txt", "file_write", {"path": "/tmp/x.txt", "content": "hello"}),
        ('replace "old" with "new" in notes.txt', "file_edit",
         {"path": "/shared/notes.txt", "old_text": "old", "new_text": "new"}),
        ('search for "needle"', "file_search", {"query": "needle", "path": "/shared"}),
        ("search my files for needle in /tmp", "file_search", {"query": "needle", "path": "/tmp"}),
        ("grep 'a b' in docs", "file_search", {"query": "a b", "path": "/shared/docs"}),
        ("delete the file old.txt", "file_delete", {"path": "/shared/old.txt"}),
        ("rm /tmp/x.log", "file_delete", {"path": "/tmp/x.log"}),
        ("run `ls -la | wc`", "shell_exec", {"command": "ls -la | wc"}),
        ("run the command: date +%s", "shell_exec", {"command": "date +%s"}),
        ("execute date", "shell_exec", {"command": "date"}),
        ("$ uname -a", "shell_exec", {"command": "uname -a"}),
        ("remember that my cat is Tom", "memory_save", {"content": "my cat is Tom"}),
        ("Remember: tea, no sugar", "memory_save", {"content": "tea, no sugar"}),
        ("what do you remember about my cat?", "memory_search", {"query": "my cat"}),
        ("recall tea", "memory_search", {"query": "tea"}),
        ("remind me in 10 minutes to stretch", "schedule_create",
         {"goal": "Remind the user: stretch", "cadence_type": "once",
          "cadence_value": "2026-11-22T16:40:00+00:00"}),
        ("remind me to call Ann in 2 hours.", "schedule_create",
         {"goal": "Remind the user: call Ann", "cadence_type": "once",
          "cadence_value": "2026-11-22T18:30:00+00:00"}),
        ("remind me in half an hour to eat", "schedule_create",
         {"goal": "Remind the user: eat", "cadence_type": "once",
          "cadence_value": "2026-11-22T17:00:00+00:00"}),
        ("remind me at 9am to write", "schedule_create",
         {"goal": "Remind the user: write", "cadence_type": "once",
          "cadence_value": "2026-11-23T09:00:00+00:00"}),
        ("remind me to sleep at 10:15 pm", "schedule_create",
         {"goal": "Remind the user: sleep", "cadence_type": "once",
          "cadence_value": "2026-11-22T22:15:00+00:00"}),
    ],
)  # fmt: skip
def test_plain_sentences(sentence: str, tool: str, arguments: dict[str, str]) -> None:
    assert understand(sentence, NOW) == Wanted(tool, arguments)


@pytest.mark.parametrize(
    "sentence",
    [
        "",
        "hello",
        "what is the capital of France?",
        "show me the weather",
        "list the planets",
        "write a poem about the sea to my love",
        "write an essay to essay.txt",
        "remove the doubt",
        "run all my errands",
        "what does love mean?",
        "why did you delete it",
        "x" * 5000,
        " " * 100_000,
    ],
)
def test_what_is_no_plain_request_is_not_guessed_at(sentence: str) -> None:
    assert understand(sentence, NOW) is None


def test_arguments_take_the_names_of_the_schema() -> None:
    edit = next(tool for tool in TOOLS if tool.name == "file_edit")
    wanted = {"path": "/shared/a", "old_text": "x", "new_text": "y", "unknown": 1}
    assert fitted(wanted, edit) == {"path": "/shared/a", "old": "x", "new": "y"}


def test_a_request_calls_the_tool_and_shows_its_result() -> None:
    talk = Talk()
    asked = talk.say(user("list the files in /shared"))
    assert asked.finish_reason == "tool_calls"
    assert asked.message.tool_calls[0].name == "file_list"
    assert json.loads(asked.message.tool_calls[0].arguments) == {"path": "/shared"}
    answer = talk.say(result_of(asked, "a.txt\nb.txt"))
    assert answer.finish_reason == "stop"
    assert "a.txt\nb.txt" in answer.message.content
    assert len(talk.events) > 3
    assert answer.usage.total_tokens > 0
    assert answer.usage.cost_usd == 0


def test_a_scheduled_task_is_done_and_a_reminder_tells_its_person() -> None:
    note = "This is a scheduled run; nobody reads along."
    asked = Talk().say(user(f"{note}\n\nlist the files in /shared"))
    assert asked.message.tool_calls[0].name == "file_list"
    wanted = understand("remind me in 10 minutes to call Ann", NOW)
    assert wanted is not None
    told = Talk().say(user(f"{note}\n\n{wanted.arguments['goal']}"))
    assert told.message.content == "[NOTIFY] Reminder: call Ann"


def test_a_failed_tool_is_said_to_have_failed() -> None:
    talk = Talk()
    asked = talk.say(user("read gone.txt"))
    answer = talk.say(result_of(asked, "no such file", is_error=True))
    assert "file_read did not work" in answer.message.content
    assert "no such file" in answer.message.content


def test_a_long_result_comes_in_few_deltas_and_whole() -> None:
    talk = Talk()
    asked = talk.say(user("read big.txt"))
    content = "word  \n" * 20_000
    answer = talk.say(result_of(asked, content))
    assert content in answer.message.content
    assert len(talk.events) <= 202


def test_the_next_turn_is_understood_anew() -> None:
    talk = Talk()
    asked = talk.say(user("read a.txt"))
    talk.say(result_of(asked, "alpha"))
    assert talk.say(user("run `date`")).message.tool_calls[0].name == "shell_exec"


def test_a_missing_tool_is_named() -> None:
    answer = Talk(tools=TOOLS[:2]).say(user("run `date`"))
    assert answer.message.tool_calls == ()
    assert "shell_exec" in answer.message.content
    assert "not available" in answer.message.content
    assert "file_list, file_read" in answer.message.content


def test_anything_else_gets_an_honest_answer() -> None:
    content = Talk().say(user("What is the meaning of life?")).message.content
    assert "No model is configured" in content
    assert "OPENAI_API_KEY" in content
    assert "oxydra-runner" in content


# ------------------------------------------------------------------------------------------ scripts

SCRIPT: list[Any] = [
    {"reasoning": "hm "},
    {"text": "Looking. "},
    {"tool": "file_list", "arguments": {"path": "/shared"}},
    {"parallel": [{"tool": "file_read", "arguments": '{"path": "/sh'}, {"tool": "file_list"}]},
    {"text": "All done."},
]


@pytest.mark.parametrize("source", ["list", "text", "file", "prompt"])
def test_a_script_is_followed_reply_by_reply(source: str, tmp_path: Path) -> None:
    text = json.dumps(SCRIPT)
    path = tmp_path / "script.json"
    path.write_text(text, encoding="utf-8")
    script: Any = {"list": SCRIPT, "text": text, "file": str(path), "prompt": None}[source]
    prompt = f"go [[script {text}]] now" if source == "prompt" else "go"
    talk = Talk(script)

    first = talk.say(user(prompt))
    assert [e.text for e in talk.events if isinstance(e, ReasoningDelta)] == ["hm "]
    assert first.message.content == "Looking. "
    assert [call.name for call in first.message.tool_calls] == ["file_list"]

    second = talk.say(result_of(first, "a.txt"))
    assert [call.arguments for call in second.message.tool_calls] == ['{"path": "/sh', "{}"]
    ids = {call.id for call in (*first.message.tool_calls, *second.message.tool_calls)}
    assert len(ids) == 3

    third = talk.say(result_of(second, "x"))
    assert (third.message.content, third.finish_reason) == ("All done.", "stop")
    assert talk.say(user(prompt)).message.content == "Looking. "


def test_a_script_for_each_turn() -> None:
    talk = Talk([[{"text": "one"}], [{"text": "two"}]])
    said = [talk.say(user("hi")).message.content for _ in range(3)]
    assert said == ["one", "two", "two"]


def test_after_the_script_results_are_shown() -> None:
    talk = Talk([{"tool": "shell_exec", "arguments": {"command": "date"}}])
    asked = talk.say(user("go"))
    assert "Sunday" in talk.say(result_of(asked, "Sunday")).message.content


def test_a_scripted_error() -> None:
    talk = Talk([{"text": "half "}, {"error": "boom", "status": 503, "retryable": True,
                                     "retry_after": 2}])  # fmt: skip
    with pytest.raises(ProviderError, match="boom") as caught:
        talk.say(user("go"))
    error = caught.value
    assert (error.status, error.retryable, error.retry_after) == (503, True, 2.0)
    assert (error.provider, error.model) == ("offline", "offline")


@pytest.mark.parametrize("script", ["[{]", "[1]", '[{"txt": 1}]', '{"parallel": [{}]}', "/none"])
def test_a_broken_script_is_refused_at_the_start(script: str) -> None:
    with pytest.raises(ConfigError, match="script"):
        Talk(script)


@pytest.mark.parametrize("script", ['[{"text": "a"', '[{"txt": 1}]'])
def test_a_broken_script_in_a_prompt_is_answered(script: str) -> None:
    assert "script" in Talk().say(user(f"[[script {script}]]")).message.content.lower()


def test_a_delay_ends_when_cancelled() -> None:
    provider = create(
        ProviderSettings("offline", "offline", script=[{"text": "a"}, {"delay_ms": 60_000}]),
        DirectTransport(),
    )
    token = CancelToken()
    events = provider.stream(ModelRequest(MODEL, [user("go")]), token)
    assert next(events) == TextDelta("a")
    timer = threading.Timer(0.05, token.cancel)
    timer.start()
    with pytest.raises(Cancelled):
        next(events)
    timer.join()


def test_a_cancelled_token_lets_nothing_begin() -> None:
    token = CancelToken()
    token.cancel("stop")
    with pytest.raises(Cancelled):
        next(create(ProviderSettings("o", "offline"), DirectTransport()).stream(
            ModelRequest(MODEL, [user("hi")]), token))  # fmt: skip


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            '{"note_id":"n1","tags":["a","b"],"tainted":false,"name":""}',
            "- note id: n1\n- tags: a, b",
        ),
        ("[1]", "[1]"),
        ("no JSON", "no JSON"),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_what_was_done_is_told_in_lines(content: str, expected: str) -> None:
    result = Message("tool", content, tool_call_id="c", name="memory_save")
    assert present([result]) == f"It is noted:\n\n{expected}"


def test_what_is_remembered_is_told_by_day() -> None:
    row = {"session": "s", "time": "2026-01-02T03:04:05+00:00", "role": "note", "text": "a\nb"}
    result = Message("tool", f"Quotations.\n{json.dumps(row)}", name="memory_search")
    assert present([result]) == "Here is what I remember:\n\n- 2026-01-02, note: a b"
    nothing = replace(result, content="Nothing was found.")
    assert present([nothing]) == "Nothing was found."
