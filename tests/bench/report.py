"""The table: each figure beside the floor's, their ratio, the goal, and how it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tests.bench.many import CLIENTS, FOLLOWERS, GAP_MS, IDLE, SESSIONS
from tests.bench.measures import (
    BURST,
    CHAIN,
    LONG,
    MANY_SECONDS,
    PACED,
    PEOPLE,
    REST_SECONDS,
    TURNS,
)
from tests.bench.search import SEARCHES
from tests.bench.tools import CALLS, COMMANDS
from tests.bench.turns import SESSION_TURNS, TRIES


@dataclass(frozen=True, slots=True)
class Row:
    """A figure by its name. `goal` is what it must stay below, or above where it is
    negative; None where there is none.
    """

    name: str
    label: str
    unit: str
    goal: float | None = None
    digits: int = 1


@dataclass(frozen=True, slots=True)
class Group:
    """Figures that one method yields."""

    title: str
    method: str
    rows: tuple[Row, ...]


GROUPS = (
    Group(
        "Start",
        "from the start of `oxydra-runner start --detach` to the first 200 of /readyz, asked for "
        "as soon as the port is bound",
        (Row("ready_s", "start to ready", "s", 0.6, 2),),
    ),
    Group(
        "Rest",
        f"/proc/PID/status and stat over {REST_SECONDS:g} s, 2 s after a start (1 MB is 2**20 "
        "bytes; CPU comes in steps of 10 ms, so wake-ups are shown too); the last one after all "
        "else",
        (
            Row("rest_rss_mb", "guest RSS", "MB", 50),
            Row("rest_cpu_ms", "guest CPU in 5 s", "ms", 1, 0),
            Row("rest_wakeups", "guest wake-ups in 5 s", "", None, 0),
            Row("rest_runner_rss_mb", "runner RSS", "MB"),
            Row("rest_runner_cpu_ms", "runner CPU in 5 s", "ms", None, 0),
            Row("rest_runner_wakeups", "runner wake-ups in 5 s", "", None, 0),
            Row("used_rss_mb", "guest RSS after the crowd", "MB"),
        ),
    ),
    Group(
        "A turn",
        f"{TURNS} turns with an answer of one delta, one after another in one session; nothing is "
        "subtracted. Message to request: from before the client's send to the first byte of the "
        "model call. Bytes are the body's",
        (
            Row("turn_cpu_ms", "guest CPU a turn", "ms", 10),
            Row("request_out_ms", "message in to request out", "ms", 10),
            Row("first_request_bytes", "first request", "bytes", 12_000, 0),
            Row("first_request_tools", "tools in it", "", None, 0),
        ),
    ),
    Group(
        f"The loop, {CHAIN} calls",
        f"one turn in which the model calls file_list {CHAIN} times, one call an answer. Wall: "
        "from the last byte of an answer to the first of the next request, with tool, journal and "
        "history",
        (
            Row("trip_cpu_ms", "guest CPU a round trip", "ms", 4, 2),
            Row("trip_beyond_ms", "of it beyond the floor's", "ms", 4, 2),
            Row("trip_first_ms", "wall, first 5 calls", "ms", None, 2),
            Row("trip_last_ms", "wall, last 5 calls", "ms", None, 2),
        ),
    ),
    Group(
        f"The loop, {LONG} calls",
        f"the same with {LONG} calls. Repeated: how much of a request's body is the beginning of "
        "the request before it",
        (
            Row("long_cpu_ms", "guest CPU a round trip", "ms", None, 2),
            Row("long_beyond_ms", "of it beyond the floor's", "ms", 4, 2),
            Row("prefix_share", "repeated, median of all requests", "%", -90),
            Row("prefix_least", "repeated, least of all requests", "%"),
        ),
    ),
    Group(
        "A long session",
        f"{SESSION_TURNS} turns, each with a tool call, in a daemon that has just started: from a "
        "client's connecting to the first byte of the model call for its message; CPU until the "
        "answer",
        (
            Row("resume_ms", "resumed after", "ms", 200),
            Row("resume_cpu_ms", "guest CPU", "ms", None, 0),
        ),
    ),
    Group(
        "10,000 schedules",
        "the store and the scheduler in a process of their own, on disk; daily schedules in five "
        "zones, none due soon. A look: all that the scheduler does each time it wakes, where "
        "nothing is due. A start finds each next time anew. Rest: 5 s with its thread running; it "
        "wakes when something is due, at the latest after `poll_interval_secs`",
        (
            Row("schedules_next_ms", "the next due time found", "ms", 1, 3),
            Row("schedules_look_ms", "a look at all", "ms", None, 3),
            Row("schedules_start_ms", "a start, CPU", "ms", None, 0),
            Row("schedules_rest_cpu_ms", "CPU in 5 s of rest", "ms", 1, 1),
            Row("schedules_rest_wakeups", "wake-ups in 5 s of rest", "", None, 0),
        ),
    ),
    Group(
        "Cancels",
        "from a client's cancel to the frame that ends the turn, the slowest of "
        f"{TRIES} tries in each run; wall",
        (
            Row("turn_cancel_provider_ms", "while the model speaks", "ms", 100),
            Row("turn_cancel_tool_ms", "while a command runs", "ms", 100),
            Row("turn_cancel_retry_ms", "in the pause before a repetition", "ms", 100),
            Row("turn_cancel_approval_ms", "while an approval is waited for", "ms", 100),
            Row("turn_cancel_agent_ms", "while another agent works", "ms", 100),
        ),
    ),
    Group(
        "Tools",
        "the gate and the shell guest in a process of their own, on disk. The gate: the thread's "
        f"CPU for the intent and for the gate's whole way of a call that does nothing and says 20 "
        f"lines, medians of turns of {CALLS} calls; look-up, validation, rules, three keys to "
        f"scrub, and two commits (three where a call must start at most once). The shell: "
        f"{COMMANDS} commands one after another, from the request to its result, at the best "
        f"level there is. In a turn: as the loop, {CHAIN} calls of shell_exec",
        (
            Row("gate_read_cpu_ms", "the gate, CPU of a read-only call", "ms", 1, 2),
            Row("gate_act_cpu_ms", "the gate, CPU of one with side effects", "ms", 1, 2),
            Row("shell_builtin_ms", "shell, a builtin", "ms", 10, 2),
            Row("shell_ls_ms", "shell, ls", "ms", 10, 2),
            Row("shell_builtin_trip_ms", "in a turn, a builtin", "ms", 10, 2),
            Row("shell_ls_trip_ms", "in a turn, ls", "ms", 10, 2),
        ),
    ),
    Group(
        "Streaming",
        f"one answer of {BURST} deltas as fast as they go, and one of {PACED} deltas 2 ms apart, "
        "each of which wakes whoever reads it; one client listens",
        (
            Row("burst_cpu_ms", "guest CPU per 1,000 deltas", "ms", 25),
            Row("paced_cpu_ms", "the same, 2 ms apart", "ms"),
        ),
    ),
    Group(
        "A provider by itself",
        "the OpenAI wire in a process of its own, without a daemon. First delta: from its stamp in "
        "the model server to its being yielded. Cancel: from the cancel to the stream's end, the "
        "slowest of 5 tries in each phase",
        (
            Row("wire_burst_cpu_s", "CPU per 10,000 deltas", "s", 0.25, 2),
            Row("wire_first_ms", "first delta forwarded, p50", "ms", 1, 2),
            Row("cancel_resolve_ms", "cancel while resolving", "ms", 20),
            Row("cancel_connect_ms", "cancel while connecting", "ms", 20),
            Row("cancel_headers_ms", "cancel while waiting for headers", "ms", 20),
            Row("cancel_stream_ms", "cancel mid-stream", "ms", 20),
            Row("cancel_retry_ms", "cancel in a retry's pause", "ms", 20),
        ),
    ),
    Group(
        "Sandbox and library",
        "a shell guest, from its start to the answer of its first command; an agent in a program, "
        "from `Agent.open` to its return; medians of 7, in a process of their own",
        (
            Row("sandbox_bwrap_ms", "shell guest, bwrap and cage", "ms", None, 0),
            Row("sandbox_cage_ms", "shell guest, cage", "ms", None, 0),
            Row("library_open_ms", "Agent.open", "ms", None, 0),
        ),
    ),
    Group(
        "Ten users of one host",
        "`start --all`, then two turns of each, a command and a note; 15 s later PSS of all "
        "processes that descend from the ten runners, with the vectors of each user's memory",
        (
            Row("users_start_s", "all ready after", "s", None, 2),
            Row("users_rest_mb", "memory at rest", "MB", None, 0),
            Row("users_pss_mb", "memory after the turns", "MB", 4096, 0),
            Row("users_processes", "processes", "", None, 0),
        ),
    ),
    Group(
        "The container tier",
        "start and commands as above, with both guests in containers on a local engine, images "
        "built; left out where there is no engine",
        (
            Row("container_ready_s", "start to ready", "s", 3, 2),
            Row("container_builtin_trip_ms", "in a turn, a builtin", "ms", None, 2),
        ),
    ),
    Group(
        "The microVM tier",
        "`start --detach`, then `ask`, templates there, in a home of its own; medians of 7 after "
        "one that is not counted. Memory is PSS after 35 more questions, without what is read of a "
        "machine's template; left out where there is no QEMU",
        (
            Row("microvm_ready_s", "start to ready", "s", None, 2),
            Row("microvm_answer_s", "start to the first answer", "s", 2, 2),
            Row("microvm_agent_mb", "an agent's memory beyond its template", "MB", 120, 0),
            Row("microvm_shell_mb", "a shell's", "MB", 120, 0),
        ),
    ),
    Group(
        "The broker",
        "a guest's process and a broker's, and the model server: one small answer on a kept "
        "connection, direct and through the broker by turns; then 200 streams at once, 100 deltas "
        "each, 20 ms apart",
        (
            Row("egress_direct_ms", "a small answer, direct, p50", "ms", None, 2),
            Row("egress_brokered_ms", "the same through the broker, p50", "ms", None, 2),
            Row("egress_added_ms", "what the broker adds", "ms", 1.5, 2),
            Row("egress_lag_p50_ms", "200 streams: delta lag p50", "ms", None, 1),
            Row("egress_lag_p99_ms", "200 streams: delta lag p99", "ms", 150, 1),
        ),
    ),
    Group(
        "The terminal UI",
        "a process on a pseudo-terminal of 100 by 40, with a scripted gateway; a figure ends when "
        "the bytes that show it have come out. Open: /switch to a session of 5,000 messages, its "
        "newest shown as Markdown. Rest: 5 s after that. Then PageUp, held to the oldest message, "
        "which draws 28 times a second at most; with all 5,000 in memory 150 keys, 40 ms apart, "
        "while 200 deltas a second stream",
        (
            Row("tui_open_ms", "a session of 5,000 messages opens", "ms", 300),
            Row("tui_rest_cpu_ms", "CPU in 5 s of rest", "ms", 1, 0),
            Row("tui_rest_wakeups", "wake-ups in 5 s of rest", "", None, 0),
            Row("tui_page_ms", "PageUp, held, p95", "ms"),
            Row("tui_key_p50_ms", "key to screen, p50", "ms"),
            Row("tui_key_p95_ms", "key to screen, p95", "ms", 30),
            Row("tui_draws", "most draws in a second", "", 31, 0),
            Row("tui_stream_cpu", "CPU while it streams", "%"),
            Row("tui_rss_mb", "RSS with 5,000 messages", "MB"),
        ),
    ),
    Group(
        "Memory",
        "databases of 1,000, 10,000 and 100,000 messages of 8 to 40 made-up words by Zipf's law, "
        f"each searched by a process of its own for {SEARCHES} times eight such words, by words "
        "and vectors; the first search loads the backend. Indexed: chunks and words, and then "
        "their vectors. Save: a note, while all of the largest is made anew",
        (
            Row("search_ms_1k", "search, p50, 1,000 chunks", "ms", 3, 1),
            Row("search_cpu_ms_1k", "of it CPU", "ms"),
            Row("search_ms_10k", "10,000 chunks", "ms", 8, 1),
            Row("search_cpu_ms_10k", "of it CPU", "ms"),
            Row("search_ms_100k", "100,000 chunks", "ms", 20, 1),
            Row("search_cpu_ms_100k", "of it CPU", "ms"),
            Row("first_search_ms_100k", "the first of a process, 100,000 chunks", "ms", None, 0),
            Row("search_rss_mb_100k", "RSS that searching 100,000 adds", "MB", 150),
            Row("open_ms_100k", "100,000 chunks open", "ms", 300),
            Row("index_per_s", "chunks indexed a second", "", -2000, 0),
            Row("embed_per_s", "chunks embedded a second", "", None, 0),
            Row("save_ms", "a save is acknowledged while all is made anew, p50", "ms", 10),
        ),
    ),
    Group(
        "Commands",
        "user and system time of the process; the bytecode is there already. Import: everything an "
        "agent guest imports, and for the floor its two packages",
        (
            Row("help_cpu_s", "oxydra-runner --help, CPU", "s", 0.15, 3),
            Row("python_cpu_s", "Python alone, for comparison", "s", None, 3),
            Row("import_cpu_ms", "import, CPU", "ms", 300, 0),
            Row("import_rss_mb", "import, RSS", "MB", 50),
        ),
    ),
    Group(
        f"A crowd of {PEOPLE}",
        f"{PEOPLE} sessions, each with a connection, send at once; each answer has 200 deltas 20 "
        "ms apart (ideal 4.0 s). Lag: from the delta's stamp in the model server to its frame "
        "in the client. The floor: a thread each, without a daemon between",
        (
            Row("crowd_s", "first message to last answer", "s", 4.3, 2),
            Row("crowd_lag_p50_ms", "delta lag p50", "ms"),
            Row("crowd_lag_p99_ms", "delta lag p99", "ms", 60),
            Row("crowd_cpu_ms", "guest CPU", "ms", None, 0),
        ),
    ),
    Group(
        f"{PEOPLE} clients of the OpenAI-compatible door",
        f"{PEOPLE} connections, each for a `user` whose session is there already, ask for a "
        "stream at once; each answer has 200 deltas 20 ms apart (ideal 4.0 s). Lag: from the "
        "delta's stamp in the model server to its event in the client. The runner's CPU is the "
        "broker's",
        (
            Row("door_s", "first request to last answer", "s", 4.4, 2),
            Row("door_new_s", "the same, the sessions being new (once)", "s", 4.4, 2),
            Row("door_lag_p50_ms", "delta lag p50", "ms"),
            Row("door_lag_p99_ms", "delta lag p99", "ms", 100),
            Row("door_cpu_ms", "guest CPU", "ms", None, 0),
            Row("door_runner_cpu_ms", "runner CPU", "ms", None, 0),
        ),
    ),
    Group(
        "Many clients",
        f"in a daemon that has just started. {IDLE:,} idle connections: the guest's RSS above what "
        "it was without them. Streams: "
        f"{CLIENTS:,} connections, of which {FOLLOWERS} follow each of {SESSIONS} sessions that "
        f"stream a delta every {GAP_MS} ms for {MANY_SECONDS:g} s, and three that do harm: one "
        "reads nothing until the end, one answers no ping, one sends a byte a second. Each "
        "client's text is compared "
        "with the stored one, the numbers of its frames are checked. Lag: of every delta, from its "
        "stamp in the model server to its arrival in the client's process, which only receives "
        "meanwhile. RSS is looked at every second",
        (
            Row("idle_rss_mb", f"{IDLE:,} idle connections: guest RSS", "MB", 60),
            Row("many_deltas", "deltas received, none lost or out of order", "", None, 0),
            Row("many_frames", "in frames", "", None, 0),
            Row("many_lag_p50_ms", "delta lag p50", "ms"),
            Row("many_lag_p99_ms", "delta lag p99", "ms", 150),
            Row("many_lag_max_ms", "delta lag, the most", "ms"),
            Row("many_rss_mb", "guest RSS, the most", "MB", 150),
            Row("many_cpu_share", "guest CPU, of one core", "%", None, 0),
        ),
    ),
)


def table(ours: Mapping[str, float], floor: Mapping[str, float]) -> str:
    """The figures there are, in Markdown."""
    lines = ["| | Oxydra | floor | ratio | goal |", "|---|--:|--:|--:|--:|"]
    for group in GROUPS:
        rows = [row for row in group.rows if row.name in ours]
        if rows:
            lines.append(f"| **{group.title}** | | | | |")
        for row in rows:
            cells = (row.label, _value(ours, row), _value(floor, row), _ratio(ours, floor, row))
            lines.append(f"| {' | '.join(cells)} | {_goal(ours[row.name], row)} |")
    return "\n".join(lines)


def _value(figures: Mapping[str, float], row: Row) -> str:
    if row.name not in figures:
        return ""
    return f"{figures[row.name]:,.{row.digits}f} {row.unit}".strip()


def _ratio(ours: Mapping[str, float], floor: Mapping[str, float], row: Row) -> str:
    if not floor.get(row.name):
        return ""
    return f"{ours[row.name] / floor[row.name]:.1f}"


def _goal(value: float, row: Row) -> str:
    if row.goal is None:
        return ""
    sign = "<" if row.goal > 0 else ">"
    met = value < row.goal if row.goal > 0 else value > -row.goal
    return f"{sign} {abs(row.goal):,g} {row.unit}".strip() + ("" if met else " **missed**")
