"""Repair: any history becomes one that every wire accepts."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from oxydra.providers import repair
from oxydra.types import Message, ToolCall


def tool_result(id: str, content: str = "x") -> Message:
    return Message("tool", content, tool_call_id=id, name="t")


def calling(*ids: str, arguments: str = "{}") -> Message:
    return Message("assistant", tool_calls=tuple(ToolCall(id, "t", arguments) for id in ids))


def shape(messages: Sequence[Message]) -> list[str]:
    """`u`, `a`, `a(ids)`, `t(id)` for each message."""
    shown = []
    for message in messages:
        ids = ",".join(call.id for call in message.tool_calls) or message.tool_call_id
        shown.append(message.role[0] + (f"({ids})" if ids else ""))
    return shown


def test_a_sound_history_is_left_as_it_is() -> None:
    history = [
        Message("system", ""),
        Message("user", "u"),
        calling("a", "b"),
        tool_result("a"),
        tool_result("b"),
        Message("assistant", "done"),
    ]
    for _ in range(2):
        repaired = repair(history)
        assert len(repaired) == len(history)
        assert all(new is old for new, old in zip(repaired, history, strict=True))


@pytest.mark.parametrize(
    ("history", "wanted"),
    [
        ([calling("a")], ["a(a)", "t(a)"]),
        ([calling("a", "b"), tool_result("b")], ["a(a,b)", "t(a)", "t(b)"]),
        ([calling("a", "b"), tool_result("b"), tool_result("a")], ["a(a,b)", "t(a)", "t(b)"]),
        ([calling("a"), Message("user", "u"), tool_result("a")], ["a(a)", "t(a)", "u"]),
        ([calling("a"), Message("assistant", "x"), tool_result("a")], ["a(a)", "t(a)", "a"]),
        ([tool_result("a"), Message("user", "u"), tool_result("b")], ["u"]),
        ([calling("a"), tool_result("a"), tool_result("a")], ["a(a)", "t(a)"]),
        (
            [calling("a"), tool_result("a"), calling("a"), tool_result("a")],
            ["a(a)", "t(a)", "a(a_2)", "t(a_2)"],
        ),
        ([calling("a", "a"), tool_result("a")], ["a(a,a_2)", "t(a)", "t(a_2)"]),
        ([Message("assistant", ""), Message("user", ""), Message("user", "u")], ["u"]),
        ([Message("assistant", "", reasoning="only thought")], []),
        ([], []),
    ],
)
def test_repairs(history: list[Message], wanted: list[str]) -> None:
    assert shape(repair(history)) == wanted
    assert shape(repair(repair(history))) == wanted


def test_a_missing_result_says_that_the_outcome_is_unknown() -> None:
    made = repair([calling("a")])[1]
    assert made.is_error
    assert made.name == "t"
    assert "unknown" in made.content


@pytest.mark.parametrize("arguments", ['{"path": "/sh', "", "null", "[1]", '"x"', "[" * 50_000])
def test_arguments_become_an_object_that_keeps_what_was_written(arguments: str) -> None:
    history = [calling("a", arguments=arguments), tool_result("a")]
    repaired = repair(history)
    assert json.loads(repaired[0].tool_calls[0].arguments) == {"invalid_json": arguments}
    assert history[0].tool_calls[0].arguments == arguments


def test_names_and_ids_that_no_wire_takes() -> None:
    call = ToolCall("ü:" + "9" * 60, "päth/to tool" * 9, "{}")
    history = [Message("assistant", tool_calls=(call,)), tool_result(call.id)]
    first, second = repair(history)
    (sound,) = first.tool_calls
    assert len(sound.id) <= 40
    assert len(sound.name) == 64
    assert (sound.name + sound.id).replace("_", "").isascii()
    assert second.tool_call_id == sound.id
    assert second.name == sound.name
    assert repair(history)[0].tool_calls == first.tool_calls


def test_the_beginning_stays_the_same_as_a_history_grows() -> None:
    history: list[Message] = []
    before: list[Message] = []
    for turn in range(10):
        history += [
            Message("user", f"{turn}"),
            calling("same", arguments="cut"),
            tool_result("same"),
        ]
        repaired = repair(history)
        assert repaired[: len(before)] == before
        before = repaired
