"""A command that runs while the agent guest is killed: its one result arrives, or it is ended.

`main` is the agent's side in a process of its own: a store, a runtime, a client of the shell. It is
killed with SIGKILL while its command runs; the test then is its successor.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from oxydra.config import RuntimeConfig
from oxydra.config.schema import ShellConfig
from oxydra.runtime import Runtime
from oxydra.store import Store
from oxydra.threads import CancelToken, Service
from oxydra.tools.gate import Gate
from oxydra.tools.registry import ToolRegistry
from oxydra.tools.shell import ShellTool
from oxydra.tools.shell_client import ShellClient
from oxydra.types import TurnState
from tests.conftest import ROOT, eventually
from tests.sandbox import processes_with, sandbox
from tests.scripted import MODEL, Scripted, calls
from tests.test_daemon import SCRIPT, all_killed, comes_back, home, running  # noqa: F401
from tests.test_shell import best, sandboxed, until

TURN = "t1"


def runtime(store, client, provider, **config):
    tools = ToolRegistry((), extra=[ShellTool(ShellConfig(allow=("*",)), named_paths=True)])
    return Runtime(
        store=store,
        provider=provider,
        model=MODEL,
        gate=Gate(tools, {"shell": client}),
        tools=tools.specs,
        config=RuntimeConfig(**config),
    )


def main(descriptor, database, command):
    """One turn that runs `command`, with the shell's stream on `descriptor`."""
    import socket

    client = ShellClient()
    client.connect(socket.socket(fileno=int(descriptor)))
    store = Store(Path(database))
    turn, _ = store.accept_turn(store.create_session().session_id, TURN, "r1", "go")
    step = calls(("shell_exec", json.dumps({"command": command})))
    runtime(store, client, Scripted(step)).run_turn(turn, CancelToken(), lambda _type, _payload: 0)


class Crash:
    """A shell guest, and a turn whose process was killed while `command` ran in it."""

    def __init__(self, box, command):
        self.box = box
        self.database = box.folder / "oxydra.db"
        with box.stream() as stream:
            words = ("-m", "tests.test_resume", str(stream.fileno()), str(self.database), command)
            agent = subprocess.Popen(
                [sys.executable, *words], cwd=ROOT, pass_fds=(stream.fileno(),)
            )
        eventually(lambda: self.there("count") or agent.poll() is not None)
        agent.kill()
        agent.wait()
        assert self.there("count")
        self.store = Store(self.database)
        self.provider = Scripted("fine")
        self.frames = []

    def there(self, name):
        return (self.box.folder / "shared" / name).exists()

    def touch(self, name):
        (self.box.folder / "shared" / name).touch()

    def resume(self, token=None, client=None, **config):
        (turn,) = self.store.unfinished_turns()
        assert turn.state is TurnState.RUNNING
        again = runtime(self.store, client or self.box.client, self.provider, **config)
        again.run_turn(turn, token or CancelToken(), lambda *frame: self.frames.append(frame))

    def results(self):
        (session,) = self.store.sessions()
        return [m for m in self.store.messages(session.session_id) if m.role == "tool"]

    def states(self):
        with self.store._reading() as db:
            return [row[0] for row in db.execute("SELECT state FROM tool_calls")]


ONCE = "echo x >> count"


@pytest.fixture
def box(tmp_path):
    with sandbox(tmp_path, best()) as box:
        yield box


@pytest.fixture
def crashed(box, request):
    mark = f"86405.{os.getpid()}"
    command = getattr(request, "param", "").format(mark=mark)
    crash = Crash(box, f"{ONCE}; " + (command or f"{until('go')}; cat count; echo finished"))
    crash.mark = f"sleep {mark}"
    yield crash
    crash.store.close()


LONG = "sleep {mark}; echo over"
long = pytest.mark.parametrize("crashed", [LONG], indirect=True)


