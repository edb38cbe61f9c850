"""Google Gemini, streamed: `models/{model}:streamGenerateContent?alt=sse`.

Specification: Gemini API reference, "Generating content", "Function calling", "Thought signatures",
"Thinking", "Image generation"; `v1beta`. The wire has no end marker: a stream is believed once a
chunk brought a `finishReason` (or the prompt was blocked) and the body then ended as HTTP says it
must. Any other end is an error, which may be tried again.

Tools are declared with `parametersJsonSchema`, which takes JSON Schema as it is, instead of
`parameters`, which takes a part of OpenAPI's. Calls have ids only where the API gave them one;
the others are answered in their order, which `repair` sees to.

Parts come with thought signatures, which must go back on the very part they came on.
`Message.native` keeps them, `{"gemini": [part, …]}`: `{"text": characters}`, `{"call": index}`,
`{"image": index}` for what the message holds already, each with its `signature` if it had one, and
`{"thought": part}` for a signed thought. The same provider and model gets all of it back. Models
since Gemini 3 refuse a call without a signature, so a call that another model made gets the one
that the documentation gives for that: `skip_thought_signature_validator`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from oxydra.errors import ProviderError
from oxydra.frames import compact, parse
from oxydra.providers import abilities
from oxydra.providers.base import (
    Assembly,
    PendingCall,
    count,
    json_bytes,
    mapping,
)
from oxydra.providers.repair import MAX_NAME
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
from oxydra.transport import HttpStream, sse
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

IMAGES = ("image/png", "image/jpeg", "image/webp", "image/heic", "image/heif")
IMAGE_EVENT = 48 << 20  # bytes of one event that may bring an image
FINISH: dict[str, FinishReason] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "LANGUAGE": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "IMAGE_SAFETY": "content_filter",
    "IMAGE_PROHIBITED_CONTENT": "content_filter",
    "IMAGE_RECITATION": "content_filter",
}
FAILED = (  # what was written is of no use, but another attempt may be
    "MALFORMED_FUNCTION_CALL",
    "MALFORMED_RESPONSE",
    "UNEXPECTED_TOOL_CALL",
    "TOO_MANY_TOOL_CALLS",
    "MISSING_THOUGHT_SIGNATURE",
)
UNSIGNED = "skip_thought_signature_validator"
_SIGNING = re.compile(r"(models/)?gemini-([3-9]|\d\d)\b")
_VERSIONED = re.compile(r"/v\d+\w*$")


class Gemini(SignedProvider):
    """`settings.base_url` with or without its version segment."""

    wire = "gemini"

    def url(self, request: ModelRequest) -> str:
        return model_url(self.settings.base_url, request.model.id)

    def refused(
        self, request: ModelRequest, status: int, headers: Mapping[str, str], body: str
    ) -> ProviderError:
        """What the wire says in its error's details instead of in statuses and headers: a wrong key
        (which comes as 400), when to come back, and that it is a day's quota that is used up.
        """
        details = _error_details(body)
        if any(detail.get("reason") == "API_KEY_INVALID" for detail in details):
            status = 401
        for detail in details:
            if delay := re.fullmatch(r"([\d.]+)s", text_of(detail.get("retryDelay"))):
                headers = {"retry-after": delay[1], **headers}
        error = super().refused(request, status, headers, body)
        if status == 429 and "PerDay" in json.dumps(details):
            error.code, error.retryable = "quota", False
        return error

    # ------------------------------------------------------------------------------- the request

    def encode_request(
        self, request: ModelRequest, history: Sequence[Message], tools: Sequence[bytes]
    ) -> bytes:
        model = request.model
        history = abilities.visible(history, model, IMAGES)
        abilities.check_attachments(self.name, model, history, IMAGES)
        named: set[str] = set()  # calls whose ids are the API's
        contents = []
        for role, messages in _contents(turns(history)):
            parts = b",".join(self._parts(message, model, named) for message in messages)
            contents.append(b'{"role":"%s","parts":[%s]}' % (role, parts))
        return self.encode_body(request, contents, tools)

    def encode_body(
        self, request: ModelRequest, messages: Sequence[bytes], tools: Sequence[bytes]
    ) -> bytes:
        config = json_bytes(self._generation(request))
        parts = [b'{"generationConfig":', config]
        if tools:
            parts += (b',"tools":[{"functionDeclarations":[', b",".join(tools), b"]}]")
        if system := system_messages(request.messages):
            texts = b",".join(map(self._encoded, system))
            parts += (b',"systemInstruction":{"parts":[', texts, b"]}")
        parts += (b',"contents":[', b",".join(messages), b"]}")
        return b"".join(parts)

    def encode_message(self, message: Message) -> bytes:
        """The parts of a message, separated by commas, as any model may read them."""
        if message.role == "tool":
            return _result_parts(message, named=False)
        if message.role == "assistant":
            return _assistant_parts(message, images=False, signing=False)
        parts = [_inline(attachment) for attachment in message.attachments]
        if message.content.strip() or not parts:
            parts.append({"text": message.content if message.content.strip() else BLANK})
        return b",".join(map(json_bytes, parts))

    def encode_tool(self, tool: ToolSpec) -> bytes:
        function = {
            "name": function_name(tool.name),
            "description": tool.description,
            "parametersJsonSchema": tool.parameters,
        }
        return json_bytes(function)

    def _parts(self, message: Message, model: ModelSpec, named: set[str]) -> bytes:
        """The parts of a message for `model`; `named` are the calls before it that go by id, to
        which its own are added.
        """
        if message.role == "tool" and message.tool_call_id in named:
            return self.encode_kept(message, "named", lambda m: _result_parts(m, named=True))
        if message.role != "assistant":
            return self._encoded(message)
        signing = needs_signatures(model)
        own = self.own_parts(message, model)
        if own is not None and _fits(message, own):
            calls = [part for part in own if "call" in part]
            pairs = zip(message.tool_calls, calls, strict=True)
            named.update(call.id for call, part in pairs if part.get("id"))
            return self.encode_own(message, model, lambda m: _own_parts(m, own, signing))
        variant = ("images " if model.images else "") + ("signing" if signing else "")
        return self.encode_kept(
            message, variant, lambda m: _assistant_parts(m, images=model.images, signing=signing)
        )

    def _generation(self, request: ModelRequest) -> Json:
        model, level = request.model, abilities.checked_level(request, self.name)
        config: Json = {}
        if model.max_output_tokens > 0:
            config["maxOutputTokens"] = model.max_output_tokens
        if model.images_out:
            config["responseModalities"] = ["TEXT", "IMAGE"]
        if thinking := _thinking(model, level):
            config["thinkingConfig"] = thinking
        return config

    # -------------------------------------------------------------------------------- the answer

    def decode(
        self, stream: HttpStream, request: ModelRequest
    ) -> Generator[StreamEvent, None, Completed]:
        answer = Answer(real_names(request.tools, function_name))
        limit = {"max_event": IMAGE_EVENT} if request.model.images_out else {}
        for event in sse(stream, **limit):
            chunk = self._parsed(event.data, request)
            if error := chunk.get("error"):
                raise self.reported(stream, request, error)
            yield from answer.take(chunk)
        if answer.failed:
            raise self.malformed(request, f"ended its answer with {answer.failed}")
        if answer.finish is None and not answer.refused:
            raise self.malformed(request, "broke its answer off before its end")
        if answer.empty and not answer.images and answer.stopped not in ("", "STOP", "MAX_TOKENS"):
            yield answer.text(f"The provider gave no answer: {answer.stopped}.")
        signed = any(part.keys() & {"signature", "thought", "id"} for part in answer.parts)
        native = self.keep_parts(request.model, answer.parts) if signed else None
        completed = answer.completed(request.messages, native)
        if not answer.images:
            return completed
        message = replace(completed.message, attachments=tuple(answer.images))
        return replace(completed, message=message)


class Answer(Assembly):
    """An answer as its chunks build it up, and the places of its parts."""

    def __init__(self, names: Mapping[str, str]) -> None:
        super().__init__()
        self.parts: list[Json] = []
        self.images: list[Attachment] = []
        self.failed = ""  # why the answer is of no use
        self.stopped = ""  # why it ended, in the wire's word
        self._names = names
        self._usage: dict[str, Any] = {}

    def take(self, chunk: Mapping[str, Any]) -> list[StreamEvent]:
        """The deltas of one chunk, which is added to the answer."""
        if usage := mapping(chunk.get("usageMetadata")):
            self._usage |= usage
            self.usage = _usage(self._usage)
        if reason := mapping(chunk.get("promptFeedback")).get("blockReason"):
            self.refused, self.stopped = True, str(reason)
        candidates = chunk.get("candidates")
        candidate = mapping(candidates[0]) if isinstance(candidates, list) and candidates else {}
        deltas: list[StreamEvent] = []
        parts = mapping(candidate.get("content")).get("parts")
        for part in parts if isinstance(parts, list) else ():
            deltas += self._part(mapping(part))
        if reason := candidate.get("finishReason"):
            self.stopped = str(reason)
            self.failed = self.stopped if self.stopped in FAILED else ""
            self.finish = FINISH.get(self.stopped, "stop")
        return deltas

    def _part(self, part: Mapping[str, Any]) -> list[StreamEvent]:
        signature = text_of(part.get("thoughtSignature"))
        signed = {"signature": signature} if signature else {}
        text = text_of(part.get("text"))
        if part.get("thought"):
            if signature and "inlineData" not in part:
                self.parts.append({"thought": dict(part)})
            return [self.reasoning(text)] if text else []
        if "functionCall" in part:
            self._call(mapping(part["functionCall"]), signed)
        elif "inlineData" in part:
            self._image(mapping(part["inlineData"]), signed)
        elif text or signed:
            last = self.parts[-1] if self.parts else {}
            if "text" in last and "signature" not in last and not signed:
                last["text"] += len(text)
            else:
                self.parts.append({"text": len(text), **signed})
            return [self.text(text)] if text else []
        return []

    def _call(self, call: Mapping[str, Any], signed: Json) -> None:
        name, identity = text_of(call.get("name")), text_of(call.get("id"))
        written = [compact(call.get("args") or {})]
        place = {"call": len(self.calls), **signed}
        self.parts.append({**place, "id": True} if identity else place)
        self.calls.append(PendingCall(None, identity, self._names.get(name, name), written))

    def _image(self, blob: Mapping[str, Any], signed: Json) -> None:
        kind = text_of(blob.get("mimeType")) or "application/octet-stream"
        try:
            data = base64.b64decode(text_of(blob.get("data")))
        except binascii.Error:
            data = b""
        if not data:
            return
        self.parts.append({"image": len(self.images), **signed})
        name = f"image-{len(self.images) + 1}.{kind.rpartition('/')[2]}"
        self.images.append(Attachment(kind, hashlib.sha256(data).hexdigest(), data, name))


def model_url(base_url: str, model: str) -> str:
    """Where to post for a `base_url`: `/v1beta` is added unless it ends with a version."""
    address, _, query = base_url.strip().partition("?")
    address = address.rstrip("/")
    if not _VERSIONED.search(address):
        address += "/v1beta"
    path = quote(model if model.startswith(("models/", "tunedModels/")) else f"models/{model}")
    return f"{address}/{path}:streamGenerateContent?alt=sse" + (f"&{query}" if query else "")


def function_name(name: str) -> str:
    """The name of a tool as the wire takes it: as elsewhere, but beginning with no digit or `-`."""
    name = wire_name(name)
    return name if name[0].isalpha() or name[0] == "_" else f"_{name}"[:MAX_NAME]


def needs_signatures(model: ModelSpec) -> bool:
    """Whether the model refuses calls without a signature, as all do since Gemini 3. These are also
    the ones whose thinking is set by level.
    """
    return bool(_SIGNING.match(model.id) or abilities.option(model, "effort"))


def _thinking(model: ModelSpec, level: str) -> Json:
    """Models since Gemini 3 think at a level, those before with a budget; `off` is no thinking, or
    as little as the model can. Where it can be set, what is thought is shown.
    """
    effort = abilities.option(model, "effort")
    budget = abilities.option(model, "budget_tokens")
    if not (effort or budget):
        return {}
    thinking: Json = {} if level == "off" else {"includeThoughts": True}
    if effort and level:
        thinking["thinkingLevel"] = abilities.nearest(effort.values, level)
    elif budget and level == "off":
        thinking["thinkingBudget"] = 0 if abilities.option(model, "toggle") else budget.minimum or 0
    elif budget and level:
        tokens = abilities.budget(budget, level, model.max_output_tokens)
        thinking["thinkingBudget"] = tokens or -1  # -1: as the model sees fit
    return thinking


def _contents(spoken: Sequence[Turn]) -> Iterator[tuple[bytes, list[Message]]]:
    """Turns with their role on the wire; what tools answered apart from what the user said, since
    answers must follow their calls alone.
    """
    for turn in spoken:
        if turn.role == "assistant":
            yield b"model", turn.messages
            continue
        for is_result in (True, False):
            if said := [m for m in turn.messages if (m.role == "tool") == is_result]:
                yield b"user", said


def _fits(message: Message, own: Sequence[Json]) -> bool:
    """Whether the places that were kept are still those of the message's parts."""
    return (
        sum(part.get("text", 0) for part in own) == len(message.content)
        and [part["call"] for part in own if "call" in part] == [*range(len(message.tool_calls))]
        and sum("image" in part for part in own) == len(message.attachments)
    )


