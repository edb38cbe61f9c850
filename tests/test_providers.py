"""What every provider in the registry must do, and how failures are worded."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from oxydra.errors import Cancelled, ConfigError, ProviderError, TransportError
from oxydra.providers import PROVIDERS, ProviderSettings, create, credential
from oxydra.providers.failures import from_transport, retry_after
from oxydra.threads import CancelToken, Deadline
from oxydra.transport import Credential, DirectTransport
from oxydra.types import Completed, Message, ModelRequest, Provider, TextDelta, ToolCall
from tests import wires_anthropic, wires_gemini
from tests.fake_model import CUT, STALL, FakeModel, Reply, call_events, event
from tests.fake_responses import response_steps
from tests.replay import asking, ending

KEY = "sk-secret-0123456789"


# ---------------------------------------------------------------------------------- conformance


class Rig:
    """A provider of one type and the means to make it answer. Subclassed for each type."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        raise AssertionError("a rig sets its provider up")

    provider: Provider

    def answer(self, *parts: Any) -> None:
        """The next answer: texts, and tool calls as `(name, arguments)`."""

    def fail(self) -> None:
        """The next answer is the provider's failure, which may be tried again."""

    def hang(self, text: str) -> None:
        """The next answer begins with `text` and goes no further for a long time."""


class HttpRig(Rig):
    """A provider over HTTP and a fake server, which each wire says how to answer from."""

    kind = ""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.fake = stack.enter_context(FakeModel())
        transport = DirectTransport()
        stack.callback(transport.close)
        self.provider = create(ProviderSettings("mine", self.kind, self.fake.origin), transport)

    def fail(self) -> None:
        self.fake.error(503, "too busy")

    def hang(self, text: str) -> None:
        self.answer(text, STALL)


class OpenAIRig(HttpRig):
    kind = "openai"

    def answer(self, *parts: Any) -> None:
        self.fake.reply(*parts)


class ResponsesRig(HttpRig):
    kind = "openai_responses"

    def answer(self, *parts: Any) -> None:
        self.fake.send(Reply(response_steps(*parts)))


class AnthropicRig(HttpRig):
    kind = "anthropic"

    def answer(self, *parts: Any) -> None:
        self.fake.send(wires_anthropic.answer(*parts))


class GeminiRig(HttpRig):
    kind = "gemini"

    def answer(self, *parts: Any) -> None:
        self.fake.send(wires_gemini.answer(*parts))


class OfflineRig(Rig):
    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.provider = create(ProviderSettings("mine", "offline"), DirectTransport())

    def _follow(self, *steps: Any) -> None:
        settings = ProviderSettings("mine", "offline", script=[list(steps)])
        self.provider = create(settings, DirectTransport())

    def answer(self, *parts: Any) -> None:
        calls = [{"tool": p[0], "arguments": p[1]} for p in parts if isinstance(p, tuple)]
        steps: list[Any] = [{"text": part} for part in parts if isinstance(part, str)]
        self._follow(*steps, *([{"parallel": calls}] if calls else []))

    def fail(self) -> None:
        self._follow({"error": "too busy", "status": 503, "retryable": True})

    def hang(self, text: str) -> None:
        self._follow({"text": text}, {"delay_ms": 600_000})


HTTP_RIGS = (OpenAIRig, ResponsesRig, AnthropicRig, GeminiRig)
RIGS = {**{rig.kind: rig for rig in HTTP_RIGS}, "offline": OfflineRig}


def test_every_type_is_held_to_the_contract() -> None:
    assert RIGS.keys() == PROVIDERS.keys()


