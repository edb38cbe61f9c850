"""Every wire format of Oxydra: what crosses a process boundary is encoded and decoded here. Pure.

- Gateway frames: WebSocket text frames `{"type", "seq"?, "payload"}`. `CLIENT` and `SERVER` are the
  tables of all types with their fields; `decode_client` and `decode_server` check a frame.
- Length-prefixed frames: 4 bytes big-endian length, then JSON `{"op", "payload"}`: the runner's
  control socket, the bootstrap stream and the control stream between runner and guest. `pack` and
  `Unpacker`.
- `Envelope`: what a guest is started with.
- Messages as JSON: how the store and the gateway write a `Message`.

A field is written `name:type` or `name?:type`; types are str, int, float, bool, object, list, any.
An optional field may be absent or null. Unknown fields are ignored, so that either end may be
newer. JSON from a stranger is read by `parse` and nothing else.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from oxydra.errors import FrameError
from oxydra.types import (
    Attachment,
    Event,
    Folder,
    Json,
    Message,
    Native,
    Session,
    ToolCall,
    Usage,
)

PROTOCOL_VERSION = 2
MAX_TEXT_FRAME = 1 << 20  # bytes, without attachments
MAX_ATTACHMENT_FRAME = 64 << 20
MAX_PACKED = 8 << 20  # bytes of one length-prefixed frame
MAX_DEPTH = 100  # nested lists and objects in JSON from a stranger

_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "object": (dict,),
    "list": (list,),
    "any": (object,),
}


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    type: str
    required: bool


def _fields(spec: str) -> tuple[Field, ...]:
    fields = []
    for part in spec.split():
        name, _, kind = part.partition(":")
        fields.append(Field(name.rstrip("?"), kind, not name.endswith("?")))
    return tuple(fields)


_IN_TURN = "request_id:str session:object turn:object "

CLIENT = {
    name: _fields(spec)
    for name, spec in {
        "hello": "request_id:str protocol_version:int user_id:str session_id?:str "
        "create_new_session?:bool agent_name?:str last_seq?:int epoch?:str",
        "send_turn": "request_id:str session_id:str turn_id:str prompt:str attachments?:list "
        "steer?:bool",
        "cancel_active_turn": "request_id:str session_id:str turn_id:str",
        "cancel_all_active_turns": "request_id:str",
        "health_check": "request_id:str",
        "create_session": "request_id:str display_name?:str agent_name?:str",
        "list_sessions": "request_id:str include_archived?:bool include_subagent_sessions?:bool",
        "switch_session": "request_id:str session_id:str",
        "history": "request_id:str session_id:str before_sequence?:int limit?:int",
        "approve": "request_id:str approval_id:str decision:str scope?:str",
        "command": "request_id:str session_id?:str name:str args?:object",
    }.items()
}

SERVER = {
    name: _fields(spec)
    for name, spec in {
        "hello_ack": "request_id:str protocol_version:int session:object active_turn?:object "
        "seq:int epoch:str resumed?:bool scopes?:list",
        "turn_started": _IN_TURN,
        "assistant_delta": _IN_TURN + "delta:str",
        "reasoning_delta": _IN_TURN + "delta:str",
        "turn_progress": _IN_TURN + "progress:object",
        "tool_event": _IN_TURN + "call:object",
        "approval_request": "request_id?:str session:object turn:object approval_id:str tool:str "
        "safety_tier:str arguments:str arguments_sha256:str complete:bool reason:str "
        "expires_at:str",
        "approval_resolved": _IN_TURN + "approval_id:str tool:str decision:str by:str scope?:str",
        "turn_completed": _IN_TURN + "response:object",
        "turn_cancelled": _IN_TURN,
        "turn_joined": _IN_TURN + "into:str",
        "scheduled_notification": "notice_id:int schedule_id:str schedule_name:str due:str "
        "message:str tainted:bool",
        "media_attachment": _IN_TURN + "attachment:object",
        "error": "request_id?:str session?:object turn?:object message:str code?:str "
        "retry_after_ms?:int",
        "health_status": "request_id:str healthy:bool session?:object active_turn?:object "
        "startup_status?:object message?:str",
        "session_created": "request_id:str session:object display_name?:str agent_name:str "
        "active_turn?:object seq?:int epoch?:str",
        "session_list": "request_id:str sessions:list",
        "session_switched": "request_id:str session:object active_turn?:object seq?:int epoch?:str",
        "session_history": "request_id:str session:object events:list more:bool",
        "command_result": "request_id:str name:str data:object",
    }.items()
}

# an error is terminal when it has a turn
TERMINAL = ("turn_completed", "turn_cancelled", "turn_joined", "error")


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded gateway frame. `seq` is 0 where there is none (client frames, direct replies);
    `first_seq` is the first number of those that were merged into it, 0 where none were.
    """

    type: str
    payload: Json
    seq: int = 0
    first_seq: int = 0


