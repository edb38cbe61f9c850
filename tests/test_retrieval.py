"""Search by words and by meaning: backends, vectors, ranking, and indexing in the background."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oxydra import embed
from oxydra.embed import similarities, unpacked
from oxydra.embed.base import packed
from oxydra.embed.deterministic import Deterministic
from oxydra.embed.registry import installed
from oxydra.errors import ConfigError, TransportError
from oxydra.memory import Indexer, Retrieval, Weights
from oxydra.memory.ranking import Candidate, label_of, rank
from oxydra.memory.retrieval import FEW, MATCHES, chosen
from oxydra.memory.vectors import Matrix, Signs
from oxydra.store import Store
from oxydra.types import CallState, Chunk, Marks, Message, Scope, ToolCall
from tests.test_memory import HOSTILE, say, texts

PATIENCE = 120
ROOT = Path(__file__).resolve().parent.parent
needs_wordllama = pytest.mark.skipif(
    not installed("wordllama"), reason="the extra `embeddings` is not installed"
)
BACKENDS = ["deterministic", pytest.param("wordllama", marks=needs_wordllama)]


class Counting(Deterministic):
    """Remembers what it was asked for; fails while `broken`."""

    def __init__(self, model="counting", broken=False):
        self.model = model
        self.broken = broken
        self.asked = []

    def embed(self, texts, token=None):
        if self.broken:
            raise TransportError("no backend", kind="broken")
        self.asked += texts
        return super().embed(texts)


# ---------------------------------------------------------------------------------------- backends


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_gives_the_same_vectors_of_length_one_wherever_a_text_stands(name):
    backend = embed.create(name)
    said = ["The fox sleeps.", "", "狐狸 🦊", "x" * 2000, "\ud800", "The fox sleeps."]
    vectors = backend.embed(said)
    assert len(vectors) == len(said) and vectors[0] == vectors[-1]
    assert vectors == [backend.embed([text])[0] for text in said]
    for vector in (vectors[0], vectors[3], backend.query("fox", [("fox", 2.0)])):
        numbers = unpacked(vector)
        assert len(numbers) == backend.dimensions >= backend.scanned
        assert math.isclose(sum(n * n for n in numbers), 1, rel_tol=1e-4)


@pytest.mark.parametrize("name", BACKENDS)
def test_what_is_alike_is_nearer(name):
    backend = embed.create(name)
    query = backend.query("sleeping foxes", [("sleeping", 1.0), ("foxes", 1.0)])
    near, far = similarities(query, backend.embed(["a fox sleeps", "bread needs flour"]))
    assert near > far


@needs_wordllama
def test_meaning_is_found_without_a_common_word():
    backend = embed.create("wordllama")
    query = backend.query("doctor", [("doctor", 1.0)])
    near, far = similarities(query, backend.embed(["physician", "railway timetable"]))
    assert near > far + 0.2


def test_auto_is_what_is_installed_and_a_backend_that_is_not_says_how_to_get_it(monkeypatch):
    assert embed.chosen("deterministic") == "deterministic"
    monkeypatch.setitem(embed.registry.NEEDS, "wordllama", ("no_such_package",))
    assert embed.chosen("auto") == "deterministic"
    with pytest.raises(ConfigError) as caught:
        embed.create("wordllama")
    assert "oxydra[embeddings]" in caught.value.remedy


@pytest.mark.parametrize("block", ["", "numpy"])
def test_the_package_of_wordllama_and_its_hub_are_never_imported(block):
    """And without numpy there is still a search."""
    code = f"""
import sys, tempfile, pathlib
if {block!r}: sys.modules[{block!r}] = None
from oxydra import embed
from oxydra.memory import Retrieval
from oxydra.store import Store
assert "numpy" not in sys.modules or sys.modules["numpy"] is None
store = Store(pathlib.Path(tempfile.mkdtemp()) / "oxydra.db")
name = "deterministic" if {block!r} else "auto"
print(Retrieval(store, embed.create(name)).search("the fox", 3))
assert not {{"wordllama", "huggingface_hub"}} & set(sys.modules)
store.close()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_a_vector_is_packed_to_length_one_and_a_broken_one_is_refused():
    assert list(unpacked(packed([3.0, 4.0]))) == pytest.approx([0.6, 0.8])
    assert list(unpacked(packed([0.0, math.inf]))) == [0, 0]
    with pytest.raises(Exception, match="damaged"):
        unpacked(b"abc")
    assert similarities(packed([1.0, 0.0]), [packed([1.0, 0.0]), b"", packed([1.0])]) == [1, 0, 0]


# ----------------------------------------------------------------------------------------- vectors


def scans():
    return [Signs(), *([Matrix(8)] if embed.base.numpy_installed() else [])]


@pytest.mark.parametrize("scan", scans(), ids=lambda scan: type(scan).__name__)
def test_the_nearest_come_first(scan):
    rows = [(n + 1, packed([1 if at <= n else -1 for at in range(8)])) for n in range(8)]
    scan.add(rows[:5])
    scan.add(rows[5:])
    assert len(scan) == 8
    assert [key for key, _ in scan.nearest(rows[7][1], 3)] == [8, 7, 6]
    assert [key for key, _ in scan.nearest(rows[7][1], 100)] == [8, 7, 6, 5, 4, 3, 2, 1]


