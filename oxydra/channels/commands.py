"""What a person may say to the bot besides messages for the agent: `/new`, `/sessions` and so on.

They run on the thread that takes messages. What the gateway's table of commands has is asked there;
sessions are made, listed and switched by the hub. In a group nothing is told of conversations that
began elsewhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from oxydra.channels.route import MENU
from oxydra.errors import NotFoundError, OxydraError
from oxydra.gateway.commands import MAX_NAME, Command
from oxydra.gateway.hub import Hub
from oxydra.mcp import told
from oxydra.skills import listed
from oxydra.store import Store
from oxydra.types import Json, Session

# what would tell a group of its person's other talks and of what they use
PRIVATE = ("sessions", "switch", "cost", "tools", "mcp", "skills")
LISTED = 20


@dataclass(frozen=True, slots=True)
class Place:
    """A chat, or a topic of one (0: none)."""

    chat: int
    topic: int

    @property
    def private(self) -> bool:
        return self.chat > 0


class Commands:
    """Of one bot."""

    def __init__(
        self,
        hub: Hub,
        store: Store,
        table: Mapping[str, Command],
        health: Callable[[], Json],
        channel: str,
        drop: Callable[[Place | None], int],
    ) -> None:
        """`drop` forgets the messages of a place, None: of all, that wait for their files."""
        self._drop = drop
        self._hub = hub
        self._store = store
        self._table = table
        self._health = health
        self._channel = channel
        self._topics: dict[Place, str] = {}  # names of topics
        self._do: dict[str, Callable[[Place, str], str]] = {
            "new": self._new,
            "sessions": self._sessions,
            "switch": self._switch,
            "cancel": self._cancel,
            "cancelall": self._cancel_all,
            "skill": self._skill,
            "status": self._status,
            "cost": self._cost,
            "tools": self._tools,
            "mcp": self._mcp,
            "skills": lambda _place, _rest: "\n".join(listed(self._asked("skills", {}))),
            "help": self._help,
            "start": self._help,
        }

    def run(self, place: Place, name: str, rest: str) -> str:
        """What to answer."""
        do = self._do.get(name)
        if do is None:
            return f"There is no command /{name[:32]}.\n\n{self._help(place, '')}"
        if name in PRIVATE and not place.private:
            return f"/{name} is answered in a private chat only."
        try:
            return do(place, rest)
        except OxydraError as error:
            return str(error)

    def session(self, place: Place) -> str:
        """The session that a chat talks to; a new one where there is none."""
        found = self._store.channel_session(self._channel, place.chat, place.topic)
        return found or self._begin(place, "").session_id

    def name_topic(self, place: Place, name: str, *, changed: bool) -> None:
        """A topic is called so: since now (`changed`), or when it was made. So is its session,
        unless a person named that after the topic was.
        """
        if not changed and place in self._topics:
            return
        self._topics[place] = name
        found = self._store.channel_session(self._channel, place.chat, place.topic)
        with contextlib.suppress(NotFoundError):  # it was forgotten
            if found and (changed or not self._store.session(found).display_name):
                self._store.rename_session(found, _named(name))

    def _begin(self, place: Place, name: str) -> Session:
        session = self._hub.create_session(
            display_name=_named(name or self._topics.get(place, "")),
            channel_origin=f"{self._channel}:{place.chat}:{place.topic}",
        )
        self._store.bind_session(self._channel, place.chat, place.topic, session.session_id)
        return session

    def _new(self, place: Place, rest: str) -> str:
        session = self._begin(place, rest)
        return f"A new conversation: {_called(session)}."

    def _sessions(self, place: Place, _rest: str) -> str:
        current = self._store.channel_session(self._channel, place.chat, place.topic)
        rows = self._hub.sessions()
        lines = [
            f"{'→' if one.session_id == current else '•'} {_called(one)}" for one in rows[:LISTED]
        ]
        if len(rows) > LISTED:
            lines.append(f"… and {len(rows) - LISTED} more")
        return "\n".join(lines) or "There is no conversation yet."

    def _switch(self, place: Place, rest: str) -> str:
        if not rest:
            return f"Which one? /switch and its first letters:\n{self._sessions(place, '')}"
        session = self._store.find_session(rest)
        self._store.bind_session(self._channel, place.chat, place.topic, session.session_id)
        return f"Going on with {_called(session)}."

    def _cancel(self, place: Place, _rest: str) -> str:
        found = self._store.channel_session(self._channel, place.chat, place.topic)
        active = self._hub.active_turn(found) if found else None
        dropped = self._drop(place)
        if active is None and dropped:
            return "What waited here for its files is forgotten."
        if active is None:
            raise NotFoundError("Nothing runs here.")
        self._hub.cancel(found, active["turn_id"])
        return "Stopping it."

    def _cancel_all(self, _place: Place, _rest: str) -> str:
        self._drop(None)
        self._hub.cancel_all()
        return "Stopping everything."

    def _skill(self, _place: Place, _rest: str) -> str:
        return "Which skill, and what is to be done? /skill NAME [what to do]"

    def _status(self, _place: Place, _rest: str) -> str:
        health = self._health()
        model, status = health.get("model") or {}, health.get("startup_status") or {}
        lines = [
            f"Running: {health.get('running_turns', 0)}, waiting: {health.get('queued_turns', 0)}"
        ]
        if model:
            lines.append(f"Model: {model.get('provider')} {model.get('model')}")
        lines += [f"⚠ {row.get('detail')}" for row in status.get("degraded_reasons") or ()]
        return "\n".join(lines)

    def _cost(self, place: Place, _rest: str) -> str:
        if "cost" not in self._table:
            raise NotFoundError("Nobody counts what is spent here.")
        found = self._store.channel_session(self._channel, place.chat, place.topic)
        summary = self._table["cost"]({"session_id": found})
        named = {
            "today": "today_usd",
            "this month": "month_usd",
            "this conversation": "session_usd",
        }
        lines = [f"{said}: {summary[n]} USD" for said, n in named.items() if n in summary]
        for cap in summary.get("caps") or ():
            left = f", {cap['left_usd']} left" if "left_usd" in cap else ""
            lines.append(f"cap {cap['cap'].replace('_', ' ')}: {cap['limit_usd']} USD{left}")
        return "\n".join(lines)

    def _tools(self, place: Place, rest: str) -> str:
        found = self._store.channel_session(self._channel, place.chat, place.topic)
        data = self._asked("tools", {"session_id": found})
        return "\n".join(told.tools(data, rest.strip(), brief=True))

    def _mcp(self, _place: Place, _rest: str) -> str:
        return "\n".join(told.servers(self._asked("mcp", {}), "oxydra-runner mcp-servers trust"))

    def _asked(self, name: str, args: Json) -> Json:
        if name not in self._table:
            raise NotFoundError("Nobody knows that here.")
        return self._table[name](args)

    def _help(self, place: Place, _rest: str) -> str:
        shown = {n: said for n, said in MENU.items() if place.private or n not in PRIVATE}
        return "\n".join(f"/{name} - {said}" for name, said in shown.items())


def _named(name: str) -> str:
    """A session's name, out of what a person wrote."""
    return " ".join(name.split())[:MAX_NAME]


def _called(session: Session) -> str:
    name = session.display_name or session.title or "without a name"
    return f"{session.session_id[:8]} {name[:60]}"