@pytest.mark.parametrize("kind", PROVIDERS)
class TestProviderConformance:
    """What the `Provider` Protocol says, over every type in the registry."""

    @pytest.fixture
    def rig(self, kind: str) -> Iterator[Rig]:
        with contextlib.ExitStack() as stack:
            yield RIGS[kind](stack)

    def run(self, rig: Rig, *messages: Message) -> Completed:
        return ending(list(rig.provider.stream(asking(*messages), CancelToken())))

    def test_text(self, rig: Rig) -> None:
        rig.answer("Grüße, ", "世界 😀\n")
        end = self.run(rig)
        assert (end.message.content, end.finish_reason) == ("Grüße, 世界 😀\n", "stop")
        assert end.message.tool_calls == ()
        assert min(end.usage.prompt_tokens, end.usage.completion_tokens) > 0

    def test_it_bears_its_name(self, rig: Rig) -> None:
        assert rig.provider.name == "mine"

    def test_tool_calls(self, rig: Rig) -> None:
        rig.answer("Let me see. ", ("file_list", {"path": "/ü"}), ("file_read", {}))
        end = self.run(rig)
        assert end.finish_reason == "tool_calls"
        first, second = end.message.tool_calls
        assert (first.name, json.loads(first.arguments)) == ("file_list", {"path": "/ü"})
        assert (second.name, json.loads(second.arguments)) == ("file_read", {})
        assert first.id != second.id
        assert all((first.id, second.id))

    def test_ids_are_new_in_the_conversation(self, rig: Rig) -> None:
        messages = [Message("user", "hi")]
        seen: set[str] = set()
        for number in range(3):
            rig.answer(("file_list", {}))
            if number:  # the offline model follows its script anew in each turn
                messages.append(Message("user", "again"))
            end = self.run(rig, *messages)
            (call,) = end.message.tool_calls
            assert call.id not in seen
            seen.add(call.id)
            messages += [end.message, Message("tool", "x", tool_call_id=call.id, name=call.name)]

    def test_a_failure(self, rig: Rig) -> None:
        rig.fail()
        with pytest.raises(ProviderError) as caught:
            self.run(rig)
        error = caught.value
        assert (error.provider, error.model) == ("mine", "fake-1")
        assert (error.status, error.retryable) == (503, True)
        assert "mine" in error.message
        assert "fake-1" in error.message
        assert error.remedy

    def test_a_history_that_broke_off_goes_on(self, rig: Rig) -> None:
        rig.answer("fine")
        call = ToolCall("c1", "file_list", '{"path": "/sh')
        history = [Message("user", "a"), Message("assistant", "", tool_calls=(call,))]
        assert self.run(rig, *history, Message("user", "go on")).message.content == "fine"

    def test_cancelled_before_it_began(self, rig: Rig) -> None:
        token = CancelToken()
        token.cancel("enough")
        with pytest.raises(Cancelled, match="enough"):
            next(iter(rig.provider.stream(asking(), token)))

    def test_cancelled_in_the_middle(self, rig: Rig) -> None:
        rig.hang("begin")
        token = CancelToken()
        raised: list[BaseException] = []
        begun = threading.Event()

        def work() -> None:
            try:
                for _ in rig.provider.stream(asking(), token):
                    begun.set()
            except Cancelled as error:
                raised.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        assert begun.wait(60)
        token.cancel("enough")
        thread.join(60)
        assert [str(error) for error in raised] == ["enough"]

    def test_left_in_the_middle(self, rig: Rig) -> None:
        rig.hang("begin")
        events = rig.provider.stream(asking(), CancelToken())
        assert next(iter(events)) == TextDelta("begin")
        events.close()  # type: ignore[attr-defined]

    def test_it_serves_several_threads(self, rig: Rig) -> None:
        rig.answer("same")
        if isinstance(rig, HttpRig):
            for _ in range(7):
                rig.answer("same")
        said: list[str] = []
        threads = [
            threading.Thread(target=lambda: said.append(self.run(rig).message.content))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert said == ["same"] * 8


# ---------------------------------------------------------------------------- settings, registry


def test_settings_reach_the_server() -> None:
    with FakeModel() as fake:
        settings = ProviderSettings(
            "mine", "openai", fake.url, credential="mine", extra_headers={"X-Title": "Oxydra"}
        )
        transport = DirectTransport({"mine": credential(settings, f"{KEY}\n")})
        ending(list(create(settings, transport).stream(asking(), CancelToken())))
        seen = fake.requests[0]
        transport.close()
    assert seen.path == "/v1/chat/completions"
    assert seen.headers["authorization"] == f"Bearer {KEY}"
    assert seen.headers["x-title"] == "Oxydra"
    assert seen.headers["content-type"] == "application/json"


def test_a_server_without_a_key_gets_none() -> None:
    with FakeModel() as fake:
        transport = DirectTransport()
        provider = create(ProviderSettings("local", "openai", fake.origin), transport)
        for _ in range(2):
            ending(list(provider.stream(asking(), CancelToken())))
        transport.close()
        assert "authorization" not in fake.requests[0].headers
        assert [request.connection for request in fake.requests] == [1, 1]


def test_the_registry() -> None:
    with pytest.raises(
        ConfigError, match="openai, openai_responses, anthropic, gemini, offline"
    ) as caught:
        create(ProviderSettings("x", "opnai"), DirectTransport())
    assert "'opnai'" in str(caught.value)
    official = credential(ProviderSettings("x", "openai"), KEY)
    assert official == Credential("Authorization", f"Bearer {KEY}", "https://api.openai.com")


# ----------------------------------------------------------------------------------------- errors


@pytest.fixture
def fake() -> Iterator[FakeModel]:
    with FakeModel() as server:
        yield server


def failing(
    fake: FakeModel, *, key: bool = True, base_url: str = "", request: ModelRequest | None = None,
    **fields: Any,
) -> ProviderError:  # fmt: skip
    """The error of one request to `fake`."""
    url = base_url or fake.url
    settings = ProviderSettings(
        "mine", "openai", url, credential="mine" if key else "", key_source="MY_KEY", **fields
    )
    transport = DirectTransport({"mine": Credential("Authorization", f"Bearer {KEY}", fake.origin)})
    with pytest.raises(ProviderError) as caught:
        list(create(settings, transport).stream(request or asking(), CancelToken()))
    transport.close()
    error = caught.value
    assert (error.provider, error.model) == ("mine", "fake-1")
    assert "mine (fake-1)" in error.message
    assert error.remedy
    assert "\n" not in str(error)
    chain: BaseException | None = error
    while chain is not None:
        assert KEY not in f"{chain} {chain!r}"
        chain = chain.__cause__
    return error


@pytest.mark.parametrize(
    ("status", "code", "kind", "retryable", "words"),
    [
        (400, None, "bad_request", False, "rejected the request"),
        (400, "context_length_exceeded", "context_overflow", False, "too long"),
        (401, "invalid_api_key", "provider_auth", False, "refused the key"),
        (402, None, "quota", False, "no credit"),
        (403, None, "provider_auth", False, "does not allow"),
        (404, "model_not_found", "model_not_found", False, "no such model"),
        (408, None, "provider_unavailable", True, "failed"),
        (409, None, "provider_unavailable", True, "failed"),
        (413, None, "context_overflow", False, "too long"),
        (418, None, "bad_request", False, "rejected"),
        (422, None, "bad_request", False, "rejected"),
        (425, None, "provider_unavailable", True, "failed"),
        (429, "rate_limit_exceeded", "rate_limited", True, "limits the rate"),
        (429, "insufficient_quota", "quota", False, "no credit"),
        (500, None, "provider_unavailable", True, "failed"),
        (501, None, "provider_unavailable", False, "failed"),
        (503, None, "provider_unavailable", True, "failed"),
        (529, None, "provider_unavailable", True, "failed"),
    ],
)
def test_statuses(
    fake: FakeModel, status: int, code: str | None, kind: str, retryable: bool, words: str
) -> None:
    fake.error(status, f"it said {KEY}\n\x1b[31mno", code=code)
    error = failing(fake)
    assert (error.status, error.code, error.retryable) == (status, kind, retryable)
    assert words in error.message
    assert f"(HTTP {status}): it said [key] ␛[31mno." in error.message


@pytest.mark.parametrize("kind", ["limit", "busy"])
def test_our_own_brokers_limit_is_one_of_the_rate(kind: str) -> None:
    settings = ProviderSettings("mine", "openai", "http://127.0.0.1:1/v1")
    error = from_transport(settings, "fake-1", TransportError("Too many.", kind=kind))
    assert (error.code, error.unsent) == ("rate_limited", True)


def test_a_wrong_key_and_a_missing_one(fake: FakeModel) -> None:
    fake.error(401)
    assert "MY_KEY" in failing(fake).remedy
    fake.error(401)
    error = failing(fake, key=False)
    assert "none is configured" in error.message
    assert "MY_KEY" in error.remedy
    assert "oxydra-runner key set mine" in error.remedy


def test_the_model_is_too_long_in_other_words(fake: FakeModel) -> None:
    fake.error(400, "This model's maximum context length is 8192 tokens.")
    assert failing(fake).code == "context_overflow"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": "plain words"}', "plain words"),
        (b'{"message": "at the top"}', "at the top"),
        (b'{"detail": [{"loc": ["a"], "msg": "field required"}]}', "field required"),
        (b'[{"error": {"message": "in a list", "status": "INVALID_ARGUMENT"}}]', "in a list"),
        (b"no JSON at all", "no JSON at all"),
        (b'{"error": {"message": "' + b"x" * 5000 + b'"}}', "xxx…"),
        (b'{"error": {}}', "(HTTP 400)."),
        (b"[" * 90_000, "(HTTP 400)"),
        (b"", "(HTTP 400)."),
    ],
)
def test_bodies_of_errors(fake: FakeModel, body: bytes, words: str) -> None:
    fake.send(Reply([body] if body else [], 400, {"Content-Type": "application/json"}, "length"))
    message = failing(fake).message
    assert words in message
    assert len(message) < 500


