"""Which checks `doctor` makes, in this order. Another one is a function and a line here.

A check takes a `Case` and yields what it finds; an `OxydraError` that it raises becomes a finding
with its remedy. It leaves nothing behind, and ends within seconds.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from oxydra import config
from oxydra.config import Isolation
from oxydra.doctor.base import Case, Finding
from oxydra.errors import OxydraError

Check = Callable[[Case], Iterator[Finding]]

MACHINE = {  # once; the case may have no settings
    "configuration": "oxydra.doctor.configuration:check",
    "python": "oxydra.doctor.machine:python",
    "sqlite": "oxydra.doctor.machine:sqlite",
    "sqlite-vss": "oxydra.doctor.machine:vss",
    "embedding": "oxydra.doctor.machine:embedding",
    "time-zones": "oxydra.doctor.machine:zones",
    "clock": "oxydra.doctor.machine:clock",
    "bubblewrap": "oxydra.doctor.machine:bubblewrap",
}
USER = {  # for each user, where the configuration can be read
    "model": "oxydra.doctor.models:model",
    "keys": "oxydra.doctor.models:keys",
    "reach": "oxydra.doctor.models:reach",
    "canary": "oxydra.doctor.models:canary",
    "telegram": "oxydra.doctor.telegram:check",
    "mcp": "oxydra.doctor.mcp:check",
    "skills": "oxydra.doctor.skills:check",
    "permissions": "oxydra.doctor.place:permissions",
    "leftovers": "oxydra.doctor.place:left_over",
    "port": "oxydra.doctor.place:port",
    "database": "oxydra.doctor.place:database",
    "daemon": "oxydra.doctor.daemon:check",
    "tiers": "oxydra.doctor.tiers:check",
    "schedule": "oxydra.doctor.schedule:check",
}

GUESTS = {  # by tier, what says why its guests can't be made; nothing is needed for the others
    "container": "oxydra.tiers.container:missing",
    "micro_vm": "oxydra.tiers.templates:missing",
}


def missing_images(case: Case) -> OxydraError | None:
    """Why the guests of this user's tier can't be made; None if they can."""
    place = GUESTS.get(case.settings.tier)
    if place is None:
        return None
    missing: Callable[[Isolation], OxydraError | None] = _found(place)
    return missing(config.isolation(case.settings))


def checks(registry: Mapping[str, str]) -> Iterator[tuple[str, Check]]:
    """Each with its name, imported when its turn comes."""
    for name, place in registry.items():
        yield name, _found(place)


def _found(place: str) -> Any:
    module, _, function = place.partition(":")
    return getattr(importlib.import_module(module), function)
