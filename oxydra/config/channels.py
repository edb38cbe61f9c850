"""`[channels]` of users/<id>.toml: the keys of the user's chat bots, with their meaning. Pure."""

from __future__ import annotations

from typing import Literal

from oxydra.config.fields import Section, is_groups, is_people, is_url, is_variable, key, section


@section
class SenderConfig(Section):
    """One entry of `channels.telegram.senders`: somebody who may write to the bot."""

    platform_ids: tuple[str, ...] = key(
        ..., "The person's Telegram ids, as text: numbers, never names.", check=is_people
    )
    display_name: str = key("", "What the person is called in logs and approvals.")


@section
class TelegramConfig(Section):
    """`[channels.telegram]` in users/<id>.toml: the user's bot (docs/telegram.md)."""

    enabled: bool = key(False, "Whether the bot is asked for messages.")
    bot_token_env: str = key(
        "TELEGRAM_BOT_TOKEN",
        "The variable that holds the bot's token.",
        check=is_variable,
        runner_only=True,
    )
    api_url: str = key(
        "https://api.telegram.org", "Where the Bot API is, for a server of one's own.", check=is_url
    )
    polling_timeout_secs: int = key(
        30, "Seconds that one request for news waits for some.", least=1, most=50
    )
    max_message_length: int = key(
        4096, "UTF-16 units of one message, at most.", least=64, most=4096
    )
    senders: tuple[SenderConfig, ...] = key(
        (), "Who may write: `{platform_ids, display_name}`; empty: nobody."
    )
    groups: tuple[str, ...] = key(
        (), "Ids of the group chats in which it answers; empty: none.", check=is_groups
    )
    respond_in_groups: Literal["mention", "all"] = key(
        "mention", "What of a group it answers: mentions and replies, or every message."
    )


@section
class ChannelsConfig(Section):
    """`[channels]` in users/<id>.toml."""

    telegram: TelegramConfig = key(TelegramConfig, "")
