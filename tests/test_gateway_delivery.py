"""Delivery: what is streamed is numbered once, merged for those who lag, and never lost."""

from __future__ import annotations

import json
import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxydra.frames import Streamed, decode_server, escaped
from oxydra.gateway.connection import ServerLimits, frame_text
from oxydra.gateway.delta import MAX_MERGED, Delta, merge
from oxydra.gateway.live import Live
from oxydra.tui.client import ClientConfig, GatewayClient
from oxydra.types import Message, TextDelta
from tests.conftest import eventually
from tests.gateway_peer import CLOSE, TEXT, Gate, masked
from tests.scripted import Scripted
from tests.test_gateway import TOKEN, Running

PAYLOAD = {
    "request_id": "q",
    "session": {"user_id": "alice", "session_id": "s"},
    "turn": {"turn_id": "t", "state": "running"},
}


def deltas(texts, stream=None):
    stream = stream or Streamed("assistant_delta", PAYLOAD)
    return [Delta(stream, number, number, escaped(text)) for number, text in enumerate(texts, 1)]


def opened(frame):
    """What stands in the one WebSocket frame that a server sends."""
    data = frame.data if isinstance(frame, Delta) else frame
    start = {126: 4, 127: 10}.get(data[1], 2)
    return decode_server(data[start:].decode())


class Outbox:
    """A subscriber that keeps what it gets."""

    def __init__(self):
        self.frames = []

    def deliver(self, frame):
        self.frames.append(opened(frame))

    def hear(self, frame_type, payload):
        self.frames.append((frame_type, payload.get("delta")))


class Loop:
    """An I/O thread that comes when it is let."""

    def __init__(self):
        self.acts = []

    def turn(self):
        for _ in range(len(self.acts)):
            self.acts.pop(0)()


def say(live, text, kind="assistant_delta", turn="t"):
    reference = {"turn_id": turn, "state": "running"}
    live.publish(kind, {**PAYLOAD, "turn": reference, "delta": text})


# --------------------------------------------------------------------------------------- frames


@given(st.lists(st.text(max_size=40), min_size=1, max_size=30))
def test_merged_frames_say_the_same(texts):
    frames = deltas(texts)
    assert [opened(frame).payload["delta"] for frame in frames] == [
        text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts
    ]
    (merged,) = merge(frames)
    frame = opened(merged)
    assert frame.seq == len(texts)
    assert frame.first_seq == (1 if len(texts) > 1 else 0)
    assert frame.payload == {
        **PAYLOAD,
        "delta": "".join(opened(frame).payload["delta"] for frame in frames),
    }


def test_what_is_no_continuation_is_not_merged():
    text, reasoning = deltas("ab"), deltas("ab", Streamed("reasoning_delta", PAYLOAD))
    other = deltas("ab", Streamed("assistant_delta", PAYLOAD))
    assert text[0].merged(text[1]).text == b"ab"
    assert text[1].merged(text[0]) is None
    assert text[0].merged(reasoning[1]) is None
    assert text[0].merged(other[1]) is None
    between = frame_text(b"{}")
    assert list(merge([text[0], between, text[1]])) != [text[0], between]
    assert [type(frame) for frame in merge([text[0], between, text[1]])] == [Delta, bytes, Delta]


def test_a_merged_frame_has_a_bound():
    frames = deltas(["x" * 5000] * 20)
    merged = list(merge(frames))
    assert all(len(frame.text) <= MAX_MERGED for frame in merged)
    assert b"".join(frame.text for frame in merged) == b"x" * 100_000
    numbers = [(frame.first, frame.last) for frame in merged]
    assert numbers[0] == (1, 6) and numbers[-1][1] == 20
    grown = frames[0]
    for frame in frames[1:6]:
        grown = grown.merged(frame)
    assert grown.merged(frames[6]) is None


# ------------------------------------------------------------------------------ a session's frames


def test_what_is_streamed_while_the_loop_is_busy_becomes_one_frame():
    loop, outbox, heard = Loop(), Outbox(), Outbox()
    live = Live("s", loop.acts.append)
    live.subscribe(outbox)
    live.listen(heard)
    for text in ("a", "b", "c"):
        say(live, text)
    assert len(loop.acts) == 1 and not outbox.frames
    loop.turn()
    say(live, "d")
    loop.turn()
    loop.turn()
    assert [(f.seq, f.first_seq, f.payload["delta"]) for f in outbox.frames] == [
        (1, 0, "abc"),
        (2, 0, "d"),
    ]
    assert heard.frames == [("assistant_delta", "abc"), ("assistant_delta", "d")]


def test_order_is_kept_whatever_comes_between():
    loop, outbox = Loop(), Outbox()
    live = Live("s", loop.acts.append)
    live.subscribe(outbox)
    say(live, "thought ", "reasoning_delta")
    say(live, "one ")
    say(live, "two ")
    live.publish("turn_cancelled", PAYLOAD)
    say(live, "three", turn="another")
    late = Outbox()
    live.subscribe(late)  # gets what comes from now on, whole
    say(live, "four", turn="another")
    loop.turn()
    told = [(f.type, f.payload.get("delta")) for f in outbox.frames]
    assert told == [
        ("reasoning_delta", "thought "),
        ("assistant_delta", "one two "),
        ("turn_cancelled", None),
        ("assistant_delta", "three"),
        ("assistant_delta", "four"),
    ]
    assert [f.seq for f in outbox.frames] == [1, 2, 3, 4, 5]
    assert [f.payload["delta"] for f in late.frames] == ["four"]
    assert outbox.frames[3].payload["turn"]["turn_id"] == "another"