def test_a_command_that_still_runs_is_awaited(crashed):
    service = Service("test-resume", lambda _service: crashed.resume()).start()
    eventually(lambda: any(f == "tool_event" for f, _p in crashed.frames))
    crashed.touch("go")
    assert service.stop(20)
    (result,) = crashed.results()
    assert result.content == "x\nfinished\n[exit code 0]" and not result.is_error
    assert crashed.states() == ["done"]
    assert crashed.provider.requests[0].messages[-1] == result
    assert crashed.frames[-1][0] == "turn_completed"


def test_a_command_that_ended_meanwhile_has_its_result(crashed):
    crashed.touch("go")
    eventually(lambda: "finished" in crashed.box.text("echo finished", conversation="other"))
    crashed.resume()
    (result,) = crashed.results()
    assert result.content == "x\nfinished\n[exit code 0]"
    assert (crashed.box.folder / "shared" / "count").read_text() == "x\n"


def test_a_shell_that_is_gone_too_knows_nothing(crashed):
    """The runner started the shell guest again: what became of the command is unknown."""
    folder = crashed.box.folder
    crashed.box.process.stop()
    with sandbox(folder, best()) as another:
        crashed.resume(client=another.client)
    (result,) = crashed.results()
    assert "outcome of this call is unknown" in result.content and result.is_error
    assert crashed.states() == ["unknown"]
    assert (folder / "shared" / "count").read_text() == "x\n"
    assert crashed.frames[-1][0] == "turn_completed"


def test_no_shell_at_all(crashed, monkeypatch):
    monkeypatch.setattr("oxydra.tools.shell_client.CONNECT_SECONDS", 0.05)
    crashed.resume(client=ShellClient())
    assert crashed.states() == ["unknown"]


@long
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_cancelled_turn_ends_its_command(crashed, when):
    assert processes_with(crashed.mark)
    token = CancelToken()
    if when == "before":
        token.cancel("by hand")
    service = Service("test-resume", lambda _service: crashed.resume(token)).start()
    eventually(lambda: any(f == "tool_event" for f, _p in crashed.frames))
    token.cancel("by hand")
    assert service.stop(20)
    eventually(lambda: not processes_with(crashed.mark))
    assert crashed.states() == ["failed"]
    assert crashed.frames[-1][0] == "turn_cancelled"


@long
def test_a_command_past_the_deadline_is_ended(crashed):
    crashed.resume(turn_timeout_secs=0.3)
    eventually(lambda: not processes_with(crashed.mark))
    (result,) = crashed.results()
    assert "it was killed" in result.content and result.is_error
    assert crashed.states() == ["failed"]


# ------------------------------------------------------------------------------- the whole daemon


@pytest.fixture
def asking(home):  # noqa: F811
    """A daemon, and somebody who waits for the answer of a turn with a command in it."""
    sandboxed()
    home.env["OXYDRA__TOOLS__SHELL__ALLOW"] = "*"
    home.run("start", "--detach")
    command = f"{ONCE}; {until('go')}; cat count; echo finished"
    script = SCRIPT % json.dumps([{"tool": "shell_exec", "arguments": {"command": command}}])
    words = [sys.executable, str(ROOT / "bin" / "oxydra-runner"), *home.at(("ask", script))]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=home.env, text=True) as person:
        eventually(lambda: (home.workspace / "shared" / "count").exists(), timeout=90)
        yield home, person


def test_a_command_survives_its_agent(asking):
    """`kill -9` of the agent guest while a command runs: it goes on, and its result arrives."""
    home, person = asking  # noqa: F811
    comes_back(home, "guest_pid")
    (home.workspace / "shared" / "go").touch()
    answer, _ = person.communicate(timeout=60)
    assert person.returncode == 0 and "x\nfinished" in answer
    assert (home.workspace / "shared" / "count").read_text() == "x\n"


def test_a_command_does_not_survive_everything(asking):
    """`kill -9` of runner and agent: the shell guest ends with them, and nothing runs twice."""
    home, person = asking  # noqa: F811
    all_killed(home.status())
    home.run("start", "--detach")
    answer, _ = person.communicate(timeout=60)
    assert person.returncode == 0 and "outcome of this call is unknown" in answer
    assert (home.workspace / "shared" / "count").read_text() == "x\n"


if __name__ == "__main__":
    main(*sys.argv[1:])
