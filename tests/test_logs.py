"""Reading logs back: from the daemon and from its files, whatever a guest wrote into them."""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys

import pytest

from oxydra.cli.logs import since
from oxydra.errors import UsageError
from oxydra.frames import MAX_PACKED, pack
from oxydra.runner.logfiles import LogFiles
from oxydra.runner.logs import (
    FILES,
    MAX_LINE,
    MAX_LINES,
    MAX_READ,
    Answer,
    read,
    request,
)
from oxydra.runner.workspace import Workspace
from tests.conftest import eventually
from tests.test_daemon import RUNNER, Home


@pytest.fixture
def workspace(tmp_path):
    made = Workspace(tmp_path / "users", "alice")
    made.prepare()
    return made


def record(second, text, level="INFO"):
    return f"2026-11-25T10:00:{second:02d}.000Z {level} oxydra-runner some.module: {text}\n"


def write(workspace, role, text):
    with (workspace.logs / FILES[role]).open("a", encoding="utf-8") as file:
        file.write(text)


def texts(answer):
    return [line.text.rpartition(": ")[2] for line in answer.lines]


# ------------------------------------------------------------------------------------------ reading


def test_roles_are_merged_by_time(workspace):
    write(workspace, "runner", record(1, "a") + record(3, "c"))
    write(workspace, "runtime", record(2, "b"))
    answer = read(workspace)
    assert texts(answer) == ["a", "b", "c"]
    assert [line.role for line in answer.lines] == ["runner", "runtime", "runner"]
    assert texts(read(workspace, "runtime")) == ["b"]
    assert texts(read(workspace, tail=2)) == ["b", "c"]
    assert read(workspace, tail=0).lines == []
    assert texts(read(workspace, since="2026-11-25T10:00:02.000Z")) == ["b", "c"]
    assert read(workspace, "shell").lines == []
    with pytest.raises(UsageError, match="no log"):
        read(workspace, "../../etc/passwd")


def test_what_follows_a_record_belongs_to_it(workspace):
    write(workspace, "runner", record(1, "failed", "ERROR") + "Traceback:\n  File x\n")
    write(workspace, "runtime", record(2, "later"))
    rows = read(workspace).lines
    assert [row.text for row in rows][1:3] == ["Traceback:", "  File x"]
    assert {(row.time, row.level) for row in rows[:3]} == {("2026-11-25T10:00:01.000Z", "ERROR")}


def test_going_on_where_one_was(workspace):
    write(workspace, "runner", record(1, "a"))
    first = read(workspace)
    assert read(workspace, after=first.after).lines == []
    write(workspace, "runner", record(2, "b") + "half a li")
    write(workspace, "shell", record(3, "new file"))
    second = read(workspace, after=first.after)
    assert texts(second) == ["b", "new file"]
    write(workspace, "runner", "ne\n")
    assert texts(read(workspace, after=second.after)) == ["half a line"]
    log = workspace.logs / "runner.log"
    log.rename(log.with_suffix(".log.1"))
    write(workspace, "runner", record(4, "c"))
    assert "c" in texts(read(workspace, after=second.after))


def test_all_of_a_fast_log_is_followed_in_parts(workspace):
    write(workspace, "runner", record(0, "start"))
    answer = read(workspace)
    write(workspace, "runner", "".join(record(1, str(n)) for n in range(3 * MAX_LINES)))
    seen = []
    for _ in range(20):
        answer = read(workspace, after=answer.after)
        seen += texts(answer)
        if not answer.more:
            break
    assert seen == [str(n) for n in range(3 * MAX_LINES)]


def test_what_was_turned_over_is_followed_and_shown(workspace):
    files = LogFiles(workspace.logs, most=100)
    write(workspace, "runner", record(1, "a"))
    first = read(workspace)
    write(workspace, "runner", record(2, "b") + record(3, "c"))
    files.look()
    assert (workspace.logs / "runner.log").stat().st_size == 0
    assert texts(read(workspace)) == ["a", "b", "c"]
    second = read(workspace, after=first.after)
    assert texts(second) == ["b", "c"] and not second.more
    write(workspace, "runner", record(4, "d"))
    assert texts(read(workspace)) == ["a", "b", "c", "d"]
    assert texts(read(workspace, after=second.after)) == ["d"]
    write(workspace, "runner", record(5, "e") + record(6, "f"))
    files.look()
    write(workspace, "runner", record(7, "g"))
    seen, answer = [], second
    while True:
        answer = read(workspace, after=answer.after)
        seen += texts(answer)
        if not answer.more:
            break
    assert seen == ["d", "e", "f", "g"]


# ---------------------------------------------------------------------------------- hostile files


@pytest.mark.parametrize("trick", ["link", "hard link", "fifo", "folder"])
def test_what_is_no_log_is_not_read(workspace, tmp_path, trick):
    secret = tmp_path / "secret"
    secret.write_text("the secret\n")
    log = workspace.logs / "runtime.log"
    if trick == "link":
        log.symlink_to(secret)
    elif trick == "hard link":
        os.link(secret, log)
    elif trick == "fifo":
        os.mkfifo(log)
    else:
        log.mkdir()
    write(workspace, "runner", record(1, "a"))
    answer = read(workspace)
    assert "the secret" not in str(answer)
    assert answer.lines[0].text.startswith("runtime.log is not read: ")
    assert texts(answer)[-1] == "a"
    assert read(workspace, after=answer.after).lines == []


