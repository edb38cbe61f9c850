"""Servers in the shell guest: pipes with flow control, their end, and what holds them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from oxydra.errors import ToolError
from oxydra.threads import CancelToken
from oxydra.tools.shell_client import ServerPipe, ShellClient
from tests.conftest import eventually
from tests.sandbox import missing, processes_with, sandbox

LEVELS = ("container+cage", "bwrap+cage", "cage", "rlimits")
MARK = f"oxydra-server-{os.getpid()}"
SERVERS = {
    "cat": {"command": ["cat"], "env": {}},
    "none": {"command": ["/no/such/program"], "env": {}},
    "secret": {
        "command": ["sh", "-c", f'echo "$HIDDEN"; pwd; : {MARK}; exec sleep 1000'],
        "env": {"HIDDEN": "a-key-of-the-servers"},
    },
    "flood": {"command": ["sh", "-c", f": {MARK}; yes floods"], "env": {}},
    "deaf": {"command": ["sleep", "1000"], "env": {}},
    "both": {"command": ["sh", "-c", "echo said; echo log >&2; printf '\\377'; exit 7"], "env": {}},
    "parent": {
        "command": ["sh", "-c", f"sh -c ': {MARK}-child; sleep 1000' & sleep 1000"],
        "env": {},
    },
}


@pytest.fixture(params=LEVELS, scope="module")
def box(request, tmp_path_factory):
    """A guest at each level, with these servers."""
    if missing(request.param):
        pytest.skip(missing(request.param))
    folder = tmp_path_factory.mktemp("servers")
    with sandbox(folder, request.param, servers=SERVERS) as there:
        yield there


@pytest.fixture(scope="module")
def any_box(tmp_path_factory):
    level = next((level for level in LEVELS[1:] if not missing(level)), "rlimits")
    with sandbox(tmp_path_factory.mktemp("servers"), level, servers=SERVERS) as there:
        yield there


def begun(box, name: str) -> ServerPipe:
    return box.client.server(name, CancelToken())


def all_of(pipe: ServerPipe) -> dict[str, bytes]:
    """What it says on each stream until it ends."""
    found = {"stdout": b"", "stderr": b""}
    while (said := pipe.read()) != ("", b""):
        found[said[0]] += said[1]
    return found


def test_a_server_is_spoken_to_and_ended(box):
    pipe = begun(box, "cat")
    pipe.write("grüße\n".encode())
    heard = b""
    while not heard.endswith(b"\n"):
        heard += pipe.read()[1]
    assert heard == "grüße\n".encode()
    assert box.client.open
    pipe.stop()
    assert all_of(pipe) == {"stdout": b"", "stderr": b""}
    assert pipe.exit_code == 128 + 15
    with pytest.raises(ToolError):
        pipe.write(b"more\n")
    pipe.stop()


def test_it_has_its_environment_and_commands_do_not(box):
    pipe = begun(box, "secret")
    heard = b""
    while heard.count(b"\n") < 2:
        heard += pipe.read()[1]
    key, place = heard.decode().split()
    assert key == "a-key-of-the-servers" and place.endswith("shared")
    if box.process.level != "rlimits":  # which has no cage
        look = "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>&1 | tr '\\0' '\\n'"
        assert "a-key-of" not in box.text(f"{look}; env")
        assert "a-key-of" not in box.text("strings -a /proc/$PPID/mem /proc/1/mem 2>/dev/null")
    pipe.stop()
    all_of(pipe)


def test_both_streams_and_the_exit_code(any_box):
    pipe = begun(any_box, "both")
    assert all_of(pipe) == {"stdout": b"said\n\xff", "stderr": b"log\n"}
    assert pipe.exit_code == 7


def test_a_program_that_is_not_there_says_so(any_box):
    pipe = begun(any_box, "none")
    assert b"can't be started" in all_of(pipe)["stderr"]
    assert pipe.exit_code == 127


def test_only_what_is_configured_is_started(any_box):
    with pytest.raises(ToolError, match="names no such server"):
        begun(any_box, "bash")


def test_a_flood_waits_until_it_is_read(any_box):
    pipe = begun(any_box, "flood")
    assert pipe.read()[1].startswith(b"floods\n")
    assert any_box.text("echo beside it") == "beside it\n"
    for _ in range(100):
        assert pipe.read()[0] == "stdout"
    pipe.stop()
    all_of(pipe)
    eventually(lambda: not processes_with("yes floods"))


def test_what_reads_nothing_is_not_fed_for_ever(any_box):
    pipe = begun(any_box, "deaf")
    with pytest.raises(ToolError, match="does not read"):
        for _ in range(20):
            pipe.write(b"x" * 500_000)
    assert any_box.text("echo beside it") == "beside it\n"
    pipe.stop()
    all_of(pipe)


def test_nobody_else_reaches_it(any_box):
    other = ShellClient()
    other.connect(any_box.stream())
    pipe = begun(any_box, "cat")
    stranger = ServerPipe(other._connection, "x", pipe._server_id)
    with pytest.raises(ToolError, match="no such server"):
        stranger.write(b"x\n")
    other.close()
    pipe.stop()
    all_of(pipe)


def test_all_that_it_started_ends_with_it(any_box):
    pipe = begun(any_box, "parent")
    eventually(lambda: processes_with(f"{MARK}-child"))
    pipe.stop()
    all_of(pipe)
    assert not processes_with(f"{MARK}-child")


def test_what_is_ended_the_moment_it_begins_ends(any_box):
    """Its keeper may be told before it listens."""
    for _ in range(100):
        pipe = begun(any_box, "deaf")
        pipe.stop()
        assert pipe._ask("read_server", {}, 60.0)["eof"]


def test_it_ends_with_the_stream_that_began_it(any_box):
    other = ShellClient()
    other.connect(any_box.stream())
    other.server("parent", CancelToken())
    eventually(lambda: processes_with(f"{MARK}-child"))
    other.close()
    eventually(lambda: not processes_with(f"{MARK}-child"))


def test_it_ends_with_the_guest(tmp_path: Path):
    level = next((level for level in LEVELS[1:] if not missing(level)), "rlimits")
    with sandbox(tmp_path, level, servers=SERVERS) as box:
        pipe = begun(box, "parent")
        eventually(lambda: processes_with(f"{MARK}-child"))
        box.process.stop()
        assert pipe.read() == ("", b"")
        with pytest.raises(ToolError):
            pipe.write(b"x")
    eventually(lambda: not processes_with(f"{MARK}-child"))


def test_requests_that_make_no_sense_are_refused(any_box):
    with any_box.stream() as stream:
        stream.settimeout(60)
        from oxydra.frames import pack, read_frame

        for op, payload in (
            ("start_server", {}),
            ("read_server", {"server_id": 7}),
            ("write_server", {"server_id": None, "data": 3}),
            ("stop_server", {"server_id": ["x"]}),
            ("begin", {}),
            ("keepers", {}),
        ):
            stream.sendall(pack(op, {"request_id": op, **payload}))
            answer, said = read_frame(stream.recv, 1 << 16)
            assert (answer, said["request_id"]) == ("error", op)
        stream.shutdown(socket.SHUT_RDWR)
