"""Marks of what strangers wrote and of private data: where they come from, and how they follow."""

from __future__ import annotations

import pytest

from oxydra.config import RuntimeConfig
from oxydra.runtime import Runtime
from oxydra.store import Store
from oxydra.threads import CancelToken
from oxydra.tools.base import tool
from oxydra.tools.confine import Workspace
from oxydra.tools.gate import Gate
from oxydra.tools.registry import TOOLS, ToolRegistry
from oxydra.types import Marks, SafetyTier
from tests.scripted import MODEL, Scripted, calls


@tool(tier=SafetyTier.READ_ONLY, taints=True, egress=True)
def browse(page: str) -> str:
    """Read a page."""
    return f"the page {page}"


@tool(tier=SafetyTier.PRIVILEGED)
def command(line: str) -> str:
    """Run a command."""
    return f"ran {line}"


class World:
    def __init__(self, path):
        for name in ("shared", "tmp", "vault"):
            (path / name).mkdir()
        (path / "vault" / "secret.txt").write_text("private")
        (path / "shared" / "plain.txt").write_text("plain")
        self.store = Store(path / "oxydra.db")
        self.workspace = Workspace.at(path)
        self.turns = 0
        self.scopes = []

    def say(self, session, *steps):
        """One turn; returns the marks of its results in order."""
        names = [name for name in TOOLS if name.startswith("file_")]
        registry = ToolRegistry(names=names, extra=(browse, command))

        def approve(wanted, scope, _emit):
            self.scopes.append(scope)
            return [""] * len(wanted)

        runtime = Runtime(
            store=self.store,
            provider=Scripted(*steps),
            model=MODEL,
            gate=Gate(registry, {"workspace": self.workspace}, approve=approve),
            tools=registry.specs,
            config=RuntimeConfig(),
        )
        self.turns += 1
        turn, _ = self.store.accept_turn(session, f"t{self.turns}", "r", "go")
        before = len(self.store.messages(session))
        runtime.run_turn(turn, CancelToken(), lambda *_: None)
        results = [m for m in self.store.messages(session)[before:] if m.role == "tool"]
        assert not [m.content for m in results if m.is_error]
        return [Marks(m.tainted, m.sensitive) for m in results]

    def session(self):
        return self.store.create_session().session_id


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.workspace.close()
    world.store.close()


def read(path):
    return calls(("file_read", f'{{"path": "{path}"}}'))


def write(path):
    return calls(("file_write", f'{{"path": "{path}", "content": "x"}}'))


PAGE = calls(("browse", '{"page": "p"}'))
NONE, TAINTED, SENSITIVE = Marks(), Marks(tainted=True), Marks(sensitive=True)


def test_where_marks_come_from(world):
    assert world.say(world.session(), read("/shared/plain.txt")) == [NONE]
    assert world.say(world.session(), PAGE) == [TAINTED]
    assert world.say(world.session(), read("/vault/secret.txt")) == [SENSITIVE]


def test_a_conversation_keeps_its_marks_over_turns_and_restarts(world):
    session = world.session()
    world.say(session, PAGE)
    world.say(session, read("/vault/secret.txt"))
    world.say(session, read("/shared/plain.txt"))
    last = world.scopes[-1]
    assert (last.tainted, last.sensitive) == (True, True)
    assert (world.scopes[0].tainted, world.scopes[1].sensitive) == (False, False)


def test_a_file_carries_the_marks_of_the_conversation_that_wrote_it(world):
    session = world.session()
    world.say(session, PAGE, write("/shared/notes/from-web.md"))
    other = world.session()
    assert world.say(other, read("/shared/notes/from-web.md")) == [TAINTED]
    assert world.say(other, read("/shared/plain.txt")) == [NONE]
    listing = calls(("file_list", '{"path": "/shared/notes"}'))
    assert world.say(world.session(), listing) == [TAINTED]
    private = world.session()
    world.say(private, read("/vault/secret.txt"), write("/tmp/copy.txt"))
    assert world.say(world.session(), read("/tmp/copy.txt")) == [SENSITIVE]


def test_a_name_that_only_begins_alike_is_another_file(world):
    world.say(world.session(), PAGE, write("/shared/a"))
    assert world.say(world.session(), write("/shared/ab"), read("/shared/ab"))[1] == NONE
    assert world.say(world.session(), read("/shared/a")) == [TAINTED]


def test_a_command_sees_and_touches_everything(world):
    run = calls(("command", '{"line": "ls"}'))
    assert world.say(world.session(), run) == [NONE]
    world.say(world.session(), PAGE, write("/shared/web.md"))
    assert world.say(world.session(), run) == [TAINTED]
    world.say(world.session(), read("/vault/secret.txt"), run)
    assert world.say(world.session(), read("/shared/plain.txt")) == [SENSITIVE]
