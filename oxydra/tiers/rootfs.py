"""The file system of an image: what is kept of a Debian tree, and a tar that is always the same.

Used by `guest/build-images`. A layer is held in memory until it is written. No thread runs here.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

# What no guest needs, and what differs from one build to the next.
DROPPED = re.compile(
    r"(dev|proc|sys|run|tmp|boot|media|mnt|srv|home)/"
    r"|etc/(apt/|hostname$|hosts$|resolv\.conf$|machine-id$|mtab$|.*-$)"
    r"|var/(log|cache|tmp|mail|spool)/|var/lib/(apt|systemd|pam)/|var/lib/dpkg/.*-old$"
    r"|usr/share/(man|info|locale|lintian|bug|groff|linda|menu|bash-completion)/"
    r"|usr/share/doc/(?!.*/copyright$).*[^/]$|usr/share/zoneinfo/(right|posix)(/|$)"
    r"|(.*/)?__pycache__(/|$)"
)
# The agent's packages are unpacked, not installed: only what Python needs of them is kept.
KEPT_FOR_AGENT = re.compile(
    r"usr/lib/(python3[^/]*|ssl|[^/]+-linux-gnu[^/]*|ld-linux[^/]*)(/|$)(?!gconv|perl|security|sasl2|gawk)"
    r"|lib64/|usr/lib64/|usr/bin/python3[.\d]*$|usr/share/zoneinfo/|usr/share/doc/.*/copyright$"
    r"|etc/(mime\.types|ssl|python3[^/]*)(/|$)"
)
MERGED = ("bin", "sbin", "lib")  # links into usr, also where packages were only unpacked
FOLDERS = dict.fromkeys(("dev", "etc", "opt", "proc", "root", "run", "sys", "usr", "var"), 0o755)
FOLDERS |= {"shared": 0o755, "vault": 0o755, "tmp": 0o1777, "var/tmp": 0o1777}
ACCOUNTS = {
    "etc/passwd": "root:x:0:0::/root:/bin/bash\nnobody:x:65534:65534::/nonexistent:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
PERSON = {
    "etc/passwd": "user:x:1000:1000::/shared:/bin/bash\n",
    "etc/group": "user:x:1000:\n",
}


class Layer:
    """Collects files and writes them as a tar that is the same for the same content. Names that
    were given the same bytes object become hard links of one file.
    """

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch
        self._members: dict[str, tuple[tarfile.TarInfo, bytes | None]] = {}

    def add(self, name: str, content: bytes, mode: int = 0o644) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(content), mode
        self.put(member, content)

    def link(self, name: str, target: str) -> None:
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.mode = tarfile.SYMTYPE, target, 0o777
        self.put(member)

    def folder(self, name: str, mode: int = 0o755) -> None:
        member = tarfile.TarInfo(name)
        member.type, member.mode = tarfile.DIRTYPE, mode
        self.put(member)

    def put(self, member: tarfile.TarInfo, content: bytes | None = None) -> None:
        member.mtime, member.pax_headers = self._epoch, {}
        member.uname = member.gname = ""
        member.mode &= 0o1777  # nothing in an image is setuid
        self._members[member.name] = member, content

    def content(self, name: str) -> bytes | None:
        """That file, None if there is none."""
        return self._members[name][1] if name in self._members else None

    def names(self) -> set[str]:
        return set(self._members)

    def tar(self, suffix: str = "") -> bytes:
        """The archive, of files with that ending only where one is given."""
        for name in list(self._members):
            for parent in Path(name).parents:
                if str(parent) != "." and str(parent) not in self._members:
                    self.folder(str(parent))
        target = io.BytesIO()
        first: dict[tuple[int, int], str] = {}
        with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name in sorted(self._members):
                member, content = self._members[name]
                if suffix and (content is None or not name.endswith(suffix)):
                    continue
                if content is None:
                    archive.addfile(member)
                    continue
                held = first.setdefault((id(content), member.mode), name)
                if held != name and content and not suffix:
                    archive.addfile(_hard_link(member, held))
                else:
                    archive.addfile(member, io.BytesIO(content))
        return target.getvalue()


def write_image(target: Path, layer: bytes, reference: str, architecture: str, epoch: int) -> None:
    """An archive for `docker load` of an image with one layer. (`docker import` of engines before
    23.0 takes every file system for one of their own architecture.)
    """
    made = datetime.fromtimestamp(epoch, UTC).isoformat()
    config = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "created": made,
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(layer).hexdigest()}"]},
            "history": [{"created": made}],
        }
    ).encode()
    name = f"{sha256(config).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": [reference], "Layers": ["layer.tar"]}]
    with tarfile.open(target, "w") as archive:
        for file, content in (
            (name, config),
            ("layer.tar", layer),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            member = tarfile.TarInfo(file)
            member.size, member.mtime = len(content), epoch
            archive.addfile(member, io.BytesIO(content))


def _hard_link(member: tarfile.TarInfo, target: str) -> tarfile.TarInfo:
    link = tarfile.TarInfo(member.name)
    link.type, link.linkname = tarfile.LNKTYPE, target
    link.mode, link.mtime = member.mode, member.mtime
    return link


def file_system(archive: Path, role: str, epoch: int) -> Layer:
    """What an image of that role keeps of the tree that a debootstrap made."""
    layer = Layer(epoch)
    shared: dict[str, bytes] = {}  # the content of files by their names in the archive
    with tarfile.open(archive) as source:
        for member in source:
            name = inside(member.name)
            if not name or name in MERGED or DROPPED.match(name + "/" * member.isdir()):
                continue
            if role == "agent" and not (member.isdir() or KEPT_FOR_AGENT.match(name)):
                continue
            if member.isdir():
                if role == "shell":  # the agent's are those of its files
                    layer.folder(name, member.mode)
                continue
            if not (member.isfile() or member.issym() or member.islnk()):
                continue
            content = None if member.issym() else plain(source, member, shared)
            member.name = name
            layer.put(member, content)
    complete(layer)
    return layer


def plain(source: tarfile.TarFile, member: tarfile.TarInfo, shared: dict[str, bytes]) -> bytes:
    """Make a plain file of one with several names; its content, the same object for all of them.
    `shared` holds what was read before.
    """
    stream = source.extractfile(member)
    content = b"" if stream is None else stream.read()
    content = shared.setdefault(member.linkname or member.name, content)
    member.type, member.size, member.linkname = tarfile.REGTYPE, len(content), ""
    return content


def extend(layer: Layer, archive: Path) -> None:
    """Add what the archive of a layer holds."""
    shared: dict[str, bytes] = {}
    with tarfile.open(archive) as source:
        for member in source:
            content = member.isfile() or member.islnk()
            layer.put(member, plain(source, member, shared) if content else None)


def inside(name: str) -> str:
    """A member's path from the root, where bin, sbin and lib are links into usr."""
    name = name.removeprefix("./").strip("/")
    name = "" if name == "." else name
    first, slash, _rest = name.partition("/")
    return f"usr/{name}" if slash and first in (*MERGED, "lib64") else name


def complete(layer: Layer) -> None:
    """Add what an installation would have left, where packages were only unpacked."""
    for name, mode in FOLDERS.items():
        layer.folder(name, mode)
    for name in MERGED:
        layer.link(name, f"usr/{name}")
    if any(name.startswith("usr/lib64/") for name in layer.names()):
        layer.link("lib64", "usr/lib64")
    layer.add("etc/hostname", b"oxydra\n")
    for name, text in ACCOUNTS.items():
        content = layer.content(name) or text.encode()
        layer.add(name, content + PERSON.get(name, "").encode())
    for name in layer.names():  # Debian's alternatives of these two
        if found := re.match(r"(usr/lib/[^/]+)/(blas|lapack)/(lib\w+\.so\.3)$", name):
            layer.link(f"{found[1]}/{found[3]}", f"{found[2]}/{found[3]}")
