"""Cells and the view: whatever arrives, every line has the terminal's width and steers nothing."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wcwidth import wcswidth

from oxydra.tui.cells import clean, clip, clusters, fold, hanging, one_line, width, wrap
from oxydra.tui.client import Link
from oxydra.tui.editor import Editor
from oxydra.tui.state import Active, Anchor, Entry, Health, State
from oxydra.tui.view import MIN_HEIGHT, MIN_WIDTH, Screen, View

NASTY = [
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x9b5n",
    "\r\n",
    "\x00",
    "\t",
    "漢字",
    "👩‍👩‍👧",
    "🇩🇪🇫",
    "e\u0301",
    "\u0301",
    "\u200d",
    "\u200b",
    "\ufe0f",
    "☎\ufe0f",
    "\u0903",
    "\u094d",
    "क\u094dष",
    "ක\u0dca\u200dෂ",
    "\u202e",
    "\u2066",
    "\ufeff",
    "\u00ad",
    "\ud800",
    "\U000e0041",
    "1\ufe0f\u20e3",
    "👍🏽",
    "🏽",
    "\U0010ffff",
    "ﷺ",
    "\u115f\u1160",
    "\u2028",
    "\x85",
    "\x7f",
    " ",
    "\n",
    "word",
    "a-very-long-word-without-any-space-in-it",
]
TEXTS = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(NASTY), max_size=12).map("".join))


def steers(text: str) -> bool:
    """Whether any character of `text` could do more than be seen."""
    return any(
        unicodedata.category(char) in ("Cc", "Cs")
        or char in "\u2028\u2029\u200e\u200f\u061c"
        or "\u202a" <= char <= "\u202e"
        or "\u2066" <= char <= "\u2069"
        for char in text
    )


def rows(screen: Screen) -> list[str]:
    return ["".join(text for _, text in line) for line in screen.lines]


def check(screen: Screen, columns: int, height: int) -> list[str]:
    """The screen's text, after a look at every line."""
    lines = rows(screen)
    assert len(lines) == height
    for line in lines:
        assert wcswidth(line) == columns, (wcswidth(line), line)
        assert not steers(line), line
    if screen.cursor is not None:
        column, row = screen.cursor
        assert 0 <= column < columns and 0 <= row < height
    return lines


def draw(state: State, columns: int = 80, height: int = 24) -> list[str]:
    return check(View().render(state, columns, height), columns, height)


def state_with(*entries: tuple[str, str], **more: Any) -> State:
    kept = tuple(
        Entry(i, kind, text, turn_id="t")  # type: ignore[arg-type]
        for i, (kind, text) in enumerate(entries, 1)
    )
    return State("alice", "n", link=Link(True), session_id="s-main", entries=kept, **more)


# ------------------------------------------------------------------------------------------- cells


def test_what_hangs_goes_on_as_far_in_as_it_began() -> None:
    assert hanging("1. head\n   two words more", 12) == ["1. head", "   two words", "   more"]
    assert hanging("          deep words", 12) == wrap("          deep words", 12)


@given(TEXTS, st.integers(1, 40))
def test_hanging_lines_fit(text: str, columns: int) -> None:
    lines = hanging(clean(text), columns)
    assert all(wcswidth(line) <= columns for line in lines)


@given(TEXTS, st.integers(1, 40))
@example("⺀\x7f\x7f🏻", 17)
@example("000000000000\t\u094d00000000", 8)
def test_wrapped_lines_fit_and_lose_no_word(text: str, columns: int) -> None:
    cleaned = clean(text)
    lines = wrap(cleaned, columns)
    assert all(wcswidth(line) <= columns for line in lines)
    assert not steers("".join(lines))
    if all(width(cluster) <= columns for cluster in clusters(cleaned)):
        assert "".join(lines).replace(" ", "") == cleaned.replace("\n", "").replace(" ", "")


@given(TEXTS, st.integers(2, 40), st.data())
def test_folded_lines_fit_and_grow_only_at_the_end(text: str, columns: int, data: Any) -> None:
    parts = clusters(clean(text))
    cut = data.draw(st.integers(0, len(parts)))
    lines = fold("".join(parts), columns)
    assert all(sum(map(width, clusters(line))) <= columns for line in lines)
    before = fold("".join(parts[:cut]), columns)
    assert before[:-1] == lines[: len(before) - 1]


