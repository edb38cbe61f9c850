"""The configuration: whether it can be read, and nobody else could have written it. No thread."""

from __future__ import annotations

from collections.abc import Iterator

from oxydra.doctor.base import Case, Finding


def check(case: Case) -> Iterator[Finding]:
    """Whether it is in force."""
    if case.broken is None:
        yield Finding("configuration", "healthy", f"users: {', '.join(case.settings.runner.users)}")
    else:
        yield Finding("configuration", "down", str(case.broken), case.remedy(case.broken))
