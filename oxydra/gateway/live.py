"""A session as it is in memory: who listens, how its frames are numbered, and the last of them.

Any thread publishes. What a turn streams is not numbered at once: it is put down, and the gateway's
I/O thread gives it out when it comes to it, so that on a busy machine what came meanwhile goes out
as one frame. Each session's lock guards all of it; nothing is done under it that takes time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from oxydra.frames import STREAMED, Streamed, encode, escaped
from oxydra.gateway.connection import frame_text
from oxydra.gateway.delta import MAX_MERGED, OVERHEAD, Delta, merge
from oxydra.threads import CancelToken, Service
from oxydra.types import Json, Turn

REPLAY_FRAMES = 4096
REPLAY_BYTES = 1 << 20  # kept per session for clients that come back
ENCODED = 130  # bytes that an encoded frame takes in memory beside its own

Soon = Callable[[Callable[[], None]], None]
"""Has something done on the gateway's I/O thread."""


class Subscriber(Protocol):
    """Somebody who listens to sessions. `deliver` appends and returns: it never blocks, never
    raises. Nor does `reply`, which gives it a frame without a number.
    """

    def deliver(self, frame: bytes | Delta) -> None: ...

    def reply(self, frame_type: str, payload: Json) -> None: ...


class Listener(Protocol):
    """Somebody in this process who listens to a session. `hear` gets every frame as it is given
    out, on the thread that does so; it never blocks, never raises, and asks nothing of the hub.
    """

    def hear(self, frame_type: str, payload: Json) -> None: ...


@dataclass(slots=True)
class Active:
    """A running turn."""

    turn: Turn
    token: CancelToken = field(default_factory=CancelToken)
    service: Service | None = None


