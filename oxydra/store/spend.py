"""What model calls may cost and have cost: reservations, settlements, and their totals.

A call's worst case is reserved before it is made: `reserved -> settled | released`. A reservation
counts in full until then, so that no number of calls at once passes a cap; one that a crash left
behind is settled in full with the next start, since nobody knows what was billed.

Amounts are whole nano-dollars. `spend_totals` holds what each turn and session came to and what was
spent since the current day and month began; it is changed in the transaction of each row, and a
period's total is counted from the rows when it is first asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import apsw

from oxydra.budget import Limit
from oxydra.store.database import Database, Row, clean, timestamp
from oxydra.types import Json, Usage

GROUPS = {
    "model": "provider || '/' || model",
    "session": "session_id",
    "schedule": "schedule",
    "minute": "substr(created_at, 1, 16)",
}

_HELD = "SELECT coalesce(sum(cost), 0) FROM spend WHERE state = 'reserved'"


@dataclass(frozen=True, slots=True)
class Entry:
    """A call that is about to be made. `scopes` are the turns and sessions that pay for it, the
    first of each kind being its own; `estimated` is its prompt in tokens before calibration;
    `priced` False says that its price is not known; `created_at` is UTC in RFC 3339, in
    milliseconds.
    """

    scopes: Sequence[tuple[str, str]]
    agent: str
    schedule: str
    purpose: str
    provider: str
    model: str
    estimated: int
    priced: bool
    created_at: str


@dataclass(frozen=True, slots=True)
class Group:
    """Calls that have something in common, and what they cost; `unpriced` counts those whose price
    is not known, `guessed` those whose usage was not reported.
    """

    name: str
    calls: int
    cost: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    unpriced: int
    guessed: int


class SpendTables(Database):
    """`spend` and `spend_totals`."""

    def reserve(
        self,
        entry: Entry,
        limits: Sequence[Limit],
        amount: Callable[[Sequence[int], int], int],
    ) -> int:
        """Set an amount aside, in one transaction with the look at what was spent; returns the
        row's id. `amount` gets what counts against each limit and what calls that still run hold in
        all, and returns the amount or raises; it must be quick.
        """
        own = dict(reversed(entry.scopes))
        with self._transaction() as db:
            spent = [_spent(db, limit, limits) for limit in limits]
            taken = amount(spent, int(db.execute(_HELD).get))
            db.execute(
                "INSERT INTO spend (turn_id, session_id, scopes, agent, schedule, purpose,"
                " provider, model, state, reserved, cost, priced, estimated, created_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'reserved', ?, ?, ?, ?, ?)",
                (
                    *(own.get("turn", ""), own.get("session", "")),
                    clean(json.dumps(list(entry.scopes))),
                    *(entry.agent, entry.schedule, entry.purpose, entry.provider),
                    *(entry.model, taken, taken, int(entry.priced), entry.estimated),
                    entry.created_at,
                ),
            )
            spend_id = db.last_insert_rowid()
            _add(db, entry.scopes, entry.created_at, taken)
            return spend_id

    def settle_spend(
        self,
        spend_id: int,
        cost: int,
        usage: Usage,
        *,
        guessed: bool,
        first: int = -1,
        ended: str = "",
    ) -> None:
        """`reserved -> settled`, at what it did cost; a row that is settled already stays. `first`
        are the milliseconds until something came, `ended` is the code of what ended it early.
        """
        self._close(spend_id, "settled", cost, usage, guessed, first, ended)

    def release_spend(self, spend_id: int, ended: str = "") -> None:
        """`reserved -> released`: nothing was billed."""
        self._close(spend_id, "released", 0, Usage(), False, -1, ended)

    def _close(
        self,
        spend_id: int,
        state: str,
        cost: int,
        usage: Usage,
        guessed: bool,
        first: int,
        ended: str,
    ) -> None:
        with self._transaction() as db:
            row = db.execute(
                "UPDATE spend SET state = ?, cost = ?, guessed = ?, prompt_tokens = ?,"
                " completion_tokens = ?, cached_tokens = ?, cache_write_tokens = ?,"
                " reasoning_tokens = ?, settled_at = ?, first_ms = ?, ended = ?"
                " WHERE spend_id = ? AND state = 'reserved'"
                " RETURNING reserved, scopes, created_at",
                (
                    *(state, cost, int(guessed), usage.prompt_tokens, usage.completion_tokens),
                    *(usage.cached_tokens, usage.cache_write_tokens, usage.reasoning_tokens),
                    *(timestamp(), first, clean(ended), spend_id),
                ),
            ).fetchone()
            if row is not None:
                _add(db, json.loads(row[1]), row[2], cost - row[0])

    def settle_lost(self) -> int:
        """What a crash left reserved is settled in full: its calls may have been answered and
        billed. For a start, while no call is made; returns how many there were.
        """
        with self._transaction() as db:
            db.execute(
                "UPDATE spend SET state = 'settled', guessed = 1, settled_at = ?, ended = 'restart'"
                " WHERE state = 'reserved'",
                (timestamp(),),
            )
            return db.changes()

    # ------------------------------------------------------------------------------------- reading

    def spent(self, limits: Sequence[Limit]) -> list[int]:
        """What counts against each limit."""
        with self._reading() as db:
            return [int(_counted(db, limit)) for limit in limits]

    def spend_held(self) -> int:
        """What calls that still run have reserved."""
        with self._reading() as db:
            return int(db.execute(_HELD).get)

    def spend_groups(self, by: str, since: str) -> list[Group]:
        """All calls since an instant by `GROUPS`, the dearest first."""
        with self._reading() as db:
            rows: list[Row] = db.execute(
                f"SELECT {GROUPS[by]} AS name, count(*), sum(cost), sum(prompt_tokens),"
                " sum(completion_tokens), sum(cached_tokens), sum(NOT priced), sum(guessed)"
                " FROM spend WHERE created_at >= ? AND state != 'released' GROUP BY name"
                " ORDER BY 3 DESC, 2 DESC",
                (since,),
            ).fetchall()
        return [Group(*row) for row in rows]

    def spend_reports(self, limit: int = 200) -> list[tuple[str, str, int, int]]:
        """Of the newest calls whose usage was reported, oldest first: provider, model, estimated
        and reported tokens of the prompt.
        """
        with self._reading() as db:
            rows: list[Row] = db.execute(
                "SELECT provider, model, estimated, prompt_tokens FROM spend"
                " WHERE state = 'settled' AND NOT guessed ORDER BY spend_id DESC LIMIT ?",
                (limit,),
            ).fetchall()
        return [(row[0], row[1], row[2], row[3]) for row in reversed(rows)]

    def spend_rows(self, turn_id: str) -> list[Json]:
        """The calls that were made in a turn, in order."""
        names = (
            "spend_id, session_id, agent, schedule, purpose, provider, model, state, reserved,"
            " cost, priced, guessed, estimated, prompt_tokens, completion_tokens"
        )
        with self._reading() as db:
            rows: list[Row] = db.execute(
                f"SELECT {names} FROM spend WHERE turn_id = ? ORDER BY spend_id", (turn_id,)
            ).fetchall()
        return [dict(zip(names.split(", "), row, strict=True)) for row in rows]


def _counted(db: apsw.Connection, limit: Limit) -> int:
    """What counts against a limit, from its total where there is one."""
    total = db.execute(
        "SELECT amount FROM spend_totals WHERE kind = ? AND name = ?", (limit.kind, limit.name)
    ).get
    if total is None and limit.kind == "since":
        counted = "SELECT coalesce(sum(cost), 0) FROM spend WHERE created_at >= ?"
        total = db.execute(counted, (limit.name,)).get
    return total or 0


def _spent(db: apsw.Connection, limit: Limit, limits: Sequence[Limit]) -> int:
    """The same, keeping a period's total from now on; that of a period which is over goes."""
    amount = _counted(db, limit)
    if limit.kind != "since":
        return amount
    db.execute("INSERT OR IGNORE INTO spend_totals VALUES ('since', ?, ?)", (limit.name, amount))
    if db.changes():
        current = json.dumps([one.name for one in limits if one.kind == "since"])
        db.execute(
            "DELETE FROM spend_totals WHERE kind = 'since'"
            " AND name NOT IN (SELECT value FROM json_each(?))",
            (current,),
        )
    return amount


def _add(
    db: apsw.Connection, scopes: Sequence[Sequence[str]], created_at: str, amount: int
) -> None:
    """Add to every total that a row counts in."""
    for kind, name in scopes:
        db.execute(
            "INSERT INTO spend_totals VALUES (?, ?, ?)"
            " ON CONFLICT (kind, name) DO UPDATE SET amount = amount + excluded.amount",
            (kind, name, amount),
        )
    db.execute(
        "UPDATE spend_totals SET amount = amount + ? WHERE kind = 'since' AND name <= ?",
        (amount, created_at),
    )
