"""What stays as it is in a folder of the person's own that commands can write.

Programs on the host act upon some files by their name: git runs what is in `.git/hooks` and what
`.git/config` says, direnv `.envrc`, an editor what is in `.vscode`. A tier with mounts puts each
over itself, read-only; where that can't be done the whole folder is. No thread.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from oxydra.policy.paths import visible
from oxydra.tiers.base import Guard
from oxydra.types import Folder
from oxydra.walk import Entry, Walk, is_repository, opened

MAX_GUARDS = 200  # mounts in one folder
BY_NAME = (".envrc", ".vscode")
OF_GIT = ("hooks", "config", "config.worktree")


class Unguardable(Exception):
    """Why what is in a folder can't be guarded, in words that follow its name."""


def guards(folder: Folder) -> list[Guard]:
    """The mounts that a folder needs, outermost first. Raises `Unguardable`.

    The folders on the way to what is guarded are mounted on themselves: one that is no mount could
    be renamed, and another put in its place. A repository without a folder for hooks gets an empty
    one, or whoever can write could make it.
    """
    found: dict[str, Guard] = {}
    try:
        with opened(Path(folder.at)) as top:
            walk = Walk(top)
            for entry in walk:
                if _is_guarded(entry):
                    found[entry.path] = Guard(folder.root, entry.path)
                if hooks := _made_hooks(entry):
                    found[hooks] = Guard(folder.root, hooks)
    except OSError as error:
        raise Unguardable(f"can't be looked at: {error.strerror}") from error
    if not walk.complete:
        raise Unguardable("can't be seen whole")
    inside = {p for p in found if any(f"{p}/".startswith(f"{o}/") for o in found if o != p)}
    for path in set(found) - inside:
        for at in (i for i, char in enumerate(path) if char == "/"):
            way = path[:at]
            found.setdefault(way, Guard(folder.root, way, writable=True))
    needed = [found[path] for path in sorted(set(found) - inside)]
    if len(needed) > MAX_GUARDS:
        raise Unguardable(f"holds more than {MAX_GUARDS} things that programs act upon")
    return needed


def _is_guarded(entry: Entry) -> bool:
    """Raises `Unguardable` for what can't be mounted over, because it is a link or a device."""
    name = entry.name.casefold()  # a file system may not tell the cases apart
    parents = entry.path.casefold().split("/")[:-1]
    of_git = parents[-1:] == [".git"] or (name == "config.worktree" and ".git" in parents)
    of_git = name in OF_GIT and (of_git or is_repository(entry.folder))
    if not (of_git or name in BY_NAME or (name == ".git" and not entry.is_folder)):
        return False
    if not (entry.is_folder or stat.S_ISREG(entry.state.st_mode)):
        raise Unguardable(f"holds {visible(entry.path)!r}, which is neither a file nor a folder")
    return True


def _made_hooks(entry: Entry) -> str:
    """Make a folder for hooks if this is the `HEAD` of a repository that has none; its path. Raises
    OSError.
    """
    if entry.name != "HEAD" or not is_repository(entry.folder):
        return ""
    try:
        os.mkdir("hooks", 0o755, dir_fd=entry.folder)
    except FileExistsError:
        return ""
    if os.geteuid() == 0:
        owner = os.fstat(entry.folder)
        os.chown(
            "hooks",
            owner.st_uid,
            owner.st_gid,
            dir_fd=entry.folder,
            follow_symlinks=False,
        )
    return entry.path.removesuffix("HEAD") + "hooks"
