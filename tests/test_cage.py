"""The cage by itself: what it refuses, what still works, and that nothing is left behind."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from oxydra import cage
from tests.conftest import eventually
from tests.sandbox import processes_with

PATH = Path(cage.__file__)
FEATURES = cage.probe()
PYTHON = "/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else sys.executable

needs_cage = pytest.mark.skipif(
    not (FEATURES.files and FEATURES.seccomp), reason=f"the kernel offers {FEATURES} only"
)


def inside(code: str, **parameters: object) -> object:
    """Run `code` in a process of its own with `cage` and `p`; what it sets `out` to."""
    program = textwrap.dedent(
        f"""
        import importlib.util, json, os, sys
        spec = importlib.util.spec_from_file_location("cage", {str(PATH)!r})
        cage = importlib.util.module_from_spec(spec)
        sys.modules["cage"] = cage
        spec.loader.exec_module(cage)
        p = json.loads(sys.argv[1])
        def why(action, *arguments):
            try:
                action(*arguments)
            except OSError as error:
                return error.errno
            return None
        """
    ) + textwrap.dedent(code)
    done = subprocess.run(
        [
            PYTHON,
            "-I",
            "-S",
            "-B",
            "-c",
            program + "\nprint(json.dumps(out))",
            json.dumps(parameters),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_imports_nothing_of_ours():
    """A guest loads it by its path."""
    assert "oxydra" not in re.findall(r"^(?:from|import) (\w+)", PATH.read_text(), re.M)


@needs_cage
def test_files_are_confined(tmp_path):
    for name in ("read", "write", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("text")
    got = inside(
        """
        cage.forbid_privileges()
        fd = os.open(p["write"], os.O_RDONLY)
        cage.confine([*cage.SYSTEM, p["read"], "/not/there"], [fd], landlock=p["landlock"])
        def write(path):
            with open(path, "w") as file: file.write("new")
        out = {
            "read": why(open, p["read"] + "/file"),
            "write what is read": why(write, p["read"] + "/file"),
            "write": why(write, p["write"] + "/file"),
            "make": why(write, p["write"] + "/new"),
            "move": why(os.rename, p["write"] + "/new", p["write"] + "/newer"),
            "other": why(open, p["other"] + "/file"),
            "list": why(os.listdir, p["other"]),
            "move out": why(os.rename, p["write"] + "/newer", p["other"] + "/x"),
            "system": why(os.listdir, "/usr/bin"),
        }
        """,
        landlock=FEATURES.landlock,
        **{name: str(tmp_path / name) for name in ("read", "write", "other")},
    )
    denied = {"write what is read", "other", "list", "move out"}
    assert {name for name, code in got.items() if code in (errno.EACCES, errno.EXDEV)} == denied
    assert {code for name, code in got.items() if name not in denied} == {None}


@needs_cage
@pytest.mark.parametrize("landlock", range(1, FEATURES.landlock + 1))
def test_every_version_of_landlock(tmp_path, landlock):
    got = inside(
        """
        cage.forbid_privileges()
        cage.confine(cage.SYSTEM, [p["here"]], landlock=p["landlock"])
        out = [why(os.listdir, path) for path in (p["here"], "/root")]
        out.append(why(os.mkdir, p["here"] + "/x"))
        """,
        here=str(tmp_path),
        landlock=landlock,
    )
    assert got == [None, errno.EACCES, None]


@needs_cage
@pytest.mark.parametrize("attributes", [True, False])
@pytest.mark.parametrize("signals", [True, False])
def test_what_calls_are_refused(tmp_path, attributes, signals):
    target = tmp_path / "file"
    target.write_text("x")
    got = inside(
        """
        import socket, signal, time
        cage.forbid_privileges()
        cage.filter_calls(attributes=p["attributes"], signals=p["signals"])
        file = os.open(p["target"], os.O_RDWR)
        out = {
            "socket": why(socket.socket),
            "unix": why(socket.socket, socket.AF_UNIX),
            "datagrams": why(socket.socketpair, socket.AF_UNIX, socket.SOCK_DGRAM),
            "pair": why(socket.socketpair),
            "chmod": why(os.chmod, p["target"], 0o600),
            "fchmod": why(os.fchmod, file, 0o600),
            "utime": why(os.utime, p["target"]),
            "futime": why(os.utime, file),
            "kill": why(os.kill, os.getppid(), 0),
            "group": why(os.kill, 0, 0),
            "nice": why(os.setpriority, os.PRIO_PROCESS, 0, 5),
            "renice": why(os.setpriority, os.PRIO_PROCESS, os.getppid(), 5),
            "chroot": why(os.chroot, "/"),
            "fork": why(lambda: os.fork() or os._exit(0)),
        }
        import threading
        thread = threading.Thread(target=lambda: None); thread.start(); thread.join()
        """,
        target=str(target),
        attributes=attributes,
        signals=signals,
    )
    refused = {"socket", "unix", "datagrams", "renice", "chroot"}
    refused |= set() if attributes else {"chmod", "utime"}
    refused |= set() if signals else {"kill"}
    assert {name for name, code in got.items() if code} == refused


@needs_cage
def test_ordinary_programs_work(tmp_path):
    got = inside(
        """
        import subprocess
        cage.limit(cage.Limits(), cage.tasks_of(os.getuid()))
        cage.forbid_privileges()
        cage.confine([*cage.SYSTEM, "/proc"], [p["here"], *cage.DEVICES], landlock=p["landlock"])
        cage.filter_calls(attributes=False)
        os.chdir(p["here"])
        script = "echo a | tr a b > f; sort < f; (exit 3); echo $?; [ -w /dev/null ] && echo null"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
        code = "import sqlite3, subprocess; print(subprocess.check_output(['echo', 'x']))"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        out = [done.stdout, done.stderr, other.stdout, other.stderr]
        """,
        here=str(tmp_path),
        landlock=FEATURES.landlock,
    )
    assert got == ["b\n3\nnull\n", "", "b'x\\n'\n", ""]


def test_limits_only_go_down():
    got = inside(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
        cage.limit(cage.Limits(data=1 << 29, open_files=500, file_size=1000))
        names = ("RLIMIT_NOFILE", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_CORE")
        out = [resource.getrlimit(getattr(resource, name)) for name in names]
        """
    )
    assert got == [[100, 100], [1 << 29] * 2, [1000, 1000], [0, 0]]


