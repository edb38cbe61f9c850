"""The server's end of the Model Context Protocol on stdio: one client, on two file descriptors.

What is offered is a table of methods; this knows only how it is asked for. The caller's thread,
in `serve`, reads lines and answers what takes no time. Every other request has a thread of its own,
`oxydra-mcp-…`, that ends with the request. `serve` ends when the client closes its end or the
caller says so; then all that is under way is cancelled, and waited for a moment.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import select
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from oxydra.errors import FrameError, OxydraError
from oxydra.mcp.protocol import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    Id,
    Lines,
    Notification,
    Request,
    RpcError,
    chosen_version,
    decode,
    notification,
    refusal,
    reply,
)
from oxydra.threads import CancelToken, Deadline, Service
from oxydra.types import Json

log = logging.getLogger(__name__)

CHUNK = 1 << 16  # bytes read at once
MOST_CALLS = 16  # requests that may be under way
CANCELLED = "notifications/cancelled"
GRACE = 5.0  # seconds for what is under way once the client is gone


@dataclass(eq=False, slots=True)
class Call:
    """A request under way, as its method sees it."""

    request: Request
    version: str
    """Of the protocol, as it was agreed."""
    client: Json
    """What the client can do: its `capabilities`."""
    send: Callable[[str, Json], None]
    """Sends the client a notification, until the request is answered."""
    token: CancelToken = field(default_factory=CancelToken)
    _told: int = 0

    def progress(self, message: str) -> None:
        """Tell the client that it goes on, if it wants to know (Utilities, "Progress")."""
        meta = self.request.params.get("_meta")
        wanted = meta.get("progressToken") if isinstance(meta, dict) else None
        if isinstance(wanted, str | int) and not isinstance(wanted, bool):
            self._told += 1
            said = {"progressToken": wanted, "progress": self._told, "message": message}
            self.send("notifications/progress", said)


Method = Callable[[Json, Call], Json]
"""Gives the result from a request's `params`. Raises `OxydraError`; a `RpcError` is answered as it
is, any other with its text."""


class Server:
    """`capabilities` are said to the client, and `methods` are what they mean."""

    def __init__(
        self, name: Json, capabilities: Json, methods: Mapping[str, Method], instructions: str = ""
    ) -> None:
        """`name` is `serverInfo`; `instructions` tell a client's model what this is for."""
        self._greeting: Json = {"capabilities": capabilities, "serverInfo": name}
        if instructions:
            self._greeting["instructions"] = instructions
        self._methods = methods
        self._version = ""  # until the client has said hello
        self._client: Json = {}
        self._lines = Lines()
        self._skipping = False  # the rest of a line that is too long
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()  # guards what is under way
        self._calls: dict[Id, tuple[Call, Service]] = {}
        self._writing = threading.Lock()  # one line after the other
        self._sink = self._stop = -1

    def serve(self, source: int, sink: int, stop: int) -> None:
        """Until `source` ends, or `stop` can be read. The descriptors stay open."""
        self._sink, self._stop = sink, stop
        ready = select.poll()
        for each in (source, stop):
            ready.register(each, select.POLLIN)
        try:
            while stop not in [fd for fd, _event in ready.poll()]:
                try:
                    data = os.read(source, CHUNK)
                except OSError as error:
                    log.warning("the client can't be read any more: %s", error.strerror)
                    return
                if not data:
                    return
                for line in self._read(data):
                    self._take(line)
        finally:
            self._end()

    def _end(self) -> None:
        with self._lock:
            under_way = list(self._calls.values())
        for call, _service in under_way:
            call.token.cancel("the client is gone")
        deadline = Deadline.after(GRACE)
        for _call, service in under_way:
            service.stop(deadline.remaining())
        if self._writing.acquire(timeout=deadline.remaining()):  # an answer may be half written
            self._writing.release()

    # ------------------------------------------------------------------------ what the client says

    def _read(self, data: bytes) -> list[bytes]:
        """The lines that are whole now. One that is too long is answered and left out."""
        if self._skipping:
            _rest, found, data = data.partition(b"\n")
            self._skipping = not found
        try:
            return self._lines.feed(data)
        except FrameError as error:  # it is the first that ends in `data`, or does not end there
            self._write(refusal(RpcError(PARSE_ERROR, str(error))))
            self._lines, self._skipping = Lines(), True
            return self._read(data)

    def _take(self, line: bytes) -> None:
        id = None
        try:
            message = decode(line)
            if isinstance(message, Request):
                id = message.id
                self._answer(message)
            elif isinstance(message, Notification) and message.method == CANCELLED:
                self._cancel(message.params.get("requestId"))
        except RpcError as error:
            error.id = error.id if id is None else id
            self._write(refusal(error))

    def _answer(self, request: Request) -> None:
        """Raises `RpcError`."""
        if request.method == "ping":
            return self._write(reply(request.id, {}))
        if request.method == "initialize":
            return self._initialize(request)
        if not self._version:
            raise RpcError(INVALID_REQUEST, "The first request is `initialize`.")
        method = self._methods.get(request.method)
        if method is None:
            raise RpcError(METHOD_NOT_FOUND, f"There is no method {request.method[:64]!r}.")
        return self._begin(request, method)

    def _initialize(self, request: Request) -> None:
        if self._version:
            raise RpcError(INVALID_REQUEST, "The client has said `initialize` before.")
        if not isinstance(request.params.get("protocolVersion"), str):
            raise RpcError(INVALID_PARAMS, "`protocolVersion` is a string.")
        abilities = request.params.get("capabilities")
        self._client = abilities if isinstance(abilities, dict) else {}
        self._version = chosen_version(request.params["protocolVersion"])
        self._write(reply(request.id, {"protocolVersion": self._version, **self._greeting}))

    # -------------------------------------------------------------------------- what is under way

    def _begin(self, request: Request, method: Method) -> None:
        """Raises `RpcError`."""
        call = Call(request, self._version, self._client, send=self._teller(request.id))
        service = Service(f"mcp-{next(self._numbers)}", lambda _service: self._do(call, method))
        with self._lock:
            if request.id in self._calls:
                raise RpcError(INVALID_REQUEST, "A request with this id is not answered yet.")
            if len(self._calls) >= MOST_CALLS:
                raise RpcError(INTERNAL_ERROR, f"{MOST_CALLS} requests are not answered yet.")
            self._calls[request.id] = call, service
        try:
            service.start()
        except RuntimeError:
            with self._lock:
                del self._calls[request.id]
            raise RpcError(INTERNAL_ERROR, "The system has no thread to give.") from None

    def _do(self, call: Call, method: Method) -> None:
        """On the request's thread."""
        answer = b""
        try:
            answer = reply(call.request.id, method(call.request.params, call))
        except RpcError as error:
            error.id = call.request.id
            answer = refusal(error)
        except OxydraError as error:
            answer = refusal(RpcError(INTERNAL_ERROR, str(error), id=call.request.id))
        except Exception:
            log.exception("%s could not be answered", call.request.method)
            failed = RpcError(INTERNAL_ERROR, "The server failed; see its log.", id=call.request.id)
            answer = refusal(failed)
        finally:
            with self._writing:  # after this nothing more is said of it
                with self._lock:
                    taken = self._calls.pop(call.request.id, None)
                if taken is not None and answer:
                    self._put(answer)

    def _cancel(self, id: object) -> None:
        """It is not answered any more (Utilities, "Cancellation")."""
        if not isinstance(id, str | int) or isinstance(id, bool):
            return
        with self._writing, self._lock:
            found = self._calls.pop(id, None)
        if found is not None:
            found[0].token.cancel("the client cancelled it")

    def _teller(self, id: Id) -> Callable[[str, Json], None]:
        """What is sent of a request as long as it is under way."""

        def send(method: str, params: Json) -> None:
            with self._writing:
                with self._lock:
                    there = id in self._calls
                if there:
                    self._put(notification(method, params))

        return send

    # ------------------------------------------------------------------------------------- writing

    def _write(self, message: bytes) -> None:
        with self._writing:
            self._put(message)

    def _put(self, message: bytes) -> None:
        """Under the mutex: one line. It waits for a client that does not read, but not beyond the
        end: a pipe that has room takes `PIPE_BUF` bytes at once (pipe(7)).
        """
        ready = select.poll()
        ready.register(self._sink, select.POLLOUT)
        ready.register(self._stop, select.POLLIN)
        rest = memoryview(message + b"\n")
        with contextlib.suppress(OSError):  # it is gone: its end of `source` says so
            while rest and self._sink in [fd for fd, _event in ready.poll()]:
                rest = rest[os.write(self._sink, rest[: select.PIPE_BUF]) :]
