"""When schedules are due, against croniter and against a clock that is read minute by minute."""

import datetime
import random
from zoneinfo import ZoneInfo

import pytest

from oxydra import cadence
from oxydra.errors import UsageError

ZONES = (
    *("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"),
    *("Africa/Cairo", "Pacific/Apia", "Asia/Tehran", "Antarctica/Troll", "America/St_Johns"),
    *("Europe/Dublin", "Africa/Casablanca", "Asia/Gaza", "Pacific/Chatham", "America/Havana"),
    *(
        "America/Santiago",
        "Asia/Kathmandu",
        "Pacific/Kiritimati",
        "America/Sao_Paulo",
        "Asia/Tokyo",
    ),
)
NAMES = cadence._DAYS, cadence._MONTHS
START = 1_000_000_000


def utc(text):
    return cadence.moment_of(text)


def due(value, zone, since, count):
    found = cadence.upcoming(cadence.parse("cron", value, zone), utc(since), count)
    return [cadence.local(at, ZoneInfo(zone)) for at in found]


# ------------------------------------------------------------------------- another implementation


def field(rng, least, most, names=()):
    kind = rng.random()
    if kind < 0.35:
        return "*"
    if kind < 0.5:
        return f"*/{rng.randint(2, most)}"
    parts = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        first = rng.randint(least, most)
        part = str(first)
        if names and rng.random() < 0.4:
            part = names[first - least]
        elif first < most and rng.random() < 0.3:
            last = rng.randint(first + 1, most)
            part = f"{first}-{last}"
            if rng.random() < 0.5:
                part += f"/{rng.randint(1, last - first)}"
        parts.append(part)
    return ",".join(parts)


def expression(rng):
    return " ".join(
        (
            field(rng, 0, 59),
            field(rng, 0, 23),
            field(rng, 1, 28) if rng.random() < 0.4 else "*",
            field(rng, 1, 12, NAMES[1]) if rng.random() < 0.4 else "*",
            field(rng, 0, 6, NAMES[0]) if rng.random() < 0.5 else "*",
        )
    )


