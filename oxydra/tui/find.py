"""Ctrl+R: looking for something that was sent before. Pure.

What was found stands in the input and can be edited as soon as it is taken; Ctrl+C and Ctrl+G give
back what stood there.
"""

from __future__ import annotations

from dataclasses import replace

from oxydra.tui.cells import one_line
from oxydra.tui.keys import Key
from oxydra.tui.state import Search, State, Step

_LEAVING = ("ctrl-c", "ctrl-g")
_TAKING = ("enter", "tab", "escape")


def begin(state: State) -> State:
    return replace(state, search=Search("", None, state.editor))


def on_key(state: State, key: Key) -> Step | None:
    """What a key does to the search; None if it ends the search and does what it always does."""
    search = state.search
    if search is None:
        return None
    if key.name in _LEAVING:
        return replace(state, search=None, editor=search.before), ()
    if key.name in _TAKING:
        return replace(state, search=None), ()
    if key.name in ("text", "paste"):
        return _look(state, search, search.query + key.text.replace("\n", " ")), ()
    if key.name == "backspace":
        return _look(state, search, search.query[:-1]), ()
    if key.name == "ctrl-r":
        return _older(state, search), ()
    return None


def leave(state: State) -> State:
    return replace(state, search=None)


def _look(state: State, search: Search, query: str) -> State:
    return _show(state, replace(search, query=query), len(search.before.history))


def _older(state: State, search: Search) -> State:
    """The next match that is older; the last one stays where there is none."""
    end = len(search.before.history) if search.at is None else search.at
    found = _show(state, search, end)
    return state if found.search is not None and found.search.at is None else found


def _show(state: State, search: Search, end: int) -> State:
    history, wanted = search.before.history, search.query.casefold()
    matches = (i for i in range(end - 1, -1, -1) if wanted in history[i].casefold())
    at = next(matches, None) if wanted else None
    editor = search.before if at is None else search.before.set(history[at])
    return replace(state, search=replace(search, at=at), editor=editor)


def title(search: Search) -> str:
    if search.query and search.at is None:
        return f"nothing sent has: {one_line(search.query)}"
    return f"search what you sent: {one_line(search.query)} · Ctrl+R older, Enter takes it"
