"""`oxydra-runner approvals`: requests listed and answered from a script, over the gateway."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from oxydra.errors import NoDaemonError, OxydraError
from oxydra.tui.answer import desk, lines
from tests.conftest import ROOT, eventually
from tests.scripted import calls
from tests.test_approvals import ACT, TOKENS, asking  # noqa: F401
from tests.test_daemon import SCRIPT, home, running  # noqa: F401
from tests.test_gateway import Client as GatewayClient

RULES = '\n[[approvals.rules]]\ndecision = "ask"\ntool = "file_write"\n'
ANSI = "a\x1b[2Jb\u202e"


@pytest.fixture
def wanting(home):  # noqa: F811
    """A daemon, and somebody whose turn waits for an approval."""
    home.add("runner.toml", RULES)
    home.run("start", "--detach")
    write = {"path": "/shared/x.txt", "content": ANSI}
    script = SCRIPT % json.dumps([{"tool": "file_write", "arguments": write}])
    words = [sys.executable, str(ROOT / "bin" / "oxydra-runner"), *home.at(("ask", script))]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, **pipes, env=home.env, text=True) as person:
        try:
            yield home, person
        finally:
            person.kill()


def open_requests(home):  # noqa: F811
    return json.loads(home.run("approvals", "list", "--json"))


def waiting(home):  # noqa: F811
    eventually(lambda: open_requests(home))
    (request,) = open_requests(home)
    return request


def test_a_request_is_listed_and_allowed(wanting):
    home, person = wanting  # noqa: F811
    request = waiting(home)
    assert (request["tool"], request["complete"]) == ("file_write", True)
    shown = home.run("approvals", "list")
    assert request["approval_id"] in shown and "path: /shared/x.txt" in shown
    assert "content: a␛[2Jb<U+202E>" in shown and "\x1b" not in shown and "\u202e" not in shown
    said = home.run("approvals", "allow", request["approval_id"], "--for-session")
    assert said == "file_write was allowed, for the session.\n"
    _, told = person.communicate(timeout=60)
    assert person.returncode == 0 and request["approval_id"] in told
    assert (home.workspace / "shared" / "x.txt").read_text() == ANSI
    assert home.run("approvals", "list") == "No request is open.\n"
    assert "allowed already" in home.fails("approvals", "deny", request["approval_id"])


def test_a_request_is_denied(wanting):
    home, person = wanting  # noqa: F811
    request = waiting(home)
    resolved = json.loads(home.run("approvals", "deny", request["approval_id"], "--json"))
    assert (resolved["decision"], resolved["by"]) == ("denied", "local")
    answer, _ = person.communicate(timeout=60)
    assert "did not allow" in answer
    assert not (home.workspace / "shared" / "x.txt").exists()


def test_without_a_daemon_and_without_a_request(home):  # noqa: F811
    assert "oxydra-runner start" in home.fails("approvals", "list", code=3)
    home.run("start", "--detach")
    assert open_requests(home) == []
    assert "no request" in home.fails("approvals", "allow", "0123456789abcdef")


# ---------------------------------------------------------------------------------- over the wire


def located(gateway, token=TOKENS[0]):
    return desk(lambda: (f"ws://127.0.0.1:{gateway.port}/ws", token), "alice")


def test_requests_of_every_session_oldest_first(asking):  # noqa: F811
    gateway = asking(ACT, ACT, "fine", "fine")
    with gateway.client() as one, gateway.client(create_new_session=True) as two:
        one.turn()
        first = one.until("approval_request")["payload"]
        two.turn(turn_id="t2")
        second = two.until("approval_request")["payload"]
        with located(gateway) as there:
            rows = there.requests()
            assert [row["approval_id"] for row in rows] == [
                first["approval_id"],
                second["approval_id"],
            ]
            assert rows[0]["session"]["session_id"] == one.session
            for row in rows:
                there.answer(row["approval_id"], allow=True, for_session=False)
            assert there.requests() == []
        one.until("turn_completed")
        two.until("turn_completed")
    assert gateway.ran == ["x", "x"]


def test_a_token_without_the_scope_sees_nothing(asking):  # noqa: F811
    gateway = asking(ACT, "fine")
    with gateway.client() as client:
        client.turn()
        request = client.until("approval_request")["payload"]
        with located(gateway, TOKENS[1]) as door:
            with pytest.raises(OxydraError, match="scope `approve`"):
                door.requests()
            with pytest.raises(OxydraError, match="scope `approve`"):
                door.answer(request["approval_id"], allow=True, for_session=False)
        assert gateway.ran == []
        client.ask("approve", approval_id=request["approval_id"], decision="deny")
        client.until("turn_completed")


def test_an_unknown_command_names_the_known(asking):  # noqa: F811
    gateway = asking()
    with gateway.client() as client:
        reply = client.ask("command", name="reboot", args={"now": True})
        assert reply["payload"]["code"] == "usage" and "approvals" in reply["payload"]["message"]
    door = GatewayClient(gateway.connect())
    reply = door.ask("command", name="approvals")
    assert reply["payload"]["code"] == "protocol"  # no hello
    door.ws.close()


def test_a_request_that_had_to_be_cut_says_so(asking):  # noqa: F811
    gateway = asking(calls(("act", json.dumps({"what": "x" * 20_000}))), "fine")
    with gateway.client() as client:
        client.turn()
        client.until("approval_request")
        with located(gateway) as there:
            (row,) = there.requests()
            assert any("can only be denied" in line for line in lines([row]))
            with pytest.raises(OxydraError, match="too long"):
                there.answer(row["approval_id"], allow=True, for_session=False)
            there.answer(row["approval_id"], allow=False, for_session=False)
        client.until("turn_completed")


def test_a_daemon_that_goes_away(asking, monkeypatch):  # noqa: F811
    gateway = asking()
    with located(gateway) as there:
        gateway.stop()
        with pytest.raises(NoDaemonError):
            there.requests()
    gateway.start()
