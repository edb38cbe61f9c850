"""What is measured and how: one function for each group of figures.

Each takes what it needs and returns figures by name, as the median over its runs. CPU is user and
system time of the process in question, from /proc or, for a command, from wait4; the load server
and the clients are other processes, whose CPU is in no figure.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import pytest

from tests.bench import client, proc
from tests.bench.daemon import ROOT, Daemon, LoadServer, new_daemon
from tests.conftest import docker_missing
from tests.docker_images import agent_image, shell_image

Figures = dict[str, float]

TURNS = 40  # short turns in a run
CHAIN = 50  # tool calls in a turn
LONG = 500  # the same, in a long one
BURST = 5000  # deltas without a pause
PACED = 1000  # deltas 2 ms apart
MANY_SECONDS = 60.0  # that a thousand clients are streamed to
PEOPLE = 50  # sessions in the crowd
CROWD_DELTAS = 200  # that each of them gets
REST_SECONDS = 5.0
SETTLE_SECONDS = 2.0  # after which the warm-up of a fresh guest is over

PROMPTS = {
    "turn": "Say one word. [[load n=1 tag=TAG]]",
    "chain": f'Look {CHAIN} times. [[load chain={CHAIN} tool=file_list args={{"path":"/shared"}} '
    "tag=TAG]]",
    "long": f'Look {LONG} times. [[load chain={LONG} tool=file_list args={{"path":"/shared"}}]]',
    "shell": f"Run it {CHAIN} times. [[load chain={CHAIN} tool=shell_exec "
    'args={"command":"COMMAND"}]]',
    "burst": f"Say much. [[load n={BURST}]]",
    "paced": f"Say much, slowly. [[load n={PACED} delay_ms=2]]",
    "crowd": f"Talk. [[load n={CROWD_DELTAS} delay_ms=20 stamp=1]]",
}
GUEST = "import oxydra.vm, oxydra.providers.openai, oxydra.transport.line, oxydra.tools.registry"
IMPORTS = (
    "import time; {}; cpu = time.process_time(); from tests.bench import proc; "
    "print(cpu, proc.rss_mb(proc.os.getpid()))"
)


def start(daemon: Daemon, runs: int) -> Figures:
    """Start to ready, after one start that is not counted; leaves the daemon running."""
    seconds = []
    for number in range(runs + 1):
        if number:
            daemon.stop()
        seconds.append(daemon.start())
    daemon.fill_shared()
    return {"ready_s": proc.median(seconds[1:] or seconds)}


def rest(daemon: Daemon) -> Figures:
    """A daemon that has just started and that nobody uses."""
    time.sleep(SETTLE_SECONDS)
    before = [(proc.cpu_ms(pid), proc.wakeups(pid)) for pid in (daemon.guest, daemon.runner)]
    time.sleep(REST_SECONDS)
    after = [(proc.cpu_ms(pid), proc.wakeups(pid)) for pid in (daemon.guest, daemon.runner)]
    return {
        "rest_rss_mb": proc.rss_mb(daemon.guest),
        "rest_cpu_ms": after[0][0] - before[0][0],
        "rest_wakeups": after[0][1] - before[0][1],
        "rest_runner_rss_mb": proc.rss_mb(daemon.runner),
        "rest_runner_cpu_ms": after[1][0] - before[1][0],
        "rest_runner_wakeups": after[1][1] - before[1][1],
    }


def first_request(daemon: Daemon, server: LoadServer) -> Figures:
    """The body of a new session's first model call, and how much of it the tools are."""
    server.reset()
    with_client(daemon, "Say one word. [[load n=1]]")
    first = server.log()[0]
    return {"first_request_bytes": first["body_bytes"], "first_request_tools": first["tools"]}


def with_client(daemon: Daemon, prompt: str) -> client.Answer:
    person = daemon.connect()
    try:
        return person.turn(prompt)
    finally:
        person.close()


def turns(daemon: Daemon, server: LoadServer, runs: int) -> Figures:
    """Short turns one after another in one session: one delta each, so that little but the turn
    itself is measured. From the message's send to the first byte of its model call.
    """
    cpu, delays = [], []
    for run in range(runs):
        person = daemon.connect()
        person.turn(PROMPTS["turn"])
        server.reset()
        before = proc.cpu_ms(daemon.guest)
        answers = [
            person.turn(PROMPTS["turn"].replace("TAG", f"{run}-{number}"))
            for number in range(TURNS)
        ]
        cpu.append((proc.cpu_ms(daemon.guest) - before) / TURNS)
        arrived = {row["tag"]: row["in_ns"] for row in server.log()}
        delays += [
            (arrived[f"{run}-{number}"] - answer.sent_ns) / 1e6
            for number, answer in enumerate(answers)
        ]
        person.close()
    return {"turn_cpu_ms": proc.median(cpu), "request_out_ms": proc.median(delays)}