@given(TEXTS, st.integers(0, 30))
def test_clipped_text_fits(text: str, columns: int) -> None:
    assert wcswidth(clip(one_line(text), columns)) <= columns


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        ("the quick brown fox", 9, ["the quick", "brown fox"]),
        ("  indented text", 10, ["  indented", "text"]),
        ("abcdefgh", 3, ["abc", "def", "gh"]),
        ("", 5, [""]),
        ("a\n\nb", 5, ["a", "", "b"]),
        ("漢字漢字", 5, ["漢字", "漢字"]),
        ("漢字 und mehr", 8, ["漢字 und", "mehr"]),
        ("éa " + "b" * 6, 5, ["éa", "bbbbb", "b"]),
        ("x 漢字", 3, ["x", "漢", "字"]),
        ("漢", 1, ["…"]),
    ],
)
def test_wrapping(text: str, columns: int, expected: list[str]) -> None:
    assert wrap(text, columns) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\tb", "a   b"),
        ("\x1b[2J", "␛[2J"),
        ("\u0301x", "◌\u0301x"),
        ("a\u200db", "ab"),
        ("\u200b\ufeff", ""),
        ("👩\u200d👧", "👩\u200d👧"),
        ("one\r\ntwo", "one\ntwo"),
    ],
)
def test_cleaning(text: str, expected: str) -> None:
    assert clean(text) == expected


# -------------------------------------------------------------------------------------------- view


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["user", "assistant", "tool", "notice", "warning", "error"]),
            TEXTS,
            st.sampled_from(["", "queued", "sending", "open", "started", "failed", "odd"]),
        ),
        max_size=6,
    ),
    TEXTS,
    TEXTS,
    st.integers(1, 100),
    st.integers(1, 30),
)
@example([("assistant", "\u094da", "")], "\u200d", "क\u094d", MIN_WIDTH, MIN_HEIGHT)
@example([("user", "0\u094d\ufe0f", "")], "", "", MIN_WIDTH, MIN_HEIGHT)
def test_every_line_has_the_right_width_and_steers_nothing(
    items: list[tuple[Any, str, str]], typed: str, name: str, columns: int, height: int
) -> None:
    entries = tuple(
        Entry(i, kind, text, "t", state, tool=name, elapsed_ms=12345)
        for i, (kind, text, state) in enumerate(items, 1)
    )
    state = State(
        "alice",
        "n",
        link=Link(bool(len(items) % 2), detail=name),
        session_id="s",
        session_name=name,
        agent=name,
        entries=entries,
        active=Active("t", 0.0, name) if len(typed) % 2 else None,
        now=4000.0,
        health=Health("process", "cage", name, name, True, (name, typed)),
        tokens=1234567,
        cost=1.5,
        hint=name if len(name) % 3 == 0 else "",
    )
    for cursor in (0, len(typed)):
        draw(replace(state, editor=Editor(typed, cursor)), columns, height)
    view = View()
    scrolled = view.scroll(state, columns, height, -1.0)
    check(view.render(replace(state, anchor=scrolled.anchor), columns, height), columns, height)


@given(st.lists(TEXTS, max_size=8), st.integers(20, 60))
def test_text_that_grows_is_wrapped_as_if_it_came_at_once(deltas: list[str], columns: int) -> None:
    view, text = View(), ""
    for delta in deltas:
        text += delta
        grown = view.render(state_with(("assistant", text)), columns, 20)
    if deltas:
        assert grown == View().render(state_with(("assistant", text)), columns, 20)


def test_roles_and_states_can_be_told_without_color() -> None:
    entries = (
        Entry(1, "user", "question", "t"),
        Entry(2, "tool", "/shared", "t", "finished", tool="file_list", elapsed_ms=12),
        Entry(3, "tool", "x", "t", "failed", tool="file_read", elapsed_ms=2500),
        Entry(4, "tool", "y", "t", "started", tool="shell"),
        Entry(5, "assistant", "answer", "t", "open"),
        Entry(6, "error", "went wrong"),
        Entry(7, "user", "next", "u", "queued"),
    )
    text = "\n".join(draw(State("alice", "n", link=Link(True), entries=entries)))
    for piece in (
        "you ▸ question",
        "✓ file_list  /shared  12 ms",
        "✗ file_read  x  2.5 s",
        "◦ shell  y",
        "oxydra ▸ answer",
        "✗ went wrong",
        "queued",
    ):
        assert piece in text, piece


def test_a_message_that_waits_says_for_what() -> None:
    waits = Entry(1, "user", "next", "u", "queued")
    for entry, said in ((waits, "after the running one"), (replace(waits, steers=True), "joins")):
        assert any(said in line for line in draw(replace(state_with(), entries=(entry,))))


def test_the_smallest_terminal_shows_the_last_line_and_the_input() -> None:
    state = state_with(("user", "hi"), ("assistant", "one\ntwo\nlast line"))
    lines = draw(replace(state, editor=Editor("typed", 5)), 20, 5)
    assert "last line" in lines[1]
    assert lines[3].startswith("❯ typed")
    assert lines[4].startswith("● ready")


@pytest.mark.parametrize(("columns", "height"), [(19, 24), (80, 4), (1, 1), (5, 2)])
def test_less_than_that_is_said(columns: int, height: int) -> None:
    lines = draw(state_with(("user", "hi")), columns, height)
    assert "terminal too small".startswith(lines[0].rstrip().rstrip("…"))


