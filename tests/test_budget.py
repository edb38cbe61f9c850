"""Token estimates: how near they are for each kind of text, and how reports correct them."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxydra.budget import (
    Calibration,
    Calibrations,
    estimate_attachment,
    estimate_message,
    estimate_messages,
    estimate_request,
    estimate_text,
    estimate_tools,
    family,
)
from oxydra.budget.tokens import LEAST_RATIO, MOST_RATIO
from oxydra.types import Attachment, Message, ModelRequest, ModelSpec, Native, ToolCall, ToolSpec

MODEL = ModelSpec("openai", "gpt-5", 100_000, 4_000)

PROSE = "All human beings are born free and equal in dignity and rights. They are endowed with "
GERMAN = "Alle Menschen sind frei und gleich an Würde und Rechten geboren. "
JAPANESE = "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。"
CHINESE = "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。"
CODE = "def add(left: int, right: int) -> int:\n    return left + right\n\n\n"
DIGESTS = "".join(hashlib.sha256(bytes([n])).hexdigest() + "\n" for n in range(40))


# Characters for each token that o200k really has, measured with that tokenizer.
@pytest.mark.parametrize(
    ("text", "per_token", "least", "most"),
    [
        (PROSE * 10, 5.1, 0.9, 1.4),
        (GERMAN * 10, 4.3, 0.9, 1.4),
        (JAPANESE * 10, 1.2, 0.8, 1.3),
        (CHINESE * 10, 1.2, 0.8, 1.3),
        (CODE * 10, 3.9, 0.9, 1.6),
        (DIGESTS, 1.72, 0.9, 1.6),
    ],
    ids=["prose", "german", "japanese", "chinese", "code", "digests"],
)
def test_an_estimate_is_near_the_truth(
    text: str, per_token: float, least: float, most: float
) -> None:
    truth = len(text) / per_token
    assert least <= estimate_text(text, "openai") / truth <= most


@given(st.text(st.characters(), max_size=300), st.text(st.characters(), max_size=300))
def test_any_text_has_an_estimate_that_grows_with_it(one: str, two: str) -> None:
    assert (estimate_text(one) == 0) == (one == "")
    assert estimate_text(one + two) <= estimate_text(one) + estimate_text(two) + 60
    assert estimate_text(one * 3) >= estimate_text(one)


def test_a_family_is_told_by_the_models_id() -> None:
    named = {
        "claude-sonnet-5": "anthropic",
        "anthropic/claude-haiku-4.5": "anthropic",
        "gpt-5": "openai",
        "openai/o3-mini": "openai",
        "gemini-3-pro": "gemini",
        "llama-4-maverick": "other",
        "meta/proto1": "other",
    }
    assert {name: family(replace(MODEL, id=name)) for name in named} == named


def test_everything_that_is_sent_is_counted() -> None:
    plain = Message("user", "hello there")
    base = estimate_message(plain, MODEL)
    image = Attachment("image/png", "00", b"x")
    assert estimate_message(replace(plain, attachments=(image,), wire={}), MODEL) > base + 1000
    said = Message("assistant", "hello there")
    call = ToolCall("c1", "file_read", json.dumps({"path": "/shared/" + "deep/" * 50}))
    assert estimate_message(replace(said, tool_calls=(call,), wire={}), MODEL) > base + 60
    thought = replace(said, reasoning="because " * 100, wire={})
    assert estimate_message(thought, MODEL) == base, "what nobody gets back costs nothing"
    native = Native("openai", "gpt-5", {})
    assert estimate_message(replace(thought, native=native, wire={}), MODEL) > base + 100
    made = replace(said, attachments=(image,), wire={})
    assert estimate_message(made, MODEL) == base, "a file that a model made goes as its name"


def test_a_message_is_counted_once_for_each_family() -> None:
    message = Message("user", "Würde " * 200)
    claude = replace(MODEL, id="claude-sonnet-5")
    first = estimate_message(message, MODEL)
    assert estimate_message(message, claude) > first
    assert sorted(message.wire) == ["tokens anthropic", "tokens openai"]
    message.wire["tokens openai"] = b"7"
    assert estimate_message(message, MODEL) == 7


def test_a_request_is_its_parts() -> None:
    tool = ToolSpec("file_read", "Reads a file. " * 20, {"type": "object", "properties": {}})
    messages = [Message("system", "Be brief."), Message("user", "hello")]
    request = ModelRequest(MODEL, messages, [tool])
    tools = estimate_tools([tool], MODEL)
    assert tools > 60
    whole = estimate_request(request)
    assert whole > tools + estimate_messages(messages, MODEL)
    assert estimate_request(request, tools) == whole


def test_a_pdf_counts_by_its_pages_or_its_size() -> None:
    short = Attachment("application/pdf", "00", b"%PDF-" + b"<< /Type /Page >>" * 3)
    assert estimate_attachment(short, "gemini") == 3 * 560
    dense = Attachment("application/pdf", "00", b"", size=1_000_000)
    assert estimate_attachment(dense, "gemini") == 25 * 560


def test_reports_correct_the_estimate_and_its_error_shrinks() -> None:
    known = Calibrations()
    assert known.of(MODEL).likely(1000) == 1000
    assert known.of(MODEL).worst(1000) == 1300
    for _ in range(30):
        known.observe(MODEL, 1000, 1250)
    found = known.of(MODEL)
    assert found.likely(1000) == pytest.approx(1250, abs=1)
    assert found.error < 0.01
    assert found.reports == 30
    assert known.of(replace(MODEL, id="gpt-4")).reports == 0
    assert list(known.all()) == [("openai", "gpt-5")]


def test_an_unsteady_model_keeps_a_wide_margin() -> None:
    found = Calibration()
    for n in range(40):
        found = found.observed(1000, 800 if n % 2 else 1600)
    assert found.worst(1000) > 1600


@given(st.lists(st.tuples(st.integers(-(10**30), 10**30), st.integers(-(10**30), 10**30))))
def test_hostile_reports_stay_within_bounds(reports: list[tuple[int, int]]) -> None:
    found = Calibration()
    for estimated, reported in reports:
        found = found.observed(estimated, reported)
    assert LEAST_RATIO <= found.ratio <= MOST_RATIO
    assert 0 <= found.error <= 1
    assert found.worst(1000) <= math.ceil(1000 * MOST_RATIO * 3)
