"""For whom a command is, and where their daemon is to be found."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from oxydra.errors import NoDaemonError, UsageError

if TYPE_CHECKING:  # imported when a command needs them
    from oxydra.config import Config, Mounts
    from oxydra.runner.workspace import Workspace


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
