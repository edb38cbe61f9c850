"""Files that come with a message: decoded, bounded, and typed by what is in them. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence

from oxydra.errors import FrameError
from oxydra.media import media_type
from oxydra.types import Attachment

MAX_COUNT = 4
MAX_BYTES = 10 << 20  # of one
MAX_TOTAL = 40 << 20


def read_attachments(rows: Sequence[object]) -> tuple[Attachment, ...]:
    """The `attachments` of a `send_turn` frame: `[{mime_type, data (base64), name?}]`.

    The type is read from the content; one that claims another type is refused. Raises `FrameError`.
    """
    if len(rows) > MAX_COUNT:
        raise FrameError(f"A message takes {MAX_COUNT} attachments at most.", code="too_large")
    attachments = tuple(_read(row) for row in rows)
    if sum(len(attachment.data) for attachment in attachments) > MAX_TOTAL:
        raise FrameError(f"Attachments are {MAX_TOTAL >> 20} MB at most in all.", code="too_large")
    return attachments


def _read(row: object) -> Attachment:
    if not isinstance(row, dict) or not isinstance(row.get("data"), str):
        raise FrameError("An attachment is an object {mime_type, data}.")
    if len(row["data"]) > MAX_BYTES * 4 // 3 + 4:
        raise FrameError(f"An attachment is {MAX_BYTES >> 20} MB at most.", code="too_large")
    try:
        data = base64.b64decode(row["data"], validate=True)
    except (binascii.Error, ValueError):
        raise FrameError("An attachment's data is not valid base64.") from None
    found, claimed = media_type(data), row.get("mime_type")
    if not found or found != claimed:
        raise FrameError(
            f"An attachment's content is {found or 'of no known type'}, not {str(claimed)[:64]!r}:"
            " PNG, JPEG, GIF and WebP images and PDFs are taken.",
            code="unsupported",
        )
    name = row.get("name")
    name = name[:255] if isinstance(name, str) else ""
    return Attachment(found, hashlib.sha256(data).hexdigest(), data, name)
