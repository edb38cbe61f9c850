"""The configuration: whether it can be read, and nobody else could have written it. No thread."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from oxydra.doctor.base import Case, Finding


def check(case: Case) -> Iterator[Finding]:
    """Whether it is in force."""
    if case.broken is not None:
        yield Finding("configuration", "down", str(case.broken), case.remedy(case.broken))
    elif users := case.settings.runner.users:
        yield Finding("configuration", "healthy", f"users: {', '.join(users)}")
    else:
        yield Finding("configuration", "down", "No user is configured.", _a_user(case))


def _a_user(case: Case) -> str:
    """The line that makes one."""
    place = case.path or Path(".oxydra")
    file = place / "runner.toml" if place.is_dir() else place
    if not file.is_file():
        return case.command("init")
    users = file.parent / "users"
    lines = r"\n[users.alice]\nconfig_path = \"users/alice.toml\"\n"
    return (
        f"mkdir -p {shlex.quote(str(users))} && touch {shlex.quote(str(users / 'alice.toml'))}"
        f" && printf '{lines}' >>{shlex.quote(str(file))}"
    )