class Live:
    """One session, whose frames are numbered from `seq` on. `soon` is None where no gateway is
    there to give out what is streamed: then each part goes at once.
    """

    def __init__(self, session_id: str, soon: Soon | None = None, seq: int = 0) -> None:
        self.session_id = session_id
        self.queue: deque[Turn] = deque()  # under the hub's lock, as is `active`
        self.active: Active | None = None
        self.arriving: set[str] = set()  # turns that are being stored, to join the active one
        self.held = False  # no turn may start
        self.asked_at = 0.0  # when somebody was given it last
        self._soon = soon
        self._lock = threading.Lock()
        self._seq = seq
        self._kept: deque[tuple[int, bytes | Delta]] = deque()
        self._kept_bytes = 0
        self._published_at = 0.0
        self._subscribers: dict[Subscriber, None] = {}
        self._listeners: dict[Listener, None] = {}
        self._followed = False  # somebody may come back for what came after a number
        # What is streamed: of which turn and kind, how its frames begin, and what is still to go.
        self._streaming: tuple[str, Json] = ("", {})
        self._stream: Streamed | None = None
        self._unsent: list[str] = []
        self._unsent_size = 0
        self._asked = False  # the I/O thread will come for it

    def publish(self, frame_type: str, payload: Json) -> None:
        """Number a frame, keep it, and give it to every subscriber; streamed text a moment later,
        with what comes until then.
        """
        ask = False
        with self._lock:
            self._published_at = time.monotonic()
            if frame_type in STREAMED:
                self._put_down(frame_type, payload)
                ask = bool(self._unsent) and not self._asked
                self._asked = self._asked or ask
            else:
                self._give_out()
                self._seq += 1
                self._number(frame_text(encode(frame_type, payload, self._seq)))
                self._tell(frame_type, payload)
        if ask and self._soon is not None:
            self._soon(self._come_for_it)

    def _put_down(self, frame_type: str, payload: Json) -> None:
        """Under the lock."""
        kind, before = self._streaming
        if kind != frame_type or before["turn"] != payload["turn"]:
            self._give_out()
            self._streaming = frame_type, payload
            self._stream = Streamed(frame_type, payload)
        self._unsent.append(payload["delta"])
        self._unsent_size += len(payload["delta"])
        if self._soon is None or self._unsent_size > MAX_MERGED:
            self._give_out()

    def _come_for_it(self) -> None:
        with self._lock:
            self._asked = False
            self._give_out()

    def _give_out(self) -> None:
        """Under the lock: what was streamed since becomes a frame."""
        if not self._unsent or self._stream is None:
            return
        text = "".join(self._unsent)
        self._unsent.clear()
        self._unsent_size = 0
        self._seq += 1
        self._number(Delta(self._stream, self._seq, self._seq, escaped(text)))
        kind, payload = self._streaming
        self._tell(kind, {**payload, "delta": text})

    def _number(self, frame: bytes | Delta) -> None:
        """Under the lock: keep a frame that has its number, and give it to every subscriber."""
        kept = frame
        if isinstance(frame, Delta):  # without the bytes that those who get it share
            kept = Delta(frame.stream, frame.first, frame.last, frame.text)
        self._kept.append((self._seq, kept))
        self._kept_bytes += _size(kept)
        while len(self._kept) > REPLAY_FRAMES or self._kept_bytes > REPLAY_BYTES:
            self._kept_bytes -= _size(self._kept.popleft()[1])
        for subscriber in self._subscribers:
            subscriber.deliver(frame)

    def _tell(self, frame_type: str, payload: Json) -> None:
        for listener in self._listeners:
            listener.hear(frame_type, payload)

    @property
    def seq(self) -> int:
        """The number of its last frame."""
        return self._seq

    @property
    def replay(self) -> tuple[float, int]:
        """When something was last published, and how many bytes are kept."""
        return self._published_at, self._kept_bytes

    def forget(self) -> None:
        """Keep no frame: clients that come back read the history."""
        with self._lock:
            self._kept.clear()
            self._kept_bytes = 0

    def subscribe(
        self,
        subscriber: Subscriber,
        greet: Callable[[int, bool], bytes] | None = None,
        last_seq: int | None = None,
    ) -> None:
        """Deliver `greet(seq, resumed)` if there is one, the kept frames after `last_seq`, then
        every frame to come.

        `resumed` says that nothing after `last_seq` is missing; otherwise nothing is replayed and
        the client reads the history.
        """
        with self._lock:
            self._give_out()
            oldest = self._kept[0][0] if self._kept else self._seq + 1
            resumed = last_seq is not None and oldest <= last_seq + 1 <= self._seq + 1
            if greet is not None:
                subscriber.deliver(greet(self._seq, resumed))
            if resumed:
                missed = (frame for seq, frame in self._kept if seq > (last_seq or 0))
                for frame in merge(missed):
                    subscriber.deliver(frame)
            self._subscribers[subscriber] = None
            self._followed = True

    @property
    def followers(self) -> list[Subscriber]:
        """The clients that listen now."""
        with self._lock:
            return list(self._subscribers)

    @property
    def followed(self) -> bool:
        """Whether a client was ever told numbers of it."""
        return self._followed

    @property
    def idle(self) -> bool:
        """Whether nobody listens and nothing is under way or waits. Under the hub's lock."""
        with self._lock:
            heard = self._subscribers or self._listeners
        return not (heard or self.queue or self.active or self.arriving or self.held)

    def unsubscribe(self, subscriber: Subscriber) -> None:
        with self._lock:
            self._subscribers.pop(subscriber, None)

    def listen(self, listener: Listener) -> None:
        """Let it hear every frame to come."""
        with self._lock:
            self._give_out()
            self._listeners[listener] = None

    def unlisten(self, listener: Listener) -> None:
        with self._lock:
            self._listeners.pop(listener, None)

    def subscribed(self, subscriber: Subscriber) -> bool:
        with self._lock:
            return subscriber in self._subscribers


def _size(frame: bytes | Delta) -> int:
    """What it takes to keep one."""
    return len(frame.text) + OVERHEAD if isinstance(frame, Delta) else len(frame) + ENCODED
