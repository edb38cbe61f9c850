"""What the broker lets a guest ask of the Bot API: these methods, in these chats. Pure.

A guest writes `PLACEHOLDER` where the token belongs; the broker puts the token there. The chats are
those of the senders and the groups that the configuration names, whatever the guest says: a private
chat has the id of its person. A request is only looked at, never repaired: one that could be read
in two ways is refused.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from oxydra.config import TelegramConfig
from oxydra.errors import FrameError, PolicyDenied
from oxydra.frames import compact, parse
from oxydra.transport import Credential, HttpRequest, Route, origin_of

CREDENTIAL = "telegram"
PLACEHOLDER = "0:oxydra"
ASKING = ("getMe", "getUpdates", "getFile", "setMyCommands", "deleteWebhook", "answerCallbackQuery")
TELLING = (
    *("sendMessage", "editMessageText", "sendChatAction", "sendPhoto", "sendDocument"),
    *("sendAudio", "sendVoice", "sendVideo", "sendMediaGroup"),
)
FORM = "multipart/form-data; boundary="

_FILE = r"(?:[\w-][\w.-]*/)*[\w-][\w.-]*"
_PART = re.compile(
    rb'Content-Disposition: form-data; name="([a-z_0-9]+)"(?:; filename="[^"\r\n]*")?'
    rb"(?:\r\nContent-Type: [\w./+-]+)?"
)


def base_of(api_url: str) -> str:
    """The address below which the API is, without a slash at its end."""
    return api_url.rstrip("/")


def telegram_route(config: TelegramConfig, token: str) -> Route:
    """The one route to the Bot API, with the token."""
    base = base_of(config.api_url)
    people = {number for sender in config.senders for number in sender.platform_ids}
    chats = frozenset((*people, *config.groups))
    methods = "|".join((*ASKING, *TELLING))
    path, key = re.escape(urlsplit(base).path), re.escape(PLACEHOLDER)
    return Route(
        CREDENTIAL,
        origin_of(base),
        f"{path}/(?:bot{key}/(?:{methods})|file/bot{key}/{_FILE})",
        ("GET", "POST"),
        Credential("", token, origin_of(base), PLACEHOLDER),
        check=lambda request: _check(request, chats),
    )


def _check(request: HttpRequest, chats: frozenset[str]) -> None:
    parts = urlsplit(request.url)
    method = parts.path.rpartition("/")[2]
    if parts.query or parts.fragment:
        raise _refused("Parameters belong into the body.")
    if method not in TELLING or "/file/" in parts.path:
        return
    chat = _chat(request)
    if chat not in chats:
        raise _refused(
            f"The chat {chat[:32]} is neither a listed sender's nor a listed group.",
            "The person can add it to [channels.telegram] groups or senders, and restart.",
        )


def _chat(request: HttpRequest) -> str:
    """The chat that a request is for. Raises `PolicyDenied` unless there is exactly one reading."""
    kinds = [value for name, value in request.headers.items() if name.lower() == "content-type"]
    kind = kinds[0] if len(kinds) == 1 else ""
    if kind == "application/json":
        try:
            body = parse(request.body.decode())
        except (FrameError, ValueError):
            body = None
        if compact(body).encode() != request.body:  # a name twice, for example
            raise _refused("The JSON is not as we write it.")
        found = body.get("chat_id") if isinstance(body, dict) else None
        return str(found) if isinstance(found, int | str) else ""
    if kind.startswith(FORM) and re.fullmatch(r"[0-9a-f]{32}", kind.removeprefix(FORM)):
        return _chat_of_form(request.body, kind.removeprefix(FORM).encode())
    raise _refused("The body is of no kind that is looked at.")


def _chat_of_form(body: bytes, boundary: bytes) -> str:
    first, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary)
    if first or not parts or parts.pop() != b"--\r\n":
        raise _refused("The form is not whole.")
    chats = []
    for part in parts:
        head, _, value = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        match = _PART.fullmatch(head)
        if match is None or not part.startswith(b"\r\n"):
            raise _refused("The form is not as we write it.")
        if match[1] == b"chat_id":
            chats.append(value)
    return chats[0].decode("ascii", "replace") if len(chats) == 1 else ""


def _refused(message: str, remedy: str = "") -> PolicyDenied:
    return PolicyDenied(f"Telegram: {message}", remedy=remedy)
