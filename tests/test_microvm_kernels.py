"""The kernels of the microVM tier: what is taken out of an image or a package, machines that run
one that somebody brought along, and what is refused before anything is built.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import shutil
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest

from oxydra.errors import OxydraError
from oxydra.tiers import kernel
from tests.microvm_images import CACHE, build_microvm, machine_cache
from tests.sandbox import sandbox
from tests.test_daemon import Home
from tests.test_microvm import LEVEL, ask, in_a_machine, in_machines

# --------------------------------------------------------------------------------------- the kernel

TEXT = b"Linux version 6.1.0-test (someone) " + bytes(4096)
ELF = struct.pack("<16s2HI3QI6H", b"\x7fELF\2\1\1", 2, 0x3E, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
ELF += struct.pack("<2I6Q", 1, 5, 120, 0, 0, len(TEXT), len(TEXT), 0) + TEXT
ARM = ELF.replace(b"\x3e\0", b"\xb7\0", 1)
BUILT_IN = b"virtio-mmio virtio_blk virtio_console virtio_rng 9pnet_virtio v9fs squashfs"


def bzimage(payload: bytes, version: bytes = b"6.1.0-test (someone) #1") -> bytes:
    """A kernel image as the boot protocol has it, with one sector of set-up."""
    head = bytearray(1024)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x20E, 0x100)
    head[0x300 : 0x300 + len(version)] = version
    struct.pack_into("<II", head, 0x248, 16, len(payload))
    return bytes(head) + bytes(16) + payload


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress, bytes])
def test_a_kernel_is_uncompressed(pack):
    image = bzimage(pack(ELF)) if pack is not bytes else ELF
    assert kernel.uncompressed(image) == ELF
    assert kernel.release(image) == "6.1.0-test"


@pytest.mark.parametrize("image", [b"", b"MZ" + bytes(2048), bzimage(b"\x00\x00nothing known")])
def test_what_is_no_kernel_is_refused(image):
    with pytest.raises(OxydraError) as refused:
        kernel.uncompressed(image)
    assert refused.value.remedy


def test_a_kernel_for_another_processor_is_refused():
    with pytest.raises(OxydraError, match="no kernel for x86-64"):
        kernel.uncompressed(ARM)


def test_a_program_is_no_kernel():
    with pytest.raises(OxydraError, match="no Linux kernel"):
        kernel.uncompressed(ELF.replace(b"Linux", b"Lines"))


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress, bz2.compress, bytes])
def test_a_kernel_that_is_cut_off_is_refused(pack):
    image = ELF if pack is bytes else bzimage(pack(ELF))
    assert kernel.uncompressed(image) == ELF
    cuts = [image[:-1], image[:1100], image[: len(ELF) // 2 if pack is bytes else 0x206]]
    if pack is not bytes:
        cuts.append(bzimage(pack(ELF)[:-20]))
    for cut in cuts:
        with pytest.raises(OxydraError) as refused:
            kernel.uncompressed(cut)
        assert refused.value.remedy


def test_what_a_kernel_lacks_is_known():
    assert kernel.lacking({}, ELF) == list(kernel.MODULES)
    assert kernel.lacking({}, ELF + BUILT_IN) == []
    assert kernel.lacking({"squashfs": b"", "9p": b""}, ELF + BUILT_IN[:23]) == list(
        kernel.MODULES[2:5]
    )


def module(depends: str = "", before: str = "") -> bytes:
    return f"\0depends={depends}\0softdep=pre: {before}\0".encode()


def test_modules_come_after_what_they_need():
    made = kernel.Modules(
        {
            "lib/modules/x/9p.ko": module("9pnet,netfs", "fscache"),
            "lib/modules/x/9pnet.ko": module(),
            "lib/modules/x/net-fs.ko": module(),
            "lib/modules/x/fscache.ko.xz": lzma.compress(module("9pnet")),
            "lib/modules/x/virtio-rng.ko": module("built_in"),
            "lib/modules/x/readme.txt": b"",
        }
    )
    assert list(made.ordered(["9p", "virtio_rng", "nowhere"])) == [
        "9pnet",
        "fscache",
        "9p",
        "virtio_rng",
    ]


def test_an_initramfs_is_a_cpio_archive():
    data = kernel.initramfs({"virtio": b"driver", "ext": b"x"}, b"busybox", b"#!/bin/sh\n")
    found, at = {}, 0
    while True:
        assert data[at : at + 6] == b"070701" and at % 4 == 0
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        at += (110 + fields[11] + 3) // 4 * 4
        content = data[at : at + fields[6]]
        at += (fields[6] + 3) // 4 * 4
        if name == "TRAILER!!!":
            break
        found[name] = (fields[1], content)
    assert found["modules/00-virtio.ko"] == (0o100644, b"driver")
    assert found["init"] == (0o100755, b"#!/bin/sh\n") and found["bin/busybox"][1] == b"busybox"
    assert found["dev/console"][0] == 0o020600 and "modules/01-ext.ko" in found


def debian_package(files: dict[str, bytes]) -> bytes:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:xz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    parts = {b"debian-binary": b"2.0\n", b"data.tar.xz": inner.getvalue()}
    return b"!<arch>\n" + b"".join(
        name.ljust(48) + str(len(data)).encode().ljust(10) + b"`\n" + data + b"\n" * (len(data) % 2)
        for name, data in parts.items()
    )


def test_a_package_is_unpacked(tmp_path):
    package = tmp_path / "kernel.deb"
    package.write_bytes(debian_package({"./boot/vmlinuz-6": b"kernel", "./usr/doc": b""}))
    assert kernel.from_package(package, "vmlinuz") == {"boot/vmlinuz-6": b"kernel"}
    whole = package.read_bytes()
    header = whole[:8] + whole[8:68].replace(b"4         ", b"four      ")
    for damaged in (b"no package", whole[:150], whole[:-100], header, b"!<arch>\n" + bytes(200)):
        package.write_bytes(damaged)
        with pytest.raises(OxydraError, match="no Debian package"):
            kernel.from_package(package, "vmlinuz")
    package.unlink()
    package.symlink_to("/dev/null")
    with pytest.raises(OxydraError, match="no Debian package"):
        kernel.from_package(package, "vmlinuz")


# ---------------------------------------------------------------------- kernels from somewhere else


@pytest.fixture(scope="module")
def debian_kernel():
    """The package of Debian's kernel, as a person would get it."""
    if (apt := shutil.which("apt-get")) is None:
        pytest.skip("there is no apt-get, so no kernel package to download")
    folder = machine_cache() / "debian-kernel"
    folder.mkdir(exist_ok=True)
    said = subprocess.run(
        ["apt-cache", "depends", "linux-image-amd64"], capture_output=True, text=True
    ).stdout
    found = re.search(r"Depends: (linux-image-\d\S+)", said)
    if found is None:
        pytest.skip("apt knows no linux-image-amd64: this is not Debian, or its lists are not here")
    if not list(folder.glob(f"{found[1]}_*.deb")):
        command = [apt, "download", found[1]]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"apt can't download {found[1]}: {done.stderr.strip().splitlines()[-1:]}")
    return max(folder.glob(f"{found[1]}_*.deb"), key=lambda path: path.stat().st_mtime)


