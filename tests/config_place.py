"""A machine's configuration in a temporary folder, for the tests of config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from oxydra import config
from oxydra.catalog import Catalog
from oxydra.errors import ConfigError

RUNNER = '[users.alice]\nconfig_path = "users/alice.toml"\n'


def write(path: Path, text: str = "", mode: int = 0o600) -> Path:
    for folder in reversed(path.parents):
        if not folder.exists():
            folder.mkdir(mode=0o700)
    path.write_text(text)
    path.chmod(mode)
    return path


class Place:
    """A machine's configuration: `system`, `home`, and a current folder with `.oxydra`."""

    def __init__(self, base: Path) -> None:
        self.system = base / "etc"
        self.home = base / "home" / ".config" / "oxydra"
        self.here = base / "work"
        self.local = self.here / ".oxydra"
        self.env = {"HOME": str(base / "home")}
        self.here.mkdir(mode=0o700)

    def local_files(self, agent: str = "", runner: str = RUNNER, user: str = "") -> Path:
        write(self.local / "agent.toml", agent)
        write(self.local / "users" / "alice.toml", user)
        return write(self.local / "runner.toml", runner)

    def load(self, named: Path | None = None, **more: Any) -> config.Config:
        """As if the program were started in `here`."""
        return config.load(
            named, env=self.env, folder=self.here, system=self.system, **{"user": None, **more}
        )

    def load_local(self, agent: str = "", **more: Any) -> config.Config:
        return self.load(self.local_files(agent), **more)

    def refused(self, agent: str, **more: Any) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            self.load_local(agent, **more)
        return caught.value

    def select(self, settings: config.Config, **more: Any) -> config.Selection:
        return config.select(
            settings, Catalog.load(), self.env, **{"probe": lambda _url: False, **more}
        )
