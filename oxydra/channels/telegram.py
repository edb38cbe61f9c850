"""The user's Telegram bot: takes messages in, and lets answers out.

The thread `oxydra-telegram-poll` asks for updates by long polling and acts on each before it
confirms it, so that none is lost; one that comes again after a crash finds its turn there. It ends
with `stop`, at once, or when the bot's token is not valid any more. `Mail` has the thread that
sends, `Intake` the one that fetches files.

What a person writes becomes a turn of the session that the chat, or the topic of a forum, talks to.
What others wrote of it - forwarded, quoted, in files - marks the turn as tainted. In a group the
vault is closed, nothing of other conversations is recalled or found, and nothing is scheduled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from oxydra.approvals import Approvals
from oxydra.channels import media
from oxydra.channels.bot import Bot, BotError
from oxydra.channels.commands import Commands, Place
from oxydra.channels.intake import Fetch, Intake
from oxydra.channels.live import Pacing
from oxydra.channels.mail import AGAIN, BACKOFF, CAPTION, NAME, Mail, Trouble
from oxydra.channels.markup import units
from oxydra.channels.route import MENU
from oxydra.channels.senders import Senders
from oxydra.config import TelegramConfig
from oxydra.errors import (
    Cancelled,
    NotFoundError,
    OxydraError,
    PolicyDenied,
    StoreBusyError,
    StoreFullError,
    ToolError,
    TransportError,
)
from oxydra.gateway.commands import Command
from oxydra.gateway.hub import Hub
from oxydra.runtime import Terms
from oxydra.skills import asked_for
from oxydra.store import Store
from oxydra.store.channels import Debt, Waiting
from oxydra.store.notices import Notice
from oxydra.threads import CancelToken, Deadline, Service
from oxydra.transport import Transport
from oxydra.types import Attachment, Json, SentFile, ToolContext, Turn

log = logging.getLogger(__name__)

CONFLICT_SECONDS = (5.0, 60.0)  # while another program polls with the same token
MAX_QUOTED = 4000  # characters of a quotation
CLOSED = ("memory_", "schedule_")  # tools that a group has not, by how their names begin


@dataclass(slots=True)
class Incoming:
    """A message, or several that are one album, of the update `number`; `text` is what the person
    wrote.
    """

    number: int
    place: Place
    message: Json
    sender: int
    text: str
    album: list[Json]
    edited: bool = False

    @classmethod
    def of(cls, waiting: Waiting) -> Incoming:
        place = Place(waiting.chat, waiting.topic)
        return cls(waiting.number, place, **waiting.message)

    @property
    def waiting(self) -> Waiting:
        """It as a row."""
        kept = ("message", "sender", "text", "album", "edited")
        row = {name: getattr(self, name) for name in kept}
        return Waiting(self.number, self.place.chat, self.place.topic, row)

    @property
    def files(self) -> list[media.Medium]:
        return [one for message in self.album for one in media.media_of(message)]

    @property
    def turn_id(self) -> str:
        turn_id = f"{NAME}:{self.place.chat}:{self.message['message_id']}"
        return f"{turn_id}:{self.message.get('edit_date', 0)}" if self.edited else turn_id


class Telegram:
    """The channel. Made before the hub is started, `listen` too; `start` after it."""

    def __init__(
        self,
        config: TelegramConfig,
        transport: Transport,
        hub: Hub,
        store: Store,
        commands: Mapping[str, Command],
        health: Callable[[], Json],
        approvals: Approvals | None,
        keep: media.Keep,
        audit: Path,
        tools: Sequence[str] = (),
        pacing: Pacing | None = None,
        on_death: Callable[[BaseException], None] | None = None,
    ) -> None:
        """`commands` are the gateway's, `keep` puts a file into the workspace, `audit` is the
        record of who was turned away, `tools` are the names of all.
        """
        self._config = config
        self._hub = hub
        self._store = store
        self._approvals = approvals
        self._keep = keep
        self._token = CancelToken()
        self._trouble = Trouble()
        self._bot = Bot(transport, config.api_url, self._token)
        self._senders = Senders(config, audit)
        self._mail = Mail(
            *(self._bot, store, self._token, config.max_message_length, self._trouble),
            approvals=approvals,
            pacing=pacing or Pacing(),
            on_death=on_death,
        )
        self._intake = Intake(
            *(self._bot, store, self._token, NAME, self._take_up, self._mail.look),
            on_death=on_death,
        )
        self._commands = Commands(hub, store, commands, health, NAME, self._intake.drop)
        self._in_groups = frozenset(name for name in tools if not name.startswith(CLOSED))
        self._me: Json = {}
        self._service = Service("telegram-poll", self._work, on_death=on_death)

    def listen(self) -> None:
        """Take up what a crash or a shutdown left: turns that go on, and those that ended
        meanwhile; before the hub takes them up.
        """
        for item in self._store.owed(NAME, "waiting"):
            if item.kind != "turn":
                continue
            self._mail.follow(item.key, item.chat, item.topic)
            self._mail.ended(item.key)
            turn = self._store.turn(item.key)
            if turn is not None:
                self._hub.live(turn.session_id).listen(self._mail)

    def start(self) -> None:
        self._mail.start()
        self._intake.start()
        self._intake.look()  # what a crash or a shutdown left
        self._service.start()

    def stop(self, timeout: float) -> bool:
        """Take nothing more and send nothing more; what is owed stays owed."""
        deadline = Deadline.after(timeout)
        self._token.cancel("shutdown")
        ended = self._service.stop(deadline.remaining())
        ended = self._intake.stop(deadline.remaining()) and ended
        ended = self._mail.stop(deadline.remaining()) and ended
        self._bot.close()
        return ended

    def state(self) -> Json:
        """How the bot is, for a look at its health."""
        trouble = self._trouble
        if trouble.revoked:
            state, detail = "stopped", "Its token is not valid any more: set a new one and restart."
        elif detail := trouble.polling or trouble.sending:
            state = "waiting"
        else:
            state = "running" if self._me else "starting"
        return {"state": state, "detail": detail, "bot": self._me.get("username", "")}

    def terms_of(self, turn: Turn) -> Terms | None:
        """What limits a turn that a group reads."""
        origin = self._store.session(turn.session_id).channel_origin
        if not origin.startswith(f"{NAME}:-"):
            return None
        return Terms(tools=self._in_groups, recall=False, vault=False)

    def owes_media(self, context: ToolContext) -> bool:
        """See `tools.media.Chat`."""
        return self._store.owed_item(NAME, "media", _call(context)) is not None

    def owe_media(self, context: ToolContext, files: Sequence[SentFile], caption: str) -> None:
        """See `tools.media.Chat`. The chat is that whose message the turn came from, whichever its
        conversation began in.
        """
        turn = self._store.owed_item(NAME, "turn", context.turn_id)
        if turn is None:
            raise ToolError(
                "This message did not come from a chat, so there is nowhere to send files.",
                remedy="Say where they lie in the workspace.",
            )
        if units(AGAIN + caption) > CAPTION:
            raise ToolError("The caption is too long.", remedy="Say it in the answer instead.")
        debt = Debt(
            *(turn.chat, turn.topic, "media", _call(context), caption),
            session_id=turn.session_id,
            files=tuple(files),
        )
        self._mail.owe(debt)

    def courier(self, notice: Notice, settled: Callable[[str], None]) -> None:
        """Takes what a schedule that was made in a chat has to say there."""
        chat, _, topic = notice.context.partition(":")
        try:
            place = Place(int(chat), int(topic or 0))
            said = str(notice.payload.get("message", ""))
            name = str(notice.payload.get("schedule_name") or "")
            text = f"**{name}**\n\n{said}" if name else said
            key = str(notice.notice_id)
            self._mail.owe(Debt(place.chat, place.topic, "notice", key, text), settled)
        except (OxydraError, ValueError) as error:
            settled(str(error))

    # ------------------------------------------------------------------------------- the thread

    def _work(self, _service: Service) -> None:
        wait = 0.0
        while not self._token.wait(wait):
            try:
                wait = self._poll()
                self._trouble.polling = ""
                continue
            except Cancelled:
                return
            except BotError as error:
                if error.status in (401, 404):  # 404: the token is none at all
                    log.error("the bot stops: its token is not valid: %s", error)
                    self._trouble.revoked = True
                    self._mail.look()
                    return
                wait, why = self._patience(wait, error), str(error)
                if error.status == 409:
                    why = "Another program asks for this bot's messages: stop that one."
            except OxydraError as error:
                wait, why = min(max(2 * wait, BACKOFF[0]), BACKOFF[1]), str(error)
            if why != self._trouble.polling:
                log.warning("no messages come from Telegram for now: %s", why)
            self._trouble.polling = why

    def _patience(self, before: float, error: BotError) -> float:
        """Seconds until it is tried again."""
        if error.retry_after is not None:
            return error.retry_after
        first, longest = CONFLICT_SECONDS if error.status == 409 else BACKOFF
        return min(max(2 * before, first), longest)

    def _poll(self) -> float:
        if not self._me:
            me = self._bot.me()
            self._bot.forget_webhook()
            self._bot.set_menu(MENU)
            self._me = me
            log.info("the bot @%s takes messages", me.get("username"))
        offset = self._store.channel_offset(NAME)
        updates = self._bot.updates(offset, self._config.polling_timeout_secs)
        albums = _albums(updates)
        for update in updates:
            number = update.get("update_id")
            if not isinstance(number, int):
                continue
            self._token.check()
            taken = self._take(update, albums)
            if isinstance(taken, Waiting):
                self._store.channel_took(NAME, number + 1, waiting=taken)
                self._intake.look()
            else:
                self._store.channel_took(NAME, number + 1, taken)
                self._mail.look()
        return 0.0

    def _take(self, update: Json, albums: Mapping[str, list[Json]]) -> list[Debt] | Waiting:
        """Act on an update; what is owed for it, or what of it has to wait. Raises only what makes
        it worth another try.
        """
        try:
            if isinstance(update.get("callback_query"), dict):
                self._pressed(update["callback_query"])
            elif isinstance(update.get("my_chat_member"), dict):
                self._membership(update["my_chat_member"])
            for kind in ("message", "edited_message"):
                if isinstance(update.get(kind), dict):
                    return self._message(update, update[kind], albums, kind == "edited_message")
        except (Cancelled, StoreFullError, StoreBusyError, TransportError):
            raise
        except BotError as error:
            if error.passing:
                raise
            log.error("an update could not be acted on: %s", error)
        except Exception:
            log.exception("the update %s could not be acted on", update.get("update_id"))
        return []

    def _membership(self, change: Json) -> None:
        status = str((change.get("new_chat_member") or {}).get("status", ""))
        chat = (change.get("chat") or {}).get("id")
        if status in ("kicked", "left"):
            log.warning("the bot is no longer in the chat %s", chat)

    # ------------------------------------------------------------------------------- messages

    def _message(
        self, update: Json, message: Json, albums: Mapping[str, list[Json]], edited: bool
    ) -> list[Debt] | Waiting:
        chat = message.get("chat") or {}
        if "migrate_to_chat_id" in message and str(chat.get("id")) in self._config.groups:
            self._mail.moved(int(chat["id"]), int(message["migrate_to_chat_id"]))
            return []
        sender = message.get("from") or {}
        if not self._senders.admits(sender, chat, message):
            return []
        topic = message.get("message_thread_id") if message.get("is_topic_message") else 0
        place = Place(int(chat["id"]), int(topic or 0))
        self._name_topic(place, message)
        album = albums.get(str(message.get("media_group_id", "")), []) or [message]
        if album[0] is not message:
            return []  # it was taken with the first of its album
        text = str(message.get("text") or message.get("caption") or "")
        text = next((str(one["caption"]) for one in album if one.get("caption")), text)
        number = int(update["update_id"])
        incoming = Incoming(number, place, message, int(sender["id"]), text, album, edited)
        command, rest = self._command(text)
        if not place.private and not (command or self._addressed(message, text)):
            return []
        if command is None:
            return []  # another bot's
        if command == "skill" and rest:
            name, _, wanted = rest.partition(" ")
            incoming.text = text = asked_for(name, wanted.strip())
        elif command and not edited:
            answer = self._commands.run(place, command, rest)
            return [self._reply(incoming, answer)]
        if not (text.strip() or incoming.files):
            return []  # a service message, or one of a kind that says nothing to an agent
        if incoming.files or self._intake.waits(place):
            return incoming.waiting
        return self._begin(incoming)

    def _reply(self, incoming: Incoming, text: str) -> Debt:
        place, key = incoming.place, f"reply:{incoming.number}"
        return Debt(place.chat, place.topic, "reply", key, text, incoming.sender)

    def _name_topic(self, place: Place, message: Json) -> None:
        """What a topic is called is in the message that made it, or in one that answers that."""
        changed = message.get("forum_topic_created") or message.get("forum_topic_edited")
        first = message.get("reply_to_message") or {}
        name = str((changed or first.get("forum_topic_created") or {}).get("name") or "")
        if place.topic and name:
            self._commands.name_topic(place, name, changed=bool(changed))

    def _command(self, text: str) -> tuple[str | None, str]:
        """The command that a text is, "" if it is none, None for another bot's; and what follows
        it.
        """
        if not text.startswith("/") or len(text) < 2 or not text[1].isalpha():
            return "", ""
        word, _, rest = text[1:].partition(" ")
        name, _, bot = word.partition("\n")[0].partition("@")
        if bot and bot.lower() != str(self._me.get("username", "")).lower():
            return None, ""
        return name.lower(), rest.strip()

    def _addressed(self, message: Json, text: str) -> bool:
        """Whether a group's message is for the bot."""
        if self._config.respond_in_groups == "all":
            return True
        answered = (message.get("reply_to_message") or {}).get("from") or {}
        service = "forum_topic_created" in (message.get("reply_to_message") or {})
        if answered.get("id") == self._me.get("id") and not service:
            return True
        entities = message.get("entities") or message.get("caption_entities") or []
        mention = f"@{self._me.get('username', '')}".lower()
        units = text.encode("utf-16-le")
        for entity in entities:
            if entity.get("type") == "text_mention":
                if (entity.get("user") or {}).get("id") == self._me.get("id"):
                    return True
            elif entity.get("type") == "mention":
                begin = 2 * int(entity.get("offset", 0))
                said = units[begin : begin + 2 * int(entity.get("length", 0))]
                if said.decode("utf-16-le", "replace").lower() == mention:
                    return True
        return False

    def _unfinished(self, incoming: Incoming) -> bool:
        """Whether the turn of a message that was edited is not over: else it stays as it was."""
        turn = self._store.turn(f"{NAME}:{incoming.place.chat}:{incoming.message['message_id']}")
        return turn is not None and turn.terminal is None

    def _take_up(self, waiting: Waiting, fetch: Fetch) -> list[Debt]:
        """See `intake.Begin`."""
        return self._begin(Incoming.of(waiting), fetch)

    def _begin(self, incoming: Incoming, fetch: Fetch | None = None) -> list[Debt]:
        """A message becomes a turn; what is owed for it besides. `fetch` is for its files."""
        if incoming.edited and not self._unfinished(incoming):
            return []
        place, turn_id = incoming.place, incoming.turn_id
        prompt, tainted = _prompt(incoming.message, incoming.text, self._me)
        attachments: tuple[Attachment, ...] = ()
        there = self._store.turn(turn_id)
        if there is not None:
            prompt = there.prompt  # as it was taken: this is the update once more
        else:
            if fetch is not None and incoming.files:
                attachments, lines = media.take(incoming.files, fetch, self._keep)
                prompt = "\n".join([*filter(None, [prompt]), *lines])
                tainted = True
            if incoming.edited:
                prompt = f"[My last message was edited. It says now:]\n{prompt}"
        try:
            session_id = self._session(place)
            debt = Debt(
                *(place.chat, place.topic, "turn", turn_id),
                sender=incoming.sender,
                answers=0 if place.private else int(incoming.message["message_id"]),
                session_id=session_id,
            )
            self._store.owe(NAME, debt)
            self._hub.live(session_id).listen(self._mail)
            self._mail.follow(turn_id, place.chat, place.topic)
            self._hub.submit(
                *(session_id, turn_id, turn_id, prompt, attachments),
                tainted=tainted,
                steer=incoming.edited,
            )
        except (StoreFullError, StoreBusyError):
            raise
        except OxydraError as error:
            self._mail.forget(turn_id)
            return [self._reply(incoming, str(error))]
        self._mail.ended(turn_id)  # if it has: it may have come before
        return []

    def _session(self, place: Place) -> str:
        """The session that a place talks to, a new one where that is gone."""
        session_id = self._commands.session(place)
        try:
            self._store.session(session_id)
        except NotFoundError:
            self._commands.run(place, "new", "")
            session_id = self._commands.session(place)
        return session_id

    # -------------------------------------------------------------------------------- buttons

    def _pressed(self, query: Json) -> None:
        """A button of a request was pressed: it counts for whoever the request is for."""
        sender, message = query.get("from") or {}, query.get("message") or {}
        chat = message.get("chat") or {}
        if not self._senders.admits(sender, chat):
            return
        key, _, what = str(query.get("data", "")).partition(":")
        try:
            said = self._answer(key, what, int(sender["id"]), int(chat["id"]))
        except (StoreFullError, StoreBusyError):
            raise
        except OxydraError as error:
            said = str(error)
        try:
            self._bot.answer_button(str(query.get("id", "")), said)
        except (BotError, TransportError, PolicyDenied) as error:
            log.warning("a button's press was not answered: %s", error)

    def _answer(self, key: str, what: str, sender: int, chat: int) -> str:
        item = self._store.owed_item(NAME, "approval", key)
        if item is None or self._approvals is None or what not in ("allow", "deny", "session"):
            raise NotFoundError("There is no such request.")
        if (item.sender, item.chat) != (sender, chat):
            raise PolicyDenied("Only the person whose message this came from may answer.")
        settled = self._approvals.answer(
            key, allow=what != "deny", for_session=what == "session", by=self._senders.name(sender)
        )
        return f"{settled.tool}: {settled.state}"


