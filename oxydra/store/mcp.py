"""What servers of others say of their tools, and what of it the person trusted."""

from __future__ import annotations

import json

from oxydra.store.database import Database, Row, as_text
from oxydra.types import Json


class McpTables(Database):
    """`mcp_servers`."""

    def mcp_listings(self) -> dict[str, tuple[Json | None, Json | None]]:
        """What each server said last and what was trusted, by its name."""
        with self._reading() as db:
            rows: list[Row] = db.execute("SELECT name, said, trusted FROM mcp_servers").fetchall()
        return {name: (_loaded(said), _loaded(trusted)) for name, said, trusted in rows}

    def set_mcp_listing(self, name: str, said: Json | None, trusted: Json | None) -> None:
        """From now on it says and is trusted so; None for neither."""
        texts = ["" if row is None else as_text(row) for row in (said, trusted)]
        with self._transaction() as db:
            db.execute(
                "INSERT INTO mcp_servers (name, said, trusted) VALUES (?, ?, ?)"
                " ON CONFLICT (name) DO UPDATE"
                " SET said = excluded.said, trusted = excluded.trusted",
                (name, *texts),
            )


def _loaded(text: str) -> Json | None:
    return dict(json.loads(text)) if text else None
