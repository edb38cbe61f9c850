"""The Bot API, asked through our transport: the one file that imports pytelegrambotapi.

That package builds each request and reads its answer (`telebot.apihelper`); what sends it is
`Bot.exchange`, so that everything leaves by the broker, which alone knows the token. The package
keeps its sender in a module's global, hence one for all bots of a process, told apart by a number
behind the token's placeholder. Files are fetched by ourselves, a piece at a time. No thread runs
here; every call blocks its caller until the answer, `Cancelled`, or an error.
"""

from __future__ import annotations

import importlib
import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from oxydra.channels.route import CREDENTIAL, FORM, PLACEHOLDER, base_of
from oxydra.errors import ConfigError, OxydraError, TransportError
from oxydra.frames import compact
from oxydra.threads import CancelToken
from oxydra.transport import HttpRequest, Transport
from oxydra.types import Json, SentFile

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0
MAX_ANSWER = 8 << 20
SLOWEST = 64 << 10  # bytes a second of a file, either way
WRITTEN = (
    *("allowed_updates", "commands", "link_preview_options", "reply_markup", "reply_parameters"),
)
UPDATES = ("message", "edited_message", "callback_query", "my_chat_member")

_bots: dict[str, Bot] = {}  # by the number that stands in the place of their tokens
_lock = threading.Lock()


class BotError(OxydraError):
    """The Bot API refused. `status` is its error_code, `retry_after` in seconds, `moved_to` the
    id of the supergroup that the chat has become.
    """

    code = "telegram"

    def __init__(
        self, status: int, why: str, retry_after: float | None = None, moved_to: int | None = None
    ) -> None:
        super().__init__(f"Telegram refused ({status}): {why[:300]}")
        self.status = status
        self.why = why.lower()
        self.retry_after = retry_after
        self.moved_to = moved_to

    @property
    def passing(self) -> bool:
        """Whether the same may be accepted later."""
        return self.status == 429 or self.status >= 500 or self.status == 409


@dataclass(frozen=True, slots=True)
class Reply:
    """What telebot needs of a response."""

    status_code: int
    text: str
    reason: str = ""

    def json(self) -> Any:
        """Raises ValueError for what is no answer of the Bot API."""
        found = json.loads(self.text)
        if not isinstance(found, dict) or not {"ok", "result"} & {*found}:
            raise ValueError("no answer")
        if not found.get("ok") and not {"error_code", "description"} <= {*found}:
            raise ValueError("no answer")
        return found


