"""The microVM tier: each guest is a virtual machine of its own, with a kernel of its own.

A machine begins from a template that was saved once (`templates.py`); where that can't be had it
boots. Then it is told what is its own: the time, random bytes, who the guest is and which folders
it has, which reach it by 9p, read-only where they are. Over its one port runs a mux. Of the shell
that carries the line to `shell-daemon`, each stream that is attached, and commands' way to the
broker.

What a killed runner left is found by the process that is noted in `ipc/` and ended before a machine
starts. For a shell's machine one thread, `oxydra-microvm-mux`, reads its port, and `oxydra-relay`
carries; both end with the machine.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import math
import os
import secrets
import select
import signal
import socket
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from oxydra.errors import OxydraError
from oxydra.frames import compact
from oxydra.mux import Channel, Mux
from oxydra.relay import Relay
from oxydra.threads import Service
from oxydra.tiers import accelerator, machine_images, templates
from oxydra.tiers.accelerator import Accelerator
from oxydra.tiers.base import Guard, GuestSpec, ShellSpec, opened
from oxydra.tiers.qemu import Machine, Shape
from oxydra.tiers.shell_line import FORWARDER_TASKS, STOP_SECONDS, ShellLine
from oxydra.types import Folder, Json

log = logging.getLogger(__name__)

LEVEL = "microvm+cage"
LEAST_MIB = 256  # kernel, interpreter and guest have to fit
SEED_BYTES = 64
SWEEP_SECONDS = 10.0
COLD = "cold_boot"


class MachineGuest:
    """A started agent guest."""

    def __init__(self, machine: Machine, note: Path) -> None:
        self._machine = machine
        self._note = note
        self.stream = machine.port
        self.pid = machine.pid

    def wait(self) -> str:
        return self._machine.wait()

    def kill(self) -> None:
        self._machine.kill()
        self._note.unlink(missing_ok=True)


class MachineShell(ShellLine):
    """A shell guest in its machine. `begin` first, then as any other."""

    def __init__(self, machine: Machine, note: Path) -> None:
        ours, self._far = socket.socketpair()
        super().__init__(ours, LEVEL)
        self._machine = machine
        self._note = note
        self.pid = machine.pid
        self._relay = Relay()
        self._mux = Mux(machine.port, opener=False)
        self._reader = Service("microvm-mux", lambda _: self._mux.run(), wake=self._mux.close)

    def begin(self, egress: socket.socket | None) -> None:
        """Connect the line, and the way to the broker. Raises OSError."""
        self._reader.start()
        if egress is not None:
            self._relay.join(egress.dup(), self._open("egress"))
        self._relay.join(self._far, self._open("control"))

    def attach(self, stream: socket.socket) -> None:
        self._relay.join(stream.dup(), self._open("attach"))

    def wait(self) -> str:
        """Block until it has ended; says how."""
        return self._machine.wait()

    def stop(self) -> None:
        """End it and everything it started."""
        self.hang_up()
        self._machine.wait(STOP_SECONDS)
        self._machine.kill()
        self._note.unlink(missing_ok=True)
        self._reader.stop()
        self._relay.stop()
        self._machine.port.close()
        self.close()

    def _tell(self, frame: bytes, passed: Sequence[int]) -> None:
        """Descriptors don't cross into a machine: the streams have channels of their own."""
        self._control.sendall(frame)

    def _open(self, kind: str) -> Channel:
        return self._mux.open(compact({"kind": kind}).encode())


