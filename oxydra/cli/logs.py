"""`oxydra-runner logs`: what the daemon and its guests wrote, from the daemon or its files."""

from __future__ import annotations

import argparse
import datetime
import json
import re
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from oxydra.cli.parser import UNITS
from oxydra.cli.target import load, workspace_of
from oxydra.errors import NoDaemonError, UsageError
from oxydra.scrub import printable

if TYPE_CHECKING:  # imported when the command needs them
    from oxydra.runner.logs import Answer, Cursor, LogLine
    from oxydra.runner.workspace import Workspace

PAUSE_SECONDS = 0.25  # between two looks at files that did not grow


def logs(options: argparse.Namespace) -> int:
    workspace = workspace_of(load(options))
    for line in _lines(workspace, options):
        print(_shown(line, options), flush=options.follow)
    return 0


def since(text: str, now: datetime.datetime) -> str:
    """`10m` before `now`, or an ISO 8601 time, as the logs write times. Raises `UsageError`."""
    try:
        if match := re.fullmatch(r"([0-9]{1,9})([smhd])", text):
            moment = now - datetime.timedelta(seconds=int(match[1]) * UNITS[match[2]])
        else:
            moment = datetime.datetime.fromisoformat(text)
        moment = moment.astimezone(datetime.UTC)  # a time that names no zone is local
    except (ValueError, OverflowError):
        raise UsageError(
            f"{text[:64]!r} is no time.", remedy="Write 30s, 10m, 2h, 3d or 2026-11-25T10:00:00."
        ) from None
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def _lines(workspace: Workspace, options: argparse.Namespace) -> Iterator[LogLine]:
    start = since(options.since, datetime.datetime.now(datetime.UTC)) if options.since else ""
    answer = _ask(workspace, options, start, None)
    yield from answer.lines
    pause, interrupted = threading.Event(), False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    if options.follow:
        signal.signal(signal.SIGINT, interrupt)
    while options.follow:
        if interrupted:  # where it was raised in a finalizer, Python has ignored it
            raise KeyboardInterrupt
        if not answer.more:
            pause.wait(PAUSE_SECONDS)  # Ctrl+C ends it, and the command
        answer = _ask(workspace, options, start, answer.after)
        yield from answer.lines


def _ask(
    workspace: Workspace, options: argparse.Namespace, start: str, after: Cursor | None
) -> Answer:
    from oxydra.runner import logs
    from oxydra.runner.control import call

    payload = {"role": options.role, "tail": options.tail, "since": start, "after": after}
    try:
        return logs.Answer.from_json(call(workspace.control_socket, "logs", payload))
    except NoDaemonError:
        return logs.read(workspace, options.role, tail=options.tail, since=start, after=after)


def _shown(line: LogLine, options: argparse.Namespace) -> str:
    from oxydra.runner.logs import record

    if options.json:
        row = {"role": line.role, "time": line.time, "level": line.level, "text": line.text}
        found = record(line.text)
        return json.dumps(row if found is None else {**row, "record": found})
    text = f"{line.role:8}{line.text}" if options.role == "all" else line.text
    encoding = sys.stdout.encoding
    text = text.encode(encoding, "replace").decode(encoding)
    return text if options.raw else printable(text)
