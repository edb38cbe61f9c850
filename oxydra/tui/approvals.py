"""Requests for approvals as the TUI has them: what is shown, and which keys answer. Pure.

A request stands in the transcript with all of its arguments, and in the input's title with its
keys. The keys answer only while the input is empty, and not in the first moment: nobody who was
about to write a message shall have allowed something.
"""

from __future__ import annotations

from dataclasses import replace

from oxydra.tui.cells import one_line
from oxydra.tui.keys import Key
from oxydra.tui.state import Asked, Entry, State, Step
from oxydra.types import Json

DELAY = 0.8  # seconds in which a request can be noticed before keys answer it
_ANSWERS = {"a": ("allow", "once"), "s": ("allow", "session"), "d": ("deny", "once")}


def on_request(state: State, payload: Json) -> State:
    """Somebody has to answer; the same request may be told again."""
    asked = Asked(
        approval_id=str(payload["approval_id"]),
        turn_id=str(payload["turn"].get("turn_id", "")),
        tool=str(payload["tool"]),
        tier=str(payload["safety_tier"]),
        arguments=str(payload["arguments"]),
        complete=bool(payload["complete"]),
        reason=str(payload["reason"]),
        since=state.now,
    )
    if any(other.approval_id == asked.approval_id for other in state.asked):
        return state
    return show(replace(state, asked=(*state.asked, asked)))


def on_resolved(state: State, payload: Json) -> State:
    """A request was settled, by whomever."""
    by = str(payload["by"])
    text = f"{payload['tool']}: {payload['decision']}" + (f" by {by}" if by else "")
    return without(state, approval_id=str(payload["approval_id"])).say("notice", text)


def without(state: State, *, approval_id: str = "", turn_id: str = "") -> State:
    """Forget one request, or all of a turn."""
    left = tuple(
        asked
        for asked in state.asked
        if asked.approval_id != approval_id and (not turn_id or asked.turn_id != turn_id)
    )
    return replace(state, asked=left)


def show(state: State) -> State:
    """Put every open request into the transcript that is not there."""
    there = {entry.call_id for entry in state.entries}
    for asked in state.asked:
        if asked.approval_id not in there:
            state = state.append(
                Entry(0, "warning", _text(asked), asked.turn_id, call_id=asked.approval_id)
            )
    return state


def _text(asked: Asked) -> str:
    lines = [f"{asked.tool} ({asked.tier}) needs your approval. {asked.reason}", asked.arguments]
    if not asked.complete:
        lines.append("It is too long to be shown whole, so that it can only be denied.")
    return "\n".join(lines)


def answer(state: State, key: Key) -> Step | None:
    """What a key does to the oldest request; None if it does nothing."""
    if not state.asked or state.editor.text or key.name != "text" or key.text not in _ANSWERS:
        return None
    asked = state.asked[0]
    decision, scope = _ANSWERS[key.text]
    if state.now - asked.since < DELAY or not state.link.connected:
        return None
    if decision == "allow" and not asked.complete:
        return replace(state, hint="It can only be denied: press d"), ()
    payload: Json = {"approval_id": asked.approval_id, "decision": decision, "scope": scope}
    state = replace(without(state, approval_id=asked.approval_id), anchor=None)
    # What is answered next has its own moment to be noticed.
    state = replace(state, asked=tuple(replace(other, since=state.now) for other in state.asked))
    return state.ask("approve", payload, "approve", asked.approval_id)


def title(state: State) -> str:
    """What the input's title says of the oldest request; "" if there is none."""
    if not state.asked:
        return ""
    asked = state.asked[0]
    keys = "a allows once, s for the session, d denies" if asked.complete else "d denies"
    if state.editor.text:
        keys = f"empty the input, then {keys}"
    more = f" (+{len(state.asked) - 1})" if len(state.asked) > 1 else ""
    return f"{one_line(asked.tool)}{more}: {keys}"
