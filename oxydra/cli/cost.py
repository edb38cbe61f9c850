"""`oxydra-runner cost`: what the models have cost, with the daemon running or not."""

from __future__ import annotations

import argparse
import json

from oxydra.cli.target import load, locate, stored, workspace_of
from oxydra.config import Config
from oxydra.errors import NoDaemonError
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
    from oxydra.runtime import Spending

    zone = settings.user.behavior.timezone or settings.agent.scheduler.default_timezone
    with stored(workspace_of(settings)) as store:
        spending = Spending(store, config.caps(settings), zone)
        return spending.summary() | (spending.report(by) if by else {})
