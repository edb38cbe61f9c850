"""`oxydra-health`, for cron: a line for each check of each user; `doctor` says it to people."""

from __future__ import annotations

import argparse
import json

from oxydra.errors import UsageError
from oxydra.scrub import printable


def doctor(options: argparse.Namespace) -> int:
    """As `health`, whatever is well said too."""
    options.quiet = False
    return health(options)


def health(options: argparse.Namespace) -> int:
    from oxydra import config, doctor
    from oxydra.runner.workspace import Workspace

    settings = config.load(options.config, options.user, need_user=False)
    users = [options.user] if options.user else sorted(settings.runner.users)
    checks = [
        check for user in users for check in doctor.health(Workspace(settings.workspace_root, user))
    ]
    if options.json:
        print(json.dumps([check.to_json() for check in checks], indent=2))
    else:
        for check in checks:
            if check.level != "healthy" or not options.quiet:
                line = f"{check.user} {check.name}: {check.level} {check.detail}"
                print(printable(line.rstrip()))
    if not checks:
        raise UsageError("No user is configured.", remedy="Run `oxydra-runner init`.")
    return max(doctor.EXIT_CODES[check.level] for check in checks)
