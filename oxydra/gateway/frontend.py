"""The gateway's frames: who may connect, what each client frame does, and the health pages.

The server's I/O thread only checks the handshake and puts text frames into one bounded inbox. The
thread `oxydra-requests` takes them in order and acts: it is where the database is waited for, so
that no client's write delays another client's bytes. Both end with `stop`.
"""

from __future__ import annotations

import json
import logging
import socket
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from oxydra.approvals import Approvals, answer_from, request_payload, resolved_payload
from oxydra.config import GatewayConfig
from oxydra.errors import (
    BusyError,
    FrameError,
    NotFoundError,
    OxydraError,
    PolicyDenied,
    UsageError,
)
from oxydra.frames import (
    MAX_TEXT_FRAME,
    PROTOCOL_VERSION,
    decode_client,
    encode,
    event_json,
    session_json,
    session_ref,
)
from oxydra.gateway.access import ASK, COMMANDS, FRAMES, ROUTES, Access, Identity
from oxydra.gateway.attachments import read_attachments
from oxydra.gateway.commands import SessionCommands
from oxydra.gateway.connection import Connection, Handler, Later, frame_text
from oxydra.gateway.delta import Delta
from oxydra.gateway.http import Request, Response, plain
from oxydra.gateway.hub import Hub
from oxydra.gateway.metrics import CONTENT_TYPE, Metrics
from oxydra.gateway.openai_api import Door
from oxydra.gateway.server import GatewayServer
from oxydra.store import Store
from oxydra.threads import Inbox, InboxClosed, Service
from oxydra.types import Approval, Json, Session, Turn, TurnState

log = logging.getLogger(__name__)

INBOX = 4096  # client frames that may wait
MAX_ASKED = 1000  # turns of strangers whose token is remembered
HISTORY_LIMIT = 500  # events in one `session_history`
REVOKED = 4401  # the close code of a connection whose token is no longer valid


@dataclass(slots=True, eq=False, weakref_slot=True)
class Client:
    """One connection, once it was let in. Acts as a `Subscriber`."""

    connection: Connection
    greeted: bool = False
    closed: bool = False
    sessions: set[str] = field(default_factory=set)  # subscribed to

    @property
    def identity(self) -> Identity:
        identity: Identity = self.connection.identity
        return identity

    def deliver(self, frame: bytes | Delta) -> None:
        self.connection.send_frame(frame)

    def reply(self, frame_type: str, payload: Json) -> None:
        self.connection.send(encode(frame_type, payload))


class Page(Later):
    """An HTTP answer that is made on `oxydra-requests`."""

    def __init__(self, make: Callable[[], Response], do: Callable[[Callable[[], None]], bool]):
        self._make = make
        self._do = do

    def begin(self, conn: Connection) -> None:
        if not self._do(partial(self._give, conn)):
            conn.end(plain(503, "The gateway is overloaded.").encode())

    def _give(self, conn: Connection) -> None:
        try:
            response = self._make()
        except OxydraError as error:
            response = _page(503, {"status": "unavailable", "error": str(error)})
        except Exception:
            log.exception("a page could not be made")
            response = _page(500, {"status": "failed"})
        conn.end(response.encode())


