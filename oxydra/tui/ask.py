"""`oxydra-runner ask`: one question over the gateway, its answer streamed to a text stream."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Sequence
from typing import TextIO

from oxydra.errors import EXIT_FAILED, OxydraError
from oxydra.frames import Frame, compact
from oxydra.gateway.answer import Answer
from oxydra.tui.client import Locate
from oxydra.tui.follow import line
from oxydra.types import Json


def ask(
    prompt: str,
    locate: Locate,
    user_id: str,
    *,
    session_id: str | None = None,
    attachments: Sequence[Json] = (),
    steer: bool = False,
    agent: str = "",
    as_json: bool = False,
    clean: Callable[[str], str] = lambda text: text,
    out: TextIO = sys.stdout,
) -> int:
    """Ask and print the answer, or its terminal frame as JSON; returns the exit code.

    `attachments` are those of `send_turn`. Without a session a new one is made, of
    `agent`. With `steer` the
    question joins the turn that runs, and the answer is that turn's. Raises `OxydraError` for a
    turn that failed and `NoDaemonError` if there is none.
    """
    turn: Json = {"turn_id": uuid.uuid4().hex, "prompt": prompt, "attachments": list(attachments)}
    if steer:
        turn["steer"] = True
    with line(locate, user_id, session_id=session_id, agent=agent) as asked:
        terminal = asked.follow(turn, _writer(None if as_json else out, clean))
    assert terminal is not None  # there is no deadline
    if as_json:
        out.write(compact(terminal.payload) + "\n")
        return 0 if terminal.type == "turn_completed" else EXIT_FAILED
    if terminal.type == "error":
        raise OxydraError(terminal.payload["message"])
    if terminal.type == "turn_cancelled":
        raise OxydraError("The turn was cancelled.")
    return 0


def _writer(out: TextIO | None, clean: Callable[[str], str]) -> Callable[[Frame], None]:
    """What writes a turn as it comes; nothing where there is no stream."""

    def write(text: str) -> None:
        if out is not None:
            out.write(clean(text))
            out.flush()

    answer = Answer(write)

    def hear(frame: Frame) -> None:
        match frame.type:
            case "assistant_delta":
                answer.delta(frame.payload["delta"])
            case "turn_progress":
                answer.progress(frame.payload)
            case "approval_request":
                tool, wanted = clean(frame.payload["tool"]), clean(frame.payload["approval_id"])
                print(
                    f"oxydra: {tool} needs your approval: see the terminal UI, or"
                    f" `oxydra-runner approvals list` ({wanted}).",
                    file=sys.stderr,
                )
            case "turn_completed" | "turn_cancelled" | "error":
                if frame.type == "turn_completed":
                    answer.finish(frame.payload["response"]["message"]["content"])
                if not answer.ends_line:
                    write("\n")

    return hear
