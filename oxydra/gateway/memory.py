"""What `command` frames ask of memory: search it, read and write notes, forget.

`oxydra-requests` runs it; who may ask for what stands in `access`. What is asked here, a person
asks: no mark of a conversation holds for it, and it may forget what models can't.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial

from oxydra.arguments import number_arg, text_arg
from oxydra.budget import estimate_message
from oxydra.config import MemoryConfig
from oxydra.errors import NotFoundError, ToolError, UsageError
from oxydra.frames import compact
from oxydra.gateway.hub import Hub
from oxydra.memory import Indexer, Notebook, Retrieval
from oxydra.memory.notebook import MAX_CONTENT, check_tags
from oxydra.runtime import Runtime
from oxydra.store.forget import LEAST_CHARS, Forgotten
from oxydra.store.notes import moment
from oxydra.tools import outputs
from oxydra.tools.confine import Workspace
from oxydra.tools.memory import MAX_QUERY, MAX_RESULTS, quotation
from oxydra.types import Json, Scope

LEAST_WORDS = 4  # characters that can be forgotten wherever they stand
MOST_SOUGHT = 200  # texts, the longest, that saved outputs are searched for
MOST_LISTED = 500
MOST_IMPORTED = 500
MOST_TEXTS = 1 << 19  # characters of what was forgotten that are told, to be looked for in files


class MemoryCommands:
    """Each method takes the `args` of a frame. They raise `OxydraError`."""

    def __init__(
        self,
        hub: Hub,
        runtime: Runtime,
        memory: Retrieval,
        indexer: Indexer,
        workspace: Workspace,
        config: MemoryConfig,
    ) -> None:
        self._hub = hub
        self._store = hub.store
        self._runtime = runtime
        self._memory = memory
        self._indexer = indexer
        self._workspace = workspace
        self._config = config
        self._notebook = Notebook(hub.store, config)
        self._actions: dict[str, Callable[[Json], Json]] = {
            "list": self._list,
            "show": self._show,
            "save": self._save,
            "edit": self._edit,
            "delete": self._delete,
            "pin": lambda args: self._pin(args, True),
            "unpin": lambda args: self._pin(args, False),
            "import": self._import,
        }

    def table(self) -> dict[str, Callable[[Json], Json]]:
        return {
            "memory": self.search,
            "notes": self.notes,
            "forget": self.forget,
            "recall": self.recall,
            "index": self.index,
        }

    # ----------------------------------------------------------------------------------- searching

    def search(self, args: Json) -> Json:
        """What fits `query`, best first."""
        query, most = args.get("query"), args.get("top_k", 8)
        if not isinstance(query, str) or not query.strip():
            raise UsageError("Say what to look for.", remedy="/memory WORDS")
        if not isinstance(most, int) or not 1 <= most <= MAX_RESULTS:
            raise UsageError(f"`top_k` is a number from 1 to {MAX_RESULTS}.")
        since, until = text_arg(args, "since", 64, ""), text_arg(args, "until", 64, "")
        scope = Scope(
            conversations=args.get("include_conversation") is not False,
            tags=_tags(args) or (),
            since=moment(since) if since else "",
            until=moment(until) if until else "",
        )
        hits = self._memory.search(query[:MAX_QUERY], most, scope)
        notes = self._store.notes_named([hit.chunk.note_id for hit in hits if hit.chunk.note_id])
        return {"found": [quotation(hit, notes) for hit in hits]}

    def recall(self, args: Json) -> Json:
        """What a new session's first message `text` would have recalled for it."""
        text = text_arg(args, "text", MAX_QUERY)
        recall, model = self._runtime.recall, self._runtime.agents.get("default").model
        message = None if recall is None else recall.found(text, model)
        if message is None:
            return {"message": "", "tokens": 0, "from_strangers": False}
        tokens = estimate_message(message, model)
        return {"message": message.content, "tokens": tokens, "from_strangers": message.tainted}

    def index(self, args: Json) -> Json:
        """`action`: `stats` of what is indexed, `check` whether it is right, `rebuild` it in the
        background.
        """
        match args.get("action") or "stats":
            case "stats":
                return {**self._memory.report(), **self._indexer.report()}
            case "check":
                return {"troubles": self._memory.check()}
            case "rebuild":
                self._indexer.rebuild()
                return {"started": True}
        raise UsageError("There is no such action.", remedy="There are: stats, check, rebuild.")

    # --------------------------------------------------------------------------------------- notes

    def notes(self, args: Json) -> Json:
        """`action` and what it needs; without one, the list."""
        action = str(args.get("action") or "list")
        if action not in self._actions:
            raise UsageError(
                f"There is no action {action[:32]!r}.",
                remedy=f"There are: {', '.join(self._actions)}.",
            )
        return self._actions[action](args)

    def _list(self, args: Json) -> Json:
        limit, offset = (
            number_arg(args, "limit", 100, most=MOST_LISTED),
            number_arg(args, "offset", 0, most=1 << 31),
        )
        found, total = self._store.notes(_tags(args) or (), limit=limit, offset=offset)
        return {"notes": [note.to_json() for note in found], "total": total}

    def _show(self, args: Json) -> Json:
        found = self._store.note_history(text_arg(args, "note_id", 64))
        return {**found[0].to_json(), "history": [note.to_json() for note in found[1:]]}

    def _save(self, args: Json) -> Json:
        content = text_arg(args, "content", 8 * MAX_CONTENT)
        return self._notebook.save(content, _tags(args) or ()).to_json()

    def _edit(self, args: Json) -> Json:
        note_id = text_arg(args, "note_id", 64)
        content = (
            text_arg(args, "content", 8 * MAX_CONTENT, "") or self._store.note(note_id).content
        )
        return self._notebook.update(note_id, content, _tags(args)).to_json()

    def _delete(self, args: Json) -> Json:
        return {"deleted": self._notebook.delete(text_arg(args, "note_id", 64)).to_json()}

    def _pin(self, args: Json, pinned: bool) -> Json:
        return self._notebook.pin(text_arg(args, "note_id", 64), pinned).to_json()

    def _import(self, args: Json) -> Json:
        rows = args.get("notes")
        if not isinstance(rows, list) or len(rows) > MOST_IMPORTED:
            raise UsageError(f"`notes` is a list of at most {MOST_IMPORTED}.")
        if not all(isinstance(row, dict) for row in rows):
            raise UsageError("`notes` is a list of objects.")
        return self._notebook.take_in(rows, own=args.get("own") is True)

    # ---------------------------------------------------------------------------------- forgetting

    def forget(self, args: Json) -> Json:
        """Take a session, a note or some words out of all that is kept; `dry_run` only says what
        that means. Raises `UsageError` while a turn is under way where something changes.
        """
        session_id, note_id = (
            text_arg(args, "session_id", 200, ""),
            text_arg(args, "note_id", 64, ""),
        )
        words = " ".join(text_arg(args, "matching", 1000, "").split())
        if len(list(filter(None, (session_id, note_id, words)))) != 1:
            raise UsageError("Name one: a session, a note, or the words to be forgotten.")
        if session_id:
            session_id = self._store.find_session(session_id).session_id
        elif note_id:
            self._store.note(note_id)
        elif len(words) < LEAST_WORDS:
            raise UsageError(
                f"{words!r} stands in too much.", remedy=f"Name at least {LEAST_WORDS} characters."
            )
        forget = partial(self._store.forget, session_id=session_id, note_id=note_id, words=words)
        looked = forget(dry=True)
        if args.get("dry_run"):
            return _report(looked, done=False)
        with contextlib.ExitStack() as stack:
            for touched_id in looked.touched:
                stack.enter_context(self._hub.at_rest(touched_id))
                self._runtime.context.settled(touched_id)

            def check(touched: Sequence[str]) -> None:
                if not set(touched) <= set(looked.touched):
                    raise UsageError(
                        "Something was said meanwhile that would be forgotten too.",
                        remedy="Do it again.",
                    )

            found = forget(at_rest=check)
            for touched_id in looked.touched:
                self._runtime.conversations.forget(touched_id)
                self._hub.live(touched_id).forget()
        if self._config.enabled:
            self._memory.catch_up()
        if not self._store.empty_log():
            found.kept.append("the database's log of writes, since it is being read: do it again")
        return {**_report(found, done=True), "outputs_deleted": self._drop_outputs(found, words)}

    def _drop_outputs(self, found: Forgotten, words: str) -> int:
        """Delete the saved whole of results that were forgotten, or of which only what was left
        out said it.
        """
        named = {outputs.path_of(name).name for name in found.outputs}
        holds = _holder(found.texts, words)
        count = 0
        try:
            saved = list(self._workspace.scan(outputs.FOLDER))
        except ToolError:
            return 0  # nothing was ever saved
        for entry in saved:
            path = outputs.FOLDER.child(entry.name)
            try:
                with self._workspace.open(path) as file:
                    text = file.read().decode("utf-8", "ignore")
                if entry.name in named or holds(text):
                    self._workspace.delete(path)
                    count += 1
            except (ToolError, NotFoundError):
                continue  # it had to make room meanwhile, or is no file
        return count


def _holder(texts: Sequence[str], words: str) -> Callable[[str], bool]:
    """Whether a text holds these words, in whatever case, or else one of `texts`, as it is or as
    JSON writes it.
    """
    if words:
        wanted = words.casefold()
        return lambda text: wanted in " ".join(text.casefold().split())
    long = sorted(filter(lambda text: len(text) >= LEAST_CHARS, texts), key=len)[-MOST_SOUGHT:]
    forms = [form for text in long for form in {text, compact(text)[1:-1]}]
    return lambda text: any(form in text for form in forms)


def _report(found: Forgotten, *, done: bool) -> Json:
    texts, room = [], MOST_TEXTS
    for text in found.texts:
        if len(text) <= room:
            texts.append(text)
            room -= len(text)
    return {
        "forgotten": done,
        "sessions": found.sessions,
        "notes": found.notes,
        "messages": found.messages,
        "calls": found.calls,
        "summaries": found.summaries,
        "others": found.others,
        "files": len(found.files),
        "touched": found.touched,
        "kept": found.kept,
        "texts": texts,
    }


def _tags(args: Json) -> tuple[str, ...] | None:
    tags = args.get("tags")
    if tags is None:
        return None
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise UsageError("`tags` is a list of words.")
    return check_tags(tags)
