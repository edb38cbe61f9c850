"""`oxydra-runner trace`: the timeline of a turn, with the daemon running or not."""

from __future__ import annotations

import argparse
import json

from oxydra.cli.target import load, locate, stored, workspace_of
from oxydra.errors import NoDaemonError


def trace(options: argparse.Namespace) -> int:
    from oxydra.tui.answer import desk
    from oxydra.tui.traces import trace_lines

    workspace = workspace_of(load(options))
    session = options.of_session or ""
    try:
        with desk(lambda: locate(workspace), workspace.user) as asked:
            found = asked.command("trace", turn_id=options.turn, session_id=session)
    except NoDaemonError:
        from oxydra.runtime.trace import trace as offline

        with stored(workspace) as store:
            found = offline(store, options.turn, session, live=False)
    print(json.dumps(found, indent=2) if options.json else "\n".join(trace_lines(found)))
    return 0
