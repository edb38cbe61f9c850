"""The daily look at the database itself, so that damage is noticed while backups are sound.

`oxydra-checkup` waits, has SQLite check the file (`PRAGMA quick_check`, as a reader whom no writer
waits for), remembers what it said and waits for a day. `stop` ends it, in the middle of a check
too. What it found is asked for by `health`, which writes nothing itself.
"""

from __future__ import annotations

import logging
import threading
import time

from oxydra.store.database import timestamp
from oxydra.store.store import Store
from oxydra.threads import CancelToken, Service
from oxydra.types import Json

log = logging.getLogger(__name__)

FIRST_SECONDS = 60.0  # after a start, which has enough to do
EVERY_SECONDS = 24 * 3600.0


class Checkup:
    """Of one store."""

    def __init__(
        self, store: Store, *, first: float = FIRST_SECONDS, every: float = EVERY_SECONDS
    ) -> None:
        self._store = store
        self._first, self._every = first, every
        self._token = CancelToken()
        self._since = time.monotonic()
        self._at = self._trouble = ""
        self._lock = threading.Lock()
        self._service = Service("checkup", self._run, wake=lambda: self._token.cancel("stopping"))

    def start(self) -> None:
        self._service.start()

    def stop(self, timeout: float = 5.0) -> bool:
        return self._service.stop(timeout)

    def state(self) -> Json:
        """When it last looked, and what is wrong: empty if nothing is."""
        with self._lock:
            age = round(time.monotonic() - self._since)
            return {"checked_at": self._at, "age_seconds": age, "trouble": self._trouble}

    def look(self) -> None:
        """Now."""
        trouble = self._store.quick_check(self._token)
        if self._token.cancelled:
            return
        with self._lock:
            self._at, self._since = timestamp()[:19] + "Z", time.monotonic()
            self._trouble = trouble
        if trouble:
            log.error("%s", trouble)

    def _run(self, _service: Service) -> None:
        pause = self._first
        while not self._token.wait(pause):
            self.look()
            pause = self._every
