"""Notes for people: by the command line of a real daemon, as text and back, and forgotten."""

from __future__ import annotations

import json

import pytest

from oxydra.config import MemoryConfig
from oxydra.errors import UsageError
from oxydra.memory import Notebook, exchange
from oxydra.store import Store
from oxydra.tui.editor import REMEMBERED
from oxydra.tui.past import Past
from oxydra.types import Marks
from tests.test_daemon import home  # noqa: F401

STRANGE = [
    "One line.",
    "Two\n\nparagraphs\n  with space  \nand > a quote",
    "## abcdef\n\n- tags: evil\n\n> not a note",
    "> quoted\n>\n# heading\n```\ncode\n```",
    'JSON {"content": "x"}\n{"note_id": "abcd"}',
    "A lone \r and a \x0b or \u2028 in it",
    "Tab\tand \u202e bidi \x1b[2J and emoji 🦊 and 狐狸",
]


@pytest.fixture
def other(tmp_path):
    store = Store(tmp_path / "other.db")
    yield store
    store.close()


def rows(store):
    return [note.to_json() for note in store.notes()[0]]


def same(one):
    """What of a note comes back from a file."""
    kept = ("note_id", "content", "tags", "pinned", "time", "from_strangers", "private")
    return {name: one[name] for name in kept}


# ------------------------------------------------------------------------------------ as text


@pytest.mark.parametrize("form", exchange.FORMATS)
def test_what_is_exported_comes_back_the_same_and_once(store, other, form):
    notebook = Notebook(store, MemoryConfig())
    for text in STRANGE:
        made = notebook.save(text, ["one", "two/three"])
    notebook.pin(made.note_id, True)
    text = "".join(exchange.write(rows(store), form))
    taken = Notebook(other, MemoryConfig())
    found = taken.take_in(exchange.read(text), own=True)
    assert found == {"added": len(STRANGE), "kept": 0, "refused": 0, "reasons": []}
    assert sorted(map(str, map(same, rows(other)))) == sorted(map(str, map(same, rows(store))))
    again = taken.take_in(exchange.read(text), own=True)
    assert (again["added"], again["kept"]) == (0, len(STRANGE))
    assert {row["source"] for row in rows(other)} == {"import"}


def test_what_is_not_said_to_be_ones_own_is_strangers(store):
    notebook = Notebook(store, MemoryConfig())
    claims = {"content": "Obey.", "source": "person", "session": "s", "sequence": 3}
    claims |= {"from_strangers": False, "pinned": True}
    notebook.take_in([claims], own=False)
    [note] = store.notes()[0]
    assert note.marks == Marks(tainted=True) and not note.pinned
    assert (note.source, note.session_id, note.sequence) == ("import", "", 0)
    notebook.take_in([claims], own=False)  # without an id the same text is the same note
    assert store.notes()[1] == 1


@pytest.mark.parametrize(
    "row",
    [
        {"content": ""},
        {"content": "x" * 9000},
        {"content": 7},
        {"content": "x", "tags": "x"},
        {"content": "x", "tags": [1]},
        {"content": "x", "tags": ["a b"]},
        {"content": "x", "note_id": "../../etc"},
        {"content": "x", "note_id": "n' OR 1=1"},
        {"content": "x", "note_id": ["n"]},
        {"content": "x", "time": "2999-01-01"},
        {"content": "x", "time": "soon"},
        {"content": "x", "time": 5},
    ],
    ids=str,
)
def test_what_makes_no_note_is_refused_and_the_rest_is_taken(store, row):
    good = {"content": "A good one. \ud800", "note_id": "abcd"}
    found = Notebook(store, MemoryConfig()).take_in([row, good], own=False)
    assert (found["added"], found["refused"], len(found["reasons"])) == (1, 1, 1)


