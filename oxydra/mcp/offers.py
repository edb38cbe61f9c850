"""What a server says of its tools, made fit to be shown: bounded, visible, named, hashed. Pure.

All of it is a stranger's text that stands before a model. So it is cut, hidden characters are made
visible, and what a person trusted is known again by its hash: of what the model would read, so that
a server can change nothing that matters without being asked about.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from oxydra.frames import compact
from oxydra.scrub.terminal import explicit
from oxydra.tools.registry import FOREIGN, matching
from oxydra.types import Json

MAX_NAME = 64  # characters, which every provider takes
MAX_DESCRIPTION = 1000
MAX_SCHEMA = 12 << 10  # bytes of a tool's schema
MAX_WORDS = 300  # characters of a description within a schema
MAX_LEVELS = 24
MAX_TOOLS = 200  # of one server
ALTERNATIVES = ("oneOf", "anyOf", "allOf", "not", "if", "then", "else", "enum", "const", "$ref")
"""What providers refuse at the top of a schema; there the server checks alone."""
DROPPED = ("$schema", "$id", "$comment", "examples", "title")


@dataclass(frozen=True, slots=True)
class Offer:
    """A tool as its server names it, and as it may be shown. `digest` is of what is shown."""

    name: str
    description: str
    schema: Json
    digest: str

    def to_json(self) -> Json:
        return {
            "name": self.name,
            "description": self.description,
            "schema": self.schema,
            "digest": self.digest,
        }

    @classmethod
    def from_json(cls, row: Json) -> Offer:
        return cls(row["name"], row["description"], row["schema"], row["digest"])


def tool_name(server: str, tool: str) -> str:
    """What the model calls it: letters, digits, `_` and `-`, at most 64 of them. One that had to be
    changed for that ends in a hash of what it was.
    """
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", tool)
    name = f"{FOREIGN}{server}__{plain}"
    if plain == tool and len(name) <= MAX_NAME:
        return name
    mark = hashlib.sha256(tool.encode("utf-8", "replace")).hexdigest()[:8]
    return f"{name[: MAX_NAME - 9]}_{mark}"


def offers(rows: Iterable[Json], wanted: Sequence[str] | None) -> tuple[list[Offer], list[str]]:
    """The tools among `rows`, by name, of those that fit `wanted` (None: all); and what is wrong
    with the others, a sentence each.
    """
    found: dict[str, Offer] = {}
    wrong: list[str] = []
    for row in rows:
        name = row.get("name")
        if not isinstance(name, str) or not 0 < len(name) <= 128:
            wrong.append("A tool without a name that can be used is left out.")
        elif name in found:
            wrong.append(f"Of two tools named {explicit(name)!r} the second is left out.")
        elif wanted is not None and not matching(wanted, [name]):
            continue
        elif len(found) >= MAX_TOOLS:
            wrong.append(f"It has more than {MAX_TOOLS} tools: the others are left out.")
            break
        else:
            schema = row.get("inputSchema")
            shown = _schema(schema if isinstance(schema, dict) else {}, 0)
            if shown is None or len(compact(shown)) > MAX_SCHEMA:
                wrong.append(f"{explicit(name)!r} is left out: its schema is too large.")
                continue
            for key in ALTERNATIVES:
                shown.pop(key, None)
            shown["type"] = "object"
            shown.setdefault("properties", {})
            text = _text(row.get("description"), MAX_DESCRIPTION)
            digest = hashlib.sha256(compact([name, text, shown]).encode()).hexdigest()
            found[name] = Offer(name, text, shown, digest)
    return [found[name] for name in sorted(found)], wrong


def listing_digest(found: Iterable[Offer], more: Sequence[str] = ()) -> str:
    """Of all that a server offers."""
    text = compact([[offer.digest for offer in found], list(more)])
    return hashlib.sha256(text.encode()).hexdigest()


def _text(value: Any, limit: int) -> str:
    """A stranger's text: no character in it that is not seen, and no more than `limit`."""
    if not isinstance(value, str):
        return ""
    text = explicit(value[: 2 * limit].replace("\r\n", "\n").replace("\t", " ").strip())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _schema(value: Any, level: int) -> Any:
    """A copy of a schema without what no model needs; None where it is too deep."""
    if level > MAX_LEVELS:
        return None
    if isinstance(value, dict):
        copy = {}
        for key, item in value.items():
            if key in DROPPED and not isinstance(item, dict):
                continue  # a property may be named so
            if (kept := _schema(item, level + 1)) is None and item is not None:
                return None
            copy[_text(key, 128)] = kept
        return copy
    if isinstance(value, list):
        items = [_schema(item, level + 1) for item in value[:500]]
        lost = any(
            kept is None and item is not None for kept, item in zip(items, value, strict=False)
        )
        return None if lost else items
    return _text(value, MAX_WORDS) if isinstance(value, str) else value
