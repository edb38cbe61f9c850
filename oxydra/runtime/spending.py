"""What the calls of a user's models may cost: reserved before each, settled after it.

`Spending.meter` says for a turn who pays; its meter goes with each `ModelRequest`, those for
summaries too, and `providers.metered` asks it before every attempt. Nothing but `spend` in the
database decides, so any number of turns may ask at once. No thread of its own.

A call that ends early is charged by what is known. Where the server refused it, or was never
reached, nothing was billed; else its prompt counts, and what it said until then. Only a crash of
this process leaves a reservation, and that counts in full.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from oxydra import catalog
from oxydra.budget import (
    Account,
    Calibrations,
    Caps,
    Limit,
    Periods,
    affordable,
    dollars,
    estimate_messages,
    estimate_request,
    estimate_tools,
    family,
    limits_of,
    nano,
    refusal,
    unpriced,
    usd,
    worst_case,
)
from oxydra.budget.caps import CAPS, MIN_OUTPUT, MIN_THOUGHT, stamp
from oxydra.errors import (
    BudgetError,
    OxydraError,
    PolicyDenied,
    ProviderError,
    UsageError,
)
from oxydra.store import Store
from oxydra.store.spend import Entry, Group
from oxydra.types import (
    Completed,
    Json,
    ModelRequest,
    ModelSpec,
    Rates,
    ToolSpec,
    Usage,
)

T = TypeVar("T")
log = logging.getLogger(__name__)

DAYS = 31  # that a report by day goes back
TOOL_SETS = 64  # whose tokens are kept
BY = ("day", "model", "session", "schedule")
LATE = (408, 504, 524)  # a server gave up waiting: what it waited for may have gone on
CHARACTERS = 4  # for each token of what was said, where there is no more than its length


def directly(write: Callable[[], T]) -> T:
    return write()


class Spending:
    """Of one user. Every method may be called from any thread."""

    def __init__(
        self,
        store: Store,
        caps: Caps | None = None,
        zone: str = "UTC",
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`zone` is the user's, whose midnights begin a day and a month."""
        self.store = store
        self.caps = caps or Caps()
        self.zone = zone
        self.clock = clock
        self.calibrations = Calibrations()
        self._tools: dict[tuple[tuple[int, ...], str], tuple[Sequence[ToolSpec], int]] = {}
        self._lock = threading.Lock()

    def recover(self) -> None:
        """For a start: learn from what was reported before, and settle what a crash left."""
        if lost := self.store.settle_lost():
            log.warning("%d calls that a crash cut off count with the most they could cost", lost)
        for provider, model, estimated, reported in self.store.spend_reports():
            spec = ModelSpec(provider, model, 0, 0)
            self.calibrations.observe(spec, estimated, reported)

    def meter(
        self, account: Account, durably: Callable[[Callable[[], Any]], Any] = directly
    ) -> AccountMeter:
        """What `ModelRequest.meter` takes for calls on this account. `durably` does a write, and
        waits where the disk is full.
        """
        return AccountMeter(self, account, durably)

    def tool_tokens(self, tools: Sequence[ToolSpec], model: ModelSpec) -> int:
        """Their estimate, counted once for each set of tools, however often it is put together."""
        if not tools:
            return 0
        key = (tuple(map(id, tools)), family(model))
        with self._lock:
            kept = self._tools.get(key)
        if kept is not None:
            return kept[1]
        tokens = estimate_tools(tools, model)
        with self._lock:
            if len(self._tools) >= TOOL_SETS:
                self._tools.clear()
            self._tools[key] = (tools, tokens)  # holding the set keeps the ids its own
        return tokens

    def left(self, account: Account) -> int | None:
        """Nano-dollars that calls on this account may still reserve; None: there is no cap."""
        limits = limits_of(account, self.caps, Periods.around(self.clock(), self.zone))
        return least_left(limits, self.store.spent(limits))

    # ------------------------------------------------------------------------------------- reports

    def summary(self, session_id: str = "") -> Json:
        """What was spent today, this month and in a session, and what is left of each cap: amounts
        in USD, times of the user's zone.
        """
        now = self.clock()
        periods = Periods.around(now, self.zone)
        limits = limits_of(Account("", session_id), self.caps, periods)
        spent = {
            limit.key: (limit, amount)
            for limit, amount in zip(limits, self.store.spent(limits), strict=True)
        }
        rows = []
        for key, (limit, amount) in spent.items():
            if limit.cap is not None and key != "per_turn" and (session_id or key != "per_session"):
                left = max(0, limit.cap - amount)
                row: Json = {"cap": key, "limit_usd": _number(limit.cap), "left_usd": _number(left)}
                if limit.resets_at:
                    resets = datetime.fromisoformat(limit.resets_at).astimezone(ZoneInfo(self.zone))
                    row["resets_at"] = resets.isoformat(timespec="seconds")
                rows.append(row)
        if self.caps.per_turn is not None:
            rows.append({"cap": "per_turn", "limit_usd": float(self.caps.per_turn)})
        rows.sort(key=lambda row: CAPS.index(row["cap"]))
        found: Json = {
            "time_zone": self.zone,
            "today_usd": _number(spent["per_day"][1]),
            "month_usd": _number(spent["per_month"][1]),
            "reserved_usd": _number(self.store.spend_held()),
            "caps": rows,
        }
        if session_id:
            found["session_usd"] = _number(spent["per_session"][1])
        return found

    def report(self, by: str) -> Json:
        """The calls of this month by model, session or schedule, or those of the last `DAYS` days
        by day: rows of calls, tokens and USD. Raises `UsageError`.
        """
        if by not in BY:
            raise UsageError(f"Costs can't be told by {by[:32]!r}.", remedy=f"By {', '.join(BY)}.")
        now = self.clock()
        periods = Periods.around(now, self.zone)
        if by == "day":
            since = Periods.around(now - timedelta(days=DAYS - 1), self.zone).day
            groups = self._by_day(self.store.spend_groups("minute", stamp(since)))
        else:
            since = periods.month
            groups = self.store.spend_groups(by, stamp(since))
        if by == "schedule":
            groups = [group for group in groups if group.name]
        rows = [_row(group) for group in groups]
        if by == "session":
            sessions = self.store.sessions(include_archived=True)
            titles = {session.session_id: session.display_name for session in sessions}
            rows = [{**row, "title": titles.get(row["name"], "")} for row in rows]
        if by == "schedule":
            names = {one.schedule_id: one.name for one in self.store.schedules()}
            rows = [{**row, "title": names.get(row["name"], "(deleted)")} for row in rows]
        local = since.astimezone(ZoneInfo(self.zone)).isoformat(timespec="seconds")
        return {"by": by, "since": local, "rows": rows}

    def _by_day(self, minutes: Sequence[Group]) -> list[Group]:
        """Calls by minute (UTC) as calls by day in the user's zone, the newest day first."""
        found: dict[str, Group] = {}
        starts: dict[str, str] = {}  # a quarter of an hour lies in one day, whatever the zone
        for group in minutes:
            quarter = f"{group.name[:14]}{int(group.name[14:16]) // 15 * 15:02d}"
            day = starts.get(quarter)
            if day is None:
                local = Periods.around(datetime.fromisoformat(f"{quarter}+00:00"), self.zone)
                day = starts[quarter] = local.local(local.day)[:10]
            old = found.get(day, Group(day, 0, 0, 0, 0, 0, 0, 0))
            sums = [getattr(old, name) + getattr(group, name) for name in Group.__slots__[1:]]
            found[day] = Group(day, *sums)
        return sorted(found.values(), key=lambda group: group.name, reverse=True)


