"""The ledger of due times: a simulated clock, restarts, steps of the clock, and real turns."""

import json
import threading
from dataclasses import replace
from decimal import Decimal
from types import SimpleNamespace

import pytest

from oxydra import cadence
from oxydra.budget import Account, Caps, Limit
from oxydra.errors import BudgetError, BusyError, NotFoundError, PolicyDenied, UsageError
from oxydra.runtime import Spending
from oxydra.runtime.undo import Undo
from oxydra.scheduler import Desk as Counter
from oxydra.scheduler import Scheduler
from oxydra.scheduler.desk import PERSON, Asker
from oxydra.scheduler.engine import CATCH_UP, RETRIES
from oxydra.store import Store
from oxydra.store.database import timestamp
from oxydra.store.spend import Entry
from oxydra.tools.confine import Workspace
from oxydra.tools.schedule import schedule_tools
from oxydra.types import (
    SCHEDULED,
    Folder,
    Marks,
    Message,
    ModelRequest,
    SafetyTier,
    Turn,
    TurnState,
)
from tests import schedule_kit
from tests.conftest import eventually
from tests.schedule_kit import NOW, House, notices
from tests.scripted import MODEL, calls
from tests.test_gateway import Held

NOW_UTC = "2026-02-02T02:40:00.000+00:00"


desk, house = schedule_kit.desk, schedule_kit.house


def test_a_due_time_runs_once_and_has_a_row(desk):
    d = desk()
    one = d.add()
    assert d.engine.step(NOW) == NOW + 600 and not d.begun
    d.engine.step(NOW + 600)
    assert [fire.due_at for _, fire in d.begun] == [NOW + 600]
    d.end_all(NOW + 601, output="done", cost=7, turns=2)
    fire = d.store.fires(one.schedule_id)[0]
    assert (fire.state, fire.output, fire.cost, fire.turns) == ("ran", "done", 7, 2)
    assert d.engine.step(NOW + 602) == NOW + 1200 and not d.begun


@pytest.mark.parametrize(
    ("policy", "states"),
    [("last", ["missed"] * 29 + ["claimed"]), ("skip", ["missed"] * 30)],
)
def test_what_passed_while_nothing_ran_follows_the_policy(desk, policy, states):
    d = desk(catch_up=policy)
    one = d.add()
    d.engine.step(NOW + 30 * 600 + 300)
    assert [state for _, state in d.states(one)] == states


def test_all_that_passed_runs_up_to_a_bound(desk):
    d = desk(catch_up="all")
    one = d.add()
    now = NOW + 30 * 600 + 300
    for _ in range(CATCH_UP):
        d.engine.step(now)
        d.end_all(now)
    d.engine.step(now)
    states = [state for _, state in d.states(one)]
    assert states == ["missed"] * (30 - CATCH_UP) + ["ran"] * CATCH_UP


def test_more_due_times_than_fit_at_once_are_all_accounted_for(desk):
    d = desk(max_run_history=10_000)
    one = d.add("60")
    d.engine.step(NOW + 60 * 2500)
    assert len(d.states(one)) == 2500
    assert d.states(one)[-1] == (NOW + 60 * 2500, "claimed")


def test_what_was_claimed_before_a_crash_is_begun_under_the_same_turn(desk):
    d = desk()
    d.add()
    d.engine.step(NOW + 600)
    before = d.begun[0][1].turn_id
    d.restart()
    d.engine.step(NOW + 700)
    assert [fire.turn_id for _, fire in d.begun] == [before]


def test_a_clock_put_back_repeats_nothing_and_forgets_nothing(desk):
    d = desk(max_run_history=100_000)
    one = d.add()
    d.engine.step(NOW + 600)
    d.end_all(NOW + 600)
    d.engine.step(NOW + 86_400 * 30)  # a month ahead, by mistake
    d.end_all(NOW + 86_400 * 30)
    d.engine.step(NOW + 1100)
    assert d.engine.step(NOW + 1200) == NOW + 1800
    d.end_all(NOW + 1200)
    d.engine.step(NOW + 500)  # and once more, over what ran
    d.engine.step(NOW + 1200)
    d.end_all(NOW + 1200)
    ran = [(at, state) for at, state in d.states(one) if at <= NOW + 1200]
    assert ran == [(NOW + 600, "ran"), (NOW + 1200, "ran")]


