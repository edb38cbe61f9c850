"""A provider whose every call is paid for: the one way by which a model may be reached.

`Metered` stands directly before the provider that asks, so that a repetition, and each other model
that takes over, is a call of its own: `Reliable` is made of metered ones. No thread of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator

from oxydra.errors import OxydraError
from oxydra.threads import CancelToken
from oxydra.types import (
    Completed,
    ModelRequest,
    Provider,
    ReasoningDelta,
    StreamEvent,
    TextDelta,
)


class Metered:
    """See the `Provider` Protocol. Raises `BudgetError` where the request's meter does."""

    def __init__(self, provider: Provider) -> None:
        self.name = provider.name
        self._provider = provider

    def stream(self, request: ModelRequest, token: CancelToken) -> Iterator[StreamEvent]:
        if request.meter is None:
            raise OxydraError(f"Nobody pays for this call of {request.model.id}: it is not made.")
        token.check()
        bill = request.meter.open(request)
        said, began = 0, False
        try:
            with contextlib.ExitStack() as stack:
                events = self._provider.stream(bill.request, token)
                if isinstance(events, Generator):
                    stack.callback(events.close)
                for event in events:
                    began = True
                    bill.began()
                    if isinstance(event, TextDelta | ReasoningDelta):
                        said += len(event.text)
                    elif isinstance(event, Completed):
                        event = bill.settle(event)
                    yield event
        except BaseException as error:  # also the end of whoever reads, who may stop early
            bill.broken(error, said, began=began)
            raise
