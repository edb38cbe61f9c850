"""How people get what they are owed a word of: notices of scheduled runs, by the way that leads to
where the schedule was made.

The clients that follow that session are given a notice at once; where none does, or there is no
such session, all that are connected; else the next ones that come. It is kept until one of them
says that it was seen, and given to each that comes before, once to a connection. A channel that has
a `Courier` takes it itself, and is tried again later where it fails.

No thread of its own: the scheduler's does it all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol
from weakref import WeakKeyDictionary

from oxydra.store import Store
from oxydra.store.notices import Notice
from oxydra.types import Json

log = logging.getLogger(__name__)

FRAME = "scheduled_notification"

Settled = Callable[[str], None]
"""Told by a courier how it went: empty where a notice arrived, else why not. From any thread."""

Courier = Callable[[Notice, Settled], None]
"""Takes a notice to its channel and does not wait for that."""


class Client(Protocol):
    """One connection."""

    def reply(self, frame_type: str, payload: Json) -> None: ...


class Post:
    """Of one user. `tell`, `carry` and `next` are for the scheduler's thread."""

    def __init__(
        self,
        store: Store,
        followers: Callable[[str], Sequence[Client]],
        do: Callable[[Callable[[], None]], None],
        clock: Callable[[], float],
    ) -> None:
        """`followers` are the clients that follow a session, of any for ""; `do` lets the
        scheduler's thread do something.
        """
        self._store = store
        self._followers = followers
        self._do = do
        self._clock = clock
        self._couriers: dict[str, Courier] = {}
        self._under_way: set[int] = set()
        self._given: WeakKeyDictionary[Client, set[int]] = WeakKeyDictionary()

    def add(self, channel: str, courier: Courier) -> None:
        """Let what belongs to a channel go by it. Before the scheduler is started."""
        self._couriers[channel] = courier

    def tell(self, notice: Notice) -> None:
        """It is owed from now on."""
        if notice.channel in self._couriers:
            return self._send(notice)
        there = self._followers(notice.session_id) if notice.session_id else ()
        for client in there or self._followers(""):
            self._give(client, notice)
        return None

    def followed(self, client: Client) -> None:
        """It has come: it gets what nobody has seen yet."""
        self._do(partial(self._catch_up, client))

    def _catch_up(self, client: Client) -> None:
        for notice in self._store.owed_notices(besides=self._couriers):
            self._give(client, notice)

    def _give(self, client: Client, notice: Notice) -> None:
        given = self._given.setdefault(client, set())
        if notice.notice_id not in given:
            given.add(notice.notice_id)
            client.reply(FRAME, notice.payload)

    def carry(self, now: int) -> None:
        """Give channels what is due for them."""
        if self._couriers:
            for notice in self._store.due_notices(self._couriers, now):
                self._send(notice)

    def next(self) -> int | None:
        """When a channel may be tried next."""
        if not self._couriers or self._under_way:  # the answer wakes us
            return None
        return self._store.next_notice(self._couriers)

    def _send(self, notice: Notice) -> None:
        if notice.notice_id in self._under_way:
            return
        self._under_way.add(notice.notice_id)

        def settled(why: str) -> None:
            self._do(partial(self._settle, notice, why))

        self._couriers[notice.channel](notice, settled)

    def _settle(self, notice: Notice, why: str) -> None:
        self._under_way.discard(notice.notice_id)
        if why:
            log.warning("a notice for %s is tried again later: %s", notice.channel, why)
            self._store.notice_failed(notice.notice_id, int(self._clock()))
        else:
            self._store.notices_seen([notice.notice_id])
