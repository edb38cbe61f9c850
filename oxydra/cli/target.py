"""For whom a command is, and where their daemon is to be found."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from oxydra.errors import NoDaemonError, StoreError, UsageError

if TYPE_CHECKING:  # imported when a command needs them
    from oxydra.config import Config, Mounts
    from oxydra.runner.workspace import Workspace
    from oxydra.store import Store


def load(options: argparse.Namespace, *, need_user: bool = True) -> Config:
    from oxydra import config

    return config.load(options.config, options.user, need_user=need_user)


def workspace_of(settings: Config, mounts: Mounts | None = None) -> Workspace:
    """`mounts` are needed by whoever looks into the user's folders."""
    from oxydra.runner.workspace import Workspace

    return Workspace(settings.workspace_root, settings.user_id, mounts)


def locate(workspace: Workspace) -> tuple[str, str]:
    """The gateway's endpoint and token, as a running daemon left them."""
    from oxydra.runner.workspace import read_small

    try:
        endpoint = read_small(workspace.ipc / "gateway-endpoint").strip()
        return endpoint, read_small(workspace.ipc / "gateway-token").strip()
    except OSError:
        raise NoDaemonError(
            f"No daemon runs for {workspace.user}.",
            remedy="Start one with `oxydra-runner start --detach`.",
        ) from None


@contextlib.contextmanager
def stored(workspace: Workspace) -> Iterator[Store]:
    """The database of a user whose daemon is stopped, which nobody else opens meanwhile. Raises
    `OxydraError`.
    """
    from oxydra.runner.workspace import open_regular
    from oxydra.store import Store

    workspace.prepare()
    with workspace.lock(wait=1.0):
        path = workspace.database
        try:
            os.close(open_regular(path, os.O_RDONLY))  # before SQLite has it open: no locks to lose
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StoreError(
                f"The database {path} is not opened: {error.strerror}.",
                remedy="A guest may have put something else in its place: look at it.",
            ) from None
        store = Store(path)
        try:
            yield store
        finally:
            store.close()


def write_out(path: str | Path, pieces: Iterable[str]) -> None:
    """Write a new file that only its owner may read. Raises `UsageError`."""
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
            file.writelines(pieces)
    except FileExistsError:
        raise UsageError(f"{path} is there already.", remedy="Name another file.") from None
    except OSError as error:
        raise UsageError(f"{path} can't be written: {error.strerror}.") from None


def each_user(options: argparse.Namespace) -> Iterator[argparse.Namespace]:
    """With `--all` the options for each user of runner.toml, else those that were given."""
    if not options.all:
        yield options
        return
    if options.user is not None:
        raise UsageError("--all and --user were both given.", remedy="Leave one out.")
    users = sorted(load(options, need_user=False).runner.users)
    if not users:
        raise UsageError("No user is configured.", remedy="Run `oxydra-runner init`.")
    for user in users:
        yield argparse.Namespace(**{**vars(options), "user": user})
