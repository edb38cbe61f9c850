"""Machines that have booted and wait for their guest, saved: what every start begins from.

A template is the memory of a machine, in a sparse file, and the state of its devices. It holds no
secret and nothing of a user: the machine has only loaded its programs. Restored, the file is mapped
privately, so that what a guest does not write is in the host's memory once.

    templates/<role>-<uid>-<key>/   memory, state, about.json

They belong to the user that QEMU runs as, who can change them: nobody else's guests start from
them. The key is made of all that a machine's state depends on. One is made when it is first needed,
under a lock, and removed when nobody used it for a while or what it was made of is gone. No thread
runs here.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from oxydra.config import Isolation
from oxydra.errors import OxydraError
from oxydra.log import PROGRESS
from oxydra.tiers import machine_images
from oxydra.tiers.qemu import ANSWER_SECONDS, BOOT_SECONDS, Machine, Memory, Shape
from oxydra.types import Json

log = logging.getLogger(__name__)

UNUSED_SECONDS = 14 * 86400.0
SAVED = ("memory", "state")
KEPT = ["x-ignore-shared"]  # QEMU's capability: shared memory is in its file already


def folder() -> Path:
    return machine_images.cache() / "templates"


def key(shape: Shape) -> str:
    """A short hash of what a saved machine depends on: the images, QEMU and its version, the
    accelerator, the processor's model and rate, and every device.
    """
    words = shape.arguments(("kernel", "initrd", "root"), ["path=x"] * shape.folders)
    told = [shape.images.identity, shape.accelerator.qemu, shape.accelerator.version, words]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def restored(
    shape: Shape,
    folders: list[tuple[int, bool]],
    user: tuple[int, int],
    output: int,
    held: tuple[int, ...] = (),
) -> Machine:
    """A machine that runs on from its template, which is made if there is none. Raises
    `OxydraError`.
    """
    place = _made(shape, user, output)
    with _opened(place, os.O_RDWR) as memory, _opened(place, os.O_RDONLY, "state") as state:
        machine = Machine(
            shape, folders, Memory(memory, shared=False), user, output, incoming=True, held=held
        )
        try:
            monitor = machine.monitor
            _ignore_shared(machine)
            monitor.do("getfd", state, fdname="state")
            monitor.do("migrate-incoming", uri="fd:state")
            monitor.await_migration()
            monitor.do("cont")
            monitor.close()
        except BaseException:
            machine.kill()
            raise
    return machine


def booted(
    shape: Shape,
    folders: list[tuple[int, bool]],
    user: tuple[int, int],
    output: int,
    held: tuple[int, ...] = (),
    *,
    memory: Memory | None = None,
) -> Machine:
    """A machine that was powered on, up to where a template is saved. Raises `OxydraError`."""
    machine = Machine(shape, folders, memory, user, output, held=held)
    try:
        machine.expect("booted", BOOT_SECONDS)
    except BaseException:
        machine.kill()
        raise
    return machine


def _made(shape: Shape, user: tuple[int, int], output: int) -> Path:
    """Where the template is."""
    place = folder() / f"{shape.role}-{user[0]}-{key(shape)}"
    if _usable(place):
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / f".{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _usable(place):  # else somebody else has made it meanwhile
            what = f"the {shape.role} guest's machine"
            log.info("%s boots once, to be saved, which takes some seconds", what, extra=PROGRESS)
            begun = time.monotonic()
            _make(shape, place, user, output)
            log.info("%s was saved after %.1f s", what, time.monotonic() - begun, extra=PROGRESS)
    prune()
    return place


def _usable(place: Path) -> bool:
    with contextlib.suppress(OSError):
        if all((place / name).is_file() for name in (*SAVED, "about.json")):
            os.utime(place / "about.json")
            return True
    return False


def _make(shape: Shape, place: Path, user: tuple[int, int], output: int) -> None:
    with contextlib.ExitStack() as stack:
        fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=place.parent))
        stack.callback(shutil.rmtree, fresh, ignore_errors=True)
        empty = fresh / "empty"
        empty.mkdir()
        files = {}
        for name in SAVED:
            files[name] = os.open(fresh / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            stack.callback(os.close, files[name])
        stand_in = os.open(empty, os.O_RDONLY | os.O_DIRECTORY)  # for the folders of a guest
        stack.callback(os.close, stand_in)
        os.ftruncate(files["memory"], shape.memory << 20)
        if os.geteuid() == 0:
            for descriptor in (*files.values(), stand_in):
                os.fchown(descriptor, *user)
        folders = [(stand_in, False)] * shape.folders
        machine = booted(shape, folders, user, output, memory=Memory(files["memory"], shared=True))
        try:
            monitor = machine.monitor
            _ignore_shared(machine)
            monitor.do("stop")
            monitor.do("getfd", files["state"], fdname="state")
            monitor.do("migrate", uri="fd:state")
            monitor.await_migration()
        finally:
            machine.kill()
            machine.monitor.close()
        about = {"images": str(shape.images.folder), "identity": shape.images.identity}
        (fresh / "about.json").write_text(json.dumps(about))
        empty.rmdir()
        shutil.rmtree(place, ignore_errors=True)
        fresh.replace(place)


def _ignore_shared(machine: Machine) -> None:
    capabilities = [{"capability": name, "state": True} for name in KEPT]
    machine.monitor.do("migrate-set-capabilities", capabilities=capabilities)


@contextlib.contextmanager
def _opened(place: Path, flags: int, name: str = "memory") -> Iterator[int]:
    try:
        descriptor = os.open(place / name, flags | os.O_CLOEXEC)
    except OSError as error:
        raise OxydraError(f"{place / name} can't be opened: {error.strerror}.") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def prune() -> None:
    """Remove templates of images that are gone or were built anew, those that nobody used for two
    weeks, and what an interrupted build has left. What runs from one keeps its file.
    """
    for place in sorted(folder().iterdir()) if folder().is_dir() else ():
        if not place.is_dir():
            continue
        try:
            about = json.loads((place / "about.json").read_bytes())
            age = time.time() - (place / "about.json").stat().st_mtime
            stale = age > UNUSED_SECONDS or not _images_there(about)
        except (OSError, ValueError, KeyError):
            age = time.time() - place.stat().st_mtime
            stale = age > BOOT_SECONDS + ANSWER_SECONDS  # one that is being made is younger
        if stale:
            log.info("removing the template %s, which nothing starts from any more", place.name)
            shutil.rmtree(place, ignore_errors=True)


def _images_there(about: Json) -> bool:
    """Whether what a template was made of is still what it was. Raises KeyError."""
    manifest = Path(about["images"]) / machine_images.MANIFEST
    with contextlib.suppress(OSError, ValueError):
        return bool(json.loads(manifest.read_bytes())["identity"] == about["identity"])
    return False


def missing(isolation: Isolation) -> OxydraError | None:
    """What a start would have to make first, images or templates; None if nothing."""
    try:
        machine_images.find(isolation.guest_images.extra_packages)
    except OxydraError as error:
        return error
    if folder().is_dir() and any((place / "about.json").is_file() for place in folder().iterdir()):
        return None
    return OxydraError(
        "No template of a machine is saved: the next start boots one, which takes longer.",
        remedy="The next start saves it.",
        command="oxydra-runner restart",
        code="template_missing",
    )
