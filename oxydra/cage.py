"""The cage: what a process gives up for good, by Landlock, seccomp, rlimits and no_new_privs.

No root and no third-party package is needed: everything goes through `ctypes` to the kernel, on
x86-64 and aarch64. This file imports nothing of ours, because guests load it by its path, with
whatever Python the system has (3.10 or newer). It also holds what else a keeper of hostile
processes needs: dying with the parent, adopting orphans, killing a tree to the last daemon. No
thread runs here.

Steps, in this order: `limit`, `forbid_privileges`, `confine` (files, signals, ptrace), then
`filter_calls`. All are inherited by every child, and each can be repeated to give up more.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Place = str | int
"""A path, or the descriptor of what is there."""

_libc = ctypes.CDLL(None, use_errno=True)


def _call(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


# ------------------------------------------------------------------------------------ what there is


@dataclass(frozen=True)
class Features:
    """What this kernel offers. `landlock` is the version of its interface, 0 for none."""

    landlock: int
    seccomp: bool

    @property
    def files(self) -> bool:
        """Reading and writing can be confined to given places."""
        return self.landlock >= 1

    @property
    def signals(self) -> bool:
        """Signals to processes outside the cage can be refused one by one."""
        return self.landlock >= 6


def probe() -> Features:
    """Ask the kernel."""
    if sys.platform != "linux" or platform.machine() not in _ARCHITECTURES:
        return Features(0, False)
    version = _libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    # SECCOMP_GET_ACTION_AVAIL for SECCOMP_RET_ERRNO
    action = struct.pack("I", _ERRNO)
    seccomp = _libc.syscall(_architecture().seccomp, 2, 0, ctypes.c_char_p(action)) == 0
    return Features(max(0, version), seccomp)


# ------------------------------------------------------------------------------------------- limits


@dataclass(frozen=True)
class Limits:
    """Per process, in bytes, but for `processes` (of the user, besides those there are) and
    `open_files`.

    `data` counts the memory a process can write to, `address_space` what it may reserve as well;
    Node, Go and Java reserve much more than they use.
    """

    data: int = 2 << 30
    address_space: int = 64 << 30
    file_size: int = 1 << 30
    processes: int = 256
    open_files: int = 1024
    cpu_seconds: int = 3600


def limit(limits: Limits, running: int = 0) -> None:
    """Set the rlimits. `running` is how many tasks the user has already (`tasks_of`)."""
    wanted = {
        "RLIMIT_DATA": limits.data,
        "RLIMIT_AS": limits.address_space,
        "RLIMIT_FSIZE": limits.file_size,
        "RLIMIT_NPROC": running + limits.processes,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_CPU": limits.cpu_seconds,
        "RLIMIT_CORE": 0,
        "RLIMIT_MSGQUEUE": 0,
    }
    for name, value in wanted.items():
        kind = getattr(resource, name, None)
        if kind is None:
            continue
        most = resource.getrlimit(kind)[1]
        if most != resource.RLIM_INFINITY:
            value = min(value, most)
        # macOS refuses to limit memory
        with contextlib.suppress(*(() if sys.platform == "linux" else (OSError, ValueError))):
            resource.setrlimit(kind, (value, value))


def tasks_of(uid: int) -> int:
    """How many threads a user has, which is what RLIMIT_NPROC counts."""
    count = 0
    for pid in _processes():
        try:
            if os.stat(f"/proc/{pid}").st_uid == uid:
                count += len(os.listdir(f"/proc/{pid}/task"))
        except OSError:
            continue  # it has ended
    return count


def drop_root(uid: int, gid: int, groups: Collection[int] = ()) -> None:
    """Become `uid` for good, where this process is root and `uid` is not."""
    if os.geteuid() == 0 and uid != 0:
        os.setgroups([*groups])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)


def close_all_but(kept: Iterable[int]) -> None:
    """Close every descriptor but these and the first three."""
    last = 3
    for descriptor in sorted(kept):
        os.closerange(last, descriptor)
        last = descriptor + 1
    os.closerange(last, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def forbid_privileges() -> None:
    """no_new_privs: no setuid program raises anything from here on."""
    _call(_libc.prctl(38, 1, 0, 0, 0), "no_new_privs")


_CAPABILITIES = {  # linux/capability.h
    "chown": 0,
    "dac_override": 1,
    "fowner": 3,
    "kill": 5,
    "setgid": 6,
    "setuid": 7,
}


def keep_capabilities(kept: Iterable[str]) -> None:
    """Give up every capability but these; for a process that has none, nothing changes."""
    mask = sum(1 << _CAPABILITIES[name] for name in kept)
    for number in range(64):
        if not mask >> number & 1:
            _libc.prctl(24, number, 0, 0, 0)  # PR_CAPBSET_DROP; refused without CAP_SETPCAP
    head = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0))
    data = ctypes.create_string_buffer(24)
    _call(_libc.capget(head, data), "capget")
    effective, permitted = (word & mask for word in struct.unpack_from("II", data.raw))
    kept_now = struct.pack("IIIIII", effective, permitted, 0, 0, 0, 0)
    _call(_libc.capset(head, ctypes.create_string_buffer(kept_now)), "capset")


# ----------------------------------------------------------------------------------------- landlock
# linux/landlock.h

_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_BLOCK, _REFER = 1 << 6, 1 << 11, 1 << 13
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV

SYSTEM = (
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/bin",
    "/sbin",
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/debian_version",
    "/etc/group",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/magic",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/os-release",
    "/etc/passwd",
    "/etc/pki/tls/certs",
    "/etc/protocols",
    *(f"/etc/python3.{minor}" for minor in range(9, 20)),
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/terminfo",
    "/etc/timezone",
)
"""What programs need to run, and what is no secret."""
FACTS = (
    "/proc/cpuinfo",
    "/proc/filesystems",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/uptime",
    "/proc/version",
)
"""What programs ask of `/proc` and is no secret either, where that is the host's."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")


