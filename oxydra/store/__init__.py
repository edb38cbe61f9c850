"""The SQLite database of one user."""

from oxydra.store.checkup import Checkup
from oxydra.store.files import Files
from oxydra.store.migrations import MIGRATIONS
from oxydra.store.store import Store

__all__ = ["MIGRATIONS", "Checkup", "Files", "Store"]
