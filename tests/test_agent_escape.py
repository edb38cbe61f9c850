"""What an agent guest of the microVM tier that was taken over gets: nothing, of everything in
`guest/escape-attempts` and `tests/agent_attempts.py`.

A daemon starts an agent's machine of an image in which the guest, once it has locked itself in,
lets those attempts be made in a process that is locked in as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess

import pytest

from oxydra.doctor.outside import Outside, escaped
from oxydra.tiers import machine_images
from tests.conftest import ROOT, eventually
from tests.microvm_images import machine_cache, with_machines
from tests.sandbox import missing
from tests.test_daemon import Home
from tests.test_microvm import LEVEL, in_machines

pytestmark = [pytest.mark.microvm, pytest.mark.slow]

HOOK = """

_lock_in = lock_in


def lock_in(*arguments):
    level = _lock_in(*arguments)
    import agent_attempts

    agent_attempts.begin()
    return level


_setresuid = os.setresuid


def _unheld(*ids):
    import agent_attempts

    agent_attempts.begin(held=False)
    _setresuid(*ids)


os.setresuid = _unheld  # `become` of machine-init calls it last: until then the child is root
"""
# What a machine's own size limits, and not what a guest may do in it: memory is the machine's, and
# how large a file of the database's folder may grow is not limited in any tier.
ITS_OWN = {"much_memory_in_pieces", "a_large_file", "raise_a_limit"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Where images are whose agent is taken over, as XDG_CACHE_HOME."""
    if missing(LEVEL):
        pytest.skip(missing(LEVEL))
    folder = tmp_path_factory.mktemp("cache")
    with with_machines():
        images = machine_images.folder()
    made = folder / images.relative_to(machine_cache())
    made.mkdir(parents=True)
    for name in (machine_images.KERNEL, machine_images.INITRD, "shell.sqfs"):
        os.link(images / name, made / name)
    tree = folder / "tree"
    run("unsquashfs", "-q", "-n", "-d", str(tree), str(images / "agent.sqfs"))
    code = tree / "opt" / "oxydra"
    with (code / "oxydra" / "vm.py").open("a") as file:
        file.write(HOOK)
    for stale in (code / "oxydra" / "__pycache__").glob("vm.*"):
        stale.unlink()
    shutil.copy(ROOT / "tests" / "agent_attempts.py", code)
    shutil.copy(ROOT / "guest" / "escape-attempts", code)
    options = ["-quiet", "-no-progress", "-all-root", "-noI", "-noD", "-noF", "-noX"]
    run("mksquashfs", str(tree), str(made / "agent.sqfs"), *options)
    shutil.rmtree(tree)
    manifest = json.loads((images / machine_images.MANIFEST).read_bytes())
    manifest["identity"] = hashlib.sha256(HOOK.encode()).hexdigest()[:16]
    (made / machine_images.MANIFEST).write_text(json.dumps(manifest))
    return folder


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def home(tmp_path, cache):
    folder = tmp_path / "home"
    folder.mkdir()
    home = Home(folder)
    home.init()
    in_machines(home)
    home.env["XDG_CACHE_HOME"] = str(cache)
    home.run("start", "--detach")  # makes the folders, and the template
    home.run("stop")
    yield home
    done = home.command("stop")
    assert done.returncode in (0, 2, 3), done.stderr


def attack(home: Home, **orders: object) -> None:
    (home.workspace / "vault" / "own.txt").write_text("untouched")
    file = home.workspace / "internal" / "attack.json"
    file.write_text(json.dumps(orders))
    state = file.parent.stat()
    os.chown(file, state.st_uid, state.st_gid)
    home.run("start", "--detach")


def test_nothing_gets_out_of_the_agents_machine(tmp_path, home):
    owner = (home.workspace / "internal").stat().st_uid
    outside = Outside(tmp_path / "elsewhere", owner)
    try:
        parameters = outside.parameters(guest=[], isolated=True)
        attack(home, what="attempts", **parameters)
        results = home.workspace / "internal" / "results.json"
        eventually(results.exists, timeout=400)
        found = json.loads(results.read_text())
        assert len(found) >= 180
        got = {name: said for name, said in found.items() if name not in ITS_OWN}
        assert not escaped(got)
        assert not outside.damage()
    finally:
        outside.close.close()
    vault = home.workspace / "vault"
    assert [path.name for path in vault.iterdir()] == ["own.txt"]
    assert (vault / "own.txt").read_text() == "untouched"
    for path in (home.workspace / "shared").rglob("*"):
        state = path.lstat()
        assert state.st_uid == owner and not state.st_mode & 0o6000, path
    assert home.run("ask", "hello") and home.status()["guest_restarts"] == 0


# Of those that are particular to the machine, what the cage and the guest's uid hold: root, whom
# nothing holds, gets them. What else there is, the machine itself does not give, to root neither.
HELD = {
    *("agent_the_root_image", "agent_the_console", "agent_physical_memory"),
    *("agent_the_kernels_log", "agent_the_hosts_clock", "agent_read_process_1"),
    *("agent_signal_process_1", "agent_trace_process_1", "agent_descriptors_of_process_1"),
    *("agent_power_off", "agent_load_another_kernel", "agent_a_namespace"),
    *("agent_another_mount_interface", "agent_mount_over_the_vault", "agent_unmount_the_vault"),
    *("agent_write_to_run", "agent_a_program_that_makes_root"),
}


def test_the_attempts_would_succeed(tmp_path, home):
    """As root and before the cage, or they would prove nothing; nor does root get out."""
    outside = Outside(tmp_path / "elsewhere", (home.workspace / "internal").stat().st_uid)
    try:
        attack(home, what="unheld", **outside.parameters(guest=[], isolated=True))
        results = home.workspace / "internal" / "results.json"
        eventually(results.exists, timeout=400)
        got = escaped(json.loads(results.read_text()))
        assert {line.partition(" ")[0] for line in got} == HELD
        assert not outside.damage()
    finally:
        outside.close.close()
    assert (home.workspace / "vault" / "own.txt").read_text() == "untouched"


@pytest.mark.parametrize("what", ["garbage", "opens", "forged", "deaf"])
def test_what_is_said_over_the_port_ends_the_guest_and_not_the_runner(home, what):
    attack(home, what=what)

    def status():  # of a guest that does not answer too: `status` fails then
        return json.loads(home.command("status", "--json").stdout or "{}")

    runner = home.status()["runner_pid"]
    (home.workspace / "internal" / "speak").touch()
    eventually((home.workspace / "internal" / "spoken").exists, timeout=180)

    def started_again():
        found = status()
        return found.get("guest_restarts", 0) >= 1 and found.get("healthy")

    eventually(started_again, timeout=180)
    eventually(lambda: home.command("ask", "hello").returncode == 0, timeout=180)
    assert status()["runner_pid"] == runner
    eventually(lambda: status()["startup_status"]["shell_available"], timeout=180)
