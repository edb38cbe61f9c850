"""The runner's side of one agent guest: its process, and the channels of its one stream.

`oxydra-guest-mux` reads the stream, `oxydra-guest-control` what the guest says on the control
channel, and `oxydra-guest-wait` waits for its end and reports it. All end when the guest does.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import queue
import threading
from collections.abc import Callable

from oxydra.errors import DeadlineExceeded, FrameError, OxydraError
from oxydra.frames import Unpacker, pack
from oxydra.mux import Channel
from oxydra.runner.stream import SEND_SECONDS, GuestStream, Serve
from oxydra.threads import Service
from oxydra.tiers.base import GuestProcess, GuestSpec, Tier
from oxydra.types import Json

log = logging.getLogger(__name__)

READY_SECONDS = 30.0
END_SECONDS = 15.0  # that a guest has after its stream: its own stopping takes up to 10


class Guest:
    """A running agent guest. `on_exit(how)` is called once, on a thread of this class's."""

    def __init__(self, serve: Serve, on_exit: Callable[[str], None]) -> None:
        self._serve = serve
        self._on_exit = on_exit
        self._process: GuestProcess | None = None
        self._stream: GuestStream | None = None
        self._control: Channel | None = None
        self._numbers = itertools.count(1)
        self._replies: dict[str, queue.SimpleQueue[Json]] = {}
        self._lock = threading.Lock()
        self._started: queue.SimpleQueue[tuple[str, Json]] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._heard = threading.Event()  # all that it said
        self._reader = Service("guest-control", self._read, wake=self._hang_up)
        self._waiter = Service("guest-wait", self._wait)

    @property
    def pid(self) -> int:
        return 0 if self._process is None else self._process.pid

    def start(self, tier: Tier, spec: GuestSpec) -> None:
        """Start it and return when it is ready. Raises what the guest says is wrong, or that it
        died.
        """
        self._process = tier.start(spec)
        self._stream = GuestStream(self._process.stream, "guest-mux", self._serve)
        self._stream.start()
        self._waiter.start()
        try:
            self._control = self.open("control")
            self._reader.start()
            op, payload = self._started.get(timeout=READY_SECONDS)
        except OSError:
            self._heard.set()
            op, payload = "ended", {}
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

    def open(self, kind: str, **said: str) -> Channel:
        """A new channel to the guest. Raises OSError."""
        if self._stream is None:
            raise ConnectionError("the guest has not started")
        return self._stream.open(kind, **said)

    def request(self, op: str, payload: Json, timeout: float) -> Json:
        """Ask the guest. Raises `DeadlineExceeded` if it does not answer."""
        number = str(next(self._numbers))
        reply: queue.SimpleQueue[Json] = queue.SimpleQueue()
        self._replies[number] = reply
        try:
            self.tell(op, {**payload, "request_id": number})
            return reply.get(timeout=timeout)
        except (OSError, queue.Empty):
            raise DeadlineExceeded("The agent guest does not answer.") from None
        finally:
            del self._replies[number]

    def tell(self, op: str, payload: Json) -> None:
        """Say something on the control channel. Raises OSError."""
        if self._control is None:
            raise ConnectionError("the guest has not started")
        data = pack(op, payload)
        with self._lock:
            if self._control.offer(data) < len(data):  # it has not read what was said before
                self._hang_up()
                raise ConnectionError("the guest does not read its control channel")

    def stop(self, timeout: float) -> bool:
        """Ask it to end, then make it end; True if it ended by itself. That is no news for
        `on_exit`.
        """
        self._waiter.stopping.set()
        with contextlib.suppress(OSError):
            self.tell("shutdown", {})
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
        if self._stream is not None:
            self._stream.close()
        self._reader.stop()

    def _hang_up(self) -> None:
        if self._stream is not None:
            self._stream.hang_up()

    def _wait(self, service: Service) -> None:
        if self._process is None:
            return
        how = self._process.wait()
        self._process.kill()  # what it may have left in its process group
        self._heard.wait(SEND_SECONDS)  # its last words may still be under way
        self._ended.set()
        self._started.put(("ended", {}))
        if not service.stopping.is_set():
            self._on_exit(how)

    def _read(self, _service: Service) -> None:
        unpacker = Unpacker()
        if self._control is None:
            return
        try:
            while data := self._control.recv(65536):
                for op, payload in unpacker.feed(data):
                    self._take(op, payload)
        except FrameError as error:
            log.error("the agent guest broke the protocol: %s", error)
            self._hang_up()  # nothing that it says can be understood any more
        except OSError as error:
            log.debug("the agent guest's control channel ended: %s", error)
        finally:
            self._heard.set()
            self._outlive()

    def _outlive(self) -> None:
        """Who is not spoken to any more ends by itself; one that does not is ended."""
        if not self._ended.wait(END_SECONDS) and self._process is not None:
            log.error("the agent guest did not end with its stream and is killed")
            self._process.kill()

    def _take(self, op: str, payload: Json) -> None:
        if op in ("ready", "failed"):
            self._started.put((op, payload))
            return
        reply = self._replies.get(str(payload.get("request_id")))
        if reply is not None:
            reply.put(payload)
