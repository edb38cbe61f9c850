"""`examine` makes the checks one after the other; `repair` ends what can be ended without harm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from oxydra.doctor import registry
from oxydra.doctor.base import Case, Finding
from oxydra.errors import OxydraError


def examine(case: Case) -> Iterator[Finding]:
    """Everything that is found, the machine's first."""
    yield from _made(registry.MACHINE, case)
    for one in case.users():
        if one.broken is not None:
            yield one.of(trouble("configuration", one.broken))
        else:
            yield from map(one.of, _made(registry.USER, one))


def _made(checks: Mapping[str, str], case: Case) -> Iterator[Finding]:
    for name, check in registry.checks(checks):
        try:
            yield from check(case)
        except OxydraError as error:
            yield trouble(name, error)
        except OSError as error:
            yield Finding(name, "degraded", f"This could not be looked at: {error}.")


def trouble(check: str, error: OxydraError) -> Finding:
    """An error as a finding."""
    return Finding(check, "down", str(error), error.command)


def repair(finding: Finding) -> Finding:
    """The finding after its `fix`, which is there."""
    assert finding.fix is not None
    try:
        finding.fix()
    except (OxydraError, OSError) as error:
        detail = f"{finding.detail} It could not be mended: {error}"
        return Finding(finding.check, finding.level, detail, finding.remedy, user=finding.user)
    return Finding(finding.check, "healthy", f"Mended: {finding.detail}", user=finding.user)
