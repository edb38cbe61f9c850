"""A few long-lived children that do jobs on hostile bytes, and are killed when they take too long.

A catastrophic regular expression holds the interpreter's lock, and a parser of HTML or PDF may be
broken by what it parses; so neither runs in this process. Children start when first needed, take
one job at a time over a socketpair, and keep their modules warm; one that misses its deadline, dies
or was cancelled is killed and replaced. Jobs are pure, so one whose child had gone is asked again.

A child belongs to a lane: what was broken by one kind of content never sees another kind. They are
caged by `guest/tool-worker` before their first job. No thread runs here; a call blocks its caller.
"""

from __future__ import annotations

import json
import logging
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from oxydra.errors import DeadlineExceeded, OxydraError, ToolError
from oxydra.threads import CancelToken, Deadline
from oxydra.types import Json

if TYPE_CHECKING:
    import subprocess

log = logging.getLogger(__name__)

JOBS = {
    "duckduckgo_results": "oxydra.worker.readable:duckduckgo_results",
    "html_to_markdown": "oxydra.worker.readable:html_to_markdown",
    "pdf_to_text": "oxydra.worker.pdf:pdf_to_text",
    "regex_search": "oxydra.worker.search:regex_search",
}
LIBRARIES = ("justhtml", "pypdf")  # what the jobs import, besides the standard library

PACKAGE = Path(__file__).resolve().parent.parent
HEAD = struct.Struct(">II")
MAX_ANSWER = 16 << 20
JOBS_PER_CHILD = 500  # after which a child is replaced: what a library leaks ends with it

UNCAGED = {
    "code": "workers_uncaged",
    "detail": "Web pages, PDFs and the model's regular expressions are handled by workers that are "
    "limited but not caged: this kernel has no Landlock (Linux 5.13) or no seccomp. What breaks "
    "one of their parsers can read and send what your user can.",
}

Lane: TypeAlias = Literal["web", "files"]


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """`children`: how many at once. `memory`: bytes that one may use. `idle_seconds`: a child that
    had no job for so long ends. `start_seconds`: how long one may take to be ready.
    """

    children: int = 2
    memory: int = 384 << 20
    idle_seconds: float = 120.0
    start_seconds: float = 20.0


class Workers:
    """Runs jobs; may be used from any number of threads."""

    def __init__(self, config: WorkerConfig | None = None) -> None:
        self._config = config or WorkerConfig()
        self._free = threading.Condition()
        self._idle: list[_Child] = []  # the one used last at the end
        self._all: set[_Child] = set()
        self._starting = 0
        self._closed = False
        self._level = ""

    @property
    def level(self) -> str:
        """What holds the children back: `cage`, or `rlimits` where the kernel offers no more. As
        the last one that started said; before, as the kernel says.
        """
        if not self._level:
            from oxydra.cage import probe  # ctypes, which start-up does not pay

            found = probe()
            self._level = "cage" if found.files and found.seccomp else "rlimits"
        return self._level

    def degraded(self) -> list[Json]:
        """What the children are not protected from here."""
        return [] if self.level == "cage" else [UNCAGED]

    def run(
        self,
        job: str,
        arguments: Json,
        data: bytes = b"",
        *,
        lane: Lane,
        seconds: float,
        deadline: Deadline,
        token: CancelToken,
    ) -> Json:
        """Do `job` (a name of `JOBS`) within `seconds`, waiting for a free child included.

        Raises `ToolError` in the job's words if it refuses its input or breaks, `DeadlineExceeded`
        with code `timeout` when time is up, and `Cancelled`.
        """
        until = Deadline(min(deadline.at, time.monotonic() + seconds))
        while True:
            token.check()
            child = self._borrow(lane, until, token)
            again = child.jobs > 0
            whole = False
            try:
                with token.on_cancel(child.kill):
                    answer = child.ask(job, arguments, data, until)
                whole = not token.cancelled  # a kill may have come after the answer
                break
            except TimeoutError:
                raise DeadlineExceeded(f"{_NAMES[job]} took too long and was stopped.") from None
            except (EOFError, ConnectionError, ValueError, RecursionError):
                token.check()
                if not again:  # one that was used before may have been about to end
                    raise ToolError(f"{_NAMES[job]} broke off.", code="worker") from None
            finally:
                self._give_back(child, whole)
        if isinstance(result := answer.get("result"), dict):
            if isinstance(refused := result.get("refused"), str):
                raise ToolError(refused)
            return result
        raise ToolError(f"{_NAMES[job]} failed: {str(answer.get('error', 'no result'))[:200]}.")

    def stop(self) -> None:
        """End every child, those at work too, and start no other. Idempotent."""
        with self._free:
            self._closed = True
            self._idle.clear()
            children = list(self._all)
            self._free.notify_all()
        for child in children:
            child.end()

    # ------------------------------------------------------------------------------- children

    def _borrow(self, lane: Lane, until: Deadline, token: CancelToken) -> _Child:
        """A child for this job alone: an idle one of its lane, else a new one."""
        other: _Child | None = None
        with token.on_cancel(self._wake), self._free:
            while True:
                token.check()
                if self._closed:
                    raise ToolError("Oxydra is stopping.", code="worker")
                if (child := self._take(lane)) is not None:
                    return child
                if len(self._all) + self._starting < self._config.children:
                    break
                if self._idle:
                    other = self._idle.pop(0)
                    self._all.discard(other)
                    break
                if not self._free.wait(until.timeout()):
                    raise DeadlineExceeded("No worker became free in time.")
            self._starting += 1
        started: _Child | None = None
        try:
            if other is not None:
                other.end()
            started = _Child(lane, self._config, until, token)
        finally:
            with self._free:
                self._starting -= 1
                if started is not None:
                    self._all.add(started)
                    self._level = started.level
                closed = self._closed
                self._free.notify()
        if closed:
            self._give_back(started, False)
            raise ToolError("Oxydra is stopping.", code="worker")
        return started

    def _take(self, lane: Lane) -> _Child | None:
        for child in reversed(self._idle):
            if child.lane == lane:
                self._idle.remove(child)
                return child
        return None

    def _give_back(self, child: _Child, whole: bool) -> None:
        with self._free:
            keep = whole and not self._closed and child.jobs < JOBS_PER_CHILD
            if keep:
                self._idle.append(child)
            else:
                self._all.discard(child)
            self._free.notify()
        if not keep:
            child.end()

    def _wake(self) -> None:
        with self._free:
            self._free.notify_all()


