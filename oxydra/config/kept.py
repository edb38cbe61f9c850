"""Which files make up a configuration: what a backup takes along, and where a restore puts it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import tomli

from oxydra.config import files
from oxydra.config.load import SYSTEM, layers
from oxydra.errors import ConfigError

LayerName: TypeAlias = Literal["system", "home", "folder"]
LAYERS: tuple[LayerName, ...] = ("system", "home", "folder")
RUNNER_FILE = "runner.toml"
NOT_KEPT = ("trusted.json", files.STAMP)  # what only means something on the machine it is on


@dataclass(frozen=True, slots=True)
class Kept:
    """One layer: its files by their path in it, and those that it names and that lie elsewhere."""

    name: LayerName
    folder: Path
    files: dict[str, Path]
    elsewhere: tuple[Path, ...]


def kept(config: Path | None = None, also: Sequence[str] = (), system: Path = SYSTEM) -> list[Kept]:
    """The layers that have files, for a `config` as `load` takes it; `also` are names of further
    files of the person's own layer. Raises `ConfigError`.
    """
    home = files.config_home()
    found = []
    for layer in layers(config, Path.cwd(), system, home):
        name: LayerName = "folder"
        if layer.folder in (system, home):
            name = "system" if layer.folder == system else "home"
        inside: dict[str, Path] = {}
        elsewhere: list[Path] = []
        for path in files.configuring(layer.folder, layer.runner_file):
            at = os.path.relpath(path, layer.folder)
            if path == layer.runner_file:
                inside[RUNNER_FILE] = path
            elif path.name == RUNNER_FILE and path.parent == layer.folder:
                continue  # not the one that is in force
            elif at.startswith(".."):
                elsewhere.append(path)
            else:
                inside[at] = path
        if name == "home":
            inside |= {one: home / one for one in also if os.path.isfile(home / one)}
        if inside:
            found.append(Kept(name, layer.folder, inside, tuple(elsewhere)))
    return found


def place(name: LayerName, folder: Path, system: Path = SYSTEM) -> Path:
    """Where a layer's files belong on this machine; `folder` is that of `--config`."""
    return {"system": system, "home": files.config_home(), "folder": folder}[name]


def may_be_kept(path: str) -> bool:
    """Whether a file of a layer can be part of a configuration: not a key, nor what says whom to
    trust.
    """
    first = path.partition("/")[0]
    return first not in ("keys", *NOT_KEPT) and not path.endswith(NOT_KEPT)


def set_root(text: str, root: str) -> str:
    """A runner.toml with another `workspace_root`. Raises `ConfigError` where that did not work."""
    line = f"workspace_root = {json.dumps(root)}"
    changed, count = re.subn(r"(?m)^[ \t]*workspace_root[ \t]*=.*$", lambda _: line, text, count=1)
    if not count:
        changed = f"{line}\n{text}"
    try:
        if tomli.loads(changed)["workspace_root"] == root:
            return changed
    except (tomli.TOMLDecodeError, KeyError):
        pass
    raise ConfigError(
        "workspace_root can't be set in runner.toml.", remedy=f"Write it there yourself: {line}."
    )
