"""The arguments of a command, as a client's frame or a tool's call has them: checked. Pure."""

from __future__ import annotations

from oxydra.errors import UsageError
from oxydra.types import Json

MOST = (1 << 53) - 1  # what every JSON parser keeps


def text_arg(args: Json, name: str, most: int, usual: str | None = None) -> str:
    """A text of at most `most` characters; `usual` where there is none. Raises `UsageError`."""
    value = args.get(name)
    if (value is None or value == "") and usual is not None:
        return usual
    if not isinstance(value, str) or not 1 <= len(value) <= most:
        raise UsageError(f"{name!r} is a text of 1 to {most} characters.")
    return value


def number_arg(args: Json, name: str, usual: int, *, least: int = 0, most: int = MOST) -> int:
    """A whole number; `usual` where there is none. Raises `UsageError`."""
    value = args.get(name)
    if value is None:
        return usual
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        until = f" to {most}" if most < MOST else " on"
        raise UsageError(f"{name!r} is a whole number from {least}{until}.")
    return value
