"""The microVM tier: what its images are made of, what a machine can reach, what is left of one, and
a whole daemon in two of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from oxydra.errors import OxydraError
from oxydra.threads import Service
from oxydra.tiers import accelerator, machine_images, microvm, templates
from oxydra.tiers.accelerator import Accelerator
from oxydra.tiers.machine_images import ImageSet
from oxydra.tiers.qemu import Shape
from tests.conftest import eventually
from tests.fake_model import FakeModel, Reply
from tests.mcp_desk import desk, programs
from tests.microvm_images import build_microvm, machine_cache
from tests.sandbox import UID, Sandbox, isolation, missing, sandbox
from tests.test_daemon import SCRIPT, Home, all_killed
from tests.test_escape import memory_holds
from tests.test_users import add_user, space

LEVEL = "microvm+cage"
NEEDED = r"vmlinuz-|/(virtio|9p|squash|netfs|fscache|failover|net_failover)[^/]*\.ko"
ROOT = Path(__file__).resolve().parent.parent


def in_a_machine(test):
    """Marks a test that starts one."""
    return pytest.mark.microvm(pytest.mark.slow(test))


# ------------------------------------------------------------------------------- what is missing


def test_without_images_it_says_how_to_make_them():
    with pytest.raises(OxydraError) as refused:
        machine_images.find(["gcc"])
    assert refused.value.code == "image_missing"
    assert "build-microvm --extra-packages gcc" in refused.value.remedy
    (machine_images.folder().parent / "0.0.1-old").mkdir(parents=True)
    with pytest.raises(OxydraError, match="other code") as refused:
        machine_images.find()
    assert refused.value.code == "image_outdated"
    machine_images.folder().mkdir()
    manifest = {"extra_packages": ["gcc"], "identity": "x"}
    (machine_images.folder() / "manifest.json").write_text(json.dumps(manifest))
    assert machine_images.find(["gcc"]).identity == "x"
    with pytest.raises(OxydraError, match="without the extra packages vim"):
        machine_images.find(["gcc", "vim"])


def test_without_qemu_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OxydraError) as refused:
        accelerator.find(UID)
    assert refused.value.code == "no_qemu" and "apt install" in refused.value.remedy
    old = tmp_path / accelerator.PROGRAM
    old.write_text("#!/bin/sh\necho QEMU emulator version 4.2.1\n")
    old.chmod(0o755)
    with pytest.raises(OxydraError, match="too old"):
        accelerator.find(UID)


SHAPE = Shape(
    role="agent",
    images=ImageSet(Path("/x"), {"identity": "a"}),
    accelerator=Accelerator("tcg", "", "/usr/bin/qemu", "version 7.2.1", 2000000),
    memory=512,
    cpus=1,
    folders=4,
)


def test_a_template_is_another_one_for_anything_else():
    other = replace(SHAPE.accelerator, version="version 7.2.2")
    faster = replace(SHAPE.accelerator, tsc_khz=2000100)
    shapes = [
        SHAPE,
        replace(SHAPE, role="shell"),
        replace(SHAPE, images=ImageSet(Path("/x"), {"identity": "b"})),
        replace(SHAPE, accelerator=other),
        replace(SHAPE, accelerator=faster),
        replace(SHAPE, accelerator=replace(SHAPE.accelerator, name="kvm")),
        replace(SHAPE, memory=513),
        replace(SHAPE, cpus=2),
        replace(SHAPE, folders=5),
    ]
    assert len({templates.key(shape) for shape in shapes}) == len(shapes)
    same = replace(SHAPE, images=ImageSet(Path("/elsewhere"), {"identity": "a"}))
    assert templates.key(same) == templates.key(SHAPE)


def test_templates_of_images_that_are_gone_are_removed(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    (images / "manifest.json").write_text('{"identity": "now"}')
    old = time.time() - 30 * 86400
    for name, about, age in (
        ("kept", {"images": str(images), "identity": "now"}, 0.0),
        ("unused", {"images": str(images), "identity": "now"}, old),
        ("rebuilt", {"images": str(images), "identity": "before"}, 0.0),
        ("gone", {"images": str(tmp_path / "no"), "identity": "now"}, 0.0),
    ):
        place = templates.folder() / name
        place.mkdir(parents=True)
        (place / "about.json").write_text(json.dumps(about))
        if age:
            os.utime(place / "about.json", (age, age))
    # what does not say yet what it is may be about to be saved, for some minutes
    (templates.folder() / ".new-being-made").mkdir()
    (templates.folder() / ".new-left").mkdir()
    os.utime(templates.folder() / ".new-left", (old, old))
    templates.prune()
    assert {path.name for path in templates.folder().iterdir()} == {"kept", ".new-being-made"}


def test_an_agent_that_is_translated_has_one_processor():
    tcg, kvm = SHAPE.accelerator, replace(SHAPE.accelerator, name="kvm")
    assert microvm.processors("agent", tcg, 4.0, 8) == 1
    assert microvm.processors("shell", tcg, 1.5, 8) == 2
    assert microvm.processors("agent", kvm, 4.0, 2) == 2
    assert microvm.processors("agent", kvm, 0.1, 2) == 1


def test_a_left_over_is_known_by_more_than_its_number(tmp_path):
    note = tmp_path / "note"
    child = subprocess.Popen(["sleep", "1000"])
    try:
        note.write_text(f"{child.pid} 1")  # another process had that number
        microvm.sweep(note)
        assert child.poll() is None and not note.exists()
        note.write_text(microvm.identity(child.pid))
        microvm.sweep(note)
        assert child.wait(60) == -signal.SIGKILL and not note.exists()
        microvm.sweep(note)
    finally:
        child.kill()
        child.wait()


# -------------------------------------------------------------------------------- a shell's machine


@pytest.fixture
def box(tmp_path):
    if missing(LEVEL):
        pytest.skip(missing(LEVEL))
    with sandbox(tmp_path, LEVEL, isolation=isolation(tmp_path, images=False)) as there:
        yield there


@in_a_machine
def test_images_are_not_built_twice():
    machine_cache()
    done = build_microvm()
    assert done.returncode == 0 and "is already there" in done.stdout


@in_a_machine
def test_a_machine_has_no_network_and_no_way_to_its_monitor(box):
    assert box.text("tail -n +3 /proc/net/dev | cut -d: -f1").split() == ["lo"]
    devices = [f"/dev/vport{n}p1" for n in range(8)] + ["/dev/vda", "/dev/hwrng", "/dev/rtc0"]
    for device in devices:
        said = box.text(f"head -c 1 {device} 2>&1 >/dev/null; echo x 2>&1 >{device}")
        assert said.count("Permission denied") + said.count("No such file") == 2, (device, said)
    assert box.text("ls /mnt /shared").split() == ["/mnt:", "/shared:"]


@in_a_machine
def test_qemu_listens_nowhere_and_holds_nothing_of_the_hosts(box):
    pid = box.process.pid
    state = Path(f"/proc/{pid}/status").read_text()
    assert f"Uid:\t{UID}\t{UID}\t{UID}\t{UID}" in state
    assert "NoNewPrivs:\t1" in state and "Seccomp:\t2" in state
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            place = os.readlink(link)
            if place.startswith("socket:"):
                inodes.add(place[8:-1])
            elif place.startswith("/") and not place.startswith(("/dev/", "/memfd:")):
                inside = (str(box.folder), str(machine_cache()), "anon_inode", "/proc/")
                assert place.startswith(inside), place
    for table in ("tcp", "tcp6", "udp", "udp6", "raw", "packet"):
        rows = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        assert not [row for row in rows if inodes & set(row.split())]
    for row in Path("/proc/net/unix").read_text().splitlines()[1:]:
        words = row.split()
        if words[6] in inodes:
            assert len(words) == 7 and words[3] != "00010000"  # no name, not listening


@in_a_machine
def test_links_lead_nowhere_on_the_host(box):
    secret = box.folder / "secret.txt"
    secret.write_text("of the host")
    secret.chmod(0o644)
    (box.folder / "shared" / "ours").symlink_to(secret)
    (box.folder / "shared" / "up").symlink_to("../..")
    said = box.text(
        f"ln -s {secret} mine; ln -s / root; ln -s .. parent; cat mine ours root{secret} "
        f"up/secret.txt parent/secret.txt 2>&1; cat /proc/self/root{secret} 2>&1"
    )
    assert "of the host" not in said
    box.run(f"echo spoiled > mine; echo spoiled > ours; mv x {box.folder}/y")
    assert secret.read_text() == "of the host" and not (box.folder / "y").exists()
    assert (box.folder / "shared" / "mine").is_symlink()  # and no walker of ours follows it


@in_a_machine
def test_files_belong_to_the_owner_of_the_workspace(box):
    box.run("umask 022; echo hi > f; mkdir d; echo '#!/bin/sh' > d/run; chmod 755 d/run; mkfifo p")
    shared = box.folder / "shared"
    for path, mode in ((shared / "f", 0o100644), (shared / "d", 0o40755)):
        assert (path.stat().st_uid, path.stat().st_mode) == (UID, mode)
    assert os.access(shared / "d" / "run", os.X_OK)
    (shared / "from-outside").write_text("seen at once")
    assert box.text("cat from-outside") == "seen at once"


@in_a_machine
def test_a_machine_has_the_time_and_randomness_of_its_own(tmp_path):
    if missing(LEVEL):
        pytest.skip(missing(LEVEL))
    drawn = set()
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        with sandbox(folder, LEVEL) as there:
            before = time.time()
            now = float(there.text("date +%s.%N"))
            assert before - 5 < now < time.time() + 5
            drawn.add(there.text("head -c 16 /dev/urandom | od -An -tx1"))
            drawn.add(there.text("cat /proc/sys/kernel/random/uuid"))
    assert len(drawn) == 4


@in_a_machine
def test_an_mcp_server_runs_in_the_machine(tmp_path):
    if missing(LEVEL):
        pytest.skip(missing(LEVEL))
    limits = isolation(tmp_path, images=False)
    with (
        programs(tmp_path, "plain", level=LEVEL, isolation=limits) as there,
        desk(tmp_path, "plain", box=there) as server,
    ):
        server.look()
        assert server.status()["trusted"], server.trouble()
        assert server.call("add", a=1, b=2).content == "3"
        assert server.call("environment", name="KEY").content == "a-key"
        assert server.call("die").is_error
        assert server.call("add", a=2, b=2).content == "4"  # begun anew


@in_a_machine
def test_memory_and_processors_are_what_was_given(tmp_path):
    if missing(LEVEL):
        pytest.skip(missing(LEVEL))
    held = isolation(tmp_path, images=False, max_memory_mib=320, max_vcpus=1)
    with sandbox(tmp_path, LEVEL, isolation=held) as there:
        assert there.text("nproc") == "1\n"
        total = int(there.text("awk '/MemTotal/{print $2}' /proc/meminfo"))
        assert 200 << 10 < total < 320 << 10
        ran = there.run("python3 -c 'x = bytearray(600 << 20)'", seconds=120)
        assert ran.exit_code != 0
        assert there.text("echo here", conversation="other") == "here\n"
    with (
        pytest.raises(OxydraError, match="needs 256 MiB"),
        sandbox(tmp_path, LEVEL, isolation=isolation(tmp_path, images=False, max_memory_mib=128)),
    ):
        pass


@in_a_machine
def test_a_machine_that_is_killed_says_so_and_leaves_nothing(box):
    os.kill(box.process.pid, signal.SIGKILL)
    assert box.process.wait() == "killed by SIGKILL"
    with pytest.raises(OSError):
        box.process.attach(socket.socketpair()[0])


@in_a_machine
def test_machines_die_with_whoever_started_them(tmp_path):
    """Started by a thread that ends at once, as the kernel counts parents."""
    if missing(LEVEL):
        pytest.skip(missing(LEVEL))
    made = []

    def start(_service: Service) -> None:
        made.append(Sandbox(tmp_path, LEVEL))

    Service("test-start", start).start().stop(120)
    (there,) = made
    assert there.process.wait() == "killed by SIGKILL"
    there.close()


@in_a_machine
def test_without_a_template_it_boots(tmp_path, monkeypatch):
    if missing(LEVEL):
        pytest.skip(missing(LEVEL))

    def refuse(*_: object) -> None:
        raise OxydraError("no state can be saved here")

    monkeypatch.setattr(templates, "restored", refuse)
    with sandbox(tmp_path, LEVEL) as there:
        assert there.text("echo here") == "here\n"


# ----------------------------------------------------------------------------------- a whole daemon


def in_machines(home: Home) -> None:
    """Have a home's daemon start its guests in machines."""
    home.patience = 900
    home.env["XDG_CACHE_HOME"] = str(machine_cache())
    text = home.config.read_text()
    home.config.write_text(text.replace('default_tier = "process"', 'default_tier = "micro_vm"'))


