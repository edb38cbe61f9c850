"""Running a session again on what was recorded of it: its models' answers and its tools' results.

`Replay` takes the turns through the turn loop once more, in a database of its own that is thrown
away, with a provider that gives the recorded answers and a gate that gives the recorded results.
Nothing is called, run, charged or changed. What comes out is compared event by event with what is
stored; the first difference says where this version, or this configuration, would act otherwise.

It runs on the caller's thread. Not recorded, and so not compared, is what a request looked like and
what people answered to questions.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from oxydra.errors import OxydraError, ProviderError, UsageError
from oxydra.runtime.loop import Runtime
from oxydra.store import Files, Store
from oxydra.threads import CancelToken
from oxydra.tools.gate import Gate, Outcome, TurnScope
from oxydra.tools.registry import ToolRegistry
from oxydra.types import (
    DELEGATED,
    CallState,
    Completed,
    Emit,
    Event,
    Json,
    Message,
    ModelRequest,
    Session,
    StreamEvent,
    TextDelta,
    ToolCall,
    Turn,
    TurnState,
    Usage,
)

BATCH_SECONDS = 2.0  # after which the rest is left for another call
FOLDER = "replay-"
SHOWN_CHARS = 400  # of what differs

_WARNING = "\n\n[This call has now brought this same result "
_ENDS = ("\n\n[cancelled]", "\n\n[cut off]")  # of an answer that was not finished


@dataclass(slots=True)
class Piece:
    """Events that belong together: a turn with the messages that joined it, or, without a turn,
    what is only copied.
    """

    turn: Turn | None
    events: list[Event] = field(default_factory=list)
    joined: dict[str, Turn] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Difference:
    """`what` of an event differs; `turn` counts from 1."""

    turn: int
    turn_id: str
    sequence: int | None
    what: str
    recorded: str
    replayed: str

    def to_json(self) -> Json:
        return {
            "turn": self.turn,
            "turn_id": self.turn_id,
            "sequence": self.sequence,
            "what": self.what,
            "recorded": self.recorded[:SHOWN_CHARS],
            "replayed": self.replayed[:SHOWN_CHARS],
        }


class Replay:
    """Replays sessions of one user, one at a time. `folder` takes the database meanwhile."""

    def __init__(self, store: Store, runtime: Runtime, tools: ToolRegistry, folder: Path) -> None:
        self._store = store
        self._runtime = runtime
        self._tools = tools
        self._folder = folder

    def run(self, session: Session, first: int = 1, most: int | None = None) -> Json:
        """Replay the turns from the one numbered `first`, at most `most`, and no more than what
        fits into `BATCH_SECONDS`: `next` is where to go on, None at the end or at a difference.

        Raises `UsageError` for a session without such a turn, or one that works for another.
        """
        if session.channel_origin == DELEGATED:
            raise UsageError(
                "This session works for another one.",
                remedy="Replay the session that delegated the work: its result is recorded there.",
            )
        pieces = self._pieces(session)
        turns = [index for index, piece in enumerate(pieces) if piece.turn is not None]
        if not 1 <= first <= len(turns):
            raise UsageError(
                f"There is no turn {first} to replay.",
                remedy=f"The session has {len(turns)} finished turns of its own.",
            )
        found, done = None, 0
        began = time.monotonic()
        with _Scratch(self._folder, self._store.files) as scratch:
            start = turns[first - 1]
            before = [event for piece in pieces[:start] for event in piece.events]
            scratch.copy_session(session, before)
            for piece in pieces[start:]:
                if piece.turn is None:
                    scratch.copy_events(session.session_id, piece.events)
                    continue
                if done == most or (done and time.monotonic() - began > BATCH_SECONDS):
                    break
                found = self._turn(scratch, session, piece, first + done)
                done += 1
                if found is not None:
                    break
        after = first + done
        return {
            "session_id": session.session_id,
            "turns": len(turns),
            "first": first,
            "replayed": done,
            "next": after if found is None and after <= len(turns) else None,
            "difference": None if found is None else found.to_json(),
        }

    def _pieces(self, session: Session) -> list[Piece]:
        """The session's events, up to a turn that is not over."""
        pieces: list[Piece] = []
        newest, _more = self._store.history(session.session_id, limit=1)
        last = newest[0].sequence if newest else 0
        for event in self._store.events(session.session_id, range(1, last + 1)):
            mine = pieces[-1] if pieces else None
            if mine is not None and mine.turn is not None:
                if event.turn_id == mine.turn.turn_id:
                    mine.events.append(event)
                    continue
                said = self._store.turn(event.turn_id)
                into = ((said.terminal or {}).get("payload") or {}).get("into") if said else None
                if said is not None and into == mine.turn.turn_id:
                    mine.events.append(event)
                    mine.joined[event.turn_id] = said
                    continue
            turn = self._store.turn(event.turn_id)
            if turn is not None and turn.session_id != session.session_id:
                turn = None  # of the session that this one was made from
            if turn is not None and not turn.state.terminal:
                break
            if mine is not None and turn is None and mine.turn is None:
                mine.events.append(event)
            else:
                pieces.append(Piece(turn, [event]))
        return pieces

    def _turn(
        self, scratch: Store, session: Session, piece: Piece, number: int
    ) -> Difference | None:
        turn = piece.turn
        assert turn is not None
        record = _Record(piece, scratch)
        runtime = self._made(scratch, record)
        token = CancelToken()
        accepted, _ = scratch.accept_turn(
            *(session.session_id, turn.turn_id, turn.request_id, turn.prompt, turn.attachments),
            tainted=turn.tainted,
            sensitive=turn.sensitive,
        )
        record.join()
        try:
            runtime.run_turn(accepted, token, lambda _frame, _payload: None)
        finally:
            runtime.stop()
        return self._compare(scratch, piece, turn, number)

    def _made(self, scratch: Store, record: _Record) -> Runtime:
        """A runtime like the user's, on what was recorded."""
        real = self._runtime
        agents = [replace(real.agents.get(name), provider=record) for name in real.agents.names]
        default = real.agents.get("default")
        return Runtime(
            store=scratch,
            provider=record,
            model=default.model,
            gate=_RecordedGate(self._tools, record),
            tools=real.tools,
            config=real.config,
            prompt=real.prompt,
            agents=agents,
            search_above=real.search_above,
        )

    def _compare(self, scratch: Store, piece: Piece, turn: Turn, number: int) -> Difference | None:
        def differs(what: str, recorded: str, replayed: str, at: int | None = None) -> Difference:
            return Difference(number, turn.turn_id, at, what, recorded, replayed)

        first = piece.events[0].sequence
        newest, _more = scratch.history(turn.session_id, limit=1)
        got = scratch.events(turn.session_id, range(first, newest[0].sequence + 1))
        for recorded, replayed in zip(piece.events, got, strict=False):
            ours, theirs = _facts(recorded.message), _facts(replayed.message)
            for what in ours:
                if ours[what] != theirs[what]:
                    return differs(what, ours[what], theirs[what], recorded.sequence)
        for events, names in ((piece.events, ("", "nothing")), (got, ("nothing", ""))):
            if len(events) > min(len(piece.events), len(got)):
                more = events[min(len(piece.events), len(got))]
                shown = f"{more.message.role}: {more.message.content}"
                return differs("events", names[0] or shown, names[1] or shown, more.sequence)
        ended = scratch.turn(turn.turn_id)
        assert ended is not None
        if (was := _ending(turn)) != (now := _ending(ended)):
            return differs("ending", was, now)
        return None


