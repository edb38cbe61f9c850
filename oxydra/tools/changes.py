"""What file tools change, noted before they do: an interrupted call can be judged by it, and a turn
taken back.

The note says what was at a path and what the call makes of it, by digests; a copy of a file goes
with it (`store/changes.py`). Files are reached through the confined `Workspace` alone, on the
caller's thread.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from typing import Literal

from oxydra.errors import PolicyDenied, StoreFullError, ToolError
from oxydra.policy import VirtualPath
from oxydra.store import Store
from oxydra.tools.confine import Workspace
from oxydra.types import Change, Json, ToolContext

COPY_BYTES = 8 * 1024 * 1024  # of one file; a larger one can't be taken back
KIND = "file"
NOTING = frozenset({"file_write", "file_edit", "file_delete", "vault_copyto"})  # use `Changes.note`


@dataclass(frozen=True, slots=True)
class Found:
    """What is at a path: `none`, `file`, `directory`, `link` or `other`. Of a file that is not too
    large `data` is the content.
    """

    kind: str
    status: os.stat_result | None = None
    data: bytes | None = None

    def to_json(self) -> Json:
        said: Json = {"kind": self.kind}
        if self.status is not None:
            said |= {"size": self.status.st_size, "mode": stat.S_IMODE(self.status.st_mode)}
            said["version"] = version(self.status)
        if self.data is not None:
            said["sha256"] = hashlib.sha256(self.data).hexdigest()
        return said

    def holds(self, said: Json) -> bool:
        """Whether this is what was noted, by its content or, for what is too large to compare, by
        its version.
        """
        if self.kind != said["kind"]:
            return False
        if self.kind != "file":
            return True
        if self.data is not None and "sha256" in said:
            return bool(hashlib.sha256(self.data).hexdigest() == said["sha256"])
        return self.untouched(said)

    def untouched(self, said: Json) -> bool:
        """Whether nobody has written here since it was noted."""
        if self.kind != "file" or self.kind != said["kind"] or self.status is None:
            return bool(self.kind == said["kind"])
        return bool(version(self.status) == said["version"])


def version(status: os.stat_result) -> list[int]:
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]


def look(workspace: Workspace, path: VirtualPath) -> Found:
    """What is at `path` now. Raises `ToolError` for what can't be looked at."""
    try:
        kind = workspace.stat(path).kind
        if kind != "file":
            return Found(kind)
        with workspace.open(path) as file:
            data = file.read(COPY_BYTES + 1)
            status = os.fstat(file.fileno())
    except PolicyDenied:
        return Found("other")
    except ToolError as error:
        if error.code == "not_found":
            return Found("none")
        raise
    return Found("file", status, data if len(data) <= COPY_BYTES else None)


def written(data: bytes) -> Json:
    """A file with this content, as it is noted."""
    return {"kind": "file", "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


NOTHING: Json = {"kind": "none"}


class Changes:
    """The service `changes` of one user's tools; may be used by any thread."""

    def __init__(self, store: Store, workspace: Workspace, quota: int) -> None:
        """`quota`: bytes of all copies together."""
        self._store = store
        self._workspace = workspace
        self._quota = quota

    def note(self, context: ToolContext, path: VirtualPath, after: Json) -> None:
        """A call is about to make `after` of what is at `path`. Raises `ToolError`, and
        `StoreError` where it can't be noted: nothing may be changed then.
        """
        before = look(self._workspace, path)
        payload = {
            "path": [path.root, *path.parts],
            "before": before.to_json(),
            "after": after,
            "folders": self._missing(path) if before.kind == "none" else 0,
        }
        where = (context.session_id, context.turn_id, context.step, context.call_id)
        try:
            self._store.add_change(*where, KIND, payload, before.data, self._quota)
        except StoreFullError:  # the note has room where the copy has not
            self._store.add_change(*where, KIND, payload)

    def _missing(self, path: VirtualPath) -> int:
        """How many folders above `path` will be made."""
        count, folder = 0, path.parent
        while folder.parts and look(self._workspace, folder).kind == "none":
            count, folder = count + 1, folder.parent
        return count

    def judge(
        self, context: ToolContext, path: VirtualPath
    ) -> tuple[Literal["done", "nothing done", "unknown"], Change | None]:
        """What became of an interrupted call on `path`, and its note.

        It is done if there is now what the call was to make; nothing was done if nobody has touched
        what was there, or if the call had not come as far as its note. What half of it left behind
        is removed.
        """
        noted = self._store.changes_of_call(context.turn_id, context.step, context.call_id)
        mine = [c for c in noted if c.payload["path"] == [path.root, *path.parts]]
        self._workspace.sweep(path.parent)
        if not mine:
            return "nothing done", None
        change, now = mine[-1], look(self._workspace, path)
        if now.holds(change.payload["after"]):
            return "done", change
        if now.untouched(change.payload["before"]):
            return "nothing done", change
        return "unknown", change

    def before(self, change: Change) -> bytes | None:
        """What a file held before a change; None where no copy is left."""
        return self._store.copy_of(change.change_id)
