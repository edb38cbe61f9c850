"""The slash commands. Pure.

`COMMANDS` is the table: what a person types, what `/help` says of it, and the function that does
it. A command that needs an answer of the gateway asks with a purpose, by which `model` finds the
function that goes on with the reply.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from oxydra.mcp import told
from oxydra.scrub import printable
from oxydra.tui import costs, listing, outline, pick, traces
from oxydra.tui.cells import one_line
from oxydra.tui.state import Entry, Exit, SessionInfo, State, Step, Write
from oxydra.tui.transcript import files
from oxydra.types import Json

MCP_ACTIONS = ("trust", "distrust", "restart", "logs")
SHORT_ID = 8  # characters of a session id that people get to see

KEYS_HELP = """\
Enter        send; Alt+Enter, Ctrl+J: a new line
Tab          complete commands, sessions, agents, paths
@path        a file: of the workspace, or one to attach
Up, Down     what was sent before; Ctrl+R searches it
Alt+B, Alt+F move by words
Ctrl+W, U, K cut; Ctrl+Y puts it back
Ctrl+G       write in $EDITOR
Ctrl+T       choose a session
PageUp, Down read back; Esc: to the newest line
Ctrl+O       all of calls, reasoning and diffs
Ctrl+C       cancel the turn; twice: leave
a, s, d      allow a call once, for the session; deny"""


@dataclass(frozen=True, slots=True)
class Command:
    """`usage` begins with the command's name; `run` gets what follows it."""

    usage: str
    help: str
    run: Callable[[State, str], Step]
    offline: bool = False  # works without a connection


def run(state: State, line: str) -> Step | None:
    """Do what a line that starts with a slash says; None if it names no command."""
    name, _, rest = line.strip().partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        return None
    if not command.offline and not state.link.connected:
        return state.say("warning", f"{name} needs the connection; it is being made again."), ()
    return command.run(state, rest.strip())


def unknown(state: State, line: str) -> str:
    """What to say to a line that names no command."""
    name = one_line(line).split(" ")[0]
    known = ", ".join(known_here(state))
    return (
        f"There is no command {name}. There are {known}. A space before it sends it as a message."
    )


def known_here(state: State) -> list[str]:
    """The commands, without those of which the daemon said that it does not know them."""
    return [name for name in COMMANDS if name.removeprefix("/") not in state.unknown]


# ----------------------------------------------------------------------------------------- commands


_AGENT = re.compile(r"(?:^|\s)--agent(?:\s+(\S+)|\s*$)")


def _new(state: State, rest: str) -> Step:
    payload: Json = {}
    found = _AGENT.search(rest)
    if found:
        if not found.group(1):
            return state.say("warning", "Of which agent? /agents lists them."), ()
        payload["agent_name"] = found.group(1)
        rest = f"{rest[: found.start()]} {rest[found.end() :].strip()}"
    if rest.strip():
        payload["display_name"] = rest.strip()
    return state.ask("create_session", payload, "new")


def _agents(state: State, _rest: str) -> Step:
    return state.ask("command", {"name": "agents"}, "agents")


def _sessions(state: State, rest: str) -> Step:
    if rest not in ("", "all"):
        return state.say("warning", "/sessions, or /sessions all with those of delegations."), ()
    payload = {"include_subagent_sessions": True} if rest else {}
    return state.ask("list_sessions", payload, "sessions")


def _switch(state: State, wanted: str) -> Step:
    if not wanted:
        return pick.begin(state)
    return state.ask("list_sessions", {"include_archived": True}, "switch", wanted)


def _steer(state: State, text: str) -> Step:
    if not text:
        return state.say("warning", "Say what to the running turn? /steer <text>"), ()
    return say(state, text, steers=True)


def _cancel(state: State, _rest: str) -> Step:
    if state.active is None:
        return state.say("notice", "No turn is running."), ()
    return cancel(state)


def _cancel_all(state: State, _rest: str) -> Step:
    state, effects = state.ask("cancel_all_active_turns", {}, "cancel")
    return state.say("notice", "The turns of all sessions are asked to stop."), effects


