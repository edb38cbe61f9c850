"""`oxydra-runner memory list` and its kin: notes read and written by their person."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from oxydra.cli.target import load, locate, workspace_of, write_out
from oxydra.errors import EXIT_FAILED, UsageError
from oxydra.scrub import printable

if TYPE_CHECKING:  # imported when a command needs them
    from oxydra.tui.answer import Desk
    from oxydra.types import Json

PAGE = 100
BATCH_NOTES, BATCH_CHARS = 200, 300_000  # of one request to import
MAX_FILE = 256 << 20  # bytes of a file of notes


def notes(options: argparse.Namespace) -> int:
    """What `options.action` says."""
    from oxydra.tui.answer import desk

    workspace = workspace_of(load(options))
    action = {"list": _list, "export": _export, "import": _import, "edit": _edit}
    with desk(lambda: locate(workspace), workspace.user) as asked:
        return action.get(options.action, _one)(asked, options)


def _list(asked: Desk, options: argparse.Namespace) -> int:
    rows = list(_all(asked, options.tag))
    if options.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    for row in rows:
        print(printable(_line(row)))
    if not rows:
        print("There is no note.")
    return 0


def _one(asked: Desk, options: argparse.Namespace) -> int:
    """`show`, `save`, `delete`, `pin`, `unpin`."""
    args: dict[str, object] = {"action": options.action}
    if options.action == "save":
        args |= {"content": _content(options.text), "tags": options.tag}
    else:
        args["note_id"] = options.id
    found = asked.command("notes", **args)
    if options.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    elif options.action == "delete":
        print(printable(f"Deleted: {_line(found['deleted'])}"))
    else:
        print(printable(_line(found, whole=options.action == "show")))
        for row in found.get("history") or ():
            print(printable(f"  before: {_line(row, whole=True)}"))
    return 0


def _edit(asked: Desk, options: argparse.Namespace) -> int:
    args: dict[str, object] = {"action": "edit", "note_id": options.id}
    if options.tag is not None:
        args["tags"] = [tag for tag in options.tag if tag]
    if options.text is not None:
        args["content"] = _content(options.text)
    elif options.tag is None:
        found = asked.command("notes", action="show", note_id=options.id)
        args["content"] = _edited(found["content"])
    found = asked.command("notes", **args)
    print(json.dumps(found, indent=2) if options.json else printable(_line(found)))
    return 0


def _export(asked: Desk, options: argparse.Namespace) -> int:
    from oxydra.memory import exchange

    pieces = exchange.write(_all(asked, options.tag), options.format)
    if options.output is None:
        for piece in pieces:
            sys.stdout.write(piece)
        return 0
    write_out(options.output, pieces)
    return 0


def _import(asked: Desk, options: argparse.Namespace) -> int:
    from oxydra.memory import exchange

    total = {"added": 0, "kept": 0, "refused": 0}
    reasons: list[str] = []
    for batch in _batches(exchange.read(_text_of(options.file))):
        found = asked.command("notes", action="import", notes=batch, own=options.own)
        for name in total:
            total[name] += found[name]
        reasons += found["reasons"]
    if options.json:
        print(json.dumps({**total, "reasons": reasons}, indent=2))
    else:
        said = f"{total['added']} added, {total['kept']} were there, {total['refused']} refused."
        print(printable("\n".join([said, *(f"  {reason}" for reason in reasons)])))
    return EXIT_FAILED if total["refused"] else 0


def _batches(rows: list[Json]) -> Iterator[list[Json]]:
    batch: list[Json] = []
    size = 0
    for row in rows:
        length = len(json.dumps(row))
        if batch and (len(batch) >= BATCH_NOTES or size + length > BATCH_CHARS):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += length
    if batch:
        yield batch


def _all(asked: Desk, tags: list[str] | None) -> Iterator[Json]:
    """Every note with all of `tags`."""
    offset = 0
    while True:
        page = asked.command("notes", action="list", tags=tags or [], limit=PAGE, offset=offset)
        yield from page["notes"]
        offset += PAGE
        if offset >= page["total"]:
            return


def _content(text: str) -> str:
    return sys.stdin.read() if text == "-" else text


def _text_of(file: str) -> str:
    if file == "-":
        return sys.stdin.read(MAX_FILE)
    try:
        path = Path(file)
        if path.stat().st_size > MAX_FILE:
            raise UsageError(f"{file} has over {MAX_FILE >> 20} MiB.", remedy="Import it in parts.")
        return path.read_bytes().decode()
    except OSError as error:
        raise UsageError(f"{file} can't be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{file} is no UTF-8 text.") from None


def _edited(text: str) -> str:
    """`text` as the person's editor left it."""
    if not sys.stdin.isatty():
        raise UsageError("Say what the note shall say.", remedy="memory edit ID TEXT")
    words = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    with tempfile.TemporaryDirectory(prefix="oxydra-") as folder:
        file = Path(folder) / "note.md"
        file.write_text(text, encoding="utf-8")
        try:
            ended = subprocess.run([*words, str(file)], check=False).returncode
        except OSError as error:
            raise UsageError(
                f"The editor can't be used: {error}.", remedy="Set EDITOR to one that there is."
            ) from None
        if ended:
            raise UsageError(f"{words[0]} ended with {ended}: the note stays as it was.")
        return file.read_text(encoding="utf-8", errors="replace")


def _line(row: Json, *, whole: bool = False) -> str:
    """A note for people: in one line, or with all that it says below it."""
    facts = [row["note_id"], str(row["time"])[:16].replace("T", " ")]
    facts += [f"#{tag}" for tag in row["tags"]]
    facts += ["pinned"] * row["pinned"] + ["from strangers"] * row["from_strangers"]
    text = row["content"]
    if whole:
        return "\n".join(["  ".join(facts), *(f"  {line}" for line in text.split("\n"))])
    short = " ".join(text.split())
    return f"{'  '.join(facts)}  {short if len(short) <= 200 else short[:199] + '…'}"
