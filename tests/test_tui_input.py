"""What a person can do in the input: cut and put back, search, complete, name files, choose."""

from __future__ import annotations

import base64
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oxydra.tui.attach import Paths
from oxydra.tui.client import Link
from oxydra.tui.editor import REMEMBERED, Editor
from oxydra.tui.keys import Key
from oxydra.tui.past import MOST, SESSIONS, Past, place
from oxydra.tui.state import (
    Complete,
    Completed,
    Edited,
    OpenEditor,
    Resolve,
    Resolved,
    Send,
    SessionInfo,
    Told,
)
from tests import tui_kit
from tests.test_tui_keys import marked, press
from tests.test_tui_view import draw
from tests.tui_kit import World, sent

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 8
world = tui_kit.world


def keys(world: World, *names: str) -> list[Any]:
    return [effect for name in names for effect in world.feed(Key(name))]


def screen(world: World) -> str:
    return "\n".join(draw(world.state))


# ------------------------------------------------------------------------------------------- editor


@pytest.mark.parametrize(
    ("text", "pressed", "expected"),
    [
        ("one two", ["alt-b"], "one |two"),
        ("one two", ["ctrl-left", "ctrl-left"], "|one two"),
        ("one, two", ["home", "alt-f"], "one|, two"),
        ("one, two", ["home", "ctrl-right", "ctrl-right"], "one, two|"),
        ("one\ntwo", ["alt-b", "alt-b"], "|one\ntwo"),
        ("naïve e\u0301te\u0301", ["alt-b"], "naïve |e\u0301te\u0301"),
        ("", ["alt-b", "alt-f", "alt-d", "alt-backspace", "ctrl-y"], "|"),
        ("one two-three", ["alt-backspace"], "one two-|"),
        ("one two", ["home", "alt-d"], "| two"),
        ("one two", ["ctrl-w", "ctrl-y", "ctrl-y"], "one twotwo|"),
        ("one two three", ["ctrl-w", "ctrl-w", "ctrl-y"], "one two three|"),
        ("one two three", ["ctrl-w", "left", "ctrl-w", "ctrl-y"], "one two| "),
        ("ab\ncd", ["home", "ctrl-k", "up", "end", "ctrl-y"], "abcd|\n"),
        ("ab cd", ["home", "alt-d", "alt-d", "ctrl-y"], "ab cd|"),
    ],
)
def test_words_cuts_and_what_was_cut(text: str, pressed: list[str], expected: str) -> None:
    assert marked(press(Editor().insert(text), *pressed)) == expected


def test_what_was_cut_can_be_put_into_the_next_message() -> None:
    editor = press(Editor().insert("keep cut"), "ctrl-w").take()
    assert press(editor, "ctrl-y").text == "cut"


def test_the_persons_own_editor(world: World) -> None:
    world.feed(Key("text", "draft"))
    assert keys(world, "ctrl-g") == [OpenEditor("draft")]
    world.feed(Edited("written\nthere"))
    assert world.state.editor.text == "written\nthere"


# ------------------------------------------------------------------------------------------- search


@pytest.fixture
def remembering(world: World) -> World:
    history = ("first deploy", "second thing", "deploy the rest")
    world.state = replace(world.state, editor=Editor(history=history).insert("draft"))
    return world


def test_search_finds_older_and_older_and_is_taken(remembering: World) -> None:
    world = remembering
    keys(world, "ctrl-r")
    world.feed(Key("text", "DEP"))
    assert world.state.editor.text == "deploy the rest"
    assert "search what you sent: DEP" in screen(world)
    keys(world, "ctrl-r")
    assert world.state.editor.text == "first deploy"
    keys(world, "ctrl-r")
    assert world.state.editor.text == "first deploy"
    assert keys(world, "enter") == []
    assert world.state.search is None and world.state.editor.text == "first deploy"


@pytest.mark.parametrize("key", ["ctrl-c", "ctrl-g"])
def test_search_can_be_left_with_what_stood_there(remembering: World, key: str) -> None:
    world = remembering
    keys(world, "ctrl-r")
    world.feed(Key("text", "thing"))
    keys(world, key)
    assert world.state.editor.text == "draft" and world.state.search is None


