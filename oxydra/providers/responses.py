"""OpenAI Responses, streamed as typed events, and the servers that speak it.

Specification: OpenAI API reference, "Responses", "Streaming events". A stream ends with
`response.completed`, `response.incomplete` or `response.failed`; anything else is no end.

A request carries the whole history. Reasoning comes back encrypted, as items that the same provider
and model get back unchanged, kept in `Message.native`; to others the message is spelt out from its
text and calls alone. Where `ProviderSettings.store` is set, the server keeps each answer, and a
request whose history begins as that answer's did names it and sends only what came after.

Both kinds of state can get lost: answers expire, and what one account's key encrypted, another's
can't read. A request that is refused before it said anything is therefore tried again with less of
it: without the stored answer, then without the reasoning.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from oxydra.errors import ProviderError
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
from oxydra.providers.openai import completions_url
from oxydra.providers.repair import repair
from oxydra.providers.turns import GO_ON, real_names, said_of, text_of, wire_name
from oxydra.threads import CancelToken
from oxydra.transport import HttpStream, Transport, sse
from oxydra.types import (
    Attachment,
    Completed,
    Json,
    Message,
    ModelRequest,
    Native,
    StreamEvent,
    ToolSpec,
    Usage,
)

ENDS = ("response.completed", "response.incomplete", "response.failed")
BREAK = "\n\n"  # between two messages, or two thoughts, of one answer
MAX_CACHE_KEY = 64  # characters
# Codes of a failed response that blame the request: sending it again would not help.
_BLAMES = re.compile(r"invalid_|unsupported_|image_|empty_image|failed_to_download|\w+_policy")


class Responses(HttpProvider):
    """`settings.base_url` with or without its version segment or trailing slash."""

    wire = "responses"

    def __init__(self, settings: ProviderSettings, transport: Transport) -> None:
        super().__init__(settings, transport)
        self._url = responses_url(settings.base_url)

    def url(self, request: ModelRequest) -> str:
        return self._url

    def stream(self, request: ModelRequest, token: CancelToken) -> Iterator[StreamEvent]:
        """See the `Provider` Protocol."""
        asked = request
        while True:
            said = False
            events = cast(Generator[StreamEvent, None, None], super().stream(request, token))
            try:
                with contextlib.closing(events):
                    for event in events:
                        if isinstance(event, Completed) and request is not asked:
                            self._remember(asked, request)
                        said = True
                        yield event
                return
            except ProviderError as error:
                simpler = None if said else self._simpler(request, error)
                if simpler is None:
                    raise
                request = simpler

    # --------------------------------------------------------------------------------- the request

    def encode_message(self, message: Message) -> bytes:
        """The items that a message is to any provider, with commas between them."""
        if message.role == "tool":
            return json_bytes(
                {
                    "type": "function_call_output",
                    "call_id": message.tool_call_id,
                    "output": _content(message),
                }
            )
        items: list[Json] = []
        if message.content or message.attachments:
            items.append({"type": "message", "role": message.role, "content": _content(message)})
        items += (
            {
                "type": "function_call",
                "call_id": call.id,
                "name": call.name,
                "arguments": call.arguments,
            }
            for call in message.tool_calls
        )
        return _joined(items)

    def encode_tool(self, tool: ToolSpec) -> bytes:
        function = {
            "type": "function",
            "name": wire_name(tool.name),
            "description": tool.description,
            "parameters": tool.parameters,
            "strict": False,  # if left out it would be true, and refuse most schemas
        }
        return json_bytes(function)

    def encode_request(
        self, request: ModelRequest, history: Sequence[Message], tools: Sequence[bytes]
    ) -> bytes:
        history = abilities.visible(history, request.model)
        abilities.check_attachments(self.name, request.model, history, abilities.IMAGES)
        previous, since = self._chained(request, history)
        items = list(filter(None, self._items(request, history)[since:]))
        return self.encode_body(request, items or [self._encoded(GO_ON)], tools, previous)

    def encode_body(
        self,
        request: ModelRequest,
        messages: Sequence[bytes],
        tools: Sequence[bytes],
        previous: str = "",
    ) -> bytes:
        """`messages` without the one that begins the history with the system's instructions."""
        model = request.model
        parts = [b'{"model":', json_bytes(model.id), b',"stream":true,"store":']
        parts.append(b"true" if self.settings.store else b"false")
        if model.reasoning:
            parts.append(b',"include":["reasoning.encrypted_content"]')
        if effort := abilities.effort(model, abilities.checked_level(request, self.name)):
            parts += (b',"reasoning":{"effort":', json_bytes(effort))
            parts.append(b"}" if effort == "none" else b',"summary":"auto"}')
        if model.max_output_tokens > 0:
            parts.append(b',"max_output_tokens":%d' % model.max_output_tokens)
        if request.session_id:
            parts += (b',"prompt_cache_key":', json_bytes(request.session_id[:MAX_CACHE_KEY]))
        if _instructed(request.messages) and request.messages[0].content:
            parts += (b',"instructions":', json_bytes(request.messages[0].content))
        if tools:
            parts += (b',"tools":[', b",".join(tools), b"]")
        if previous:
            parts += (b',"previous_response_id":', json_bytes(previous))
        parts += (b',"input":[', b",".join(messages), b"]}")
        return b"".join(parts)

    def _items(self, request: ModelRequest, history: Sequence[Message]) -> list[bytes]:
        """What each message of the history is on this wire, but for the instructions."""
        model = request.model.id
        return [self._item(message, model) for message in history[_instructed(history) :]]

    def _item(self, message: Message, model: str) -> bytes:
        if message.native is None:
            return self._encoded(message)
        key = self._own(model)
        encoded = message.wire.get(key)
        if encoded is None:
            items = _faithful(message, self._native(message, model).get("items"))
            encoded = message.wire[key] = _joined(items) if items else self._encoded(message)
        return encoded

    def _own(self, model: str) -> str:
        """The key in `Message.wire` of what only this provider and `model` understand."""
        return f"{self.wire} {self.name} {model}"

    def _native(self, message: Message, model: str) -> Mapping[str, Any]:
        """What `message` keeps for this provider and `model`; empty if it came from another."""
        native = message.native
        if native is None or (native.provider, native.model) != (self.name, model):
            return {}
        return native.data

    # ------------------------------------------------------------------- state that may be refused

    def _chained(self, request: ModelRequest, history: Sequence[Message]) -> tuple[str, int]:
        """The stored answer to go on from and the number of items it makes superfluous; "" and 0
        where there is none, or where the history before it is not what that answer was given to.
        """
        start = _instructed(history)
        for at in range(len(history) - 2, start, -1) if self.settings.store else ():
            native = self._native(history[at], request.model.id)
            if identity := native.get("response"):
                called = [call.id for call in history[at].tool_calls]
                before = self._digest(request, history[:at])
                if (native.get("after"), native.get("calls")) == (before, called):
                    return str(identity), at + 1 - start
                break
        return "", 0

    def _digest(self, request: ModelRequest, history: Sequence[Message]) -> str:
        digest = hashlib.sha256()
        for item in self._items(request, history):
            digest.update(b"%d:" % len(item))
            digest.update(item)
        return digest.hexdigest()

    def _simpler(self, request: ModelRequest, error: ProviderError) -> ModelRequest | None:
        """`request` with less state, if what it carries may be why it was refused."""
        chained, _ = self._chained(request, repair(request.messages))
        if error.code == "context_overflow" or not (
            error.status == 400 or (error.status == 404 and chained)
        ):
            return None
        stays = "items" if chained else ""
        changed = False
        messages = []
        for message in request.messages:
            native = self._native(message, request.model.id)
            fewer = {name: value for name, value in native.items() if name == stays}
            if message.native is not None and native and len(fewer) < len(native):
                changed = True
                # the encoded forms stay: those with and without native parts have keys of their own
                own = replace(message.native, data=fewer) if fewer else None
                message = replace(message, native=own)
            messages.append(message)
        return replace(request, messages=messages) if changed else None

    def _remember(self, asked: ModelRequest, answered: ModelRequest) -> None:
        """What had to be left out so that `asked` was answered need not be tried again."""
        key = self._own(asked.model.id)
        for before, after in zip(asked.messages, answered.messages, strict=True):
            if before.native is not None and after.native is None and self.wire in before.wire:
                before.wire[key] = before.wire[self.wire]

    # ---------------------------------------------------------------------------------- the answer

    def decode(
        self, stream: HttpStream, request: ModelRequest
    ) -> Generator[StreamEvent, None, Completed]:
        answer = Answer()
        if "application/json" in stream.headers.get("content-type", ""):
            response = self._parsed(stream.read(), request)
            kind = f"response.{response.get('status') or 'completed'}"
            if response.get("object") != "response" and response.get("error"):
                kind = ENDS[2]
            yield from answer.take(kind, {"response": response})
        else:
            for event in sse(stream):
                if event.data == "[DONE]":
                    break
                fields = self._parsed(event.data, request)
                kind = str(fields.get("type") or event.event)
                if kind == "error":
                    raise self._failed(stream, request, {**fields, **mapping(fields.get("error"))})
                yield from answer.take(kind, fields)
                if answer.ended:
                    break
        if answer.ended == ENDS[2]:
            raise self._failed(stream, request, answer.response.get("error"))
        if not answer.ended:
            raise self.malformed(request, "broke its answer off before its end")
        called = [call.id for call in answer.calls]
        names = real_names(request.tools)
        for call in answer.calls:
            call.name = names.get(call.name, call.name)
        completed = answer.completed(request.messages)
        data: Json = {}
        if items := _faithful(completed.message, answer.items_to_keep()):
            data["items"] = items
        if self.settings.store and answer.ended == ENDS[0] and answer.response.get("id"):
            data["response"] = answer.response["id"]
            data["after"] = self._digest(request, repair(request.messages))
            data["calls"] = called  # the server's ids for them, which results must bear
        if not data:
            return completed
        native = Native(self.name, request.model.id, data)
        return replace(completed, message=replace(completed.message, native=native))

    def _failed(self, stream: HttpStream, request: ModelRequest, error: Any) -> ProviderError:
        fields = mapping(error)
        if _BLAMES.match(str(fields.get("code"))):
            fields = {**fields, "status": 400}
        return self.reported(stream, request, fields)


