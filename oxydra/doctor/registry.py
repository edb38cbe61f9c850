"""Which checks `doctor` makes, in this order. Another one is a function and a line here.

A check takes a `Case` and yields what it finds; an `OxydraError` that it raises becomes a finding
with its remedy. It leaves nothing behind, and ends within seconds.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping

from oxydra.doctor.base import Case, Finding

Check = Callable[[Case], Iterator[Finding]]

MACHINE = {  # once; the case may have no settings
    "configuration": "oxydra.doctor.configuration:check",
}
USER = {  # for each user, where the configuration can be read
    "daemon": "oxydra.doctor.health:check",
}


def checks(registry: Mapping[str, str]) -> Iterator[tuple[str, Check]]:
    """Each with its name, imported when its turn comes."""
    for name, place in registry.items():
        module, _, function = place.partition(":")
        yield name, getattr(importlib.import_module(module), function)
