"""What an MCP client is offered of the agent: tools and resources, each asked of the gateway.

Every call has a connection of its own, made on the call's thread and closed with it: a daemon that
was restarted between two calls is no matter. What the token may, the gateway says and sees to.
Texts are shown by programs that are not known: they are made `printable`.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeVar

from oxydra.cli.mcp_shapes import (
    WAIT,
    Answered,
    Approval,
    Ask,
    Begun,
    Cancel,
    Conversation,
    CreateSchedule,
    Delete,
    Deleted,
    Found,
    ListRuns,
    ListSchedules,
    ListSessions,
    NewSession,
    Pause,
    Quotation,
    ReadRun,
    ReadSession,
    Resume,
    Run,
    Runs,
    RunSaid,
    Said,
    Schedule,
    Schedules,
    Search,
    Session,
    Sessions,
    Wait,
)
from oxydra.errors import NoDaemonError, NotFoundError, OxydraError, UsageError
from oxydra.frames import Frame, real_call
from oxydra.gateway.access import ASK, CHAT, SCOPED, SCOPES, Need
from oxydra.gateway.answer import Answer
from oxydra.mcp.offer import Offered, Toolbox, check_cursor
from oxydra.mcp.protocol import INVALID_PARAMS, RESOURCE_NOT_FOUND, RpcError
from oxydra.mcp.server import Call, Server
from oxydra.scrub import printable
from oxydra.threads import CancelToken, Deadline
from oxydra.tui.answer import Desk, desk
from oxydra.tui.client import Locate, RefusedError
from oxydra.tui.follow import line
from oxydra.types import RECALLED, Json, ToolCall
from oxydra.version import VERSION

T = TypeVar("T")

MAX_TEXT = 8_000  # characters of one message that is read
MAX_FOLLOWED = 100  # turns that are remembered, so that they can be waited for
MAX_SCHEDULES = 500  # that are listed
PAGE = 100  # sessions in one list of resources
URI = "oxydra://session/"
MARKDOWN = "text/markdown"

REMEDY = (
    "Make one with `oxydra-runner token create NAME --scope ask`, and give it in the variable"
    " OXYDRA_TOKEN, or name a file that holds it with --token-file."
)
HOW_TO_ANSWER = (
    "The agent waits for its person's approval, which is not given here. It is asked for in the"
    " terminal UI and Telegram, and by `oxydra-runner approvals list`."
)
INSTRUCTIONS = (
    "Oxydra is this person's own agent: it has their memory, files, tools and schedules, and works"
    " on a machine of theirs. Hand it tasks and questions with `ask`; a session remembers what was"
    " said in it. What takes longer than `wait_seconds` goes on: fetch it with `ask_wait`."
)

READS = {"readOnlyHint": True, "openWorldHint": False}
ADDS = {"readOnlyHint": False, "destructiveHint": False, "openWorldHint": False}
CHANGES = {"readOnlyHint": False, "idempotentHint": True, "openWorldHint": False}
ACTS = {"readOnlyHint": False, "openWorldHint": True}


class Agent:
    """One user's agent, as a gateway's client with some token sees it."""

    def __init__(self, locate: Locate, user: str) -> None:
        self._locate = locate
        self._user = user
        self._lock = threading.Lock()
        self._turns: dict[str, tuple[str, str]] = {}  # session and prompt of each

    def scopes(self) -> Collection[str]:
        """What the token may. All scopes while no daemon runs: it is said where one is needed."""
        try:
            with self._desk() as asked:
                return asked.client.scopes
        except NoDaemonError:
            return SCOPES

    @contextmanager
    def _desk(self) -> Iterator[Desk]:
        with _refusals(), desk(self._locate, self._user) as asked:
            yield asked

    # -------------------------------------------------------------------------------------- asking

    def ask(self, args: Ask, call: Call) -> Answered:
        if args.session_id and args.agent:
            raise UsageError("A session that there is keeps its agent.", remedy="Name one of both.")
        turn = {"turn_id": uuid.uuid4().hex, "prompt": args.prompt}
        return self._follow(turn, args.session_id, call, args.wait_seconds, args.agent)

    def ask_wait(self, args: Wait, call: Call) -> Answered:
        session_id, prompt = self._known(args.turn_id)
        turn = {"turn_id": args.turn_id, "prompt": prompt}
        return self._follow(turn, session_id, call, args.wait_seconds)

    def ask_cancel(self, args: Cancel, call: Call) -> Answered:
        session_id, prompt = self._known(args.turn_id)
        turn = {"turn_id": args.turn_id, "prompt": prompt}
        stop = CancelToken()
        stop.cancel()
        return self._follow(turn, session_id, call, WAIT, stop=stop)

    def _known(self, turn_id: str) -> tuple[str, str]:
        with self._lock:
            found = self._turns.get(turn_id)
        if found is None:
            raise NotFoundError(
                "This client has asked no such thing since it was started.",
                remedy="What was answered stands in its session: session_read.",
            )
        return found

    def _follow(
        self,
        turn: Json,
        session_id: str,
        call: Call,
        seconds: float,
        agent: str = "",
        stop: CancelToken | None = None,
    ) -> Answered:
        """Send a turn and wait for its end, so many seconds."""
        heard = _Heard(call)
        until = Deadline.after(seconds)
        place = line(self._locate, self._user, session_id=session_id or None, agent=agent)
        with _refusals(), place as asked:
            end = asked.follow(turn, heard.hear, token=stop or call.token, until=until)
            session_id = str(asked.client.session_id)
        call.token.check()
        with self._lock:
            self._turns[turn["turn_id"]] = session_id, turn["prompt"]
            while len(self._turns) > MAX_FOLLOWED:
                del self._turns[next(iter(self._turns))]
        return heard.answered(session_id, turn["turn_id"], end)

    # ------------------------------------------------------------------------ sessions and memory

    def session_list(self, args: ListSessions, _call: Call) -> Sessions:
        with self._desk() as asked:
            rows = asked.sessions(archived=args.archived)
        return Sessions([_session(row) for row in rows])

    def session_read(self, args: ReadSession, _call: Call) -> Conversation:
        with self._desk() as asked:
            found = asked.history(args.session_id, args.before or None, args.limit)
        messages = [_said(event) for event in found["events"]]
        return Conversation(args.session_id, messages, found["more"])

    def session_new(self, args: NewSession, _call: Call) -> Begun:
        with self._desk() as asked:
            made = asked.create(args.name, args.agent)
        return Begun(made["session"]["session_id"], made["agent_name"])

    def memory_search(self, args: Search, _call: Call) -> Found:
        with self._desk() as asked:
            wanted = {"query": args.query, "top_k": args.limit}
            wanted |= {"since": args.since, "until": args.until}
            wanted["include_conversation"] = not args.notes_only
            found = asked.command("memory", **wanted)["found"]
        return Found([_picked(Quotation, row) for row in found])

    # ------------------------------------------------------------------------------------ schedules

    def _schedules(self, action: str, **args: object) -> Json:
        with self._desk() as asked:
            return asked.command("schedules", action=action, **args)

    def schedule_list(self, _args: ListSchedules, _call: Call) -> Schedules:
        found = self._schedules("list", limit=MAX_SCHEDULES)
        rows = [_picked(Schedule, row) for row in found["schedules"]]
        return Schedules(rows, found["total"])

    def schedule_create(self, args: CreateSchedule, _call: Call) -> Schedule:
        given = {each.name: getattr(args, each.name) for each in fields(args)}
        return _picked(Schedule, self._schedules("create", **given))

    def schedule_pause(self, args: Pause, _call: Call) -> Schedule:
        return _picked(Schedule, self._schedules("pause", schedule_id=args.schedule_id))

    def schedule_resume(self, args: Resume, _call: Call) -> Schedule:
        return _picked(Schedule, self._schedules("resume", schedule_id=args.schedule_id))

    def schedule_delete(self, args: Delete, _call: Call) -> Deleted:
        return Deleted(self._schedules("delete", schedule_id=args.schedule_id)["deleted"])

    def schedule_runs(self, args: ListRuns, _call: Call) -> Runs:
        wanted = {"schedule_id": args.schedule_id, "limit": args.limit}
        found = self._schedules("runs", **wanted)
        runs = [_picked(Run, row) for row in found["runs"]]
        return Runs(found["schedule_id"], runs, found["next_runs"])

    def schedule_output(self, args: ReadRun, _call: Call) -> RunSaid:
        return _picked(RunSaid, self._schedules("output", run_id=args.run_id))

    # ------------------------------------------------------------------------------------ resources

    def resources(self, params: Json, _call: Call) -> Json:
        """The sessions, page by page; `cursor` is how many came before."""
        cursor = params.get("cursor", "0")
        if not isinstance(cursor, str) or not cursor.isdecimal() or len(cursor) > 9:
            raise RpcError(INVALID_PARAMS, "There is no such cursor.")
        first = int(cursor)
        with self._desk() as asked:
            rows = asked.sessions()
        listed: Json = {"resources": [_resource(row) for row in rows[first : first + PAGE]]}
        if len(rows) > first + PAGE:
            listed["nextCursor"] = str(first + PAGE)
        return listed

    def templates(self, params: Json, _call: Call) -> Json:
        check_cursor(params)
        template = {"uriTemplate": URI + "{session_id}", "name": "session", "mimeType": MARKDOWN}
        described = {"title": "A conversation", "description": "All that was said in a session."}
        return {"resourceTemplates": [{**template, **described}]}

    def resource(self, params: Json, _call: Call) -> Json:
        uri = params.get("uri")
        if not isinstance(uri, str):
            raise RpcError(INVALID_PARAMS, "`uri` is a string.")
        session_id = uri.removeprefix(URI)
        try:
            if session_id in ("", uri):
                raise NotFoundError("No resource has this URI.")
            with self._desk() as asked:
                text = printable(asked.command("export", session_id=session_id)["text"])
        except OxydraError as error:
            if error.code != NotFoundError.code:
                raise
            raise RpcError(RESOURCE_NOT_FOUND, str(error), data={"uri": uri}) from None
        return {"contents": [{"uri": uri, "mimeType": MARKDOWN, "text": text}]}


class _Heard:
    """What is heard of a turn, passed on as progress."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._answer = Answer(lambda text: call.progress(printable(text)))
        self._waits: dict[str, Approval] = {}

    def hear(self, frame: Frame) -> None:
        said = frame.payload
        match frame.type:
            case "turn_started" if said["turn"]["state"] == "queued":
                self._call.progress("It waits until the agent has time.")
            case "assistant_delta":
                self._answer.delta(said["delta"])
            case "turn_progress":
                self._answer.progress(said)
                self._call.progress(printable(said["progress"]["message"]))
            case "approval_request":
                self._waits[said["approval_id"]] = _picked(Approval, said)
                self._call.progress(f"{printable(said['tool'])}: {HOW_TO_ANSWER}")
            case "approval_resolved":
                self._waits.pop(said["approval_id"], None)
                self._call.progress(printable(f"{said['tool']} was {said['decision']}."))

    def answered(self, session_id: str, turn_id: str, end: Frame | None) -> Answered:
        """Raises `OxydraError` for a turn that failed."""
        if end is None:
            waits = list(self._waits.values())
            return Answered(session_id, turn_id, "running", "", waits)
        if end.type == "error":
            where = f"It stands in the session {session_id}."
            raise OxydraError(printable(end.payload["message"]), remedy=where)
        if end.type == "turn_cancelled":
            return Answered(session_id, turn_id, "cancelled", "", [])
        response = end.payload["response"]
        answer, usage = printable(response["message"]["content"]), response.get("usage") or {}
        return Answered(session_id, turn_id, "completed", answer, [], usage.get("cost_usd"))


