"""The agent guest of a real daemon is killed at the commits of a scheduled run: between due,
claimed and ran, and in the turn. It runs once, does what it does once, and its person is told once.
"""

from __future__ import annotations

import datetime
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from oxydra.errors import NoDaemonError
from oxydra.tui.client import Link
from tests.faulty import Place

DAEMONS = 2  # at once
COMMITS = 9  # of a run, at least: due, claimed, accepted, begun, …, ran


class Scheduled(Place):
    """One with schedules that each run once and append a mark."""

    def __init__(self, path, stack):
        super().__init__(path, stack)
        self.marks = self.daemon.workspace / "shared" / "marks"
        self.marks.write_text("[end]\n")
        self.marks.chmod(0o666)
        self.notices = []  # frames
        self.broke = False  # since a kill was armed

    def next(self):
        """What comes next, noted where it is a notice or the end of the connection."""
        event = self.person.events.get(timeout=60)
        if isinstance(event, Link):
            self.broke = self.broke or not event.connected
        elif event.type == "scheduled_notification":
            self.notices.append(event.payload)
        return event

    def ask(self, **args):
        """The data of the reply; None where it was refused, or the connection broke before and is
        there again.
        """
        try:
            request_id = self.person.client.send("command", {"name": "schedules", "args": args})
        except NoDaemonError:
            request_id = ""
        while True:
            event = self.next()
            if isinstance(event, Link):
                if event.connected:
                    return None
            elif request_id and event.payload.get("request_id") == request_id:
                return event.payload.get("data")

    def answer(self, **args):
        while (found := self.ask(**args)) is None:
            pass
        return found

    def make(self, name, goal):
        """The id of a schedule that is due soon."""
        for seconds in (1.3, 5, 15, 60):  # on a slow machine the time may have passed already
            soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
            when = {"cadence_type": "once", "cadence_value": soon.isoformat(timespec="seconds")}
            made = self.ask(action="create", name=name, goal=goal, **when)
            if made is not None:
                return made["schedule_id"]
            if found := self.answer(action="list", name=name)["schedules"]:
                return found[0]["schedule_id"]  # the guest was killed before it answered
        raise AssertionError("it is never made")

    def killed_at(self, commit, when):
        """Let a schedule run with a kill at one of its commits; False if it has no such commit."""
        self.number += 1
        mark = f"x{self.number}x"
        edit = {"path": "/shared/marks", "old": "[end]", "new": f"{mark}[end]"}
        steps = [
            {"tool": "file_edit", "arguments": edit},
            {"tool": "notify", "arguments": {"message": mark}},
            {"text": "done"},
        ]
        self.broke = False
        self.daemon.arm(commit, when, "schedule")
        schedule_id = self.make(mark, f"[[script {json.dumps(steps)}]]")
        while not (told := [one for one in self.notices if one["schedule_id"] == schedule_id]):
            self.next()
        killed = self.broke
        self.check(schedule_id, mark)
        seen = [notice["notice_id"] for notice in told]
        assert self.answer(action="seen", notice_ids=seen) == {"seen": len(seen)}
        assert len({one["notice_id"] for one in self.notices}) == self.number
        return killed

    def check(self, schedule_id, mark):
        assert {n["message"] for n in self.notices if n["schedule_id"] == schedule_id} == {mark}
        with self.daemon.database() as db:
            fires = db.execute(
                "SELECT state, attempts FROM fires WHERE schedule_id = ?", (schedule_id,)
            ).fetchall()
            session = (f"scheduled:{schedule_id}",)
            turns = db.execute("SELECT state FROM turns WHERE session_id = ?", session).fetchall()
            roles = db.execute(
                "SELECT message ->> 'role' FROM events WHERE session_id = ? ORDER BY sequence",
                session,
            ).fetchall()
            owed = db.execute(
                "SELECT count(*) FROM notices WHERE schedule_id = ?", (schedule_id,)
            ).fetchall()
        assert fires == [("ran", 1)]
        assert turns == [("completed",)]
        said = ["user", "assistant", "tool", "assistant", "tool", "assistant"]
        assert [role for (role,) in roles] == said
        assert owed == [(1,)]
        assert self.marks.read_text().count(mark) == 1


@pytest.fixture
def places(tmp_path, request):
    with ExitStack() as stack:
        yield [Scheduled(tmp_path / f"p{n}", stack) for n in range(getattr(request, "param", 1))]


def test_killed_between_due_claimed_and_ran(places):
    (place,) = places
    for commit, when in ((2, "after"), (5, "before")):
        assert place.killed_at(commit, when)


@pytest.mark.slow
@pytest.mark.parametrize("places", [DAEMONS], indirect=True)
def test_killed_at_every_commit_of_a_scheduled_run(places):
    def some(index):
        when = ("before", "after")[index]
        commit = 1
        while places[index].killed_at(commit, when):
            commit += 1
        return commit - 1

    with ThreadPoolExecutor(DAEMONS) as pool:
        counts = list(pool.map(some, range(DAEMONS)))
    assert min(counts) >= COMMITS, counts
