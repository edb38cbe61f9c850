"""The file tools: read, write, edit, list, search, delete, all through the confined `Workspace`.

They run on the turn's thread, or beside each other where they only read. What they say names files
by their virtual paths.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, BinaryIO

from oxydra.errors import ToolError
from oxydra.policy import VirtualPath, parse_virtual, parse_writable, visible
from oxydra.tools import edits
from oxydra.tools.base import tool
from oxydra.tools.confine import Entry, Workspace
from oxydra.tools.schema import Bounds, Parse
from oxydra.types import SafetyTier, ToolContext, ToolResult

READ_BYTES = 15_000  # of text in one result; stays under the gate's cap with what is said about it
COUNT_BYTES = 8 * 1024 * 1024  # up to this size a file's lines are counted
EDIT_BYTES = 4 * 1024 * 1024
SEARCH_BYTES = 8 * 1024 * 1024  # larger files are passed over by a search
LINE_CHARS = 200  # shown of a line that was found
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


def workspace_of(context: ToolContext) -> Workspace:
    """The workspace that the call may use."""
    workspace = context.services.get("workspace")
    if not isinstance(workspace, Workspace):
        raise ToolError("There is no workspace here, so no files.")
    return workspace


# --------------------------------------------------------------------------------------- reading


@tool(tier=SafetyTier.READ_ONLY, timeout=TIMEOUT)
def file_read(
    context: ToolContext,
    path: ReadPath,
    start_line: Annotated[int, Bounds(1)] = 1,
    end_line: Annotated[int | None, Bounds(1)] = None,
) -> ToolResult:
    """Read a text file, or some of its lines. Long output is cut and says how to go on."""
    if end_line is not None and end_line < start_line:
        raise ToolError(f"end_line {end_line} is before start_line {start_line}.")
    with workspace_of(context).open(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(8192)
        if b"\0" in head or _magic(head):
            kind = _magic(head) or "binary data"
            raise ToolError(f"{path} is {kind} ({size:,} bytes), no text.", code="binary")
        file.seek(0)
        window = _read_window(file, start_line, end_line, context)
        if not window.data and start_line > 1:
            raise ToolError(f"{path} has only {window.last} lines.")
        total = _count_lines(file) if size <= COUNT_BYTES else None
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
    return ToolResult(text + note or "(an empty file)", summary=f"read {path}{lines}")


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


@tool(repeatable=True, timeout=TIMEOUT)
def file_write(context: ToolContext, path: WritePath, content: str) -> ToolResult:
    """Create a file, or replace all of it; missing folders are made."""
    data = content.encode()
    created = workspace_of(context).write(path, data)
    done = f"{'Created' if created else 'Replaced'} {path} ({len(data):,} bytes)."
    return ToolResult(done, summary=done)


@tool(timeout=TIMEOUT)
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
    workspace.write(path, edit.text.encode(), expect=status)
    places = "1 place" if edit.count == 1 else f"{edit.count} places"
    return ToolResult(edit.diff, summary=f"edited {path} in {places}")


@tool(timeout=TIMEOUT)
def file_delete(context: ToolContext, path: WritePath) -> str:
    """Delete a file or an empty folder."""
    kind = workspace_of(context).delete(path)
    return f"Deleted the {'folder' if kind == 'directory' else kind} {path}."


# ------------------------------------------------------------------------------ listing, searching


@tool(tier=SafetyTier.READ_ONLY, timeout=TIMEOUT)
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


@tool(tier=SafetyTier.READ_ONLY, timeout=TIMEOUT)
def file_search(
    context: ToolContext,
    pattern: Annotated[str, Bounds(None, 500), "literal text in one line; empty: list files"],
    path: ReadPath = SHARED,
    glob: Annotated[str, Bounds(None, 200), "such as *.py or src/**/*.md"] = "",
    ignore_case: bool = False,
    limit: Annotated[int, Bounds(1, 500)] = 50,
) -> ToolResult:
    """Search the text files below a folder."""
    if "\n" in pattern:
        raise ToolError("pattern has a line break, but single lines are searched.")
    search = _Search(workspace_of(context), context, pattern, ignore_case, limit)
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
        if b"\0" in data[:8192] or not (self.ignore_case or self.needle in data):
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
        return ToolResult("\n".join(lines), summary=f"{len(self.hits)} hits below {path}")


def _matches(found: VirtualPath, top: VirtualPath, glob: str) -> bool:
    """A glob without a slash is about the name, one with a slash about the path below the top."""
    if not glob:
        return True
    if "/" not in glob:
        return fnmatch.fnmatchcase(found.name, glob)
    below = "/".join(found.parts[len(top.parts) :])
    return fnmatch.fnmatchcase(below, glob.removeprefix("/").replace("**/", "*"))
