"""What executes a microVM here: QEMU, and whether with the processor's help (KVM) or by translation
(TCG). No thread runs here.

That /dev/kvm opens says little: on hosts that are virtual machines themselves no guest may ever run
a step. So `find` boots something, eight bytes of it, and keeps the verdict for as long as kernel,
QEMU and boot are the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import mmap
import os
import platform
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from oxydra.errors import OxydraError
from oxydra.tiers import machine_images

log = logging.getLogger(__name__)

DEVICE = "/dev/kvm"
PROGRAM = "qemu-system-x86_64"
OLDEST = (7, 0)  # `-M microvm` with ACPI and `x-ignore-shared` were tried from 7.2 on
PROBE_SECONDS = 10.0
RATE_SECONDS = 0.2
# cli; mov al, 0x10; out 0xf4, al; hlt; hlt; jmp $-1, as a boot sector
SECTOR = bytes.fromhex("fab010e6f4f4ebfd").ljust(510, b"\0") + b"\x55\xaa"
PROBED = 0x21  # the exit code that isa-debug-exit makes of 0x10


@dataclass(frozen=True, slots=True)
class Accelerator:
    """`name` is kvm or tcg, `why` says why not kvm. `tsc_khz` is the rate of the host's time-stamp
    counter, which a translated guest counts by as well. `groups` are the supplementary ones that
    QEMU needs where root starts it.
    """

    name: str
    why: str
    qemu: str
    version: str
    tsc_khz: int
    groups: tuple[int, ...] = ()

    @property
    def processor(self) -> str:
        return "host" if self.name == "kvm" else "max"


Run = Callable[[list[str]], "subprocess.CompletedProcess[bytes]"]


def find(uid: int) -> Accelerator:
    """What there is, for QEMU as that user. Raises `OxydraError` with the remedy."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise OxydraError(
            f"There is no {PROGRAM} here, which the microVM tier runs its guests in.",
            remedy="Install it (apt install qemu-system-x86), "
            'or set default_tier = "container" or "process".',
            code="no_qemu",
        )
    if platform.machine() != "x86_64":
        raise OxydraError(
            "The microVM tier stands on x86-64 only.", remedy='Set default_tier = "container".'
        )
    version = _version(program)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    key = [platform.release(), program, version, boot, uid, _access(uid)]
    kept = machine_images.cache() / f"accelerator-{uid}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        said = json.loads(_own(kept))
        if said["key"] == key:
            return Accelerator(**{**said["found"], "groups": tuple(said["found"]["groups"])})
    why = _access(uid) or _boots(program, "kvm", uid)
    groups = () if why else _groups(uid)
    found = Accelerator("tcg" if why else "kvm", why, program, version, tsc_khz(), groups)
    log.info("microVMs are run by %s%s", found.name, f": {why}" if why else "")
    with contextlib.suppress(OSError):  # a full disk: it is found out again
        kept.parent.mkdir(parents=True, exist_ok=True)
        fresh = kept.with_suffix(f".{os.getpid()}")
        fresh.touch(0o600)
        fresh.write_text(json.dumps({"key": key, "found": asdict(found)}))
        fresh.replace(kept)
    return found


def _own(path: Path) -> bytes:
    """A file's content, if nobody but this process's user could have written it: a verdict names
    the program that is run and the groups it gets. Raises OSError.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as f:
        state = os.fstat(f.fileno())
        if state.st_uid != os.geteuid() or state.st_mode & 0o022:
            raise PermissionError(f"{path} can be written by others")
        return f.read()


def _version(program: str) -> str:
    """Raises `OxydraError` for one that is too old."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"version (\d+)\.(\d+)\S*.*", said)
    if found is None or (int(found[1]), int(found[2])) < OLDEST:
        raise OxydraError(
            f"{program} is too old for the microVM tier: {said.splitlines()[:1]}.",
            remedy=f"Install QEMU {OLDEST[0]}.{OLDEST[1]} or newer.",
            code="no_qemu",
        )
    return found[0]


def _access(uid: int) -> str:
    """Why that user can't open /dev/kvm; empty if nothing forbids it."""
    try:
        state = os.stat(DEVICE)
    except OSError:
        return f"there is no {DEVICE}"
    mine = uid == os.geteuid()
    others = state.st_mode & 0o006 == 0o006
    opens = os.access(DEVICE, os.R_OK | os.W_OK) if mine else state.st_uid == uid or others
    if opens or _groups(uid):
        return ""
    way = (
        f"add the user with the uid {uid} to the group kvm"
        if mine
        else f"give it to a group that may use it: chgrp kvm {DEVICE} && chmod 660 {DEVICE}"
    )
    return f"{DEVICE} is closed to the guests' user; to be as fast as the processor allows, {way}"


def _groups(uid: int) -> tuple[int, ...]:
    """The group, with which QEMU may open the device as that user, where root starts it: the
    device's own, but never root's.
    """
    state = os.stat(DEVICE)
    usable = state.st_gid != 0 and state.st_mode & 0o060 == 0o060
    return (state.st_gid,) if usable and os.geteuid() == 0 and uid != 0 else ()


def _boots(program: str, accelerator: str, uid: int) -> str:
    """Why no guest runs with that accelerator; empty if one has run."""
    drop = os.geteuid() == 0 and uid != 0
    with tempfile.NamedTemporaryFile() as disk:
        disk.write(SECTOR)
        disk.flush()
        os.chmod(disk.name, 0o644)
        command = [program, "-M", "pc", "-accel", accelerator, "-m", "16", "-nodefaults"]
        command += ["-no-user-config", "-display", "none", "-no-reboot"]
        command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
        command += ["-drive", f"file={disk.name},format=raw,if=floppy,readonly=on"]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=PROBE_SECONDS,
                cwd="/",
                user=uid if drop else None,
                group=uid if drop else None,
                extra_groups=_groups(uid) if drop else None,
            )
        except subprocess.TimeoutExpired:
            return f"{DEVICE} opens, but a guest did not run a step within {PROBE_SECONDS:g} s"
    if done.returncode == PROBED:
        return ""
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return f"no guest runs with it: {said[-1] if said else f'exit {done.returncode}'}"


# rdtsc; shl rdx, 32; or rax, rdx; ret
_RDTSC = bytes.fromhex("0f3148c1e2204809d0c3")


def tsc_khz() -> int:
    """How fast the processor's time-stamp counter counts, to a tenth of a MHz."""
    try:
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(_RDTSC)
        code = ctypes.c_char.from_buffer(page)
        count = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(code))
        begun, first = time.perf_counter(), int(count())
        threading.Event().wait(RATE_SECONDS)
        ended, last = time.perf_counter(), int(count())
        del code
        return round((last - first) / (ended - begun) / 1e5) * 100
    except OSError:  # a system that lets no memory be written and run
        said = re.search(r"cpu MHz\s*: ([\d.]+)", Path("/proc/cpuinfo").read_text())
        return round(float(said[1]) * 10) * 100 if said else 0
