"""Looking into a user's folders: `workspace audit` and `workspace size`."""

from __future__ import annotations

import argparse
import json
import sys

from oxydra.cli.target import load, workspace_of
from oxydra.errors import EXIT_FAILED
from oxydra.scrub import printable

MIB = 1 << 20


def audit(options: argparse.Namespace) -> int:
    from oxydra import config
    from oxydra.runner import audit as auditor

    settings = load(options)
    found = auditor.audit(workspace_of(settings, config.mounts(settings)))
    if options.json:
        print(json.dumps([finding.to_json() for finding in found], indent=2))
    else:
        for finding in found:
            print(printable(f"{finding.kind:13} {finding.path}: {finding.detail}"))
        if not found:
            print("Nothing was found.", file=sys.stderr)
    return EXIT_FAILED if found else 0


def size(options: argparse.Namespace) -> int:
    from oxydra import config
    from oxydra.runner.audit import writable
    from oxydra.walk import measure

    settings = load(options)
    workspace = workspace_of(settings, config.mounts(settings))
    limit = settings.user.resources.max_workspace_mib * MIB
    sizes = [
        (name, measure([folder], sys.maxsize - 1), folder in workspace.counted)
        for name, folder in writable(workspace)
    ]
    total = sum(taken for _, taken, counted in sizes if counted)
    if options.json:
        rows = [dict(zip(("path", "bytes", "counted"), row, strict=True)) for row in sizes]
        print(json.dumps({"folders": rows, "bytes": total, "limit": limit}, indent=2))
    else:
        for name, taken, counted in sizes:
            note = "" if counted else ", your own and not counted"
            print(printable(f"{taken / MIB:10.1f} MiB  {name}{note}"))
        print(f"{total / MIB:10.1f} MiB of {limit / MIB:.0f} MiB")
    return EXIT_FAILED if total > limit else 0
