"""`make soak`: one daemon under people, schedules and a Telegram bot, of which something is killed
every minute; nothing may be lost and nothing may grow. Prints a report; exit code 1 says it failed.

`python -m tests.soak [MINUTES [container]]` (default: 30, in the process tier). Twenty sessions
talk, each on a thread of its own; a thread makes schedules that each run once, beside some that
repeat; one writes to the bot, whose Telegram is `tests.fake_telegram`. The main thread kills the
agent guest, the shell guest, the runner (in which the broker is) or, in the container tier, the
engine with SIGKILL, at random, and starts runner and engine again as systemd would. When the time
is over all that is owed is waited for, however long that takes, and then looked at: see
`Soak.verdict`.

What grows is looked at twice: in the life of each process, and after rounds of the same work, when
all is at rest. Memory is what the kernel calls anonymous: what the process itself wrote.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import itertools
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from oxydra.errors import NoDaemonError, OxydraError
from oxydra.gateway.hub import QUEUE
from oxydra.runner.control import call
from oxydra.store.database import POOL
from oxydra.tui.client import Link
from tests.bench import proc
from tests.bench.users import descendants
from tests.docker_engine import Engine
from tests.fake_telegram import TOKEN, FakeTelegram
from tests.faulty import Person
from tests.sandbox import processes_with
from tests.test_container import in_containers
from tests.test_daemon import Home
from tests.test_telegram_daemon import configure, order

SESSIONS = 20
PAUSE = 6.0  # seconds between an answer and the next message, at most
REPEATING = (20, 30)  # seconds between the runs of schedules that repeat
WAITING = 20  # schedules that may be due at once
KINDS = ("guest", "shell", "runner", "engine")
PATIENCE = 900.0  # seconds for what is owed: the machine may be slow
SAMPLE = 2.0
WARM = 180.0  # seconds of a life in which what is kept fills up to its bounds
GROWTH = 16.0  # MiB by which a life may grow after that, beside its vectors
VECTOR = 1.1 / 1024  # MiB that one takes in memory's index
MORE_ROUNDS = 5  # of turns, beside the first two, until one adds nothing to what is held
ROUND_GROWTH = 4.0  # MiB by which a process may grow from one round to the next
MORE_FILES = 3  # descriptors that may be open after another round: a worker that was started
BASE = "/oxydra.db"  # in the names of its files
DATABASE_FILES = 2 * (POOL + 1) + 1  # those of its connections, and what they share
SETTINGS = """
[scheduler]
min_interval_secs = 1
poll_interval_secs = 1
max_schedules_per_user = 10000
max_run_history = 1000
max_turns_per_day = 100000
"""


class Visitor(Person):
    """Waits for a daemon that is down, however long."""

    patience = PATIENCE

    def _locate(self):
        try:
            return super()._locate()
        except OSError:
            raise NoDaemonError("it is being started again") from None

    def ask(self, **args):
        """The data that the command `schedules` answers, asked again where the daemon was killed
        before it had: None then, at least once.
        """
        asked = ""
        with contextlib.suppress(NoDaemonError):
            asked = self.client.send("command", {"name": "schedules", "args": args})
        while True:
            event = self.events.get(timeout=self.patience)
            if isinstance(event, Link):
                if event.connected:
                    return None
            elif asked and event.payload.get("request_id") == asked:
                if event.type == "error":
                    raise AssertionError(event.payload)
                return event.payload["data"]


class Life:
    """One process, from the first time it was seen."""

    def __init__(self, role: str, pid: int) -> None:
        self.role, self.pid = role, pid
        self.rows: list[tuple[float, float, int]] = []  # age, MiB of memory, descriptors
        self._vectors: list[int] = []
        self._since = time.monotonic()

    def look(self, vectors: int) -> None:
        """`vectors` is how many memory has."""
        if size := anonymous(self.pid):
            self.rows.append((time.monotonic() - self._since, size, len(links(self.pid))))
            self._vectors.append(vectors)

    @property
    def growth(self) -> float:
        """MiB from the end of its beginning to its own end: medians; 0 for a short one. What is
        said goes into an index, which the guest holds whole.
        """
        warm = next((at for at, row in enumerate(self.rows) if row[0] > WARM), len(self.rows))
        part = (len(self.rows) - warm) // 4
        if part < 5:
            return 0.0
        index = VECTOR if self.role == "guest" else 0.0
        beside = [
            row[1] - index * vectors for row, vectors in zip(self.rows, self._vectors, strict=True)
        ]
        return proc.median(beside[-part:]) - proc.median(beside[warm : warm + part])


@dataclasses.dataclass(frozen=True)
class Held:
    """What the guest and the runner hold: descriptors other than the database's, MiB, and the
    guest's descriptors of the database.
    """

    files: list[int]
    sizes: list[float]
    database: int

    @classmethod
    def by(cls, guest: int, runner: int) -> Held:
        """The least in five seconds: connections take a moment to be closed."""
        looks = []
        for _ in range(50):
            time.sleep(0.1)
            found = [links(pid) for pid in (guest, runner)]
            others = [sum(BASE not in link for link in each) for each in found]
            sizes = [anonymous(pid) for pid in (guest, runner)]
            looks.append((*others, *sizes, len(found[0]) - others[0]))
        least = [min(each) for each in zip(*looks, strict=True)]
        return cls([int(n) for n in least[:2]], list(least[2:4]), int(least[4]))

    def flat(self, before: Held) -> bool:
        """Whether it is no more than before."""
        files = zip(before.files, self.files, strict=True)
        sizes = zip(before.sizes, self.sizes, strict=True)
        return all(b <= a + MORE_FILES for a, b in files) and all(
            b <= a + ROUND_GROWTH for a, b in sizes
        )


class Soak:
    """Everything of one run, in the folder `path`; with an engine, in the container tier."""

    def __init__(
        self, path: Path, fake: FakeTelegram, minutes: float, engine: Engine | None = None
    ) -> None:
        self.minutes = minutes
        self.every = 60.0 if minutes >= 10 else 12.0  # seconds between two kills
        self.seed = random.Random(14)
        self.fake = fake
        self.home = Home(path)
        self.home.folder.mkdir(mode=0o700)
        self.home.run("init")
        self.home.env["TELEGRAM_BOT_TOKEN"] = TOKEN
        self.engine = engine
        self.kinds = KINDS if engine is not None else KINDS[:-1]
        if engine is not None:
            in_containers(self.home)
            self.home.env["DOCKER_HOST"] = engine.url
        configure(
            self.home,
            f'enabled = true\napi_url = "{fake.url}"\npolling_timeout_secs = 5\n'
            'senders = [{platform_ids = ["42"]}]\n',
        )
        agent = self.home.folder / "agent.toml"
        text = agent.read_text().replace("\n[scheduler]\n", SETTINGS)
        agent.write_text(text.replace("\n# allow = []", '\nallow = ["*"]', 1))
        told = self.home.run("config", "explain")
        assert "['*']" in told and "max_turns_per_day  " in told and "100000" in told, told
        self.home.run("start", "--detach")
        self.workspace = self.home.workspace
        self.shared = self.workspace / "shared" / "soak"
        self.shared.mkdir()
        self.shared.chmod(0o777)
        self.over = threading.Event()
        self.failures: list[str] = []
        self.kills: collections.Counter[str] = collections.Counter()
        self.lives: dict[tuple[str, int], Life] = {}
        self.turns: dict[str, str] = {}  # answered: the turn's id and its mark
        self.schedules: dict[str, str] = {}  # those that run once: id and mark
        self.repeating: list[tuple[str, int]] = []
        self.asked = 0  # of the bot

    # ------------------------------------------------------------------------------ what goes on

    def guarded(self, work: Callable[..., None], *arguments: object) -> threading.Thread:
        def run() -> None:
            try:
                work(*arguments)
            except BaseException as error:
                self.failures.append(f"{work.__name__}{arguments}: {error!r}")

        thread = threading.Thread(target=run, name=work.__name__, daemon=True)
        thread.start()
        return thread

    def talk(self, number: int, rounds: int = 0) -> None:
        """A person, until the time is over, or for so many rounds."""
        seed = random.Random(number)
        person = Visitor(self)
        try:
            count = 0
            while not (self.over.is_set() if rounds == 0 else count >= rounds):
                count += 1
                mark = f"m{number}-{len(self.turns)}-{count}"
                self.say(person, number, mark)
                if not rounds:
                    self.over.wait(seed.uniform(0.5, PAUSE))
        finally:
            person.close()

    def say(self, person: Visitor, number: int, mark: str) -> None:
        file = f"soak/{number}"
        steps = [
            {"tool": "shell_exec", "arguments": {"command": f"echo {mark} >> {file}"}},
            {"tool": "file_list", "arguments": {"path": "/shared/soak"}},
            {"text": f"The answer is {mark}.", "delay_ms": 20},
        ]
        turn_id, frames = person.turn(f"[[script {json.dumps(steps)}]]")
        ends = [f for f in frames if f.type in ("turn_completed", "turn_cancelled", "error")]
        assert ends and {f.type for f in ends} == {"turn_completed"}, f"{mark} ended as {ends}"
        said = ends[-1].payload["response"]["message"]["content"]
        assert said == f"The answer is {mark}.", f"{mark} was answered {said!r}"
        self.turns[turn_id] = mark

    def plan(self) -> None:
        """Schedules: some that repeat, and one after the other that run once."""
        person = Visitor(self)
        try:
            for seconds in REPEATING:
                cadence = {"cadence_type": "interval", "cadence_value": str(seconds)}
                self.repeating.append((self.made(person, f"every-{seconds}", cadence), seconds))
            number = 0
            while not self.over.is_set():
                number += 1
                mark = f"s{number}"
                soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=12)
                value = soon.isoformat(timespec="seconds")
                cadence = {"cadence_type": "once", "cadence_value": value}
                self.schedules[self.made(person, mark, cadence)] = mark
                while self.late() > WAITING and not self.over.wait(1.0):
                    pass
                self.over.wait(5.0)
        finally:
            person.close()

    def made(self, person: Visitor, name: str, cadence: dict[str, str]) -> str:
        """The id of a new schedule that leaves a mark."""
        edit = {"command": f"echo {name} >> soak/schedules"}
        steps = [{"tool": "shell_exec", "arguments": edit}, {"text": f"{name} ran"}]
        goal = f"[[script {json.dumps(steps)}]]"
        while True:
            found = person.ask(action="create", name=name, goal=goal, notify="never", **cadence)
            if found is not None:
                return str(found["schedule_id"])
            if (found := person.ask(action="list", name=name)) and found["schedules"]:
                return str(found["schedules"][0]["schedule_id"])  # killed before it answered

    def late(self) -> int:
        """Schedules that ran not yet."""
        with self.database() as db:
            (done,) = db.execute(
                "SELECT count(DISTINCT schedule_id) FROM fires WHERE state = 'ran'"
            ).fetchone()
        return len(self.schedules) + len(self.repeating) - int(done)

    def chat(self) -> None:
        """Somebody writes to the bot; what waits in one chat is bounded."""
        while not self.over.is_set():
            if self.asked - len(set(order(self.fake))) < QUEUE - 3:
                self.asked += 1
                step = {"text": f"Answer {self.asked}. " + "word " * 50, "delay_ms": 1}
                self.fake.says(f"[[script {json.dumps([step])}]]")
            self.over.wait(2.0)

    # ------------------------------------------------------------------------------- killing

    def health(self) -> dict[str, object]:
        """What the runner says, {} where none does or the guest is not well."""
        try:
            found = call(self.workspace / "ipc" / "runner-control.sock", "health_check", {})
        except (OxydraError, OSError):
            return {}
        up = found.get("healthy") and found["startup_status"]["shell_available"]
        return found if up else {}

    def well(self) -> dict[str, object]:
        """The same once all is up."""
        found: dict[str, object] = {}

        def up() -> bool:
            found.clear()
            found.update(self.health())
            return bool(found)

        self.until(up, "a daemon that is well")
        return found

    def until(self, true: Callable[[], object], what: str) -> None:
        """Wait for what can't be waited on directly."""
        end = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < end, f"there is never {what}"
            time.sleep(0.1)

    def kill(self) -> None:
        kind = self.seed.choice(self.kinds)
        if self.engine is not None and not self.kills["engine"]:
            kind = "engine"  # a short run has it too
        if kind == "engine" and self.engine is not None:
            self.well()
            self.engine.kill()
            self.kills[kind] += 1
            self.over.wait(self.seed.uniform(0.0, 5.0))
            self.engine.start()
            return
        pid = int(str(self.well()[f"{kind}_pid"]))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.kills[kind] += 1
        if kind == "runner":
            self.until(lambda: self.home.command("start", "--detach").returncode == 0, "a start")

    def look(self) -> None:
        found = self.health()
        with self.database() as db:
            (vectors,) = db.execute("SELECT coalesce(max(rowid), 0) FROM vectors").fetchone()
        for role in KINDS[:-1]:
            pid = int(str(found.get(f"{role}_pid") or 0))
            if pid:
                pid = self.measured(pid)
                self.lives.setdefault((role, pid), Life(role, pid)).look(vectors)

    def measured(self, pid: int) -> int:
        """The process that is looked at where a guest is this one: in a container that is an init,
        whose largest descendant it is.
        """
        if self.engine is None:
            return pid
        return max(descendants([pid]), key=anonymous)

    # ----------------------------------------------------------------------------------- the run

    def run(self) -> None:
        threads = [self.guarded(self.talk, number) for number in range(SESSIONS)]
        threads += [self.guarded(self.plan), self.guarded(self.chat)]
        end = time.monotonic() + 60 * self.minutes
        due = time.monotonic() + self.every
        while time.monotonic() < end and not self.failures:
            self.look()
            if time.monotonic() >= due:
                self.kill()
                due = time.monotonic() + self.every * self.seed.uniform(0.7, 1.3)
            time.sleep(SAMPLE)
        self.over.set()
        for thread in threads:
            thread.join(PATIENCE)
            if thread.is_alive():
                self.failures.append(f"{thread.name} never ends")
        if not self.failures:
            self.well()
            self.until(lambda: self.late() == 0, "an end of the schedules")
            self.until(lambda: order(self.fake)[-1:] == [self.asked], "an answer of the bot")
            self.until(lambda: self.fake.confirmed, "an end of what the bot was told")

    def rounds(self) -> list[tuple[str, str, bool]]:
        """What guest and runner hold after rounds of the same turns: after some it is no more than
        after the round before. A library that is loaded at last makes one round an exception.
        """
        before, after = self.round(), self.round()
        for _ in range(MORE_ROUNDS):
            before, after = after, self.round()
            if after.flat(before):
                break
        files = f"{before.files[0]} -> {after.files[0]} and {before.files[1]} -> {after.files[1]}"
        sizes = " and ".join(
            f"{a:.1f} -> {b:.1f}" for a, b in zip(before.sizes, after.sizes, strict=True)
        )
        held = after.database
        return [
            ("descriptors, and MiB, of guest and runner", f"{files}; {sizes}", after.flat(before)),
            ("descriptors of the database", f"{held}", held <= DATABASE_FILES),
        ]

    def round(self) -> Held:
        """Two turns of everybody, and what is held once all is at rest."""
        threads = [self.guarded(self.talk, number, 2) for number in range(SESSIONS)]
        for thread in threads:
            thread.join(PATIENCE)
        self.until(self.rests, "rest")
        found = self.well()
        pids = [self.measured(int(str(found[f"{role}_pid"]))) for role in ("guest", "runner")]
        return Held.by(*pids)

    def rests(self) -> bool:
        """Whether no turn runs, and memory has taken in what was said."""
        with self.database() as db:
            (waiting,) = db.execute(
                "SELECT (SELECT count(*) FROM to_index) + (SELECT count(*) FROM to_embed)"
            ).fetchone()
        return waiting == 0 and self.health().get("running_turns") == 0

    def database(self) -> contextlib.closing[sqlite3.Connection]:
        path = self.workspace / "internal" / "oxydra.db"
        return contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=60))

    # ------------------------------------------------------------------------------- the verdict

    def verdict(self) -> list[tuple[str, str, bool]]:
        """What was looked at, what was found, and whether that is well; the daemon is stopped."""
        grown = [] if self.failures else self.rounds()
        self.home.run("stop")
        rows = [
            ("nothing failed on the way", "; ".join(self.failures) or "nothing", not self.failures)
        ]
        with self.database() as db:
            rows += [self._messages(db), self._once(db), self._repeated(db), self._calls(db)]
            rows += self._sound(db)
        rows.append(self._telegram())
        rows += grown
        worst = max((life for life in self.lives.values()), key=lambda life: life.growth)
        most = f"{worst.growth:+.1f} MiB ({worst.role}, {len(worst.rows)} samples)"
        rows.append(("memory that a process gained once warm", most, worst.growth <= GROWTH))
        with contextlib.suppress(AssertionError):
            self.until(lambda: not processes_with(str(self.home.path)), "an end of its processes")
        left = processes_with(str(self.home.path))
        rows.append(("processes left behind", str(len(left)), not left))
        return rows

    def _messages(self, db: sqlite3.Connection) -> tuple[str, str, bool]:
        states = dict(db.execute("SELECT state, count(*) FROM turns GROUP BY state").fetchall())
        marks = "SELECT turn_id FROM turns WHERE state = 'completed'"
        there = {turn for (turn,) in db.execute(marks)}
        lost = set(self.turns) - there
        return (
            "messages that were acknowledged, and answered",
            f"{len(self.turns)}, {len(self.turns) - len(lost)}; turns in all: {states}",
            not lost and set(states) == {"completed"},
        )

    def _once(self, db: sqlite3.Connection) -> tuple[str, str, bool]:
        found = collections.defaultdict(list)
        for schedule, state in db.execute("SELECT schedule_id, state FROM fires"):
            found[schedule].append(state)
        wrong = [mark for one, mark in self.schedules.items() if found[one] != ["ran"]]
        return (
            "schedules that run once, and ran once",
            f"{len(self.schedules)}, {len(self.schedules) - len(wrong)}",
            not wrong and bool(self.schedules),
        )

    def _repeated(self, db: sqlite3.Connection) -> tuple[str, str, bool]:
        """Every due time has its row."""
        total, states, gaps = 0, collections.Counter[str](), 0
        for schedule, seconds in self.repeating:
            rows = db.execute(
                "SELECT due_at, state FROM fires WHERE schedule_id = ? ORDER BY due_at", (schedule,)
            ).fetchall()
            times = [due for due, _ in rows]
            gaps += sum(b - a != seconds for a, b in itertools.pairwise(times))
            total += len(rows)
            states.update(state for _, state in rows)
        final = set(states) <= {"ran", "missed", "skipped"}
        return (
            "due times of schedules that repeat, each with its row",
            f"{total}, {dict(states)}, {gaps} gaps",
            final and not gaps and states["ran"] > 0,
        )

    def _calls(self, db: sqlite3.Connection) -> tuple[str, str, bool]:
        """Commands left their mark at most once, and what is open is none."""
        said = collections.Counter(
            line for path in self.shared.iterdir() for line in path.read_text().splitlines()
        )
        once = {*self.turns.values(), *self.schedules.values()}
        twice = [mark for mark, count in said.items() if count > 1 and mark in once]
        (open_calls,) = db.execute(
            "SELECT count(*) FROM tool_calls WHERE state IN ('intended', 'running')"
        ).fetchone()
        (unknown,) = db.execute(
            "SELECT count(*) FROM tool_calls WHERE state = 'unknown'"
        ).fetchone()
        missing = len([mark for mark in once if mark not in said])
        excused = unknown + sum(self.kills.values()) * (SESSIONS + 2)  # told, or cut off
        return (
            "commands that ran twice; left open",
            f"{len(twice)}; {open_calls}. {unknown} unknown outcomes, {missing} marks missing",
            not twice and not open_calls and missing <= excused,
        )

    def _sound(self, db: sqlite3.Connection) -> list[tuple[str, str, bool]]:
        (told,) = db.execute("PRAGMA integrity_check").fetchone()
        broken = db.execute("PRAGMA foreign_key_check").fetchall()
        return [
            (
                "the database",
                f"{told}, {len(broken)} broken references",
                told == "ok" and not broken,
            )
        ]

    def _telegram(self) -> tuple[str, str, bool]:
        found = list(dict.fromkeys(order(self.fake)))
        whole = [said for said in self.fake.told() if not said.endswith("▍")]
        repeated = sum(said.startswith("(This may be a repetition.)") for said in whole)
        return (
            "messages to the bot, and answers delivered in their order",
            f"{self.asked}, {len(found)}; {repeated} said to be a repetition",
            found == list(range(1, self.asked + 1)),
        )

    def report(self, rows: list[tuple[str, str, bool]], seconds: float) -> str:
        kills = ", ".join(f"{kind} {self.kills[kind]}" for kind in self.kinds)
        lines = [f"{self.minutes:g} minutes ({seconds:.0f} s with the end), killed: {kills}", ""]
        lines += ["| | found | |", "|---|---|---|"]
        lines += [f"| {what} | {found} | {'yes' if well else 'NO'} |" for what, found, well in rows]
        lines += ["", "| process | lives | longest | MiB at first | at last | descriptors |"]
        lines += ["|---|---|---|---|---|---|"]
        for role in KINDS[:-1]:
            lives = [life for life in self.lives.values() if life.role == role and life.rows]
            if lives:
                row = max(lives, key=lambda life: life.rows[-1][0]).rows
                files = f"{min(r[2] for r in row)} to {max(r[2] for r in row)}"
                sizes = f"{row[len(row) // 10][1]:.1f} | {row[-1][1]:.1f}"
                lines.append(f"| {role} | {len(lives)} | {row[-1][0]:.0f} s | {sizes} | {files} |")
        return "\n".join(lines)


