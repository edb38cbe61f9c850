"""The gateway client against a scripted gateway on real sockets."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from oxydra.errors import NoDaemonError, OxydraError, UsageError
from oxydra.frames import Frame
from oxydra.tui.client import ClientConfig, GatewayClient, Link, RefusedError
from tests.fake_gateway import DEADLINE, FakeGateway, Turn

QUICK = ClientConfig(connect_timeout=5.0, backoff_base=0.01, backoff_max=0.05)


class Heard:
    """What a client's callbacks were told."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.links: list[Link] = []
        self.changed = threading.Condition()

    def on_frame(self, frame: Frame) -> None:
        with self.changed:
            self.frames.append(frame)
            self.changed.notify_all()

    def on_link(self, link: Link) -> None:
        with self.changed:
            self.links.append(link)
            self.changed.notify_all()

    def wait(self, ready: Callable[[], object], what: str = "event") -> None:
        with self.changed:
            assert self.changed.wait_for(ready, DEADLINE), f"waited in vain for {what}"

    def of(self, frame_type: str) -> list[Frame]:
        return [frame for frame in self.frames if frame.type == frame_type]

    def text(self) -> str:
        return "".join(frame.payload["delta"] for frame in self.of("assistant_delta"))


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with FakeGateway() as gateway:
        yield gateway


def connect(gateway: FakeGateway, heard: Heard, **options: object) -> GatewayClient:
    client = GatewayClient(
        gateway.endpoint,
        gateway.token,
        "alice",
        on_frame=heard.on_frame,
        on_link=heard.on_link,
        config=QUICK,
        **options,  # type: ignore[arg-type]
    )
    client.connect()
    return client


def send_turn(client: GatewayClient, turn_id: str, prompt: str = "hi") -> str:
    payload = {"session_id": client.session_id, "turn_id": turn_id, "prompt": prompt}
    return client.send("send_turn", payload)


def test_says_hello_with_the_token_and_without_an_origin(gateway: FakeGateway) -> None:
    heard = Heard()
    client = connect(gateway, heard)
    try:
        heard.wait(lambda: heard.links, "the link")
        assert heard.frames[0].type == "hello_ack"
        assert heard.links == [Link(True, fresh=True)]
        assert client.session_id == "s-main"
        shaken = gateway.handshakes[0]
        assert shaken["authorization"] == f"Bearer {gateway.token}"
        assert "origin" not in shaken
        assert gateway.token not in shaken[":line"]
        hello = gateway.sent("hello")[0]
        assert (hello["protocol_version"], hello["user_id"]) == (2, "alice")
        assert "session_id" not in hello and "last_seq" not in hello
    finally:
        assert client.close()
    assert client.close()


def test_a_turn_arrives_in_order_and_replies_carry_the_request_id(gateway: FakeGateway) -> None:
    heard = Heard()
    client = connect(gateway, heard, new_session=True)
    try:
        assert client.session_id != "s-main"
        request_id = send_turn(client, "t1", "hello")
        heard.wait(lambda: heard.of("turn_completed"), "the answer")
        assert {f.payload["request_id"] for f in heard.frames if f.seq} == {request_id}
        assert [f.seq for f in heard.frames if f.seq] == [1, 2]
        assert client.send("health_check", {}) != client.send("health_check", {})
    finally:
        client.close()


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_refusal_is_explained_and_does_not_show_the_token(
    gateway: FakeGateway, status: int
) -> None:
    gateway.refuse = status
    with pytest.raises(RefusedError) as caught:
        connect(gateway, Heard())
    assert gateway.token not in str(caught.value)
    if status == 401:
        assert caught.value.code == "unauthorized" and "gateway-token" in caught.value.remedy


def test_a_wrong_user_is_refused_in_the_gateways_words(gateway: FakeGateway) -> None:
    gateway.user_id = "bob"
    with pytest.raises(RefusedError, match="not this daemon's user"):
        connect(gateway, Heard())


def test_no_daemon_is_said_with_the_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    client = GatewayClient(f"ws://127.0.0.1:{port}/ws", "x", "alice", on_frame=print)
    with pytest.raises(NoDaemonError, match="oxydra-runner start"):
        client.connect()
    assert client.close()