class Answer(Assembly):
    """An answer as its events build it up. Items are told apart by `output_index`, and where a
    server leaves that out, by their ids.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ended = ""  # the event that ended the stream
        self.response: Mapping[str, Any] = {}
        self._items: dict[int | str, Mapping[str, Any]] = {}  # as they were when done
        self._pending: dict[int | str, PendingCall] = {}
        self._told: set[int | str] = set()  # items of which something was streamed
        self._last_text: int | str | None = None
        self._last_thought: Any = None

    def take(self, kind: str, event: Mapping[str, Any]) -> list[StreamEvent]:
        """The deltas of one event, which is added to the answer."""
        item = _key(event, event.get("item_id"))
        delta = event.get("delta")
        piece = delta if isinstance(delta, str) else ""
        match kind:
            case "response.output_text.delta":
                return self._say(item, piece)
            case "response.refusal.delta":
                self.refused = True
                return self._say(item, piece)
            case "response.reasoning_summary_text.delta":
                return self._think(item, event.get("summary_index"), piece)
            case "response.reasoning_text.delta":
                return self._think(item, event.get("content_index"), piece)
            case "response.function_call_arguments.delta":
                self._call(item).arguments.append(piece)
            case "response.function_call_arguments.done":
                if isinstance(whole := event.get("arguments"), str):
                    self._call(item).arguments = [whole]
            case "response.output_item.added" | "response.output_item.done":
                found = mapping(event.get("item"))
                return self._item(_key(event, found.get("id")), found, done=kind.endswith("done"))
            case _ if kind in ENDS:
                return self._end(kind, mapping(event.get("response")))
        return []

    def items_to_keep(self) -> list[Mapping[str, Any]]:
        """The items that the model wants back, if there is more to them than text and calls."""
        items = [item for item in self._items.values() if item]
        while items and items[-1].get("type") == "reasoning":
            items.pop()  # cut before what it led to: it must not stand alone
        thoughts = [item for item in items if item.get("type") == "reasoning"]
        if not all(item.get("encrypted_content") or item.get("content") for item in thoughts):
            return []  # only an id, and the server may not have kept what it stands for
        return items if thoughts or any("phase" in item for item in items) else []

    def _say(self, item: int | str, piece: str) -> list[StreamEvent]:
        if not piece:
            return []
        new = self._last_text not in (None, item)
        self._last_text = item
        self._told.add(item)
        return [self.text(BREAK), self.text(piece)] if new else [self.text(piece)]

    def _think(self, item: int | str, part: Any, piece: str) -> list[StreamEvent]:
        if not piece:
            return []
        new = self._last_thought not in (None, (item, part))
        self._last_thought = (item, part)
        self._told.add(item)
        return [self.reasoning(BREAK), self.reasoning(piece)] if new else [self.reasoning(piece)]

    def _call(self, item: int | str) -> PendingCall:
        call = self._pending.get(item)
        if call is None:
            call = self._pending[item] = PendingCall()
            self.calls.append(call)
        return call

    def _item(self, key: int | str, item: Mapping[str, Any], *, done: bool) -> list[StreamEvent]:
        self._items.setdefault(key, {})
        if done:
            self._items[key] = item
        kind = item.get("type")
        if kind == "function_call":
            call = self._call(key)
            call.id = str(item.get("call_id") or item.get("id") or "") or call.id
            call.name = str(item.get("name") or "") or call.name
            if done and isinstance(whole := item.get("arguments"), str):
                call.arguments = [whole]
        if not done or key in self._told:
            return []
        deltas: list[StreamEvent] = []
        if kind == "message":
            for part in _parts(item.get("content")):
                self.refused = self.refused or part.get("type") == "refusal"
                deltas += self._say(key, _text(part))
        elif kind == "reasoning":
            thoughts = _parts(item.get("summary")) or _parts(item.get("content"))
            for number, part in enumerate(thoughts):
                deltas += self._think(key, number, _text(part))
        return deltas

    def _end(self, kind: str, response: Mapping[str, Any]) -> list[StreamEvent]:
        self.ended = kind
        self.response = response
        self.usage = _usage(mapping(response.get("usage")))
        if kind == "response.incomplete":
            reason = mapping(response.get("incomplete_details")).get("reason")
            self.finish = "content_filter" if reason == "content_filter" else "length"
        deltas: list[StreamEvent] = []
        if self.empty and not self._items:  # an answer given whole
            for number, item in enumerate(_parts(response.get("output"))):
                deltas += self._item(number, item, done=True)
        return deltas


def _key(event: Mapping[str, Any], identity: Any) -> int | str:
    """What tells the item of an event from others."""
    index = event.get("output_index")
    return index if isinstance(index, int) else str(identity)


def responses_url(base_url: str) -> str:
    """Where to post for a `base_url`: `/v1` is added unless some segment is a version already."""
    address, mark, query = base_url.strip().partition("?")
    address = address.rstrip("/").removesuffix("/responses")
    before, _, after = completions_url(address + mark + query).rpartition("/chat/completions")
    return f"{before}/responses{after}"


def _instructed(messages: Sequence[Message]) -> int:
    """1 if the first message is the system's, which goes out as `instructions`, else 0."""
    return int(bool(messages) and messages[0].role == "system")


