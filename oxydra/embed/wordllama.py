"""`wordllama`: static vectors of word pieces, English, from the wheel of the package WordLlama.

Its weights and its tokenizer are read from the installed wheel and nothing is ever fetched; the
package itself, which would import a hub's client, is not imported. A text's vector is the mean of
its pieces', a question's weighs the words by their rarity. The weights are mapped, not read, so
that all processes share them and those that are never used cost nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oxydra.embed.base import numpy
from oxydra.errors import ConfigError
from oxydra.threads import CancelToken

WEIGHTS = "weights/l2_supercat_256.safetensors"
TOKENIZER = "tokenizers/l2_supercat_tokenizer_config.json"
DIMENSIONS = 256
BATCH = 64  # texts whose pieces are looked up at once: 640 characters each are 10 MB
TYPES = {"F16": "<f2", "F32": "<f4"}


class WordLlama:
    """See the `Embedder` Protocol."""

    model = f"wordllama-l2_supercat_{DIMENSIONS}"
    dimensions = DIMENSIONS
    scanned = 128  # it was trained so that its first numbers can stand for all
    trust = 1.0
    metered = False

    @property
    def ready(self) -> bool:
        return bool(_loaded)

    def embed(self, texts: Sequence[str], token: CancelToken | None = None) -> list[bytes]:
        found: list[bytes] = []
        for start in range(0, len(texts), BATCH):
            if token is not None:
                token.check()
            found += self._means(texts[start : start + BATCH])
        return found

    def query(
        self, text: str, words: Sequence[tuple[str, float]], token: CancelToken | None = None
    ) -> bytes:
        if not words:
            return self.embed([text], token)[0]
        np = numpy()
        tokenizer, weights = load()
        encoded = tokenizer.encode_batch(
            [_whole(word) for word, _ in words], add_special_tokens=False
        )
        weighed = [
            (piece, rarity)
            for (_, rarity), pieces in zip(words, encoded, strict=True)
            for piece in pieces.ids
        ]
        rows = weights[[piece for piece, _ in weighed]].astype("f4")
        total = np.array([rarity for _, rarity in weighed], "f4") @ rows
        return bytes((total / max(float(np.linalg.norm(total)), 1e-9)).astype("<f4").tobytes())

    def _means(self, texts: Sequence[str]) -> list[bytes]:
        np = numpy()
        tokenizer, weights = load()
        encoded = tokenizer.encode_batch([_whole(text) for text in texts], add_special_tokens=False)
        pieces = [one.ids or [0] for one in encoded]
        starts = np.cumsum([0, *(len(ids) for ids in pieces[:-1])])
        flat = np.fromiter((piece for ids in pieces for piece in ids), "i4")
        sums = np.add.reduceat(weights[flat].astype("f4"), starts, axis=0)
        lengths = np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
        return [row.tobytes() for row in (sums / lengths).astype("<f4")]


_lock = threading.Lock()
_loaded: list[tuple[Any, Any]] = []


def load() -> tuple[Any, Any]:
    """The tokenizer and the weights, which a process loads once. Raises `ConfigError`."""
    with _lock:
        if not _loaded:
            _loaded.append(_load(_folder()))
        return _loaded[0]


def warm() -> None:
    """Load it, and have the system keep the weights in memory. Raises `ConfigError`."""
    load()
    with (_folder() / WEIGHTS).open("rb") as file:
        while file.read(1 << 20):
            pass


def _whole(text: str) -> str:
    """`text` without lone surrogates, which a tokenizer refuses."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _folder() -> Path:
    spec = importlib.util.find_spec("wordllama")
    if spec is None or spec.origin is None:
        raise ConfigError(
            "The package wordllama is not installed.",
            remedy='`pip install "oxydra[embeddings]"`',
        )
    return Path(spec.origin).parent


def _load(folder: Path) -> tuple[Any, Any]:
    np = numpy()
    try:
        tokenizer = importlib.import_module("tokenizers").Tokenizer.from_file(
            str(folder / TOKENIZER)
        )
        with (folder / WEIGHTS).open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            head = json.loads(file.read(size))
        [(_, tensor)] = [item for item in head.items() if item[0] != "__metadata__"]
        weights = np.memmap(
            folder / WEIGHTS,
            dtype=TYPES[tensor["dtype"]],
            mode="r",
            offset=8 + size + tensor["data_offsets"][0],
            shape=tuple(tensor["shape"]),
        ).view(np.ndarray)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(
            f"The package wordllama in {folder} is not one that is known here ({error}).",
            remedy='`pip install --force-reinstall "oxydra[embeddings]"`, or'
            ' memory.embedding_backend = "deterministic".',
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, weights
