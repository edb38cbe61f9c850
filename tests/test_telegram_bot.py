"""The Bot API as the agent guest reaches it: through a real broker, which alone has the token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from oxydra import config
from oxydra.broker import Destinations
from oxydra.channels.bot import Bot, BotError, _form
from oxydra.channels.route import MENU, PLACEHOLDER, telegram_route
from oxydra.config import SenderConfig, TelegramConfig
from oxydra.errors import Cancelled, ConfigError, OxydraError, PolicyDenied, TransportError
from oxydra.frames import compact
from oxydra.threads import CancelToken, Service
from oxydra.transport import HttpRequest, Routes
from oxydra.types import SentFile
from tests.broker_kit import BrokerWorld, broker_world
from tests.config_place import Place
from tests.conftest import eventually
from tests.fake_telegram import TOKEN, FakeTelegram, refusal

GROUP = -1001234567890


@pytest.fixture
def fake() -> Iterator[FakeTelegram]:
    with FakeTelegram() as server:
        yield server


def settings(fake: FakeTelegram) -> TelegramConfig:
    return TelegramConfig(
        enabled=True,
        api_url=fake.url,
        senders=(SenderConfig(platform_ids=("42",)),),
        groups=(str(GROUP),),
    )


@pytest.fixture
def world(fake: FakeTelegram) -> Iterator[BrokerWorld]:
    routes = Routes([telegram_route(settings(fake), TOKEN)])
    with broker_world(Destinations(routes), secrets=[TOKEN]) as made:
        yield made


@pytest.fixture
def bot(fake: FakeTelegram, world: BrokerWorld) -> Iterator[Bot]:
    made = Bot(world.transport, fake.url, CancelToken())
    yield made
    made.close()


def test_calls_reach_the_api_with_the_token_that_the_guest_never_had(fake, world, bot):
    assert bot.me()["username"] == "oxydra_bot"
    first = bot.send(42, 0, "<b>Hi</b>", formatted=True, buttons={"inline_keyboard": []})
    bot.edit(42, first, "there", formatted=False)
    bot.edit(42, first, "there", formatted=False)  # it says so already
    bot.typing(42, 7)
    bot.set_menu(MENU)
    bot.forget_webhook()
    bot.answer_button("77", "Done.")
    assert fake.told() == ["there"]
    (menu,) = fake.asked("setMyCommands")
    assert {one["command"]: one["description"] for one in menu["commands"]} == MENU
    sent = fake.asked("sendMessage")[0]
    assert sent["link_preview_options"] == {"is_disabled": True} and sent["chat_id"] == 42
    assert all(path.startswith(f"/bot{TOKEN}/") for path in fake.paths)
    assert TOKEN not in json.dumps(world.log(len(fake.calls)))
    assert {row["route"] for row in world.log()} == {"telegram"}


def test_updates_are_waited_for_and_confirmed_by_the_offset(fake, bot):
    number = fake.update(message={"message_id": 1})
    assert [one["update_id"] for one in bot.updates(0, 1)] == [number]
    assert [one["update_id"] for one in bot.updates(0, 1)] == [number]
    assert bot.updates(number + 1, 1) == []
    assert fake.confirmed


def test_files_go_both_ways(fake, bot):
    data = bytes(range(256)) * 4096
    fake.files["documents/a.bin"] = data
    pieces: list[bytes] = []
    bot.fetch("documents/a.bin", 1 << 21, pieces.append, CancelToken())
    assert b"".join(pieces) == data and len(pieces) > 1
    with pytest.raises(TransportError, match="larger"):
        bot.fetch("documents/a.bin", 1000, pieces.append, CancelToken())
    with pytest.raises(BotError, match="wrong file_id"):
        bot.fetch("documents/none", 1000, pieces.append, CancelToken())
    for kind in ("photo", "document", "audio", "voice", "video"):
        bot.send_files(42, 3, [SentFile(kind, 'a".png', data)], "Look")
    kept = [message["file"] for message in fake.messages[42].values()]
    assert kept == [("a_.png", data)] * 5
    assert fake.told(topic=3)[0] == "[photo a_.png] Look"


def test_refusals_carry_what_steers(fake, bot):
    fake.fail = lambda method, _: refusal(429, "Too Many Requests", retry_after=7)
    with pytest.raises(BotError) as caught:
        bot.me()
    assert (caught.value.status, caught.value.retry_after, caught.value.passing) == (429, 7.0, True)
    fake.fail = lambda method, _: refusal(400, "group upgraded", migrate_to_chat_id=-1005)
    with pytest.raises(BotError) as caught:
        bot.send(GROUP, 0, "x", formatted=False)
    assert (caught.value.moved_to, caught.value.passing) == (-1005, False)
    fake.fail = lambda method, _: (502, {"ok": False})  # not the API's own
    with pytest.raises(BotError) as caught:
        bot.me()
    assert caught.value.passing
    fake.fail = lambda method, _: None
    fake.token = "1:other"
    with pytest.raises(BotError, match="Unauthorized"):
        bot.me()


def test_a_long_poll_ends_when_it_is_told_to(fake, world):
    token, seen = CancelToken(), []
    bot = Bot(world.transport, fake.url, token)

    def wait(_service: Service) -> None:
        try:
            bot.updates(0, 50)
        except OxydraError as error:
            seen.append(type(error))

    waiting = Service("poll", wait).start()
    eventually(lambda: fake.polls)
    token.cancel()
    assert waiting.stop(30) and seen == [Cancelled]
    bot.close()
    with pytest.raises(TransportError, match="has stopped"):
        bot.me()


# ------------------------------------------------------------------------- what the broker refuses


def ask(world: BrokerWorld, fake: FakeTelegram, method: str, body: bytes, **headers: str) -> int:
    kind = headers.get("kind", "application/json")
    request = HttpRequest(
        headers.get("verb", "POST"),
        f"{fake.url}/{headers.get('place', 'bot')}{PLACEHOLDER}/{method}",
        {"Content-Type": kind},
        body,
        "telegram",
    )
    with world.transport.open(request, CancelToken()) as stream:
        stream.read()
        return stream.status


@pytest.mark.parametrize(
    "method",
    [
        "setWebhook",
        "logOut",
        "close",
        "exportChatInviteLink",
        "forwardMessage",
        "copyMessage",
        "sendMessage?chat_id=42",
        "getMe/../setWebhook",
        "banChatMember",
        "sendmessage",
    ],
)
def test_methods_beside_the_list_are_refused(fake, world, method):
    with pytest.raises(PolicyDenied):
        ask(world, fake, method, b'{"chat_id":42}')
    assert fake.calls == []


@pytest.mark.parametrize(
    "body",
    [
        b'{"chat_id":7,"text":"x"}',
        b'{"chat_id":"@channel","text":"x"}',
        b'{"text":"x"}',
        b'{"chat_id":42,"text":"x","chat_id":7}',
        b'{"chat_id":7,"text":"x","chat_id":42}',
        b'{"chat_id": 42}',
        b'{"chat_id":[42]}',
        b'{"chat_id":42.0}',
        b'[{"chat_id":42}]',
        b"chat_id=42",
        b"\xff",
    ],
)
def test_chats_beside_the_list_are_refused(fake, world, body):
    with pytest.raises(PolicyDenied):
        ask(world, fake, "sendMessage", body)
    assert fake.calls == []


def test_a_form_is_for_one_listed_chat_or_refused(fake, world):
    boundary = "0" * 32
    kind = f"multipart/form-data; boundary={boundary}"

    def form(*parts: bytes, end: bytes = b"--\r\n") -> bytes:
        start = f"--{boundary}".encode()
        return b"".join(start + b"\r\n" + part + b"\r\n" for part in parts) + start + end

    file = b'Content-Disposition: form-data; name="photo"; filename="a"\r\n\r\nx'
    mine, other = (
        b'Content-Disposition: form-data; name="chat_id"\r\n\r\n' + chat for chat in (b"42", b"7")
    )
    assert ask(world, fake, "sendPhoto", form(mine, file), kind=kind) == 200
    odd = mine.replace(b'"chat_id"', b"chat_id"), mine.replace(b"form-data;", b"form-data; x=1;")
    for wrong in (
        form(other, file),
        form(mine, other),
        form(other, mine),
        form(file),
        form(mine, odd[0]),
        form(mine, odd[1]),
        form(mine, end=b"\r\n"),
        b"x" + form(mine),
        form(mine).replace(b"\r\n", b"\n"),
    ):
        with pytest.raises(PolicyDenied):
            ask(world, fake, "sendPhoto", wrong, kind=kind)
    for said in ("text/plain", f"{kind}; x", "multipart/form-data", kind.upper()):
        with pytest.raises(PolicyDenied):
            ask(world, fake, "sendPhoto", form(mine, file), kind=said)
    assert len(fake.calls) == 1


def test_telegram_is_made_to_fetch_nothing(fake, world):
    """Where a file is named by an address, or a link has a preview, Telegram itself asks there."""
    for method, body in (
        ("sendPhoto", {"chat_id": 42, "photo": "https://evil.example/?secret"}),
        ("sendMediaGroup", {"chat_id": 42, "media": "[]"}),
        ("sendMessage", {"chat_id": 42, "text": "https://evil.example/?secret"}),
        ("sendMessage", {"chat_id": 42, "text": "x", "link_preview_options": {"url": "https://e"}}),
        ("editMessageText", {"chat_id": 42, "message_id": 1, "text": "https://evil.example/?s"}),
    ):
        with pytest.raises(PolicyDenied):
            ask(world, fake, method, compact(body).encode())
    file = {"f": SentFile("photo", "a", b"x")}
    albums = (
        [{"type": "photo", "media": "https://evil.example/?secret"}],
        [{"type": "photo", "media": "attach://f", "thumbnail": "https://evil.example/"}],
        [{"type": "photo", "media": "attach://g"}],
        {"type": "photo"},
    )
    forms = [({"chat_id": 42, "media": compact(album)}, file) for album in albums]
    forms += [({"chat_id": 42, "photo": "https://evil.example/"}, file)]
    forms += [({"chat_id": 42, "thumbnail": "https://evil.example/"}, file)]
    for params, files in forms:
        kind, body = _form(params, files)
        with pytest.raises(PolicyDenied):
            ask(world, fake, "sendMediaGroup", body, kind=kind)
    twice = b'[{"type":"photo","media":"https://e","media":"attach://f"}]'
    kind, body = _form({"chat_id": 42, "media": "[]"}, file)
    with pytest.raises(PolicyDenied):
        ask(world, fake, "sendMediaGroup", body.replace(b"[]", twice), kind=kind)
    assert fake.calls == []


def button(**more):
    return {"inline_keyboard": [[{"text": "x", **more}]]}


SAYS = {"chat_id": 42, "text": "x", "link_preview_options": {"is_disabled": True}}
OPENS = "https://evil.example/?secret"


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("sendMessage", {**SAYS, "reply_markup": button(url=OPENS)}),
        ("sendMessage", {**SAYS, "reply_markup": button(web_app={"url": OPENS})}),
        ("sendMessage", {**SAYS, "reply_markup": button(login_url={"url": OPENS})}),
        ("sendMessage", {**SAYS, "reply_markup": button(callback_data="a", url=OPENS)}),
        ("sendMessage", {**SAYS, "reply_markup": button(switch_inline_query="secret")}),
        (
            "sendMessage",
            {**SAYS, "reply_markup": {"keyboard": [[{"text": "x", "web_app": {"url": OPENS}}]]}},
        ),
        ("sendMessage", {**SAYS, "reply_markup": {"inline_keyboard": [], "keyboard": []}}),
        ("sendMessage", {**SAYS, "reply_markup": "{}"}),
        ("sendMessage", {**SAYS, "disable_web_page_preview": False}),
        ("sendMessage", {**SAYS, "entities": [{"type": "text_link", "url": OPENS}]}),
        ("sendMessage", {**SAYS, "business_connection_id": "1"}),
        ("sendMessage", {**SAYS, "reply_parameters": {"message_id": 1, "chat_id": 7}}),
        ("sendMessage", {**SAYS, "reply_parameters": [1]}),
        ("editMessageText", {**SAYS, "inline_message_id": "1"}),
        ("editMessageText", {**SAYS, "message_id": 1, "rich_message": {"photo": OPENS}}),
        ("sendChatAction", {"chat_id": 42, "action": "typing", "business_connection_id": "1"}),
        ("answerCallbackQuery", {"callback_query_id": "1", "url": OPENS}),
        ("setMyCommands", {"commands": [{"command": "secret", "description": "the secret"}]}),
        ("setMyCommands", {"commands": [], "scope": {"type": "chat", "chat_id": 7}}),
        ("deleteWebhook", {"drop_pending_updates": True}),
        ("getUpdates", {"offset": 1, "url": OPENS}),
        ("getMe", {"url": OPENS}),
    ],
)
def test_fields_beside_the_list_are_refused(fake, world, method, body):
    """Addresses that a button or a menu opens, what more people would see, what loses messages."""
    with pytest.raises(PolicyDenied):
        ask(world, fake, method, compact(body).encode())
    for kind, sent in (("text/plain", compact(body).encode()), ("application/json", b"")):
        with pytest.raises(PolicyDenied):
            ask(world, fake, method, sent, kind=kind)
    assert fake.calls == []


@pytest.mark.parametrize(
    ("params", "name", "file"),
    [
        ({"chat_id": 42}, "thumbnail", "a"),
        ({"chat_id": 42}, "document", "a"),
        ({"chat_id": 42}, "photo", ""),  # a reader could take it for text, hence for an address
        ({"chat_id": 42}, "photo", "a\\"),
        ({"chat_id": 42, "parse_mode": "HTML"}, "photo", "a"),
        ({"chat_id": 42, "reply_markup": "{}"}, "photo", "a"),
        ({"chat_id": 42, "media": "[]"}, "photo", "a"),
    ],
)
def test_a_form_has_its_own_file_and_nothing_else(fake, world, params, name, file):
    kind, body = _form(params, {name: SentFile("photo", "NAME", b"x")})
    with pytest.raises(PolicyDenied):
        ask(world, fake, "sendPhoto", body.replace(b"NAME", file.encode()), kind=kind)
    kind, body = _form(params, {})
    with pytest.raises(PolicyDenied):
        ask(world, fake, "sendPhoto", body, kind=kind)
    assert fake.calls == []


def test_our_own_forms_are_whole_whatever_is_in_them(fake, world):
    kind, body = _form(
        {"chat_id": GROUP}, {"photo": SentFile("photo", "a", b'\r\n--name="chat_id"\r\n\r\n7')}
    )
    assert ask(world, fake, "sendPhoto", body, kind=kind) == 200


def test_the_token_itself_leaves_no_guest(fake, world):
    with pytest.raises(PolicyDenied, match="holds a key"):
        ask(world, fake, "sendMessage", compact({"chat_id": 42, "text": TOKEN}).encode())


# ------------------------------------------------------------------------------------ configuration

BOT = '[channels.telegram]\nenabled = true\n[[channels.telegram.senders]]\nplatform_ids = ["42"]\n'


def test_the_token_is_found_and_reaches_no_guest(tmp_path: Path):
    place = Place(tmp_path)
    loaded = place.load(place.local_files(user=BOT))
    with pytest.raises(ConfigError, match="holds no token"):
        config.telegram_token(loaded, {})
    found = config.telegram_token(loaded, {"TELEGRAM_BOT_TOKEN": TOKEN})
    assert found is not None and found.value == TOKEN and TOKEN not in repr(found)
    policy = config.runtime_policy(loaded)
    assert "BOT_TOKEN" not in json.dumps(policy)
    bots = config.channels(json.loads(json.dumps(policy)))
    assert bots.telegram.enabled and bots.telegram.senders[0].platform_ids == ("42",)
    config.set_key("TELEGRAM_BOT_TOKEN", TOKEN, loaded.home)
    assert config.telegram_token(loaded, {}) == config.Credential(
        provider="telegram", source="key set TELEGRAM_BOT_TOKEN", value=TOKEN
    )


def test_there_is_no_token_where_there_is_no_bot(tmp_path: Path):
    assert config.telegram_token(Place(tmp_path).load_local(), {}) is None


@pytest.mark.parametrize(
    "line",
    [
        'senders = [{platform_ids = ["@me"]}]',
        'groups = ["5"]',
        "max_message_length = 5000",
        'bot_token_env = "123:abc"',
        "polling_timeout_secs = 0",
        'senders = [{platform_ids = [""]}]',
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, line: str):
    place = Place(tmp_path)
    with pytest.raises(ConfigError):
        place.load(place.local_files(user=f"[channels.telegram]\n{line}\n"))
