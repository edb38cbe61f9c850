"""Skills as the agent has them: what the prompt says of them, and `skill_read`.

The runner has looked whether each is trusted, and put its files where nobody in a guest can write;
what is read there has to have the digest that the envelope says, whatever holds the guests.
So what a skill says is the person's word and marks nothing; what its scripts do is a command like
any other. A skill that needs a tool which is not offered is not told of.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from oxydra.errors import FrameError, OxydraError, ToolError
from oxydra.policy import parse_virtual
from oxydra.skills import MAIN, MAX_BYTES, ROOT, SkillError, expanded, split
from oxydra.tools.base import tool
from oxydra.tools.confine import Workspace
from oxydra.tools.files import workspace_of
from oxydra.tools.schema import Bounds
from oxydra.types import Json, SafetyTier, ToolContext, ToolResult

log = logging.getLogger(__name__)

LISTED_CHARS = 4000  # of names and descriptions in a prompt
ALWAYS_CHARS = 16_000  # of the texts that are there in full
READ_BYTES = 15_000  # of a text in one result
MAX_LISTED_FILES = 50

INTRODUCTION = (
    "The person has approved these skills, instructions for certain tasks. When a task fits one,"
    " read it with skill_read before you begin."
)


@dataclass(frozen=True, slots=True)
class SkillRow:
    """One skill, as the envelope has it. `env` holds the values that its texts may show, `files`
    the digest of each file by its path.
    """

    name: str
    description: str
    activation: str
    requires: tuple[str, ...]
    env: Mapping[str, str]
    priority: int
    place: str
    sha256: str
    files: Mapping[str, str]

    @classmethod
    def of(cls, row: Json) -> SkillRow:
        """Raises `KeyError` or `TypeError` for what is none."""
        maps = {name: dict(row[name].items()) for name in ("env", "files")}
        return cls(**{**row, **maps, "requires": tuple(row["requires"])})

    def missing(self, tools: Container[str]) -> list[str]:
        """The tools that it needs and that are not among these."""
        return [name for name in self.requires if name not in tools]


class Skills:
    """The skills of one guest, in the order in which a model is told of them. Immutable."""

    def __init__(self, rows: Sequence[Json] = (), texts: Mapping[str, str] | None = None) -> None:
        """`texts` are those of the skills that are always there, by name: what follows the front
        matter. Raises `KeyError` or `TypeError` for rows that are none.
        """
        found = [SkillRow.of(row) for row in rows]
        self.rows = {row.name: row for row in found}
        self._texts: dict[str, str] = {}
        left = ALWAYS_CHARS
        for row in found:
            text = (texts or {}).get(row.name)
            if row.activation == "always" and text is not None and len(text) <= left:
                self._texts[row.name] = expanded(text, row.env)
                left -= len(text)

    @property
    def always(self) -> list[str]:
        """The names of those whose texts are wanted in full."""
        return [row.name for row in self.rows.values() if row.activation == "always"]

    def prompt(self, tools: Container[str]) -> str:
        """What a model that has these tools is told; "" for nothing."""
        if "skill_read" not in tools:
            return ""
        fitting = [row for row in self.rows.values() if not row.missing(tools)]
        whole = [
            f"# Skill: {r.name}\n{self._texts[r.name]}" for r in fitting if r.name in self._texts
        ]
        lines, left, more = [], LISTED_CHARS, 0
        for row in fitting:
            if row.activation == "manual" or row.name in self._texts:
                continue
            line = f"- {row.name}: {row.description}"
            if len(line) > left:
                more += 1
                continue
            lines.append(line)
            left -= len(line)
        if more:
            lines.append(f"- and {more} more, which skill_read lists without a name")
        listed = [f"{INTRODUCTION}\n" + "\n".join(lines)] if lines else []
        return "\n\n".join([*listed, *whole])

    def report(self, tools: Container[str]) -> Json:
        """The gateway's `skills`: each, and which tools it lacks."""
        rows = [
            {
                "name": row.name,
                "description": row.description,
                "activation": row.activation,
                "place": row.place,
                "files": list(row.files),
                "missing": row.missing(tools),
            }
            for row in self.rows.values()
        ]
        return {"skills": rows}


def taught(rows: Sequence[Json], workspace: Workspace) -> Skills:
    """The skills of an envelope, with the texts of those that are always there. Raises
    `FrameError`.
    """
    texts = {}
    try:
        told = Skills(rows)
        for name in told.always:
            try:
                texts[name] = split(_data(told.rows[name], MAIN, workspace).decode())[1]
            except (OxydraError, UnicodeDecodeError) as error:
                log.error("the skill %s can't be read: %s", name, error)
        return Skills(rows, texts)
    except (AttributeError, KeyError, TypeError) as error:
        raise FrameError(f"bootstrap: runtime_policy.skills is broken: {error}.") from None


def _data(row: SkillRow, path: str, workspace: Workspace) -> bytes:
    """What one of its files holds. Raises `ToolError` if that is not what was trusted."""
    with workspace.open(parse_virtual(f"/{ROOT}/{row.name}/{path}")) as file:
        data = file.read(MAX_BYTES + 1)
    if hashlib.sha256(data).hexdigest() != row.files[path].removesuffix("x"):
        raise ToolError(
            f"{path} of the skill {row.name} is not what the person trusted.",
            remedy="Go on without it, and tell them: a restart puts it back.",
        )
    return data


@tool(tier=SafetyTier.READ_ONLY)
def skill_read(
    context: ToolContext,
    name: Annotated[str, Bounds(0, 64)] = "",
    file: Annotated[str, Bounds(0, 500)] = MAIN,
) -> ToolResult:
    """Read a skill's instructions, or another text file of it; without a name, list all skills."""
    skills = context.services["skills"]
    if not name:
        rows = [row for row in skills.rows.values() if row.activation != "manual"]
        lines = [f"- {row.name} ({row.activation}): {row.description}" for row in rows]
        return ToolResult("\n".join(lines) or "There are no skills.")
    row = skills.rows.get(name)
    if row is None:
        raise ToolError(f"There is no skill {name!r}.", remedy="Without a name they are listed.")
    if file not in row.files:
        raise ToolError(
            f"The skill {name} has no file {file[:200]!r}.", remedy=f"It has: {_files(row)}."
        )
    data = _data(row, file, workspace_of(context))
    try:
        text = data[:READ_BYTES].decode("utf-8", "ignore" if len(data) > READ_BYTES else "strict")
        if file == MAIN:
            text = split(text)[1]
    except (UnicodeDecodeError, SkillError):
        where = f"/{ROOT}/{name}/{file}"
        raise ToolError(f"{file} is no text.", remedy=f"Commands have it as {where}.") from None
    said = [expanded(text, row.env)]
    if len(data) > READ_BYTES:
        said.append(f"[The rest is in /{ROOT}/{name}/{file}: file_read it.]")
    if file == MAIN and len(row.files) > 1:
        said.append(f"[Its other files are in /{ROOT}/{name}/: {_files(row)}]")
    return ToolResult("\n\n".join(said), summary=f"the skill {name}")


def _files(row: SkillRow) -> str:
    shown = [one for one in row.files if one != MAIN][:MAX_LISTED_FILES]
    more = len(row.files) - 1 - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
