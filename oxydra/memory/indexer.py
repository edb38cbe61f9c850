"""`Indexer`: what was said and noted is indexed in the background, so that no search has to.

One thread, `oxydra-indexer`. It sleeps until a commit puts something on a list, waits a while for
more of it, empties the list, and sleeps again; a rebuild that somebody asked for waits for nothing.
`stop` wakes it and it ends after the batch that it is at. What it does not come to stays on the
list for the next start, or for a search, which indexes what it finds there itself.
"""

from __future__ import annotations

import logging
import threading

from oxydra.errors import Cancelled, OxydraError
from oxydra.memory.retrieval import Retrieval
from oxydra.store import Store
from oxydra.threads import CancelToken, Service
from oxydra.types import Json

log = logging.getLogger(__name__)

QUIET_SECONDS = 5.0  # between a message and its indexing: a turn is not disturbed, and is done once


class Indexer:
    """Keeps the indexes of `store` up with it."""

    def __init__(
        self, store: Store, memory: Retrieval, *, quiet_seconds: float = QUIET_SECONDS
    ) -> None:
        self._store = store
        self._memory = memory
        self._quiet = quiet_seconds
        self._wake = threading.Event()
        self._now = threading.Event()  # ends the quiet
        self._token = CancelToken()
        self._rebuild = threading.Event()
        self._stage = ""
        self._trouble = ""
        self._service = Service("indexer", self._run, wake=self._stop)

    def start(self) -> None:
        self._store.on_listed(self._wake.set)
        if self._store.to_index() or self._memory.behind():
            self._wake.set()
        self._service.start()

    def rebuild(self) -> None:
        """Have everything that is derived made anew, in the background; once, however often this
        is asked for meanwhile.
        """
        self._rebuild.set()
        self._now.set()
        self._wake.set()

    def report(self) -> Json:
        """What is going on: a stage and how much of it is done, or what went wrong last."""
        return {
            "rebuilding": self._rebuild.is_set(),
            "stage": self._stage,
            "trouble": self._trouble,
        }

    def stop(self, timeout: float = 5.0) -> bool:
        return self._service.stop(timeout)

    def _stop(self) -> None:
        self._token.cancel("stopping")
        self._now.set()
        self._wake.set()

    def _run(self, service: Service) -> None:
        while not service.stopping.is_set():
            self._wake.wait()
            self._now.wait(self._quiet)
            self._now.clear()
            if service.stopping.is_set():
                return
            self._wake.clear()
            rebuilding = self._rebuild.is_set()
            try:
                if rebuilding:
                    self._memory.rebuild(self._token, self._at)
                self._memory.catch_up(self._token)
                self._memory.embed_rest(self._token)
                self._memory.tend(self._token)
                self._trouble = ""
            except Cancelled:
                return
            except OxydraError as error:  # the lists keep what is left, the next message wakes
                self._trouble = str(error)
                log.warning("what was said could not be indexed: %s", error)
            self._stage = ""
            if rebuilding:
                self._rebuild.clear()

    def _at(self, stage: str, done: int) -> None:
        self._stage = f"{stage}: {done:,}"
