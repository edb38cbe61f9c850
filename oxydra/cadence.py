"""When a schedule is due: cron expressions, intervals and single moments, with time zones. Pure.

All moments are Unix seconds (UTC); a cadence knows its zone, and no clock. `after(moment)` is the
first due time later than `moment`, or None where there is none.

Cron has five fields: minute, hour, day of month, month, day of week (0 or 7: Sunday); with names
(`jan`, `mon`), lists, ranges and steps. Where neither day field begins with `*`, a day that fits
either is due; otherwise it must fit both (Vixie cron's rule).

Where clocks are put forward, what falls into the hour that is left out is due once, at the moment
of the change; where they are put back, what falls into the hour that comes twice is due the first
time only. An hour field that begins with `*` goes by minutes that pass instead: nothing is due in
the hour that is left out, and the hour that comes twice counts twice.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol
from zoneinfo import ZoneInfo

from oxydra.errors import UsageError

KINDS = ("cron", "interval", "once")
LONGEST = 10 * 366 * 86_400  # seconds: the longest interval
YEARS = 41  # after so many a cron expression has met every date on every weekday
OVERLAP = 3 * 3600  # seconds: no zone has put its clocks back by more since 1970
LATEST = 253_370_764_800  # the year 9999: no due time is later

_MONTHS = (
    "jan",
    "feb",
    "mar",
    "apr",
    "may",
    "jun",
    "jul",
    "aug",
    "sep",
    "oct",
    "nov",
    "dec",
)
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of month", 1, 31, {}),
    ("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    ("day of week", 0, 7, {name: number for number, name in enumerate(_DAYS)}),
)


class Cadence(Protocol):
    """`after` raises nothing."""

    def after(self, moment: int) -> int | None: ...


@lru_cache(maxsize=4096)
def parse(kind: str, value: str, zone: str, anchor: int = 0, least: int = 1) -> Cadence:
    """The cadence that `value` describes: a cron expression, seconds, or an RFC 3339 time.

    An interval counts from `anchor` and is at least `least` seconds. Raises `UsageError`.
    """
    if kind == "cron":
        return Cron.parse(value, zone_of(zone))
    if kind == "interval":
        return Interval(anchor, _seconds(value, least))
    if kind == "once":
        return Once(moment_of(value))
    raise UsageError(
        f"There is no cadence {kind[:32]!r}.", remedy=f"There are: {', '.join(KINDS)}."
    )


def zone_of(name: str) -> ZoneInfo:
    """Raises `UsageError` for what is not the name of an IANA time zone."""
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError):
        raise UsageError(
            f"There is no time zone {name[:64]!r}.",
            remedy='Name one like "Europe/Berlin" or "UTC".',
        ) from None


def moment_of(text: str) -> int:
    """An RFC 3339 time as Unix seconds. Raises `UsageError`."""
    try:
        found = datetime.datetime.fromisoformat(text.strip().upper())
        if found.tzinfo is None or "T" not in text.upper().replace(" ", "T"):
            raise ValueError
        moment = found.timestamp()
    except (ValueError, OverflowError):
        raise UsageError(
            f"{text[:64]!r} is no RFC 3339 time.",
            remedy='Write it like "2026-03-01T09:00:00+01:00", with its offset.',
        ) from None
    return int(moment)


def local(moment: int, zone: ZoneInfo) -> str:
    """RFC 3339, in that zone."""
    return datetime.datetime.fromtimestamp(moment, zone).isoformat()


def upcoming(cadence: Cadence, moment: int, most: int = 3) -> list[int]:
    """The next due times after `moment`."""
    found: list[int] = []
    following = cadence.after(moment)
    while following is not None and len(found) < most:
        found.append(following)
        following = cadence.after(following)
    return found


@dataclass(frozen=True, slots=True)
class Once:
    """Due at one moment."""

    at: int

    def after(self, moment: int) -> int | None:
        return self.at if self.at > moment else None


@dataclass(frozen=True, slots=True)
class Interval:
    """Due every `seconds`, counted from `anchor`; before it too, for a clock that was put back."""

    anchor: int
    seconds: int

    def after(self, moment: int) -> int | None:
        passed = (moment - self.anchor) // self.seconds
        due = self.anchor + (passed + 1) * self.seconds
        return due if due < LATEST else None


@dataclass(frozen=True, slots=True)
class Cron:
    """Due at the minutes that an expression names, on the clocks of a zone."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]  # 0: Sunday
    either_day: bool  # a day of the month or of the week is enough
    passing: bool  # its hours are hours that pass, whatever the clocks do
    zone: ZoneInfo

    @classmethod
    def parse(cls, text: str, zone: ZoneInfo) -> Cron:
        """Raises `UsageError`."""
        fields = text.lower().split()
        if len(fields) != 5:
            raise UsageError(
                f"A cron expression has 5 fields; {text[:64]!r} has {len(fields)}.",
                remedy='Write minute, hour, day, month and weekday, like "0 9 * * mon-fri".',
            )
        sets = [_field(field, *known) for field, known in zip(fields, _FIELDS, strict=True)]
        cron = cls(
            tuple(sorted(sets[0])),
            tuple(sorted(sets[1])),
            frozenset(sets[2]),
            frozenset(sets[3]),
            frozenset(day % 7 for day in sets[4]),
            not fields[2].startswith("*") and not fields[4].startswith("*"),
            fields[1].startswith("*"),
            zone,
        )
        if next(cron._walls(datetime.datetime(2000, 1, 1)), None) is None:
            raise UsageError(f"{text[:64]!r} names a date that never comes.")
        return cron

    def after(self, moment: int) -> int | None:
        try:
            now = datetime.datetime.fromtimestamp(moment, self.zone)
            soon = datetime.datetime.fromtimestamp(moment + OVERLAP, self.zone)
        except (ValueError, OverflowError, OSError):
            return None
        wall = now.replace(tzinfo=None, second=0, microsecond=0)
        put_back = (now.utcoffset() or _NONE) - (soon.utcoffset() or _NONE)
        if put_back > _NONE:  # some of what is on the clocks before now comes again
            wall -= put_back
        best: int | None = None
        for candidate in self._walls(wall):
            first, second = self._moments(candidate)
            if second is not None and second > moment:
                best = second if best is None else min(best, second)
            if first is not None and first > moment:
                return first if best is None else min(best, first)
        return best

    def _moments(self, wall: datetime.datetime) -> tuple[int | None, int | None]:
        """When the zone's clocks show `wall`, as far as that counts: first, and once more."""
        early = wall.replace(tzinfo=self.zone, fold=0)
        late = early.replace(fold=1)
        before, behind = early.utcoffset() or _NONE, late.utcoffset() or _NONE
        first = int(early.timestamp())
        if before == behind:
            return first, None
        if before > behind:  # it comes twice
            return first, int(late.timestamp()) if self.passing else None
        if self.passing:  # it is left out
            return None, None
        return self._change(int(late.timestamp()), first, before), None

    def _change(self, low: int, high: int, before: datetime.timedelta) -> int:
        """The moment in (`low`, `high`] from which on the offset is no longer `before`."""
        while high - low > 1:
            middle = (low + high) // 2
            if datetime.datetime.fromtimestamp(middle, self.zone).utcoffset() == before:
                low = middle
            else:
                high = middle
        return high

    def _walls(self, start: datetime.datetime) -> Iterator[datetime.datetime]:
        """What fits on a clock, from `start` on."""
        day, last = start.date(), min(start.year + YEARS, 9998)
        hour, minute = start.hour, start.minute
        while day.year <= last:
            if day.month not in self.months:
                year, month = divmod(day.year * 12 + day.month, 12)
                day = datetime.date(year, month + 1, 1)
                hour = minute = 0
                continue
            if self._fits(day):
                for each in self.hours:
                    if each < hour:
                        continue
                    for at in self.minutes:
                        if each > hour or at >= minute:
                            yield datetime.datetime(day.year, day.month, day.day, each, at)
            day += _DAY
            hour = minute = 0

    def _fits(self, day: datetime.date) -> bool:
        of_month, of_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return of_month or of_week if self.either_day else of_month and of_week