def confine(read: Iterable[Place], write: Iterable[Place], *, landlock: int, port: int = 0) -> None:
    """Landlock: reading and executing only below `read` and `write`, writing only below `write`.

    From version 4 of `landlock` on no TCP either, but for connecting to `port`, and from 6 on no
    abstract socket and no signal to a process outside. What does not exist is passed over. Raises
    OSError.
    """
    files = (1 << 13) - 1
    for version, right in ((2, _REFER), (3, _TRUNCATE), (5, _IOCTL_DEV)):
        if landlock >= version:
            files |= right
    network = 3 if landlock >= 4 else 0
    scoped = 3 if landlock >= 6 else 0
    attributes = struct.pack("QQQ", files, network, scoped)
    attributes = attributes[: 24 if landlock >= 6 else 16 if landlock >= 4 else 8]
    size = ctypes.c_size_t(len(attributes))
    rules = _libc.syscall(_LANDLOCK_CREATE_RULESET, attributes, size, 0)
    _call(rules, "landlock_create_ruleset")
    try:
        for place in read:
            _allow(rules, place, _READ)
        for place in write:
            _allow(rules, place, files & ~(_MAKE_CHAR | _MAKE_BLOCK))
        if port and network:  # LANDLOCK_RULE_NET_PORT, LANDLOCK_ACCESS_NET_CONNECT_TCP
            rule = ctypes.c_char_p(struct.pack("=QQ", 2, port))
            _call(_libc.syscall(_LANDLOCK_ADD_RULE, rules, 2, rule, 0), "landlock_add_rule")
        _call(_libc.syscall(_LANDLOCK_RESTRICT_SELF, rules, 0), "landlock_restrict_self")
    finally:
        os.close(rules)


def _allow(rules: int, place: Place, rights: int) -> None:
    try:
        found = os.open(place, os.O_PATH | os.O_CLOEXEC) if isinstance(place, str) else place
    except (FileNotFoundError, PermissionError):
        return
    try:
        if not os.path.isdir(found):
            rights &= _ON_FILES
        rule = struct.pack("=Qi", rights, found)
        added = _libc.syscall(_LANDLOCK_ADD_RULE, rules, 1, ctypes.c_char_p(rule), 0)
        _call(added, f"landlock_add_rule for {place}")
    finally:
        if found != place:
            os.close(found)


# ------------------------------------------------------------------------------------------ seccomp
# linux/seccomp.h, linux/bpf_common.h; the numbers are those of <asm/unistd.h>


@dataclass(frozen=True)
class _Architecture:
    audit: int  # AUDIT_ARCH_… of linux/audit.h
    column: int  # in the tables below
    seccomp: int


_ARCHITECTURES = {
    "x86_64": _Architecture(0xC000003E, 0, 317),
    "aarch64": _Architecture(0xC00000B7, 1, 277),
}

