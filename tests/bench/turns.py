"""What long turns, long sessions and cancels cost: the real daemon, and the load server behind it.

As in `measures`, each function returns figures by name.
"""

from __future__ import annotations

from time import monotonic_ns

from oxydra.store import Store
from oxydra.types import CallState, Message, ToolCall, TurnState
from tests.bench import proc
from tests.bench.daemon import Daemon, LoadServer, new_daemon
from tests.bench.measures import LONG, PROMPTS, Figures, with_client

SESSION_TURNS = 1000  # of the session that is resumed, each with a call
TRIES = 5  # of a cancel in each phase

SPEAKS = "[[load n=100000 delay_ms=20]]"
GOAL = SPEAKS.replace("[", "\\u005b").replace("]", "\\u005d").replace(" ", "\\u0020")
DELEGATE = f'args={{"agent":"helper","goal":"{GOAL}"}}'
SLEEP = 'args={"command":"sleep\\u00201000"}'
WRITE = 'args={"path":"/shared/x","content":"x"}'
PHASES = {  # the message, and what a frame holds once the phase is reached
    "provider": (SPEAKS, '"assistant_delta"'),
    "tool": (f"[[load chain=1 tool=shell_exec {SLEEP}]]", '"state":"started"'),
    "retry": ("[[load fail=503]]", '"kind":"retry"'),
    "approval": (f"[[load chain=1 tool=file_write {WRITE}]]", '"approval_request"'),
    "agent": (
        f"[[load chain=1 tool=delegate_to_agent {DELEGATE}]]",
        '"of":"provider_call"',
    ),
}
AGENT = """
[agents.helper]

[reliability]
backoff_base_ms = 60000
backoff_max_ms = 60000
"""
RUNNER = """
[[approvals.rules]]
decision = "ask"
tool = "file_write"

[[approvals.rules]]
decision = "allow"
tool = "shell_exec"
"""


def long_chain(daemon: Daemon, server: LoadServer, runs: int) -> Figures:
    """One turn of `LONG` calls: CPU of each, and how much of each request the one before it
    began with already (median and least).
    """
    cpu, shares = [], []
    for _ in range(runs):
        server.reset()
        before = proc.cpu_ms(daemon.guest)
        with_client(daemon, PROMPTS["long"])
        cpu.append((proc.cpu_ms(daemon.guest) - before) / LONG)
        log = server.log()
        if len(log) != LONG + 1:
            raise RuntimeError(f"a chain of {LONG} calls made {len(log)} requests")
        shares += [100 * row["prefix_bytes"] / row["body_bytes"] for row in log[1:]]
    return {
        "long_cpu_ms": proc.median(cpu),
        "prefix_share": proc.median(shares),
        "prefix_least": min(shares),
    }


def resume(daemon: Daemon, server: LoadServer, runs: int) -> Figures:
    """From a client's connecting to a session, in a daemon that has just started, to the first
    byte of the model call that answers its message.
    """
    times, cpu = [], []
    for _ in range(runs):
        daemon.stop()
        session = long_session(daemon)  # each time another: a summary shortens the next resumption
        daemon.start()
        server.reset()
        before, began = proc.cpu_ms(daemon.guest), monotonic_ns()
        person = daemon.connect(session)
        person.turn(PROMPTS["turn"])
        cpu.append(proc.cpu_ms(daemon.guest) - before)
        times.append((server.log()[-1]["in_ns"] - began) / 1e6)  # the first is a summary's
        person.close()
    return {"resume_ms": proc.median(times), "resume_cpu_ms": proc.median(cpu)}


def long_session(daemon: Daemon) -> str:
    """Write a session into the database of a daemon that does not run; returns its id."""
    store = Store(daemon.workspace / "internal" / "oxydra.db")
    try:
        session = store.create_session().session_id
        for number in range(SESSION_TURNS):
            turn, _ = store.accept_turn(
                session, f"{session}-{number}", "r", f"Question {number}. " * 10
            )
            store.start_turn(turn)
            call = ToolCall(f"call-{number}", "file_read", '{"path":"/shared/notes-0.md"}')
            store.add_step(turn, Message("assistant", tool_calls=(call,)))
            result = Message("tool", "A note.\n" * 50, tool_call_id=call.id, name=call.name)
            store.calls_finished(turn, [(CallState.DONE, result)])
            answer = Message("assistant", f"Answer {number}. " * 30)
            terminal = {"type": "turn_completed", "payload": {}}
            store.finish_turn(turn, TurnState.COMPLETED, terminal, answer)
        return session
    finally:
        store.close()


def cancels(server: LoadServer, runs: int) -> Figures:
    """From a client's `cancel_active_turn` to the frame that ends the turn, in each phase."""
    with new_daemon(server.base_url) as daemon:
        for name, text in {"agent.toml": AGENT, "runner.toml": RUNNER}.items():
            with (daemon.config.parent / name).open("a") as file:
                file.write(text)
        daemon.environment["OXYDRA__TOOLS__SHELL__ALLOW"] = "*"
        daemon.start()
        person = daemon.connect()
        figures = {}
        for phase, (prompt, when) in PHASES.items():
            tries = [person.cancelled(prompt, when) for _ in range(TRIES * runs)]
            figures[f"turn_cancel_{phase}_ms"] = max(tries)
        person.close()
    return figures
