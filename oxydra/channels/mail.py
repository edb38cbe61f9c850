"""Everything that leaves for Telegram: what chats are owed, and what they are shown meanwhile.

The thread `oxydra-telegram-send` does it all, one request at a time, so that what one chat gets
stays in order; it ends with `stop`, at once in whatever it waits for. What is owed is in the store
before it counts as owed and until it has arrived: so it arrives at least once. A message that was
under way when the process ended, or whose answer was lost, is sent again and says that it may be a
repetition; one that is edited needs no such word, since an edit that is repeated changes nothing.

A chat that asks for patience (429) waits by itself, the others go on. Where Telegram can't be
reached, everything waits, longer each time.
"""

from __future__ import annotations

import html
import logging
import mimetypes
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from oxydra.approvals import Approvals
from oxydra.channels import markup
from oxydra.channels.bot import Bot, BotError
from oxydra.channels.live import CURSOR, Growing, Pace, Pacing
from oxydra.errors import (
    Cancelled,
    NotFoundError,
    OxydraError,
    PolicyDenied,
    ToolError,
    TransportError,
)
from oxydra.frames import TERMINAL
from oxydra.store import Store
from oxydra.store.channels import Debt, Owed
from oxydra.threads import CancelToken, Service
from oxydra.types import Approval, Json, Message, SentFile, Turn, TurnState

log = logging.getLogger(__name__)

NAME = "telegram"
AGAIN = "(This may be a repetition.)\n"
UNSENT = ("resolve", "connect", "tls")  # kinds of transport errors after which nothing was sent
BACKOFF = (1.0, 60.0)  # seconds between attempts while Telegram can't be reached
FORBIDDEN_SECONDS = 3600.0  # before a chat that the broker refuses is tried again
HISTORY = 200  # events that are looked through for what a turn said
MARKDOWN = ("turn", "notice")  # kinds of items that are formatted
NOTHING = "(The answer is empty.)"
CAPTION = 1024  # UTF-16 units of what stands below a file
PHOTO_BYTES = 10 << 20  # a larger one is sent as a document
ALBUM = 10  # files of one
TRIES = 3  # to send files, when nobody knows whether they arrived


@dataclass(slots=True)
class Trouble:
    """Why nothing gets through, for whoever asks how the bot is; "" where it does."""

    sending: str = ""
    polling: str = ""
    revoked: bool = False


