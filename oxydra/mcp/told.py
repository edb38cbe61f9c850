"""What people are told of tools and of MCP servers, as lines for a terminal or a chat. Pure.

All of it may be a server's own words: cut, and with every hidden character shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from oxydra.frames import compact
from oxydra.scrub.terminal import explicit
from oxydra.types import Json

WIDTH = 68  # characters of a line that is cut: a terminal of 80 columns shows it whole
FIRST = 12  # tools of a server that are listed unless they are asked for
NAMES = 30  # of a group, where only names are told
MAX_OFFERS = 200


def tools(data: Mapping[str, Any], wanted: str = "", *, brief: bool = False) -> list[str]:
    """What the command `tools` gave; of those only that have `wanted` in their name, server or
    description. `brief`: their names alone.
    """
    rows = _rows(data.get("tools"))
    if wanted:
        sought = wanted.casefold()
        rows = [row for row in rows if sought in " ".join(map(str, row.values())).casefold()]
    if not rows:
        fits = f" with {_cut(wanted, 40)!r} in what is said of it" if wanted else ""
        return [f"There is no tool{fits}."]
    groups: dict[str, list[Json]] = {}
    for row in rows:
        groups.setdefault(str(row.get("server") or ""), []).append(row)
    lines = []
    for server, group in sorted(groups.items()):
        whose = f"MCP server {server}" if server else f"For the agent {data.get('agent')}"
        found = "" if all(row.get("requested") for row in group) else ", found by tool_search"
        lines.append(_cut(f"{whose}: {_count(len(group), 'tool')}{found}"))
        if brief:
            names = [_name(row) for row in group[:NAMES]]
            more = [f"and {len(group) - NAMES} more"] if len(group) > NAMES else []
            lines.append(", ".join([*names, *more]))
            continue
        most = len(group) if wanted or not server else FIRST
        lines += [_cut(f"  {_name(row)}: {_cut(row.get('about'), 200)}") for row in group[:most]]
        if len(group) > most:
            lines.append(f"  … and {len(group) - most} more: /tools {server}")
    return lines


def _name(row: Json) -> str:
    """A tool's own name."""
    name = str(row.get("name"))
    return _cut(name.split("__", 2)[2] if row.get("server") and name.count("__") > 1 else name, 64)


def servers(data: Mapping[str, Any], trust: str = "/mcp trust") -> list[str]:
    """What the command `mcp` gave; `trust` is what trusts a server, before its name."""
    lines = []
    for row in _rows(data.get("servers")):
        name = _cut(row.get("name"), 24)
        facts = [str(row.get("state")), str(row.get("safety_tier")).replace("_", "-")]
        facts.append(_count(len(row.get("tools") or ()), "tool") if row.get("trusted") else "")
        facts.append(_cut(row.get("source"), 40))
        lines.append(_cut(f"{name}: {' · '.join(filter(None, facts))}"))
        if row.get("detail"):  # what went wrong is not cut to a line
            lines.append(f"  ! {_cut(row['detail'], 500)}")
        if row.get("differences"):
            said = _cut(differences(row["differences"]), 500)
            lines.append(f"  ! It says something else than what was trusted: {said}")
        if row.get("differences") or not row.get("trusted"):
            why = "" if row.get("trusted") else "not trusted: its tools are not offered"
            lines.append(f"  ! {why}{' - ' if why else ''}{trust} {name}")
        elif row.get("progress"):
            lines.append(_cut(f"  {_cut(row['progress'], 200)}"))
    return lines or ["There is no MCP server: [mcp.servers.<name>] of agent.toml makes one."]


def differences(found: Mapping[str, Sequence[str]]) -> str:
    """Of what a server says now and what was trusted."""
    return "; ".join(
        f"{kind}: {', '.join(_cut(n, 64) for n in names)}" for kind, names in found.items()
    )


def offered(found: Mapping[str, Any]) -> list[str]:
    """All that a model would read of a server, for a person to judge."""
    lines = [f"{_cut(found.get('name'), 24)}: {_cut(found.get('about'), 200)}"]
    for offer in _rows(found.get("offers"))[:MAX_OFFERS]:
        lines += ["", explicit(str(offer.get("name"))[:128])]
        lines.append(f"  {explicit(str(offer.get('description') or '')[:1000])}")
        lines.append(f"  {explicit(compact(offer.get('schema')))}")
    lines += ["", *(f"It has {_cut(one, 40)}, too." for one in found.get("more") or ())]
    lines += [_cut(sentence, 300) for sentence in found.get("wrong") or ()]
    if found.get("differences"):
        lines.append(f"Since it was trusted, {differences(found['differences'])}")
    return lines


def _rows(value: Any) -> list[Json]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, Iterable) else []


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _cut(value: Any, most: int = WIDTH) -> str:
    raw = str("" if value is None else value)[: 4 * most]
    lead = raw[: len(raw) - len(raw.lstrip(" "))]
    text = lead + " ".join(explicit(raw).split())
    return text if len(text) <= most else text[: most - 1] + "…"
