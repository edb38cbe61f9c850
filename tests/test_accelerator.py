"""Whether machines run with KVM or without: the verdict, why, and how long it is kept."""

from __future__ import annotations

import json
import os
import platform
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from oxydra.tiers import accelerator, machine_images
from oxydra.tiers.accelerator import Accelerator

GROUP = 61234
ME = os.geteuid()
OTHER = 61777
as_root = pytest.mark.skipif(ME != 0, reason="only root starts QEMU as somebody else")
QEMU = """#!/bin/sh
case "$*" in *--version*) echo "QEMU emulator version {version} (a test)"; exit;; esac
echo $(id -u) $(id -G) >>{log}
echo "ioctl(KVM_CREATE_VM) failed" >&2
[ {sleeps} = 0 ] || exec sleep {sleeps}
exit {code}
"""


class Host:
    """A host of a test's own: its QEMU, its device, and where verdicts are kept."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.device = folder / "kvm"
        self.program = folder / accelerator.PROGRAM
        self._log = folder / "probes"
        self._log.touch()
        self._log.chmod(0o666)
        if ME == 0:  # pytest's folders are root's alone
            for place in (folder, *folder.parents):
                place.chmod(place.stat().st_mode | 0o011)
        self.qemu()
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        monkeypatch.setattr(accelerator, "DEVICE", str(self.device))

    def qemu(self, *, code: int = accelerator.PROBED, version: str = "7.2.1", sleeps: int = 0):
        text = QEMU.format(log=self._log, code=code, version=version, sleeps=sleeps)
        self.program.write_text(text)
        self.program.chmod(0o755)

    def has_kvm(self, mode: int = 0o666, group: int | None = None) -> None:
        self.device.touch()
        self.device.chmod(mode)
        if group is not None:
            os.chown(self.device, 0, group)

    @property
    def probes(self) -> list[str]:
        """As whom QEMU was started, each time."""
        return self._log.read_text().splitlines()


@pytest.fixture
def host(tmp_path, monkeypatch):
    return Host(tmp_path, monkeypatch)


def test_where_a_guest_runs_it_is_kvm(host):
    host.has_kvm()
    found = accelerator.find(ME)
    assert (found.name, found.why, found.processor) == ("kvm", "", "host")
    assert found.tsc_khz > 0 and found.qemu == str(host.program) and "7.2.1" in found.version


def test_without_the_device_nothing_is_probed(host):
    found = accelerator.find(ME)
    assert (found.name, found.processor) == ("tcg", "max")
    assert found.why == f"there is no {host.device}" and not host.probes


def test_that_the_device_opens_is_not_enough(host, monkeypatch):
    host.has_kvm()
    host.qemu(code=1)
    found = accelerator.find(ME)
    assert found.name == "tcg" and "KVM_CREATE_VM" in found.why
    monkeypatch.setattr(accelerator, "PROBE_SECONDS", 1.0)
    host.qemu(version="7.2.2", sleeps=600)
    found = accelerator.find(ME)
    assert found.name == "tcg" and "did not run a step within 1 s" in found.why


@as_root
def test_a_device_of_roots_alone_says_who_has_to_be_let_in(host):
    host.has_kvm(0o600)
    found = accelerator.find(OTHER)
    assert found.name == "tcg" and not host.probes
    assert found.why.endswith(f"chgrp kvm {host.device} && chmod 660 {host.device}")
    host.has_kvm(0o660, group=0)  # root's group is not given away
    assert accelerator.find(OTHER).name == "tcg" and not host.probes


@as_root
def test_roots_runner_gives_qemu_the_devices_group_and_nothing_else(host):
    host.has_kvm(0o660, group=GROUP)
    found = accelerator.find(OTHER)
    assert (found.name, found.groups) == ("kvm", (GROUP,))
    assert host.probes == [f"{OTHER} {OTHER} {GROUP}"]
    assert accelerator.find(OTHER) == found  # as it is kept


def test_the_verdict_is_kept_until_something_changes(host):
    host.has_kvm()
    first = accelerator.find(ME)
    assert accelerator.find(ME) == first and len(host.probes) == 1
    host.qemu(version="8.0.0")
    assert accelerator.find(ME).version != first.version and len(host.probes) == 2
    host.device.unlink()
    assert accelerator.find(ME).name == "tcg"
    host.has_kvm()
    assert accelerator.find(ME).name == "kvm" and len(host.probes) == 3


@pytest.mark.parametrize("place", range(6))
def test_the_verdict_of_another_kernel_qemu_boot_or_user_is_not_taken(host, place):
    """As they stand in the file: kernel, program, version, boot, user, what the device forbids."""
    host.has_kvm()
    accelerator.find(ME)
    (kept,) = machine_images.cache().glob("accelerator-*.json")
    said = json.loads(kept.read_text())
    assert len(said["key"]) == 6 and {platform.release(), str(host.program), ME} < {*said["key"]}
    said["key"][place] = "another"
    said["found"] |= {"name": "tcg", "why": "as it was"}
    kept.write_text(json.dumps(said))
    assert accelerator.find(ME).name == "kvm" and len(host.probes) == 2
    assert accelerator.find(ME).name == "kvm" and len(host.probes) == 2


def test_an_ordinary_user_is_told_which_group_to_be_in(host):
    """Who is one by their own right, not by root's."""
    host.has_kvm(0o660, group=GROUP if ME == 0 else None)
    if ME != 0:
        host.device.chmod(0)
    uid = ME or OTHER
    said = of_ordinary_user(uid, lambda: accelerator.find(uid))
    add = f"add the user with the uid {uid} to the group kvm"
    assert (
        said
        == f"{host.device} is closed to the guests' user; to be as fast as the processor "
        f"allows, {add}"
        and not host.probes
    )
    if ME == 0:  # and in the group they are let in
        said = of_ordinary_user(uid, lambda: accelerator.find(uid), GROUP)
        assert said == "" and host.probes == [f"{uid} {uid} {GROUP}"]


