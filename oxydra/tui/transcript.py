"""How frames and history become the transcript. Pure.

Live frames and stored history tell the same story twice. They meet by turn id and call id: what was
seen live stays as it is, what was missed comes from the history.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from oxydra.frames import real_call
from oxydra.tui.cells import clip, one_line
from oxydra.tui.state import PAGE, WAITING, Active, Entry, State, Step
from oxydra.types import RECALLED, Json, ToolCall

SUMMARY = 200  # cells kept of a call's arguments
_RESTARTS = ("retry", "fallback", "resumed")  # the answer in progress is asked for again
_READING = ("reload", "older", "prompt", "details")
_STREAMED = ("assistant", "reasoning")
DIFFS = ("file_edit",)  # tools whose result is a diff, which is wanted at once


# --------------------------------------------------------------------------------- frames of a turn


def on_turn_frame(state: State, frame_type: str, payload: Json) -> Step:
    """A frame that belongs to a turn of the session in sight."""
    turn_id = str(payload["turn"].get("turn_id", ""))
    match frame_type:
        case "turn_started":
            return _started(state, turn_id, str(payload["turn"].get("state", "")))
        case "assistant_delta":
            state = _delta(_running(state, turn_id, "answering"), turn_id, payload["delta"])
        case "reasoning_delta":
            state = _reasoning(_running(state, turn_id, "thinking"), turn_id, payload["delta"])
        case "turn_progress":
            state = _progress(state, turn_id, payload["progress"])
        case "tool_event":
            state = _tool(_running(state, turn_id), turn_id, payload["call"])
            call = payload["call"]
            if call.get("name") in DIFFS and call.get("state") == "finished":
                return _gathered(_with_prompt(state, turn_id), _with_details, turn_id)
        case "turn_joined":
            return _joined(state, turn_id)
        case "media_attachment":
            state = _made(_running(state, turn_id), turn_id, payload["attachment"])
        case _:
            state = _ended(state, turn_id, frame_type, payload)
            step = _gathered(_with_prompt(state, turn_id), _with_details, turn_id)
            return _gathered(step, _with_window, turn_id)
    return _with_prompt(state, turn_id)


def _gathered(step: Step, then: Callable[[State, str], Step], turn_id: str) -> Step:
    state, effects = step
    state, more = then(state, turn_id)
    return state, (*effects, *more)


def _started(state: State, turn_id: str, turn_state: str) -> Step:
    if turn_state == "queued":
        mine = _message_of(state, turn_id)
        return (state.change(replace(mine, state="queued", attachments=())) if mine else state), ()
    state = _taken(state, turn_id)
    if turn_state == "running":
        return _running(state, turn_id), ()
    # It ended while nobody looked: its story is in the history.
    return reload(state)


def _joined(state: State, turn_id: str) -> Step:
    """A message became part of the running turn: it stands where it was read. Another window's is
    asked for.
    """
    mine = _message_of(state, turn_id)
    if mine is None:
        payload: Json = {"session_id": state.session_id, "limit": PAGE}
        return state.ask("history", payload, "prompt", turn_id)
    if mine.state not in WAITING:
        return state, ()
    state = replace(state, entries=tuple(e for e in state.entries if e.id != mine.id))
    others = [entry for entry in state.entries if entry.state in WAITING]
    shown = [entry for entry in state.entries if entry.state not in WAITING]
    return replace(state, entries=(*shown, replace(mine, state=""), *others)), ()


def _running(state: State, turn_id: str, activity: str = "") -> State:
    active = state.active
    if active is None or active.turn_id != turn_id:
        return replace(_taken(state, turn_id), active=Active(turn_id, state.now, activity))
    if activity and active.activity != activity:
        return replace(state, active=replace(active, activity=activity))
    return state


def _taken(state: State, turn_id: str) -> State:
    """The message that began a turn waits no longer."""
    mine = _message_of(state, turn_id)
    if mine is None or not mine.state:
        return state
    return state.change(replace(mine, state="", attachments=()))


def _delta(state: State, turn_id: str, text: str) -> State:
    last = _last_of(state, turn_id)
    if last is not None and last.kind == "assistant" and last.state == "open":
        return state.change(replace(last, text=last.text + text))
    if last is not None and last.kind == "reasoning" and last.state:
        state = state.change(replace(last, state=""))
        last = next((e for e in _of(state, turn_id) if e.kind == "assistant"), None)
    if last is not None and last.state == "stale":
        state = replace(state, entries=tuple(e for e in state.entries if e.id != last.id))
    return state.append(Entry(0, "assistant", text, turn_id, "open"))


def _made(state: State, turn_id: str, attachment: Json) -> State:
    """A file that the model made stands with its answer, by name and size."""
    last = _last_of(state, turn_id)
    if last is None or last.kind != "assistant" or last.state != "open":
        state = _delta(state, turn_id, "")
        last = _last_of(state, turn_id)
    data = str(attachment.get("data") or "")
    row = {"name": attachment.get("file_name"), "size": len(data.rstrip("=")) * 3 // 4}
    return state if last is None else state.change(replace(last, files=last.files + files([row])))


def _reasoning(state: State, turn_id: str, text: str) -> State:
    last = _last_of(state, turn_id)
    if last is not None and last.kind == "reasoning" and last.state == "open":
        return state.change(replace(last, text=last.text + text))
    return state.append(Entry(0, "reasoning", text, turn_id, "open", since=state.now))


def _progress(state: State, turn_id: str, progress: Json) -> State:
    kind = progress.get("kind")
    if isinstance(kind, dict) and kind.get("kind") == "tool_heartbeat":
        return _beat(state, turn_id, kind)
    kind = str(kind.get("kind", "")) if isinstance(kind, dict) else ""
    message = one_line(str(progress.get("message") or ""))
    words = message or kind.replace("_", " ")
    step, limit = progress.get("turn"), progress.get("max_turns")
    if isinstance(step, int) and isinstance(limit, int) and step > 1:
        words += f" · step {step} of {limit}"
    state = _running(state, turn_id, words)
    if isinstance(step, int) and state.active is not None:
        steps = max(step, state.active.steps)
        state = replace(state, active=replace(state.active, steps=steps))
    if kind in _RESTARTS:
        for entry in _open(state, turn_id):
            if entry.kind == "reasoning":
                left = tuple(e for e in state.entries if e.id != entry.id)
                state = replace(state, entries=left)
            else:
                state = state.change(replace(entry, state="stale"))
        state = state.say("notice", message or kind)
    elif kind == "provider_call":
        for entry in _open(state, turn_id):
            state = state.change(replace(entry, state=""))
    return state


def _beat(state: State, turn_id: str, told: Json) -> State:
    """Calls still run: for how long by the daemon's clock, also those that began unseen."""
    elapsed = told.get("elapsed_ms")
    since = state.now - (elapsed if isinstance(elapsed, int) else 0) / 1000
    for call in told.get("calls") or ():
        if not isinstance(call, dict):
            continue
        call_id = str(call.get("id", ""))
        if _call_of(state, turn_id, call_id) is None:
            state = _tool(state, turn_id, {**call, "state": "started"})
        known = _call_of(state, turn_id, call_id)
        if known is not None and known.state == "started":
            state = state.change(replace(known, since=since))
    return state


