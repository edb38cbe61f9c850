"""A Bot API server on loopback that behaves like Telegram's, and remembers what it was asked.

It keeps chats with their messages, hands updates out by long polling until they are confirmed by an
offset, and refuses what Telegram refuses: broken HTML, too long or empty texts, edits of what is
not there, a second poller. `fail` lets a test refuse any call.
"""

from __future__ import annotations

import contextlib
import html.parser
import itertools
import json
import re
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.conftest import eventually

TOKEN = "123456:AAfaketokenfaketokenfaketokenfake0"
LIMIT = 4096
TAGS = ("b", "i", "u", "s", "code", "pre", "a", "blockquote", "tg-spoiler")
ME = {"id": 123456, "is_bot": True, "first_name": "Oxydra", "username": "oxydra_bot"}

Answer = tuple[int, dict[str, Any]]
Fail = Callable[[str, dict[str, Any]], Answer | None]


def refusal(status: int, why: str, **parameters: Any) -> Answer:
    body: dict[str, Any] = {"ok": False, "error_code": status, "description": why}
    if parameters:
        body["parameters"] = parameters
    return status, body


class _Checked(html.parser.HTMLParser):
    """Telegram's HTML, read as strictly as there: only its tags, each closed where it belongs."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.said: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        allowed = {"a": ["href"], "code": ["class"] if self.open[-1:] == ["pre"] else []}
        if tag not in TAGS or set(names) - set(allowed.get(tag, [])):
            raise ValueError(f"unsupported start tag {tag!r} {attrs}")
        if tag == "a" and names != ["href"]:
            raise ValueError("a link that leads nowhere")
        if tag == "blockquote" and tag in self.open:
            raise ValueError("a quotation within a quotation")
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            raise ValueError(f"unexpected end tag {tag!r}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        raise ValueError(f"unsupported tag {tag!r}")

    def handle_data(self, data: str) -> None:
        self.said.append(data)

    def handle_comment(self, data: str) -> None:
        raise ValueError("a comment")

    handle_decl = handle_pi = unknown_decl = handle_comment


def text_of(markup: str) -> str:
    """What a person reads. Raises ValueError for what Telegram can't parse."""
    if re.search(r"&(?!(?:lt|gt|amp|quot|#\d+|#x[0-9a-fA-F]+);)", markup):
        raise ValueError("an entity that is not supported")
    parser = _Checked()
    parser.feed(markup)
    if parser.rawdata:
        raise ValueError("a tag that does not end")
    parser.close()
    if parser.open:
        raise ValueError(f"can't find the end tag of {parser.open}")
    return "".join(parser.said)


