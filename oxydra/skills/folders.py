"""Skills on the host: folders with a SKILL.md, read once and judged as they were read.

A skill is what its regular files hold; names that begin with a dot are passed over, and a link or
anything else makes it unusable. Its SHA-256 is over every path, whether the file may be executed,
and what it holds, so a changed script is a changed skill. No thread.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

from oxydra.skills.matter import MAX_NAME, NAME, Matter, SkillError, parse
from oxydra.walk import Walk, opened

MAIN = "SKILL.md"
MAX_SKILLS = 64  # in one place
MAX_FILES = 200
MAX_BYTES = 1 << 20
MAX_TOTAL = 16 << 20  # of all skills, which are held while a daemon starts
MAX_MAIN = 128 << 10
MAX_DEPTH = 8

BUILT_IN = Path(__file__).parent.parent / "data" / "skills"

PlaceName: TypeAlias = Literal["built-in", "own", "folder"]


@dataclass(frozen=True, slots=True)
class File:
    """What one holds."""

    data: bytes = field(repr=False)
    executable: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def text(self) -> str | None:
        """None where it is none."""
        try:
            found = self.data.decode()
        except UnicodeDecodeError:
            return None
        return None if "\0" in found else found


@dataclass(frozen=True)
class Skill:
    """A folder as it was read. `trouble` says why it can't be used, "" if it can."""

    place: PlaceName
    path: Path
    files: Mapping[str, File] = field(repr=False)
    trouble: str = ""

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def digests(self) -> dict[str, str]:
        """By path, in order."""
        rows = sorted(self.files.items())
        return {path: f"{file.sha256}{'x' if file.executable else ''}" for path, file in rows}

    @cached_property
    def sha256(self) -> str:
        rows = "".join(f"{digest} {path}\n" for path, digest in self.digests.items())
        return hashlib.sha256(rows.encode()).hexdigest()

    @property
    def text(self) -> str:
        """Its SKILL.md. Raises `SkillError`."""
        try:
            return self.files[MAIN].data.decode()
        except KeyError:
            raise SkillError(f"There is no {MAIN}.") from None
        except UnicodeDecodeError:
            raise SkillError(f"{MAIN} is not UTF-8.") from None

    def matter(self) -> Matter:
        """What it says of itself. Raises `SkillError` for what can't be used."""
        if self.trouble:
            raise SkillError(self.trouble)
        found = parse(self.text)
        if found.name != self.name:
            raise SkillError(
                f"It calls itself {found.name!r}.", remedy="Give its folder the same name."
            )
        return found


def places(home: Path, folder: Path | None) -> dict[PlaceName, Path]:
    """Where skills are looked for; of those with one name the last counts. `home` is where the
    person's configuration lies, `folder` that of the project.
    """
    found: dict[PlaceName, Path] = {"built-in": BUILT_IN, "own": home / "skills"}
    if folder is not None and folder.resolve() != home.resolve():
        found["folder"] = folder / "skills"
    return found


def find(home: Path, folder: Path | None) -> list[Skill]:
    """All of them, place by place, by name. One that can't be read says so."""
    found = []
    left = MAX_TOTAL
    for place, path in places(home, folder).items():
        try:
            names = sorted(os.listdir(path))
        except OSError:
            continue
        names = [n for n in names if not n.startswith(".") and (path / n).is_dir()]
        for name in names[:MAX_SKILLS]:
            skill = read(path / name, place)
            left -= sum(len(file.data) for file in skill.files.values())
            if left < 0:
                trouble = f"With it all skills would be larger than {MAX_TOTAL >> 20} MiB."
                skill = Skill(place, skill.path, {}, trouble)
            found.append(skill)
    return found


def read(path: Path, place: PlaceName) -> Skill:
    """The folder at `path`, as it is now."""
    path = Path(os.path.abspath(path))
    files: dict[str, File] = {}
    try:
        with opened(path) as top:
            trouble = _read_below(top, files)
    except OSError as error:
        trouble = f"It can't be read: {error.strerror}."
    if not trouble and MAIN not in files:
        trouble = f"There is no {MAIN}."
    if len(path.name) > MAX_NAME or not re.fullmatch(NAME, path.name):
        trouble = "Its folder's name is not of a-z, 0-9 and single hyphens, up to 64."
    return Skill(place, path, {} if trouble else files, trouble)


def _read_below(top: int, files: dict[str, File]) -> str:
    """Fill `files`; what is wrong, if anything is."""
    walk, left = Walk(top, depth=MAX_DEPTH, entries=4 * MAX_FILES), MAX_BYTES
    for entry in walk:
        if any(part.startswith(".") for part in entry.path.split("/")) or entry.is_folder:
            continue
        if not entry.is_plain or not entry.path.isprintable():
            return f"{entry.path!a} is no regular file with one name that can be read."
        with os.fdopen(entry.open(), "rb") as file:
            data = file.read(left + 1)
        left -= len(data)
        if left < 0 or len(files) == MAX_FILES:
            return f"It has more than {MAX_FILES} files or {MAX_BYTES >> 20} MiB."
        if entry.path == MAIN and len(data) > MAX_MAIN:
            return f"{MAIN} is larger than {MAX_MAIN >> 10} KiB."
        files[entry.path] = File(data, bool(entry.state.st_mode & 0o111))
    return "" if walk.complete else f"It is too large: {walk.skipped[0][1]}."
