"""Chats in which people talk to the agent besides the gateway's clients.

`registry` names the channels there are. Of Telegram's: `telegram` takes messages in, `commands` and
`media` are what they may hold, `senders` who may write, `mail` gives answers out, `live` is what is
shown while a turn runs, `markup` formats, `bot` asks the Bot API, and `route` is what the broker
lets it ask for. A channel is imported only where the user has switched it on.
"""
