"""The configuration: whether it can be read, by whom else it could be changed. No thread."""

from __future__ import annotations

from collections.abc import Iterator

from oxydra.doctor.base import Case, Finding
from oxydra.errors import ConfigError, OxydraError


def check(case: Case) -> Iterator[Finding]:
    """Whether it is in force."""
    if case.broken is None:
        yield Finding("configuration", "healthy", f"users: {', '.join(case.settings.runner.users)}")
    else:
        yield Finding("configuration", "down", str(case.broken), remedy(case, case.broken))


def remedy(case: Case, error: OxydraError) -> str:
    """The line that ends it, or that opens the place where it is to be ended."""
    if error.command:
        return error.command
    if isinstance(error, ConfigError) and error.line:
        return f"${{EDITOR:-vi}} +{error.line} '{error.file}'"
    return case.command("init")
