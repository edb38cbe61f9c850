"""`skill`: folders of instructions that the agent may use, and trusting them."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from oxydra.cli.target import load
from oxydra.config import Config
from oxydra.errors import EXIT_FAILED, UsageError
from oxydra.scrub import printable
from oxydra.skills import MAIN, Found, Pin, Pins, Shelf, Skill, SkillError, checked, places, read
from oxydra.types import Json

NEXT = "It counts from the next start on: oxydra-runner restart."


def skill(options: argparse.Namespace) -> int:
    settings = load(options, need_user=False)
    actions = {"list": _list, "show": _show, "add": _add, "trust": _trust, "remove": _remove}
    return {**actions, "check": _check}[options.action](options, settings)


def _list(options: argparse.Namespace, settings: Config) -> int:
    shelf = _shelf(settings)
    if options.json:
        print(json.dumps([_row(one) for one in shelf.found], indent=2))
        return 0
    if not settings.agent.skills.enabled:
        print("[skills] enabled = false: none is used.", file=sys.stderr)
    for one in shelf.found:
        about = one.detail or (one.matter.description if one.matter else "")
        state = one.state if one.matter is None else f"{one.state}, {one.matter.activation}"
        line = f"{one.skill.name:<24} {one.skill.place:<9} {state:<20} {about}"
        print(printable(line).rstrip())
    return 0


def _show(options: argparse.Namespace, settings: Config) -> int:
    found = _named(options, settings)
    if options.json:
        row = {**_row(found), "files": found.skill.digests, "text": _text(found.skill)}
        print(json.dumps(row, indent=2))  # in ASCII: a terminal obeys some of what is beyond it
    else:
        _print(found, None)
    return 0


def _add(options: argparse.Namespace, settings: Config) -> int:
    """A copy of what is at a path, which nobody trusts yet."""
    new = read(Path(options.path), "own")
    name = new.matter().name
    place = places(settings.home, None)["own"] / name
    if place.exists() and not options.replace:
        raise UsageError(
            f"There is a skill {name} in {place.parent}.",
            remedy=f"`oxydra-runner skill remove {name}` takes it away, --replace puts this there.",
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    fresh = place.with_name(f".{name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    for path, file in new.files.items():
        to = fresh / path
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(file.data)
        to.chmod(0o755 if file.executable else 0o644)
    shutil.rmtree(place, ignore_errors=True)
    os.replace(fresh, place)
    print(f"{place}: look at it and have it used with `oxydra-runner skill trust {name}`.")
    return 0


def _trust(options: argparse.Namespace, settings: Config) -> int:
    found = _named(options, settings)
    name = found.skill.name
    if found.state == "broken":
        raise SkillError(found.detail)
    if found.state not in ("not trusted", "changed"):
        print(f"{name} is trusted as it is.")
        return 0
    pins = Pins(settings.home)
    _print(found, pins.of(found.skill))
    if not (options.yes or _agreed()):
        print("Nothing was changed.")
        return EXIT_FAILED
    pins.add(found.skill)
    print(f"Trusted: {name}. A change of any of it asks you again. {NEXT}", file=sys.stderr)
    return 0


def _remove(options: argparse.Namespace, settings: Config) -> int:
    found = _named(options, settings)
    one = found.skill
    if one.place == "built-in":
        raise UsageError(
            f"{one.name} is a part of Oxydra.", remedy=f'Set [skills] exclude = ["{one.name}"].'
        )
    trusted = Pins(settings.home).remove(one.path)
    if one.place == "own":
        if one.path.is_symlink():  # it goes, and not what it names
            one.path.unlink()
        else:
            shutil.rmtree(one.path)
        print(f"Removed: {one.path}. {NEXT}")
    elif trusted:
        print(f"{one.path} is the project's and stays there; it is not trusted any more. {NEXT}")
    else:
        print(f"{one.path} is the project's and stays there; it was not trusted.")
    return 0


def _check(options: argparse.Namespace, settings: Config) -> int:
    """What whoever writes a skill should know of it."""
    from oxydra.tools.registry import FOREIGN, MADE, TOOLS

    if options.name and (os.sep in options.name or options.name == "."):
        one = read(Path(options.name), "own")
        try:
            looked = [Found(one, "not trusted", one.matter())]
        except SkillError as error:
            looked = [Found(one, "broken", None, str(error))]
    else:
        looked = [_named(options, settings)] if options.name else list(_shelf(settings).found)
    code = 0
    for found in looked:
        known = {*TOOLS, *MADE}
        known |= {r for r in (found.matter.requires if found.matter else ()) if FOREIGN in r}
        said = checked(found, known, settings.agent.skills.env_keys)
        code = EXIT_FAILED if said else code
        print(printable(f"{found.skill.path}: {'; '.join(said) or 'it is well-formed'}"))
    return code


def _shelf(settings: Config) -> Shelf:
    return Shelf.of(settings, described=True)


def _named(options: argparse.Namespace, settings: Config) -> Found:
    """The skill with that name in the place that counts, or in `--place`."""
    rows = [one for one in _shelf(settings).found if one.skill.name == options.name]
    if place := getattr(options, "place", None):
        rows = [one for one in rows if one.skill.place == place]
    if not rows:
        looked = ", ".join(map(str, places(settings.home, settings.folder).values()))
        raise UsageError(
            f"There is no skill {options.name[:64]!r}.", remedy=f"They are looked for in {looked}."
        )
    return rows[-1]


def _agreed() -> bool:
    """Whether the person, who has seen it, says so."""
    try:
        said = input("Is the agent to work by this, and may it run these files in commands? [y/N] ")
    except EOFError:
        return False
    return said.strip().lower() in ("y", "yes")


def _row(one: Found) -> Json:
    about = one.matter.to_json() if one.matter is not None else {"name": one.skill.name}
    return {
        **about,
        "state": one.state,
        "detail": one.detail,
        "place": one.skill.place,
        "path": str(one.skill.path),
        "sha256": one.skill.sha256,
    }


def _text(one: Skill) -> str:
    try:
        return one.text
    except SkillError:
        return ""


def _print(one: Found, pin: Pin | None) -> None:
    """All of it that a person decides by: what a model may read, and what commands may run. Of a
    file that was trusted otherwise, how it has changed.
    """
    lines = [f"{one.skill.path}: {one.state}"]
    if one.state == "changed":
        lines.append(f"Since it was trusted: {one.detail}")
    elif one.detail:
        lines.append(one.detail)
    lines += ["", *(f"{digest[:12]}  {path}" for path, digest in one.skill.digests.items())]
    for path, file in sorted(one.skill.files.items(), key=lambda row: (row[0] != MAIN, row[0])):
        if pin is not None and pin.files.get(path) == one.skill.digests[path]:
            continue
        said = file.text if file.text is not None else f"({len(file.data)} bytes, no text)"
        told = pin.diff(one.skill, path) if pin is not None else ""
        lines += ["", f"----- {path}", told or said.rstrip("\n")]
    print(printable("\n".join(lines)))