def anonymous(pid: int) -> float:
    """MiB that a process wrote itself: what it maps of files is the kernel's to take back. 0 for
    one that has ended.
    """
    try:
        return proc.status(pid, "RssAnon") / 1024
    except (OSError, KeyError):
        return 0.0


def links(pid: int) -> list[str]:
    """What a process's descriptors are."""
    found = []
    with contextlib.suppress(OSError):  # it has ended
        for each in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.append(os.readlink(f"/proc/{pid}/fd/{each}"))
    return found


def soak(path: Path, minutes: float, engine: Engine | None = None) -> tuple[bool, str]:
    """Whether all is well, and the report."""
    began = time.monotonic()
    with FakeTelegram() as fake:
        run = Soak(path, fake, minutes, engine)
        try:
            run.run()
            rows = run.verdict()
        finally:
            run.over.set()
            run.home.command("stop")
        report = run.report(rows, time.monotonic() - began)
    return all(well for *_, well in rows), report


def main(argv: list[str]) -> int:
    minutes = float(argv[0]) if argv else 30.0
    contained = argv[1:] == ["container"]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="oxydra-soak-"))
        if os.geteuid() == 0:
            os.chmod(folder, 0o711)  # commands run as another user
        engine = stack.enter_context(Engine()) if contained else None
        well, report = soak(Path(folder), minutes, engine)
    print(report)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
