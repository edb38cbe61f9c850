"""Anthropic Messages, streamed, and the servers that speak it.

Specification: Anthropic API reference, "Messages", "Streaming messages", "Extended thinking",
"Adaptive thinking", "Prompt caching"; `anthropic-version: 2023-06-01`. The end of a stream is
`message_stop`, and no other end is believed.

Thinking comes with signatures, and its blocks must go back as they came and where they stood, or
the API refuses the history. `Message.native` keeps them, `{"anthropic": [block, …]}`, with the
places of texts (`{"text": characters}`) and calls (`{"call": index}`) between them; the same
provider and model gets all of it back, another one only text and calls.

Prompt caching: breakpoints stand on the last tool, the last system block, and the end of the last
two turns of the user. So these two markers wander from request to request; the API compares what is
before a marker without the markers, and so does whoever tests that a request begins with the bytes
of the one before it. The two turns also keep every cached prefix within the 20 blocks that the API
looks back, however many calls one answer makes.
"""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

from oxydra.errors import ProviderError
from oxydra.frames import compact, parse
from oxydra.providers import abilities
from oxydra.providers.base import (
    Assembly,
    PendingCall,
    ProviderSettings,
    count,
    json_bytes,
    mapping,
)
from oxydra.providers.signed import SignedProvider
from oxydra.providers.turns import (
    BLANK,
    Turn,
    real_names,
    said_of,
    system_messages,
    text_of,
    turns,
    wire_name,
)
from oxydra.transport import HttpStream, Transport, sse
from oxydra.types import (
    Attachment,
    Completed,
    FinishReason,
    Json,
    Message,
    ModelRequest,
    ModelSpec,
    StreamEvent,
    ToolCall,
    ToolSpec,
    Usage,
)

VERSION = "2023-06-01"
DEFAULT_MAX_TOKENS = 4096  # the wire demands a limit; every model has at least this much
FINISH: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "pause_turn": "length",  # the server paused: there would be more, if it were asked to go on
    "refusal": "refusal",
}
THOUGHTS = ("thinking", "redacted_thinking")
_MARK = b',"cache_control":{"type":"ephemeral"}}'
_VERSIONED = re.compile(r"/v\d+\w*$")


