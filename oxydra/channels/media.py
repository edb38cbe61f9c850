"""Files that come with a message: which there are, and what becomes of them.

Images and PDFs that models take become attachments of the message; anything else is put into the
workspace, and the message says where. A file is fetched a piece at a time and never beyond its
limit. No thread of its own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from oxydra.errors import OxydraError, TransportError
from oxydra.gateway.attachments import MAX_BYTES, MAX_COUNT, media_type
from oxydra.types import Attachment, Json

KINDS = ("document", "voice", "audio", "video", "video_note", "animation")
MAX_FILE = 16 << 20  # that the workspace takes at once; the Bot API gives out 20 MB
_ENDINGS = {"voice": ".ogg", "audio": ".mp3", "video": ".mp4", "video_note": ".mp4"}

Fetch = Callable[[str, int, Callable[[bytes], object]], None]
"""Gives a file's content, by its id and at most so many bytes, to a function."""

Keep = Callable[[str, bytes], str]
"""Puts a file of that name into the workspace, and returns its path. Raises `OxydraError`."""


@dataclass(frozen=True, slots=True)
class Medium:
    """A file that a message has. `size` is what Telegram says, 0 where it does not."""

    kind: str
    file_id: str
    name: str
    size: int


def media_of(message: Json) -> list[Medium]:
    """The files of a message; of a photo the largest version that an attachment may be."""
    found = []
    photos = message.get("photo")
    if isinstance(photos, list) and photos:
        fitting = [one for one in photos if int(one.get("file_size") or 0) <= MAX_BYTES]
        best = max(fitting or photos[:1], key=lambda one: int(one.get("file_size") or 0))
        found.append(_medium("photo", best))
    for kind in KINDS:
        if kind == "document" and "animation" in message:
            continue  # the same file once more
        if isinstance(message.get(kind), dict):
            found.append(_medium(kind, message[kind]))
    return found


def _medium(kind: str, row: Json) -> Medium:
    number = str(row.get("file_unique_id") or "file")[:32]
    name = str(row.get("file_name") or f"{kind}-{number}{_ENDINGS.get(kind, '')}")
    name = re.sub(r"[^\w.() -]", "_", name).strip(" .")[-80:] or kind
    return Medium(kind, str(row.get("file_id", "")), name, int(row.get("file_size") or 0))


def take(
    media: Sequence[Medium], fetch: Fetch, keep: Keep
) -> tuple[tuple[Attachment, ...], list[str]]:
    """The attachments that they become, and lines about the others."""
    attachments: list[Attachment] = []
    lines: list[str] = []
    for medium in media:
        try:
            data = _fetched(medium, fetch)
            kind = media_type(data)
            if kind and len(data) <= MAX_BYTES and len(attachments) < MAX_COUNT:
                sha256 = hashlib.sha256(data).hexdigest()
                attachments.append(Attachment(kind, sha256, data, medium.name))
            else:
                where = keep(medium.name, data)
                lines.append(f"[The {medium.kind} {medium.name} is in {where}]")
        except OxydraError as error:
            if isinstance(error, TransportError) and error.retryable:
                raise  # it is asked for again with its message
            lines.append(f"[The {medium.kind} {medium.name} could not be taken: {error.message}]")
    return tuple(attachments), lines


def _fetched(medium: Medium, fetch: Fetch) -> bytes:
    if medium.size > MAX_FILE:
        raise OxydraError(f"it is larger than {MAX_FILE >> 20} MB.")
    data = bytearray()
    fetch(medium.file_id, MAX_FILE, data.extend)
    return bytes(data)
