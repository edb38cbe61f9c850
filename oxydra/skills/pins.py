"""What a person has trusted of skills: `skills.json` among the configuration, mode 0600.

A row belongs to one folder and says what every file in it held, so a copy elsewhere and a changed
file are asked about again; texts are kept, to show what is other than it was. Those that ship with
Oxydra have their rows in the package.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from oxydra.config.files import read_text, write_private
from oxydra.errors import ConfigError
from oxydra.skills.folders import BUILT_IN, Skill
from oxydra.skills.matter import Matter
from oxydra.types import Json

FILE = "skills.json"
SHIPPED = BUILT_IN / "pins.json"
MAX_COMPARED = 64 << 10  # bytes of a file whose text is kept
MAX_LINES = 2000  # of a text that is compared: more would take too long


@dataclass(frozen=True, slots=True)
class Pin:
    """One row: the digests of all files by path, what the skill said of itself, and texts of files
    by path.
    """

    files: dict[str, str]
    matter: Matter
    texts: dict[str, str] = field(default_factory=dict, repr=False)

    def fits(self, skill: Skill) -> bool:
        return not skill.trouble and self.files == skill.digests and self.matter.name == skill.name

    def changes(self, skill: Skill) -> list[str]:
        """What is other than it was, in words."""
        now = skill.digests
        return [
            *(f"new: {path}" for path in now if path not in self.files),
            *(f"gone: {path}" for path in self.files if path not in now),
            *(f"changed: {p}" for p in now if p in self.files and now[p] != self.files[p]),
        ]

    def diff(self, skill: Skill, path: str) -> str:
        """How a file's text has changed, as a unified diff; "" where that can't be told."""
        old, new = self.texts.get(path), skill.files[path].text
        if old is None or new is None:
            return ""
        before, after = old.splitlines(), new.splitlines()
        if max(len(before), len(after)) > MAX_LINES:
            return ""
        rows = difflib.unified_diff(before, after, f"{path} as trusted", path, lineterm="")
        return "\n".join(rows)


class Pins:
    """The rows of one person. Not for several threads."""

    def __init__(self, home: Path) -> None:
        """Raises `ConfigError` where the file is broken."""
        self._path = home / FILE
        self._rows = _rows(self._path)
        self._shipped = _rows(SHIPPED)

    def of(self, skill: Skill) -> Pin | None:
        """What was trusted of this folder, whatever it holds now."""
        if skill.place == "built-in":
            return self._shipped.get(skill.name)
        return self._rows.get(str(skill.path.resolve()))

    def add(self, skill: Skill) -> None:
        """Trust it as it was read. Raises `SkillError` for what can't be used."""
        texts = {
            path: file.text
            for path, file in skill.files.items()
            if len(file.data) <= MAX_COMPARED and file.text is not None
        }
        self._rows[str(skill.path.resolve())] = Pin(dict(skill.digests), skill.matter(), texts)
        self._save()

    def remove(self, path: Path) -> bool:
        """Trust a folder no more; False if it was not trusted."""
        if self._rows.pop(str(path.resolve()), None) is None:
            return False
        self._save()
        return True

    def _save(self) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        rows = {path: to_json(pin) for path, pin in sorted(self._rows.items())}
        text = json.dumps({"version": 1, "written": now, "skills": rows}, indent=1)
        write_private(self._path, (text + "\n").encode())


def to_json(pin: Pin) -> Json:
    row = {"matter": pin.matter.to_json(), "files": pin.files}
    return {**row, "texts": pin.texts} if pin.texts else row


def _pin(row: Json) -> Pin:
    files = {str(path): str(digest) for path, digest in row["files"].items()}
    texts = {str(path): str(text) for path, text in row.get("texts", {}).items()}
    return Pin(files, Matter.from_json(row["matter"]), texts)


def _rows(path: Path) -> dict[str, Pin]:
    text = read_text(path)
    if text is None:
        return {}
    try:
        rows: Json = json.loads(text)["skills"]
        return {place: _pin(row) for place, row in rows.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(
            "The record of trusted skills is broken.",
            remedy=f"Remove '{path}' and run `oxydra-runner skill trust NAME` for each.",
            file=str(path),
        ) from None
