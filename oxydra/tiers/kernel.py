"""The kernel of a microVM and its initramfs, made of a distribution's package. Pure, but for
reading files; nothing needs root. No thread runs here.

QEMU's `microvm` machine wants an uncompressed ELF kernel; a distribution ships a `bzImage`, in
which that lies compressed (Documentation/arch/x86/boot.rst, `payload_offset`). Its drivers are
modules, so the initramfs, an archive in cpio's `newc` format (Documentation/driver-api/
early-userspace/buffer-format.rst), carries those that a guest needs, each after what it needs.
"""

from __future__ import annotations

import bz2
import contextlib
import io
import lzma
import re
import shutil
import stat
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from oxydra.errors import OxydraError

MODULES = (
    *("virtio_mmio", "virtio_blk", "virtio_console", "virtio_rng"),
    *("9pnet_virtio", "9p", "squashfs"),
)
CALLED = {"9p": "v9fs"}  # two letters are in every kernel
ELF, X86_64 = b"\x7fELF", b"\x3e\0"  # e_ident, e_machine
PACKAGE = b"!<arch>\n"  # how a Debian package begins
AGAIN = "Copy or download it once more."
DAMAGED = (zlib.error, lzma.LZMAError, EOFError, tarfile.TarError)
FOLDERS = ("dev", "proc", "sys", "root", "bin", "modules")
_MAGIC = {b"\x1f\x8b": "gzip", b"\xfd7": "xz", b"BZ": "bzip2", b"]\0": "lzma", b"(\xb5": "zstd"}
_STREAMS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(31),
    "xz": lzma.LZMADecompressor,
    "lzma": lzma.LZMADecompressor,
    "bzip2": bz2.BZ2Decompressor,
}


class KernelError(OxydraError):
    """A file is not a kernel that can be used."""

    code = "kernel"


def uncompressed(image: bytes) -> bytes:
    """The ELF kernel in a kernel image. Raises `KernelError`."""
    elf = image
    if image[:4] != ELF:
        if image[0x202:0x206] != b"HdrS":
            raise KernelError(
                "It is neither an ELF kernel nor a bzImage for x86.",
                remedy="Name a kernel package (.deb), a vmlinuz or a vmlinux.",
            )
        start = ((image[0x1F1] or 4) + 1) * 512
        offset, length = struct.unpack_from("<II", image.ljust(0x250, b"\0"), 0x248)
        if start + offset + length > len(image):
            raise KernelError("It is cut off.", remedy=AGAIN)
        elf = _unpacked(image[start + offset : start + offset + length], trailer=4)
    if elf[:4] != ELF or elf[18:20] != X86_64:
        raise KernelError(
            "It is no kernel for x86-64.", remedy="Name one for this machine's processor."
        )
    if not release(elf):
        raise KernelError("It is a program, no Linux kernel.", remedy="Name a vmlinux.")
    if not _is_whole(elf):
        raise KernelError("It is cut off.", remedy=AGAIN)
    return elf


def _is_whole(elf: bytes) -> bool:
    """Whether all of its segments are in it (ELF-64, `Elf64_Ehdr` and `Elf64_Phdr`)."""
    try:
        (table,) = struct.unpack_from("<Q", elf, 0x20)
        size, count = struct.unpack_from("<HH", elf, 0x36)
        places = [struct.unpack_from("<Q16xQ", elf, table + n * size + 8) for n in range(count)]
    except struct.error:
        return False
    return all(offset + length <= len(elf) for offset, length in places)


def _unpacked(data: bytes, trailer: int = 0) -> bytes:
    """What was compressed; after it come `trailer` bytes of something else, its size. Raises
    `KernelError`.
    """
    kind = _MAGIC.get(data[:2], "")
    try:
        if kind in _STREAMS:
            stream = _STREAMS[kind]()
            unpacked = stream.decompress(data)
            if not stream.eof:
                raise EOFError("it is cut off")
            return bytes(unpacked)
        if kind == "zstd" and shutil.which("zstd"):
            data = data[: len(data) - trailer]
            command = ["zstd", "-dcq"]
            return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout
    except (OSError, ValueError, *DAMAGED, subprocess.CalledProcessError) as error:
        raise KernelError(f"It can't be uncompressed: {error}.", remedy=AGAIN) from error
    raise KernelError(
        f"It is compressed by {kind or 'an unknown program'}: no way to undo it here.",
        remedy="Install zstd." if kind == "zstd" else "Name an uncompressed kernel (vmlinux).",
    )


