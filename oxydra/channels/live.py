"""What a chat is shown of a turn while it runs: the text as it grows, and what is being done. Pure
but for its lock.

Frames come from whatever thread publishes them, which must not wait; the thread that sends takes
what there is when it is time. How often that is, a `Pace` says for each chat: slower after each
time that Telegram found it too fast, and faster again while it does not.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from oxydra.channels.markup import CONTROLS, units
from oxydra.gateway.answer import Answer
from oxydra.types import Json

LONGEST = 3500  # UTF-16 units of the text that is shown while it grows: its end
CURSOR = "▍"


@dataclass(frozen=True, slots=True)
class Pacing:
    """Seconds between two edits in a private chat and in a group, between two words that something
    is being typed, and before anything is shown at all.
    """

    private: float = 1.0
    group: float = 3.0
    typing: float = 4.5
    first: float = 0.7
    longest: float = 30.0


class Pace:
    """When one chat may be edited next. For the thread that sends."""

    def __init__(self, base: float, longest: float) -> None:
        self._base = self._interval = base
        self._longest = longest
        self.next = 0.0  # on the monotonic clock
        self.paused = 0.0  # until then nothing at all is sent there

    def edited(self, now: float) -> None:
        self._interval = max(self._base, self._interval * 0.9)
        self.next = now + self._interval

    def refused(self, now: float, retry_after: float | None) -> None:
        """Telegram asks for patience: so many seconds, None where it does not say how many."""
        self._interval = min(self._longest, self._interval * 2)
        self.paused = now + (1.0 if retry_after is None else retry_after)
        self.next = self.paused + self._interval


class Growing:
    """One turn. `hear` may be called by any thread."""

    def __init__(self, chat: int, topic: int, since: float) -> None:
        self.chat = chat
        self.topic = topic
        self.since = since
        self.typed = float("-inf")  # when that was last said
        self.shown_at = 0.0  # when something was last shown, 0: never
        self._lock = threading.Lock()
        self._text: list[str] = []
        self._answer = Answer(self._text.append)
        self._doing: dict[str, str] = {}  # what runs, by the call's id
        self._progress = ""
        self._running = False
        self._shown = ""

    def hear(self, frame_type: str, payload: Json) -> None:
        with self._lock:
            match frame_type:
                case "turn_started":
                    self._running = payload["turn"]["state"] == "running"
                case "assistant_delta":
                    self._progress = ""
                    self._answer.delta(payload["delta"])
                case "turn_progress":
                    self._answer.progress(payload)
                    kind = payload["progress"]["kind"].get("kind")
                    heard = kind not in ("provider_call", "tool_execution")
                    self._progress = str(payload["progress"]["message"]) if heard else ""
                case "tool_event":
                    self._tool(payload["call"])

    def _tool(self, call: Json) -> None:
        if call["state"] == "started":
            said = " ".join(f"{call['name']} {call.get('summary') or ''}".split())
            self._doing[str(call["id"])] = said[:200]
        else:
            self._doing.pop(str(call["id"]), None)
        self._progress = ""

    @property
    def running(self) -> bool:
        with self._lock:
            return self._running

    def news(self) -> str:
        """What to show, "" where that is shown already or there is nothing."""
        with self._lock:
            lines = [f"⚙ {said}" for said in self._doing.values()]
            if self._progress:
                lines.append(f"… {self._progress}")
            text = _tail("".join(self._text).translate(CONTROLS))
            said = "\n\n".join(filter(None, [text.strip(), "\n".join(lines)[:400]]))
            return "" if not said or said == self._shown else said

    def showing(self, said: str, now: float) -> None:
        """That is shown now."""
        with self._lock:
            self._shown, self.shown_at = said, now


def _tail(text: str) -> str:
    if units(text) <= LONGEST:
        return text
    tail = text[-LONGEST:]
    while units(tail) > LONGEST:
        tail = tail[len(tail) // 8 :]
    return "…" + tail
