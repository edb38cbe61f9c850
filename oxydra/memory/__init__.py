"""Memory: what was said in a user's conversations and noted, found again."""

from oxydra.memory.notebook import ModelNotebook, Notebook
from oxydra.memory.retrieval import Retrieval

__all__ = ["ModelNotebook", "Notebook", "Retrieval"]
