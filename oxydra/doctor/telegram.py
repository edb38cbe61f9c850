"""The Telegram bot: whether its token is good, asked of its server (`getMe`). No thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from oxydra import config
from oxydra.channels.bot import Bot, BotError
from oxydra.channels.route import CREDENTIAL, telegram_route
from oxydra.doctor.base import Case, Finding
from oxydra.errors import TransportError
from oxydra.threads import CancelToken
from oxydra.transport import DirectTransport

REVOKED = (401, 404)  # what Telegram says of a token that there is not


def check(case: Case) -> Iterator[Finding]:
    """The token goes from here to the server as the broker sends it, and into no message."""
    token = config.telegram_token(case.settings)
    if token is None:
        return
    wanted = case.settings.user.channels.telegram
    key = telegram_route(wanted, token.value).credential
    assert key is not None
    with (
        closing(DirectTransport({CREDENTIAL: key})) as transport,
        closing(Bot(transport, wanted.api_url, CancelToken())) as bot,
    ):
        try:
            me = bot.me()
        except BotError as error:
            if error.status in REVOKED:
                detail = "Telegram knows no bot with this token; @BotFather gives another one."
                remedy = case.with_key(wanted.bot_token_env)
                yield Finding("telegram", "down", detail, remedy)
            else:
                yield Finding("telegram", "degraded", str(error), case.command("doctor"))
        except TransportError as error:
            yield Finding("telegram", "degraded", str(error), case.command("doctor"))
        else:
            yield Finding("telegram", "healthy", f"@{me.get('username', '?')}")
