"""What an agent guest that was taken over tries in its machine, once it has locked itself in.

Put beside `oxydra.vm` in an image of a test's own, with `guest/escape-attempts`, whose attempts it
makes too. Standard library only. What it is told is in `/internal/attack.json`, and each time it
acts once: `attempts` writes what became of each to `/internal/results.json`, and so does `unheld`,
of its own alone, as root and before anything is locked; `garbage`, `opens`, `forged` and `deaf`
speak to the runner over the machine's port, behind the back of the guest that uses it, once there
is `/internal/speak`, and first leave `/internal/spoken`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import struct
import time
import types
from importlib.machinery import SourceFileLoader

ORDERS = "/internal/attack.json"
CUE = "/internal/speak"
SPOKEN = "/internal/spoken"
WRITE = os.O_WRONLY | os.O_CREAT
kit = types.ModuleType("kit")
SourceFileLoader("kit", f"{os.path.dirname(__file__)}/escape-attempts").exec_module(kit)


def begin(held: bool = True) -> None:
    """In a process of its own, which is as locked in as the guest that it comes from."""
    if not os.path.exists(ORDERS):
        return
    with open(ORDERS) as file:
        orders = json.load(file)
    if (orders["what"] != "unheld") is not held or os.fork():
        return
    try:
        os.rename(ORDERS, ORDERS + ".done")
        if orders["what"] in ("attempts", "unheld"):
            attempts(orders)
        else:
            speak(orders["what"])
    finally:
        os._exit(0)


def attempts(orders: dict) -> None:
    kit.P.update(orders, me=os.getpid(), taken_over=os.getppid())
    del kit.ATTEMPTS["an_inherited_socket"]  # the guest has pairs of its own: see below
    os.chdir("/shared")
    wanted = OWN if orders["what"] == "unheld" else kit.ATTEMPTS | OWN
    found = {name: kit.run_one(function) for name, function in wanted.items()}
    with open("/internal/results.new", "w") as file:
        json.dump(found, file)
    os.rename("/internal/results.new", "/internal/results.json")


# --------------------------------------------------------------------------- in the agent's machine

OWN = {}


def attempt(function):
    OWN[f"agent_{function.__name__}"] = function
    return function


def opened(*paths: str, flags: int = os.O_RDONLY) -> list[str]:
    """Those of them that can be opened."""
    found, trouble = [], None
    for path in paths:
        try:
            os.close(os.open(path, flags | os.O_NONBLOCK))
            found.append(path)
        except OSError as error:
            trouble = error
    if not found and trouble is not None:
        raise trouble
    return found


OWN |= {
    f"agent_{name}": function
    for name, function in {
        "write_to_the_vault": lambda: opened("/vault/new.txt", flags=WRITE),
        "change_what_is_in_the_vault": lambda: opened("/vault/own.txt", flags=WRITE),
        "delete_from_the_vault": lambda: os.unlink("/vault/own.txt") or True,
        "open_the_vault_to_all": lambda: os.chmod("/vault/own.txt", 0o777) or True,
        "the_root_image": lambda: opened("/dev/vda", "/dev/vda1", "/dev/root"),
        "another_port": lambda: opened("/dev/hvc0", "/dev/hvc1", "/dev/vport0p0", "/dev/vport1p1"),
        "the_console": lambda: opened("/dev/console", "/dev/ttyS0", "/dev/tty0", flags=os.O_WRONLY),
        "physical_memory": lambda: opened("/dev/mem", "/dev/port", "/proc/kcore", "/dev/kmem"),
        "the_kernels_log": lambda: opened("/dev/kmsg"),
        "the_hosts_clock": lambda: opened("/dev/rtc0"),
        "the_monitor": lambda: opened("/dev/qmp", "/dev/virtio-ports/monitor"),
        "write_to_the_code": lambda: opened(__file__, flags=WRITE),
        "write_to_the_root": lambda: opened("/new", flags=WRITE),
        "read_process_1": lambda: opened("/proc/1/mem", "/proc/1/environ", "/proc/1/maps"),
        "signal_process_1": lambda: os.kill(1, signal.SIGUSR1) or True,
        "trace_process_1": lambda: kit.succeeded(101, -1, 16, 1, None, None),
        "descriptors_of_process_1": lambda: kit.call(438, -1, kit.call(434, -1, 1, 0), 0, 0) >= 0,
        "power_off": lambda: kit.succeeded(169, -1, 0xFEE1DEAD, 672274793, 0, None),
        "load_a_module": lambda: kit.succeeded(175, -1, b"\x7fELF", 4, b""),
        "load_another_kernel": lambda: kit.succeeded(246, -1, 0, 0, None, 0),
        "a_namespace": lambda: kit.succeeded(272, -1, 0x10000000),
        "a_folder_again_and_writable": lambda: mounted("folder2"),
        "another_mount_interface": lambda: kit.call(430, -1, b"9p", 0) >= 0,
        "mount_over_the_vault": lambda: mounted("tmpfs", "tmpfs", "/vault"),
        "unmount_the_vault": lambda: kit.LIBC.umount2(b"/vault", 2) == 0,
        "write_to_run": lambda: opened("/run/large", flags=WRITE),
    }.items()
}


def mounted(source: str, kind: str = "9p", target: str = "/mnt") -> bool:
    options = b"trans=virtio,version=9p2000.L" if kind == "9p" else b""
    return kit.LIBC.mount(source.encode(), target.encode(), kind.encode(), 0, options) == 0


@attempt
def read_through_a_link_in_the_database_folder():
    os.symlink(kit.P["outside"], "/internal/link-out")
    return kit.secret_in("/internal/link-out")


@attempt
def a_socket_whose_other_end_is_not_the_guests():
    for name in range(3, 256):
        try:
            with socket.socket(fileno=os.dup(name)) as sock:
                peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        except OSError:
            continue
        if struct.unpack("iII", peer)[0] != kit.P["taken_over"]:
            return name
    return None


@attempt
def climb_out_of_each_folder():
    for top in ("/shared", "/internal", "/vault", "/tmp"):
        for way in ("/.." * 12, "/./" + "../" * 12, "//..//.." * 6):
            path = top + way + kit.P["outside"]
            if os.path.exists(path):
                return path
    return None


@attempt
def a_device_on_the_host():
    os.mknod("/shared/disk", stat.S_IFBLK | 0o666, os.makedev(254, 0))
    return opened("/shared/disk")


@attempt
def a_program_that_makes_root():
    with open("/shared/root", "wb") as file:
        file.write(b"#!/bin/sh\n")
    os.chmod("/shared/root", 0o6755)
    return os.stat("/shared/root").st_mode & 0o6000


@attempt
def give_a_file_to_root():
    with open("/shared/given", "wb"):
        pass
    os.chown("/shared/given", 0, 0)
    return os.stat("/shared/given").st_uid == 0


@attempt
def rights_by_an_attribute():
    with open("/shared/capable", "wb"):
        pass
    rights = struct.pack("<IIIII", 0x02000000, 0xFFFFFFFF, 0, 0, 0)
    os.setxattr("/shared/capable", "security.capability", rights)
    return True


# ------------------------------------------------------------------------------- over the port


def speak(what: str) -> None:
    while not os.path.exists(CUE):  # the guest is to be ready first
        time.sleep(0.05)
    (port,) = (
        int(name)
        for name in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{name}")
        and os.readlink(f"/proc/self/fd/{name}").startswith("/dev/vport")
    )
    os.close(os.open(SPOKEN, WRITE, 0o600))  # before the first byte, which may be the end
    if what == "deaf":  # it does not notice that the runner has hung up
        os.kill(os.getppid(), signal.SIGSTOP)
    if what in ("garbage", "deaf"):
        while True:
            os.write(port, os.urandom(65536))
    if what == "opens":
        number = 1_000_001
        while True:
            about = b'{"kind":"http"}'
            os.write(port, struct.pack("!BII", 0, number, len(about)) + about)
            number += 2
    if what == "forged":  # frames of the control channel, which the guest did not say
        for said in ({"op": "ready", "payload": {}}, {"op": "x" * 60000, "payload": []}, [1], None):
            body = json.dumps(said).encode()
            frame = struct.pack("!I", len(body)) + body
            for at in range(0, len(frame), 16000):
                piece = frame[at : at + 16000]
                os.write(port, struct.pack("!BII", 1, 2, len(piece)) + piece)