def chain(daemon: Daemon, server: LoadServer, runs: int) -> Figures:
    """One turn of many tool calls in a new session: CPU for each, and the time from the last byte
    of an answer to the first of the next request, for the first five and the last five.
    """
    cpu, first, last = [], [], []
    for _ in range(runs):
        server.reset()
        person = daemon.connect()
        before = proc.cpu_ms(daemon.guest)
        person.turn(PROMPTS["chain"])
        cpu.append((proc.cpu_ms(daemon.guest) - before) / CHAIN)
        person.close()
        gaps = round_trips(server.log())
        first.append(proc.median(gaps[:5]))
        last.append(proc.median(gaps[-5:]))
    return {
        "trip_cpu_ms": proc.median(cpu),
        "trip_first_ms": proc.median(first),
        "trip_last_ms": proc.median(last),
    }


def round_trips(log: list[dict[str, Any]]) -> list[float]:
    """Milliseconds between the answers and the requests of one chain."""
    if len(log) != CHAIN + 1:
        raise RuntimeError(f"a chain of {CHAIN} calls made {len(log)} requests")
    return [(after["in_ns"] - before["out_ns"]) / 1e6 for before, after in itertools.pairwise(log)]


def tools(daemon: Daemon, server: LoadServer, runs: int) -> Figures:
    """The gate and the shell by themselves, by `tests/bench/tools.py`; then turns of many commands,
    from the last byte of an answer to the first of the next request.
    """
    figures = alone("tests.bench.tools", str(runs))
    for name, command in {"builtin": "pwd", "ls": "ls"}.items():
        figures[f"shell_{name}_trip_ms"] = commands_in_a_turn(daemon, server, runs, command)
    return figures


def commands_in_a_turn(daemon: Daemon, server: LoadServer, runs: int, command: str) -> float:
    """Milliseconds from the last byte of an answer to the first of the next request."""
    trips = []
    for _ in range(runs):
        server.reset()
        with_client(daemon, PROMPTS["shell"].replace("COMMAND", command))
        trips.append(proc.median(round_trips(server.log())))
    return proc.median(trips)


def container(server: LoadServer, runs: int) -> Figures:
    """Start and commands in the container tier; nothing where no engine or image is to be had."""
    if why := docker_missing():
        print(f"container: {why}", file=sys.stderr)
        return {}
    try:
        images = (agent_image(), shell_image())
    except pytest.skip.Exception as skipped:
        print(f"container: {skipped}", file=sys.stderr)
        return {}
    with new_daemon(server.base_url, images) as daemon:
        figures = {"container_ready_s": start(daemon, runs)["ready_s"]}
        figures["container_builtin_trip_ms"] = commands_in_a_turn(daemon, server, runs, "pwd")
    return figures


def deltas(daemon: Daemon, runs: int) -> Figures:
    """One long answer in a new session, once as fast as it goes and once at the pace of a model."""
    figures = {}
    for name, count in (("burst", BURST), ("paced", PACED)):
        cpu = []
        for _ in range(runs):
            before = proc.cpu_ms(daemon.guest)
            answer = with_client(daemon, PROMPTS[name])
            cpu.append((proc.cpu_ms(daemon.guest) - before) * 1000 / count)
            if answer.deltas < 1:
                raise RuntimeError("an answer came without a delta")
        figures[f"{name}_cpu_ms"] = proc.median(cpu)
    return figures


def crowd(daemon: Daemon, runs: int) -> Figures:
    """Everybody at once, each with a session and a connection."""
    seconds, half, most, cpu = [], [], [], []
    for _ in range(runs):
        people = [daemon.connect() for _ in range(PEOPLE)]
        before = proc.cpu_ms(daemon.guest)
        result = client.crowd(people, PROMPTS["crowd"])
        cpu.append(proc.cpu_ms(daemon.guest) - before)
        for person in people:
            person.close()
        seconds.append(result.seconds)
        half.append(proc.percentile(result.lags, 0.5))
        most.append(proc.percentile(result.lags, 0.99))
    return {
        "crowd_s": proc.median(seconds),
        "crowd_lag_p50_ms": proc.median(half),
        "crowd_lag_p99_ms": proc.median(most),
        "crowd_cpu_ms": proc.median(cpu),
        "used_rss_mb": proc.rss_mb(daemon.guest),
    }


