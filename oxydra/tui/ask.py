"""`oxydra-runner ask`: one question over the gateway, its answer streamed to a text stream.

The client's own thread delivers frames into a queue; the caller's thread takes them and writes. A
daemon that is restarted meanwhile takes the turn up again: the same turn id is sent once more,
which runs nothing twice.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import uuid
from collections.abc import Callable, Sequence
from typing import TextIO

from oxydra.errors import EXIT_FAILED, NoDaemonError, OxydraError
from oxydra.frames import Frame, compact
from oxydra.gateway.answer import Answer
from oxydra.tui.client import ClientConfig, GatewayClient, Link, Locate
from oxydra.types import Json

PATIENCE = 60.0  # seconds without a connection after which a question is given up


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
    events: queue.SimpleQueue[Frame | Link] = queue.SimpleQueue()
    endpoint, token = locate()
    client = GatewayClient(
        endpoint,
        token,
        user_id,
        on_frame=events.put,
        on_link=events.put,
        session_id=session_id,
        new_session=session_id is None,
        agent=agent,
        locate=locate,
        config=ClientConfig(),
    )
    client.connect()
    try:
        turn: Json = {"prompt": prompt, "attachments": list(attachments)}
        if steer:
            turn["steer"] = True
        terminal = _converse(client, events, turn, None if as_json else out, clean)
    finally:
        client.close()
    if as_json:
        out.write(compact(terminal.payload) + "\n")
        return 0 if terminal.type == "turn_completed" else EXIT_FAILED
    if terminal.type == "error":
        raise OxydraError(terminal.payload["message"])
    if terminal.type == "turn_cancelled":
        raise OxydraError("The turn was cancelled.")
    return 0


def _converse(
    client: GatewayClient,
    events: queue.SimpleQueue[Frame | Link],
    turn: Json,
    out: TextIO | None,
    clean: Callable[[str], str],
) -> Frame:
    """Send the turn and follow it to its terminal frame."""
    turn_id = answered = uuid.uuid4().hex  # `answered` is another's once the question joined it

    def write(text: str) -> None:
        if out is not None:
            out.write(clean(text))
            out.flush()

    def end_line() -> None:
        if not answer.ends_line:
            write("\n")

    answer = Answer(write)
    accepted = False
    while True:
        try:
            event = events.get(timeout=None if client.connected else PATIENCE)
        except queue.Empty:
            raise NoDaemonError(
                f"The daemon has been gone for {PATIENCE:g} s.",
                remedy="Start it again with `oxydra-runner start`; the turn then goes on.",
            ) from None
        if isinstance(event, Link):
            if event.connected and (event.fresh or not accepted):
                where = {"session_id": client.session_id, "turn_id": turn_id}
                with contextlib.suppress(NoDaemonError):  # it broke again: a Link will say so
                    client.send("send_turn", {**turn, **where})
            continue
        if event.type == "turn_joined" and _concerns(event.payload, turn_id):
            answered = event.payload["into"]
            accepted = True
            continue
        if not _concerns(event.payload, turn_id) and not _concerns(event.payload, answered):
            if event.type == "error":
                raise OxydraError(event.payload["message"], code=event.payload.get("code") or "")
            continue
        accepted = True
        match event.type:
            case "assistant_delta":
                answer.delta(event.payload["delta"])
            case "turn_progress":
                answer.progress(event.payload)
            case "approval_request":
                tool, wanted = clean(event.payload["tool"]), clean(event.payload["approval_id"])
                print(
                    f"oxydra: {tool} needs your approval: see the terminal UI, or"
                    f" `oxydra-runner approvals list` ({wanted}).",
                    file=sys.stderr,
                )
            case "turn_completed":
                answer.finish(event.payload["response"]["message"]["content"])
                end_line()
                return event
            case "turn_cancelled" | "error":
                end_line()
                return event


def _concerns(payload: Json, turn_id: str) -> bool:
    turn = payload.get("turn")
    return isinstance(turn, dict) and turn.get("turn_id") == turn_id