_NAMES = {
    "duckduckgo_results": "Reading the search results",
    "html_to_markdown": "Reading the page",
    "pdf_to_text": "Reading the PDF",
    "regex_search": "The search",
}


class _Child:
    """One child process, asked by one thread at a time; only `kill` and `end` are called by others.

    Starting one raises `OxydraError`, or `Cancelled`.
    """

    _process: subprocess.Popen[bytes]

    def __init__(
        self, lane: Lane, config: WorkerConfig, until: Deadline, token: CancelToken
    ) -> None:
        import subprocess  # 5 ms that start-up does not pay

        self.lane = lane
        self.jobs = 0
        self._stream, theirs = socket.socketpair()
        setup = {"fd": theirs.fileno(), "memory": config.memory, **_setup()}
        setup["idle_seconds"] = config.idle_seconds
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-ISX", "utf8", str(_program()), json.dumps(setup)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env={},
                    cwd="/",
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
            except OSError as error:
                self._stream.close()
                raise OxydraError(f"A tool worker could not be started: {error}.") from error
        try:
            with token.on_cancel(self.kill):
                ready = Deadline.after(until.timeout(config.start_seconds))
                self.level = str(self._receive(ready).get("level", ""))
        except (OSError, EOFError, ValueError, RecursionError) as error:
            self.end()
            token.check()
            raise OxydraError(
                "A tool worker did not start.", remedy="Check that the installation is complete."
            ) from error

    def ask(self, job: str, arguments: Json, data: bytes, until: Deadline) -> Json:
        """Raises `TimeoutError`, `EOFError` or `ConnectionError`; and `ValueError` or
        `RecursionError` for what is no answer.
        """
        self.jobs += 1
        request = {"job": job, "arguments": arguments, "seconds": int(until.remaining()) + 1}
        head = json.dumps(request, ensure_ascii=True).encode()
        self._stream.settimeout(_left(until))
        self._stream.sendall(HEAD.pack(len(head), len(data)) + head)
        if data:
            self._stream.settimeout(_left(until))
            self._stream.sendall(data)
        return self._receive(until)

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        """Kill it and wait until it is gone. Its end of the stream reads as end of file."""
        from subprocess import TimeoutExpired

        self._process.kill()
        try:
            self._process.wait(5.0)
        except TimeoutExpired:  # stuck in the kernel: it can do no more there
            log.error("tool worker %d did not die", self._process.pid)
        self._stream.close()

    def _receive(self, until: Deadline) -> Json:
        size, blob = HEAD.unpack(self._read(HEAD.size, until))
        if size > MAX_ANSWER or blob:
            raise ValueError("an answer of an impossible size")
        answer: Any = json.loads(self._read(size, until))
        if not isinstance(answer, dict):
            raise ValueError("an answer that is no object")
        return answer

    def _read(self, size: int, until: Deadline) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._stream.settimeout(_left(until))
            piece = self._stream.recv(min(size - len(data), 1 << 20))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)


def _left(until: Deadline) -> float | None:
    """What a socket may take; a timeout of 0 would mean something else to it."""
    left = until.timeout()
    if left is not None and left <= 0:
        raise TimeoutError
    return left


def _program() -> Path:
    """`guest/tool-worker`: beside the package in a checkout, inside it in an install."""
    for folder in (PACKAGE / "guest", PACKAGE.parent / "guest"):
        if (folder / "tool-worker").is_file():
            return folder / "tool-worker"
    raise OxydraError(
        "The guest program 'tool-worker' is missing from this installation.",
        remedy="Install Oxydra again.",
    )


def _setup() -> Json:
    """What a child is told of where things are."""
    import importlib.util

    jobs = {}
    for name, entry in JOBS.items():
        module, _, function = entry.partition(":")
        jobs[name] = (str(PACKAGE / "worker" / f"{module.rpartition('.')[2]}.py"), function)
    libraries = {}
    for name in LIBRARIES:
        spec = importlib.util.find_spec(name)  # does not import it
        if spec is not None and spec.submodule_search_locations:
            libraries[name] = spec.submodule_search_locations[0]
    return {"cage": str(PACKAGE / "cage.py"), "jobs": jobs, "libraries": libraries}
