"""Where requests to an MCP server may go: its own address, with its key. Pure."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from oxydra.config import McpServerConfig
from oxydra.transport import Credential, Route, origin_of


def route_name(server: str) -> str:
    """What the broker calls the way to a server, and its key."""
    return f"mcp:{server}"


def mcp_route(name: str, config: McpServerConfig, key: str) -> Route:
    """The way to the server `name`; `key` is the whole value of its header, "" for none. Raises
    `TransportError` for an address that is none.
    """
    origin = origin_of(config.url)
    return Route(
        route_name(name),
        origin,
        re.escape(urlsplit(config.url).path),
        methods=("POST", "GET", "DELETE"),
        credential=Credential(config.key_header, key, origin) if key else None,
    )
