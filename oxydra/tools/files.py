"""The file tools: read, write, edit, list, search, delete, copy out of the vault; all through the
confined `Workspace`.

They run on the turn's thread, or beside each other where they only read. What they say names files
by their virtual paths. PDFs are read, and regular expressions matched, by a tool worker.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, BinaryIO

from oxydra.errors import DeadlineExceeded, PolicyDenied, ToolError
from oxydra.policy import VirtualPath, parse_virtual, parse_writable, visible
from oxydra.scrub.exact import MARKER
from oxydra.scrub.guest import introduces_marker
from oxydra.tools import edits
from oxydra.tools.base import Recovered, tool
from oxydra.tools.changes import NOTHING, Changes, written
from oxydra.tools.confine import MAX_WRITE_BYTES, Entry, Workspace
from oxydra.tools.schema import Bounds, Parse
from oxydra.types import Change, Json, SafetyTier, ToolContext, ToolResult
from oxydra.worker import Workers

audit = logging.getLogger("oxydra.audit")

READ_BYTES = 15_000  # of text in one result; stays under the gate's cap with what is said about it
COUNT_BYTES = 8 * 1024 * 1024  # up to this size a file's lines are counted
EDIT_BYTES = 4 * 1024 * 1024
SEARCH_BYTES = 8 * 1024 * 1024  # larger files are passed over by a search
REGEX_SECONDS = 5.0  # for one file
LINE_CHARS = 200  # shown of a line that was found
PDF_BYTES = 32 * 1024 * 1024
PDF_CHARS = 2_000_000  # of a PDF's text that is looked at
PDF_SECONDS = 25.0
PIECE = 64 * 1024  # bytes read at once from a line without an end
TIMEOUT = 30.0  # seconds

SKIPPED = frozenset({".git", ".hg", ".venv", "node_modules", "__pycache__"})

MAGIC = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a ZIP archive (or an office document)",
    b"\x1f\x8b": "gzip-compressed data",
    b"\x7fELF": "a program",
    b"SQLite format 3": "an SQLite database",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}

SHARED = VirtualPath("shared")
ReadPath = Annotated[VirtualPath, Parse(parse_virtual)]
WritePath = Annotated[VirtualPath, Parse(parse_writable)]


def parse_vault(path: str) -> VirtualPath:
    """`parse_virtual` for a file in the vault."""
    virtual = parse_virtual(path)
    if virtual.root != "vault":
        raise PolicyDenied(f"{virtual} is not in /vault.", remedy="Copy it with file_write.")
    return virtual


VaultPath = Annotated[VirtualPath, Parse(parse_vault)]


def workspace_of(context: ToolContext) -> Workspace:
    """The workspace that the call may use."""
    workspace = context.services.get("workspace")
    if not isinstance(workspace, Workspace):
        raise ToolError("There is no workspace here, so no files.")
    return workspace


def workers_of(context: ToolContext) -> Workers:
    """The tool workers that the call may use."""
    workers = context.services.get("workers")
    if not isinstance(workers, Workers):
        raise ToolError("There is no tool worker here, so this can't be done.")
    return workers


# --------------------------------------------------------------------------------------- reading


@tool(tier=SafetyTier.READ_ONLY, timeout=TIMEOUT, taints=True)
def file_read(
    context: ToolContext,
    path: ReadPath,
    start_line: Annotated[int, Bounds(1)] = 1,
    end_line: Annotated[int | None, Bounds(1)] = None,
) -> ToolResult:
    """Read a text file or PDF, or some of its lines. Long output is cut and says how to go on."""
    if end_line is not None and end_line < start_line:
        raise ToolError(f"end_line {end_line} is before start_line {start_line}.")
    with workspace_of(context).open(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(8192)
        source: BinaryIO = file
        if head.startswith(b"%PDF-") and "workers" in context.services:
            source = _pdf_text(file, path, context)
            size = source.getbuffer().nbytes
        elif b"\0" in head or _magic(head):
            kind = _magic(head) or "binary data"
            raise ToolError(f"{path} is {kind} ({size:,} bytes), no text.", code="binary")
        source.seek(0)
        window = _read_window(source, start_line, end_line, context)
        if not window.data and start_line > 1:
            raise ToolError(f"{path} has only {window.last} lines.")
        total = _count_lines(source) if size <= COUNT_BYTES else None
    whole = start_line == 1 and window.last == total and not window.cut_line
    note = "" if whole else _range_note(window, total, size)
    try:
        text = window.data.decode("utf-8", "ignore" if window.cut_line else "strict")
    except UnicodeDecodeError:
        text = window.data.decode("utf-8", "replace")
        note += "[it is not all UTF-8: \ufffd stands for what could not be read]"
    if note and not text.endswith("\n"):
        text += "\n"
    lines = "" if whole else f", lines {window.first}-{window.last}"
    content = text + note or "(an empty file)"
    return ToolResult(content, summary=f"read {path}{lines}", verbatim=True)


def _pdf_text(file: BinaryIO, path: VirtualPath, context: ToolContext) -> io.BytesIO:
    """The text of a PDF, as if it were a text file."""
    file.seek(0)
    data = file.read(PDF_BYTES + 1)
    if len(data) > PDF_BYTES:
        raise ToolError(f"{path} is a PDF of more than {PDF_BYTES >> 20} MB, too large to read.")
    found = workers_of(context).run(
        "pdf_to_text",
        {"limit": PDF_CHARS},
        data,
        lane="files",
        seconds=PDF_SECONDS,
        deadline=context.deadline,
        token=context.token,
    )
    text = str(found["text"]) or "(a PDF without text: its pages may be pictures)"
    if found["read"] != found["pages"]:
        text += f"\n[only the first {found['read']} of {found['pages']} pages]"
    return io.BytesIO(text.encode("utf-8", "replace"))


@dataclass(slots=True)
class _Window:
    """Lines `first` to `last` of a file, with their ends; `cut_line` if the only one was too
    long.
    """

    first: int
    last: int = 0
    data: bytes = b""
    cut_line: bool = False


def _read_window(file: BinaryIO, start: int, end: int | None, context: ToolContext) -> _Window:
    """As many whole lines from `start` on as `READ_BYTES` hold; `last` is at most `start - 1` if
    there are none.
    """
    window = _Window(start)
    lines: list[bytes] = []
    room = READ_BYTES
    for number, piece in _pieces(file, context):
        if number < start:
            window.last = number
            continue
        if len(piece) > room:
            if not lines:
                lines, window.last, window.cut_line = [piece[:room]], number, True
            break
        lines.append(piece)
        window.last = number
        room -= len(piece)
        if number == end:
            break
    window.data = b"".join(lines)
    return window


def _pieces(file: BinaryIO, context: ToolContext) -> Iterator[tuple[int, bytes]]:
    """A file's lines with their numbers; a line longer than `PIECE` comes in several pieces."""
    number, done = 1, 0
    while piece := file.readline(PIECE):
        yield number, piece
        number += piece.endswith(b"\n")
        done += 1
        if done % 1000 == 0:
            context.token.check()
            context.deadline.check("Reading")