class Bot:
    """One bot. Safe to use from any number of threads until `close`."""

    def __init__(self, transport: Transport, api_url: str, token: CancelToken) -> None:
        """All its calls end when `token` is cancelled."""
        self._transport = transport
        self._base = base_of(api_url)
        self._token = token
        self._api = _apihelper()
        self._name = f"{secrets.randbits(62)}:oxydra"
        with _lock:
            _bots[self._name] = self

    def close(self) -> None:
        with _lock:
            _bots.pop(self._name, None)

    def me(self) -> Json:
        return cast(Json, self._call("get_me"))

    def updates(self, offset: int, seconds: int) -> list[Json]:
        """What came, from the update `offset` on; waits for it as long as `seconds`."""
        found = self._call(
            "get_updates",
            offset=offset,
            timeout=seconds + 15,
            long_polling_timeout=seconds,
            allowed_updates=list(UPDATES),
        )
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []

    def forget_webhook(self) -> None:
        """No other way of getting updates stands in the way of asking for them."""
        self._call("delete_webhook")

    def set_menu(self, commands: Mapping[str, str]) -> None:
        kinds = _types()
        menu = [kinds.BotCommand(name, said) for name, said in commands.items()]
        self._call("set_my_commands", menu)

    def send(
        self,
        chat: int,
        topic: int,
        text: str,
        *,
        formatted: bool,
        buttons: Json | None = None,
        answers: int = 0,
    ) -> int:
        """A new message; returns its id. `answers` is the message that it is an answer to."""
        kinds = _types()
        to = kinds.ReplyParameters(answers, allow_sending_without_reply=True) if answers else None
        sent = self._call(
            "send_message",
            *(chat, text),
            parse_mode="HTML" if formatted else None,
            message_thread_id=topic or None,
            link_preview_options=kinds.LinkPreviewOptions(is_disabled=True),
            reply_markup=None if buttons is None else compact(buttons),
            reply_parameters=to,
        )
        return int(sent["message_id"])

    def edit(
        self, chat: int, message: int, text: str, *, formatted: bool, buttons: Json | None = None
    ) -> None:
        """Let a message say something else; that it says so already is no error."""
        try:
            self._call(
                "edit_message_text",
                *(text, chat, message),
                parse_mode="HTML" if formatted else None,
                link_preview_options=_types().LinkPreviewOptions(is_disabled=True),
                reply_markup=None if buttons is None else compact(buttons),
            )
        except BotError as error:
            if "message is not modified" not in error.why:
                raise

    def typing(self, chat: int, topic: int) -> None:
        self._call("send_chat_action", chat, "typing", message_thread_id=topic or None)

    def answer_button(self, query: str, text: str) -> None:
        """Say to whoever pressed a button what came of it."""
        self._call("answer_callback_query", query, text=text[:200])

    def send_files(self, chat: int, topic: int, files: Sequence[SentFile], caption: str) -> int:
        """A file, or several as an album, with a caption; returns the first message's id."""
        seconds = ANSWER_SECONDS + sum(len(file.data) for file in files) / SLOWEST
        more: Json = {"message_thread_id": topic or None, "timeout": seconds}
        if len(files) > 1:
            kinds = _types()
            media = [getattr(kinds, f"InputMedia{file.kind.title()}")(file) for file in files]
            media[-1 if files[0].kind == "document" else 0].caption = caption or None
            return int(self._call("send_media_group", chat, media, **more)[0]["message_id"])
        (file,) = files
        if file.kind == "document":
            sent = self._call("send_data", chat, file, "document", caption=caption or None, **more)
        else:
            sent = self._call(f"send_{file.kind}", chat, file, caption=caption or None, **more)
        return int(sent["message_id"])

    def fetch(
        self, file_id: str, limit: int, take: Callable[[bytes], object], token: CancelToken
    ) -> None:
        """Give a file's content to `take`, a piece at a time. Raises `TransportError` where it is
        larger than `limit` bytes, or comes more slowly than `SLOWEST`.
        """
        path = str(self._call("get_file", file_id).get("file_path", ""))
        if not re.fullmatch(r"[\w./-]{1,500}", path, re.ASCII) or ".." in path:
            raise BotError(0, "the file has no place that can be asked for")
        request = HttpRequest(
            "GET",
            f"{self._base}/file/bot{PLACEHOLDER}/{path}",
            credential=CREDENTIAL,
            connect_timeout=CONNECT_SECONDS,
            idle_timeout=ANSWER_SECONDS,
            max_bytes=limit,
        )
        with self._transport.open(request, token) as stream:
            if stream.status != 200:
                raise BotError(stream.status, "the file can't be fetched")
            began, came = time.monotonic(), 0
            for piece in stream:
                came += len(piece)
                if time.monotonic() - began > ANSWER_SECONDS + came / SLOWEST:
                    raise TransportError("It comes too slowly.", kind="deadline", retryable=True)
                take(piece)

    # ------------------------------------------------------------------------------- below telebot

    def _call(self, function: str, *args: Any, **named: Any) -> Any:
        """Raises `BotError`, `TransportError` or `Cancelled`."""
        try:
            return getattr(self._api, function)(self._name, *args, **named)
        except self._api.ApiTelegramException as error:
            raise _refusal(error.result_json) from None
        except self._api.ApiHTTPException as error:
            status = int(error.result.status_code)
            raise BotError(status, "an answer that is not its own") from None
        except self._api.ApiInvalidJSONException:
            raise BotError(502, "an answer that makes no sense") from None

    def exchange(
        self, method: str, params: Mapping[str, Any], files: Mapping[str, SentFile], seconds: float
    ) -> Reply:
        """One call of a method of the Bot API: its parameters as JSON, with files as a form."""
        if files:
            kind, body = _form(params, files)
        else:
            kind, body = "application/json", compact(_plain(params)).encode()
        request = HttpRequest(
            "POST",
            f"{self._base}/bot{PLACEHOLDER}/{method}",
            {"Content-Type": kind},
            body,
            CREDENTIAL,
            connect_timeout=CONNECT_SECONDS,
            idle_timeout=seconds,
            max_bytes=MAX_ANSWER,
        )
        with self._transport.open(request, self._token) as stream:
            return Reply(stream.status, stream.read().decode("utf-8", "replace"))


