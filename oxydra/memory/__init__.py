"""Memory: what was said in a user's conversations, found again."""

from oxydra.memory.retrieval import Retrieval

__all__ = ["Retrieval"]
