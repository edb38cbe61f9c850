"""What an embedding backend is, and arithmetic on its vectors, with numpy and without.

A vector travels and is stored as little-endian float32 of length 1, so that a product is a cosine.
numpy is imported only when a backend that needs it is first used, with one BLAS thread.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import sys
from array import array
from collections.abc import Sequence
from operator import mul
from types import ModuleType
from typing import Protocol

from oxydra.errors import ConfigError, StoreError
from oxydra.threads import CancelToken

FLOAT_BYTES = 4


class Embedder(Protocol):
    """`model` names what its vectors can be compared with; `dimensions` is their length, of which
    the first `scanned` are enough to choose candidates by; `trust` scales their weight in the
    ranking. `metered`: a call may cost money, so nothing is embedded again but by a command.
    `ready`: a question takes no time worth mentioning, so that a turn need not do without.
    Any thread may call it.
    """

    @property
    def model(self) -> str: ...

    @property
    def dimensions(self) -> int: ...

    @property
    def scanned(self) -> int: ...

    @property
    def trust(self) -> float: ...

    @property
    def metered(self) -> bool: ...

    @property
    def ready(self) -> bool: ...

    def embed(self, texts: Sequence[str], token: CancelToken | None = None) -> list[bytes]:
        """A vector for each text. Raises `OxydraError`, `Cancelled`."""
        ...

    def query(
        self, text: str, words: Sequence[tuple[str, float]], token: CancelToken | None = None
    ) -> bytes:
        """The vector of a question; `words` are those that matter, each with its rarity."""
        ...


def numpy_installed() -> bool:
    if "numpy" in sys.modules:
        return sys.modules["numpy"] is not None
    return importlib.util.find_spec("numpy") is not None


def single_threaded() -> None:
    """Tell libraries that are not loaded yet to start no threads of their own."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def numpy() -> ModuleType:
    """numpy, on the caller's thread only. Raises `ConfigError` where it is installed in vain."""
    single_threaded()
    try:
        return importlib.import_module("numpy")
    except ImportError as error:
        raise ConfigError(
            f"numpy cannot be imported ({str(error)[:200]}).",
            remedy="`pip install --force-reinstall numpy`, or take it out: there is a way without.",
        ) from error


def unpacked(vector: bytes) -> array[float]:
    """Its numbers. Raises `StoreError` for bytes that are no vector."""
    numbers = array("f")
    if len(vector) % FLOAT_BYTES:
        raise StoreError("A stored vector is damaged.", remedy="`oxydra-runner memory rebuild`")
    numbers.frombytes(vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def packed(numbers: Sequence[float]) -> bytes:
    """`numbers` as a vector of length 1; of zeros where they have no direction."""
    length = math.sqrt(sum(number * number for number in numbers))
    scale = 1 / length if length > 0 and math.isfinite(length) else 0.0
    values = array("f", (number * scale if scale else 0.0 for number in numbers))
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def similarities(query: bytes, vectors: Sequence[bytes]) -> list[float]:
    """The cosine of each vector and `query`; 0 for one of another length."""
    wanted = len(query)
    if (np := sys.modules.get("numpy")) is not None and vectors:
        kept = [vector if len(vector) == wanted else bytes(wanted) for vector in vectors]
        matrix = np.frombuffer(b"".join(kept), "<f4").reshape(len(kept), -1)
        return [float(value) for value in matrix @ np.frombuffer(query, "<f4")]
    own = unpacked(query)
    return [
        sum(map(mul, own, unpacked(vector))) if len(vector) == wanted else 0.0 for vector in vectors
    ]