def _call_of(state: State, turn_id: str, call_id: str) -> Entry | None:
    calls = (e for e in _of(state, turn_id) if e.kind == "tool" and e.call_id == call_id)
    return next(calls, None)


def _tool(state: State, turn_id: str, call: Json) -> State:
    for streamed in _open(state, turn_id, "open", "stale"):
        state = state.change(replace(streamed, state=""))
    call_id = str(call.get("id", ""))
    elapsed = call.get("elapsed_ms")
    known = _call_of(state, turn_id, call_id)
    begun = known or Entry(0, "tool", "", turn_id, call_id=call_id, since=state.now)
    entry = replace(
        begun,
        text=str(call.get("summary") or "") or begun.text,
        state=str(call.get("state", "")),
        tool=str(call.get("name", "")),
        elapsed_ms=elapsed if isinstance(elapsed, int) and call.get("state") != "started" else None,
    )
    state = state.change(entry) if known else state.append(entry)
    started = entry.state == "started"
    return _running(state, turn_id, f"running {entry.tool}" if started else "")


def _ended(state: State, turn_id: str, frame_type: str, payload: Json) -> State:
    state = _taken(state, turn_id)
    if frame_type == "turn_completed":
        message = payload["response"].get("message")
        content = message.get("content") if isinstance(message, dict) else None
        state = _final_text(state, turn_id, content if isinstance(content, str) else "")
        state = _spent(state, turn_id, payload["response"].get("usage"))
    state = _settled(state, turn_id)
    if frame_type == "turn_cancelled":
        state = state.say("notice", "Cancelled.")
    elif frame_type == "error":
        state = state.say("error", str(payload["message"]))
    if state.active is not None and state.active.turn_id == turn_id:
        state = replace(state, active=None)
    return state


