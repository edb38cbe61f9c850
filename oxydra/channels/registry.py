"""Which channels there are: one line each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

from oxydra.runtime import Terms
from oxydra.store.notices import Notice
from oxydra.tools.media import Chat
from oxydra.types import Json, Turn

CHANNELS = {"telegram": "oxydra.channels.telegram:Telegram"}


class Chats(Chat, Protocol):
    """A channel: the people it reaches, and the daemon it serves."""

    def listen(self) -> None:
        """Hear of the turns that a crash or a shutdown left; before the hub takes them up."""
        ...

    def start(self) -> None:
        """Take messages and give answers out; after the hub was started."""
        ...

    def stop(self, timeout: float) -> bool:
        """Leave what is owed in the store; True if its threads ended."""
        ...

    def state(self) -> Json:
        """`state`, and as `detail` what is wrong, "" if nothing is."""
        ...

    def terms_of(self, turn: Turn) -> Terms | None:
        """What limits a turn of the channel's, None: nothing."""
        ...

    def courier(self, notice: Notice, settled: Callable[[str], None]) -> None:
        """See `scheduler.post.Courier`."""
        ...


def channel(name: str) -> Any:
    """The class of that name; `KeyError` for one that there is not."""
    module, _, attribute = CHANNELS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
