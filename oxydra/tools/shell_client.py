"""The agent guest's side of the shell daemon: one bash for each conversation, over one stream.

`ShellClient` is the service `shell` of a `ToolContext`. Its stream is handed over by the runner,
again after each restart of the shell guest; `oxydra-shell-stream` reads it and ends with it.
Replies are matched by `request_id`, so that a late one can't be taken for another's. A command runs
at most once: asked for again under the same id, the daemon says what became of it. Servers of the
configuration run there too (`ServerPipe`), each for as long as the stream by which it was started.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import logging
import queue
import re
import socket
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from oxydra.errors import FrameError, ToolError
from oxydra.frames import Unpacker, pack
from oxydra.threads import SHUTDOWN, CancelToken, Deadline, Service
from oxydra.types import Json

log = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0  # a call waits so long for a shell guest that is being started again
SPAWN_SECONDS = 12.0
ANSWER_SECONDS = 8.0  # past a command's own time until the daemon counts as silent
KILL_SECONDS = 3.0
SEND_SECONDS = 5
WATCH_SECONDS = 0.25  # between two looks at what may pause a command
SESSIONS = 12  # kept open; the one that was used least recently is ended

OnOutput = Callable[[bytes], None]
_Box: TypeAlias = "queue.SimpleQueue[tuple[str, Json]]"


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of a command. `exit_code` is None where there is none: it was killed; `why` says
    what paused it, if something did.

    `output` is what the terminal showed, `cut` bytes left out of it. `fresh` says that an earlier
    shell of the conversation is lost, and its variables with it; `ended` that this one is.
    """

    exit_code: int | None
    output: bytes
    cut: int
    timed_out: bool
    killed: bool
    cwd: str
    ended: bool
    fresh: bool = False
    why: str = ""


class _Refused(Exception):
    """The daemon answered `error`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Lost(Exception):
    """The stream ended before the answer came."""


class ByteStream(Protocol):
    """A connected socket, or a channel of the guest's stream to the runner."""

    def recv(self, nbytes: int, /) -> bytes: ...

    def sendall(self, data: bytes, /) -> object: ...

    def setsockopt(self, level: int, option: int, value: bytes, /) -> object: ...

    def shutdown(self, how: int, /) -> object: ...

    def close(self) -> object: ...


class _Connection:
    """One stream to the daemon and the requests that wait on it."""

    def __init__(self, stream: ByteStream, used: bool) -> None:
        # the kernel's own limit: a Python timeout would also end the reader's wait
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_SECONDS, 0))
        self._stream = stream
        self._sending = threading.Lock()
        self._waiting: dict[str, _Box] = {}
        self.lost = False
        self.used = used
        self.sessions: OrderedDict[str, _Session] = OrderedDict()  # by conversation
        self.servers: set[str] = set()  # that run
        self._reader = Service("shell-stream", self._read, wake=self.hang_up)
        self._reader.start()

    def send(self, op: str, payload: Json) -> None:
        try:
            with self._sending:
                self._stream.sendall(pack(op, payload))
        except OSError as error:
            raise _Lost from error

    @contextlib.contextmanager
    def answers(self, *request_ids: str) -> Iterator[_Box]:
        """What comes for these requests, for the length of the block."""
        box: _Box = queue.SimpleQueue()
        self._waiting.update(dict.fromkeys(request_ids, box))
        if self.lost:
            box.put(("lost", {}))
        try:
            yield box
        finally:
            for request_id in request_ids:
                self._waiting.pop(request_id, None)

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._reader.stop()
        self._stream.close()

    def _read(self, _service: Service) -> None:
        unpacker = Unpacker()
        try:
            while data := self._stream.recv(65536):
                for op, payload in unpacker.feed(data):
                    box = self._waiting.get(str(payload.get("request_id")))
                    if box is not None:
                        box.put((op, payload))
        except FrameError as error:
            log.error("the shell daemon broke the protocol: %s", error)
        except OSError as error:
            log.debug("the shell's stream ended: %s", error)
        self.lost = True
        for box in list(self._waiting.values()):
            box.put(("lost", {}))


