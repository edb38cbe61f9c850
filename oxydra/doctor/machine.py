"""The machine: the interpreter, SQLite, what memory needs of it, the time zones. No thread."""

from __future__ import annotations

import configparser
import platform
import shlex
import shutil
import sys
import time
import zoneinfo
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import apsw

from oxydra import embed
from oxydra.doctor.base import Case, Finding, install
from oxydra.memory.sidecar import vss_problem
from oxydra.version import VERSION

SET_CLOCK = "timedatectl set-ntp true"
OLDEST = (3, 11)
OLDEST_SQLITE = (3, 43)  # the first whose indexes of words can forget without the text
VSS_LIBRARIES = ("libgomp1", "libblas3", "liblapack3")  # as Debian calls them
VSS_MACHINES = {"linux": ("x86_64",), "darwin": ("x86_64", "arm64")}  # for which there are wheels


def python(_case: Case) -> Iterator[Finding]:
    version = platform.python_version()
    if sys.version_info < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        detail = f"This is Python {version}; Oxydra needs {wanted} or newer."
        yield Finding("python", "down", detail, install(f"python{wanted}"))
    else:
        yield Finding("python", "healthy", f"{version}, oxydra {VERSION}, {sys.executable}")


def sqlite(_case: Case) -> Iterator[Finding]:
    """Its version, and both kinds of index of words, made for real."""
    version = apsw.sqlite_lib_version()
    upgrade = pip("--upgrade", "apsw")
    if tuple(map(int, version.split("."))) < OLDEST_SQLITE:
        wanted = ".".join(map(str, OLDEST_SQLITE))
        detail = f"SQLite {version} is too old: {wanted} is needed."
        yield Finding("sqlite", "down", detail, upgrade)
        return
    try:
        with closing(apsw.Connection(":memory:")) as db:
            for tokenizer in ("porter unicode61", "trigram"):
                options = f"content = '', contentless_delete = 1, tokenize = '{tokenizer}'"
                db.execute(f"CREATE VIRTUAL TABLE {tokenizer[:6]} USING fts5(text, {options})")
    except apsw.Error as error:
        yield Finding("sqlite", "down", f"SQLite {version} has no usable FTS5: {error}.", upgrade)
    else:
        yield Finding("sqlite", "healthy", f"{version}, apsw {apsw.apsw_version()}, FTS5")


def vss(_case: Case) -> Iterator[Finding]:
    """sqlite-vss, which is loaded, with the libraries that it needs."""
    problem = vss_problem()
    if not problem:
        yield Finding("sqlite-vss", "healthy", "loaded")
    elif platform.machine() not in VSS_MACHINES.get(sys.platform, ()):
        detail = "not offered for this machine: all vectors are compared instead"
        yield Finding("sqlite-vss", "healthy", detail)
    else:
        detail = f"{problem[0].upper()}{problem[1:]}: a large memory is searched slower."
        missing = find_spec("sqlite_vss") is None
        remedy = pip(*extra("embeddings")) if missing else install(*VSS_LIBRARIES)
        yield Finding("sqlite-vss", "degraded", detail, remedy)


def embedding(case: Case) -> Iterator[Finding]:
    """The backend that makes vectors, by making one."""
    if case.broken is not None:
        return
    memory = case.settings.agent.memory
    if not memory.enabled:
        yield Finding("embedding", "healthy", "memory is off")
        return
    if memory.embedding_backend == "openai_compatible":
        detail = f"{memory.embedding_model} of {memory.embedding_provider}"
        yield Finding("embedding", "healthy", detail)
        return
    backend = embed.create(memory.embedding_backend)
    backend.embed(["hello"])
    if memory.embedding_backend == "auto" and backend.model.startswith("deterministic"):
        detail = "Things are found by their words alone: the backend wordllama is not installed."
        yield Finding("embedding", "degraded", detail, pip(*extra("embeddings")))
    else:
        yield Finding("embedding", "healthy", backend.model)


def zones(_case: Case) -> Iterator[Finding]:
    """The rules of time zones, without which no schedule has a time."""
    found = len(zoneinfo.available_timezones())
    if found:
        yield Finding("time-zones", "healthy", f"{found} zones")
    else:
        detail = "This system has no time zones, so no schedule has a time."
        yield Finding("time-zones", "down", detail, install("tzdata"))


def clock(_case: Case) -> Iterator[Finding]:
    """A clock that was never set; `reach` compares it with that of a server."""
    yield clock_at(time.time(), Path(__file__).stat().st_mtime)


def clock_at(now: float, built: float) -> Finding:
    """What the clock says, in Unix seconds, and when this version was put here."""
    shown = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M} UTC"
    if now < built - 86_400:
        detail = f"The clock says {shown}, which was before this version was installed."
        return Finding("clock", "degraded", detail, SET_CLOCK)
    return Finding("clock", "healthy", shown)


def bubblewrap(_case: Case) -> Iterator[Finding]:
    """What gives commands namespaces of their own in the process tier."""
    if sys.platform != "linux":
        return
    found = shutil.which("bwrap")
    if found is None:
        detail = "bubblewrap is not installed: in the process tier commands are caged on the"
        detail += " machine's own tree, without a network of their own."
        yield Finding("bubblewrap", "degraded", detail, install("bubblewrap"))
    else:
        yield Finding("bubblewrap", "healthy", found)


def pip(*words: str) -> str:
    return shlex.join([sys.executable, "-m", "pip", "install", *words])


def extra(name: str) -> list[str]:
    """What pip is to install for an extra: in a checkout, which is no package that pip knows, what
    its setup.cfg names.
    """
    setup = Path(__file__).parent.parent.parent / "setup.cfg"
    if not setup.is_file():
        return [f"oxydra[{name}]"]
    parser = configparser.ConfigParser()
    parser.read(setup, encoding="utf-8")
    return parser["options.extras_require"][name].strip().splitlines()
