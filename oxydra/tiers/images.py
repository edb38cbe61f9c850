"""The images of the container tier: what goes into them, and whether one is of this version.

`guest/build-images` makes them by what stands here and labels them; the tier asks `check` before it
starts a guest. No thread runs here.
"""

from __future__ import annotations

import hashlib
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from oxydra.errors import OxydraError
from oxydra.tiers.base import guest_script
from oxydra.version import VERSION

REPOSITORIES = {"agent": "oxydra-vm", "shell": "shell-vm"}  # by role

VERSION_LABEL = "org.oxydra.version"
ROLE_LABEL = "org.oxydra.role"
INPUTS_LABEL = "org.oxydra.inputs"  # a hash of everything the build was told
CODE_LABEL = "org.oxydra.code"  # what `code` said
PACKAGES_LABEL = "org.oxydra.extra-packages"  # their names, with commas between

HOST_ONLY = ("agent", "broker", "cli", "doctor", "runner", "tiers", "tui")  # in no guest


def default_reference(role: str) -> str:
    """The image of this version, as in `oxydra-vm:0.1.0`."""
    return f"{REPOSITORIES[role]}:{VERSION}"


def files(role: str) -> dict[str, Path]:
    """Our own files in that image, by their paths below /opt/oxydra."""
    package = Path(__file__).resolve().parent.parent
    if role == "shell":
        names = ("shell-daemon", "shell-servers", "egress-forwarder")
        scripts = {name: guest_script(name) for name in names}
        return scripts | {name: package / name for name in ("cage.py", "mux.py")}
    found = {"guest/oxydra-vm": guest_script("oxydra-vm")}
    for name in ("__init__.py", "tool-worker"):
        found[f"oxydra/guest/{name}"] = guest_script(name)
    for path in package.rglob("*"):
        inside = path.relative_to(package)
        node = inside.parts[0].removesuffix(".py")
        if node in (*HOST_ONLY, "guest") or not path.is_file():
            continue
        if path.suffix == ".py" or node == "data":
            found[f"oxydra/{inside.as_posix()}"] = path
    return found


def code(role: str) -> str:
    """A short hash of `files(role)`: it differs where an image holds other code than this."""
    digest = hashlib.sha256()
    for name, path in sorted(files(role).items()):
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def check(
    role: str, reference: str, labels: Mapping[str, str] | None, extra_packages: Iterable[str] = ()
) -> None:
    """Raise `OxydraError` with the remedy unless an image with these labels can be that guest.

    `labels` is None where the engine has no image `reference`. The codes are `image_missing` and
    `image_outdated`.
    """
    wanted = set(extra_packages)
    options = ["--extra-packages", ",".join(sorted(wanted))] if wanted else []
    command = shlex.join([sys.executable, str(guest_script("build-images")), *options])
    remedy = f"Build it: {command}"
    if labels is None:
        raise OxydraError(
            f"The image {reference} is not in the Docker engine.",
            remedy=remedy,
            command=command,
            code="image_missing",
        )
    held = set(labels.get(PACKAGES_LABEL, "").split(","))
    built = labels.get(VERSION_LABEL)
    if labels.get(ROLE_LABEL) != role:
        wrong = f"is not an image of the {role} guest"
    elif built != VERSION:
        wrong = f"was built by another version ({built or 'unknown'}, this is {VERSION})"
    elif labels.get(CODE_LABEL) != code(role):
        wrong = f"holds other code than this version {VERSION}"
    elif role == "shell" and wanted - held:
        wrong = f"was built without the extra packages {', '.join(sorted(wanted - held))}"
    else:
        return
    raise OxydraError(
        f"The image {reference} {wrong}.", remedy=remedy, command=command, code="image_outdated"
    )


def build(arguments: Sequence[str]) -> int:
    """Run `guest/build-images` with these arguments; returns its exit code."""
    return subprocess.call([sys.executable, str(guest_script("build-images")), *arguments])