def test_a_provider_that_does_not_answer_is_asked_again_and_then_it_failed(desk):
    d = desk(notify_after_failures=1, auto_disable_after_failures=2)
    one = d.add("86400")
    now = NOW + 86_400
    turns = set()
    for wait in (0, *RETRIES):
        now += wait
        d.engine.step(now)
        turns.add(d.begun[0][1].turn_id)
        d.end_all(now, ok=False, reason="It is down.", again=True)
    assert len(turns) == 3
    assert [state for _, state in d.states(one)] == ["failed"]
    assert d.told == [("n", "It failed 1 times in a row. It is down.")]
    d.engine.step(NOW + 2 * 86_400)
    d.end_all(NOW + 2 * 86_400, ok=False, reason="No.")
    assert d.store.schedule(one.schedule_id).status == "disabled"
    assert d.engine.step(NOW + 9 * 86_400) is None


def test_a_run_that_goes_on_leaves_one_waiting(desk):
    d = desk()
    one = d.add()
    for times in range(1, 5):
        d.engine.step(NOW + 600 * times)
    assert [state for _, state in d.states(one)] == ["claimed", "skipped", "skipped", "due"]


def test_at_most_so_many_run_at_once(desk):
    d = desk(max_concurrent=2)
    for _ in range(5):
        d.add()
    d.engine.step(NOW + 600)
    assert len(d.begun) == 2
    d.end_all(NOW + 601)
    d.engine.step(NOW + 601)
    assert len(d.begun) == 2


@pytest.mark.parametrize(
    ("notification", "output", "told"),
    [
        ("always", "x", ["x"]),
        ("never", "[NOTIFY] x", []),
        ("conditional", "x", []),
        ("conditional", "[NOTIFY] x", ["x"]),
    ],
)
def test_who_made_a_schedule_is_told_as_it_says(desk, notification, output, told):
    d = desk()
    d.add(notification=notification)
    d.engine.step(NOW + 600)
    d.end_all(NOW + 600, output=output)
    assert [message for _, message in d.told] == told


def test_what_a_run_wants_told_is_kept_only_for_that_run(desk):
    d = desk()
    one = d.add(notification="conditional")
    d.engine.step(NOW + 600)
    turn_id = d.begun[0][1].turn_id
    assert not d.store.ask_notice("another", one.schedule_id, "no")
    assert d.store.ask_notice(turn_id, one.schedule_id, "look")
    d.end_all(NOW + 600, output="x")
    assert d.told == [("n", "look")]


def test_a_schedule_that_is_paused_or_deleted_does_not_run(desk):
    d = desk()
    one, two = d.add(), d.add()
    d.store.change_schedule(one.schedule_id, status="paused")
    d.store.delete_schedule(two.schedule_id)
    assert d.engine.step(NOW + 600) is None
    assert not d.begun
    with pytest.raises(NotFoundError):
        d.store.schedule(two.schedule_id)


def test_a_schedule_is_found_by_id_name_or_the_beginning_of_its_id(desk):
    d = desk()
    one, two = d.add(schedule_id="aa1"), d.add(schedule_id="ab2", name="news")
    three = d.add(schedule_id="b%3", name="aa1")  # nobody takes another's id
    found = {wanted: d.store.find_schedule(wanted) for wanted in ("aa1", "news", "ab", "b%", "n")}
    assert found == {"aa1": one, "news": two, "ab": two, "b%": three, "n": one}
    with pytest.raises(UsageError, match="several schedules: aa1, ab2"):
        d.store.find_schedule("a")
    for wanted in ("", "%", "_", "new"):
        with pytest.raises(NotFoundError):
            d.store.find_schedule(wanted)


def test_once_is_done_and_history_is_pruned(desk):
    d = desk(max_run_history=3)
    once = d.add("2026-03-01T00:00:00Z", "once")
    often = d.add()
    for times in range(1, 9):
        d.engine.step(NOW + 600 * times)
        d.end_all(NOW + 600 * times, output="said")
    # what was said goes; that it ran is known for a day, in which the clock may step back
    assert [fire.output for fire in d.store.fires(often.schedule_id)] == ["said"] * 3 + [""] * 5
    d.engine.step(NOW + 600)
    for times in range(1, 9):
        d.engine.step(NOW + 600 * times)
    assert not d.begun
    d.engine.step(NOW + 10 * 86_400)
    d.end_all(NOW + 10 * 86_400)
    assert len(d.states(often)) == 86_400 // 600
    d.engine.step(cadence.moment_of("2026-03-01T00:00:00Z"))
    d.end_all(NOW)
    assert d.store.schedule(once.schedule_id).status == "done"