def _of_daemon(name: str, argument: str = "") -> Callable[[State, str], Step]:
    """A command that the daemon carries out, if it knows it; what follows it is `argument`."""

    def run(state: State, rest: str) -> Step:
        return _command(state, name, **({argument: rest} if argument and rest else {}))

    return run


def _export(state: State, path: str) -> Step:
    args = {"session_id": state.session_id}
    path = path or f"oxydra-{state.session_id[:SHORT_ID]}.md"
    return state.ask("command", {"name": "export", "args": args}, "export", path)


def _trace(state: State, turn: str) -> Step:
    args = {"turn_id": turn} if turn else {"session_id": state.session_id}
    return state.ask("command", {"name": "trace", "args": args}, "trace")


def _cost(state: State, by: str) -> Step:
    if by and by not in costs.BY:
        return state.say("warning", f"By what? There are {', '.join(costs.BY)}."), ()
    args = {"session_id": state.session_id, **({"by": by} if by else {})}
    return state.ask("command", {"name": "cost", "args": args}, "cost")


def _rename(state: State, name: str) -> Step:
    if not name:
        return state.say("warning", "Rename it to what? /rename <name>"), ()
    return _command(state, "rename", name=name)


def _fork(state: State, name: str) -> Step:
    return _command(state, "fork", **({"name": name} if name else {}))


def _pin(state: State, text: str) -> Step:
    if not text:
        return state.say("warning", "Pin which rule? /pin <text>"), ()
    return _command(state, "pin", text=text)


def _unpin(state: State, number: str) -> Step:
    if not number:
        return state.say("warning", "Take out which rule? /pins lists them; /unpin <number>"), ()
    return _command(state, "unpin", number=number)


def _tools(state: State, wanted: str) -> Step:
    args = {"session_id": state.session_id}
    return state.ask("command", {"name": "tools", "args": args}, "tools", wanted)


def _mcp(state: State, rest: str) -> Step:
    action, _, name = rest.partition(" ")
    if not action:
        return _command(state, "mcp")
    if action not in MCP_ACTIONS or not name.strip():
        return state.say("warning", f"/mcp, or /mcp {'|'.join(MCP_ACTIONS)} <server>."), ()
    if action in ("trust", "logs"):
        args = {"action": "logs" if action == "logs" else "show", "name": name.strip()}
        return state.ask("command", {"name": "mcp", "args": args}, "mcp", rest)
    return _mcp_trust(state, action, name.strip())


def _mcp_trust(state: State, action: str, name: str, **more: str) -> Step:
    args = {"action": action, "name": name, **more}
    return state.ask("command", {"name": "mcp_trust", "args": args}, "mcp_trust", action)


def _model(state: State, _rest: str) -> Step:
    return _command(state, "model")


def _tokens(state: State, _rest: str) -> Step:
    return _command(state, "tokens")


def _command(state: State, name: str, /, **args: object) -> Step:
    """Ask for a command of this session; its reply comes with the command's name as purpose."""
    given = {"session_id": state.session_id, **args}
    return state.ask("command", {"name": name, "args": given}, name)


def _status(state: State, _rest: str) -> Step:
    return state.ask("health_check", {}, "status")


def _help(state: State, _rest: str) -> Step:
    known = [COMMANDS[name] for name in known_here(state)]
    usages = max(len(command.usage) for command in known)
    lines = [f"{command.usage:<{usages}}  {command.help}" for command in known]
    return state.say("notice", "\n".join([*lines, "", KEYS_HELP])), ()


def _notes(state: State, rest: str) -> Step:
    return _command(state, "notes", **({"tags": rest.split()} if rest else {}))


def _remember(state: State, rest: str) -> Step:
    if not rest:
        return state.say("warning", "Note what? /remember <text>"), ()
    return _command(state, "notes", action="save", content=rest)


def _skill(state: State, rest: str) -> Step:
    from oxydra.skills import asked_for  # not needed to show a conversation

    name, _, text = rest.partition(" ")
    if not name:
        return state.say("warning", "Which skill? /skill <name> [what to do]"), ()
    return say(state, asked_for(name, text.strip()))


def _quit(state: State, _rest: str) -> Step:
    return state, (Exit(),)


