"""Files that configure: read only where nobody else can write them, written only for the caller.

Also the record of which `.oxydra` folders this person vouched for (`trust`) or made (`mark_made`).
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from oxydra.errors import ConfigError

MAX_BYTES = 1 << 20  # of one file
SHARED_BITS = stat.S_IWGRP | stat.S_IWOTH
STAMP = ".made-here"  # in a folder that `init` made: a random word, which trusted.json repeats
NAMES = ("agent.toml", "providers.toml", "runner.toml")


def config_home(env: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_CONFIG_HOME/oxydra`, by default `~/.config/oxydra` (XDG Base Directory Specification:
    a relative value is ignored).
    """
    named = env.get("XDG_CONFIG_HOME", "")
    if os.path.isabs(named):
        return Path(named) / "oxydra"
    home = env.get("HOME", "")
    return (Path(home) if os.path.isabs(home) else Path.home()) / ".config" / "oxydra"


# ------------------------------------------------------------------------------------------ reading


def read_bytes(path: Path, *, private: bool = False) -> bytes | None:
    """A file that only the caller and root can change, and, if `private`, only they can read.

    None if there is none. Raises `ConfigError` if it, or the folder that holds it, is somebody
    else's or can be written by others, and if it is no regular file.
    """
    try:
        # Not to hang on a FIFO: what it is gets looked at once it is open.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(
            f"The file can't be read: {error.strerror}.",
            remedy="It must be readable by the user who runs Oxydra.",
            file=str(path),
        ) from None
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError("This is no regular file.", file=str(path))
        _refuse_unsafe(path, found, 0o077 if private else SHARED_BITS)
        for folder in {path.parent, path.resolve().parent}:
            check_folder(folder)
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ConfigError(f"The file is larger than {MAX_BYTES >> 20} MiB.", file=str(path))
    return data


def read_text(path: Path) -> str | None:
    """`read_bytes` as UTF-8."""
    data = read_bytes(path)
    if data is None:
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            "The file is not valid UTF-8.",
            remedy="Save it as UTF-8.",
            file=str(path),
            line=data.count(b"\n", 0, error.start) + 1,
        ) from None


def check_folder(folder: Path) -> None:
    """Raise `ConfigError` if others could put files there."""
    try:
        found = os.stat(folder)
    except OSError as error:
        raise ConfigError(
            f"The folder can't be used: {error.strerror}.", file=str(folder)
        ) from None
    _refuse_unsafe(folder, found, SHARED_BITS)


def _refuse_unsafe(path: Path, found: os.stat_result, bits: int) -> None:
    if found.st_uid not in (os.geteuid(), 0):
        raise ConfigError(
            f"This belongs to another user (uid {found.st_uid}), who could change it.",
            remedy=f"After looking at it: chown -h {os.geteuid()} '{path}'.",
            command=f"chown -h {os.geteuid()} {shlex.quote(str(path))}",
            file=str(path),
        )
    if found.st_mode & bits:
        what = "read or written" if bits & ~SHARED_BITS else "written"
        command = f"chmod {'go-rwx' if bits & ~SHARED_BITS else 'go-w'} {shlex.quote(str(path))}"
        raise ConfigError(
            f"This can be {what} by other users (mode {stat.S_IMODE(found.st_mode):04o}).",
            remedy=f"Run: {command}",
            command=command,
            file=str(path),
        )


# ------------------------------------------------------------------------------------------ writing


def private_folder(path: Path) -> bool:
    """Make `path` with mode 0700; True if it was not there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        path.mkdir(mode=0o700)
    except FileExistsError:
        if path.is_dir():
            return False
        raise ConfigError("This is no folder.", file=str(path)) from None
    except OSError as error:
        raise ConfigError(f"The folder can't be made: {error.strerror}.", file=str(path)) from None
    return True


def write_private(path: Path, data: bytes) -> None:
    """Put `data` at `path`, atomically and with mode 0600; the folder is made if missing."""
    import tempfile

    private_folder(path.parent)
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:  # 0600
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, path)
    except OSError as error:
        raise ConfigError(f"The file can't be written: {error.strerror}.", file=str(path)) from None


def write_new(path: Path, text: str) -> bool:
    """Write a file with mode 0600; False, and nothing is touched, if there is one."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return False
    except OSError as error:
        raise ConfigError(f"The file can't be written: {error.strerror}.", file=str(path)) from None
    with open(fd, "w", encoding="utf-8") as file:
        file.write(text)
    return True


# ---------------------------------------------------------------------------------- trusted folders


def trust(folder: Path, home: Path | None = None) -> Path:
    """Vouch for a configuration folder as it is now; any change to it needs this again.

    `home` is `config_home()` by default. Returns the folder's real path.
    """
    folder = _folder(folder)
    if not is_trusted(folder, home):
        _record(folder, {"sha256": fingerprint(folder)}, home or config_home())
    return folder


def mark_made(folder: Path, home: Path | None = None) -> None:
    """Remember that the caller made this folder, whatever they write into it later.

    The random stamp inside tells it from another folder that takes its place.
    """
    import secrets

    stamp = secrets.token_hex(16)
    if write_new(folder / STAMP, stamp + "\n"):
        _record(_folder(folder), {"stamp": stamp}, home or config_home())