def compact(value: Any) -> str:
    """JSON as every wire of ours writes it: no spaces, text as it is."""
    return _encode(value)


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode  # made once


TOOL_CALL = "tool_call"  # the tool that calls another one


def real_call(call: ToolCall) -> ToolCall:
    """The call that a call of `tool_call` is of; any other, and one that names none, as it is."""
    if call.name != TOOL_CALL:
        return call
    try:
        given = parse(call.arguments)
        name = given.get("name") if isinstance(given, dict) else None
        arguments = given.get("arguments") if isinstance(given, dict) else None
        if isinstance(arguments, str):  # as some models have it
            arguments = parse(arguments)
    except FrameError:
        return call
    if not isinstance(name, str) or not name or not isinstance(arguments, dict | None):
        return call
    return ToolCall(call.id, name, compact(arguments or {}))


def _utf8(text: str) -> bytes:
    """UTF-8; a lone surrogate, which UTF-8 cannot hold, becomes U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is out of range")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_decoder = json.JSONDecoder(parse_float=_finite, parse_constant=_no_constant)
# Strings whole and everything else that is no bracket; possessive, so that no input backtracks.
_NO_BRACKETS = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[^\[\]{}"]++', re.DOTALL)


def parse(text: str) -> Any:
    """JSON (RFC 8259) from a stranger; raises `FrameError`, whatever it is.

    What it returns can be encoded and stored: no NaN or infinity, no lone surrogate (U+FFFD stands
    in its place), nothing nested deeper than `MAX_DEPTH`. The standard decoder recurses in C, in
    some versions of Python far enough to overflow a thread's stack and end the process, so depth
    is checked before it runs.
    """
    if text.count("[") + text.count("{") > MAX_DEPTH and _too_deep(text):
        raise FrameError(f"The JSON is nested deeper than {MAX_DEPTH}.")
    try:
        value = _decoder.decode(text)
        if "\\u" in text:
            flat = compact(value)
            if not flat.isascii() and (clean := _utf8(flat).decode()) != flat:
                return _decoder.decode(clean)
    except (ValueError, RecursionError):
        raise FrameError("That is not valid JSON.") from None
    return value


def _too_deep(text: str) -> bool:
    depth = 0
    for bracket in _NO_BRACKETS.sub("", text):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


def encode(frame_type: str, payload: Json, seq: int = 0) -> bytes:
    """A gateway frame as UTF-8. A lone surrogate becomes U+FFFD."""
    numbered = f',"seq":{seq}' if seq else ""
    text = f'{{"type":"{frame_type}"{numbered},"payload":{compact(payload)}}}'
    return _utf8(text)


STREAMED = ("assistant_delta", "reasoning_delta")  # of these, frames that follow may be merged


class Streamed:
    """The frames of one kind of text that one turn streams: what all have in common is encoded
    once, and the text of several may stand in one.
    """

    __slots__ = ("_body", "_head")

    def __init__(self, frame_type: str, payload: Json) -> None:
        """`payload` is that of any of them."""
        self._head = f'{{"type":"{frame_type}","seq":'.encode()
        shared = {name: value for name, value in payload.items() if name != "delta"}
        self._body = _utf8(f',"payload":{compact({**shared, "delta": ""})}')[:-2]

    def encode(self, first: int, last: int, text: bytes) -> bytes:
        """The frame that stands for those numbered `first` to `last`; `text` is `escaped`."""
        merged = b',"first_seq":%d' % first if first != last else b""
        return b'%b%d%b%b%b"}}' % (self._head, last, merged, self._body, text)


def escaped(text: str) -> bytes:
    """What stands in a JSON string, without its quotes."""
    return _utf8(compact(text))[1:-1]


def decode_client(text: str) -> Frame:
    """A client's frame, checked. Raises `FrameError` that carries the `request_id` where there is
    one.
    """
    return _decode(text, CLIENT)


def decode_server(text: str) -> Frame:
    """A server's frame, checked; raises `FrameError`."""
    return _decode(text, SERVER)