_ABSENT = -1
NEVER = {
    # other processes, and the kernel's own insides
    "bpf": (321, 280),
    "kcmp": (312, 272),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "keyctl": (250, 219),
    "request_key": (249, 218),
    "modify_ldt": (154, _ABSENT),
    "ioperm": (173, _ABSENT),
    "iopl": (172, _ABSENT),
    "uselib": (134, _ABSENT),
    # namespaces and mounts
    "unshare": (272, 97),
    "setns": (308, 268),
    "chroot": (161, 51),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "lookup_dcookie": (212, 18),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    # the machine
    "acct": (163, 89),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "settimeofday": (164, 170),
    "delete_module": (176, 106),
    "finit_module": (313, 273),
    "init_module": (175, 105),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    # ways to speak to others; Landlock stops neither datagrams nor connecting to a path
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "mq_open": (240, 180),
    "msgctl": (71, 187),
    "msgget": (68, 186),
    "msgrcv": (70, 188),
    "msgsnd": (69, 189),
    "semctl": (66, 191),
    "semget": (64, 190),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmget": (29, 194),
}
ATTRIBUTES = {
    # Landlock lets these through: they change, or watch, any file of the same owner's by its path.
    "chmod": (90, _ABSENT),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, _ABSENT),
    "lchown": (94, _ABSENT),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "utime": (132, _ABSENT),
    "utimes": (235, _ABSENT),
    "futimesat": (261, _ABSENT),
    "truncate": (76, 45),
    "inotify_init": (253, _ABSENT),
    "inotify_init1": (294, 26),
}
SIGNALS = {
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
}
_SCHEDULING = {  # whose first argument is a process; 0 is the caller
    "prlimit64": (302, 261),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
}
_CLONE, _CLONE3, _IOCTL, _SOCKETPAIR = (56, 220), (435, 435), (16, 29), (53, 199)
_IOPRIO_SET, _SETPRIORITY, _UTIMENSAT, _KILL = (251, 30), (141, 140), (280, 88), (62, 129)
_NEWEST = 462  # mseal: of what came later nobody has judged what it lets through

_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_TIOCSTI, _TIOCLINUX, _TIOCCONS = 0x5412, 0x541C, 0x541D
_KILL_PROCESS, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_EPERM, _EACCES, _ENOSYS = _ERRNO | 1, _ERRNO | 13, _ERRNO | 38
_LOAD, _RETURN, _AND = 0x20, 0x06, 0x54
_EQUAL, _GREATER_OR_EQUAL, _GREATER, _ANY_BIT = 0x15, 0x35, 0x25, 0x45

_Step = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def _architecture() -> _Architecture:
    return _ARCHITECTURES[platform.machine()]


def _argument(index: int, high: bool = False) -> _Step:
    return (_LOAD, 0, 0, 16 + 8 * index + 4 * high)  # struct seccomp_data; both are little-endian


def filter_calls(*, attributes: bool = True, signals: bool = True, streams: bool = False) -> None:
    """seccomp: refuse the calls by which a process reaches what Landlock does not cover.

    Without `attributes` nothing can be changed about a file by its path, without `signals` none can
    be sent but to the own process group; with `streams` TCP sockets can be made and connected. For
    good, and for every child. Raises OSError.
    """
    program = _program(attributes, signals, streams)
    code = b"".join(struct.pack("HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(code)
    head = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    _call(_libc.prctl(22, 2, ctypes.c_char_p(head), 0, 0), "seccomp")


def _program(attributes: bool, signals: bool, streams: bool) -> list[_Step]:
    architecture = _architecture()
    steps: list[_Step] = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, architecture.audit),
        (_RETURN, 0, 0, _KILL_PROCESS),  # another table of calls: i386 on x86-64
        (_LOAD, 0, 0, 0),
    ]
    if architecture.column == 0:  # x32 is the same architecture
        steps += [(_GREATER_OR_EQUAL, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL_PROCESS)]
    steps += [(_GREATER, 0, 1, _NEWEST), (_RETURN, 0, 0, _ENOSYS)]

    def on(numbers: tuple[int, int], *body: _Step) -> None:
        """For this call do `body`, which returns."""
        number = numbers[architecture.column]
        if number != _ABSENT:
            steps.extend([(_EQUAL, 0, len(body), number), *body])

    allow, refuse = (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _EPERM)
    refused = {**NEVER, **({} if attributes else ATTRIBUTES), **({} if signals else SIGNALS)}
    if streams:  # AF_INET or AF_INET6, and SOCK_STREAM
        on(
            refused.pop("socket"),
            *(_argument(0), (_EQUAL, 1, 0, 2), (_EQUAL, 0, 3, 10)),
            *(_argument(1), (_AND, 0, 0, 0xF), (_EQUAL, 1, 0, 1), refuse, allow),
        )
        del refused["connect"]
    for numbers in refused.values():
        on(numbers, refuse)
    for numbers in _SCHEDULING.values():
        on(numbers, _argument(0), (_EQUAL, 1, 0, 0), refuse, allow)
    # PRIO_PROCESS is 0, IOPRIO_WHO_PROCESS 1
    for numbers, process in ((_SETPRIORITY, 0), (_IOPRIO_SET, 1)):
        on(
            numbers,
            *(_argument(0), (_EQUAL, 0, 2, process), _argument(1), (_EQUAL, 1, 0, 0)),
            *(refuse, allow),
        )
    if not attributes:  # the time of an open file may be set: the path is NULL then
        on(
            _UTIMENSAT,
            *(_argument(1), (_EQUAL, 0, 2, 0), _argument(1, high=True), (_EQUAL, 1, 0, 0)),
            *(refuse, allow),
        )
    if not signals:
        on(_KILL, _argument(0), (_EQUAL, 1, 0, 0), refuse, allow)
    # libc falls back from clone3, whose flags lie in memory, to clone
    on(_CLONE3, (_RETURN, 0, 0, _ENOSYS))
    on(_CLONE, _argument(0), (_ANY_BIT, 0, 1, _NEW_NAMESPACES), refuse, allow)
    # a pair of streams stays a pair; one of datagrams could be connected elsewhere
    on(
        _SOCKETPAIR,
        *(_argument(1), (_AND, 0, 0, 0xF), (_EQUAL, 1, 0, 1), (_RETURN, 0, 0, _EACCES), allow),
    )
    on(
        _IOCTL,
        _argument(1),
        *((_EQUAL, 2, 0, _TIOCSTI), (_EQUAL, 1, 0, _TIOCLINUX), (_EQUAL, 0, 1, _TIOCCONS)),
        *(refuse, allow),
    )
    return [*steps, allow]


