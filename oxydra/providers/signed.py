"""A provider whose models sign what they thought and want it back (Anthropic, Gemini).

A message keeps it in `Message.native`, as `{wire: [part, …]}`. Only the provider and model that
made it get it back; all others get the message spelt out from its text and calls. A signature may
stop being good (another account, a server that was changed): a request that is refused because of
one is made again at once without any, and from then on these messages go without theirs.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import cast

from oxydra.errors import ProviderError
from oxydra.providers.http import HttpProvider
from oxydra.threads import CancelToken
from oxydra.types import Json, Message, ModelRequest, ModelSpec, Native, StreamEvent

_BLAMES = re.compile(r"signature|thinking|thought", re.IGNORECASE)
_REFUSED = b""  # in `Message.wire`, instead of the message with its signatures


class SignedProvider(HttpProvider):
    """The base of these wires; as safe to use from several threads as its own base."""

    def stream(self, request: ModelRequest, token: CancelToken) -> Iterator[StreamEvent]:
        """See the `Provider` Protocol."""
        signed = [m for m in request.messages if self.own_parts(m, request.model) is not None]
        said = False
        events = cast(Generator[StreamEvent, None, None], super().stream(request, token))
        try:
            with contextlib.closing(events):
                for event in events:
                    said = True
                    yield event
            return
        except ProviderError as error:
            if said or not signed or error.status != 400 or not _BLAMES.search(error.message):
                raise
        stripped = set(map(id, signed))
        plain = [replace(m, native=None) if id(m) in stripped else m for m in request.messages]
        key = self._key(request.model)
        events = cast(
            Generator[StreamEvent, None, None],
            super().stream(replace(request, messages=plain), token),
        )
        with contextlib.closing(events):
            for event in events:
                for message in signed:
                    message.wire[key] = _REFUSED
                signed.clear()
                yield event

    def own_parts(self, message: Message, model: ModelSpec) -> list[Json] | None:
        """What this very provider and `model` wants back with `message`; None if there is nothing,
        or if it was refused.
        """
        native = message.native
        if native is None or (native.provider, native.model) != (self.name, model.id):
            return None
        if message.wire.get(self._key(model)) == _REFUSED:
            return None
        parts = native.data.get(self.wire)
        return parts if isinstance(parts, list) else None

    def encode_own(
        self, message: Message, model: ModelSpec, encode: Callable[[Message], bytes]
    ) -> bytes:
        """`message` as only its own provider and `model` get it, encoded once."""
        return _once(message, self._key(model), encode)

    def encode_kept(
        self, message: Message, variant: str, encode: Callable[[Message], bytes]
    ) -> bytes:
        """`message` in a `variant` of this wire, encoded once."""
        return _once(message, f"{self.wire}/{variant}", encode)

    def keep_parts(self, model: ModelSpec, parts: Sequence[Json]) -> Native:
        """`parts` as a message keeps them."""
        return Native(self.name, model.id, {self.wire: list(parts)})

    def _key(self, model: ModelSpec) -> str:
        return f"{self.wire} {self.name} {model.id}"


def _once(message: Message, key: str, encode: Callable[[Message], bytes]) -> bytes:
    data = message.wire.get(key)
    if data is None:
        data = message.wire[key] = encode(message)
    return data
