"""Files that people send to the bot: what becomes of them, and who waits for them."""

from __future__ import annotations

import contextlib
import threading

import pytest

from oxydra.channels import bot, intake, media
from oxydra.errors import ToolError
from oxydra.policy import parse_virtual
from oxydra.store.channels import Waiting
from oxydra.tools.confine import Workspace
from tests.conftest import eventually
from tests.fake_telegram import refusal
from tests.telegram_kit import GROUP, chatting

PNG = b"\x89PNG\r\n\x1a\n" + b"x" * 100
DOCUMENT = {"file_id": "d.bin", "file_name": "d.bin", "file_size": 3}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(intake, "PAUSES", (0.01, 0.05))


class Held:
    """A file that comes when it is let go."""

    def __init__(self, data=b"abc"):
        self.data = data
        self.asked, self.release = threading.Event(), threading.Event()

    def __call__(self, write):
        write(self.data[:1])
        self.asked.set()
        self.release.wait(300)
        write(self.data[1:])


@contextlib.contextmanager
def holding(path, *steps, **more):
    held = Held()
    with chatting(path, *steps, **more) as w:
        w.fake.slow["d.bin"] = held
        try:
            yield w, held
        finally:
            held.release.set()


# ---------------------------------------------------------------------------- what becomes of them


def test_images_are_attached_and_other_files_put_into_the_workspace(tmp_path):
    with chatting(tmp_path, "seen", "heard", "two", "gone") as w:
        w.fake.files |= {"p.png": PNG, "v.ogg": b"OggS", "q.png": PNG + b"q"}
        sizes = [{"file_id": "none", "file_size": 11 << 20}, {"file_id": "p.png", "file_size": 9}]
        w.fake.says("", photo=sizes, caption="What is it?")
        w.fake.wait_told("seen")
        w.fake.says("", voice={"file_id": "v.ogg", "file_unique_id": "u1", "file_size": 4})
        w.fake.wait_told("heard")
        w.settled()
        first, second = (request.messages[-1] for request in w.provider.requests)
        assert (first.content, first.attachments[0].mime_type) == ("What is it?", "image/png")
        assert first.tainted and second.tainted
        assert second.content == "[The voice voice-u1.ogg is in /shared/received/voice-u1.ogg]"
        assert w.received == {"voice-u1.ogg": b"OggS"}
        document = {"file_id": "gone", "file_name": "../../etc/passwd", "file_size": 5}
        w.fake.says("", document=document, caption="Read")
        w.fake.wait_told("two")
        assert "passwd could not be taken" in w.prompts()[-1] and "/" not in w.prompts()[-1]
        w.fake.says("", document={**document, "file_size": 90 << 20})
        w.fake.wait_told("gone")
        assert "larger than 20 MB" in w.prompts()[-1]
        w.settled()


def test_an_album_is_one_message(tmp_path):
    with chatting(tmp_path, "nice") as w:
        w.fake.files |= {"p.png": PNG, "q.png": PNG + b"q"}
        rows = [
            w.fake.message("", photo=[{"file_id": name}], media_group_id="g", **more)
            for name, more in (("p.png", {}), ("q.png", {"caption": "Our garden"}))
        ]
        w.fake.updates(*({"message": row} for row in rows))
        w.fake.wait_told("nice")
        w.settled()
        (request,) = w.provider.requests
        assert request.messages[-1].content == "Our garden"
        assert len(request.messages[-1].attachments) == 2


def test_each_kind_is_taken_and_is_not_the_persons_word(tmp_path):
    kinds = (*media.KINDS, "photo")
    with chatting(tmp_path, *kinds) as w:
        w.fake.files["x"] = b"some bytes that no model takes"
        for kind in kinds:
            row = {"file_id": "x", "file_unique_id": "u1", "file_size": 30}
            w.fake.says("", caption=kind, **{kind: [row] if kind == "photo" else row})
        w.settled()
        assert set(w.received.values()) == {w.fake.files["x"]}
        for kind, name, request in zip(kinds, w.received, w.provider.requests, strict=True):
            message = request.messages[-1]
            assert name.startswith(f"{kind}-u1") and message.tainted
            said = f"[The {kind} {name} is in /shared/received/{name}]"
            assert message.content == f"{kind}\n{said}"


def test_a_file_is_written_as_it_comes(tmp_path):
    piece, count = b"y" * (1 << 16), 100
    with chatting(tmp_path, "thanks") as w:
        largest = 0

        class Counted(bytearray):
            def extend(self, data):
                nonlocal largest
                largest = max(largest, len(data))
                super().extend(data)

        @contextlib.contextmanager
        def keep(name):
            data = Counted()
            yield media.Kept(f"/shared/received/{name}", data.extend)
            w.received[name] = bytes(data)

        w.bot._keep = keep
        w.fake.slow["d.bin"] = lambda write: [write(piece) for _ in range(count)]
        w.fake.says("", document=DOCUMENT)
        w.fake.wait_told("thanks")
        assert w.received == {"d.bin": piece * count}
        assert largest <= 1 << 20


