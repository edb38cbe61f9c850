"""The text of a PDF, by pypdf. Runs in a tool worker only."""

from __future__ import annotations

import io
import logging
from typing import Any


def pdf_to_text(arguments: dict[str, Any], data: bytes) -> dict[str, Any]:
    """`title`, `text` with a line before each page, `pages` there are and `read` those in `text`,
    which ends with the page that reaches `limit` characters.
    """
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    logging.disable(logging.CRITICAL)  # it warns of every oddity in a file
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            return {"refused": "The PDF is protected by a password."}
        count = len(reader.pages)
        title = str(reader.metadata.title or "") if reader.metadata else ""
        parts: list[str] = []
        size = read = 0
        for page in reader.pages:
            if size >= arguments["limit"]:
                break
            read += 1
            text = page.extract_text().strip()
            parts.append(f"--- page {read} of {count} ---\n{text}\n")
            size += len(text)
    except PyPdfError as error:
        return {"refused": f"The PDF is damaged or encrypted ({type(error).__name__})."}
    return {"title": title[:300], "text": "\n".join(parts), "pages": count, "read": read}