def _count_lines(file: BinaryIO) -> int:
    file.seek(0)
    data = file.read(COUNT_BYTES)
    return data.count(b"\n") + (bool(data) and not data.endswith(b"\n"))


def _range_note(window: _Window, total: int | None, size: int) -> str:
    of = f"of {total:,}" if total is not None else f"of a file of {size:,} bytes"
    note = f"[lines {window.first}-{window.last} {of}"
    if window.cut_line:
        note += f"; this line is longer than {READ_BYTES:,} bytes and was cut"
    if total is None or window.last < total:
        note += f"; go on with start_line={window.last + 1}"
    return note + "]"


def _magic(head: bytes) -> str:
    return next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), "")


# --------------------------------------------------------------------------------------- writing


@tool(timeout=TIMEOUT)
def file_write(context: ToolContext, path: WritePath, content: str) -> ToolResult:
    """Create a file, or replace all of it; missing folders are made."""
    workspace = workspace_of(context)
    if MARKER in content:
        _refuse_redaction(path, _text_of(workspace, path), content)
    data = content.encode()
    _note(context, path, written(data))
    return _wrote(path, len(data), created=workspace.write(path, data))


def _wrote(path: VirtualPath, size: int, *, created: bool) -> ToolResult:
    done = f"{'Created' if created else 'Replaced'} {path} ({size:,} bytes)."
    return ToolResult(done, summary=done)


