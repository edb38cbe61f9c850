"""The timeline of one turn, from what the database has of it: after its end, while it runs, or as a
crash left it. Pure but for what it reads from the store.

A step is `{at, kind, …}`: `accepted`, `started` (with `waited` in the queue), `model` and `summary`
(a call of a provider, with the time to its first word, tokens, cost and `outcome`), `pause` (before
the next try), `approval`, `tool` (with how long it `waited` since the model asked, and `seconds` it
ran), `joined` (the person said something to the running turn), `resumed` (after a restart), and how
it ended. Seconds are None where they are not known.
"""

from __future__ import annotations

from datetime import datetime

from oxydra.budget import usd
from oxydra.errors import UsageError
from oxydra.store import Store
from oxydra.store.trace import Traced
from oxydra.types import Json

DEEPEST = 8  # delegations below each other that are shown
RUNNING = ("queued", "running")


def trace(store: Store, wanted: object, session: str = "", *, live: bool = True) -> Json:
    """What the command `trace` says of a turn: `wanted` is an id, a prefix of one, or `last`.
    `live`: a daemon runs, so what is not over still goes on. Raises `OxydraError`.
    """
    if not isinstance(wanted, str) or not wanted:
        raise UsageError("Which turn? Give an id, a prefix of one, or `last`.")
    session_id = store.find_session(session).session_id if session else ""
    return _told(store, store.find_turn(wanted, session_id), live, DEEPEST)


def _told(store: Store, turn_id: str, live: bool, depth: int) -> Json:
    found = store.traced(turn_id)
    turn, state = found.turn, str(found.turn["state"])
    over = state not in RUNNING
    steps = _steps(found, live)
    children = [_told(store, child, live, depth - 1) for child in found.children if depth > 0]
    models = [step for step in steps if step["kind"] in ("model", "summary")]
    return {
        "turn_id": turn_id,
        "session_id": turn["session_id"],
        "agent": turn["agent_name"],
        "state": state,
        "interrupted": state == "running" and not live,
        "accepted_at": turn["created_at"],
        "seconds": _between(turn["created_at"], turn["updated_at"]) if over else None,
        "model_calls": len(models),
        "tool_calls": len(found.calls),
        "prompt_tokens": sum(step["prompt_tokens"] for step in models),
        "completion_tokens": sum(step["completion_tokens"] for step in models),
        "cost_usd": float(usd(sum(row["cost"] for row in found.models)))
        + sum(child["cost_usd"] for child in children),
        "steps": steps,
        "children": children,
    }


def _steps(found: Traced, live: bool) -> list[Json]:
    turn = found.turn
    steps: list[Json] = [{"at": turn["created_at"], "kind": "accepted"}]
    if found.started_at:
        waited = _between(turn["created_at"], found.started_at)
        steps.append({"at": found.started_at, "kind": "started", "waited": waited})
    steps += [{"at": at, "kind": "resumed"} for at in found.resumed]
    steps += [
        {"at": row["updated_at"], "kind": "joined", "turn_id": row["turn_id"]}
        for row in found.joined
    ]
    goes_on = live and turn["state"] in RUNNING
    steps += _of_models(found, goes_on)
    steps += [_of_approval(row, goes_on) for row in found.approvals]
    steps += [_of_call(row, goes_on) for row in found.calls]
    steps.sort(key=_when)  # stable: what has the same millisecond stays as it is here
    if turn["state"] not in RUNNING:
        payload = turn["terminal"].get("payload") or {}
        ending = {"at": turn["updated_at"], "kind": str(turn["state"])}
        code = {"code": payload["code"]} if payload.get("code") else {}
        steps = [*steps, {**ending, **code}]
        steps.sort(key=_when)  # a summary comes after the end
    return steps


def _of_models(found: Traced, goes_on: bool) -> list[Json]:
    steps: list[Json] = []
    failed: Json | None = None  # the call before, if it has to be made again
    for row in found.models:
        made = "summary" if row["purpose"] == "summary" else "model"
        if failed is not None and made == "model":
            pause = _between(failed["settled_at"], row["created_at"])
            steps.append({"at": failed["settled_at"], "kind": "pause", "seconds": pause})
        outcome = row["ended"] or ("answered" if row["settled_at"] else "running")
        if outcome == "running" and not goes_on:
            outcome = "interrupted"
        steps.append(
            {
                "at": row["created_at"],
                "kind": made,
                "purpose": row["purpose"],
                "provider": row["provider"],
                "model": row["model"],
                "seconds": _between(row["created_at"], row["settled_at"]),
                "first_seconds": row["first_ms"] / 1000 if row["first_ms"] >= 0 else None,
                "outcome": outcome,
                "prompt_tokens": row["prompt_tokens"],
                "cached_tokens": row["cached_tokens"],
                "completion_tokens": row["completion_tokens"],
                "reasoning_tokens": row["reasoning_tokens"],
                "cost_usd": float(usd(row["cost"])) if row["priced"] else None,
                "guessed": bool(row["guessed"]),
            }
        )
        if made == "model":
            again = row["ended"] and row["ended"] not in ("cancelled", "restart")
            failed = row if again and row["settled_at"] else None
    return steps


def _of_approval(row: Json, goes_on: bool) -> Json:
    state = row["state"]
    if state == "pending" and not goes_on:
        state = "not answered"
    return {
        "at": row["created_at"],
        "kind": "approval",
        "call_id": row["call_id"],
        "tool": row["tool"],
        "seconds": _between(row["created_at"], row["decided_at"]),
        "outcome": state,
        "scope": row["scope"],
        "decided_by": row["decided_by"],
    }


def _of_call(row: Json, goes_on: bool) -> Json:
    """`at` is when the model asked for it."""
    state, took, waited = str(row["state"]), None, None
    if row["took_ms"] >= 0:
        took = row["took_ms"] / 1000
        since = _between(row["created_at"], row["updated_at"])
        waited = None if since is None else round(max(0.0, since - took), 3)
    elif row["running_at"]:
        waited = _between(row["created_at"], row["running_at"])
    if state in ("intended", "running") and not goes_on:
        state = f"{state}, then interrupted"
    return {
        "at": row["created_at"],
        "kind": "tool",
        "call_id": row["call_id"],
        "tool": row["name"],
        "waited": waited,
        "seconds": took,
        "outcome": state,
    }


def _between(first: str | None, last: str | None) -> float | None:
    """Seconds, never below 0: a clock can step back."""
    if not first or not last:
        return None
    gap = datetime.fromisoformat(last) - datetime.fromisoformat(first)
    return round(max(0.0, gap.total_seconds()), 3)


def _when(step: Json) -> datetime:
    return datetime.fromisoformat(step["at"])
