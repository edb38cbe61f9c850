"""What a finding is, and what the checks of `doctor` may look at. No thread."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from oxydra import config
from oxydra.catalog import Catalog
from oxydra.config import Config
from oxydra.errors import ConfigError, NoDaemonError, OxydraError
from oxydra.runner.control import call
from oxydra.runner.workspace import Workspace
from oxydra.types import Json

TIMEOUT = 3.0  # seconds for each question to a daemon

Level = Literal["healthy", "degraded", "down"]
EXIT_CODES: dict[Level, int] = {"healthy": 0, "degraded": 1, "down": 2}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw. `detail` says what is wrong, or what there is.

    `remedy` is one line for a shell that puts it right; `fix` does the same and can do no harm:
    nothing is lost by it and nobody's decision taken. `user` is "" for what is the machine's.
    """

    check: str
    level: Level
    detail: str = ""
    remedy: str = ""
    fix: Callable[[], None] | None = None
    user: str = ""

    def to_json(self) -> Json:
        return {
            "user": self.user,
            "check": self.check,
            "level": self.level,
            "detail": self.detail,
            "remedy": self.remedy,
            "fixable": self.fix is not None,
        }

    def line(self) -> str:
        """For a terminal or a mail, without the remedy."""
        return f"{self.user} {self.check}: {self.level} {self.detail}".strip()


def worst(findings: Iterable[Finding]) -> int:
    """The exit code."""
    return max((EXIT_CODES[finding.level] for finding in findings), default=0)


class Case:
    """One user's configuration and daemon as checks see them, each read once, when it is asked for.

    `broken` is what keeps the configuration from being read; then there are no `settings`, and only
    the checks of the machine are made. `canary`: a model may be called, which costs a little.
    """

    def __init__(
        self, path: Path | None = None, user: str | None = None, *, canary: bool = False
    ) -> None:
        self.path = path
        self.canary = canary
        self.broken: OxydraError | None = None
        self._settings: Config | None = None
        self._asked = user
        try:
            self._settings = config.load(path, user, need_user=False)
        except OxydraError as error:
            self.broken = error

    @property
    def settings(self) -> Config:
        """Raises what keeps it from being read."""
        if self._settings is None:
            assert self.broken is not None
            raise self.broken
        return self._settings

    @property
    def user(self) -> str:
        """Whose case it is; "" where nobody is configured, or nobody was chosen."""
        return self._asked or (self._settings.user_id if self._settings else "")

    def users(self) -> list[Case]:
        """The same for each user, or for the one who was asked for."""
        if self.broken is not None:
            return []
        names = [self._asked] if self._asked else sorted(self.settings.runner.users)
        return [Case(self.path, name, canary=self.canary) for name in names]

    @cached_property
    def workspace(self) -> Workspace:
        mounts = None
        with contextlib.suppress(ConfigError):  # the check of the configuration says it
            mounts = config.mounts(self.settings)
        return Workspace(self.settings.workspace_root, self.user, mounts)

    @cached_property
    def catalog(self) -> Catalog:
        return Catalog.load(home=self.settings.home)

    @cached_property
    def status(self) -> Json | None:
        """What a running daemon says of itself; None if none answers."""
        try:
            return call(self.workspace.control_socket, "health_check", {}, timeout=TIMEOUT)
        except NoDaemonError:
            return None

    def command(self, *words: str) -> str:
        """`oxydra-runner` with these words, for this configuration and user."""
        said = [] if self.path is None else ["--config", str(self.path)]
        if self._asked or (self._settings and len(self._settings.runner.users) > 1):
            said += ["--user", self.user] if self.user else []
        return runner_command(*said, *words)

    def of(self, finding: Finding) -> Finding:
        """The finding as this user's."""
        return replace(finding, user=self.user)


def runner_command(*words: str) -> str:
    """`oxydra-runner` with these words, named so that this machine's shell finds it."""
    name = "oxydra-runner"
    beside = Path(sys.argv[0]).absolute().with_name(name)
    if shutil.which(name) is None and beside.is_file():
        name = str(beside)
    return shlex.join([name, *words])
