"""The messages of the Model Context Protocol: JSON-RPC 2.0, and versions. Pure.

Both ends use this file: the client of `[mcp.servers]`, and the server that offers the agent. On
stdio a message is one line (`Lines`); on Streamable HTTP it is a body or the data of an event. What
a peer sends is read by `decode` and nothing else: bounded, never nested too deep, of one of three
kinds. A batch, which 2025-06-18 took out of the protocol, is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from oxydra.errors import FrameError, OxydraError
from oxydra.frames import compact, parse
from oxydra.types import Json

VERSIONS = ("2025-11-25", "2025-06-18")  # that both ends here speak, the newest first
MAX_MESSAGE = 8 << 20  # bytes
MAX_ID = 256  # characters of an id

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
RESOURCE_NOT_FOUND = -32002

Id: TypeAlias = str | int


class RpcError(OxydraError):
    """An error as JSON-RPC has it: what a peer answered, or what is answered to it. `number` is its
    code; `id` that of the request where it could be read.
    """

    code = "mcp_error"

    def __init__(
        self, number: int, message: str, *, id: Id | None = None, data: Any = None
    ) -> None:
        super().__init__(message)
        self.number = number
        self.id = id
        self.data = data


@dataclass(frozen=True, slots=True)
class Request:
    """It is answered, once, by a `Reply` with its id."""

    id: Id
    method: str
    params: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Notification:
    """Nobody answers it."""

    method: str
    params: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of a request: `result`, or an `error`. `id` is None where the peer could not read
    that of the request.
    """

    id: Id | None
    result: Json = field(default_factory=dict)
    error: RpcError | None = None


Message: TypeAlias = Request | Notification | Reply


class Lines:
    """Bytes of a stream as lines, of at most `limit` bytes each. Empty ones are left out."""

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        self._limit = limit
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are whole now. Raises `FrameError` where one is too long: the stream can't
        be read on.
        """
        self._rest += data
        lines: list[bytes] = []
        if b"\n" in data:
            *whole, rest = bytes(self._rest).split(b"\n")
            self._rest = bytearray(rest)
            lines = [line for line in whole if line.strip()]
        if max(map(len, [self._rest, *lines])) > self._limit:
            raise FrameError(f"A message is longer than {self._limit >> 20} MiB.", code="too_large")
        return lines


def decode(data: bytes | str) -> Message:
    """One message. Raises `RpcError`, as it may be answered, for what is none."""
    try:
        value = parse(data if isinstance(data, str) else data.decode())
    except (FrameError, UnicodeDecodeError):
        raise RpcError(PARSE_ERROR, "That is no JSON, or it is nested too deep.") from None
    if not isinstance(value, dict):
        raise RpcError(INVALID_REQUEST, "A message is one JSON object; batches are not supported.")
    id = value.get("id")
    if not _is_id(id):
        id = None
    if value.get("jsonrpc") != "2.0":
        raise RpcError(INVALID_REQUEST, 'A message has "jsonrpc": "2.0".', id=id)
    if "method" in value:
        return _asked(value, id)
    if "error" in value:
        return Reply(id, error=_error(value["error"], id))
    if id is None or not isinstance(value.get("result"), dict):
        raise RpcError(INVALID_REQUEST, "A message has a method, a result or an error.", id=id)
    return Reply(id, value["result"])


def request(id: Id, method: str, params: Json | None = None) -> bytes:
    """Without a line's end, as all of these."""
    return _encoded({"id": id, "method": method, **({} if params is None else {"params": params})})


def notification(method: str, params: Json | None = None) -> bytes:
    return _encoded({"method": method, **({} if params is None else {"params": params})})


def reply(id: Id, result: Json) -> bytes:
    return _encoded({"id": id, "result": result})


def refusal(error: RpcError) -> bytes:
    """The answer to a request that failed; its id is the error's."""
    said: Json = {"code": error.number, "message": error.message}
    if error.data is not None:
        said["data"] = error.data
    return _encoded({"id": error.id, "error": said})


def chosen_version(asked: object) -> str:
    """What a server answers to the version that a client asked for: the same if it is known, else
    the newest, which the client takes or leaves (2025-11-25, Lifecycle, "Version Negotiation").
    """
    return asked if isinstance(asked, str) and asked in VERSIONS else VERSIONS[0]


def agreed_version(offered: object, known: Sequence[str] = VERSIONS) -> str:
    """The version a server answered with. Raises `RpcError` for one that is not spoken here: the
    client then hangs up.
    """
    if isinstance(offered, str) and offered in known:
        return offered
    named = offered[:40] if isinstance(offered, str) else "none"
    raise RpcError(
        INVALID_REQUEST,
        f"The server speaks the protocol's version {named!r}; supported are {', '.join(known)}.",
    )


def _asked(value: Json, id: Id | None) -> Request | Notification:
    method, params = value["method"], value.get("params", {})
    if not isinstance(method, str):
        raise RpcError(INVALID_REQUEST, "A method is a string.", id=id)
    if not isinstance(params, dict):
        raise RpcError(INVALID_PARAMS, "Parameters are an object.", id=id)
    if "id" not in value:
        return Notification(method, params)
    if id is None:
        raise RpcError(INVALID_REQUEST, "An id is a short string or an integer.")
    return Request(id, method, params)


def _error(value: object, id: Id | None) -> RpcError:
    """A peer's error. What it lacks is taken as it can be."""
    said = value if isinstance(value, dict) else {}
    number = said.get("code")
    message = said.get("message")
    return RpcError(
        number if isinstance(number, int) else INTERNAL_ERROR,
        message if isinstance(message, str) and message else "The peer gave no reason.",
        id=id,
        data=said.get("data"),
    )


def _is_id(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_ID
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def _encoded(message: Json) -> bytes:
    text = compact({"jsonrpc": "2.0", **message})
    return text.encode("utf-8", "replace")
