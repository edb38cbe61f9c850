"""One microVM: a QEMU process without a network device and without a socket anybody could find.

Its two ways in are inherited socketpairs: the machine's one port, which the guest sees as a
virtio-serial device, and QMP (the QEMU Machine Protocol), which only this file speaks and closes
once the guest runs. Files are given as descriptors. `guest/machine-cage` starts it.

For each machine one thread, `oxydra-microvm`, copies the console to the log and waits for the end;
it ends with the machine.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import oxydra.cage
from oxydra.errors import FrameError, OxydraError
from oxydra.frames import pack, read_frame
from oxydra.threads import Service
from oxydra.tiers import ladder
from oxydra.tiers.accelerator import DEVICE, Accelerator
from oxydra.tiers.base import GuestLog, ending, guest_script
from oxydra.tiers.machine_images import ImageSet
from oxydra.types import Json

log = logging.getLogger(__name__)

BOOT_SECONDS = 120.0  # from power on to the first word, on a loaded machine without KVM
ANSWER_SECONDS = 60.0  # of a booted machine
END_SECONDS = 10.0
MAX_FRAME = 8 << 20
# What TCG keeps of translated code, which otherwise grows to 1 GiB. An agent's start and first
# answers need 46 MiB; with less, all is forgotten and translated again, with 24 over and over.
TRANSLATED_MIB = {"agent": 50, "shell": 48}
PORT = "oxydra"  # as in guest/machine-init
ENDED = re.compile(rb"machine-init: ended: ([^\r\n]*)")

CONSOLE = (
    "console=ttyS0 quiet loglevel=3 panic=-1 reboot=t nokaslr no_timer_check mitigations=off"
    " random.trust_cpu=on audit=0 lsm=landlock cryptomgr.notests 8250.nr_uarts=1 nowatchdog"
    " transparent_hugepage=never"  # pages that are put together are the template's no more
)
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


@dataclass(frozen=True, slots=True)
class Shape:
    """What two machines have in common that can take each other's saved state: `memory` in MiB,
    how many `folders` they have.
    """

    role: str
    images: ImageSet
    accelerator: Accelerator
    memory: int
    cpus: int
    folders: int

    def arguments(self, files: Sequence[str], folders: Sequence[str]) -> list[str]:
        """QEMU's, but for memory and the ends of its wires. `files` are kernel, initramfs and root
        image, `folders` the options of each that say where it is.
        """
        accelerator = self.accelerator
        kernel, initrd, root = files
        boot = f"{CONSOLE} OXYDRA_ROLE={self.role}"
        executed = accelerator.name
        if executed == "tcg":
            executed += f",tb-size={TRANSLATED_MIB[self.role]}"
            # it would wait for ever for a timer that is not there
            boot += f" tsc=reliable tsc_early_khz={accelerator.tsc_khz}"
        words = ["-M", "microvm,acpi=on,rtc=on,pcie=off,usb=off,memory-backend=memory"]
        words += ["-accel", executed, "-cpu", accelerator.processor]
        words += ["-m", f"{self.memory}M", "-smp", str(self.cpus)]
        words += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        words += ["-sandbox", SANDBOX, "-rtc", "base=utc,clock=host"]
        words += ["-kernel", kernel, "-initrd", initrd, "-append", boot]
        words += ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
        words += ["-drive", f"id=root,file={root},format=raw,if=none,readonly=on"]
        words += ["-device", "virtio-blk-device,drive=root"]
        words += ["-object", "rng-random,id=random,filename=/dev/urandom"]
        words += ["-device", "virtio-rng-device,rng=random", "-device", "virtio-serial-device"]
        words += ["-device", f"virtserialport,chardev=port,name={PORT},nr=1"]
        for number, options in enumerate(folders):
            name = f"folder{number}"
            words += ["-fsdev", f"local,id={name},{options},security_model=none,multidevs=remap"]
            words += ["-device", f"virtio-9p-device,fsdev={name},mount_tag={name}"]
        return words


@dataclass(frozen=True, slots=True)
class Memory:
    """The file that is the machine's memory. `shared`: what the guest writes is written to it;
    else it stays as it is, and what was not written is shared with other machines.
    """

    descriptor: int
    shared: bool


class Qmp:
    """The machine's monitor. One thread at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._file = sock.makefile("rb")
        self._heard()
        self.do("qmp_capabilities")

    def do(self, command: str, *descriptors: int, **arguments: Any) -> Json:
        """Raises `OxydraError` with what QEMU says."""
        said = json.dumps({"execute": command, "arguments": arguments}).encode()
        try:
            socket.send_fds(self._sock, [said + b"\n"], descriptors)
        except OSError as error:
            raise OxydraError(f"QEMU does not listen: {error.strerror or error}.") from error
        while True:
            heard = self._heard()
            if "error" in heard:
                raise OxydraError(f"QEMU refused {command}: {heard['error'].get('desc')}.")
            if "return" in heard:
                return heard["return"] if isinstance(heard["return"], dict) else {}

    def await_migration(self) -> None:
        """Return once it is done. Raises `OxydraError`."""
        while True:
            found = self.do("query-migrate")
            if found.get("status") == "completed":
                return
            if found.get("status") == "failed":
                raise OxydraError(f"QEMU failed: {found.get('error-desc', 'the state is lost')}.")
            threading.Event().wait(0.002)  # there is no event that all versions send at both ends

    def _heard(self) -> Json:
        try:
            line = self._file.readline()
            found = json.loads(line)
        except (OSError, ValueError) as error:
            raise OxydraError("QEMU ended, or does not answer.") from error
        return dict(found)

    def close(self) -> None:
        self._file.close()
        self._sock.close()


