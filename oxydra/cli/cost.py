"""`oxydra-runner cost`: what the models have cost, with the daemon running or not."""

from __future__ import annotations

import argparse
import json
import os

from oxydra.cli.target import load, locate, workspace_of
from oxydra.config import Config
from oxydra.errors import NoDaemonError, StoreError
from oxydra.types import Json


def cost(options: argparse.Namespace) -> int:
    from oxydra.tui.costs import cost_lines

    settings = load(options)
    found = _running(settings, options.by) or _stored(settings, options.by)
    if options.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print("\n".join(cost_lines(found)))
    return 0


def _running(settings: Config, by: str | None) -> Json | None:
    """What the daemon says, None where none runs."""
    from oxydra.tui.answer import desk

    workspace = workspace_of(settings)
    try:
        with desk(lambda: locate(workspace), workspace.user) as asked:
            return asked.command("cost", **({"by": by} if by else {}))
    except NoDaemonError:
        return None


def _stored(settings: Config, by: str | None) -> Json:
    """What the database says, which nobody else opens meanwhile. Raises `OxydraError`."""
    from oxydra import config
    from oxydra.runner.workspace import open_regular
    from oxydra.runtime import Spending
    from oxydra.store import Store

    workspace = workspace_of(settings)
    workspace.prepare()
    zone = settings.user.behavior.timezone or settings.agent.scheduler.default_timezone
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
            spending = Spending(store, config.caps(settings), zone)
            return spending.summary() | (spending.report(by) if by else {})
        finally:
            store.close()
