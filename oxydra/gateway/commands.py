"""What `command` frames do to sessions: name them, copy them, write them out, keep their rules.

`oxydra-requests` runs it; who may ask for what stands in `access`.
"""

from __future__ import annotations

from collections.abc import Callable

from oxydra.errors import UsageError
from oxydra.frames import compact, event_json, session_json
from oxydra.gateway.hub import Hub
from oxydra.types import RECALLED, Event, Json, Message, Session

MAX_NAME = 200  # characters
MAX_EXPORT = 6 << 20  # characters of one; beyond, `history` gives it in parts
PAGE = 500  # events read at once
FORMATS = ("markdown", "json")

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
            "pins": self.pins,
            "pin": self.pin,
            "unpin": self.unpin,
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
        wanted = args.get("format") or FORMATS[0]
        if wanted not in FORMATS:
            raise UsageError(
                f"There is no format {str(wanted)[:32]!r}.",
                remedy=f"There are: {', '.join(FORMATS)}.",
            )
        events = self._events(session.session_id)
        about = session_json(session)
        if wanted == "json":
            text = compact({"session": about, "events": [event_json(event) for event in events]})
        else:
            title = session.display_name or session.session_id
            parts = [f"# {title}", *(_markdown(event) for event in events)]
            text = "\n\n".join(filter(None, parts)) + "\n"
        if len(text) > MAX_EXPORT:
            raise _too_long()
        return {**about, "format": wanted, "text": text}

    def _events(self, session_id: str) -> list[Event]:
        pages: list[list[Event]] = []
        before, size, more = None, 0, True
        while more:
            page, more = self._store.history(session_id, before_sequence=before, limit=PAGE)
            pages.append(page)
            size += sum(len(event.message.content) for event in page)
            if size > MAX_EXPORT:
                raise _too_long()
            before = page[0].sequence if page else None
        return [event for page in reversed(pages) for event in page]

    def model(self, args: Json) -> Json:
        """Which model answers first: in a session, or in a new one of the default agent."""
        agent = "default"
        if args.get("session_id"):
            agent = self._store.find_session(_text(args, "session_id")).agent_name
        return {"agent": agent, **self._hub.model_of(agent).to_json()}

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


def _too_long() -> UsageError:
    return UsageError(
        f"The conversation is over {MAX_EXPORT >> 20} MB.",
        remedy="Read it in parts: `history` frames give 500 events at a time.",
    )


_TITLES = {"user": "You", "assistant": "Oxydra", "tool": "Result"}


def _markdown(event: Event) -> str:
    message = event.message
    title = _TITLES.get(message.role, message.role)
    if event.turn_id.startswith(RECALLED):
        title = "Recalled"
    head = f"## {title} · {event.created_at}"
    body = [_fenced(message.content) if message.role == "tool" else message.content]
    body += [f"- called `{call.name}`\n\n{_fenced(call.arguments)}" for call in message.tool_calls]
    body += [_attached(message)] if message.attachments else []
    text = "\n\n".join(filter(None, body))
    return f"{head}\n\n{text}" if text else ""


def _attached(message: Message) -> str:
    names = ", ".join(a.name or a.sha256[:16] for a in message.attachments)
    return f"*Attached: {names}*"


def _fenced(text: str) -> str:
    """A code block that the text can't end."""
    longest = max((len(run) for run in text.split("\n") if run and not run.strip("`")), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}" if text else ""
