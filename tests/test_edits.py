"""Replacing text in a text: the result, and that the diff says what happened."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from oxydra.errors import ToolError
from oxydra.tools import edits


def applied(text: str, diff: str) -> str:
    """What a unified diff makes of a text, every line and number in it checked."""
    old = text.split("\n")
    new: list[str] = []
    taken = 0
    hunks = re.split(r"^@@ -(\d+),(\d+) \+(\d+),(\d+) @@\n", diff, flags=re.MULTILINE)[1:]
    for at in range(0, len(hunks), 5):
        first, gone, target, come = (int(number) for number in hunks[at : at + 4])
        body = hunks[at + 4].split("\n")
        if at + 5 < len(hunks):
            body.pop()  # the next hunk starts on a line of its own
        new += old[taken : first - 1]
        assert len(new) == target - 1
        taken = first - 1
        assert gone == sum(line[0] != "+" for line in body)
        assert come == sum(line[0] != "-" for line in body)
        for line in body:
            if line[0] in " -":
                assert old[taken] == line[1:]
                taken += 1
            if line[0] in " +":
                new.append(line[1:])
    return "\n".join(new + old[taken:])


lines = st.lists(st.sampled_from(["a", "b", "ab", "", " a", "c", "d"]), max_size=25).map("\n".join)


@given(lines, st.sampled_from(["a", "b", "\n", "a\n", "\na", "ab", "b\nc"]), lines)
def test_the_diff_is_what_happened(text: str, old: str, new: str) -> None:
    try:
        edit = edits.replace(text, old, new, True, "f")
    except ToolError:
        return
    assert edit.text == text.replace(old, new)
    if "… (the rest" not in edit.diff:
        assert applied(text, edit.diff) == edit.text


def test_a_long_diff_is_cut() -> None:
    edit = edits.replace("a\n" * 1000, "a", "b", True, "f")
    assert edit.count == 1000 and edit.text == "b\n" * 1000
    assert len(edit.diff.split("\n")) == edits.MAX_DIFF_LINES + 1
    assert edit.diff.endswith("… (the rest of the changes is not shown)")
