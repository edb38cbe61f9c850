"""Memory: what was said in a user's conversations and noted, found again."""

from oxydra.memory.indexer import Indexer
from oxydra.memory.notebook import ModelNotebook, Notebook
from oxydra.memory.ranking import Weights
from oxydra.memory.retrieval import Retrieval

__all__ = ["Indexer", "ModelNotebook", "Notebook", "Retrieval", "Weights"]
