"""Budgets: what is reserved, refused, settled and released, and what hostile numbers can do."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxydra.budget import Account, Caps, Limit, Periods, dollars, nano, usd
from oxydra.budget.caps import stamp
from oxydra.config import ReliabilityConfig, RuntimeConfig
from oxydra.errors import (
    BudgetError,
    Cancelled,
    OxydraError,
    PolicyDenied,
    ProviderError,
    StoreFullError,
    UsageError,
)
from oxydra.providers import create
from oxydra.providers.base import ProviderSettings
from oxydra.providers.metered import Metered
from oxydra.providers.reliable import Choice, Reliable
from oxydra.runtime import Runtime
from oxydra.runtime.spending import Spending
from oxydra.store import Store
from oxydra.store.spend import Entry
from oxydra.threads import CancelToken
from oxydra.tools.gate import Gate
from oxydra.tools.registry import ToolRegistry
from oxydra.transport import DirectTransport
from oxydra.types import Completed, Message, ModelRequest, ModelSpec, TextDelta, ToolSpec, Usage
from tests.fake_model import CUT, FakeModel, Reply, event

DOLLAR = 10**9
NOON = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
# a dollar for each thousand tokens of an answer, nothing for those of a prompt
DEAR = ModelSpec("p", "dear", 100_000, 4_000, price_input=Decimal(0), price_output=Decimal(1000))
PRICED = replace(DEAR, price_input=Decimal(1000), price_output=Decimal(1000))
FREE = replace(DEAR, id="free", price_output=Decimal(0))
UNKNOWN = replace(DEAR, id="unknown", price_input=None, price_output=None)
ASKED = [Message("system", "Be brief."), Message("user", "hello")]


class Said:
    """A provider that answers each call with the next of `steps`: a usage to report, an exception
    to raise, or a list of texts before one of these.
    """

    def __init__(self, *steps: Any, name: str = "p") -> None:
        self.name = name
        self.steps = list(steps)
        self.requests: list[ModelRequest] = []

    def stream(self, request: ModelRequest, token: CancelToken) -> Iterator[Any]:
        self.requests.append(request)
        step = self.steps.pop(0)
        texts, last = (step[:-1], step[-1]) if isinstance(step, list) else ([], step)
        for text in texts:
            yield TextDelta(text)
        if isinstance(last, BaseException):
            raise last
        yield Completed(Message("assistant", "".join(texts) or "fine"), "stop", last)


class Clock:
    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


def ask(
    spending: Spending, provider: Said, model: ModelSpec = DEAR, account: Account | None = None
) -> Completed:
    """One call to its end."""
    meter = spending.meter(account or Account("t1", "s1"))
    request = ModelRequest(model, ASKED, meter=meter)
    (*_, last) = Metered(provider).stream(request, CancelToken())
    assert isinstance(last, Completed)
    return last


def rows(store: Store, turn: str = "t1") -> list[tuple[str, int]]:
    return [(row["state"], row["cost"]) for row in store.spend_rows(turn)]


# --------------------------------------------------------------------------------- reserve, settle


def test_the_worst_case_is_reserved_and_what_it_cost_is_settled(store: Store) -> None:
    spending = Spending(store, Caps(per_day=Decimal(10)), clock=Clock())
    meter = spending.meter(Account("t1", "s1"))
    bill = meter.open(ModelRequest(DEAR, ASKED))
    assert rows(store) == [("reserved", 4 * DOLLAR)]
    assert spending.left(Account("t2", "s1")) == 6 * DOLLAR
    answer = Message("assistant", "hi")
    completed = bill.settle(Completed(answer, "stop", Usage(20, 500)))
    assert completed.usage.cost_usd == Decimal("0.5")
    assert rows(store) == [("settled", DOLLAR // 2)]
    assert spending.left(Account("t2", "s1")) == DOLLAR * 19 // 2
    bill.broken(Cancelled("late"), 900, began=True)
    assert rows(store) == [("settled", DOLLAR // 2)], "it was closed before"


def test_past_a_cap_a_call_is_refused_with_what_is_left_and_when_it_resets(store: Store) -> None:
    spending = Spending(store, Caps(per_day=Decimal("0.59")), "Europe/Berlin", Clock())
    provider = Said(Usage(20, 100))
    small = replace(DEAR, max_output_tokens=500)
    ask(spending, provider, small)
    with pytest.raises(BudgetError) as caught:
        ask(spending, provider, small, Account("t2", "s2"))
    error = caught.value
    assert (error.code, error.cap, error.left) == ("budget", "per_day", Decimal("0.49"))
    assert error.resets_at == "2026-11-25T23:00:00.000+00:00"
    assert "$0.4900 is left of the $0.5900" in str(error)
    assert "2026-11-26 00:00 (Europe/Berlin)" in str(error)
    assert len(provider.requests) == 1
    assert rows(store, "t2") == [], "what was refused is no row"


def test_an_answer_is_shortened_where_that_makes_it_fit(store: Store) -> None:
    spending = Spending(store, Caps(per_turn=Decimal("1.50")), clock=Clock())
    provider = Said(Usage(20, 100), Usage(20, 100))
    ask(spending, provider)
    assert provider.requests[0].model.max_output_tokens == 1024
    assert provider.requests[0].model.id == "dear"
    ask(spending, provider)  # 1.40 is left
    with pytest.raises(BudgetError):
        ask(spending, Said(), replace(DEAR, reasoning=True))  # which needs 4000 to think


def test_a_shortened_answer_leaves_something_to_calls_beside_it(store: Store) -> None:
    long = replace(DEAR, max_output_tokens=90_000)
    spending = Spending(store, Caps(per_day=Decimal(80)), clock=Clock())
    bills = [
        spending.meter(Account(f"t{n}", "s")).open(ModelRequest(long, ASKED)) for n in range(3)
    ]
    assert [bill.request.model.max_output_tokens for bill in bills] == [39_936, 19_456, 16_384]


class Read(dict[str, Any]):
    """A tool's parameters, which know how often they were put into words."""

    times = 0

    def __format__(self, how: str) -> str:
        self.times += 1
        return format(dict(self), how)