def test_there_is_a_bound_on_schedules_of_which_the_oldest_that_are_done_go(desk):
    d = desk()
    ids = []
    for times in range(1, 5):
        at = cadence.local(NOW + 600 * times, cadence.zone_of("UTC"))
        ids.append(d.add(at, "once", now=NOW + times, most=2).schedule_id)
        d.engine.step(NOW + 600 * times)
        d.end_all(NOW + 600 * times)
    assert [one.schedule_id for one in d.store.schedules()] == sorted(ids[1:])
    for _ in range(2):
        d.add(most=2)
    with pytest.raises(BusyError):
        d.add(most=2)
    assert d.store.count_sessions() == 0  # theirs are not the person's


# --------------------------------------------------------------------------------- real turns


def test_a_due_goal_runs_as_a_turn_and_who_made_it_is_told(house):
    h = house("All is well.")
    with h.client() as client:
        made = h.create(session_id=client.session, notification="always", name="check")
        assert len(made["next_runs"]) == 3
        h.now += 600
        h.scheduler.wake()
        assert notices(client) == "All is well."
    (run,) = h.counter.command({"action": "runs", "schedule_id": made["schedule_id"]})["runs"]
    assert (run["state"], run["attempts"]) == ("ran", 1)
    found = h.counter.command({"action": "output", "run_id": run["run_id"]})
    assert found["output"] == "All is well."
    session = h.store.session(f"scheduled:{made['schedule_id']}")
    assert session.channel_origin == "schedule"


def test_an_absent_client_is_told_when_it_comes_back_until_one_has_seen_it(house):
    h = house("Later.")
    session = h.hub.create_session().session_id
    h.create(session_id=session, notification="always")
    h.now += 600
    h.scheduler.wake()
    eventually(h.store.owed_notices)
    for _ in range(2):  # it might have broken off before it showed it
        with h.client(session_id=session) as client:
            assert notices(client) == "Later."
    (notice,) = h.store.owed_notices()
    h.counter.command({"action": "seen", "notice_ids": [notice.notice_id]})
    assert h.store.owed_notices() == []


def test_a_run_notifies_by_its_tool(house):
    h = house(calls(("notify", json.dumps({"message": "Look!"}))), "Done.")
    with h.client() as client:
        h.create(session_id=client.session)
        h.now += 600
        h.scheduler.wake()
        assert notices(client) == "Look!"


def test_a_run_changes_no_schedule(house):
    args = {"goal": "again", "cadence_type": "interval", "cadence_value": "60"}
    h = house(calls(("schedule_create", json.dumps(args))), "[NOTIFY] refused")
    with h.client() as client:
        h.create(session_id=client.session)
        h.now += 600
        h.scheduler.wake()
        assert notices(client) == "refused"
    assert h.counter.command({})["total"] == 1


def test_a_turn_makes_a_schedule_for_its_own_session(house):
    args = {"goal": "look", "cadence_type": "cron", "cadence_value": "0 9 * * *"}
    h = house(calls(("schedule_create", json.dumps(args))), "Made.")
    with h.client() as client:
        client.send("send_turn", prompt="every day", turn_id="t1", session_id=client.session)
        client.until("turn_completed")
        (row,) = h.counter.command({})["schedules"]
        assert (row["origin"], row["status"]) == (client.session, "active")


def test_words_of_strangers_make_no_schedule_that_runs(house):
    h = house()
    where = h.hub.create_session().session_id
    args = {"goal": "x", "cadence_type": "interval", "cadence_value": "600"}
    stranger = Asker(where, Marks(tainted=True))
    made = h.counter.act("create", args, stranger)
    assert (made["status"], made["tainted"]) == ("paused", True)
    wanted = {"schedule_id": made["schedule_id"]}
    with pytest.raises(PolicyDenied):
        h.counter.act("resume", wanted, Asker(where))
    assert h.counter.act("resume", wanted, PERSON)["status"] == "active"
    changed = h.counter.act("edit", {**wanted, "goal": "y"}, stranger)
    assert changed["status"] == "paused"


