"""Capping what a tool says: the model gets head and tail, the whole goes to a file it can read."""

from __future__ import annotations

import hashlib
import logging
import re

from oxydra.errors import ToolError
from oxydra.policy import VirtualPath
from oxydra.tools.confine import MAX_WRITE_BYTES, Workspace

log = logging.getLogger(__name__)

FOLDER = VirtualPath("tmp", ("outputs",))
MAX_FILES = 1000
_LEFT_OUT = re.compile(
    r"\[… [\d,]+ of (?P<size>[\d,]{1,20}) bytes are left out here; "
    r"(?P<where>(?:the whole is|its first [\d,]+ are) in (?P<path>/tmp/outputs/[\w-]+\.txt)) …\]"
)
MAX_TOTAL_BYTES = 64 * 1024 * 1024  # of all saved outputs; the oldest go first


def fits(text: str, limit: int) -> bool:
    """Whether `cap` leaves it as it is."""
    return 4 * len(text) <= limit or len(text.encode("utf-8", "replace")) <= limit


def cap(text: str, limit: int, name: str, workspace: Workspace | None) -> str:
    """`text` as it is if its UTF-8 has at most `limit` bytes. Otherwise its first two thirds and
    last third of that, and in between where the whole was saved (under `name`).
    """
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode()
    shown = _cut(data, limit, len(data), _save(data, name, workspace))
    if workspace is not None:
        prune(workspace)
    return shown


def shorten(text: str, limit: int, saved: str, name: str, workspace: Workspace | None) -> str:
    """`cap` for what the model has been shown before: if `cap` has left something out of it, the
    whole is still where it was `saved` under that name. The caller calls `prune` when it is done.
    """
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode()
    before = _LEFT_OUT.search(text)
    if before is not None and before["path"] == str(path_of(saved)):
        return _cut(data, limit, int(before["size"].replace(",", "")), before["where"])
    return _cut(data, limit, len(data), _save(data, name, workspace))


def _cut(data: bytes, limit: int, size: int, where: str) -> str:
    """Head and tail of `data`; `size` is that of the whole."""
    head = data[: limit * 2 // 3].decode("utf-8", "ignore")
    tail = data[len(data) - limit // 3 :].decode("utf-8", "ignore")
    cut = size - len(head.encode()) - len(tail.encode())
    return f"{head}\n\n[… {cut:,} of {size:,} bytes are left out here; {where} …]\n\n{tail}"


def path_of(name: str) -> VirtualPath:
    """Where an output is saved under that name."""
    return FOLDER.child(f"{_file_name(name)}.txt")


def _save(data: bytes, name: str, workspace: Workspace | None) -> str:
    """Save an output and say where it is, or why it is nowhere."""
    if workspace is None:
        return "they were not saved"
    path = path_of(name)
    try:
        workspace.write(path, data[:MAX_WRITE_BYTES])
    except ToolError as error:
        log.warning("the output of %s was not saved: %s", name, error)
        return f"they could not be saved: {error.message}"
    part = "the whole is" if len(data) <= MAX_WRITE_BYTES else f"its first {MAX_WRITE_BYTES:,} are"
    return f"{part} in {path}"


def _file_name(name: str) -> str:
    """Call ids come from a model: one that is no plain name is replaced by its hash."""
    if re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name):
        return name
    return hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:32]


def prune(workspace: Workspace) -> None:
    """Keep the newest outputs within `MAX_FILES` and `MAX_TOTAL_BYTES`."""
    try:
        _prune(workspace)
    except ToolError as error:
        log.warning("saved outputs could not be pruned: %s", error)


def _prune(workspace: Workspace) -> None:
    files = [entry for entry in workspace.scan(FOLDER) if entry.kind != "directory"]
    total = 0
    for kept, entry in enumerate(sorted(files, key=lambda entry: entry.modified, reverse=True)):
        total += entry.size
        if kept >= MAX_FILES or total > MAX_TOTAL_BYTES:
            workspace.delete(FOLDER.child(entry.name))
