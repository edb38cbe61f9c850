"""The shell: its daemon and client, the tool, and what the runner makes of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from oxydra.config.schema import ShellConfig
from oxydra.errors import Cancelled, ConfigError, PolicyDenied, ToolError
from oxydra.frames import Unpacker, pack
from oxydra.runner import shell as runner_shell
from oxydra.runner.workspace import Workspace as UserWorkspace
from oxydra.threads import CancelToken, Deadline, Service
from oxydra.tiers import ladder, shell_line
from oxydra.tools.shell import (
    NAMED_PATHS,
    RELATIVE_PATHS,
    ShellTool,
    request_id,
    result,
)
from oxydra.tools.shell_client import SESSIONS, Ran, ShellClient
from oxydra.types import SafetyTier, ToolContext
from tests.conftest import eventually
from tests.sandbox import IN_MACHINE, UID, isolation, missing, processes_with, sandbox
from tests.test_daemon import SCRIPT, comes_back, home, running  # noqa: F401

LEVELS = ("container+cage", "bwrap+cage", "cage", "rlimits")


def best() -> str:
    """The best level of the process tier that this machine can hold."""
    return next((level for level in LEVELS[1:] if not missing(level)), "rlimits")


@pytest.fixture(params=[*LEVELS, IN_MACHINE])
def box(request, tmp_path):
    """A guest at each level."""
    if missing(request.param):
        pytest.skip(missing(request.param))
    with sandbox(tmp_path, request.param) as there:
        yield there


@pytest.fixture
def any_box(tmp_path):
    with sandbox(tmp_path, best()) as there:
        yield there


# ----------------------------------------------------------------------------------------- commands


def test_a_command_and_its_result(box):
    ran = box.run("echo out; echo err >&2; exit_code() { return 3; }; exit_code")
    assert ran == Ran(3, b"out\nerr\n", 0, False, False, "/shared", False)
    assert ran.cwd == "/shared"


def test_the_shell_is_kept(box):
    (box.folder / "shared" / "sub").mkdir(mode=0o777)
    os.chown(box.folder / "shared" / "sub", UID, -1)
    box.run("cd sub; X=5; f() { echo $X; }")
    ran = box.run("f; pwd")
    assert ran.output == b"5\n/shared/sub\n" and ran.cwd == "/shared/sub"
    assert box.text("echo ${X-unset}", conversation="other") == "unset\n"


def test_it_writes_where_it_may(box):
    box.run("echo hello > a.txt; echo scratch > $TMPDIR/b.txt")
    assert (box.folder / "shared" / "a.txt").read_text() == "hello\n"
    assert (box.folder / "tmp" / "b.txt").read_text() == "scratch\n"


@pytest.mark.parametrize(
    "command",
    [
        "if",
        "echo 'a",
        "x=${y?no}",
        "cat; read x; echo $?",
        "stty echo icanon opost 2>/dev/null; true",
        "set -x",
        "PS1='> '; PS2='+ '; set +x",
        "trap 'echo trapped' INT EXIT",
        "alias eval=false builtin=false printf=false",
        "echo a\necho b",
        "cat <<E\n$HOME\nE",
        "echo 'it'\\''s' \"$(echo \"nested\")\" \\\\ \t end",
        "(exec 1>&-; echo x) 2>/dev/null",
        "true # a comment",
    ],
)
def test_no_command_confuses_the_next(any_box, command):
    any_box.run(command)
    assert "next\n" in any_box.text("echo next")
    ran = any_box.run("false")
    assert ran.exit_code == 1


def test_the_output_is_what_was_printed(any_box):
    assert any_box.run("printf 'a\\tb\\r\\nc'").output == b"a\tb\r\nc"
    assert any_box.run("printf '\\377\\000\\376'").output == b"\xff\x00\xfe"
    assert any_box.text("echo 'grüße 漢字 🎉'") == "grüße 漢字 🎉\n"
    assert (
        any_box.run("printf '\\036'; printf '\\036abc:1:x\\036'").output == b"\x1e\x1eabc:1:x\x1e"
    )


def test_a_long_command_arrives_whole(any_box):
    text = "x'\"\\\n" * 8000
    script = f"wc -c << 'E{'O'}F'\n{text}\nE{'O'}F"
    assert any_box.text(script).strip() == str(len(text) + 1)
    with pytest.raises(ToolError, match="at most"):
        any_box.run("x" * 300_000)


def test_head_and_tail_of_much_output(any_box):
    ran = any_box.run("echo first; head -c 1000000 /dev/zero | tr '\\0' x; echo; echo last")
    assert ran.output.startswith(b"first\nxxx") and ran.output.endswith(b"x\nlast\n")
    assert 120_000 < len(ran.output) < 140_000
    assert ran.cut > 800_000 and b"bytes left out" in ran.output
    euro = any_box.run("for i in {1..60000}; do printf '€€'; done")
    assert euro.output.decode().startswith("€€")


def test_output_is_streamed(any_box):
    heard = threading.Event()
    chunks: list[bytes] = []

    def on_output(data: bytes) -> None:
        chunks.append(data)
        heard.set()

    token = CancelToken()
    waiter = Service("test-run", lambda _s: _cancelled(any_box, token, on_output))
    waiter.start()
    assert heard.wait(60)
    token.cancel()
    assert waiter.stop(10)
    assert b"".join(chunks).startswith(b"begun\n")


def _cancelled(box, token, on_output):
    with pytest.raises(Cancelled):
        box.run("echo begun; sleep 600", token=token, on_output=on_output)


def test_input_is_empty(box):
    assert box.run("cat; read line; echo $?").output == b"1\n"


# ----------------------------------------------------------------------------------- time and death


def test_a_command_whose_time_is_up(box):
    ran = box.run("echo begun; sleep 600; echo never", seconds=0.3)
    assert ran.timed_out and ran.exit_code == 130 and not ran.ended
    assert ran.output.startswith(b"begun\n") and b"never" not in ran.output
    assert box.text("echo next") == "next\n"


def test_a_command_that_ignores_signals(box):
    ran = box.run("trap '' INT; sh -c \"trap '' INT TERM; while :; do sleep 1; done\"", seconds=0.2)
    assert ran.timed_out
    assert box.text("echo next") == "next\n"


def test_a_shell_that_hangs_is_replaced(any_box):
    any_box.run("cd /tmp 2>/dev/null; X=1")
    ran = any_box.run("trap '' INT; while :; do :; done", seconds=0.2)
    assert ran.timed_out and ran.ended
    again = any_box.run("echo ${X-unset}")
    assert again.output == b"unset\n" and again.fresh
    assert not any_box.run("true").fresh


def test_cancelling_kills_at_once(box):
    if box.process.level == "microvm+cage":
        pytest.skip("a machine's processes are not the host's")
    mark = f"86401.{os.getpid()}"
    token = CancelToken()
    failure: list[BaseException] = []

    def body(_service):
        try:
            box.run(f"sleep {mark}; echo never > never", token=token)
        except Cancelled as error:
            failure.append(error)

    waiter = Service("test-run", body).start()
    eventually(lambda: processes_with(f"sleep {mark}"))
    token.cancel("enough")
    assert waiter.stop(10)
    assert [str(error) for error in failure] == ["enough"]
    assert not processes_with(f"sleep {mark}")
    assert box.text("ls") == ""


def test_a_command_that_ignores_being_cancelled_is_killed_too(any_box):
    mark = f"86402.{os.getpid()}"
    token = CancelToken()
    command = f"trap '' INT; sh -c \"trap '' INT; sleep {mark}; sleep {mark}\""

    def body(_service):
        with pytest.raises(Cancelled):
            any_box.run(command, token=token)

    waiter = Service("test-run", body).start()
    eventually(lambda: processes_with(f"sleep {mark}"))
    token.cancel()
    assert waiter.stop(10)
    eventually(lambda: not processes_with(f"sleep {mark}"))
    assert any_box.text("echo next") == "next\n"


def test_leaving_the_shell(box):
    ran = box.run("echo bye; exit 7")
    assert (ran.exit_code, ran.ended) == (7, True) and ran.output.startswith(b"bye\n")
    assert box.run("echo back").fresh


def test_background_output_comes_with_the_next_command(any_box):
    any_box.run("(while [ ! -e go ]; do sleep 0.01; done; echo late; touch done) & disown")
    any_box.run("touch go; while [ ! -e done ]; do sleep 0.01; done")
    assert any_box.run("true").exit_code == 0


def test_many_conversations(any_box):
    names = [f"c{number}" for number in range(SESSIONS + 6)]
    for name in names:
        assert any_box.text(f"X={name}; echo $X", conversation=name) == f"{name}\n"
    assert any_box.text("echo ${X-unset}", conversation=names[-1]) == f"{names[-1]}\n"
    first = any_box.run("echo ${X-unset}", conversation=names[0])
    assert first.output == b"unset\n" and first.fresh


def test_side_by_side(any_box):
    """A command that takes long holds up no other conversation."""
    token = CancelToken()
    slow = Service("test-run", lambda _s: _cancelled(any_box, token, None)).start()
    for number in range(20):
        assert any_box.text(f"echo {number}", conversation="other") == f"{number}\n"
    token.cancel()
    assert slow.stop(10)


# ----------------------------------------------------------------------------------- asking again


def test_a_request_runs_once(any_box):
    first = any_box.run("echo x >> once; cat once", request_id="same")
    again = any_box.run("echo x >> once; cat once", request_id="same")
    assert first.output == again.output == b"x\n"
    assert any_box.text("cat once") == "x\n"


def until(name):
    """A command that waits for a file."""
    return f"while [ ! -e {name} ]; do sleep 0.01; done"


def test_sessions_that_a_crash_left_behind_make_room(any_box):
    for number in range(24):  # more than the daemon keeps, twelve for each client
        if number % SESSIONS == 0:
            any_box.client.connect(any_box.stream())
        assert any_box.text("echo here", conversation=str(number)) == "here\n"


def test_what_became_of_a_command_after_a_crash(any_box):
    """The agent guest dies while a command runs; the next one asks for it."""
    token, lost = CancelToken(), []

    def body(_service):
        try:
            any_box.run(f"X=5; {until('go')}; echo done", request_id="t/1")
        except ToolError as error:
            lost.append(str(error))

    waiter = Service("test-run", body).start()
    eventually(lambda: any_box.client.alive and any_box.client._connection.sessions)
    eventually(lambda: any_box.client._connection._waiting)
    other = ShellClient()
    other.connect(any_box.stream())
    try:
        assert other.recover("x", "t/nothing", token, Deadline.after(5)) is None
        any_box.run("touch go", conversation="other")
        ran = other.recover("c", "t/1", token, Deadline.after(10))
        assert ran is not None and ran.output == b"done\n" and ran.exit_code == 0
        assert other.recover("c", "t/1", token, Deadline.after(10)) == ran
        ran = other.run("c", "t/3", "echo $X", 20, token)  # in the same shell
        assert (ran.output, ran.fresh) == (b"5\n", False)
    finally:
        other.close()
        assert waiter.stop(10)
    assert not lost


def test_a_command_nobody_waits_for_is_killed(any_box):
    mark = f"86403.{os.getpid()}"
    stream = any_box.stream()
    client = ShellClient()
    client.connect(stream)

    def body(_service):
        with pytest.raises(ToolError, match="not known"):
            client.run("x", "t/2", f"sleep {mark}", 600, CancelToken())

    waiter = Service("test-run", body).start()
    eventually(lambda: processes_with(f"sleep {mark}"))
    client.close()
    assert waiter.stop(10)
    ran = any_box.client.recover("x", "t/2", CancelToken(), Deadline.after(0))
    assert ran is not None and ran.killed
    eventually(lambda: not processes_with(f"sleep {mark}"))


def test_a_lost_guest_is_said(tmp_path):
    with sandbox(tmp_path, best()) as box:
        box.run("true")
        box.process.stop()
        eventually(lambda: not box.client.alive)
        token = CancelToken()
        token.cancel("enough")
        with pytest.raises(Cancelled):
            box.run("true", token=token)


# ---------------------------------------------------------------------------------------- the wire


class Wire:
    """The daemon's protocol, frame by frame."""

    def __init__(self, box):
        self.stream = box.stream()
        self.stream.settimeout(20)
        self.unpacker = Unpacker()
        self.frames = []

    def send(self, op, **payload):
        self.stream.sendall(pack(op, payload))

    def read(self):
        while not self.frames:
            data = self.stream.recv(65536)
            if not data:
                return None
            self.frames += self.unpacker.feed(data)
        return self.frames.pop(0)

    def ask(self, op, request_id, **payload):
        self.send(op, request_id=request_id, **payload)
        return self.read()


