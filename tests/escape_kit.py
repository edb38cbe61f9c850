"""What hostile code in the shell guest tries. Copied into the workspace and run there as a program:
`python3 escape_kit.py PARAMETERS`, the parameters as JSON. Standard library only.

Each attempt is a function that returns something true if it got what it wanted, or raises; it runs
in a child of its own. Printed is one JSON object: what became of each.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import platform
import resource
import signal
import socket
import struct
import subprocess
import sys
import termios
import time

ATTEMPTS = {}
LIBC = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
P = {}  # the parameters


def attempt(function):
    ATTEMPTS[function.__name__] = function
    return function


def call(x86, arm, *arguments):
    """A system call by its number; raises OSError."""
    number = x86 if X86 else arm
    if number < 0:
        raise OSError("there is no such call on this machine")
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = LIBC.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def succeeded(*arguments):
    call(*arguments)
    return True


def secret_in(path):
    with open(path, "rb") as file:
        return P["secret"].encode() in file.read(1 << 16)


def contents(path):
    with open(path, "rb") as file:
        return file.read()


def ran(*command):
    done = subprocess.run(command, capture_output=True, timeout=5, stdin=subprocess.DEVNULL)
    return done.stdout


# ------------------------------------------------------------------------------------------ reading

ATTEMPTS.update(
    read_directly=lambda: secret_in(P["outside"]),
    read_through_proc_self_root=lambda: secret_in("/proc/self/root" + P["outside"]),
    read_through_the_first_process=lambda: secret_in("/proc/1/root" + P["outside"]),
    read_by_climbing=lambda: secret_in("../" * 20 + P["outside"].lstrip("/")),
    read_by_climbing_from_cwd=lambda: secret_in(
        "/proc/self/cwd/" + "../" * 20 + P["outside"].lstrip("/")
    ),
    read_by_another_program=lambda: P["secret"].encode() in ran("cat", P["outside"]),
    run_a_program_from_outside=lambda: P["secret"].encode() in ran(P["program"]),
    list_a_folder_outside=lambda: os.listdir(os.path.dirname(P["outside"])),
    find_the_file=lambda: (
        os.path.basename(P["outside"]).encode() in ran("find", os.path.dirname(P["outside"]))
    ),
    read_the_vault=lambda: (
        secret_in("../vault/secret.txt") or secret_in(P["workspace"] + "/vault/secret.txt")
    ),
    read_the_database=lambda: secret_in("../internal/oxydra.db"),
    read_the_database_by_its_path=lambda: secret_in(P["workspace"] + "/internal/oxydra.db"),
    read_the_token=lambda: secret_in(P["workspace"] + "/ipc/gateway-token"),
    read_another_users_vault=lambda: secret_in(P["other"] + "/vault/secret.txt"),
    list_another_users_workspace=lambda: os.listdir(P["other"]),
    list_all_workspaces=lambda: os.listdir(os.path.dirname(P["other"])),
    read_another_users_token=lambda: secret_in(P["other"] + "/ipc/gateway-token"),
    read_the_bootstrap=lambda: contents("/run/oxydra/bootstrap"),
    read_the_engines_files=lambda: os.listdir("/var/lib/docker"),
    read_the_first_environment=lambda: contents("/proc/1/environ"),
    read_the_first_memory=lambda: os.open("/proc/1/mem", os.O_RDONLY),
    read_shared_memory_files=lambda: secret_in("/dev/shm/" + P["shm_file"]),
    read_the_kernel_log=lambda: succeeded(103, 116, 10, None, 0),  # SYSLOG_ACTION_SIZE_BUFFER
)


@attempt
def read_through_a_link():
    os.symlink(P["outside"], "link-out")
    return secret_in("link-out")


@attempt
def read_through_a_hard_link():
    os.link(P["outside"], "hard-out")
    return secret_in("hard-out")


@attempt
def read_relative_to_a_folder():
    folder = os.open("/", os.O_PATH)
    file = os.open(P["outside"].lstrip("/"), os.O_RDONLY, dir_fd=folder)
    return P["secret"].encode() in os.read(file, 4096)


@attempt
def read_by_mapping():
    with open(P["outside"], "rb") as file:
        return P["secret"].encode() in mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)[:]


@attempt
def read_a_file_handle():
    # name_to_handle_at, then open_by_handle_at
    handle = ctypes.create_string_buffer(struct.pack("Ii", 120, 0) + bytes(120))
    mount = ctypes.create_string_buffer(4)
    call(303, 264, -100, P["outside"].encode(), handle, mount, 0)
    return succeeded(304, 265, os.open("/", os.O_RDONLY), handle, 0)


@attempt
def read_the_disk():
    with open("/dev/" + os.listdir("/sys/class/block")[0], "rb") as disk:
        return disk.read(512)


@attempt
def read_physical_memory():
    with open("/dev/mem", "rb") as memory:
        return memory.read(16)


@attempt
def read_kernel_memory():
    with open("/proc/kcore", "rb") as memory:
        return memory.read(16)


@attempt
def watch_a_folder_outside():
    watch = call(294, 26, 0)
    return succeeded(254, 27, watch, os.path.dirname(P["outside"]).encode(), 0x100)


@attempt
def passwords():
    with open("/etc/shadow") as file:
        return file.read()


# ------------------------------------------------------------------------------------------ writing

ATTEMPTS.update(
    truncate_by_path=lambda: succeeded(76, 45, P["writable"].encode(), 0),
    lock_a_file_away=lambda: succeeded(268, 53, -100, P["writable"].encode(), 0),
    change_a_mode_the_new_way=lambda: succeeded(452, 452, -100, P["writable"].encode(), 0, 0),
)


@attempt
def write_directly():
    with open(P["writable"], "w") as file:
        return file.write("spoiled")


@attempt
def append():
    with open(P["writable"], "a") as file:
        return file.write("spoiled")


@attempt
def truncate_by_opening():
    os.open(P["writable"], os.O_RDONLY | os.O_TRUNC)
    return os.stat(P["writable"]).st_size == 0


@attempt
def write_through_a_link():
    os.symlink(P["writable"], "link-write")
    with open("link-write", "w") as file:
        return file.write("spoiled")


@attempt
def write_through_a_hard_link():
    os.link(P["writable"], "hard-write")
    with open("hard-write", "w") as file:
        return file.write("spoiled")


@attempt
def make_a_file_outside():
    with open(P["folder"] + "/new", "w") as file:
        return file.write("spoiled")


@attempt
def make_a_folder_outside():
    os.mkdir(P["folder"] + "/new-folder")
    return True


@attempt
def make_a_link_outside():
    os.symlink("x", P["folder"] + "/new-link")
    return True


@attempt
def move_a_file_out():
    with open("mine", "w") as file:
        file.write("spoiled")
    os.rename("mine", P["folder"] + "/moved")
    return True


@attempt
def move_a_file_in():
    os.rename(P["folder"] + "/movable", "stolen")
    return True


@attempt
def delete_a_file_outside():
    os.unlink(P["folder"] + "/deletable")
    return True


@attempt
def open_up_a_file():
    os.chmod(P["writable"], 0o777)
    return True


@attempt
def change_a_group():
    os.chown(P["writable"], -1, os.getgid())
    return True


@attempt
def change_times():
    os.utime(P["writable"], (1, 1))
    return True


@attempt
def set_an_attribute():
    os.setxattr(P["writable"], "user.spoiled", b"1")
    return True


@attempt
def tamper_with_the_endpoint():
    with open("../ipc/gateway-endpoint", "w") as file:
        return file.write("ws://127.0.0.1:9/ws")


@attempt
def tamper_with_the_endpoint_by_its_path():
    with open(P["workspace"] + "/ipc/gateway-endpoint", "w") as file:
        return file.write("ws://127.0.0.1:9/ws")


@attempt
def write_to_the_images_files():
    with open("/opt/oxydra/shell-daemon", "a") as file:
        return file.write("spoiled")


@attempt
def write_a_kernel_setting():
    with open("/proc/sys/kernel/core_pattern", "w") as file:
        return file.write("|/bin/true")


@attempt
def leave_by_a_control_group():
    os.mkdir("/sys/fs/cgroup/memory/out")
    with open("/sys/fs/cgroup/memory/release_agent", "w") as file:
        return file.write("/bin/true")


@attempt
def replace_the_control_socket():
    os.unlink(P["control"])
    return True


@attempt
def replace_the_shared_folder():
    os.rename(P["workspace"] + "/shared", P["workspace"] + "/shared2")
    return True


@attempt
def write_to_the_system():
    with open("/usr/bin/oxydra-was-here", "w") as file:
        return file.write("spoiled")


@attempt
def make_a_device():
    os.mknod("disk", 0o600 | 0o060000, os.makedev(254, 0))
    return True


# ------------------------------------------------------------------------------------------ network


def connects(family, kind, address):
    with socket.socket(family, kind) as sock:
        sock.settimeout(1)
        if kind == socket.SOCK_STREAM:
            sock.connect(address)
        else:
            sock.sendto(b"out", address)
        return True


def tcp(address):
    return connects(socket.AF_INET, socket.SOCK_STREAM, address)


def udp(address):
    return connects(socket.AF_INET, socket.SOCK_DGRAM, address)


def unix(address):
    return connects(socket.AF_UNIX, socket.SOCK_STREAM, address)


ATTEMPTS.update(
    tcp_to_loopback=lambda: tcp(("127.0.0.1", P["tcp_port"])),
    tcp_to_any_address=lambda: tcp(("0.0.0.0", P["tcp_port"])),
    tcp_over_ipv6=lambda: connects(
        socket.AF_INET6, socket.SOCK_STREAM, ("::ffff:127.0.0.1", P["tcp_port"])
    ),
    tcp_by_bash=lambda: (
        b"in" in ran("bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{P['tcp_port']} && echo in")
    ),
    udp_by_bash=lambda: (
        b"in" in ran("bash", "-c", f"echo x >/dev/udp/127.0.0.1/{P['udp_port']} && echo in")
    ),
    udp_to_loopback=lambda: udp(("127.0.0.1", P["udp_port"])),
    udp_to_a_name_server=lambda: udp(("8.8.8.8", 53)),
    the_metadata_service=lambda: udp(("169.254.169.254", 80)),
    raw_packets=lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    link_layer=lambda: socket.socket(17, socket.SOCK_RAW, 3),  # AF_PACKET
    netlink=lambda: socket.socket(16, socket.SOCK_RAW, 0),  # AF_NETLINK
    vsock=lambda: socket.socket(40, socket.SOCK_STREAM),  # AF_VSOCK
    kernel_crypto=lambda: socket.socket(38, socket.SOCK_SEQPACKET),  # AF_ALG
    the_control_socket=lambda: unix(P["control"]),
    the_docker_socket=lambda: unix(P["docker"]),
    the_engines_own_socket=lambda: unix("/var/run/docker.sock"),
    the_engines_other_socket=lambda: unix("/run/docker.sock"),
    containerd=lambda: unix("/run/containerd/containerd.sock"),
    the_stream_to_the_runner=lambda: unix("/run/oxydra/stream"),
    the_bridges_address=lambda: tcp(("172.17.0.1", P["bridge_port"])),
    the_bridges_address_by_udp=lambda: udp(("172.17.0.1", P["udp_port"])),
    a_network_device=lambda: set(os.listdir("/sys/class/net")) - {"lo"},
    routes=lambda: contents("/proc/net/route").count(b"\n") > 1,
    the_machine_over_vsock=lambda: connects(40, socket.SOCK_STREAM, (2, 1024)),
    an_abstract_socket=lambda: unix("\0" + P["abstract"]),
    a_datagram_socket=lambda: connects(socket.AF_UNIX, socket.SOCK_DGRAM, P["datagram"]),
    io_uring=lambda: succeeded(425, 425, 4, ctypes.create_string_buffer(256)),
)


@attempt
def listen_on_a_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        return True


@attempt
def a_pair_connected_elsewhere():
    one, _other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.connect(P["datagram"])
    return one.send(b"out")


@attempt
def a_stream_pair_connected_elsewhere():
    one, other = socket.socketpair()
    other.close()
    one.connect(P["control"])
    return True


@attempt
def an_inherited_socket():
    for name in range(3, 256):
        try:
            with socket.socket(fileno=os.dup(name)) as sock:
                if sock.family:
                    return name
        except OSError:
            continue
    return None


# ---------------------------------------------------------------------------------------- processes

ATTEMPTS.update(
    signal_a_thread=lambda: succeeded(234, 131, P["victim"], P["victim"], signal.SIGWINCH),
    trace_another=lambda: succeeded(101, 117, 16, P["victim"], None, None),  # PTRACE_ATTACH
    seize_another=lambda: succeeded(101, 117, 0x4206, P["victim"], None, None),
    read_its_environment=lambda: secret_in(f"/proc/{P['victim']}/environ"),
    read_its_arguments=lambda: secret_in(f"/proc/{P['victim']}/cmdline"),
    follow_its_folder=lambda: os.listdir(f"/proc/{P['victim']}/cwd"),
    enter_its_root=lambda: os.listdir(f"/proc/{P['victim']}/root"),
    limit_it=lambda: succeeded(
        302, 261, P["victim"], 4, struct.pack("QQ", 0, 0), None
    ),  # RLIMIT_CORE
    pin_it=lambda: succeeded(203, 122, P["victim"], 8, struct.pack("Q", 1)),
    schedule_it=lambda: succeeded(144, 119, P["victim"], 0, struct.pack("i", 0)),
    renice_it=lambda: succeeded(141, 140, 0, P["victim"], 1),
    renice_everybody=lambda: succeeded(141, 140, 2, 0, 1),  # PRIO_USER
    change_its_io_priority=lambda: succeeded(251, 30, 1, P["victim"], (2 << 13) | 5),
    move_its_pages=lambda: succeeded(
        256, 238, P["victim"], 64, struct.pack("Q", 1), struct.pack("Q", 1)
    ),
    compare_with_it=lambda: succeeded(312, 272, os.getpid(), P["victim"], 0, 0, 0),
)


@attempt
def signal_another():
    os.kill(P["victim"], signal.SIGWINCH)
    return True


@attempt
def signal_everybody():
    os.kill(-1, signal.SIGWINCH)
    time.sleep(0.05)  # the victim, if it was reached, says so itself
    return False


@attempt
def signal_by_descriptor():
    descriptor = call(434, 434, P["victim"], 0)
    return succeeded(424, 424, descriptor, signal.SIGWINCH, None, 0)


@attempt
def queue_a_signal():
    info = ctypes.create_string_buffer(struct.pack("iii", signal.SIGWINCH, 0, -1) + bytes(116))
    return succeeded(129, 138, P["victim"], signal.SIGWINCH, info)


@attempt
def take_a_descriptor():
    descriptor = call(434, 434, P["victim"], 0)
    return succeeded(438, 438, descriptor, 0, 0)


@attempt
def read_its_memory():
    buffer = ctypes.create_string_buffer(8)
    vector = ctypes.create_string_buffer(struct.pack("PN", ctypes.addressof(buffer), 8))
    remote = ctypes.create_string_buffer(struct.pack("PN", P["address"], 8))
    return succeeded(310, 270, P["victim"], vector, 1, remote, 1, 0)


@attempt
def read_its_memory_file():
    with open(f"/proc/{P['victim']}/mem", "rb") as file:
        file.seek(P["address"])
        return file.read(8)


@attempt
def read_its_maps():
    with open(f"/proc/{P['victim']}/maps") as file:
        return file.read()


@attempt
def feed_it_to_the_oom_killer():
    with open(f"/proc/{P['victim']}/oom_score_adj", "w") as file:
        file.write("1000")
    return True


def ancestors():
    """The keeper, the daemon and what is above them, as far as can be seen."""
    found, pid = [], os.getppid()
    while pid > 1:
        found.append(pid)
        try:
            with open(f"/proc/{pid}/stat") as file:
                pid = int(file.read().rsplit(")", 1)[1].split()[1])
        except OSError:
            break
    return found


def daemons():
    """The processes of the guest itself: the parents of this session's leader, and `guest`."""
    leader = os.getsid(0)
    return {pid for pid in [*ancestors(), *P["guest"]] if pid != leader} - {os.getpid(), P["me"]}