def _texts(given: Answered) -> list[str]:
    """For clients that read no structured content: the answer, and how to go on."""
    place = f"session_id: {given.session_id}\nturn_id: {given.turn_id}\nstate: {given.state}"
    if given.state == "completed":
        return [given.answer, place]
    if given.state == "cancelled":
        return ["It was cancelled.", place]
    waits = [f"{one.tool}: {one.reason} ({one.approval_id})" for one in given.waits_for]
    said = [HOW_TO_ANSWER, *waits] if waits else ["The agent is still at it."]
    return ["\n".join([*said, "ask_wait waits on, ask_cancel stops it."]), place]


# --------------------------------------------------------------------------------------- the offer


def server(locate: Locate, user: str) -> Server:
    """What serves one MCP client. `locate` gives the endpoint, and the client's token."""
    agent = Agent(locate, user)
    return Server(
        {"name": "oxydra", "title": "Oxydra", "version": VERSION},
        {"tools": {}, "resources": {}},
        {
            **Toolbox(_tools(agent), agent.scopes).methods(),
            "resources/list": agent.resources,
            "resources/templates/list": agent.templates,
            "resources/read": agent.resource,
        },
        INSTRUCTIONS,
    )


def _tools(agent: Agent) -> list[Offered]:
    def tool(title: str, takes: type, run: Runner, gives: type, need: Need, hints: Json) -> Offered:
        texts = _texts if gives is Answered else None
        return Offered(run.__name__, title, takes, gives, run, need, hints, texts)

    return [
        tool("Ask the agent", Ask, agent.ask, Answered, ASK, ACTS),
        tool("Wait for its answer", Wait, agent.ask_wait, Answered, ASK, READS),
        tool("Stop the agent", Cancel, agent.ask_cancel, Answered, ASK, CHANGES),
        tool("List sessions", ListSessions, agent.session_list, Sessions, SCOPED, READS),
        tool("Read a session", ReadSession, agent.session_read, Conversation, SCOPED, READS),
        tool("Begin a session", NewSession, agent.session_new, Begun, ASK, ADDS),
        tool("Search memory", Search, agent.memory_search, Found, ASK, READS),
        tool("List schedules", ListSchedules, agent.schedule_list, Schedules, ASK, READS),
        tool("Create a schedule", CreateSchedule, agent.schedule_create, Schedule, ASK, ADDS),
        tool("List a schedule's runs", ListRuns, agent.schedule_runs, Runs, ASK, READS),
        tool("Read what a run said", ReadRun, agent.schedule_output, RunSaid, ASK, READS),
        tool("Pause a schedule", Pause, agent.schedule_pause, Schedule, CHAT, CHANGES),
        tool("Resume a schedule", Resume, agent.schedule_resume, Schedule, CHAT, CHANGES),
        tool("Delete a schedule", Delete, agent.schedule_delete, Deleted, CHAT, CHANGES),
    ]


