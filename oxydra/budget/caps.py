"""Caps on what model calls cost: whose they are, what they cover, when they reset. Pure.

Money is whole nano-dollars (1e-9 USD) wherever it is added up, since the price of a token is often
less than a millionth of a dollar; it is rounded up. A period begins at the user's own midnight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Literal
from zoneinfo import ZoneInfo

from oxydra.errors import BudgetError
from oxydra.types import Json, ModelSpec, Rates

NANO = 10**9
MOST = 10**15  # nano-dollars; what is more, a million dollars, is no price but a mistake
MIN_OUTPUT = 1024  # tokens: an answer that may be no longer is not asked for
MIN_THOUGHT = 4096  # the same for a model that thinks first
_ROOM = 16_384  # tokens of output that a call may take whatever it leaves to others
_STEP = 1024  # a lowered limit goes by such steps, so that it rarely changes

Kind = Literal["turn", "session", "schedule", "since"]
CAPS = ("per_turn", "per_session", "per_day", "per_month")


def nano(value: Decimal) -> int:
    """USD as nano-dollars, rounded up, at most `MOST`, which what is no number counts as too."""
    if value.is_nan() or value >= usd(MOST):
        return MOST
    return int((value * NANO).to_integral_value(ROUND_CEILING)) if value > 0 else 0


def usd(amount: int) -> Decimal:
    """Nano-dollars as USD."""
    return Decimal(amount) / NANO


def dollars(amount: int) -> str:
    """Nano-dollars for people: `$1.25`, `$0.0042`."""
    value = usd(amount)
    places = 2 if not amount or abs(value) >= 1 else 4
    return f"{'-' if amount < 0 else ''}${abs(value):,.{places}f}"


# ------------------------------------------------------------------------------------------- caps


@dataclass(frozen=True, slots=True)
class Caps:
    """What a user's calls may cost, in USD; None is no cap. `allow_unpriced`: a model whose price
    is not known may be asked even so, and counts nothing.
    """

    per_turn: Decimal | None = None
    per_session: Decimal | None = None
    per_day: Decimal | None = None
    per_month: Decimal | None = None
    allow_unpriced: bool = False

    def narrowed(self, per_turn: Decimal | None) -> Caps:
        """With the stricter of its own and another cap on a turn."""
        return replace(self, per_turn=stricter(self.per_turn, per_turn))

    def to_json(self) -> Json:
        """With amounts as strings, exactly as they are."""
        amounts = {name: getattr(self, name) for name in CAPS}
        said = {name: str(value) for name, value in amounts.items() if value is not None}
        return {**said, "allow_unpriced": self.allow_unpriced}

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Caps:
        """Raises `ArithmeticError` or `ValueError` if it is broken: no cap is ever left out."""
        unknown = set(value) - {*CAPS, "allow_unpriced"}
        if unknown:
            raise ValueError(f"unknown caps: {', '.join(sorted(unknown))}")
        amounts = {name: Decimal(str(value[name])) for name in CAPS if value.get(name) is not None}
        if not all(amount.is_finite() and amount >= 0 for amount in amounts.values()):
            raise ValueError("a cap is an amount, at least 0")
        return cls(**amounts, allow_unpriced=value.get("allow_unpriced") is True)


def stricter(one: Decimal | None, other: Decimal | None) -> Decimal | None:
    """The lower of two caps, of which each may be none."""
    given = [cap for cap in (one, other) if cap is not None]
    return min(given) if given else None


# ----------------------------------------------------------------------------------------- periods


@dataclass(frozen=True, slots=True)
class Periods:
    """The day and the month around an instant, in a time zone; all in UTC. What was spent since
    `day` began counts today, whatever its time says: a clock that steps back frees nothing.
    """

    zone: str
    day: datetime
    day_ends: datetime
    month: datetime
    month_ends: datetime

    @classmethod
    def around(cls, now: datetime, zone: str) -> Periods:
        """`now` is aware. Where a midnight does not exist or comes twice, the first instant of the
        new day counts.
        """
        place = ZoneInfo(zone)
        local = now.astimezone(place)

        def midnight(year: int, month: int, day: int) -> datetime:
            return datetime(year, month, day, tzinfo=place).astimezone(UTC)

        after = local.date() + timedelta(days=1)
        year, month = divmod(local.year * 12 + local.month, 12)
        return cls(
            zone,
            midnight(local.year, local.month, local.day),
            midnight(after.year, after.month, after.day),
            midnight(local.year, local.month, 1),
            midnight(year, month + 1, 1),
        )

    def local(self, instant: datetime) -> str:
        """For people: `2026-12-01 00:00 (Europe/Berlin)`."""
        return f"{instant.astimezone(ZoneInfo(self.zone)):%Y-%m-%d %H:%M} ({self.zone})"


def stamp(instant: datetime) -> str:
    """An instant as the database keeps it: UTC, so that texts compare as times do."""
    return instant.astimezone(UTC).isoformat(timespec="milliseconds")


# ------------------------------------------------------------------------------------ who is it for


@dataclass(frozen=True, slots=True)
class Account:
    """On whose behalf a model is called.

    `max_cost` caps this turn, with all that is done for it. `parent` is whose turn delegated it:
    its caps hold as well, and what is spent here counts there. `schedule` is the schedule that
    began it, on the day `schedule_day` (`stamp` of its midnight), which `max_cost_per_day` caps;
    `purpose` is what the call is for (`turn`, `summary`).
    """

    turn_id: str
    session_id: str
    agent: str = "default"
    schedule: str = ""
    purpose: str = "turn"
    max_cost: Decimal | None = None
    parent: Account | None = None
    schedule_day: str = ""
    max_cost_per_day: Decimal | None = None

    def line(self) -> Iterator[Account]:
        """This account and those above it."""
        account: Account | None = self
        while account is not None:
            yield account
            account = account.parent

    @property
    def scopes(self) -> tuple[tuple[Kind, str], ...]:
        """The turns and sessions that pay, and the day of a schedule, each once."""
        found: dict[tuple[Kind, str], None] = {}
        for account in self.line():
            found["turn", account.turn_id] = None
            found["session", account.session_id] = None
            if account.schedule_day:
                found["schedule", account.day_of_schedule] = None
        return tuple(found)

    @property
    def day_of_schedule(self) -> str:
        """What names the total of a schedule's day."""
        return f"{self.schedule} {self.schedule_day}"