def _decode(text: str, table: dict[str, tuple[Field, ...]]) -> Frame:
    frame = parse(text)
    if not isinstance(frame, dict) or not isinstance(frame.get("type"), str):
        raise FrameError('A frame is an object {"type", "payload"}.')
    payload = frame.get("payload", {})
    if not isinstance(payload, dict):
        raise FrameError("The frame's payload is not an object.")
    request_id = payload.get("request_id")
    request_id = request_id if isinstance(request_id, str) else ""
    fields = table.get(frame["type"])
    if fields is None:
        raise FrameError(f"Unknown frame type {frame['type'][:64]!r}.", request_id=request_id)
    if what := _wrong_field(payload, fields):
        raise FrameError(f"{frame['type']}: {what}", request_id=request_id)
    return Frame(frame["type"], payload, _number(frame, "seq"), _number(frame, "first_seq"))


def _number(frame: Json, name: str) -> int:
    value = frame.get(name, 0)
    return int(value) if is_type(value, "int") else 0


def _wrong_field(payload: Json, fields: tuple[Field, ...]) -> str:
    """What is wrong with the first wrong field, as a sentence; empty if all is well."""
    for expected in fields:
        value = payload.get(expected.name)
        if value is None:
            if expected.required:
                return f"field {expected.name!r} is missing."
        elif not is_type(value, expected.type):
            return f"field {expected.name!r} is not of type {expected.type}."
    return ""


def is_type(value: Any, kind: str) -> bool:
    """Whether a JSON value is of one of our field types; a bool is no number, and a number fits
    into 64 bits.
    """
    if kind in ("int", "float"):
        if isinstance(value, bool):
            return False
        if isinstance(value, int):
            return -(1 << 63) <= value < 1 << 63
    return isinstance(value, _TYPES[kind])


# --------------------------------------------------------------------------------- values in frames


def session_ref(user_id: str, session_id: str) -> Json:
    return {"user_id": user_id, "session_id": session_id}


def turn_ref(turn_id: str, state: str) -> Json:
    return {"turn_id": turn_id, "state": str(state)}


def session_json(session: Session) -> Json:
    """A row of `session_list`."""
    return {
        "session_id": session.session_id,
        "agent_name": session.agent_name,
        "display_name": session.display_name or None,
        "title": session.title,
        "channel_origin": session.channel_origin,
        "created_at": session.created_at,
        "last_active_at": session.last_active_at,
        "archived": session.archived,
    }


def event_json(event: Event) -> Json:
    """A row of `session_history`."""
    return {
        "sequence": event.sequence,
        "turn_id": event.turn_id,
        "message": message_json(event.message),
        "created_at": event.created_at,
    }


def usage_json(usage: Usage) -> Json:
    out: Json = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
    if usage.cached_tokens:
        out["cached_tokens"] = usage.cached_tokens
    if usage.reasoning_tokens:
        out["reasoning_tokens"] = usage.reasoning_tokens
    if usage.cost_usd is not None:
        out["cost_usd"] = float(usage.cost_usd)
    return out


