"""`oxydra-runner mcp` as a process, before a real daemon: by hand, and by clients of others."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import eventually
from tests.mcp_kit import DEADLINE, Peer
from tests.test_daemon import RUNNER, SCRIPT, home, running  # noqa: F401


class Process(Peer):
    """`oxydra-runner mcp` and its client."""

    def __init__(self, person, *arguments, token=""):
        env = person.env | ({"OXYDRA_TOKEN": token} if token else {})
        self.process = subprocess.Popen(
            [sys.executable, RUNNER, *person.at(("mcp", *arguments))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=person.path,
            env=env,
        )
        super().__init__(self.process.stdin.fileno(), self.process.stdout.fileno())

    def hang_up(self):
        with contextlib.suppress(OSError):  # it may be gone
            self.process.stdin.close()

    def ended(self):
        """The exit code, and what was said on stderr."""
        return self.process.wait(DEADLINE), self.process.stderr.read().decode()

    def close(self):
        self.hang_up()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(DEADLINE)
        self.process.stdout.close()
        self.process.stderr.close()


@contextlib.contextmanager
def served(person, *arguments, **options):
    """A client that has said hello; its end is an orderly one."""
    peer = Process(person, *arguments, **options)
    try:
        peer.hello()
        yield peer
        peer.hang_up()
        assert peer.receive() is None
        assert peer.ended() == (0, "")
    finally:
        peer.close()


def token_of(person, *scopes):
    """A new token's file."""
    given = [word for scope in scopes for word in ("--scope", scope)]
    path = person.path / f"token-{'-'.join(scopes)}"
    path.write_text(person.run("token", "create", path.name, *given))
    return path


def test_a_client_of_a_daemon(running):  # noqa: F811
    (running.workspace / "shared" / "notes.txt").write_text("hello\n")
    token = token_of(running, "ask")
    with served(running, "--token-file", str(token)) as peer:
        names = [one["name"] for one in peer.ask("tools/list")["tools"]]
        assert "ask" in names and "schedule_delete" not in names
        found = peer.call("ask", prompt="list the files in /shared")
        assert found["state"] == "completed" and "notes.txt" in found["answer"]
        remembered = peer.call("memory_search", query="files in shared")["found"]
        assert any(row["from_strangers"] for row in remembered)
        # what this client proposes, its person resumes
        task = {"goal": "say hi", "cadence_type": "interval", "cadence_value": "3600"}
        made = peer.call("schedule_create", **task, notification="never")
        assert (made["status"], made["goal"]) == ("paused", "say hi")
        (row,) = peer.call("schedule_list")["schedules"]
        assert row == made
        one = {"schedule_id": made["schedule_id"]}
        assert "Only its person" in peer.fails("schedule_resume", **one)
        running.run("schedule", "resume", made["schedule_id"])
        assert peer.call("schedule_list")["schedules"][0]["status"] == "active"
        runs = peer.call("schedule_runs", **one)
        assert runs["runs"] == [] and len(runs["next_runs"]) == 3
        assert "no run" in peer.fails("schedule_output", run_id=999).lower()
        uri = f"oxydra://session/{found['session_id']}"
        assert "notes.txt" in peer.ask("resources/read", {"uri": uri})["contents"][0]["text"]
    # one that speaks for its person may do more, and its daemon may be another by then
    with served(running, token=token_of(running, "chat").read_text()) as peer:
        assert peer.call("schedule_pause", **one)["reason"] == "Paused."
        assert peer.call("schedule_resume", **one)["status"] == "active"
        running.run("restart")
        assert peer.call("schedule_delete", **one) == {"deleted": made["schedule_id"]}
        assert peer.call("session_list")["sessions"]
        running.run("stop")
        assert "oxydra-runner start" in peer.fails("session_list")


def test_a_signal_ends_it(home):  # noqa: F811
    for sign in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        peer = Process(home, token="a-token-that-nobody-knows")
        peer.hello()
        peer.process.send_signal(sign)
        assert peer.receive() is None
        assert peer.ended() == (0, "")
        peer.close()


