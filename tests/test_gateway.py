"""The gateway's frames over real sockets: who gets in, sessions, turns, cancel, replay, health."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import random
import socket
import threading

import pytest
import websocket

from oxydra.config import GatewayConfig, RuntimeConfig
from oxydra.frames import CLIENT
from oxydra.gateway import hub
from oxydra.gateway.frontend import Gateway
from oxydra.gateway.hub import QUEUE, Hub
from oxydra.runtime import Runtime
from oxydra.store import Store
from oxydra.tools.gate import Gate
from oxydra.tools.registry import ToolRegistry
from oxydra.types import Message, TextDelta
from tests.conftest import eventually
from tests.scripted import MODEL, Scripted

TOKEN = "a-token-of-sufficient-length-0123456789"


class Held(Scripted):
    """Says its text, then waits until released or cancelled."""

    def __init__(self, *texts):
        super().__init__()
        self.texts = texts or ("hello",)
        self.release = threading.Event()
        self.asked = threading.Semaphore(0)

    def stream(self, request, token):
        self.requests.append(request)
        for text in self.texts:
            yield TextDelta(text)
        self.asked.release()
        with token.on_cancel(self.release.set):
            assert self.release.wait(60)
        token.check()
        yield from Scripted(["".join(self.texts)]).stream(request, token)


class Running:
    """A gateway on a port of its own, over a store and a provider."""

    def __init__(self, path, provider, tools=(), approvals=None, **config):
        """`approvals` gives who asks, once the runtime is there."""
        self.path, self.provider, self.tools = path, provider, tools
        self.approvals = approvals or (lambda: None)
        self.scopes = ["approve"] if approvals else []
        self.config = GatewayConfig(**config)
        self.start()

    def start(self, port=0):
        self.store = Store(self.path)
        runtime = self.runtime(self.store)
        self.hub = Hub(self.store, runtime, self.config, "alice")
        listener = socket.create_server(("127.0.0.1", port), backlog=64)
        self.port = listener.getsockname()[1]
        digest = hashlib.sha256(TOKEN.encode()).hexdigest()
        self.gateway = Gateway(
            listener,
            self.hub,
            self.store,
            self.config,
            [{"name": "local", "sha256": digest, "scopes": ["chat", *self.scopes]}],
            lambda: {"healthy": True, "startup_status": {"sandbox_tier": "process"}},
            approvals=self.approvals(),
        )
        self.hub.start()
        self.gateway.start()

    def runtime(self, store):
        registry = ToolRegistry(names=(), extra=self.tools)
        return Runtime(
            store=store,
            provider=self.provider,
            model=MODEL,
            gate=Gate(registry, {}),
            tools=registry.specs,
            config=RuntimeConfig(),
        )

    def stop(self):
        assert self.gateway.stop(60)
        assert self.hub.stop(60)
        self.store.close()

    def connect(self, token=TOKEN, **options):
        headers = [f"Authorization: Bearer {token}"] if token else []
        options.setdefault("suppress_origin", True)
        return websocket.create_connection(
            f"ws://127.0.0.1:{self.port}/ws", header=headers, timeout=60, **options
        )

    @contextlib.contextmanager
    def client(self, **hello):
        client = Client(self.connect())
        try:
            client.ack = client.ask("hello", protocol_version=2, user_id="alice", **hello)
            client.session = client.ack["payload"]["session"]["session_id"]
            yield client
        finally:
            client.ws.close()


class Client:
    def __init__(self, ws):
        self.ws = ws
        self.number = 0
        self.seen = []

    def send(self, kind, **payload):
        self.number += 1
        request_id = payload.setdefault("request_id", f"q{self.number}")
        self.ws.send(json.dumps({"type": kind, "payload": payload}))
        return request_id

    def receive(self):
        frame = json.loads(self.ws.recv())
        self.seen.append(frame)
        return frame

    def ask(self, kind, **payload):
        """Send, and read up to the direct reply, which has no number."""
        request_id = self.send(kind, **payload)
        while True:
            frame = self.receive()
            if frame["payload"].get("request_id") == request_id and "seq" not in frame:
                return frame

    def until(self, *kinds):
        while True:
            frame = self.receive()
            if frame["type"] in kinds:
                return frame

    def turn(self, prompt="hi", turn_id="t1", session=None):
        self.send("send_turn", session_id=session or self.session, turn_id=turn_id, prompt=prompt)


@pytest.fixture
def running(tmp_path):
    started = []

    def start(provider=None, **config):
        started.append(Running(tmp_path / "oxydra.db", provider or Scripted(), **config))
        return started[-1]

    yield start
    for gateway in started:
        gateway.stop()


# ------------------------------------------------------------------------------------ who gets in


@pytest.mark.parametrize(
    ("token", "options", "status"),
    [
        ("", {}, 401),
        ("wrong", {}, 401),
        (TOKEN[:-1], {}, 401),
        (TOKEN, {"suppress_origin": False, "origin": "https://evil.example"}, 403),
        (TOKEN, {"suppress_origin": False, "origin": "http://127.0.0.1"}, 403),
        (TOKEN, {"host": "evil.example"}, 403),
        (TOKEN, {"host": "127.0.0.1.evil.example"}, 403),
    ],
)
def test_strangers_are_refused_before_the_upgrade(running, token, options, status):
    gateway = running()
    with pytest.raises(websocket.WebSocketBadStatusException) as refused:
        gateway.connect(token, **options)
    assert refused.value.status_code == status


def test_a_token_in_the_url_is_not_a_token(running):
    gateway = running()
    with pytest.raises(websocket.WebSocketBadStatusException) as refused:
        websocket.create_connection(
            f"ws://127.0.0.1:{gateway.port}/ws?token={TOKEN}", suppress_origin=True
        )
    assert refused.value.status_code == 401


def test_listed_origins_and_hosts_are_let_in(running):
    gateway = running(allowed_origins=("https://ui.example",), allowed_hosts=("ui.example",))
    gateway.connect(suppress_origin=False, origin="https://ui.example", host="ui.example").close()
    gateway.connect(host="localhost:1234").close()


@pytest.mark.parametrize(
    ("hello", "code"),
    [
        ({"protocol_version": 1, "user_id": "alice"}, 4400),
        ({"protocol_version": 2, "user_id": "bob"}, 4401),
        ({"protocol_version": "2", "user_id": "alice"}, 4400),
    ],
)
def test_a_wrong_hello_ends_the_connection(running, hello, code):
    client = Client(running().connect())
    client.send("hello", **hello)
    assert client.receive()["type"] == "error"
    opcode, data = client.ws.recv_data()
    assert (opcode, int.from_bytes(data[:2], "big")) == (websocket.ABNF.OPCODE_CLOSE, code)
    client.ws.shutdown()


def test_nothing_is_done_before_hello(running):
    gateway = running()
    for kind in CLIENT:
        if kind == "hello":
            continue
        client = Client(gateway.connect())
        said = {"session_id": "x", "turn_id": "t", "prompt": "p", "name": "approvals"}
        client.send(kind, **said, approval_id="a", decision="deny")
        assert client.receive()["payload"]["code"] == "protocol"
        assert client.ws.recv_data()[0] == websocket.ABNF.OPCODE_CLOSE
        client.ws.shutdown()
    assert gateway.store.sessions() == []


def test_bad_frames_get_an_error_and_the_connection_stays(running):
    with running().client() as client:
        for text in ("{", "[]", '{"type": "nothing", "payload": {}}', '{"type": "send_turn"}'):
            client.ws.send(text)
            assert client.receive()["payload"]["code"] == "bad_frame"
        client.ws.send('{"type": "send_turn", "payload": {"request_id": "q", "turn_id": 5}}')
        assert client.receive()["payload"]["request_id"] == "q"
        client.ws.send_binary(b"\x00")
        assert client.receive()["payload"]["code"] == "bad_frame"
        assert client.ask("health_check")["payload"]["healthy"]


@pytest.mark.parametrize(("path", "status"), [("/healthz", 200), ("/readyz", 200), ("/x", 404)])
def test_pages(running, path, status):
    connection = http.client.HTTPConnection("127.0.0.1", running().port, timeout=60)
    connection.request("GET", path)
    assert connection.getresponse().status == status
    connection.close()
    connection.request("GET", path, headers={"Host": "evil.example"})
    assert connection.getresponse().status == 403
    connection.close()


# ----------------------------------------------------------------------------- turns and sessions


def test_a_conversation(running):
    gateway = running(Scripted(["Hel", "lo"], "again"))
    with gateway.client() as client:
        client.turn("hi")
        end = client.until("turn_completed")
        assert end["payload"]["response"]["message"]["content"] == "Hello"
        assert end["payload"]["turn"] == {"turn_id": "t1", "state": "completed"}
        kinds = [f["type"] for f in client.seen[1:]]
        assert kinds[0] == "turn_started"
        numbers = [f["seq"] for f in client.seen if "seq" in f]
        assert numbers == list(range(1, len(numbers) + 1))
        history = client.ask("history", session_id=client.session)["payload"]
        assert [e["message"]["content"] for e in history["events"]] == ["hi", "Hello"]
    with gateway.client() as later:  # the latest session goes on
        assert later.session == client.session
        later.turn("more", "t2")
        later.until("turn_completed")
    assert [m.content for m in gateway.provider.requests[-1].messages[1:]] == [
        "hi",
        "Hello",
        "more",
    ]


def test_the_same_turn_id_runs_once_and_answers_twice(running):
    provider = Scripted("first", "second")
    with running(provider).client() as client:
        client.turn("hi")
        first = client.until("turn_completed")
        client.turn("hi")
        again = client.until("turn_completed")
        assert again["payload"]["response"] == first["payload"]["response"]
        assert len(provider.requests) == 1
        client.turn("something else")
        assert "already used" in client.until("error")["payload"]["message"]


def test_messages_wait_their_turn_and_are_answered_in_order(running):
    provider = Held()
    with running(provider).client() as client:
        for number in range(3):
            client.turn(f"m{number}", f"t{number}")
        states = [client.until("turn_started")["payload"]["turn"]["state"] for _ in range(3)]
        assert states == ["running", "queued", "queued"]
        provider.release.set()
        ends = [client.until("turn_completed")["payload"]["turn"]["turn_id"] for _ in range(3)]
        assert ends == ["t0", "t1", "t2"]
    said = [m.content for m in provider.requests[-1].messages if m.role == "user"]
    assert said == ["m0", "m1", "m2"]


def test_a_full_queue_says_busy(running):
    provider = Held()
    with running(provider).client() as client:
        for number in range(QUEUE + 2):
            client.turn("m", f"t{number}")
        error = client.until("error")["payload"]
        assert (error["code"], error["retry_after_ms"] > 0) == ("busy", True)
        assert "turn" not in error
        client.send("cancel_all_active_turns")
        for _ in range(QUEUE + 1):
            client.until("turn_cancelled")


def test_cancel_running_and_waiting(running):
    provider = Held("par", "tial")
    gateway = running(provider)
    with gateway.client() as client:
        client.turn("a", "t0")
        client.turn("b", "t1")
        assert provider.asked.acquire(timeout=60)
        client.send("cancel_active_turn", session_id=client.session, turn_id="t1")
        assert client.until("turn_cancelled")["payload"]["turn"]["turn_id"] == "t1"
        client.send("cancel_active_turn", session_id=client.session, turn_id="t0")
        assert client.until("turn_cancelled")["payload"]["turn"]["turn_id"] == "t0"
        reply = client.ask("cancel_active_turn", session_id=client.session, turn_id="t0")
        assert reply["payload"]["code"] == "not_found"
        events = client.ask("history", session_id=client.session)["payload"]["events"]
        assert events[-1]["message"]["content"] == "partial\n\n[cancelled]"


def test_sessions_are_created_listed_and_switched(running):
    gateway = running(max_sessions_per_user=3)
    with gateway.client() as client:
        made = client.ask("create_session", display_name="work")["payload"]
        work = made["session"]["session_id"]
        assert made["display_name"] == "work"
        rows = client.ask("list_sessions")["payload"]["sessions"]
        assert {r["session_id"] for r in rows} == {client.session, work}
        back = client.ask("switch_session", session_id=client.session[:8])["payload"]
        assert back["session"]["session_id"] == client.session
        for wanted in ("../../etc/passwd", "", "%", "nope"):
            reply = client.ask("switch_session", session_id=wanted)
            assert reply["payload"]["code"] == "not_found"
        client.ask("create_session")
        assert client.ask("create_session")["payload"]["code"] == "busy"


def test_an_idle_session_is_archived_and_a_message_brings_it_back(running):
    gateway = running(Scripted("first", "second"), session_idle_ttl_hours=1000.0)
    with gateway.client() as client:
        old = client.session
        client.turn("hello", "t1")
        client.until("turn_completed")
        client.ask("create_session")
        with gateway.store._transaction() as db:  # another year has come
            db.execute(
                "UPDATE sessions SET last_active_at = '2001-01-01T00:00:00.000+00:00'"
                " WHERE session_id = ?",
                (old,),
            )
        rows = client.ask("list_sessions")["payload"]["sessions"]
        assert old not in {row["session_id"] for row in rows}
        rows = client.ask("list_sessions", include_archived=True)["payload"]["sessions"]
        assert {row["session_id"] for row in rows if row["archived"]} == {old}
        client.ask("switch_session", session_id=old)
        client.session = old
        client.turn("again", "t2")
        client.until("turn_completed")
        rows = client.ask("list_sessions")["payload"]["sessions"]
        assert old in {row["session_id"] for row in rows}
        said = [m.content for m in gateway.store.messages(old)]
        assert said == ["hello", "first", "again", "second"]


def test_everybody_on_a_session_sees_it_and_nobody_else(running):
    gateway = running(Scripted("answer"))
    with (
        gateway.client() as one,
        gateway.client() as two,
        gateway.client(create_new_session=True) as other,
    ):
        one.turn()
        one.until("turn_completed")
        two.until("turn_completed")
        numbered = [[f for f in c.seen if "seq" in f] for c in (one, two)]
        assert numbered[0] == numbered[1]
        other.ask("health_check")
        assert [f["type"] for f in other.seen] == ["hello_ack", "health_status"]


def test_who_is_in_the_same_process_takes_the_same_way(running):
    """Submits, hears, cancels and lists as a client does, and each sees what the other did."""

    class Ear:
        def __init__(self):
            self.heard = []
            self.ended = threading.Event()

        def hear(self, frame_type, payload):
            self.heard.append((frame_type, payload))
            if frame_type in ("turn_completed", "turn_cancelled"):
                self.ended.set()

    provider = Held("par", "tial")
    gateway = running(provider)
    with gateway.client() as client:
        ear = Ear()
        leave = gateway.hub.subscribe(client.session, ear)
        turn, created = gateway.hub.submit(client.session, "t1", "mine", "hi")
        assert created and turn.turn_id == "t1"
        assert provider.asked.acquire(timeout=60)
        assert gateway.hub.submit(client.session, "t1", "mine", "hi") == (
            gateway.store.turn("t1"),
            False,
        )
        client.turn("after it", "t2")
        client.until("turn_started")
        gateway.hub.cancel(client.session, "t1")
        assert client.until("turn_cancelled")["payload"]["request_id"] == "mine"
        assert ear.ended.wait(60)
        ear.ended.clear()
        provider.release.set()
        client.until("turn_completed")
        assert ear.ended.wait(60)
        told = [(f["type"], f["payload"]) for f in client.seen if "seq" in f]
        assert ear.heard == told
        leave()
        client.turn("unheard", "t3")
        client.until("turn_completed")
        assert ear.heard == told
        rows = client.ask("list_sessions")["payload"]["sessions"]
        assert [s.session_id for s in gateway.hub.sessions()] == [r["session_id"] for r in rows]


def test_turns_of_many_sessions_run_side_by_side_up_to_the_limit(running):
    provider = Held()
    gateway = running(provider, max_concurrent_turns_per_user=2)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(gateway.client(create_new_session=True)) for _ in range(3)]
        for number, client in enumerate(clients):
            client.turn("m", f"t{number}")
            client.until("turn_started")
        assert all(provider.asked.acquire(timeout=60) for _ in range(2))
        assert not provider.asked.acquire(blocking=False)
        assert gateway.hub.counts() == {"running_turns": 2, "queued_turns": 1}
        provider.release.set()
        for client in clients:
            client.until("turn_completed")


PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)


def attached(data, mime_type="image/png"):
    return {"mime_type": mime_type, "data": base64.b64encode(data).decode()}


def test_an_attachment_reaches_the_model_and_survives_a_restart(running):
    provider = Scripted("a picture", "again")
    gateway = running(provider)
    with gateway.client() as client:
        client.send(
            "send_turn",
            session_id=client.session,
            turn_id="t",
            prompt="look",
            attachments=[attached(PNG), attached(PNG)],
        )
        client.until("turn_completed")
        (event, _answer) = client.ask("history", session_id=client.session)["payload"]["events"]
        row = {
            "mime_type": "image/png",
            "sha256": hashlib.sha256(PNG).hexdigest(),
            "size": len(PNG),
            "name": "",
        }
        assert event["message"]["attachments"] == [row, row]
    sent = provider.requests[0].messages[-1].attachments
    assert [a.data for a in sent] == [PNG, PNG]
    assert gateway.store.messages(client.session)[0].attachments == sent


@pytest.mark.parametrize(
    ("attachments", "code"),
    [
        ([attached(b"#!/bin/sh")], "unsupported"),
        ([attached(PNG, "application/pdf")], "unsupported"),
        ([{"mime_type": "image/png", "data": "%%%"}], "bad_frame"),
        (["x"], "bad_frame"),
        ([attached(PNG)] * 5, "too_large"),
        ([attached(PNG + bytes(10 << 20))], "too_large"),
    ],
)
def test_attachments_that_are_refused_start_nothing(running, attachments, code):
    with running().client() as client:
        reply = client.ask(
            "send_turn",
            session_id=client.session,
            turn_id="t",
            prompt="look",
            attachments=attachments,
        )
        assert reply["payload"]["code"] == code
        assert client.ask("health_check")["payload"]["active_turn"] is None


def test_a_long_frame_needs_attachments(running):
    with running().client() as client:
        reply = client.ask("list_sessions", padding="x" * (1 << 20))
        assert reply["payload"]["code"] == "too_large"


# ------------------------------------------------------------------------------ coming back


def test_reconnecting_at_random_instants_loses_and_repeats_nothing(running):
    words = [f"w{n} " for n in range(300)]
    seed = random.Random(7)

    class Slow(Scripted):
        def __init__(self):
            super().__init__()
            self.step = threading.Semaphore(0)

        def stream(self, request, token):
            for word in words:
                assert self.step.acquire(timeout=60)
                yield TextDelta(word)
            yield from Scripted(Message("assistant", "".join(words))).stream(request, token)

    provider = Slow()
    gateway = running(provider)
    with gateway.client() as first:
        session, epoch = first.session, first.ack["payload"]["epoch"]
        first.turn()
        first.until("turn_started")
        last = first.seen[-1]["seq"]
    frames = []
    while not frames or frames[-1]["type"] != "turn_completed":
        with gateway.client(session_id=session, last_seq=last, epoch=epoch) as client:
            assert client.ack["payload"]["resumed"]
            for _ in range(seed.randint(1, 12)):
                provider.step.release()
                frame = client.receive()
                frames.append(frame)
                last = frame["seq"]
                if frame["type"] == "turn_completed":
                    break
    assert "".join(f["payload"].get("delta", "") for f in frames) == "".join(words)
    numbers = [f["seq"] for f in frames]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_a_restart_resumes_the_turn_and_starts_a_new_epoch(running):
    provider = Held("half")
    gateway = running(provider)
    with gateway.client() as client:
        session, epoch = client.session, client.ack["payload"]["epoch"]
        client.turn("hi")
        assert provider.asked.acquire(timeout=60)
    gateway.gateway.stop(5)
    gateway.hub.stop(5)
    gateway.store.close()
    assert provider.release.is_set()  # it was interrupted
    gateway.start()
    with gateway.client(session_id=session, last_seq=1, epoch=epoch) as client:
        assert client.ack["payload"]["epoch"] != epoch
        assert not client.ack["payload"]["resumed"]
        client.turn("hi")  # the client does not know whether it was answered
        end = client.until("turn_completed")
        assert end["payload"]["response"]["message"]["content"] == "half"
    assert [m.role for m in gateway.store.messages(session)] == ["user", "assistant"]


def test_health_names_the_session_and_its_turn(running):
    provider = Held()
    with running(provider).client() as client:
        client.turn()
        assert provider.asked.acquire(timeout=60)
        status = client.ask("health_check")["payload"]
        assert status["session"]["session_id"] == client.session
        assert status["active_turn"] == {"turn_id": "t1", "state": "running"}
        provider.release.set()
        client.until("turn_completed")
        assert client.ask("health_check")["payload"]["active_turn"] is None


def test_a_session_that_nobody_uses_is_dropped_and_its_client_reads_the_history(
    running, monkeypatch
):
    gateway = running(Scripted(["one"], ["two"], ["three"]))
    with gateway.client(create_new_session=True) as client:
        client.turn("m", "t1")
        seen = client.until("turn_completed")["seq"]
        left, epoch = client.session, client.ack["payload"]["epoch"]
    with gateway.client(create_new_session=True) as client:
        eventually(lambda: not gateway.hub.live(left).followers)
        monkeypatch.setattr(hub, "IDLE", 0.0)
        client.turn("m", "t2")
        client.until("turn_completed")
        eventually(lambda: list(gateway.hub._live) == [client.session])
        monkeypatch.undo()
        with gateway.client(session_id=left) as other:  # while the first one is away
            other.turn("m", "t3")
            assert other.until("turn_completed")["seq"] > seen
        with gateway.client(session_id=left, last_seq=seen - 1, epoch=epoch) as back:
            assert back.ack["payload"]["resumed"] is False
            history = back.ask("history", session_id=left)["payload"]["events"]
            assert [e["message"]["content"] for e in history] == ["m", "one", "m", "three"]


def test_what_is_kept_for_clients_that_come_back_is_bounded_in_all(running, monkeypatch):
    monkeypatch.setattr(hub, "REPLAY_TOTAL", 50_000)
    gateway = running(Scripted(*[["x" * 20_000]] * 4))
    sessions = []
    for number in range(4):
        with gateway.client(create_new_session=True) as client:
            client.turn("m", f"t{number}")
            client.until("turn_completed")
            sessions.append((client.session, client.ack["payload"]["epoch"]))
    lives = gateway.hub._live.values()
    eventually(lambda: sum(live.replay[1] for live in lives) <= 50_000)
    kept = []
    for session, epoch in sessions:
        with gateway.client(session_id=session, last_seq=1, epoch=epoch) as client:
            kept.append(client.ack["payload"]["resumed"])
            history = client.ask("history", session_id=session)["payload"]["events"]
            assert history[-1]["message"]["content"] == "x" * 20_000
    assert kept == [False, False, False, True]
