"""Who may use a user's gateway: named tokens with scopes, of which only hashes are kept.

They lie in `ipc/gateway-tokens.json`, which the runner's side alone reads and writes: the command
line, whether or not a daemon runs, and the daemon, which hands the agent guest the hashes. The
token `local` is not among them: it is made anew wherever it is missing, and the programs on this
machine read it from `ipc/gateway-token`.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator

from oxydra.config.fields import NAME
from oxydra.errors import NotFoundError, OxydraError, UsageError
from oxydra.frames import parse
from oxydra.gateway.access import SCOPES
from oxydra.runner.workspace import Workspace, new_token, read_small
from oxydra.types import Json

FILE = "gateway-tokens.json"
LOCAL = "local"
MOST = 100  # tokens; each handshake is compared with all of them
MAX_BYTES = 1 << 20


class Tokens:
    """The tokens of one user's gateway."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def rows(self) -> list[Json]:
        """`{name, sha256, scopes, created_at}` of each but `local`. Raises `OxydraError`: a file
        that is broken must not let in who was revoked.
        """
        path = self._workspace.ipc / FILE
        try:
            rows = parse(read_small(path, MAX_BYTES))["tokens"]
            if not all(_sound(row) for row in rows):
                raise ValueError
        except FileNotFoundError:
            return []
        except (OSError, OxydraError, ValueError, TypeError, KeyError) as error:
            raise OxydraError(
                f"The tokens of {self._workspace.user} can't be read: {path} is broken.",
                remedy="Restore it, or remove it and create the tokens anew.",
            ) from error
        return list(rows)

    def all_rows(self) -> list[Json]:
        """Those, and `local`: what the agent guest is told."""
        local = {"name": LOCAL, "sha256": sha256(self._workspace.token()), "scopes": list(SCOPES)}
        return [local, *self.rows()]

    def create(self, name: str, scopes: list[str]) -> str:
        """The new token, which nobody can be told again. Raises `UsageError`."""
        if not re.fullmatch(NAME, name) or name == LOCAL:
            raise UsageError(
                f"{name[:64]!r} can't be a token's name.",
                remedy="Use up to 64 of a-z, 0-9, '-', '_'; `local` is taken.",
            )
        with self._changing() as rows:
            if any(row["name"] == name for row in rows):
                raise UsageError(
                    f"There is a token {name!r} already.",
                    remedy=f"`token rotate {name}` gives it a new value.",
                )
            if len(rows) >= MOST:
                raise UsageError(f"There are {MOST} tokens already.", remedy="Revoke one of them.")
            token = new_token()
            wanted = [scope for scope in SCOPES if scope in scopes]
            row = {"name": name, "sha256": sha256(token), "scopes": wanted}
            rows.append({**row, "created_at": _now()})
        return token

    def revoke(self, name: str) -> None:
        """Raises `NotFoundError`, and `UsageError` for `local`."""
        if name == LOCAL:
            raise UsageError(
                "The token `local` can't be revoked: this machine's programs use it.",
                remedy="`token rotate local` gives it a new value.",
            )
        with self._changing() as rows:
            rows.remove(_find(rows, name))

    def rotate(self, name: str) -> str:
        """The token's new value; the old one is good for nothing. Raises `NotFoundError`."""
        token = new_token()
        if name == LOCAL:
            self._workspace.write_ipc("gateway-token", token + "\n")
            return token
        with self._changing() as rows:
            _find(rows, name).update(sha256=sha256(token), created_at=_now())
        return token

    @contextlib.contextmanager
    def _changing(self) -> Iterator[list[Json]]:
        """The rows, to be changed in place; one program at a time."""
        folder = os.open(self._workspace.ipc, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            rows = self.rows()
            yield rows
            self._workspace.write_ipc(FILE, json.dumps({"tokens": rows}, indent=2) + "\n")
        finally:
            os.close(folder)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _sound(row: Json) -> bool:
    return (
        re.fullmatch(NAME, row["name"]) is not None
        and row["name"] != LOCAL
        and re.fullmatch("[0-9a-f]{64}", row["sha256"]) is not None
        and set(row["scopes"]) <= set(SCOPES)
        and isinstance(row["created_at"], str)
    )


def _find(rows: list[Json], name: str) -> Json:
    for row in rows:
        if row["name"] == name:
            return row
    known = ", ".join(row["name"] for row in rows) or "none"
    raise NotFoundError(f"There is no token {name[:64]!r}.", remedy=f"There are: {known}.")


def sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
