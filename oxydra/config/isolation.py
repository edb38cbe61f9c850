"""What isolates one user's guests, decided and checked: folders, resources, egress, images.

`isolation` is asked once, when a daemon starts. It looks at the folders that `[mounts]` names: a
path must not hand a guest the keys, the configuration, another user's files or the runner's own.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from oxydra.config.egress import EgressPolicy, effective_egress
from oxydra.config.fields import MOUNT
from oxydra.config.load import Config
from oxydra.config.schema import ExtraMount, GuestImagesConfig, ResourcesConfig
from oxydra.errors import ConfigError

if TYPE_CHECKING:  # importing it takes longer than the rest of this package
    from oxydra.types import Folder

SYSTEM_FOLDERS = ("/proc", "/sys", "/dev", "/run", "/boot")
OWN_FOLDERS = ("shared", "tmp", "vault")


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder of the user's own, which the model sees as `/mnt/<name>`."""

    path: Path
    name: str
    writable: bool

    @property
    def variable(self) -> str:
        """What commands call it by; the same for names that are alike but for their punctuation."""
        return self.folder().variable

    def folder(self) -> Folder:
        from oxydra.types import Folder

        return Folder(f"mnt/{self.name}", str(self.path), self.writable, guarded=True)


@dataclass(frozen=True, slots=True)
class Mounts:
    """Where a user's folders are on the host; real paths. The model sees the first three as
    `/shared`, `/tmp` and `/vault`.
    """

    shared: Path
    tmp: Path
    vault: Path
    extra: tuple[Mount, ...] = ()

    @classmethod
    def of(cls, workspace: Path) -> Mounts:
        """The workspace's own."""
        return cls(workspace / "shared", workspace / "tmp", workspace / "vault")

    def folders(self, workspace: Path) -> list[Folder]:
        """All of them, where they are on the host; those that are not the workspace's own are
        guarded.
        """
        from oxydra.types import Folder

        usual = (("shared", self.shared), ("tmp", self.tmp), ("vault", self.vault))
        return [
            *(Folder(root, str(p), root != "vault", p.parent != workspace) for root, p in usual),
            *(mount.folder() for mount in self.extra),
        ]


@dataclass(frozen=True, slots=True)
class Isolation:
    """What the runner and its tiers need to know of the configuration. `shell_enabled` is what both
    agent.toml and the user's file say.
    """

    mounts: Mounts
    resources: ResourcesConfig
    egress: EgressPolicy
    guest_images: GuestImagesConfig
    shell_enabled: bool


def isolation(config: Config) -> Isolation:
    """Raises `ConfigError`, with file and line, for a folder that must not be mounted and for a
    user's file that would widen what runner.toml allows.
    """
    return Isolation(
        mounts=mounts(config),
        resources=config.user.resources,
        egress=effective_egress(config),
        guest_images=config.runner.guest_images,
        shell_enabled=config.agent.tools.shell.enabled and config.user.behavior.shell_enabled,
    )


def mounts(config: Config) -> Mounts:
    """The folders of the user's, those of the workspace where no other is named."""
    given = config.user.mounts
    workspace = config.workspace_root / config.user_id
    checked: dict[str, Path] = {}
    found: dict[str, Path] = {}
    for name in OWN_FOLDERS:
        path = getattr(given, name)
        found[name] = workspace / name
        if path:
            found[name] = checked[name] = _checked(config, name, path, writable=name != "vault")
    extra: list[Mount] = []
    for entry in given.extra:
        mount = _extra(config, entry)
        if mount.variable in {other.variable for other in extra}:
            raise _refused(config, "extra", f"there are two mounts named {mount.name!r}", NAME_IT)
        checked[mount.name] = mount.path
        extra.append(mount)
    _check_apart(config, checked)
    return Mounts(**found, extra=tuple(extra))


NAME_IT = 'Give it a name of its own: { path = "…", name = "…" }.'


def _extra(config: Config, entry: ExtraMount) -> Mount:
    path = _checked(config, "extra", entry.path, writable=entry.mode == "rw")
    name = entry.name or path.name
    if not re.fullmatch(MOUNT, name):
        raise _refused(config, "extra", f"{name[:64]!r} can't be a mount's name", NAME_IT)
    if name.lower() == "skills":
        raise _refused(config, "extra", f"the name {name!r} is taken by skills", NAME_IT)
    if name in OWN_FOLDERS:
        raise _refused(config, "extra", f"the name {name!r} is taken by the workspace", NAME_IT)
    return Mount(path, name, entry.mode == "rw")


def _checked(config: Config, name: str, text: str, *, writable: bool) -> Path:
    """The real path of a folder that a guest may have."""
    source = config.source(f"mounts.{name}", "user")
    start = Path(source.file).parent
    path = Path(os.path.realpath(start / os.path.expanduser(text)))
    try:
        state = path.stat()
    except OSError as error:
        raise _refused(
            config, name, f"{path} can't be used: {error.strerror}", "Make it, or correct the path."
        ) from None
    if not stat.S_ISDIR(state.st_mode):
        raise _refused(config, name, f"{path} is no folder", "Name a folder.")
    caller = os.geteuid()
    if state.st_uid != caller and caller != 0 and (writable or state.st_uid != 0):
        raise _refused(
            config, name, f"{path} belongs to another user (uid {state.st_uid})", "Name your own."
        )
    if why := _why_not(config, name, path):
        raise _refused(config, name, f"{path} {why}", "Name a folder that holds nothing else.")
    return path


def _why_not(config: Config, name: str, path: Path) -> str:
    """Why a guest must not have this folder; "" if it may."""
    home = Path(os.path.realpath(Path.home()))
    if home.is_relative_to(path):
        return "is the whole home folder, or holds it"
    if any(path.is_relative_to(folder) for folder in SYSTEM_FOLDERS):
        return "is part of the running system"
    for folder in _configuring(config):
        if folder.is_relative_to(path):
            return f"holds the configuration in {folder}"
    if path.is_relative_to(os.path.realpath(config.home)):
        return "lies where the keys are"
    root = Path(os.path.realpath(config.workspace_root))
    if root.is_relative_to(path):
        return "holds the workspaces"
    if path.is_relative_to(root) and path != root / config.user_id / name:
        return f"lies among the workspaces in {root}"
    return ""


def _configuring(config: Config) -> set[Path]:
    """The folders that the configuration came from, and where the keys are."""
    folders = {config.home}
    for merged in config.values.values():
        for source in merged.sources.values():
            if source.folder:
                folders |= {source.folder, Path(source.file).parent}
    return {Path(os.path.realpath(folder)) for folder in folders}


def _check_apart(config: Config, folders: dict[str, Path]) -> None:
    """No folder in another: what is read-only or private in one would not be in the other."""
    for name, path in folders.items():
        for other, outer in folders.items():
            if name != other and path.is_relative_to(outer):
                key = name if name in OWN_FOLDERS else "extra"
                what = f"{path} lies in {outer}, which is mounted as {other!r}"
                raise _refused(config, key, what, "Mount one of them.")


def _refused(config: Config, name: str, what: str, remedy: str) -> ConfigError:
    source = config.source(f"mounts.{name}", "user")
    return ConfigError(
        f"mounts.{name}: {what}.",
        remedy=remedy,
        file=source.file,
        line=source.line,
        key=f"mounts.{name}",
    )