class Anthropic(SignedProvider):
    """`settings.base_url` with or without its `/v1`."""

    wire = "anthropic"

    def __init__(self, settings: ProviderSettings, transport: Transport) -> None:
        super().__init__(settings, transport)
        self._url = messages_url(settings.base_url)

    def url(self, request: ModelRequest) -> str:
        return self._url

    def headers(self) -> Mapping[str, str]:
        return {"anthropic-version": VERSION}

    def refused(
        self, request: ModelRequest, status: int, headers: Mapping[str, str], body: str
    ) -> ProviderError:
        """What the wire says in its own way: that the account is empty (which comes as 400), and
        when a rate limit that is used up ends.
        """
        if status == 400 and "credit balance is too low" in body:
            status = 402
        if until := _limited_until(headers):
            headers = {"retry-after": until, **headers}
        return super().refused(request, status, headers, body)

    # ------------------------------------------------------------------------------- the request

    def encode_request(
        self, request: ModelRequest, history: Sequence[Message], tools: Sequence[bytes]
    ) -> bytes:
        history = abilities.visible(history, request.model)
        abilities.check_attachments(self.name, request.model, history, abilities.IMAGES)
        spoken = turns(history)
        users = [index for index, turn in enumerate(spoken) if turn.role == "user"]
        messages = []
        for index, turn in enumerate(spoken):
            blocks = b",".join(
                filter(None, (self._blocks(m, request.model) for m in turn.messages))
            )
            if index in users[-2:]:
                blocks = _marked(blocks)
            messages.append(b'{"role":"%s","content":[%s]}' % (turn.role.encode(), blocks))
        body = self.encode_body(request, messages, tools)
        return b"{" + self._thinking(request, spoken) + body[1:]

    def encode_body(
        self, request: ModelRequest, messages: Sequence[bytes], tools: Sequence[bytes]
    ) -> bytes:
        parts = [b'{"model":', json_bytes(request.model.id)]
        parts.append(b',"max_tokens":%d,"stream":true' % _max_tokens(request))
        if tools:
            parts += (b',"tools":[', _marked(b",".join(tools)), b"]")
        elif called := {wire_name(c.name) for m in request.messages for c in m.tool_calls}:
            # calls in a history need their tools declared, though none is to be called any more
            gone = [ToolSpec(name, "", {"type": "object"}) for name in sorted(called)]
            parts += (b',"tools":[', b",".join(map(self.encode_tool, gone)), b"]")
            parts.append(b',"tool_choice":{"type":"none"}')
        if system := system_messages(request.messages):
            parts += (b',"system":[', _marked(b",".join(map(self._encoded, system))), b"]")
        parts += (b',"messages":[', b",".join(messages), b"]}")
        return b"".join(parts)

    def encode_message(self, message: Message) -> bytes:
        """The blocks of a message, separated by commas, as any model may read them."""
        if message.role == "tool":
            return json_bytes(_result_block(message))
        if message.role == "user":
            blocks = [_attachment_block(attachment) for attachment in message.attachments]
            blocks += _text_blocks(message.content) or ([] if blocks else _text_blocks(BLANK))
            return b",".join(map(json_bytes, blocks))
        # an assistant's words, or the system's
        texts = [message.content, *map(said_of, message.attachments)]
        blocks = [block for text in texts for block in _text_blocks(text)]
        return b",".join(map(json_bytes, (*blocks, *map(_call_block, message.tool_calls))))

    def encode_tool(self, tool: ToolSpec) -> bytes:
        encoded: Json = {"name": wire_name(tool.name)}
        if tool.description:
            encoded["description"] = tool.description
        return json_bytes({**encoded, "input_schema": tool.parameters})

    def _blocks(self, message: Message, model: ModelSpec) -> bytes:
        parts = self.own_parts(message, model)
        if parts is None:
            return self._encoded(message)
        return self.encode_own(message, model, lambda m: _in_order(m, parts))

    def _thinking(self, request: ModelRequest, spoken: Sequence[Turn]) -> bytes:
        """How hard to think: adaptive with an effort where the model has that, a budget of tokens
        on older models. `off` says so to models that think by themselves; the others do not think
        unless asked to, or cannot be kept from it.
        """
        model, level = request.model, abilities.checked_level(request, self.name)
        if not level:
            return b""
        if level == "off":
            toggled = abilities.option(model, "toggle")
            return b'"thinking":{"type":"disabled"},' if toggled else b""
        effort = abilities.option(model, "effort")
        budget = abilities.option(model, "budget_tokens")
        # a model that also takes budgets is adaptive if it knows "max": both came with Claude 4.6
        if effort is not None and (budget is None or "max" in effort.values):
            value = json_bytes(abilities.nearest(effort.values, level) or "high")
            return (
                b'"thinking":{"type":"adaptive","display":"summarized"},'
                b'"output_config":{"effort":%s},' % value
            )
        if budget is None or not self._may_think(request, spoken):
            return b""
        tokens = abilities.budget(budget, level, _max_tokens(request))
        return b'"thinking":{"type":"enabled","budget_tokens":%d},' % tokens if tokens else b""

    def _may_think(self, request: ModelRequest, spoken: Sequence[Turn]) -> bool:
        """Whether thinking with a budget can be asked for: not in the middle of a run of calls that
        did not begin with thinking of this very model, since the API refuses that.
        """
        last = first = len(spoken) - 1
        while any(message.role == "tool" for message in spoken[first].messages):
            first -= 2  # to the user's turn before the call
        if first == last:
            return True
        parts = self.own_parts(spoken[first + 1].messages[0], request.model)
        return bool(parts and "type" in parts[0])

    # -------------------------------------------------------------------------------- the answer

    def decode(
        self, stream: HttpStream, request: ModelRequest
    ) -> Generator[StreamEvent, None, Completed]:
        answer, blocks, usage = Assembly(), dict[int, _Block](), dict[str, Any]()
        names = real_names(request.tools)
        for event in sse(stream):
            data = self._parsed(event.data, request)
            kind = data.get("type")
            if kind == "content_block_delta":
                block = blocks.get(_index(data))
                if block is not None and (delta := block.add(mapping(data.get("delta")), answer)):
                    yield delta
            elif kind == "content_block_start":
                block = _Block(dict(mapping(data.get("content_block"))))
                blocks[_index(data)] = block
                if delta := block.begin(answer, names):
                    yield delta
            elif kind == "message_start":
                usage |= mapping(mapping(data.get("message")).get("usage"))
            elif kind == "message_delta":
                delta_fields = mapping(data.get("delta"))
                usage |= {key: n for key, n in mapping(data.get("usage")).items() if n}
                if reason := delta_fields.get("stop_reason"):
                    answer.finish = FINISH.get(str(reason), "stop")
                    if answer.finish == "refusal":
                        answer.refused = True
                        details = mapping(delta_fields.get("stop_details"))
                        if answer.empty and (why := text_of(details.get("explanation"))):
                            yield answer.text(why)
            elif kind == "message_stop":
                break
            elif kind == "error" or "error" in data:
                raise self.reported(stream, request, data.get("error"))
        else:
            raise self.malformed(request, "broke its answer off before its end")
        if answer.finish is None and answer.empty:
            raise self.malformed(request, "ended its answer without saying anything")
        answer.usage = _usage(usage)
        parts = [part for block in blocks.values() if (part := block.part(answer))]
        signed = any("type" in part for part in parts)
        native = self.keep_parts(request.model, parts) if signed else None
        return answer.completed(request.messages, native)


