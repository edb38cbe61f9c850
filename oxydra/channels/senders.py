"""Who may write to the bot, and the record of those who may not.

A message counts by the id of who sent it, never by a name. Whoever is not listed gets no answer:
they are written down in `sender_audit.log`, as lines of JSON, at most one a minute for each, in a
file that is cut when it grows.
"""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from oxydra.config import TelegramConfig
from oxydra.frames import compact
from oxydra.store.database import timestamp
from oxydra.types import Json

log = logging.getLogger(__name__)

ANONYMOUS_ADMIN = 1087968824  # GroupAnonymousBot
SERVICE = 777000  # posts of a linked channel
QUIET_SECONDS = 60.0
REMEMBERED = 1000  # senders whose last line is remembered
MAX_BYTES = 1 << 20  # of the log; the one before it is kept


class Senders:
    """For the thread that takes messages."""

    def __init__(
        self, config: TelegramConfig, audit: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._people = {
            int(number): sender.display_name
            for sender in config.senders
            for number in sender.platform_ids
        }
        self._groups = frozenset(map(int, config.groups))
        self._audit = audit
        self._clock = clock
        self._written: OrderedDict[int, tuple[float, int]] = OrderedDict()  # when, dropped since

    def name(self, sender: int) -> str:
        """What a listed person is called."""
        return self._people.get(sender) or f"telegram:{sender}"

    def admits(self, sender: Json, chat: Json, message: Json | None = None) -> bool:
        """Whether this person may write there; if not, it is written down. `sender` and `chat` are
        the Bot API's, `message` the one that was sent, None for the press of a button.
        """
        number, place = _number(sender), _number(chat)
        why = ""
        if message is not None and message.get("sender_chat"):
            why = "a chat speaks, not a person"
        elif number in (ANONYMOUS_ADMIN, SERVICE) or sender.get("is_bot"):
            why = "not a person"
        elif number not in self._people:
            why = "not listed"
        elif chat.get("type") == "private":
            why = "" if place == number else "somebody else's chat"
        elif chat.get("type") not in ("group", "supergroup"):
            why = "no chat of people"
        elif place not in self._groups:
            why = "the group is not listed"
        if why:
            self._write(number, place, why)
        return not why

    def _write(self, sender: int, chat: int, why: str) -> None:
        now = self._clock()
        since, dropped = self._written.get(sender, (float("-inf"), 0))
        if now - since < QUIET_SECONDS:
            self._written[sender] = since, dropped + 1
            return
        self._written[sender] = now, 0
        self._written.move_to_end(sender)
        while len(self._written) > REMEMBERED:
            self._written.popitem(last=False)
        row: Json = {"at": timestamp(), "channel": "telegram", "sender": sender, "chat": chat}
        row |= {"why": why, "dropped_before": dropped}
        try:
            self._append(compact(row) + "\n")
        except OSError as error:
            log.error("who was turned away can't be written down: %s", error)

    def _append(self, line: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        descriptor = os.open(self._audit, flags, 0o600)
        try:
            os.write(descriptor, line.encode())
            size = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        if size > MAX_BYTES:
            os.replace(self._audit, self._audit.with_name(f"{self._audit.name}.1"))


def _number(who: Json) -> int:
    found = who.get("id")
    return found if isinstance(found, int) else 0
