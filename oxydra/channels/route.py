"""What the broker lets a guest ask of the Bot API: these methods with these fields, in these chats.
Pure.

A guest writes `PLACEHOLDER` where the token belongs; the broker puts the token there. The chats are
those of the senders and the groups that the configuration names, whatever the guest says: a private
chat has the id of its person. A request is only looked at, never repaired: one that could be read
in two ways is refused.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from oxydra.config import TelegramConfig
from oxydra.errors import FrameError, PolicyDenied
from oxydra.frames import compact, parse
from oxydra.transport import Credential, HttpRequest, Route, origin_of
from oxydra.types import Json

CREDENTIAL = "telegram"
PLACEHOLDER = "0:oxydra"
MENU = {  # anyone who finds the bot sees it: so it says this and nothing else
    "new": "Begin a new conversation: /new [name]",
    "sessions": "List the conversations",
    "switch": "Go on with another one: /switch ID",
    "skill": "Work by a skill: /skill NAME [what to do]",
    "cancel": "Stop what runs here",
    "cancelall": "Stop everything that runs or waits",
    "status": "How the agent is",
    "cost": "What was spent",
    "tools": "What the agent can use: /tools [word]",
    "mcp": "The MCP servers and how they are",
    "skills": "The skills in use",
    "help": "What the bot understands",
}
FORM = "multipart/form-data; boundary="
NO_PREVIEW = {"is_disabled": True}

_SAID = ("chat_id", "text", "parse_mode", "link_preview_options", "reply_markup")
_ASKING: dict[str, tuple[str, ...]] = {  # methods that are about no chat, and their fields
    "getMe": (),
    "getUpdates": ("offset", "timeout", "allowed_updates"),
    "getFile": ("file_id",),
    "setMyCommands": ("commands",),
    "deleteWebhook": (),
    "answerCallbackQuery": ("callback_query_id", "text"),
}
_TELLING: dict[str, tuple[str, ...]] = {
    "sendMessage": (*_SAID, "message_thread_id", "reply_parameters"),
    "editMessageText": (*_SAID, "message_id"),
    "sendChatAction": ("chat_id", "message_thread_id", "action"),
}
_PLACE = ("chat_id", "message_thread_id")
_SENDING: dict[str, tuple[str, ...]] = {  # as forms, with their files
    **{
        f"send{kind}": (*_PLACE, "caption")
        for kind in ("Photo", "Document", "Audio", "Voice", "Video")
    },
    "sendMediaGroup": (*_PLACE, "media"),
}
_FILE = r"(?:[\w-][\w.-]*/)*[\w-][\w.-]*"
_PART = re.compile(
    rb'Content-Disposition: form-data; name="([A-Za-z_0-9]+)"(?:; filename="([^"\\\r\n]+)")?'
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
    methods = "|".join((*_ASKING, *_TELLING, *_SENDING))
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
    if parts.query or parts.fragment:
        raise _refused("Parameters belong into the body.")
    if f"/file/bot{PLACEHOLDER}/" in parts.path:
        return
    method = parts.path.rpartition("/")[2]
    if method in _SENDING:
        chat = _chat_of_form(request, method)
    else:
        body = _body(request, method)
        _check_said(method, body)
        if method in _ASKING:
            return
        found = body.get("chat_id")
        chat = str(found) if isinstance(found, int | str) else ""
    if chat not in chats:
        raise _refused(
            f"The chat {chat[:32]} is neither a listed sender's nor a listed group.",
            "The person can add it to [channels.telegram] groups or senders, and restart.",
        )


def _kind(request: HttpRequest) -> str:
    kinds = [value for name, value in request.headers.items() if name.lower() == "content-type"]
    return kinds[0] if len(kinds) == 1 else ""


def _body(request: HttpRequest, method: str) -> Json:
    """A body in JSON. Raises `PolicyDenied` unless there is exactly one reading."""
    if _kind(request) != "application/json":
        raise _refused("The body is of no kind that is looked at.")
    try:
        body = parse(request.body.decode())
    except (FrameError, ValueError):
        body = None
    if compact(body).encode() != request.body:  # a name twice, for example
        raise _refused("The JSON is not as we write it.")
    if not isinstance(body, dict):
        raise _refused("The JSON is no object.")
    fields = (_ASKING | _TELLING)[method]
    if more := [name for name in body if name not in fields]:
        raise _refused(f"{method} may not have {more[0][:32]!r}.")
    return body


def _check_said(method: str, body: Json) -> None:
    """What of the fields could make Telegram, or whoever reads it, go to an address, or tell more
    people than the chat's.
    """
    if method in ("sendMessage", "editMessageText"):
        if body.get("link_preview_options") != NO_PREVIEW:
            raise _refused("A link may not be fetched for a preview.")
        if not _plain_buttons(body.get("reply_markup")):
            raise _refused("Buttons may only answer requests.")
        answered = body.get("reply_parameters", {})
        if not (
            isinstance(answered, dict)
            and {*answered} <= {"message_id", "allow_sending_without_reply"}
        ):
            raise _refused("What is answered is in the same chat.")
    elif method == "setMyCommands":
        menu = [{"command": name, "description": said} for name, said in MENU.items()]
        if body != {"commands": menu}:
            raise _refused("The menu is not ours.")


def _plain_buttons(markup: Any) -> bool:
    """Buttons that tell us of being pressed, and open nothing."""
    if markup is None:
        return True
    rows = markup.get("inline_keyboard") if isinstance(markup, dict) and len(markup) == 1 else None
    return isinstance(rows, list) and all(
        isinstance(row, list)
        and all(isinstance(one, dict) and {*one} == {"text", "callback_data"} for one in row)
        for row in rows
    )


def _chat_of_form(request: HttpRequest, method: str) -> str:
    """The chat that a request with files is for. They are in it: where one is named by an address,
    Telegram would fetch that.
    """
    kind = _kind(request)
    if not re.fullmatch(re.escape(FORM) + "[0-9a-f]{32}", kind):
        raise _refused("Files are sent as a form.")
    boundary = kind.removeprefix(FORM).encode()
    first, *parts = (b"\r\n" + request.body).split(b"\r\n--" + boundary)
    if first or not parts or parts.pop() != b"--\r\n":
        raise _refused("The form is not whole.")
    told: dict[str, bytes] = {}
    files: set[str] = set()
    for part in parts:
        head, _, value = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        match = _PART.fullmatch(head)
        if match is None or not part.startswith(b"\r\n"):
            raise _refused("The form is not as we write it.")
        name = match[1].decode()
        if name in told or name in files or (match[2] is None and name not in _SENDING[method]):
            raise _refused(f"The form may not have {name[:32]!r} there.")
        if match[2] is None:
            told[name] = value
        else:
            files.add(name)
    if method == "sendMediaGroup":
        named = _album(told.get("media", b""))
    else:
        named = {method.removeprefix("send").lower()}
    if not files or files != named:
        raise _refused("Files come with their request.")
    return told.get("chat_id", b"").decode("ascii", "replace")


def _album(text: bytes) -> set[str]:
    """The names of the files of an album."""
    try:
        album = parse(text.decode())
    except (FrameError, ValueError):
        album = None
    names: set[str] = set()
    for one in album if isinstance(album, list) and compact(album).encode() == text else ():
        if not isinstance(one, dict) or not {*one} <= {"type", "media", "caption"}:
            return set()
        place = str(one.get("media"))
        if not place.startswith("attach://"):
            return set()
        names.add(place.removeprefix("attach://"))
    return names


def _refused(message: str, remedy: str = "") -> PolicyDenied:
    return PolicyDenied(f"Telegram: {message}", remedy=remedy)