@pytest.mark.parametrize(
    "text",
    ["\x01" * (2 * MAX_READ), "\x01\n" * MAX_READ, "\U0001f600" * MAX_READ, "\n" * MAX_READ, "\0"],
    ids=["one line", "short lines", "wide", "empty lines", "nul"],
)
def test_any_answer_fits_a_frame(workspace, text):
    for role in FILES:
        write(workspace, role, text)
    answer = read(workspace)
    write(workspace, "runner", text)
    for one in (answer, read(workspace, after=answer.after), read(workspace, after={})):
        assert len(pack("logs", one.to_json())) < MAX_PACKED
        assert all(len(line.text) < MAX_LINE + 100 for line in one.lines)
        assert Answer.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_a_line_without_an_end_holds_nothing_up(workspace):
    write(workspace, "runner", "x" * (3 * MAX_READ))
    answer = read(workspace, after={})
    seen = len(answer.lines)
    while answer.more:
        answer = read(workspace, after=answer.after)
        seen += len(answer.lines)
    assert seen == 3


@pytest.mark.parametrize(
    "payload",
    [{"role": 1}, {"tail": "3"}, {"tail": -1}, {"tail": True}, {"since": 0}, {"after": []}]
    + [{"after": {"runner": at}} for at in (3, [1], [1, 2], ["1", 2, 3], None)],
)
def test_a_wrong_request_is_refused(payload):
    with pytest.raises(UsageError):
        request(payload)


# -------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("90s", "2026-11-25T11:58:30.500Z"),
        ("10m", "2026-11-25T11:50:00.500Z"),
        ("3d", "2026-11-22T12:00:00.500Z"),
        ("2026-11-25T10:00:00+02:00", "2026-11-25T08:00:00.000Z"),
        ("2026-11-25T10:00:00Z", "2026-11-25T10:00:00.000Z"),
    ],
)
def test_since(text, says):
    now = datetime.datetime(2026, 11, 25, 12, 0, 0, 500_000, tzinfo=datetime.UTC)
    assert since(text, now) == says


@pytest.mark.parametrize("text", ["10", "m", "-3m", "999999999d", "yesterday", "2026-13-01"])
def test_since_what(text):
    with pytest.raises(UsageError, match="is no time"):
        since(text, datetime.datetime.now(datetime.UTC))


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path)
    home.init()
    yield home
    done = home.command("stop")
    assert done.returncode in (0, 3), done.stderr


def test_with_a_daemon_and_without(home):
    assert home.run("logs") == ""
    home.env["OPENAI_API_KEY"] = secret = "sk-canary-0123456789abcdef"
    home.run("start", "--detach")
    with (home.workspace / "logs" / "shell.log").open("a") as file:
        file.write(f"\x1b]0;title\x07 {secret}\n")
    said = home.run("logs")
    assert "ready at ws://" in said and "runner  " in said and "shell   " in said
    assert "\x1b" not in said and secret not in said
    assert "\x1b" in home.run("logs", "--role", "shell", "--raw")
    rows = [json.loads(line) for line in home.run("logs", "--json").splitlines()]
    assert {"runner", "shell"} <= {row["role"] for row in rows}
    assert home.run("logs", "--since", "2100-01-01T00:00:00Z") == ""
    home.run("stop")
    assert "ready at ws://" in home.run("logs", "--role", "runner", "--tail", "100")
    assert len(home.run("logs", "--role", "runner", "--tail", "1").splitlines()) == 1
    assert "is no time" in home.fails("logs", "--since", "x", code=2)


def test_as_json(home):
    home.env["OPENAI_API_KEY"] = secret = "sk-canary-0123456789abcdef"
    home.run("--log-format", "json", "start", "--detach")
    home.run("ask", "hello", code=1)  # there is no network: the guest warns of it
    home.run("restart")  # as runner.toml says: text
    for role, component in (("runner", "oxydra-runner"), ("runtime", "oxydra-vm")):
        text = (home.workspace / "logs" / f"{role}.log").read_text()
        rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        assert all(row["component"] == component for row in rows)
        assert all({"time", "level", "logger", "message"} <= set(row) for row in rows)
        assert secret not in text
    runner = [json.loads(line) for line in home.run("logs", "--json").splitlines()]
    ready = [row for row in runner if "ready at ws://" in row["text"]]
    assert [("record" in row, row["level"]) for row in ready] == [(True, "INFO"), (False, "INFO")]
    assert ready[0]["record"]["message"].startswith("ready at ws://")
    assert ready[0]["time"] == ready[0]["record"]["time"]


def test_following_through_a_restart_until_ctrl_c(home):
    home.run("start", "--detach")
    out = home.path / "followed"
    with out.open("wb") as file:
        command = [sys.executable, RUNNER, *home.at(("logs", "--follow", "--tail", "0"))]
        follower = subprocess.Popen(command, stdout=file, stderr=subprocess.PIPE, env=home.env)
    shell = home.workspace / "logs" / "shell.log"

    def shows(text):
        with shell.open("a") as file:
            file.write(f"{text}\n")
        return text in out.read_text()

    try:
        eventually(lambda: shows("with a daemon"))
        home.run("stop")
        eventually(lambda: shows("without one"))
        home.run("start", "--detach")
        eventually(lambda: "ready at ws://" in out.read_text())
        eventually(lambda: shows("with the next"))
    finally:
        follower.send_signal(signal.SIGINT)
        _, said = follower.communicate(timeout=90)
    assert (follower.returncode, said) == (130, b"")