def test_the_title_shows_what_is_going_on_and_for_how_long() -> None:
    state = state_with(("user", "hi"), active=Active("t", 10.0, "Asking gpt"), now=85.2)
    assert "── Asking gpt · 1:15 · Ctrl+C cancels ──" in draw(state)[-3]
    assert "cancelling · 1:15" in draw(replace(state, active=Active("t", 10.0, "", True)))[-3]


def test_a_lost_connection_is_in_the_title_and_the_status() -> None:
    lines = draw(State("alice", "n"))
    assert "no connection: connecting" in lines[-3]
    assert lines[-1].startswith("○ offline")


def test_the_status_line_drops_what_matters_least() -> None:
    state = state_with(
        ("user", "hi"),
        session_name="plans",
        agent="default",
        health=Health("process", "cage", "gpt-test", "openai"),
        tokens=1500,
        cost=0.5,
    )
    wide = draw(state, 100)[-1]
    facts = ["ready", "plans", "gpt-test", "process/cage", "1.5k tokens", "$0.5000", "default"]
    assert wide.rstrip() == "● " + " · ".join(facts)
    assert draw(state, 30)[-1].rstrip() == "● ready · plans · gpt-test"


def test_a_problem_has_a_line_or_at_least_a_mark() -> None:
    health = Health(problems=("No model is configured.", "No shell."))
    state = state_with(("user", "hi"), health=health)
    assert "▲ No model is configured. (+1: /status)" in draw(state)[-4]
    assert "▲" in draw(state, 20, 5)[-1]


def test_the_input_grows_and_keeps_the_cursor_in_sight() -> None:
    text = "\n".join(f"line {i}" for i in range(30))
    state = state_with(("user", "hi"), editor=Editor(text, len(text)))
    screen = View().render(state, 40, 30)
    lines = check(screen, 40, 30)
    assert sum("line" in line for line in lines) == 10
    assert screen.cursor == (2 + len("line 29"), 28)
    top = View().render(replace(state, editor=Editor(text, 0)), 40, 30)
    assert top.cursor == (2, 19) and rows(top)[19].startswith("❯ line 0")


def test_the_cursor_counts_cells() -> None:
    state = state_with(("user", "hi"), editor=Editor("漢字e\u0301x", 4))
    assert View().render(state, 40, 12).cursor == (2 + 5, 10)


# --------------------------------------------------------------------------------------- scrolling


def long_state(count: int = 60) -> State:
    return state_with(*(("notice", f"line {i}") for i in range(count)))


def numbers(view: View, state: State) -> list[int]:
    """Which lines are in sight."""
    shown = check(view.render(state, 40, 10), 40, 10)[:-3]
    return [int(line.split()[-1]) for line in shown if "line" in line]


def test_pages_up_and_down_meet_where_they_began() -> None:
    view, state = View(), long_state()
    assert numbers(view, state) == list(range(53, 60))
    places = [state.anchor]
    for _ in range(3):
        state = replace(state, anchor=view.scroll(state, 40, 10, -1.0).anchor)
        places.append(state.anchor)
    assert numbers(view, state) == list(range(35, 42))
    for expected in reversed(places[:-1]):
        state = replace(state, anchor=view.scroll(state, 40, 10, 1.0).anchor)
        assert state.anchor == expected
    assert view.scroll(long_state(), 40, 10, 0).anchor is None


def test_the_top_is_the_end_of_scrolling() -> None:
    view, state = View(), long_state(20)
    for _ in range(6):
        scrolled = view.scroll(state, 40, 10, -1.0)
        state = replace(state, anchor=scrolled.anchor)
    assert scrolled.top
    assert numbers(view, state) == list(range(7))


def test_what_is_read_stays_in_place_while_new_lines_come_and_old_ones_are_added() -> None:
    view, state = View(), long_state()
    state = replace(state, anchor=view.scroll(state, 40, 10, -2.0).anchor)
    before = numbers(view, state)
    new = Entry(1000, "notice", "line 1000")
    old = Entry(1001, "notice", "line 1001")
    assert numbers(view, replace(state, entries=(old, *state.entries, new))) == before


def test_an_anchor_whose_entry_is_gone_shows_the_newest() -> None:
    state = replace(long_state(), anchor=Anchor(4711, 0))
    assert numbers(View(), state) == list(range(53, 60))


def test_only_what_is_in_sight_is_wrapped_and_only_once() -> None:
    view = View()
    state = state_with(*(("assistant", f"text {i} " * 50) for i in range(2000)))
    view.render(state, 80, 24)
    wrapped = dict(view._wrapped)
    assert len(wrapped) < 24
    view.render(replace(state, now=1.0), 80, 24)
    assert all(view._wrapped[i] is kept for i, kept in wrapped.items())