def test_a_text_has_one_vector_however_often_it_is_said_and_none_when_it_is_gone(store):
    counting = Counting()
    first, second = store.create_session(), store.create_session()
    say(store, first, 1, "The fox sleeps.")
    say(store, second, 1, "The fox sleeps.", "Indeed.")
    memory = Retrieval(store, counting)
    memory.catch_up()
    assert sorted(counting.asked) == ["Indeed.", "The fox sleeps."]
    say(store, second, 2, "The fox sleeps.")
    memory.catch_up()
    assert len(counting.asked) == 2 and store.vector_count("counting") == 2
    assert texts(memory.search("fox", 5)) == ["The fox sleeps.", "Indeed."]
    with store._transaction() as db:
        db.execute("DELETE FROM chunks WHERE text = 'Indeed.'")
    assert store.vector_count("counting") == 1


def test_a_new_name_of_a_session_makes_no_vector_again(store):
    counting = Counting()
    session = store.create_session(display_name="zeppelins")
    say(store, session, 1, "They are slow.")
    memory = Retrieval(store, counting)
    memory.catch_up()
    store.rename_session(session.session_id, "airships")
    assert texts(memory.search("airships", 5)) == ["They are slow."]
    assert counting.asked == ["They are slow."]


def test_what_tools_said_is_found_with_its_marks_but_not_what_memory_gave(store):
    session = store.create_session()
    turn, _ = store.accept_turn(session.session_id, "t", "r", "Look at the page.")
    store.start_turn(turn)
    for name, text in (("web_fetch", "Foxes are crepuscular."), ("memory_search", "crepuscular?")):
        said = Message("tool", text, tool_call_id=name, name=name, tainted=True)
        store.add_step(turn, Message("assistant", "", (ToolCall(name, name, "{}"),)))
        store.calls_running(turn, [name])
        store.calls_finished(turn, [(CallState.DONE, said)])
    [hit] = Retrieval(store).search("crepuscular", 5)
    assert hit.chunk.role == "tool" and hit.chunk.marks == Marks(tainted=True)


def test_a_backend_that_fails_costs_the_vectors_of_that_time_only(store):
    counting = Counting(broken=True)
    say(store, store.create_session(), 1, "The fox sleeps.")
    memory = Retrieval(store, counting)
    assert texts(memory.search("fox", 5)) == ["The fox sleeps."]
    assert (store.to_index(), store.to_embed()) == (0, 1)
    counting.broken = False
    assert memory.embed_rest() == 1 and store.to_embed() == 0


def test_another_backend_embeds_all_again_while_search_goes_on(store):
    session = store.create_session()
    for number in range(5):
        say(store, session, number, f"Item{number} is blue.")
    Retrieval(store, Counting("one")).catch_up()
    memory = Retrieval(store, Counting("two"))
    assert memory.behind() == 5
    assert len(memory.search("blue", 10)) == 5
    assert memory.embed_rest() == 5
    assert (memory.behind(), store.vector_count("one"), store.vector_count("two")) == (0, 0, 5)


def test_a_narrow_scope_is_compared_with_all_that_is_in_it(store):
    session = store.create_session()
    say(store, session, 1, "The fox sleeps under the oak.")
    memory = Retrieval(store, Deterministic())
    assert memory.search("foxx", 5, Scope(until="2000-01-01T00:00:00.000+00:00")) == []
    since = Scope(since="2000-01-01T00:00:00.000+00:00")
    assert len(memory.search("sleeping foxes", 5, since)) == 1


# ----------------------------------------------------------------------------------------- ranking


def chunk(number, text, role="user", session="s"):
    return Chunk(number, session, number, "t", role, text, Marks(), "2026-01-01T00:00:00")


def order(candidates, query, weights=None, **rest):
    return [hit.chunk.chunk_id for hit in rank(candidates, query, 10, weights or Weights(), **rest)]


def test_the_weights_decide_between_words_and_meaning():
    both = [Candidate(chunk(1, "words"), 5.0, 0.0), Candidate(chunk(2, "sense", session="r"), 1, 1)]
    assert order(both, "", Weights(1, 0)) == [1, 2]
    assert order(both, "", Weights(0.1, 0.9)) == [2, 1]
    assert order(both, "", Weights(0, 1)) == [2]


def test_who_is_asked_about_and_what_answers_come_first():
    said = ["Ann: I ski.", "Bob: I ski too.", "Ann: Do you ski?", "Bob: Ann skis."]
    found = [Candidate(chunk(n, text), 1.0) for n, text in enumerate(said)]
    assert order(found, "Does Bob ski?") == [3, 1, 0, 2]
    assert order(found, "Do Ann and Bob ski?")[-1] == 2
    assert (label_of("Ann Lee: hi"), label_of("no label"), label_of("12: x")) == ("ann lee", "", "")


def test_a_question_for_a_time_prefers_what_names_one():
    found = [
        Candidate(chunk(1, "We met last May."), 1.0),
        Candidate(chunk(2, "We met there."), 1.0),
    ]
    assert order(found, "When did we meet?") == [1, 2]
    assert order(found, "Where did we meet?") == [2, 1]


