"""A scripted gateway for the tests of its clients: real sockets, the real frames, no model.

It keeps sessions with a history and a replay buffer as the real one does. What a turn does is the
script's: `on_turn(turn)` is called on a thread of the turn's own. Connections can be cut after any
number of bytes, and the whole gateway can be stopped and started again on the same port.

Threads: one accepts, one reads each connection, one runs each turn; all end with `stop`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable

from oxydra.frames import (
    Frame,
    decode_client,
    encode,
    session_ref,
    turn_ref,
    usage_json,
)
from oxydra.threads import Service
from oxydra.types import Json, Usage

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
DEADLINE = 60.0  # seconds that anything in a test may take, on a machine with much else to do
TIME = "2026-01-02T03:04:05Z"


class Room:
    """A session."""

    def __init__(self, session_id: str, name: str = "") -> None:
        self.session_id = session_id
        self.name = name
        self.events: list[Json] = []
        self.seq = 0
        self.kept: deque[tuple[int, bytes]] = deque()
        self.listeners: list[Peer] = []
        self.queue: deque[Turn] = deque()
        self.active: Turn | None = None

    def row(self) -> Json:
        return {
            "session_id": self.session_id,
            "agent_name": "default",
            "display_name": self.name or None,
            "channel_origin": "gateway",
            "created_at": TIME,
            "last_active_at": TIME,
            "archived": False,
        }


class Turn:
    """What a script drives."""

    def __init__(self, gateway: FakeGateway, room: Room, payload: Json) -> None:
        self.gateway = gateway
        self.room = room
        self.turn_id = payload["turn_id"]
        self.request_id = payload["request_id"]
        self.prompt = payload["prompt"]
        self.cancelled = threading.Event()
        self.service: Service | None = None

    def emit(self, frame_type: str, payload: Json, state: str = "running") -> None:
        address = {
            "request_id": self.request_id,
            "session": session_ref(self.gateway.user_id, self.room.session_id),
            "turn": turn_ref(self.turn_id, state),
        }
        self.gateway.publish(self.room, frame_type, {**address, **payload})

    def delta(self, text: str) -> None:
        self.emit("assistant_delta", {"delta": text})

    def progress(self, kind: str, message: str, turn: int = 1) -> None:
        progress = {"kind": {"kind": kind}, "message": message, "turn": turn, "max_turns": 25}
        self.emit("turn_progress", {"progress": progress})

    def tool(
        self, name: str, summary: str, state: str, call_id: str = "c1", elapsed_ms: int = 12
    ) -> None:
        call = {"id": call_id, "name": name, "state": state, "summary": summary}
        self.emit("tool_event", {"call": {**call, "elapsed_ms": elapsed_ms}})

    def ask(self, tool: str, arguments: str, reason: str) -> Json:
        """Ask for an approval and wait for the answer: the `approve` frame's payload."""
        approval_id = f"p-{self.turn_id[-6:]}"
        request = {"approval_id": approval_id, "tool": tool, "arguments": arguments}
        request |= {"arguments_sha256": "0" * 64, "complete": True, "reason": reason}
        self.emit("approval_request", {**request, "safety_tier": "privileged", "expires_at": TIME})
        self.gateway.wait(lambda: self.gateway.answers.get(approval_id), "an answer")
        answer = self.gateway.answers[approval_id]
        decision = {"allow": "allowed", "deny": "denied"}[answer["decision"]]
        told = {"approval_id": approval_id, "tool": tool, "decision": decision, "by": "local"}
        self.emit("approval_resolved", {**told, "request_id": answer["request_id"]})
        return answer

    def record(self, message: Json) -> None:
        self.gateway.record(self.room, message, self.turn_id)

    def complete(self, text: str, usage: Usage | None = None) -> None:
        self.record({"role": "assistant", "content": text})
        response: Json = {
            "message": {"role": "assistant", "content": text, "tool_calls": []},
            "tool_calls": [],
            "finish_reason": "stop",
        }
        if usage is not None:
            response["usage"] = usage_json(usage)
        self._end("turn_completed", {"response": response}, "completed")

    def cancel(self) -> None:
        self._end("turn_cancelled", {}, "cancelled")

    def fail(self, message: str, code: str) -> None:
        self._end("error", {"message": message, "code": code}, "failed")

    def _end(self, frame_type: str, payload: Json, state: str) -> None:
        with self.gateway.lock:
            self.room.active = None
        self.emit(frame_type, payload, state)