Runner = Callable[[Any, Call], Any]


# --------------------------------------------------------------------------------------- helpers


@contextmanager
def _refusals() -> Iterator[None]:
    """A token that is not valid any more is said to be so."""
    try:
        yield
    except RefusedError as error:
        if error.code != RefusedError.code:
            raise
        raise RefusedError("The daemon does not know this client's token.", remedy=REMEDY) from None


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    return [_shown(item) for item in value] if isinstance(value, list) else value


def _picked(kind: type[T], row: Json) -> T:
    """What is in a row of what it has; a field that is not there is as `kind` has it."""
    names = [each.name for each in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: _shown(row[name]) for name in names if row.get(name) is not None})


def _session(row: Json) -> Session:
    name = " ".join((row["display_name"] or row["title"]).split())
    named = {"name": name, "agent": row["agent_name"], "origin": row["channel_origin"]}
    return _picked(Session, {**row, **named})


def _resource(row: Json) -> Json:
    session = _session(row)
    return {
        "uri": URI + session.session_id,
        "name": session.session_id,
        "title": session.name or session.session_id,
        "mimeType": MARKDOWN,
        "annotations": {"lastModified": session.last_active_at},
    }


def _said(event: Json) -> Said:
    message = event["message"]
    text = printable(message["content"])
    return Said(
        number=event["sequence"],
        role="recalled" if event["turn_id"].startswith(RECALLED) else message["role"],
        text=text[:MAX_TEXT],
        time=event["created_at"],
        from_strangers=bool(message.get("tainted")),
        cut=len(text) > MAX_TEXT,
        called=[
            printable(real_call(ToolCall(call["id"], call["name"], call["arguments"])).name)
            for call in message.get("tool_calls", ())
        ],
    )