@dataclass(slots=True)
class _Block:
    """A content block as it comes in; `start` is what `content_block_start` said of it."""

    start: Json
    text: list[str] = field(default_factory=list)
    signature: list[str] = field(default_factory=list)
    call: PendingCall | None = None

    def begin(self, answer: Assembly, names: Mapping[str, str]) -> StreamEvent | None:
        match self.start.get("type"):
            case "tool_use":
                name = text_of(self.start.get("name"))
                self.call = PendingCall(
                    id=text_of(self.start.get("id")), name=names.get(name, name)
                )
                answer.calls.append(self.call)
                if given := self.start.get("input"):  # whole at once, as some servers send it
                    self.call.arguments.append(compact(given))
            case "text":
                return self._say(self.start.get("text"), answer)
            case "thinking":
                self.signature.append(text_of(self.start.get("signature")))
                return self._think(self.start.get("thinking"), answer)
        return None

    def add(self, delta: Mapping[str, Any], answer: Assembly) -> StreamEvent | None:
        match delta.get("type"):
            case "text_delta":
                return self._say(delta.get("text"), answer)
            case "input_json_delta":
                if self.call is not None and (piece := text_of(delta.get("partial_json"))):
                    self.call.arguments.append(piece)
            case "thinking_delta":
                return self._think(delta.get("thinking"), answer)
            case "signature_delta":
                self.signature.append(text_of(delta.get("signature")))
        return None

    def _say(self, piece: Any, answer: Assembly) -> StreamEvent | None:
        if not (piece := text_of(piece)):
            return None
        self.text.append(piece)
        return answer.text(piece)

    def _think(self, piece: Any, answer: Assembly) -> StreamEvent | None:
        if not (piece := text_of(piece)):
            return None
        self.text.append(piece)
        return answer.reasoning(piece)

    def part(self, answer: Assembly) -> Json | None:
        """What must go back of this block, or its place; None if there is nothing of it."""
        match self.start.get("type"):
            case "thinking" if signature := "".join(self.signature):
                return {**self.start, "thinking": "".join(self.text), "signature": signature}
            case "redacted_thinking":
                return self.start
            case "text":
                return {"text": sum(map(len, self.text))}
            case "tool_use":
                return {"call": next(i for i, c in enumerate(answer.calls) if c is self.call)}
        return None