@pytest.fixture
def wire(any_box):
    there = Wire(any_box)
    yield there
    there.stream.close()


def test_the_requests_of_the_protocol(wire):
    op, session = wire.ask("spawn_session", "1")
    assert (op, session["request_id"]) == ("spawn_session_ack", "1")
    name = session["session_id"]
    op, done = wire.ask("exec_command", "2", session_id=name, command="echo hi; exit_=$?; false")
    assert op == "exec_command_ack"
    assert (done["request_id"], done["exit_code"], done["output"]) == ("2", 1, "hi\n")
    op, chunk = wire.ask("stream_output", "3", session_id=name, max_bytes=2)
    assert (op, chunk["data"], chunk["eof"]) == ("stream_output_chunk", "hi", False)
    op, chunk = wire.ask("stream_output", "4", session_id=name)
    assert (chunk["data"], chunk["eof"], chunk["exit_code"]) == ("\n", True, 1)
    assert chunk["stream"] == "stdout"
    op, killed = wire.ask("kill_session", "5", session_id=name)
    assert (op, killed["request_id"]) == ("kill_session_ack", "5")
    op, error = wire.ask("exec_command", "6", session_id=name, command="true")
    assert (op, error["code"], error["request_id"]) == ("error", "not_found", "6")


def test_streamed_chunks_are_the_output(wire):
    _, session = wire.ask("spawn_session", "1", env={"GREETING": "hello"}, cwd=".")
    name = session["session_id"]
    command = "for i in {1..2000}; do echo $GREETING $i; done"
    wire.send("exec_command", request_id="2", session_id=name, command=command, stream=True)
    said = ""
    while (frame := wire.read())[0] == "stream_output_chunk":
        assert frame[1]["request_id"] == "2"
        said += frame[1]["data"]
    assert frame[1]["output"] == said == "".join(f"hello {n}\n" for n in range(1, 2001))


