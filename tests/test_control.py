"""The control socket: what it answers, to whom, and what bad peers get."""

from __future__ import annotations

import os
import socket
import stat
import struct
import threading

import pytest

from oxydra.errors import NoDaemonError, OxydraError
from oxydra.frames import MAX_PACKED, Unpacker, pack
from oxydra.runner.control import CONNECTIONS, ControlServer, call


def _echo(payload):
    return "echo", payload


def _refuse(_payload):
    raise OxydraError("Not like this.", remedy="Like that.", code="odd")


def _break(_payload):
    raise RuntimeError("a secret detail")


@pytest.fixture
def path(tmp_path):
    deep = tmp_path / ("d" * 100)  # past what a socket address can hold
    deep.mkdir()
    path = deep / "runner-control.sock"
    server = ControlServer(path, {"echo": _echo, "refuse": _refuse, "break": _break})
    server.start()
    yield path
    assert server.stop()


def connected(path):
    folder = os.open(path.parent, os.O_PATH)
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(60)
    client.connect(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)
    return client


def receive(client):
    unpacker = Unpacker()
    while data := client.recv(65536):
        for frame in unpacker.feed(data):
            return frame
    return None


def test_answers_and_refusals(path):
    assert call(path, "echo", {"a": 1}) == {"a": 1}
    with pytest.raises(OxydraError, match=r"Not like this\. Like that\.") as refused:
        call(path, "refuse", {})
    assert refused.value.code == "odd"
    with pytest.raises(OxydraError, match="Known: break, echo, refuse"):
        call(path, "nothing", {})
    with pytest.raises(OxydraError) as broken:
        call(path, "break", {})
    assert "secret" not in str(broken.value)


def test_the_socket_is_private(path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nobody_there(tmp_path):
    with pytest.raises(NoDaemonError, match="oxydra-runner start"):
        call(tmp_path / "none.sock", "echo", {})
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "dead.sock"))
    dead.close()
    with pytest.raises(NoDaemonError):
        call(tmp_path / "dead.sock", "echo", {})


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("!I", MAX_PACKED + 1),
        struct.pack("!I", 3) + b"{x}",
        struct.pack("!I", 2) + b"[]",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_frame_gets_an_error_and_the_end(path, data):
    with connected(path) as client:
        client.sendall(data)
        op, payload = receive(client)
        assert op == "error"
        assert payload["code"] in ("bad_frame", "too_large")
        assert client.recv(1) == b""
    assert call(path, "echo", {"still": "there"}) == {"still": "there"}


def test_several_requests_on_one_connection_in_order(path):
    with connected(path) as client:
        client.sendall(pack("echo", {"n": 1}) + pack("echo", {"n": 2}))
        unpacker, got = Unpacker(), []
        while len(got) < 2:
            got += unpacker.feed(client.recv(65536))
    assert [payload["n"] for _op, payload in got] == [1, 2]


def test_silent_peers_keep_nobody_out_for_good(path):
    silent = [connected(path) for _ in range(CONNECTIONS)]
    with pytest.raises(NoDaemonError):
        call(path, "echo", {})
    for client in silent:
        client.close()
    done = threading.Event()
    for _ in range(200):  # their threads end by themselves
        try:
            assert call(path, "echo", {"n": 1}) == {"n": 1}
            done.set()
            break
        except NoDaemonError:
            done.wait(0.02)
    assert done.is_set()