class Gateway(Handler):
    """Serves one user's hub on an inherited listener, or for clients that `adopt` is given.

    `tokens` are rows `{name, sha256, scopes}`; `startup_status` is what `health_status` reports.
    """

    def __init__(
        self,
        listener: socket.socket | None,
        hub: Hub,
        store: Store,
        config: GatewayConfig,
        tokens: Sequence[Mapping[str, object]],
        health: Callable[[], Json],
        on_death: Callable[[BaseException], None] | None = None,
        approvals: Approvals | None = None,
        commands: Mapping[str, Callable[[Json], Json]] | None = None,
        of_strangers: Mapping[str, Callable[[Json], Json]] | None = None,
        tools: Container[str] = (),
    ) -> None:
        """`commands` are further ones for `command` frames: by name what gives the data from the
        arguments; it runs on `oxydra-requests`. `of_strangers` are done instead for those whose
        token does not speak for its person. `tools` are the names that metrics tell apart.
        """
        self._hub = hub
        self._approvals = approvals
        self._store = store
        self._config = config
        self._health = health
        self._access = Access(config, tokens)
        self._clients: dict[Connection, Client] = {}
        self._inbox: Inbox[Callable[[], None]] = Inbox(INBOX)
        self._requests = Service("requests", self._work, wake=self._inbox.close, on_death=on_death)
        self._server = GatewayServer(listener, self, on_death=on_death)
        self._handlers: dict[str, Callable[[Client, Json], None]] = {
            "hello": self._hello,
            "send_turn": self._send_turn,
            "cancel_active_turn": self._cancel_turn,
            "cancel_all_active_turns": self._cancel_all,
            "health_check": self._health_check,
            "create_session": self._create_session,
            "list_sessions": self._list_sessions,
            "switch_session": self._switch_session,
            "history": self._history,
            "approve": self._approve,
            "command": self._command,
        }
        self.commands: dict[str, Callable[[Json], Json]] = {
            "approvals": self._open_requests,
            "tokens": self._list_tokens,
            **SessionCommands(hub).table(),
            **(commands or {}),
        }
        self._of_strangers = {**self.commands, **(of_strangers or {})}
        if unknown := set(self.commands) - set(COMMANDS):
            raise RuntimeError(f"gateway/access.py says of no scope for {sorted(unknown)}")
        self._asked: dict[str, str] = {}  # turns of those who are not the person: by which token
        self._door = Door(hub, self._inbox.put)
        self._metrics = Metrics(tools)
        hub.watch = self._metrics.observe
        hub.soon = self._server.soon
        self._pages: dict[tuple[str, str], Callable[[Request, Identity | None], Response | Later]]
        self._pages = {
            ("GET", "/healthz"): lambda _request, _who: _page(200, {"status": "ok"}),
            ("GET", "/readyz"): lambda _request, _who: Page(self._ready, self._inbox.put),
            ("GET", "/metrics"): lambda _request, _who: Page(self._measured, self._inbox.put),
            ("GET", "/v1/models"): lambda _request, _who: self._door.models(),
            ("POST", "/v1/chat/completions"): self._complete,
            ("OPTIONS", "/v1/models"): lambda _request, _who: Response(200, known=True),
            ("OPTIONS", "/v1/chat/completions"): lambda _request, _who: Response(200, known=True),
        }

    def start(self) -> None:
        self._requests.start()
        self._server.start()

    def adopt(self, client: socket.socket, peer: str) -> None:
        """Serve a client that the runner has accepted; from any thread."""
        self._server.adopt(client, peer)

    def stop(self, timeout: float) -> bool:
        """Say good-bye to every client (1001) and end both threads."""
        self._door.stop()
        ended = self._server.stop(timeout)
        return self._requests.stop(timeout) and ended

    # --------------------------------------------------------------- the I/O thread: who gets in

    def authorize(self, request: Request) -> Response | Identity:
        identity, refusal = self._access.route(request)
        if refusal is not None or identity is None:
            return refusal or plain(401, "A valid bearer token is needed.")
        return identity

    def source(self, request: Request) -> str:
        return self._access.source(request)

    def methods(self, path: str) -> Sequence[str]:
        return [method for method, known in ROUTES if known == path] or ("GET",)

    def body_limit(self, head: Request) -> int | Response | None:
        _identity, refusal = self._access.route(head)
        if refusal is not None:
            return self._shared(head, refusal)
        return ROUTES[head.method, head.path].body

    def handle_http(self, request: Request) -> Response | Later:
        identity, refusal = self._access.route(request)
        answer = refusal or self._pages[request.method, request.path](request, identity)
        return self._shared(request, answer) if isinstance(answer, Response) else answer

    def _shared(self, request: Request, response: Response) -> Response:
        """The same, readable for the page that asked, if it is a listed one."""
        sharing = self._access.sharing(request)
        return replace(response, headers={**response.headers, **sharing}) if sharing else response

    def _complete(self, request: Request, identity: Identity | None) -> Later:
        if identity is None:
            raise RuntimeError("a door without a token")
        return self._door.exchange(request, identity, self._access.sharing(request))

    def on_open(self, conn: Connection) -> None:
        self._clients[conn] = Client(conn)
        if not self._access.valid(conn.identity):  # it was revoked since the handshake
            _turn_out(conn)

    def on_close(self, conn: Connection) -> None:
        client = self._clients.pop(conn, None)
        if client is not None:
            client.closed = True
            for session_id in client.sessions:
                self._hub.live(session_id).unsubscribe(client)

    def on_text(self, conn: Connection, text: str) -> None:
        client = self._clients[conn]
        if not self._inbox.put(partial(self._act, client, text)):
            client.reply("error", {"message": "The gateway is overloaded.", "code": "busy"})

    def on_binary(self, conn: Connection, data: bytes) -> None:
        message = "Frames are text: one JSON object each."
        self._clients[conn].reply("error", {"message": message, "code": "bad_frame"})

    def set_tokens(self, tokens: Sequence[Mapping[str, object]]) -> None:
        """From now on these are valid, and who came with another one is sent away; any thread."""
        self._access.replace(tokens)
        for conn in list(self._clients):  # one that is let in meanwhile is looked at in `on_open`
            if not self._access.valid(conn.identity):
                _turn_out(conn)
        self._door.revoke(self._access.valid)

    # ------------------------------------------------------------------- the thread that acts

    def _ready(self) -> Response:
        """Whether messages are taken: the thread that takes them answers, and the database."""
        self._store.count_sessions()
        return _page(200, {"status": "ok"})

    def _measured(self) -> Response:
        waiting = 0 if self._approvals is None else len(self._approvals.pending())
        gauges = {
            "connections": len(self._server.connections),
            "clients": len(self._clients),
            "requests_waiting": len(self._inbox),
            "outbox_bytes": sum(conn.queued_bytes for conn in list(self._clients)),
            "approvals_waiting": waiting,
            "memory_chunks": self._store.about_chunks(),
        }
        text = self._metrics.text(self._health(), gauges)
        return Response(200, text.encode(), CONTENT_TYPE, known=True)

    def _work(self, _service: Service) -> None:
        while True:
            try:
                act = self._inbox.get()
            except InboxClosed:
                return
            act()

    def _act(self, client: Client, text: str) -> None:
        if client.closed or not self._access.valid(client.identity):
            return
        request_id = ""
        try:
            frame = decode_client(text)
            request_id = frame.payload["request_id"]
            if len(text) > MAX_TEXT_FRAME and not frame.payload.get("attachments"):
                raise FrameError("A frame without attachments is at most 1 MB.", code="too_large")
            if not client.greeted and frame.type != "hello":
                client.reply("error", _error("Say hello first.", "protocol", request_id))
                client.connection.close(4400, "hello expected")
                return
            client.identity.check(FRAMES[frame.type])
            self._handlers[frame.type](client, frame.payload)
        except FrameError as error:
            client.reply("error", _error(str(error), error.code, error.request_id or request_id))
            if not client.greeted:
                client.connection.close(4400, "hello expected")
        except BusyError as error:
            reply = _error(str(error), error.code, request_id)
            client.reply("error", {**reply, "retry_after_ms": round(1000 * error.retry_after)})
        except OxydraError as error:
            client.reply("error", _error(str(error), error.code, request_id))
        except Exception:
            log.exception("a %d character frame could not be handled", len(text))
            client.reply(
                "error", _error("The gateway failed; see its log.", "internal", request_id)
            )

    def _hello(self, client: Client, payload: Json) -> None:
        request_id = payload["request_id"]
        if payload["protocol_version"] != PROTOCOL_VERSION:
            message = f"This gateway speaks protocol version {PROTOCOL_VERSION}."
            client.reply("error", _error(message, "protocol", request_id))
            client.connection.close(4400, "protocol version")
            return
        if payload["user_id"] != self._hub.user_id:
            client.reply(
                "error", _error("This is another user's daemon.", "wrong_user", request_id)
            )
            client.connection.close(4401, "user")
            return
        session = self._session_for(client, payload)
        client.greeted = True
        last_seq = payload.get("last_seq")
        if payload.get("epoch") not in (None, self._hub.epoch):
            last_seq = None  # numbers of another daemon's life mean nothing here
        self._follow(client, session, "hello_ack", request_id, last_seq)

    def _session_for(self, client: Client, payload: Json) -> Session:
        if payload.get("create_new_session"):
            client.identity.check(ASK)
            return self._hub.create_session(agent_name=payload.get("agent_name") or "default")
        if payload.get("session_id"):
            return self._store.find_session(payload["session_id"])
        latest = self._store.latest_session()
        if latest is None:
            client.identity.check(ASK)
        return latest or self._hub.create_session()

    def _follow(
        self,
        client: Client,
        session: Session,
        frame_type: str,
        request_id: str,
        last_seq: int | None = None,
    ) -> None:
        """Make `session` the one that this client listens to, and tell it so."""
        for session_id in client.sessions - {session.session_id}:
            self._hub.live(session_id).unsubscribe(client)
        client.sessions = {session.session_id}
        active = self._hub.active_turn(session.session_id)

        def greet(seq: int, resumed: bool) -> bytes:
            greeting: Json = {
                "request_id": request_id,
                "session": session_ref(self._hub.user_id, session.session_id),
                "active_turn": active,
                "seq": seq,
                "epoch": self._hub.epoch,
            }
            if frame_type == "hello_ack":
                greeting |= {"protocol_version": PROTOCOL_VERSION, "resumed": resumed}
                greeting["scopes"] = client.identity.granted
            elif frame_type == "session_created":
                names = {"display_name": session.display_name, "agent_name": session.agent_name}
                greeting |= names
            return frame_text(encode(frame_type, greeting))

        self._hub.live(session.session_id).subscribe(client, greet, last_seq)
        self._hub.on_follow(client)
        if self._approvals is not None:
            for approval in self._approvals.pending(session.session_id):
                client.reply("approval_request", self._told(approval))

    def _send_turn(self, client: Client, payload: Json) -> None:
        attachments = read_attachments(payload.get("attachments") or [])
        session_id, turn_id = payload["session_id"], payload["turn_id"]
        if not 1 <= len(turn_id) <= 128:
            raise UsageError("A turn_id has 1 to 128 characters.")
        self._store.session(session_id)
        live = self._hub.live(session_id)
        if session_id not in client.sessions:
            client.sessions.add(session_id)
            live.subscribe(client)
        turn, created = self._hub.submit(
            session_id,
            turn_id,
            payload["request_id"],
            payload["prompt"],
            attachments,
            steer=bool(payload.get("steer")),
            tainted=client.identity.stranger,
        )
        if created and client.identity.stranger:
            self._asked[turn_id] = client.identity.token_name
            while len(self._asked) > MAX_ASKED:
                del self._asked[next(iter(self._asked))]
        if not created:  # sent again by a client that missed the answer
            again = {"request_id": payload["request_id"]}
            client.reply("turn_started", self._hub.address(turn, turn.state, again))
            self._tell_end(client, turn, again)
            if turn.state is TurnState.JOINED and turn.terminal is not None:
                into = self._store.turn(turn.terminal["payload"]["into"])
                if into is not None:
                    self._tell_end(client, into, again)

    def _tell_end(self, client: Client, turn: Turn, again: Json) -> None:
        """The terminal frame of a turn that has ended, as the answer to a request."""
        if turn.terminal is not None:
            frame = self._hub.address(turn, turn.state, turn.terminal["payload"] | again)
            client.reply(turn.terminal["type"], frame)

    def _cancel_turn(self, client: Client, payload: Json) -> None:
        if client.identity.stranger:
            self._check_own(client, payload["turn_id"])
        self._hub.cancel(payload["session_id"], payload["turn_id"])

    def _check_own(self, client: Client, turn_id: str) -> None:
        """Raises `PolicyDenied` unless the turn is one that came with this token: that is known
        since the start; of those before it, that no person sent it.
        """
        owner = self._asked.get(turn_id)
        if owner is None:
            turn = self._store.turn(turn_id)
            own = turn is None or turn.tainted
        else:
            own = owner == client.identity.token_name
        if not own:
            raise PolicyDenied(
                "This turn is not one of yours.",
                remedy="The scope `ask` cancels what came with its own token.",
            )

    def _cancel_all(self, _client: Client, _payload: Json) -> None:
        self._hub.cancel_all()

    def _health_check(self, client: Client, payload: Json) -> None:
        status = self._health()
        for session_id in client.sessions:
            status["session"] = session_ref(self._hub.user_id, session_id)
            status["active_turn"] = self._hub.active_turn(session_id)
        client.reply("health_status", {"request_id": payload["request_id"], **status})

    def _create_session(self, client: Client, payload: Json) -> None:
        session = self._hub.create_session(
            agent_name=payload.get("agent_name") or "default",
            display_name=payload.get("display_name") or "",
        )
        self._follow(client, session, "session_created", payload["request_id"])

    def _list_sessions(self, client: Client, payload: Json) -> None:
        rows = self._hub.sessions(
            include_archived=bool(payload.get("include_archived")),
            include_delegated=bool(payload.get("include_subagent_sessions")),
        )
        reply = {"request_id": payload["request_id"], "sessions": [session_json(s) for s in rows]}
        client.reply("session_list", reply)

    def _switch_session(self, client: Client, payload: Json) -> None:
        session = self._store.find_session(payload["session_id"])
        self._follow(client, session, "session_switched", payload["request_id"])

    def _approve(self, client: Client, payload: Json) -> None:
        identity = client.identity
        if self._approvals is None:
            raise NotFoundError("Nobody asks for approvals here.")
        allow, for_session = answer_from(payload)
        settled = self._approvals.answer(
            payload["approval_id"], allow=allow, for_session=for_session, by=identity.token_name
        )
        reply = self._of_turn(settled, resolved_payload(settled))
        client.reply("approval_resolved", reply | {"request_id": payload["request_id"]})

    def _command(self, client: Client, payload: Json) -> None:
        name = payload["name"]
        if name not in self.commands:
            known = ", ".join(sorted(self.commands))
            raise UsageError(f"There is no command {name[:64]!r}.", remedy=f"There are: {known}.")
        client.identity.check(COMMANDS[name])
        reply = {"request_id": payload["request_id"], "name": name}
        args = payload.get("args") or {}
        if payload.get("session_id"):
            args = {"session_id": payload["session_id"], **args}
        commands = self._of_strangers if client.identity.stranger else self.commands
        data = commands[name](args)
        client.reply("command_result", reply | {"data": data})

    def _open_requests(self, _args: Json) -> Json:
        pending = [] if self._approvals is None else self._approvals.pending()
        return {"requests": [self._told(approval) for approval in pending]}

    def _list_tokens(self, _args: Json) -> Json:
        clients = Counter(client.identity.token_name for client in list(self._clients.values()))
        rows = [
            {"name": name, "scopes": scopes, "clients": clients[name]}
            for name, scopes in self._access.names()
        ]
        return {"tokens": rows}

    def _told(self, approval: Approval) -> Json:
        """An open request as it is told to whoever did not see it asked."""
        told = self._of_turn(approval, request_payload(approval))
        del told["request_id"]  # another client's: this answers none of its requests
        return told

    def _of_turn(self, approval: Approval, payload: Json) -> Json:
        """A frame's payload about a request, with the references of its turn: the one that a
        person sent, where the work was delegated.
        """
        turn = self._store.turn(self._store.root_turn(approval.turn_id))
        if turn is None:
            raise NotFoundError("The turn of this request is gone.")
        return self._hub.address(turn, turn.state, payload)

    def _history(self, client: Client, payload: Json) -> None:
        session = self._store.session(payload["session_id"])
        limit = max(1, min(payload.get("limit") or 100, HISTORY_LIMIT))
        before = payload.get("before_sequence")
        events, more = self._store.history(session.session_id, before_sequence=before, limit=limit)
        reply = {
            "request_id": payload["request_id"],
            "session": session_ref(self._hub.user_id, session.session_id),
            "events": [event_json(event) for event in events],
            "more": more,
        }
        client.reply("session_history", reply)


def _error(message: str, code: str, request_id: str) -> Json:
    reply: Json = {"message": message, "code": code}
    return {"request_id": request_id, **reply} if request_id else reply


def _turn_out(conn: Connection) -> None:
    conn.close(REVOKED, "The token was revoked.")


def _page(status: int, body: Json) -> Response:
    return Response(status, json.dumps(body).encode(), "application/json", known=True)
