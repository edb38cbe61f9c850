"""`Notebook`: the notes of one user and the scratchpads of their sessions, with the rules for both.

A model's note carries the marks of its conversation for good, whatever becomes of it, and what it
says of its own origin is not asked: the call is. A conversation that holds what strangers wrote
deletes no note. No thread is started here; any thread may ask.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from oxydra.config import MemoryConfig
from oxydra.errors import PolicyDenied, UsageError
from oxydra.scrub import printable
from oxydra.store import Store
from oxydra.store.notes import Note, Origin, Scrap
from oxydra.types import Json, Marks, ToolContext

MAX_CONTENT = 8000  # characters of a note
MAX_TAGS = 16
MAX_SCRAPS, SCRAP_CHARS = 32, 240
_TAG = re.compile(r"\w[\w.:/+-]{0,39}")

NO_MARKS = Marks()


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes: a person, or the call of a model whose conversation holds `marks`."""

    origin: Origin
    marks: Marks = NO_MARKS

    @property
    def person(self) -> bool:
        return self.origin.source == "person"


PERSON = Writer(Origin())


class Notebook:
    """Raises `OxydraError` for what may not be, with nothing done."""

    def __init__(self, store: Store, config: MemoryConfig) -> None:
        self._store = store
        self._config = config

    def save(self, content: str, tags: Collection[str], writer: Writer = PERSON) -> Note:
        """Durable when this returns."""
        return self._store.add_note(
            check_content(content),
            check_tags(tags),
            writer.marks,
            writer.origin,
            most=self._config.max_notes,
        )

    def update(
        self, note_id: str, content: str, tags: Collection[str] | None, writer: Writer = PERSON
    ) -> Note:
        """What it said before is kept; `tags` of None stay as they are."""
        wanted = None if tags is None else check_tags(tags)
        return self._store.update_note(
            note_id, check_content(content), wanted, writer.marks, writer.origin
        )

    def delete(self, note_id: str, writer: Writer = PERSON) -> Note:
        """A note with its history, out of the database's files as well; returns what it was."""
        if writer.marks.tainted:
            raise PolicyDenied(
                "The note was not deleted: this conversation holds what strangers wrote.",
                remedy=f"Its person can: oxydra-runner memory delete {printable(note_id[:32])}",
            )
        return self._store.delete_note(note_id)

    def pin(self, note_id: str, pinned: bool) -> Note:
        return self._store.pin_note(note_id, pinned)

    def scratch(self, session_id: str, texts: Sequence[str], marks: Marks) -> None:
        """Have these be all that the session's scratchpad holds."""
        kept = [" ".join(text.split()) for text in texts]
        kept = [text for text in kept if text]
        if len(kept) > MAX_SCRAPS or any(len(text) > SCRAP_CHARS for text in kept):
            raise UsageError(
                f"A scratchpad holds {MAX_SCRAPS} items of {SCRAP_CHARS} characters.",
                remedy="Leave out what is done with; memory_save keeps what has to last.",
            )
        self._store.set_scratchpad(session_id, [Scrap(text, marks) for text in kept])


class ModelNotebook:
    """The notebook for models' calls: the service `notes`. `attach` says whose conversations."""

    _marks_of: Callable[[str], Marks]

    def __init__(self, store: Store, config: MemoryConfig) -> None:
        self._store = store
        self._notebook = Notebook(store, config)

    def attach(self, marks_of: Callable[[str], Marks]) -> None:
        """`marks_of` says what a running turn's conversation holds."""
        self._marks_of = marks_of

    def save(self, context: ToolContext, content: str, tags: Collection[str]) -> Json:
        return _told(self._notebook.save(content, tags, self._writer(context)))

    def update(
        self, context: ToolContext, note_id: str, content: str, tags: Collection[str] | None
    ) -> Json:
        return _told(self._notebook.update(note_id, content, tags, self._writer(context)))

    def delete(self, context: ToolContext, note_id: str) -> Json:
        self._notebook.delete(note_id, self._writer(context))
        return {"deleted": note_id}

    def written_by(self, context: ToolContext) -> Json | None:
        """What a call that was interrupted has written; None if it did not."""
        found = self._store.revision_of_call(context.turn_id, context.step, context.call_id)
        return None if found is None else _told(found)

    def there(self, note_id: str) -> bool:
        return bool(self._store.notes_named([note_id]))

    def named(self, note_ids: Sequence[str]) -> Mapping[str, Note]:
        return self._store.notes_named(note_ids)

    def scratch(self, context: ToolContext, texts: Sequence[str]) -> None:
        self._notebook.scratch(context.session_id, texts, self._marks_of(context.turn_id))

    def scratched(self, context: ToolContext) -> tuple[list[str], Marks]:
        """What the scratchpad of the call's session holds."""
        marks = Marks()
        scraps = self._store.scratchpad(context.session_id)
        for scrap in scraps:
            marks |= scrap.marks
        return [scrap.text for scrap in scraps], marks

    def _writer(self, context: ToolContext) -> Writer:
        turn_id = context.turn_id
        origin = Origin("model", context.session_id, turn_id, context.step, context.call_id)
        return Writer(origin, self._marks_of(turn_id))


def check_content(content: str) -> str:
    """As it is kept. Raises `UsageError`."""
    content = content.replace("\r\n", "\n").replace("\0", " ").strip()
    if not content:
        raise UsageError("There is nothing to note.", remedy="Say what: a sentence or two.")
    if len(content) > MAX_CONTENT:
        raise UsageError(
            f"A note has at most {MAX_CONTENT:,} characters; this has {len(content):,}.",
            remedy="Note what matters of it, or make several notes; a file takes the whole.",
        )
    return content


def check_tags(tags: Collection[str]) -> tuple[str, ...]:
    """In lower case, each once. Raises `UsageError`."""
    found = tuple(dict.fromkeys(tag.strip().lstrip("#").casefold() for tag in tags))
    for tag in found:
        if not _TAG.fullmatch(tag):
            raise UsageError(
                f"{printable(tag[:40])!r} is no tag.",
                remedy="A tag is one word of up to 40 letters, digits and . : / + - _",
            )
    if len(found) > MAX_TAGS:
        raise UsageError(f"A note has at most {MAX_TAGS} tags.", remedy="Keep the telling ones.")
    return found


def _told(note: Note) -> Json:
    return {"note_id": note.note_id, "revision": note.revision, "tags": list(note.tags)}