class FakeTelegram:
    """Use in a `with` block. `calls` are all, in order: (method, parameters)."""

    def __init__(self) -> None:
        self.token = TOKEN
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.paths: list[str] = []
        self.messages: dict[int, dict[int, dict[str, Any]]] = {}  # by chat and message id
        self.files: dict[str, bytes] = {}
        self.claims: dict[str, int] = {}  # lengths that are said of those
        self.slow: dict[str, Callable[[Callable[[bytes], None]], None]] = {}  # write themselves
        self.fail: Fail = lambda _method, _params: None
        self.polls = 0
        self._updates: list[dict[str, Any]] = []
        self._numbers = itertools.count(1000)
        self._update_ids = itertools.count(500)
        self._changed = threading.Condition()
        self._poller = 0
        self._stopped = False
        self._connections: set[socket.socket] = set()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                prefix = f"/file/bot{fake.token}/"
                fake.paths.append(self.path)
                name = self.path.removeprefix(prefix)
                data = fake.files.get(name)
                if name in fake.slow:
                    self._stream(fake.slow[name], fake.claims.get(name))
                elif not self.path.startswith(prefix) or data is None:
                    self._give(404, b"{}")
                else:
                    self._give(200, data)

            def _stream(
                self, write: Callable[[Callable[[bytes], None]], None], length: int | None
            ) -> None:
                """A file, over a connection of its own."""
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.send_response(200)
                    self.send_header("Connection", "close")
                    if length is not None:
                        self.send_header("Content-Length", str(length))
                    self.end_headers()
                    write(self.wfile.write)

            def do_POST(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(size)
                fake.paths.append(self.path)
                found = re.fullmatch(r"/bot([^/]+)/(\w+)", self.path)
                if found is None or found[1] != fake.token:
                    status, answer = refusal(401, "Unauthorized")
                else:
                    kind = self.headers.get("Content-Type", "")
                    status, answer = fake.answer(found[2], _parameters(kind, body))
                self._give(status, json.dumps(answer).encode())

            def _give(self, status: int, data: bytes) -> None:
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def process_request(self, request: Any, client_address: Any) -> None:
                fake._connections.add(request)
                super().process_request(request, client_address)

            def shutdown_request(self, request: Any) -> None:
                fake._connections.discard(request)
                super().shutdown_request(request)

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that went away

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        self._thread.start()

    def __enter__(self) -> FakeTelegram:
        return self

    def __exit__(self, *_error: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for connection in list(self._connections):  # also one that a client keeps
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    # ------------------------------------------------------------------------------- what tests do

    def update(self, **content: Any) -> int:
        """Something happened; returns the update's id."""
        with self._changed:
            number = next(self._update_ids)
            self._updates.append({"update_id": number, **content})
            self._changed.notify_all()
            return number

    def updates(self, *contents: dict[str, Any]) -> None:
        """Things that happened together."""
        with self._changed:
            for content in contents:
                self._updates.append({"update_id": next(self._update_ids), **content})
            self._changed.notify_all()

    def says(self, text: str, *, who: int = 42, chat: int = 0, topic: int = 0, **more: Any) -> int:
        """A person writes; returns the message's id. In a chat of their own unless one is named."""
        message = self.message(text, who=who, chat=chat, topic=topic, **more)
        self.update(message=message)
        return int(message["message_id"])

    def message(
        self, text: str, *, who: int = 42, chat: int = 0, topic: int = 0, **more: Any
    ) -> dict[str, Any]:
        place: dict[str, Any] = {"id": chat or who, "type": "supergroup" if chat < 0 else "private"}
        found: dict[str, Any] = {
            "message_id": next(self._numbers),
            "from": {"id": who, "is_bot": False, "first_name": f"P{who}"},
            "chat": place,
            "date": 1,
            **({"text": text} if text else {}),
            **({"message_thread_id": topic, "is_topic_message": True} if topic else {}),
        }
        return {**found, **more}

    def presses(self, message: dict[str, Any], label: str, *, who: int = 42) -> None:
        """A person presses the button with this label."""
        rows = message["reply_markup"]["inline_keyboard"]
        (data,) = [b["callback_data"] for row in rows for b in row if label == b["text"]]
        self.update(
            callback_query={
                "id": str(next(self._numbers)),
                "from": {"id": who, "is_bot": False, "first_name": f"P{who}"},
                "message": message,
                "data": data,
            }
        )

    def told(self, chat: int = 42, topic: int | None = None) -> list[str]:
        """What the bot's messages in a chat say now, in order, as people read them."""
        with self._changed:
            found = sorted(self.messages.get(chat, {}).items())
        return [
            str(message["plain"])
            for _, message in found
            if topic is None or message.get("message_thread_id", 0) == topic
        ]

    def wait_told(self, text: str, chat: int = 42) -> dict[str, Any]:
        """The first message in a chat that holds `text`, once there is one."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            with self._changed:
                found[:] = [
                    dict(m) for m in self.messages.get(chat, {}).values() if text in str(m["plain"])
                ]
            return bool(found)

        eventually(there, what=f"{text!r} in {self.told(chat)}")
        return found[0]

    def asked(self, method: str) -> list[dict[str, Any]]:
        with self._changed:
            return [params for name, params in self.calls if name == method]

    def still(self) -> threading.Condition:
        """Use in a `with` block, in which nothing is answered."""
        return self._changed

    @property
    def confirmed(self) -> bool:
        """Whether nothing waits to be taken."""
        with self._changed:
            return not self._updates

    # --------------------------------------------------------------------------------- the API

    def answer(self, method: str, params: dict[str, Any]) -> Answer:
        with self._changed:
            self.calls.append((method, params))
            failed = self.fail(method, params)
        if failed is not None:
            return failed
        if method == "getUpdates":
            return self._get_updates(params)
        with self._changed:
            do = getattr(self, f"_do_{method}", None)
            if do is None and method in ("deleteWebhook", "setMyCommands", "sendChatAction"):
                return 200, {"ok": True, "result": True}
            if do is None and method.startswith("send"):
                return self._media(method, params)
            if do is None:
                return refusal(404, "Not Found")
            answer: Answer = do(params)
            self._changed.notify_all()
            return answer

    def _get_updates(self, params: dict[str, Any]) -> Answer:
        with self._changed:
            self._poller += 1
            mine = self._poller
            self.polls += 1
            offset = int(params.get("offset") or 0)
            self._updates = [one for one in self._updates if one["update_id"] >= offset]
            self._changed.notify_all()
            wait = float(params.get("timeout") or 0)
            self._changed.wait_for(
                lambda: self._updates or self._stopped or self._poller != mine, wait
            )
            if self._poller != mine:
                return refusal(409, "Conflict: terminated by other getUpdates request")
            return 200, {"ok": True, "result": self._updates[:100]}

    def _do_getMe(self, _params: dict[str, Any]) -> Answer:
        return 200, {"ok": True, "result": ME}

    def _do_getFile(self, params: dict[str, Any]) -> Answer:
        name = str(params["file_id"])
        if name not in self.files and name not in self.slow:
            return refusal(400, "Bad Request: wrong file_id")
        return 200, {"ok": True, "result": {"file_id": name, "file_path": name}}

    def _do_answerCallbackQuery(self, _params: dict[str, Any]) -> Answer:
        return 200, {"ok": True, "result": True}

    def _do_sendMessage(self, params: dict[str, Any]) -> Answer:
        try:
            said = _said(params)
        except ValueError as error:
            return refusal(400, f"Bad Request: {error}")
        return self._keep(params, {"text": params["text"], "plain": said})

    def _keep(self, params: dict[str, Any], content: dict[str, Any]) -> Answer:
        chat = int(params["chat_id"])
        message = {
            "message_id": next(self._numbers),
            "chat": {"id": chat, "type": "supergroup" if chat < 0 else "private"},
            "from": ME,
            "date": 1,
            "reply_markup": params.get("reply_markup"),
            "message_thread_id": int(params.get("message_thread_id") or 0),
            **content,
        }
        self.messages.setdefault(chat, {})[message["message_id"]] = message
        told = {name: value for name, value in message.items() if name != "file"}
        return 200, {"ok": True, "result": told}

    def _do_editMessageText(self, params: dict[str, Any]) -> Answer:
        message = self.messages.get(int(params["chat_id"]), {}).get(int(params["message_id"]))
        if message is None:
            return refusal(400, "Bad Request: message to edit not found")
        try:
            said = _said(params)
        except ValueError as error:
            return refusal(400, f"Bad Request: {error}")
        new = (params["text"], params.get("reply_markup"))
        if new == (message["text"], message["reply_markup"]):
            return refusal(400, "Bad Request: message is not modified: specified new message")
        message.update(text=new[0], plain=said, reply_markup=new[1])
        return 200, {"ok": True, "result": message}

    def _media(self, method: str, params: dict[str, Any]) -> Answer:
        kind = method.removeprefix("send").lower()
        if kind == "mediagroup":
            return self._album(params)
        file = params.get(kind)
        if not isinstance(file, tuple):
            return refusal(400, "Bad Request: there is no file in the request")
        plain = f"[{kind} {file[0]}] {params.get('caption', '')}".strip()
        return self._keep(params, {"text": "", "plain": plain, "file": file})

    def _album(self, params: dict[str, Any]) -> Answer:
        rows = json.loads(params["media"])
        kinds = {row["type"] for row in rows}
        alone = kinds & {"document", "audio"}
        if not 2 <= len(rows) <= 10 or (alone and len(kinds) > 1) or "voice" in kinds:
            return refusal(400, "Bad Request: group send failed")
        kept = []
        for row in rows:
            file = params[row["media"].removeprefix("attach://")]
            plain = f"[{row['type']} {file[0]}] {row.get('caption', '')}".strip()
            kept.append(self._keep(params, {"text": "", "plain": plain, "file": file})[1]["result"])
        return 200, {"ok": True, "result": kept}


def _said(params: dict[str, Any]) -> str:
    text = str(params.get("text", ""))
    said = text_of(text) if params.get("parse_mode") == "HTML" else text
    if not said.strip():
        raise ValueError("message text is empty")
    if len(said.encode("utf-16-le")) // 2 > LIMIT:
        raise ValueError("message is too long")
    return said


def _parameters(kind: str, body: bytes) -> dict[str, Any]:
    """JSON, or the parts of a form; files as (name, data)."""
    if not kind.startswith("multipart/"):
        found = json.loads(body or b"{}")
        assert isinstance(found, dict)
        return found
    boundary = kind.partition("boundary=")[2].encode()
    params: dict[str, Any] = {}
    for part in body.split(b"--" + boundary)[1:-1]:
        head, _, data = part.partition(b"\r\n\r\n")
        names = dict(re.findall(r'(\w+)="([^"]*)"', head.decode()))
        data = data.removesuffix(b"\r\n")
        file = names.get("filename")
        params[names["name"]] = (file, data) if file else data.decode()
    return params
