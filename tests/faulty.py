"""A daemon whose agent guest can be killed at a chosen commit, and a person who talks to it.

`python tests/faulty.py start …` is `oxydra-runner` with a guest that is this file again: the real
program, with the store's transactions counted from outside: those that a message and its turn make,
or those of a schedule and its turn. A file `internal/fault` that says `7 before message` or `7
after schedule` makes it kill itself at the seventh commit from then on; it counts into
`internal/commits`. Nothing of this is in the product.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sqlite3
import subprocess
import sys
import threading
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COUNTED = {  # the threads whose commits are counted
    "message": ("oxydra-requests", "oxydra-turn-"),
    "schedule": ("oxydra-scheduler", "oxydra-turn-"),
}


def main():
    """The runner, or with its first argument missing the guest."""
    sys.path[0] = str(ROOT)
    if sys.argv[1] != "start":
        return guest()
    from oxydra import cli
    from oxydra.runner import daemon
    from oxydra.tiers import process

    daemon.BACKOFF_SECONDS = (0.0, 0.0)
    process.guest_script = lambda _name: Path(__file__).resolve()
    config = os.environ["FAULTY_CONFIG"]
    return cli.runner(["--config", config, "start"])


def guest():
    from oxydra import vm
    from oxydra.store.database import Database

    whole = Database._transaction
    trap = {"at": 0, "when": "", "count": 0, "of": "message"}

    def die(now):
        if trap["count"] == trap["at"] and trap["when"] == now:
            os.kill(os.getpid(), signal.SIGKILL)

    @contextlib.contextmanager
    def transaction(store, **how):
        armed = store.path.parent / "fault"
        with contextlib.suppress(FileNotFoundError):
            at, when, of = armed.read_text().split()
            if threading.current_thread().name.startswith(COUNTED[of]):
                armed.unlink()
                trap.update(at=int(at), when=when, count=0, of=of)
        if not threading.current_thread().name.startswith(COUNTED[trap["of"]]):
            with whole(store, **how) as db:
                yield db
            return
        with whole(store, **how) as db:
            yield db
            trap["count"] += 1
            die("before")
        die("after")
        if trap["at"]:
            (store.path.parent / "commits").write_text(str(trap["count"]))

    Database._transaction = transaction
    return vm.main()


# ------------------------------------------------------------------------------------ in the tests


class FaultyDaemon:
    """One daemon in a home that `oxydra-runner init` was run in (`tests.test_daemon.Home`)."""

    def __init__(self, home):
        self.home = home
        self.workspace = home.workspace
        self.kills = 0
        self._process = subprocess.Popen(
            [sys.executable, __file__, "start"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**home.env, "FAULTY_CONFIG": str(home.config)},
            cwd=home.path,
            text=True,
        )
        assert "ready at" in self._process.stdout.readline()

    def close(self):
        self._process.terminate()
        self._process.communicate(timeout=60)

    def arm(self, commit, when, of="message"):
        armed = self.workspace / "internal" / "fault"
        armed.with_suffix(".new").write_text(f"{commit} {when} {of}")
        armed.with_suffix(".new").rename(armed)

    def commits(self):
        return int((self.workspace / "internal" / "commits").read_text())

    def health(self):
        from oxydra.runner.control import call

        return call(self.workspace / "ipc" / "runner-control.sock", "health_check", {})

    def kill(self):
        """`kill -9` of the agent guest, if there is one at this moment."""
        pid = self.health()["guest_pid"]
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.kills += 1

    def database(self):
        return contextlib.closing(sqlite3.connect(self.workspace / "internal" / "oxydra.db"))


class Person:
    """A client that reconnects, and sends its message again where it missed the answer."""

    patience = 60.0  # seconds without a word from the daemon, after which it is given up

    def __init__(self, daemon):
        from oxydra.tui.client import ClientConfig, GatewayClient

        self.daemon = daemon
        self.events = queue.SimpleQueue()
        endpoint, token = self._locate()
        self.client = GatewayClient(
            endpoint,
            token,
            "alice",
            on_frame=self.events.put,
            on_link=self.events.put,
            new_session=True,
            locate=self._locate,
            config=ClientConfig(backoff_base=0.02, backoff_max=0.05),
        )
        self.client.connect()

    def _locate(self):
        ipc = self.daemon.workspace / "ipc"
        return [(ipc / f"gateway-{name}").read_text().strip() for name in ("endpoint", "token")]

    def close(self):
        self.client.close()

    def turn(self, prompt, meanwhile=lambda: None):
        """Send a message; returns its turn id and all frames about it, once nothing is under way
        any more. `meanwhile` is called when it was accepted.
        """
        from oxydra.errors import NoDaemonError
        from oxydra.frames import TERMINAL
        from oxydra.tui.client import Link

        turn_id, frames, asked = uuid.uuid4().hex, [], ""

        def send(frame_type, **payload):
            with contextlib.suppress(NoDaemonError):  # a Link will say so
                return self.client.send(frame_type, payload)
            return ""

        def submit():
            session_id = self.client.session_id
            send("send_turn", session_id=session_id, turn_id=turn_id, prompt=prompt)

        submit()
        while True:
            event = self.events.get(timeout=self.patience)
            if isinstance(event, Link):
                if event.connected and (event.fresh or not frames):
                    submit()
                ended = any(frame.type in TERMINAL for frame in frames)
                if event.connected and ended:
                    asked = send("health_check")
            elif event.type == "health_status" and event.payload["request_id"] == asked:
                return turn_id, frames
            elif (event.payload.get("turn") or {}).get("turn_id") == turn_id:
                frames.append(event)
                if len(frames) == 1:
                    meanwhile()
                if event.type in TERMINAL and not asked:
                    asked = send("health_check")


class Place:
    """A daemon that can be killed and a person who talks to it, in the new folder `path`; `stack`
    ends both. `environment` is what its programs find besides.
    """

    def __init__(self, path, stack, **environment):
        from tests.test_daemon import Home

        home = Home(path)
        path.mkdir()
        home.init()
        home.env |= environment
        self.daemon = FaultyDaemon(home)
        stack.callback(self.daemon.close)
        self.person = Person(self.daemon)
        stack.callback(self.person.close)
        self.number = 0


class Work:
    """A turn of eleven calls with side effects, in a folder of its own, and what must be true of
    it afterwards.
    """

    def __init__(self, daemon, name):
        self.daemon = daemon
        self.name = name
        self.folder = daemon.workspace / "shared" / name
        self.folder.mkdir()
        self.folder.chmod(0o777)
        (self.folder / "edited").write_text("[end]\n")
        (self.folder / "gone").write_text("to be deleted\n")

    def _calls(self):
        def path(name):
            return f"/shared/{self.name}/{name}"

        def call(tool, **arguments):
            return {"tool": tool, "arguments": arguments}

        def log(mark):
            return call("shell_exec", command=f"echo {mark} >> {self.name}/log")

        edit = call("file_edit", path=path("edited"), old="[end]", new="x[end]")
        return [
            [call("file_write", path=path("deep/written"), content="one")],
            [edit],
            [log("first")],
            [call("file_read", path=path("edited")), call("file_list", path=path(""))],
            [log("second"), call("file_read", path=path("log")), edit],
            [call("file_delete", path=path("gone"))],
            [call("file_write", path=path("deep/written"), content="two"), log("third")],
        ]

    @property
    def prompt(self):
        steps = [{"parallel": step} for step in self._calls()]
        return f"[[script {json.dumps([*steps, {'text': 'all done'}])}]]"

    def check(self, turn_id, frames, kills):
        """`kills` is how often the guest may have been killed meanwhile."""
        terminal = [frame for frame in frames if frame.type in ("turn_completed", "error")]
        assert sum(frame.seq > 0 for frame in terminal) <= 1
        assert {frame.type for frame in terminal} == {"turn_completed"}
        (content,) = {frame.payload["response"]["message"]["content"] for frame in terminal}
        assert content == "all done"
        with self.daemon.database() as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            turns = db.execute("SELECT state FROM turns WHERE turn_id = ?", (turn_id,)).fetchall()
            calls = db.execute(
                "SELECT name, state FROM tool_calls WHERE turn_id = ? ORDER BY sequence, position",
                (turn_id,),
            ).fetchall()
            rows = db.execute(
                "SELECT sequence, message FROM events WHERE turn_id = ? ORDER BY sequence",
                (turn_id,),
            ).fetchall()
        assert turns == [("completed",)]
        self.check_events([row[0] for row in rows], [json.loads(row[1]) for row in rows])
        results = [json.loads(row[1]) for row in rows if json.loads(row[1])["role"] == "tool"]
        self.check_effects(calls, results, kills)

    def check_events(self, numbers, messages):
        """Each there once, in the one order that makes sense."""
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        expected = ["user"]
        for step in self._calls():
            expected += ["assistant", *("tool" for _ in step)]
        assert [message["role"] for message in messages] == [*expected, "assistant"]
        open_calls = []
        for message in messages:
            if message["role"] == "tool":
                assert message["tool_call_id"] == open_calls.pop(0)
            else:
                assert not open_calls
                open_calls = [call["id"] for call in message.get("tool_calls", ())]

    def check_effects(self, calls, results, kills):
        """What is done was done once; of what is unknown, the model was told."""
        states = [state for _name, state in calls]
        unknown = [i for i, state in enumerate(states) if state == "unknown"]
        assert set(states) <= {"done", "unknown"}, list(zip(calls, results, strict=True))
        assert len(unknown) <= kills
        for i in unknown:
            assert calls[i][0] in MAY_BE_UNKNOWN, calls[i]
            assert "outcome of this call is unknown" in results[i]["content"]
        log = self.folder / "log"
        lines = log.read_text().split() if log.exists() else []
        for mark, i in (("first", 2), ("second", 5), ("third", 10)):
            assert lines.count(mark) == 1 or (i in unknown and mark not in lines), (mark, lines)
        edits = (self.folder / "edited").read_text().count("x")
        sure = sum(i not in unknown for i in (1, 7))
        assert sure <= edits <= 2, (edits, calls)
        assert (self.folder / "deep" / "written").read_text() == "two"
        assert not (self.folder / "gone").exists()
        assert not list(self.folder.rglob(".oxydra-*"))


MAY_BE_UNKNOWN = ("shell_exec",)  # the others find out


if __name__ == "__main__":
    sys.exit(main())
