"""What a person sent and saw, kept for the next time: two files for each user, theirs alone.

What was sent is a file of JSON strings, a line each, to which several windows add at the same time;
a text that begins with a space is not kept. Beside it stands which turn was the last that was seen
of each session, as one JSON object.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from oxydra.tui.editor import REMEMBERED

MOST = 1 << 20  # bytes; past that only the newest are kept
LONGEST = 20_000  # characters of a text that is kept
SESSIONS = 200  # of which the last turn is kept


def place(user_id: str, environ: Mapping[str, str] = os.environ) -> Path:
    """$XDG_STATE_HOME/oxydra/sent-USER, by default below ~/.local/state."""
    top = environ.get("XDG_STATE_HOME", "")
    state = Path(top) if os.path.isabs(top) else Path.home() / ".local" / "state"
    return state / "oxydra" / f"sent-{quote(user_id, safe='')}"


class Past:
    """The file at `path`. Methods raise `OSError`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> tuple[str, ...]:
        """The newest, oldest first. Lines that make no sense are passed over."""
        try:
            with open(self._path, "rb") as file:
                file.seek(0, os.SEEK_END)
                size = file.tell()
                file.seek(max(0, size - MOST))
                lines = file.read(MOST).split(b"\n")
        except FileNotFoundError:
            return ()
        texts = [text for line in lines if (text := _parsed(line))]
        kept = tuple(texts[-REMEMBERED:])
        if size > MOST:
            _put(self._path, b"".join(map(_line, kept)))
        return kept

    def add(self, text: str) -> None:
        if text.startswith(" ") or len(text) > LONGEST:
            return
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o600)
        try:
            os.write(descriptor, _line(text))
        finally:
            os.close(descriptor)

    def forget(self, holds: Callable[[str], bool]) -> int:
        """Take out what was sent and `holds` says so of; returns how many texts that were."""
        try:
            texts = [
                text for line in self._path.read_bytes().split(b"\n") if (text := _parsed(line))
            ]
        except FileNotFoundError:
            return 0
        kept = [text for text in texts if not holds(text)]
        if len(kept) < len(texts):
            _put(self._path, b"".join(map(_line, kept)))
        return len(texts) - len(kept)

    def seen(self) -> dict[str, str]:
        """The last turn that was seen of each session. A file that makes no sense has none."""
        try:
            with open(self._seen, "rb") as file:
                found = json.loads(file.read(MOST))
        except (FileNotFoundError, ValueError):
            return {}
        rows = found.items() if isinstance(found, dict) else ()
        return {session: turn for session, turn in rows if isinstance(turn, str)}

    def saw(self, turns: Mapping[str, str]) -> None:
        """Add to them; the sessions that were seen last are kept."""
        others = {key: turn for key, turn in self.seen().items() if key not in turns}
        kept = dict([*others.items(), *turns.items()][-SESSIONS:])
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _put(self._seen, json.dumps(kept).encode())

    @property
    def _seen(self) -> Path:
        return self._path.with_name(f"{self._path.name}.seen")


def _put(path: Path, data: bytes) -> None:
    """Put a file into the place of another, at once."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    with suppress(FileExistsError):
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(new, path)


def _line(text: str) -> bytes:
    return json.dumps(text).encode() + b"\n"


def _parsed(line: bytes) -> str:
    try:
        text = json.loads(line)
    except ValueError:
        return ""
    return text if isinstance(text, str) else ""
