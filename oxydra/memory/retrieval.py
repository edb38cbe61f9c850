"""`Retrieval`: what was noted, or said in any of a user's conversations, found by its words.

It first indexes what came since the last search, so that nothing said is missed, then ranks what
the index finds: a chunk is also found by its neighbours' words, at a lower weight, and a session in
which much fits lends its chunks some of that. No thread is started here; any thread may search.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from oxydra.memory import chunks
from oxydra.store import Store
from oxydra.threads import CancelToken
from oxydra.types import EVERYWHERE, Chunk, Found, Scope

OWN_WEIGHT, NEARBY_WEIGHT = 1.0, 0.4  # these three by measurement: `make bench-memory`
SESSION_WEIGHT = 0.1  # of the mean of a session's best chunks
SESSION_BEST = 3
CANDIDATES = 300
AT_ONCE = 32  # events that are indexed before any search


class Retrieval:
    """Searches what `store` holds."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def catch_up(self, token: CancelToken | None = None) -> int:
        """Index what is on the list; returns how many events that were. Raises `Cancelled`."""
        done = 0
        while count := self._store.index_batch(chunks.split, chunks.spaceless):
            done += count
            if token is not None:
                token.check()
        return done

    def search(
        self,
        query: str,
        top_k: int,
        scope: Scope = EVERYWHERE,
        *,
        token: CancelToken | None = None,
        fresh: bool = True,
    ) -> list[Found]:
        """At most `top_k` chunks within `scope` that fit `query`, best first; no text twice.
        `fresh`: index what came since first, all of it, else only where that is little. Raises
        `Cancelled`.
        """
        if fresh or self._store.to_index() <= AT_ONCE:
            self.catch_up(token)
        weights = (OWN_WEIGHT, NEARBY_WEIGHT)
        found = self._store.find_words(chunks.words(query), weights, CANDIDATES, scope)
        found += self._store.find_trigrams(chunks.trigrams(query), CANDIDATES, scope)
        return rank(found, top_k)


def rank(found: Iterable[tuple[Chunk, float]], top_k: int) -> list[Found]:
    """The best of what the indexes found."""
    scores: dict[int, float] = defaultdict(float)
    by_id: dict[int, Chunk] = {}
    for chunk, score in found:
        scores[chunk.chunk_id] += score
        by_id[chunk.chunk_id] = chunk
    sessions: dict[str, list[float]] = defaultdict(list)
    for chunk_id, score in scores.items():
        sessions[by_id[chunk_id].session_id].append(score)
    lent = {
        session_id: SESSION_WEIGHT * sum(sorted(own)[-SESSION_BEST:]) / SESSION_BEST
        for session_id, own in sessions.items()
    }
    hits = [Found(by_id[i], score + lent[by_id[i].session_id]) for i, score in scores.items()]
    hits.sort(key=lambda hit: (-hit.score, -hit.chunk.chunk_id))
    once: dict[str, Found] = {}
    for hit in hits:
        once.setdefault(" ".join(hit.chunk.text.split()).casefold(), hit)
    return list(once.values())[:top_k]