def test_what_came_of_private_data_is_marked_so_when_it_runs(house):
    h = house("One.")
    where = h.hub.create_session().session_id
    args = {"goal": "x", "cadence_type": "interval", "cadence_value": "600"}
    made = h.counter.act("create", args, Asker(where, Marks(sensitive=True)))
    assert (made["status"], made["sensitive"]) == ("active", True)
    h.counter.act("run-now", {"schedule_id": made["schedule_id"]}, PERSON)
    session = f"scheduled:{made['schedule_id']}"
    eventually(lambda: h.store.messages(session))
    assert h.store.messages(session)[0].sensitive
    plain = h.counter.act("create", args, PERSON)
    edit = {"schedule_id": plain["schedule_id"], "goal": "y"}
    assert h.counter.act("edit", edit, Asker(where, Marks(sensitive=True)))["sensitive"]


def test_what_a_turn_did_to_schedules_is_taken_back(house, tmp_path):
    def wanted(name, **args):
        return calls((f"schedule_{name}", json.dumps(args)))

    h = house()
    kept = h.create("Kept.", name="kept")
    gone = h.create("Gone.", name="gone", cadence_value="900")
    ids = [row["schedule_id"] for row in (kept, gone)]
    before = [h.store.schedule(one) for one in ids]
    made = {"goal": "New.", "cadence_type": "interval", "cadence_value": "600"}
    h.provider.steps[:] = [
        wanted("create", **made),
        wanted("edit", schedule_id=ids[0], goal="Other.", cadence_value="1200"),
        wanted("edit", schedule_id=ids[0], action="pause"),
        wanted("delete", schedule_id=ids[1]),
        "Done.",
    ]
    with h.client() as client:
        client.turn("change them", "t1")
        client.until("turn_completed")
        session_id = client.session
    assert len(h.store.schedules()) == 2
    with Workspace([Folder("shared", str(tmp_path), writable=True)]) as workspace:
        undo = Undo(h.store, workspace, h.counter.pieces)
        h.counter.command({"action": "edit", "schedule_id": ids[0], "name": "the person's"})
        with pytest.raises(UsageError, match="changed since"):
            undo.run(session_id)
        h.counter.command({"action": "edit", "schedule_id": ids[0], "name": "kept"})
        done = undo.run(session_id).to_json()
        assert len(done["removed"]) == 1 and done["beyond"] == []
        assert done["restored"] == [
            f"schedule {i} ({n})" for i, n in zip(ids, ("kept", "gone"), strict=True)
        ]
        assert [h.store.schedule(one) for one in ids] == before
        assert len(h.store.schedules()) == 2
        assert undo.run(session_id).state == "already"


def test_limits_are_the_operators(house):
    h = house(min_interval_secs=3600, max_schedules_per_user=1)
    for kind, value in (("interval", "60"), ("cron", "* * * * *"), ("cron", "0,1 9 * * *")):
        with pytest.raises(UsageError):
            h.create(cadence_type=kind, cadence_value=value)
    with pytest.raises(UsageError):
        h.create(cadence_type="once", cadence_value="2001-01-01T00:00:00Z")
    h.create(cadence_value="3600")
    with pytest.raises(BusyError):
        h.create(cadence_value="3600")
    names = {name for tool in schedule_tools() for name in tool.spec.parameters["properties"]}
    assert not names & {"max_turns", "max_cost", "max_concurrent", "timeout"}
    assert all(t.tier is not SafetyTier.PRIVILEGED for t in schedule_tools())


def test_only_a_run_notifies(house):
    h = house()
    with pytest.raises(NotFoundError):
        h.scheduler.notify("somewhere", "t1", "hello")


# ---------------------------------------------------------------------------------- what limits it