@dataclass(frozen=True, slots=True)
class Limit:
    """What one total may come to: that of a turn, of a session, or of all since an instant. `cap`
    is in nano-dollars, None is none; `key` names the setting, `resets` is a sentence for people.
    """

    kind: Kind
    name: str
    cap: int | None
    key: str
    resets: str
    resets_at: str = ""


def limits_of(account: Account, caps: Caps, periods: Periods) -> tuple[Limit, ...]:
    """Every limit that a call for `account` must keep, those of the periods always among them."""
    line = list(account.line())
    root = line[-1]
    found = []
    for one in line:
        cap, key = one.max_cost, "max_cost"
        if one is root and caps.per_turn is not None and (cap is None or caps.per_turn <= cap):
            cap, key = caps.per_turn, "per_turn"
        if cap is not None:
            found.append(_limit("turn", one.turn_id, cap, key, "It begins anew with each message."))
        if one.max_cost_per_day is not None:
            name, key = one.day_of_schedule, "max_cost_per_day"
            resets = f"It begins anew at {periods.local(periods.day_ends)}."
            found.append(_limit("schedule", name, one.max_cost_per_day, key, resets))
    anew = "It begins anew with each session."
    found.append(_limit("session", root.session_id, caps.per_session, "per_session", anew))
    for key, start, end in (
        ("per_day", periods.day, periods.day_ends),
        ("per_month", periods.month, periods.month_ends),
    ):
        limit = _limit(
            "since", stamp(start), getattr(caps, key), key, f"It resets at {periods.local(end)}."
        )
        found.append(replace(limit, resets_at=stamp(end)))
    return tuple(found)


def _limit(kind: Kind, name: str, cap: Decimal | None, key: str, resets: str) -> Limit:
    if cap is not None:
        cap = min(cap, usd(MOST))
    amount = None if cap is None else int((cap * NANO).to_integral_value(ROUND_FLOOR))
    return Limit(kind, name, amount, key, resets)


# ------------------------------------------------------------------------------------- the decision


def worst_case(rates: Rates, prompt: int, output: int) -> int:
    """Nano-dollars of a call with so many tokens at most."""
    return nano((prompt * rates.prompt + output * rates.output) / 1_000_000)


def affordable(model: ModelSpec, rates: Rates, prompt: int, left: int | None) -> int | None:
    """How many tokens of output a call may have: the model's maximum, or less where that would
    pass what is `left` (nano-dollars; None: no cap). None where not even a sensible minimum fits.

    A lowered limit leaves half of what is left to calls that run beside it, unless that would make
    it short.
    """
    most = model.max_output_tokens if model.max_output_tokens > 0 else model.max_context_tokens
    if left is None or worst_case(rates, prompt, most) <= left:
        return most
    rest = usd(left) * 1_000_000 - prompt * rates.prompt
    if rates.output <= 0 or rest <= 0:
        return None
    fits = int(rest / rates.output)
    least = min(most, MIN_THOUGHT if model.reasoning else MIN_OUTPUT)
    if fits < least:
        return None
    lowered = min(fits, most, max(_ROOM, fits // 2))
    return max(least, lowered - lowered % _STEP) if lowered > _STEP else lowered


_ABOUT = {
    "max_cost_per_day": (
        "one schedule may cost in a day",
        "[scheduler] max_cost_per_day of agent.toml",
    ),
    "max_cost": ("this turn may cost", "max_cost of agent.toml"),
    "per_turn": ("one turn may cost", "[budget] per_turn"),
    "per_session": ("one session may cost", "[budget] per_session"),
    "per_day": ("one day may cost", "[budget] per_day"),
    "per_month": ("one month may cost", "[budget] per_month"),
}


def refusal(
    limits: Sequence[Limit], spent: Sequence[int], held: int, model: ModelSpec, least: int
) -> BudgetError:
    """Why a call is refused that would take at least `least` nano-dollars: the limit that leaves
    the least says it. `held` is what calls that still run have reserved.
    """
    left, limit = min(
        (
            (limit.cap - used, limit)
            for limit, used in zip(limits, spent, strict=True)
            if limit.cap is not None
        ),
        key=lambda row: row[0],
    )
    about, setting = _ABOUT[limit.key]
    running = f", while calls that still run hold {dollars(held)}" if held else ""
    return BudgetError(
        f"The budget is used up: a call of {model.id} may cost {dollars(least)} or more, and "
        f"{dollars(max(0, left))} is left of the {dollars(limit.cap or 0)} that {about}{running}. "
        f"{limit.resets}",
        remedy=f"Raise {setting}, or choose a cheaper model; /cost shows what was spent.",
        cap=limit.key,
        left=usd(max(0, left)),
        resets_at=limit.resets_at,
    )


def unpriced(model: ModelSpec) -> BudgetError:
    """The refusal of a model without a known price where a cap is set."""
    return BudgetError(
        f"The price of {model.id} ({model.provider}) is not known, and a cap on costs is set.",
        remedy="Set [budget] allow_unpriced = true in runner.toml if it may be asked even so, or "
        "choose a model that `oxydra-runner catalog show` has a price for.",
        cap="allow_unpriced",
    )
