"""Ready-made destinations for `[egress] presets`, by name.

Those of `pip` and `npm` are asked of the programs themselves, as they are configured on this
machine: a mirror of the company's is meant where one is set up. They are asked once.
"""

from __future__ import annotations

import functools
import os
import sys

from oxydra.errors import ConfigError

GIT = ("github.com:443", "gitlab.com:443", "codeberg.org:443", "bitbucket.org:443")
ASK_SECONDS = 15.0


@functools.cache
def destinations(name: str) -> tuple[str, ...]:
    """`host:port` entries. Raises `ConfigError` where the program can't be asked."""
    if name == "git":
        return GIT
    urls = _pip() if name == "pip" else _npm()
    found = tuple(dict.fromkeys(filter(None, map(_place, urls))))
    if not found:
        raise ConfigError(
            f"The preset {name!r} can't be worked out: {name} does not say where it downloads from "
            "on this machine.",
            remedy=f"Install {name} for the runner, or list its hosts in [egress] allow.",
            key="egress.presets",
        )
    return found


def _pip() -> list[str]:
    """The indexes that pip is configured for, else its own and where that keeps its files."""
    asked = [_ask([sys.executable, "-m", "pip", "config", "get", f"global.{key}"]) for key in
             ("index-url", "extra-index-url")]  # fmt: skip
    given = [os.environ.get("PIP_INDEX_URL") or asked[0]]
    given += (os.environ.get("PIP_EXTRA_INDEX_URL") or asked[1]).split()
    if given[0]:
        return given
    try:
        from pip._internal.models.index import PyPI
    except ImportError:
        return []
    return [PyPI.url, f"https://{PyPI.file_storage_domain}", *given[1:]]


def _npm() -> list[str]:
    if given := os.environ.get("NPM_CONFIG_REGISTRY"):
        return [given]
    import shutil

    npm = shutil.which("npm")
    return [_ask([npm, "config", "get", "registry"])] if npm else []


def _ask(command: list[str]) -> str:
    """What a program prints; empty if it fails."""
    import subprocess  # few start-ups pay for it

    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ASK_SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _place(url: str) -> str:
    """`host:port` of a URL; empty where it has none that commands could reach."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)
    except ValueError:
        return ""
    return f"{parts.hostname}:{port}" if parts.hostname and port else ""