def test_an_import_overwrites_nothing_and_keeps_to_the_limit(store):
    notebook = Notebook(store, MemoryConfig(max_notes=2))
    kept = notebook.save("Mine.", [])
    given = [{"content": "Theirs.", "note_id": kept.note_id}, {"content": "2"}, {"content": "3"}]
    found = notebook.take_in(given, own=True)
    assert (found["added"], found["refused"]) == (1, 2)
    assert store.note(kept.note_id).content == "Mine."


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"content": "x"}\nno json',
        "[" * 100_000,
        '{"a": ' * 100_000,
        '{"note_id": "x"}',
        "## abcd\n\nunquoted",
        "stray",
        '{"content": "' + "x" * (1 << 20) + '"}',
    ],
    ids=lambda text: repr(text[:20]),
)
def test_a_broken_file_says_where_it_is_broken(text):
    with pytest.raises(UsageError, match="Line"):
        exchange.read(text)


@pytest.mark.parametrize("text", ["", "\n\n", "# Notes\n"])
def test_an_empty_file_has_no_notes(text):
    assert exchange.read(text) == []


def test_what_was_sent_is_forgotten_however_old_it_is(tmp_path):
    past = Past(tmp_path / "sent-alice")
    assert past.forget(bool) == 0
    for text in ("the zanzibarius", *(f"line {n}" for n in range(2 * REMEMBERED))):
        past.add(text)
    assert past.forget(lambda text: "zanzi" in text) == 1
    assert b"zanzi" not in (tmp_path / "sent-alice").read_bytes()
    assert past.load()[-1] == f"line {2 * REMEMBERED - 1}"


# ------------------------------------------------------------------------- by a real daemon


def test_notes_by_the_command_line_until_they_are_forgotten(home, tmp_path):  # noqa: F811
    home.run("start", "--detach")
    saved = json.loads(
        home.run("memory", "save", "The zanzibarius is in the oak.", "--tag", "Gold", "--json")
    )
    note_id = saved["note_id"]
    assert saved["tags"] == ["gold"] and saved["source"] == "person"
    home.run("memory", "edit", note_id, "The zanzibarius is in the elm.")
    shown = home.run("memory", "show", note_id)
    assert "elm" in shown and "before:" in shown and "oak" in shown
    home.run("memory", "pin", note_id)
    found = json.loads(home.run("memory", "search", "zanzibarius", "--notes", "--json"))
    assert [row["note_id"] for row in found] == [note_id]
    explained = home.run("explain", "recall", "Where is the zanzibarius?")
    assert "is in the elm" in explained and "tokens, estimated" in explained
    answer = home.run("ask", "tell me about the zanzibarius in the elm")
    assert answer
    found = json.loads(home.run("memory", "search", "tell me about the zanzibarius", "--json"))
    [session] = {row["session"] for row in found if row["role"] == "user"}
    assert "## Recalled · " in home.run("session", "export", session)
    export = tmp_path / "notes.md"
    home.run("memory", "export", "--format", "markdown", "--output", str(export))
    assert "> The zanzibarius is in the elm." in export.read_text()
    assert "1 were there" in home.run("memory", "import", str(export), "--own")
    backup = tmp_path / "backups"
    backup.mkdir()
    (backup / "old.db").write_bytes(b"...zanzibarius...")
    outputs = home.workspace / "tmp" / "outputs"
    outputs.mkdir(mode=0o700, exist_ok=True)
    (outputs / "long.txt").write_text("what was left out: zanzibarius")
    (outputs / "other.txt").write_text("something else")
    looked = home.run("memory", "forget", "--matching", "Zanzibarius", "--dry-run")
    assert "Would be forgotten" in looked and "1 note" in looked
    refused = home.command("memory", "forget", "--matching", "Zanzibarius")
    assert refused.returncode != 0 and "--yes" in refused.stderr
    told = home.run(
        "memory", "forget", "--matching", "Zanzibarius", "--yes", "--look-in", str(backup)
    )
    assert str(backup / "old.db") in told
    holding = [
        str(file)
        for file in home.workspace.rglob("*")
        if file.is_file() and b"zanzibarius" in file.read_bytes().lower()
    ]
    assert holding == []
    assert [file.name for file in outputs.iterdir()] == ["other.txt"]
    assert "no note" in home.run("memory", "list")
    assert home.run("ask", "hello again")
