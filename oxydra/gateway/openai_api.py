"""The OpenAI-compatible door: each chat completion is a turn of a session, like any other.

`Door.begin` runs on `oxydra-requests`. An `Exchange` is one request under way: it listens to its
session, so that whoever gives a frame out appends it to the connection's queue, and ends with the
turn's terminal frame. A client that hangs up before cancels the turn: nobody would read it. One
that sent an Idempotency-Key may come back for the answer, so its turn goes on, as all do when the
daemon stops.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace

from oxydra.errors import NotFoundError, OxydraError
from oxydra.gateway import openai_wire as wire
from oxydra.gateway.access import Identity
from oxydra.gateway.answer import Answer
from oxydra.gateway.connection import Connection, Later
from oxydra.gateway.http import Request, Response
from oxydra.gateway.hub import Hub
from oxydra.gateway.openai_wire import DoorError, Wanted, Writer
from oxydra.types import ASKED_ONCE, Json, Session, Turn

log = logging.getLogger(__name__)

Do = Callable[[Callable[[], None]], bool]
"""Has something done on `oxydra-requests`; False if too much waits there already."""

_BUSY = DoorError("The gateway is overloaded.", status=429, code="busy", retry_after=1.0)
_STREAM_HEAD = (
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    "Cache-Control: no-store\r\nX-Accel-Buffering: no\r\nX-Content-Type-Options: nosniff\r\n"
    "Connection: close\r\n"
)


class Door:
    """Serves one user's hub to clients of OpenAI's API."""

    def __init__(self, hub: Hub, do: Do) -> None:
        self._hub = hub
        self._do = do
        self._lock = threading.Lock()
        self._under_way: set[Exchange] = set()
        self._stopping = False

    def models(self) -> Response:
        return wire.json_response(wire.models(self._hub.agents))

    def exchange(
        self, request: Request, identity: Identity, headers: Mapping[str, str]
    ) -> Exchange:
        """`headers` go with whatever is answered."""
        return Exchange(self, request, identity, headers)

    def stop(self) -> None:
        """From now on a client that is gone cancels nothing."""
        self._stopping = True

    def revoke(self, valid: Callable[[Identity], bool]) -> None:
        """Cut off and cancel what is done for tokens that are no longer valid."""
        with self._lock:
            revoked = [one for one in self._under_way if not valid(one.identity)]
        for exchange in revoked:
            exchange.abandon()

    # ------------------------------------------------------------------ called by the exchanges

    def enter(self, exchange: Exchange) -> bool:
        with self._lock:
            self._under_way.add(exchange)
        return self._do(lambda: self._begin(exchange))

    def leave(self, exchange: Exchange, *, cancel: bool) -> None:
        """It is over; any thread, under any lock of the hub's."""
        with self._lock:
            if exchange not in self._under_way:
                return
            self._under_way.discard(exchange)
        cancel = cancel and not self._stopping
        if not self._do(lambda: self._clean_up(exchange, cancel)) and not self._stopping:
            log.warning("a finished request could not be cleaned up: too much waits")

    def _clean_up(self, exchange: Exchange, cancel: bool) -> None:
        turn = exchange.turn
        if turn is None:
            return
        exchange.leave()
        try:
            if cancel:
                self._hub.cancel(turn.session_id, turn.turn_id)
        except NotFoundError:
            log.debug("turn %s had ended", turn.turn_id)
        if exchange.own_session:
            self._hub.archive(turn.session_id)

    def _begin(self, exchange: Exchange) -> None:
        """Read the request and submit its turn."""
        if exchange.over:  # it hung up meanwhile
            return
        try:
            wanted = wire.read_request(exchange.take_body(), self._hub.agents)
            exchange.expect(wanted)
            self._submit(exchange, wanted)
        except OxydraError as error:
            exchange.refuse(wire.failure(error))
        except Exception:
            log.exception("a chat completion could not be begun")
            exchange.refuse(DoorError("The gateway failed; see its log.", status=500))

    def _submit(self, exchange: Exchange, wanted: Wanted) -> None:
        name, turn_id = exchange.identity.token_name, exchange.turn_id
        there, fresh = self._hub.store.turn(turn_id), False
        if there is not None:  # sent again, by a client that missed the answer
            exchange.late = True
            prompt, session = there.prompt, self._hub.store.session(there.session_id)
            if not prompt.endswith(wanted.prompt):
                raise DoorError("This Idempotency-Key was used for another request.", status=409)
        else:
            session, fresh = self._session(name, wanted)
            exchange.own_session = not wanted.user
            prompt = wanted.opening() if fresh else wanted.prompt
        exchange.leave = self._hub.subscribe(session.session_id, exchange)
        try:
            turn, _ = self._hub.submit(
                session.session_id,
                turn_id,
                turn_id,
                prompt,
                wanted.attachments,
                tainted=any(role == "assistant" for role, _ in wanted.earlier),
                opens=session if fresh else None,
            )
        except BaseException:
            exchange.leave()
            raise
        exchange.accepted(turn)

    def _session(self, token_name: str, wanted: Wanted) -> tuple[Session, bool]:
        """The session to speak in, and whether it is new."""
        origin = wire.session_key(token_name, wanted) if wanted.user else ASKED_ONCE
        if wanted.user:
            there = self._hub.store.session_of(origin)
            if there is not None:
                return there, False
        session = self._hub.new_session(
            agent_name=wanted.agent, display_name=wanted.user, channel_origin=origin
        )
        return session, True


