"""Embedding backends: what turns text into vectors whose closeness is closeness in meaning."""

from oxydra.embed.base import Embedder, similarities, unpacked
from oxydra.embed.openai_compatible import Service
from oxydra.embed.registry import BACKENDS, chosen, create

__all__ = ["BACKENDS", "Embedder", "Service", "chosen", "create", "similarities", "unpacked"]
