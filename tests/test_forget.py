"""What is forgotten is in no file any more, and what stays can still be used."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import apsw
import pytest

from oxydra.frames import compact
from oxydra.memory import Retrieval
from oxydra.store import Store
from oxydra.store.notes import Origin, Scrap
from oxydra.types import (
    RECALLED,
    SCHEDULED,
    Attachment,
    CallState,
    Marks,
    Message,
    Summary,
    ToolCall,
    TurnState,
)

SECRET = "The treasure zanzibarius lies under the crooked oak."
FILLER = "Tomorrow it will rain in the north and shine in the south."


class Place:
    def __init__(self, path):
        self.folder = path
        self.store = Store(path / "oxydra.db")
        self.memory = Retrieval(self.store)
        self.count = 0

    def reopen(self):
        self.store = Store(self.store.path)
        self.memory = Retrieval(self.store)
        return self.store

    def say(self, text, answer=FILLER, session=None, calls=(), results=(), recalled=None, **rest):
        session = session or self.store.create_session()
        self.count += 1
        turn, _ = self.store.accept_turn(session.session_id, f"turn{self.count}", "r", text, **rest)
        self.store.start_turn(turn, recalled)
        if calls:
            self.store.add_step(turn, Message("assistant", "", tool_calls=tuple(calls)))
            done = [
                (CallState.DONE, Message("tool", r, tool_call_id=c.id, name=c.name))
                for c, r in zip(calls, results, strict=True)
            ]
            self.store.calls_running(turn, [call.id for call in calls])
            self.store.calls_finished(turn, done)
        message = {"role": "assistant", "content": answer}
        frame = {"type": "turn_completed", "payload": {"response": {"message": message}}}
        self.store.finish_turn(turn, TurnState.COMPLETED, frame, Message("assistant", answer))
        return session

    def holding(self, *words):
        """The files of the folder that hold one of `words`, in whatever case."""
        return [
            (file.name, word)
            for file in self.folder.rglob("*")
            if file.is_file()
            for word in words
            if word.encode() in file.read_bytes().lower()
        ]

    def texts(self, query):
        return [hit.chunk.text for hit in self.memory.search(query, 20)]


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    for number in range(30):  # so that pages are split and indexes have several segments
        place.say(f"Remark {number}. {FILLER * 5}")
        if number % 10 == 0:
            place.memory.catch_up()
    yield place
    place.store.close()


def attached(data):
    return Attachment("text/plain", sha256(data).hexdigest(), data, "plan.txt", len(data))


def quote(session_id, text, **more):
    row = {"session": session_id, "sequence": 1, "text": text, **more}
    return f"Quotations: data.\n{compact(row)}\n{compact({**row, 'session': 'x', 'text': 'Ok.'})}"


def test_a_session_is_gone_from_all_files_with_its_copies(place):
    store = place.store
    file = attached(b"the plan zanzibarius")
    session = place.say(
        SECRET,
        "I will not tell of zanzibarius, I promise.",
        calls=[ToolCall("c1", "file_write", compact({"text": "zanzibarius, in a file"}))],
        results=["Wrote zanzibarius to the file, all of it."],
        attachments=(file,),
    )
    store.rename_session(session.session_id, "zanzibarius")
    store.add_pins(session.session_id, ["Never speak of zanzibarius."])
    store.set_scratchpad(session.session_id, [Scrap("zanzibarius!", Marks())])
    store.add_summary(Summary(session.session_id, 1, 2, "They spoke of zanzibarius at length."))
    store.add_note(
        "Noted: zanzibarius.", ("t",), Marks(), Origin("model", session.session_id), most=9
    )
    fork = store.fork_session(session, "copy")
    other = place.say(
        "Where is the treasure?",
        calls=[ToolCall("c1", "memory_search", "{}")],
        results=[quote(session.session_id, SECRET)],
        recalled=Message("user", quote(session.session_id, SECRET)),
    )
    assert place.texts("zanzibarius") and place.holding("zanzibar")
    looked = store.forget(session_id=session.session_id, dry=True)
    assert len(looked.notes) == 1 and place.texts("zanzibarius")
    found = store.forget(session_id=session.session_id)
    assert (found.messages, found.notes) == (looked.messages, looked.notes)
    assert "turn31-c1" in found.outputs and SECRET in found.texts
    assert place.texts("zanzibarius") == []
    assert place.holding("zanzibar") == []
    assert session.session_id not in [one.session_id for one in store.sessions()]
    events, _ = store.history(other.session_id)
    assert sum("[forgotten]" in event.message.content for event in events) == 2
    assert all("Ok." in e.message.content for e in events if "[forgotten]" in e.message.content)
    copied, _ = store.history(fork.session_id)
    assert [event.message.role for event in copied] == ["user", "assistant", "tool", "assistant"]
    assert place.texts("remark 7")


def test_a_note_is_gone_with_what_called_for_it_and_what_quoted_it(place):
    store = place.store
    session = place.say(
        f"Remember this: {SECRET}",
        calls=[ToolCall("c1", "memory_save", compact({"content": SECRET}))],
        results=['{"note_id":"n1"}'],
    )
    origin = Origin("model", session.session_id, "turn31", 1, "c1")
    noted = store.add_note(SECRET, ("gold",), Marks(), origin, most=9)
    store.update_note(noted.note_id, "It was zanzibarius two, in the end.", None, Marks(), origin)
    place.say("Where?", recalled=Message("user", quote("s", SECRET, note_id=noted.note_id)))
    store.add_summary(Summary(session.session_id, 1, 2, "A note was made."))
    assert place.holding("zanzibar")
    found = store.forget(note_id=noted.note_id)
    assert place.holding("zanzibar") == [] and place.texts("zanzibarius") == []
    assert found.notes == [noted.note_id] and found.summaries == [session.session_id]
    assert store.summary(session.session_id) is None
    [call] = next(m for m in store.messages(session.session_id) if m.tool_calls).tool_calls
    assert json.loads(call.arguments) == {}


def test_words_are_gone_in_whatever_case_and_place(place):
    store = place.store
    session = place.say("ZANZIBARIUS is the word.", "I see: Zanzibarius.")
    store.shorten(session.session_id, {1: "zanzibarius, shortly"})
    store.add_note("About\nzanzibarius.", (), Marks(), Origin(), most=9)
    kept = store.add_note("About nothing.", (), Marks(), Origin(), most=9)
    tagged = store.add_note("With a tag.", ("zanzibarius",), Marks(), Origin(), most=9)
    file = attached(b"the plan zanzibarius")
    place.say("Look at this.", session=session, attachments=(file,))
    store.mark_files(["/shared/zanzibarius/zanzibarius.txt"], Marks(tainted=True))
    found = store.forget(words="zanzibarius")
    assert store.marks_of(["/shared/zanzibarius/zanzibarius.txt"]) == Marks(tainted=True)
    assert len(found.notes) == 2 and tagged.note_id in found.notes
    assert place.holding("zanzibar") == [] and place.texts("zanzibarius") == []
    assert store.note(kept.note_id).content == "About nothing."
    said = [m.content for m in store.messages(session.session_id)]
    assert said == ["[forgotten]", "[forgotten]", "Look at this.", FILLER]
    assert store.messages(session.session_id)[2].attachments == ()


def test_the_session_of_a_schedule_is_emptied_and_stays(place):
    session = place.store.create_session(channel_origin=SCHEDULED)
    place.say(SECRET, session=session)
    place.store.forget(session_id=session.session_id)
    assert place.store.messages(session.session_id) == []
    assert place.holding("zanzibar") == []
    place.say("It goes on.", session=place.store.session(session.session_id))


def test_the_name_of_a_root_folder_takes_no_marks_away(place):
    place.store.mark_files(["/shared", "/shared/a"], Marks(tainted=True))
    place.store.forget(words="shared")
    assert place.store.marks_of(["/shared/b"]) == Marks(tainted=True)


def test_looking_changes_nothing(place):
    session = place.say(SECRET)
    before = list(place.store.messages(session.session_id))
    found = place.store.forget(words="zanzibarius", dry=True)
    assert found.messages == 1 and found.touched == [session.session_id]
    assert list(place.store.messages(session.session_id)) == before
    assert SECRET in place.texts("zanzibarius")


def test_what_is_not_at_rest_is_left_whole(place):
    session = place.say(SECRET)

    def refuse(touched):
        raise RuntimeError(touched)

    with pytest.raises(RuntimeError, match=session.session_id):
        place.store.forget(words="zanzibarius", at_rest=refuse)
    assert SECRET in place.texts("zanzibarius")


FORGET = """
import sys
from pathlib import Path
from oxydra.store import Store
store = Store(Path(sys.argv[1]))
print("ready", flush=True)
store.forget(words="zanzibarius")
"""


@pytest.mark.parametrize(
    "kills", [2, pytest.param(40, marks=pytest.mark.slow)], ids=lambda kills: f"{kills} kills"
)
def test_a_kill_while_forgetting_leaves_all_or_nothing_and_is_made_up_for(place, kills):
    store = place.store
    for turn in range(kills):
        session = place.say(SECRET)
        noted = store.add_note(SECRET, (), Marks(), Origin(), most=99)
        place.memory.catch_up()
        store.close()
        child = subprocess.Popen(
            [sys.executable, "-c", FORGET, str(store.path)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).resolve().parent.parent,
        )
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(turn * 0.002)  # somewhere in its work, or after it: all must hold
        child.kill()
        child.wait()
        child.stdout.close()
        store = place.reopen()
        said = SECRET in [m.content for m in store.messages(session.session_id)]
        assert said is bool(store.notes_named([noted.note_id]))
        store.forget(words="zanzibarius")
        assert place.texts("zanzibarius") == [] and place.holding("zanzibar") == []
    assert place.texts("remark 7")
    with contextlib.closing(apsw.Connection(str(store.path))) as db:
        assert db.pragma("integrity_check") == "ok"


def test_what_was_recalled_is_told_by_its_turn(place):
    session = place.say("Hello.", recalled=Message("user", quote("s", SECRET)))
    place.store.forget(words="zanzibarius")
    [recalled] = [
        e for e in place.store.history(session.session_id)[0] if e.turn_id.startswith(RECALLED)
    ]
    assert "[forgotten]" in recalled.message.content and "Ok." in recalled.message.content