class Machine:
    """A QEMU process. `port` is the runner's end of the machine's port."""

    def __init__(
        self,
        shape: Shape,
        folders: Sequence[tuple[int, bool]],
        memory: Memory | None,
        user: tuple[int, int],
        log: int,
        *,
        incoming: bool = False,
        held: Sequence[int] = (),
    ) -> None:
        """`folders` are descriptors, and whether they can be written to. Without `memory` it is
        the machine's own. `incoming`: wait for a saved state. QEMU keeps the descriptors `held`
        for as long as it lives. Raises `OxydraError`.
        """
        self._log = GuestLog(log)
        self._last = b""
        self._how = ""
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._service = Service("microvm", self._follow)
        with contextlib.ExitStack() as stack:
            self.port, theirs = socket.socketpair()
            monitor, monitored = socket.socketpair()
            for end in (theirs, monitored):
                stack.enter_context(end)
            images = shape.images
            files = []
            for path in (images.kernel, images.initrd, images.root(shape.role)):
                files.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                stack.callback(os.close, files[-1])
            words = shape.arguments(
                [_file(number) for number in files],
                [
                    f"path={_file(place)}{'' if writable else ',readonly=on'}"
                    for place, writable in folders
                ],
            )
            words += [
                *("-object", _backend(shape, memory)),
                *("-chardev", f"socket,id=port,fd={theirs.fileno()}"),
                *("-chardev", f"socket,id=monitor,fd={monitored.fileno()}"),
                *("-mon", "chardev=monitor,mode=control"),
                *(["-S", "-incoming", "defer"] if incoming else []),
            ]
            given: list[int | str] = [place for place, writable in folders if writable]
            files_of_memory = [] if memory is None else [memory.descriptor]
            given += [*files_of_memory, *([DEVICE] * (shape.accelerator.name == "kvm"))]
            taken = [*files, *(place for place, writable in folders if not writable)]
            python, prefixes = ladder.interpreter(user[0])
            sources = [
                ladder.open_source(stack, path)
                for path in (guest_script("machine-cage"), Path(oxydra.cage.__file__))
            ]
            command = [python, "-I", "-S", _file(sources[0]), _file(sources[1]), *map(str, user)]
            command.append(",".join(map(str, shape.accelerator.groups)))
            command += [",".join(map(str, [*taken, *prefixes])), ",".join(map(str, given)), "--"]
            kept = [theirs.fileno(), monitored.fileno(), *files_of_memory, *files, *sources]
            try:
                self._child = subprocess.Popen(
                    [*command, shape.accelerator.qemu, *words],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env={"PATH": "/usr/bin:/bin", "TMPDIR": "/nonexistent"},
                    cwd="/",
                    pass_fds=[*kept, *held, *(place for place, _ in folders)],
                    start_new_session=True,
                )
            except OSError as error:
                self.port.close()
                monitor.close()
                self._log.close()
                raise OxydraError(f"QEMU can't be started: {error}.") from error
        self.pid = self._child.pid
        self._service.start()
        for sock in (self.port, monitor):
            sock.settimeout(BOOT_SECONDS)
        try:
            self.monitor = Qmp(monitor)
        except BaseException as error:
            monitor.close()
            self.kill()
            if isinstance(error, OxydraError):
                raise OxydraError(
                    f"QEMU ended while it started: {self.wait()}.",
                    remedy="What it said is in the guest's log.",
                ) from error
            raise

    # ----------------------------------------------------------------------------- its guest

    def expect(self, op: str, seconds: float = ANSWER_SECONDS) -> Json:
        """The guest's next frame, before its port carries a mux. Raises `OxydraError`."""
        self.port.settimeout(seconds)
        try:
            found, payload = read_frame(self.port.recv, MAX_FRAME)
        except TimeoutError as error:
            raise OxydraError(f"The machine did not say {op!r} within {seconds:g} s.") from error
        except (OSError, FrameError) as error:
            how = self.wait(END_SECONDS) or error
            raise OxydraError(
                f"The machine ended before it was ready: {how}.",
                remedy="The guest's log in the workspace says why.",
            ) from error
        if found != op:
            raise OxydraError(f"The machine could not be set up: {payload.get('message', found)}")
        return payload

    def say(self, op: str, payload: Json) -> None:
        """Raises `OxydraError`."""
        try:
            self.port.sendall(pack(op, payload))
        except OSError as error:
            raise OxydraError(f"The machine does not listen: {error}.") from error

    # ------------------------------------------------------------------------------- its end

    def wait(self, seconds: float | None = None) -> str:
        """Block until it has ended; says how. Empty if it has not after `seconds`."""
        return self._how if self._over.wait(seconds) else ""

    def kill(self) -> None:
        """End it at once; idempotent."""
        with self._lock:
            if not self._over.is_set():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
            self._over.wait(END_SECONDS)
        self._service.stop()

    def _follow(self, _service: Service) -> None:
        output = self._child.stdout
        with contextlib.suppress(OSError):
            while output is not None and (said := os.read(output.fileno(), 65536)):
                self._last = (self._last + said)[-4096:]
                self._log.write(said)
        code = self._child.wait()
        if output is not None:
            output.close()
        self._log.close()
        ended = ENDED.findall(self._last)
        self._how = ending(code)
        if code == 0 and ended:
            self._how = ended[-1].decode("ascii", "replace")[:200]
        self._over.set()


def _file(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


def _backend(shape: Shape, memory: Memory | None) -> str:
    size = f"id=memory,size={shape.memory}M"
    if memory is None:
        return f"memory-backend-ram,{size}"
    share = "on" if memory.shared else "off"
    return f"memory-backend-file,{size},mem-path={_file(memory.descriptor)},share={share}"
