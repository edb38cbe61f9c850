"""What lies on the disk and on the network: who may read what, the port, the database, and what a
daemon that is no more has left. No thread.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import apsw

from oxydra.config import list_keys
from oxydra.doctor.base import Case, Finding
from oxydra.errors import OxydraError
from oxydra.runner.daemon import listen
from oxydra.runner.workspace import FOLDERS, AlreadyRunning
from oxydra.store import MIGRATIONS

PRIVATE = ("", "ipc", "audit")  # folders of a workspace that only its user may look into
SHARED = 0o077  # the rights of others
STALE = ("gateway-endpoint", "runner-control.sock")  # make a dead daemon look alive
TEMPORARY = re.compile(r"\.(gateway-|audit|bootstrap-|agent-|shell-).*")


# -------------------------------------------------------------------------------------- permissions


def permissions(case: Case) -> Iterator[Finding]:
    """Keys and workspaces are their user's alone, and the workspace can be written."""
    before = 0
    for found in (*_keys(case), *_folders(case)):
        before += 1
        yield found
    if not before:
        yield Finding("permissions", "healthy", f"{case.workspace.path} is yours alone")


def _keys(case: Case) -> Iterator[Finding]:
    home = case.settings.home
    with suppress(FileNotFoundError):
        for path in (home / "keys", *(home / "keys" / name for name in list_keys(home))):
            if path.lstat().st_mode & SHARED:
                yield _open(path, "holds a key, and can be read or written by others")


def _folders(case: Case) -> Iterator[Finding]:
    top = case.workspace.path
    for path in (top, *(top / name for name in FOLDERS)):
        try:
            state = path.lstat()
        except FileNotFoundError:
            detail = f"{path} is missing."
            yield Finding(
                "permissions", "degraded", detail, case.command("init"), case.workspace.prepare
            )
            return
        except NotADirectoryError:
            return
        where = shlex.quote(str(path))
        if not stat.S_ISDIR(state.st_mode):
            detail = f"{path} is not a folder."
            yield Finding("permissions", "down", detail, f"mv {where} {where}.old")
        elif os.geteuid() not in (0, state.st_uid):
            detail = f"{path} belongs to another user (uid {state.st_uid})."
            yield Finding("permissions", "down", detail, f"sudo chown -R $(id -u) {where}")
        elif os.statvfs(path).f_flag & os.ST_RDONLY:
            detail = f"{path} is on a file system that can only be read."
            yield Finding("permissions", "down", detail, f"mount -o remount,rw {_mount(path)}")
        elif state.st_mode & 0o700 != 0o700:
            detail = f"{path} can't be used by its owner (mode {stat.S_IMODE(state.st_mode):04o})."
            fix = partial(path.chmod, 0o700)
            yield Finding("permissions", "down", detail, f"chmod 700 {where}", fix)
        elif state.st_mode & SHARED and path.name in (top.name, *PRIVATE):
            yield _open(path, "can be looked into by others")


def _open(path: Path, what: str) -> Finding:
    """A finding about rights that others have; taking them away harms nobody."""
    mode = stat.S_IMODE(path.lstat().st_mode)
    detail = f"{path} {what} (mode {mode:04o})."
    fix = partial(path.chmod, mode & ~SHARED)
    return Finding("permissions", "degraded", detail, f"chmod go-rwx {shlex.quote(str(path))}", fix)


def _mount(path: Path) -> str:
    """Where the file system is mounted that holds a path."""
    while not path.is_mount():
        path = path.parent
    return shlex.quote(str(path))


# --------------------------------------------------------------------------------------------- port


def port(case: Case) -> Iterator[Finding]:
    """Whether the gateway can listen, where no daemon does."""
    wanted = case.settings.agent.gateway
    if case.status is not None:
        yield Finding("port", "healthy", str(case.status.get("gateway_endpoint", "")))
        return
    try:
        listen(wanted.port, wanted.listen).close()
    except OxydraError as error:
        source = case.settings.source("gateway.port")
        remedy = f"ss -ltnp 'sport = :{wanted.port}'"
        if source.line:
            file = shlex.quote(source.file)
            remedy = f"sed -i '{source.line}s/{wanted.port}/0/' {file}"
        yield Finding("port", "down", str(error), remedy)
    else:
        yield Finding("port", "healthy", f"{wanted.port or 'any free one'} can be listened on")