@pytest.mark.parametrize(
    ("op", "payload", "code"),
    [
        ("no_such_op", {}, "unknown_op"),
        ("exec_command", {}, "bad_frame"),
        ("exec_command", {"session_id": "x", "command": "true"}, "not_found"),
        ("kill_session", {"session_id": 5}, "not_found"),
        ("kill_command", {"target": "x"}, "not_found"),
        ("await_command", {"target": "x"}, "not_found"),
        ("spawn_session", {"shell": "/bin/zsh"}, "unsupported"),
        ("spawn_session", {"env": 5}, "bad_frame"),
        ("exec_command", {"session_id": [], "command": {}}, "not_found"),
        ("stream_output", {"session_id": "x"}, "not_found"),
        ("__init__", {}, "unknown_op"),
        ("stop", {}, "unknown_op"),
    ],
)
def test_what_makes_no_sense_is_answered(wire, op, payload, code):
    answer, said = wire.ask(op, "7", **payload)
    assert (answer, said["code"], said["request_id"]) == ("error", code, "7")
    assert wire.ask("spawn_session", "8")[0] == "spawn_session_ack"


def test_a_busy_session_says_so(wire):
    name = wire.ask("spawn_session", "1")[1]["session_id"]
    wire.send("exec_command", request_id="2", session_id=name, command="sleep 600")
    assert wire.ask("exec_command", "3", session_id=name, command="true")[1]["code"] == "busy"
    wire.send("kill_command", request_id="4", target="2")
    op, done = wire.read()
    assert (op, done["request_id"], done["killed"]) == ("exec_command_ack", "2", True)


