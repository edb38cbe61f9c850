"""The container engine: where it is, what it can do, and what its refusals mean to a person.

`Engine.find` follows DOCKER_HOST. A guest speaks to its runner through a Unix socket that is
mounted into its container, and such a socket works on one kernel only: an engine on another
machine, or in a virtual machine on this one, is refused with that reason. No thread runs here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from oxydra.errors import OxydraError
from oxydra.types import Json

if TYPE_CHECKING:
    from docker import APIClient

SOCKET = "/var/run/docker.sock"
ENGINE_SECONDS = 60.0  # for one answer; a busy disk makes creating a container slow
PROCESS_TIER = 'or set default_tier = "process"'

CAPS = {  # what `info` says, by what a guest could otherwise use up
    "MemoryLimit": "memory",
    "PidsLimit": "processes",
    "CpuCfsQuota": "CPU time",
}


class EngineError(OxydraError):
    """The container engine can't be used, or refused."""

    code = "engine"


class Engine:
    """A usable engine. `info` is what it said of itself."""

    def __init__(self, path: str, version: str, info: Json) -> None:
        self.path = path
        self._version = version
        self.info = info
        options = " ".join(info.get("SecurityOptions") or ())
        self.rootless = "name=rootless" in options
        self.remapped = "name=userns" in options

    @classmethod
    def find(cls) -> Engine:
        """Raises `EngineError` with the remedy."""
        path = socket_path()
        check_socket(path)
        with telling("The container engine did not say what it is"):
            client = _client(path, "auto")
            try:
                engine = cls(path, client.api_version, client.info())
            finally:
                client.close()
        kernel = str(engine.info.get("KernelVersion", ""))
        if kernel != os.uname().release:
            where = engine.info.get("OperatingSystem") or "a virtual machine"
            raise EngineError(
                f"The container engine runs on another kernel ({where}, {kernel}), and a guest's "
                "Unix socket does not cross into it.",
                remedy="Use an engine on this machine itself (Docker Desktop and Colima run "
                f"in a virtual machine), {PROCESS_TIER}.",
            )
        return engine

    def client(self) -> APIClient:
        """A client for one thread. Raises `EngineError`."""
        check_socket(self.path)
        with telling("The container engine does not answer"):
            return _client(self.path, self._version)

    def user(self, uid: int, gid: int) -> tuple[int, int]:
        """Who in a container is this user and group out here."""
        return (0, 0) if self.rootless else (uid, gid)

    def cpus(self, wanted: float) -> int:
        """In billionths, and no more than there are."""
        return int(min(wanted, float(self.info.get("NCPU") or wanted)) * 1e9)

    def uncapped(self) -> list[str]:
        """What this engine can't limit."""
        return [what for name, what in CAPS.items() if self.info.get(name) is False]


def socket_path() -> str:
    """Where DOCKER_HOST says that the engine is. Raises `EngineError` for what can't work."""
    host = os.environ.get("DOCKER_HOST", "")
    if not host:
        mine = os.path.join(os.environ.get("XDG_RUNTIME_DIR", "/nonexistent"), "docker.sock")
        return mine if not os.path.exists(SOCKET) and os.path.exists(mine) else SOCKET
    scheme, _, rest = host.partition("://")
    if scheme == "unix" and rest.startswith("/"):
        return rest
    raise EngineError(
        f"DOCKER_HOST names an engine that is reached by {scheme or 'nothing'}://, and a guest's "
        "Unix socket does not cross a network.",
        remedy=f"Unset DOCKER_HOST or set it to unix:///path/of/a/local/socket, {PROCESS_TIER}.",
    )


def check_socket(path: str) -> None:
    """Raises `EngineError` that says what to do, unless something listens there."""
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(ENGINE_SECONDS)
            probe.connect(path)
    except PermissionError as error:
        raise EngineError(
            f"The container engine's socket {path} may not be used by this user.",
            remedy="Join its group (`sudo usermod -aG docker $USER`, then log in again; whoever "
            f"is in it can become root), or set up rootless Docker, {PROCESS_TIER}.",
            command="sudo usermod -aG docker $USER",
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTSOCK):
            raise EngineError(
                f"The container engine's socket {path} can't be reached: {error.strerror}."
            ) from error
        if shutil.which("dockerd") is None and "DOCKER_HOST" not in os.environ:
            raise EngineError(
                "No container engine is installed.",
                remedy=f"Install one (`sudo apt install docker.io`), {PROCESS_TIER}.",
                command="sudo apt install docker.io",
            ) from error
        raise EngineError(
            f"The container engine is not running: nothing answers at {path}.",
            remedy=f"Start it (`sudo systemctl start docker`), {PROCESS_TIER}.",
            command=f"{'sudo ' if os.geteuid() else ''}systemctl start docker",
        ) from error


def _client(path: str, version: str) -> APIClient:
    from docker import APIClient

    return APIClient(base_url=f"unix://{path}", version=version, timeout=int(ENGINE_SECONDS))


@contextlib.contextmanager
def telling(what: str) -> Iterator[None]:
    """Turn what docker-py raises inside into an `EngineError` that begins with `what`."""
    try:
        from docker.errors import APIError, DockerException, InvalidVersion
    except ImportError as error:
        raise EngineError(
            "The Python package docker is missing.", remedy="`pip install docker` adds it."
        ) from error
    try:
        yield
    except InvalidVersion as error:
        raise EngineError(
            f"The container engine is too old: {error}", remedy="Update it to 20.10 or newer."
        ) from error
    except APIError as error:
        raise _refusal(what, error) from error
    except (DockerException, OSError) as error:
        raise EngineError(
            f"{what}: {error}.", remedy="See whether it runs (`docker info`)."
        ) from error


def _refusal(what: str, error: Any) -> EngineError:
    said = str(error.explanation or error).strip().rstrip(".")
    if "no space left on device" in said.lower():
        return EngineError(
            f"{what}: its disk is full.",
            remedy="Free space below /var/lib/docker (`docker system df` shows what takes it).",
            code="disk_full",
        )
    return EngineError(f"{what}: {said[:500]}.", remedy="See whether `docker info` looks right.")


@contextlib.contextmanager
def forgiving() -> Iterator[None]:
    """Pass over that a container is gone, or not running, or its engine: for cleaning up."""
    from docker.errors import DockerException

    with contextlib.suppress(DockerException, OSError, EngineError):
        yield