@file_write.probe
def _was_written(context: ToolContext, path: VirtualPath, content: str) -> Recovered:
    became, change = _judged(context, path)
    if became == "done" and change is not None:
        created = change.payload["before"]["kind"] == "none"
        return _wrote(path, len(content.encode()), created=created)
    return "nothing done" if became == "nothing done" else None


@tool(timeout=TIMEOUT, taints=True)
def file_edit(
    context: ToolContext,
    path: WritePath,
    old: Annotated[str, Bounds(1), "exact text, unique in the file"],
    new: str,
    replace_all: bool = False,
) -> ToolResult:
    """Replace text in a file. The result is the diff."""
    workspace = workspace_of(context)
    with workspace.open(path) as file:
        status = os.fstat(file.fileno())
        data = file.read(EDIT_BYTES + 1)
    if len(data) > EDIT_BYTES:
        raise ToolError(
            f"{path} is too large to edit ({status.st_size:,} bytes, at most {EDIT_BYTES:,})."
        )
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ToolError(f"{path} is no UTF-8 text, so it can't be edited.") from error
    edit = edits.replace(text, old, new, replace_all, str(path))
    _refuse_redaction(path, text, edit.text)
    _note(context, path, written(edit.text.encode()))
    workspace.write(path, edit.text.encode(), expect=status)
    return _edited(path, edit)


def _edited(path: VirtualPath, edit: edits.Edit) -> ToolResult:
    places = "1 place" if edit.count == 1 else f"{edit.count} places"
    return ToolResult(edit.diff, summary=f"edited {path} in {places}", verbatim=True)


@file_edit.probe
def _was_edited(
    context: ToolContext, path: VirtualPath, old: str, new: str, replace_all: bool
) -> Recovered:
    became, change = _judged(context, path)
    if became != "done" or change is None:
        return "nothing done" if became == "nothing done" else None
    before = context.services["changes"].before(change)
    if before is None:
        return ToolResult(f"{path} was edited as wanted.", summary=f"edited {path}")
    return _edited(path, edits.replace(before.decode(), old, new, replace_all, str(path)))


def _note(context: ToolContext, path: VirtualPath, after: Json) -> None:
    """Say what is about to become of a file, where somebody takes note."""
    changes = context.services.get("changes")
    if isinstance(changes, Changes):
        changes.note(context, path, after)


def _judged(context: ToolContext, path: VirtualPath) -> tuple[str, Change | None]:
    """What became of an interrupted call, as far as it was noted."""
    changes = context.services.get("changes")
    return changes.judge(context, path) if isinstance(changes, Changes) else ("unknown", None)


def _text_of(workspace: Workspace, path: VirtualPath) -> str:
    """What a file holds now; "" if there is none, or none that can be read."""
    try:
        with workspace.open(path) as file:
            return file.read(EDIT_BYTES).decode("utf-8", "replace")
    except ToolError:
        return ""


def _refuse_redaction(path: VirtualPath, before: str, after: str) -> None:
    """Where a model was shown a marker in the place of a secret, the secret is to stay."""
    if introduces_marker(before, after):
        raise PolicyDenied(
            f"{path} was not changed: this would write {MARKER}, which stands for a secret that "
            "you were not shown, in the place of it.",
            remedy="Use file_edit for the lines around it, or ask the person to write the secret.",
        )


@tool(timeout=TIMEOUT)
def file_delete(context: ToolContext, path: WritePath) -> str:
    """Delete a file or an empty folder."""
    workspace = workspace_of(context)
    _note(context, path, NOTHING)
    return _deleted(path, workspace.delete(path))


def _deleted(path: VirtualPath, kind: str) -> str:
    return f"Deleted the {'folder' if kind == 'directory' else kind} {path}."


@file_delete.probe
def _was_deleted(context: ToolContext, path: VirtualPath) -> Recovered:
    became, change = _judged(context, path)
    if became == "done" and change is not None and change.payload["before"]["kind"] != "none":
        return ToolResult(_deleted(path, change.payload["before"]["kind"]))
    return "nothing done" if became != "unknown" else None