@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff\xff", b"\0\0\0\x02[]", b"\0\0\0\x01{", b"\0\0\0\0"]
)
def test_a_broken_stream_is_dropped_alone(any_box, data):
    wire = Wire(any_box)
    wire.stream.sendall(data)
    assert wire.read() is None
    wire.stream.close()
    assert any_box.text("echo here") == "here\n"


def test_a_reader_that_stops_holds_nobody_up(any_box):
    wire = Wire(any_box)
    name = wire.ask("spawn_session", "1")[1]["session_id"]
    command = "head -c 30000000 /dev/zero | tr '\\0' x"
    wire.send("exec_command", request_id="2", session_id=name, command=command, stream=True)
    for number in range(5):
        assert any_box.text(f"echo {number}") == f"{number}\n"
    wire.stream.close()


# ----------------------------------------------------------------------------------------- the tool


def context_of(box, token=None):
    return ToolContext(
        session_id="s",
        turn_id="t",
        call_id="c",
        token=token or CancelToken(),
        deadline=Deadline.after(60),
        services={"shell": box.client} if box is not None else {},
    )


def test_the_tool(any_box):
    tool = ShellTool(ShellConfig(), named_paths=True)
    assert tool.tier is SafetyTier.PRIVILEGED and not tool.repeatable
    assert tool.spec.name == "shell_exec" and NAMED_PATHS in tool.spec.description
    assert set(tool.spec.parameters["properties"]) == {"command", "timeout_secs"}
    done = tool.run(tool.validate({"command": "echo hi && false"}), context_of(any_box))
    assert done.content == "hi\n[exit code 1]" and not done.is_error
    assert "not known" not in done.summary
    once = {"command": "echo x >> once; cat once", "timeout_secs": None}
    for _ in range(2):  # the same call runs once
        assert tool.run(once, context_of(any_box)).content == "x\n[exit code 0]"


