"""The store: durable moves, one writer, readers beside it, and what a kill leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import apsw
import pytest

from oxydra.errors import NotFoundError, StoreError, StoreFullError, UsageError
from oxydra.store import MIGRATIONS, Store
from oxydra.types import ASIDE, CallState, Message, ToolCall, TurnState


def running_turn(store, turn_id="t1", prompt="hello"):
    session = store.create_session()
    turn, created = store.accept_turn(session.session_id, turn_id, "r1", prompt)
    assert created
    store.start_turn(turn)
    return turn


def calls_message(*ids):
    return Message("assistant", tool_calls=tuple(ToolCall(i, "file_read", "{}") for i in ids))


def test_a_turn_from_acceptance_to_its_terminal_frame(store):
    turn = running_turn(store)
    store.add_step(turn, calls_message("c1"))
    store.calls_running(turn, ["c1"])
    store.calls_finished(turn, [(CallState.DONE, Message("tool", "ok", tool_call_id="c1"))])
    terminal = {"type": "turn_completed", "payload": {"x": 1}}
    store.finish_turn(turn, TurnState.COMPLETED, terminal, Message("assistant", "done"))

    stored = store.turn("t1")
    assert (stored.state, stored.terminal) == (TurnState.COMPLETED, terminal)
    roles = [m.role for m in store.messages(turn.session_id)]
    assert roles == ["user", "assistant", "tool", "assistant"]
    assert store.open_calls("t1") == []
    assert store.unfinished_turns() == []


def test_messages_come_back_as_they_were(store):
    turn = running_turn(store, prompt="grüße 🎈")
    message = Message(
        "assistant", "a\ud800b", tool_calls=(ToolCall("\udc00", "n", '{"cut": "\udfff'),)
    )
    store.add_step(turn, message)
    first, second = store.messages(turn.session_id)
    assert first.content == "grüße 🎈"
    assert second.content == "a?b"
    assert second.tool_calls[0].arguments == '{"cut": "?'
    store.calls_finished(turn, [(CallState.DONE, Message("tool", "x", tool_call_id="\udc00"))])
    assert store.open_calls(turn.turn_id) == []


def test_the_same_turn_id_is_one_turn(store):
    session = store.create_session()
    turn, created = store.accept_turn(session.session_id, "t", "r1", "hi")
    again, created_again = store.accept_turn(session.session_id, "t", "r2", "hi")
    assert (created, created_again) == (True, False)
    assert again == turn
    with pytest.raises(UsageError, match="already used"):
        store.accept_turn(session.session_id, "t", "r3", "something else")
    other = store.create_session()
    with pytest.raises(UsageError, match="already used"):
        store.accept_turn(other.session_id, "t", "r1", "hi")


def test_the_same_turn_id_from_many_threads_is_created_once(store):
    session = store.create_session()
    created = []
    barrier = threading.Barrier(8)

    def race():
        barrier.wait()
        created.append(store.accept_turn(session.session_id, "t", "r", "hi")[1])

    racers = [threading.Thread(target=race) for _ in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert sorted(created) == [False] * 7 + [True]


@pytest.mark.parametrize("state", [TurnState.COMPLETED, TurnState.RUNNING])
def test_a_finished_turn_moves_nowhere(store, state):
    turn = running_turn(store)
    store.finish_turn(turn, TurnState.FAILED, {"type": "error", "payload": {}})
    before = store.messages(turn.session_id)
    with pytest.raises(StoreError, match="cannot become"):
        if state is TurnState.RUNNING:
            store.start_turn(turn)
        else:
            store.finish_turn(turn, state, {}, Message("assistant", "late"))
    assert store.messages(turn.session_id) == before
    assert store.turn(turn.turn_id).state is TurnState.FAILED


def test_calls_move_only_along_their_states(store):
    turn = running_turn(store)
    store.add_step(turn, calls_message("a", "b"))
    done = (CallState.DONE, Message("tool", "x", tool_call_id="a"))
    unknown = (CallState.UNKNOWN, Message("tool", "x", tool_call_id="a"))
    with pytest.raises(StoreError, match="cannot become unknown"):
        store.calls_finished(turn, [unknown])  # it was never started
    store.calls_running(turn, ["a"])
    with pytest.raises(StoreError, match="cannot become unknown"):  # all or nothing
        both = [done, (CallState.UNKNOWN, Message("tool", "y", tool_call_id="b"))]
        store.calls_finished(turn, both)
    assert [(c.id, s) for c, s in store.open_calls("t1")] == [
        ("a", CallState.RUNNING),
        ("b", CallState.INTENDED),
    ]
    assert len(store.messages(turn.session_id)) == 2


def test_a_call_id_used_again_in_a_later_step_is_another_call(store):
    turn = running_turn(store)
    for _ in range(2):
        store.add_step(turn, calls_message("same"))
        store.calls_running(turn, ["same"])
        store.calls_finished(turn, [(CallState.DONE, Message("tool", "x", tool_call_id="same"))])
    assert store.open_calls("t1") == []


def test_a_sessions_title_is_the_beginning_of_its_first_message(store):
    turn = running_turn(store, prompt="Where did I put 漢字? " * 50)
    store.add_step(turn, Message("assistant", "there"))
    assert store.create_session().title == ""
    (found,) = [s for s in store.sessions() if s.session_id == turn.session_id]
    assert found.title == ("Where did I put 漢字? " * 50)[:80]
    assert store.find_session(turn.session_id) == found


def test_what_oxydra_said_is_no_title(store):
    session = store.create_session()
    turn, _ = store.accept_turn(session.session_id, "t1", "r1", "[a word] of mine")
    store.start_turn(turn, Message("user", f"{ASIDE}recalled from memory.]"))
    assert store.find_session(session.session_id).title == "[a word] of mine"


def test_sessions_are_found_by_prefix_and_by_name(store):
    first = store.create_session(display_name="work")
    second = store.create_session(display_name="a_b%")
    assert store.find_session(first.session_id[:6]) == first
    assert store.find_session("work") == first
    assert store.find_session("a_b%") == second
    for wanted in ("", "%", "_", "nothing", "wor"):
        with pytest.raises(NotFoundError):
            store.find_session(wanted)
    assert store.latest_session() is not None
    assert {s.session_id for s in store.sessions()} == {first.session_id, second.session_id}
    while True:  # until two ids share their first character
        third = store.create_session()
        same = [s for s in store.sessions() if s.session_id[0] == third.session_id[0]]
        if len(same) > 1:
            break
    with pytest.raises(UsageError, match="more characters"):
        store.find_session(third.session_id[0])


def test_history_pages_backwards(store):
    turn = running_turn(store)
    for number in range(6):
        store.add_step(turn, Message("assistant", str(number)))
    page, more = store.history(turn.session_id, limit=3)
    assert ([e.sequence for e in page], more) == ([5, 6, 7], True)
    page, more = store.history(turn.session_id, before_sequence=5, limit=10)
    assert ([e.sequence for e in page], more) == ([1, 2, 3, 4], False)


def test_readers_see_the_last_commit_while_a_writer_holds_the_database(store):
    turn = running_turn(store)
    with store._transaction():
        assert len(store.messages(turn.session_id)) == 1


def test_a_newer_schema_is_left_alone(tmp_path):
    path = tmp_path / "oxydra.db"
    Store(path).close()
    db = apsw.Connection(str(path))
    db.pragma("user_version", len(MIGRATIONS) + 1)
    db.close()
    with pytest.raises(StoreError, match="newer Oxydra"):
        Store(path)


def test_a_file_that_is_no_database(tmp_path):
    path = tmp_path / "oxydra.db"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreError, match="damaged"):
        Store(path)
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(tmp_path / "no" / "folder" / "oxydra.db")


def test_a_full_disk_loses_nothing_and_recovers(tmp_path):
    """SQLite's own page limit gives the error that a full disk gives, at the same calls."""
    store = Store(tmp_path / "oxydra.db")
    turn = running_turn(store)
    pages = store._writer.pragma("page_count")
    store._writer.pragma("max_page_count", pages)
    with pytest.raises(StoreFullError, match="Free some disk space"):
        store.add_step(turn, Message("assistant", "x" * 100_000))
    assert [m.role for m in store.messages(turn.session_id)] == ["user"]
    store._writer.pragma("max_page_count", 2**30)
    store.add_step(turn, Message("assistant", "x" * 100_000))
    assert len(store.messages(turn.session_id)) == 2
    store.close()


