"""`oxydra-health`, for cron, and `oxydra-runner doctor`, for people."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from oxydra.scrub import printable

if TYPE_CHECKING:  # imported when a command needs it
    from oxydra.doctor import Finding


def doctor(options: argparse.Namespace) -> int:
    """Everything that can be looked at, and what to do where it is not well."""
    from oxydra.doctor import Case, examine, repair, worst

    found = []
    case = Case(options.config, options.user, canary=options.canary)
    for finding in examine(case, options.checks):
        if options.fix and finding.fix is not None and finding.level != "healthy":
            finding = repair(finding)
        found.append(finding)
        if not options.json:
            _print(finding)
    if options.json:
        print(json.dumps([finding.to_json() for finding in found], indent=2))
    return worst(found)


def _print(finding: Finding) -> None:
    print(printable(finding.line()), flush=True)
    if finding.level != "healthy" and finding.remedy:
        print(printable(f"    run: {finding.remedy}"), flush=True)


def health(options: argparse.Namespace) -> int:
    """A line for each check of each user."""
    from oxydra.doctor import within, worst

    found = within(options.timeout, options.config, options.user, options.max_age)
    if options.quiet:
        found = [finding for finding in found if finding.level != "healthy"]
    if options.json:
        print(json.dumps([finding.to_json() for finding in found], indent=2))
    else:
        for finding in found:
            print(printable(finding.line()))
    return worst(found)