def agree(seed, many):
    """The next three due times of random expressions are those of croniter, where the clocks of
    the zone are not changed in between; what is due on clocks that are is tested below.
    """
    croniter = pytest.importorskip("croniter", reason="needs croniter").croniter
    rng = random.Random(seed)
    compared = 0
    while compared < many:
        text, zone = expression(rng), ZoneInfo(rng.choice(ZONES))
        since = rng.randint(START, START + 40 * 366 * 86_400 // 2)
        found = cadence.upcoming(cadence.parse("cron", text, zone.key), since)
        wall = datetime.datetime.fromtimestamp(since, zone)
        other = croniter(text, wall.replace(tzinfo=None), implement_cron_bug=True)
        expected = [other.get_next(datetime.datetime) for _ in range(3)]
        if any(changes(each, zone) for each in (wall.replace(tzinfo=None), *expected)):
            continue
        shown = [datetime.datetime.fromtimestamp(at, zone).replace(tzinfo=None) for at in found]
        assert shown == expected, (text, zone.key, since)
        compared += 1


def changes(wall, zone):
    """Whether the clocks are put forward or back within some hours of it."""
    hours = datetime.timedelta(hours=26)
    around = (wall - hours, wall, wall + hours)
    return len({each.replace(tzinfo=zone).utcoffset() for each in around}) > 1


def test_due_times_are_those_of_an_independent_implementation():
    agree(1, 500)


@pytest.mark.slow
def test_twelve_thousand_due_times_are_those_of_an_independent_implementation():
    agree(2, 12_000)


# --------------------------------------------------------------------------------- clock changes


def read_off(text, zone, since, until):
    """What is due, by looking at the zone's clocks at every minute: the documented rule again,
    without any arithmetic of time zones.
    """
    cron, key = cadence.parse("cron", text, zone), ZoneInfo(zone)

    def fits(wall):
        inside = wall.minute in cron.minutes and wall.hour in cron.hours
        return inside and wall.month in cron.months and cron._fits(wall.date())

    found, before, latest = [], None, None
    for moment in range(since // 60 * 60, until, 60):
        wall = datetime.datetime.fromtimestamp(moment, key).replace(tzinfo=None)
        left_out = []
        if before is not None and not cron.passing:
            left_out = [
                before + datetime.timedelta(minutes=n)
                for n in range(1, int((wall - before).total_seconds()) // 60)
            ]
        again = latest is not None and wall <= latest
        if any(map(fits, left_out)) or (fits(wall) and (cron.passing or not again)):
            found.append(moment)
        before, latest = wall, wall if latest is None else max(wall, latest)
    return [moment for moment in found if moment > since]


@pytest.mark.parametrize(
    ("zone", "day"),
    [
        ("Europe/Berlin", "2026-03-29"),
        ("Europe/Berlin", "2026-10-25"),
        ("America/New_York", "2026-03-08"),
        ("America/New_York", "2026-11-01"),
        ("Australia/Lord_Howe", "2026-04-05"),
        ("Australia/Lord_Howe", "2026-10-04"),
        ("America/Sao_Paulo", "2018-11-04"),  # there is no midnight
        ("Antarctica/Troll", "2026-10-25"),  # two hours
        ("Pacific/Apia", "2011-12-30"),  # there is no such day
    ],
)
def test_around_a_clock_change_each_due_time_is_what_the_clocks_show(zone, day):
    rng = random.Random(day)
    since = utc(f"{day}T00:00:00Z") - 36 * 3600
    until = since + 4 * 86_400
    for text in ("*/20 * * * *", "30 2 * * *", "0 0-3 * * *", "15,45 1,2,3 * * *"):
        _same(text, zone, since, until, rng)
    for _ in range(6):
        text = f"{field(rng, 0, 59)} {field(rng, 0, 3)} * * *"
        _same(text, zone, since, until, rng)


def _same(text, zone, since, until, rng):
    expected = read_off(text, zone, since, until)
    cron = cadence.parse("cron", text, zone)
    found, at = [], since
    while (at := cron.after(at)) is not None and at < until:
        found.append(at)
    assert found == expected, text
    for _ in range(20):  # and from wherever one begins
        moment = rng.randrange(since, until)
        later = [each for each in expected if each > moment]
        if later:
            assert cron.after(moment) == later[0], (text, moment)


def test_what_an_hour_left_out_holds_is_due_once_at_the_change():
    found = due("*/15 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", 2)
    assert found == ["2026-03-29T03:00:00+02:00", "2026-03-30T02:00:00+02:00"]
    found = due("0 * * * *", "Europe/Berlin", "2026-03-29T00:30:00Z", 1)
    assert found == ["2026-03-29T03:00:00+02:00"]


def test_what_an_hour_that_comes_twice_holds_is_due_once():
    found = due("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2)
    assert found == ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]
    found = due("30 * * * *", "Europe/Berlin", "2026-10-25T00:00:00Z", 3)
    assert [each[11:] for each in found] == [
        "02:30:00+02:00",
        "02:30:00+01:00",
        "03:30:00+01:00",
    ]


# ------------------------------------------------------------------------------- what is accepted


def test_either_day_is_enough_only_where_both_are_named():
    both = due("0 0 13 * fri", "UTC", "2026-02-01T00:00:00Z", 3)
    assert [each[:10] for each in both] == ["2026-02-06", "2026-02-13", "2026-02-20"]
    stepped = due("0 0 13 * */5", "UTC", "2026-02-01T00:00:00Z", 2)
    assert [each[:10] for each in stepped] == ["2026-02-13", "2026-03-13"]


def test_sunday_has_two_numbers_and_leap_days_come():
    week = due("0 0 * * 6-7", "UTC", "2026-02-02T00:00:00Z", 2)
    assert [each[:10] for each in week] == ["2026-02-07", "2026-02-08"]
    assert due("0 0 * * sat-sun", "UTC", "2026-02-02T00:00:00Z", 2) == week
    assert due("0 0 29 feb *", "UTC", "2096-03-01T00:00:00Z", 1)[0][:10] == "2104-02-29"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "* * * *",
            "* * * * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
        ),
        *(
            "* * * * 8",
            "*/0 * * * *",
            "5-1 * * * *",
            "a * * * *",
            "1, * * * *",
            "* * 30 2 *",
        ),
        *(
            "* * * * mon-foo",
            "-1 * * * *",
            "1--2 * * * *",
            "٣ * * * *",
            "@daily",
            "* * 31 4,6 *",
        ),
    ],
)
def test_what_is_no_cron_expression_is_refused(text):
    with pytest.raises(UsageError):
        cadence.parse("cron", text, "UTC")


def test_an_interval_counts_from_its_anchor_and_has_a_least():
    every = cadence.parse("interval", "600", "UTC", 1000, 60)
    assert [every.after(at) for at in (0, 1000, 1599, 1600)] == [400, 1600, 1600, 2200]
    for value in ("59", "0", "-600", "6e2", "", "99999999999"):
        with pytest.raises(UsageError):
            cadence.parse("interval", value, "UTC", 0, 60)


def test_once_is_a_moment_with_an_offset():
    once = cadence.parse("once", "2026-03-01T09:00:00+01:00", "UTC")
    at = utc("2026-03-01T08:00:00Z")
    assert (once.after(at - 1), once.after(at)) == (at, None)
    for text in (
        "2026-03-01T09:00:00",
        "2026-03-01",
        "tomorrow",
        "",
        "2026-02-30T00:00:00Z",
    ):
        with pytest.raises(UsageError):
            cadence.parse("once", text, "UTC")


@pytest.mark.parametrize("zone", ["", "Mars/Base", "../../etc/passwd", "/etc/localtime", "a\0b"])
def test_a_zone_that_there_is_not_is_refused(zone):
    with pytest.raises(UsageError):
        cadence.parse("cron", "* * * * *", zone)