def is_trusted(folder: Path, home: Path | None = None) -> bool:
    """Whether the caller made `folder` here, or vouched for exactly what is in it now."""
    folder = _folder(folder)
    entry = _records(home or config_home()).get(str(folder))
    if not isinstance(entry, dict):
        return False
    if stamp := entry.get("stamp"):
        return read_text(folder / STAMP) == f"{stamp}\n"
    return entry.get("sha256") == fingerprint(folder)


def holds_configuration(folder: Path) -> bool:
    return any(True for _ in configuring(folder))


def _folder(folder: Path) -> Path:
    folder = folder.resolve()
    if not folder.is_dir():
        raise ConfigError("There is no such folder.", file=str(folder))
    return folder


def fingerprint(folder: Path) -> str:
    """SHA-256 over the names and contents of everything that configures from `folder`."""
    import hashlib

    digest = hashlib.sha256()
    for path in sorted(configuring(folder)):
        data = read_bytes(path) or b""
        for part in (os.fsencode(os.path.relpath(path, folder)), data):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
    return digest.hexdigest()


def configuring(folder: Path, runner_file: Path | None = None) -> Iterator[Path]:
    """The configuration files of a folder, with a runner.toml of another name if there is one, and
    the files that these name.
    """
    found = [folder / name for name in NAMES if os.path.isfile(folder / name)]
    if runner_file is not None and runner_file not in found and os.path.isfile(runner_file):
        found.append(runner_file)
    found += sorted((folder / "users").glob("*.toml"))
    yield from found
    for path in found:
        for named in _named_files(path):
            if os.path.isfile(named) and named not in found:
                yield named


def _named_files(path: Path) -> Iterator[Path]:
    """Users' files and prompts that a configuration file refers to, as far as it can be read."""
    import tomli

    try:
        table = tomli.loads(read_text(path) or "")
    except tomli.TOMLDecodeError:
        return  # `load` will say what is wrong with it
    for table_name, key in (
        ("users", "config_path"),
        ("agents", "system_prompt_file"),
        ("", "system_prompt_file"),
    ):
        entries = table.get(table_name) if table_name else {"": table}
        for entry in entries.values() if isinstance(entries, dict) else ():
            if isinstance(entry, dict) and isinstance(entry.get(key), str):
                yield path.parent / os.path.expanduser(entry[key])


def _records(home: Path) -> dict[str, Any]:
    import json

    path = home / "trusted.json"
    text = read_text(path)
    try:
        folders = json.loads(text)["folders"] if text is not None else {}
        if isinstance(folders, dict):
            return folders
    except (ValueError, KeyError, TypeError):
        pass
    raise ConfigError(
        "The record of trusted folders is broken.",
        remedy=f"Remove '{path}' and run `oxydra-runner trust` again where it is needed.",
        file=str(path),
    )


def _record(folder: Path, entry: dict[str, str], home: Path) -> None:
    import json

    folders = _records(home) | {str(folder): entry}
    document = {"version": 1, "folders": folders}
    write_private(home / "trusted.json", (json.dumps(document, indent=1) + "\n").encode())


def in_checkout(folder: Path) -> bool:
    """Whether `folder` lies in a version-controlled tree: what is there may have come with it."""
    folder = folder.resolve()
    marks = (".git", ".hg", ".jj", ".svn")
    return any((parent / mark).exists() for parent in (folder, *folder.parents) for mark in marks)


# ----------------------------------------------------------------------------------------- the keys

KEY_NAME = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,127}"


def key_path(name: str, home: Path) -> Path:
    if not re.fullmatch(KEY_NAME, name):
        raise ConfigError(
            f"{name[:64]!r} can't be the name of a key.",
            remedy="Use a provider's name (openai) or a variable's (OPENAI_API_KEY).",
        )
    return home / "keys" / name


def set_key(name: str, value: str, home: Path | None = None) -> Path:
    """Keep a key in a 0600 file below `~/.config/oxydra/keys`; returns where."""
    path = key_path(name, home or config_home())
    private_folder(path.parent.parent)
    write_private(path, (value.strip() + "\n").encode())
    return path


def get_key(name: str, home: Path | None = None) -> str:
    """A key that `set_key` kept; "" if there is none."""
    path = key_path(name, home or config_home())
    data = read_bytes(path, private=True)
    return "" if data is None else data.decode("utf-8", "replace").strip()


def list_keys(home: Path | None = None) -> list[str]:
    """The names of all keys that `set_key` kept."""
    folder = (home or config_home()) / "keys"
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(name for name in names if re.fullmatch(KEY_NAME, name))


def remove_key(name: str, home: Path | None = None) -> None:
    """Forget a key. Raises `ConfigError` if there is none."""
    path = key_path(name, home or config_home())
    try:
        path.unlink()
    except FileNotFoundError:
        known = ", ".join(list_keys(home)) or "none"
        raise ConfigError(f"There is no key {name!r}.", remedy=f"Kept: {known}.") from None
