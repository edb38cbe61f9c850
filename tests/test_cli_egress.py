"""`oxydra-runner egress`: the log as a person reads it, and what would be decided."""

from __future__ import annotations

import json

import pytest

from oxydra.broker import AuditLog
from oxydra.broker.audit import NAME, Exchange
from tests.test_daemon import Home, home

__all__ = ["home"]  # the fixture


@pytest.fixture
def logged(home: Home) -> Home:
    log = AuditLog(home.workspace / "audit")
    for number in range(3):
        log.add(Exchange("agent", "http", f"GET https://h{number}\x1b[31m", "allowed", status=200))
    log.add(Exchange("shell", "connect", "evil.example:443", "denied", reason="it is not listed"))
    log.close()
    return home


def test_the_log(logged: Home) -> None:
    lines = logged.run("egress", "log").splitlines()
    assert len(lines) == 4
    assert "agent allowed 200 GET https://h0" in lines[0]
    assert "\x1b" not in lines[0]
    assert lines[3].endswith(": it is not listed")
    assert len(logged.run("egress", "log", "--tail", "2").splitlines()) == 2
    rows = [json.loads(line) for line in logged.run("egress", "log", "--json").splitlines()]
    assert [row["verdict"] for row in rows] == ["allowed"] * 3 + ["denied"]


def test_a_changed_log_is_told(logged: Home) -> None:
    assert "4 rows are as they were written" in logged.run("egress", "log", "--verify")
    whole = json.loads(logged.run("audit", "verify", "--json"))
    assert (whole["rows"], whole["problem"]) == (4, None)
    assert logged.run("audit", "verify").endswith(f"Head: {whole['head']}\n")
    logged.run("audit", "verify", "--head", whole["head"])
    other = f"4:{'0' * 64}"
    assert "row 4 is another one" in logged.fails("audit", "verify", "--head", other)
    assert logged.command("audit", "verify", "--head", "4").returncode == 2
    file = logged.workspace / "audit" / NAME
    file.write_bytes(file.read_bytes().replace(b"evil.example", b"good.example"))
    for command in (("audit", "verify"), ("egress", "log", "--verify")):
        said = logged.fails(*command)
        assert "line 4 of egress.jsonl was changed" in said
        assert "stop the daemon and move the files egress.* away" in said
        told = logged.command(*command, "--json")
        assert (told.returncode, json.loads(told.stdout)["rows"]) == (1, 3)


def test_what_would_be_decided(home: Home) -> None:
    runner = home.folder / "runner.toml"
    denied = home.command("egress", "test", "https://example.org")
    assert denied.returncode == 1
    assert "Commands have no network" in denied.stderr
    egress = '[egress]\nshell = "allowlist"\nallow = ["localhost:443", "10.1.2.3:443"]'
    runner.write_text(runner.read_text().replace("[egress]", egress))
    for url, why in (
        ("https://example.org", "not among the destinations"),
        ("https://localhost", "local host"),
        ("https://10.1.2.3", "private"),
        ("http://169.254.169.254/", "not among the destinations"),
        ("file:///etc/passwd", "http"),
    ):
        done = home.command("egress", "test", url)
        assert done.returncode == 1
        assert why in done.stderr, done.stderr
    done = home.command("egress", "test", "--guest", "agent", "http://127.0.0.1/")
    assert done.returncode == 1
    done = home.command("egress", "test", "--guest", "agent", "https://1.1.1.1/x")
    assert (done.returncode, done.stdout) == (0, "allowed: 1.1.1.1:443 at 1.1.1.1\n")
