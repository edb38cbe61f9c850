"""`oxydra-runner memory forget`: what was said or noted, taken out of all that is kept.

The daemon takes it out of its database; afterwards this looks into every file of the user's, and
into folders with backups that are named, whether the bytes are still there.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from oxydra.cli.target import load, locate, workspace_of
from oxydra.errors import EXIT_FAILED, UsageError
from oxydra.scrub import printable

if TYPE_CHECKING:  # imported when a command needs it
    from oxydra.types import Json

PATIENCE = 600.0  # seconds that a large database may take
MOST_TEXTS = 200  # that files are searched for, the longest of what was forgotten
BLOCK = 1 << 20
GZIP = b"\x1f\x8b"
LIVE = ("internal/oxydra.db", "internal/oxydra.db-wal", "internal/oxydra.db-shm")


def forget(options: argparse.Namespace) -> int:
    """Exit code 1 where a live file of the database still holds what was forgotten."""
    from oxydra.tui import past
    from oxydra.tui.answer import desk

    workspace = workspace_of(load(options))
    wanted = {"session_id": options.of_session, "note_id": options.note}
    wanted["matching"] = options.matching
    args = {name: value for name, value in wanted.items() if value}
    with desk(lambda: locate(workspace), workspace.user, patience=PATIENCE) as asked:
        found = asked.command("forget", **args, dry_run=True)
        if not options.dry_run:
            if not options.json or not options.yes:
                print(printable("\n".join(_told(found))), file=sys.stderr)
            _confirm(options)
            found = asked.command("forget", **args)
    texts = sorted(found.pop("texts"), key=len, reverse=True)[:MOST_TEXTS]
    pattern = _pattern(texts, words=bool(options.matching))
    found |= {"sent_lines": 0, "held_by": []}
    if not options.dry_run and pattern is not None:
        history = past.Past(past.place(workspace.user))
        found["sent_lines"] = history.forget(
            lambda text: bool(pattern.search(text.encode("utf-8", "replace")))
        )
        found["held_by"] = list(_holding([workspace.path, *options.look_in], pattern))
    if options.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print(printable("\n".join(_told(found))))
    alive = {str(workspace.path / name) for name in LIVE}
    left = not options.dry_run and alive & set(found["held_by"])
    return EXIT_FAILED if left else 0


def _confirm(options: argparse.Namespace) -> None:
    if options.yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("Nothing was forgotten.", remedy="Confirm it with --yes.")
    print("Forget it for good? It can't be undone. [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().casefold() not in ("y", "yes"):
        raise UsageError("Nothing was forgotten.")


def _told(found: Json) -> list[str]:
    counts = {
        "session": len(found["sessions"]),
        "note": len(found["notes"]),
        "message": found["messages"],
        "call": found["calls"],
        "other row": found["others"],
        "attachment": found["files"],
        "saved output": found.get("outputs_deleted", 0),
        "sent line": found.get("sent_lines", 0),
    }
    parts = [f"{n} {name}{'' if n == 1 else 's'}" for name, n in counts.items() if n]
    what = "Forgotten" if found["forgotten"] else "Would be forgotten"
    lines = [f"{what}: {', '.join(parts) or 'nothing'}."]
    if found["summaries"]:
        lines.append(f"Summaries made anew by the next turn: {', '.join(found['summaries'])}.")
    lines += [f"Left: {one}" for one in found["kept"]]
    if found["forgotten"]:
        lines += [
            f"Holds it still, and is left as it is: {one}" for one in found.get("held_by", [])
        ]
    return lines


def _pattern(texts: Iterable[str], *, words: bool) -> re.Pattern[bytes] | None:
    """What is looked for in files: these texts as they are and as JSON writes them; `words` in
    whatever case and with any space between them.
    """
    parts: list[bytes] = []
    for text in texts:
        if words:
            parts.append(rb"\s+".join(re.escape(word.encode()) for word in text.split()))
            continue
        written = {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
        parts += [re.escape(one.encode("utf-8", "replace")) for one in sorted(written)]
    return re.compile(b"|".join(parts), re.IGNORECASE if words else 0) if parts else None


def _holding(folders: Iterable[Path], pattern: re.Pattern[bytes]) -> Iterator[str]:
    """The files below `folders` that hold it, and what could not be looked into."""
    from oxydra.walk import Walk, opened

    for folder in folders:
        try:
            with opened(folder) as top:
                walk = Walk(top)
                for entry in walk:
                    if not entry.is_plain:
                        continue
                    try:
                        if _holds(entry.open(), pattern):
                            yield str(folder / entry.path)
                    except FileNotFoundError:
                        continue  # gone meanwhile
                    except OSError as error:
                        yield f"{folder / entry.path} (not looked into: {error.strerror})"
                yield from (
                    f"{folder / name} (not looked into: {why})" for name, why in walk.skipped
                )
        except OSError as error:
            yield f"{folder} (not looked into: {error.strerror})"


def _holds(descriptor: int, pattern: re.Pattern[bytes]) -> bool:
    """Whether a file holds it, read in blocks that overlap by as much as a text may have."""
    before = b""
    with open(descriptor, "rb") as raw:
        packed = raw.read(2) == GZIP  # as backups are
        raw.seek(0)
        file = gzip.GzipFile(fileobj=raw) if packed else raw
        with contextlib.suppress(EOFError, gzip.BadGzipFile, zlib.error):  # it only looks like one
            while block := file.read(BLOCK):
                if pattern.search(before + block):
                    return True
                before = block[-BLOCK // 4 :]
    return False