class _Scratch:
    """A database that is thrown away, with what an earlier one left."""

    def __init__(self, folder: Path, files: Files) -> None:
        self._folder = folder
        self._files = files  # the user's: what was attached is read, and there already

    def __enter__(self) -> Store:
        for left in self._folder.glob(f"{FOLDER}*"):
            shutil.rmtree(left, ignore_errors=True)
        self._path = Path(tempfile.mkdtemp(prefix=FOLDER, dir=self._folder))
        self._store = Store(self._path / "scratch.db", files=self._files)
        return self._store

    def __exit__(self, *_exception: object) -> Literal[False]:
        self._store.close()
        shutil.rmtree(self._path, ignore_errors=True)
        return False


class _Record:
    """What is recorded of one turn, given out in its order; a `Provider`."""

    name = "recorded"

    def __init__(self, piece: Piece, scratch: Store) -> None:
        assert piece.turn is not None
        self._turn = piece.turn
        self._joined = piece.joined
        self._scratch = scratch
        self._rest = piece.events[1:]  # the first is the person's message

    def join(self) -> None:
        """Have the messages that come next in the record join the turn."""
        while self._rest and self._rest[0].turn_id in self._joined:
            said = self._joined[self._rest.pop(0).turn_id]
            self._scratch.accept_turn(
                *(said.session_id, said.turn_id, said.request_id, said.prompt, said.attachments),
                tainted=said.tainted,
                sensitive=said.sensitive,
                joins=self._turn.turn_id,
            )

    def stream(self, request: ModelRequest, token: CancelToken) -> Iterator[StreamEvent]:
        if request.session_id != self._turn.session_id:  # a summary: it is extracted instead
            raise ProviderError("A summary's text is not part of the record.", unsent=True)
        message = self._next("assistant")
        if message is None:
            self._end(token)
        elif not message.tool_calls and (text := _unfinished(message)):
            yield TextDelta(text)
            self._end(token)
        else:
            if not message.tool_calls:
                self.join()
            yield Completed(message, "tool_calls" if message.tool_calls else "stop", Usage())

    def results(self) -> Iterator[Message]:
        """The recorded results of the step that was given last, in the order of the record."""
        while (message := self._next("tool")) is not None:
            yield message

    def _next(self, role: str) -> Message | None:
        if self._rest and self._rest[0].message.role == role:
            return self._rest.pop(0).message
        return None

    def _end(self, token: CancelToken) -> None:
        """As the turn ended that is recorded."""
        if self._turn.state is TurnState.CANCELLED:
            token.cancel()
            token.check()
        payload = (self._turn.terminal or {}).get("payload") or {}
        raise OxydraError(
            str(payload.get("message") or "Nothing more is recorded."),
            code=str(payload.get("code") or "record_ends"),
        )


