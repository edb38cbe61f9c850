"""`Retrieval`: what was noted, or said in any of a user's conversations, found again.

It first indexes what came since the last search, so that nothing said is missed. Candidates come
from the index of words, where a chunk is also found by its neighbours' words at a lower weight, and
from the vectors that are nearest to the question's; `ranking` puts them in order. No thread is
started here; any thread may search.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

from oxydra.embed import Embedder, similarities
from oxydra.errors import OxydraError
from oxydra.memory import chunks
from oxydra.memory.ranking import Candidate, Weights, rank
from oxydra.memory.vectors import VectorIndex
from oxydra.store import Store
from oxydra.store.upkeep import REBUILT
from oxydra.threads import CancelToken
from oxydra.types import EVERYWHERE, Chunk, Found, Json, Scope

log = logging.getLogger(__name__)

OWN_WEIGHT, NEARBY_WEIGHT = 1.0, 0.4  # by measurement: `make bench-memory`
BEST = 2.2  # of BM25 for each word, times its rarity: k1 + 1
BREATH = 0.001  # seconds between two transactions of a rebuild
EMBEDDED = 128  # texts whose vectors are made at once
CANDIDATES = 80  # by words
NEAREST = 30  # by meaning
COUNTED = 1500  # chunks that a word is looked for in to know how rare it is
MATCHES = 4000  # chunks whose words are compared; rarer words come first
FEW = 200  # chunks, up to which no word is too common
TELLING = ((10, True), (5, False))  # of so many chunks one may hold a word, nearby or itself
SPREAD = 5  # chunks that a word finds for one that it stands in
WITHIN = 2000  # chunks of a scope that are compared one by one
LEAST_MEANING = 0.4  # cosine below which nearness alone says nothing
AT_ONCE = 32  # events that are indexed before any search


class Retrieval:
    """Searches what `store` holds. Without an `embedder`, by words alone."""

    def __init__(
        self, store: Store, embedder: Embedder | None = None, weights: Weights | None = None
    ) -> None:
        self._store = store
        self._weights = weights or Weights()
        self._embedder = embedder if self._weights.meaning else None
        self._vectors = None if embedder is None else VectorIndex(store, embedder)
        if self._vectors is not None:
            store.on_erased(self._vectors.forget)
        self._failed = ""  # why the backend last failed

    def catch_up(self, token: CancelToken | None = None, *, quick: bool = False) -> int:
        """Index what is on the list; returns how many events that were. Raises `Cancelled`.

        The vectors of a metered backend, and of one that is not ready where this is to be `quick`,
        are made later, by `oxydra.memory.indexer`.
        """
        done = 0
        embedder = self._embedder
        later = embedder is None or embedder.metered or (quick and not embedder.ready)
        local = None if later else embedder
        while count := self._index_some(local):
            done += count
            if token is not None:
                token.check()
        return done

    def _index_some(self, local: Embedder | None) -> int:
        try:
            return self._store.index_batch(chunks.split, chunks.spaceless, local)
        except OxydraError as error:
            if local is None:
                raise
            self._say(error)
            return self._store.index_batch(chunks.split, chunks.spaceless)

    def behind(self) -> int:
        """How many texts are still without a vector that can be compared."""
        return 0 if self._embedder is None else self._store.embed_later(self._embedder.model)

    def embed_rest(self, token: CancelToken | None = None, *, metered: bool = False) -> int:
        """Make the vectors that are missing, after a change of the backend those of all that there
        is; returns how many. Where that may cost money, only what is new, or all if `metered`.
        Raises `OxydraError`, `Cancelled`.
        """
        done = 0
        embedder = self._embedder
        while embedder is not None:
            fresh = embedder.metered and not metered
            texts = self._store.unembedded(EMBEDDED, fresh=fresh)
            if not texts:
                break
            vectors = embedder.embed([text for _, text in texts], token)
            pairs = zip([key for key, _ in texts], vectors, strict=True)
            self._store.set_vectors(embedder.model, list(pairs))
            done += len(texts)
            if token is not None:
                token.check()
        return done

    def rebuild(
        self, token: CancelToken | None = None, at: Callable[[str, int], None] = lambda *_: None
    ) -> None:
        """Make everything that is derived anew, while what is there is searched: chunks and their
        words, the vectors that are missing, the index of vectors. `at` is told of each stage and of
        how much of it is done. Raises `OxydraError`, `Cancelled`.
        """
        store, token = self._store, token or CancelToken()
        if store.mend_word_indexes():
            at("listed anew", store.to_index())
        place: tuple[str, int] | None = ("", 0)
        done = 0
        while place is not None:
            place = store.reindex_batch(place, chunks.split, chunks.spaceless)
            done += REBUILT
            at("messages and notes", done)
            token.wait(BREATH)  # a lock is not fair: who waits to write comes first now
            token.check()
        self.catch_up(token)
        embedder = self._embedder
        store.drop_orphans(
            *(("", 0) if embedder is None else (embedder.model, embedder.dimensions))
        )
        self.behind()
        at("vectors", store.to_embed())
        self.embed_rest(token, metered=True)
        if self._vectors is not None:
            at("index of vectors", 0)
            self._vectors.forget()
            self._vectors.rebuild(token)

    def check(self) -> list[str]:
        """What is wrong with the database, the indexes in it and the index of vectors."""
        found = self._store.index_troubles()
        if self._embedder is not None:
            found += self._store.vector_troubles(self._embedder.model, self._embedder.dimensions)
        return found + (self._vectors.check() if self._vectors is not None else [])

    def report(self) -> Json:
        """How much is held, and by what it is searched."""
        embedder = self._embedder
        return {
            **self._store.index_sizes(),
            "backend": "" if embedder is None else embedder.model,
            "dimensions": 0 if embedder is None else embedder.dimensions,
            "failed": self._failed,
            **({} if self._vectors is None else self._vectors.report()),
        }

    def tend(self, token: CancelToken | None = None) -> bool:
        """Build the index of vectors anew where that is due; whether it was. Raises `Cancelled`."""
        vectors = self._vectors
        return vectors is not None and vectors.due() and vectors.rebuild(token)

    def search(
        self,
        query: str,
        top_k: int,
        scope: Scope = EVERYWHERE,
        *,
        token: CancelToken | None = None,
        fresh: bool = True,
    ) -> list[Found]:
        """At most `top_k` chunks within `scope` that fit `query`, best first; no text twice. A
        score is above 0, and near 1 where all of the question is met.
        `fresh`: index what came since first, all of it, else only where that is little, and look
        at meaning only where the backend is ready for it. Raises `Cancelled`.
        """
        if fresh or 0 < self._store.to_index(besides=scope.unless_of) <= AT_ONCE:
            self.catch_up(token, quick=not fresh)
        words = chunks.words(query)
        counts = self._store.counts(words, COUNTED)
        total = self._store.about_chunks()
        rarity = [math.log(1 + max(total - count, 0) / (count + 0.5)) for count in counts]
        found = self._by_words(query, chosen(words, counts, total), scope)
        most = max((one.words for one in found.values()), default=0.0)
        fits = [most / (BEST * sum(rarity))] if sum(rarity) else []
        if self._embedder is not None and words and (fresh or self._embedder.ready):
            weighed = list(zip(words, rarity, strict=True))
            self._by_meaning(self._embedder, found, query, weighed, scope, token)
            fits += [one.meaning for one in found.values()]
        fit = min(1.0, max(fits, default=1.0))
        pinned = self._store.pinned_sessions()
        return rank(found.values(), query, top_k, self._weights, fit=fit, pinned=pinned)

    def _by_words(
        self, query: str, terms: Sequence[tuple[str, bool]], scope: Scope
    ) -> dict[int, Candidate]:
        weights = (OWN_WEIGHT, NEARBY_WEIGHT)
        hits = self._store.find_words(terms, weights, CANDIDATES, scope, MATCHES)
        hits += self._store.find_trigrams(chunks.trigrams(query), CANDIDATES, scope)
        found: dict[int, Candidate] = {}
        for chunk, score in hits:
            found.setdefault(chunk.chunk_id, Candidate(chunk)).words += score
        return found

    def _by_meaning(
        self,
        embedder: Embedder,
        found: dict[int, Candidate],
        query: str,
        words: Sequence[tuple[str, float]],
        scope: Scope,
        token: CancelToken | None,
    ) -> None:
        """Add how near each of `found` is, and what is near though its words are others."""
        try:
            vector = embedder.query(query, words, token)
            nearest = self._near(embedder, vector, scope)
        except OxydraError as error:
            if token is not None:
                token.check()
            self._say(error)
            return
        missing = list(found)
        held = self._store.vectors_of_chunks(missing, embedder.model)
        near = [(found[key].chunk, held[key]) for key in missing if key in held]
        others = [one for one in nearest if one[0].chunk_id not in found]
        cosines = similarities(vector, [stored for _, stored in near + others])
        for (chunk, _), cosine in zip(near + others, cosines, strict=True):
            if chunk.chunk_id in found or cosine >= LEAST_MEANING:
                one = found.setdefault(chunk.chunk_id, Candidate(chunk))
                one.meaning = embedder.trust * cosine

    def _near(self, embedder: Embedder, vector: bytes, scope: Scope) -> list[tuple[Chunk, bytes]]:
        """The chunks within `scope` that may be nearest, with their vectors."""
        if scope.tags or scope.since or scope.until or not scope.conversations:
            few = self._store.vectors_within(scope, embedder.model, WITHIN)
            if few is not None:
                return few
        assert self._vectors is not None
        ids = self._vectors.nearest(vector, NEAREST)
        return self._store.chunks_of_vectors(ids, embedder.model, scope)

    def _say(self, error: OxydraError) -> None:
        """Log what the backend suffers from, once for each kind of it."""
        if self._failed != str(error):
            self._failed = str(error)
            log.warning("memory is searched by words alone: %s", error)


def chosen(words: Sequence[str], counts: Sequence[int], total: int) -> list[tuple[str, bool]]:
    """The words to look for, the rarest first, each with whether it is looked for in what stands
    around a chunk as well. One that stands in many chunks tells little of each: it is not looked
    for around them, or not at all. Neither is what would have more than about `MATCHES` chunks
    compared. Of words that are all too common, the rarest.
    """
    found: list[tuple[str, bool]] = []
    matches = 0
    for count, word in sorted(zip(counts, words, strict=True)):
        for share, nearby in TELLING:
            cost = count * SPREAD if nearby else count
            telling = total <= FEW or count * share <= total
            if telling and (total <= MATCHES or (count < COUNTED and matches + cost <= MATCHES)):
                found.append((word, nearby))
                matches += cost
                break
    if not found and words:
        found.append((min(zip(counts, words, strict=True))[1], False))
    return found
