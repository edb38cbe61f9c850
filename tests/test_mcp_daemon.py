"""`oxydra-runner mcp` as a process, before a real daemon: by hand, and by clients of others."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys

from tests.mcp_kit import DEADLINE, Peer
from tests.test_daemon import RUNNER, home, running  # noqa: F401


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

    def ended(self):
        """The exit code, and what was said on stderr."""
        code = self.process.wait(DEADLINE)
        said = self.process.stderr.read().decode()
        for stream in (self.process.stdout, self.process.stderr):
            stream.close()
        return code, said


@contextlib.contextmanager
def served(person, *arguments, **options):
    """A client that has said hello; its end is an orderly one."""
    peer = Process(person, *arguments, **options)
    try:
        peer.hello()
        yield peer
        peer.process.stdin.close()
        assert peer.receive() is None
        assert peer.ended() == (0, "")
    finally:
        if peer.process.poll() is None:
            peer.process.kill()
            peer.ended()
        with contextlib.suppress(OSError):
            peer.process.stdin.close()


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
        peer.process.stdin.close()


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
    peer.process.stdin.close()
    answers = [peer.receive(), peer.receive()]
    assert [answer["id"] for answer in answers] == [1, 2]
    assert peer.receive() is None
    assert peer.ended() == (0, "")