def test_tools_are_counted_once_though_each_turn_puts_them_together_anew(store: Store) -> None:
    spending = Spending(store)
    parameters = Read(type="object", properties={})
    specs = [ToolSpec(f"tool{number}", "Does it.", parameters) for number in range(3)]
    found = [spending.tool_tokens(tuple(specs[:count]), PRICED) for count in (3, 2, 3, 2)]
    assert found[:2] == found[2:] and found[0] > found[1] > 0
    assert parameters.times == 5
    changed = [*specs[:2], replace(specs[2], description="Does something else altogether, well.")]
    assert spending.tool_tokens(changed, PRICED) > found[0]


def test_a_free_model_is_asked_though_nothing_is_left(store: Store) -> None:
    spending = Spending(store, Caps(per_day=Decimal(0)), clock=Clock())
    assert ask(spending, Said(Usage(20, 100)), FREE).usage.cost_usd == 0
    with pytest.raises(BudgetError):
        ask(spending, Said(), DEAR)


def test_an_unknown_price_is_refused_under_a_cap_unless_it_is_allowed(store: Store) -> None:
    with pytest.raises(BudgetError, match="allow_unpriced = true"):
        ask(Spending(store, Caps(per_month=Decimal(100))), Said(), UNKNOWN)
    with pytest.raises(BudgetError, match="not known"):
        ask(Spending(store), Said(), UNKNOWN, Account("t1", "s1", max_cost=Decimal(1)))
    allowed = Spending(store, Caps(per_month=Decimal(100), allow_unpriced=True))
    assert ask(allowed, Said(Usage(20, 100)), UNKNOWN).usage.cost_usd is None
    ask(Spending(store), Said(Usage(20, 100)), UNKNOWN)
    (row,) = allowed.report("model")["rows"]
    assert (row["name"], row["unpriced"], row["cost_usd"]) == ("p/unknown", 2, 0)