@attempt
def signal_the_guest():
    reached = []
    for pid in daemons():
        try:
            os.kill(pid, signal.SIGWINCH)
            reached.append(pid)
        except OSError:
            continue
    return reached and P["isolated"] is False and reached


@attempt
def read_the_guests_memory():
    for pid in daemons():
        try:
            with open(f"/proc/{pid}/mem", "rb"):
                return pid
        except OSError:
            continue
    return None


@attempt
def read_the_guests_environment():
    for pid in daemons():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                return file.read()
        except OSError:
            continue
    return None


# ------------------------------------------------------------------------------------------- kernel

ATTEMPTS.update(
    a_user_namespace=lambda: succeeded(272, 97, 0x10000000),
    a_mount_namespace=lambda: succeeded(272, 97, 0x20000),
    unshare_the_program=lambda: ran("unshare", "-Ur", "id", "-u").strip() == b"0",
    enter_a_namespace=lambda: succeeded(
        308, 268, os.open(f"/proc/{P['victim']}/ns/user", os.O_RDONLY), 0
    ),
    mount_something=lambda: succeeded(165, 40, b"none", b"/tmp", b"tmpfs", 0, None),
    unmount_something=lambda: succeeded(166, 39, b"/proc", 2),
    a_new_mount=lambda: succeeded(430, 430, b"tmpfs", 0),
    clone_a_mount=lambda: succeeded(428, 428, -100, b"/", 1),
    add_a_key=lambda: succeeded(248, 217, b"user", b"oxydra", b"x", 1, -3),
    read_keys=lambda: succeeded(250, 219, 0, -3, 0),  # KEYCTL_GET_KEYRING_ID of the session's
    load_a_bpf_program=lambda: succeeded(
        321, 280, 0, struct.pack("IIII", 2, 4, 4, 1) + bytes(112), 128
    ),
    handle_page_faults=lambda: succeeded(323, 282, 1),
    old_calls=lambda: (
        X86 and succeeded(154, -1, 0, ctypes.create_string_buffer(16), 16)
    ),  # modify_ldt
    ports_of_the_machine=lambda: succeeded(173, -1, 0x80, 1, 1),
    calls_of_x32=lambda: X86 and succeeded(0x40000000 | 41, -1, 1, 1, 0),
    become_root_by_sudo=lambda: b"uid=0" in ran("sudo", "-n", "id"),
    become_another_by_su=lambda: b"uid=" in ran("su", "-s", "/bin/sh", "-c", "id", "nobody"),
    attach_shared_memory=lambda: succeeded(30, 196, P["shm_id"], None, 0),
    make_shared_memory=lambda: succeeded(29, 194, 0, 4096, 0o1600),
    open_a_message_queue=lambda: succeeded(
        240, 180, b"oxydra", os.O_RDWR | os.O_CREAT, 0o600, None
    ),
)