def test_search_says_when_there_is_nothing_and_goes_on_when_less_is_asked(
    remembering: World,
) -> None:
    world = remembering
    keys(world, "ctrl-r")
    world.feed(Key("text", "thingX"))
    assert "nothing sent has: thingX" in screen(world)
    keys(world, "backspace")
    assert world.state.editor.text == "second thing"
    keys(world, "left", "backspace")  # any other key edits what was found
    assert world.state.editor.text == "second thig" and world.state.search is None


# --------------------------------------------------------------------------------------- completion


def typed(world: World, text: str) -> str:
    world.feed(Key("text", text), Key("tab"))
    return world.state.editor.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/he", "/help "),
        ("/s", "/s"),
        ("/sw", "/switch "),
        ("/ses", "/sessions "),
        ("/cost d", "/cost day "),
        ("/new --a", "/new --agent "),
        ("hello", "hello"),
        ("/nothing", "/nothing"),
    ],
)
def test_tab_completes_commands(world: World, text: str, expected: str) -> None:
    assert typed(world, text) == expected


def test_tab_shows_the_choice_where_there_is_one(world: World) -> None:
    typed(world, "/s")
    assert "/sessions" in world.state.hint and "/switch" in world.state.hint


def test_tab_completes_sessions_and_agents(world: World) -> None:
    sessions = tuple(SessionInfo(f"id-{n}", n, "default", "") for n in ("holiday", "home", "x y"))
    world.state = replace(world.state, sessions=sessions, agents=("coder", "default"))
    assert typed(world, "/switch HO") == "/switch ho"
    assert typed(world, "l") == "/switch holiday"
    keys(world, "ctrl-u")
    assert typed(world, "/new --agent c") == "/new --agent coder "


def test_tab_asks_for_agents_that_it_does_not_know(world: World) -> None:
    world.feed(Key("text", "/new --agent c"))
    (send,) = keys(world, "tab")
    world.reply(send, "command_result", name="agents", data={"agents": [{"name": "coder"}]})
    assert world.state.editor.text == "/new --agent coder "
    assert world.state.entries == ()


def test_tab_on_a_path_asks_which_there_are(world: World) -> None:
    world.feed(Key("text", "see @no"))
    assert keys(world, "tab") == [Complete("@no")]
    world.feed(Completed("@other", ("@other.txt",)))
    assert world.state.editor.text == "see @no"
    world.feed(Completed("@no", ("@notes.txt", "@november.txt")))
    assert world.state.editor.text == "see @no" and "@notes.txt" in world.state.hint
    world.feed(Completed("@no", ("@notes.txt",)))
    assert world.state.editor.text == "see @notes.txt"


def test_names_that_would_steer_the_terminal_are_not_offered(world: World) -> None:
    world.state = replace(world.state, sessions=(SessionInfo("i", "ev\x1b[2Jil", "a", ""),))
    assert typed(world, "/switch ev") == "/switch ev"
    screen(world)