@pytest.mark.parametrize("size", [media.MAX_FILE + 1, media.MAX_BYTES + 1])
def test_a_file_that_is_larger_than_was_said(tmp_path, size):
    with chatting(tmp_path, "thanks") as w:
        data = PNG + b"z" * (size - len(PNG))
        w.fake.slow["d.bin"] = lambda write: write(data)
        w.fake.says("", document=DOCUMENT)
        w.fake.wait_told("thanks")
        if size > media.MAX_FILE:
            assert "could not be taken" in w.prompts()[-1] and w.received == {}
        else:  # too large to be shown to a model
            assert w.received == {"d.bin": data}
            assert w.provider.requests[-1].messages[-1].attachments == ()


# ----------------------------------------------------------------------------------- nobody waits


def test_commands_and_other_chats_do_not_wait_for_a_file(tmp_path):
    with holding(tmp_path, "one", "two", "three") as (w, held):
        w.fake.says("", document=DOCUMENT, caption="first")
        assert held.asked.wait(60)
        w.fake.says("second")
        w.fake.says("/sessions")
        w.fake.wait_told("There is no conversation yet.")
        w.fake.says("Hi", who=43)
        w.fake.wait_told("one", 43)
        assert len(w.provider.requests) == 1
        held.release.set()
        w.fake.wait_told("three")
        w.settled()
        assert [said.split("\n")[0] for said in w.prompts()] == ["Hi", "first", "second"]
        assert w.fake.told() == ["There is no conversation yet.", "two", "three"]


@pytest.mark.parametrize("command", ["/cancel", "/cancelall"])
def test_what_waits_for_its_files_is_cancelled(tmp_path, command):
    with holding(tmp_path, "one") as (w, held):
        w.fake.says("", document=DOCUMENT, caption="first")
        w.fake.says("second")
        assert held.asked.wait(60)
        eventually(lambda: len(w.store.waiting("telegram")) == 2)
        w.fake.says(command)
        w.fake.wait_told("forgotten" if command == "/cancel" else "Stopping everything.")
        w.fake.says("third")
        w.fake.wait_told("one")
        w.settled()
        assert w.prompts() == ["third"] and w.received == {}
        w.fake.says("/cancel")
        w.fake.wait_told("Nothing runs here.")


def test_cancelling_in_one_chat_leaves_the_others(tmp_path):
    with holding(tmp_path, "one") as (w, held):
        w.fake.says("", document=DOCUMENT, caption="first", who=43)
        assert held.asked.wait(60)
        w.fake.says("/cancel")
        w.fake.wait_told("Nothing runs here.")
        held.release.set()
        w.fake.wait_told("one", 43)
        w.settled()


def test_what_was_cancelled_as_it_came_up_is_not_begun(tmp_path):
    with chatting(tmp_path, "one") as w:
        message = w.fake.message("gone")
        row = {
            "message": message,
            "sender": 42,
            "text": "gone",
            "album": [message],
            "edited": False,
        }
        w.bot._intake._take(Waiting(7, 42, 0, row))  # which waits no more
        w.fake.says("third")
        w.fake.wait_told("one")
        w.settled()
        assert w.prompts() == ["third"]


def test_an_edit_waits_for_what_it_corrects(tmp_path):
    with holding(tmp_path, "one", "two") as (w, held):
        message = w.fake.message("", document=DOCUMENT, caption="first")
        w.fake.update(message=message)
        assert held.asked.wait(60)
        w.fake.update(edited_message={**message, "caption": "corrected", "edit_date": 5})
        eventually(lambda: w.fake.confirmed)
        held.release.set()
        w.settled()
        assert w.prompts()[0].startswith("first\n")
        if len(w.prompts()) > 1:  # the first was not answered yet
            assert "It says now:]\ncorrected" in w.prompts()[-1]


# ------------------------------------------------------------------------------------- troubles


@pytest.mark.parametrize("how", ["it trickles", "it breaks", "it stalls"])
def test_a_file_that_can_not_be_had_is_given_up(tmp_path, monkeypatch, quick, how):
    asked = []
    done = threading.Event()

    def write(put):
        asked.append(how)
        put(b"x")
        while how == "it trickles" and not done.wait(0.02):
            put(b"x")
        if how == "it stalls":
            done.wait(300)
        raise OSError("cut off")

    with chatting(tmp_path, "one", "two") as w:
        w.fake.slow["d.bin"] = write
        if how == "it breaks":  # there is less than it says
            w.fake.claims["d.bin"] = 1000
        else:
            monkeypatch.setattr(bot, "ANSWER_SECONDS", 0.5)
        w.fake.says("", document=DOCUMENT, caption="first")
        w.fake.says("second")
        w.fake.wait_told("two")
        done.set()
        w.settled()
        assert len(asked) == intake.TRIES
        first, second = w.prompts()
        assert first.startswith("first\n[The document d.bin could not be taken: ")
        assert second == "second" and w.received == {}