COMMANDS = {
    command.usage.split(" ")[0]: command
    for command in (
        Command("/new [name] [--agent <agent>]", "start a new session", _new),
        Command("/agents", "list the agents", _agents),
        Command("/sessions [all]", "list them; all: delegations' too", _sessions),
        Command("/switch [id or name]", "go to another; alone: choose one", _switch),
        Command("/steer <text>", "tell it to the turn that runs", _steer),
        Command("/cancel", "cancel the running turn", _cancel),
        Command("/cancelall", "cancel the turns of all sessions", _cancel_all),
        Command("/undo", "take the last turn back", _of_daemon("undo")),
        Command("/memory <query>", "look into what is remembered", _of_daemon("memory", "query")),
        Command("/notes [tag]", "list the notes, or those with a tag", _notes),
        Command("/remember <text>", "make a note", _remember),
        Command("/pins", "list the rules that are never cut", _of_daemon("pins")),
        Command("/pin <text>", "add one", _pin),
        Command("/unpin <number>", "take one out", _unpin),
        Command("/skill <name> [text]", "work by a skill", _skill),
        Command("/schedules", "list what is scheduled", _of_daemon("schedules")),
        Command("/tools [word]", "list the agent's tools, or those with a word", _tools),
        Command("/skills", "list the skills in use", lambda state, _: _command(state, "skills")),
        Command("/mcp [action <server>]", "MCP servers; trust, restart, logs of one", _mcp),
        Command("/export [file]", "write it all into a Markdown file", _export),
        Command(
            "/cost [by]",
            "spending; by day, model, session, schedule",
            _cost,
        ),
        Command("/trace [turn]", "what a turn did and when; alone: the last", _trace),
        Command("/rename <name>", "give this session a name", _rename),
        Command("/fork [name]", "go on in a copy of this session", _fork),
        Command("/model", "show which model answers here", _model),
        Command("/tokens", "list who may connect", _tokens),
        Command("/status", "show connection, model and sandbox", _status),
        Command("/help", "show this", _help, offline=True),
        Command("/quit", "leave; a running turn goes on", _quit, offline=True),
    )
}


def say(
    state: State, text: str, *, steers: bool = False, attachments: tuple[Json, ...] = ()
) -> Step:
    """Put what the person said into the transcript, and send it."""
    turn_id = f"{state.nonce}-t{state.last_id + 1}"
    entry = Entry(0, "user", text, turn_id, "sending", steers=steers, attachments=attachments)
    state = state.append(replace(entry, files=files(attachments)))
    return send_turn(state, state.entries[-1])


def send_turn(state: State, entry: Entry) -> Step:
    """Give a message to the gateway; without a connection it goes when there is one again."""
    if not state.link.connected:
        return state, ()
    payload: Json = {
        "session_id": state.session_id,
        "turn_id": entry.turn_id,
        "prompt": entry.text,
    }
    if entry.steers:
        payload["steer"] = True
    if entry.attachments:
        payload["attachments"] = list(entry.attachments)
    return state.ask("send_turn", payload, "turn", entry.turn_id)


def cancel(state: State) -> Step:
    """Ask the gateway to stop the running turn."""
    active = state.active
    if active is None or not state.link.connected:
        return state, ()
    payload: Json = {"session_id": state.session_id, "turn_id": active.turn_id}
    state = replace(state, active=replace(active, cancelling=True))
    return state.ask("cancel_active_turn", payload, "cancel")


# ------------------------------------------------------------------------------------------ replies


def on_sessions(state: State, purpose: str, about: str, sessions: list[SessionInfo]) -> Step:
    """A list of sessions came, for `/sessions`, `/switch` or the status line."""
    own = tuple(s for s in sessions if not s.archived and not s.delegated)
    state = replace(state, sessions=own)
    here = next((s for s in sessions if s.session_id == state.session_id), None)
    if here is not None:
        state = replace(state, session_name=here.name, agent=here.agent)
    if purpose == "sessions":
        return state.say("notice", "\n".join(_row(state, s) for s in sessions)), ()
    if purpose == "switch":
        return _switch_to(state, about, sessions)
    return state, ()