@pytest.fixture
def home(tmp_path):
    if missing(LEVEL):
        pytest.skip(missing(LEVEL))
    home = Home(tmp_path)
    home.init()
    in_machines(home)
    home.env["OXYDRA__TOOLS__SHELL__ALLOW"] = "*"
    yield home
    done = home.command("stop", "--all")
    assert done.returncode in (0, 2, 3), done.stderr


def ask(home, tool, **arguments):
    return home.run("ask", SCRIPT % json.dumps([{"tool": tool, "arguments": arguments}]))


def came_back(home, name, before):
    def back():
        status = json.loads(home.command("status", "--json").stdout or "{}")
        startup = status.get("startup_status", {})
        return status.get(name) not in (None, 0, before) and startup.get("shell_available")

    eventually(back, timeout=180)


@in_a_machine
def test_a_daemon(home):
    home.run("start", "--detach")
    status = home.status()
    startup = status["startup_status"]
    assert startup["sandbox_tier"] == "micro_vm" and startup["accelerator"] in ("kvm", "tcg")
    assert startup["sandbox_level"] == startup["agent_level"] == LEVEL
    expected = {"no_model", "no_kvm", "signals_limited"}
    assert {row["code"] for row in startup["degraded_reasons"]} <= expected
    assert f"micro_vm ({startup['accelerator']})" in home.run("status")

    (home.workspace / "shared" / "notes.txt").write_text("from outside\nneedle 42\n")
    assert "from outside" in home.run("ask", "read the file /shared/notes.txt")
    ask(home, "file_write", path="/shared/made.txt", content="by a tool")
    said = ask(home, "shell_exec", command="cat /shared/made.txt; pwd; ls /vault /internal")
    assert "by a tool" in said and "/shared" in said and "Permission denied" in said
    assert (home.workspace / "shared" / "made.txt").read_text() == "by a tool"
    assert "notes.txt" in ask(home, "file_search", pattern="need.e [0-9]+", regex=True)
    assert home.status()["startup_status"]["worker_level"] == "cage"
    assert "A report of the day" in ask(home, "skill_read", name="daily-report")
    skill = "/mnt/skills/daily-report/SKILL.md"
    said = ask(home, "shell_exec", command=f"head -2 {skill}; echo x > {skill} && echo spoiled")
    assert "name: daily-report" in said and "Read-only file system" in said

    pids = status["guest_pid"], status["shell_pid"]
    home.run("stop")
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert not list((home.workspace / "ipc").glob(".machine-*"))