def _row(group: Group) -> Json:
    named = {name: getattr(group, name) for name in Group.__slots__ if name != "cost"}
    return {**named, "cost_usd": _number(group.cost)}


def _number(amount: int) -> float:
    return float(usd(amount))


def least_left(limits: Sequence[Limit], spent: Sequence[int]) -> int | None:
    """What the strictest of the limits leaves, None where none has a cap."""
    pairs = zip(limits, spent, strict=True)
    return min((limit.cap - used for limit, used in pairs if limit.cap is not None), default=None)


# --------------------------------------------------------------------------------------- one call


class AccountMeter:
    """See the `Meter` Protocol: reserves for one account."""

    def __init__(
        self, spending: Spending, account: Account, durably: Callable[[Callable[[], Any]], Any]
    ) -> None:
        self._spending = spending
        self._account = account
        self._durably = durably

    def open(self, request: ModelRequest) -> OpenBill:
        """Reserve the most that this call can cost, with a shorter answer where that alone makes
        it fit. Raises `BudgetError`.
        """
        spending, account, model = self._spending, self._account, request.model
        estimated = estimate_request(request, spending.tool_tokens(request.tools, model))
        prompt = spending.calibrations.of(model).worst(estimated)
        rates = catalog.rates(model, prompt)
        now = spending.clock()
        limits = limits_of(account, spending.caps, Periods.around(now, spending.zone))
        chosen = model.max_output_tokens

        def amount(spent: Sequence[int], held: int) -> int:
            nonlocal chosen
            left = least_left(limits, spent)
            if rates is None:
                if left is not None and not spending.caps.allow_unpriced:
                    raise unpriced(model)
                return 0
            fits = affordable(model, rates, prompt, left)
            if fits is None:
                raise refusal(limits, spent, held, model, _least(model, rates, prompt))
            if fits < (model.max_output_tokens or model.max_context_tokens):
                chosen = fits
            return worst_case(rates, prompt, fits)

        entry = Entry(
            scopes=account.scopes,
            agent=account.agent,
            schedule=account.schedule,
            purpose=account.purpose,
            provider=model.provider,
            model=model.id,
            estimated=estimated,
            priced=rates is not None,
            created_at=stamp(now),
        )
        spend_id = self._durably(lambda: spending.store.reserve(entry, limits, amount))
        if chosen != model.max_output_tokens:
            log.info("the answer may have %d tokens: no more is left of the budget", chosen)
            request = replace(request, model=replace(model, max_output_tokens=chosen))
        return OpenBill(spending, request, model, spend_id, estimated, prompt, self._durably)


