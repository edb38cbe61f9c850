"""`oxydra-runner export`: a conversation written out, with the daemon running or not."""

from __future__ import annotations

import argparse
import sys

from oxydra.cli.target import load, locate, stored, workspace_of, write_out
from oxydra.errors import NoDaemonError
from oxydra.scrub import printable


def export(options: argparse.Namespace) -> int:
    from oxydra.tui.answer import desk

    workspace = workspace_of(load(options))
    wanted = "markdown" if options.format == "md" else options.format
    try:
        with desk(lambda: locate(workspace), workspace.user) as asked:
            found = asked.command("export", session_id=options.id, format=wanted)
    except NoDaemonError:
        from oxydra.gateway.export import document

        with stored(workspace) as store:
            found = document(store, store.find_session(options.id), wanted)
    text = found["text"] if options.raw else printable(found["text"])
    if options.output is None:
        sys.stdout.write(text)
    else:
        write_out(options.output, [text.encode("utf-8", "replace").decode()])
    return 0