def test_much_text_does_not_wait_for_a_loop_that_is_stuck():
    loop, outbox = Loop(), Outbox()
    live = Live("s", loop.acts.append)
    live.subscribe(outbox)
    for _ in range(100):
        say(live, "x" * 1000)
    assert sum(len(frame.payload["delta"]) for frame in outbox.frames) > 50_000
    loop.turn()
    assert sum(len(frame.payload["delta"]) for frame in outbox.frames) == 100_000


@pytest.mark.parametrize("last", [0, 1, 7, 19, 20])
def test_a_replay_is_merged_and_begins_after_the_last_frame_seen(last):
    live = Live("s")
    for number in range(20):
        say(live, f"{number} ")
    back = Outbox()
    live.subscribe(back, lambda seq, resumed: frame_text(greeting(seq)), last)
    greeted, *missed = back.frames
    assert greeted.payload["seq"] == 20
    text = "".join(frame.payload["delta"] for frame in missed)
    assert text == "".join(f"{number} " for number in range(last, 20))
    assert len(missed) == (last < 20)
    if last < 19:
        assert (missed[0].first_seq, missed[0].seq) == (last + 1, 20)


def greeting(seq):
    payload = {"request_id": "h", "protocol_version": 2, "session": {}, "seq": seq, "epoch": "e"}
    return json.dumps({"type": "hello_ack", "payload": payload}).encode()


# ---------------------------------------------------------------------------------- slow readers


@pytest.fixture
def gate():
    made = Gate(ServerLimits(max_queue=6 << 20))
    yield made
    made.stop()


def stalled(gate):
    """A client that does not read, after its connection has taken all it can."""
    peer = gate.open(receive_buffer=4096)
    gate.handler.wait_for(lambda: gate.handler.opened)
    conn = gate.handler.opened[0]
    assert conn.send(b"x" * 5_000_000)
    eventually(lambda: conn.blocked)
    return peer, conn


def test_a_slow_reader_falls_behind_without_loss(gate):
    peer, conn = stalled(gate)
    frames = deltas([f"{number:08} and more; " for number in range(40_000)])
    assert sum(len(frame.data) for frame in frames) > gate.server.limits.max_queue
    for frame in frames:
        assert conn.send_frame(frame)  # without merging this is closed with 1013
    assert conn.send(b'{"type":"the_end"}')
    assert peer.recv() == (TEXT, b"x" * 5_000_000)
    expected, text = 1, ""
    while True:
        opcode, data = peer.recv()
        if data == b'{"type":"the_end"}':
            break
        frame = decode_server(data.decode())
        assert (opcode, frame.first_seq or frame.seq) == (TEXT, expected)
        assert len(frame.payload["delta"]) <= MAX_MERGED
        expected, text = frame.seq + 1, text + frame.payload["delta"]
    assert expected == 40_001
    assert text == "".join(f"{number:08} and more; " for number in range(40_000))
    eventually(lambda: conn.queued_bytes == 0)


def test_even_merged_there_is_a_bound(gate):
    peer, conn = stalled(gate)
    stream, number = Streamed("assistant_delta", PAYLOAD), 1
    while conn.send_frame(Delta(stream, number, number, b"y" * 1000)):
        number += 1
        assert number < 8000
    assert peer.recv_close() == 1013


def test_fast_readers_share_what_a_slow_one_merges(gate):
    slow, slow_conn = stalled(gate)
    fast = gate.open()
    gate.handler.wait_for(lambda: len(gate.handler.opened) == 2)
    fast_conn = gate.handler.opened[1]
    frames = deltas([f"{number} " for number in range(500)])
    for frame in frames:
        assert slow_conn.send_frame(frame) and fast_conn.send_frame(frame)
        assert fast.recv()[1] == opened_bytes(frame)
    slow.sock.close()


def opened_bytes(frame):
    return frame.stream.encode(frame.first, frame.last, frame.text)


# ---------------------------------------------------------------------------------- coming back


class Released(Scripted):
    """Streams its words as they are released."""

    def __init__(self, words):
        super().__init__()
        self.words = words
        self.steps_left = threading.Semaphore(0)

    def stream(self, request, token):
        for word in self.words:
            assert self.steps_left.acquire(timeout=60)
            yield TextDelta(word)
        yield from Scripted(Message("assistant", "".join(self.words))).stream(request, token)