class MicroVmTier:
    """Starts the guests in QEMU, from the images that `guest/build-microvm` has made."""

    name = "micro_vm"
    forwards = True
    as_owner = True
    shell_level = LEVEL

    def __init__(self) -> None:
        self._accelerator: Accelerator | None = None
        self._looking = threading.Lock()
        self._cold: set[str] = set()  # roles whose machines had to boot

    def guest_root(self, workspace: Path) -> str:
        return "/"

    def guest_folders(self, folders: Sequence[Folder]) -> list[Folder]:
        return [replace(folder, at=folder.virtual) for folder in folders]

    def described(self, uid: int) -> Json:
        return {"accelerator": self._found(uid).name}

    def _found(self, uid: int) -> Accelerator:
        with self._looking:
            if self._accelerator is None:
                self._accelerator = accelerator.find(uid)
            return self._accelerator

    def degraded(self) -> list[Json]:
        found = self._accelerator
        rows: list[Json] = []
        if found is not None and found.name != "kvm":
            detail = f"Machines run without KVM, which is slower, not less safe: {found.why}."
            rows.append({"code": "no_kvm", "detail": detail})
        if self._cold:
            names = " and ".join(sorted(self._cold))
            detail = f"No template could be saved or restored ({names}): each start boots anew."
            rows.append({"code": COLD, "detail": detail})
        return rows

    def start(self, spec: GuestSpec) -> MachineGuest:
        internal = Folder("internal", str(spec.workspace / "internal"), writable=True)
        folders = [*spec.folders, internal]
        with contextlib.ExitStack() as stack:
            places = []
            for folder in folders:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                places.append(os.open(folder.at, flags))
                stack.callback(os.close, places[-1])
            machine = self._machine("agent", spec, folders, places, (spec.lock,))
        try:
            self._begin(machine, spec, folders, envelope=spec.envelope.to_json())
        except BaseException:
            machine.kill()
            machine.port.close()
            raise
        return MachineGuest(machine, note_of(spec, "agent"))

    def start_shell(self, spec: ShellSpec) -> MachineShell:
        """At its one level, whatever the levels of `spec` are."""
        with opened(spec) as (places, guards):
            folders = [*spec.folders]
            order = [places[folder.root] for folder in folders]
            machine = self._machine("shell", spec, folders, order, ())
            shell = MachineShell(machine, note_of(spec, "shell"))
            try:
                rows: list[Json] = [{"path": g.at, "writable": g.writable} for g in guards]
                there = self._begin(machine, spec, folders, guards=rows)
                shell.begin(spec.egress)
                most = spec.isolation.resources.max_processes
                seen = [(int(row["device"]), int(row["inode"])) for row in there]
                shell.configure(
                    spec,
                    places,
                    dict(zip(guards, seen, strict=True)),
                    (spec.uid, spec.gid),
                    shell="/bin/bash",
                    attributes=True,
                    running=FORWARDER_TASKS if spec.egress else 0,
                    limits={"processes": most - most // 4},  # the rest is the guest's own
                )
                self._check_guards(spec, guards)
            except OSError as error:
                shell.stop()
                raise OxydraError(f"The shell's machine is gone: {error}.") from error
            except BaseException:
                shell.stop()
                raise
        return shell

    # ------------------------------------------------------------------------------------ machines

    def _machine(
        self,
        role: str,
        spec: GuestSpec | ShellSpec,
        folders: Sequence[Folder],
        places: Sequence[int],
        held: tuple[int, ...],
    ) -> Machine:
        """One that has booted, now or once, and is told nothing yet."""
        isolation = spec.isolation
        if isolation.resources.max_memory_mib < LEAST_MIB:
            raise OxydraError(
                f"A machine needs {LEAST_MIB} MiB, and the user's guests may have "
                f"{isolation.resources.max_memory_mib}.",
                remedy="Set [resources] max_memory_mib higher, or another tier.",
            )
        images = machine_images.find(isolation.guest_images.extra_packages)
        found = self._found(spec.uid)
        shape = Shape(
            role=role,
            images=images,
            accelerator=found,
            memory=isolation.resources.max_memory_mib,
            cpus=processors(role, found, isolation.resources.max_vcpus, os.cpu_count() or 1),
            folders=len(folders),
        )
        note = note_of(spec, role)
        sweep(note)
        given = [(place, f.writable) for place, f in zip(places, folders, strict=True)]
        user = (spec.uid, spec.gid)
        try:
            machine = templates.restored(shape, given, user, spec.log, held)
            self._cold.discard(role)
        except (OSError, OxydraError) as error:
            log.warning("the %s guest's machine boots, for its template fails: %s", role, error)
            self._cold.add(role)
            machine = templates.booted(shape, given, user, spec.log, held)
            machine.monitor.close()
        note.write_text(identity(machine.pid))
        return machine

    def _begin(
        self,
        machine: Machine,
        spec: GuestSpec | ShellSpec,
        folders: Iterable[Folder],
        guards: Sequence[Json] = (),
        envelope: Json | None = None,
    ) -> list[Json]:
        """Tell a machine whose it is. The guards, as it has found them. Raises `OxydraError`."""
        machine.say(
            "begin",
            {
                "now": time.time(),
                "seed": base64.b64encode(secrets.token_bytes(SEED_BYTES)).decode(),
                "uid": spec.uid,
                "gid": spec.gid,
                "processes": spec.isolation.resources.max_processes,
                "folders": [
                    {"tag": f"folder{number}", "path": f"/{f.root}", "writable": f.writable}
                    for number, f in enumerate(folders)
                ],
                "guards": list(guards),
            },
        )
        if envelope is not None:
            machine.say("bootstrap", envelope)
        found: list[Json] = machine.expect("begun")["guards"]
        machine.port.settimeout(None)
        return found

    def _check_guards(self, spec: ShellSpec, guards: Mapping[Guard, int]) -> None:
        """The machine has mounted what was there a moment ago: that it is there still shows that
        nobody has put something else in its place. Raises OSError.
        """
        with opened(spec) as (_places, again):
            for guard, place in again.items():
                before, now = os.fstat(guards[guard]), os.fstat(place)
                if (before.st_dev, before.st_ino) != (now.st_dev, now.st_ino):
                    raise OSError(f"{guard.at} was replaced while it was mounted")


def processors(role: str, accelerator: Accelerator, most: float, there: int) -> int:
    """How many a machine gets, where `most` are allowed and the host has `there`.

    An agent that is translated gets one: its interpreter uses no more, and processors that wait for
    one another do so by spinning, on a busy host for a third of its start and half of an answer.
    """
    if role == "agent" and accelerator.name == "tcg":
        return 1
    return max(1, math.ceil(min(most, there)))


# ------------------------------------------------------------------------------------- left-overs


def note_of(spec: GuestSpec | ShellSpec, role: str) -> Path:
    """Where the process of that machine is noted."""
    return spec.workspace / "ipc" / f".machine-{role}"


def identity(pid: int) -> str:
    """A process, and when it began: a number is used again."""
    state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return f"{pid} {state[19]}"


def sweep(note: Path) -> None:
    """End the machine that is noted there, if it still runs. Raises `OxydraError`."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        said = note.read_text()
        pid = int(said.split()[0])
        if identity(pid) == said:
            log.info("ending the machine of process %d, which was left behind", pid)
            handle = os.pidfd_open(pid)
            try:
                if identity(pid) == said:
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    _await_end(handle)
            finally:
                os.close(handle)
    note.unlink(missing_ok=True)


def _await_end(handle: int) -> None:
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    poll.poll(SWEEP_SECONDS * 1000)
