"""`oxydra-runner mcp`: offers a running daemon's agent to one MCP client, on stdin and stdout."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from oxydra.cli.target import load, locate, workspace_of
from oxydra.errors import UsageError

VARIABLE = "OXYDRA_TOKEN"


def mcp(options: argparse.Namespace) -> int:
    from oxydra import log
    from oxydra.cli.mcp_tools import REMEDY, server
    from oxydra.threads import install_hooks

    log.setup("oxydra-mcp", sys.stderr)
    install_hooks()
    workspace = workspace_of(load(options))
    given = os.environ.pop(VARIABLE, "").strip()

    def where() -> tuple[str, str]:
        """As they are now: a file may hold another token since."""
        token = given if options.token_file is None else _read(options.token_file)
        return locate(workspace)[0], token

    if options.token_file is not None:
        _read(options.token_file)
    elif not given:
        raise UsageError("An MCP client needs a token of its own.", remedy=REMEDY)
    with _alone() as sink, _stopped() as stop:
        server(where, workspace.user).serve(sys.stdin.fileno(), sink, stop)
    return 0


def _read(path: Path) -> str:
    """The token in a file. Raises `UsageError`."""
    from oxydra.cli.mcp_tools import REMEDY
    from oxydra.runner.workspace import read_small

    try:
        token = read_small(path).strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UsageError(
            f"The token file {path} cannot be read: {reason}.", remedy=REMEDY
        ) from None
    if not token:
        raise UsageError(f"The token file {path} is empty.", remedy=REMEDY)
    return token


@contextlib.contextmanager
def _alone() -> Iterator[int]:
    """Where stdout leads, for the protocol alone: whatever else is printed goes to stderr."""
    sys.stdout.flush()
    sink = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        yield sink
    finally:
        os.dup2(sink, sys.stdout.fileno())
        os.close(sink)


@contextlib.contextmanager
def _stopped() -> Iterator[int]:
    """A descriptor that can be read once a signal says that it is to end."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: None)
    try:
        yield ours.fileno()
    finally:
        signal.set_wakeup_fd(-1)
        ours.close()
        theirs.close()
