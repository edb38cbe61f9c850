"""scrub: nothing that steers a terminal or hides text gets through `printable`."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxydra.scrub import printable

# Unicode Standard Annex 9: every character that changes direction without being seen.
BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain text\twith a tab\nand a line",
        "Grüße, 你好, שלום, مرحبا",
        "👩\u200d👩\u200d👧 🏳️\u200d🌈",  # joiners and variation selectors belong to emoji
        "a\u0301 combining",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[2J", "␛[2J"),
        ("\x1b]0;title\x07", "␛]0;title␇"),
        ("\x9b31m", "<U+009B>31m"),  # the one-character CSI
        ("a\x00b", "a␀b"),
        ("\x08\x7f", "␈<U+007F>"),
        ("safe\rrm -rf /", "saferm -rf /"),
        ("line\r\n", "line\n"),
        ("\x85\u2028\u2029", "<U+0085><U+2028><U+2029>"),
        ("\u202etxt.exe", "<U+202E>txt.exe"),
        ("\ud800", "<U+D800>"),
        ("hi\U000e0041\U000e0042", "hi<U+E0041><U+E0042>"),
    ],
)
def test_hostile_text_is_made_visible(hostile: str, shown: str) -> None:
    assert printable(hostile) == shown


@pytest.mark.parametrize("char", BIDI, ids=lambda char: f"U+{ord(char):04X}")
def test_every_bidirectional_control_is_made_visible(char: str) -> None:
    assert printable(f"a{char}b") == f"a<U+{ord(char):04X}>b"


def test_no_control_character_but_tab_and_newline_is_left_of_all_unicode() -> None:
    everything = "".join(map(chr, range(0x110000)))
    left = {c for c in printable(everything) if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")}
    assert left == {"\t", "\n"}


@given(st.text())
def test_the_result_is_stable_and_can_be_encoded(text: str) -> None:
    once = printable(text)
    assert printable(once) == once
    once.encode()