def release(image: bytes) -> str:
    """As in `6.1.0-56-amd64`; empty where the image does not say."""
    if image[0x202:0x206] == b"HdrS":
        (place,) = struct.unpack_from("<H", image, 0x20E)
        text = image[place + 0x200 : place + 0x300].split(b"\0")[0]
    else:
        found = re.search(rb"Linux version (\S+) ", image)
        text = found[1] if found else b""
    return text.split(b" ")[0].decode("ascii", "replace")


# ------------------------------------------------------------------------------------------ modules


class Modules:
    """Modules by their names, and in which order they can be loaded."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        """`files` are modules by their paths; what is no module is passed over."""
        self._files: dict[str, tuple[bytes, bool]] = {}
        for path, content in files.items():
            if found := re.fullmatch(r"(.+)\.ko(\.xz|\.gz|\.zst)?", path.rpartition("/")[2]):
                self._files[found[1].replace("-", "_")] = content, bool(found[2])

    def ordered(self, wanted: Iterable[str]) -> dict[str, bytes]:
        """These and what they need, each after its needs; what is not there is built in. Raises
        `KernelError` for one that is damaged.
        """
        found: dict[str, bytes] = {}

        def add(name: str) -> None:
            name = name.replace("-", "_")
            if name in found or name not in self._files:
                return
            content, packed = self._files[name]
            try:
                content = _unpacked(content) if packed else content
            except KernelError as error:
                message = f"Its module {name}: {error.message}"
                raise KernelError(message, remedy=error.remedy) from error
            for need in (rb"\0depends=([^\0]*)\0", rb"\0softdep=pre: ([^\0]*)\0"):
                if said := re.search(need, content):
                    for other in re.split(r"[, ]+", said[1].decode()):
                        add(other)
            found[name] = content

        for name in wanted:
            add(name)
        return found


def lacking(modules: Mapping[str, bytes], image: bytes) -> list[str]:
    """Of `MODULES` those that are neither among these nor built into that uncompressed kernel,
    which would have their names then.
    """
    absent = [name for name in MODULES if name not in modules]
    called = {name: CALLED.get(name, name).replace("_", "[-_]").encode() for name in absent}
    return [name for name in absent if not re.search(called[name], image)]


def from_archive(archive: tarfile.TarFile, match: str) -> dict[str, bytes]:
    """The regular files in a tar whose paths match."""
    found = {}
    for member in archive:
        name = member.name.removeprefix("./")
        if member.isfile() and re.search(match, name):
            stream = archive.extractfile(member)
            found[name] = b"" if stream is None else stream.read()
    return found


def from_package(path: Path, match: str) -> dict[str, bytes]:
    """The regular files in a Debian package (deb(5)) whose paths match. Raises `KernelError`."""
    data = path.read_bytes()
    at = 8
    with contextlib.suppress(ValueError, *DAMAGED):
        while data[:8] == PACKAGE and at + 60 <= len(data):
            name, size = data[at : at + 16].strip().rstrip(b"/"), int(data[at + 48 : at + 58])
            if name.startswith(b"data.tar") and name != b"data.tar.zst":
                with tarfile.open(fileobj=io.BytesIO(data[at + 60 : at + 60 + size])) as archive:
                    return from_archive(archive, match)
            at += 60 + size + size % 2
    raise KernelError(
        f"{path} is no Debian package that can be unpacked here.",
        remedy="Name the package of a kernel of Debian's, or a kernel image.",
    )


# ---------------------------------------------------------------------------------------- initramfs


def initramfs(modules: Mapping[str, bytes], busybox: bytes, init: bytes) -> bytes:
    """The archive: `init` is a script for busybox's shell, which loads `/modules/*` in order."""
    entries = [(name, stat.S_IFDIR | 0o755, b"", (0, 0)) for name in FOLDERS]
    entries += [
        ("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1)),
        ("bin/busybox", stat.S_IFREG | 0o755, busybox, (0, 0)),
        ("bin/sh", stat.S_IFLNK | 0o777, b"busybox", (0, 0)),
        ("init", stat.S_IFREG | 0o755, init, (0, 0)),
    ]
    for number, (name, content) in enumerate(modules.items()):
        place = f"modules/{number:02d}-{name}.ko"
        entries.append((place, stat.S_IFREG | 0o644, content, (0, 0)))
    return _cpio([*entries, ("TRAILER!!!", 0, b"", (0, 0))])


def _cpio(entries: Iterable[tuple[str, int, bytes, tuple[int, int]]]) -> bytes:
    out = bytearray()
    for inode, (name, mode, content, device) in enumerate(entries, 1):
        fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name) + 1, 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields)
        for part in (name.encode() + b"\0", content):
            out += part
            out += bytes(-len(out) % 4)
    return bytes(out)