@attempt
def a_child_in_a_namespace():
    pid = call(56, 220, 0x10000000 | signal.SIGCHLD, None, None, None, None)
    if pid == 0:
        os._exit(0)
    return pid


@attempt
def a_child_by_the_new_call():
    pid = call(435, 435, struct.pack("8Q", 0x10000000, 0, 0, 0, signal.SIGCHLD, 0, 0, 0), 64)
    if pid == 0:
        os._exit(0)
    return pid


@attempt
def change_the_root():
    os.chroot(".")
    return True


@attempt
def watch_performance():
    attributes = struct.pack("IIQ", 1, 128, 0) + bytes(112)
    return succeeded(298, 241, attributes, 0, -1, -1, 0)


@attempt
def calls_of_i386():
    # mov eax, 20 (getpid); int 0x80; ret
    if not X86:
        return False
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return ctypes.CFUNCTYPE(ctypes.c_int)(address)() > 0


@attempt
def calls_nobody_has_judged():
    number = 468  # file_getattr
    buffer = ctypes.create_string_buffer(64)
    return succeeded(number, number, -100, P["outside"].encode(), buffer, 24, 0)


@attempt
def become_root():
    os.setuid(0)
    return os.getuid() == 0


@attempt
def rename_the_machine():
    socket.sethostname("oxydra")
    return True


