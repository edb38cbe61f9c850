"""Which tools there are: a name, and where its `Tool` is found. Pure.

A new tool is one function and one line in `TOOLS`; its module is imported when the tool is offered.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import cast

from oxydra.errors import ToolError, UsageError
from oxydra.types import Json, Tool, ToolSpec

TOOLS = {
    "file_delete": "oxydra.tools.files:file_delete",
    "file_edit": "oxydra.tools.files:file_edit",
    "file_list": "oxydra.tools.files:file_list",
    "file_read": "oxydra.tools.files:file_read",
    "file_search": "oxydra.tools.files:file_search",
    "file_write": "oxydra.tools.files:file_write",
    "vault_copyto": "oxydra.tools.files:vault_copyto",
    "web_fetch": "oxydra.tools.web:web_fetch",
    "web_search": "oxydra.tools.web:web_search",
}

MADE = (
    *("delegate_to_agent", "memory_delete", "memory_save", "memory_search", "memory_update"),
    *(
        "notify",
        "send_media",
        "schedule_create",
        "schedule_delete",
        "schedule_edit",
        "schedule_run_output",
    ),
    *("schedule_runs", "schedule_search", "scratchpad_clear", "scratchpad_read"),
    *("scratchpad_write", "shell_exec", "skill_read"),
)  # by the guest, where it has what they need

LISTED = 40  # names that are listed where one is not among them
NEAR = 3  # of more, only so many that are like it

ABOUT = 200  # characters of a tool's description for people

FOREIGN = "mcp__"  # what the names of other programs' tools begin with


class ToolRegistry:
    """The tools offered in one place: `names` of `TOOLS` (None: all of them) and `extra` ones,
    which stay, and those of other programs, which `replace` sets.

    Raises `UsageError` for a name that is not in `TOOLS`, or that is there twice.
    """

    def __init__(self, names: Iterable[str] | None = None, extra: Iterable[Tool] = ()) -> None:
        found = {name: load(name) for name in (TOOLS if names is None else names)}
        for tool in extra:
            if tool.spec.name in found:
                raise UsageError(f"There are two tools named {tool.spec.name!r}.")
            found[tool.spec.name] = tool
        self._own = found
        self.replace(())

    def replace(self, foreign: Iterable[Tool]) -> None:
        """From now on these tools of other programs are offered besides, in the place of those that
        were; one with the name of another tool is not. Any thread may be looking meanwhile.
        """
        found = {tool.spec.name: tool for tool in foreign} | self._own
        # By name: the prompt cache wants the same bytes in every request.
        self._tools = dict(sorted(found.items()))
        self.specs: tuple[ToolSpec, ...] = tuple(tool.spec for tool in self._tools.values())

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._tools.values())

    def get(self, name: str, among: Collection[str] | None = None) -> Tool:
        """The tool `name`, if it is one of `among` (None: of all). Raises `ToolError` that tells a
        model which tools there are.
        """
        tool = self._tools.get(name)
        if tool is None or (among is not None and name not in among):
            known = [one for one in self._tools if among is None or one in among]
            raise ToolError(
                f"There is no tool named {name[:64]!r}.",
                remedy=_suggest(name, known),
                code="unknown_tool",
            )
        return tool

    def report(self, names: Collection[str], requested: Collection[str]) -> list[Json]:
        """The tools `names` for people; `requested` are those that are in requests."""
        rows = []
        for name, tool in self._tools.items():
            if name not in names:
                continue
            server = name.split("__")[1] if name.startswith(FOREIGN) else ""
            about = tool.spec.description.removeprefix(f"MCP server {server}: ")
            rows.append(
                {
                    "name": name,
                    "about": about.partition("\n")[0][:ABOUT],
                    "tier": tool.tier.value,
                    "server": server,
                    "requested": name in requested,
                }
            )
        return rows


def load(name: str) -> Tool:
    """The tool behind a name of `TOOLS`. Raises `UsageError` for an unknown one."""
    if name not in TOOLS:
        raise UsageError(f"There is no tool named {name!r}.", remedy=_suggest(name, TOOLS))
    module, _, attribute = TOOLS[name].partition(":")
    return cast(Tool, getattr(importlib.import_module(module), attribute))


def check_pattern(pattern: str) -> None:
    """Raises `UsageError` for a name or a pattern (`*`, `?`) that fits no tool that there may be;
    which of them there are is known where they run.
    """
    known = sorted((*TOOLS, *MADE))
    if pattern.startswith(FOREIGN):
        return  # which those are is known once their programs have said so
    if not matching([pattern], known):
        what = "fits no tool" if re.search(r"[*?\[]", pattern) else "is no tool"
        raise UsageError(f"{pattern[:64]!r} {what}.", remedy=_suggest(pattern, known))


def matching(patterns: Iterable[str], names: Iterable[str]) -> set[str]:
    """Those of `names` that one of `patterns` fits."""
    patterns = list(patterns)
    return {name for name in names if any(fnmatchcase(name, one) for one in patterns)}


def _suggest(name: str, known: Iterable[str]) -> str:
    import difflib

    names = list(known)
    few = len(names) <= LISTED
    near = difflib.get_close_matches(name[:64], names, n=1 if few else NEAR)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    if few:
        return f"{hint}There are: {', '.join(names) or 'none'}."
    return f"{hint}There are {len(names)} tools."
