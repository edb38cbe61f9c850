"""OpenAI Chat Completions, streamed, and the many servers that speak it.

Specification: OpenAI API reference, "Chat Completions", "Streaming". Servers differ, so what they
leave out is borne: a missing `index` or `id`, whole calls in one delta, repeated names, null
content, a missing usage, no key, a whole answer though a stream was asked for.

The end of a stream is `[DONE]`. A server that leaves it out is believed only if a `finish_reason`
came and the body then ended as HTTP says it must: after a finish reason nothing of the message
follows on this wire, so a clean end there is an end. Any other end is an error, which may be tried
again.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

from oxydra.providers import abilities
from oxydra.providers.base import (
    Assembly,
    PendingCall,
    ProviderSettings,
    count,
    json_bytes,
    mapping,
)
from oxydra.providers.http import HttpProvider
from oxydra.providers.turns import said_of
from oxydra.transport import HttpStream, Transport, sse
from oxydra.types import (
    Attachment,
    Completed,
    FinishReason,
    Message,
    ModelRequest,
    ModelSpec,
    Native,
    StreamEvent,
    ToolSpec,
    Usage,
)

FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "length": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
}
_OFFICIAL = re.compile(r"https://([^/@]+\.)?(api\.openai\.com|openai\.azure\.com)[:/]")
_VERSION = re.compile(r"://.*/v\d+\w*(/|$)")


class OpenAI(HttpProvider):
    """`settings.base_url` with or without its version segment or trailing slash."""

    wire = "openai"

    def __init__(self, settings: ProviderSettings, transport: Transport) -> None:
        super().__init__(settings, transport)
        self._url = completions_url(settings.base_url)
        # compatible servers know only the older name, the official service prefers the newer
        self._official = _OFFICIAL.match(self._url) is not None
        self._limit = b"max_completion_tokens" if self._official else b"max_tokens"

    def url(self, request: ModelRequest) -> str:
        return self._url

    def encode_request(
        self, request: ModelRequest, history: Sequence[Message], tools: Sequence[bytes]
    ) -> bytes:
        history = abilities.visible(history, request.model, ())
        abilities.check_attachments(self.name, request.model, history, abilities.IMAGES)
        model, wire = request.model, self.wire
        messages = [  # nearly all of a long history were encoded before
            (message.wire.get(wire) if message.native is None else None)
            or self._as_seen_by(model, message)
            for message in history
        ]
        return self.encode_body(request, messages, tools)

    def _as_seen_by(self, model: ModelSpec, message: Message) -> bytes:
        """A message with what this very model said beside it, which only it gets back."""
        native = message.native
        if native is None or (native.provider, native.model) != (self.name, model.id):
            return self._encoded(message)
        wire = f"{self.wire} {self.name} {model.id}"
        if wire not in message.wire:
            message.wire[wire] = json_bytes(_encode(message) | native.data)
        return message.wire[wire]

    def encode_message(self, message: Message) -> bytes:
        return json_bytes(_encode(message))

    def encode_tool(self, tool: ToolSpec) -> bytes:
        function = {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
        }
        return json_bytes({"type": "function", "function": function})

    def encode_body(
        self, request: ModelRequest, messages: Sequence[bytes], tools: Sequence[bytes]
    ) -> bytes:
        parts = [b'{"model":', json_bytes(request.model.id)]
        parts.append(b',"stream":true,"stream_options":{"include_usage":true}')
        if level := abilities.checked_level(request, self.name):
            parts.append(
                b',"reasoning_effort":' + json_bytes(abilities.effort(request.model, level))
            )
        if self._official and request.session_id:
            parts.append(b',"prompt_cache_key":' + json_bytes(request.session_id))
        if request.model.max_output_tokens > 0:
            parts.append(b',"%s":%d' % (self._limit, request.model.max_output_tokens))
        if tools:
            parts += (b',"tools":[', b",".join(tools), b"]")
        parts += (b',"messages":[', b",".join(messages), b"]}")
        return b"".join(parts)

    def decode(
        self, stream: HttpStream, request: ModelRequest
    ) -> Generator[StreamEvent, None, Completed]:
        answer = Assembly()
        if "application/json" in stream.headers.get("content-type", ""):
            chunk = self._parsed(stream.read(), request)
            yield from self._chunk(chunk, answer, stream, request)
        else:
            for event in sse(stream):
                data = event.data
                if data == "[DONE]":
                    break
                chunk = self._parsed(data, request)
                if event.event == "error" and not chunk.get("error"):
                    chunk = {"error": chunk}
                yield from self._chunk(chunk, answer, stream, request)
            else:
                if answer.finish is None:
                    raise self.malformed(request, "broke its answer off before its end")
        if answer.finish is None and answer.empty:
            raise self.malformed(request, "ended its answer without saying anything")
        return answer.completed(request.messages, self._native(answer, request.model))

    def _native(self, answer: Assembly, model: ModelSpec) -> Native | None:
        """What some reasoning models want to find in a history again."""
        thought = answer.thought
        if not model.reasoning_field or not thought:
            return None
        return Native(self.name, model.id, {model.reasoning_field: thought})

    def _chunk(
        self,
        chunk: Mapping[str, Any],
        answer: Assembly,
        stream: HttpStream,
        request: ModelRequest,
    ) -> list[StreamEvent]:
        """The deltas of one chunk, which is added to `answer`."""
        if error := chunk.get("error"):
            raise self.reported(stream, request, error)
        if usage := chunk.get("usage"):
            answer.usage = _usage(mapping(usage))
        choices = chunk.get("choices")
        if not choices or not isinstance(choices, list):
            return []
        deltas: list[StreamEvent] = []
        choice = mapping(choices[0])
        if error := choice.get("error"):
            raise self.reported(stream, request, error)
        delta = mapping(choice.get("delta") or choice.get("message"))
        if content := delta.get("content"):
            if isinstance(content, str):
                deltas.append(answer.text(content))
            else:
                deltas += _parts(content, answer)
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        if thought and isinstance(thought, str):
            deltas.append(answer.reasoning(thought))
        refusal = delta.get("refusal")
        if refusal and isinstance(refusal, str):
            answer.refused = True
            deltas.append(answer.text(refusal))
        if fragments := delta.get("tool_calls"):
            for fragment in fragments if isinstance(fragments, list) else ():
                _take(answer, mapping(fragment))
        if reason := choice.get("finish_reason"):
            if reason == "error":
                raise self.reported(stream, request, {})
            answer.finish = FINISH.get(str(reason), "stop")
        return deltas


def completions_url(base_url: str) -> str:
    """Where to post for a `base_url`: `/v1` is added unless some segment is a version already."""
    address, _, query = base_url.strip().partition("?")
    address = address.rstrip("/").removesuffix("/chat/completions")
    if not _VERSION.search(address):
        address += "/v1"
    return f"{address}/chat/completions" + (f"?{query}" if query else "")


def _encode(message: Message) -> dict[str, Any]:
    encoded: dict[str, Any] = {"role": message.role, "content": _content(message)}
    if message.role == "tool":
        encoded["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        encoded["content"] = encoded["content"] or None
        encoded["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    return encoded


def _content(message: Message) -> Any:
    """The text, or a list of parts where there are attachments; what a model made itself, the wire
    cannot carry back, so it is said in words.
    """
    if not message.attachments:
        return message.content
    if message.role == "assistant":
        return "\n".join(filter(None, [message.content, *map(said_of, message.attachments)]))
    text = [{"type": "text", "text": message.content}] if message.content else []
    return [*text, *(_part(attachment) for attachment in message.attachments)]


def _part(attachment: Attachment) -> dict[str, Any]:
    data = base64.b64encode(attachment.data).decode()
    url = f"data:{attachment.mime_type};base64,{data}"
    if attachment.mime_type != abilities.PDF:
        return {"type": "image_url", "image_url": {"url": url}}
    name = attachment.name or "attachment.pdf"
    return {"type": "file", "file": {"filename": name, "file_data": url}}


def _take(answer: Assembly, fragment: Mapping[str, Any]) -> None:
    """Add one element of `delta.tool_calls` to the call it belongs to."""
    function = mapping(fragment.get("function"))
    index, identity = fragment.get("index"), fragment.get("id") or ""
    name, arguments = function.get("name") or "", function.get("arguments")
    if isinstance(arguments, dict):  # some servers send the object itself
        arguments = json.dumps(arguments, ensure_ascii=False)
    if not isinstance(arguments, str):
        arguments = ""
    call = _find(answer.calls, index, str(identity), str(name), arguments)
    if call is None:
        call = PendingCall(index=index if isinstance(index, int) else None)
        answer.calls.append(call)
    call.id = call.id or str(identity)
    call.name = call.name or str(name)
    if arguments:
        call.arguments.append(arguments)


def _find(
    calls: list[PendingCall], index: Any, identity: str, name: str, arguments: str
) -> PendingCall | None:
    """The call that a fragment goes on with; None if it begins one.

    Calls are told apart by index, among those of one index (some servers number all 0, or none) by
    id, and without ids by a name that is another or that comes when the last call is whole. A
    fragment without a name never begins a call: there are servers that make up an id for each.
    """
    known = [call for call in calls if not isinstance(index, int) or call.index == index]
    for call in known:
        if identity and call.id == identity:
            return call
    if not known:
        return None
    last = known[-1]
    if not name:
        return last
    another = (last.id and identity) or (last.name and last.name != name)
    if another or (arguments.lstrip().startswith("{") and _whole(last)):
        return None
    return last


def _whole(call: PendingCall) -> bool:
    try:
        return isinstance(json.loads("".join(call.arguments)), dict)
    except (ValueError, RecursionError):
        return False


def _parts(content: Any, answer: Assembly) -> Iterator[StreamEvent]:
    """Content as a list of parts, which may hold thinking of the same shape."""
    for part in content if isinstance(content, list) else ():
        fields = mapping(part)
        if isinstance(text := fields.get("text"), str) and text:
            yield answer.text(text)
        thoughts = fields.get("thinking")
        for thought in thoughts if isinstance(thoughts, list) else ():
            if isinstance(text := mapping(thought).get("text"), str) and text:
                yield answer.reasoning(text)


def _usage(usage: Mapping[str, Any]) -> Usage:
    prompt = mapping(usage.get("prompt_tokens_details"))
    completion = mapping(usage.get("completion_tokens_details"))
    return Usage(
        count(usage.get("prompt_tokens")),
        count(usage.get("completion_tokens")),
        count(prompt.get("cached_tokens")) or count(usage.get("prompt_cache_hit_tokens")),
        count(completion.get("reasoning_tokens")),
    )
