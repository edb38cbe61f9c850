"""What the guests' images of every tier are made of: packages, Python packages, our own files.

Used by `guest/build-images` and `guest/build-microvm`. No thread runs here.
"""

from __future__ import annotations

import argparse
import base64
import configparser
import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from oxydra.errors import OxydraError, UsageError
from oxydra.tiers import images
from oxydra.tiers.rootfs import Layer
from oxydra.version import VERSION

SUITE = "bookworm"
EPOCH = 1735689600  # the time of every file, unless SOURCE_DATE_EPOCH says otherwise
DEBOOTSTRAPS = ("mmdebstrap", "debootstrap")
PACKAGES = {
    "agent": "python3-minimal libpython3-stdlib tzdata",
    "shell": "bash bzip2 ca-certificates coreutils curl diffutils file findutils gawk git grep gzip"
    " hostname jq less patch procps python3 ripgrep sed tar tzdata unzip util-linux xz-utils",
}
EXTRA_LIBRARIES = {"telegram": "", "embeddings": "libblas3 libgomp1 liblapack3 libstdc++6"}
NOT_IN_GUESTS = ("blessed", "docker", "wcwidth", "websocket-client")  # the host's dependencies
UNUSED = {"tests", "__pycache__", "sqlite_extra_binaries"}  # folders of Python packages


def packages_of(
    role: str, extras: Sequence[str] = (), extra_packages: Sequence[str] = ()
) -> tuple[str, ...]:
    """The Debian packages of that guest."""
    names = set(PACKAGES[role].split())
    if role == "shell":
        names.update(extra_packages)
    else:
        names.update(*(EXTRA_LIBRARIES[extra].split() for extra in extras))
    return tuple(sorted(names))


# ---------------------------------------------------------------------------------------- arguments


def names(text: str) -> tuple[str, ...]:
    """A list with commas, of what may be a package's name."""
    found = tuple(sorted({word.strip() for word in text.split(",") if word.strip()}))
    for word in found:
        if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]+", word):
            raise argparse.ArgumentTypeError(f"{word!r} is not the name of a package")
    return found


def extras(text: str) -> tuple[str, ...]:
    """A list with commas, of the agent's extras."""
    found = names(text)
    for word in found:
        if word not in EXTRA_LIBRARIES:
            known = ", ".join(EXTRA_LIBRARIES)
            raise argparse.ArgumentTypeError(f"there is no extra {word!r}; there is: {known}")
    return found


def epoch() -> int:
    """The time that files get. Raises `UsageError`."""
    given = os.environ.get("SOURCE_DATE_EPOCH", str(EPOCH))
    if not given.isdecimal():
        raise UsageError("SOURCE_DATE_EPOCH is not a number of seconds.", remedy="Unset it.")
    return int(given)


# ------------------------------------------------------------------------------------------- output


class Report:
    """Says on `out` what is being done, and how long it took."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out = out

    def say(self, text: str, end: str = "\n") -> None:
        self._out.write(text + end)
        self._out.flush()

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[None]:
        begun = time.monotonic()
        self.say(f"  {what} ...", end="")
        try:
            yield
        except BaseException:
            self.say(" failed")
            raise
        self.say(f" {time.monotonic() - begun:.1f} s")


def megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


def last_words(output: bytes) -> str:
    """The last lines of what a program had to say, or its last errors, on one line."""
    text = re.sub(r"\x1b\[[\d;]*m", "", output.decode(errors="replace"))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"E: |ERROR: |error: ", line)]
    return " / ".join((errors or lines)[-3:])[-600:].rstrip(".") or "it said nothing"


# ------------------------------------------------------------------------------------- what is ours


def requirements(extras: Sequence[str]) -> list[str]:
    """What the agent guest needs from Python's packages, as setup.cfg or the install says."""
    setup = Path(__file__).resolve().parent.parent.parent / "setup.cfg"
    if setup.is_file():
        parser = configparser.ConfigParser()
        parser.read(setup)
        found = parser["options"]["install_requires"].split("\n")
        for extra in extras:
            found += parser["options.extras_require"][extra].split("\n")
    else:
        found = []
        for row in importlib.metadata.requires("oxydra") or []:
            wanted = re.search(r"""extra == ["'](\w+)["']""", row)
            if wanted is None or wanted[1] in extras:
                found.append(re.sub(r"""(;|and) *extra == ["']\w+["']$""", "", row).strip())
    names = {row: re.split(r"[^\w.-]", row.strip().lower())[0] for row in found if row.strip()}
    return sorted(row.strip() for row, name in names.items() if name not in NOT_IN_GUESTS)


