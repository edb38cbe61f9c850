"""The Responses wire: recorded streams in every cut, what goes back and what may get lost."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oxydra.errors import ProviderError
from oxydra.providers import ProviderSettings
from oxydra.providers.responses import BREAK, Responses, responses_url
from oxydra.threads import CancelToken
from oxydra.transport import DirectTransport
from oxydra.types import (
    Attachment,
    Completed,
    Message,
    ModelRequest,
    ModelSpec,
    Native,
    ReasoningOption,
    StreamEvent,
    TextDelta,
    ToolCall,
    ToolSpec,
)
from tests.fake_model import CUT, FakeModel, Reply
from tests.fake_responses import (
    call_item,
    message_item,
    reasoning_item,
    response_steps,
    typed,
)
from tests.replay import MODEL, Replay, asking, ending
from tests.wire_rules import check_responses

FIXTURES = Path(__file__).parent / "fixtures"
THINKER = replace(MODEL, reasoning=True)


def provider_of(chunks: Sequence[bytes] = (), store: bool = False, **headers: str) -> Responses:
    settings = ProviderSettings("mine", "openai_responses", "http://replay", store=store)
    kinds = {name.replace("_", "-"): value for name, value in headers.items()}
    return Responses(settings, Replay(chunks, kinds))


def replay(
    chunks: Sequence[bytes], request: ModelRequest | None = None, **fields: Any
) -> list[StreamEvent]:
    return list(provider_of(chunks, **fields).stream(request or asking(), CancelToken()))


def body_of(request: ModelRequest, store: bool = False) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(provider_of(store=store)._post(request).body)
    check_responses(body)
    return body


# ------------------------------------------------------------------------------ recorded streams


def recorded(name: str) -> bytes:
    return (FIXTURES / f"responses_{name}.sse").read_bytes()


def events_of(name: str) -> list[bytes]:
    return [part + b"\n\n" for part in recorded(name).split(b"\n\n") if part]


RECORDED: dict[str, dict[str, Any]] = {
    "text": {
        "text": "Grüße, 世界 😀\n\ndata: [DONE]\n",
        "usage": (21, 9, 16, 0),
    },
    "tools": {
        "calls": [
            ("call_a1", "file_read", '{"path":"/shared/ü.txt"}'),
            ("call_b2", "file_list", "{}"),
        ],
        "reasoning": "**Looking** around.",
        "finish": "tool_calls",
        "usage": (50, 31, 0, 12),
        "kept": ["reasoning", "function_call", "function_call"],
    },
    "reasoning": {
        "text": "42",
        "reasoning": "First, think.\n\nThen answer.",
        "usage": (8, 30, 0, 27),
        "kept": ["reasoning", "message"],
    },
    "commentary": {
        "text": "Let me look.\n\nIt is empty.",
        "usage": (12, 20, 4, 3),
        "kept": ["message", "reasoning", "message"],
    },
    "refusal": {
        "text": "I can't help with that.",
        "finish": "refusal",
        "usage": (5, 6, 0, 0),
    },
    "length": {
        "calls": [("call_a1", "file_write", '{"path":"/shared/a","content":"begi')],
        "reasoning": "Long.",
        "finish": "length",
        "usage": (9, 100, 0, 10),
        "kept": ["reasoning", "function_call"],
    },
}


@pytest.mark.parametrize("size", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_stream_in_pieces_of(name: str, size: int) -> None:
    data = recorded(name)
    chunks = [data[at : at + size] for at in range(0, len(data), size)] if size else [data]
    end = ending(replay(chunks))
    wanted = RECORDED[name]
    message, usage = end.message, end.usage
    assert message.content == wanted.get("text", "")
    assert message.reasoning == wanted.get("reasoning", "")
    assert [(c.id, c.name, c.arguments) for c in message.tool_calls] == wanted.get("calls", [])
    assert end.finish_reason == wanted.get("finish", "stop")
    assert wanted["usage"] == (
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.cached_tokens,
        usage.reasoning_tokens,
    )
    kept = message.native.data["items"] if message.native else []
    assert [item["type"] for item in kept] == wanted.get("kept", [])


@pytest.mark.parametrize("name", RECORDED)
def test_a_stream_cut_after_any_event_is_no_answer(name: str) -> None:
    events = events_of(name)
    for count in range(len(events)):
        with pytest.raises(ProviderError, match="broke its answer off") as caught:
            replay(events[:count])
        assert caught.value.retryable
        assert caught.value.model == "fake-1"


@pytest.mark.parametrize("name", RECORDED)
def test_a_stream_cut_inside_any_event_is_no_answer(name: str) -> None:
    data = recorded(name)
    for at in range(0, data.rindex(b"\n\n", 0, -2), 7):
        with pytest.raises(ProviderError):
            replay([data[:at]])


def test_failures_inside_the_stream() -> None:
    with pytest.raises(ProviderError, match="failed to generate") as caught:
        replay(events_of("failed"))
    assert (caught.value.status, caught.value.retryable) == (500, True)
    with pytest.raises(ProviderError, match="Rate limit reached") as caught:
        replay(events_of("error"))
    assert (caught.value.code, caught.value.retryable) == ("rate_limited", True)


@pytest.mark.parametrize(
    ("error", "status", "retryable"),
    [
        ({"code": "invalid_prompt", "message": "flagged"}, 400, False),
        ({"code": "image_too_large", "message": "no"}, 400, False),
        ({"code": "cyber_policy", "message": "no"}, 400, False),
        ({"code": "rate_limit_exceeded", "message": "no"}, 429, True),
        ({"code": "new_kind", "message": "no"}, 0, True),
        (None, 0, True),
        ("words", 0, True),
    ],
)
def test_a_failed_response(error: Any, status: int, retryable: bool) -> None:
    with pytest.raises(ProviderError) as caught:
        replay([typed("response.failed", response={"id": "r", "error": error})])
    assert (caught.value.status, caught.value.retryable) == (status, retryable)


def test_an_error_event_may_carry_its_error_and_status() -> None:
    event = typed("error", status=403, error={"message": "not you"})
    with pytest.raises(ProviderError, match="not you") as caught:
        replay([event])
    assert caught.value.status == 403


def test_a_filtered_answer() -> None:
    steps = response_steps("He", end="")
    details = {"incomplete_details": {"reason": "content_filter"}, "usage": None}
    end = ending(replay([*steps, typed("response.incomplete", response=details)]))
    assert (end.finish_reason, end.message.content) == ("content_filter", "He")


# ---------------------------------------------------------------------------- servers that differ


def test_items_that_come_whole_are_streamed_then() -> None:
    found = replay(
        response_steps(
            reasoning_item(text="hm"), message_item("one"), message_item("two"), ("t", "{}")
        )
    )
    assert found[1:4] == [TextDelta("one"), TextDelta(BREAK), TextDelta("two")]
    end = ending(found)
    assert end.message.reasoning == "hm"
    assert [call.name for call in end.message.tool_calls] == ["t"]


def test_a_whole_answer_though_a_stream_was_asked_for() -> None:
    response = {
        "id": "resp_1",
        "object": "response",
        "status": "completed",
        "output": [message_item("whole"), call_item("one", "{}", call_id="x")],
        "usage": {"input_tokens": 3, "output_tokens": 4},
    }
    end = ending(replay([json.dumps(response).encode()], content_type="application/json"))
    assert end.message.content == "whole"
    assert end.message.tool_calls == (ToolCall("x", "one", "{}"),)
    assert end.usage.total_tokens == 7


def test_output_that_is_only_in_the_last_event() -> None:
    end = typed("response.completed", response={"output": [message_item("late")]})
    assert ending(replay([end])).message.content == "late"


def test_events_without_an_index() -> None:
    chunks = [
        typed("response.output_text.delta", item_id="msg_0", delta="hi"),
        typed("response.output_item.done", item=message_item("hi")),
        typed("response.output_item.added", item=call_item("one", "")),
        typed("response.function_call_arguments.delta", item_id="fc_0", delta='{"a"'),
        typed("response.function_call_arguments.delta", item_id="fc_0", delta=":1}"),
        typed("response.completed", response={}),
        b"data: [DONE]\n\n",
    ]
    end = ending(replay(chunks))
    assert (end.message.content, end.message.tool_calls[0].arguments) == ("hi", '{"a":1}')


def test_the_text_of_open_reasoning() -> None:
    chunks = [
        typed("response.reasoning_text.delta", output_index=0, content_index=0, delta="a"),
        typed("response.reasoning_text.delta", output_index=0, content_index=0, delta="b"),
        *response_steps("x"),
    ]
    assert ending(replay(chunks)).message.reasoning == "ab"


def test_an_id_of_an_earlier_call_is_replaced_and_the_items_are_dropped() -> None:
    history = [
        Message("user", "hi"),
        Message("assistant", tool_calls=(ToolCall("call_1", "file_list", "{}"),)),
        Message("tool", "x", tool_call_id="call_1", name="file_list"),
    ]
    end = ending(replay(response_steps(reasoning_item(), ("file_list", "{}")), asking(*history)))
    assert end.message.tool_calls[0].id != "call_1"
    assert end.message.native is None


def test_a_tool_under_a_name_that_the_wire_does_not_take() -> None:
    tool = ToolSpec("files.list", "List.", {"type": "object", "properties": {}})
    request = asking(Message("user", "hi"), tools=[tool])
    assert body_of(request)["tools"][0]["name"] == "files_list"
    end = ending(replay(response_steps(reasoning_item(), ("files_list", "{}")), request))
    assert end.message.tool_calls[0].name == "files.list"
    assert end.message.native is not None


@pytest.mark.parametrize(
    "data",
    [
        b"data: null\n\n",
        b"data: {\n\n",
        b"data: " + b"[" * 100_000 + b"\n\n",
        b'data: {"type": 5}\n\n',
        b'data: {"type": "response.completed", "response": 7}\n\n',
        b'data: {"type": "response.completed", "response": {"output": [1, {"content": [2]}]}}\n\n',
        b'data: {"type": "response.completed", "response": {"usage": {"input_tokens": "a"}}}\n\n',
        b'data: {"type": "response.output_item.done", "item": {"type": "function_call"}}\n\n',
        b'data: {"type": "response.output_item.done", "item": {"type": "reasoning"}}\n\n',
        b'data: {"type": "response.output_item.added", "output_index": 0, "item": null}\n\n',
        b'data: {"type": "response.output_text.delta", "delta": {}}\n\n',
        b'data: {"type": "response.function_call_arguments.done", "arguments": 5}\n\n',
        b'data: {"type": "response.output_text.delta", "output_index": [], "delta": "x"}\n\n',
        b'data: {"type": "response.output_item.done", "output_index": {}, "item": {}}\n\n',
        b'data: {"type": "error", "error": 7}\n\n',
        b'data: {"type": "response.failed", "response": []}\n\n',
        b"",
        b"<html>",
        b"data: [DONE]\n\n",
    ],
)
def test_nonsense_never_breaks_us(data: bytes) -> None:
    for chunks in ([data], [data, *response_steps("x")]):
        with contextlib.suppress(ProviderError):
            ending(replay(chunks))


# ------------------------------------------------------------------------------------ the request


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com/v1/responses"),
        ("http://localhost:1234", "http://localhost:1234/v1/responses"),
        ("http://localhost:1234/v1/ ", "http://localhost:1234/v1/responses"),
        ("https://x.org/v1/responses", "https://x.org/v1/responses"),
        ("https://x.org/openai/v1?api=2", "https://x.org/openai/v1/responses?api=2"),
    ],
)
def test_addresses(base_url: str, url: str) -> None:
    assert responses_url(base_url) == url


def test_the_body() -> None:
    call = ToolCall("c1", "file_list", '{"path":"/ü"}')
    body = body_of(
        asking(
            Message("system", "Be brief."),
            Message("user", "list 😀"),
            Message("assistant", "Let me see.", tool_calls=(call,), reasoning="hidden"),
            Message("tool", "a.txt", tool_call_id="c1", name="file_list"),
            session_id="s" * 100,
        )
    )
    assert body == {
        "model": "fake-1",
        "stream": True,
        "store": False,
        "max_output_tokens": 4096,
        "prompt_cache_key": "s" * 64,
        "instructions": "Be brief.",
        "tools": [
            {
                "type": "function",
                "name": "file_list",
                "description": "List files.",
                "parameters": {"type": "object", "properties": {}},
                "strict": False,
            }
        ],
        "input": [
            {"type": "message", "role": "user", "content": "list 😀"},
            {"type": "message", "role": "assistant", "content": "Let me see."},
            {
                "type": "function_call",
                "call_id": "c1",
                "name": "file_list",
                "arguments": '{"path":"/ü"}',
            },
            {"type": "function_call_output", "call_id": "c1", "output": "a.txt"},
        ],
    }


def test_a_history_without_a_system_message_or_of_nothing_else() -> None:
    assert "instructions" not in body_of(asking(Message("user", "hi")))
    assert len(body_of(asking(Message("system", "s")))["input"]) == 1


@pytest.mark.parametrize(
    ("values", "asked", "sent"),
    [
        (("low", "medium", "high"), "", None),
        (("low", "medium", "high"), "high", "high"),
        (("low", "medium", "high"), "max", "high"),
        (("low", "medium", "high"), "off", "low"),
        (("none", "low"), "off", "none"),
        (("minimal", "low"), "off", "minimal"),
        ((), "medium", "medium"),
        ((), "off", "none"),
    ],
)
def test_the_reasoning_effort(values: tuple[str, ...], asked: str, sent: str | None) -> None:
    options = (ReasoningOption("effort", values),) if values else ()
    model = replace(THINKER, reasoning_options=options)
    body = body_of(asking(model=model, reasoning=asked))
    assert body["include"] == ["reasoning.encrypted_content"]
    assert body.get("reasoning", {}).get("effort") == sent
    assert ("summary" in body.get("reasoning", {})) == (sent not in (None, "none"))


def test_a_model_that_does_not_reason_is_not_asked_to() -> None:
    assert not {"include", "reasoning"} & body_of(asking(reasoning="high")).keys()
    with pytest.raises(ProviderError, match="no reasoning level 'hard'"):
        body_of(asking(model=THINKER, reasoning="hard"))


def file(kind: str, data: bytes = b"x", name: str = "") -> Attachment:
    return Attachment(kind, hashlib.sha256(data).hexdigest(), data, name)


def test_files() -> None:
    model = replace(MODEL, images=True, pdfs=True)
    body = body_of(
        asking(
            Message("user", "look", attachments=(file("image/png"),)),
            Message("assistant", "made", attachments=(file("image/png", name="out.png"),)),
            Message("user", attachments=(file("application/pdf", name="a.pdf"),)),
            Message("user", "and", attachments=(file("application/pdf"),)),
            model=model,
        )
    )
    first, made, second, third = (item["content"] for item in body["input"])
    image = {"type": "input_image", "image_url": "data:image/png;base64,eA==", "detail": "auto"}
    pdf = {"type": "input_file", "file_data": "data:application/pdf;base64,eA=="}
    assert first == [{"type": "input_text", "text": "look"}, image]
    assert "out.png" in made
    assert second == [{**pdf, "filename": "a.pdf"}]
    assert third[1]["filename"] == "file.pdf"
    with pytest.raises(ProviderError, match="takes no images"):
        body_of(asking(Message("user", "look", attachments=(file("image/png"),))))


def test_a_tools_result_with_a_picture() -> None:
    call = ToolCall("c1", "look", "{}")
    result = Message("tool", "", tool_call_id="c1", attachments=(file("image/png"),))
    request = asking(
        Message("user", "u"), Message("assistant", tool_calls=(call,)), result,
        model=replace(MODEL, images=True),
    )  # fmt: skip
    assert body_of(request)["input"][2]["output"][0]["type"] == "input_image"


def test_a_lone_surrogate_can_be_sent() -> None:
    assert body_of(asking(Message("user", "a\ud800b")))["input"][0]["content"] == "a?b"


# ------------------------------------------------------------------------- reasoning that goes back


def answered(*parts: Any, request: ModelRequest | None = None, store: bool = False) -> Message:
    return ending(replay(response_steps(*parts), request, store=store)).message


@pytest.mark.parametrize("name", ["tools", "reasoning", "commentary"])
def test_items_go_back_unchanged_to_the_same_provider_and_model(name: str) -> None:
    message = ending(replay([recorded(name)])).message
    last = json.loads(events_of(name)[-1].partition(b"data: ")[2])
    results = [Message("tool", "ok", tool_call_id=c.id, name=c.name) for c in message.tool_calls]
    request = asking(Message("user", "hi"), message, *results, Message("user", "on"))
    count = len(last["response"]["output"])
    assert body_of(request)["input"][1 : count + 1] == last["response"]["output"]
    assert message.native
    for field in ("provider", "model"):
        native = replace(message.native, **{field: "other"})
        stranger = replace(message, native=native, wire={})
        body = body_of(replace(request, messages=[Message("user", "hi"), stranger, *results]))
        assert not any(item["type"] == "reasoning" or "id" in item for item in body["input"])


def test_both_forms_of_a_message_are_kept_side_by_side() -> None:
    message = answered(reasoning_item(), "yes")
    request = asking(Message("user", "hi"), message, Message("user", "on"))
    other = replace(request, model=replace(MODEL, id="fake-2"))
    for _ in range(2):
        assert [i["type"] for i in body_of(request)["input"]].count("reasoning") == 1
        assert [i["type"] for i in body_of(other)["input"]].count("reasoning") == 0


def test_reasoning_that_led_to_nothing_or_was_not_sealed_is_not_kept() -> None:
    assert answered("yes", reasoning_item()).native is None
    assert answered(reasoning_item(None), "yes").native is None
    assert answered("yes").native is None


def test_items_that_a_repair_has_overtaken_are_spelt_out() -> None:
    message = ending(replay([recorded("length")])).message
    items = body_of(asking(Message("user", "hi"), message))["input"]
    assert [item["type"] for item in items[1:]] == ["function_call", "function_call_output"]
    assert "invalid_json" in json.loads(items[1]["arguments"])
    edited = replace(answered(reasoning_item(), "yes"), content="no", wire={})
    assert len(body_of(asking(Message("user", "hi"), edited))["input"]) == 2


def test_each_message_is_encoded_once_and_the_prefix_stays() -> None:
    encoded: list[Message] = []

    class Counting(Responses):
        def encode_message(self, message: Message) -> bytes:
            encoded.append(message)
            return super().encode_message(message)

    provider = Counting(ProviderSettings("mine", "openai_responses", "http://x"), Replay([]))
    messages = [Message("system", "s"), Message("user", "u")]
    before = provider._post(asking(*messages)).body
    for turn in range(30):
        item = call_item("file_list", "{}", call_id=f"c{turn}")
        messages.append(answered(reasoning_item(), item, request=asking(*messages)))
        messages.append(Message("tool", "x" * 1000, tool_call_id=f"c{turn}", name="file_list"))
        body = provider._post(asking(*messages)).body
        assert body.startswith(before.removesuffix(b"]}"))
        before = body
    assert len(encoded) == 31
    assert before.count(b'"encrypted_content"') == 30


# ------------------------------------------------------------------------- state on the server


@pytest.fixture
def fake() -> Iterator[FakeModel]:
    with FakeModel() as server:
        yield server


class Session:
    """A conversation with a server that may keep its answers."""

    def __init__(self, fake: FakeModel, store: bool = True) -> None:
        self.fake = fake
        settings = ProviderSettings("mine", "openai_responses", fake.url, store=store)
        self.transport = DirectTransport()
        self.provider = Responses(settings, self.transport)
        self.messages = [Message("system", "Be brief.")]

    def ask(self, *parts: Any, said: Message | None = None, **fields: Any) -> Completed:
        """One exchange, in which the server answers `parts` (nothing: what was queued before)."""
        self.messages.append(said or Message("user", "hi"))
        if parts:
            self.fake.send(Reply(response_steps(*parts, **fields)))
        end = ending(list(self.provider.stream(asking(*self.messages), CancelToken())))
        self.messages.append(end.message)
        return end

    def bodies(self) -> list[dict[str, Any]]:
        found = [request.body for request in self.fake.requests]
        for body in found:
            check_responses(body)
        return found


@pytest.fixture
def session(fake: FakeModel) -> Iterator[Session]:
    found = Session(fake)
    yield found
    found.transport.close()


def test_a_stored_answer_is_gone_on_from(session: Session) -> None:
    session.ask("one", id="resp_1")
    session.ask(("file_list", "{}"), id="resp_2")
    result = Message("tool", "a.txt", tool_call_id="call_0", name="file_list")
    session.ask("two", said=result, id="resp_3")
    first, second, third = session.bodies()
    assert first["store"] is True
    assert "previous_response_id" not in first
    assert second["previous_response_id"] == "resp_1"
    assert [item["content"] for item in second["input"]] == ["hi"]
    assert third["previous_response_id"] == "resp_2"
    assert third["input"] == [
        {"type": "function_call_output", "call_id": "call_0", "output": "a.txt"}
    ]
    assert third["instructions"] == "Be brief."
    assert session.fake.requests[0].path == "/v1/responses"


def test_what_came_between_is_sent(session: Session) -> None:
    session.ask("one")
    session.messages += [Message("user", "more"), Message("assistant", "So f\n\n[cancelled]")]
    session.ask("two")
    roles = [item["role"] for item in session.bodies()[1]["input"]]
    assert roles == ["user", "assistant", "user"]


@pytest.mark.parametrize("change", ["text", "gone", "model", "provider"])
def test_another_history_is_sent_whole(session: Session, change: str) -> None:
    session.ask("one")
    session.ask("two")
    match change:
        case "text":
            session.messages[1] = Message("user", "edited")
        case "gone":
            del session.messages[1:3]
        case "model" | "provider":
            for at, message in enumerate(session.messages):
                if message.native:
                    native = replace(message.native, **{change: "other"})
                    session.messages[at] = replace(message, native=native, wire={})
    session.ask("three")
    last = session.bodies()[2]
    assert "previous_response_id" not in last
    assert len(last["input"]) == len(session.messages) - 2


def test_nothing_is_stored_by_default(fake: FakeModel) -> None:
    session = Session(fake, store=False)
    session.ask("one")
    session.ask("two")
    assert [body["store"] for body in session.bodies()] == [False, False]
    assert "previous_response_id" not in session.bodies()[1]
    session.transport.close()


@pytest.mark.parametrize("status", [400, 404])
def test_a_stored_answer_that_is_gone(session: Session, status: int) -> None:
    session.ask(reasoning_item(), "one")
    session.fake.error(status, "Previous response not found.", code="previous_response_not_found")
    end = session.ask("two", id="resp_2")
    assert end.message.content == "two"
    *_, chained, full = session.bodies()
    assert chained["previous_response_id"] == "resp_1"
    assert "previous_response_id" not in full
    assert [item["type"] for item in full["input"]] == [
        "message",
        "reasoning",
        "message",
        "message",
    ]
    session.ask("three")
    assert session.bodies()[-1]["previous_response_id"] == "resp_2"


def test_a_stored_answer_that_is_gone_inside_the_stream(session: Session) -> None:
    session.ask("one")
    error = {"code": "previous_response_not_found", "message": "no"}
    session.fake.send(Reply([typed("error", status=400, error=error)]))
    assert session.ask("two").message.content == "two"


@pytest.mark.parametrize("store", [False, True])
def test_reasoning_that_another_key_had_sealed(fake: FakeModel, store: bool) -> None:
    session = Session(fake, store)
    session.ask(reasoning_item(), "one")
    for _ in range(1 + store):
        fake.error(400, "could not be verified", code="invalid_encrypted_content")
    assert session.ask(reasoning_item("new"), "two", id="resp_2").message.content == "two"
    plain = session.bodies()[-1]
    assert not any(item["type"] == "reasoning" for item in plain["input"])
    count = len(fake.requests)
    session.ask("three")
    assert len(fake.requests) == count + 1  # it is remembered, and the new reasoning goes back
    if not store:
        sealed = [item.get("encrypted_content") for item in session.bodies()[-1]["input"]]
        assert list(filter(None, sealed)) == ["new"]
    session.transport.close()


def test_what_state_is_not_to_blame_for_is_raised_as_it_is(session: Session) -> None:
    session.ask("one")
    for _ in range(2):  # without and with what is stored
        session.fake.error(400, "no such thing")
    with pytest.raises(ProviderError, match="no such thing"):
        session.ask()
    assert len(session.fake.requests) == 3
    del session.messages[-1:]
    session.fake.error(400, "too long", code="context_length_exceeded")
    with pytest.raises(ProviderError) as caught:
        session.ask()
    assert caught.value.code == "context_overflow"
    assert len(session.fake.requests) == 4


def test_a_model_that_is_gone_is_not_asked_for_again(fake: FakeModel) -> None:
    session = Session(fake, store=False)
    session.ask(reasoning_item(), "one")
    fake.error(404, "no such model")
    with pytest.raises(ProviderError, match="no such model"):
        session.ask()
    assert len(fake.requests) == 2
    session.transport.close()


def test_what_was_shown_is_not_shown_again(session: Session) -> None:
    session.ask(reasoning_item(), "one")
    steps = [*response_steps("beg", end=""), typed("error", status=400, message="no")]
    session.fake.send(Reply(steps))
    events: list[StreamEvent] = []
    with pytest.raises(ProviderError):
        events += session.provider.stream(
            asking(*session.messages, Message("user", "on")), CancelToken()
        )
    assert len(session.fake.requests) == 2


def test_a_cut_answer_is_not_gone_on_from(session: Session) -> None:
    session.ask(("file_list", "{}"), end="incomplete")
    session.ask("two", said=Message("tool", "x", tool_call_id="call_0", name="file_list"))
    assert "previous_response_id" not in session.bodies()[1]
    session.fake.send(Reply([*response_steps("th", end=""), CUT]))
    with pytest.raises(ProviderError):
        session.ask()


def test_settings_and_native_data_of_another_time() -> None:
    spec = ModelSpec("fake", "fake-1", 1000, 0)
    for data in ({}, {"items": 7}, {"items": [7, {"type": "reasoning"}]}, {"response": 5}):
        message = Message("assistant", "x", native=Native("mine", "fake-1", data))
        request = asking(Message("user", "hi"), message, Message("user", "on"), model=spec)
        for store in (False, True):
            body = body_of(request, store)
            assert len(body["input"]) == 3
            assert "max_output_tokens" not in body
