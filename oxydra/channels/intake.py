"""Messages whose files are still to be fetched, and those that came after one in the same chat.

They are rows of the store from when their update is confirmed until their turn has begun, so that
none is lost and a chat's stay in order, while commands and other chats do not wait for them. The
thread `oxydra-telegram-fetch` goes through them, oldest first; it ends with `stop`, at once. A file
that can't be had is tried again, `TRIES` times in all, and then the message goes on without it and
says so; while Telegram can't be reached at all, it waits for that.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from oxydra.channels.bot import Bot, BotError
from oxydra.channels.commands import Place
from oxydra.channels.media import MAX_FILE, Medium, Take
from oxydra.errors import Cancelled, OxydraError, StoreBusyError, StoreFullError, TransportError
from oxydra.store import Store
from oxydra.store.channels import Debt, Waiting
from oxydra.threads import CancelToken, Service

log = logging.getLogger(__name__)

TRIES = 3
PAUSES = (1.0, 60.0)  # seconds before the next attempt, twice as long each time

Fetch = Callable[[Medium, Callable[[], AbstractContextManager[Take]]], None]
Begin = Callable[[Waiting, Fetch], Sequence[Debt]]
"""Makes a turn of a message, with a function that fetches its files; what is owed for it besides.
Raises `Cancelled`, or what makes it worth another try.
"""


class Intake:
    """Of one bot. `waits` is for the thread that polls, which alone adds messages."""

    def __init__(
        self,
        bot: Bot,
        store: Store,
        token: CancelToken,
        channel: str,
        begin: Begin,
        sent: Callable[[], None],
        on_death: Callable[[BaseException], None] | None = None,
    ) -> None:
        """`sent` is called when something came to be owed."""
        self._bot = bot
        self._store = store
        self._token = token
        self._channel = channel
        self._begin = begin
        self._sent = sent
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._current: tuple[Waiting, CancelToken] | None = None
        self._service = Service(
            "telegram-fetch", self._work, wake=self._wake.set, on_death=on_death
        )

    def start(self) -> None:
        self._service.start()

    def stop(self, timeout: float) -> bool:
        return self._service.stop(timeout)

    def look(self) -> None:
        """There may be another message."""
        self._wake.set()

    def waits(self, place: Place) -> bool:
        return self._store.waits(self._channel, place.chat, place.topic)

    def drop(self, place: Place | None = None) -> int:
        """Forget the messages of a place that wait, None: of all; how many there were."""
        found = [
            one
            for one in self._store.waiting(self._channel)
            if place in (None, Place(one.chat, one.topic))
        ]
        dropped = self._store.waited(self._channel, [one.number for one in found])
        with self._lock:
            if self._current is not None and self._current[0] in found:
                self._current[1].cancel("dropped")
        return dropped

    # ------------------------------------------------------------------------------- the thread

    def _work(self, service: Service) -> None:
        pause = 0.0
        while not service.stopping.is_set():
            self._wake.wait(pause or None)
            self._wake.clear()
            try:
                while found := self._store.waiting(self._channel):
                    if service.stopping.is_set():
                        return
                    self._take(found[0])
                pause = 0.0
            except OxydraError as error:
                if self._token.cancelled:
                    return
                pause = min(max(2 * pause, PAUSES[0]), PAUSES[1])
                log.warning("messages wait to be taken: %s", error)

    def _take(self, message: Waiting) -> None:
        with self._token.child() as token:
            with self._lock:
                self._current = message, token
            try:
                if message not in self._store.waiting(self._channel):
                    return  # it was dropped before `token` was there to be told
                debts = self._begin(
                    message, lambda medium, coming: self._fetch(medium, coming, token)
                )
            except Cancelled:
                if self._token.cancelled:
                    raise
                return  # it was dropped
            except (StoreFullError, StoreBusyError):
                raise
            except Exception:
                log.exception("the message %d could not be acted on", message.number)
                debts = ()
            finally:
                with self._lock:
                    self._current = None
        self._store.waited(self._channel, [message.number], debts)
        self._sent()

    def _fetch(
        self, medium: Medium, coming: Callable[[], AbstractContextManager[Take]], token: CancelToken
    ) -> None:
        """Raises `Cancelled`, or why the file can't be had."""
        tries, pause = 0, PAUSES[0]
        while True:
            try:
                with coming() as take:
                    self._bot.fetch(medium.file_id, MAX_FILE, take, token)
                return
            except (BotError, TransportError) as error:
                passing = error.passing if isinstance(error, BotError) else error.retryable
                if not passing:
                    raise
                wait = pause
                if isinstance(error, BotError) and error.retry_after is not None:
                    wait = error.retry_after
                elif self._reachable():
                    tries += 1
                if tries == TRIES:
                    raise
                log.info("%s is asked for again in %.0f s: %s", medium.name, wait, error)
            token.wait(wait)
            token.check()
            pause = min(2 * pause, PAUSES[1])

    def _reachable(self) -> bool:
        """Whether Telegram answers at all."""
        try:
            self._bot.me()
        except BotError as error:
            return not error.passing
        except TransportError:
            return False
        return True
