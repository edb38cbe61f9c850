"""Notes: kept with their history, their tags and their marks; found; gone when they are deleted."""

from __future__ import annotations

import pytest

from oxydra.errors import NotFoundError, UsageError
from oxydra.memory import Retrieval
from oxydra.store import Store
from oxydra.store.notes import Origin, moment
from oxydra.types import Marks, Message, Scope, TurnState

DONE = {"type": "turn_completed", "payload": {}}


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "oxydra.db")
    yield store
    store.close()


def note(store, content, *tags, most=100, **rest):
    return store.add_note(content, tags, Marks(**rest), Origin(), most=most)


def say(store, session, number, said):
    turn, _ = store.accept_turn(session.session_id, f"{session.session_id}/{number}", "r", said)
    store.start_turn(turn)
    store.finish_turn(turn, TurnState.COMPLETED, DONE, Message("assistant", "Ok."))
    return turn


def texts(store, query, **scope):
    return [hit.chunk.text for hit in Retrieval(store).search(query, 9, Scope(**scope))]


# ---------------------------------------------------------------------------------- the store


def test_an_update_supersedes_and_keeps_history_and_marks(store):
    first = note(store, "The gate code is 4711.", "home", tainted=True)
    second = store.update_note(first.note_id, "The gate code is 4712.", None, Marks(), Origin())
    assert (second.revision, second.tags, second.marks) == (2, ("home",), Marks(tainted=True))
    kept = [one.content for one in store.note_history(first.note_id)]
    assert kept == ["The gate code is 4712.", "The gate code is 4711."]
    assert texts(store, "gate code") == ["The gate code is 4712."]
    store.withdraw_revision(first.note_id, 2)
    assert texts(store, "gate code") == ["The gate code is 4711."]
    store.withdraw_revision(first.note_id, 1)
    with pytest.raises(NotFoundError):
        store.note(first.note_id)
    assert texts(store, "gate code") == []


def test_a_note_is_found_by_its_tags_and_only_where_the_scope_says(store):
    say(store, store.create_session(), 1, "The boat is in the harbour.")
    note(store, "The boat is called Ada.", "boats", "names")
    note(store, "The boat needs paint.", "boats")
    assert len(texts(store, "boat")) == 4  # with the answer, by its question
    both = {"The boat is called Ada.", "The boat needs paint."}
    assert set(texts(store, "boat", conversations=False)) == both
    assert set(texts(store, "boat", tags=("boats",))) == both
    assert texts(store, "boat", tags=("boats", "names")) == ["The boat is called Ada."]
    assert texts(store, "boat", tags=("x' OR 1=1 --",)) == []
    assert texts(store, "names") == ["The boat is called Ada."]


def test_times_limit_what_is_found(store):
    old = store.add_note(
        "A fox in May.", (), Marks(), Origin(), most=9, at=moment("2020-05-01T10:00:00+02:00")
    )
    assert old.created_at == "2020-05-01T08:00:00.000+00:00"
    note(store, "A fox today.")
    assert texts(store, "fox", until=moment("2020-06-01")) == ["A fox in May."]
    assert texts(store, "fox", since=moment("2020-06-01")) == ["A fox today."]
    for broken in ("", "yesterday", "9999-12-31T23:59:59-23:59", "2020-13-01"):
        with pytest.raises(UsageError):
            moment(broken)


def test_there_are_only_so_many(store):
    note(store, "One.", most=1)
    with pytest.raises(UsageError, match="max_notes"):
        note(store, "Two.", most=1)