def test_the_tool_by_level_and_configuration():
    tool = ShellTool(ShellConfig(command_timeout_secs=7), named_paths=False)
    assert RELATIVE_PATHS in tool.spec.description and "7 seconds" in tool.spec.description
    assert tool.timeout > 7
    with pytest.raises(PolicyDenied, match="'rm'"):
        tool.validate({"command": "rm -rf ."})
    ShellTool(ShellConfig(allow=("rm",)), named_paths=True).validate({"command": "rm x"})
    with pytest.raises(ToolError):
        tool.validate({"command": "ls", "timeout_secs": 0})
    missing_shell = tool.run({"command": "ls", "timeout_secs": None}, context_of(None))
    assert missing_shell.is_error and "no shell" in missing_shell.content


def test_a_short_time_of_its_own(any_box):
    tool = ShellTool(ShellConfig(allow=("*",)), named_paths=True)
    done = tool.run({"command": "sleep 600", "timeout_secs": 0.2}, context_of(any_box))
    assert done.is_error and "time was up" in done.content


def test_results_say_what_there_is_to_say():
    ran = Ran(None, b"a\0\xff", 7, False, True, "/shared", True, True)
    text = result("x", ran).content
    for words in ("new shell", "7 bytes", "not all", "killed", "ended with it", "code none"):
        assert words in text
    assert "\0" not in text


def test_a_call_and_its_command_have_one_name():
    context = context_of(None)
    name = request_id(context, "ls")
    assert name.startswith("t/1/c/") and name == request_id(context_of(None), "ls")
    others = [request_id(context, "ls -l"), request_id(replace(context, step=2), "ls")]
    assert len({name, *others}) == 3


# --------------------------------------------------------------------------------------- the runner


def ask_shell(home, command):  # noqa: F811
    script = SCRIPT % json.dumps([{"tool": "shell_exec", "arguments": {"command": command}}])
    return home.run("ask", script)


def sandboxed() -> str:
    level = best()
    if level == "rlimits":
        pytest.skip(missing("cage"))
    return level


CROWD = """
import os, signal, sys
for count in range(1, 61):
    if os.fork() == 0:
        signal.pause()
print(count, flush=True)
os.killpg(0, signal.SIGKILL)
"""


def test_what_resources_say_holds_commands(tmp_path):
    """The limits of `[resources]` in the process tier."""
    given = isolation(tmp_path, images=False, max_memory_mib=128, max_processes=32)
    with sandbox(tmp_path, sandboxed(), isolation=given) as box:
        assert "MemoryError" in box.text("python3 -c 'x = bytearray(200 << 20)'")
        assert box.text("python3 -c 'x = bytearray(64 << 20); print(len(x) >> 20)'") == "64\n"
        assert "BlockingIOError" in box.text(f"python3 -c '{CROWD}'")
    with sandbox(tmp_path, sandboxed()) as box:  # the defaults: twice and four times as much
        assert box.text("python3 -c 'x = bytearray(200 << 20); print(1)'") == "1\n"
        assert box.text(f"python3 -c '{CROWD}'").startswith("60\n")