def of_ordinary_user(uid: int, find: Callable[[], Accelerator], *groups: int) -> str:
    """Why not KVM, as found by a process of theirs."""
    if uid == ME:
        return find().why
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(groups)
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.write(writer, find().why.encode())
        except BaseException as error:
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as said:
        os.waitpid(child, 0)
        return said.read()


@as_root
def test_users_do_not_take_the_verdict_from_one_another(host):
    host.has_kvm(0o600)
    assert [accelerator.find(uid).name for uid in (0, OTHER, 0, OTHER)] == ["kvm", "tcg"] * 2
    assert len(host.probes) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": 1}', '{"key": [], "found": {}}', "\0"])
def test_what_is_no_verdict_is_found_anew(host, text):
    host.has_kvm()
    accelerator.find(ME)
    (kept,) = machine_images.cache().glob("accelerator-*.json")
    kept.write_text(text)
    assert accelerator.find(ME).name == "kvm" and len(host.probes) == 2
    assert stat.S_IMODE(kept.stat().st_mode) & 0o022 == 0


@pytest.mark.parametrize("damage", ["open", "link", pytest.param("foreign", marks=as_root)])
def test_a_verdict_that_others_could_have_written_is_found_anew(host, damage, tmp_path):
    """It names a program, which would be run, and groups."""
    host.has_kvm()
    accelerator.find(ME)
    (kept,) = machine_images.cache().glob("accelerator-*.json")
    said = json.loads(kept.read_text())
    said["found"] |= {"qemu": "/of/another", "groups": [0]}
    kept.write_text(json.dumps(said))
    assert accelerator.find(ME).qemu == "/of/another"  # so that is how it would be
    if damage == "open":
        kept.chmod(0o666)
    elif damage == "link":
        kept.rename(tmp_path / "verdict")
        kept.symlink_to(tmp_path / "verdict")
    else:
        os.chown(kept, OTHER, OTHER)
    for _ in range(2):  # the second time it is our own again
        found = accelerator.find(ME)
        assert (found.qemu, found.groups, len(host.probes)) == (str(host.program), (), 2)
    assert not kept.is_symlink() and kept.stat().st_uid == ME
