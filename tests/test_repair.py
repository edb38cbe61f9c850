"""Repair: any history becomes one that every wire accepts.

The properties at the end run over every wire in the registry: whatever was recorded, wherever it
was cut, and whatever else a history may hold, each wire's next request follows its rules.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxydra.errors import Cancelled, ProviderError
from oxydra.providers import PROVIDERS, ProviderSettings, create, repair
from oxydra.threads import CancelToken
from oxydra.transport import HttpRequest, HttpStream
from oxydra.types import Completed, Message, ModelSpec, TextDelta, ToolCall
from tests.histories import IDS, NAMES, TEXTS, attached
from tests.replay import Replay, asking
from tests.wire_rules import check_openai, check_responses
from tests.wire_rules_anthropic import check_anthropic
from tests.wire_rules_gemini import check_gemini


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


# -------------------------------------------------------------------------------------- properties

RULES = {
    "openai": check_openai,
    "openai_responses": check_responses,
    "anthropic": check_anthropic,
    "gemini": check_gemini,
}
WIRES = [kind for kind in PROVIDERS if kind != "offline"]
FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("*.sse"))
MODELS = [
    ModelSpec("any", "any-1", 100_000, 8_192, images=True, pdfs=True, reasoning=reasons)
    for reasons in (True, False)
]


def test_every_wire_has_rules() -> None:
    assert RULES.keys() == set(WIRES)


class Listening(Replay):
    """Keeps what was asked; the answer is empty."""

    body = b""

    def open(self, request: HttpRequest, token: CancelToken) -> HttpStream:
        self.body = request.body
        return super().open(request, token)


def wire_of(fixture: Path) -> str:
    kind = fixture.name.partition("_")[0]
    return "openai_responses" if kind == "responses" else kind


def continues(history: Sequence[Message], with_tools: bool = True) -> None:
    """Check the request that each wire makes of `history`, for a model that reasons and another."""
    for kind in WIRES:
        for model in MODELS:
            heard = Listening([])
            provider = create(ProviderSettings(kind, kind, "http://replay"), heard)
            request = asking(*history, model=model, **({} if with_tools else {"tools": []}))
            with contextlib.suppress(ProviderError):
                list(provider.stream(request, CancelToken()))
            assert heard.body, f"{kind} sent nothing"
            RULES[kind](json.loads(heard.body))


def stored(kind: str, data: bytes, history: Sequence[Message], model: ModelSpec) -> list[Message]:
    """What the turn loop keeps of a stream: the message, or the text there was before it broke."""
    provider = create(ProviderSettings(kind, kind, "http://replay"), Replay([data]))
    partial: list[str] = []
    try:
        for event in provider.stream(asking(*history, model=model), CancelToken()):
            if isinstance(event, Completed):
                return [event.message]
            if isinstance(event, TextDelta):
                partial.append(event.text)
    except (ProviderError, Cancelled):
        pass
    return [Message("assistant", f"{''.join(partial)}\n\n[cut off]")] if partial else []


def ends_of_events(data: bytes) -> Iterator[int]:
    at = data.find(b"\n\n")
    while at >= 0:
        yield at + 2
        at = data.find(b"\n\n", at + 2)


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.stem)
def test_a_recorded_stream_cut_after_any_event_goes_on_with_every_wire(fixture: Path) -> None:
    data = fixture.read_bytes()
    begun = [Message("system", "Be brief."), Message("user", "hi")]
    for end in (0, *ends_of_events(data)):
        kept = stored(wire_of(fixture), data[:end], begun, MODELS[0])
        continues([*begun, *kept, Message("user", "go on")])


@st.composite
def recorded_histories(draw: st.DrawFn) -> list[Message]:
    """Some recorded streams, each cut anywhere or not at all, with some results of their calls."""
    history = [Message("system", "Be brief."), Message("user", "hi")]
    for _ in range(draw(st.integers(1, 4))):
        fixture = draw(st.sampled_from(FIXTURES))
        data = fixture.read_bytes()
        cut = draw(st.just(len(data)) | st.integers(0, len(data)))
        kept = stored(wire_of(fixture), data[:cut], history, draw(st.sampled_from(MODELS)))
        history += kept
        calls = [call for message in kept for call in message.tool_calls]
        for call in draw(st.permutations(calls)):
            if draw(st.booleans()):
                history.append(Message("tool", "x", tool_call_id=call.id, name=call.name))
        if draw(st.booleans()):
            history.append(Message("user", draw(st.sampled_from(["", "next"]))))
    return [*history, Message("user", "go on")]


@given(recorded_histories(), st.booleans())
def test_recorded_streams_cut_anywhere_go_on_with_every_wire(
    history: list[Message], with_tools: bool
) -> None:
    continues(history, with_tools)


ODD = st.sampled_from(["\ud800", "\x00", "call_2"]) | st.text(max_size=5)
ARGUMENTS = st.sampled_from(
    [
        *("", "{}", " {} ", "{}{}", '{"a":', "null", "[1]", '"x"', "\ud800", '{"a": 1, "a": 2}'),
        *('{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud800"}'),
        *("[" * 2000, '{"a":' * 2000 + "1" + "}" * 2000),
    ]
) | st.text(max_size=5)
FILES = st.lists(
    st.sampled_from([attached(), attached("application/pdf", b"%PDF-", "")]), max_size=2
)
CALLS = st.lists(st.builds(ToolCall, IDS | ODD, NAMES | ODD, ARGUMENTS), max_size=3)
MESSAGES = st.one_of(
    st.builds(Message, st.just("system"), TEXTS),
    st.builds(Message, st.just("user"), TEXTS | ODD, attachments=FILES.map(tuple)),
    st.builds(
        Message,
        st.just("assistant"),
        TEXTS | ODD,
        tool_calls=CALLS.map(tuple),
        reasoning=TEXTS,
        attachments=FILES.map(tuple),
    ),
    st.builds(
        Message,
        st.just("tool"),
        TEXTS | ODD,
        tool_call_id=IDS | ODD,
        name=NAMES | ODD,
        is_error=st.booleans(),
    ),
)


@given(st.lists(MESSAGES, max_size=8), st.booleans())
def test_any_history_goes_on_with_every_wire(history: list[Message], with_tools: bool) -> None:
    continues([*history, Message("user", "go on")], with_tools)


@given(st.lists(MESSAGES, max_size=8))
def test_repairing_twice_changes_nothing_more(history: list[Message]) -> None:
    once = repair(history)
    twice = repair(once)
    assert len(twice) == len(once)
    assert all(new is old for new, old in zip(twice, once, strict=True))


@given(st.lists(MESSAGES, max_size=8), st.lists(MESSAGES, max_size=3))
def test_a_history_that_grows_keeps_its_beginning(
    history: list[Message], more: list[Message]
) -> None:
    """Up to the last message with calls: what comes later may still answer those."""
    answered = [i for i, message in enumerate(repair(history)) if message.role == "assistant"]
    end = answered[-1] if answered else len(repair(history))
    assert repair([*history, *more])[:end] == repair(history)[:end]
