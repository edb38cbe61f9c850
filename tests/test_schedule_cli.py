"""`oxydra-runner schedule` against a real daemon with the offline provider: every form of it."""

from __future__ import annotations

import json

import pytest

from oxydra import cli
from tests.conftest import eventually
from tests.test_daemon import Home


@pytest.fixture
def ask(tmp_path, capsys):
    """Run a command; what it prints, as JSON where that was asked for, or the error."""
    home = Home(tmp_path / "home")
    home.path.mkdir()
    home.init()
    home.run("start", "--detach")

    def run(*words, code=0):
        capsys.readouterr()
        assert cli.runner(["--config", str(home.config), *words]) == code
        out, err = capsys.readouterr()
        return err if code else json.loads(out) if "--json" in words else out

    yield run
    home.run("stop")


def test_every_form_of_the_command(ask, tmp_path):
    def schedule(*words, **options):
        return ask("schedule", *words, **options)

    assert schedule("list") == "Nothing is scheduled.\n"
    goal = tmp_path / "goal.txt"
    goal.write_text("say\nhello\n")
    news = schedule(
        *("create", "--cron", "0 9 * * mon-fri", "--tz", "Europe/Berlin", "--name", "news"),
        *("--notify", "always", f"@{goal}", "--json"),
    )
    assert (news["goal"], news["notification"], news["timezone"]) == (
        "say\nhello",
        "always",
        "Europe/Berlin",
    )
    assert [at[11:19] for at in news["next_runs"]] == ["09:00:00"] * 3
    often = schedule("create", "--every", "3600", "look around", "--json")
    once = schedule("create", "--at", "2199-12-24T18:00:00+01:00", "wait", "--json")
    assert once["next_runs"] == ["2199-12-24T17:00:00+00:00"]
    listed = schedule("list", "--json")
    assert [row["goal"] for row in listed["schedules"]][-1] == "wait" and listed["total"] == 3
    assert "look around" in schedule("list")

    assert "7200" in schedule("edit", "news", "--every", "7200", "--goal", "another goal")
    shown = schedule("show", "news", "--json")
    assert (shown["cadence_value"], shown["goal"], shown["name"]) == (
        "7200",
        "another goal",
        "news",
    )
    assert schedule("show", "news").count("next: ") == 3
    assert schedule("pause", "news", "--json")["status"] == "paused"
    assert schedule("resume", "news", "--json")["status"] == "active"

    run = schedule("run-now", often["schedule_id"], "--json")
    eventually(
        lambda: schedule("runs", often["schedule_id"], "--json")["runs"][0]["state"] == "ran"
    )
    assert "  ran  " in schedule("runs", often["schedule_id"])
    found = schedule("output", str(run["run_id"]), "--json")
    assert found["output"] and found["next_runs"]
    assert found["output"].strip()[:20] in schedule("output", str(run["run_id"]))
    assert ask("cost", "--by", "schedule", "--json")["rows"][0]["name"] == often["schedule_id"]

    assert schedule("delete", once["schedule_id"], "--json") == {"deleted": once["schedule_id"]}
    assert "was deleted" in schedule("delete", "news")
    assert "`oxydra-runner schedule list`" in schedule("show", "news", code=1)
    assert "can't be read" in schedule("create", "--every", "3600", "@nowhere", code=2)