class Peer:
    """One connection, from the gateway's side. `budget` is how many bytes may still be sent."""

    def __init__(self, sock: socket.socket, budget: int | None) -> None:
        self.sock = sock
        self.budget = budget
        self.lock = threading.Lock()
        self.headers: dict[str, str] = {}

    def send(self, data: bytes) -> None:
        with self.lock:
            if self.budget is not None:
                data, self.budget = data[: self.budget], max(0, self.budget - len(data))
            with contextlib.suppress(OSError):
                self.sock.sendall(data)
                if self.budget == 0:
                    self.sock.shutdown(socket.SHUT_RDWR)

    def frame(self, payload: bytes, opcode: int = 1) -> None:
        """A frame from a server: unmasked (RFC 6455, section 5.2)."""
        size = len(payload)
        if size < 126:
            head = struct.pack("!BB", 0x80 | opcode, size)
        elif size < 1 << 16:
            head = struct.pack("!BBH", 0x80 | opcode, 126, size)
        else:
            head = struct.pack("!BBQ", 0x80 | opcode, 127, size)
        self.send(head + payload)

    def cut(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)


class FakeGateway:
    """See the module. `status` is the startup status it reports, `refuse` an HTTP status that it
    answers every connection with.
    """

    def __init__(self, *, token: str = "t0ken-of-the-test", user_id: str = "alice") -> None:
        self.token = token
        self.user_id = user_id
        self.epoch = "e1"
        self.refuse = 0
        self.keep = 10_000  # frames to replay
        self.forgetful = False  # says that it has nothing to replay
        self.overlap = 0  # frames that are replayed although the client has them
        self.budgets: deque[int] = deque()  # for the connections to come
        self.status: Json = {
            "sandbox_tier": "process",
            "sandbox_level": "cage",
            "sidecar_available": True,
            "shell_available": True,
            "browser_available": False,
            "degraded_reasons": [],
            "model": {"provider": "openai", "model": "gpt-test"},
        }
        self.on_turn: Callable[[Turn], None] = lambda turn: turn.complete(f"You: {turn.prompt}")
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.received: list[Frame] = []
        self.handshakes: list[dict[str, str]] = []
        self.rooms: dict[str, Room] = {"s-main": Room("s-main", "main")}
        self.turns: dict[str, Turn] = {}
        self.answers: dict[str, Json] = {}  # to requests for approvals, by their ids
        self.commands: dict[str, Json] = {}  # what each command answers
        self.port = 0
        self._names = itertools.count(1)
        self._peers: list[Peer] = []
        self._readers: list[Service] = []
        self._listener: socket.socket | None = None
        self._acceptor: Service | None = None

    # ------------------------------------------------------------------------------------ life

    @property
    def endpoint(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    def __enter__(self) -> FakeGateway:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> FakeGateway:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        self._acceptor = Service("fake-accept", self._accept, wake=self._wake_acceptor).start()
        return self

    def stop(self) -> None:
        """Stop as a killed daemon does: connections break; what was stored stays."""
        assert self._acceptor is not None and self._listener is not None
        self._acceptor.stop()
        self._listener.close()
        for turn in list(self.turns.values()):
            turn.cancelled.set()
        self.cut()
        for service in self._readers + [t.service for t in self.turns.values() if t.service]:
            service.stop()
        self._readers.clear()

    def restart(self) -> None:
        """Come back on the same port, with numbering begun anew."""
        with self.lock:
            self.epoch = f"e{next(self._names)}x"
            for room in self.rooms.values():
                room.seq, room.active = 0, None
                room.kept.clear()
        self.start()

    def cut(self) -> None:
        """Break every connection."""
        with self.lock:
            peers, self._peers = self._peers, []
            for room in self.rooms.values():
                room.listeners.clear()
        for peer in peers:
            peer.cut()

    def _wake_acceptor(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)

    def wait(self, ready: Callable[[], object], what: str = "condition") -> None:
        """Until `ready()`, which is looked at whenever a frame came or went."""
        with self.changed:
            assert self.changed.wait_for(ready, DEADLINE), f"waited in vain for {what}"

    def sent(self, frame_type: str) -> list[Json]:
        """The payloads of one type that clients sent."""
        with self.lock:
            return [frame.payload for frame in self.received if frame.type == frame_type]

    # --------------------------------------------------------------------------------- sending

    def publish(self, room: Room, frame_type: str, payload: Json) -> None:
        with self.changed:
            room.seq += 1
            frame = encode(frame_type, payload, room.seq)
            room.kept.append((room.seq, frame))
            while len(room.kept) > self.keep:
                room.kept.popleft()
            for peer in room.listeners:
                peer.frame(frame)
            self.changed.notify_all()

    def record(self, room: Room, message: Json, turn_id: str) -> None:
        """Append to a session's history."""
        with self.lock:
            sequence = len(room.events) + 1
            event = {"sequence": sequence, "turn_id": turn_id, "message": message}
            room.events.append({**event, "created_at": TIME})

    # --------------------------------------------------------------------------------- serving

    def _accept(self, service: Service) -> None:
        assert self._listener is not None
        while not service.stopping.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            peer = Peer(sock, self.budgets.popleft() if self.budgets else None)
            with self.lock:
                self._peers.append(peer)
            name = f"fake-peer-{sock.fileno()}"
            reader = Service(name, lambda _s, p=peer: self._serve(p), wake=peer.cut)
            self._readers.append(reader.start())

    def _serve(self, peer: Peer) -> None:
        with contextlib.suppress(OSError, EOFError), peer.sock, peer.sock.makefile("rb") as stream:
            self._handshake(peer, stream)
            while True:
                first, second = _exactly(stream, 2)
                size = second & 127
                if size == 126:
                    (size,) = struct.unpack("!H", _exactly(stream, 2))
                elif size == 127:
                    (size,) = struct.unpack("!Q", _exactly(stream, 8))
                mask = _exactly(stream, 4)
                data = bytes(b ^ mask[i % 4] for i, b in enumerate(_exactly(stream, size)))
                if first & 15 == 8:
                    peer.frame(data, opcode=8)
                    return
                if first & 15 == 1:
                    self._take(peer, decode_client(data.decode()))

    def _handshake(self, peer: Peer, stream: object) -> None:
        lines = []
        while (line := stream.readline().decode().strip()) != "":  # type: ignore[attr-defined]
            lines.append(line)
        if not lines:
            raise EOFError
        headers = {k.strip().lower(): v.strip() for k, v in (h.split(":", 1) for h in lines[1:])}
        with self.changed:
            self.handshakes.append({**headers, ":line": lines[0]})
            self.changed.notify_all()
        status = self.refuse
        if not status and headers.get("authorization") != f"Bearer {self.token}":
            status = 401
        if status:
            peer.send(f"HTTP/1.1 {status} No\r\nContent-Length: 2\r\n\r\nno".encode())
            raise EOFError
        digest = hashlib.sha1((headers["sec-websocket-key"] + GUID).encode()).digest()
        accept = base64.b64encode(digest).decode()
        peer.send(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
        )

    def _take(self, peer: Peer, frame: Frame) -> None:
        with self.changed:
            self.received.append(frame)
            getattr(self, f"_do_{frame.type}")(peer, frame.payload)
            self.changed.notify_all()

    def _ref(self, room: Room) -> Json:
        return session_ref(self.user_id, room.session_id)

    def _reply(self, peer: Peer, asked: Json, frame_type: str, payload: Json) -> None:
        peer.frame(encode(frame_type, {"request_id": asked["request_id"], **payload}))

    def _active(self, room: Room) -> Json:
        turn = room.active
        return {"active_turn": turn_ref(turn.turn_id, "running")} if turn else {}

    def _new_room(self, name: str = "") -> Room:
        room = Room(f"s-new-{next(self._names)}", name)
        self.rooms[room.session_id] = room
        return room

    def _do_hello(self, peer: Peer, asked: Json) -> None:
        if asked["user_id"] != self.user_id:
            error = {"message": "That is not this daemon's user.", "code": "unauthorized"}
            self._reply(peer, asked, "error", error)
            peer.frame(struct.pack("!H", 4401), opcode=8)
            return
        if asked.get("create_new_session"):
            room = self._new_room()
        else:
            room = self.rooms[asked.get("session_id") or "s-main"]
        ack = {"protocol_version": 2, "session": self._ref(room), "seq": room.seq}
        if self.forgetful:
            ack["resumed"] = False
        self._reply(peer, asked, "hello_ack", {**ack, "epoch": self.epoch, **self._active(room)})
        last = asked.get("last_seq")
        if last is not None and not self.forgetful and asked.get("epoch") == self.epoch:
            for seq, kept in room.kept:
                if seq > last - self.overlap:
                    peer.frame(kept)
        room.listeners.append(peer)

    def _do_send_turn(self, peer: Peer, asked: Json) -> None:
        room = self.rooms[asked["session_id"]]
        known = self.turns.get(asked["turn_id"])
        if known is not None:
            state = "running" if room.active is known else "completed"
            ref = {"session": self._ref(room), "turn": turn_ref(known.turn_id, state)}
            self._reply(peer, asked, "turn_started", ref)
            return
        turn = self.turns[asked["turn_id"]] = Turn(self, room, asked)
        if room.active is not None:
            room.queue.append(turn)
            turn.emit("turn_started", {}, "queued")
        else:
            self._begin(room, turn)

    def _begin(self, room: Room, turn: Turn) -> None:
        room.active = turn
        turn.emit("turn_started", {})
        turn.record({"role": "user", "content": turn.prompt})
        turn.service = Service(f"fake-turn-{turn.turn_id[-6:]}", lambda _s: self._run(turn))
        turn.service.start()

    def _run(self, turn: Turn) -> None:
        self.on_turn(turn)
        with self.changed:
            if turn.room.queue and turn.room.active is None:
                self._begin(turn.room, turn.room.queue.popleft())
            self.changed.notify_all()

    def _do_cancel_active_turn(self, peer: Peer, asked: Json) -> None:
        turn = self.turns.get(asked["turn_id"])
        if turn is not None:
            turn.cancelled.set()

    def _do_approve(self, peer: Peer, asked: Json) -> None:
        self.answers[asked["approval_id"]] = asked

    def _do_command(self, peer: Peer, asked: Json) -> None:
        name = asked["name"]
        if name in self.commands:
            self._reply(peer, asked, "command_result", {"name": name, "data": self.commands[name]})
        else:
            message = f"There is no command {name!r}. There are: {', '.join(self.commands)}."
            self._reply(peer, asked, "error", {"message": message, "code": "usage"})

    def _do_health_check(self, peer: Peer, asked: Json) -> None:
        self._reply(peer, asked, "health_status", {"healthy": True, "startup_status": self.status})

    def _do_create_session(self, peer: Peer, asked: Json) -> None:
        room = self._new_room(asked.get("display_name") or "")
        answer = {"session": self._ref(room), "display_name": room.name, "agent_name": "default"}
        self._follow(peer, room)
        self._reply(peer, asked, "session_created", answer)

    def _do_list_sessions(self, peer: Peer, asked: Json) -> None:
        rows = [room.row() for room in self.rooms.values()]
        self._reply(peer, asked, "session_list", {"sessions": rows})

    def _do_switch_session(self, peer: Peer, asked: Json) -> None:
        room = next((r for i, r in self.rooms.items() if i.startswith(asked["session_id"])), None)
        if room is None:
            self._reply(peer, asked, "error", {"message": "No such session.", "code": "not_found"})
            return
        answer = {"session": self._ref(room), **self._active(room)}
        self._follow(peer, room)
        self._reply(peer, asked, "session_switched", answer)

    def _follow(self, peer: Peer, room: Room) -> None:
        """Make `room` the one session that `peer` listens to."""
        for other in self.rooms.values():
            if peer in other.listeners:
                other.listeners.remove(peer)
        room.listeners.append(peer)

    def _do_history(self, peer: Peer, asked: Json) -> None:
        room = self.rooms[asked["session_id"]]
        before = asked.get("before_sequence") or len(room.events) + 1
        limit = asked.get("limit") or 100
        older = [e for e in room.events if e["sequence"] < before]
        answer = {"session": self._ref(room), "events": older[-limit:], "more": len(older) > limit}
        self._reply(peer, asked, "session_history", json.loads(json.dumps(answer)))


def _exactly(stream: object, size: int) -> bytes:
    data: bytes = stream.read(size)  # type: ignore[attr-defined]
    if len(data) < size:
        raise EOFError
    return data