def test_while_nobody_is_answered_no_attempt_counts(tmp_path, quick):
    down, tried = threading.Event(), threading.Semaphore(0)

    def fail(method, _params):
        if method == "getFile" and down.is_set():
            tried.release()
        return (502, {"bad": "gateway"}) if down.is_set() else None

    with holding(tmp_path, "one") as (w, held):
        w.fake.fail = fail
        w.fake.says("", document=DOCUMENT, caption="first", who=42)
        assert held.asked.wait(60)
        down.set()
        w.stop()
        w.start()
        for _ in range(intake.TRIES + 2):
            assert tried.acquire(timeout=60)
        held.release.set()
        down.clear()
        w.fake.wait_told("one")
        w.settled()
        assert w.received == {"d.bin": b"abc"}


def test_patience_that_is_asked_for_is_no_attempt_either(tmp_path, quick):
    left = [refusal(429, "Too Many Requests: retry after 0", retry_after=0)] * (intake.TRIES + 2)
    with chatting(tmp_path, "one") as w:
        w.fake.files["d.bin"] = b"abc"
        w.fake.fail = lambda method, _: left.pop() if left and method == "getFile" else None
        w.fake.says("", document=DOCUMENT)
        w.fake.wait_told("one")
        assert left == [] and w.received == {"d.bin": b"abc"}


def test_a_restart_loses_nothing_that_waits(tmp_path):
    with holding(tmp_path, "one", "two", "three", respond_in_groups="all") as (w, held):
        w.fake.says("", document=DOCUMENT, caption="first")
        w.fake.says("second")
        assert held.asked.wait(60)
        eventually(lambda: len(w.store.waiting("telegram")) == 2)
        w.stop()
        assert w.received == {}
        w.start()
        w.fake.says("in the group", chat=GROUP)
        w.fake.wait_told("one", GROUP)
        held.release.set()
        w.fake.wait_told("three")
        w.settled()
        assert [said.split("\n")[0] for said in w.prompts()] == ["in the group", "first", "second"]


def test_a_group_that_moves_takes_along_what_waits(tmp_path):
    new = -1009999999999
    groups = (str(GROUP), str(new))
    with holding(tmp_path, "one", respond_in_groups="all", groups=groups) as (w, held):
        w.fake.says("", document=DOCUMENT, caption="first", chat=GROUP)
        assert held.asked.wait(60)
        w.stop()
        w.start()
        w.store.chat_moved("telegram", GROUP, new)
        (waiting,) = w.store.waiting("telegram")
        assert waiting.chat == new
        held.release.set()
        w.settled()


# -------------------------------------------------------------------------------- in the workspace


@pytest.fixture
def workspace(tmp_path):
    for name in ("shared", "tmp", "vault"):
        (tmp_path / name).mkdir()
    with Workspace.at(tmp_path) as made:
        yield made


def test_a_file_is_there_when_it_is_whole(workspace, tmp_path):
    folder = tmp_path / "shared" / "received"
    path = parse_virtual("/shared/received/a")
    with workspace.create(path) as take:
        take(b"one ")
        assert not (folder / "a").exists()
        take(b"two")
    assert (folder / "a").read_bytes() == b"one two" and len(list(folder.iterdir())) == 1


def test_nothing_stays_of_one_that_is_broken_off(workspace, tmp_path):
    path = parse_virtual("/shared/received/a")
    with pytest.raises(RuntimeError), workspace.create(path) as take:
        take(b"one ")
        raise RuntimeError
    assert list((tmp_path / "shared" / "received").iterdir()) == []


def test_nothing_is_replaced_and_nothing_followed(workspace, tmp_path):
    folder = tmp_path / "shared" / "received"
    folder.mkdir()
    (folder / "a").write_text("old")
    with (
        pytest.raises(ToolError, match="exists"),
        workspace.create(parse_virtual("/shared/received/a")) as take,
    ):
        take(b"new")
    assert (folder / "a").read_text() == "old"
    (tmp_path / "shared" / "link").symlink_to(tmp_path / "vault")
    with pytest.raises(ToolError), workspace.create(parse_virtual("/shared/link/a")) as take:
        take(b"new")
    assert list((tmp_path / "vault").iterdir()) == []
