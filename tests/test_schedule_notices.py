"""How people are told of scheduled runs, and how they learn that nothing runs."""

import queue
import threading

from oxydra.scheduler import service
from oxydra.store import notices as notices_store
from tests import schedule_kit
from tests.conftest import eventually
from tests.schedule_kit import NOW, notices

desk, house = schedule_kit.desk, schedule_kit.house


# ------------------------------------------------------------------------------------- being told


def test_what_was_made_on_the_command_line_is_told_to_all_that_are_connected(house):
    h = house("Hello.")
    with h.client() as one, h.client() as other:
        h.create(notification="always")
        h.now += 600
        h.scheduler.wake()
        first, second = (each.until("scheduled_notification") for each in (one, other))
        assert first["payload"] == second["payload"]
        assert first["payload"]["tainted"] is False


def test_a_client_gets_a_notice_once_however_often_it_changes_sessions(house):
    h = house("Hello.")
    with h.client() as client:
        h.create(notification="always")
        h.now += 600
        h.scheduler.wake()
        assert notices(client) == "Hello."
        other = h.hub.create_session().session_id
        client.send("switch_session", session_id=other)
        client.until("session_switched")
        done = threading.Event()
        h.scheduler._do(done.set)  # behind what the switch asked for
        assert done.wait(60)
        client.send("health_check")
        client.until("health_status")
    kinds = [frame["type"] for frame in client.seen]
    assert kinds.count("scheduled_notification") == 1


def test_a_channel_takes_its_own_notices_and_is_tried_again(house):
    h = house("Hello.")
    taken, settle = [], queue.SimpleQueue()

    def courier(notice, settled):
        taken.append((notice.context, notice.payload["message"]))
        settle.put(settled)

    h.scheduler.post.add("chat", courier)
    session = h.hub.create_session(channel_origin="chat:42:7").session_id
    h.create(session_id=session, notification="always")
    h.now += 600
    h.scheduler.wake()
    settle.get(timeout=60)("It is down.")
    eventually(lambda: [notice.attempts for notice in h.store.owed_notices()] == [1])
    with h.client() as client:  # it is not the gateway's
        client.send("health_check")
        client.until("health_status")
        assert "scheduled_notification" not in [frame["type"] for frame in client.seen]
    (notice,) = h.store.owed_notices()
    assert notice.not_before == h.now + 30
    h.now += 30
    h.scheduler.wake()
    settle.get(timeout=60)("")
    eventually(lambda: not h.store.owed_notices())
    assert taken == [("42:7", "Hello.")] * 2


def test_what_nobody_has_seen_is_bounded_and_its_numbers_are_new(desk):
    d = desk()
    one = d.add(notification="always")
    for times in range(1, notices_store.KEPT + 10):
        d.engine.step(NOW + 600 * times)
        d.end_all(NOW + 600 * times, output=f"run {times}")
    owed = d.store.owed_notices()
    assert len(owed) == notices_store.KEPT
    assert owed[-1].payload["message"] == f"run {notices_store.KEPT + 9}"
    d.store.notices_seen([notice.notice_id for notice in owed])
    d.engine.step(NOW + 86_400)
    d.end_all(NOW + 86_400, output="more")
    (new,) = d.store.owed_notices()
    assert new.notice_id > owed[-1].notice_id and new.schedule_id == one.schedule_id


# ------------------------------------------------------------------------------------- is it alive


def test_a_due_time_that_is_long_past_is_a_stall(house):
    h = house("Done.", poll_interval_secs=3600)
    assert not h.scheduler.state()["stalled"]
    h.create(cadence_value="86400")
    eventually(lambda: h.scheduler.state()["next_due"] == NOW + 86_400)
    h.now += 86_400 + service.STALLED + 1  # and the thread sleeps on
    assert h.scheduler.state()["stalled"]
    h.scheduler.wake()
    eventually(lambda: not h.scheduler.state()["stalled"])


def test_a_thread_that_does_not_come_around_is_a_stall(house, monkeypatch):
    h = house("Hello.")
    entered, leave = threading.Event(), threading.Event()

    def courier(_notice, _settled):
        entered.set()
        assert leave.wait(60)

    monkeypatch.setattr(service, "STALLED", 0.05)
    h.scheduler.post.add("chat", courier)
    session = h.hub.create_session(channel_origin="chat:1").session_id
    h.create(session_id=session, notification="always")
    h.now += 600
    h.scheduler.wake()
    assert entered.wait(60)
    eventually(lambda: h.scheduler.state()["stalled"])
    monkeypatch.setattr(service, "STALLED", 300.0)
    leave.set()
    eventually(lambda: not h.scheduler.state()["stalled"])


def test_a_thread_that_is_no_more_is_a_stall(house):
    h = house()
    assert h.scheduler.stop(60)
    assert h.scheduler.state()["stalled"]