_NONE = datetime.timedelta(0)
_DAY = datetime.timedelta(days=1)


def _seconds(value: str, least: int) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 12):
        raise UsageError(
            f"{value[:32]!r} is no interval.",
            remedy="Say how many seconds, a whole number.",
        )
    seconds = int(value)
    if not least <= seconds <= LONGEST:
        raise UsageError(f"An interval has {least} to {LONGEST} seconds, not {seconds}.")
    return seconds


def _field(text: str, what: str, least: int, most: int, names: dict[str, int]) -> set[int]:
    found: set[int] = set()
    for part in text.split(","):
        spread, slash, step_text = part.partition("/")
        step = _number(step_text, what, 1, most, {}) if slash else 1
        if spread == "*":
            first, last = least, 6 if most == 7 else most
        else:
            begin, dash, end = spread.partition("-")
            first = _number(begin, what, least, most, names)
            last = first
            if dash:
                last = _number(end, what, least, most, names)
                last = 7 if most == 7 and last == 0 < first else last
            elif slash:  # 5/15: from 5 on
                last = 6 if most == 7 else most
        if first > last:
            raise UsageError(
                f"The {what} {part[:32]!r} ends before it begins.",
                remedy="Write two ranges with a comma between them.",
            )
        found.update(range(first, last + 1, step))
    return found


def _number(text: str, what: str, least: int, most: int, names: dict[str, int]) -> int:
    if text in names:
        return names[text]
    if text.isascii() and text.isdigit() and len(text) < 5 and least <= int(text) <= most:
        return int(text)
    known = f", or {', '.join(names)}" if names else ""
    raise UsageError(f"{text[:32]!r} is no {what}.", remedy=f"There are {least} to {most}{known}.")
