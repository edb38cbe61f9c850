"""A session with one server: what is agreed at its beginning, and what may be asked of it.

No thread runs here. Everything that comes back is a stranger's: lists are bounded, and rows that
are none are left out.
"""

from __future__ import annotations

from collections.abc import Callable

from oxydra.mcp.peer import Peer
from oxydra.mcp.protocol import INVALID_REQUEST, VERSIONS, Notification, RpcError, agreed_version
from oxydra.threads import CancelToken, Deadline
from oxydra.types import Json
from oxydra.version import VERSION

SPOKEN = (*VERSIONS, "2025-03-26")  # of servers: what differs there, batches, is not used
MAX_PAGES = 50
MAX_ROWS = 1000  # of a list
LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")


class Client:
    """What a server offers; `open` comes first. `say` gets its log messages, a line each."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.peer = Peer(self._hear, say)
        self.version = ""
        self.info: Json = {}
        self.capabilities: Json = {}
        self.changed = False  # it said that its tools are others now

    @property
    def alive(self) -> bool:
        return bool(self.version) and not self.peer.ended

    def open(self, token: CancelToken, deadline: Deadline) -> None:
        """Agree on a version. Raises as `Peer.ask`."""
        said = self.peer.ask(
            "initialize",
            {
                "protocolVersion": VERSIONS[0],
                "capabilities": {},  # no sampling, elicitation or roots
                "clientInfo": {"name": "oxydra", "version": VERSION},
            },
            token,
            deadline,
        )
        self.version = agreed_version(said.get("protocolVersion"), SPOKEN)
        info, capabilities = said.get("serverInfo"), said.get("capabilities")
        self.info = info if isinstance(info, dict) else {}
        self.capabilities = capabilities if isinstance(capabilities, dict) else {}

    def opened(self, deadline: Deadline) -> None:
        """Say that the session begins."""
        self.peer.tell("notifications/initialized", {}, deadline)

    @property
    def announces(self) -> bool:
        """Whether it may have something to say of its own accord."""
        said = self.capabilities
        changes = (row.get("listChanged") for row in said.values() if isinstance(row, dict))
        return any(changes) or "logging" in said

    def offers(self, what: str) -> bool:
        """Whether it has `tools`, `resources` or `prompts`."""
        return isinstance(self.capabilities.get(what), dict)

    def tools(self, token: CancelToken, deadline: Deadline) -> list[Json]:
        self.changed = False
        return self._listed("tools/list", "tools", token, deadline) if self.offers("tools") else []

    def resources(self, token: CancelToken, deadline: Deadline) -> list[Json]:
        """Those there are, then templates of others."""
        found = self._listed("resources/list", "resources", token, deadline)
        try:
            method = "resources/templates/list"
            return found + self._listed(method, "resourceTemplates", token, deadline)
        except RpcError:
            return found  # it need not have them

    def prompts(self, token: CancelToken, deadline: Deadline) -> list[Json]:
        return self._listed("prompts/list", "prompts", token, deadline)

    def call(
        self,
        name: str,
        arguments: Json,
        token: CancelToken,
        deadline: Deadline,
        on_progress: Callable[[str], None] | None = None,
    ) -> Json:
        params = {"name": name, "arguments": arguments}
        return self.peer.ask("tools/call", params, token, deadline, on_progress)

    def read(self, uri: str, token: CancelToken, deadline: Deadline) -> Json:
        return self.peer.ask("resources/read", {"uri": uri}, token, deadline)

    def prompt(
        self, name: str, arguments: dict[str, str], token: CancelToken, deadline: Deadline
    ) -> Json:
        params = {"name": name, "arguments": arguments}
        return self.peer.ask("prompts/get", params, token, deadline)

    def _listed(self, method: str, key: str, token: CancelToken, deadline: Deadline) -> list[Json]:
        """All pages of a list."""
        found: list[Json] = []
        cursors: set[str] = set()
        cursor = ""
        for _ in range(MAX_PAGES):
            params = {"cursor": cursor} if cursor else {}
            page = self.peer.ask(method, params, token, deadline)
            rows = page.get(key)
            found += (
                [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
            )
            cursor = page.get("nextCursor") or ""
            if len(found) > MAX_ROWS:
                break
            if not cursor:
                return found
            if not isinstance(cursor, str) or cursor in cursors or len(cursor) > 4096:
                raise RpcError(INVALID_REQUEST, f"Its answers to {method} go in a circle.")
            cursors.add(cursor)
        raise RpcError(INVALID_REQUEST, f"Its list of {key} has no end: more than {len(found):,}.")

    def _hear(self, message: Notification) -> None:
        if message.method == "notifications/tools/list_changed":
            self.changed = True
        elif message.method == "notifications/message":
            level, data = message.params.get("level"), message.params.get("data")
            named = level if level in LEVELS else "info"
            self._say(f"{named}: {data if isinstance(data, str) else repr(data)}"[:8192])