def messages_url(base_url: str) -> str:
    """Where to post for a `base_url`: `/v1` is added unless it ends with a version."""
    address, _, query = base_url.strip().partition("?")
    address = address.rstrip("/").removesuffix("/messages")
    if not _VERSIONED.search(address):
        address += "/v1"
    return f"{address}/messages" + (f"?{query}" if query else "")


def _limited_until(headers: Mapping[str, str]) -> str:
    """The last reset (`anthropic-ratelimit-*-reset`, RFC 3339) of the limits that are used up, as
    an HTTP date; "" if there is none.
    """
    resets = []
    for limit in ("requests", "tokens", "input-tokens", "output-tokens"):
        name = f"anthropic-ratelimit-{limit}"
        if headers.get(f"{name}-remaining") == "0":
            with contextlib.suppress(ValueError):
                reset = datetime.fromisoformat(headers.get(f"{name}-reset", ""))
                resets.append(reset.astimezone(UTC))
    return format_datetime(max(resets), usegmt=True) if resets else ""


def _max_tokens(request: ModelRequest) -> int:
    return request.model.max_output_tokens or DEFAULT_MAX_TOKENS


def _marked(blocks: bytes) -> bytes:
    """JSON objects separated by commas, with a cache breakpoint in the last of them."""
    return blocks[:-1] + _MARK


def _in_order(message: Message, parts: Sequence[Json]) -> bytes:
    """The blocks of an assistant's message as its model wrote them, the thinking unchanged."""
    calls = [_call_block(call) for call in message.tool_calls]
    lengths = [part["text"] for part in parts if "text" in part]
    called = [part["call"] for part in parts if "call" in part]
    blocks: list[Json] = []
    if sum(lengths) == len(message.content) and called == list(range(len(calls))):
        at = 0
        for part in parts:
            if "type" in part:
                blocks.append(part)
            elif "call" in part:
                blocks.append(calls[part["call"]])
            else:
                blocks += _text_blocks(message.content[at : at + part["text"]])
                at += part["text"]
    else:  # the message was changed since
        thoughts = [part for part in parts if "type" in part]
        blocks = [*thoughts, *_text_blocks(message.content), *calls]
    blocks += [block for file in message.attachments for block in _text_blocks(said_of(file))]
    while blocks and blocks[-1]["type"] in THOUGHTS:  # the wire takes none at the end
        blocks.pop()
    return b",".join(map(json_bytes, blocks))


def _text_blocks(text: str) -> list[Json]:
    return [{"type": "text", "text": text}] if text.strip() else []


def _index(data: Mapping[str, Any]) -> int:
    index = data.get("index")
    return index if isinstance(index, int) else -1


def _call_block(call: ToolCall) -> Json:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": parse(call.arguments)}


def _result_block(message: Message) -> Json:
    block: Json = {"type": "tool_result", "tool_use_id": message.tool_call_id}
    content = message.content if message.content.strip() else BLANK if message.is_error else ""
    if message.attachments:
        block["content"] = [*_text_blocks(content), *map(_attachment_block, message.attachments)]
    elif content:
        block["content"] = content
    if message.is_error:
        block["is_error"] = True
    return block


def _attachment_block(attachment: Attachment) -> Json:
    source = {
        "type": "base64",
        "media_type": attachment.mime_type,
        "data": base64.b64encode(attachment.data).decode(),
    }
    if attachment.mime_type != abilities.PDF:
        return {"type": "image", "source": source}
    block: Json = {"type": "document", "source": source}
    if attachment.name:
        block["title"] = attachment.name
    return block


def _usage(usage: Mapping[str, Any]) -> Usage:
    read = count(usage.get("cache_read_input_tokens"))
    written = count(usage.get("cache_creation_input_tokens"))
    details = mapping(usage.get("output_tokens_details"))
    return Usage(
        count(usage.get("input_tokens")) + read + written,
        count(usage.get("output_tokens")),
        cached_tokens=read,
        cache_write_tokens=written,
        reasoning_tokens=count(details.get("thinking_tokens")),
    )