def _own_parts(message: Message, own: Sequence[Json], signing: bool) -> bytes:
    """The parts of an assistant's message as its model wrote them, with their signatures."""
    parts: list[Json] = []
    at = 0
    for place in own:
        if "thought" in place:
            parts.append(place["thought"])
            continue
        if "call" in place:
            call = message.tool_calls[place["call"]]
            part = _call_part(call, named=bool(place.get("id")))
        elif "image" in place:
            part = _inline(message.attachments[place["image"]])
        else:
            part = {"text": message.content[at : at + place["text"]]}
            at += place["text"]
        if "signature" in place:
            part["thoughtSignature"] = place["signature"]
        parts.append(part)
    return b",".join(map(json_bytes, _signed(parts) if signing else parts))


def _assistant_parts(message: Message, *, images: bool, signing: bool) -> bytes:
    """The parts of an assistant's message that another model wrote."""
    parts: list[Json] = [{"text": message.content}] if message.content.strip() else []
    for attachment in message.attachments:
        shown = images and attachment.mime_type in IMAGES and attachment.data
        parts.append(_inline(attachment) if shown else {"text": said_of(attachment)})
    parts += [_call_part(call, named=False) for call in message.tool_calls]
    return b",".join(map(json_bytes, _signed(parts) if signing else parts))