def on_cost(state: State, data: Json) -> State:
    """What was spent came."""
    return state.say("notice", "\n".join(costs.cost_lines(data)))


def on_command(state: State, name: str, about: str, data: Json) -> Step:
    """What a command gave that is not asked for in another way."""
    match name:
        case "rename":
            named = str(data.get("display_name") or "")
            return replace(state, session_name=named).say("notice", f"It is now {named}."), ()
        case "fork":
            return switch(state, str(data.get("session_id", "")))
        case "export":
            return state, (Write(about, printable(str(data.get("text") or ""))),)
        case "model":
            return state.say("notice", _model_text(data)), ()
        case "trace":
            return state.say("notice", "\n".join(traces.trace_lines(data))), ()
        case "pins" | "pin" | "unpin" if isinstance(data.get("pins"), list):
            return state.say("notice", pins_text(data["pins"])), ()
        case "tokens":
            rows = [row for row in data.get("tokens") or () if isinstance(row, dict)]
            return state.say("notice", "\n".join(map(_token_row, rows))), ()
        case "memory" if "found" in data:
            names = {session.session_id: session.name for session in state.sessions}
            return state.say("notice", "\n".join(listing.passages(data, names))), ()
        case "notes" if "notes" in data:
            return state.say("notice", "\n".join(listing.notes(data))), ()
        case "notes" if "note_id" in data:
            return state.say("notice", f"Noted: {one_line(str(data['note_id']))}"), ()
        case "tools" if "tools" in data:
            return state.say("notice", "\n".join(told.tools(data, about))), ()
        case "skills" if "skills" in data:
            from oxydra.skills import listed

            return state.say("notice", "\n".join(listed(data))), ()
        case "mcp" | "mcp_trust" if "servers" in data:
            if about == "look":
                again = "It is begun, to hear what it offers: /mcp trust it again in a moment."
                return state.say("notice", again), ()
            return state.say("notice", "\n".join(told.servers(data))), ()
        case "mcp":
            return _on_mcp(state, about, data)
        case "schedules" if "schedules" in data:
            return state.say("notice", "\n".join(listing.schedules(data))), ()
        case _:
            return on_result(state, name, data)


def _on_mcp(state: State, about: str, data: Json) -> Step:
    """What a server said in its log or of itself; it is trusted only as it was shown before."""
    action, _, name = about.partition(" ")
    if action == "logs":
        rows = [row for row in data.get("lines") or () if isinstance(row, dict)]
        said = [one_line(f"{listing.local(row.get('time'))}  {row.get('text')}") for row in rows]
        return state.say("notice", "\n".join(said) or "It has said nothing."), ()
    digest = str(data.get("digest") or "")
    if data.get("trusted"):
        return state.say("notice", f"{one_line(name)} is trusted as it is."), ()
    if not digest or data.get("looking"):
        return _mcp_trust(state, "look", name.strip())
    if state.judged == (name, digest):
        return _mcp_trust(replace(state, judged=("", "")), "trust", name.strip(), digest=digest)
    ask = f"Read it. /mcp trust {one_line(name)} once more has the agent offered just this."
    text = printable("\n".join([*told.offered(data), "", ask]))
    return replace(state, judged=(name, digest)).say("notice", text), ()


def pins_text(rows: Sequence[object]) -> str:
    """The rules of a session, each with its number."""
    lines = [
        one_line(f"{row.get('number')}. {row.get('text')}{' (/pin)' if row.get('by_hand') else ''}")
        for row in rows
        if isinstance(row, dict)
    ]
    return "\n".join(lines) or "No rule is pinned in this session."


def _model_text(data: Json) -> str:
    said = f"{data.get('id')} by {data.get('provider')}, for the agent {data.get('agent')}"
    limits = f"{_count(data.get('max_context_tokens'))} tokens of context"
    limits += f", {_count(data.get('max_output_tokens'))} of an answer"
    into, out = data.get("price_input"), data.get("price_output")
    price = f"${into} in, ${out} out per million tokens" if into is not None else "no known price"
    return "\n".join(map(one_line, (said, limits, price)))


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else "?"