def _call(context: ToolContext) -> str:
    """A model may use the id of a call again in a later step."""
    return f"{context.turn_id}:{context.step}:{context.call_id}"


def _albums(updates: Sequence[Json]) -> dict[str, list[Json]]:
    """The messages that are one album, of those that came together."""
    found: dict[str, list[Json]] = {}
    for update in updates:
        message = update.get("message")
        if isinstance(message, dict) and message.get("media_group_id"):
            sender = (message.get("from") or {}).get("id")
            album = found.setdefault(str(message["media_group_id"]), [])
            if not album or (album[0].get("from") or {}).get("id") == sender:
                album.append(message)
    return found


def _prompt(message: Json, text: str, me: Json) -> tuple[str, bool]:
    """What the agent is told, and whether others wrote some of it."""
    parts: list[str] = []
    tainted = bool(message.get("via_bot"))
    if message.get("forward_origin") or message.get("forward_date"):
        tainted = True
        parts.append("[Forwarded from somebody else:]")
    quote = (message.get("quote") or {}).get("text")
    answered = message.get("reply_to_message") or message.get("external_reply") or {}
    if "forum_topic_created" not in answered and answered:
        author = (answered.get("from") or {}).get("id")
        said = str(quote or answered.get("text") or answered.get("caption") or "")[:MAX_QUOTED]
        if said and author != me.get("id"):
            tainted = tainted or author != (message.get("from") or {}).get("id")
            tainted = tainted or bool(answered.get("forward_origin"))
            quoted = "\n".join(f"> {line}" for line in said.split("\n"))
            parts.append(f"[It answers this message:]\n{quoted}")
    return "\n".join(filter(None, [*parts, text])), tainted
