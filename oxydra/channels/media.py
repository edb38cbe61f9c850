"""Files that come with a message: which there are, and what becomes of them.

Images and PDFs that models take become attachments of the message; anything else goes into the
workspace a piece at a time, as it comes, and the message says where. A file is never taken beyond
its limit. No thread of its own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from oxydra.errors import Cancelled, OxydraError
from oxydra.gateway.attachments import MAX_BYTES, MAX_COUNT
from oxydra.media import media_type
from oxydra.types import Attachment, Json

KINDS = ("document", "voice", "audio", "video", "video_note", "animation")
MAX_FILE = 20 << 20  # what the Bot API gives out
SIGN_BYTES = 16  # by which the type of a file is told
_ENDINGS = {"voice": ".ogg", "audio": ".mp3", "video": ".mp4", "video_note": ".mp4"}

Take = Callable[[bytes], object]
Fetch = Callable[["Medium", Callable[[], AbstractContextManager[Take]]], None]
"""Gives a file's content to what the second argument makes, anew for each attempt: the block ends
when the content is whole, and raises where it is not.
"""


@dataclass(frozen=True, slots=True)
class Kept:
    """A file that is on its way into the workspace, to `path`; it is there when its block ends."""

    path: str
    take: Take


Keep = Callable[[str], AbstractContextManager[Kept]]
"""Puts a file of that name into the workspace. Raises `OxydraError`."""


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
    """The attachments that they become, and lines about the others. Raises only `Cancelled`."""
    attachments: list[Attachment] = []
    lines: list[str] = []
    for medium in media:
        coming = _Coming(medium, keep, attach=len(attachments) < MAX_COUNT)
        try:
            if medium.size > MAX_FILE:
                raise OxydraError(f"it is larger than {MAX_FILE >> 20} MB.")
            fetch(medium, coming)
        except Cancelled:
            raise
        except OxydraError as error:
            lines.append(f"[The {medium.kind} {medium.name} could not be taken: {error.message}]")
            continue
        if coming.attachment is not None:
            attachments.append(coming.attachment)
        else:
            lines.append(f"[The {medium.kind} {medium.name} is in {coming.path}]")
    return tuple(attachments), lines


class _Coming:
    """One file: what is to be attached is held, anything else kept from its first bytes on."""

    def __init__(self, medium: Medium, keep: Keep, *, attach: bool) -> None:
        self._medium = medium
        self._keep = keep
        self._attach = attach
        self.attachment: Attachment | None = None
        self.path = ""

    @contextmanager
    def __call__(self) -> Iterator[Take]:
        """An attempt to take it."""
        held = bytearray()
        kept: Kept | None = None
        with ExitStack() as stack:

            def keep() -> Kept:
                nonlocal kept
                if kept is None:
                    kept = stack.enter_context(self._keep(self._medium.name))
                kept.take(bytes(held))
                held.clear()
                return kept

            def take(piece: bytes) -> None:
                held.extend(piece)
                if kept is None and (len(held) < SIGN_BYTES or self._attaches(held)):
                    return
                keep()

            yield take
            if kept is None and self._attaches(held):
                data = bytes(held)
                sha256 = hashlib.sha256(data).hexdigest()
                self.attachment = Attachment(media_type(data), sha256, data, self._medium.name)
            else:
                self.path = keep().path

    def _attaches(self, data: bytearray) -> bool:
        if not self._attach or len(data) > MAX_BYTES:
            return False
        return media_type(bytes(data[:SIGN_BYTES])) != ""