def test_each_repeated_schedule_begins_late_by_its_own_seconds(desk):
    d = desk(jitter_secs=300, max_concurrent=64)
    many = [d.add() for _ in range(30)]
    at = cadence.local(NOW + 600, cadence.zone_of("UTC"))
    once = d.add(at, "once")
    first = d.engine.step(NOW + 600)
    assert {schedule.schedule_id for schedule, _ in d.begun} >= {once.schedule_id}
    assert len(d.begun) < 31 and first > NOW + 600
    d.engine.step(NOW + 900)
    assert len(d.begun) == 31
    d.end_all(NOW + 900)
    late = {}
    for one in many:
        d.engine.step(NOW + 1500)
        (fire,) = [fire for fire in d.store.fires(one.schedule_id) if fire.due_at == NOW + 1200]
        late[one.schedule_id] = fire.not_before - fire.due_at
        assert late[one.schedule_id] == d.store.fires(one.schedule_id)[1].not_before - NOW - 600
    assert len(set(late.values())) > 10 and max(late.values()) <= 300


def test_what_a_used_up_budget_stops_is_told_once_and_is_no_failure(desk):
    d = desk(auto_disable_after_failures=2, notify_after_failures=1)
    one = d.add()
    d.refusal = "It has cost $5 today."
    for times in (1, 2, 3):
        d.engine.step(NOW + 600 * times)
    assert not d.begun
    fires = d.store.fires(one.schedule_id)
    assert [(fire.state, fire.code) for fire in fires] == [("skipped", "budget")] * 3
    d.refusal = ""
    d.engine.step(NOW + 2400)
    d.end_all(NOW + 2400, ok=False, reason="The budget is used up.", code="budget")
    d.engine.step(NOW + 3000)
    d.end_all(NOW + 3000)
    d.engine.step(NOW + 3600)
    d.end_all(NOW + 3600, ok=False, reason="The budget is used up.", code="budget")
    assert [message for _, message in d.told] == [
        "It did not run. It has cost $5 today.",
        "It did not run. The budget is used up.",
    ]
    found = d.store.schedule(one.schedule_id)
    assert (found.status, found.failures) == ("active", 0)


def test_a_run_that_a_person_stopped_is_no_failure(desk):
    d = desk(auto_disable_after_failures=1, notify_after_failures=1)
    one = d.add()
    d.engine.step(NOW + 600)
    d.end_all(NOW + 600, ok=False, reason="It was cancelled.", code="cancelled")
    assert (d.store.schedule(one.schedule_id).failures, d.told) == (0, [])


def test_what_is_skipped_leaves_its_place_to_others(desk):
    d = desk(max_concurrent=1)
    d.add()
    d.add()
    d.refusal = "No."
    assert d.engine.step(NOW + 600) == NOW + 1200


def test_the_terms_of_a_run_are_the_operators(house):
    h = house("One.", "Two.", max_turns=3, max_turns_per_day=2, timeout_secs=60)
    with h.client() as client:
        made = h.create(session_id=client.session, notification="always")
        turn = Turn("t", f"scheduled:{made['schedule_id']}", SCHEDULED, TurnState.QUEUED, "")
        account, terms = h.scheduler.terms_of(turn)
        assert (account.max_cost, account.max_cost_per_day) == (Decimal("0.50"), Decimal("5.00"))
        assert (terms.max_turns, terms.attended) == (2, False)
        assert 0 < terms.deadline.remaining() <= 60
        assert h.scheduler.terms_of(replace(turn, request_id="q1")) == (None, None)
        entry = Entry(
            account.scopes, "default", account.schedule, "turn", "p", "m", 1, True, NOW_UTC
        )
        for _ in range(2):
            h.store.reserve(entry, [], lambda _spent, _held: 0)
        _, terms = h.scheduler.terms_of(replace(turn, turn_id="t2"))
        assert terms.max_turns == 1  # never none: that would be any
        _, terms = h.scheduler.terms_of(turn)  # whose own calls these were
        assert terms.max_turns == 2
        h.now += 600
        h.scheduler.wake()
        assert "Its 2 model calls of today are made" in notices(client)
    assert not h.provider.requests


