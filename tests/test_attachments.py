"""Attachments: each content once, in a file named by its hash, there before anybody is told."""

from __future__ import annotations

import hashlib
import os
import shutil

import pytest

from oxydra.errors import NotFoundError, StoreFullError, UsageError
from oxydra.store import Files, Store
from oxydra.types import Attachment, Message, TurnState

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)
PDF = b"%PDF-1.7 " + bytes(100)


def attachment(data, name=""):
    kind = "image/png" if data.startswith(b"\x89PNG") else "application/pdf"
    return Attachment(kind, hashlib.sha256(data).hexdigest(), data, name)


def say(store, *files, turn="t1", session=None):
    session = session or store.create_session().session_id
    turn, _ = store.accept_turn(session, turn, "q", "look", tuple(files))
    return session, turn


def there(store):
    return sorted(os.listdir(store.files.folder)) if store.files.folder.exists() else []


def test_each_content_is_one_file(store):
    png, pdf = attachment(PNG, "a.png"), attachment(PDF)
    session, turn = say(store, png, attachment(PNG, "b.png"), pdf)
    assert there(store) == sorted((png.sha256, pdf.sha256))
    assert [a.name for a in store.turn("t1").attachments] == ["a.png", "b.png", ""]
    assert [a.data for a in store.turn("t1").attachments] == [PNG, PNG, PDF]
    before = os.stat(store.files.folder / png.sha256)
    say(store, png, turn="t2")
    assert there(store) == sorted((png.sha256, pdf.sha256))
    assert os.stat(store.files.folder / png.sha256) == before
    assert before.st_mode & 0o777 == 0o600
    assert store.files.folder.stat().st_mode & 0o777 == 0o700
    store.start_turn(turn)
    assert [a.data for a in store.messages(session)[0].attachments] == [PNG, PNG, PDF]
    assert store.files.size() == len(PNG) + len(PDF)


def test_nothing_of_it_is_in_the_database(store):
    say(store, attachment(PDF))
    store.close()
    held = b"".join(path.read_bytes() for path in store.path.parent.glob("oxydra.db*"))
    assert PDF[:9] not in held


def test_what_a_model_made_is_kept_as_well(store):
    session, turn = say(store)
    store.start_turn(turn)
    made = Message("assistant", "here", attachments=(attachment(PNG),))
    terminal = {"type": "turn_completed", "payload": {}}
    store.finish_turn(turn, TurnState.COMPLETED, terminal, made)
    assert there(store) == [attachment(PNG).sha256]
    assert store.messages(session)[-1].attachments[0].data == PNG


def test_a_fork_reads_the_same_file(store):
    session, turn = say(store, attachment(PNG))
    store.start_turn(turn)
    terminal = {"type": "turn_completed", "payload": {}}
    store.finish_turn(turn, TurnState.COMPLETED, terminal, Message("assistant", "seen"))
    copy = store.fork_session(store.session(session), "copy")
    assert store.messages(copy.session_id)[0].attachments[0].data == PNG
    assert there(store) == [attachment(PNG).sha256]


def test_another_database_may_read_them_and_holds_no_copy(store, tmp_path):
    session, turn = say(store, attachment(PNG))
    event = store.start_turn(turn)
    folder = tmp_path / "scratch"
    folder.mkdir()
    scratch = Store(folder / "scratch.db", files=store.files)
    scratch.copy_session(store.session(session), [event])
    assert scratch.messages(session)[0].attachments[0].data == PNG
    scratch.close()
    assert not (folder / "attachments").exists()


def test_old_ones_are_read_from_the_database(store):
    """An earlier version put them into its table `blobs`."""
    session, turn = say(store, attachment(PNG))
    store.start_turn(turn)
    with store._transaction() as db:
        db.execute("INSERT INTO blobs VALUES (?, ?)", (attachment(PNG).sha256, PNG))
        db.execute("DELETE FROM files")
    shutil.rmtree(store.files.folder)
    assert store.messages(session)[0].attachments[0].data == PNG
    assert store.turn("t1").attachments[0].data == PNG


@pytest.mark.parametrize("damage", ["gone", "cut", "changed", "linked"])
def test_what_is_lost_is_empty_and_the_conversation_goes_on(store, damage, tmp_path):
    session, turn = say(store, attachment(PNG))
    store.start_turn(turn)
    path = store.files.folder / attachment(PNG).sha256
    if damage == "gone":
        path.unlink()
    elif damage == "linked":
        (tmp_path / "secret").write_bytes(PNG)
        path.unlink()
        path.symlink_to(tmp_path / "secret")
    else:
        path.write_bytes(PNG[:-1] if damage == "cut" else PNG[:-1] + b"x")
    (found,) = store.messages(session)[0].attachments
    assert (found.data, found.size) == (b"", len(PNG))


def test_a_name_that_is_no_hash_is_no_path(store):
    (store.path.parent / "outside").write_bytes(b"secret")
    assert store.files.data("../outside") is None
    with pytest.raises(Exception, match="SHA-256"):
        store.files.keep([Attachment("image/png", "../outside2", PNG)])
    assert not (store.path.parent / "outside2").exists()


def test_there_is_a_bound_for_all_of_them(tmp_path):
    store = Store(tmp_path / "oxydra.db", files=Files(tmp_path / "attachments", 200))
    session, _ = say(store, attachment(PDF))
    say(store, attachment(PDF), turn="t2")  # takes no more room
    with pytest.raises(UsageError, match="max_attachments_mib") as refused:
        say(store, attachment(PDF + b"."), turn="t3", session=session)
    assert refused.value.code == "too_large"
    assert store.turn("t3") is None
    say(store, attachment(PNG), turn="t4")
    store.close()


def test_a_folder_that_can_not_be_written_accepts_nothing(store):
    session = store.create_session().session_id
    store.files.folder.write_text("in the way")
    with pytest.raises(Exception, match="Attachments can't be kept"):
        say(store, attachment(PNG), session=session)
    assert store.turn("t1") is None
    say(store, turn="t2", session=session)


def test_a_full_disk_is_told_as_one(store, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreFullError):
        store.files.keep([attachment(PNG)])
    assert there(store) == []


def test_files_of_messages_that_were_never_accepted_go(store):
    with pytest.raises(NotFoundError):
        store.session("nobody")
    say(store, attachment(PNG))
    store.files.keep([attachment(PDF)])  # its transaction never came
    (store.files.folder / "new-0123").write_bytes(b"half")
    store.sweep_files()
    assert len(there(store)) == 3  # they may be about to be spoken of
    for path in store.files.folder.iterdir():
        os.utime(path, (1, 1))
    store.sweep_files()
    assert there(store) == [attachment(PNG).sha256]
