"""The runner's side of one agent guest: its process and its stream.

One thread, `oxydra-guest-stream`, reads what the guest says; one, `oxydra-guest-wait`, waits for
its end and reports it. Both end when the guest does.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import queue
import socket
import struct
import threading
from collections.abc import Callable

from oxydra.errors import DeadlineExceeded, FrameError, OxydraError
from oxydra.frames import Unpacker, pack
from oxydra.threads import Service
from oxydra.tiers.base import GuestProcess, GuestSpec, Tier
from oxydra.types import Json

log = logging.getLogger(__name__)

READY_SECONDS = 30.0
SEND_SECONDS = 2  # a guest that does not read for so long is not answering


class Guest:
    """A running agent guest. `on_exit(how)` is called once, on a thread of this class's."""

    def __init__(self, stream: socket.socket, on_exit: Callable[[str], None]) -> None:
        # The kernel's own limit on sending: a Python timeout would also end the reader's wait.
        limit = struct.pack("ll", SEND_SECONDS, 0)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._stream = stream
        self._on_exit = on_exit
        self._process: GuestProcess | None = None
        self._numbers = itertools.count(1)
        self._replies: dict[str, queue.SimpleQueue[Json]] = {}
        self._lock = threading.Lock()
        self._started: queue.SimpleQueue[tuple[str, Json]] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._reader = Service("guest-stream", self._read, wake=self._hang_up)
        self._waiter = Service("guest-wait", self._wait)

    @property
    def pid(self) -> int:
        return 0 if self._process is None else self._process.pid

    def start(self, tier: Tier, spec: GuestSpec) -> None:
        """Start it and return when it is ready. Raises what the guest says is wrong, or that it
        died.
        """
        self._process = tier.start(spec)
        spec.control.close()  # the guest has its own copy; ours would hide its end
        self._reader.start()
        self._waiter.start()
        try:
            op, payload = self._started.get(timeout=READY_SECONDS)
        except queue.Empty:
            self.kill()
            raise DeadlineExceeded(
                f"The agent guest was not ready after {READY_SECONDS:g} s.",
                remedy="Its log is logs/runtime.log in the workspace.",
            ) from None
        if op != "ready":
            self.kill()
            raise OxydraError(
                str(payload.get("message", "The agent guest ended while it started.")),
                remedy=str(payload.get("remedy", "Its log is logs/runtime.log in the workspace.")),
            )

    def request(self, op: str, payload: Json, timeout: float) -> Json:
        """Ask the guest. Raises `DeadlineExceeded` if it does not answer."""
        number = str(next(self._numbers))
        reply: queue.SimpleQueue[Json] = queue.SimpleQueue()
        self._replies[number] = reply
        try:
            with self._lock:
                self._stream.sendall(pack(op, {**payload, "request_id": number}))
            return reply.get(timeout=timeout)
        except (OSError, queue.Empty):
            raise DeadlineExceeded("The agent guest does not answer.") from None
        finally:
            del self._replies[number]

    def hand_over(self, op: str, stream: socket.socket) -> None:
        """Give the guest a stream: frame `op`, and the descriptor beside it. Raises OSError."""
        with self._lock:
            socket.send_fds(self._stream, [pack(op, {})], [stream.fileno()])

    def stop(self, timeout: float) -> bool:
        """Ask it to end, then make it end; True if it ended by itself."""
        with contextlib.suppress(OSError), self._lock:
            self._stream.sendall(pack("shutdown", {}))
        willing = self._ended.wait(timeout)
        if not willing:
            log.error("the agent guest did not end within %g s and is killed", timeout)
        self.kill()
        return willing

    def kill(self) -> None:
        """End it at once and join what belongs to it."""
        if self._process is not None:
            self._process.kill()
            self._waiter.stop()
        self._reader.stop()
        self._stream.close()

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)

    def _wait(self, service: Service) -> None:
        if self._process is None:
            return
        how = self._process.wait()
        self._process.kill()  # what it may have left in its process group
        self._ended.set()
        self._started.put(("ended", {}))
        if not service.stopping.is_set():
            self._on_exit(how)

    def _read(self, _service: Service) -> None:
        unpacker = Unpacker()
        try:
            while data := self._stream.recv(65536):
                for op, payload in unpacker.feed(data):
                    self._take(op, payload)
        except FrameError as error:
            log.error("the agent guest broke the protocol: %s", error)
        except OSError as error:
            log.debug("the agent guest's stream ended: %s", error)

    def _take(self, op: str, payload: Json) -> None:
        if op in ("ready", "failed"):
            self._started.put((op, payload))
            return
        reply = self._replies.get(str(payload.get("request_id")))
        if reply is not None:
            reply.put(payload)