def test_a_day_of_a_schedule_has_a_cap_that_no_call_passes(tmp_path):
    store = Store(tmp_path / "db")
    spending = Spending(store, Caps(allow_unpriced=True))
    price = Decimal(1)
    model = replace(MODEL, price_input=price, price_output=price, max_output_tokens=100_000)
    request = ModelRequest(model, [Message("user", "hi")])

    def account(turn, day="2026-11-26"):
        return Account(turn, "s", schedule="x", schedule_day=day, max_cost_per_day=Decimal("0.15"))

    first = spending.meter(account("t1")).open(request)  # holds 0.10 and more
    second = spending.meter(account("t2")).open(request)
    assert second.request.model.max_output_tokens < first.request.model.max_output_tokens
    child = Account("t3", "s3", schedule="x", parent=account("t2"))
    with pytest.raises(BudgetError, match=r"one schedule may cost in a day"):
        for _ in range(100):
            spending.meter(child).open(request)
    (held,) = store.spent([Limit("schedule", account("t").day_of_schedule, None, "", "")])
    assert held <= 150_000_000
    spending.meter(account("t4", day="2026-11-27")).open(request)
    store.close()


def test_costs_by_schedule_are_told_with_their_names(desk):
    d = desk()
    one = d.add(name="news")
    for schedule in (one.schedule_id, one.schedule_id, "gone", ""):
        entry = Entry((), "default", schedule, "turn", "p", "m", 1, True, timestamp())
        d.store.reserve(entry, [], lambda _spent, _held: 7)
    rows = Spending(d.store).report("schedule")["rows"]
    told = [(row["name"], row["title"], row["calls"]) for row in rows]
    assert told == [(one.schedule_id, "news", 2), ("gone", "(deleted)", 1)]


def test_a_run_that_takes_too_long_ends_and_says_so(house):
    def slow(request, token):
        request.deadline.check("The model")
        threading.Event().wait(request.deadline.remaining() + 0.01)  # the time that it may take
        request.deadline.check("The model")

    h = house(slow, timeout_secs=1, notify_after_failures=1)
    with h.client() as client:
        h.create(session_id=client.session)
        h.now += 600
        h.scheduler.wake()
        assert "[scheduler] timeout_secs" in notices(client)


def test_nothing_is_promised_where_nothing_runs(house):
    h = house()
    made = h.create()
    off = Counter(Scheduler(h.store, replace(h.scheduler_config, enabled=False), h.hub))
    for action in ("create", "resume", "run-now"):
        with pytest.raises(UsageError, match="enabled is false"):
            off.command({"action": action, "goal": "x", "schedule_id": made["schedule_id"]})
    listed = off.command({})
    assert "enabled is false" in listed["warning"]
    assert listed["schedules"][0]["next_runs"] == []
    assert "warning" not in h.counter.command({})


def test_what_is_deleted_stops(tmp_path):
    held = Held("a", "b")
    h = House(tmp_path / "db", held)
    try:
        one, other = h.create(), h.create(cadence_value="900")
        h.now += 600
        h.scheduler.wake()
        assert held.asked.acquire(timeout=60)
        (fire,) = h.store.claimed()
        h.counter.command({"action": "delete", "schedule_id": one["schedule_id"]})
        eventually(lambda: h.scheduler.state()["running"] == 0)
        assert h.store.turn(fire.turn_id).state is TurnState.CANCELLED
        (left,) = h.counter.command({})["schedules"]
        assert left["schedule_id"] == other["schedule_id"]
    finally:
        held.release.set()
        h.stop()


def test_what_earlier_attempts_cost_counts_in_the_cap_of_a_run(desk):
    d = desk()
    one = d.add()
    scheduler = Scheduler(d.store, d.config, SimpleNamespace(followers=list), lambda: NOW)
    d.engine.step(NOW + 600)
    d.end_all(NOW + 600, ok=False, again=True, cost=400_000_000)
    d.engine.step(NOW + 660)
    ((_, fire),) = d.begun
    turn = Turn(fire.turn_id, one.session_id, SCHEDULED, TurnState.QUEUED, "")
    account, _ = scheduler.terms_of(turn)
    assert account.max_cost == Decimal("0.10")


def test_a_person_in_the_session_of_a_schedule_may_change_schedules(house):
    h = house()
    one = h.create()
    args = {"schedule_id": one["schedule_id"], "action": "pause"}
    h.provider.steps[:] = [calls(("schedule_edit", json.dumps(args))), "Paused."]
    with h.client(session_id=f"scheduled:{one['schedule_id']}") as client:
        client.turn("rest for now", "t1", session=client.session)
        client.until("turn_completed")
    assert h.counter.command({})["schedules"][0]["status"] == "paused"