def message_json(message: Message) -> Json:
    """A message without empty fields and without its attachments' data; `message_from_json` is the
    inverse.
    """
    out: Json = {"role": message.role, "content": message.content}
    if message.tool_calls:
        out["tool_calls"] = [
            {"id": c.id, "name": c.name, "arguments": c.arguments} for c in message.tool_calls
        ]
    if message.role == "tool":
        out["tool_call_id"] = message.tool_call_id
        out["name"] = message.name
        if message.is_error:
            out["is_error"] = True
    if message.reasoning:
        out["reasoning"] = message.reasoning
    if message.tainted:
        out["tainted"] = True
    if message.sensitive:
        out["sensitive"] = True
    if message.attachments:
        out["attachments"] = attachments_json(message.attachments)
    if message.native is not None:
        native = message.native
        out["native"] = {
            "provider": native.provider,
            "model": native.model,
            "data": native.data,
        }
    return out


def attachments_json(attachments: Sequence[Attachment]) -> list[Json]:
    """What is said of attachments where their data is not."""
    return [
        {"mime_type": a.mime_type, "sha256": a.sha256, "size": a.size, "name": a.name}
        for a in attachments
    ]


def media_json(attachment: Attachment, file_path: str) -> Json:
    """A file that was made, with its data: the `attachment` of `media_attachment`."""
    kind = attachment.mime_type.partition("/")[0]
    kinds = {"image": "photo", "audio": "audio", "video": "video"}
    return {
        "file_path": file_path,
        "media_type": kinds.get(kind, "document"),
        "data": base64.b64encode(attachment.data).decode(),
        "file_name": attachment.name or file_path.rpartition("/")[2],
    }


def attachments_from_json(
    rows: Sequence[Json], load: Callable[[str], bytes]
) -> tuple[Attachment, ...]:
    """`load(sha256)` gives the data."""
    return tuple(
        Attachment(row["mime_type"], row["sha256"], load(row["sha256"]), row["name"], row["size"])
        for row in rows
    )


def _no_data(_sha256: str) -> bytes:
    return b""


def message_from_json(value: Json, load: Callable[[str], bytes] = _no_data) -> Message:
    """`load(sha256)` gives the data of an attachment."""
    native = value.get("native")
    return Message(
        role=value["role"],
        content=value["content"],
        tool_calls=tuple(
            ToolCall(c["id"], c["name"], c["arguments"]) for c in value.get("tool_calls", ())
        ),
        tool_call_id=value.get("tool_call_id", ""),
        name=value.get("name", ""),
        is_error=value.get("is_error", False),
        reasoning=value.get("reasoning", ""),
        native=Native(native["provider"], native["model"], native["data"]) if native else None,
        attachments=attachments_from_json(value.get("attachments", ()), load),
        tainted=value.get("tainted", False),
        sensitive=value.get("sensitive", False),
    )


# ----------------------------------------------------------------------- length-prefixed frames


def pack(op: str, payload: Json) -> bytes:
    """One length-prefixed frame. Raises `FrameError` if it would pass `MAX_PACKED`."""
    body = _utf8(compact({"op": op, "payload": payload}))
    if len(body) > MAX_PACKED:
        raise FrameError(f"A frame of {len(body)} bytes is over {MAX_PACKED}.", code="too_large")
    return struct.pack("!I", len(body)) + body


@dataclass(slots=True)
class Unpacker:
    """Turns bytes, however they were split, into length-prefixed frames.

    `feed` raises `FrameError` on a frame over `limit` or on invalid JSON; the stream is then
    useless and is to be closed.
    """

    limit: int = MAX_PACKED
    _buffer: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> list[tuple[str, Json]]:
        self._buffer += data
        frames = []
        while len(self._buffer) >= 4:
            (size,) = struct.unpack_from("!I", self._buffer)
            if size > self.limit:
                raise FrameError(f"A frame of {size} bytes is over {self.limit}.", code="too_large")
            if len(self._buffer) < 4 + size:
                break
            body = bytes(self._buffer[4 : 4 + size])
            del self._buffer[: 4 + size]
            frames.append(_unpack(body))
        return frames

    @property
    def empty(self) -> bool:
        """Whether the stream could end here without cutting a frame."""
        return not self._buffer