def test_a_hundred_reconnects_lose_and_repeat_nothing(tmp_path):
    """Each comes at another instant: before anything was read, between frames, in the midst of
    what was released; and however frames were merged, the text is the one that is stored.
    """
    seed = random.Random(11)
    words = [f"w{number} {'é€😀'[number % 3] * (number % 7)} " for number in range(2000)]
    provider = Released(words)
    gateway = Running(tmp_path / "oxydra.db", provider)
    try:
        with gateway.client() as first:
            session, epoch = first.session, first.ack["payload"]["epoch"]
            first.turn()
            last = first.until("turn_started")["seq"]
        text, released = "", 0
        for reconnect in range(101):
            count = seed.randint(1, 19) if reconnect < 100 else len(words) - released
            early = seed.random() < 0.5  # some is already there when it connects
            for _ in range(count if early else 0):
                provider.steps_left.release()
            with gateway.client(session_id=session, last_seq=last, epoch=epoch) as client:
                assert client.ack["payload"]["resumed"]
                for _ in range(0 if early else count):
                    provider.steps_left.release()
                released += count
                frames_to_read = seed.randint(0, 3) if reconnect < 100 else 1 << 30
                missing = len("".join(words[:released]).encode())
                while frames_to_read and (len(text.encode()) < missing or reconnect == 100):
                    frame = client.receive()
                    assert frame.get("first_seq", frame["seq"]) == last + 1
                    last = frame["seq"]
                    text += frame["payload"].get("delta", "")
                    frames_to_read -= 1
                    if frame["type"] == "turn_completed":
                        break
        stored = gateway.store.messages(session)[-1].content
        assert text == stored == "".join(words)
        assert frame["payload"]["response"]["message"]["content"] == stored
    finally:
        gateway.stop()


def test_three_bad_clients_spoil_nothing(tmp_path):
    """One stops reading, one says nothing, one sends a byte at a time: a good one gets all of it,
    and the turn is not held up.
    """
    words = [f"word {number} " for number in range(3000)]
    provider = Released(words)
    gateway = Running(tmp_path / "oxydra.db", provider)
    try:
        with gateway.client() as good:
            session = good.session
            stalls, silent, slow = (gateway.connect() for _ in range(3))
            hello = {"protocol_version": 2, "user_id": "alice", "session_id": session}
            for one in (stalls, silent):
                one.send(json.dumps({"type": "hello", "payload": {"request_id": "h", **hello}}))
                assert json.loads(one.recv())["type"] == "hello_ack"
            said = b""
            for kind, payload in (("hello", hello), ("health_check", {})):
                frame = {"type": kind, "payload": {"request_id": "slow", **payload}}
                said += masked(TEXT, json.dumps(frame).encode())
            good.turn()
            text, at = "", 0
            while True:
                provider.steps_left.release()
                slow.sock.sendall(said[at : at + 1])
                at += 1
                frame = good.receive()
                text += frame["payload"].get("delta", "")
                if at == len(said):
                    break
            for _ in words:
                provider.steps_left.release()
            end = good.until("turn_completed")
            assert end["payload"]["response"]["message"]["content"] == "".join(words)
            assert said_by(good) == "".join(words)
            while True:  # the one that sent byte after byte is heard in the end
                frame = json.loads(slow.recv())
                if frame["type"] == "health_status":
                    break
            assert frame["payload"]["request_id"] == "slow"
            for one in (stalls, silent):  # and these could still have all of it
                read = []
                while not read or read[-1]["type"] != "turn_completed":
                    opcode, data = one.recv_data()
                    assert opcode != CLOSE
                    read.append(json.loads(data))
                assert "".join(f["payload"].get("delta", "") for f in read) == "".join(words)
                one.close()
            slow.close()
    finally:
        gateway.stop()


def said_by(client):
    return "".join(frame["payload"].get("delta", "") for frame in client.seen)


def test_our_own_client_goes_on_after_what_was_merged(tmp_path):
    """It is sent away again and again while words come, and never has to read the history."""
    words = [f"word {number} " for number in range(1000)]
    provider = Released(words)
    gateway = Running(tmp_path / "oxydra.db", provider)
    frames, links, ended = [], [], threading.Event()

    def on_frame(frame):
        frames.append(frame)
        if frame.type == "turn_completed":
            ended.set()

    client = GatewayClient(
        f"ws://127.0.0.1:{gateway.port}/ws",
        TOKEN,
        "alice",
        on_frame=on_frame,
        on_link=links.append,
        config=ClientConfig(connect_timeout=60.0, backoff_base=0.001, backoff_max=0.01),
    )
    try:
        client.connect()
        eventually(lambda: links)
        session = client.session_id
        client.send("send_turn", {"session_id": session, "turn_id": "t", "prompt": "go"})
        eventually(lambda: any(frame.type == "turn_started" for frame in frames))
        for times in range(1, 21):
            for conn in list(gateway.gateway._clients):
                conn.close(1013)
            for _ in range(40):
                provider.steps_left.release()
            eventually(lambda times=times: sum(link.connected for link in links) > times)
        for _ in words:
            provider.steps_left.release()
        assert ended.wait(60)
        assert [link.fresh for link in links if link.connected] == [True, *[False] * 20]
        text = "".join(frame.payload.get("delta", "") for frame in frames)
        assert text == gateway.store.messages(session)[-1].content == "".join(words)
    finally:
        client.close()
        gateway.stop()
