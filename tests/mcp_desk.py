"""MCP servers for tests: programs in a sandbox (`mcp_program.py`), and what holds them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from oxydra.config import McpServerConfig
from oxydra.mcp.servers import Places, Servers
from oxydra.store import Store
from oxydra.threads import CancelToken, Deadline
from oxydra.tools.confine import Workspace
from oxydra.transport import Transport
from oxydra.types import ToolContext, ToolResult
from tests.conftest import eventually
from tests.sandbox import Sandbox, missing, sandbox

PROGRAM = Path(__file__).with_name("mcp_program.py")
LEVELS = ("bwrap+cage", "cage", "rlimits")


@contextmanager
def programs(folder: Path, *modes: str, level: str = "", **options: Any) -> Iterator[Sandbox]:
    """A sandbox that may start the program, in each of these modes, by the mode's name."""
    level = level or next(level for level in LEVELS if not missing(level))
    command = ["python3", "mcp_program.py"]
    rows = {mode: {"command": [*command, mode], "env": {"KEY": "a-key"}} for mode in modes}
    (folder / "shared").mkdir(exist_ok=True)
    shutil.copy(PROGRAM, folder / "shared")
    (folder / "shared" / PROGRAM.name).chmod(0o644)
    with sandbox(folder, level, servers=rows, **options) as box:
        yield box


class Desk:
    """One server of the configuration, spoken to as the gate does."""

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        box: Sandbox | None = None,
        transport: Transport | None = None,
        keys: frozenset[str] = frozenset(),
        **settings: object,
    ) -> None:
        settings = {"trust": "first_use", **settings}
        if box is not None:
            settings["command"] = "python3"
        self.store = Store(folder / f"{name}.db")
        self.changes = 0
        shell = None if box is None else box.client
        places = Places(shell, transport, keys=keys)  # type: ignore[arg-type]
        config = McpServerConfig(**settings)  # type: ignore[arg-type]
        self.servers = Servers({name: config}, places, self.store, self._changed)
        self.name = name
        self.services: dict[str, object] = {}

    def _changed(self) -> None:
        self.changes += 1

    def with_workspace(self, folder: Path) -> Desk:
        for name in ("shared", "tmp", "vault"):
            (folder / name).mkdir(exist_ok=True)
        self.services["workspace"] = Workspace.at(folder)
        return self

    def look(self) -> None:
        """Have it looked at, and wait for the end of that."""
        self.servers.trust_command({"action": "look", "name": self.name})
        eventually(lambda: not self.status()["looking"])

    def status(self) -> dict:
        return self.servers.status()[0]

    def trouble(self) -> str:
        return self.servers.command({"action": "show", "name": self.name})["trouble"]

    def said(self) -> str:
        rows = self.servers.command({"action": "logs", "name": self.name})["lines"]
        return "\n".join(row["text"] for row in rows)

    def tool(self, name: str):
        found = {tool.spec.name: tool for tool in self.servers.tools()}
        return found[f"mcp__{self.name}__{name}"]

    def call(
        self,
        tool: str,
        seconds: float = 60.0,
        token: CancelToken | None = None,
        **arguments: object,
    ) -> ToolResult:
        deadline = Deadline.after(seconds)
        context = ToolContext("s", "t", "c", token or CancelToken(), deadline, self.services)
        made = self.tool(tool)
        return made.run(made.validate(arguments), context)

    def close(self) -> None:
        self.servers.stop()
        self.store.close()


@contextmanager
def desk(folder: Path, name: str, **settings: object) -> Iterator[Desk]:
    made = Desk(folder, name, **settings)
    try:
        yield made
    finally:
        made.close()