def read_frame(recv: Callable[[int], bytes], limit: int) -> tuple[str, Json]:
    """The next frame of a stream on which other bytes may follow; `recv(n)` gives at most `n`, and
    b"" at the end. Raises `FrameError`, also where the stream ends before the frame does.
    """

    def exactly(size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = recv(size - len(data))
            if not piece:
                raise FrameError("The stream ended within a frame.")
            data += piece
        return bytes(data)

    (size,) = struct.unpack("!I", exactly(4))
    if size > limit:
        raise FrameError(f"A frame of {size} bytes is over {limit}.", code="too_large")
    return _unpack(exactly(size))


def _unpack(body: bytes) -> tuple[str, Json]:
    try:
        frame = parse(body.decode())
    except UnicodeDecodeError:
        raise FrameError("The frame is not valid UTF-8.") from None
    if not isinstance(frame, dict) or not isinstance(frame.get("op"), str):
        raise FrameError('A frame is an object {"op", "payload"}.')
    payload = frame.get("payload", {})
    if not isinstance(payload, dict):
        raise FrameError("The frame's payload is not an object.")
    return frame["op"], payload


# --------------------------------------------------------------------------- bootstrap envelope


@dataclass(frozen=True, slots=True)
class Envelope:
    """What a guest is started with. No secret value is ever in it.

    `config` is the effective configuration without secrets; `secret_hashes` are keyed hashes by
    which a guest recognises a configured secret; `gateway_token_hashes` are rows `{name, sha256,
    scopes}`; `startup_status` is what `health_status` reports of the tier; `folders` are the
    folders that tools may use, as they are found where the guest runs.
    """

    user_id: str
    sandbox_tier: str
    workspace_root: str
    config: Json
    startup_status: Json
    gateway_token_hashes: list[Json]
    runtime_policy: Json = field(default_factory=dict)
    secret_hashes: Json = field(default_factory=dict)
    folders: tuple[Folder, ...] = ()
    sidecar_endpoint: Json | None = None
    channels: Json | None = None

    def to_json(self) -> Json:
        folders = [dataclasses.asdict(folder) for folder in self.folders]
        return {name: getattr(self, name) for name in self.__slots__} | {"folders": folders}

    @classmethod
    def from_json(cls, payload: Json) -> Envelope:
        """Raises `FrameError` if a field is missing or of the wrong type."""
        if what := _wrong_field(payload, _ENVELOPE):
            raise FrameError(f"bootstrap: {what}")
        given = {name: payload.get(name) for name in cls.__slots__}
        try:
            given["folders"] = tuple(Folder(**row) for row in given["folders"] or ())
        except TypeError as error:
            raise FrameError("bootstrap: folders is broken") from error
        return cls(**{name: value for name, value in given.items() if value is not None})


def channel_info(info: bytes) -> Json:
    """What the opener of a mux channel says of it, `{kind, …}`; {} where that makes no sense."""
    try:
        said = parse(info.decode())
    except (FrameError, UnicodeDecodeError):
        return {}
    return said if isinstance(said, dict) else {}


def check_fields(op: str, payload: Json) -> None:
    """Raise `FrameError` unless the fields of a frame to the broker are there, of their types."""
    if what := _wrong_field(payload, BROKER[op]):
        raise FrameError(f"{op}: {what}")


BROKER = {
    name: _fields(spec)
    for name, spec in {
        "request": "method:str url:str headers:object length:int credential?:str "
        "connect_timeout:float idle_timeout:float deadline?:float max_bytes:int guarded?:bool",
        "connect": "host:str port:int",
    }.items()
}

_ENVELOPE = _fields(
    "user_id:str sandbox_tier:str workspace_root:str config:object startup_status:object "
    "gateway_token_hashes:list runtime_policy?:object secret_hashes?:object "
    "folders?:list sidecar_endpoint?:object channels?:object"
)
