"""`@path` in a message: which paths there are, and what is sent of them. Looks at the disk.

What lies in the workspace is sent as the path that a model sees, and read where the model's tools
run. Anything else is a file of the person's own: it is read here and goes along with the message,
once the person has confirmed it. Names that a guest could have chosen are never followed into it.
"""

from __future__ import annotations

import base64
import os
import re
import stat
from pathlib import Path

from oxydra.gateway.attachments import MAX_BYTES, MAX_COUNT
from oxydra.media import media_type
from oxydra.tui.cells import clean
from oxydra.tui.state import Completed, Resolved
from oxydra.types import Json

MOST = 500  # names looked at in a folder
_PATH = re.compile(r'(?<!\S)@(?:"([^"\n]+)"|([^\s"]*[^\s".,;:!?)\]]))')
_VIRTUAL = ("/tmp", "/vault", "/mnt")  # the model's, where this machine has no such file


class Paths:
    """`shared` is the folder that the model sees as /shared; None if it is not on this machine."""

    def __init__(self, shared: Path | None) -> None:
        self._shared = shared

    # ----------------------------------------------------------------------------------- completion

    def complete(self, word: str) -> Completed:
        """What `word`, an `@` with the beginning of a path, can become."""
        begun = word.removeprefix("@").removeprefix('"')
        folder, _, name = begun.rpartition("/")
        folder = f"{folder}/" if "/" in begun else ""
        found: dict[str, bool] = {}
        for place in self._places(folder):
            for entry, is_folder in _names(place):
                if entry.startswith(name) and (name or not entry.startswith(".")):
                    found.setdefault(entry, is_folder)
        if self._shared is not None and "/shared".startswith(begun):
            found["/shared".removeprefix(folder)] = True
        return Completed(word, tuple(_quoted(folder, n, found[n]) for n in sorted(found)))

    def _places(self, folder: str) -> list[Path]:
        """Where a relative, an absolute or a model's path leads: the workspace goes first."""
        if folder.startswith("/shared/") and self._shared is not None:
            inside = self._inside(folder.removeprefix("/shared/"))
            return [inside] if inside is not None else []
        if folder.startswith(("/", "~")):
            return [Path(os.path.expanduser(folder))]
        inside = self._inside(folder)
        return [*([inside] if inside is not None else []), Path(folder or ".")]

    def _inside(self, relative: str) -> Path | None:
        """A path of the workspace, if no link leads out of it."""
        if self._shared is None:
            return None
        path = self._shared / relative
        top = os.path.realpath(self._shared)
        real = os.path.realpath(path)
        return path if real == top or real.startswith(f"{top}/") else None

    # ------------------------------------------------------------------------------------ a message

    def resolve(self, text: str) -> Resolved:
        """Look at every path in `text`. What is no path of any file stays as it was written."""
        attachments: list[Json] = []
        problems: list[str] = []

        def look(match: re.Match[str]) -> str:
            named = match.group(1) or match.group(2)
            virtual = self._virtual(named)
            if virtual:
                return virtual
            try:
                path = Path(os.path.expanduser(named))
                if not path.exists():
                    return named if _within(named, _VIRTUAL) else match.group()
                attachments.append(_read(path))
            except (OSError, ValueError) as error:
                problems.append(f"{clean(named)} can't be attached: {_why(error)}.")
            return match.group()

        prompt = _PATH.sub(look, text)
        if len(attachments) > MAX_COUNT:
            problems.append(f"A message takes {MAX_COUNT} attachments at most.")
        return Resolved(text, prompt, tuple(attachments), " ".join(problems))

    def _virtual(self, named: str) -> str:
        """`named` as a model sees it; "" if it is not in the workspace."""
        if self._shared is None:
            return ""
        if _within(named, ("/shared",)):
            return named
        path = Path(os.path.expanduser(named))
        if path.is_absolute():
            real, top = os.path.realpath(path), os.path.realpath(self._shared)
            relative = os.path.relpath(real, top)
            return "" if relative.startswith("..") else f"/shared/{relative}"
        inside = self._inside(named)
        if inside is None or not os.path.lexists(inside):
            return ""
        return f"/shared/{os.path.normpath(named)}"


def _within(path: str, tops: tuple[str, ...]) -> bool:
    return any(path == top or path.startswith(f"{top}/") for top in tops)


def _names(folder: Path) -> list[tuple[str, bool]]:
    names: list[tuple[str, bool]] = []
    try:
        with os.scandir(folder) as entries:
            for _, entry in zip(range(MOST), entries, strict=False):
                if clean(entry.name) == entry.name and '"' not in entry.name:
                    names.append((entry.name, entry.is_dir()))
    except OSError:
        pass  # what can't be listed has no names to offer
    return names


def _quoted(folder: str, name: str, is_folder: bool) -> str:
    path = f"{folder}{name}{'/' if is_folder else ''}"
    if " " not in path:
        return f"@{path}"
    return f'@"{path}' if is_folder else f'@"{path}"'


def _read(path: Path) -> Json:
    """A file as `send_turn` takes it. Raises `ValueError` for what a gateway would refuse."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no file")
    if found.st_size > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES >> 20} MB")
    data = path.read_bytes()
    kind = media_type(data)
    if not kind:
        raise ValueError(
            "PNG, JPEG, GIF and WebP images and PDFs can; copy others into the workspace"
        )
    encoded = base64.b64encode(data).decode()
    return {"mime_type": kind, "data": encoded, "name": path.name, "size": len(data)}


def _why(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