def _least(model: ModelSpec, rates: Rates, prompt: int) -> int:
    most = model.max_output_tokens or model.max_context_tokens
    return worst_case(rates, prompt, min(most, MIN_THOUGHT if model.reasoning else MIN_OUTPUT))


class OpenBill:
    """See the `Bill` Protocol. Used by one thread."""

    def __init__(
        self,
        spending: Spending,
        request: ModelRequest,
        model: ModelSpec,
        spend_id: int,
        estimated: int,
        worst: int,
        durably: Callable[[Callable[[], Any]], Any],
    ) -> None:
        """`request` is what may be asked of `model`; its prompt was `estimated`, and is `worst`
        tokens at most.
        """
        self._request = request
        self._spending = spending
        self._model = model
        self._spend_id = spend_id
        self._estimated = estimated
        self._worst = worst
        self._durably = durably
        self._open = True
        self._opened = time.monotonic()
        self._first = -1  # milliseconds until something came

    def began(self) -> None:
        if self._first < 0:
            self._first = round(1000 * (time.monotonic() - self._opened))

    @property
    def request(self) -> ModelRequest:
        return self._request

    def settle(self, completed: Completed) -> Completed:
        """Settle at what was reported, as far as that can be true, and learn from it."""
        reported = completed.usage
        usage = self._believed(reported)
        message = completed.message
        silent = not usage.completion_tokens and (message.content or message.tool_calls)
        guessed = not usage.prompt_tokens or bool(silent)
        if not guessed and usage == replace(reported, cost_usd=None):
            # what makes no sense teaches nothing
            self._spending.calibrations.observe(self._model, self._estimated, usage.prompt_tokens)
        counted = usage
        if guessed:  # a server that does not say, or not all
            counted = replace(
                usage,
                prompt_tokens=usage.prompt_tokens or self._likely(),
                completion_tokens=usage.completion_tokens
                or estimate_messages([message], self._model),
            )
        price = catalog.cost(self._model, counted)
        self._close(counted, 0 if price is None else nano(price), guessed)
        return replace(completed, usage=replace(usage, cost_usd=price))

    def broken(self, error: BaseException, said: int, *, began: bool) -> None:
        """Settle at an estimate what may have been billed, release what was not."""
        if not self._open:
            return
        if not began and not_billed(error):
            self._open = False
            store, code = self._spending.store, _code(error)
            self._durably(lambda: store.release_spend(self._spend_id, code))
            return
        usage = Usage(self._likely(), -(-said // CHARACTERS))
        price = catalog.cost(self._model, usage)
        self._close(usage, 0 if price is None else nano(price), True, _code(error))

    def _close(self, usage: Usage, cost: int, guessed: bool, ended: str = "") -> None:
        if not self._open:
            return
        self._open = False
        store, spend_id = self._spending.store, self._spend_id
        self._durably(
            lambda: store.settle_spend(
                spend_id, cost, usage, guessed=guessed, first=self._first, ended=ended
            )
        )
        log.debug("call %d cost %s", spend_id, dollars(cost))

    def _likely(self) -> int:
        return self._spending.calibrations.of(self._model).likely(self._estimated)

    def _believed(self, usage: Usage) -> Usage:
        """What was reported, within what a call can have used at all."""
        model = self._model
        most_in = max(model.max_context_tokens, self._worst)
        most_out = model.max_output_tokens if model.max_output_tokens > 0 else most_in
        prompt = _count(usage.prompt_tokens, most_in)
        completion = _count(usage.completion_tokens, most_out)
        cached = _count(usage.cached_tokens, prompt)
        believed = Usage(
            prompt,
            completion,
            cached,
            _count(usage.reasoning_tokens, completion),
            None,
            _count(usage.cache_write_tokens, prompt - cached),
        )
        if believed != replace(usage, cost_usd=None):
            log.warning("%s reported a usage that cannot be: %r", model.provider, usage)
        return believed


def _count(value: object, most: int) -> int:
    """A number of tokens from 0 to `most`, whatever was put there."""
    if not isinstance(value, int | float) or not value > 0:  # NaN is not above 0
        return 0
    return most if value >= most else int(value)


def _code(error: BaseException) -> str:
    """How a call ended early; never what a server said, which may quote the conversation."""
    return error.code if isinstance(error, OxydraError) else type(error).__name__


def not_billed(error: BaseException) -> bool:
    """Whether a call that ended with `error` before it said anything certainly cost nothing."""
    if isinstance(error, ProviderError):
        refused = error.status >= 400 and error.status not in LATE
        return refused or error.unsent or error.code == "unsupported"
    return isinstance(error, PolicyDenied | BudgetError)