class _RecordedGate(Gate):
    """Gives recorded results to calls that could run, and refuses the others as it does now."""

    def __init__(self, tools: ToolRegistry, record: _Record) -> None:
        super().__init__(tools, {})
        self._record = record

    def run(self, calls: Sequence[ToolCall], scope: TurnScope, emit: Emit) -> list[Outcome]:
        known = {call.id: call for call in calls}
        results: list[tuple[CallState, Message]] = []
        for recorded in self._record.results():
            if refused := self.refusal(known[recorded.tool_call_id], scope):
                recorded = replace(recorded, content=refused, is_error=True)
            content = recorded.content.partition(_WARNING)[0]  # the loop warns by itself
            state = CallState.FAILED if recorded.is_error else CallState.DONE
            results.append((state, replace(recorded, content=content)))
        scope.journal.calls_running([message.tool_call_id for _state, message in results])
        scope.journal.calls_finished(results)
        self._record.join()
        return []


def _unfinished(message: Message) -> str:
    """What was said of an answer that was not finished; "" for any other."""
    for end in _ENDS:
        if message.content.endswith(end):
            return message.content.removesuffix(end)
    return ""


def _facts(message: Message) -> dict[str, str]:
    """What of a message is compared, by what it is called."""
    return {
        "role": message.role,
        "text": message.content,
        "calls": "\n".join(f"{c.name} {c.arguments} ({c.id})" for c in message.tool_calls),
        "answers": f"{message.name} {message.tool_call_id}".strip(),
        "failed": str(message.is_error),
        "tainted": str(message.tainted),
        "sensitive": str(message.sensitive),
    }


def _ending(turn: Turn) -> str:
    payload = (turn.terminal or {}).get("payload") or {}
    code = payload.get("code") if turn.state is TurnState.FAILED else ""
    return f"{turn.state.value} {code or ''}".strip()