# ----------------------------------------------------------------------------------- a guest's cage


NAMESPACED = ("microvm+cage", "container+cage", "bwrap+cage")
"""The levels at which a guest has namespaces of its own and its folders the names a model knows."""


SIGNALS_HELD = ("microvm+cage", "cage")
"""The levels at which commands signal their own process group only, where the kernel can't tell
whom else they may."""


class GuestCage:
    """The cage of a guest that runs commands in folders (descriptors), of which it can write some
    and `read` others: what its own process gives up by `enter`, and a session of commands by
    `give_up_more`.

    `level`: `microvm+cage` stands in a machine of its own, `container+cage` and `bwrap+cage` in
    namespaces of their own, `cage` on the host's tree, `rlimits` has no cage at all. `attributes`
    as in `filter_calls`; nothing newer than version `newest_landlock` is used. `proxy` is a TCP
    port that commands may connect to, 0 for none.
    """

    def __init__(
        self,
        *,
        level: str,
        write: Sequence[int],
        read: Sequence[int],
        guards: Sequence[Mapping[str, Any]],
        attributes: bool,
        newest_landlock: int,
        proxy: int = 0,
    ) -> None:
        found = probe()
        self.features = Features(min(found.landlock, newest_landlock), found.seccomp)
        self._level = level
        self._write, self._read, self._guards = write, read, guards
        self._attributes = attributes
        self._proxy = proxy

    def enter(self) -> None:
        """Raises OSError where the kernel can't hold this level, or a guard is not in its place."""
        if self._level == "rlimits":
            return
        for guard in self._guards:
            path, expected = guard["path"], (guard["device"], guard["inode"])
            found, mounted = os.lstat(path), os.statvfs(path)
            held = guard["writable"] or mounted.f_flag & os.ST_RDONLY
            if (found.st_dev, found.st_ino) != expected or not held:
                raise OSError(f"{path} was replaced while it was mounted")
        if not self.features.seccomp:
            raise OSError("the kernel offers no seccomp filters on this machine")
        if not self.features.files and self._level == "cage":
            raise OSError("the kernel offers no Landlock")
        forbid_privileges()
        interpreter = (sys.prefix, sys.base_prefix)
        self._confine(("/proc", *interpreter), ("/dev/ptmx", "/dev/pts"))
        filter_calls(attributes=self._attributes, streams=bool(self._proxy))

    def give_up_more(self) -> None:
        """The guest's own process, other sessions, and the terminals of other people."""
        if self._level in NAMESPACED:
            self._confine(("/proc",), ("/dev/ptmx", "/dev/pts"))
        elif self._level == "cage":
            self._confine(FACTS, ())
        if self._level in SIGNALS_HELD and not self.features.signals:
            streams = bool(self._proxy)
            filter_calls(attributes=self._attributes, signals=False, streams=streams)

    def _confine(self, read: tuple[str, ...], write: tuple[str, ...]) -> None:
        if not self.features.files:
            return
        named = self._level in NAMESPACED
        scratch, names = (("/var/tmp", "/dev/shm"), ("/mnt",)) if named else ((), ())
        confine(
            (*SYSTEM, *names, *self._read, *read),
            (*self._write, *DEVICES, *scratch, *write),
            landlock=self.features.landlock,
            port=self._proxy,
        )


