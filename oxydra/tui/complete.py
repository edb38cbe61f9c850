"""Tab: commands, sessions, agents and paths. Pure; which paths there are, the app says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from oxydra.tui import commands, costs
from oxydra.tui.cells import one_line
from oxydra.tui.state import Complete, Completed, State, Step

SHOWN = 20  # candidates in the title
_PATH = re.compile(r'(?<!\S)@(?:"[^"\n]*|[^\s"]*)\Z')


def tab(state: State) -> Step:
    before = state.editor.before
    path = _PATH.search(before)
    if path:
        return state, (Complete(path.group()),)
    if not before.startswith("/") or "\n" in before:
        return state, ()
    name, space, rest = before.partition(" ")
    if not space:
        names = [n for n in commands.COMMANDS if n.removeprefix("/") not in state.unknown]
        return offer(state, name, [f"{n} " for n in names if n.startswith(name)]), ()
    if name == "/switch":
        sessions = [session.name or session.session_id for session in state.sessions]
        return offer(state, rest, [one for one in sessions if _begins(one, rest)]), ()
    if name == "/cost":
        return offer(state, rest, [f"{by} " for by in costs.BY if by.startswith(rest)]), ()
    if name == "/new":
        return _new(state, rest)
    return state, ()


def _new(state: State, rest: str) -> Step:
    """The last word: an agent behind `--agent`, or that itself."""
    before, _, begun = rest.rpartition(" ")
    if before.split(" ")[-1] != "--agent":
        return (offer(state, begun, ["--agent "]) if "--agent".startswith(begun) else state), ()
    if not state.agents:
        return state.ask("command", {"name": "agents"}, "agent names")
    return offer(state, begun, [f"{a} " for a in state.agents if a.startswith(begun)]), ()


def paths(state: State, event: Completed) -> State:
    """The app said which paths there are; the person may have typed on."""
    found = _PATH.search(state.editor.before)
    if not found or found.group() != event.word:
        return state
    return offer(state, event.word, event.candidates)


def offer(state: State, begun: str, candidates: Sequence[str]) -> State:
    """Put what all candidates have in common in the place of `begun`; where that is nothing new,
    show them.
    """
    safe = [one for one in candidates if one.strip() == one_line(one)]
    if not safe:
        return replace(state, hint=f"nothing begins with {one_line(begun)}" if begun else "")
    common = safe[0] if len(safe) == 1 else _common(safe)
    editor = state.editor
    if common != begun and len(common) >= len(begun):
        start = editor.cursor - len(begun)
        text = editor.text[:start] + common + editor.after
        return replace(state, editor=editor.set(text, start + len(common)))
    if len(safe) == 1:
        return state
    more = f" … {len(safe) - SHOWN} more" if len(safe) > SHOWN else ""
    return replace(state, hint="  ".join(one.strip() for one in safe[:SHOWN]) + more)


def _common(texts: Sequence[str]) -> str:
    """What all of them begin with."""
    first, last = min(texts), max(texts)
    same = 0
    while same < len(first) and first[same] == last[same]:
        same += 1
    return first[:same]


def _begins(whole: str, begun: str) -> bool:
    return whole.casefold().startswith(begun.casefold())