def _refusal(result: Any) -> BotError:
    said = result if isinstance(result, dict) else {}
    parameters = said.get("parameters")
    more = parameters if isinstance(parameters, dict) else {}
    wait, moved = more.get("retry_after"), more.get("migrate_to_chat_id")
    status = said.get("error_code")
    return BotError(
        status if isinstance(status, int) else 0,
        str(said.get("description", "")),
        float(wait) if isinstance(wait, int | float) else None,
        moved if isinstance(moved, int) else None,
    )


def _plain(params: Mapping[str, Any]) -> Json:
    """Parameters as JSON has them: what telebot has written as JSON already is read again."""
    found: Json = {}
    for name, value in params.items():
        if name in WRITTEN and isinstance(value, str):
            value = json.loads(value)
        if value is not None:
            found[name] = int(value) if name == "chat_id" else value
    return found


def _form(params: Mapping[str, Any], files: Mapping[str, SentFile]) -> tuple[str, bytes]:
    """A body of parameters and files, and its type (RFC 7578)."""
    while True:
        boundary = secrets.token_hex(16)
        if not any(boundary.encode() in file.data for file in files.values()):
            break
    start = f"--{boundary}\r\nContent-Disposition: form-data; "
    parts: list[bytes] = []
    for name, value in params.items():
        if name == "media":  # as `compact` writes it: the broker can't take it in two ways
            value = compact(json.loads(value))
        parts.append(f'{start}name="{name}"\r\n\r\n{value}\r\n'.encode())
    for name, file in files.items():
        said = re.sub(r'["\r\n\\]', "_", file.name)
        head = f'name="{name}"; filename="{said}"\r\nContent-Type: application/octet-stream'
        parts += (f"{start}{head}\r\n\r\n".encode(), file.data, b"\r\n")
    return f"{FORM}{boundary}", b"".join([*parts, f"--{boundary}--\r\n".encode()])


@cache
def _apihelper() -> Any:
    """`telebot.apihelper`, with its requests going through us."""
    try:
        apihelper: Any = importlib.import_module("telebot.apihelper")
    except ImportError:
        raise ConfigError(
            "The Telegram bot needs the package pytelegrambotapi, which is not installed.",
            remedy="Install it: pip install 'oxydra[telegram]'; or set enabled = false.",
            key="channels.telegram.enabled",
        ) from None
    apihelper.API_URL = "{0}/{1}"
    apihelper.CUSTOM_REQUEST_SENDER = _send
    return apihelper


@cache
def _types() -> Any:
    return importlib.import_module("telebot.types")


def _send(
    _verb: str, place: str, *, params: Any, files: Any, timeout: tuple[float, float], proxies: Any
) -> Reply:
    """What telebot calls in the place of requests."""
    name, _, method = place.rpartition("/")
    bot = _bots.get(name)
    if bot is None:
        raise TransportError("The bot has stopped.", kind="broken")
    return bot.exchange(method, params or {}, files or {}, max(timeout[1], ANSWER_SECONDS))