class ServerPipe:
    """A server in the shell guest, by its standard streams. One thread reads, any write."""

    def __init__(self, connection: _Connection, number: str, server_id: str) -> None:
        self._connection = connection
        self._number = number  # what its requests are called
        self._count = itertools.count(1)
        self._server_id = server_id
        self.exit_code: int | None = None  # known once `read` has returned the end

    def read(self) -> tuple[str, bytes]:
        """What it says next, and on which stream it did; ("", b"") once it has ended."""
        try:
            said = self._ask("read_server", {}, None)
        except ToolError:
            said = {"eof": True}
        if not said.get("eof"):
            return str(said.get("stream")), _data(said, "data")
        self._connection.servers.discard(self._server_id)
        code = said.get("exit_code")
        self.exit_code = code if isinstance(code, int) else None
        return "", b""

    def write(self, data: bytes) -> None:
        """Raises `ToolError` where it has ended, or does not read what it is sent."""
        self._ask("write_server", {"data": data.decode("utf-8", "surrogatepass")}, ANSWER_SECONDS)

    def stop(self) -> None:
        """End it, and so `read`. Idempotent."""
        with contextlib.suppress(ToolError):
            self._ask("stop_server", {}, ANSWER_SECONDS)

    def _ask(self, op: str, payload: Json, seconds: float | None) -> Json:
        number = f"{self._number}/{next(self._count)}"
        try:
            with self._connection.answers(number) as box:
                request = {"request_id": number, "server_id": self._server_id, **payload}
                self._connection.send(op, request)
                answer, said = _next(box, Deadline.after(seconds))
        except _Refused as refusal:
            raise ToolError(f"{refusal}", code=refusal.code) from refusal
        except _Lost:
            answer, said = "silent", {}
        if answer == "silent":
            raise ToolError("The shell guest does not answer.", code="shell_unavailable")
        return said


@dataclass(slots=True)
class _Session:
    """A bash of the daemon's. `fresh`: it stands in the place of another, which nobody was told
    yet.
    """

    name: str
    fresh: bool
    busy: bool = False


@dataclass(frozen=True, slots=True)
class _Job:
    conversation: str
    request_id: str
    command: str
    seconds: float
    token: CancelToken
    on_output: OnOutput | None