# ---------------------------------------------------------------------------------------- processes


def die_with_parent(how: int = signal.SIGKILL) -> None:
    """Be sent `how` when the thread that started this process ends; Linux only. A change of user
    undoes it.
    """
    if sys.platform == "linux":
        _libc.prctl(1, how, 0, 0, 0)


def volunteer() -> None:
    """When memory is short, this process and its children are the first to go; Linux only."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("800")


def adopt_orphans() -> None:
    """Become the parent of every descendant that loses its own; Linux only."""
    if sys.platform == "linux":
        _libc.prctl(36, 1, 0, 0, 0)


def descendants(root: int, keep: Collection[int] = ()) -> list[int]:
    """The living processes below `root`, without those in `keep` and what is below them."""
    below: dict[int, list[int]] = {}
    for pid in _processes():
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                state, parent = file.read().rsplit(b")", 1)[1].split()[:2]
        except (OSError, IndexError, ValueError):
            continue  # it has ended
        if pid not in keep:
            below.setdefault(int(parent), []).append(pid if state not in b"ZX" else -pid)
    found: list[int] = []
    pending = [root]
    while pending:
        for child in below.get(pending.pop(), ()):
            pending.append(abs(child))
            if child > 0:
                found.append(child)
    return found


def kill_descendants(keep: Collection[int] = ()) -> None:
    """End everything below this process, which must have called `adopt_orphans`; returns when it is
    gone.

    All are stopped before any is killed, so that none can fork away meanwhile.
    """
    while True:
        stopped: set[int] = set()
        while fresh := set(descendants(os.getpid(), keep)) - stopped:
            stopped |= fresh
            _signal_all(fresh, signal.SIGSTOP)
        if not stopped:
            return
        _signal_all(stopped, signal.SIGKILL)
        _reap(stopped)


def _reap(killed: set[int]) -> None:
    """Wait until the killed are gone; a grandchild becomes ours when its parent is."""
    for pid in killed:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _signal_all(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def _processes() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


# ---------------------------------------------------------------------------------------- keepers

WATCHED = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
"""What a process that calls `watch` must have blocked."""


def watch(child: int) -> int:
    """Wait until `child` has ended or this process is told to end; then end all that is below.

    Returns the exit code of `child`.
    """
    while True:
        number = signal.sigwait(WATCHED)
        code = 128 + number if number != signal.SIGCHLD else reaped().get(child)
        if code is not None:
            kill_descendants()
            return code


def reaped() -> dict[int, int]:
    """Reap the children that have ended: their exit codes, 128 and the number for a signal."""
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            code = os.waitstatus_to_exitcode(status)
            ended[pid] = code if code >= 0 else 128 - code
    return ended


def forked(body: Callable[..., int], *arguments: object) -> int:
    """Run `body` in a child that ends with what it returns; the child's id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        code = body(*arguments)
    except BaseException as error:
        sys.stderr.write(f"{body.__name__}: {error!r}\n")
        sys.stderr.flush()
        code = 127
    os._exit(code)


def kept(body: Callable[..., int], *arguments: object) -> int:
    """Run `body` in a child, below a keeper, whose id this returns: when the child ends, or the
    keeper is told to, all that is left behind ends too. Its exit code is the child's.

    What it is told before it listens waits for it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    try:
        return forked(_keep, body, *arguments)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_anew(guest: Any) -> None:
    """What a program inside a guest may have, from now on; called right before it is started.
    `guest` says so: its `limits`, `running` tasks, `cage` and `folders`, whose descriptors stay.
    """
    limit(guest.limits, guest.running)
    guest.cage.give_up_more()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    folders = [folder.descriptor for folder in guest.folders]
    close_all_but(folders)
    for descriptor in folders:
        os.set_inheritable(descriptor, True)  # the environment may name them


def _keep(body: Callable[..., int], *arguments: object) -> int:
    signal.set_wakeup_fd(-1)
    adopt_orphans()
    die_with_parent()
    child = forked(body, *arguments)
    close_all_but(())
    return watch(child)
