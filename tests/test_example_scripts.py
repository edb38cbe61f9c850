"""The scripts of examples/: each is run as it stands, with the offline model or a fake service."""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.fake_telegram import TOKEN, FakeTelegram
from tests.test_daemon import Home

EXAMPLES = ROOT / "examples"
SAYS = {
    "library": ("notes.txt", "Milk, bread, and a new bell."),
    "custom_tool": ("May it run light_switch?", "room: kitchen", "{'kitchen': 'on', 'hall': 'on'}"),
    "custom_provider": ("hello the world", "'cost_usd'"),
    "memory": ("The spare key is with Mrs. Novak", "the boiler is serviced in March"),
    "delegation": ("reader: tool_execution", "The bell is bought on Friday."),
    "cron_report": ("report-",),
}


def run(name: str, folder: Path, *arguments: str, said: str = "") -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    return subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *arguments],
        input=said,
        capture_output=True,
        text=True,
        env=env,
        cwd=folder,
        timeout=300,
    )


def test_each_is_run_here_and_listed() -> None:
    there = {path.stem for path in EXAMPLES.glob("*.py")}
    assert there == {*SAYS, "gateway_client", "telegram_setup"}
    listed = (EXAMPLES / "README.md").read_text()
    assert set(re.findall(r"\((\w+)\.py\)", listed)) == there


@pytest.mark.parametrize("name", SAYS)
def test_it_does_what_it_says(name: str, tmp_path: Path) -> None:
    done = run(name, tmp_path)
    assert done.returncode == 0, done.stderr
    for words in SAYS[name]:
        assert words in done.stdout, done.stdout


def test_the_report_is_made_once_a_day(tmp_path: Path) -> None:
    first = run("cron_report", tmp_path)
    (report,) = (tmp_path / "assistant" / "workspaces").glob("*/shared/report-*.txt")
    day = report.stem.removeprefix("report-")
    assert report.read_text() == f"All is well on {day}." and datetime.date.fromisoformat(day)
    report.unlink()
    again = run("cron_report", tmp_path)
    if day == datetime.date.today().isoformat():  # else it is the next day's, rightly
        assert again.stdout == first.stdout and not report.exists(), "answered, not done again"


def test_a_client_in_forty_lines(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.init()
    home.run("start", "--detach")
    try:
        (home.workspace / "shared" / "bell.txt").write_text("")
        question = "list the files in /shared"
        done = run("gateway_client", tmp_path, str(home.workspace), "alice", question)
        assert done.returncode == 0, done.stderr
        assert "bell.txt" in done.stdout
    finally:
        home.run("stop")
    source = (EXAMPLES / "gateway_client.py").read_text().split('"""', 2)[2]
    assert len(source.splitlines()) <= 40


def test_a_bot_is_set_up(tmp_path: Path) -> None:
    with FakeTelegram() as fake:
        at = ("--api-url", fake.url)
        nobody = run("telegram_setup", tmp_path, *at, said=f"{TOKEN}\n")
        assert nobody.returncode == 1 and "Nobody has written to @oxydra_bot" in nobody.stderr
        fake.says("hello", who=42)
        done = run("telegram_setup", tmp_path, *at, said=f"{TOKEN}\n")
        assert done.returncode == 0, done.stderr
        assert "oxydra-runner key set TELEGRAM_BOT_TOKEN" in done.stdout
        assert 'senders = [{ platform_ids = ["42"] }]   # P42' in done.stdout
        assert TOKEN not in done.stdout + done.stderr
        wrong = run("telegram_setup", tmp_path, *at, said="1:wrong\n")
        assert wrong.returncode == 1 and "Telegram says: Unauthorized" in wrong.stderr
