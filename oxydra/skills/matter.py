"""A skill's SKILL.md: front matter in YAML, then text for a model. Pure.

Of YAML it takes what the open format needs, a mapping of texts and lists of texts. Aliases, anchors
and tags are refused, so nothing grows and nothing is made; what is nested deeper is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

from oxydra.errors import OxydraError
from oxydra.scrub import printable
from oxydra.types import Json

MATTER_BYTES = 16 << 10
MAX_BRACKETS = 64  # that are opened: reading nested ones takes the square of their number
NAME = r"[a-z0-9]+(?:-[a-z0-9]+)*"
MAX_NAME = 64
MAX_DESCRIPTION = 1024
MAX_LISTED = 32  # entries of `requires` and of `env`
VARIABLE = r"[A-Za-z_][A-Za-z0-9_]{0,127}"

Activation: TypeAlias = Literal["auto", "always", "manual"]

_HEAD = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_SHOWN = re.compile(rf"\{{\{{\s*({VARIABLE})\s*\}}\}}", re.ASCII)
_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


class SkillError(OxydraError):
    """A skill that can't be used as it is."""

    code = "skill"


@dataclass(frozen=True, slots=True)
class Matter:
    """What a skill says of itself. `requires` are names of tools, `env` of variables that its text
    may show as `{{NAME}}`; of skills with a higher `priority` the model is told first.
    """

    name: str
    description: str
    activation: Activation = "auto"
    requires: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    priority: int = 0

    def to_json(self) -> Json:
        row = {name: getattr(self, name) for name in self.__slots__}
        return {**row, "requires": list(self.requires), "env": list(self.env)}

    @classmethod
    def from_json(cls, row: Json) -> Matter:
        """Raises `KeyError`, `TypeError` or `ValueError` for what is none."""
        lists = {name: tuple(map(str, row[name])) for name in ("requires", "env")}
        return cls(
            str(row["name"]),
            str(row["description"]),
            cast(Activation, row["activation"]),
            **lists,
            priority=int(row["priority"]),
        )


def split(text: str) -> tuple[str, str]:
    """The front matter of a SKILL.md, and the text that follows it. Raises `SkillError`."""
    found = _HEAD.match(text)
    if found is None:
        raise SkillError(
            "SKILL.md does not begin with front matter.",
            remedy="Begin it with `---`, `name: …`, `description: …` and `---`, a line each.",
        )
    if len(found[1].encode()) > MATTER_BYTES:
        raise SkillError(f"The front matter is longer than {MATTER_BYTES >> 10} KiB.")
    if sum(map(found[1].count, "[{")) > MAX_BRACKETS:
        raise SkillError(f"The front matter opens more than {MAX_BRACKETS} brackets.")
    return found[1], text[found.end() :].strip("\n")


def parse(text: str) -> Matter:
    """What a SKILL.md says of its skill. Raises `SkillError`."""
    found = _mapping(split(text)[0])
    name, description = _text(found, "name"), " ".join(_text(found, "description").split())
    if not re.fullmatch(NAME, name) or len(name) > MAX_NAME:
        raise SkillError(f"name: {name[:64]!r} is not of a-z, 0-9 and single hyphens, up to 64.")
    if not description:
        raise SkillError("There is no description.", remedy="Say what it does, and when to use it.")
    if len(description) > MAX_DESCRIPTION or _HIDDEN.search(description):
        raise SkillError(
            f"The description is longer than {MAX_DESCRIPTION} characters, or holds ones that can't"
            " be seen."
        )
    activation = _text(found, "activation") or "auto"
    if activation not in get_args(Activation):
        raise SkillError("activation is auto, always or manual.")
    priority = _text(found, "priority") or "0"
    if not re.fullmatch(r"-?\d{1,4}", priority):
        raise SkillError("priority is a whole number.")
    env = _texts(found, "env")
    if wrong := [one for one in env if not re.fullmatch(VARIABLE, one)]:
        raise SkillError(f"env: {wrong[0][:64]!r} is no name of a variable.")
    requires = _texts(found, "requires")
    return Matter(
        name, description, cast(Activation, activation), requires, env, priority=int(priority)
    )


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """The text with `{{NAME}}` as its value where it may be shown; any other stays as it is."""
    return _SHOWN.sub(lambda match: variables.get(match[1], match[0]), text)


def asked_for(name: str, text: str) -> str:
    """What a person says who wants a skill used, whether or not the agent was told of it."""
    return f"Use the skill {name}: read it with skill_read before you begin.\n\n{text}".rstrip()


def listed(data: Json) -> list[str]:
    """What people are told of the gateway's `skills`, a line each."""
    lines = []
    for row in data["skills"]:
        lacks = f" - not offered: it needs {', '.join(row['missing'])}" if row["missing"] else ""
        told = f"{row['name']} ({row['activation']}): {row['description']}{lacks}"
        lines.append(printable(told))
    return lines or ["No skill is used: oxydra-runner skill list tells why."]


def _text(found: Mapping[str, Any], name: str) -> str:
    value = found.get(name, "")
    if not isinstance(value, str):
        raise SkillError(f"{name} is a text.")
    return value.strip()


def _texts(found: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A list, or one text with commas or spaces."""
    value = found.get(name, [])
    texts = re.split(r"[\s,]+", value.strip()) if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > MAX_LISTED:
        raise SkillError(f"{name} is a list of up to {MAX_LISTED} texts.")
    return tuple(dict.fromkeys(text for text in texts if text))


def _mapping(text: str) -> dict[str, Any]:
    """A YAML mapping: texts, lists of texts, None for what is nested deeper."""
    import yaml

    events = _events(text, yaml)
    try:
        start = next(events)
        if not isinstance(start, yaml.MappingStartEvent):
            raise SkillError("The front matter is no mapping, as in `name: …`.")
        found: dict[str, Any] = {}
        while not isinstance(key := next(events), yaml.MappingEndEvent):
            if not isinstance(key, yaml.ScalarEvent):
                raise SkillError("A name in the front matter is no text.")
            if key.value in found:
                raise SkillError(f"{key.value[:64]!r} is there twice.")
            found[key.value] = _value(events, yaml)
        if next(events, None) is not None:
            raise SkillError("The front matter is more than one document.")
        return found
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 2}" if mark is not None else ""
        what = getattr(error, "problem", None) or "it can't be read"
        raise SkillError(f"The front matter is no valid YAML{where}: {what}.") from None


def _events(text: str, yaml: Any) -> Iterator[Any]:
    """Without those that are about the stream; a document that goes on is a second one."""
    frame = (yaml.StreamStartEvent, yaml.StreamEndEvent, yaml.DocumentEndEvent)
    begun = False
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.DocumentStartEvent):
            if begun or event.tags:
                raise SkillError("The front matter is more than one document, or has directives.")
            begun = True
        elif not isinstance(event, frame):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise SkillError("The front matter has an alias or an anchor.")
            if getattr(event, "tag", None) is not None:
                raise SkillError("The front matter has a tag.")
            yield event


def _value(events: Iterator[Any], yaml: Any) -> Any:
    event = next(events)
    if isinstance(event, yaml.ScalarEvent):
        return event.value
    texts: list[str] | None = [] if isinstance(event, yaml.SequenceStartEvent) else None
    depth = 1
    while depth:
        event = next(events)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            texts = None
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif texts is not None:
            texts.append(event.value)
    return texts
