"""What the indexes found, put in order. Pure.

Words and meaning are added up with the weights of the configuration: what the words find counts by
the best of it, closeness in meaning by the cosine. Then what the question asks for is looked at,
then what the session is about. All numbers are by measurement: `make bench-memory`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from oxydra.types import Chunk, Found

MEANING_SCALE = 2.0  # makes of a good cosine what a good match of words is
SPEAKER = 1.0  # more for what the person said whom the question names
QUESTION = 0.2  # less for what is itself a question
MOMENT = 0.1  # more for what names a time, where the question asks for one
PINNED = 0.25  # more for a note that a person pinned
SESSION_WEIGHT = 0.1  # of the mean of a session's best chunks
SESSION_BEST = 3
NEAR = 0.9  # of their words that two texts share when one of them is enough
FEWEST = 5  # words of a text that is compared so

_WORD = re.compile(r"\w+")
_LABEL = re.compile(r"([^\W\d_][\w.'-]*(?: [\w.'-]+){0,2}): ")
_ASKS_WHEN = re.compile(r"\W*(?:when|how long|(?:what|which) (?:year|month|week|day|date|time))\b")
_MOMENT = re.compile(
    r"\b(?:yesterday|today|tonight|tomorrow|last|next|ago|weeks?|weekend|months?|years?|since"
    r"|recently|soon|(?:mon|tues|wednes|thurs|fri|satur|sun)day|january|february|march|april|may"
    r"|june|july|august|september|october|november|december|\d{4})\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Weights:
    """Of matching words and of similarity in meaning."""

    words: float = 0.75
    meaning: float = 0.25


@dataclass(slots=True)
class Candidate:
    """A chunk, how well its words fit (above 0 or 0) and the cosine of its meaning."""

    chunk: Chunk
    words: float = 0.0
    meaning: float = 0.0


def rank(
    found: Iterable[Candidate],
    query: str,
    top_k: int,
    weights: Weights,
    *,
    fit: float = 1.0,
    pinned: Collection[str] = (),
) -> list[Found]:
    """The best `top_k`, none that says the same as another. `fit`, from 0 to 1, is how well the
    best fits at all: scores are told by it. `pinned` are the sessions of pinned notes.
    """
    candidates = list(found)
    most = max((one.words for one in candidates), default=0.0) or 1.0
    labels = [label_of(c.chunk.text) if c.chunk.role == "user" else "" for c in candidates]
    speaker = _named(labels, query)
    when = _ASKS_WHEN.match(query.lower()) is not None
    scores: list[float] = []
    sessions: dict[str, list[float]] = defaultdict(list)
    for one, label in zip(candidates, labels, strict=True):
        score = weights.words * one.words / most
        score += weights.meaning * MEANING_SCALE * max(0.0, one.meaning)
        chunk = one.chunk
        factor = 1.0
        if label and label == speaker:
            factor += SPEAKER
        if chunk.role in ("user", "assistant") and "?" in chunk.text:
            factor -= QUESTION
        if when and _MOMENT.search(chunk.text):
            factor += MOMENT
        if chunk.session_id in pinned:
            factor += PINNED
        scores.append(score * factor)
        sessions[chunk.session_id].append(score * factor)
    lent = {
        session_id: SESSION_WEIGHT * sum(sorted(own)[-SESSION_BEST:]) / SESSION_BEST
        for session_id, own in sessions.items()
    }
    hits = [
        Found(one.chunk, fit * (score + lent[one.chunk.session_id]))
        for one, score in zip(candidates, scores, strict=True)
        if score > 0
    ]
    hits.sort(key=lambda hit: (-hit.score, -hit.chunk.chunk_id))
    return _once(hits, top_k)


def label_of(text: str) -> str:
    """Who says it, in a text that begins as a transcript's line does (`Ann: …`); else ""."""
    found = _LABEL.match(text)
    return found[1].casefold() if found else ""


def _named(labels: Sequence[str], query: str) -> str:
    """The one who said several of these and whom `query` names; "" where it names more of them."""
    asked = set(_WORD.findall(query.casefold()))
    named = [
        label
        for label, often in Counter(filter(None, labels)).items()
        if often > 1 and _WORD.findall(label)[0] in asked
    ]
    return named[0] if len(named) == 1 else ""


def _once(hits: Sequence[Found], top_k: int) -> list[Found]:
    """The first `top_k` that say different things."""
    kept: list[Found] = []
    said: list[frozenset[str]] = []
    exact: set[str] = set()
    for hit in hits:
        if len(kept) == top_k:
            break
        text = " ".join(hit.chunk.text.split()).casefold()
        words = frozenset(_WORD.findall(text))
        if text in exact or (
            len(words) >= FEWEST
            and any(len(words & other) >= NEAR * len(words | other) for other in said)
        ):
            continue
        exact.add(text)
        said.append(words)
        kept.append(hit)
    return kept