@tool(tier=SafetyTier.PRIVILEGED, timeout=TIMEOUT, sensitive=True)
def vault_copyto(context: ToolContext, path: VaultPath, destination: WritePath) -> str:
    """Copy a file of /vault to a new file in /shared or /tmp."""
    workspace = workspace_of(context)
    with workspace.open(path) as file:
        data = file.read(MAX_WRITE_BYTES + 1)
    if len(data) > MAX_WRITE_BYTES:
        raise ToolError(f"{path} is larger than {MAX_WRITE_BYTES:,} bytes, too large to copy.")
    digest = hashlib.sha256(data).hexdigest()
    audit.info("vault read: %s, %d bytes, sha256 %s", path, len(data), digest)
    _note(context, destination, written(data))
    workspace.write(destination, data, new=True)
    audit.info("vault copy written: %s, %d bytes, sha256 %s", destination, len(data), digest)
    return _copied(path, destination, len(data))


def _copied(path: VirtualPath, destination: VirtualPath, size: int) -> str:
    return f"Copied {path} to {destination} ({size:,} bytes)."


@vault_copyto.probe
def _was_copied(context: ToolContext, path: VirtualPath, destination: VirtualPath) -> Recovered:
    became, change = _judged(context, destination)
    if change is not None and change.payload["before"]["kind"] != "none":
        return "nothing done"  # what was there is never replaced
    if became == "done" and change is not None:
        return ToolResult(_copied(path, destination, change.payload["after"]["size"]))
    return "nothing done" if became == "nothing done" else None


# ------------------------------------------------------------------------------ listing, searching


@tool(tier=SafetyTier.READ_ONLY, timeout=TIMEOUT, taints=True)
def file_list(
    context: ToolContext,
    path: ReadPath = SHARED,
    recursive: bool = False,
    limit: Annotated[int, Bounds(1, 2000)] = 200,
) -> ToolResult:
    """List a folder (/shared if none is given): names and sizes in bytes."""
    workspace = workspace_of(context)
    entry = workspace.stat(path)
    if entry.kind == "file":
        when = datetime.fromtimestamp(entry.modified, UTC).isoformat(timespec="seconds")
        return ToolResult(f"{path}: file, {entry.size:,} bytes, modified {when}")
    lines: list[str] = []
    more = 0
    for found, entry in workspace.walk(path, lambda below: recursive and _enters(below)):
        if len(lines) == limit:
            more = 1
            break
        context.token.check()
        context.deadline.check("Listing")
        lines.append(_listed(found, entry, path, recursive))
    text = "\n".join(lines) or f"{path} is empty."
    if more:
        text += f"\n[only the first {limit}; list a folder below, or raise limit]"
    return ToolResult(text, summary=f"listed {path} ({len(lines)}{'+' if more else ''} entries)")


def _listed(found: VirtualPath, entry: Entry, top: VirtualPath, recursive: bool) -> str:
    name = visible("/".join(found.parts[len(top.parts) :]))
    if entry.kind == "directory":
        return f"{name}/" if not recursive or _enters(found) else f"{name}/ (not entered)"
    if entry.kind == "file":
        return f"{name} {entry.size}"
    return f"{name} ({'link' if entry.kind == 'link' else 'no regular file'})"


def _enters(folder: VirtualPath) -> bool:
    return folder.name not in SKIPPED


@tool(tier=SafetyTier.READ_ONLY, timeout=TIMEOUT, taints=True)
def file_search(
    context: ToolContext,
    pattern: Annotated[str, Bounds(None, 500), "literal text in one line; empty: list files"],
    path: ReadPath = SHARED,
    glob: Annotated[str, Bounds(None, 200), "such as *.py or src/**/*.md"] = "",
    regex: Annotated[bool, "pattern is a Python regular expression"] = False,
    ignore_case: bool = False,
    limit: Annotated[int, Bounds(1, 500)] = 50,
) -> ToolResult:
    """Search the text files below a folder."""
    if "\n" in pattern:
        raise ToolError("pattern has a line break, but single lines are searched.")
    kind = _RegexSearch if regex and pattern else _Search
    search = kind(workspace_of(context), context, pattern, ignore_case, limit)
    for found in search.files(path, glob):
        search.look_into(found)
        if len(search.hits) >= limit or context.deadline.expired:
            break
    return search.result(path)


