"""The index of vectors: the same answer with a sidecar, without one, and with a broken one."""

from __future__ import annotations

import random

import apsw
import pytest

from oxydra.embed import similarities
from oxydra.embed.base import packed
from oxydra.embed.deterministic import Deterministic
from oxydra.errors import Cancelled
from oxydra.memory import Retrieval, sidecar, vectors
from oxydra.memory.sidecar import Covered, Sidecar, vss_problem, writes_as_faiss
from oxydra.memory.vectors import VectorIndex
from oxydra.store import Store
from oxydra.threads import CancelToken
from tests.test_memory import say, texts

needs_vss = pytest.mark.skipif(bool(vss_problem()), reason=vss_problem() or "it can")
pytestmark = needs_vss
MANY = 30
BACKEND = Deterministic()


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "FEW", 5)
    store = Store(tmp_path / "oxydra.db")
    fill(store, range(MANY))
    yield store
    store.close()


def fill(store, numbers):
    session = store.create_session()
    for number in numbers:
        say(
            store,
            session,
            number,
            f"Item {'abcdefghij'[number % 10] * 4} is in box{number * 7919}.",
        )
    Retrieval(store, BACKEND).catch_up()


def index(store):
    return VectorIndex(store, BACKEND)


def exact(store, query, most=10):
    """What comparing all vectors gives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sidecar, "vss_problem", lambda: "not now")
        kept = store.sidecars
        patch.setattr(store, "sidecars", list)
        found = index(store).nearest(query, most)
        assert store.sidecars != kept
    return found


def near_of(store, ids):
    """How near these are: of two that are as near as each other either may come first."""
    held = dict(store.vectors_after(BACKEND.model, 0))
    return [round(near, 4) for near in similarities(question(), [held[key] for key in ids])]


def question(word="box7919"):
    return BACKEND.query("", [(word, 1.0), ("aaaa", 0.5)])


def test_our_index_is_byte_for_byte_what_the_extension_writes():
    assert writes_as_faiss()


@pytest.mark.parametrize("inserted", [False, True], ids=["written", "inserted"])
def test_a_sidecar_answers_as_comparing_all_does(tmp_path, monkeypatch, inserted):
    if inserted:
        monkeypatch.setattr(sidecar, "writes_as_faiss", lambda: False)
    chance = random.Random(1)
    rows = [(n * 3, packed([chance.gauss(0, 1) for _ in range(16)])) for n in range(1, 200)]
    covered = Covered("m", 16, len(rows), rows[-1][0], b"h")
    path = tmp_path / "x.vectors-1"
    sidecar.build(path, covered, [rows[:100], rows[100:]])
    assert [p.name for p in tmp_path.iterdir()] == ["x.vectors-1"]
    side = Sidecar(path)
    assert side.covered == covered
    scan = vectors.scan(16)
    scan.add(rows)
    for _, query in rows[::17]:
        if isinstance(scan, vectors.Matrix):
            assert [key for key, _ in side.nearest(query, 9)] == [
                k for k, _ in scan.nearest(query, 9)
            ]
        assert side.nearest(query, 1)[0][1] == pytest.approx(0, abs=1e-5)
    assert len(side.nearest(rows[0][1], 10_000)) == len(rows)
    side.close()


def test_a_vector_of_another_length_is_refused_and_a_cancelled_build_leaves_nothing(tmp_path):
    path = tmp_path / "x.vectors-1"
    with pytest.raises(ValueError, match="another length"):
        sidecar.build(path, Covered("m", 16, 1, 1, b"h"), [[(1, packed([1.0]))]])
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        sidecar.build(path, Covered("m", 1, 1, 1, b"h"), [[(1, packed([1.0]))]], token)
    assert list(tmp_path.iterdir()) == []


def test_the_tail_behind_a_sidecar_is_compared_and_a_new_one_replaces_it(store):
    own = index(store)
    assert own.due() and own.rebuild() and not own.due()
    assert near_of(store, own.nearest(question(), 10)) == near_of(store, exact(store, question()))
    fill(store, range(MANY, MANY + 3))
    assert len(own.nearest(question(), 100)) == MANY + 3
    assert own.report()["compared_vectors"] == 3 and not own.due()
    fill(store, range(MANY + 3, MANY + 20))
    [before] = store.sidecars()
    assert own.due() and own.rebuild()
    [after] = store.sidecars()
    assert after != before
    assert near_of(store, own.nearest(question(), 10)) == near_of(store, exact(store, question()))
    assert own.report()["compared_vectors"] == 0


def test_a_sidecar_is_used_again_after_a_restart_unless_it_is_not_of_this_database(store):
    assert index(store).rebuild()
    [path] = store.sidecars()
    own = index(store)
    assert len(own.nearest(question(), 100)) == MANY and own.report()["compared_vectors"] == 0
    assert store.sidecars() == [path]
    with store._transaction() as db:  # as a restored backup may have it
        db.execute(
            "UPDATE vectors SET hash = x'00' WHERE vector_id = (SELECT max(vector_id) FROM vectors)"
        )
    again = index(store)
    assert len(again.nearest(question(), 100)) == MANY
    assert store.sidecars() == []


@pytest.mark.parametrize("how", ["deleted", "damaged", "cut", "empty", "half-built"])
def test_a_lost_sidecar_costs_nothing_but_time(store, how):
    assert index(store).rebuild()
    [path] = store.sidecars()
    whole = path.read_bytes()
    match how:
        case "deleted":
            path.unlink()
        case "damaged":
            path.write_bytes(b"\xff" * len(whole))
        case "cut":
            path.write_bytes(whole[: len(whole) // 2])
        case "empty":
            path.write_bytes(b"")
        case "half-built":
            path.rename(path.with_name(path.name + ".new"))
    own = index(store)
    assert near_of(store, own.nearest(question(), 10)) == near_of(store, exact(store, question()))
    assert own.rebuild() and len(store.sidecars()) == 1
    assert near_of(store, own.nearest(question(), 10)) == near_of(store, exact(store, question()))


def test_what_is_gone_is_not_found_and_many_that_are_gone_make_a_new_one_due(store):
    memory = Retrieval(store, BACKEND)
    assert memory.tend()
    with store._transaction() as db:
        db.execute("DELETE FROM chunk_words WHERE rowid <= 10")
        db.execute("DELETE FROM chunks WHERE chunk_id <= 10")
    assert not any("box7919." in text for text in texts(memory.search("box7919", 50)))
    assert memory.tend()


def test_what_was_erased_is_in_no_file_and_no_copy_from_before_is_taken(store):
    own = index(store)
    store.on_erased(own.forget)
    assert own.rebuild()
    with store._erasing() as db:
        db.execute("DELETE FROM chunk_words WHERE rowid = 3")
        [gone] = db.execute("SELECT vector FROM vectors WHERE vector_id = 3").fetchall()
        db.execute("DELETE FROM chunks WHERE hash = (SELECT hash FROM vectors WHERE vector_id = 3)")
    assert store.sidecars() == [] and 3 not in own.nearest(question(), 100)

    class Erasing(CancelToken):
        def check(self):
            own.forget()  # in the middle of the build

    assert not own.rebuild(Erasing()) and store.sidecars() == []
    assert own.rebuild()
    store.rewrite()
    for path in store.path.parent.iterdir():
        assert gone[0] not in path.read_bytes()


def test_without_the_extension_all_are_compared(store, monkeypatch):
    monkeypatch.setattr(sidecar, "vss_problem", lambda: "it cannot be loaded")
    own = index(store)
    assert not own.due() and not own.rebuild()
    assert len(own.nearest(question(), 100)) == MANY
    assert own.report()["sqlite_vss"] == "it cannot be loaded"


def test_a_sidecar_that_breaks_while_it_is_used_is_dropped(store, monkeypatch):
    own = index(store)
    assert own.rebuild()

    def broken(query, most):
        raise apsw.CorruptError("broken")

    monkeypatch.setattr(own._sidecar, "nearest", broken)
    assert near_of(store, own.nearest(question(), 10)) == near_of(store, exact(store, question()))
    assert store.sidecars() == []
