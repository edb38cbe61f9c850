"""Memory's indexes are checked, made anew, and survive `kill -9` at any moment of that."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from oxydra.config import MemoryConfig
from oxydra.embed.deterministic import Deterministic
from oxydra.errors import Cancelled
from oxydra.memory import Indexer, Notebook, Retrieval
from oxydra.memory.sidecar import vss_problem
from oxydra.store import Store
from oxydra.threads import CancelToken
from tests.conftest import eventually
from tests.test_memory import say, texts

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 120
SAID = 40


def fill(store):
    session = store.create_session(display_name="boxes")
    for number in range(SAID):
        say(store, session, number, f"Item number{number} is in box{number}.")
    Notebook(store, MemoryConfig()).save("The spare key is in box99.", ["keys"])


def damage(store, sql):
    with store._transaction() as db:
        db.execute(sql)


DAMAGES = {
    "a chunk without words": ("DELETE FROM chunk_words WHERE rowid = 5", "index of words lacks"),
    "words without a chunk": ("DELETE FROM chunks WHERE chunk_id = 5", "without a chunk"),
    "no vector": ("DELETE FROM vectors WHERE vector_id = 5", "without a vector"),
    "a cut vector": ("UPDATE vectors SET vector = x'00' WHERE vector_id = 5", "another length"),
    "another text's hash": ("UPDATE chunks SET hash = x'00' WHERE chunk_id = 5", "another text"),
    "an event that was missed": (
        "DELETE FROM chunk_words WHERE rowid = 5; DELETE FROM chunks WHERE chunk_id = 5",
        "neither indexed nor listed",
    ),
    "a broken index": ("UPDATE chunk_words_data SET block = x'0000' WHERE id > 10", "damaged"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_what_is_damaged_is_told_and_made_anew(store, what):
    memory = Retrieval(store, Deterministic())
    fill(store)
    memory.catch_up()
    assert memory.check() == []
    sql, told = DAMAGES[what]
    damage(store, sql)
    assert any(told in trouble for trouble in memory.check())
    stages = []
    memory.rebuild(at=lambda stage, done: stages.append(stage))
    assert memory.check() == [] and "messages and notes" in stages
    for number in range(SAID):
        assert (
            texts(memory.search(f"box{number}", 5))[0] == f"Item number{number} is in box{number}."
        )
    assert texts(memory.search("box99", 5))[0] == "The spare key is in box99."


@pytest.mark.parametrize("session_id", ["a" * 16, "z" * 16], ids=["before", "after"])
def test_a_rebuild_comes_to_every_message_and_note(store, monkeypatch, session_id):
    """Whether a session's id is sorted before those of notes or after them."""
    monkeypatch.setattr("oxydra.store.upkeep.REBUILT", 3)
    fill(store)
    Notebook(store, MemoryConfig()).save("A second one.", [])
    session = store.create_session()
    with store._transaction() as db:
        row = (session_id, 1, "t", json.dumps({"role": "user", "content": "hello"}), "2026")
        db.execute("PRAGMA defer_foreign_keys = ON")
        db.execute(
            "INSERT INTO sessions SELECT ?, agent_name, display_name, channel_origin, created_at,"
            " last_active_at, archived, last_sequence, activity FROM sessions WHERE session_id = ?",
            (session_id, session.session_id),
        )
        db.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?)", row)
        db.execute("DELETE FROM to_index")
    Retrieval(store).rebuild()
    assert store.index_sizes()["chunks"] == SAID + 3


def test_a_rebuild_keeps_everything_searchable_and_stops_when_it_is_told(store):
    memory = Retrieval(store, Deterministic())
    fill(store)
    memory.catch_up()
    token = CancelToken()

    def at(stage, done):
        assert len(memory.search("item", SAID + 5, fresh=False)) == SAID
        token.cancel()

    with pytest.raises(Cancelled):
        memory.rebuild(token, at)
    assert memory.check() == []