def test_without_a_cap_all_is_still_written_down(store: Store) -> None:
    spending = Spending(store, clock=Clock())
    ask(spending, Said(Usage(20, 100)))
    assert rows(store) == [("settled", DOLLAR // 10)]
    found = spending.summary("s1")
    assert (found["today_usd"], found["session_usd"], found["caps"]) == (0.1, 0.1, [])


def test_a_delegated_turn_spends_its_parents_budget_and_not_more_than_its_own(
    store: Store,
) -> None:
    spending = Spending(store, Caps(per_session=Decimal(5)), clock=Clock())
    parent = Account("t1", "s1", max_cost=Decimal(3))
    child = Account("t2", "s2", agent="helper", max_cost=Decimal(2), parent=parent)
    small = replace(DEAR, max_output_tokens=1024)
    provider = Said(*[Usage(20, 1000)] * 9)
    ask(spending, provider, small, child)
    with pytest.raises(BudgetError, match="this turn may cost"):
        ask(spending, provider, small, child)  # 2.024 of 2
    ask(spending, provider, small, parent)
    with pytest.raises(BudgetError) as caught:
        ask(spending, provider, small, Account("t3", "s2", parent=parent))
    assert (caught.value.cap, caught.value.left) == ("max_cost", Decimal(1))
    for turn in ("t4", "t5"):
        ask(spending, provider, small, Account(turn, "s1"))
    with pytest.raises(BudgetError) as caught:
        ask(spending, provider, small, Account("t6", "s1"))
    assert (caught.value.cap, caught.value.left) == ("per_session", Decimal(1))


# --------------------------------------------------------------------------- what ends otherwise


@pytest.mark.parametrize(
    ("error", "billed"),
    [
        (ProviderError("overloaded", status=529), False),
        (ProviderError("refused", status=401), False),
        (ProviderError("no connection", unsent=True), False),
        (ProviderError("no images", code="unsupported"), False),
        (PolicyDenied("not there"), False),
        (ProviderError("it gave up", status=504), True),
        (ProviderError("silence"), True),
        (Cancelled("stop"), True),
        (RuntimeError("a defect"), True),
    ],
    ids=lambda value: str(value),
)
def test_what_was_certainly_not_billed_is_released(
    store: Store, error: BaseException, billed: bool
) -> None:
    spending = Spending(store, Caps(per_day=Decimal(10)), clock=Clock())
    with pytest.raises(type(error)):
        ask(spending, Said(error), PRICED)
    ((state, cost),) = rows(store)
    assert (state, cost > 0) == ("settled" if billed else "released", billed)
    assert spending.left(Account("t2", "s2")) == 10 * DOLLAR - cost


def test_what_had_begun_is_charged_for_what_it_said(store: Store) -> None:
    spending = Spending(store, clock=Clock())
    refused = ProviderError("overloaded", status=529)
    with pytest.raises(ProviderError):
        ask(spending, Said(["word " * 400, refused]))
    assert rows(store) == [("settled", DOLLAR // 2)]


def test_a_reader_that_stops_early_settles_the_call(store: Store) -> None:
    spending = Spending(store, clock=Clock())
    request = ModelRequest(DEAR, ASKED, meter=spending.meter(Account("t1", "s1")))
    stream = Metered(Said(["x" * 400, "y", Usage(20, 9)])).stream(request, CancelToken())
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert rows(store) == [("settled", DOLLAR // 10)]


def test_a_call_that_nobody_pays_for_is_not_made() -> None:
    provider = Said(Usage(1, 1))
    with pytest.raises(OxydraError, match="Nobody pays"):
        list(Metered(provider).stream(ModelRequest(DEAR, ASKED), CancelToken()))
    assert not provider.requests


def test_each_attempt_and_each_other_model_is_a_call_of_its_own(store: Store) -> None:
    again = ProviderError("busy", status=503, retryable=True)
    lost = ProviderError("silence", retryable=True)
    first = Said(again, lost, name="first")
    second = Said(Usage(20, 100), name="second")
    cheap = replace(DEAR, provider="second", id="cheap", price_output=Decimal(10))
    config = ReliabilityConfig(max_attempts=2, backoff_base_ms=1, jitter=False)
    reliable = Reliable([Choice(Metered(first), DEAR), Choice(Metered(second), cheap)], config)
    spending = Spending(store, Caps(per_day=Decimal(10)), clock=Clock())
    request = ModelRequest(DEAR, ASKED, meter=spending.meter(Account("t1", "s1")))
    list(reliable.stream(request, CancelToken()))
    found = [(row["model"], row["state"], row["reserved"]) for row in store.spend_rows("t1")]
    assert found == [
        ("dear", "released", 4 * DOLLAR),
        ("dear", "settled", 4 * DOLLAR),
        ("cheap", "settled", DOLLAR // 25),
    ]


def test_a_fallback_that_would_pass_the_cap_is_not_asked(store: Store) -> None:
    down = Said(ProviderError("down", status=500), name="first")
    second = Said(name="second")
    config = ReliabilityConfig(max_attempts=1)
    reliable = Reliable([Choice(Metered(down), FREE), Choice(Metered(second), DEAR)], config)
    spending = Spending(store, Caps(per_day=Decimal("0.01")), clock=Clock())
    request = ModelRequest(FREE, ASKED, meter=spending.meter(Account("t1", "s1")))
    with pytest.raises(BudgetError):
        list(reliable.stream(request, CancelToken()))
    assert not second.requests


def dial(spending: Spending, url: str, account: Account) -> ProviderError | None:
    """One call over a real socket; the error that it ended with."""
    transport = DirectTransport()
    try:
        provider = Metered(create(ProviderSettings("mine", "openai", url), transport))
        request = ModelRequest(PRICED, ASKED, meter=spending.meter(account))
        list(provider.stream(request, CancelToken()))
        return None
    except ProviderError as error:
        return error
    finally:
        transport.close()


def test_over_a_real_wire_only_what_never_arrived_or_was_refused_is_free(store: Store) -> None:
    spending = Spending(store, clock=Clock())
    with FakeModel() as fake:
        fake.error(429, "slow down")
        fake.send(Reply([event({"content": "wo" * 200}), CUT]))
        fake.send(Reply([CUT], framing="raw"))
        fake.reply("fine", usage={"prompt_tokens": 100, "completion_tokens": -7})
        fake.reply("fine", usage={"prompt_tokens": 10**300, "completion_tokens": "NaN"})
        ends = [dial(spending, fake.url, Account(f"t{n}", "s1")) for n in range(5)]
        gone = fake.url
    ends.append(dial(spending, gone, Account("t5", "s1")))
    assert [error is None for error in ends] == [False, False, False, True, True, False]
    assert ends[-1] is not None
    assert ends[-1].unsent
    found = [rows(store, f"t{n}")[0] for n in range(6)]
    states = [state for state, _cost in found]
    assert states == ["released", "settled", "settled", "settled", "settled", "released"]
    assert found[1][1] > found[2][1] > 0, "what was said counts beside the prompt"
    assert found[3][1] > 0
    assert found[4][1] > 0


# ---------------------------------------------------------------------------------- hostile numbers


@pytest.mark.parametrize(
    "usage",
    [
        Usage(-5, -7, -1, -2, Decimal(-3), -4),
        Usage(float("nan"), float("nan"), float("nan")),  # type: ignore[arg-type]
        Usage(10**30, 10**30, 10**30, 10**30, Decimal("1e99"), 10**30),
        Usage(float("inf"), float("inf")),  # type: ignore[arg-type]
        Usage("many", None),  # type: ignore[arg-type]
        Usage(20, 5, 900, 900, Decimal("nan"), 900),
        Usage(0, 0),
    ],
    ids=["negative", "nan", "huge", "infinite", "no numbers", "parts above the whole", "nothing"],
)
def test_a_usage_that_cannot_be_neither_frees_nor_ruins(store: Store, usage: Usage) -> None:
    priced = replace(DEAR, price_input=Decimal(10))
    spending = Spending(store, clock=Clock())
    told = ask(spending, Said(usage), priced).usage
    ((state, cost),) = rows(store)
    most = nano(Decimal(100_000 * 10 + 4_000 * 1000) / 1_000_000)
    assert state == "settled"
    assert 0 < cost <= most
    assert told.cost_usd is not None
    assert 0 <= told.cost_usd <= usd(most)
    assert spending.calibrations.of(priced).reports == 0, "it teaches nothing"


@given(
    st.lists(st.tuples(st.integers(-(10**20), 10**20), st.integers(-(10**20), 10**20)), max_size=5)
)
def test_totals_stay_what_the_rows_come_to(tmp_path_factory: Any, usages: Any) -> None:
    store = Store(tmp_path_factory.mktemp("spend") / "oxydra.db")
    try:
        spending = Spending(store, clock=Clock())
        ask(spending, Said(Usage(20, 3)))
        for prompt, completion in usages:
            ask(spending, Said(Usage(prompt, completion)))
        total = sum(cost for _state, cost in rows(store))
        periods = Periods.around(NOON, "UTC")
        limits = [
            Limit("turn", "t1", None, "", ""),
            Limit("session", "s1", None, "", ""),
            Limit("since", stamp(periods.day), None, "", ""),
            Limit("since", stamp(periods.month), None, "", ""),
            Limit("since", stamp(periods.day - timedelta(days=3)), None, "", ""),
        ]
        assert store.spent(limits) == [total] * 5
    finally:
        store.close()


# ------------------------------------------------------------------------------------------- races


def test_fifty_threads_never_pass_a_cap(store: Store, tmp_path: Path) -> None:
    """Over two connections, as no lock of this process could hold them apart."""
    other = Store(tmp_path / "oxydra.db")
    caps = Caps(per_session=Decimal(30), per_day=Decimal(20), per_month=Decimal(25))
    both = [Spending(store, caps, clock=Clock()), Spending(other, caps, clock=Clock())]
    small = replace(DEAR, max_output_tokens=1000)
    start = threading.Barrier(50)
    held, refused = [], []

    def race(n: int) -> None:
        spending = both[n % 2]
        start.wait()
        for call in range(3):
            try:
                meter = spending.meter(Account(f"t{n}", f"s{call}"))
                held.append(meter.open(ModelRequest(small, ASKED)))
            except BudgetError as error:
                refused.append(error.cap)

    threads = [threading.Thread(target=race, args=(n,)) for n in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (20, 130)
    assert set(refused) == {"per_day"}
    assert store.spend_held() == 20 * DOLLAR
    for bill in held:
        bill.settle(Completed(Message("assistant", "x"), "stop", Usage(20, 1)))
    assert both[0].summary()["today_usd"] == pytest.approx(0.02)
    assert both[1].left(Account("x", "x")) == 20 * DOLLAR - 20 * DOLLAR // 1000
    other.close()


def test_settling_beside_reserving_never_passes_a_cap(store: Store) -> None:
    """What is settled, and what is reserved at any instant, together stay under the cap."""
    spending = Spending(store, Caps(per_day=Decimal(10)), clock=Clock())
    small = replace(DEAR, max_output_tokens=1000)
    seen: list[int] = []

    def race(n: int) -> None:
        for call in range(20):
            account = Account(f"t{n}-{call}", "s")
            with contextlib.suppress(BudgetError):
                ask(spending, Said(Usage(20, 400)), small, account)
            seen.append(10 * DOLLAR - (spending.left(account) or 0))

    threads = [threading.Thread(target=race, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(seen) <= 10 * DOLLAR
    settled = spending.summary()["today_usd"]
    assert 9 < settled <= 10
    assert spending.summary()["reserved_usd"] == 0


# ----------------------------------------------------------------------------------- time and zones


@pytest.mark.parametrize(
    ("now", "zone", "day", "day_ends", "month_ends"),
    [
        ("2026-11-25T12:00", "UTC", "11-25T00:00", "11-26T00:00", "12-01T00:00"),
        ("2026-11-25T23:30", "Europe/Berlin", "11-25T23:00", "11-26T23:00", "11-30T23:00"),
        ("2026-11-25T23:30", "America/New_York", "11-25T05:00", "11-26T05:00", "12-01T05:00"),
        ("2026-03-29T12:00", "Europe/Berlin", "03-28T23:00", "03-29T22:00", "03-31T22:00"),
        ("2026-10-25T12:00", "Europe/Berlin", "10-24T22:00", "10-25T23:00", "10-31T23:00"),
        ("2026-11-25T12:00", "Asia/Kathmandu", "11-24T18:15", "11-25T18:15", "11-30T18:15"),
        # midnight does not exist there on that day: the clock goes from 23:59 to 01:00
        ("2018-11-04T12:00", "America/Sao_Paulo", "11-04T03:00", "11-05T02:00", "12-01T02:00"),
        # and here it comes twice
        ("2026-11-01T05:30", "America/Havana", "11-01T04:00", "11-02T05:00", "12-01T05:00"),
    ],
)
def test_a_period_begins_at_the_users_midnight(
    now: str, zone: str, day: str, day_ends: str, month_ends: str
) -> None:
    instant = datetime.fromisoformat(now).replace(tzinfo=UTC)
    periods = Periods.around(instant, zone)
    found = (periods.day, periods.day_ends, periods.month_ends)
    assert [stamp(at)[5:16] for at in found] == [day, day_ends, month_ends]
    assert periods.month <= periods.day <= instant < periods.day_ends <= periods.month_ends


@given(
    st.datetimes(datetime(2000, 1, 1), datetime(2037, 12, 31)),
    st.sampled_from(["UTC", "Europe/Berlin", "America/Havana", "Asia/Kathmandu", "Pacific/Apia"]),
)
def test_every_instant_lies_in_its_day_and_month(now: datetime, zone: str) -> None:
    instant = now.replace(tzinfo=UTC)
    periods = Periods.around(instant, zone)
    assert periods.month <= periods.day <= instant < periods.day_ends <= periods.month_ends
    assert periods.day_ends - periods.day <= timedelta(hours=25)


def test_a_new_day_and_a_new_month_begin_anew(store: Store) -> None:
    clock = Clock(datetime(2026, 11, 30, 22, 30, tzinfo=UTC))  # 23:30 in Berlin
    caps = Caps(per_day=Decimal(2), per_month=Decimal(3))
    spending = Spending(store, caps, "Europe/Berlin", clock)
    small = replace(DEAR, max_output_tokens=1000)
    ask(spending, Said(Usage(20, 1000)), small)
    ask(spending, Said(Usage(20, 1000)), small)
    with pytest.raises(BudgetError, match="2026-12-01 00:00"):
        ask(spending, Said(), small)
    clock.now += timedelta(hours=1)
    ask(spending, Said(Usage(20, 1000)), small)
    found = spending.summary()
    assert (found["today_usd"], found["month_usd"]) == (1, 1)
    days = [(row["name"], row["cost_usd"]) for row in spending.report("day")["rows"]]
    assert days == [("2026-12-01", 1), ("2026-11-30", 2)]


def test_a_reservation_of_yesterday_settles_yesterday(store: Store) -> None:
    clock = Clock(datetime(2026, 11, 25, 23, 59, tzinfo=UTC))
    spending = Spending(store, Caps(per_day=Decimal(5)), clock=clock)
    bill = spending.meter(Account("t1", "s1")).open(ModelRequest(DEAR, ASKED))
    clock.now += timedelta(minutes=2)
    ask(spending, Said(Usage(20, 100)), account=Account("t2", "s1"))
    bill.settle(Completed(Message("assistant", "x"), "stop", Usage(20, 2000)))
    found = spending.summary("s1")
    assert (found["today_usd"], found["month_usd"], found["session_usd"]) == (0.1, 2.1, 2.1)


def test_a_clock_that_steps_back_frees_nothing(store: Store) -> None:
    clock = Clock()
    spending = Spending(store, Caps(per_day=Decimal(2)), clock=clock)
    small = replace(DEAR, max_output_tokens=1000)
    ask(spending, Said(Usage(20, 1000)), small)
    ask(spending, Said(Usage(20, 1000)), small)
    for back in (timedelta(minutes=5), timedelta(days=1), timedelta(days=40)):
        clock.now = NOON - back
        with pytest.raises(BudgetError):
            ask(spending, Said(), small)
    clock.now = NOON + timedelta(days=2)  # forward by mistake
    ask(spending, Said(Usage(20, 1000)), small)
    clock.now = NOON + timedelta(days=1)  # put right: what was spent meanwhile counts
    assert spending.left(Account("x", "x")) == DOLLAR
    clock.now = NOON + timedelta(days=3)
    assert spending.left(Account("x", "x")) == 2 * DOLLAR


def test_another_time_zone_counts_from_its_own_midnight(store: Store) -> None:
    clock = Clock(datetime(2026, 11, 25, 1, 0, tzinfo=UTC))
    ask(Spending(store, clock=clock), Said(Usage(20, 1000)))
    clock.now = datetime(2026, 11, 25, 20, 0, tzinfo=UTC)
    assert Spending(store, zone="UTC", clock=clock).summary()["today_usd"] == 1
    tokyo = Spending(store, zone="Asia/Tokyo", clock=clock)  # where it is the 26th
    ask(tokyo, Said(Usage(20, 100)))
    assert tokyo.summary()["today_usd"] == 0.1
    assert Spending(store, zone="UTC", clock=clock).summary()["today_usd"] == 1.1


# -------------------------------------------------------------------------------- crashes, disk


def test_what_a_crash_left_counts_in_full_until_it_is_settled(tmp_path: Path) -> None:
    store = Store(tmp_path / "oxydra.db")
    caps = Caps(per_day=Decimal(5))
    Spending(store, caps, clock=Clock()).meter(Account("t1", "s1")).open(ModelRequest(DEAR, ASKED))
    store.close()
    store = Store(tmp_path / "oxydra.db")
    spending = Spending(store, caps, clock=Clock())
    assert spending.left(Account("t1", "s1")) == DOLLAR
    spending.recover()
    assert rows(store) == [("settled", 4 * DOLLAR)]
    assert spending.left(Account("t1", "s1")) == DOLLAR
    (row,) = spending.report("model")["rows"]
    assert row["guessed"] == 1
    store.close()


def test_calibration_outlives_a_restart(store: Store) -> None:
    spending = Spending(store, clock=Clock())
    for _ in range(5):
        ask(spending, Said(Usage(40, 5)))
    again = Spending(store, clock=Clock())
    again.recover()
    assert again.calibrations.of(DEAR) == spending.calibrations.of(DEAR)
    assert again.calibrations.of(DEAR).reports == 5


def test_a_full_disk_is_waited_for(store: Store) -> None:
    tries: list[int] = []

    def durably(write: Any) -> Any:
        tries.append(1)
        return write()

    spending = Spending(store, clock=Clock())
    meter = spending.meter(Account("t1", "s1"), durably)
    bill = meter.open(ModelRequest(DEAR, ASKED))
    bill.settle(Completed(Message("assistant", "x"), "stop", Usage(20, 1)))
    assert len(tries) == 2
    assert StoreFullError.code == "disk_full"


# ------------------------------------------------------------------------------------- in a turn


def runtime(store: Store, provider: Said, spending: Spending, **config: Any) -> Runtime:
    registry = ToolRegistry(names=())
    return Runtime(
        store=store,
        provider=Metered(provider),
        model=DEAR,
        gate=Gate(registry, {}),
        tools=registry.specs,
        config=RuntimeConfig(**config),
        spending=spending,
    )


def run(store: Store, made: Runtime, account: Account | None = None) -> tuple[str, Any]:
    session = store.create_session()
    turn, _ = store.accept_turn(session.session_id, "t1", "r1", "hello")
    frames: list[tuple[str, Any]] = []
    made.run_turn(turn, CancelToken(), lambda *frame: frames.append(frame), account)
    assert store.turn("t1").terminal is not None  # type: ignore[union-attr]
    return frames[-1]


def test_a_turn_past_a_cap_fails_with_a_clear_text(store: Store) -> None:
    spending = Spending(store, Caps(per_day=Decimal("0.05")), clock=Clock())
    kind, payload = run(store, runtime(store, Said(), spending))
    assert (kind, payload["code"]) == ("error", "budget")
    assert "$0.0500 is left of the $0.0500 that one day may cost" in payload["message"]


def test_a_turns_own_cap_is_max_cost(store: Store) -> None:
    spending = Spending(store, clock=Clock())
    made = runtime(store, Said(), spending, max_cost=Decimal("0.5"))
    kind, payload = run(store, made)
    assert (kind, payload["code"]) == ("error", "budget")
    assert "Raise max_cost" in payload["message"]


def test_a_turn_tells_what_it_cost(store: Store) -> None:
    spending = Spending(store, Caps(per_day=Decimal(5)), clock=Clock())
    account = Account("t1", "s9", schedule="sch-1")
    kind, payload = run(store, runtime(store, Said(Usage(20, 100)), spending), account)
    assert kind == "turn_completed"
    assert payload["response"]["usage"]["cost_usd"] == 0.1
    (row,) = store.spend_rows("t1")
    assert (row["agent"], row["schedule"], row["purpose"]) == ("default", "sch-1", "turn")
    (by_schedule,) = spending.report("schedule")["rows"]
    assert (by_schedule["name"], by_schedule["calls"]) == ("sch-1", 1)
    with pytest.raises(UsageError, match="day, model"):
        spending.report("weather")


# ------------------------------------------------------------------------------------------- values


@given(st.decimals(allow_nan=True, allow_infinity=True))
def test_any_amount_becomes_nano_dollars(value: Decimal) -> None:
    assert 0 <= nano(value) <= 10**15


def test_amounts_for_people() -> None:
    shown = [dollars(n) for n in (0, 4_200_000, DOLLAR, 1234 * DOLLAR, -DOLLAR // 2)]
    assert shown == ["$0.00", "$0.0042", "$1.00", "$1,234.00", "-$0.5000"]


@pytest.mark.parametrize(
    "broken", [{"per_day": "-1"}, {"per_day": "NaN"}, {"per_day": "much"}, {"per_week": "1"}]
)
def test_a_broken_cap_is_never_left_out(broken: dict[str, str]) -> None:
    with pytest.raises((ArithmeticError, ValueError)):
        Caps.from_json(broken)
    caps = Caps(Decimal("0.1"), None, Decimal(5), None, True)
    assert Caps.from_json(caps.to_json()) == caps


def test_rows_that_were_left_out_of_a_total_do_not_exist(store: Store) -> None:
    """A refusal inside the transaction leaves no trace, whatever it is."""
    entry = Entry([("turn", "t1"), ("session", "s1")], "", "", "", "p", "m", 1, True, stamp(NOON))

    def refuse(_spent: Any, _held: int) -> int:
        raise UsageError("no")

    with pytest.raises(UsageError):
        store.reserve(entry, [Limit("since", stamp(NOON), None, "", "")], refuse)
    assert rows(store) == []
    assert store.reserve(entry, [], lambda spent, held: 7) > 0
    assert store.spent([Limit("since", stamp(NOON), None, "", "")]) == [7]
