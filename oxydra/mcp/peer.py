"""One server as a peer: requests with their answers, whichever way the messages travel.

No thread runs here. A request blocks its caller until its answer comes in by `take`, which the
link's reader calls; whoever cancels or runs out of time withdraws it, and what is said to it later
is dropped. A server may ask for nothing but `ping`: sampling, elicitation and roots are not
offered.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from oxydra.errors import Cancelled, DeadlineExceeded, OxydraError
from oxydra.mcp import protocol
from oxydra.mcp.protocol import METHOD_NOT_FOUND, Notification, Reply, Request, RpcError
from oxydra.threads import CancelToken, Deadline
from oxydra.types import Json

log = logging.getLogger(__name__)

MAX_UNASKED = 10_000  # messages between two answers that nobody asked for
WITHDRAW_SECONDS = 1.0


class ServerLost(OxydraError):
    """The server ended, or can't be spoken to any more. `unsent`: it never got the request."""

    code = "mcp_lost"

    def __init__(self, message: str, *, remedy: str = "", unsent: bool = False) -> None:
        super().__init__(message, remedy=remedy)
        self.unsent = unsent


class Link(Protocol):
    """How messages travel to one server; those from there are given to `Peer.take`."""

    def send(self, data: bytes, number: int | None, token: CancelToken, deadline: Deadline) -> None:
        """Send one message, `number` being that of a request. Where the answer comes on the way of
        the request, it returns when that is there. Raises `OxydraError`.
        """
        ...

    def close(self) -> None:
        """Idempotent."""
        ...


@dataclass(slots=True)
class _Asked:
    box: queue.SimpleQueue[Reply | None] = field(default_factory=queue.SimpleQueue)
    on_progress: Callable[[str], None] | None = None
    answered: bool = False


class Peer:
    """See above; any number of threads may ask. `hear` gets the notifications, on the thread that
    reads; `say` a line for people.
    """

    def __init__(self, hear: Callable[[Notification], None], say: Callable[[str], None]) -> None:
        self.link: Link | None = None
        self._hear = hear
        self._say = say
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._asked: dict[int, _Asked] = {}
        self._unasked = 0
        self.ended = ""  # why, once it has
        self.ended_at = 0.0  # by the monotonic clock
        self.blameless = False  # it ended as its protocol lets it

    def ask(
        self,
        method: str,
        params: Json,
        token: CancelToken,
        deadline: Deadline,
        on_progress: Callable[[str], None] | None = None,
    ) -> Json:
        """The result of a request. Raises `RpcError` as the server answered, `ServerLost`,
        `DeadlineExceeded`, `Cancelled`, or what the link raises.
        """
        number = next(self._numbers)
        if on_progress is not None:
            params = {**params, "_meta": {"progressToken": number}}
        asked = _Asked(on_progress=on_progress)
        with self._lock:
            if self.ended or self.link is None:
                raise ServerLost(self.ended or "It is not connected.", unsent=True)
            self._asked[number] = asked
        answer: Reply | None = None
        try:
            with token.on_cancel(lambda: asked.box.put(None)):
                self.link.send(protocol.request(number, method, params), number, token, deadline)
                with contextlib.suppress(queue.Empty):
                    answer = asked.box.get(timeout=deadline.timeout())
        except (Cancelled, DeadlineExceeded):
            self._withdraw(number, method)
            raise
        finally:
            with self._lock:
                self._asked.pop(number, None)
        if answer is None:
            if self.ended:
                raise ServerLost(self.ended)
            self._withdraw(number, method)
            token.check()
            raise DeadlineExceeded(f"The server did not answer {method} in time.")
        if answer.error is not None:
            raise answer.error
        return answer.result

    def tell(self, method: str, params: Json, deadline: Deadline) -> None:
        """A notification. Raises what the link raises."""
        if self.link is not None:
            self.link.send(protocol.notification(method, params), None, CancelToken(), deadline)

    def answered(self, number: int) -> bool:
        """Whether nobody waits for the answer to this request any more."""
        with self._lock:
            asked = self._asked.get(number)
            return asked is None or asked.answered

    def _withdraw(self, number: int, method: str) -> None:
        """Tell it that an answer is not wanted any more. It must not be told so of `initialize`."""
        if method == "initialize" or self.ended:
            return
        with contextlib.suppress(OxydraError):
            params = {"requestId": number, "reason": "cancelled"}
            self.tell("notifications/cancelled", params, Deadline.after(WITHDRAW_SECONDS))

    # ------------------------------------------------------------------------------- what it says

    def take(self, data: bytes | str) -> None:
        """One message of the server's; never raises."""
        try:
            message = protocol.decode(data)
        except RpcError as error:
            self._count()
            self._say(f"said what is no message: {error.message}")
            return
        if isinstance(message, Reply):
            self._answer(message)
        elif isinstance(message, Request):
            self._count()
            self._refuse(message)
        else:
            self._count()
            if message.method == "notifications/progress":
                self._progress(message.params)
            else:
                self._hear(message)

    def end(self, why: str, *, blameless: bool = False) -> None:
        """It is gone: whoever waits is told. The first reason stays."""
        with self._lock:
            if not self.ended:
                self.ended, self.ended_at, self.blameless = why, time.monotonic(), blameless
            waiting = list(self._asked.values())
        for asked in waiting:
            asked.box.put(None)

    def _answer(self, reply: Reply) -> None:
        with self._lock:
            number = reply.id
            # True == 1 and 1.0 == 1 have been sorted out by the decoder; "1" is another id
            asked = self._asked.get(number) if isinstance(number, int) else None
            wanted = asked is not None and not asked.answered
            if asked is not None and wanted:
                asked.answered = True
                self._unasked = 0
        if asked is not None and wanted:
            asked.box.put(reply)
            return
        self._count()
        if reply.id is None and reply.error is not None:
            self._say(f"complains: {reply.error.message}")

    def _refuse(self, request: Request) -> None:
        if request.method == "ping":
            answer = protocol.reply(request.id, {})
        else:
            self._say(f"asked for {request.method}, which is not offered")
            refused = RpcError(METHOD_NOT_FOUND, "This client does not offer that.", id=request.id)
            answer = protocol.refusal(refused)
        if self.link is not None:
            with contextlib.suppress(OxydraError):
                deadline = Deadline.after(WITHDRAW_SECONDS)
                self.link.send(answer, None, CancelToken(), deadline)

    def _progress(self, params: Json) -> None:
        number = params.get("progressToken")
        with self._lock:
            asked = self._asked.get(number) if isinstance(number, int) else None
        if asked is None or asked.on_progress is None:
            return
        done, total, said = (params.get(name) for name in ("progress", "total", "message"))
        part = f"{done:g}" if isinstance(done, int | float) else ""
        part += f" of {total:g}" if part and isinstance(total, int | float) else ""
        text = said if isinstance(said, str) else ""
        asked.on_progress(" ".join(filter(None, (part, text))))

    def _count(self) -> None:
        """A server that floods is ended."""
        self._unasked += 1
        if self._unasked == MAX_UNASKED:
            self.end(f"It was ended: it said {MAX_UNASKED:,} things that nobody asked for.")
            if self.link is not None:
                self.link.close()
