"""Which skills an agent gets: those that are trusted as they are now, the last place by name.

`Shelf.of` looks at all of them; what may be used goes to the guest as rows (name, description,
when to use it), and its files into a folder that the guest can only read (`put`). One that nobody
trusts hides none that somebody does. No thread.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from oxydra.config import Config
from oxydra.skills.folders import Skill, find
from oxydra.skills.matter import Matter, SkillError, split
from oxydra.skills.pins import Pins
from oxydra.types import Json

ROOT = "mnt/skills"  # where guests have the files: /mnt/skills/<name>/
MAX_VALUE = 256  # characters of a variable's value

SECRET = r"(?i)auth|cookie|key|token|secret|credential|passw|private|signature|session"

State: TypeAlias = Literal["used", "not trusted", "changed", "broken", "overridden", "left out"]


@dataclass(frozen=True, slots=True)
class Found:
    """A skill and what becomes of it. `matter` is None where that can't or must not be read."""

    skill: Skill
    state: State
    matter: Matter | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Shelf:
    """All skills; `variables` are what their texts may show."""

    found: tuple[Found, ...]
    variables: Mapping[str, str]

    @classmethod
    def of(
        cls,
        settings: Config,
        environ: Mapping[str, str] | None = None,
        *,
        described: bool = False,
    ) -> Shelf:
        """With `described`, what nobody trusts is asked what it says of itself; a daemon does not
        parse that. Raises `ConfigError` where the record of what is trusted is broken.
        """
        config = settings.agent.skills
        if not config.enabled:
            return cls((), {})
        pins = Pins(settings.home)
        looked = [_judged(one, pins, described) for one in find(settings.home, settings.folder)]
        used = {one.skill.name: one for one in looked if one.state == "used"}  # the last counts
        rows = [_among(one, used, config.exclude) for one in looked]
        values = os.environ if environ is None else environ
        shown = {name: values[name] for name in config.env_keys if _may_show(name, values)}
        return cls(tuple(rows), shown)

    @property
    def used(self) -> list[Found]:
        return [one for one in self.found if one.state == "used"]

    def rows(self, secrets: Collection[str] = ()) -> list[Json]:
        """What a guest is told, in the order in which a model is: by priority, then by name. No
        variable shows one of `secrets`.
        """
        shown = {name: v for name, v in self.variables.items() if v not in secrets}
        found = [(one.skill, one.matter) for one in self.used if one.matter is not None]
        found.sort(key=lambda row: (-row[1].priority, row[1].name))
        return [
            {
                **matter.to_json(),
                "place": skill.place,
                "sha256": skill.sha256,
                "files": skill.digests,
                "env": {n: shown[n] for n in matter.env if n in shown},
            }
            for skill, matter in found
        ]

    def texts(self) -> dict[str, str]:
        """What follows the front matter, by name."""
        return {one.skill.name: split(one.skill.text)[1] for one in self.used}

    def notices(self) -> list[Json]:
        """What the person should know: what was trusted and is so no more, and what waits."""
        rows = []
        for one in self.found:
            if one.state in ("changed", "not trusted"):
                what = "has changed since it was trusted" if one.state == "changed" else "is new"
                detail = (
                    f"The skill {one.skill.name} {what} and is not used; look at it with"
                    f" `oxydra-runner skill trust {one.skill.name}`."
                )
                rows.append({"code": "skill_not_trusted", "detail": detail})
        return rows

    def put(self, folder: Path) -> None:
        """Make `folder`, which nobody else writes, hold the files of what is used and nothing
        else. Raises OSError.
        """
        for name in os.listdir(folder):
            shutil.rmtree(folder / name)
        for one in self.used:
            for path, file in one.skill.files.items():
                place = folder / one.skill.name / path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(file.data)
                place.chmod(0o555 if file.executable else 0o444)
        for at, _names, _files in os.walk(folder):
            os.chmod(at, 0o755)


def _judged(skill: Skill, pins: Pins, described: bool) -> Found:
    pin = pins.of(skill)
    if skill.trouble:
        return Found(skill, "broken", None, skill.trouble)
    if pin is not None and pin.fits(skill):
        return Found(skill, "used", pin.matter)
    try:
        matter = skill.matter() if described else None
    except SkillError as error:
        return Found(skill, "broken", None, str(error))
    if pin is None:
        return Found(skill, "not trusted", matter)
    return Found(skill, "changed", matter, ", ".join(pin.changes(skill)))


def _among(one: Found, used: Mapping[str, Found], exclude: Collection[str]) -> Found:
    if one.state != "used":
        return one
    if one.skill.name in exclude:
        return Found(one.skill, "left out", one.matter, "[skills] exclude names it.")
    last = used[one.skill.name]
    if last is not one:
        return Found(one.skill, "overridden", one.matter, f"{last.skill.path} has its name.")
    return one


def _may_show(name: str, values: Mapping[str, str]) -> bool:
    value = values.get(name)
    if value is None or re.search(SECRET, name):
        return False
    return len(value) <= MAX_VALUE and value.isprintable()


def why_not_shown(name: str) -> str:
    """Why no text may show the variable `name`; "" if one may."""
    return f"{name} looks like a secret" if re.search(SECRET, name) else ""


def checked(found: Found, known: Collection[str], env_keys: Sequence[str]) -> list[str]:
    """What somebody who writes a skill should know of it, as sentences."""
    if found.matter is None:
        return [found.detail]
    said = [f"requires: no tool is called {r!r}." for r in found.matter.requires if r not in known]
    for name in found.matter.env:
        if why := why_not_shown(name):
            said.append(f"env: {why}, so it is not shown.")
        elif name not in env_keys:
            said.append(f"env: [skills] env_keys does not name {name}, so it is not shown.")
    return said
