"""Turns that change files, for tests of what is taken back and of what is replayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from oxydra.config import RuntimeConfig
from oxydra.runtime import Runtime
from oxydra.runtime.undo import Undo
from oxydra.store import Store
from oxydra.threads import CancelToken
from oxydra.tools.changes import Changes
from oxydra.tools.confine import Workspace
from oxydra.tools.gate import Gate
from oxydra.tools.registry import ToolRegistry
from oxydra.types import Folder, Message
from tests.scripted import MODEL, Scripted, calls


def call(name: str, **arguments: Any) -> tuple[str, str]:
    return name, json.dumps(arguments)


def write(path: str, content: str) -> tuple[str, str]:
    return call("file_write", path=f"/shared/{path}", content=content)


class World:
    """One user's store and files, and turns of one session on them."""

    def __init__(self, folder: Path, quota: int = 1 << 20, extra: tuple[Any, ...] = ()) -> None:
        self.shared = folder / "shared"
        self.shared.mkdir(exist_ok=True)
        self.store = Store(folder / "oxydra.db")
        self.workspace = Workspace([Folder("shared", str(self.shared), writable=True)])
        self.tools = ToolRegistry(extra=extra)
        services = {
            "workspace": self.workspace,
            "changes": Changes(self.store, self.workspace, quota),
        }
        self.gate = Gate(self.tools, services)
        self.frames: list[tuple[str, Any]] = []
        self.session = self.store.latest_session() or self.store.create_session()
        self.runtime = self.made()

    def made(self, *steps: Any, config: RuntimeConfig | None = None) -> Runtime:
        self.provider = Scripted(*steps)
        return Runtime(
            store=self.store,
            provider=self.provider,
            model=MODEL,
            gate=self.gate,
            tools=self.tools.specs,
            config=config or RuntimeConfig(),
            workspace=self.workspace,
        )

    def turn(self, turn_id: str, *steps: Any, prompt: str = "go", token: Any = None) -> None:
        """Run a turn; a tuple among the steps is calls, each a pair of name and arguments."""
        steps = tuple(calls(*step) if isinstance(step, tuple) else step for step in steps)
        self.runtime = self.made(*steps)
        turn, _ = self.store.accept_turn(self.session.session_id, turn_id, "r", prompt)
        emit = self.emit
        self.runtime.run_turn(turn, token or CancelToken(), emit)

    def emit(self, frame: str, payload: Any) -> None:
        self.frames.append((frame, payload))

    @property
    def undo(self) -> Undo:
        return Undo(self.store, self.workspace)

    def messages(self) -> list[Message]:
        return self.store.messages(self.session.session_id)

    def close(self) -> None:
        self.runtime.stop()
        self.workspace.close()
        self.store.close()
