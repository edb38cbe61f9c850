"""`Notebook`: the notes of one user and the scratchpads of their sessions, with the rules for both.

A model's note carries the marks of its conversation for good, whatever becomes of it, and what it
says of its own origin is not asked: the call is. A conversation that holds what strangers wrote
deletes no note. No thread is started here; any thread may ask.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from oxydra.config import MemoryConfig
from oxydra.errors import PolicyDenied, UsageError
from oxydra.scrub import printable
from oxydra.store import Store
from oxydra.store.database import clean, timestamp
from oxydra.store.notes import Imported, Note, Origin, Scrap, moment
from oxydra.types import Json, Marks, ToolContext

MAX_CONTENT = 8000  # characters of a note
MAX_TAGS = 16
MAX_REASONS = 20  # that are told of what was not imported
MAX_SCRAPS, SCRAP_CHARS = 32, 240
_ID = re.compile(r"[0-9A-Za-z_-]{4,32}", re.ASCII)
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

    def take_in(self, rows: Sequence[Json], *, own: bool) -> Json:
        """Import rows as `exchange.read` has them: how many were `added`, were there already
        (`kept`), or were `refused`, with the reasons of the first ones.

        Where they come from is not believed: they are imports, and strangers' words unless they are
        the person's `own`. A mark that they have stays.
        """
        found: dict[str, int] = {"added": 0, "kept": 0, "refused": 0}
        reasons: list[str] = []
        good: list[Imported] = []
        for number, row in enumerate(rows, 1):
            try:
                good.append(_imported(row, own=own))
            except UsageError as error:
                found["refused"] += 1
                reasons.append(f"note {number}: {error.message}")
        fates = self._store.import_notes(good, most=self._config.max_notes)
        for one, fate in zip(good, fates, strict=True):
            found[fate if fate in found else "refused"] += 1
            if fate == "other":
                reasons.append(f"note {one.note_id}: it says something else here, and stays so.")
            elif fate == "full":
                reasons.append(f"note {one.note_id}: there are [memory] max_notes already.")
        return {**found, "reasons": reasons[:MAX_REASONS]}

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


def _imported(row: Json, *, own: bool) -> Imported:
    content, tags, at = row.get("content"), row.get("tags") or [], row.get("time") or ""
    if not isinstance(content, str) or not isinstance(at, str):
        raise UsageError("Its content and its time are texts.")
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise UsageError("Its tags are a list of words.")
    content = check_content(clean(content))
    note_id = row.get("note_id")
    if note_id is None:  # the same text is the same note
        note_id = hashlib.sha256(content.encode()).hexdigest()[:10]
    if not isinstance(note_id, str) or not _ID.fullmatch(note_id):
        raise UsageError("Its id is none.", remedy="Leave it out, and one is made.")
    made = moment(at) if at else ""
    if made > timestamp():
        raise UsageError("It is from the future.", remedy="Leave its time out.")
    marks = Marks(not own or bool(row.get("from_strangers")), bool(row.get("private")))
    pinned = own and row.get("pinned") is True
    return Imported(note_id, content, check_tags(tags), marks, pinned, made)


def _told(note: Note) -> Json:
    return {"note_id": note.note_id, "revision": note.revision, "tags": list(note.tags)}