def test_it_says_when_to_come_back(fake: FakeModel) -> None:
    fake.error(429, headers={"Retry-After": "7"})
    error = failing(fake)
    assert error.retry_after == 7.0
    assert "7 seconds" in error.remedy


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after-ms": "150", "retry-after": "1"}, 0.15),
        ({"retry-after": "Sun, 22 Nov 2026 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Sun, 22 Nov 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "9" * 400}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m30s"}, 90.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "20ms"}, 0.02),
        ({"x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "20ms"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)) == seconds


@pytest.mark.parametrize("status", [200, 403, 502])
def test_a_web_page(fake: FakeModel, status: int) -> None:
    fake.html(status)
    error = failing(fake)
    assert "web page" in error.message
    assert "login" in error.remedy
    assert (error.status, error.retryable) == (status, status == 502)


def test_a_web_page_that_calls_itself_a_stream(fake: FakeModel) -> None:
    fake.send(Reply([b"<!DOCTYPE html><html>Sign in</html>"]))
    assert "broke its answer off" in failing(fake).message


def test_a_redirect_gets_no_key(fake: FakeModel) -> None:
    with FakeModel() as other:
        fake.redirect(f"{other.url}/chat/completions")
        error = failing(fake)
        assert "redirects" in error.message
        assert not error.retryable
        assert other.requests == []


def test_a_server_that_is_not_there(fake: FakeModel) -> None:
    fake.close()
    error = failing(fake)
    assert "connection refused" in error.message
    assert f"Is the server running at {fake.url}?" in error.remedy
    assert "[providers.registry.mine]" in error.remedy
    assert (error.status, error.retryable) == (0, True)


def test_an_address_without_a_scheme_or_with_a_password(fake: FakeModel) -> None:
    assert "http://" in failing(fake, base_url="localhost:11434/v1").remedy
    error = failing(fake, base_url=f"https://user:{KEY}@x.org/v1?k={KEY}")
    assert "user name or password" in error.message


def test_a_silent_server(fake: FakeModel) -> None:
    fake.reply("begin", STALL)
    error = failing(fake, idle_timeout=0.1)
    assert "silent for 0.1 seconds" in error.message
    assert error.retryable


@pytest.mark.parametrize("whose", ["settings", "request"])
def test_a_deadline(fake: FakeModel, whose: str) -> None:
    fake.reply("begin", STALL)
    if whose == "settings":
        error = failing(fake, total_timeout=0.1)
    else:
        error = failing(fake, request=asking(deadline=Deadline.after(0.1)))
    assert error.code == "timeout"
    assert "in time" in error.message
    assert not error.retryable


def test_a_stream_that_breaks_off(fake: FakeModel) -> None:
    fake.reply("begin", CUT)
    error = failing(fake)
    assert "broke the connection off" in error.message
    assert error.retryable


def test_a_break_after_the_finish_reason_is_still_a_break(fake: FakeModel) -> None:
    fake.send(Reply([event({"content": "x"}, "stop"), CUT]))
    assert failing(fake).retryable


def test_a_clean_end_after_the_finish_reason_is_an_end(fake: FakeModel) -> None:
    for framing in ("chunked", "close"):
        fake.reply("x", done=False, framing=framing)
        transport = DirectTransport()
        provider = create(ProviderSettings("x", "openai", fake.url), transport)
        end = ending(list(provider.stream(asking(), CancelToken())))
        assert (end.message.content, end.usage.total_tokens) == ("x", 15)
        transport.close()


def test_a_clean_end_without_a_finish_reason_is_none(fake: FakeModel) -> None:
    fake.reply("x", done=False, finish="")
    assert "broke its answer off" in failing(fake).message


def test_bad_utf8(fake: FakeModel) -> None:
    fake.reply("x", b"data: \xff\xfe\n\n")
    assert "UTF-8" in failing(fake).message


def test_too_much_of_everything(fake: FakeModel) -> None:
    fake.reply(*["x" * 1000] * 300)
    assert "larger than" in failing(fake, max_response_bytes=200_000).message
    fake.send(Reply([b"data: ", *[b"x" * 65536] * 140, b"\n\n"]))
    assert "an event of more than 8 MB" in failing(fake).message
    flood = b"".join(b"X-%d: y\r\n" % number for number in range(500))
    fake.send(Reply([b"HTTP/1.1 200 OK\r\n", flood, b"\r\n"], framing="raw"))
    assert "header" in failing(fake).message


@pytest.mark.parametrize(
    ("error", "status", "retryable", "code"),
    [
        ({"message": f"Rate {KEY}", "code": 429}, 429, True, "rate_limited"),
        ({"message": "no", "type": "invalid_request_error"}, 400, False, "bad_request"),
        ({"message": "no", "code": "context_length_exceeded"}, 400, False, "context_overflow"),
        ({"message": "no", "type": "overloaded_error"}, 529, True, "provider_unavailable"),
        ("only words", 0, True, "provider_unavailable"),
    ],
)
def test_errors_inside_a_stream(
    fake: FakeModel, error: Any, status: int, retryable: bool, code: str
) -> None:
    fake.reply("begin", {"error": error})
    found = failing(fake)
    assert (found.status, found.retryable, found.code) == (status, retryable, code)


def test_an_error_event_and_an_error_choice(fake: FakeModel) -> None:
    fake.reply(b'event: error\ndata: {"message": "by name", "code": 503}\n\n')
    assert "by name" in failing(fake).message
    fake.reply({"choices": [{"delta": {}, "finish_reason": "error"}]})
    assert failing(fake).retryable
    fake.reply({"choices": [{"error": {"message": "upstream", "code": 502}}]})
    assert failing(fake).status == 502


def test_a_missing_credential_is_the_providers_error(fake: FakeModel) -> None:
    settings = ProviderSettings("mine", "openai", fake.url, credential="gone")
    with pytest.raises(ProviderError, match="no key named gone") as caught:
        list(create(settings, DirectTransport()).stream(asking(), CancelToken()))
    assert caught.value.code == "provider_auth"


# --------------------------------------------------------------------------------- the fake itself


def test_a_directed_chain_of_calls(fake: FakeModel) -> None:
    transport = DirectTransport()
    provider = create(ProviderSettings("x", "openai", fake.url), transport)
    messages = [Message("user", '[[fake mode=chain k=3 final_n=2 parallel=2 args={"n":{i}}]]')]
    seen: list[str] = []
    while True:
        end = ending(list(provider.stream(asking(*messages), CancelToken())))
        messages.append(end.message)
        if end.finish_reason == "stop":
            break
        for call in end.message.tool_calls:
            seen.append(call.arguments)
            messages.append(Message("tool", "x", tool_call_id=call.id, name=call.name))
    assert seen == ['{"n":0}', '{"n":1}', '{"n":2}']
    assert end.message.content == "alpha beta "
    transport.close()


def test_calls_split_at_any_character_and_bytes_chopped_anywhere(fake: FakeModel) -> None:
    transport = DirectTransport()
    provider = create(ProviderSettings("x", "openai", fake.url), transport)
    for split, chop in ((1, 0), (3, 1), (0, 7)):
        fake.reply("ü", ("t", {"a": "😀 “x”", "b": [1]}), split=split, chop=chop)
        end = ending(list(provider.stream(asking(), CancelToken())))
        (call,) = end.message.tool_calls
        assert json.loads(call.arguments) == {"a": "😀 “x”", "b": [1]}
    assert len(call_events(0, "t", "{}", 1)) == 3
    transport.close()