def door(daemon: Daemon, runs: int) -> Figures:
    """The same crowd through the OpenAI-compatible door: in sessions that are there already, and
    once in new ones.
    """
    seconds, half, most, cpu, runner = [], [], [], [], []
    users = [f"person {number}" for number in range(PEOPLE)]
    client.door_crowd(*daemon.door(), users, PROMPTS["turn"])
    for _ in range(runs):
        before = proc.cpu_ms(daemon.guest), proc.cpu_ms(daemon.runner)
        result = client.door_crowd(*daemon.door(), users, PROMPTS["crowd"])
        if len(result.lags) != PEOPLE * CROWD_DELTAS:
            raise RuntimeError(f"{len(result.lags)} deltas came through the door")
        cpu.append(proc.cpu_ms(daemon.guest) - before[0])
        runner.append(proc.cpu_ms(daemon.runner) - before[1])
        seconds.append(result.seconds)
        half.append(proc.percentile(result.lags, 0.5))
        most.append(proc.percentile(result.lags, 0.99))
    others = [f"somebody else {number}" for number in range(PEOPLE)]
    fresh = client.door_crowd(*daemon.door(), others, PROMPTS["crowd"])
    return {
        "door_new_s": fresh.seconds,
        "door_s": proc.median(seconds),
        "door_lag_p50_ms": proc.median(half),
        "door_lag_p99_ms": proc.median(most),
        "door_cpu_ms": proc.median(cpu),
        "door_runner_cpu_ms": proc.median(runner),
    }


def commands(daemon: Daemon, runs: int) -> Figures:
    """What a command and what importing a guest's modules cost; bytecode is there already."""
    command = daemon.command("--help")
    helps = [cpu_of_command(command, daemon.environment) for _ in range(runs + 1)]
    imports = [imported(GUEST) for _ in range(runs + 1)]
    return {
        "help_cpu_s": proc.median(helps[1:]),
        "import_cpu_ms": proc.median([cpu for cpu, _ in imports[1:]]),
        "import_rss_mb": proc.median([rss for _, rss in imports[1:]]),
        "python_cpu_s": proc.median([imported("pass")[0] / 1000 for _ in range(runs)]),
    }


def cpu_of_command(command: list[str], environment: dict[str, str]) -> float:
    """CPU seconds of a command that must succeed."""
    pid = os.posix_spawn(
        command[0],
        command,
        environment,
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} failed")
    return usage.ru_utime + usage.ru_stime


def imported(statement: str) -> tuple[float, float]:
    """CPU milliseconds and resident MiB of a Python that has done `statement`."""
    code = IMPORTS.format(statement)
    # bytecode is to be there, so it has to be written the first time
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    cpu, rss = map(float, done.stdout.split())
    return cpu * 1000, rss


def wire(server: LoadServer, runs: int) -> Figures:
    """A provider without a daemon, by `tests/bench/wire.py`."""
    return alone("tests.bench.wire", server.base_url, str(runs))


def egress(server: LoadServer) -> Figures:
    """The broker between a guest and the model server, by `tests/bench/egress.py`."""
    return alone("tests.bench.egress", server.base_url)


def many(server: LoadServer, runs: int) -> Figures:
    """Connections that rest and connections that stream, by `tests/bench/many.py`; each time in a
    daemon that has just started, whose memory is the base.
    """
    rows = []
    for _ in range(runs):
        with new_daemon(server.base_url) as daemon:
            daemon.start()
            given = daemon.reached() | {"seconds": MANY_SECONDS}
            rows.append(alone("tests.bench.many", given=given))
    return {name: proc.median([row[name] for row in rows]) for name in rows[0]}


def alone(module: str, *words: str, given: Mapping[str, Any] | None = None) -> Figures:
    """The figures that a module measures in a process of its own; `given` is its input."""
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        input=json.dumps(given) if given is not None else None,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    figures: Figures = json.loads(done.stdout)
    return figures


def floor(server: LoadServer, runs: int) -> Figures:
    """The same work by `tests/bench/floor.py`, the medians under the same names."""
    options = json.dumps({"prompts": PROMPTS, "turns": TURNS, "people": PEOPLE})
    rows: list[Figures] = []
    for _ in range(runs):
        server.reset()
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.floor", server.base_url, options],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        result = json.loads(done.stdout)
        log = server.log()
        arrived = {row["tag"]: row["in_ns"] for row in log}
        gaps = round_trips([row for row in log if row["tag"] == "floor-chain"])
        rows.append(
            {
                "turn_cpu_ms": result["turn_cpu_ms"],
                "request_out_ms": proc.median(
                    [
                        (arrived[f"floor-{number}"] - began) / 1e6
                        for number, began in enumerate(result["began_ns"])
                    ]
                ),
                "first_request_bytes": log[0]["body_bytes"],
                "trip_cpu_ms": result["chain_cpu_ms"] / CHAIN,
                "long_cpu_ms": result["long_cpu_ms"] / LONG,
                "trip_first_ms": proc.median(gaps[:5]),
                "trip_last_ms": proc.median(gaps[-5:]),
                "burst_cpu_ms": result["burst_cpu_ms"] * 1000 / BURST,
                "wire_burst_cpu_s": result["burst_cpu_ms"] * 10 / BURST,
                "paced_cpu_ms": result["paced_cpu_ms"] * 1000 / PACED,
                "import_cpu_ms": result["import_cpu_ms"],
                "import_rss_mb": result["rss_mb"],
                **{name: value for name, value in result.items() if name.startswith("crowd_")},
            }
        )
    return {name: proc.median([row[name] for row in rows]) for name in rows[0]}
