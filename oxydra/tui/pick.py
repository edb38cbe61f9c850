"""The picker: a list of sessions, narrowed by what is typed. Pure."""

from __future__ import annotations

from dataclasses import replace

from oxydra.tui.cells import one_line
from oxydra.tui.keys import Key
from oxydra.tui.state import Picker, SessionInfo, State, Step

_MOVES = {"up": -1, "ctrl-p": -1, "down": 1, "ctrl-n": 1, "pageup": -10, "pagedown": 10}


def begin(state: State) -> Step:
    """Open it with what is known, and ask for what there is now."""
    state = replace(state, picker=Picker())
    return state.ask("list_sessions", {}, "pick")


def matching(state: State) -> list[SessionInfo]:
    """The sessions whose name, agent or id has every word that was typed."""
    words = state.picker.query.casefold().split() if state.picker else []
    return [
        session
        for session in state.sessions
        if all(
            word in f"{session.name} {session.agent} {session.session_id}".casefold()
            for word in words
        )
    ]


def on_key(state: State, key: Key) -> Step | None:
    """What a key does to the picker; None if there is none."""
    picker = state.picker
    if picker is None:
        return None
    rows = matching(state)
    if key.name in _MOVES:
        row = max(0, min(picker.row + _MOVES[key.name], len(rows) - 1))
        return replace(state, picker=replace(picker, row=row)), ()
    if key.name in ("text", "paste"):
        return _narrow(state, picker.query + key.text.replace("\n", " ")), ()
    if key.name == "backspace":
        return _narrow(state, picker.query[:-1]), ()
    if key.name == "ctrl-u":
        return _narrow(state, ""), ()
    if key.name == "enter":
        if picker.row >= len(rows):
            return state, ()
        chosen = rows[picker.row].session_id
        state = replace(state, picker=None)
        if chosen == state.session_id:
            return state, ()
        return state.ask("switch_session", {"session_id": chosen}, "switched")
    if key.name in ("escape", "ctrl-c", "ctrl-g", "ctrl-t"):
        return replace(state, picker=None), ()
    return state, ()


def _narrow(state: State, query: str) -> State:
    return replace(state, picker=Picker(query))


def title(picker: Picker) -> str:
    said = f"switch to: {one_line(picker.query)}" if picker.query else "switch to: type to narrow"
    return f"{said} · Enter goes there, Esc stays"