# -------------------------------------------------------------------------------------------- paths


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`shared` is the workspace's, `own` the person's; the program runs in `own`."""
    for name in ("shared/docs", "own"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "shared/notes.txt").write_text("n")
    (tmp_path / "shared/docs/a b.md").write_text("x")
    (tmp_path / "own/cat.png").write_bytes(PNG)
    (tmp_path / "own/text.txt").write_text("t")
    (tmp_path / "own/.hidden").write_text("t")
    os.symlink("/etc", tmp_path / "shared/out")
    monkeypatch.chdir(tmp_path / "own")
    return tmp_path


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("@no", ("@notes.txt",)),
        ("@", ("@/shared/", "@cat.png", "@docs/", "@notes.txt", "@out/", "@text.txt")),
        ("@/sha", ("@/shared/",)),
        ("@.h", ("@.hidden",)),
        ("@docs/", ('@"docs/a b.md"',)),
        ('@"docs/a', ('@"docs/a b.md"',)),
        ("@/shared/no", ("@/shared/notes.txt",)),
        ("@out/pass", ()),
        ("@/shared/out/pass", ()),
        ("@../o", ("@../own/",)),
        ("@missing/x", ()),
    ],
)
def test_paths_complete(folders: Path, word: str, expected: tuple[str, ...]) -> None:
    assert Paths(folders / "shared").complete(word).candidates == expected


def test_paths_of_the_workspace_are_sent_as_the_model_sees_them(folders: Path) -> None:
    paths = Paths(folders / "shared")
    text = f'read @notes.txt, @"docs/a b.md" @/vault/x or @{folders}/shared/docs; me@home @nobody'
    found = paths.resolve(text)
    assert found.prompt == (
        "read /shared/notes.txt, /shared/docs/a b.md /vault/x or /shared/docs; me@home @nobody"
    )
    assert not found.attachments and not found.problem


def test_other_files_are_read_and_attached(folders: Path) -> None:
    found = Paths(folders / "shared").resolve("look at @cat.png")
    (row,) = found.attachments
    assert found.prompt == "look at @cat.png" and not found.problem
    assert (row["name"], row["mime_type"], row["size"]) == ("cat.png", "image/png", len(PNG))
    assert base64.b64decode(row["data"]) == PNG


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("@text.txt", "PNG, JPEG, GIF and WebP images and PDFs can"),
        ("@../own", "it is no file"),
        ("@cat.png @cat.png @cat.png @cat.png @cat.png", "4 attachments at most"),
    ],
)
def test_what_can_not_be_attached_is_said(folders: Path, text: str, why: str) -> None:
    assert why in Paths(None).resolve(text).problem


def test_a_link_out_of_the_workspace_is_not_followed_into_it(folders: Path) -> None:
    found = Paths(folders / "shared").resolve("@out/hostname @/shared/out/hostname")
    assert not found.attachments
    assert found.prompt == "@out/hostname /shared/out/hostname"  # the guest resolves it


def test_a_pipe_is_not_waited_for(folders: Path) -> None:
    os.mkfifo(folders / "own/pipe")
    assert "it is no file" in Paths(None).resolve("@pipe").problem


def test_files_go_only_after_they_were_confirmed(world: World) -> None:
    assert world.type("look @cat.png") == [Resolve("look @cat.png")]
    row = {"mime_type": "image/png", "data": "eA==", "name": "cat.png", "size": 1200}
    assert world.feed(Resolved("look @cat.png", "look @cat.png", (row,))) == []
    assert "Attach cat.png (1.2 KB)? Enter sends, Esc does not" in screen(world)
    keys(world, "escape")
    assert world.state.editor.text == "look @cat.png" and world.state.attaching is None
    assert keys(world, "enter") == [Resolve("look @cat.png")]
    world.feed(Resolved("look @cat.png", "look @cat.png", (row,)))
    (send,) = keys(world, "enter")
    assert isinstance(send, Send) and send.payload["attachments"] == [row]
    assert "▤ cat.png (1.2 KB)" in screen(world)
    world.turn("turn_started", send.payload["turn_id"])
    assert world.state.entries[0].attachments == ()
    assert world.remembered == ["look @cat.png"]


def test_attachments_go_again_when_the_connection_broke_before_they_were_taken(
    world: World,
) -> None:
    world.type("@cat.png")
    world.feed(Resolved("@cat.png", "@cat.png", ({"data": "eA=="},)))
    keys(world, "enter")
    world.feed(Link(False, detail="gone"))
    effects = world.feed(Link(True))
    turns = [e for e in effects if isinstance(e, Send) and e.type == "send_turn"]
    assert turns[0].payload["attachments"] == [{"data": "eA=="}]


def test_a_problem_with_a_file_keeps_the_message(world: World) -> None:
    world.type("@x")
    world.feed(Resolved("@x", "@x", (), "x can't be attached: why."))
    assert world.state.editor.text == "@x" and world.texts == ["x can't be attached: why."]
    world.feed(Resolved("older", "older"))
    assert world.state.editor.text == "@x"


def test_a_path_of_the_workspace_is_sent_at_once(world: World) -> None:
    world.type("read @notes.txt")
    (send,) = world.feed(Resolved("read @notes.txt", "read /shared/notes.txt"))
    assert isinstance(send, Send) and send.payload["prompt"] == "read /shared/notes.txt"


# ------------------------------------------------------------------------------------------- picker


@pytest.fixture
def choosing(world: World) -> World:
    (send,) = keys(world, "ctrl-t")
    rows = [
        {"session_id": f"id-{name}", "display_name": name, "agent_name": agent}
        for name, agent in (("main", "default"), ("trip", "default"), ("code", "coder"))
    ]
    world.reply(send, "session_list", sessions=rows)
    return world


def test_a_session_is_chosen_by_typing_and_enter(choosing: World) -> None:
    world = choosing
    assert "trip · default" in screen(world) and "code · coder" in screen(world)
    world.feed(Key("text", "cod"))
    assert "trip" not in screen(world)
    (send,) = keys(world, "enter")
    assert isinstance(send, Send) and send.type == "switch_session"
    assert send.payload["session_id"] == "id-code" and world.state.picker is None


def test_a_session_is_chosen_by_arrows(choosing: World) -> None:
    world = choosing
    keys(world, "down", "down", "down", "up", "pagedown", "up")
    (send,) = keys(world, "enter")
    assert isinstance(send, Send) and send.payload["session_id"] == "id-trip"


def test_the_picker_can_be_left_and_nothing_that_is_typed_in_it_answers_or_is_sent(
    choosing: World,
) -> None:
    world = choosing
    assert world.feed(Key("text", "a"), Key("text", "zzz"), Key("enter")) == []
    assert "No session is called so." in screen(world)
    keys(world, "ctrl-u", "escape")
    assert world.state.picker is None and world.state.editor.text == ""


def test_switch_alone_opens_the_picker(world: World) -> None:
    assert sent(world.type("/switch")) == ["list_sessions"]
    assert world.state.picker is not None


# ------------------------------------------------------------------------------------- the past


def test_what_was_sent_is_there_the_next_time(tmp_path: Path) -> None:
    path = tmp_path / "state" / "sent-alice"
    one, two = Past(path), Past(path)
    assert one.load() == ()
    one.add("first\nwith two lines")
    two.add("второй \ud800")
    one.add(" secret")
    assert Past(path).load() == ("first\nwith two lines", "второй \ud800")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_broken_lines_and_too_many_cost_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sent"
    path.write_bytes(b'\xff\n{"a": 1}\n"good"\n12\n"cut')
    assert Past(path).load() == ("good",)
    past = Past(path)
    with open(path, "ab") as file:
        file.write(b"\n" + b'"%s"\n' % (b"x" * 1000) * (MOST // 1000 + 100))
    assert len(past.load()) == REMEMBERED
    assert path.stat().st_size < MOST and len(past.load()) == REMEMBERED


def test_what_was_seen_of_each_session_is_kept(tmp_path: Path) -> None:
    past = Past(tmp_path / "state" / "sent-alice")
    assert past.seen() == {}
    past.saw({f"s-{i}": "t" for i in range(SESSIONS)})
    past.saw({"s-0": "later", "new": "t1"})
    seen = past.seen()
    assert len(seen) == SESSIONS and seen["s-0"] == "later" and seen["new"] == "t1"
    assert "s-1" not in seen and "s-3" in seen
    file = tmp_path / "state" / "sent-alice.seen"
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text('["nonsense"]')
    assert past.seen() == {}
    file.write_text('{"a": 1, "b": "t')
    assert past.seen() == {}


def test_a_link_in_the_place_of_the_file_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("keep")
    os.symlink(tmp_path / "other", tmp_path / "sent")
    with pytest.raises(OSError, match="symbolic"):
        Past(tmp_path / "sent").add("x")
    assert (tmp_path / "other").read_text() == "keep"


def test_where_it_is_kept(tmp_path: Path) -> None:
    assert place("a/../b", {"XDG_STATE_HOME": "/s"}) == Path("/s/oxydra/sent-a%2F..%2Fb")
    assert place("alice", {}) == Path.home() / ".local/state/oxydra/sent-alice"


def test_what_went_wrong_is_told(world: World) -> None:
    world.feed(Told("warning", "It is full."))
    assert world.shown == [("warning", "It is full.", "")]