class ShellClient:
    """Runs commands in the shell guest; any number of conversations at once."""

    def __init__(self, paused: Callable[[], str] = lambda: "") -> None:
        """`paused` says why commands may not run at present, empty if they may. It is looked at
        before each command, and while one runs, which it ends.
        """
        self._paused = paused
        self._connection: _Connection | None = None
        self._changed = threading.Condition()
        self._lock = threading.Lock()  # of the sessions
        self._numbers = itertools.count(1)
        self._cwd: dict[str, str] = {}  # by conversation: where its shell was last

    @property
    def alive(self) -> bool:
        connection = self._connection
        return connection is not None and not connection.lost

    @property
    def open(self) -> bool:
        """Whether a conversation has a shell, in which something may run yet, or a server."""
        connection = self._connection
        if connection is None or connection.lost:
            return False
        return connection.used or bool(connection.sessions or connection.servers)

    def connect(self, stream: ByteStream, *, used: bool = False) -> None:
        """Go on with another stream; what waits on the old one is told that it is lost. `used`:
        somebody had a stream to this shell guest before, whose commands may run yet.
        """
        fresh = _Connection(stream, used)
        with self._changed:
            old, self._connection = self._connection, fresh
            self._changed.notify_all()
        if old is not None:
            old.close()

    def close(self) -> None:
        with self._changed:
            old, self._connection = self._connection, None
        if old is not None:
            old.close()

    # ----------------------------------------------------------------------------------- commands

    def run(
        self,
        conversation: str,
        request_id: str,
        command: str,
        seconds: float,
        token: CancelToken,
        on_output: OnOutput | None = None,
    ) -> Ran:
        """Run a command to its end, at most `seconds` long.

        Raises `Cancelled` once it is killed because of the token, `ToolError` where it did not run
        or its outcome is not known.
        """
        if why := self._paused():
            raise ToolError(
                f"The command was not run: {why}.",
                remedy="Commands run again when there is room: remove what is not needed with"
                " file_delete, or tell the person.",
                code="low_disk",
            )
        job = _Job(conversation, request_id, command, seconds, token, on_output)
        connection = self._connected(token)
        try:
            try:
                return self._exec(connection, self._session(connection, conversation, token), job)
            except _Refused as refusal:
                if refusal.code != "not_found":
                    raise
            self._forget(connection, conversation)  # its shell has ended meanwhile
            return self._exec(connection, self._session(connection, conversation, token), job)
        except _Refused as refusal:
            raise ToolError(f"The command was not run: {refusal}", code=refusal.code) from refusal
        except _Lost:
            self._forget(connection, conversation)
            raise ToolError(
                "The shell ended while the command ran; how far it came is not known.",
                remedy="Look before you run it again.",
            ) from None

    def server(self, name: str, token: CancelToken) -> ServerPipe:
        """Start the server that the configuration calls so. Raises `ToolError` and `Cancelled`."""
        connection = self._connected(token)
        try:
            said = self._ask(connection, "start_server", {"name": name}, token)
        except _Refused as refusal:
            raise ToolError(f"{refusal}", code=refusal.code) from refusal
        except _Lost:
            raise ToolError(
                "The shell guest ended meanwhile; it is being started again.",
                remedy="Try again in a minute.",
                code="shell_unavailable",
            ) from None
        server_id = str(said["server_id"])
        connection.servers.add(server_id)
        return ServerPipe(connection, self._number(), server_id)

    def recover(
        self, conversation: str, request_id: str, token: CancelToken, deadline: Deadline
    ) -> Ran | None:
        """What became of a command that was begun before this process was: it is waited for, and
        killed when the deadline has passed. The conversation keeps its shell. None if nobody knows.
        Raises `Cancelled` once it is killed because of the token, also if that was cancelled
        before.
        """
        try:
            connection = self._connected(token, to_end=True)
            number = self._number()
            with connection.answers(request_id, number) as box:
                connection.send("await_command", {"request_id": number, "target": request_id})
                payload = self._outcome(connection, request_id, box, deadline, token)
        except (_Refused, _Lost, ToolError) as error:
            log.info("what became of command %s is not known: %r", request_id, error)
            return None
        if not payload.get("session_ended"):
            self._cwd[conversation] = str(payload.get("cwd") or "")
            with self._lock:
                session = _Session(str(payload["session_id"]), fresh=False)
                connection.sessions.setdefault(conversation, session)
        return _ran(payload)

    def _exec(self, connection: _Connection, session: _Session, job: _Job) -> Ran:
        request = {
            "request_id": job.request_id,
            "session_id": session.name,
            "command": job.command,
            "timeout_secs": job.seconds,
            "stream": job.on_output is not None,
        }
        silent = Deadline.after(job.seconds + ANSWER_SECONDS)
        session.busy = True
        try:
            with connection.answers(job.request_id) as box:
                connection.send("exec_command", request)
                payload = self._outcome(
                    connection, job.request_id, box, silent, job.token, job.on_output
                )
        finally:
            session.busy = False
            fresh, session.fresh = session.fresh, False
            self._cwd.setdefault(job.conversation, "")
        if payload.get("session_ended"):
            self._forget(connection, job.conversation)
        else:
            self._cwd[job.conversation] = str(payload.get("cwd") or "")
        job.token.check()
        return _ran(payload, fresh)

    def _outcome(
        self,
        connection: _Connection,
        request_id: str,
        box: _Box,
        deadline: Deadline,
        token: CancelToken,
        on_output: OnOutput | None = None,
    ) -> Json:
        """Wait until the command has ended, or end it at once when the token or the time says so;
        its `exec_command_ack`, with `why` where that was a pause. Raises `_Lost` where the daemon
        stays silent.
        """
        killed, why = False, ""
        with token.on_cancel(lambda: box.put(("cancel", {}))):
            while True:
                # nothing tells that a disk fills: it has to be looked at
                look = Deadline(min(deadline.at, time.monotonic() + WATCH_SECONDS))
                op, payload = _next(box, look)
                early = op == "silent" and not deadline.expired
                if early and (killed or not (why := self._paused())):
                    continue
                if op == "exec_command_ack":
                    token.check()
                    return {**payload, "why": why}
                if op == "stream_output_chunk" and on_output is not None:
                    on_output(_data(payload, "data"))
                elif op == "silent" and killed:
                    raise _Lost
                elif op in ("cancel", "silent"):
                    killed = True
                    deadline = Deadline.after(KILL_SECONDS)
                    target = {"request_id": self._number(), "target": request_id}
                    connection.send("kill_command", target)

    # ----------------------------------------------------------------------------------- sessions

    def _connected(self, token: CancelToken, *, to_end: bool = False) -> _Connection:
        """The stream, awaited while a shell guest is being started again; after a cancel too where
        what it is for is `to_end` something, unless we end ourselves.
        """

        def given_up() -> bool:
            return token.cancelled and not (to_end and token.reason != SHUTDOWN)

        def ready() -> bool:
            return given_up() or self.alive

        def wake() -> None:
            with self._changed:
                self._changed.notify_all()

        with token.on_cancel(wake), self._changed:
            self._changed.wait_for(ready, CONNECT_SECONDS)
            connection = self._connection
        if given_up():
            token.check()
        if connection is None or connection.lost:
            raise ToolError(
                "There is no shell at the moment; it is being started again.",
                remedy="Try again in a minute, or do it with the file tools.",
                code="shell_unavailable",
            )
        return connection

    def _session(self, connection: _Connection, conversation: str, token: CancelToken) -> _Session:
        """The conversation's shell, a new one where there is none."""
        with self._lock:
            known = connection.sessions.get(conversation)
            if known is not None:
                connection.sessions.move_to_end(conversation)
                return known
            idle = [key for key, session in connection.sessions.items() if not session.busy]
            superfluous = len(connection.sessions) >= SESSIONS and idle
            dropped = connection.sessions.pop(idle[0]) if superfluous else None
        if dropped is not None:
            self._ask(connection, "kill_session", {"session_id": dropped.name}, token)
        cwd = self._cwd.get(conversation)
        payload = self._ask(connection, "spawn_session", {"cwd": cwd}, token)
        session = _Session(str(payload["session_id"]), fresh=cwd is not None)
        with self._lock:
            connection.sessions[conversation] = session
        return session

    def _forget(self, connection: _Connection, conversation: str) -> None:
        with self._lock:
            connection.sessions.pop(conversation, None)

    def _ask(self, connection: _Connection, op: str, payload: Json, token: CancelToken) -> Json:
        number = self._number()
        with connection.answers(number) as box, token.on_cancel(lambda: box.put(("cancel", {}))):
            connection.send(op, {"request_id": number, **payload})
            answer, said = _next(box, Deadline.after(SPAWN_SECONDS))
            token.check()
            if answer == "silent":
                raise _Lost
            return said

    def _number(self) -> str:
        return f"client-{next(self._numbers)}"