def _joined(items: Sequence[Mapping[str, Any]]) -> bytes:
    return b",".join(json_bytes(item) for item in items)


def _content(message: Message) -> str | list[Json]:
    """A message's content: a text, or parts if there is more to it."""
    if not message.attachments:
        return message.content
    if message.role == "assistant":  # takes no files here; it is told what it made
        return "\n".join(filter(None, (message.content, *map(said_of, message.attachments))))
    parts: list[Json] = [{"type": "input_text", "text": message.content}] if message.content else []
    return parts + [_file(attachment) for attachment in message.attachments]


def _file(attachment: Attachment) -> Json:
    data = f"data:{attachment.mime_type};base64,{base64.b64encode(attachment.data).decode()}"
    if attachment.mime_type.startswith("image/"):
        return {"type": "input_image", "image_url": data, "detail": "auto"}
    name = attachment.name or f"file.{attachment.mime_type.rpartition('/')[2]}"
    return {"type": "input_file", "filename": name, "file_data": data}


def _faithful(message: Message, items: Any) -> list[Mapping[str, Any]]:
    """`items` if they say what `message` says, or else none: it may have been repaired since."""
    found = _parts(items)
    texts = (
        "".join(_text(part) for part in _parts(item.get("content")))
        for item in found
        if item.get("type") == "message"
    )
    calls = [
        (item.get("call_id"), item.get("name"), item.get("arguments"))
        for item in found
        if item.get("type") == "function_call"
    ]
    same = BREAK.join(filter(None, texts)) == message.content and calls == [
        (call.id, wire_name(call.name), call.arguments) for call in message.tool_calls
    ]
    return found if same and not message.attachments else []


def _parts(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a list, which a server may have put anything into."""
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []


def _text(part: Mapping[str, Any]) -> str:
    return text_of(part.get("text")) or text_of(part.get("refusal"))


def _usage(usage: Mapping[str, Any]) -> Usage:
    read = mapping(usage.get("input_tokens_details"))
    written = mapping(usage.get("output_tokens_details"))
    return Usage(
        count(usage.get("input_tokens")),
        count(usage.get("output_tokens")),
        count(read.get("cached_tokens")),
        count(written.get("reasoning_tokens")),
    )