@in_a_machine
def test_the_first_start_says_what_it_waits_for(home, tmp_path):
    cache = tmp_path / "cache" / "oxydra" / "microvm"
    cache.mkdir(parents=True)
    (cache / "images").symlink_to(machine_cache() / "oxydra" / "microvm" / "images")
    home.env["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    told = home.command("start", "--detach").stderr.splitlines()
    for role in ("agent", "shell"):
        first, then = (line for line in told if f"oxydra: the {role} guest's machine " in line)
        assert "boots once, to be saved" in first and "was saved after" in then
    assert len(told) == 4 and home.status()["healthy"]
    home.run("stop")
    assert home.command("start", "--detach").stderr == ""


@in_a_machine
def test_a_daemon_whose_machines_can_only_boot_says_so_at_once(home, tmp_path):
    cache = tmp_path / "cache" / "oxydra" / "microvm"
    cache.mkdir(parents=True)
    (cache / "images").symlink_to(machine_cache() / "oxydra" / "microvm" / "images")
    (cache / "templates").write_text("no folder: nothing can be saved here")
    home.env["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    home.run("start", "--detach")
    rows = {row["code"]: row for row in home.status()["startup_status"]["degraded_reasons"]}
    assert "(agent and shell)" in rows["cold_boot"]["detail"]
    assert "here" in ask(home, "shell_exec", command="echo here")
    home.run("backup", str(tmp_path / "online.tar"))
    home.run("stop")
    home.run("backup", str(tmp_path / "offline.tar"))
    for name in ("online.tar", "offline.tar"):
        home.run("backup", "--verify", str(tmp_path / name))


@in_a_machine
def test_a_provider_is_asked_through_the_broker_and_no_machine_holds_its_key(home):
    canary = "".join(["7f3a", "91bc", "e2d4", "0c55"])
    body = (ROOT / "tests" / "fixtures" / "openai_text.sse").read_bytes()
    with FakeModel() as fake:
        home.add(
            "providers.toml",
            '[providers.registry.mine]\nprovider_type = "openai"\n'
            f'base_url = "{fake.origin}/v1"\napi_key = "sk-{canary}"\n',
        )
        (home.folder / "providers.toml").chmod(0o600)
        home.env |= {"OXYDRA__SELECTION__PROVIDER": "mine", "OXYDRA__SELECTION__MODEL": "m"}
        fake.send(Reply([body]))
        home.run("start", "--detach")
        assert home.run("ask", "hello").strip()
        assert canary in str(fake.requests[0].headers)
        status = home.status()
        for name in ("guest_pid", "shell_pid"):
            assert not memory_holds(status[name], canary.encode()), name
        assert memory_holds(status["runner_pid"], canary.encode())  # the search finds what is there


@in_a_machine
def test_machines_that_are_killed_come_back_and_nothing_is_lost(home):
    home.run("start", "--detach")
    session = json.loads(home.run("ask", "remember me", "--json"))["session"]["session_id"]
    for name in ("shell_pid", "guest_pid"):
        before = home.status()[name]
        os.kill(before, signal.SIGKILL)
        came_back(home, name, before)
        assert "here" in ask(home, "shell_exec", command="echo here")
    status = home.status()
    assert (status["guest_restarts"], status["shell_restarts"]) == (1, 1)
    assert "SIGKILL" in status["last_guest_end"]
    again = json.loads(home.run("ask", "again", "--json", "--session", session))
    assert again["session"]["session_id"] == session


@in_a_machine
def test_a_killed_runner_leaves_no_machine(home):
    home.run("start", "--detach")
    status = home.status()
    session = json.loads(home.run("ask", "hello", "--json"))["session"]["session_id"]
    all_killed(status)
    eventually(lambda: not Path(f"/proc/{status['shell_pid']}").exists())
    home.run("start", "--detach")
    assert home.status()["healthy"]
    again = json.loads(home.run("ask", "hello", "--json", "--session", session))
    assert again["session"]["session_id"] == session


@in_a_machine
def test_five_users_at_once_are_separated_and_one_machines_end_is_nothing_to_the_others(home):
    users = ["alice", "bob", "carol", "dave", "erin"]
    for user in users[1:]:
        add_user(home, user)
    told = home.run("start", "--all")
    assert [line.split(":")[0] for line in told.splitlines()] == users
    for user in users:
        for folder in ("shared", "vault", "internal"):
            (space(home, user) / folder / "own.txt").write_text(f"{folder} of {user}")

    def look(user: str) -> str:
        """What a person's commands find of theirs and of the others', and what their tools do."""
        names = ("shared/own.txt", "vault/own.txt", "internal/own.txt", "internal/oxydra.db")
        theirs = [space(home, other) for other in users if other != user]
        assert all((place / name).is_file() for place in theirs for name in names)
        found = [place / name for place in theirs for name in names]
        words = " ".join([*map(str, found), "/shared/../../*/shared/own.txt"])
        command = f"cat /shared/own.txt {words}; cat /internal/own.txt /vault/own.txt\n"
        command += f"for file in /shared/own.txt {words}; do test -e $file && echo is-$((1)); done"
        reads = [{"tool": "file_read", "arguments": {"path": str(path)}} for path in found]
        shell = {"tool": "shell_exec", "arguments": {"command": command}}
        return SCRIPT % json.dumps([{"parallel": [*reads, shell]}])

    def answers(of: list[str]) -> dict[str, str]:
        """What all of these are told when all ask at the same time."""
        asked = {user: home.begin("--user", user, "ask", look(user)) for user in of}
        said = {user: process.communicate(timeout=home.patience) for user, process in asked.items()}
        assert all(process.returncode == 0 for process in asked.values()), said
        return {user: out for user, (out, _error) in said.items()}

    def check(said: dict[str, str]) -> None:
        for user, text in said.items():
            assert f"shared of {user}" in text and f"internal of {user}" not in text
            assert text.count("is-1") == 1 and "SQLite format" not in text
            assert not [other for other in users if other != user and f" of {other}" in text]

    check(answers(users))
    rows = {row["user_id"]: row for row in json.loads(home.run("status", "--all", "--json"))}
    machines = [rows[user][name] for user in users for name in ("guest_pid", "shell_pid")]
    assert len(set(machines)) == 10
    os.kill(rows["carol"]["guest_pid"], signal.SIGKILL)
    others = [user for user in users if user != "carol"]
    check(answers(others))
    eventually(lambda: home.command("--user", "carol", "ask", "hello").returncode == 0, timeout=180)
    check(answers(users))
    for row in json.loads(home.run("status", "--all", "--json")):
        name = row["user_id"]
        machines += [row["guest_pid"], row["shell_pid"]]
        assert row["guest_restarts"] == (1 if name == "carol" else 0)
        assert name == "carol" or row["guest_pid"] == rows[name]["guest_pid"]
    home.run("stop", "--all")
    assert not [pid for pid in machines if Path(f"/proc/{pid}").exists()]
    assert not [note for user in users for note in (space(home, user) / "ipc").glob(".machine-*")]