@pytest.fixture(scope="module")
def unpacked(debian_kernel, tmp_path_factory):
    """The same, as it would be in a root file system."""
    root = tmp_path_factory.mktemp("root")
    for name, content in kernel.from_package(debian_kernel, r"/modules/.*\.ko|vmlinuz").items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of a test's own, in which the packages of the guests are already."""
    machine_cache()
    folder = tmp_path / "cache" / "oxydra" / "microvm"
    folder.mkdir(parents=True)
    (folder / "packages").symlink_to(CACHE / "oxydra" / "microvm" / "packages")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def build(cache, *options):
    return build_microvm(*map(str, options), XDG_CACHE_HOME=str(cache.parent.parent))


@in_a_machine
def test_a_daemon_in_machines_of_a_kernel_package(debian_kernel, cache, tmp_path):
    done = build(cache, "--kernel", debian_kernel)
    assert done.returncode == 0, done.stderr
    release = debian_kernel.name.split("_")[0].removeprefix("linux-image-")
    assert f"kernel {release}:" in done.stdout
    home = Home(tmp_path)
    home.init()
    in_machines(home)
    home.env |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OXYDRA__TOOLS__SHELL__ALLOW": "*"}
    home.run("start", "--detach")
    try:
        assert f"{release}\n" in ask(home, "shell_exec", command="uname -r")
        (home.workspace / "shared" / "note.txt").write_text("by 9p")
        assert "by 9p" in ask(home, "file_read", path="/shared/note.txt")
    finally:
        home.run("stop")


@in_a_machine
@pytest.mark.parametrize("given", ["vmlinuz", "vmlinux"])
def test_a_machine_of_a_kernel_image(given, unpacked, cache, tmp_path):
    (image,) = (unpacked / "boot").glob("vmlinuz-*")
    release = image.name.removeprefix("vmlinuz-")
    if given == "vmlinux":
        image = tmp_path / "vmlinux"
        image.write_bytes(kernel.uncompressed(next(unpacked.glob("boot/vmlinuz-*")).read_bytes()))
    done = build(cache, "--kernel", image, "--modules", unpacked / "lib" / "modules" / release)
    assert done.returncode == 0, done.stderr
    with sandbox(tmp_path, LEVEL) as box:
        assert box.text("uname -r") == f"{release}\n"


