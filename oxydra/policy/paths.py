"""The rules on what a tool may name: virtual paths. Pure.

A model sees three folders in every tier: `/shared` (the person's files, and what a relative path
starts from), `/tmp` (scratch) and `/vault` (read-only to tools), and in `/mnt` any others that the
person has mounted. `parse_virtual` turns what a model wrote into a `VirtualPath` or refuses it in
words the model can act on. It decides by the text alone; which mounts there are, and that no link
on the way leads elsewhere, is the business of `oxydra/tools/confine.py`.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from oxydra.errors import PolicyDenied

ROOTS = ("shared", "tmp", "vault")
READ_ONLY_ROOTS = frozenset({"vault"})
MOUNTS = "mnt"  # the folder whose folders are roots too
PROTECTED = (".envrc", ".vscode", ".git")  # what programs on the host act upon

MAX_PATH_BYTES = 2048
MAX_NAME_BYTES = 255  # NAME_MAX of every file system we meet
MAX_DEPTH = 64

_ROOTS_TEXT = (
    "Use /shared/… (relative paths start there), /tmp/…, /vault/… (read-only), or /mnt/<name>/… for"
    " a folder that the person has mounted."
)
_JOINERS = "\u200c\u200d"  # format characters that ordinary names need: Persian, emoji


@dataclass(frozen=True, slots=True)
class VirtualPath:
    """A place in the workspace: one of `ROOTS` or `mnt/<name>`, and the names below it, none of
    them `.` or `..`.

    `str()` is how people and models see it; characters that can't be seen are escaped there.
    """

    root: str
    parts: tuple[str, ...] = ()

    def __str__(self) -> str:
        return visible("/".join(("", self.root, *self.parts)))

    @property
    def name(self) -> str:
        """The last name; that of the root where there is no other."""
        return self.parts[-1] if self.parts else self.root.rpartition("/")[2]

    @property
    def parent(self) -> VirtualPath:
        """The folder that holds it; a root is its own."""
        return VirtualPath(self.root, self.parts[:-1])

    def child(self, name: str) -> VirtualPath:
        return VirtualPath(self.root, (*self.parts, name))


def parse_virtual(path: str) -> VirtualPath:
    """What a model means by `path`. Raises `PolicyDenied` for anything outside the roots.

    `..` is refused rather than resolved: resolved by text it means something else than it does to
    a shell as soon as a link is on the way.
    """
    _check_text(path)
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if ".." in parts:
        raise _denied(path, "contains '..'", "Give the full path, for example /shared/notes.txt.")
    if path.startswith("/"):
        if len(parts) > 1 and parts[0] == MOUNTS:
            parts = (f"{MOUNTS}/{parts[1]}", *parts[2:])
        elif not parts or parts[0] not in ROOTS:
            raise _denied(path, "is outside the workspace", _ROOTS_TEXT)
        root, parts = parts[0], parts[1:]
    elif parts[:1] == ("~",):
        raise _denied(path, "is outside the workspace: there is no home folder", _ROOTS_TEXT)
    else:
        root = "shared"
    if len(parts) > MAX_DEPTH:
        raise _denied(path, f"is more than {MAX_DEPTH} folders deep", "Use a shorter path.")
    for part in (*root.split("/"), *parts):
        if len(part.encode()) > MAX_NAME_BYTES:
            raise _denied(
                path, f"has a name of more than {MAX_NAME_BYTES} bytes", "Use a shorter name."
            )
    return VirtualPath(root, parts)


def parse_writable(path: str) -> VirtualPath:
    """`parse_virtual` for a path that is about to be written, moved or deleted."""
    virtual = parse_virtual(path)
    require_writable(virtual)
    return virtual


def require_writable(path: VirtualPath) -> None:
    """Raise `PolicyDenied` where tools may only read."""
    if path.root in READ_ONLY_ROOTS:
        raise PolicyDenied(
            f"{path} may not be changed: /{path.root} is read-only to tools.",
            remedy="Write to /shared or /tmp instead.",
        )


def protected(path: VirtualPath) -> str:
    """The name on this path by which programs on the host run something; "" if there is none."""
    for part in path.parts:
        name = part.casefold()  # a file system may not tell the cases apart
        if name in PROTECTED or name.endswith(".git"):
            return part
    return ""


def _check_text(path: str) -> None:
    if len(path) > MAX_PATH_BYTES or len(path.encode("utf-8", "replace")) > MAX_PATH_BYTES:
        raise _denied(path, f"is longer than {MAX_PATH_BYTES} bytes", "Use a shorter path.")
    if path.isascii() and path.isprintable():
        return
    for char in path:
        if _invisible(char):
            raise _denied(
                path,
                f"contains the character U+{ord(char):04X}, which can't be seen",
                "Leave it out.",
            )


def _invisible(char: str) -> bool:
    """Control and format characters, separators of lines, and what UTF-8 can't encode."""
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in _JOINERS


_ESCAPED = re.compile(r"[^\x20-\x7e]")


def visible(name: str) -> str:
    """`name` with everything escaped that can't be seen, or that is not valid UTF-8.

    For names found on disk: whoever runs commands in the workspace chooses them.
    """
    if name.isascii() and name.isprintable():
        return name

    def escape(match: re.Match[str]) -> str:
        char = match.group()
        if not _invisible(char):
            return char
        code = ord(char)
        if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as os.fsdecode carries it
            return f"\\x{code - 0xDC00:02x}"
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{{{code:x}}}"

    return _ESCAPED.sub(escape, name)


def _denied(path: str, what: str, remedy: str) -> PolicyDenied:
    shown = visible(path if len(path) <= 80 else path[:77] + "…")
    return PolicyDenied(f"The path {shown!r} {what}.", remedy=remedy)