class Mail:
    """Of one bot. Every method may be called from any thread."""

    def __init__(
        self,
        bot: Bot,
        store: Store,
        token: CancelToken,
        limit: int,
        trouble: Trouble,
        approvals: Approvals | None,
        pacing: Pacing,
        on_death: Callable[[BaseException], None] | None = None,
    ) -> None:
        self._bot = bot
        self._store = store
        self._token = token
        self._limit = limit - markup.units(AGAIN)
        self._trouble = trouble
        self._approvals = approvals
        self._pacing = pacing
        self._wake = threading.Event()
        self._lock = threading.Lock()  # guards the next three
        self._growing: dict[str, Growing] = {}  # by turn
        self._ended: list[str] = []
        self._heard: list[tuple[str, Json]] = []  # frames about approvals
        self._settled: dict[int, Callable[[str], None]] = {}  # whom to tell of an item's end
        self._paces: dict[int, Pace] = {}
        self._items: list[Owed] = []
        self._cut: tuple[int, list[markup.Part]] = (0, [])  # the parts of the item sent last
        self._stale = True
        self._down_until = 0.0
        self._backoff = BACKOFF[0]
        self._tried: dict[int, int] = {}  # how often an item's files were lost on the way
        self._edits: list[tuple[int, int, str]] = []  # of messages whose buttons are to go
        self._service = Service("telegram-send", self._work, wake=self._wake.set, on_death=on_death)

    def start(self) -> None:
        self._service.start()

    def stop(self, timeout: float) -> bool:
        """After the token was cancelled."""
        return self._service.stop(timeout)

    # ------------------------------------------------------------------------ from other threads

    def follow(self, turn_id: str, chat: int, topic: int) -> None:
        """Show this turn as it runs; before it is submitted."""
        with self._lock:
            self._growing.setdefault(turn_id, Growing(chat, topic, time.monotonic()))

    def forget(self, turn_id: str) -> None:
        """This turn was not accepted: it is owed nothing."""
        with self._lock:
            self._growing.pop(turn_id, None)
        item = self._store.owed_item(NAME, "turn", turn_id)
        if item is not None:
            self._store.owed_settled(item.item_id, dropped=True)

    def ended(self, turn_id: str) -> None:
        """Look whether this turn has ended."""
        with self._lock:
            self._ended.append(turn_id)
        self._wake.set()

    def hear(self, frame_type: str, payload: Json) -> None:
        """A frame of a session (see `gateway.live.Listener`): it does not wait."""
        turn_id = str((payload.get("turn") or {}).get("turn_id", ""))
        with self._lock:
            growing = self._growing.get(turn_id)
            if growing is None:
                return
            if frame_type in TERMINAL:
                self._ended.append(turn_id)
            elif frame_type in ("approval_request", "approval_resolved"):
                self._heard.append((frame_type, payload))
            else:
                growing.hear(frame_type, payload)
        self._wake.set()

    def owe(self, debt: Debt, settled: Callable[[str], None] | None = None) -> None:
        """Owe it; `settled` is told when it has arrived, or why it never will."""
        self._store.owe(NAME, debt)
        if settled is not None:
            item = self._store.owed_item(NAME, debt.kind, debt.key)
            if item is None or item.state not in ("waiting", "ready"):
                settled("")
            else:
                with self._lock:
                    self._settled[item.item_id] = settled
        self.look()

    def look(self) -> None:
        """Something is owed that was not."""
        self._stale = True
        self._wake.set()

    # ---------------------------------------------------------------------------- the thread

    def _work(self, _service: Service) -> None:
        while not self._token.cancelled:
            self._wake.clear()
            try:
                wait = self._step()
            except Cancelled:
                return
            except OxydraError as error:  # the disk is full, or the database held
                log.warning("sending waits: %s", error)
                wait = BACKOFF[0]
            if wait is None or wait > 0:
                self._wake.wait(wait)

    def _step(self) -> float | None:
        """Do one thing; how long there is nothing more to do, None: until something happens."""
        self._take_heard()
        if self._trouble.revoked:
            return None
        now = time.monotonic()
        if now < self._down_until:
            return self._down_until - now
        if self._stale:
            self._stale = False
            self._items = self._store.owed(NAME, "ready")
        waits: list[float] = []
        for act in (self._edit_one, self._send_one, self._show_one):
            wait = act(now)
            if wait == 0:
                return 0
            waits += [wait] if wait is not None else []
        return min(waits, default=None)

    def _take_heard(self) -> None:
        """What turns said, each taken off only when it is in the store."""
        while self._heard:
            try:
                self._approval(*self._heard[0])
            except NotFoundError as error:  # its session was forgotten meanwhile
                log.warning("%s", error)
            with self._lock:
                del self._heard[0]
        while self._ended:
            self._end(self._ended[0])
            with self._lock:
                del self._ended[0]

    def _end(self, turn_id: str) -> None:
        """A turn may have ended: then its answer is owed."""
        item = self._store.owed_item(NAME, "turn", turn_id)
        turn = self._store.turn(turn_id)
        if turn is None or turn.terminal is None:
            return
        if item is not None and item.state == "waiting":
            if turn.state is TurnState.JOINED:  # it is answered with the turn that it joined
                self._store.owed_settled(item.item_id, dropped=True)
            else:
                messages = self._messages(turn)
                self._owe_made(item, messages)
                self._store.owed_ready(item.item_id, _said(turn, messages))
        with self._lock:
            self._growing.pop(turn_id, None)
        self._stale = True

    def _messages(self, turn: Turn) -> list[Message]:
        """All that the model said in a turn."""
        events, _ = self._store.history(turn.session_id, limit=HISTORY)
        said = [
            event
            for event in events
            if event.turn_id == turn.turn_id and event.message.role == "assistant"
        ]
        if any(event.message.attachments for event in said):  # with what is in them
            said = self._store.events(turn.session_id, [event.sequence for event in said])
        return [event.message for event in said]

    def _owe_made(self, item: Owed, messages: Sequence[Message]) -> None:
        """Images that the model made are part of its answer: they follow it, ten as an album. They
        are as they came from its provider, not as they may be in the workspace by now.
        """
        made = [
            SentFile("photo", _named(number, one.mime_type), one.data)
            for number, one in enumerate((a for m in messages for a in m.attachments), start=1)
            if one.data and one.mime_type.startswith("image/")
        ]
        for number in range(0, len(made), ALBUM):
            key = f"{item.key}:made:{number}"
            files = tuple(made[number : number + ALBUM])
            debt = Debt(item.chat, item.topic, "media", key, "", session_id=item.session_id)
            try:
                self._store.owe(NAME, replace(debt, files=files))
            except ToolError as error:
                log.error("images are not sent: %s", error)
                self._tell(item, "The images could not be sent", error)

    # ------------------------------------------------------------------------------- what is owed

    def _send_one(self, now: float) -> float | None:
        """Send a part of the first item that may be sent; 0 if one was, else when one may be."""
        waits: list[float] = []
        places: set[tuple[int, int]] = set()
        for index, item in enumerate(self._items):
            place = (item.chat, item.topic)
            if place in places:  # one after the other
                continue
            places.add(place)
            paused = self._pace(item.chat).paused
            if paused > now:
                waits.append(paused - now)
                continue
            following = self._send(item)
            if following is None:
                del self._items[index]
            else:
                self._items[index] = following
            return 0
        return min(waits, default=None)

    def _send(self, item: Owed) -> Owed | None:
        """The next part of an item; what is left of it then, None: nothing."""
        parts = self._parts(item)
        if item.sent >= len(parts) and item.kind != "media":
            self._settle(item, "")
            return None
        part = parts[item.sent] if parts else markup.Part("", "")
        last = item.sent + 1 >= len(parts)
        buttons = self._buttons(item) if last else None
        try:
            message = self._deliver(item, part, buttons)
        except BotError as error:
            return self._refused(item, error)
        except PolicyDenied as error:
            log.error("%s", error)
            self._forbid(item.chat, error)
            self._store.owed_unsent(item.item_id)
            return replace(item, sending=False)
        except TransportError as error:
            self._lost(error)
            if error.kind in UNSENT:
                self._store.owed_unsent(item.item_id)
                return replace(item, sending=False)
            return self._unknown(item, error)
        self._well()
        self._store.owed_sent(item.item_id, item.sent + 1, message)
        item = replace(item, sent=item.sent + 1, live=message, sending=False)
        if not last:
            return item
        self._settle(item, "")
        return None

    def _parts(self, item: Owed) -> list[markup.Part]:
        if self._cut[0] != item.item_id:  # the same each time, so that `sent` can count them
            if item.kind in MARKDOWN:
                parts = markup.parts(item.text, self._limit)
            else:
                said = markup.plain(item.text, self._limit)
                parts = [markup.Part(html.escape(text, quote=False), text) for text in said]
            self._cut = item.item_id, parts
        return self._cut[1]

    def _deliver(self, item: Owed, part: markup.Part, buttons: Json | None) -> int:
        """One message, edited or new; its id."""
        if item.kind == "media":
            return self._send_files(item)
        if item.sent == 0 and item.live:
            try:
                return self._formatted(
                    part, lambda text, formatted: self._edit(item, text, formatted)
                )
            except BotError as error:
                if "message to edit not found" not in error.why and "can't be edited" not in (
                    error.why
                ):
                    raise
        again = AGAIN if item.sending else ""
        self._store.owed_sending(item.item_id)

        def send(text: str, formatted: bool) -> int:
            return self._bot.send(
                *(item.chat, item.topic, again + text),
                formatted=formatted,
                buttons=buttons,
                answers=item.answers if item.sent == 0 else 0,
            )

        return self._formatted(part, send)

    def _send_files(self, item: Owed) -> int:
        """Photos that Telegram does not take as such come as documents."""
        files = self._store.owed_files(item.item_id)
        caption = next(iter(markup.plain((AGAIN if item.sending else "") + item.text, CAPTION)), "")
        self._store.owed_sending(item.item_id)
        if sum(len(file.data) for file in files if file.kind == "photo") > PHOTO_BYTES:
            files = _as_documents(files)
        try:
            return self._bot.send_files(item.chat, item.topic, files, caption)
        except BotError as error:
            refused = error.status == 400 and ("photo" in error.why or "image" in error.why)
            if not refused or all(file.kind != "photo" for file in files):
                raise
            return self._bot.send_files(item.chat, item.topic, _as_documents(files), caption)

    def _unknown(self, item: Owed, error: OxydraError) -> Owed | None:
        """Nobody knows whether it arrived: it is sent again. Files that something on the way does
        not let through must not hold up everything else.
        """
        if item.kind == "media":
            tries = self._tried[item.item_id] = self._tried.get(item.item_id, 0) + 1
            if tries >= TRIES:
                self._give_up(item, error)
                return None
        return replace(item, sending=True)

    def _give_up(self, item: Owed, error: OxydraError) -> None:
        if item.kind == "media":
            names = ", ".join(file.name for file in self._store.owed_files(item.item_id))
            self._tell(item, f"{names} could not be sent", error)
        self._settle(item, str(error))

    def _tell(self, item: Owed, what: str, error: OxydraError) -> None:
        key = f"unsent:{item.item_id}"
        self._store.owe(NAME, Debt(item.chat, item.topic, "reply", key, f"⚠ {what}: {error}"))
        self._stale = True

    def _edit(self, item: Owed, text: str, formatted: bool) -> int:
        self._bot.edit(item.chat, item.live, text, formatted=formatted)
        return item.live

    def _formatted(self, part: markup.Part, send: Callable[[str, bool], int]) -> int:
        """As HTML, or as plain text where Telegram can't read that."""
        try:
            return send(part.html, True)
        except BotError as error:
            if error.status != 400 or "parse" not in error.why:
                raise
            log.error("a message is sent without its formatting: %s", error)
            return send(part.text, False)

    def _refused(self, item: Owed, error: BotError) -> Owed | None:
        """Telegram said no: what becomes of the item."""
        known = self._noted(item.chat, error)
        if known == "lost":
            return self._unknown(item, error)  # a proxy's word is no proof
        if known == "later":
            self._store.owed_unsent(item.item_id)
            return replace(item, sending=False)
        if "text is empty" in error.why or "text must be non-empty" in error.why:
            self._store.owed_sent(item.item_id, item.sent + 1, item.live)
            return replace(item, sent=item.sent + 1, sending=False)
        self._give_up(item, error)
        return None

    def _settle(self, item: Owed, why: str) -> None:
        if why:
            log.error("what the chat %d is owed can't arrive: %s", item.chat, why)
        self._store.owed_settled(item.item_id, dropped=bool(why))
        self._tried.pop(item.item_id, None)
        with self._lock:
            settled = self._settled.pop(item.item_id, None)
        if settled is not None:
            settled("")

    def moved(self, old: int, new: int) -> None:
        """A group has become a supergroup."""
        log.warning("the group %d is the supergroup %d now: list that in groups", old, new)
        self._store.chat_moved(NAME, old, new)
        with self._lock:
            for growing in self._growing.values():
                if growing.chat == old:
                    growing.chat = new
        self.look()

    # -------------------------------------------------------------------------------- approvals

    def _approval(self, frame_type: str, payload: Json) -> None:
        """A request becomes a message with buttons; once it is settled they go."""
        key = str(payload["approval_id"])
        turn = self._store.owed_item(NAME, "turn", str(payload["turn"]["turn_id"]))
        if turn is None:
            return
        text = _asked(self._store.approval(key))
        if frame_type == "approval_request":
            debt = Debt(turn.chat, turn.topic, "approval", key, text, sender=turn.sender)
            self._store.owe(NAME, debt)
            self._stale = True
            return
        item = self._store.owed_item(NAME, "approval", key)
        if item is None:
            return
        if item.state == "ready":  # it was answered elsewhere before it was asked here
            self._store.owed_settled(item.item_id)
            self._stale = True
        if item.live:
            asked = markup.plain(text, self._limit)[-1]
            answered = f"{asked}\n\n→ {payload['decision']} ({payload['by'] or 'nobody'})"
            self._edits.append((item.chat, item.live, answered))

    def _buttons(self, item: Owed) -> Json | None:
        if item.kind != "approval" or self._approvals is None:
            return None
        try:
            complete = self._store.approval(item.key).complete
        except OxydraError:
            return None
        deny = {"text": "Deny", "callback_data": f"{item.key}:deny"}
        row = [deny]
        if complete:
            row = [{"text": "Allow", "callback_data": f"{item.key}:allow"}, deny]
            row.append({"text": "Allow in this session", "callback_data": f"{item.key}:session"})
        return {"inline_keyboard": [row[:2], row[2:]] if complete else [row]}

    def _edit_one(self, now: float) -> float | None:
        """Take the buttons of a request away that was settled; nothing is lost if that fails."""
        if not self._edits:
            return None
        chat, message, text = self._edits[0]
        if (paused := self._pace(chat).paused) > now:
            return paused - now
        del self._edits[0]
        self._try(chat, lambda: self._bot.edit(chat, message, text, formatted=False))
        return 0

    # ------------------------------------------------------------------------- what is shown

    def _show_one(self, now: float) -> float | None:
        """Show what is new of the turn that has waited longest for it, or, until it has shown
        something, that one is at work; 0 if so, else when that is due.
        """
        with self._lock:
            growing = list(self._growing.items())
        due: list[tuple[float, str, Growing, str]] = []
        for turn_id, one in growing:
            pace = self._pace(one.chat)
            if said := one.news():
                at = max(pace.next, pace.paused, one.since + self._pacing.first)
                due.append((at, turn_id, one, said))
            if one.running and not one.shown_at:
                due.append((max(one.typed + self._pacing.typing, pace.paused), turn_id, one, ""))
        ready = [row for row in due if row[0] <= now]
        if not ready:
            return min((at - now for at, *_ in due), default=None)
        _, turn_id, one, said = min(
            ready, key=lambda row: row[2].shown_at if row[3] else row[2].typed
        )
        if said:
            self._show(turn_id, one, said)
        else:
            one.typed = now
            self._try(one.chat, lambda: self._bot.typing(one.chat, one.topic))
        return 0

    def _show(self, turn_id: str, one: Growing, said: str) -> None:
        pace = self._pace(one.chat)
        pace.edited(time.monotonic())
        item = self._store.owed_item(NAME, "turn", turn_id)
        if item is None or item.state != "waiting":
            return
        one.showing(said, time.monotonic())
        text = f"{said} {CURSOR}"
        if item.live:
            self._try(one.chat, lambda: self._bot.edit(one.chat, item.live, text, formatted=False))
            return
        self._store.owed_sending(item.item_id)
        message = self._try(
            one.chat,
            lambda: self._bot.send(
                one.chat, one.topic, text, formatted=False, answers=item.answers
            ),
        )
        if message is None:
            one.showing("", one.shown_at)
        if message != "lost":
            self._store.owed_shown(item.item_id, message or 0)

    def _try(self, chat: int, act: Callable[[], Any]) -> Any:
        """What `act` returns; None where it certainly did nothing, "lost" where nobody knows."""
        try:
            result = act()
        except BotError as error:
            known = self._noted(chat, error)
            if not known:
                log.warning("chat %d: %s", chat, error)
            return "lost" if known == "lost" else None
        except PolicyDenied as error:
            self._forbid(chat, error)
            return None
        except TransportError as error:
            self._lost(error)
            return None if error.kind in UNSENT else "lost"
        self._well()
        return result

    # --------------------------------------------------------------------------------- troubles

    def _pace(self, chat: int) -> Pace:
        base = self._pacing.group if chat < 0 else self._pacing.private
        return self._paces.setdefault(chat, Pace(base, self._pacing.longest))

    def _noted(self, chat: int, error: BotError) -> Literal["later", "lost", ""]:
        """Act on a refusal that says something of more than one message: then the message may be
        sent later, or nobody knows whether it arrived ("lost").
        """
        if error.status == 429:
            self._pace(chat).refused(time.monotonic(), error.retry_after)
        elif error.status == 401:
            self._revoke(error)
        elif error.passing:
            self._lost(error)
            return "lost"
        elif error.moved_to is not None:
            self.moved(chat, error.moved_to)
        else:
            return ""
        return "later"

    def _forbid(self, chat: int, error: PolicyDenied) -> None:
        """The broker lets nothing go to this chat."""
        self._trouble.sending = str(error)
        self._pace(chat).paused = time.monotonic() + FORBIDDEN_SECONDS

    def _lost(self, error: OxydraError) -> None:
        """Telegram can't be reached: everything waits."""
        if not self._trouble.sending:
            log.warning("Telegram takes nothing for now: %s", error)
        self._trouble.sending = str(error)
        self._down_until = time.monotonic() + self._backoff
        self._backoff = min(2 * self._backoff, BACKOFF[1])

    def _well(self) -> None:
        if self._trouble.sending:
            log.info("Telegram takes messages again")
        self._trouble.sending = ""
        self._backoff = BACKOFF[0]

    def _revoke(self, error: BotError) -> None:
        log.error("the bot's token is not valid any more: %s", error)
        self._trouble.revoked = True


def _said(turn: Turn, messages: Sequence[Message]) -> str:
    """What the model said, and how its turn ended where that is not by an answer."""
    said = [message.content.strip() for message in messages]
    terminal: Json = turn.terminal or {}
    if terminal.get("type") == "error":
        said.append(f"⚠ {terminal['payload'].get('message', 'The turn failed.')}")
    elif terminal.get("type") == "turn_cancelled":
        said.append("Cancelled.")
    return "\n\n".join(filter(None, said)) or NOTHING


def _named(number: int, mime_type: str) -> str:
    return f"image-{number}{mimetypes.guess_extension(mime_type) or ''}"


def _as_documents(files: Sequence[SentFile]) -> list[SentFile]:
    return [replace(file, kind="document") for file in files]


def _asked(approval: Approval) -> str:
    """A request as a person reads it."""
    said = [f"May {approval.tool} run?", approval.reason, approval.arguments]
    if not approval.complete:
        said.append("This can't be allowed: it is too long to be shown whole.")
    return "\n\n".join(filter(None, said))
