"""The images of the microVM tier: where they are, what goes into them, and whether they fit.

    <cache>/oxydra/microvm/           $XDG_CACHE_HOME or ~/.cache
        packages/<hash>…              what was unpacked of Debian's packages
        images/<version>-<code>/      vmlinux, initrd.img, agent.sqfs, shell.sqfs, manifest.json
        templates/<key>/              machines that have booted (`templates.py`)

`guest/build-microvm` makes them by what stands here. No thread runs here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from oxydra.errors import OxydraError
from oxydra.tiers import images
from oxydra.tiers.base import guest_script
from oxydra.types import Json
from oxydra.version import VERSION

ROLES = ("agent", "shell")
KERNEL, INITRD, MANIFEST = "vmlinux", "initrd.img", "manifest.json"


def cache() -> Path:
    """The folder of all that this tier keeps; it may be removed at any time."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "oxydra" / "microvm"


def files(role: str) -> dict[str, Path]:
    """Our own files in that root image, by their paths below /opt/oxydra."""
    return images.files(role) | {"machine-init": guest_script("machine-init")}


def code() -> str:
    """A short hash of all files of ours that a machine is made of."""
    digest = hashlib.sha256(guest_script("initramfs-init").read_bytes())
    for role in ROLES:
        for name, path in sorted(files(role).items()):
            content = path.read_bytes()
            digest.update(f"{role}/{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images that were built together. `manifest` is what the build has noted of them."""

    folder: Path
    manifest: Json

    @property
    def kernel(self) -> Path:
        return self.folder / KERNEL

    @property
    def initrd(self) -> Path:
        return self.folder / INITRD

    def root(self, role: str) -> Path:
        return self.folder / f"{role}.sqfs"

    @property
    def identity(self) -> str:
        """Differs for sets that differ in a bit of anything."""
        return str(self.manifest["identity"])


def folder() -> Path:
    """Where the images of this code are, or would be."""
    return cache() / "images" / f"{VERSION}-{code()}"


def find(extra_packages: Iterable[str] = ()) -> ImageSet:
    """Raises `OxydraError` with the remedy where there are none of this code, or they lack some of
    these packages.
    """
    wanted = set(extra_packages)
    options = ["--extra-packages", ",".join(sorted(wanted))] if wanted else []
    command = shlex.join([sys.executable, str(guest_script("build-microvm")), *options])
    remedy = f"Build them: {command}"
    place = folder()
    try:
        manifest = json.loads((place / MANIFEST).read_bytes())
        held = set(manifest["extra_packages"])
    except (OSError, ValueError, KeyError) as error:
        older = place.parent.is_dir() and any(place.parent.iterdir())
        raise OxydraError(
            f"The images of the microVM tier are not in {place.parent}"
            + (": those there are of other code." if older else "."),
            remedy=remedy,
            command=command,
            code="image_outdated" if older else "image_missing",
        ) from error
    if wanted - held:
        lack = ", ".join(sorted(wanted - held))
        raise OxydraError(
            f"The images of the microVM tier were built without the extra packages {lack}.",
            remedy=remedy,
            command=command,
            code="image_outdated",
        )
    return ImageSet(place, manifest)
