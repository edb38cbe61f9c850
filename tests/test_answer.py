"""A streamed answer as one text, whatever is repeated on the way."""

from __future__ import annotations

import pytest

from oxydra.gateway.answer import AGAIN, Answer


def written(*steps):
    """What is written for deltas (strings) and kinds of progress (in a list of one)."""
    out = []
    answer = Answer(out.append)
    *steps, content = steps
    for step in steps:
        if isinstance(step, list):
            answer.progress({"progress": {"kind": {"kind": step[0]}}})
        else:
            answer.delta(step)
    answer.finish(content)
    return "".join(out)


CALL = ["provider_call"]


@pytest.mark.parametrize("kind", AGAIN)
@pytest.mark.parametrize("attempt", [(), ("He",), ("He", "llo"), ("Hello", " you")])
def test_what_is_streamed_again_appears_once(kind, attempt):
    assert written(CALL, "Hel", [kind], CALL, *attempt, "Hello you") == "Hello you"


def test_two_cuts_in_one_call():
    steps = (CALL, "Hel", ["retry"], CALL, "He", ["fallback"], CALL, "Hello", " you")
    assert written(*steps, "Hello you") == "Hello you"


def test_a_second_attempt_that_departs_stands_below():
    assert written(CALL, "Hel", ["retry"], CALL, "Good day", "Good day") == "Hel\n\nGood day"


def test_each_call_begins_a_line():
    assert written(CALL, "Let me see.", CALL, "Sunny.", "Sunny.") == "Let me see.\nSunny."
    assert written(CALL, "Let me see.\n", CALL, "Sunny.", "Sunny.") == "Let me see.\nSunny."
    assert written(CALL, CALL, "Sunny.", "Sunny.") == "Sunny."


def test_what_was_never_streamed_comes_at_the_end():
    assert written(CALL, "whole") == "whole"
    assert written(CALL, "wh", "whole") == "whole"
