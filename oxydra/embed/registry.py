"""The embedding backends: a new one is one file and one line here."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

from oxydra.embed.base import Embedder
from oxydra.embed.openai_compatible import Service
from oxydra.errors import ConfigError

BACKENDS = {
    "wordllama": "oxydra.embed.wordllama:WordLlama",
    "deterministic": "oxydra.embed.deterministic:Deterministic",
    "openai_compatible": "oxydra.embed.openai_compatible:OpenAICompatible",
}
NEEDS = {"wordllama": ("wordllama", "numpy", "tokenizers")}


def installed(name: str) -> bool:
    """Whether the packages that a backend needs are there; none is imported."""
    return all(importlib.util.find_spec(package) is not None for package in NEEDS.get(name, ()))


def chosen(name: str) -> str:
    """The backend that `name` means: `auto` is the best one that is installed. Raises
    `ConfigError` for one whose packages are not there.
    """
    if name == "auto":
        return "wordllama" if installed("wordllama") else "deterministic"
    if not installed(name):
        raise ConfigError(
            f"The embedding backend {name} is not installed here.",
            remedy='`pip install "oxydra[embeddings]"`, or memory.embedding_backend = "auto".',
        )
    return name


def create(name: str, service: Service | None = None) -> Embedder:
    """The backend `name`, or the one that `auto` means; its module is imported now. `service` is
    what `openai_compatible` asks.
    """
    module, _, what = BACKENDS[chosen(name)].partition(":")
    make: Callable[..., Embedder] = getattr(importlib.import_module(module), what)
    return make() if service is None else make(service)