def _final_text(state: State, turn_id: str, content: str) -> State:
    """The answer as it is stored takes the place of what was streamed of it."""
    parts = [e for e in _of(state, turn_id) if e.kind == "assistant"]
    streamed = "".join(reversed([e.text for e in parts]))
    last = _last_of(state, turn_id)
    tail = last if last is not None and last.kind == "assistant" else None
    if not content or content == streamed or (tail is not None and tail.text == content):
        return state
    if tail is not None:
        return state.change(replace(tail, text=content))
    return state.append(Entry(0, "assistant", content, turn_id))


def _settled(state: State, turn_id: str) -> State:
    """Nothing of a turn that has ended is open, running or waiting any more."""
    for entry in _of(state, turn_id):
        if entry.kind == "tool" and entry.state == "started":
            state = state.change(replace(entry, state="unknown"))
        elif entry.kind in _STREAMED and entry.state:
            state = state.change(replace(entry, state=""))
    return state


def _spent(state: State, turn_id: str, usage: object) -> State:
    if not isinstance(usage, dict):
        return state
    tokens, cost = usage.get("total_tokens"), usage.get("cost_usd")
    if isinstance(tokens, int):
        mine = state.active is not None and state.active.turn_id == turn_id
        steps = state.active.steps if state.active is not None and mine else 1
        state = replace(state, tokens=state.tokens + tokens, filled=tokens // steps)
    if isinstance(cost, int | float):
        state = replace(state, cost=(state.cost or 0.0) + cost)
    return state


def _with_prompt(state: State, turn_id: str) -> Step:
    """Another window's turn: ask once for the message that began it."""
    active = state.active
    if active is None or active.asked or state.asking("reload"):
        return state, ()
    state = replace(state, active=replace(active, asked=True))
    if _message_of(state, turn_id) is not None:
        return state, ()
    payload: Json = {"session_id": state.session_id, "limit": PAGE}
    return state.ask("history", payload, "prompt", turn_id)


def _with_window(state: State, _turn_id: str) -> Step:
    """Ask how many tokens the model takes, once they can be compared with something."""
    if not state.filled or state.window or state.asking("window"):
        return state, ()
    args = {"session_id": state.session_id}
    return state.ask("command", {"name": "model", "args": args}, "window")


def _with_details(state: State, turn_id: str) -> Step:
    """Ask for the arguments and the results of a turn's calls: live, only their summaries come."""
    calls = (e for e in _of(state, turn_id) if e.kind == "tool" and e.state != "started")
    if state.asking("details", turn_id) or all(entry.result is not None for entry in calls):
        return state, ()
    payload: Json = {"session_id": state.session_id, "limit": PAGE}
    return state.ask("history", payload, "details", turn_id)


# ------------------------------------------------------------------------------------------ history


def reload(state: State) -> Step:
    """Read the newest history anew. What comes live from now on is kept beside it."""
    others = {k: v for k, v in state.requests.items() if v.purpose not in _READING}
    state = replace(state, requests=others)
    payload: Json = {"session_id": state.session_id, "limit": PAGE}
    return state.ask("history", payload, "reload", str(state.last_id))


def older(state: State) -> Step:
    """Read the page of history before what is shown."""
    first = next((entry.sequence for entry in state.entries if entry.sequence), 0)
    if not state.more or not first or state.asking("older"):
        return state, ()
    payload: Json = {"session_id": state.session_id, "before_sequence": first, "limit": PAGE}
    return state.ask("history", payload, "older")


def on_history(state: State, purpose: str, about: str, events: Sequence[Json], more: bool) -> State:
    if purpose == "prompt":
        return _insert_prompt(state, about, events)
    if purpose == "details":
        return _fill(state, about, events)
    state, entries = _entries(state, events)
    if purpose == "older":
        return replace(state, entries=(*entries, *state.entries), more=more)
    state, entries = _since_away(state, entries)
    known = {entry.turn_id for entry in entries if entry.kind == "user"}
    live = [
        entry
        for entry in state.entries
        if entry.id > int(about) or (entry.kind == "user" and entry.state)
    ]
    live = [e for e in live if not (e.kind == "user" and e.turn_id in known)]
    return replace(state, entries=(*entries, *_not_in(live, entries)), more=more)


def _since_away(state: State, entries: list[Entry]) -> tuple[State, list[Entry]]:
    """Mark where that begins which nobody saw because the connection was broken, or because
    another session was in sight or none.
    """
    known, state = state.away, replace(state, away=None)
    if known is not None:
        at = next((i for i, e in enumerate(entries) if e.turn_id not in known), len(entries))
        text = "While the connection was broken:"
    else:
        last = state.seen.get(state.session_id)
        old = (i for i in range(len(entries) - 1, -1, -1) if last and entries[i].turn_id == last)
        at = next(old, len(entries)) + 1
        text = "New since you were here:"
    others = {key: turn for key, turn in state.seen.items() if key != state.session_id}
    state = replace(state, seen=others)
    if at >= len(entries):
        return state, entries
    mark = Entry(state.last_id + 1, "notice", text)
    return replace(state, last_id=mark.id), [*entries[:at], mark, *entries[at:]]


def seen(state: State) -> Mapping[str, str]:
    """`state.seen` with the session in sight."""
    turns = (e.turn_id for e in reversed(state.entries) if e.turn_id and e.state not in WAITING)
    last = next(turns, None)
    return {**state.seen, state.session_id: last} if last and state.session_id else state.seen


def _not_in(live: Iterable[Entry], stored: Sequence[Entry]) -> list[Entry]:
    """The live entries that the history does not have."""
    calls = {entry.call_id for entry in stored if entry.call_id and entry.state != "unknown"}
    texts = {(entry.turn_id, entry.text) for entry in stored if entry.kind in _STREAMED}
    return [
        entry
        for entry in live
        if not (entry.kind == "tool" and entry.call_id in calls)
        and not (entry.kind in _STREAMED and (entry.turn_id, entry.text) in texts)
    ]


def _fill(state: State, turn_id: str, events: Sequence[Json]) -> State:
    """Give a turn's calls what the history has of them."""
    _, entries = _entries(state, events)
    known = {entry.call_id: entry for entry in entries if entry.call_id}
    for entry in list(_of(state, turn_id)):
        found = known.get(entry.call_id) if entry.kind == "tool" else None
        if found is not None and found.result is not None:
            state = state.change(replace(entry, arguments=found.arguments, result=found.result))
    return state


def _insert_prompt(state: State, turn_id: str, events: Sequence[Json]) -> State:
    if _message_of(state, turn_id) is not None:
        return state
    state, entries = _entries(state, events)
    prompts = [e for e in entries if e.kind == "user" and e.turn_id == turn_id]
    shown = list(state.entries)
    first = next((i for i, e in enumerate(shown) if e.turn_id == turn_id), len(shown))
    shown[first:first] = prompts
    return replace(state, entries=tuple(shown))


def _entries(state: State, events: Sequence[Json]) -> tuple[State, list[Entry]]:
    """Stored events as entries with new ids."""
    entries: list[Entry] = []
    calls: dict[str, int] = {}  # where each call is in `entries`
    for event in events:
        message = event.get("message") if isinstance(event, dict) else None
        if not isinstance(message, dict):
            continue
        role = message.get("role")
        text = str(message.get("content") or "")
        turn_id, sequence = str(event.get("turn_id", "")), int(event.get("sequence", 0))
        base = Entry(0, "notice", text, turn_id, sequence=sequence)
        if role == "tool":
            at = calls.get(str(message.get("tool_call_id", "")))
            if at is not None:
                done = "failed" if message.get("is_error") else "finished"
                entries[at] = replace(entries[at], state=done, result=text)
            continue
        if turn_id.startswith(RECALLED):
            told = f"Recalled from memory: {text.count(chr(10))}"
            entries.append(replace(base, text=told, turn_id=turn_id.removeprefix(RECALLED)))
            continue
        base = replace(base, files=files(message.get("attachments")))
        if role == "user":
            entries.append(replace(base, kind="user"))
        elif role == "assistant":
            if isinstance(message.get("reasoning"), str):
                entries.append(replace(base, kind="reasoning", text=message["reasoning"], files=()))
            if text or base.files:
                entries.append(replace(base, kind="assistant"))
        for row in message.get("tool_calls") or ():
            given = str(row.get("arguments") or "")
            call = real_call(ToolCall(str(row.get("id", "")), str(row.get("name", "")), given))
            calls[call.id] = len(entries)
            entries.append(
                replace(
                    base,
                    kind="tool",
                    text=_arguments(call.arguments),
                    state="unknown",
                    call_id=call.id,
                    tool=call.name,
                    arguments=call.arguments,
                    files=(),
                )
            )
    first = state.last_id + 1
    entries = [replace(entry, id=first + i) for i, entry in enumerate(entries)]
    return replace(state, last_id=state.last_id + len(entries)), entries


def files(rows: object) -> tuple[str, ...]:
    """Attachments by name and size: what is in them is not drawn."""
    return tuple(
        one_line(f"{row.get('name') or row.get('mime_type') or 'a file'} ({size(row.get('size'))})")
        for row in (rows if isinstance(rows, list | tuple) else ())
        if isinstance(row, dict)
    )


def size(count: object) -> str:
    """A number of bytes for people."""
    if not isinstance(count, int | float):
        return "?"
    if count < 1000:
        return f"{count} bytes"
    thousands, unit = (count / 1e3, "KB") if count < 1e6 else (count / 1e6, "MB")
    return f"{thousands:.1f} {unit}"


def _arguments(raw: object) -> str:
    """A call's arguments in short: the values of a JSON object, or the text as it is."""
    text = raw if isinstance(raw, str) else ""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        text = " ".join(v if isinstance(v, str) else json.dumps(v) for v in value.values())
    return clip(one_line(text[: 4 * SUMMARY]), SUMMARY)


# ------------------------------------------------------------------------------------------ finding


def _of(state: State, turn_id: str) -> Iterable[Entry]:
    """A turn's entries, the newest first."""
    return (entry for entry in reversed(state.entries) if entry.turn_id == turn_id)


def _last_of(state: State, turn_id: str) -> Entry | None:
    """A turn's newest entry, its message aside."""
    return next((entry for entry in _of(state, turn_id) if entry.kind != "user"), None)


def _open(state: State, turn_id: str, *states: str) -> list[Entry]:
    """A turn's streamed entries that are open, or in one of `states`; the newest first."""
    wanted = states or ("open",)
    return [e for e in _of(state, turn_id) if e.kind in _STREAMED and e.state in wanted]


def _message_of(state: State, turn_id: str) -> Entry | None:
    return next((entry for entry in _of(state, turn_id) if entry.kind == "user"), None)