def _signed(parts: Sequence[Json]) -> Sequence[Json]:
    """`parts` whose first call, the one that is looked at, has a signature."""
    first = next((part for part in parts if "functionCall" in part), None)
    if first is not None:
        first.setdefault("thoughtSignature", UNSIGNED)
    return parts


def _call_part(call: ToolCall, *, named: bool) -> Json:
    part: Json = {"name": function_name(call.name), "args": parse(call.arguments)}
    if named:
        part["id"] = call.id
    return {"functionCall": part}


def _result_parts(message: Message, *, named: bool) -> bytes:
    answer = {"error" if message.is_error else "output": message.content}
    part: Json = {"name": function_name(message.name), "response": answer}
    if named:
        part["id"] = message.tool_call_id
    parts = [{"functionResponse": part}, *map(_inline, message.attachments)]
    return b",".join(map(json_bytes, parts))


def _inline(attachment: Attachment) -> Json:
    data = base64.b64encode(attachment.data).decode()
    return {"inlineData": {"mimeType": attachment.mime_type, "data": data}}


def _usage(usage: Mapping[str, Any]) -> Usage:
    thought = count(usage.get("thoughtsTokenCount"))
    return Usage(
        count(usage.get("promptTokenCount")) + count(usage.get("toolUsePromptTokenCount")),
        count(usage.get("candidatesTokenCount")) + thought,
        count(usage.get("cachedContentTokenCount")),
        thought,
    )


def _error_details(body: str) -> list[Mapping[str, Any]]:
    """The `details` of an error's body, empty if it has none."""
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return []
    if isinstance(parsed, list) and parsed:
        parsed = parsed[0]
    details = mapping(mapping(parsed).get("error")).get("details")
    return [mapping(detail) for detail in details] if isinstance(details, list) else []
