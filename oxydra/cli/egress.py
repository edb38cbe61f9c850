"""`oxydra-runner egress`: what left this machine, and whether an address may be reached."""

from __future__ import annotations

import argparse
import itertools
import json
import socket
import sys

from oxydra.cli.target import load, workspace_of
from oxydra.errors import EXIT_FAILED, OxydraError, PolicyDenied
from oxydra.scrub import printable


def log(options: argparse.Namespace) -> int:
    """The newest rows, oldest first; with `--verify` whether any was tampered with."""
    from oxydra.broker.audit import rows

    if options.verify:
        return verify(options)
    folder = workspace_of(load(options)).audit
    newest = list(itertools.islice(rows(folder), options.tail))
    for row in reversed(newest):
        print(json.dumps(row) if options.json else printable(_line(row)))
    return 0


def verify(options: argparse.Namespace) -> int:
    """`audit verify`: whether the log is as it was written; exit code 1 if it is not."""
    from oxydra.broker.audit import verify as verified

    folder = workspace_of(load(options)).audit
    expected = getattr(options, "head", None) or ""
    found = verified(folder, expected)
    if options.json:
        print(json.dumps({**found._asdict(), "problem": found.problem or None}))
        return EXIT_FAILED if found.problem else 0
    if found.problem:
        raise OxydraError(
            f"The audit log is not as it was written: {found.problem}.",
            remedy=f"The {found.rows} rows before that are. A disk that filled up, a lost power"
            f" supply or a hand did it: look at {folder}, and compare it with a backup. To begin"
            " a new log, stop the daemon and move the files egress.* away.",
        )
    print(f"{found.rows} rows are as they were written. Head: {found.head}")
    return 0


def _line(row: dict[str, object]) -> str:
    sizes = (
        f"{row.get('sent', 0)} out, {row.get('received', 0)} in, {row.get('milliseconds', 0)} ms"
    )
    status = f" {row['status']}" if row.get("status") else ""
    reason = f": {row['reason']}" if row.get("reason") else ""
    said = f"{row.get('at')} {row.get('guest')} {row.get('verdict')}{status}"
    return f"{said} {row.get('destination')} ({sizes}){reason}"


def test(options: argparse.Namespace) -> int:
    """Ask what the broker would decide, and look at the addresses; nothing is dialled."""
    from oxydra.runner.settings import from_config

    destinations = from_config(load(options)).destinations()
    try:
        url = destinations.look(options.guest, options.url)
        found = _addresses(url.host, url.port)
        for address in found:
            destinations.local(options.guest).check(url.host, url.port, address)
    except OxydraError as error:
        verdict = "denied" if isinstance(error, PolicyDenied) else "not reached"
        print(printable(f"{verdict}: {error}"), file=sys.stderr)
        return EXIT_FAILED
    print(printable(f"allowed: {url.host}:{url.port} at {', '.join(found)}"))
    return 0


def _addresses(host: str, port: int) -> list[str]:
    try:
        rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return sorted({str(row[4][0]) for row in rows})
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OxydraError(
            f"It may be reached, but {host} has no address: {reason}.",
            remedy="Check its spelling, and the network.",
        ) from None