def test_something_that_is_no_gateway_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(b"220 mail.example ESMTP\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        client = GatewayClient(f"ws://127.0.0.1:{port}/ws", "x", "alice", on_frame=print)
        with pytest.raises(OxydraError, match="no gateway"):
            client.connect()
        thread.join()


@pytest.mark.parametrize(
    "endpoint",
    ["", "http://127.0.0.1:1/ws", "ws://127.0.0.1/ws", "ws://u:p@127.0.0.1:1/ws", "ws://[x/ws"],
)
def test_a_bad_endpoint_is_a_usage_error(endpoint: str) -> None:
    client = GatewayClient(endpoint, "secret-token", "alice", on_frame=print)
    with pytest.raises(UsageError) as caught:
        client.connect()
    assert "secret" not in str(caught.value)


def test_a_token_is_not_sent_in_the_clear_to_another_machine() -> None:
    client = GatewayClient("ws://192.0.2.7:8421/ws", "x", "alice", on_frame=print)
    with pytest.raises(UsageError, match="in the clear"):
        client.connect()


def test_tls_to_who_never_answers_ends_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"wss://127.0.0.1:{server.getsockname()[1]}/ws"
        hasty = ClientConfig(connect_timeout=2.0)  # what it needs is imported meanwhile
        client = GatewayClient(endpoint, "x", "alice", on_frame=print, config=hasty)
        with pytest.raises(NoDaemonError, match="TLS"):
            client.connect()


def test_a_proxy_of_the_environment_is_not_asked(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "nowhere.example")
    connect(gateway, Heard()).close()


@pytest.mark.parametrize("seed", range(6))
def test_cut_anywhere_the_text_is_whole_and_nothing_comes_twice(
    gateway: FakeGateway, seed: int
) -> None:
    """Connections die after a random number of bytes, in handshakes and in the midst of frames."""
    chance = random.Random(seed)
    words = [f"{i}-{'é漢x'[i % 3]} " for i in range(150)]
    gateway.budgets.extend([chance.randrange(1500, 6000)])
    gateway.budgets.extend(chance.randrange(20, 9000) for _ in range(8))

    def talk(turn: Turn) -> None:
        for word in words:
            turn.delta(word)
        turn.complete("".join(words))

    gateway.on_turn = talk
    gateway.overlap = seed % 3
    heard = Heard()
    client = connect(gateway, heard)
    try:
        send_turn(client, "t1")
        heard.wait(lambda: heard.of("turn_completed"), "the end of the turn")
        assert heard.text() == "".join(words)
        assert [f.seq for f in heard.frames if f.seq] == list(range(1, len(words) + 3))
        assert all(not link.fresh for link in heard.links[1:])
    finally:
        client.close()
    assert len(gateway.handshakes) > 1, "no connection was cut"


def test_a_lost_replay_buffer_asks_for_the_history(gateway: FakeGateway) -> None:
    """The gateway came back with another epoch: numbers begin anew, and nothing is dropped."""
    heard = Heard()
    client = connect(gateway, heard)
    try:
        send_turn(client, "t1")
        heard.wait(lambda: heard.of("turn_completed"), "the first answer")
        gateway.stop()
        heard.wait(lambda: any(not link.connected for link in heard.links), "the loss")
        gateway.restart()
        heard.wait(lambda: heard.links[-1].connected, "the new connection")
        assert heard.links[-1].fresh
        assert gateway.sent("hello")[-1]["session_id"] == "s-main"
        send_turn(client, "t2")
        heard.wait(lambda: len(heard.of("turn_completed")) == 2, "the second answer")
        assert heard.of("turn_completed")[1].seq == 2
    finally:
        client.close()


def test_a_gap_in_the_replay_asks_for_the_history(gateway: FakeGateway) -> None:
    heard = Heard()
    client = connect(gateway, heard)
    try:
        send_turn(client, "t1")
        heard.wait(lambda: heard.of("turn_completed"), "the first answer")
        gateway.keep = 1
        with gateway.lock:  # nothing connects again before this is done
            gateway.cut()
            for text in ("a", "b", "c"):
                gateway.turns["t1"].delta(text)
        heard.wait(lambda: heard.text() == "c", "what is left of the replay")
        assert [link.fresh for link in heard.links if link.connected] == [True, False, True]
    finally:
        client.close()


def test_a_gateway_that_can_not_resume_makes_the_client_read_the_history(
    gateway: FakeGateway,
) -> None:
    heard = Heard()
    client = connect(gateway, heard)
    try:
        send_turn(client, "t1")
        heard.wait(lambda: heard.of("turn_completed"), "the first answer")
        gateway.forgetful = True
        with gateway.lock:
            gateway.cut()
            gateway.turns["t1"].delta("missed")
        heard.wait(lambda: len([x for x in heard.links if x.connected]) == 2, "a connection")
        assert heard.links[-1].fresh
        gateway.turns["t1"].delta("seen")
        heard.wait(lambda: heard.text() == "seen", "what comes after")
    finally:
        client.close()


def test_a_switch_moves_the_resume_point(gateway: FakeGateway) -> None:
    """What a session went through while another was in sight is read from its history."""
    heard = Heard()
    client = connect(gateway, heard)

    def switch(session_id: str) -> None:
        before = len(heard.of("session_switched"))
        client.send("switch_session", {"session_id": session_id})
        heard.wait(lambda: len(heard.of("session_switched")) > before, "the switch")
        assert client.session_id == session_id

    try:
        send_turn(client, "t1")
        heard.wait(lambda: heard.of("turn_completed"), "an answer in the first session")
        client.send("create_session", {"display_name": "other"})
        heard.wait(lambda: heard.of("session_created"), "the session")
        switch(heard.of("session_created")[0].payload["session"]["session_id"])
        switch("s-main")
        gateway.cut()
        heard.wait(lambda: len([x for x in heard.links if x.connected]) == 2, "a connection")
        hello = gateway.sent("hello")[-1]
        assert hello["session_id"] == "s-main" and "last_seq" not in hello
        assert heard.links[-1].fresh
    finally:
        client.close()


def test_locate_is_asked_before_each_attempt(gateway: FakeGateway) -> None:
    """A restarted daemon may listen on another port, with another token."""
    with FakeGateway(token="another-token") as second:
        place = [(gateway.endpoint, gateway.token)]
        heard = Heard()
        client = connect(gateway, heard, locate=lambda: place[0])
        try:
            place[0] = (second.endpoint, second.token)
            gateway.cut()
            heard.wait(lambda: len([x for x in heard.links if x.connected]) == 2, "the second")
            assert len(second.handshakes) == 1
        finally:
            client.close()


def test_close_ends_a_client_that_waits_for_its_daemon(gateway: FakeGateway) -> None:
    heard = Heard()
    client = connect(gateway, heard)
    gateway.stop()
    heard.wait(lambda: len(heard.links) > 2, "a failed attempt")
    with pytest.raises(NoDaemonError):
        send_turn(client, "t1")
    assert client.close()
    gateway.start()


def test_close_ends_a_client_in_a_handshake_that_hangs(gateway: FakeGateway) -> None:
    """The daemon's port is taken by something that accepts and stays silent."""
    heard = Heard()
    client = connect(gateway, heard)
    gateway.stop()
    with socket.create_server(("127.0.0.1", gateway.port)) as silent:
        silent.settimeout(DEADLINE)
        peer, _ = silent.accept()
        assert client.close()
        peer.close()
    gateway.start()


def test_frames_of_a_newer_gateway_are_passed_over(gateway: FakeGateway) -> None:
    heard = Heard()
    client = connect(gateway, heard)
    try:
        room = gateway.rooms["s-main"]
        gateway.publish(room, "something_new", {"request_id": "x"})
        gateway.publish(room, "assistant_delta", {"request_id": "x"})  # fields are missing
        send_turn(client, "t1")
        heard.wait(lambda: heard.of("turn_completed"), "the answer")
    finally:
        client.close()


def test_text_that_is_no_utf8_ends_the_connection(gateway: FakeGateway) -> None:
    heard = Heard()
    client = connect(gateway, heard)
    try:
        heard.wait(lambda: heard.links, "the link")
        with gateway.lock:
            (peer,) = gateway.rooms["s-main"].listeners
        peer.frame(b'{"type": "pong", "text": "\xc3"}')
        heard.wait(lambda: len(heard.links) >= 3, "an end and a new beginning")
        assert [link.connected for link in heard.links[:3]] == [True, False, True]
        send_turn(client, "t1")
        heard.wait(lambda: heard.of("turn_completed"), "the answer")
    finally:
        client.close()


def test_what_is_long_is_not_looked_at_byte_by_byte(gateway: FakeGateway) -> None:
    """A backup reads the whole database through this socket."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    said = "ä" * 100_000
    gateway.on_turn = lambda turn: (turn.delta(said), turn.complete(said))
    heard = Heard()
    threading.setprofile(count)  # in threads that are started from now on
    try:
        client = connect(gateway, heard)
    finally:
        threading.setprofile(None)
    try:
        send_turn(client, "t1")
        heard.wait(lambda: heard.of("turn_completed"), "the answer")
        assert heard.text() == said
        assert 0 < calls < len(said)
    finally:
        client.close()


def test_without_reconnect_the_end_is_told_once(gateway: FakeGateway) -> None:
    heard = Heard()
    client = GatewayClient(
        gateway.endpoint,
        gateway.token,
        "alice",
        on_frame=heard.on_frame,
        on_link=heard.on_link,
        config=ClientConfig(reconnect=False),
    )
    client.connect()
    heard.wait(lambda: heard.links, "the link")
    gateway.cut()
    heard.wait(lambda: len(heard.links) == 2, "the loss")
    assert client.close()
    assert [link.connected for link in heard.links] == [True, False]