def test_status_and_a_command(running):  # noqa: F811
    level = sandboxed()
    startup = running.status()["startup_status"]
    assert startup["sandbox_level"] == level
    assert startup["shell_available"] and startup["sidecar_available"]
    assert startup["worker_level"] in ("cage", "rlimits")
    assert f"sandbox {level}, workers {startup['worker_level']}" in running.run("status")
    (running.workspace / "shared" / "notes.txt").write_text("from outside\n")
    assert "from outside" in ask_shell(running, "cat notes.txt; mkdir made; touch made/it")
    assert (running.workspace / "shared" / "made" / "it").is_file()
    written = {"path": "/shared/made/by-tool.txt", "content": "tool"}
    running.run("ask", SCRIPT % json.dumps([{"tool": "file_write", "arguments": written}]))
    assert "tool" in ask_shell(running, "cat made/by-tool.txt; mv made/by-tool.txt moved.txt")


def test_a_shell_that_was_killed_comes_back(running):  # noqa: F811
    sandboxed()
    for _ in range(2):
        comes_back(running, "shell_pid")
        assert "here" in ask_shell(running, "echo here")
    assert running.status()["shell_restarts"] == 2


def test_the_shell_survives_its_agent(running):  # noqa: F811
    sandboxed()
    pid = running.status()["shell_pid"]
    comes_back(running, "guest_pid")
    assert running.status()["shell_pid"] == pid
    assert "here" in ask_shell(running, "echo here")


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_nothing_outlives_the_runner(home, how):  # noqa: F811
    sandboxed()
    home.env["OXYDRA__TOOLS__SHELL__ALLOW"] = "*"
    home.run("start", "--detach")
    mark = f"86404.{os.getpid()}"
    ask_shell(home, f"(setsid sleep {mark} &); true")
    eventually(lambda: processes_with(f"sleep {mark}"))
    status = home.status()
    if how == "stop":
        home.run("stop")
    else:
        os.kill(status["runner_pid"], signal.SIGKILL)
    eventually(lambda: not processes_with(f"sleep {mark}"), timeout=90)
    eventually(lambda: not os.path.exists(f"/proc/{status['shell_pid']}"), timeout=90)


def test_a_shell_that_is_switched_off(home):  # noqa: F811
    home.env["OXYDRA__TOOLS__SHELL__ENABLED"] = "false"
    home.run("start", "--detach")
    startup = home.status()["startup_status"]
    assert (startup["sandbox_level"], startup["shell_available"]) == ("none", False)
    assert "no tool" in ask_shell(home, "echo here").lower()


def without_sandbox(home):  # noqa: F811
    """A PATH without bwrap and a kernel without Landlock, as the runner sees them."""
    hook = home.path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import oxydra.tiers.ladder as ladder\n"
        "start = ladder._start\n"
        "def refuse(spec, level, namespaces):\n"
        "    if level != 'rlimits':\n"
        "        raise OSError(95, 'not on this machine')\n"
        "    return start(spec, level, namespaces)\n"
        "ladder._start = refuse\n"
    )
    root = Path(ladder.__file__).resolve().parents[2]
    home.env["PYTHONPATH"] = f"{hook}:{root}"


def test_without_a_sandbox_there_is_no_shell(home):  # noqa: F811
    without_sandbox(home)
    home.run("--insecure", "start", "--detach")
    startup = home.status()["startup_status"]
    assert (startup["sandbox_level"], startup["shell_available"]) == ("none", False)
    assert "There is no shell" in home.run("status") and "bubblewrap" in home.run("status")


def test_without_a_sandbox_but_wanted(home):  # noqa: F811
    without_sandbox(home)
    home.env["OXYDRA__TOOLS__SHELL__ALLOW_UNSANDBOXED"] = "true"
    home.run("start", "--detach")
    startup = home.status()["startup_status"]
    assert (startup["sandbox_level"], startup["shell_available"]) == ("rlimits", True)
    assert startup["degraded_reasons"][0]["code"] == "shell_unsandboxed"
    assert "THE SHELL IS NOT SANDBOXED" in home.run("status")