def test_what_a_user_runs_is_counted():
    before = cage.tasks_of(os.geteuid())
    child = subprocess.Popen(["sleep", "600"])
    try:
        assert before >= 1
        eventually(lambda: cage.tasks_of(os.geteuid()) >= 1)
        assert child.pid in cage.descendants(os.getpid())
        assert child.pid not in cage.descendants(os.getpid(), keep=[child.pid])
    finally:
        child.kill()
        child.wait()
    assert child.pid not in cage.descendants(os.getpid())


@pytest.mark.skipif(sys.platform != "linux", reason="orphans can only be adopted on Linux")
def test_everything_below_is_killed():
    mark = f"86405.{os.getpid()}"
    got = inside(
        """
        import subprocess
        cage.adopt_orphans()
        script = "(setsid sleep MARK &); (setsid sh -c '(sleep MARK &) ; (sleep MARK &)' &);"
        script += " exec sleep MARK"
        kept = subprocess.Popen(["sleep", p["mark"]])
        child = subprocess.Popen(["bash", "-c", script.replace("MARK", p["mark"])])
        while len(cage.descendants(os.getpid())) < 5: pass
        cage.kill_descendants(keep=[kept.pid])
        out = [kept.poll(), cage.descendants(os.getpid()) == [kept.pid]]
        kept.kill()
        kept.wait()
        """,
        mark=mark,
    )
    assert got == [None, True]
    assert not processes_with(f"sleep {mark}")


@pytest.mark.skipif(sys.platform != "linux", reason="keepers need Linux")
@pytest.mark.parametrize("how", ["ends", "is told to"])
def test_a_keeper_takes_everything_along(how):
    mark = f"86406.{os.getpid()}"
    code = inside(
        """
        import signal, time
        def body():
            import subprocess
            subprocess.Popen(["setsid", "sleep", p["mark"]])
            if p["how"] == "ends":
                return 5
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            signal.pause()
        keeper = cage.kept(body)
        while p["how"] != "ends" and len(cage.descendants(keeper)) < 2: pass
        if p["how"] != "ends":
            os.kill(keeper, signal.SIGTERM)
        _, status = os.waitpid(keeper, 0)
        out = os.waitstatus_to_exitcode(status)
        """,
        how=how,
        mark=mark,
    )
    assert code == (5 if how == "ends" else 128 + signal.SIGTERM)
    assert not processes_with(f"sleep {mark}")


def test_the_numbers_are_those_of_this_machine():
    """The tables against the system's own headers."""
    headers = {
        0: ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "__NR_"),
        1: ("/usr/include/asm-generic/unistd.h", "__NR_"),
    }
    compared = 0
    for column, (header, prefix) in headers.items():
        try:
            text = Path(header).read_text()
        except OSError:
            continue
        known = dict(re.findall(rf"#define {prefix}(?:3264_)?(\w+)\s+(\d+)\s", text))
        for table in (cage.NEVER, cage.ATTRIBUTES, cage.SIGNALS):
            for name, numbers in table.items():
                if name in known and numbers[column] >= 0:
                    assert numbers[column] == int(known[name]), name
                    compared += 1
    if not compared:
        pytest.skip("the kernel's headers are not installed")


def test_both_architectures_make_sound_programs(monkeypatch):
    """No jump leaves the program, and each way through it ends with a verdict."""
    for machine in ("x86_64", "aarch64"):
        monkeypatch.setattr(platform, "machine", lambda m=machine: m)
        for attributes in (True, False):
            for signals, streams in ((True, True), (True, False), (False, False)):
                program = cage._program(attributes, signals, streams)
                assert len(program) < 4096
                for place, (code, yes, no, _value) in enumerate(program):
                    if code & 7 == 5:
                        assert place + 1 + max(yes, no) < len(program)
                assert program[-1][0] == 6


def test_a_machine_nobody_knows_has_no_cage(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert cage.probe() == cage.Features(0, False)