class Exchange(Later):
    """One chat completion, from its request to the last byte of its answer."""

    def __init__(
        self, door: Door, request: Request, identity: Identity, headers: Mapping[str, str]
    ) -> None:
        self.identity = identity
        self.turn: Turn | None = None
        self.own_session = False
        self.late = False  # the turn was there before: what it said so far was not heard
        self.over = False
        self.leave: Callable[[], None] = lambda: None  # stop hearing the session
        key = request.headers.get("idempotency-key", "")
        fresh = f"door-{secrets.token_hex(16)}"
        self.turn_id = wire.turn_id_of(identity.token_name, key) if key else fresh
        self._comes_again = bool(key)
        self._door = door
        self._conn: Connection | None = None
        self._body = request.body
        self._headers = headers
        self._wanted: Wanted | None = None
        self._writer: Writer | None = None
        self._chunked = request.version == "1.1"
        self._begun = False  # the status line was sent
        self._before = self._after = b""
        self._whole: list[str] = []
        self._answer = Answer(self._say)
        self._lock = threading.Lock()  # over what is sent: the turn's thread, and the I/O thread

    # ---- the I/O thread

    def begin(self, conn: Connection) -> None:
        self._conn = conn
        if not self._door.enter(self):
            self.refuse(_BUSY)

    def beat(self, conn: Connection) -> None:
        with self._lock:
            if self._wanted is not None and self._wanted.stream and self.turn is not None:
                self._send(b": working\n\n")

    def stop(self, conn: Connection) -> None:
        message = "The daemon is stopping; the turn goes on when it is started again."
        error = DoorError(message, status=503, code="stopping", retry_after=2.0)
        with self._lock:
            if not self.over:
                self._fail(error, again=self._comes_again or self.turn is None)

    def gone(self, conn: Connection) -> None:
        self.over = True
        self._door.leave(self, cancel=not (conn.ended or self._comes_again))

    # ---- `oxydra-requests`

    def take_body(self) -> bytes:
        """The request's body, which may be large and is not kept."""
        body, self._body = self._body, b""
        return body

    def expect(self, wanted: Wanted) -> None:
        self._wanted = wanted
        model = wire.model_name(wanted.agent)
        self._writer = Writer(self.turn_id, model, wanted.stream and wanted.include_usage)
        self._before, self._after = self._writer.template()

    def accepted(self, turn: Turn) -> None:
        self.turn = turn
        if turn.terminal is not None:
            self.hear(turn.terminal["type"], {**turn.terminal["payload"], "turn": self._own})

    def refuse(self, error: DoorError) -> None:
        """Answer that it was not done, or could not be."""
        with self._lock:
            self._fail(error, again=self.turn is None)

    def abandon(self) -> None:
        """Cut it off: its token was revoked."""
        with self._lock:
            self.over = True
            if self._conn is not None:
                self._conn.end()
        self._door.leave(self, cancel=True)

    # ---- the turn's thread, and the I/O thread

    @property
    def _own(self) -> Json:
        return {"turn_id": self.turn_id}

    def hear(self, frame_type: str, payload: Json) -> None:
        turn = payload.get("turn")
        if self.over or not turn or turn["turn_id"] != self.turn_id:
            return
        with self._lock:
            match frame_type:
                case "assistant_delta" if not self.late:
                    self._answer.delta(payload["delta"])
                case "turn_progress" if not self.late:
                    self._answer.progress(payload)
                case "turn_completed":
                    self._complete(payload["response"])
                case "turn_cancelled":
                    message = "The turn was cancelled by somebody else."
                    self._fail(DoorError(message, status=409, code="cancelled"), again=False)
                case "error":
                    self._fail(wire.ended_badly(payload), again=False)

    def _complete(self, response: Json) -> None:
        self._answer.finish(response["message"]["content"])
        finish, usage = wire.finish_of(response), wire.usage_of(response)
        if self._writer is None or self._wanted is None:
            return
        if self._wanted.stream:
            self._send(self._writer.ending(finish, usage), last=True)
        else:
            text = "".join(self._whole)
            self._respond(wire.json_response(self._writer.whole(text, finish, usage)))

    def _fail(self, error: DoorError, *, again: bool) -> None:
        if self._begun and self._writer is not None:
            self._send(self._writer.broken(error), last=True)
        else:
            self._respond(wire.error_response(error, again=again))

    # ---- under the lock

    def _say(self, text: str) -> None:
        if self._wanted is not None and self._wanted.stream:
            self._send(self._before + wire.text_of(text) + self._after)
        else:
            self._whole.append(text)

    def _send(self, data: bytes, *, last: bool = False) -> None:
        """Bytes of the event stream, the head before the first of them."""
        head = b""
        if not self._begun and self._writer is not None:
            self._begun = True
            coding = "Transfer-Encoding: chunked\r\n\r\n" if self._chunked else "\r\n"
            shared = "".join(f"{name}: {value}\r\n" for name, value in self._headers.items())
            head = (_STREAM_HEAD + shared + coding).encode()
            data = self._writer.opening() + data
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data) + (b"0\r\n\r\n" if last else b"")
        if last:
            self._end(head + data)
        elif self._conn is not None and not self._conn.send_frame(head + data):
            self.over = True  # it reads too slowly, or is gone
            self._door.leave(self, cancel=not self._comes_again)

    def _respond(self, response: Response) -> None:
        self._end(replace(response, headers={**response.headers, **self._headers}).encode())

    def _end(self, data: bytes) -> None:
        self.over = True
        if self._conn is not None:
            self._conn.end(data)
        self._door.leave(self, cancel=False)
