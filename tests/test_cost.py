"""Budgets as a person meets them: `cost`, a refused question, and daemons killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oxydra import config
from oxydra.cli import build_parser
from oxydra.errors import ConfigError
from oxydra.runtime.spending import BY
from oxydra.store import Store
from oxydra.tui import costs
from tests.config_place import Place
from tests.conftest import eventually
from tests.fake_model import FakeModel
from tests.test_daemon import RUNNER, Home, all_killed, home  # noqa: F401

USAGE = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
PAID = 0.036  # of a gpt-4 call: 30 and 60 dollars per million tokens


@pytest.fixture
def fake() -> Iterator[FakeModel]:
    with FakeModel() as fake:
        yield fake


def served(place: Home, fake: FakeModel, budget: str = "", model: str = "gpt-4") -> None:
    """`place` with a priced model that `fake` answers for."""
    providers = place.folder / "providers.toml"
    providers.write_text(
        f'[selection]\nprovider = "mine"\nmodel = "{model}"\n'
        '[providers.registry.mine]\nprovider_type = "openai"\n'
        f'base_url = "{fake.url}"\ncatalog_provider = "openai"\n'
    )
    providers.chmod(0o600)
    runner = place.folder / "runner.toml"
    runner.write_text(runner.read_text().replace("[budget]\n", f"[budget]\n{budget}\n", 1))


def cost(place: Home, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(place.run("cost", "--json", *arguments))
    return found


def test_cost_is_the_same_with_the_daemon_and_without(home: Home, fake: FakeModel) -> None:  # noqa: F811
    served(home, fake, "per_day = 5\nper_turn = 0.7")
    assert cost(home)["today_usd"] == 0, "before the first start"
    home.run("start", "--detach")
    fake.reply("fine", usage=USAGE)
    home.run("ask", "hello")
    running = cost(home)
    assert (running["today_usd"], running["month_usd"]) == (PAID, PAID)
    assert [(row["cap"], row.get("left_usd")) for row in running["caps"]] == [
        ("per_turn", None),
        ("per_day", 5 - PAID),
    ]
    (by_model,) = cost(home, "--by", "model")["rows"]
    assert (by_model["name"], by_model["calls"], by_model["prompt_tokens"]) == (
        "mine/gpt-4",
        1,
        1000,
    )
    status = home.run("status")
    assert f"spent     ${PAID:.4f} of $5.00 today, ${PAID:.4f} this month" in status
    home.run("stop")
    assert cost(home) == running
    assert len(cost(home, "--by", "session")["rows"]) == 1
    assert len(cost(home, "--by", "day")["rows"]) == 1
    assert cost(home, "--by", "schedule")["rows"] == []
    shown = home.run("cost", "--by", "model")
    assert "today         $0.0360" in shown
    assert "$5.00 a day, $4.96 left; it resets at 20" in shown
    assert "mine/gpt-4" in shown


def test_a_question_past_a_cap_is_refused_and_a_user_can_only_narrow(
    home: Home,  # noqa: F811
    fake: FakeModel,
) -> None:
    served(home, fake, "per_day = 5")
    user = home.folder / "users" / "alice.toml"
    user.write_text(user.read_text().replace("[budget]\n", "[budget]\nper_day = 0.01\n", 1))
    home.run("start", "--detach")
    line = home.fails("ask", "hello")
    assert "of the $0.0100 that one day may cost" in line
    assert "Raise [budget] per_day" in line
    assert not fake.requests, "nothing was asked"


def test_nothing_asks_a_model_unless_somebody_asked(home: Home, fake: FakeModel) -> None:  # noqa: F811
    """Neither starts, also after a crash, nor looking, nor an end."""
    served(home, fake, "per_day = 5")
    home.add("agent.toml", '\n[agents.helper]\nsystem_prompt = "Help."\n')
    looks = (["status"], ["cost"], ["session", "list"], ["explain", "prompt"])
    home.run("start", "--detach")
    for command in looks:
        home.run(*command)
    assert not fake.requests
    fake.reply("fine", usage=USAGE)
    home.run("ask", "hello")
    all_killed(home.status())
    home.run("start", "--detach")
    for command in looks:
        home.run(*command)
    home.run("stop")
    assert [request.messages[-1]["content"] for request in fake.requests] == ["hello"]


def test_an_answer_is_shortened_on_the_wire(home: Home, fake: FakeModel) -> None:  # noqa: F811
    served(home, fake, "per_turn = 0.3")
    home.run("start", "--detach")
    fake.reply("fine", usage=USAGE)
    home.run("ask", "hello")
    asked = fake.requests[0].body["max_tokens"]
    assert 1024 <= asked < 8192
    assert asked % 1024 == 0


def test_the_guest_is_killed_between_reservation_and_settlement(
    home: Home,  # noqa: F811
    fake: FakeModel,
) -> None:
    served(home, fake, "per_day = 5")
    home.run("start", "--detach")
    gate = threading.Event()
    fake.reply("Hel", gate, "lo", usage=USAGE)
    fake.reply("fine", usage=USAGE)
    asking = subprocess.Popen(
        [sys.executable, RUNNER, *home.at(("ask", "hello"))],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=home.env,
        cwd=home.path,
    )
    fake.wait_requests(1)
    held = cost(home)
    assert 0.4 < held["reserved_usd"] == held["today_usd"] < 0.7
    os.kill(home.status()["guest_pid"], signal.SIGKILL)
    fake.wait_requests(2)
    eventually(lambda: home.status().get("running_turns") == 0)
    after = cost(home, "--by", "model")
    assert after["reserved_usd"] == 0
    assert after["today_usd"] == pytest.approx(held["reserved_usd"] + PAID)
    (row,) = after["rows"]
    assert (row["calls"], row["guessed"]) == (2, 1)
    gate.set()
    asking.kill()
    asking.communicate()


def test_all_of_it_is_killed_and_the_reservation_counts_until_the_next_start(
    home: Home,  # noqa: F811
    fake: FakeModel,
) -> None:
    served(home, fake, "per_day = 0.9")
    home.run("start", "--detach")
    gate = threading.Event()
    fake.reply("Hel", gate, "lo", usage=USAGE)
    asking = subprocess.Popen(
        [sys.executable, RUNNER, *home.at(("ask", "hello"))],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=home.env,
        cwd=home.path,
    )
    fake.wait_requests(1)
    all_killed(home.status())
    asking.kill()
    asking.communicate()
    gate.set()
    held = cost(home)
    assert 0.4 < held["reserved_usd"] == held["today_usd"]
    fake.reply("fine", usage=USAGE)
    home.run("start", "--detach")
    fake.wait_requests(2)
    eventually(lambda: home.status().get("running_turns") == 0)
    settled = cost(home, "--by", "model")
    assert settled["reserved_usd"] == 0
    assert settled["today_usd"] == pytest.approx(held["today_usd"] + PAID)
    assert settled["rows"][0]["guessed"] == 1
    left = settled["caps"][0]["left_usd"]
    assert left == pytest.approx(0.9 - settled["today_usd"])
    assert fake.requests[1].body["max_tokens"] < 8192, "the rest had to do"


def test_a_database_that_is_a_link_is_not_opened(home: Home, tmp_path: Path) -> None:  # noqa: F811
    other = tmp_path / "other.db"
    Store(other).close()
    before = other.read_bytes()
    home.run("cost")
    database = home.workspace / "internal" / "oxydra.db"
    database.unlink()
    database.symlink_to(other)
    assert home.fails("cost")
    assert other.read_bytes() == before


# ---------------------------------------------------------------------------------- configuration

USERS = '[users.alice]\nconfig_path = "users/alice.toml"\n'


@pytest.mark.parametrize(
    ("runner", "user", "found"),
    [
        ("", "", {"allow_unpriced": False}),
        ("per_day = 5", "per_day = 9", {"per_day": "5", "allow_unpriced": False}),
        ("per_day = 5", "per_day = 1.5", {"per_day": "1.5", "allow_unpriced": False}),
        (
            "per_day = 5\nper_month = 10",
            "per_turn = 0.1",
            {"per_turn": "0.1", "per_day": "5", "per_month": "10", "allow_unpriced": False},
        ),
        ("per_day = 5", "allow_unpriced = true", {"per_day": "5", "allow_unpriced": False}),
        ("per_day = 5\nallow_unpriced = true", "", {"per_day": "5", "allow_unpriced": True}),
        (
            "per_day = 5\nallow_unpriced = true",
            "allow_unpriced = false",
            {"per_day": "5", "allow_unpriced": False},
        ),
        ("", "per_day = 5\nallow_unpriced = true", {"per_day": "5", "allow_unpriced": True}),
        ("allow_unpriced = false", "per_day = 5\nallow_unpriced = true", None),
    ],
)
def test_the_stricter_of_both_files_counts(
    tmp_path: Path, runner: str, user: str, found: dict[str, Any] | None
) -> None:
    place = Place(tmp_path)
    named = place.local_files(runner=f"{USERS}[budget]\n{runner}\n", user=f"[budget]\n{user}\n")
    policy = config.runtime_policy(place.load(named))["budget"]
    assert policy == (found or {"per_day": "5", "allow_unpriced": False})


@pytest.mark.parametrize("wrong", ["per_day = -1", 'per_day = "much"', "per_week = 1"])
def test_a_broken_budget_refuses_to_start(tmp_path: Path, wrong: str) -> None:
    place = Place(tmp_path)
    named = place.local_files(runner=f"{USERS}[budget]\n{wrong}\n")
    with pytest.raises(ConfigError, match=r"runner\.toml"):
        place.load(named)


def test_budgets_are_not_read_from_agent_toml(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with pytest.raises(ConfigError, match="is a limit"):
        place.load(place.local_files(agent="[budget]\nper_day = 100\n"))


def test_what_can_be_asked_for_is_the_same_everywhere() -> None:
    assert costs.BY == BY
    for by in BY:
        assert build_parser().parse_args(["cost", "--by", by]).by == by


def test_what_a_daemon_says_is_shown_without_control_characters() -> None:
    row = {"name": "\x1b[31m", "title": "a\nb", "calls": "x", "cost_usd": None, "unpriced": 2}
    lines = costs.cost_lines({"caps": [{"cap": "\x1b"}], "by": "session", "rows": [row, 7]})
    assert not any("\x1b" in line or "\n" in line for line in lines)
    assert "the price of 2 is not known" in lines[-1]
