"""Marks of what strangers wrote and of private data: where they come from, and how they follow."""

from __future__ import annotations

import pytest

from oxydra.config import RuntimeConfig
from oxydra.policy import parse_virtual
from oxydra.runtime import Runtime
from oxydra.store import Store
from oxydra.threads import CancelToken
from oxydra.tools.base import tool
from oxydra.tools.confine import Workspace
from oxydra.tools.gate import Gate
from oxydra.tools.registry import TOOLS, ToolRegistry
from oxydra.tools.shell_client import ShellClient
from oxydra.types import Attachment, Marks, SafetyTier
from tests.scripted import MODEL, Scripted, calls


@tool(tier=SafetyTier.READ_ONLY, taints=True, egress=True)
def browse(page: str) -> str:
    """Read a page."""
    return f"the page {page}"


@tool(tier=SafetyTier.PRIVILEGED, taints=True)
def command(line: str) -> str:
    """Run a command."""
    return f"ran {line}"


class World:
    def __init__(self, path):
        self.path = path
        self.services = {}
        self.private = []
        for name in ("shared", "tmp", "vault"):
            (path / name).mkdir()
        (path / "vault" / "secret.txt").write_text("private")
        (path / "shared" / "plain.txt").write_text("plain")
        self.store = Store(path / "oxydra.db")
        self.workspace = Workspace.at(path)
        self.turns = 0
        self.scopes = []

    def say(self, session, *steps, **message):
        """One turn; returns the marks of its results in order."""
        names = [name for name in TOOLS if not name.startswith("web_")]
        registry = ToolRegistry(names=names, extra=(browse, command))

        def approve(wanted, scope, _emit):
            self.scopes.append(scope)
            return [""] * len(wanted)

        runtime = Runtime(
            store=self.store,
            provider=Scripted(*steps),
            model=MODEL,
            gate=Gate(
                registry,
                {"workspace": self.workspace, **self.services},
                approve=approve,
                private=self.private,
            ),
            tools=registry.specs,
            config=RuntimeConfig(),
        )
        self.turns += 1
        turn, _ = self.store.accept_turn(session, f"t{self.turns}", "r", "go", **message)
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
BOTH = Marks(tainted=True, sensitive=True)


def test_where_marks_come_from(world):
    assert world.say(world.session(), write("/shared/own.txt")) == [NONE]
    assert world.say(world.session(), read("/shared/plain.txt")) == [TAINTED]
    assert world.say(world.session(), PAGE) == [TAINTED]
    assert world.say(world.session(), read("/vault/secret.txt")) == [SENSITIVE]


def test_a_conversation_keeps_its_marks_over_turns_and_restarts(world):
    session = world.session()
    world.say(session, PAGE)
    world.say(session, read("/vault/secret.txt"))
    world.say(session, write("/shared/plain.txt"))
    last = world.scopes[-1]
    assert (last.tainted, last.sensitive) == (True, True)
    assert (world.scopes[0].tainted, world.scopes[1].sensitive) == (False, False)


def test_whatever_lies_in_the_workspace_may_be_a_strangers(world):
    listing = calls(("file_list", "{}"))
    search = calls(("file_search", '{"pattern": "pl"}'))
    edit = calls(("file_edit", '{"path": "/shared/plain.txt", "old": "a", "new": "b"}'))
    command = calls(("command", '{"line": "ls"}'))
    for call in (listing, search, edit, command):
        assert world.say(world.session(), call) == [TAINTED]


def test_a_file_carries_the_marks_of_the_conversation_that_wrote_it(world):
    private = world.session()
    world.say(private, read("/vault/secret.txt"), write("/shared/notes/copy.txt"))
    for call in (
        read("/shared/notes/copy.txt"),
        calls(("file_list", '{"path": "/shared/notes"}')),
        calls(("file_list", "{}")),
        calls(("file_search", '{"pattern": "x"}')),
    ):
        assert world.say(world.session(), call) == [BOTH]
    assert world.say(world.session(), read("/shared/plain.txt")) == [TAINTED]


def test_a_name_that_only_begins_alike_is_another_file(world):
    world.say(world.session(), read("/vault/secret.txt"), write("/shared/a"))
    assert world.say(world.session(), write("/shared/ab"), read("/shared/ab"))[1] == TAINTED
    assert world.say(world.session(), read("/shared/a")) == [BOTH]


def test_what_the_person_called_private_is(world):
    world.private = [parse_virtual("/shared/taxes")]
    (world.path / "shared" / "taxes").mkdir()
    (world.path / "shared" / "taxes" / "2025.txt").write_text("private")
    (world.path / "shared" / "taxes.txt").write_text("plain")
    run = calls(("command", '{"line": "ls"}'))
    assert world.say(world.session(), read("/shared/taxes/2025.txt")) == [BOTH]
    assert world.say(world.session(), calls(("file_list", "{}"))) == [BOTH]
    assert world.say(world.session(), read("/shared/taxes.txt")) == [TAINTED]
    assert world.say(world.session(), run) == [BOTH]
    assert world.say(world.session(), read("/shared/taxes.txt")) == [BOTH]  # what was run copied it


def test_a_command_sees_and_touches_everything(world):
    run = calls(("command", '{"line": "ls"}'))
    assert world.say(world.session(), run) == [TAINTED]
    world.say(world.session(), read("/vault/secret.txt"), run)
    assert world.say(world.session(), read("/shared/plain.txt")) == [BOTH]


def test_a_command_copies_what_another_conversation_left(world):
    world.say(world.session(), read("/vault/secret.txt"), write("/shared/copy.txt"))
    assert world.say(world.session(), read("/shared/plain.txt")) == [TAINTED]
    assert world.say(world.session(), calls(("command", '{"line": "cp copy.txt plain.txt"}'))) == [
        BOTH
    ]
    assert world.say(world.session(), read("/shared/plain.txt")) == [BOTH]


def test_a_command_in_the_same_step_copies_it_too(world):
    copy = ("vault_copyto", '{"path": "/vault/secret.txt", "destination": "/shared/copy.txt"}')
    step = calls(copy, ("command", '{"line": "cp copy.txt plain.txt"}'))
    assert world.say(world.session(), step) == [SENSITIVE, BOTH]
    assert world.say(world.session(), read("/shared/plain.txt")) == [BOTH]


def test_what_an_open_shell_left_running_copies_it_later(world):
    class Open(ShellClient):
        open = True

    world.services["shell"] = Open()
    world.say(world.session(), read("/vault/secret.txt"), write("/shared/copy.txt"))
    assert world.say(world.session(), read("/shared/plain.txt")) == [BOTH]


def test_a_message_that_others_wrote_marks_the_conversation(world):
    own, foreign = world.session(), world.session()
    world.say(own, write("/tmp/a"))
    world.say(foreign, write("/tmp/a"), tainted=True)
    world.say(foreign, write("/tmp/a"))
    assert [scope.tainted for scope in world.scopes] == [False, True, True]


def test_an_attachment_counts_as_written_by_others(world):
    attachment = Attachment("text/plain", "0" * 64, b"x")
    world.say(world.session(), write("/tmp/a"), attachments=(attachment,))
    assert world.scopes[-1].tainted
