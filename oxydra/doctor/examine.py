"""`examine` makes the checks one after the other; `repair` ends what can be ended without harm."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping

from oxydra.doctor import registry
from oxydra.doctor.base import Case, Finding
from oxydra.errors import OxydraError, UsageError

log = logging.getLogger(__name__)


def examine(case: Case, only: Collection[str] = ()) -> Iterator[Finding]:
    """Everything that is found, the machine's first; or what the checks `only` find. Raises
    `UsageError` for one that there is not.
    """
    known = {**registry.MACHINE, **registry.USER}
    for name in only:
        if name not in known:
            raise UsageError(
                f"There is no check {name[:32]!r}.", remedy=f"There are: {', '.join(known)}."
            )
    machine, user = (
        {name: place for name, place in checks.items() if not only or name in only}
        for checks in (registry.MACHINE, registry.USER)
    )
    yield from _made(machine, case)
    for one in case.users():
        if one.broken is not None:
            yield one.of(trouble("configuration", one.broken, one))
        else:
            yield from map(one.of, _made(user, one))


def _made(checks: Mapping[str, str], case: Case) -> Iterator[Finding]:
    for name, check in registry.checks(checks):
        try:
            yield from check(case)
        except OxydraError as error:
            yield trouble(name, error, case)
        except OSError as error:
            yield Finding(name, "degraded", f"This could not be looked at: {error}.")
        except Exception as error:
            log.debug("the check %s failed", name, exc_info=True)
            yield Finding(name, "degraded", f"The check itself failed: {error!r}")


def trouble(check: str, error: OxydraError, case: Case) -> Finding:
    """An error as a finding."""
    return Finding(check, "down", str(error), case.remedy(error))


def repair(finding: Finding) -> Finding:
    """The finding after its `fix`, which is there."""
    assert finding.fix is not None
    try:
        finding.fix()
    except (OxydraError, OSError) as error:
        detail = f"{finding.detail} It could not be mended: {error}"
        return Finding(finding.check, finding.level, detail, finding.remedy, user=finding.user)
    return Finding(finding.check, "healthy", f"Mended: {finding.detail}", user=finding.user)
