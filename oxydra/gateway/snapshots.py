"""What the `backup` command gives: a copy of the database of one moment, and the files beside it.

A backup is a client of the gateway's, so that it is the same in every tier: `begin` has a copy
made, `state` says whether it is there, `list` names what can be read, `read` gives a part of it,
`end` removes the copy. One is kept at a time: another `begin` takes its place, and so does an
erasure, which no copy of ours outlives.

`oxydra-requests` runs the commands; `oxydra-snapshot` makes the copy and ends with it.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets

from oxydra.arguments import number_arg, text_arg
from oxydra.errors import NotFoundError, OxydraError, UsageError
from oxydra.store import Store, copies
from oxydra.store.copies import DATABASE
from oxydra.threads import Service
from oxydra.types import Json

PART = 4 << 20  # bytes of one `read`
LISTED = 1000  # names of one `list`
STOP_SECONDS = 2.0


class Snapshots:
    """The copies of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._key = ""
        self._trouble = ""
        self._making: Service | None = None
        copies.remove(store.snapshot)  # of a guest that was killed

    def command(self, args: Json) -> Json:
        """`action`, and the `key` that `begin` gave. Raises `OxydraError`."""
        action = args.get("action")
        if action == "begin":
            return self._begin()
        if not self._key or args.get("key") != self._key:
            raise NotFoundError("Another backup was begun, or the agent was started again.")
        match action:
            case "state":
                return self._state()
            case "list":
                return self._list(text_arg(args, "after", 200, ""))
            case "read":
                name = text_arg(args, "name", 200)
                return self._read(name, number_arg(args, "offset", 0, most=1 << 62))
            case "end":
                self.stop()
                return {}
        raise UsageError(
            "There is no such action.", remedy="There are: begin, state, list, read, end."
        )

    def stop(self) -> None:
        """End what is under way and remove the copy; idempotent."""
        self._key = ""
        if self._making is not None:
            self._making.stop(STOP_SECONDS)
        copies.remove(self._store.snapshot)

    def _begin(self) -> Json:
        self.stop()
        self._key, self._trouble = secrets.token_hex(8), ""
        self._making = Service("snapshot", self._make).start()
        return {"key": self._key}

    def _make(self, service: Service) -> None:
        try:
            self._store.copy(service.stopping.is_set)
        except OxydraError as error:
            self._trouble = str(error)

    def _state(self) -> Json:
        """Whether the copy is there. Raises `OxydraError` where it could not be made."""
        if self._making is not None and self._making.alive:
            return {"done": False}
        if self._trouble:
            raise OxydraError(self._trouble)
        return {"done": True}

    def _list(self, after: str) -> Json:
        """The next names with their sizes, in order; the copy itself comes first."""
        beside = sorted(self._store.files.names())
        if after in ("", DATABASE):
            names = [*([] if after else [DATABASE]), *beside]
        else:
            names = [name for name in beside if name > after]
        found = []
        for name in names[:LISTED]:
            with contextlib.suppress(FileNotFoundError), open(self._open(name), "rb") as file:
                found.append({"name": name, "size": os.fstat(file.fileno()).st_size})
        return {"files": found, "more": len(names) > LISTED}

    def _read(self, name: str, offset: int) -> Json:
        try:
            with open(self._open(name), "rb") as file:
                file.seek(offset)
                data = file.read(PART)
        except FileNotFoundError:
            raise NotFoundError(f"{name} was removed since the backup began.") from None
        return {"data": base64.b64encode(data).decode()}

    def _open(self, name: str) -> int:
        """Raises `FileNotFoundError`, also for what is no file of ours."""
        path = self._store.snapshot if name == DATABASE else self._store.files.path(name)
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
