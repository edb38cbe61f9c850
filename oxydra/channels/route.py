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
SAYING = ("sendMessage", "editMessageText")
TELLING = (*SAYING, "sendChatAction")
SENDING = ("sendPhoto", "sendDocument", "sendAudio", "sendVoice", "sendVideo", "sendMediaGroup")
FORM = "multipart/form-data; boundary="
FIELDS = ("chat_id", "message_thread_id", "caption", "media")  # of a form, besides its files
ALBUM_FIELDS = ("type", "media", "caption")
NO_PREVIEW = {"is_disabled": True}

_FILE = r"(?:[\w-][\w.-]*/)*[\w-][\w.-]*"
_PART = re.compile(
    rb'Content-Disposition: form-data; name="([A-Za-z_0-9]+)"(?:; filename="([^"\r\n]*)")?'
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
    methods = "|".join((*ASKING, *TELLING, *SENDING))
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
    if "/file/" in parts.path or method not in (*TELLING, *SENDING):
        return
    chat = _chat_of_form(request) if method in SENDING else _chat_of_json(request, method)
    if chat not in chats:
        raise _refused(
            f"The chat {chat[:32]} is neither a listed sender's nor a listed group.",
            "The person can add it to [channels.telegram] groups or senders, and restart.",
        )


def _kind(request: HttpRequest) -> str:
    kinds = [value for name, value in request.headers.items() if name.lower() == "content-type"]
    return kinds[0] if len(kinds) == 1 else ""


def _chat_of_json(request: HttpRequest, method: str) -> str:
    """The chat that a request is for. Raises `PolicyDenied` unless there is exactly one reading."""
    if _kind(request) != "application/json":
        raise _refused("The body is of no kind that is looked at.")
    try:
        body = parse(request.body.decode())
    except (FrameError, ValueError):
        body = None
    if compact(body).encode() != request.body:  # a name twice, for example
        raise _refused("The JSON is not as we write it.")
    if not isinstance(body, dict):
        return ""
    if method in SAYING and body.get("link_preview_options") != NO_PREVIEW:
        raise _refused("A link may not be fetched for a preview.")
    found = body.get("chat_id")
    return str(found) if isinstance(found, int | str) else ""


def _chat_of_form(request: HttpRequest) -> str:
    """The same of a request with files. They are in it: where one is named by an address, Telegram
    would fetch that.
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
        if name in told or name in files or (match[2] is None and name not in FIELDS):
            raise _refused(f"The form may not have {name[:32]!r} there.")
        if match[2] is None:
            told[name] = value
        else:
            files.add(name)
    if "media" in told:
        _check_album(told["media"], files)
    return told.get("chat_id", b"").decode("ascii", "replace")


def _check_album(text: bytes, files: set[str]) -> None:
    try:
        album = parse(text.decode())
    except (FrameError, ValueError):
        album = None
    places = {f"attach://{name}" for name in files}
    ours = isinstance(album, list) and compact(album).encode() == text
    if not ours or not all(
        isinstance(one, dict) and {*one} <= {*ALBUM_FIELDS} and one.get("media") in places
        for one in album
    ):
        raise _refused("An album is of the files that come with it.")


def _refused(message: str, remedy: str = "") -> PolicyDenied:
    return PolicyDenied(f"Telegram: {message}", remedy=remedy)
