"""MCP servers: what keeps their tools from being offered, or a call of them from being answered.

What servers say is asked of the daemon, which knows; nothing is started. With `--canary` those
behind an address are greeted as a client does. No thread.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from shlex import join, quote

from oxydra import config
from oxydra.config import McpServerConfig
from oxydra.config.mcp import references
from oxydra.doctor.base import Case, Finding
from oxydra.errors import OxydraError
from oxydra.mcp.client import Client
from oxydra.mcp.http import HttpLink
from oxydra.mcp.route import mcp_route, route_name
from oxydra.mcp.told import differences
from oxydra.scrub.terminal import explicit
from oxydra.threads import CancelToken, Deadline
from oxydra.transport import DirectTransport
from oxydra.types import Json

GREETING_SECONDS = 10.0
SYSTEM = (
    "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"  # what programs are found in
)
REFUSED = re.compile(r"refused with HTTP status 40[13]\b")


def check(case: Case) -> Iterator[Finding]:
    """Each server of `[mcp.servers]`; raises `ConfigError` where a key is missing."""
    servers = case.settings.agent.mcp.servers
    if not servers:
        return
    keys = config.mcp_keys(case.settings)
    config.mcp_programs(case.settings)
    rows = {row["name"]: row for row in (case.status or {}).get("mcp", ())}
    for name, server in servers.items():
        found = list(_program(case, name, server)) if server.command else []
        if server.url and case.canary:
            found += _greeting(case, name, server, keys[name].value if name in keys else "")
        found += _said(case, name, rows[name]) if name in rows else []
        yield from found or [Finding("mcp", "healthy", _well(name, rows.get(name)))]


def _well(name: str, row: Json | None) -> str:
    if row is None:
        return f"{name} is configured; the running daemon says more of it"
    return f"{name}: {row['state']}, {len(row['tools'])} tools"


def _program(case: Case, name: str, server: McpServerConfig) -> Iterator[Finding]:
    """Whether it is there; inside of images nobody looks but the shell guest."""
    if not case.settings.agent.tools.shell.enabled or case.settings.tier != "process":
        return
    command = server.command
    inside = Path("/shared", command)
    if inside.is_relative_to("/shared") and "/" in command:
        there = Path(case.workspace.path, *inside.parts[1:]).exists()
    else:
        there = shutil.which(command, path=SYSTEM) is not None
    if not there:
        source = case.settings.source(f"mcp.servers.{name}.command", "agent")
        detail = f"{name}: the sandbox has no program {explicit(command[:200])!r}. Install it below"
        detail += " /usr or in the workspace, or name another one."
        where = f"${{EDITOR:-vi}} +{source.line or 1} {quote(source.file)}"
        yield Finding("mcp", "degraded", detail, where)


def _greeting(case: Case, name: str, server: McpServerConfig, key: str) -> Iterator[Finding]:
    """An address, greeted with its key."""
    route = mcp_route(name, server, key)
    credentials = {route_name(name): route.credential} if route.credential is not None else {}
    client = Client(lambda _line: None)
    with closing(DirectTransport(credentials)) as transport:
        link = HttpLink(
            *(name, server.url, transport, client.peer),
            headers=server.plain_headers,
            credential=route_name(name) if credentials else "",
        )
        client.peer.link = link
        try:
            client.open(CancelToken(), Deadline.after(GREETING_SECONDS))
        except OxydraError as error:
            detail = f"{name}: {error}"
            if key and REFUSED.search(error.message):
                remedy = case.with_key(references(server.headers[server.key_header])[0])
            else:
                remedy = join(["curl", "-sS", "-o", "/dev/null", server.url])
            yield Finding("mcp", "degraded", detail, remedy)
        finally:
            link.close()


def _said(case: Case, name: str, row: Json) -> Iterator[Finding]:
    """What the daemon says of it."""
    if row["differences"]:
        said = differences(row["differences"])[:500]
        detail = f"{name} says something else than what was trusted: {said}."
        yield Finding("mcp", "degraded", detail, case.command("mcp-servers", "trust", name))
    elif not row["trusted"]:
        detail = f"{name} is not trusted yet, so its tools are not offered."
        yield Finding("mcp", "degraded", detail, case.command("mcp-servers", "trust", name))
    if row["state"] == "failed":
        detail = f"{name} does not work: {explicit(str(row['detail'])[:300])}"
        yield Finding("mcp", "degraded", detail, case.command("mcp-servers", "restart", name))