class _Search:
    """One search on its way: what was found, and what was passed over."""

    def __init__(
        self,
        workspace: Workspace,
        context: ToolContext,
        pattern: str,
        ignore_case: bool,
        limit: int,
    ) -> None:
        self.workspace = workspace
        self.context = context
        self.raw = pattern
        self.pattern = pattern.casefold() if ignore_case else pattern
        self.needle = self.pattern.encode()
        self.ignore_case = ignore_case
        self.limit = limit
        self.hits: list[str] = []
        self.searched = 0
        self.passed = 0

    def files(self, path: VirtualPath, glob: str) -> Iterator[VirtualPath]:
        if self.workspace.stat(path).kind == "file":
            yield path
            return
        for found, entry in self.workspace.walk(path, _enters):
            self.context.token.check()
            if self.context.deadline.expired:
                return
            if entry.kind == "file" and _matches(found, path, glob):
                yield found

    def look_into(self, path: VirtualPath) -> None:
        if not self.pattern:
            self.hits.append(str(path))
            return
        try:
            with self.workspace.open(path) as file:
                data = file.read(SEARCH_BYTES + 1)
        except ToolError:
            self.passed += 1
            return
        if len(data) > SEARCH_BYTES:
            self.passed += 1
            return
        self.searched += 1
        if b"\0" not in data[:8192]:
            self.match(path, data)

    def match(self, path: VirtualPath, data: bytes) -> None:
        """Add the lines of a file in which the pattern is."""
        if not (self.ignore_case or self.needle in data):
            return
        for number, line in enumerate(data.split(b"\n"), start=1):
            if number % 10_000 == 0 and self.context.deadline.expired:
                return
            if self.ignore_case or self.needle in line:
                text = line.decode("utf-8", "replace")
                at = (text.casefold() if self.ignore_case else text).find(self.pattern)
                if at < 0:
                    continue
                start = max(0, at - LINE_CHARS // 2) if len(text) > LINE_CHARS else 0
                self.hits.append(f"{path}:{number}: {text[start : start + LINE_CHARS].strip()}")
                if len(self.hits) >= self.limit:
                    return

    def result(self, path: VirtualPath) -> ToolResult:
        notes = []
        if len(self.hits) >= self.limit:
            notes.append(f"stopped at {self.limit} hits")
        if self.context.deadline.expired:
            notes.append("stopped because time was up")
        if self.passed:
            notes.append(f"{self.passed} files passed over: too large, links or not readable")
        if not self.hits:
            where = f" in {self.searched} files" if self.pattern else ""
            notes.insert(0, f"nothing found below {path}{where}")
        lines = self.hits + ([f"[{'; '.join(notes)}]"] if notes else [])
        summary = f"{len(self.hits)} hits below {path}"
        return ToolResult("\n".join(lines), summary=summary, verbatim=True)


class _RegexSearch(_Search):
    """The same by a regular expression, which a worker matches: it may take for ever."""

    def match(self, path: VirtualPath, data: bytes) -> None:
        arguments = {
            "pattern": self.raw,
            "ignore_case": self.ignore_case,
            "limit": self.limit - len(self.hits),
            "line_chars": LINE_CHARS,
        }
        try:
            found = workers_of(self.context).run(
                "regex_search",
                arguments,
                data,
                lane="files",
                seconds=REGEX_SECONDS,
                deadline=self.context.deadline,
                token=self.context.token,
            )
        except DeadlineExceeded:
            raise ToolError(
                f"The pattern took too long on {path} and was stopped.",
                remedy="Use a simpler one: without nested repetitions such as (a+)+.",
                code="timeout",
            ) from None
        self.hits += [f"{path}:{number}: {text}" for number, text in found["hits"]]


def _matches(found: VirtualPath, top: VirtualPath, glob: str) -> bool:
    """A glob without a slash is about the name, one with a slash about the path below the top."""
    if not glob:
        return True
    if "/" not in glob:
        return fnmatch.fnmatchcase(found.name, glob)
    below = "/".join(found.parts[len(top.parts) :])
    return fnmatch.fnmatchcase(below, glob.removeprefix("/").replace("**/", "*"))
