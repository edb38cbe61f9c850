"""The container tier: each guest is a container of its own, without a network, on a local engine.

The two containers share nothing but the folders that both have. Into each goes one socket file, by
which the guest reaches its runner once, when it starts; then the file is gone. What a killed runner
left behind is found by the containers' labels and removed before a guest starts.

For each container one thread, `oxydra-container`, copies what the guest prints to its log, then
waits for its end; it ends with the container.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oxydra.config import Isolation
from oxydra.errors import OxydraError
from oxydra.frames import pack
from oxydra.threads import Service
from oxydra.tiers import images
from oxydra.tiers.base import GuestLog, GuestSpec, ShellSpec, ending, identities, opened
from oxydra.tiers.door import Door
from oxydra.tiers.engine import Engine, EngineError, forgiving, telling
from oxydra.tiers.shell_line import STOP_SECONDS, ShellLine
from oxydra.types import Folder, Json

if TYPE_CHECKING:
    from docker import APIClient
    from docker.types import Mount

log = logging.getLogger(__name__)

LEVEL = "container+cage"
USER_LABEL = "org.oxydra.user"
WORKSPACE_LABEL = "org.oxydra.workspace"  # the absolute path
RUN_LABEL = "org.oxydra.run"  # of one runner

CONNECT_SECONDS = 30.0  # that a guest has from its container's start to its connection
END_SECONDS = 10.0  # that the engine has to say how a killed container ended
SCRATCH_BYTES = 64 << 20  # of /var/tmp; it counts as memory
SHM_BYTES = 16 << 20
OPEN_FILES = 4096

RUN = "/run/oxydra"
CODE = "/opt/oxydra"  # in the images


class Container:
    """A container from its creation to its removal. `start` once, `remove` any number of times."""

    def __init__(self, engine: Engine, client: APIClient, identity: str, log: int) -> None:
        self._client = client
        self._identity = identity
        self._log = GuestLog(log)
        self._lock = threading.Lock()
        self._removed = False
        self._how = ""
        self._ended = threading.Event()
        self._door: Door | None = None
        self._watcher = engine.client()  # the thread's own
        self._output: Any = None
        self._service = Service("container", self._follow)
        self.pid = 0

    def start(self, through: Door) -> socket.socket:
        """Start it; returns the stream by which its guest has come through that door.

        Raises `OxydraError` if none comes.
        """
        self._door = through
        with telling("The container can't be started"):
            self._output = self._watcher.attach(self._identity, stream=True)
            self._client.start(self._identity)
        self._service.start()
        try:
            stream = through.accept(CONNECT_SECONDS)
        except TimeoutError as error:
            raise OxydraError(
                f"The guest did not reach its runner within {CONNECT_SECONDS:g} s.",
                remedy="Its log in the workspace may say why. An engine in a virtual machine, or "
                "another runtime than runc, does not carry its Unix socket.",
            ) from error
        except OSError as error:
            how = self._how or str(error.strerror or error)
            raise OxydraError(
                f"The guest's container ended before it was ready: {how}.",
                remedy="Its log in the workspace says why.",
            ) from error
        with telling("The container can't be looked at"):
            self.pid = int(self._client.inspect_container(self._identity)["State"]["Pid"])
        return stream

    def wait(self, seconds: float | None = None) -> str:
        """Block until it has ended; says how. Empty if it has not after `seconds`."""
        return self._how if self._ended.wait(seconds) else ""

    def remove(self) -> None:
        """End everything in it, at once, and forget it."""
        with self._lock:
            if self._removed:
                return
            self._removed = True
            with forgiving():
                self._client.kill(self._identity)
            if self._service.ident is not None:
                self._ended.wait(END_SECONDS)
            with forgiving():
                self._client.remove_container(self._identity, force=True, v=True)
            if self._output is not None:
                self._output.close()
            self._service.stop()
            self._client.close()
            self._watcher.close()
            self._log.close()

    # ------------------------------------------------------------------------------- its thread

    def _follow(self, _service: Service) -> None:
        try:
            with telling("The container can't be watched"):
                for said in self._output:
                    self._log.write(said)
                self._watcher.wait(self._identity)
                found = self._watcher.inspect_container(self._identity)
            self._how = how_it_ended(found)
        except EngineError as error:
            log.debug("a container can't be watched any more: %s", error)
            self._how = "the container engine went away"
        self._ended.set()
        if self._door is not None:
            self._door.wake()


def how_it_ended(found: Json) -> str:
    """`exit 1`, `killed by SIGKILL`, by what the engine says.

    It also says that memory ran out, but not when: a command may have met the limit long before.
    """
    state = found["State"]
    code = int(state["ExitCode"])
    how = ending(128 - code if 128 < code < 193 else code)
    if state.get("OOMKilled") and code == 137:
        limit = int(found["HostConfig"]["Memory"]) >> 20
        return f"{how}, after it had run out of memory (limit {limit} MiB)"
    return how


class ContainerGuest:
    """A started agent guest."""

    def __init__(self, container: Container, stream: socket.socket) -> None:
        self._container = container
        self.stream = stream
        self.pid = container.pid

    def wait(self) -> str:
        return self._container.wait()

    def kill(self) -> None:
        self._container.remove()


class ContainerShell(ShellLine):
    """A shell guest that is ready."""

    def __init__(self, container: Container, control: socket.socket) -> None:
        super().__init__(control, LEVEL)
        self._container = container
        self.pid = container.pid

    def wait(self) -> str:
        """Block until it has ended; says how."""
        return self._container.wait()

    def stop(self) -> None:
        """End it and everything it started."""
        self.hang_up()
        self._container.wait(STOP_SECONDS)
        self._container.remove()
        self.close()


class ContainerTier:
    """Starts the guests' images on the engine that DOCKER_HOST names."""

    name = "container"
    forwards = True
    as_owner = True
    shell_level = LEVEL

    def __init__(self) -> None:
        self._run = secrets.token_hex(8)
        self._found: Engine | None = None

    @property
    def _engine(self) -> Engine:
        if self._found is None:
            self._found = Engine.find()
        return self._found

    def guest_root(self, workspace: Path) -> str:
        """What the guest calls the workspace."""
        return "/"

    def guest_folders(self, folders: Sequence[Folder]) -> list[Folder]:
        return [replace(folder, at=folder.virtual) for folder in folders]

    def described(self, uid: int) -> Json:
        return {}

    def degraded(self) -> list[Json]:
        uncapped = self._engine.uncapped()
        if not uncapped:
            return []
        return [
            {
                "code": "totals_uncapped",
                "detail": f"The container engine can't limit {' and '.join(uncapped)} here: a "
                "guest can take all there is.",
            }
        ]

    def start(self, spec: GuestSpec) -> ContainerGuest:
        with _bootstrap(spec) as bootstrap:
            folders = {
                **{folder.virtual: (Path(folder.at), folder.writable) for folder in spec.folders},
                "/internal": (spec.workspace / "internal", True),
                f"{RUN}/bootstrap": (bootstrap, False),
            }
            arguments = ["--bootstrap-file", f"{RUN}/bootstrap"]
            arguments += ["--stream-socket", f"{RUN}/stream"]
            container, stream = self._start("agent", spec, folders, arguments)
        socket.send_fds(stream, [b"\0"], [spec.lock])
        return ContainerGuest(container, stream)

    def start_shell(self, spec: ShellSpec) -> ContainerShell:
        """At its one level, whatever the levels of `spec` are."""
        folders = {folder.virtual: (Path(folder.at), folder.writable) for folder in spec.folders}
        tops = {folder.root: folder.at for folder in spec.folders}
        folders |= {g.at: (Path(tops[g.root], g.path), g.writable) for g in spec.guards}
        arguments = ["--control", f"{RUN}/stream", "--cage", f"{CODE}/cage.py"]
        arguments += ["--egress", f"{CODE}/mux.py", f"{CODE}/egress-forwarder"]
        most = spec.isolation.resources.max_processes
        # the engine finds what it mounts by its path, and the guest then looks what that was
        with opened(spec) as (places, guards):
            guest = ContainerShell(*self._start("shell", spec, folders, arguments))
            try:
                guest.configure(
                    spec,
                    places,
                    identities(guards),
                    self._engine.user(spec.uid, spec.gid),
                    shell="/bin/bash",
                    attributes=True,
                    limits={"processes": most - most // 4},  # the rest is the guest's own
                )
            except BaseException:
                guest.stop()
                raise
        return guest

    # ---------------------------------------------------------------------------------- containers

    def _start(
        self,
        role: str,
        spec: GuestSpec | ShellSpec,
        folders: Mapping[str, tuple[Path, bool]],
        arguments: Sequence[str],
    ) -> tuple[Container, socket.socket]:
        """A new container of this role, and the stream to who is in it.

        `folders` are paths on the host by those inside, and whether they can be written to there.
        """
        engine = self._engine
        ipc = spec.workspace / "ipc"
        with contextlib.ExitStack() as undo:
            client = engine.client()
            undo.callback(client.close)
            image = image_of(client, role, spec.isolation)
            self._remove_leftovers(client, role, spec.workspace)
            way_in = Door(ipc, role, spec.uid, spec.gid)
            undo.callback(way_in.close)
            options = self._options(client, role, spec, folders, way_in.path)
            with telling(f"The {role} guest's container can't be made"):
                made = client.create_container(image, list(arguments), **options)
            undo.pop_all()
            container = Container(engine, client, made["Id"], spec.log)
            try:
                return container, container.start(way_in)
            except BaseException:
                way_in.close()
                container.remove()
                raise

    def _remove_leftovers(self, client: APIClient, role: str, workspace: Path) -> None:
        """What a killed runner of this workspace has left, and an earlier guest of this role."""
        for found in leftovers(client, workspace):
            labels = found["Labels"]
            if labels.get(images.ROLE_LABEL) != role and labels.get(RUN_LABEL) == self._run:
                continue
            log.info("removing the container %s, which was left behind", found["Id"][:12])
            remove(client, found["Id"])

    def _options(
        self,
        client: APIClient,
        role: str,
        spec: GuestSpec | ShellSpec,
        folders: Mapping[str, tuple[Path, bool]],
        way_in: Path,
    ) -> Json:
        from docker.types import LogConfig, Ulimit

        resources = spec.isolation.resources
        memory = resources.max_memory_mib << 20
        mounts = [_mount(path, inside, write) for inside, (path, write) in folders.items()]
        return {
            "name": f"oxydra-{spec.workspace.name}-{role}-{secrets.token_hex(4)}",
            "hostname": "oxydra",
            "user": "{}:{}".format(*self._engine.user(spec.uid, spec.gid)),
            "working_dir": "/",
            "environment": {"HOME": "/var/tmp"},
            "labels": {
                USER_LABEL: spec.workspace.name,
                WORKSPACE_LABEL: str(spec.workspace),
                RUN_LABEL: self._run,
                images.ROLE_LABEL: role,
            },
            "use_config_proxy": False,  # a proxy's address may hold a password
            "host_config": client.create_host_config(
                network_mode="none",
                ipc_mode="private",
                # in a namespace of the engine's the workspace's files would be somebody else's
                userns_mode="host" if self._engine.remapped else None,
                read_only=True,
                tmpfs={
                    "/run": "rw,nosuid,nodev,noexec,size=1m,mode=755",
                    "/var/tmp": f"rw,nosuid,nodev,exec,size={SCRATCH_BYTES},mode=1777",
                },
                shm_size=SHM_BYTES,
                mounts=[*mounts, _mount(way_in, f"{RUN}/stream", True)],
                cap_drop=["ALL"],
                security_opt=["no-new-privileges:true"],
                pids_limit=resources.max_processes,
                mem_limit=memory,
                memswap_limit=memory,  # with swap: none is left for it
                nano_cpus=self._engine.cpus(resources.max_vcpus),
                ulimits=[
                    Ulimit(name="core", soft=0, hard=0),
                    Ulimit(name="msgqueue", soft=0, hard=0),
                    Ulimit(name="nofile", soft=OPEN_FILES, hard=OPEN_FILES),
                ],
                init=True,
                log_config=LogConfig(type=LogConfig.types.NONE),
                restart_policy={"Name": "no"},
            ),
        }


def image_of(client: APIClient, role: str, isolation: Isolation) -> str:
    """The image's name, once it is known to be there and of this version. Raises `OxydraError`."""
    from docker.errors import NotFound

    given = isolation.guest_images
    name = (given.agent if role == "agent" else given.shell) or images.default_reference(role)
    labels: Mapping[str, str] | None = None
    with telling(f"The image {name} can't be looked at"), contextlib.suppress(NotFound):
        labels = client.inspect_image(name)["Config"].get("Labels") or {}
    images.check(role, name, labels, given.extra_packages)
    return name


def missing(isolation: Isolation) -> OxydraError | None:
    """What keeps the guests from being made: no engine, no image; None if nothing does."""
    try:
        client = Engine.find().client()
        try:
            for role in images.REPOSITORIES:
                image_of(client, role, isolation)
        finally:
            client.close()
    except OxydraError as error:
        return error
    return None


def leftovers(client: APIClient, workspace: Path) -> list[Json]:
    """The containers of this workspace, running or not. Raises `EngineError`."""
    labels = [f"{USER_LABEL}={workspace.name}", f"{WORKSPACE_LABEL}={workspace}"]
    with telling("The container engine can't list containers"):
        found: list[Json] = client.containers(all=True, filters={"label": labels})
    return found


def remove(client: APIClient, identity: str) -> None:
    """End a container and wait until it is gone. Raises `EngineError`."""
    from docker.errors import APIError, NotFound

    with telling("A container that was left behind can't be removed"):
        try:
            client.remove_container(identity, force=True, v=True)
        except NotFound:
            return
        except APIError as error:
            if error.status_code != 409:  # it is being removed already
                raise
            with contextlib.suppress(NotFound):
                client.wait(identity, timeout=END_SECONDS, condition="removed")


def _mount(path: Path, inside: str, writable: bool) -> Mount:
    from docker.types import Mount

    return Mount(inside, str(path), type="bind", read_only=not writable)


@contextlib.contextmanager
def _bootstrap(spec: GuestSpec) -> Iterator[Path]:
    """A file with the envelope that only the guest's user can read; there until the guest has come
    through its door, and in the container as long as that lives.
    """
    path = spec.workspace / "ipc" / f".bootstrap-{secrets.token_hex(8)}"
    try:
        out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o400)
        with os.fdopen(out, "wb") as file:
            file.write(pack("bootstrap", spec.envelope.to_json()))
            if os.geteuid() == 0:
                os.fchown(file.fileno(), spec.uid, spec.gid)
        yield path
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
