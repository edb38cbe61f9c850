"""Markdown in the transcript: what it looks like, and that nothing in it reaches the terminal."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wcwidth import wcswidth

from oxydra.tui.client import Link
from oxydra.tui.markdown import LONGEST, formatted
from oxydra.tui.screen import _SHADES, knows_links
from oxydra.tui.spans import STYLES
from oxydra.tui.state import Entry, State
from oxydra.tui.view import View
from tests.test_tui_view import NASTY, TEXTS, check, draw, state_with, steers

MARKUP = [
    *("# ", "## a\n", "**", "*", "_", "~~", "`", "```\n", "```py\n", "> ", "- ", "1. ", "\n\n"),
    *("| a | b |\n|---|---|\n", "| ", "|\n", "[", "](http://a/b)", "![", "](javascript:x)", "<b>"),
    *("---\n", "    ", "\\", "&#27;", "&#x9b;", "&#x202e;", "&nbsp;", "&#0;", "[1]: http://x\n"),
    *("<https://example.org/\x1b]8;;x\x07>", "http://x.y/\u202e", "- [ ] ", "  \n", "&#769;"),
]
DOCUMENTS = st.lists(st.one_of(st.sampled_from(MARKUP + NASTY), TEXTS), max_size=20).map("".join)

# What hostile output has done to terminals and to who reads them.
ATTACKS = [
    "\x1b[2J\x1b[H",
    "\x1b]0;title\x07",
    "\x1b]52;c;cm0gLXJmIH4=\x07",
    "\x1b]8;;https://evil.example\x1b\\https://bank.example\x1b]8;;\x1b\\",
    '\x1bP$q"p\x1b\\',
    "\x1b[?1049l\x1b[?2004l",
    "\x1b_Ga=T;AAAA\x1b\\",
    "\x1b[6n\x1b[c\x1b[>0q",
    "\x9b31m\x9d0;x\x9c",
    "&#27;[2J &#x1b;]0;x&#7; &#x9b;5n",
    "`\x1b[2J` **\x1b[31m** [\x1b]0;x\x07](https://x.example/\x1b[2J)",
    "```\x1b[2J\n\x1b[31m\n```",
    "| \x1b[2J | \x9b |\n|---|---|\n| \x07 | \x08\x08 |",
    "[safe](https://a.example/%1b%5b2J)",
    "<https://a.example/\x1b>",
    "![\x1b[2J](https://a.example/\x07)",
    "\u202egnp.exe \u2066x\u2069",
    "line\x0bfeed\x0c\x85\u2028\u2029end",
    "\r\x08\x08overwritten",
    "\x0e\x0f\x05",
    "\x1b",
    "\U000e0041\U000e0042",
]


def texts(source: str, columns: int = 40) -> list[str]:
    return ["".join(text for _, text in line).rstrip() for line in formatted(source, columns)]


def styles_of(source: str, wanted: str) -> set[str]:
    """The styles in which `wanted` is shown."""
    return {
        word
        for line in formatted(source, 80)
        for style, text in line
        if wanted in text
        for word in style.split(" ")
    }


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("# Title\ntext", ["Title", "", "text"]),
        ("one\ntwo", ["one", "two"]),
        ("a **b** *c* ~~d~~ `e`", ["a b c d e"]),
        ("- a\n- b\n  - c\n- d", ["• a", "• b", "  • c", "• d"]),
        ("9. a\n10. b", ["9. a", "10. b"]),
        ("1. a\n\n   b\n2. c", ["1. a", "", "   b", "", "2. c"]),
        ("-\n- a", ["•", "• a"]),
        ("> a\n> b\n\nc", ["│ a", "│ b", "", "c"]),
        ("```py\nx = 1\n\n  y\n```\nz", ["  py", "  x = 1", "", "    y", "", "z"]),
        ("---", ["─" * 40]),
        ("<b>x</b>", ["<b>x</b>"]),
        ("[a](https://x.y/z)", ["a (https://x.y/z)"]),
        ("<https://x.y>", ["https://x.y"]),
        ("![a cat](https://x.y/c.png)", ["[image: a cat] (https://x.y/c.png)"]),
        ("|a|b|\n|-|-|\n|1|漢字|", ["a │ b", "──┼─────", "1 │ 漢字"]),
        ("a\\*b &amp; c", ["a*b & c"]),
        ("", [""]),
    ],
)
def test_what_it_looks_like(source: str, expected: list[str]) -> None:
    assert texts(source) == expected


def test_a_table_is_made_to_fit_or_becomes_a_list() -> None:
    table = "|name|what it is for|\n|-|-|\n|x|a long sentence that needs wrapping|"
    assert texts(table, 24) == [
        "name │ what it is for",
        "─────┼──────────────────",
        "x    │ a long sentence",
        "     │ that needs",
        "     │ wrapping",
    ]
    wide = "|" + "a|" * 8 + "\n|" + "-|" * 8 + "\n|" + "b|" * 8
    assert texts(wide, 30) == ["a: b"] * 8


def test_long_code_is_folded_and_keeps_its_spaces() -> None:
    code = "```\n" + "ab  " * 12 + "\n```"
    assert (
        "".join(line[2:].ljust(18) for line in texts(code, 20)).rstrip() == ("ab  " * 12).rstrip()
    )


def test_styles() -> None:
    source = "**bold** *lean* ***both*** `code` [site](https://x.y/?q=1)\n\n# head **more**"
    assert styles_of(source, "bold") == {"bold"}
    assert styles_of(source, "both") == {"bold", "italic"}
    assert styles_of(source, "code") == {"code"}
    assert styles_of(source, "site") == {"link", "link=https://x.y/?q=1"}
    assert styles_of(source, "more") == {"head", "bold"}
    assert "link=https://x.y/a" in styles_of("see https://x.y/a.", "https")


@pytest.mark.parametrize(
    "address", ["javascript:alert(1)", "file:///etc/passwd", "ftp://x.y", "/a"]
)
def test_only_addresses_of_the_web_and_of_mail_can_be_followed(address: str) -> None:
    assert not any("link=" in style for style in styles_of(f"[a]({address})", "a"))


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(DOCUMENTS, st.integers(10, 100))
def test_every_line_fits_and_steers_nothing(source: str, columns: int) -> None:
    for line in formatted(source, columns):
        text = "".join(text for _, text in line)
        assert not steers(text), text
        assert wcswidth(text) <= columns, text
        for style, _ in line:
            for word in style.split(" "):
                assert word in ("", *STYLES) or re.fullmatch(r"link=(https?|mailto):[!-~]+", word)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(DOCUMENTS, st.integers(1, 90), st.integers(1, 20))
def test_the_screen_has_the_right_width(source: str, columns: int, height: int) -> None:
    draw(state_with(("assistant", source)), columns, height)


@pytest.mark.parametrize("attack", ATTACKS, ids=range(len(ATTACKS)))
@pytest.mark.parametrize("kind", ["assistant", "user", "tool", "notice", "error", "reasoning"])
@pytest.mark.parametrize("state", ["", "open"])
def test_no_attack_gets_through(attack: str, kind: Any, state: str) -> None:
    entry = Entry(1, kind, attack, "t", state, tool=attack, files=(attack,), result=attack)
    edit = Entry(2, "tool", attack, "t", "finished", tool="file_edit", result=f"+{attack}")
    for columns in (40, 80):
        shown = State("alice", "n", link=Link(True, detail=attack), entries=(entry, edit))
        check(View().render(shown, columns, 24), columns, 24)
        shown = replace(shown, details=True)
        check(View().render(shown, columns, 24), columns, 24)


def test_raw_while_it_streams_and_formatted_when_it_is_complete() -> None:
    streaming = Entry(1, "assistant", "a **b**", "t", "open")
    view = View()
    state = State("alice", "n", link=Link(True), entries=(streaming,))
    assert any(
        "a **b**" in "".join(t for _, t in line) for line in view.render(state, 80, 24).lines
    )
    complete = State(
        "alice", "n", link=Link(True), entries=(Entry(1, "assistant", "a **b**", "t", ""),)
    )
    shown = ["".join(t for _, t in line) for line in view.render(complete, 80, 24).lines]
    assert any("oxydra ▸ a b " in line for line in shown)


def test_what_is_very_long_is_shown_as_it_is() -> None:
    shown = draw(state_with(("assistant", "**x** " * (LONGEST // 6 + 1))))
    assert any("**x**" in line for line in shown)


@pytest.mark.parametrize(
    "source",
    ["[" * 3000, "> " * 3000, "- " * 3000, "![" * 1500, "`" * 999],
    ids=["brackets", "quotes", "lists", "images", "ticks"],
)
def test_what_is_nested_without_end_is_shown(source: str) -> None:
    assert all(wcswidth("".join(text for _, text in line)) <= 40 for line in formatted(source, 40))


def luminance(shade: int) -> float:
    """Of a colour of xterm's cube of 6 by 6 by 6, as WCAG 2.2 defines relative luminance."""
    levels = [(0, 95, 135, 175, 215, 255)[(shade - 16) // 6**i % 6] / 255 for i in (2, 1, 0)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in levels]
    return sum(weight * v for weight, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("style", sorted(_SHADES))
def test_colors_can_be_read_on_black_and_on_white(style: str) -> None:
    light = luminance(_SHADES[style])
    assert (light + 0.05) / 0.05 >= 3 and 1.05 / (light + 0.05) >= 3


@pytest.mark.parametrize(
    ("environ", "known"),
    [
        ({"TERM": "xterm-256color"}, False),
        ({"TERM": "xterm-256color", "VTE_VERSION": "7600"}, True),
        ({"TERM": "xterm-kitty"}, True),
        ({"TERM": "linux", "TERM_PROGRAM": "x"}, False),
        ({"TERM": "tmux-256color", "TERM_PROGRAM": "tmux", "TERM_PROGRAM_VERSION": "3.3a"}, False),
        ({"TERM": "tmux-256color", "TERM_PROGRAM": "tmux", "TERM_PROGRAM_VERSION": "3.4"}, True),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "Apple_Terminal"}, False),
    ],
)
def test_which_terminals_get_links(environ: dict[str, str], known: bool) -> None:
    assert knows_links(environ) is known
    assert environ is not os.environ