def test_it_needs_a_token_of_its_own(home):  # noqa: F811
    assert "token create NAME --scope ask" in home.fails("mcp", code=2)
    assert "cannot be read" in home.fails("mcp", "--token-file", "nowhere", code=2)
    (home.path / "empty").write_text("\n")
    assert "is empty" in home.fails("mcp", "--token-file", "empty", code=2)
    assert home.command("mcp", "--token", "x").returncode == 2  # never among the arguments


def test_stdout_has_the_protocol_and_nothing_else(home):  # noqa: F811
    """Whatever order the end comes in."""
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {}}
    lines = [{"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}]
    lines += [{"jsonrpc": "2.0", "id": 2, "method": "tools/list"}]
    peer = Process(home, token="a-token-that-nobody-knows")
    for line in lines:
        peer.say(json.dumps(line))
    peer.hang_up()
    answers = [peer.receive(), peer.receive()]
    assert [answer["id"] for answer in answers] == [1, 2]
    assert peer.receive() is None
    assert peer.ended() == (0, "")
    peer.close()


# ------------------------------------------------------------------------------------------- kills

STEPS = [
    {"text": "Looking. ", "tool": "file_list", "arguments": {"path": "/shared"}},
    {"tool": "shell_exec", "arguments": {"command": "sleep 0.3; echo slept"}},
    {"tool": "file_list", "arguments": {"path": "/shared"}},
    {"text": "That is all."},
]
QUESTION = SCRIPT % json.dumps(STEPS)


def told(message):
    return message.get("method") == "notifications/progress"


@pytest.mark.slow
def test_a_daemon_that_is_killed_during_a_call_answers_it(running):  # noqa: F811
    token = token_of(running, "ask")
    with served(running, "--token-file", str(token)) as peer:
        for steps in (1, 3, 6):  # the runner waits longer from one to the next
            guest = running.status()["guest_pid"]
            asked = peer.begin("ask", token=f"t{steps}", prompt=QUESTION, wait_seconds=600)
            for _ in range(steps):
                peer.until(told)
            os.kill(guest, signal.SIGKILL)
            found = peer.answer(asked)["result"]["structuredContent"]
            assert (found["state"], found["answer"]) == ("completed", "That is all."), steps
            eventually(lambda killed=guest: another(running, killed), timeout=180)
            said = peer.call("session_read", session_id=found["session_id"])["messages"]
            assert [m["text"] for m in said if m["role"] == "user"] == [QUESTION]


def another(person, guest):
    """Whether another guest serves than the one that was killed."""
    done = person.command("status", "--json")
    return done.returncode == 0 and json.loads(done.stdout)["guest_pid"] not in (None, 0, guest)


@pytest.mark.slow
def test_a_server_that_is_killed_at_any_instant_leaves_nothing_half_done(running):  # noqa: F811
    token = token_of(running, "ask")
    steps = (0, 1, 2, 3, 4, 6)
    for count in steps:
        peer = Process(running, "--token-file", str(token))
        peer.hello()
        peer.begin("ask", token="t", prompt=QUESTION)
        for _ in range(count):
            peer.until(told)
        peer.process.kill()
        assert peer.ended()[0] == -signal.SIGKILL
        peer.close()
    with served(running, "--token-file", str(token)) as peer:

        def spoken():
            rows = peer.call("session_list")["sessions"]
            read = [peer.call("session_read", session_id=row["session_id"]) for row in rows]
            return [one["messages"] for one in read if one["messages"]]

        eventually(lambda: all(m[-1]["text"] == "That is all." for m in spoken()), timeout=180)
        assert len(spoken()) >= len(steps) - 1  # the first may not have come that far
        for messages in spoken():
            roles = [m["role"] for m in messages if m["role"] != "recalled"]
            assert roles == ["user", *["assistant", "tool"] * 3, "assistant"]
