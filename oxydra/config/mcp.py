"""`[mcp]` of agent.toml: servers of others that the agent may use, with their meaning. Pure."""

from __future__ import annotations

import re
from typing import Literal

from oxydra.config.fields import (
    HEADER,
    ROUTING_HEADERS,
    SECRET_HEADER,
    VARIABLE,
    Section,
    is_url,
    key,
    section,
)

REFERENCE = re.compile(rf"\benv:({VARIABLE})")
SERVER_NAME = r"[a-z0-9]+(?:[_-][a-z0-9]+)*"
MAX_SERVER_NAME = 24


def references(value: str) -> list[str]:
    """The variables that a value refers to, as in `Bearer env:VARIABLE`."""
    return REFERENCE.findall(value)


def is_environment(value: dict[str, str]) -> str:
    """Variables of a server: as they are, or `env:VARIABLE` for one of the runner's."""
    for name, content in value.items():
        if not re.fullmatch(VARIABLE, name):
            return f"holds {name[:64]!r}, which is no name of an environment variable"
        if "\0" in content:
            return f"holds a NUL in {name}"
        if content.startswith("env:") and not re.fullmatch(f"env:{VARIABLE}", content):
            return f'names no variable for {name}; write "env:VARIABLE"'
    return ""


def is_server_headers(value: dict[str, str]) -> str:
    """Headers as they are, and one at most that holds a key, by `env:VARIABLE`."""
    keyed = [name for name, content in value.items() if references(content)]
    for name, content in value.items():
        if not re.fullmatch(HEADER, name) or not re.fullmatch(r"[\x20-\x7e]{0,1024}", content):
            return f"holds {name!r}, which is no HTTP header of visible ASCII"
        if re.search(SECRET_HEADER, name) and name not in keyed:
            return f'holds {name!r}, which looks like a key: write it as "env:VARIABLE"'
        if name.lower() in ROUTING_HEADERS:
            return f"holds {name!r}, which the transport sets itself"
        if name in keyed and not re.fullmatch(rf"(?:[A-Za-z]+ )?env:{VARIABLE}", content):
            return f'says more of {name!r} than "env:VARIABLE" or "Bearer env:VARIABLE"'
    if len(keyed) > 1:
        return f"has keys in {len(keyed)} headers; one is possible"
    return ""


@section
class McpServerConfig(Section):
    """`[mcp.servers.<name>]`: a server by the Model Context Protocol (docs/mcp.md): a program,
    `command`, or `url`.
    """

    command: str = key("", "A program that is started in the sandbox of commands.")
    args: tuple[str, ...] = key((), "Its arguments; never a key.", runner_only=True)
    env: dict[str, str] = key(
        dict,
        "Variables that it gets; `env:VARIABLE` for a value that the runner holds.",
        check=is_environment,
        runner_only=True,
    )
    url: str = key("", "Where a server answers by Streamable HTTP.", check=is_url)
    headers: dict[str, str] = key(
        dict,
        "HTTP headers sent to it; `env:VARIABLE` or `Bearer env:VARIABLE` for a key, which the "
        "broker adds.",
        check=is_server_headers,
    )
    tools: tuple[str, ...] | None = key(
        None, "The tools of it that are offered, by names or patterns; left out: all."
    )
    safety_tier: Literal["read_only", "side_effecting", "privileged"] = key(
        "side_effecting", "What its tools can do; what it says of them itself does not count."
    )
    trust: Literal["ask", "first_use"] = key(
        "ask",
        "When its tools are offered: once you have looked at them, or at once as it describes them"
        " first; a change asks you in any case.",
    )
    timeout_secs: float = key(60.0, "Seconds that a call may take.", least=1, most=86_400)

    @property
    def plain_headers(self) -> dict[str, str]:
        """Those without a key."""
        return {name: text for name, text in self.headers.items() if not references(text)}

    @property
    def key_header(self) -> str:
        """The name of the one with a key; "" for none."""
        return next((name for name, text in self.headers.items() if references(text)), "")


@section
class McpConfig(Section):
    """`[mcp]`."""

    servers: dict[str, McpServerConfig] = key(dict, "MCP servers by name.")
