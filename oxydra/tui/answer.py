"""What commands ask the gateway: the open requests for approvals, their answers, and `command`s.

A short-lived client of the gateway like any other. Its thread delivers frames into a queue, from
which the caller's takes the reply to what it asked; the connection ends with the command.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from oxydra.errors import NoDaemonError, OxydraError
from oxydra.frames import Frame
from oxydra.scrub import printable
from oxydra.threads import Deadline
from oxydra.tui.client import ClientConfig, GatewayClient, Link, Locate, into
from oxydra.types import Json

REPLY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Desk:
    """A connection on which one thing at a time is asked."""

    client: GatewayClient
    events: queue.SimpleQueue[Frame | Link]
    patience: float = REPLY_SECONDS  # for an answer

    def requests(self) -> list[Json]:
        """The open requests, oldest first: the fields of `approval_request` frames."""
        rows: list[Json] = self.command("approvals")["requests"]
        return rows

    def sessions(self, *, archived: bool = False) -> list[Json]:
        """The rows of a `session_list`, the most recently used first."""
        listed = self._ask("list_sessions", {"include_archived": archived})
        rows: list[Json] = listed.payload["sessions"]
        return rows

    def history(self, session_id: str, before: int | None, limit: int) -> Json:
        """A `session_history`."""
        wanted = {"session_id": session_id, "before_sequence": before, "limit": limit}
        return self._ask("history", wanted).payload

    def create(self, name: str, agent: str) -> Json:
        """A new session: its `session_created`."""
        wanted = {"display_name": name or None, "agent_name": agent or None}
        return self._ask("create_session", wanted).payload

    def command(self, name: str, /, **args: object) -> Json:
        """The data of a `command_result`. Raises `OxydraError`."""
        data: Json = self._ask("command", {"name": name, "args": args}).payload["data"]
        return data

    def answer(self, approval_id: str, *, allow: bool, for_session: bool) -> Json:
        """Answer a request; returns the `approval_resolved`. Raises `OxydraError` where it was
        answered before, has expired, is unknown or can't be allowed.
        """
        answer = {
            "approval_id": approval_id,
            "decision": "allow" if allow else "deny",
            "scope": "session" if for_session else "once",
        }
        return self._ask("approve", answer).payload

    def _ask(self, frame_type: str, payload: Json) -> Frame:
        """Send a frame and wait for its direct reply. Raises `OxydraError`."""
        request_id = self.client.send(frame_type, payload)
        until = Deadline.after(self.patience)
        while True:
            try:
                event = self.events.get(timeout=until.timeout())
            except queue.Empty:
                raise NoDaemonError("The daemon does not answer.") from None
            if isinstance(event, Link):
                if not event.connected:
                    raise NoDaemonError(f"The connection broke: {event.detail}.")
            elif event.payload.get("request_id") == request_id:
                if event.type == "error":
                    code = event.payload.get("code") or ""
                    raise OxydraError(event.payload["message"], code=code)
                return event


@contextmanager
def desk(locate: Locate, user_id: str, *, patience: float = REPLY_SECONDS) -> Iterator[Desk]:
    """A connection to the user's gateway. Raises `NoDaemonError` if there is none."""
    events: queue.SimpleQueue[Frame | Link] = queue.SimpleQueue()
    with into(events.put, locate, user_id, config=ClientConfig(reconnect=False)) as client:
        yield Desk(client, events, patience)


def lines(requests: list[Json]) -> list[str]:
    """Requests for a person to decide by, all that is in them made visible."""
    if not requests:
        return ["No request is open."]
    shown = []
    for row in requests:
        session = row["session"]["session_id"]
        shown += [
            f"{row['approval_id']}  {row['tool']} ({row['safety_tier']})",
            f"  session {session}, open until {row['expires_at']}",
            f"  {row['reason']}",
            *(f"  {line}" for line in row["arguments"].split("\n")),
        ]
        if not row["complete"]:
            shown.append("  These are not all of its arguments: it can only be denied.")
    return [printable(line) for line in shown]