def _token_row(row: Json) -> str:
    scopes = row.get("scopes")
    may = ", ".join(map(str, scopes)) if isinstance(scopes, list) and scopes else "no scope"
    clients = row.get("clients")
    return one_line(f"{row.get('name')}: {may}" + (f" · {clients} connected" if clients else ""))


def on_result(state: State, name: str, data: Json) -> Step:
    """A command was carried out of whose answer nothing else is known."""
    return state.say("notice", outline.outlined(name, data)), ()


def on_unknown(state: State, name: str, message: str) -> State:
    """The daemon said that it does not know a command: it is no longer offered."""
    state = replace(state, unknown=state.unknown | {name})
    return state.say("warning", f"This daemon does not know /{name}. {message}")


def with_agents(state: State, data: Json) -> State:
    rows = [row for row in data.get("agents") or () if isinstance(row, dict)]
    return replace(state, agents=tuple(str(row.get("name")) for row in rows))


def on_agents(state: State, data: Json) -> State:
    """A list of agents came."""
    state = with_agents(state, data)
    rows = [row for row in data.get("agents") or () if isinstance(row, dict)]
    return state.say("notice", "\n".join(_agent_row(state, row) for row in rows))


def _agent_row(state: State, row: Json) -> str:
    mark = "●" if row.get("name") == state.agent else " "
    tools = row.get("tools")
    may = ", ".join(map(str, tools)) if isinstance(tools, list) and tools else "no tools"
    said = f"{row.get('name')}: {row.get('model')} by {row.get('provider')} · {may}"
    if isinstance(row.get("max_turns"), int):
        said += f" · at most {row['max_turns']} steps a turn"
    if row.get("max_cost") is not None:
        said += f" · at most ${row['max_cost']} a turn"
    return f"{mark} {one_line(said)}"


def _row(state: State, session: SessionInfo) -> str:
    mark = "●" if session.session_id == state.session_id else " "
    when = listing.local(session.last_active_at)
    short = _short(session.session_id)
    whose = f"{session.agent}, delegated" if session.delegated else session.agent
    return f"{mark} {short}  {when}  {one_line(session.name) or '(no name)'} · {one_line(whose)}"


def _short(session_id: str) -> str:
    return f"{session_id[:SHORT_ID]:<{SHORT_ID}}"


def _switch_to(state: State, wanted: str, sessions: list[SessionInfo]) -> Step:
    """By name, else by the beginning of an id or of a name; what is not unique is not guessed."""
    for found in (
        [s for s in sessions if wanted in (s.name, s.session_id)],
        [s for s in sessions if s.session_id.startswith(wanted)],
        [s for s in sessions if s.name.casefold().startswith(wanted.casefold())],
    ):
        if len(found) == 1:
            return switch(state, found[0].session_id)
        if found:
            rows = "\n".join(_row(state, session) for session in found)
            return state.say("warning", f"{one_line(wanted)} fits several sessions:\n{rows}"), ()
    text = f"No session has the name {one_line(wanted)} or an id that begins so."
    return state.say("warning", f"{text} /sessions lists them."), ()


def switch(state: State, session_id: str) -> Step:
    return state.ask("switch_session", {"session_id": session_id}, "switched")


def status_text(state: State) -> str:
    """What `/status` says."""
    health = state.health
    rows = [
        ("connection", "connected" if state.link.connected else state.link.detail),
        ("user", state.user_id),
        ("session", f"{state.session_name or '(no name)'} ({state.session_id})"),
    ]
    if state.agent:
        rows.append(("agent", state.agent))
    if health is not None:
        rows.append(
            ("model", f"{health.model} by {health.provider}" if health.model else "unknown")
        )
        rows.append(
            ("sandbox", f"{health.tier}, level {health.level}" if health.level else health.tier)
        )
        rows.append(("shell", "available" if health.shell else "not available"))
    spent = f"{state.tokens:,} tokens" + (f", ${state.cost:.4f}" if state.cost else "")
    rows.append(("spent here", f"{spent} since this window opened"))
    lines = [f"{name:<12}{one_line(value)}" for name, value in rows]
    lines += [f"! {one_line(problem)}" for problem in (health.problems if health else ())]
    return "\n".join(lines)
