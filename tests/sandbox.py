"""A shell guest for tests: started as the runner starts it, spoken to as the agent guest does.

At the level `container+cage` it is a container, at `microvm+cage` a virtual machine, else a child
of this process.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from oxydra.cage import descendants
from oxydra.config import Isolation, Mounts
from oxydra.config.egress import EgressLimits, EgressPolicy
from oxydra.config.schema import GuestImagesConfig, ResourcesConfig
from oxydra.errors import OxydraError
from oxydra.threads import CancelToken
from oxydra.tiers import registry
from oxydra.tiers.base import ShellSpec
from oxydra.tools.shell_client import Ran, ShellClient
from oxydra.types import Folder
from tests.conftest import docker_missing, microvm_missing
from tests.docker_images import agent_image, shell_image
from tests.microvm_images import with_machines

# One for each process of tests that run side by side: a limit of processes counts a user's own.
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
UID = 61777 + WORKER if os.geteuid() == 0 else os.geteuid()


def isolation(folder: Path, images: bool = True, **resources: float) -> Isolation:
    """What a user's guests get who have set nothing else, with the `images` of this checkout."""
    made = {"agent": agent_image(), "shell": shell_image()} if images else {}
    return Isolation(
        mounts=Mounts(*(folder / name for name in ("shared", "tmp", "vault"))),
        resources=ResourcesConfig(**resources),
        egress=EgressPolicy("none", (), EgressLimits(600, 50_000, 20_000)),
        guest_images=GuestImagesConfig(**made),
        shell_enabled=True,
    )


class Sandbox:
    """One guest at `level`; `folder` is its workspace."""

    def __init__(self, folder: Path, level: str, **options: object) -> None:
        self.folder = folder
        for name in ("shared", "tmp", "ipc"):
            (folder / name).mkdir(exist_ok=True)
            os.chown(folder / name, UID, UID if os.geteuid() == 0 else -1)
        if os.geteuid() == 0:  # pytest's folders are root's alone
            for parent in (folder, *folder.parents):
                parent.chmod(parent.stat().st_mode | 0o011)
        self.log = os.open(folder / "shell.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        tier = {"container+cage": "container", "microvm+cage": "micro_vm"}.get(level, "process")
        settings: dict[str, object] = {
            "uid": UID,
            "gid": UID if os.geteuid() == 0 else os.getegid(),
            "dedicated": os.geteuid() == 0,
            "env": {},
            "isolation": isolation(folder, images=tier == "container"),
            "levels": (level,),
            "folders": [
                Folder(name, str(folder / name), writable=True) for name in ("shared", "tmp")
            ],
            **options,
        }
        with with_machines() if tier == "micro_vm" else contextlib.nullcontext():
            self.process = registry.create(tier).start_shell(
                ShellSpec(
                    workspace=folder,
                    log=self.log,
                    **settings,
                )
            )
        self.client = ShellClient()
        self.client.connect(self.stream())
        self.number = 0

    def stream(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process.attach(theirs)
        return ours

    def run(
        self, command: str, seconds: float = 20, conversation: str = "c", token=None, **options
    ) -> Ran:
        self.number += 1
        request = options.pop("request_id", f"r{self.number}")
        token = token or CancelToken()
        return self.client.run(conversation, request, command, seconds, token, **options)

    def text(self, command: str, **options: object) -> str:
        return self.run(command, **options).output.decode()

    def processes_with(self, words: str) -> list[int]:
        """As the function of this name, of the guest alone."""
        return sorted({*processes_with(words)} & {*descendants(self.process.pid)})

    def close(self) -> None:
        self.client.close()
        self.process.stop()
        os.close(self.log)


IN_MACHINE = pytest.param("microvm+cage", marks=(pytest.mark.microvm, pytest.mark.slow))
"""The level for `parametrize`."""


@contextmanager
def sandbox(folder: Path, level: str, **options: object) -> Iterator[Sandbox]:
    box = Sandbox(folder, level, **options)
    try:
        yield box
    finally:
        box.close()


@cache
def missing(level: str) -> str:
    """Why this machine can't hold a level, found by trying; empty if it can."""
    if level == "container+cage" and docker_missing():
        return docker_missing()
    if level == "microvm+cage" and microvm_missing():
        return microvm_missing()
    with TemporaryDirectory() as folder:
        try:
            with sandbox(Path(folder), level) as box:
                return "" if box.text("echo works") == "works\n" else "bash does not answer"
        except OxydraError as error:
            return str(error)


def processes_with(words: str) -> list[int]:
    """The processes that have `words` in their command lines."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                line = Path("/proc", name, "cmdline").read_bytes()
            except OSError:
                continue
            if words.encode() in line.replace(b"\0", b" "):
                found.append(int(name))
    return found