def wheel(folder: Path, needed: Sequence[str]) -> Path:
    """The wheel of what the agent guest is made of; the same bytes for the same content."""
    target = folder / f"oxydra-{VERSION}-py3-none-any.whl"
    info = f"oxydra-{VERSION}.dist-info"
    content = {
        name: path.read_bytes()
        for name, path in images.files("agent").items()
        if name.startswith("oxydra/")
    }
    metadata = f"Metadata-Version: 2.1\nName: oxydra\nVersion: {VERSION}\n"
    metadata += "".join(f"Requires-Dist: {row}\n" for row in needed)
    content[f"{info}/METADATA"] = metadata.encode()
    tags = "Wheel-Version: 1.0\nGenerator: oxydra\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    content[f"{info}/WHEEL"] = tags.encode()
    record = ""
    for name in sorted(content):
        digest = base64.urlsafe_b64encode(hashlib.sha256(content[name]).digest()).decode()
        record += f"{name},sha256={digest.rstrip('=')},{len(content[name])}\n"
    content[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(content):
            member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            member.external_attr = 0o644 << 16
            archive.writestr(member, content[name])
    return target


def hash_of(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


# ------------------------------------------------------------------------------------------- Debian


def start_mmdebstrap(
    packages: Sequence[str],
    target: Path,
    log: Path,
    *,
    architecture: str,
    variant: str,
    mirror: str = "",
    epoch: int = EPOCH,
) -> subprocess.Popen[bytes]:
    """Begin to make the tar `target` of these packages. `variant` is mmdebstrap's."""
    command = ["mmdebstrap", f"--variant={variant}", f"--architectures={architecture}"]
    command += [
        f"--include={','.join(packages)}",
        SUITE,
        str(target),
        *([mirror] if mirror else []),
    ]
    return start_logged(command, log, epoch)


def start_logged(command: Sequence[str], log: Path, epoch: int) -> subprocess.Popen[bytes]:
    """Begin a program that prints to `log`."""
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch)},
        )


VARIANTS = {"agent": "extract", "shell": "essential"}
"""Commands need what maintainer scripts leave (certificates, alternatives); Python does not, so the
agent's packages are unpacked without installing any."""


def await_bootstraps(tool: str, jobs: Mapping[str, subprocess.Popen[bytes]], folder: Path) -> None:
    """Wait for what was begun, whose logs are `folder/<name>.log`. Raises `OxydraError`."""
    codes = {name: job.wait() for name, job in jobs.items()}
    for name, code in codes.items():
        if code != 0:
            said = (folder / f"{name}.log").read_bytes()
            raise OxydraError(
                f"{tool} failed: {last_words(said)}.",
                remedy="It needs the package mirror, and root or user namespaces.",
            )


# ------------------------------------------------------------------------------------------- Python

ASK_PYTHON = (
    "import os, sys; print(*sys.version_info[:2], os.confstr('CS_GNU_LIBC_VERSION'), "
    "os.uname().machine)"
)
"""A program for an image's interpreter, whose answer `add_packages` takes."""


def add_packages(layer: Layer, folder: Path, extras: Sequence[str], interpreter: bytes) -> None:
    """Add the agent's Python packages, of the kind that the image's interpreter takes. Raises
    `OxydraError`.
    """
    major, minor, _glibc, libc, machine = interpreter.decode().split()
    newest = int(libc.split(".")[1])
    target = folder / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--target", str(target)]
    command += ["--implementation", "cp", "--python-version", f"{major}.{minor}"]
    command += ["--abi", f"cp{major}{minor}", "--abi", "abi3", "--abi", "none"]
    for name in [f"2_{n}" for n in range(newest, 16, -1)]:
        command += ["--platform", f"manylinux_{name}_{machine}"]
    command += ["--platform", f"manylinux2014_{machine}", "--platform", f"linux_{machine}"]
    done = subprocess.run(
        [*command, str(wheel(folder, requirements(extras)))],
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    if done.returncode != 0:
        raise OxydraError(
            f"pip failed: {last_words(done.stderr)}.",
            remedy="It needs the package index; without pip on this host (apt install "
            "python3-pip), images can be made with build-images --in-docker.",
        )
    for path in sorted(target.rglob("*")):
        inside = path.relative_to(target)
        unwanted = inside.parts[0] == "bin" or not UNUSED.isdisjoint(inside.parts)
        if unwanted or inside.name in ("RECORD", "REQUESTED", "direct_url.json"):
            continue
        if path.is_file():
            layer.add(f"opt/oxydra/{inside.as_posix()}", path.read_bytes())
    shutil.rmtree(target)


def add_ours(layer: Layer, files: Mapping[str, Path]) -> None:
    """Add our own scripts of those files; the package itself comes as a Python package."""
    for name, path in files.items():
        if not name.startswith("oxydra/"):
            mode = 0o644 if name.endswith(".py") else 0o755
            layer.add(f"opt/oxydra/{name}", path.read_bytes(), mode)