# ----------------------------------------------------------------------------------------- database


def database(case: Case) -> Iterator[Finding]:
    """Whether it is sound, where no daemon has it; a running one looks daily (`store`)."""
    path = case.workspace.database
    if case.status is not None or not path.exists():
        return
    try:
        with case.workspace.lock():
            yield _sound(path, case)
    except AlreadyRunning:
        return  # the check of what was left says who has it


def _sound(path: Path, case: Case) -> Finding:
    try:
        with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as db:
            said = [str(row[0]) for row in db.execute("PRAGMA quick_check(5)")]
            schema = int(db.execute("PRAGMA user_version").get)
    except apsw.Error as error:
        said, schema = [str(error)], 0
    if said != ["ok"]:
        detail = f"The database {path} is damaged: {'; '.join(said)}"
        return Finding("database", "down", detail, _put_back(path, case))
    if schema > len(MIGRATIONS):
        detail = f"The database was written by a newer Oxydra (schema {schema})."
        return Finding("database", "down", detail, "pip install --upgrade oxydra")
    return Finding("database", "healthy", f"sound, schema {schema}")


def _put_back(path: Path, case: Case) -> str:
    """Move a damaged database aside; the next start begins an empty one."""
    names = [shlex.quote(str(path) + end) for end in ("", "-wal", "-shm")]
    aside = shlex.quote(f"{path}.damaged")
    return f"mv {names[0]} {aside} && rm -f {names[1]} {names[2]}"


# -------------------------------------------------------------------------------------- left behind


def left_over(case: Case) -> Iterator[Finding]:
    """What makes a dead daemon look alive: files, processes, containers."""
    if case.status is not None:
        return
    workspace = case.workspace
    lock = workspace.internal / "daemon.lock"
    if lock.exists() and workspace.locked():
        pids = holders(lock)
        names = ", ".join(f"{pid} ({_name(pid)})" for pid in pids)
        detail = "No daemon answers, but its lock is held"
        detail += f" by what is left of one: {names}." if pids else "; nobody can be seen with it."
        kill = f"kill -KILL {' '.join(map(str, pids))}" if pids else case.command("stop")
        yield Finding("leftovers", "down", detail, kill)
        return
    if found := _files(workspace.ipc):
        detail = f"A daemon that ended has left {', '.join(path.name for path in found)}."
        remedy = shlex.join(["rm", "-f", *map(str, found)])
        yield Finding("leftovers", "degraded", detail, remedy, partial(_remove, found))
    containers = _containers(workspace.path) if case.settings.tier == "container" else []
    if containers:
        detail = f"A runner that was killed has left {len(containers)} containers."
        remedy = shlex.join(["docker", "rm", "-f", *containers])
        yield Finding("leftovers", "degraded", detail, remedy)
    if not found and not containers:
        yield Finding("leftovers", "healthy")


def _files(ipc: Path) -> list[Path]:
    """Sockets, endpoints and halves of files, in a folder that only the runner writes."""
    names = os.listdir(ipc) if ipc.is_dir() else []
    return [ipc / name for name in sorted(names) if name in STALE or TEMPORARY.match(name)]


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def holders(lock: Path) -> list[int]:
    """The processes that have a file open, as far as we may look."""
    wanted = lock.stat()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for each in (entry / "fd").iterdir():
                with suppress(OSError):
                    state = each.stat()
                    if (state.st_dev, state.st_ino) == (wanted.st_dev, wanted.st_ino):
                        found.append(int(entry.name))
                        break
    return sorted(found)


def _name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return "?"


def _containers(workspace: Path) -> list[str]:
    """Those of this workspace; empty where no engine can be asked."""
    from oxydra.tiers.container import leftovers
    from oxydra.tiers.engine import Engine

    try:
        with closing(Engine.find().client()) as client:
            return [str(each["Id"])[:12] for each in leftovers(client, workspace)]
    except OxydraError:
        return []
