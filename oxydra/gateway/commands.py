"""What `command` frames do to sessions: name them, copy them, write them out, keep their rules.

`oxydra-requests` runs it; who may ask for what stands in `access`.
"""

from __future__ import annotations

from collections.abc import Callable

from oxydra.errors import UsageError
from oxydra.frames import session_json
from oxydra.gateway import export
from oxydra.gateway.hub import Hub
from oxydra.runtime.trace import trace
from oxydra.types import Json, Session

MAX_NAME = 200  # characters
MAX_EXPORT = 6 << 20  # characters of one: what a connection may hold

Command = Callable[[Json], Json]


class SessionCommands:
    """Each method takes the `args` of a frame. They raise `OxydraError`."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._store = hub.store

    def table(self) -> dict[str, Command]:
        return {
            "rename": self.rename,
            "fork": self.fork,
            "export": self.export,
            "model": self.model,
            "tools": self.tools,
            "pins": self.pins,
            "pin": self.pin,
            "unpin": self.unpin,
            "trace": self.trace,
        }

    def rename(self, args: Json) -> Json:
        session = self._store.find_session(_text(args, "session_id"))
        self._store.rename_session(session.session_id, _name(args))
        return session_json(self._store.session(session.session_id))

    def fork(self, args: Json) -> Json:
        """A new session that begins with what was said in this one, up to the event `at` or all of
        it; the two then part.
        """
        session = self._store.find_session(_text(args, "session_id"))
        name = _name(args) if args.get("name") else session.display_name
        at = args.get("at")
        if at is not None and (not isinstance(at, int) or isinstance(at, bool) or at < 0):
            raise UsageError("`at` is the number of an event, as `history` and exports have it.")
        return session_json(self._hub.fork_session(session, name, at))

    def export(self, args: Json) -> Json:
        """The whole conversation as one text."""
        session = self._store.find_session(_text(args, "session_id"))
        wanted = str(args.get("format") or "markdown")
        return export.document(self._store, session, wanted, MAX_EXPORT)

    def trace(self, args: Json) -> Json:
        """The timeline of a turn; of a session, where one is named, its last one."""
        session = str(args.get("session_id") or "")
        return trace(self._store, args.get("turn_id") or "last", session)

    def model(self, args: Json) -> Json:
        """Which model answers first: in a session, or in a new one of the default agent."""
        agent = self._agent(args)
        return {"agent": agent, **self._hub.model_of(agent).to_json()}

    def tools(self, args: Json) -> Json:
        """What may be used there."""
        agent = self._agent(args)
        return {"agent": agent, "tools": self._hub.tools_of(agent)}

    def _agent(self, args: Json) -> str:
        if not args.get("session_id"):
            return "default"
        return self._store.find_session(_text(args, "session_id")).agent_name

    def pins(self, args: Json) -> Json:
        """The rules that are never cut, in the order in which they were stated."""
        return self._pins(self._store.find_session(_text(args, "session_id")))

    def pin(self, args: Json) -> Json:
        session = self._store.find_session(_text(args, "session_id"))
        self._hub.context.pin(session.session_id, _text(args, "text"))
        return self._pins(session)

    def unpin(self, args: Json) -> Json:
        session = self._store.find_session(_text(args, "session_id"))
        number = str(args.get("number", ""))
        known = number.isascii() and number.isdecimal() and len(number) < 10
        if not known or not self._hub.context.unpin(session.session_id, int(number)):
            raise UsageError(
                f"There is no rule {number[:32]!r}.", remedy="/pins lists them with their numbers."
            )
        return self._pins(session)

    def _pins(self, session: Session) -> Json:
        rows = [
            {"number": pin.pin_id, "text": pin.text, "by_hand": not pin.sequence}
            for pin in self._hub.context.pins(session.session_id)
        ]
        return {"session_id": session.session_id, "pins": rows}


def _text(args: Json, name: str) -> str:
    value = args.get(name)
    if not isinstance(value, str) or not value:
        raise UsageError(f"The command needs {name!r}, a string.")
    return value


def _name(args: Json) -> str:
    name = " ".join(_text(args, "name").split())
    if not 1 <= len(name) <= MAX_NAME:
        raise UsageError(f"A session's name has 1 to {MAX_NAME} characters.")
    return name