@attempt
def set_the_clock():
    time.clock_settime(time.CLOCK_REALTIME, time.time())
    return True


# ---------------------------------------------------------------------------------------- terminals

ATTEMPTS.update(
    # in a namespace of its own the name is that of another terminal
    another_terminal=lambda: (
        os.write(os.open(P["terminal"], os.O_RDWR | os.O_NOCTTY), b"x") and not P["isolated"]
    ),
)


@attempt
def type_into_the_terminal():
    with open("/dev/tty", "wb", buffering=0) as tty:
        fcntl.ioctl(tty, termios.TIOCSTI, b"x")
    return True


@attempt
def type_with_high_bits_set():
    tty = os.open("/dev/tty", os.O_RDWR)
    return succeeded(16, 29, tty, (1 << 32) | 0x5412, b"x")


# ---------------------------------------------------------------------------------------- resources

ATTEMPTS.update(
    much_memory=lambda: len(bytearray(3 << 30)),
    much_memory_in_pieces=lambda: len([mmap.mmap(-1, 256 << 20, flags=34) for _ in range(12)]),
    many_open_files=lambda: [os.open("/dev/null", os.O_RDONLY) for _ in range(5000)],
)


@attempt
def a_large_file():
    with open("large", "wb") as file:
        try:
            os.truncate(file.fileno(), 2 << 30)
            return True
        finally:
            os.unlink("large")


@attempt
def raise_a_limit():
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    return True


@attempt
def many_processes():
    waiting, never = os.pipe()
    try:
        for _ in range(600):
            if os.fork() == 0:
                os.close(never)
                os._exit(len(os.read(waiting, 1)))
        return True
    finally:
        os.close(never)


# ------------------------------------------------------------------------------------------ running


def run_one(function):
    """What became of an attempt: `escaped: …` or why not."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        signal.alarm(5)
        try:
            got = function()
            said = f"escaped: {str(got)[:100]}" if got else "nothing"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode("utf-8", "replace"))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode("utf-8", "replace")
    _, status = os.waitpid(pid, 0)
    return said or f"ended with {os.waitstatus_to_exitcode(status)}"


def main():
    with open(sys.argv[1]) as file:
        P.update(json.load(file), me=os.getpid())
    wanted = P.get("attempts") or ATTEMPTS
    json.dump({name: run_one(ATTEMPTS[name]) for name in wanted}, sys.stdout)


if __name__ == "__main__":
    main()
