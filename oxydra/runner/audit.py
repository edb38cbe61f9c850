"""What a guest left behind in the folders it can write, and that could bite whoever uses them on
the host.

Nothing is run, followed or changed. New are programs that were not there, or were another, at the
last audit; what it saw is kept in `ipc/audit.json`, which no guest can write. No thread.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from oxydra.errors import OxydraError
from oxydra.policy.paths import visible
from oxydra.runner.workspace import Workspace, read_small
from oxydra.types import Json
from oxydra.walk import Entry, Walk, is_repository, opened

STATE = "audit.json"
MAX_STATE = 32 << 20  # bytes of it
MAX_FINDINGS = 10_000
MAX_CONFIG = 256 << 10  # bytes of a `.git/config`
MAX_KEY = 500  # characters of one that is looked at closely

HEADER = re.compile(r'\[\s*([\w.-]+)\s*(?:"((?:[^"\\]|\\.)*)")?\s*\]\s*')
SETTING = re.compile(r"([A-Za-z][\w-]*)\s*(?:=\s*(.*))?$")
BOOLEANS = ("", "true", "false", "yes", "no", "on", "off", "1", "0")
ALWAYS = re.compile(  # keys of git that name a program, a file of more keys, or another place
    r"core\.(hookspath|sshcommand|editor|pager|askpass|gitproxy|alternaterefscommand)"
    r"|(filter|diff|merge|difftool|mergetool|browser|man|guitool)\..*"
    r"\.(clean|smudge|process|command|textconv|driver|cmd)"
    r"|diff\.external|sequence\.editor|gpg\.(.*\.)?program|pager\..*|include(if\..*)?\.path"
    r"|url\..*\.(insteadof|pushinsteadof)|remote\..*\.(uploadpack|receivepack|vcs|proxy)"
    r"|credential\.(.*\.)?helper|uploadpack\.packobjectshook"
    r"|protocol\..*allow|http\.(.*\.)?proxy|trailer\..*\.(command|cmd)|sendemail\..*"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """`kind` is a stable word; `path` is as the model sees it; `detail` says what is the matter."""

    kind: str
    path: str
    detail: str

    def to_json(self) -> Json:
        return {"kind": self.kind, "path": self.path, "detail": self.detail}


Programs = dict[str, list[int]]
"""Of each program seen: inode, size, time of its last change in ns."""


def audit(workspace: Workspace) -> list[Finding]:
    """Look at all that commands can write, and remember the programs. Raises `OxydraError` if a
    folder can't be read.
    """
    known = _known(workspace)
    found: list[Finding] = []
    programs: Programs = {}
    for name, folder in writable(workspace):
        try:
            with opened(folder) as top:
                walk = Walk(top)
                for entry in walk:
                    path = f"{name}/{entry.path}"
                    found += (Finding(kind, visible(path), d) for kind, d in _look(entry))
                    if _is_program(entry):
                        state = entry.state
                        programs[path] = [state.st_ino, state.st_size, state.st_ctime_ns]
        except FileNotFoundError:
            continue  # a workspace that was never started
        except OSError as error:
            raise OxydraError(f"{folder} can't be looked at: {error.strerror}.") from error
        found += (Finding("not_seen", visible(f"{name}/{path}"), why) for path, why in walk.skipped)
    for path, now in programs.items():
        if (before := known.get(path)) != now:
            what = "was changed since the last audit" if before else "is new since the last audit"
            found.append(Finding("new_program", visible(path), what))
    _remember(workspace, programs)
    found.sort(key=lambda finding: (finding.kind, finding.path))
    if len(found) > MAX_FINDINGS:
        more = Finding("not_seen", "/", f"{len(found) - MAX_FINDINGS} more findings are left out")
        return [*found[:MAX_FINDINGS], more]
    return found


def writable(workspace: Workspace) -> Iterator[tuple[str, Path]]:
    """The folders that commands can write, each with the path that the model sees."""
    for folder in workspace.folders:
        if folder.writable:
            yield folder.virtual, Path(folder.at)


# ------------------------------------------------------------------------------------- one entry


def _look(entry: Entry) -> Iterator[tuple[str, str]]:
    mode = entry.state.st_mode
    if stat.S_ISLNK(mode):
        target = os.readlink(entry.name, dir_fd=entry.folder)
        if leads_out(entry.path, target):
            yield "outward_link", f"leads to {visible(target)}"
    elif stat.S_ISREG(mode):
        if entry.state.st_nlink > 1:
            yield "hard_link", f"has {entry.state.st_nlink} names; the others may lie elsewhere"
        if mode & (stat.S_ISUID | stat.S_ISGID):
            yield "setuid", f"runs as its owner or group (mode {stat.S_IMODE(mode):04o})"
    elif not entry.is_folder:
        yield "special_file", f"is a {_special(mode)}"
    yield from _look_at_name(entry)


def _special(mode: int) -> str:
    kinds = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFBLK: "block device"}
    return kinds.get(stat.S_IFMT(mode), "character device")


def _look_at_name(entry: Entry) -> Iterator[tuple[str, str]]:
    """What programs on the host act upon by its name."""
    parts = entry.path.split("/")
    name, parent = parts[-1], parts[-2] if len(parts) > 1 else ""
    in_git = any(part.endswith(".git") for part in parts[:-1])
    if name == ".envrc":
        yield "envrc", "direnv runs it in this folder"
    elif parent == ".vscode" and name in ("tasks.json", "settings.json", "launch.json"):
        yield "editor_task", "an editor may run what it says"
    elif name == ".git" and not entry.is_folder:
        yield "git_config", "sends git to a repository elsewhere"
    elif in_git and parent == "hooks" and not entry.is_folder and not name.endswith(".sample"):
        yield "git_hook", "git runs it"
    elif _is_git_config(entry, in_git):
        if entry.state.st_size > MAX_CONFIG:
            yield "not_seen", "is too long for a configuration of git"
        for key, value in dangerous_keys(_read(entry)):
            yield "git_config", f"{key} = {value}"


def _is_git_config(entry: Entry, in_git: bool) -> bool:
    if entry.name == ".gitmodules":
        return True
    if entry.name not in ("config", "config.worktree"):
        return False
    return in_git or is_repository(entry.folder)


def leads_out(path: str, target: str) -> bool:
    """Whether a link at `path` may lead out of the top. One that climbs after it went down counts:
    what it went down through may itself be a link.
    """
    if target.startswith("/"):
        return True
    parts = [part for part in target.split("/") if part not in ("", ".")]
    climbs = len([part for part in parts if part == ".."])
    return climbs > path.count("/") or ".." in parts[climbs:]


def _is_program(entry: Entry) -> bool:
    mode = entry.state.st_mode
    return stat.S_ISREG(mode) and bool(mode & 0o111)


def _read(entry: Entry) -> str:
    if not stat.S_ISREG(entry.state.st_mode):
        return ""
    try:
        with open(entry.open(), "rb") as file:
            return file.read(MAX_CONFIG).decode("utf-8", "replace")
    except OSError:
        return ""


def dangerous_keys(text: str) -> Iterator[tuple[str, str]]:
    """The settings of a git configuration by which a repository makes git run a program, read
    another file or go elsewhere: `section.name.key` and value, fit to be shown.
    """
    section = ""
    for line in re.sub(r"\\\r?\n", "", text).splitlines():
        line, at = line.strip(), 0
        while match := HEADER.match(line, at):
            section = match[1].lower() + (f".{match[2]}" if match[2] is not None else "")
            at = match.end()
        match = SETTING.match(line, at)
        if match is None:
            continue
        key, value = f"{section}.{match[1].lower()}", (match[2] or "").strip()
        lower = value.strip('"').lower()
        if (
            len(key) > MAX_KEY
            or ALWAYS.fullmatch(key.lower())
            or (key == "core.fsmonitor" and lower not in BOOLEANS)
            or (re.fullmatch(r"alias\..*|submodule\..*\.update", key) and lower.startswith("!"))
        ):
            yield visible(key[:MAX_KEY]), visible(value[:200])


# ------------------------------------------------------------------------------------- its memory


def _known(workspace: Workspace) -> Programs:
    try:
        table = json.loads(read_small(workspace.ipc / STATE, MAX_STATE))
    except (OSError, ValueError, RecursionError):
        return {}  # then everything is new
    return table if isinstance(table, dict) else {}


def _remember(workspace: Workspace, programs: Programs) -> None:
    try:
        workspace.write_ipc(STATE, json.dumps(programs))
    except FileNotFoundError:
        return  # a workspace that was never started has no programs
    except OSError as error:
        raise OxydraError(
            f"What the audit saw can't be kept in {workspace.ipc}: {error.strerror}."
        ) from error