def test_variables_for_commands(monkeypatch):
    monkeypatch.setenv("EDITOR_NAME", "ed")
    monkeypatch.setenv("SOME_TOKEN", "a-providers-secret")
    secrets = ["a-providers-secret"]
    config = ShellConfig(env_keys=("EDITOR_NAME", "NOT_SET"))
    assert runner_shell.environment(config, secrets) == {"EDITOR_NAME": "ed"}
    for name in ("SOME_TOKEN", "OPENAI_API_KEY"):
        with pytest.raises(ConfigError, match=name):
            runner_shell.environment(ShellConfig(env_keys=(name,)), secrets)


def test_variables_reach_a_command(tmp_path):
    with sandbox(tmp_path, best(), env={"EDITOR_NAME": "ed"}) as box:
        assert box.text("echo $EDITOR_NAME") == "ed\n"


# ---------------------------------------------------------------------------------------- ownership


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_folder_is_given_once_and_with_care(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("root's")
    shared = tmp_path / "shared"
    (shared / "deep" / "er").mkdir(parents=True)
    (shared / "deep" / "er" / "file").write_text("x")
    (shared / "theirs").write_text("x")
    os.chown(shared / "theirs", 5, 5)
    (shared / "link").symlink_to(outside)
    (shared / "folder-link").symlink_to(tmp_path)
    os.link(outside, shared / "hard")
    os.mkfifo(shared / "fifo")
    runner_shell.give(shared, UID, UID)
    owners = {p.relative_to(shared).as_posix(): p.lstat().st_uid for p in shared.rglob("*")}
    assert owners == {
        "deep": UID,
        "deep/er": UID,
        "deep/er/file": UID,
        "theirs": 5,
        "link": 0,
        "folder-link": 0,
        "hard": 0,
        "fifo": 0,
    }
    assert shared.stat().st_uid == UID and outside.stat().st_uid == 0
    (shared / "later").write_text("x")
    runner_shell.give(shared, UID, UID)
    assert (shared / "later").stat().st_uid == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root chooses whom commands run as")
def test_whom_commands_run_as(tmp_path):
    one, two = UserWorkspace(tmp_path, "alice"), UserWorkspace(tmp_path, "bob")
    for workspace in (one, two):
        workspace.prepare()
    uid, gid = runner_shell.owner(one)
    assert uid == gid and uid in runner_shell.DEDICATED
    for name in ("shared", "tmp"):
        runner_shell.give(one.path / name, uid, gid)
    assert runner_shell.owner(one) == (uid, gid)
    assert runner_shell.owner(two)[0] != uid
    os.chown(two.path, 1234, 1235)
    assert runner_shell.owner(two) == (1234, 1235)


@pytest.mark.skipif(os.geteuid() == 0, reason="root is somebody else")
def test_whom_commands_run_as_for_an_ordinary_user(tmp_path):
    workspace = UserWorkspace(tmp_path, "alice")
    workspace.prepare()
    assert runner_shell.owner(workspace) == (os.geteuid(), os.getegid())


def test_the_ladder_says_what_was_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(ladder, "_attempts", lambda level: [])
    with pytest.raises(ladder.NoShell, match="bubblewrap") as none, sandbox(tmp_path, "bwrap+cage"):
        pytest.fail("it started")
    assert none.value.reasons == ("bwrap+cage: bubblewrap is not installed",)


def test_a_guest_that_says_nothing_is_no_guest(tmp_path, monkeypatch):
    """What starts in its place ends at once, or never speaks."""
    monkeypatch.setattr(shell_line, "READY_SECONDS", 0.3)
    for program in ("/bin/true", "/bin/cat"):
        monkeypatch.setattr(ladder, "interpreter", lambda _uid, p=program: (p, ()))
        with pytest.raises(ladder.NoShell), sandbox(tmp_path, "rlimits"):
            pytest.fail("it started")


def test_a_client_without_a_guest(monkeypatch):
    monkeypatch.setattr("oxydra.tools.shell_client.CONNECT_SECONDS", 0.05)
    client = ShellClient()
    with pytest.raises(ToolError, match="no shell at the moment"):
        client.run("c", "r", "true", 1, CancelToken())
    ours, theirs = socket.socketpair()
    client.connect(ours)
    theirs.close()
    eventually(lambda: not client.alive)
    with pytest.raises(ToolError, match="no shell"):
        client.run("c", "r", "true", 1, CancelToken())
    client.close()
    client.close()
