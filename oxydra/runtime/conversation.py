"""Conversations in memory: what the model has been told and has said, session by session."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field
from threading import Lock

from oxydra.runtime.prompt import SystemPrompt
from oxydra.store import Store
from oxydra.types import Message, Session

CONVERSATIONS = 64  # conversations kept in memory


@dataclass(slots=True)
class Conversation:
    """A session's messages in memory, each encoded at most once. Used by one turn at a time."""

    system: Message
    messages: list[Message] = field(default_factory=list)


class Conversations:
    """The most recently used conversations; any other is read from the store again."""

    def __init__(self, store: Store, prompt: SystemPrompt) -> None:
        self._store = store
        self._prompt = prompt
        self._lock = Lock()
        self._kept: OrderedDict[str, Conversation] = OrderedDict()

    def get(self, session: Session, tools: Collection[str]) -> Conversation:
        """`tools` are those of the session's agent."""
        with self._lock:
            kept = self._kept.get(session.session_id)
            if kept is not None:
                self._kept.move_to_end(session.session_id)
                return kept
        system = Message("system", self._prompt.text(session, tools))
        read = Conversation(system, self._store.messages(session.session_id))
        with self._lock:
            self._kept[session.session_id] = read
            while len(self._kept) > CONVERSATIONS:
                self._kept.popitem(last=False)
        return read

    def forget(self, session_id: str) -> None:
        """Drop what is in memory, so that the next turn starts from what is stored."""
        with self._lock:
            self._kept.pop(session_id, None)