def test_a_rebuild_makes_the_vectors_of_a_metered_backend_and_nothing_else_does(store):
    class Metered(Deterministic):
        metered = True

    memory = Retrieval(store, Metered())
    fill(store)
    memory.catch_up()
    damage(store, "UPDATE to_embed SET fresh = 0")  # as a change of the backend has it
    assert memory.embed_rest() == 0 and store.to_embed() == SAID + 1
    memory.rebuild()
    assert store.to_embed() == 0


def test_the_indexer_rebuilds_when_it_is_asked_and_says_how_far_it_is(store):
    fill(store)
    memory = Retrieval(store, Deterministic())
    indexer = Indexer(store, memory, quiet_seconds=3600)  # what a rebuild does not wait for
    indexer.start()
    try:
        indexer.rebuild()
        eventually(lambda: not indexer.report()["rebuilding"], PATIENCE)
    finally:
        assert indexer.stop(PATIENCE)
    assert memory.report()["chunks"] == SAID + 1 == memory.report()["vectors"]
    assert indexer.report() == {"rebuilding": False, "stage": "", "trouble": ""}


# ----------------------------------------------------------------------------------------- kill -9

# One process that has everything imported makes a child for each kill. A child says a byte at each
# step of indexing, rebuilding, building and swapping; it is killed after so many of them.
KILLS = """
import os, signal, sys
from pathlib import Path
from oxydra.embed.deterministic import Deterministic
from oxydra.memory import Retrieval, vectors
from oxydra.store import Store, memory, upkeep
from oxydra.store import vectors as stored
from oxydra.threads import CancelToken
memory.BATCH = upkeep.REBUILT = stored.PORTION = 7
vectors.FEW = 5

def work(path, told):
    class Telling(CancelToken):
        def check(self):
            os.write(told, b".")
    store, token = Store(path), Telling()
    found = Retrieval(store, Deterministic())
    with store._transaction() as db:
        db.execute("INSERT OR IGNORE INTO to_index SELECT session_id, sequence FROM events")
    token.check()
    found.catch_up(token)
    found.rebuild(token, lambda *_: token.check())
    found.tend(token)
    token.check()
    os.close(told)
    signal.pause()

path, kills, killed = Path(sys.argv[1]), int(sys.argv[2]), 0
for turn in range(kills):
    hears, tells = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(hears)
        work(path, tells)
    os.close(tells)
    left = 1 + turn % 40
    while left and os.read(hears, 1):
        left -= 1
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    os.close(hears)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit("a child failed")  # it said why
    killed += os.WIFSIGNALED(status)
print(killed)
"""


@pytest.mark.parametrize("kills", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_a_kill_while_indexing_rebuilding_or_swapping_loses_nothing_and_doubles_nothing(
    tmp_path, monkeypatch, kills
):
    path = tmp_path / "oxydra.db"
    store = Store(path)
    fill(store)
    store.close()
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(path), str(kills)], cwd=ROOT, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout) == kills
    monkeypatch.setattr("oxydra.memory.vectors.FEW", 5)
    store = Store(path)
    memory = Retrieval(store, Deterministic())
    for number in range(SAID):
        found = texts(memory.search(f"box{number}", 60))
        assert found.count(f"Item number{number} is in box{number}.") == 1
    assert memory.check() == []
    assert (store.to_index(), store.to_embed()) == (0, 0)
    sizes = store.index_sizes()
    assert (sizes["chunks"], sizes["vectors"]) == (SAID + 1, SAID + 1)
    memory.tend()
    report = memory.report()
    if not vss_problem():
        assert report["sidecar_vectors"] + report["compared_vectors"] == SAID + 1
    assert [file.name for file in store.sidecars()] == [report["sidecar"]] * bool(report["sidecar"])
    store.close()
    db = apsw.Connection(str(path))
    assert db.pragma("integrity_check") == "ok"
    db.close()
