"""How much a user's guests may ask for, whatever they say: requests a minute, requests and bytes a
day (UTC). Pure but for its lock; the clocks are passed in.
"""

from __future__ import annotations

import threading

from oxydra.config import EgressLimits
from oxydra.errors import TransportError


class Quota:
    """Counts against `limits`, of which 0 means none. `requests` and `size`, bytes of bodies in
    both directions, are what today has used already.
    """

    def __init__(self, limits: EgressLimits, requests: int = 0, size: int = 0) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._day = ""
        self._requests = requests
        self._bytes = size
        self._level = 0.0  # a leaky bucket of the minute's requests
        self._at = 0.0

    def admit(self, now: float, day: str) -> None:
        """Count a request; `now` is monotonic, `day` the date. Raises `TransportError`."""
        limits = self._limits
        with self._lock:
            self._turn_to(day)
            leaked = (now - self._at) * limits.requests_per_minute / 60
            self._level, self._at = max(0.0, self._level - leaked), now
            if limits.requests_per_minute and self._level + 1 > limits.requests_per_minute:
                raise _over(
                    f"{limits.requests_per_minute} requests in a minute",
                    "max_requests_per_minute",
                    True,
                )
            if limits.requests_per_day and self._requests >= limits.requests_per_day:
                raise _over(
                    f"{limits.requests_per_day} requests in a day", "max_requests_per_day", False
                )
            self._check_bytes()
            self._level += 1
            self._requests += 1

    def count(self, size: int) -> None:
        """Count bytes that crossed. Raises `TransportError` once it is too much."""
        with self._lock:
            self._bytes += size
            self._check_bytes()

    def used(self) -> tuple[int, int]:
        """Today's requests and bytes."""
        with self._lock:
            return self._requests, self._bytes

    def _check_bytes(self) -> None:
        most = self._limits.mib_per_day
        if most and self._bytes > most << 20:
            raise _over(f"{most} MiB in a day", "max_mib_per_day", False)

    def _turn_to(self, day: str) -> None:
        if self._day and day != self._day:
            self._requests = self._bytes = 0
        self._day = day


def _over(what: str, key: str, soon: bool) -> TransportError:
    return TransportError(
        f"The limit of {what} is reached.",
        remedy=f"{'Wait a moment' if soon else 'Wait for midnight (UTC)'}, or raise [egress] {key}"
        " in runner.toml.",
        kind="limit",
        retryable=soon,
    )
