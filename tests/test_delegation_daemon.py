"""Delegation in real daemons that are killed: each errand has one child, and its work is done once.

The offline model plays both agents: the parent's script holds the child's as the goal.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest

from oxydra.store import Store
from oxydra.types import DELEGATED
from tests.conftest import ROOT, eventually
from tests.test_daemon import SCRIPT, all_killed, comes_back, home  # noqa: F401
from tests.test_shell import sandboxed, until


def helper(*commands):
    """An errand whose agent runs these commands, one after another."""
    steps = [{"tool": "shell_exec", "arguments": {"command": one}} for one in commands]
    goal = SCRIPT % json.dumps(steps)
    return {"tool": "delegate_to_agent", "arguments": {"agent": "helper", "goal": goal}}


class Asked:
    """Somebody who waits for an answer; `home` has an agent `helper`."""

    def __init__(self, home, step):  # noqa: F811
        self.home = home
        self.shared = home.workspace / "shared"
        words = home.at(("ask", SCRIPT % json.dumps([step])))
        command = [sys.executable, str(ROOT / "bin" / "oxydra-runner"), *words]
        self.person = subprocess.Popen(command, stdout=subprocess.PIPE, env=home.env, text=True)

    def there(self, name):
        return (self.shared / name).exists()

    def answer(self):
        told, _ = self.person.communicate(timeout=180)
        assert self.person.returncode == 0
        return told

    def check(self, children):
        """What must hold in the database when all is over."""
        store = Store(self.home.workspace / "internal" / "oxydra.db")
        try:
            origins = [s.channel_origin for s in store.sessions(include_delegated=True)]
            assert origins.count(DELEGATED) == children
            assert store.unfinished_turns() == []
            with store._reading() as db:
                states = {row[0] for row in db.execute("SELECT state FROM turns")}
                open_calls = db.execute(
                    "SELECT count(*) FROM tool_calls WHERE state IN ('intended', 'running')"
                ).get
                assert (states, open_calls) == ({"completed"}, 0)
                assert db.execute("PRAGMA integrity_check").get == "ok"
        finally:
            store.close()


@pytest.fixture
def agents(home):  # noqa: F811
    sandboxed()
    home.env["OXYDRA__TOOLS__SHELL__ALLOW"] = "*"
    home.add("agent.toml", '\n[agents.helper]\ntools = ["shell_exec"]\n')
    home.run("start", "--detach")
    return home


def test_a_childs_command_survives_the_guest(agents):
    asked = Asked(agents, helper(f"echo x >> count; {until('go')}; cat count; echo finished"))
    eventually(lambda: asked.there("count"), timeout=60)
    comes_back(agents, "guest_pid")
    (asked.shared / "go").touch()
    told = asked.answer()
    assert "The agent helper answered" in told and "x\nfinished" in told
    assert (asked.shared / "count").read_text() == "x\n"
    asked.check(children=1)


def test_a_childs_command_does_not_survive_everything_and_is_not_run_again(agents):
    asked = Asked(agents, helper(f"echo x >> count; {until('go')}"))
    eventually(lambda: asked.there("count"), timeout=60)
    all_killed(agents.status())
    agents.run("start", "--detach")
    assert "outcome of this call is unknown" in asked.answer()
    assert (asked.shared / "count").read_text() == "x\n"
    asked.check(children=1)


def test_kills_at_random_instants_of_two_children_repeat_nothing(agents):
    seed = random.Random(11)
    errands = [
        helper(*(f"echo {name}{n} >> {name}; sleep 0.1" for n in range(8))) for name in ("a", "b")
    ]
    asked = Asked(agents, {"parallel": errands})
    for n in (seed.randint(1, 3), seed.randint(4, 6)):
        marks = [asked.shared / "a", asked.shared / "b"]
        eventually(
            lambda: any(m.exists() and len(m.read_text().split()) >= n for m in marks),  # noqa: B023
            timeout=90,
        )
        comes_back(agents, "guest_pid")
    asked.answer()
    for name in ("a", "b"):
        # a command that was killed on its way to the shell is told as unknown, and not sent again
        done = (asked.shared / name).read_text().split()
        assert done == sorted(set(done)) and set(done) <= {f"{name}{n}" for n in range(8)}
        assert len(done) >= 8 - 2  # one for each kill, at most
    asked.check(children=2)
