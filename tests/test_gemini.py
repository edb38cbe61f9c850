"""The Gemini wire: recorded streams in every cut, what goes back, and the request's bytes."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from oxydra.errors import ProviderError
from oxydra.frames import message_from_json, message_json
from oxydra.providers import ProviderSettings
from oxydra.providers.gemini import UNSIGNED, Gemini, function_name, model_url
from oxydra.threads import CancelToken
from oxydra.transport import Credential, DirectTransport
from oxydra.types import (
    Completed,
    Message,
    ModelRequest,
    ModelSpec,
    Native,
    ReasoningOption,
    StreamEvent,
    ToolCall,
    ToolSpec,
)
from tests import wires_gemini as wire
from tests.fake_model import CUT, FakeModel, Reply
from tests.histories import PNG, attached, messages, working
from tests.replay import MODEL, Replay, asking, ending
from tests.wire_rules_gemini import check_gemini

FIXTURES = Path(__file__).parent / "fixtures"
KEY = "AIza-secret-0123456789"
LEVELS = ReasoningOption("effort", ("minimal", "low", "medium", "high"))
BUDGET = ReasoningOption("budget_tokens", minimum=128, maximum=32_768)
TOGGLE = ReasoningOption("toggle")
SEEING = replace(MODEL, images=True, pdfs=True)
NEWER = replace(MODEL, reasoning=True, reasoning_options=(LEVELS,), images=True)


def provider(chunks: Sequence[bytes] = ()) -> Gemini:
    return Gemini(ProviderSettings("fake", "gemini", "http://replay"), Replay(chunks))


def replay(chunks: Sequence[bytes], request: ModelRequest | None = None) -> list[StreamEvent]:
    return list(provider(chunks).stream(request or asking(), CancelToken()))


def body_of(request: ModelRequest) -> Any:
    """The request's body, which keeps the wire's rules, the newer ones too where they hold."""
    body = json.loads(provider()._post(request).body)
    check_gemini(body, signatures=LEVELS in request.model.reasoning_options)
    return body


def recorded(name: str) -> bytes:
    return (FIXTURES / f"gemini_{name}.sse").read_bytes()


def events_of(name: str) -> list[bytes]:
    return [part + b"\r\n\r\n" for part in recorded(name).split(b"\r\n\r\n") if part]


# ------------------------------------------------------------------------------ recorded streams

RECORDED: dict[str, dict[str, Any]] = {
    "text": {"text": "Grüße, 世界 😀\n\ndata: x\n", "finish": "stop", "usage": (21, 9, 16, 0)},
    "tools": {
        "calls": [("file_read", '{"path":"/shared/ü.txt"}'), ("file_list", "{}")],
        "finish": "tool_calls",
        "usage": (50, 31, 0, 5),
    },
    "thinking": {
        "text": "I will look.",
        "reasoning": "**Plan**\n\nFirst, think “ü”.",
        "calls": [("file_list", '{"path":"/shared"}'), ("file_list", '{"path":"/tmp"}')],
        "finish": "tool_calls",
        "usage": (8, 60, 0, 27),
    },
    "image": {"text": "Here it is: A dot.", "finish": "stop", "usage": (6, 1290, 0, 0)},
    "length": {"text": "It was a dark and", "finish": "length", "usage": (9, 100, 0, 0)},
    "safety": {"text": "Well", "finish": "content_filter", "usage": (9, 1, 0, 0)},
    "blocked": {
        "text": "The provider gave no answer: PROHIBITED_CONTENT.",
        "finish": "refusal",
        "usage": (12, 0, 0, 0),
    },
}


@pytest.mark.parametrize("size", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_stream_in_pieces_of(name: str, size: int) -> None:
    data = recorded(name)
    chunks = [data[at : at + size] for at in range(0, len(data), size)] if size else [data]
    end = ending(replay(chunks))
    wanted, message, usage = RECORDED[name], end.message, end.usage
    assert message.content == wanted["text"] if "text" in wanted else not message.content
    assert message.reasoning == wanted.get("reasoning", "")
    assert [(c.name, c.arguments) for c in message.tool_calls] == wanted.get("calls", [])
    assert len({call.id for call in message.tool_calls} - {""}) == len(message.tool_calls)
    assert end.finish_reason == wanted["finish"]
    assert wanted["usage"] == (
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.cached_tokens,
        usage.reasoning_tokens,
    )


@pytest.mark.parametrize("name", RECORDED)
def test_a_stream_cut_after_or_inside_any_event_is_no_answer(name: str) -> None:
    events = events_of(name)
    data = b"".join(events)
    last = len(data) - len(events[-1])
    cuts = {len(b"".join(events[:count])) for count in range(len(events))}
    for at in sorted(cuts | set(range(0, last, 5)) | set(range(last, len(data) - 6, 5))):
        with pytest.raises(ProviderError) as caught:
            replay([data[:at]])
        assert caught.value.retryable
        assert caught.value.model == "fake-1"


def test_errors_inside_the_stream() -> None:
    with pytest.raises(ProviderError, match="The model is overloaded") as caught:
        replay(events_of("error"))
    assert (caught.value.status, caught.value.retryable) == (503, True)
    with pytest.raises(ProviderError, match="MALFORMED_FUNCTION_CALL") as caught:
        replay(events_of("malformed"))
    assert caught.value.retryable


def test_images_come_out() -> None:
    message = ending(replay(events_of("image"))).message
    (image,) = message.attachments
    assert (image.mime_type, image.data, image.name) == ("image/png", PNG, "image-1.png")
    assert image.sha256 == attached().sha256
    drawing = replace(MODEL, images_out=True)
    config = body_of(asking(model=drawing))["generationConfig"]
    assert config["responseModalities"] == ["TEXT", "IMAGE"]


def test_a_large_image_of_a_model_that_draws() -> None:
    blob = {"mimeType": "image/png", "data": base64.b64encode(b"x" * (9 << 20)).decode()}
    data = wire.chunk({"inlineData": blob}) + wire.end()
    chunks = [data[at : at + 65536] for at in range(0, len(data), 65536)]
    end = ending(replay(chunks, asking(model=replace(MODEL, images_out=True))))
    assert end.message.attachments[0].size == 9 << 20
    with pytest.raises(ProviderError, match="more than 8 MB"):
        replay(chunks)


def stream_of(*parts: Any, finish: str = "STOP") -> Completed:
    return ending(replay([*map(wire.chunk, parts), wire.end(finish)]))


@pytest.mark.parametrize(
    ("reason", "mapped"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("RECITATION", "content_filter"),
        ("IMAGE_SAFETY", "content_filter"),
        ("OTHER", "stop"),
        ("SOMETHING_NEW", "stop"),
    ],
)
def test_finish_reasons(reason: str, mapped: str) -> None:
    assert stream_of({"text": "x"}, finish=reason).finish_reason == mapped


def test_an_answer_that_was_withheld_says_why() -> None:
    end = stream_of(finish="RECITATION")
    assert (end.finish_reason, end.message.content) == (
        "content_filter",
        "The provider gave no answer: RECITATION.",
    )
    assert stream_of(finish="STOP").message.content == ""


@pytest.mark.parametrize(
    "data",
    [
        b"data: null\n\n",
        b"data: {\n\n",
        b"data: " + b"[" * 100_000 + b"\n\n",
        b'data: {"candidates": {}}\n\n',
        b'data: {"candidates": [null]}\n\n',
        b'data: {"candidates": [{"content": []}]}\n\n',
        b'data: {"candidates": [{"content": {"parts": "x"}}]}\n\n',
        b'data: {"candidates": [{"content": {"parts": [null, 5, {"text": 5}]}}]}\n\n',
        b'data: {"candidates": [{"content": {"parts": [{"functionCall": 5}]}}]}\n\n',
        b'data: {"candidates": [{"content": {"parts": [{"functionCall": {"args": 5}}]}}]}\n\n',
        b'data: {"candidates": [{"content": {"parts": [{"inlineData": {"data": "x"}}]}}]}\n\n',
        b'data: {"candidates": [{"content": {"parts": [{"inlineData": "\xc3\xbc"}]}}]}\n\n',
        b'data: {"candidates": [{"content": {"parts": [{"thought": true}]}}]}\n\n',
        b'data: {"usageMetadata": {"promptTokenCount": "x"}, "promptFeedback": []}\n\n',
        b'data: {"error": "no"}\n\n',
        b"<html>",
        b"",
    ],
)
def test_nonsense_never_breaks_us(data: bytes) -> None:
    for chunks in ([data], [data, wire.chunk({"text": "x"}), wire.end()]):
        with contextlib.suppress(ProviderError):
            ending(replay(chunks))


# ----------------------------------------------------------------------- what the model gets back


def kept(name: str) -> Message:
    """What a recorded stream became, and went through the store."""
    message = ending(replay(events_of(name))).message
    files = {file.sha256: file.data for file in message.attachments}
    return message_from_json(json.loads(json.dumps(message_json(message))), files.__getitem__)


def with_result(message: Message) -> list[Message]:
    results = [Message("tool", "x", tool_call_id=c.id, name=c.name) for c in message.tool_calls]
    after = results or [Message("user", "and?")]
    return [Message("system", "s"), Message("user", "hi"), message, *after]


def test_signatures_and_ids_go_back_unchanged_and_where_they_were() -> None:
    contents = body_of(asking(*with_result(kept("thinking")), model=NEWER))["contents"]
    assert contents[1]["parts"] == [
        {"text": "I will "},
        {"text": "look.", "thoughtSignature": "dGV4dA=="},
        {
            "functionCall": {"name": "file_list", "args": {"path": "/shared"}, "id": "fc_9a"},
            "thoughtSignature": "Y2FsbA==",
        },
        {"functionCall": {"name": "file_list", "args": {"path": "/tmp"}, "id": "fc_9b"}},
        {"text": "", "thoughtSignature": "ZW5k"},
    ]
    assert [part["functionResponse"]["id"] for part in contents[2]["parts"]] == ["fc_9a", "fc_9b"]


def test_calls_without_ids_are_answered_in_their_order() -> None:
    message = kept("tools")
    assert all(call.id for call in message.tool_calls)
    contents = body_of(asking(*with_result(message)))["contents"]
    assert contents[1]["parts"] == [
        {
            "functionCall": {"name": "file_read", "args": {"path": "/shared/ü.txt"}},
            "thoughtSignature": "CtMBAePx/16+aQ==",
        },
        {"functionCall": {"name": "file_list", "args": {}}},
    ]
    answers = [part["functionResponse"] for part in contents[2]["parts"]]
    assert answers == [
        {"name": "file_read", "response": {"output": "x"}},
        {"name": "file_list", "response": {"output": "x"}},
    ]


def test_a_signed_image_goes_back_and_another_model_sees_it_or_hears_of_it() -> None:
    message = kept("image")
    inline = {"mimeType": "image/png", "data": base64.b64encode(PNG).decode()}
    assert body_of(asking(*with_result(message)))["contents"][1]["parts"] == [
        {"text": "Here it is:"},
        {"inlineData": inline, "thoughtSignature": "aW1hZ2U="},
        {"text": " A dot."},
    ]
    sees = body_of(asking(*with_result(message), model=replace(SEEING, id="other")))
    assert sees["contents"][1]["parts"] == [{"text": "Here it is: A dot."}, {"inlineData": inline}]
    blind = body_of(asking(*with_result(message), model=replace(MODEL, id="blind")))
    said = f"[A file was made here: image-1.png (image/png, {len(PNG)} bytes)]"
    assert blind["contents"][1]["parts"][1] == {"text": said}


@pytest.mark.parametrize("other", ["model", "provider", "wire"])
def test_another_model_or_provider_gets_none_of_it(other: str) -> None:
    message = kept("thinking")
    assert message.native is not None
    request = asking(*with_result(message))
    assert "thoughtSignature" in json.dumps(body_of(request))
    if other == "model":
        request = replace(request, model=replace(MODEL, id="fake-2"))
    else:
        native = replace(message.native, provider="other")
        if other == "wire":
            native = Native("fake", MODEL.id, {"anthropic": [{"text": 12}]})
        message = replace(message, native=native, wire={})
        request = replace(request, messages=with_result(message))
    body = json.dumps(body_of(request))
    assert "thoughtSignature" not in body
    assert "fc_9" not in body


def test_calls_of_other_models_for_one_that_wants_signatures() -> None:
    calls = (ToolCall("c1", "file_list", "{}"), ToolCall("c2", "file_list", "{}"))
    history = with_result(Message("assistant", "Well.", tool_calls=calls))
    parts = body_of(asking(*history, model=NEWER))["contents"][1]["parts"]
    assert [part.get("thoughtSignature") for part in parts] == [None, UNSIGNED, None]
    by_name = replace(MODEL, id="gemini-3.5-flash")
    assert UNSIGNED in json.dumps(body_of(asking(*history, model=by_name)))
    older = replace(MODEL, id="gemini-2.5-pro")
    assert UNSIGNED not in json.dumps(body_of(asking(*history, model=older)))


def test_a_message_that_was_changed_since_goes_as_any_other() -> None:
    message = replace(kept("thinking"), content="I will look. (cut)")
    parts = body_of(asking(*with_result(message), model=NEWER))["contents"][1]["parts"]
    assert parts[0] == {"text": "I will look. (cut)"}
    assert parts[1]["thoughtSignature"] == UNSIGNED


def test_a_signature_that_is_refused_does_not_brick_the_session(fake: FakeModel) -> None:
    here, request = direct(fake), asking(*with_result(kept("thinking")))
    fake.send(wire.error(400, "INVALID_ARGUMENT", "Thought signature is not valid."))
    for _ in range(2):
        fake.send(wire.answer("fine"))
        assert ending(list(here.stream(request, CancelToken()))).message.content == "fine"
    signed = [b"Y2FsbA==" in seen.raw for seen in fake.requests]
    assert signed == [True, False, False]


# ------------------------------------------------------------------------------------ the request


@pytest.mark.parametrize(
    ("base_url", "model", "url"),
    [
        ("https://g.org", "gemini-x", "https://g.org/v1beta/models/gemini-x"),
        ("https://g.org/v1beta/", "models/gemini-x", "https://g.org/v1beta/models/gemini-x"),
        ("https://g.org/v1", "tunedModels/a b", "https://g.org/v1/tunedModels/a%20b"),
        ("https://x.org/gemini", "a?b", "https://x.org/gemini/v1beta/models/a%3Fb"),
    ],
)
def test_addresses(base_url: str, model: str, url: str) -> None:
    assert model_url(base_url, model) == f"{url}:streamGenerateContent?alt=sse"


def test_an_address_with_a_query() -> None:
    assert model_url("https://g.org/?a=1", "m").endswith("m:streamGenerateContent?alt=sse&a=1")


def test_the_body() -> None:
    calls = (ToolCall("c1", "file_list", '{"path":"/ü"}'), ToolCall("c2", "file_list", "{}"))
    body = body_of(
        asking(
            Message("system", "Be brief."),
            Message("user", "list 😀"),
            Message("assistant", "Well.", tool_calls=calls, reasoning="hidden"),
            Message("tool", "a.txt", tool_call_id="c1", name="file_list"),
            Message("tool", "none", tool_call_id="c2", name="file_list", is_error=True),
            Message("user", "and?"),
        )
    )
    assert body == {
        "generationConfig": {"maxOutputTokens": 4096},
        "tools": [
            {
                "functionDeclarations": [
                    {
                        "name": "file_list",
                        "description": "List files.",
                        "parametersJsonSchema": {"type": "object", "properties": {}},
                    }
                ]
            }
        ],
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "contents": [
            {"role": "user", "parts": [{"text": "list 😀"}]},
            {
                "role": "model",
                "parts": [
                    {"text": "Well."},
                    {"functionCall": {"name": "file_list", "args": {"path": "/ü"}}},
                    {"functionCall": {"name": "file_list", "args": {}}},
                ],
            },
            {
                "role": "user",
                "parts": [
                    {"functionResponse": {"name": "file_list", "response": {"output": "a.txt"}}},
                    {"functionResponse": {"name": "file_list", "response": {"error": "none"}}},
                ],
            },
            {"role": "user", "parts": [{"text": "and?"}]},
        ],
    }


def test_files() -> None:
    pdf = attached("application/pdf", b"%PDF-1.7", "a.pdf")
    call = ToolCall("c1", "screenshot", "{}")
    contents = body_of(
        asking(
            Message("user", "look", attachments=(attached(), pdf)),
            Message("assistant", "", tool_calls=(call,)),
            Message("tool", "", tool_call_id="c1", name=call.name, attachments=(attached(),)),
            Message("user", "", attachments=(attached(),)),
            model=SEEING,
        )
    )["contents"]
    image, document, text = contents[0]["parts"]
    assert image["inlineData"]["mimeType"] == "image/png"
    assert document["inlineData"] == {"mimeType": "application/pdf", "data": "JVBERi0xLjc="}
    assert text == {"text": "look"}
    assert contents[2]["parts"][1:] == [image]
    assert contents[3]["parts"] == [image]


@pytest.mark.parametrize(
    ("model", "file", "words"),
    [
        (MODEL, attached(), "takes no images"),
        (MODEL, attached("application/pdf"), "takes no PDFs"),
        (SEEING, attached("image/gif"), "API takes no such files"),
    ],
)
def test_a_file_that_cannot_be_sent(model: ModelSpec, file: Any, words: str) -> None:
    with pytest.raises(ProviderError) as caught:
        replay([], asking(Message("user", "look", attachments=(file,)), model=model))
    assert words in caught.value.message
    assert caught.value.code == "unsupported"


def test_names_that_the_wire_does_not_take_come_back_as_they_are() -> None:
    assert [function_name(name) for name in ("my.tool", "9lives", "-x", "", "_a")] == [
        "my_tool",
        "_9lives",
        "_-x",
        "unnamed",
        "_a",
    ]
    tool = ToolSpec("9.lives", "x", {"type": "object"})
    request = asking(tools=[tool])
    body_of(request)
    message = ending(replay([wire.chunk(wire.call("_9_lives", {})), wire.end()], request)).message
    assert message.tool_calls[0].name == "9.lives"
    body = body_of(asking(*with_result(message), tools=[tool]))
    assert body["contents"][1]["parts"][0]["functionCall"]["name"] == "_9_lives"
    assert body["contents"][2]["parts"][0]["functionResponse"]["name"] == "_9_lives"


@pytest.mark.parametrize(
    ("options", "level", "wanted"),
    [
        ((LEVELS,), "", {"includeThoughts": True}),
        ((LEVELS,), "high", {"includeThoughts": True, "thinkingLevel": "high"}),
        ((LEVELS,), "max", {"includeThoughts": True, "thinkingLevel": "high"}),
        (
            (ReasoningOption("effort", ("low", "high")),),
            "medium",
            {"includeThoughts": True, "thinkingLevel": "low"},
        ),
        ((LEVELS,), "off", {"thinkingLevel": "minimal"}),
        ((BUDGET,), "off", {"thinkingBudget": 128}),
        ((TOGGLE, BUDGET), "off", {"thinkingBudget": 0}),
        ((BUDGET,), "low", {"includeThoughts": True, "thinkingBudget": 3072}),
        ((BUDGET,), "", {"includeThoughts": True}),
        ((TOGGLE,), "high", {}),
        ((), "high", {}),
    ],
)
def test_reasoning(options: tuple[ReasoningOption, ...], level: str, wanted: Any) -> None:
    model = replace(MODEL, reasoning=True, reasoning_options=options)
    config = body_of(asking(model=model, reasoning=level))["generationConfig"]
    assert config.get("thinkingConfig", {}) == wanted


def test_each_message_is_encoded_once_and_the_prefix_stays() -> None:
    encoded: list[Message] = []

    class Counting(Gemini):
        def encode_message(self, message: Message) -> bytes:
            encoded.append(message)
            return super().encode_message(message)

    here = Counting(ProviderSettings("fake", "gemini", "http://x"), Replay([]))
    history = [Message("system", "s")]
    bodies = []
    for added in working(30):
        history += added[:1]
        bodies.append(here._post(asking(*history, model=NEWER)).body)
        check_gemini(json.loads(bodies[-1]), signatures=True)
        history += added[1:]
    for before, after in itertools.pairwise(bodies):
        assert after.startswith(before.removesuffix(b"]}"))
    assert len(encoded) == len(set(map(id, encoded)))


# ------------------------------------------------------------------------- any history can be sent

NATIVES = [
    None,
    Native("fake", "fake-1", {"gemini": [{"text": 2, "signature": "s"}, {"call": 0, "id": True}]}),
    Native("fake", "fake-1", {"gemini": [{"call": 0, "signature": "x"}, {"image": 0}]}),
    Native("fake", "fake-1", {"gemini": [{"thought": {"text": "t", "thought": True}}]}),
    Native("fake", "fake-2", {"gemini": [{"call": 0, "signature": "x"}]}),
    Native("ant", "a", {"anthropic": [{"type": "redacted_thinking", "data": "x"}]}),
]


@settings(deadline=None, max_examples=300)
@given(messages(NATIVES))
def test_any_history_is_a_valid_request(history: list[Message]) -> None:
    body_of(asking(Message("system", "s"), *history, model=SEEING))
    fresh = [replace(message, wire={}) for message in history]  # one id has one spec elsewhere
    body_of(asking(*fresh, Message("user", "go on"), model=NEWER))


# ---------------------------------------------------------------------------------- over a socket


@pytest.fixture
def fake() -> Iterator[FakeModel]:
    with FakeModel() as server:
        yield server


def direct(fake: FakeModel) -> Gemini:
    """A provider with a key; connections are closed by the server when the test ends."""
    transport = DirectTransport({"mine": Credential("x-goog-api-key", KEY, fake.origin)})
    return Gemini(ProviderSettings("fake", "gemini", fake.origin, "mine", "MY_KEY"), transport)


def failing(fake: FakeModel) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        list(direct(fake).stream(asking(), CancelToken()))
    assert KEY not in str(caught.value)
    return caught.value


def test_what_is_sent(fake: FakeModel) -> None:
    fake.send(wire.answer("fine"))
    assert ending(list(direct(fake).stream(asking(), CancelToken()))).message.content == "fine"
    (seen,) = fake.requests
    assert seen.path == "/v1beta/models/fake-1:streamGenerateContent?alt=sse"
    assert seen.headers["x-goog-api-key"] == KEY
    assert "authorization" not in seen.headers
    check_gemini(seen.body)


BAD_KEY = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
WAIT = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.5s"}
DAILY = {"violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}]}


@pytest.mark.parametrize(
    ("status", "kind", "details", "seen_as", "code", "retryable"),
    [
        (400, "INVALID_ARGUMENT", [BAD_KEY], 401, "provider_auth", False),
        (400, "INVALID_ARGUMENT", [], 400, "bad_request", False),
        (401, "UNAUTHENTICATED", [], 401, "provider_auth", False),
        (403, "PERMISSION_DENIED", [], 403, "provider_auth", False),
        (404, "NOT_FOUND", [], 404, "model_not_found", False),
        (413, "INVALID_ARGUMENT", [], 413, "context_overflow", False),
        (429, "RESOURCE_EXHAUSTED", [WAIT], 429, "rate_limited", True),
        (429, "RESOURCE_EXHAUSTED", [DAILY, WAIT], 429, "quota", False),
        (500, "INTERNAL", [], 500, "provider_unavailable", True),
        (503, "UNAVAILABLE", [], 503, "provider_unavailable", True),
    ],
)
def test_errors(
    fake: FakeModel,
    status: int,
    kind: str,
    details: list[Any],
    seen_as: int,
    code: str,
    retryable: bool,
) -> None:
    fake.send(wire.error(status, kind, f"it said {KEY}", details))
    error = failing(fake)
    assert (error.status, error.code, error.retryable) == (seen_as, code, retryable)
    assert error.retry_after == (34.5 if WAIT in details else None)
    assert "it said [key]" in error.message


def test_a_web_page_and_breaks(fake: FakeModel) -> None:
    fake.html(403)
    assert "web page" in failing(fake).message
    fake.send(wire.answer("begin", CUT))
    assert failing(fake).retryable
    fake.send(Reply([wire.chunk({"text": "x"})]))
    assert "broke its answer off" in failing(fake).message
    fake.send(Reply([wire.chunk({"text": "x"}), wire.end(), CUT]))
    assert "broke the connection off" in failing(fake).message