def _next(box: _Box, deadline: Deadline) -> tuple[str, Json]:
    """What comes next; `silent` once the deadline has passed. Raises `_Refused` and `_Lost`."""
    try:
        op, payload = box.get(timeout=deadline.timeout())
    except queue.Empty:
        return "silent", {}
    if op == "lost":
        raise _Lost
    if op == "error":
        raise _Refused(str(payload.get("code")), str(payload.get("message")))
    return op, payload


def _data(payload: Json, name: str) -> bytes:
    if isinstance(text := payload.get(name), str):
        return text.encode("utf-8", "surrogatepass")
    return base64.b64decode(str(payload.get(f"{name}_base64", "")))


def _names(payload: Json) -> list[tuple[re.Pattern[bytes], bytes]]:
    """What the daemon says of its folders: rows of the model's name, the path, a pattern."""
    found = []
    for name, path, pattern in payload.get("paths", ()):
        if name != path:
            either = rf"(?:{re.escape(path)}|{pattern})(?![\w.-])"
            found.append((re.compile(either.encode()), str(name).encode()))
    return found


def _ran(payload: Json, fresh: bool = False) -> Ran:
    output, cwd = _data(payload, "output"), str(payload.get("cwd", "")).encode()
    for pattern, name in _names(payload):
        output, cwd = pattern.sub(name, output), pattern.sub(name, cwd)
    exit_code = payload.get("exit_code")
    return Ran(
        exit_code=exit_code if isinstance(exit_code, int) else None,
        output=output,
        cut=int(payload.get("truncated", 0)),
        timed_out=bool(payload.get("timed_out")),
        killed=bool(payload.get("killed")),
        cwd=cwd.decode("utf-8", "replace"),
        ended=bool(payload.get("session_ended")),
        fresh=fresh,
        why=str(payload.get("why", "")),
    )
