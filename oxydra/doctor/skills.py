"""The skills: whether each that somebody trusted is still as it was. No thread."""

from __future__ import annotations

from collections.abc import Iterator

from oxydra.doctor.base import Case, Finding
from oxydra.skills import Shelf


def check(case: Case) -> Iterator[Finding]:
    shelf = Shelf.of(case.settings)
    for one in shelf.found:
        name = one.skill.name
        if one.state == "changed":
            detail = f"{name} is not used: it has changed since it was trusted ({one.detail})."
            yield Finding("skills", "degraded", detail, case.command("skill", "trust", name))
        elif one.state == "not trusted":
            detail = f"{name} is not used: nobody has looked at it yet."
            yield Finding("skills", "degraded", detail, case.command("skill", "trust", name))
        elif one.state == "broken":
            detail = f"{name} is not used: {one.detail}"
            yield Finding("skills", "degraded", detail, case.command("skill", "check", name))
    used = ", ".join(one.skill.name for one in shelf.used)
    if used:
        yield Finding("skills", "healthy", used)
