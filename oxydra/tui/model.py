"""The TUI's mind: a state and an event give a new state and effects. Pure: no socket, no clock.

`reduce` is the one entrance. What frames do to the transcript is in `transcript`, what a person
can type in `commands` and `editor`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from oxydra.frames import TERMINAL, Frame
from oxydra.tui import approvals, commands, complete, find, pick, transcript
from oxydra.tui.cells import clip, one_line
from oxydra.tui.client import Link
from oxydra.tui.editor import edit
from oxydra.tui.keys import Key
from oxydra.tui.state import (
    Active,
    Bell,
    Completed,
    Edited,
    Effect,
    Event,
    Exit,
    Health,
    OpenEditor,
    Remember,
    Repaint,
    Resolve,
    Resolved,
    Scroll,
    Scrolled,
    SessionInfo,
    State,
    Step,
    Suspend,
    Tick,
    Told,
)
from oxydra.types import Json

OFFLINE_REMEDY = (
    "Answers come from the built-in offline model. Set OPENAI_API_KEY, ANTHROPIC_API_KEY or"
    " GEMINI_API_KEY and restart for a real one."
)


def reduce(state: State, event: Event) -> Step:
    """What `event` makes of `state`, and what is to be done about it, in order."""
    match event:
        case Tick(now):
            return replace(state, now=now), ()
        case Key():
            return _on_key(state, event)
        case Frame():
            return _on_frame(state, event)
        case Link():
            return _on_link(state, event)
        case Scrolled(anchor, top):
            state = replace(state, anchor=anchor)
            return transcript.older(state) if top else (state, ())
        case Completed():
            return complete.paths(state, event), ()
        case Resolved():
            return _on_resolved(state, event)
        case Edited(text):
            return replace(state, editor=state.editor.set(text)), ()
        case Told(kind, text):
            return state.say(kind, text), ()


# --------------------------------------------------------------------------------------------- keys

NAME = 40  # cells of what a session without a name is called by
_SCROLLS = {"pageup": -1.0, "pagedown": 1.0, "shift-up": -0.1, "shift-down": 0.1, "escape": 0.0}


_REST: dict[str, Effect] = {"ctrl-l": Repaint(), "ctrl-z": Suspend()}


def _on_key(state: State, key: Key) -> Step:
    step = pick.on_key(state, key) or find.on_key(state, key)
    if step is not None:
        return step
    state = find.leave(state)
    if key.name == "ctrl-c":
        return _interrupt(replace(state, attaching=None))
    attaching = state.attaching
    state = replace(state, hint="", leaving=False, attaching=None)
    if attaching is not None and key.name == "enter":
        return _say(state, attaching.prompt, attaching.attachments)
    step = approvals.answer(state, key)
    if step is not None:
        return step
    if key.name in _SCROLLS:
        return state, (Scroll(_SCROLLS[key.name]),)
    if key.name in _REST:
        return state, (_REST[key.name],)
    match key.name:
        case "enter":
            return _submit(state)
        case "tab":
            return complete.tab(state)
        case "ctrl-r":
            return find.begin(state), ()
        case "ctrl-t":
            return pick.begin(state)
        case "ctrl-g":
            return state, (OpenEditor(state.editor.text),)
        case "ctrl-o":
            return replace(state, details=not state.details), ()
        case "ctrl-d" if not state.editor.text:
            return state, (Exit(),)
    edited = edit(state.editor, key)
    return (state if edited is None else replace(state, editor=edited)), ()


def _interrupt(state: State) -> Step:
    """Ctrl+C: cancel what runs; else say what a second one will do, and then do it."""
    if state.leaving:
        return state, (Exit(),)
    active = state.active
    if active is not None and not active.cancelling and state.link.connected:
        return commands.cancel(state)
    going_on = " (the turn goes on)" if active is not None else ""
    return replace(state, leaving=True, hint=f"Ctrl+C again to leave{going_on}"), ()


def _submit(state: State) -> Step:
    text = state.editor.text
    if not text.strip():
        return state, ()
    if text.startswith("/") and ("\n" not in text.strip() or text.startswith("/steer ")):
        step = commands.run(replace(state, editor=state.editor.take(), anchor=None), text)
        if step is None:
            return state.say("warning", commands.unknown(state, text)), ()
        return step[0], (Remember(text), *step[1])
    if "@" in text:
        return state, (Resolve(text),)
    return _say(state, text)


def _on_resolved(state: State, event: Resolved) -> Step:
    """The paths of the message in the input were looked at: send it, or ask before files go."""
    if state.editor.text != event.text:
        return state, ()
    if event.problem:
        return state.say("warning", event.problem), ()
    if not event.attachments:
        return _say(state, event.prompt)
    names = ", ".join(transcript.files(event.attachments))
    return replace(state, attaching=event, hint=f"Attach {names}? Enter sends, Esc does not"), ()


def _say(state: State, prompt: str, attachments: tuple[Json, ...] = ()) -> Step:
    typed = state.editor.text
    state = replace(state, editor=state.editor.take(), anchor=None)
    state, effects = commands.say(state, prompt.strip("\n"), attachments=attachments)
    return state, (Remember(typed), *effects)


# --------------------------------------------------------------------------------------- connection


def _on_link(state: State, link: Link) -> Step:
    was = state.link
    state = replace(state, link=link)
    if not link.connected:
        unread = state.unread or any(r.purpose == "reload" for r in state.requests.values())
        known = frozenset(entry.turn_id for entry in state.entries)
        away = (known or None) if was.connected else state.away
        return replace(state, requests={}, unread=unread, asked=(), away=away), ()
    effects: list[Effect] = []
    if not link.fresh and not state.unread:
        state = replace(state, away=None)  # it goes on where it broke
    if link.fresh or state.unread:
        state = _gather(effects, transcript.reload(replace(state, unread=False)))
    if not was.connected:
        state = _gather(effects, state.ask("health_check", {}, "health"))
        state = _gather(effects, state.ask("list_sessions", {}, "names"))
        for entry in state.entries:
            # The gateway runs a turn id once, so what it may have got before is safe to send again.
            if entry.kind == "user" and entry.state == "sending":
                state = _gather(effects, commands.send_turn(state, entry))
    return state, tuple(effects)


def _gather(effects: list[Effect], step: Step) -> State:
    effects.extend(step[1])
    return step[0]


# ------------------------------------------------------------------------------------------- frames


def _on_frame(state: State, frame: Frame) -> Step:
    payload = frame.payload
    if isinstance(payload.get("turn"), dict):
        session = payload.get("session")
        if isinstance(session, dict) and session.get("session_id") != state.session_id:
            return state, ()
        state, request = state.answered(str(payload.get("request_id", "")))
        if frame.type == "error" and request is not None and request.purpose == "turn":
            return _failed(state, "turn", request.about, payload), ()
        if frame.type == "approval_request":
            return approvals.on_request(state, payload), (Bell(),)
        if frame.type == "approval_resolved":
            answers = request is not None and request.purpose == "approve"
            return (state if answers else approvals.on_resolved(state, payload)), ()
        if frame.type in TERMINAL:
            turn_id = str(payload["turn"].get("turn_id", ""))
            state = approvals.without(state, turn_id=turn_id)
        return transcript.on_turn_frame(state, frame.type, payload)
    state, request = state.answered(str(payload.get("request_id", "")))
    purpose, about = (request.purpose, request.about) if request else ("", "")
    match frame.type:
        case "hello_ack":
            return _greeted(state, payload), ()
        case "session_switched":
            return _switched(state, payload)
        case "session_created" if purpose == "new":
            return commands.switch(state, str(payload["session"].get("session_id", "")))
        case "session_history" if purpose:
            events = [event for event in payload["events"] if isinstance(event, dict)]
            state = transcript.on_history(state, purpose, about, events, payload["more"])
            return approvals.show(state), ()
        case "session_list":
            return commands.on_sessions(state, purpose, about, _sessions(payload["sessions"]))
        case "command_result" if purpose == "seen":
            return state, ()
        case "command_result" if purpose == "cost":
            return commands.on_cost(state, payload["data"]), ()
        case "command_result" if purpose == "agents":
            return commands.on_agents(state, payload["data"]), ()
        case "command_result" if purpose == "agent names":
            return complete.tab(commands.with_agents(state, payload["data"]))
        case "command_result" if purpose == "window":
            window = payload["data"].get("max_context_tokens")
            return replace(state, window=window if isinstance(window, int) else -1), ()
        case "command_result" if purpose:
            return commands.on_command(state, purpose, about, payload["data"])
        case "scheduled_notification":
            return _scheduled(state, payload)
        case "health_status":
            state = replace(state, health=_health(payload))
            if purpose == "status":
                state = state.say("notice", commands.status_text(state))
            return state, ()
        case "error":
            return _failed(state, purpose, about, payload), ()
        case _:
            return state, ()


def _greeted(state: State, payload: Json) -> State:
    """The gateway says which session this is and what runs in it."""
    session_id = str(payload["session"].get("session_id", ""))
    if session_id != state.session_id:
        state = replace(state, seen=transcript.seen(state))
        state = replace(state, session_id=session_id, entries=(), more=False, anchor=None)
        state = replace(state, asked=(), away=None)
    return replace(state, active=_active(state, payload))


def _switched(state: State, payload: Json) -> Step:
    session_id = str(payload["session"].get("session_id", ""))
    state = replace(state, seen=transcript.seen(state))
    state = replace(
        state, session_id=session_id, session_name="", entries=(), more=False, anchor=None
    )
    state = replace(state, away=None)
    state = replace(state, filled=0, window=0)
    state = replace(state, tokens=0, cost=None, asked=(), active=_active(state, payload))
    effects: list[Effect] = []
    state = _gather(effects, transcript.reload(state))
    state = _gather(effects, state.ask("list_sessions", {}, "names"))
    return state, tuple(effects)


def _active(state: State, payload: Json) -> Active | None:
    ref = payload.get("active_turn")
    if not isinstance(ref, dict) or ref.get("state") != "running":
        return None
    turn_id = str(ref.get("turn_id", ""))
    if state.active is not None and state.active.turn_id == turn_id:
        return state.active
    return Active(turn_id, state.now)


def _scheduled(state: State, payload: Json) -> Step:
    """Say once what a scheduled run has to say, and that it was shown."""
    notice_id = payload["notice_id"]
    args = {"action": "seen", "notice_ids": [notice_id]}
    state, seen = state.ask("command", {"name": "schedules", "args": args}, "seen")
    if notice_id in state.notices:
        return state, seen
    name = one_line(str(payload["schedule_name"] or payload["schedule_id"]))
    strangers = " (it has read what strangers wrote)" if payload["tainted"] else ""
    due = one_line(str(payload["due"]))[:16].replace("T", " ")
    said = str(payload["message"]).replace("\n", "\n  ")  # no line of it begins like another notice
    state = state.say("notice", f"Scheduled, {name}, {due}{strangers}: {said}")
    return replace(state, notices=state.notices | {notice_id}), (Bell(), *seen)


def _failed(state: State, purpose: str, about: str, payload: Json) -> State:
    """A request was refused. A message that was gets back into the input, if that is empty."""
    if purpose in ("cancel", "seen"):
        return state  # the turn ended by itself; the notice comes again
    if purpose == "window":
        return replace(state, window=-1)
    if purpose == "agent names":
        return replace(state, hint=one_line(str(payload["message"])))
    if purpose and str(payload["message"]).startswith("There is no command"):
        return commands.on_unknown(state, purpose, str(payload["message"]))
    mine = next((e for e in reversed(state.entries) if about and e.turn_id == about), None)
    if purpose == "turn" and mine is not None and mine.state == "sending":
        state = state.change(replace(mine, state="refused"))
        if not state.editor.text:
            state = replace(state, editor=state.editor.set(mine.text))
    return state.say("error", str(payload["message"]))


def _sessions(rows: list[Any]) -> list[SessionInfo]:
    return [
        SessionInfo(
            str(row.get("session_id", "")),
            str(row.get("display_name") or "") or clip(one_line(str(row.get("title") or "")), NAME),
            str(row.get("agent_name") or ""),
            str(row.get("last_active_at") or ""),
            bool(row.get("archived")),
            row.get("channel_origin") == "delegation",
        )
        for row in rows
        if isinstance(row, dict)
    ]


def _health(payload: Json) -> Health:
    status = payload.get("startup_status")
    status = status if isinstance(status, dict) else {}
    model = status.get("model", payload.get("model"))
    model = model if isinstance(model, dict) else {}
    reasons = [r for r in status.get("degraded_reasons") or () if isinstance(r, dict)]
    reasons.sort(key=lambda reason: reason.get("code") != "no_model")  # the gravest first
    problems = [str(r.get("detail") or r.get("code") or "degraded") for r in reasons]
    if model.get("provider") == "offline" and not any(r.get("code") == "no_model" for r in reasons):
        problems.insert(0, OFFLINE_REMEDY)
    if not payload["healthy"]:
        said = str(payload.get("message") or "The daemon says that it is not healthy.")
        problems.insert(0, said)
    return Health(
        tier=str(status.get("sandbox_tier") or ""),
        level=str(status.get("sandbox_level") or ""),
        model=str(model.get("model") or ""),
        provider=str(model.get("provider") or ""),
        shell=bool(status.get("shell_available")),
        problems=tuple(problems),
    )