def refused(done, *said, code=1):
    """It was, by one line, and nothing was left or begun."""
    assert done.returncode == code, (done.stdout, done.stderr)
    (line,) = done.stderr.splitlines()
    assert line.startswith("build-microvm: ")
    for words in said:
        assert words in line


@in_a_machine
@pytest.mark.parametrize(
    ("content", "cause", "remedy"),
    [
        (b"no kernel", "neither an ELF kernel nor a bzImage", "Name a kernel package"),
        (b"", "neither an ELF kernel nor a bzImage", "Name a kernel package"),
        (ARM, "no kernel for x86-64", "Name one for this machine's processor"),
        (ELF.replace(b"Linux", b"Lines"), "no Linux kernel", "Name a vmlinux"),
        (ELF[:-9], "cut off", "Copy or download it once more"),
        (ELF, "neither as modules in /lib/modules/6.1.0-test nor built in", "--modules"),
        (debian_package({"./usr/doc": b""}), "There is no kernel in", "linux-image-"),
        (debian_package({"./boot/vmlinuz-6": ELF}), "virtio_mmio, virtio_blk", "package"),
        (b"!<arch>\ncut off", "no Debian package", "Name the package of a kernel"),
    ],
)
def test_what_no_machine_can_boot_from_is_refused(content, cause, remedy, cache, tmp_path):
    """Whatever its name is, and the images that are there stay."""
    there = cache / "images" / "before" / "vmlinux"
    there.parent.mkdir(parents=True)
    there.write_text("of another build")
    for name in ("kernel", "kernel.img"):
        given = tmp_path / name
        given.write_bytes(content)
        refused(build(cache, "--kernel", given), str(given), cause, remedy)
    assert {path.name for path in cache.iterdir()} == {"build.lock", "images", "packages"}
    assert list((cache / "images").iterdir()) == [there.parent]


@in_a_machine
def test_a_real_kernel_that_is_damaged_or_lacks_modules_is_refused(
    debian_kernel, unpacked, cache, tmp_path
):
    (image,) = (unpacked / "boot").glob("vmlinuz-*")
    cut = tmp_path / "cut"
    for whole, missing in ((debian_kernel, 1000), (image, 500_000)):
        cut.write_bytes(whole.read_bytes()[:-missing])
        refused(build(cache, "--kernel", cut), str(cut))
    release = image.name.removeprefix("vmlinuz-")
    if not Path("/lib/modules", release).exists():
        refused(build(cache, "--kernel", image), f"/lib/modules/{release} nor built in", ".deb")
    some = tmp_path / "some"
    shutil.copytree(unpacked / "lib/modules" / release / "kernel/drivers", some)
    said = build(cache, "--kernel", image, "--modules", some)
    refused(said, f"({release}) does not have 9pnet_virtio, 9p, squashfs: ", str(some))
    module = next(some.rglob("virtio_blk.ko*"))
    module.with_name("virtio_blk.ko.xz").write_bytes(lzma.compress(module.read_bytes())[:-50])
    module.unlink()
    refused(build(cache, "--kernel", image, "--modules", some), "virtio_blk: It can't be unc")
    assert {path.name for path in cache.iterdir()} == {"build.lock", "packages"}


@in_a_machine
def test_options_that_make_no_sense_are_refused(cache, tmp_path):
    refused(build(cache, "--kernel", tmp_path / "nowhere"), "is no file", code=2)
    refused(build(cache, "--kernel", tmp_path), "is no file", code=2)
    refused(build(cache, "--modules", tmp_path), "--modules is a folder", code=2)
    (tmp_path / "vmlinux").write_bytes(ELF)
    nowhere = ("--kernel", tmp_path / "vmlinux", "--modules", tmp_path / "nowhere")
    refused(build(cache, *nowhere), "--modules is a folder", code=2)
    assert not (cache / "images").exists()


@in_a_machine
def test_a_kernel_that_cannot_be_read_is_refused(cache, tmp_path):
    said = build(cache, "--kernel", "/proc/self/mem")  # not by root either
    refused(said, "/proc/self/mem can't be read: Input/output error. Copy it", code=2)
    if os.geteuid() != 0:
        (tmp_path / "vmlinuz").touch(0o000)  # as Ubuntu's are
        said = build(cache, "--kernel", tmp_path / "vmlinuz")
        refused(said, "vmlinuz can't be read: Permission denied. Copy it", code=2)
