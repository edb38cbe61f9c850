"""Several users of one installation: a daemon each; what happens to one is nothing to others."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import sqlite3
from urllib.parse import urlsplit

import pytest

from tests.conftest import eventually
from tests.test_daemon import Home


@pytest.fixture
def house(tmp_path):
    """A configuration for alice and bob."""
    house = Home(tmp_path)
    house.init()
    add_user(house, "bob")
    yield house
    done = house.command("stop", "--all")
    assert done.returncode in (0, 1, 2, 3), done.stderr
    assert "Traceback" not in done.stderr


def add_user(house, name, text=""):
    house.add("runner.toml", f'\n[users.{name}]\nconfig_path = "users/{name}.toml"\n')
    path = house.folder / "users" / f"{name}.toml"
    path.write_text(text)
    path.chmod(0o600)


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


def space(house, user):
    return house.workspace.parent / user


def statuses(house, code=0):
    rows = json.loads(house.run("status", "--all", "--json", code=code))
    return {row["user_id"]: row for row in rows}


def test_each_has_a_daemon_a_token_a_port_and_a_database(house):
    assert "More than one user" in house.fails("start", "--detach", code=2)
    said = house.run("start", "--all")
    assert [line.split(":")[0] for line in said.splitlines()] == ["alice", "bob"]
    found = statuses(house)
    assert all(row["healthy"] for row in found.values())
    for key in ("runner_pid", "guest_pid", "gateway_endpoint"):
        assert found["alice"][key] != found["bob"][key]
    tokens = {user: (space(house, user) / "ipc" / "gateway-token").read_text() for user in found}
    assert tokens["alice"] != tokens["bob"]
    asked = json.loads(house.run("--user", "alice", "ask", "hello", "--json"))
    sessions = {}
    house.run("stop", "--all")
    for user in found:
        with sqlite3.connect(space(house, user) / "internal" / "oxydra.db") as database:
            sessions[user] = [row[0] for row in database.execute("select session_id from sessions")]
    assert asked["session"]["session_id"] in sessions["alice"]
    assert asked["session"]["session_id"] not in sessions["bob"]


def test_one_users_token_opens_nothing_of_anothers(house):
    house.run("start", "--all")
    found = statuses(house)
    for owner in found:
        token = (space(house, owner) / "ipc" / "gateway-token").read_text().strip()
        for user, row in found.items():
            where = urlsplit(row["gateway_endpoint"])
            connection = http.client.HTTPConnection(where.hostname, where.port, timeout=60)
            with contextlib.closing(connection):
                headers = UPGRADE | {"Authorization": f"Bearer {token}"}
                connection.request("GET", "/ws", headers=headers)
                assert connection.getresponse().status == (101 if user == owner else 401)


def test_what_happens_to_one_is_nothing_to_the_other(house):
    house.run("start", "--all")
    before = statuses(house)["bob"]
    house.run("--user", "alice", "restart")
    house.run("--user", "alice", "stop")
    os.kill(before["runner_pid"], 0)
    house.run("--user", "alice", "start", "--detach")
    pid = statuses(house)["alice"]["runner_pid"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not statuses_of(house, "alice"), what="alice's daemon is gone")
    after = statuses(house, code=3)["bob"]
    assert (after["runner_pid"], after["guest_pid"]) == (before["runner_pid"], before["guest_pid"])
    assert after["healthy"] and not after["guest_restarts"]


def statuses_of(house, user):
    return house.command("--user", user, "status").returncode == 0


def test_who_fails_does_not_stop_the_others(house):
    add_user(house, "aaron", "[behaviour]\n")
    add_user(house, "carol")
    done = house.command("start", "--all")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("oxydra: aaron: ") and "'behavior'" in line
    assert [row.split(":")[0] for row in done.stdout.splitlines()] == ["alice", "bob", "carol"]
    house.run("--user", "bob", "stop")
    done = house.command("status", "--all")
    assert done.returncode == 3
    assert "alice: healthy" in done.stdout and "carol: healthy" in done.stdout
    assert "oxydra: bob: No daemon" in done.stderr
    pid = json.loads(house.run("--user", "alice", "status", "--json"))["runner_pid"]
    done = house.command("start", "--all")
    assert done.returncode == 2 and "oxydra: alice: Oxydra is already running" in done.stderr
    assert json.loads(house.run("--user", "alice", "status", "--json"))["runner_pid"] == pid
    done = house.command("restart", "--all")
    assert done.returncode == 2 and "carol: ready at" in done.stdout
    assert house.command("stop", "--all").returncode == 2  # aaron's file is still broken
    assert not [user for user in ("alice", "bob", "carol") if statuses_of(house, user)]


def test_all_is_not_for_one(house):
    assert "--all and --user" in house.fails("--user", "bob", "stop", "--all", code=2)


@pytest.mark.slow
def test_ten_users_of_one_host_are_separated_and_take_less_than_four_gigabytes(tmp_path):
    from tests.bench.users import house_of, memory_of  # it stands on this file

    house, names = house_of(tmp_path, 10)
    house.run("start", "--all")
    try:
        secrets = {}
        for name in names:
            place = space(house, name)
            for folder in ("shared", "vault", "internal"):
                secrets[name, folder] = place / folder / "secret.txt"
                secrets[name, folder].write_text(f"secret of {name} in {folder}")
        for number, name in enumerate(names):
            other = names[number - 1]
            wanted = [secrets[other, folder] for folder in ("shared", "vault", "internal")]
            wanted += [space(house, other) / "ipc" / "gateway-token", house.config]
            words = " ".join(f"{path}; cat" for path in wanted)
            steps = [{"tool": "file_read", "arguments": {"path": str(path)}} for path in wanted]
            steps += [
                {"tool": "file_read", "arguments": {"path": f"/shared/../../{other}/shared/x"}},
                {"tool": "shell_exec", "arguments": {"command": f"cat {words} /shared/secret.txt"}},
                {"tool": "shell_exec", "arguments": {"command": "ls -R .."}},
            ]
            script = f"[[script {json.dumps([{'parallel': steps}])}]]"
            told = json.loads(house.run("--user", name, "ask", "--json", script))
            session = told["session"]["session_id"]
            said = house.run("--user", name, "session", "export", session, "--format", "json")
            token = wanted[3].read_text().strip()
            assert f"secret of {name} in shared" in said, "its own it may read"
            assert f"secret of {other}" not in said
            assert token not in said and "config_version" not in said
        megabytes, processes = memory_of(house)
        assert processes >= 20 and megabytes < 4096
    finally:
        house.run("stop", "--all")
