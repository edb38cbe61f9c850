"""What a server answers, as a model reads it: text, and files where it is none. Pure, apart from
`save`.

Images, sounds and other data are saved in the workspace, and the text says where: a model that
takes no images must still be able to go on with the conversation. One that does sees them, too.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable
from typing import Any, TypeAlias

from oxydra.errors import FrameError, ToolError
from oxydra.frames import compact, parse
from oxydra.media import media_type
from oxydra.scrub.terminal import explicit
from oxydra.tools.confine import Workspace
from oxydra.tools.outputs import FOLDER, prune
from oxydra.types import Attachment, Json, ToolResult

MAX_TEXT = 1 << 20  # characters of a result; what the model gets of it is for the gate to say
MAX_PARTS = 1000
MAX_FILES = 50  # of one result
MAX_SEEN = 4  # images of one result that a model sees
ENDINGS = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/gif": ".gif",
    "image/webp": ".webp",
    "image/svg+xml": ".svg",
    "audio/wav": ".wav",
    "audio/mpeg": ".mp3",
    "audio/ogg": ".ogg",
    "application/pdf": ".pdf",
}

Save: TypeAlias = Callable[[bytes, str], str]
"""Keeps data of a mime type; returns where, or why it is nowhere."""


def result_of(said: Json, save: Save) -> ToolResult:
    """The result of `tools/call`."""
    images: list[Attachment] = []
    kept = _limited(_seen(save, images))
    parts = [_part(row, kept) for row in _rows(said.get("content"))]
    structured = said.get("structuredContent")
    if structured is not None and not any(_is_json_of(part, structured) for part in parts):
        parts.append(compact(structured))
    failed = said.get("isError") is True
    return ToolResult(_joined(parts), is_error=failed, images=tuple(images))


def resource_of(said: Json, save: Save) -> str:
    """The result of `resources/read`."""
    kept = _limited(save)
    return _joined([_resource(row, kept) for row in _rows(said.get("contents"))])


def prompt_of(said: Json, save: Save) -> str:
    """The result of `prompts/get`."""
    kept = _limited(save)
    parts = [_word(said.get("description"))]
    for row in _rows(said.get("messages")):
        content = row.get("content")
        part = _part(content, kept) if isinstance(content, dict) else ""
        parts.append(f"{_word(row.get('role'))}: {part}")
    return _joined(parts)


def rows_of(rows: list[Json], names: tuple[str, ...]) -> str:
    """A list, a row on each line, with these of its fields."""
    lines = []
    for row in rows[:MAX_PARTS]:
        said = [_word(row.get(name)) for name in names]
        arguments = [_word(one.get("name")) for one in _rows(row.get("arguments"))]
        said += [f"(arguments: {', '.join(arguments)})"] if arguments else []
        lines.append("- " + " · ".join(filter(None, said)))
    return _joined(lines)


def save(workspace: Workspace | None) -> Save:
    """What keeps files beside the outputs that were too long, within the same bounds."""

    def kept(data: bytes, kind: str) -> str:
        if workspace is None:
            return "not saved"
        name = hashlib.sha256(data).hexdigest()[:24] + ENDINGS.get(kind, ".bin")
        path = FOLDER.child(name)
        try:
            workspace.write(path, data)
        except ToolError as error:
            return f"could not be saved: {error.message}"
        prune(workspace)
        return str(path)

    return kept


def _part(row: Json, kept: Save) -> str:
    match row.get("type"):
        case "text":
            return row["text"] if isinstance(row.get("text"), str) else ""
        case "image" | "audio":
            return _data(row.get("data"), row.get("mimeType"), kept)
        case "resource" if isinstance(row.get("resource"), dict):
            return _resource(row["resource"], kept)
        case "resource_link":
            named = (_word(row.get(name)) for name in ("name", "uri", "description"))
            return f"[a resource: {' · '.join(filter(None, named))}]"
        case other:
            return f"[content of a type that is not known here: {_word(other)}]"


def _resource(row: Json, kept: Save) -> str:
    head = f"[{' · '.join(filter(None, (_word(row.get('uri')), _word(row.get('mimeType')))))}]"
    if isinstance(row.get("text"), str):
        return f"{head}\n{row['text']}"
    return f"{head} {_data(row.get('blob'), row.get('mimeType'), kept)}"


def _data(encoded: Any, kind: Any, kept: Save) -> str:
    named = _word(kind) or "data"
    try:
        data = base64.b64decode(encoded if isinstance(encoded, str) else "", validate=True)
    except (binascii.Error, ValueError):
        return f"[{named}: it is broken]"
    return f"[{named}, {len(data):,} bytes: {kept(data, kind if isinstance(kind, str) else '')}]"


def _seen(save: Save, images: list[Attachment]) -> Save:
    """`save` that also collects what is an image by its content, whatever its type claims."""

    def kept(data: bytes, kind: str) -> str:
        where = save(data, kind)
        found = media_type(data)
        if found.startswith("image/") and len(images) < MAX_SEEN:
            images.append(Attachment(found, hashlib.sha256(data).hexdigest(), data))
        return where

    return kept


def _limited(save: Save) -> Save:
    """`save` for the first files of a result."""
    count = 0

    def kept(data: bytes, kind: str) -> str:
        nonlocal count
        count += 1
        return save(data, kind) if count <= MAX_FILES else "not saved, there are too many"

    return kept


def _is_json_of(text: str, value: Any) -> bool:
    try:
        return bool(parse(text) == value)
    except FrameError:
        return False


def _rows(value: Any) -> list[Json]:
    """The objects of a list."""
    return (
        [row for row in value[:MAX_PARTS] if isinstance(row, dict)]
        if isinstance(value, list)
        else []
    )


def _word(value: Any) -> str:
    """A short text in one line."""
    return explicit(" ".join(value[:600].split()))[:600] if isinstance(value, str) else ""


def _joined(parts: list[str]) -> str:
    text = "\n".join(part for part in parts if part)
    if len(text) <= MAX_TEXT:
        return text
    return f"{text[:MAX_TEXT]}\n[… {len(text) - MAX_TEXT:,} more characters are dropped …]"
