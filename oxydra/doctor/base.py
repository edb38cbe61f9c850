"""What a finding is, and what the checks of `doctor` may look at. No thread."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
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
from oxydra.config.check import all_keys, find
from oxydra.config.load import SCHEMAS
from oxydra.errors import ConfigError, NoDaemonError, OxydraError
from oxydra.runner.control import call
from oxydra.runner.settings import RunnerSettings, from_config
from oxydra.runner.workspace import Workspace
from oxydra.types import Json

TIMEOUT = 3.0  # seconds for each question to a daemon

INSTALLERS = (
    ("apt-get", "install -y"),
    ("dnf", "install -y"),
    ("zypper", "install -y"),
    ("pacman", "-S --noconfirm"),
    ("apk", "add"),
    ("brew", "install"),
)

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
    def runner(self) -> RunnerSettings:
        """What a daemon would be started with. Raises `ConfigError`."""
        return from_config(self.settings)

    @cached_property
    def catalog(self) -> Catalog:
        return Catalog.load(home=self.settings.home)

    @property
    def status(self) -> Json | None:
        """What a running daemon says of itself; None if none answers."""
        try:
            return self.daemon()
        except NoDaemonError:
            return None

    def daemon(self) -> Json:
        """The same; raises `OxydraError`, `NoDaemonError` if none answers."""
        if isinstance(self._answer, OxydraError):
            raise self._answer
        return self._answer

    @cached_property
    def _answer(self) -> Json | OxydraError:
        try:
            return call(self.workspace.control_socket, "health_check", {}, timeout=TIMEOUT)
        except OxydraError as error:
            return error

    def command(self, *words: str) -> str:
        """`oxydra-runner` with these words, for this configuration and user."""
        said = [] if self.path is None else ["--config", str(self.path)]
        if self.user and self._settings and len(self._settings.runner.users) > 1:
            said += ["--user", self.user]
        return runner_command(*said, *words)

    def with_key(self, variable: str) -> str:
        """The line that keeps another key, and has a daemon that runs use it."""
        command = self.command("key", "set", variable)
        return f"{command} && {self.command('restart')}" if self.status is not None else command

    def remedy(self, error: OxydraError) -> str:
        """The line that ends what an error is about, or opens the place where it is to be ended."""
        if error.command:
            known, _, words = error.command.partition(" ")
            same = known == "oxydra-runner"
            return f"{runner_command()} {words}" if same else error.command
        if not isinstance(error, ConfigError) or not os.path.exists(error.file):
            return self.command("init")
        file = shlex.quote(error.file)
        if error.line and (meant := _meant(error.key)):
            wrong = error.key.rpartition(".")[2]
            return f"sed -i '{error.line}s/\\b{wrong}\\b/{meant}/' {file}"
        return f"${{EDITOR:-vi}} +{error.line or 1} {file}"

    def of(self, finding: Finding) -> Finding:
        """The finding as this user's."""
        return replace(finding, user=self.user)


def _meant(key: str) -> str:
    """The last part of a key that there is not, as it was probably meant; "" for one there is."""
    path = tuple(key.split("."))
    if not re.fullmatch(r"\w+", path[-1]) or any(find(each, path) for each in SCHEMAS.values()):
        return ""
    parts = {
        part for each in SCHEMAS.values() for full, _ in all_keys(each) for part in full.split(".")
    }
    if path[-1] in parts:  # it belongs somewhere else
        return ""
    near = difflib.get_close_matches(path[-1], sorted(parts), 1)
    return near[0] if near else ""


def runner_command(*words: str) -> str:
    """`oxydra-runner` with these words, named so that this machine's shell finds it."""
    name = "oxydra-runner"
    beside = Path(sys.argv[0]).absolute().with_name(name)
    if shutil.which(name) is None and beside.is_file():
        name = str(beside)
    return shlex.join([name, *words])


def install(*packages: str) -> str:
    """The line that has this system's package manager install something."""
    name, words = next(
        (found for found in INSTALLERS if shutil.which(found[0])), ("apt-get", "install -y")
    )
    root = "sudo " if os.geteuid() != 0 and name != "brew" else ""
    return f"{root}{name} {words} {shlex.join(packages)}"
