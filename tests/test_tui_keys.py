"""The TUI's keyboard and its editor: what a terminal sends, and what it does to a text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxydra.tui.cells import clusters
from oxydra.tui.editor import Editor, edit
from oxydra.tui.keys import Key, KeyDecoder

# --------------------------------------------------------------------------------------------- keys


def names(data: str) -> list[str]:
    decoder = KeyDecoder()
    return [key.name for key in decoder.feed(data) + decoder.flush()]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("\x1b[A\x1b[B\x1bOC\x1bOD", ["up", "down", "right", "left"]),
        ("\x1b[H\x1b[F\x1b[1~\x1b[4~\x1b[7~\x1b[8~", ["home", "end"] * 3),
        ("\x1b[5~\x1b[6~\x1b[3~", ["pageup", "pagedown", "delete"]),
        ("\x1b[1;5D\x1b[1;2A\x1b[3;3~", ["ctrl-left", "shift-up", "alt-delete"]),
        ("\x1b\r", ["alt-enter"]),
        ("\x1b[13;3u\x1b[27;3;13~", ["alt-enter", "alt-enter"]),
        ("\x1b[97;5u", ["ctrl-a"]),
        ("\x01\x05\x0b\x15\x17\x03", ["ctrl-a", "ctrl-e", "ctrl-k", "ctrl-u", "ctrl-w", "ctrl-c"]),
        ("\x7f\x08\t\n", ["backspace", "backspace", "tab", "ctrl-j"]),
        ("\x1b", ["escape"]),
        ("\x1b\x1b[A", ["escape", "up"]),
        ("\x1bb", ["alt-b"]),
        ("\x1b[?1;2c\x1b]11;rgb:0/0/0\x07\x1bP>|tmux\x1b\\\x1b[[Aa", ["text"]),
        ("\x1b[200~a\r\nb\rc\x1b[201~", ["paste"]),
        ("hi\r", ["text", "enter"]),
        ("one\rtwo\r", ["text", "newline", "text", "enter"]),
        ("go\r\x03", ["text", "enter", "ctrl-c"]),
        ("\x00\x1c", []),
    ],
)
def test_what_terminals_send_becomes_keys(data: str, expected: list[str]) -> None:
    assert names(data) == expected


def test_pasted_line_ends_are_newlines_and_escapes_in_it_are_text() -> None:
    keys = KeyDecoder().feed("\x1b[200~a\r\nb\x1b[A\rc\x1b[201~")
    assert keys == [Key("paste", "a\nb\x1b[A\nc")]


def test_a_paste_without_an_end_is_taken_when_patience_is_over() -> None:
    decoder = KeyDecoder()
    assert decoder.feed("\x1b[200~lost") == []
    assert decoder.patience is not None and decoder.patience > 1
    assert decoder.flush() == [Key("paste", "lost")]
    assert decoder.patience is None


@given(
    st.lists(
        st.sampled_from(
            [
                "\x1b[A",
                "\x1b[1;5D",
                "\x1b[200~p\r漢\x1b[201~",
                "\x1bOH",
                "\x1b[13;3u",
                "ab",
                "é",
                "\x03",
            ]
        )
    ),
    st.data(),
)
def test_keys_do_not_depend_on_how_the_input_was_cut(parts: list[str], data: Any) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)))))
    decoder = KeyDecoder()
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    def flat(keys: list[Key]) -> list[tuple[str, str]]:
        return [
            (key.name, char)
            for key in keys
            for char in (key.text if key.name == "text" else [key.text])
        ]

    cut = [key for piece in pieces for key in decoder.feed(piece)] + decoder.flush()
    assert flat(cut) == flat(KeyDecoder().feed(text))


@given(st.text(st.sampled_from("\x1b[]OP0;1~u\\\x07a\r\n漢\x9b?<"), max_size=40))
def test_no_input_breaks_the_decoder(text: str) -> None:
    decoder = KeyDecoder()
    for char in text:
        decoder.feed(char)
    decoder.flush()
    assert decoder.patience is None


# ------------------------------------------------------------------------------------------- editor


def press(editor: Editor, *keys: str) -> Editor:
    for name in keys:
        edited = edit(editor, Key(name))
        assert edited is not None, name
        editor = edited
    return editor


def marked(editor: Editor) -> str:
    return f"{editor.before}|{editor.after}"


@pytest.mark.parametrize(
    ("text", "keys", "expected"),
    [
        ("abc", ["left", "backspace"], "a|c"),
        ("abc", ["home", "delete"], "|bc"),
        ("abc", ["ctrl-a", "ctrl-d"], "|bc"),
        ("one two ", ["ctrl-w"], "one |"),
        ("one two", ["ctrl-w", "ctrl-w", "ctrl-w"], "|"),
        ("ab\ncd", ["left", "ctrl-u"], "ab\n|d"),
        ("ab\ncd", ["up", "left", "ctrl-k"], "a|\ncd"),
        ("ab\ncd", ["up", "ctrl-e", "ctrl-k"], "ab|cd"),
        ("ab\ncd", ["up", "home", "right", "right", "right"], "ab\n|cd"),
        ("abc\nd\nefg", ["up", "up"], "a|bc\nd\nefg"),
        ("ab\n", ["up", "down"], "ab\n|"),
        ("ab", ["alt-enter"], "ab\n|"),
        ("ab", ["ctrl-j", "backspace", "backspace"], "a|"),
        ("x👩‍👩‍👧", ["left"], "x|👩‍👩‍👧"),
        ("x👩‍👩‍👧", ["backspace"], "x|"),
        ("e\u0301", ["backspace"], "|"),
        ("e\u0301x", ["home", "delete"], "|x"),
        ("", ["backspace", "delete", "left", "right", "up", "down", "ctrl-k", "ctrl-w"], "|"),
    ],
)
def test_editing(text: str, keys: list[str], expected: str) -> None:
    assert marked(press(Editor().insert(text), *keys)) == expected


def test_up_and_down_walk_through_what_was_sent_and_back_to_the_draft() -> None:
    editor = Editor().insert("one").take().insert("two\nlines").take().take().insert("draft")
    assert marked(press(editor, "up")) == "two\nlines|"
    assert marked(press(editor, "up", "up", "up")) == "one|"
    assert marked(press(editor, "up", "up", "up", "down", "down")) == "draft|"


def test_the_same_message_twice_is_remembered_once() -> None:
    assert Editor().insert("x").take().insert("x").take().history == ("x",)


@given(
    st.text(st.sampled_from("ab \n漢é\u0301👩\u200d👧🇩🇪"), max_size=20),
    st.lists(
        st.sampled_from(
            [
                "left",
                "right",
                "home",
                "end",
                "up",
                "down",
                "backspace",
                "delete",
                "ctrl-k",
                "ctrl-u",
                "ctrl-w",
                "newline",
            ]
        ),
        max_size=20,
    ),
)
def test_the_cursor_always_stands_between_characters(text: str, keys: list[str]) -> None:
    editor = press(Editor().insert(text), *keys)
    assert 0 <= editor.cursor <= len(editor.text)
    line = editor.before.rpartition("\n")[2]
    whole = clusters(line + editor.after.partition("\n")[0])
    starts = {sum(map(len, whole[:i])) for i in range(len(whole) + 1)}
    if not {"backspace", "delete", "ctrl-k", "ctrl-u", "ctrl-w", "newline"} & set(keys):
        assert len(line) in starts
