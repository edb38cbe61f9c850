"""A turn from its message to its end, over a connection that may break.

No thread of its own: the client's delivers frames into a queue, from which the caller's takes them.
A daemon that is restarted meanwhile takes the turn up again: the same turn id is sent once more,
which runs nothing twice.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from oxydra.errors import NoDaemonError, OxydraError
from oxydra.frames import Frame
from oxydra.threads import CancelToken, Deadline
from oxydra.tui.client import GatewayClient, Link, Locate, RefusedError, into
from oxydra.types import Json

PATIENCE = 60.0  # seconds without a connection after which a turn is given up
REFUSED_SECONDS = 5.0  # in which a token may be replaced, before what it may not is said
CANCEL_SECONDS = 10.0  # for a cancelled turn to end


@dataclass(frozen=True, slots=True)
class Line:
    """A connection on which one turn is followed. None among the events says that the turn is to be
    cancelled.
    """

    client: GatewayClient
    events: queue.SimpleQueue[Frame | Link | None]

    def follow(
        self,
        turn: Json,
        hear: Callable[[Frame], None],
        *,
        token: CancelToken | None = None,
        until: Deadline | None = None,
    ) -> Frame | None:
        """Send the turn, whose fields are those of `send_turn` but for the session; `hear` every
        frame of it. The last one, or None where it is accepted and goes on at the end of `until`.

        Raises `OxydraError` where it is refused, `NoDaemonError` where the daemon is gone for too
        long, `RefusedError` where it is there and does not take our token any more.
        """
        with contextlib.ExitStack() as stack:
            if token is not None:
                stack.enter_context(token.on_cancel(lambda: self.events.put(None)))
            return self._follow(turn, hear, until or Deadline.after(None))

    def _follow(self, turn: Json, hear: Callable[[Frame], None], until: Deadline) -> Frame | None:
        turn_id = answered = turn["turn_id"]  # `answered` is another's once the message joined it
        accepted = stopping = False
        broken = Link(True)
        while True:
            patience = REFUSED_SECONDS if broken.refused else PATIENCE
            limit = None if self.client.connected else patience
            try:
                waits = accepted or stopping  # what is not accepted yet may still be lost
                event = self.events.get(timeout=until.timeout(limit) if waits else limit)
            except queue.Empty:
                if waits and until.expired:
                    return None
                if broken.refused:
                    raise RefusedError(broken.detail) from None
                raise NoDaemonError(
                    f"The daemon has been gone for {PATIENCE:g} s.",
                    remedy="Start it again with `oxydra-runner start`; the turn then goes on.",
                ) from None
            if event is None:
                stopping, until = True, Deadline.after(CANCEL_SECONDS)
                self._send("cancel_active_turn", {"turn_id": turn_id})
                continue
            if isinstance(event, Link):
                broken = event
                if event.connected and (event.fresh or not accepted):
                    self._send("send_turn", turn)
                    if stopping:
                        self._send("cancel_active_turn", {"turn_id": turn_id})
                continue
            if event.type == "turn_joined" and concerns(event.payload, turn_id):
                answered = event.payload["into"]
                accepted = True
                continue
            if not concerns(event.payload, turn_id) and not concerns(event.payload, answered):
                if event.type == "error" and "turn" not in event.payload and not stopping:
                    raise OxydraError(
                        event.payload["message"], code=event.payload.get("code") or ""
                    )
                continue
            accepted = True
            hear(event)
            if event.type in ("turn_completed", "turn_cancelled", "error"):
                return event

    def _send(self, frame_type: str, payload: Json) -> None:
        with contextlib.suppress(NoDaemonError):  # it broke again: a Link will say so
            self.client.send(frame_type, {**payload, "session_id": self.client.session_id})


@contextmanager
def line(
    locate: Locate, user_id: str, *, session_id: str | None = None, agent: str = ""
) -> Iterator[Line]:
    """A connection to the user's gateway, in a session or else in a new one, of `agent`. Raises
    `OxydraError`, `NoDaemonError` if there is none.
    """
    events: queue.SimpleQueue[Frame | Link | None] = queue.SimpleQueue()
    where = {"session_id": session_id, "new_session": session_id is None, "agent": agent}
    with into(events.put, locate, user_id, **where) as client:
        yield Line(client, events)


def concerns(payload: Json, turn_id: str) -> bool:
    """Whether a frame is of this turn."""
    turn = payload.get("turn")
    return isinstance(turn, dict) and turn.get("turn_id") == turn_id