KILLED = """
import sys
from pathlib import Path
from oxydra.store import Store
from oxydra.types import Message
store = Store(Path(sys.argv[1]))
session = store.create_session()
turn, _ = store.accept_turn(session.session_id, "t", "r", "hi")
store.start_turn(turn)
number = 0
while True:
    event = store.add_step(turn, Message("assistant", "x" * 500))
    sys.stdout.write(f"{session.session_id} {event.sequence}\\n")
    sys.stdout.flush()
"""


@pytest.mark.parametrize("kill_after", [1, 7, 40])
def test_what_was_acknowledged_survives_kill_9(tmp_path, kill_after):
    path = tmp_path / "oxydra.db"
    root = Path(__file__).resolve().parent.parent
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    acknowledged = [child.stdout.readline() for _ in range(kill_after)]
    child.send_signal(signal.SIGKILL)
    acknowledged += child.stdout.readlines()
    child.wait()
    child.stdout.close()
    session_id, last = acknowledged[-1].split()
    store = Store(path)
    events, _more = store.history(session_id, limit=100_000)
    assert [e.sequence for e in events] == list(range(1, len(events) + 1))
    assert len(events) >= int(last)
    assert store._writer.pragma("integrity_check") == "ok"
    store.close()


def test_every_connection_is_durable_and_keeps_references(store):
    with store._reading() as db:
        names = ("journal_mode", "synchronous", "foreign_keys")
        found = [
            [connection.execute(f"PRAGMA {name}").get for name in names]
            for connection in (db, store._writer)
        ]
    assert found == [["wal", 2, 1], ["wal", 2, 1]]
    with pytest.raises(StoreError, match="FOREIGN KEY"), store._transaction() as db:
        db.execute("INSERT INTO pins VALUES ('nobody', 1, 'x', 0, 0, 'now')")