def test_pinned_notes_come_first_and_what_says_the_same_comes_once():
    twice = "the quick brown fox jumps over the lazy dog again and again"
    found = [
        Candidate(chunk(1, twice), 1.0),
        Candidate(chunk(2, twice.title() + "!", session="r"), 0.9),
        Candidate(chunk(3, "the note", "note", "note:3"), 0.95),
    ]
    assert order(found, "fox", pinned={"note:3"}) == [3, 1]


def test_the_rarest_words_are_looked_for_first_and_the_most_common_not_at_all():
    assert chosen(["fox", "the"], [3, 200], FEW) == [("fox", True), ("the", True)]
    told = [("fox", True), ("some", False)]
    assert chosen(["fox", "some", "the"], [3, 500, 1500], 3000) == told
    few, common = chosen(["common", "rare", "some"], [1500, 3, 1200], 100 * MATCHES), ("the", False)
    assert few == [("rare", True), ("some", False)]
    assert chosen(["the"], [1500], 100 * MATCHES) == [common]
    assert chosen([], [], 5) == []


# ---------------------------------------------------------------------------------------- indexer


def test_the_indexer_sleeps_until_something_is_stored_and_ends_with_what_is_left_on_the_list(store):
    embedded = threading.Event()

    class Telling(Counting):
        def embed(self, texts, token=None):
            embedded.set()
            return super().embed(texts)

    counting = Telling()
    memory = Retrieval(store, counting)
    indexer = Indexer(store, memory, quiet_seconds=0)
    indexer.start()
    try:
        say(store, store.create_session(), 1, "The fox sleeps.")
        assert embedded.wait(PATIENCE)
    finally:
        assert indexer.stop(PATIENCE)
    say(store, store.create_session(), 1, "Bread needs flour.")
    assert store.to_index() == 1
    again = Indexer(store, memory, quiet_seconds=0)
    embedded.clear()
    again.start()  # takes up what was left
    try:
        assert embedded.wait(PATIENCE)
    finally:
        assert again.stop(PATIENCE)
    assert sorted(counting.asked) == ["Bread needs flour.", "The fox sleeps."]


# ---------------------------------------------------------------------------------- any question


SYNTAX = [
    '"',
    "'",
    "AND",
    "OR",
    "NOT",
    "NEAR(",
    ")",
    "^",
    "*",
    "-",
    "+",
    ":",
    "{",
    "}",
    ",",
    "text",
]
SYNTAX += ["nearby :", "\0", "🦊", "狐狸在公园里", "أين", "fox", "\ud800", "\x1b[2J", "%"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(SYNTAX),
            st.text(max_size=20),
        ),
        max_size=12,
    ).map(" ".join)
)
def test_no_question_is_an_error_whatever_is_in_it(asked, query):
    for top_k in (1, 5):
        hits = asked.search(query, top_k)
        assert len(hits) <= top_k and all(0 < hit.score < 10 for hit in hits)


@pytest.fixture(scope="module", params=BACKENDS)
def asked(request, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("asked") / "oxydra.db")
    session = store.create_session(display_name='"AND" {text} : 狐')
    say(store, session, 1, "The fox \0 sleeps. 狐狸在公园里 🦊", "Ok \ud800 NEAR(a b)")
    say(store, session, 2, 'Ann: "where" is (it) * ^ text : fox?', "أين ينام الثعلب")
    yield Retrieval(store, embed.create(request.param))
    store.close()


@pytest.mark.parametrize("query", HOSTILE, ids=lambda query: repr(query[:12]))
def test_no_hostile_question_is_an_error(asked, query):
    assert all(hit.score > 0 for hit in asked.search(query, 5))


def test_a_turn_does_without_meaning_while_the_backend_is_not_ready(store):
    class Slow(Counting):
        ready = False

        def query(self, text, words, token=None):
            self.asked.append(text)
            return super().query(text, words)

    say(store, store.create_session(), 1, "The fox sleeps.")
    backend = Slow()
    memory = Retrieval(store, backend)
    memory.catch_up()
    backend.asked.clear()
    assert texts(memory.search("fox", 5, fresh=False)) == ["The fox sleeps."] and not backend.asked
    assert texts(memory.search("fox", 5)) == ["The fox sleeps."] and backend.asked == ["fox"]


def test_a_numpy_that_cannot_be_imported_costs_the_vectors_only(store, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "numpy.py").write_text("raise ImportError('libopenblas is missing')\n")
    code = f"""
import sys
sys.path.insert(0, {str(broken)!r})
from pathlib import Path
from oxydra import embed
from oxydra.memory import Retrieval
from oxydra.store import Store
from tests.test_memory import say, texts
store = Store(Path({str(tmp_path / "other.db")!r}))
say(store, store.create_session(), 1, "The fox sleeps.")
memory = Retrieval(store, embed.create("deterministic"))
assert texts(memory.search("fox", 5)) == ["The fox sleeps."]
assert "libopenblas" in memory.report()["failed"]
store.close()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
