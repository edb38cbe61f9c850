"""Tokens of the gateway: created, listed, rotated and revoked, with a daemon and without one."""

from __future__ import annotations

import contextlib
import http.client
import json
import stat
import threading
from pathlib import Path

import pytest
import websocket

from oxydra.errors import NotFoundError, OxydraError, UsageError
from oxydra.gateway.access import COMMANDS, SCOPES
from oxydra.runner.tokens import FILE, MOST, Tokens, sha256
from oxydra.runner.workspace import Workspace
from oxydra.scrub.patterns import formats
from tests.test_daemon import home, running  # noqa: F401
from tests.test_gateway import Client


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    workspace = Workspace(tmp_path, "alice")
    workspace.prepare()
    return Tokens(workspace)


def file_of(tokens: Tokens) -> Path:
    return tokens._workspace.ipc / FILE


# ------------------------------------------------------------------------------------- the file


def test_only_a_hash_is_kept(tokens: Tokens) -> None:
    token = tokens.create("phone", ["approve", "chat"])
    text = file_of(tokens).read_text()
    assert token not in text and sha256(token) in text
    assert stat.S_IMODE(file_of(tokens).stat().st_mode) == 0o600
    (row,) = tokens.rows()
    assert (row["name"], row["scopes"]) == ("phone", ["chat", "approve"])
    assert [row["name"] for row in tokens.all_rows()] == ["local", "phone"]
    assert tokens.all_rows()[0]["scopes"] == list(SCOPES)


def test_a_new_value_and_the_end_of_one(tokens: Tokens) -> None:
    first = tokens.create("phone", ["chat"])
    second = tokens.rotate("phone")
    (row,) = tokens.rows()
    assert first != second and row["sha256"] == sha256(second) and row["scopes"] == ["chat"]
    tokens.revoke("phone")
    assert tokens.rows() == []
    for refused in (tokens.revoke, tokens.rotate):
        with pytest.raises(NotFoundError, match="There are: none"):
            refused("phone")


def test_the_local_token_is_rotated_and_never_revoked(tokens: Tokens) -> None:
    before = tokens.all_rows()[0]["sha256"]
    token = tokens.rotate("local")
    assert tokens.all_rows()[0]["sha256"] == sha256(token) != before
    assert tokens._workspace.token() == token
    with pytest.raises(UsageError, match="rotate local"):
        tokens.revoke("local")


@pytest.mark.parametrize("name", ["", "local", "Phone", "a b", "../x", "x" * 65, "-x", "é"])
def test_names(tokens: Tokens, name: str) -> None:
    with pytest.raises(UsageError, match="can't be a token's name"):
        tokens.create(name, ["chat"])
    assert tokens.rows() == []


def test_a_name_is_given_once_and_there_is_an_end(tokens: Tokens) -> None:
    tokens.create("phone", ["chat"])
    with pytest.raises(UsageError, match="token rotate phone"):
        tokens.create("phone", ["admin"])
    rows = tokens.rows()
    many = [{**rows[0], "name": f"n{number}"} for number in range(MOST)]
    file_of(tokens).write_text(json.dumps({"tokens": many}))
    with pytest.raises(UsageError, match="Revoke"):
        tokens.create("another", ["chat"])


GOOD = {"name": "phone", "sha256": "0" * 64, "scopes": ["chat"], "created_at": "2026-11-26"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"tokens": 5}',
        '{"tokens": [5]}',
        *(
            json.dumps({"tokens": [{**GOOD, **wrong}]})
            for wrong in (
                {"name": "local"},
                {"name": None},
                {"sha256": "0"},
                {"scopes": ["root"]},
                {"scopes": None},
                {"created_at": 5},
            )
        ),
    ],
)
def test_a_broken_file_lets_nobody_in(tokens: Tokens, text: str) -> None:
    file_of(tokens).write_text(text)
    for read in (tokens.rows, tokens.all_rows, lambda: tokens.create("x", ["chat"])):
        with pytest.raises(OxydraError, match="broken"):
            read()
    assert file_of(tokens).read_text() == text


def test_a_link_is_not_followed(tokens: Tokens, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text(json.dumps({"tokens": [GOOD]}))
    file_of(tokens).symlink_to(elsewhere)
    with pytest.raises(OxydraError, match="broken"):
        tokens.rows()


def test_many_at_once_lose_none(tokens: Tokens) -> None:
    threads = [
        threading.Thread(target=tokens.create, args=(f"n{number}", ["chat"]), daemon=True)
        for number in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert {row["name"] for row in tokens.rows()} == {f"n{number}" for number in range(12)}


def test_a_token_is_recognised_wherever_it_is_printed(tokens: Tokens) -> None:
    for token in (tokens.create("phone", ["chat"]), tokens.rotate("local")):
        text = f"curl -H 'Authorization: Bearer {token}' http://127.0.0.1/metrics"
        assert [text[begin:end] for begin, end in formats(text)] == [token]
    assert not list(formats("see oxydra_gateway_notes_and_other_names.md"))


# ---------------------------------------------------------------------------- with a real daemon


def port_of(person):
    endpoint = (person.workspace / "ipc" / "gateway-endpoint").read_text().strip()
    return int(endpoint.removesuffix("/ws").rpartition(":")[2])


def metrics(person, token):
    connection = http.client.HTTPConnection("127.0.0.1", port_of(person), timeout=60)
    connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


@contextlib.contextmanager
def client_of(person, token):
    ws = websocket.create_connection(
        f"ws://127.0.0.1:{port_of(person)}/ws",
        header=[f"Authorization: Bearer {token}"],
        timeout=60,
        suppress_origin=True,
    )
    client = Client(ws)
    client.ask("hello", protocol_version=2, user_id="alice")
    try:
        yield client
    finally:
        ws.shutdown()


def test_tokens_of_a_running_daemon(running):  # noqa: F811
    token = running.run("token", "create", "phone", "--scope", "chat", "--scope", "approve").strip()
    assert metrics(running, token)[0] == 200
    rows = json.loads(running.run("token", "list", "--json"))
    assert [(row["name"], row["scopes"]) for row in rows][1] == ("phone", ["chat", "approve"])
    with client_of(running, token) as client:
        assert client.ask("command", name="tokens")["payload"]["code"] == "denied"
        running.run("token", "revoke", "phone")
        opcode, data = client.ws.recv_data()
        assert (opcode, int.from_bytes(data[:2], "big")) == (websocket.ABNF.OPCODE_CLOSE, 4401)
    assert metrics(running, token)[0] == 401
    # it holds for a new agent guest as well
    second = running.run("token", "create", "scraper", "--scope", "none").strip()
    running.run("restart")
    assert metrics(running, token)[0] == 401
    assert metrics(running, second)[0] == 200
    with (
        pytest.raises(websocket.WebSocketBadStatusException, match="403"),
        client_of(running, second),
    ):
        pass


def test_the_local_token_gets_a_new_value_and_everything_goes_on(running):  # noqa: F811
    old = (running.workspace / "ipc" / "gateway-token").read_text().strip()
    running.run("token", "rotate", "local")
    assert metrics(running, old)[0] == 401
    assert running.run("ask", "what is the meaning of life?")


def test_every_command_of_the_table_is_there(running):  # noqa: F811
    """And refuses nothing to the token that has every scope."""
    local = (running.workspace / "ipc" / "gateway-token").read_text().strip()
    with client_of(running, local) as client:
        session = client.ask("create_session")["payload"]["session"]["session_id"]
        for name in COMMANDS:
            args = {"session_id": session, "name": "a name"}
            reply = client.ask("command", name=name, args=args)["payload"]
            # one that wants other arguments says so
            assert reply.get("name") == name or reply["code"] in ("usage", "not_found"), reply
            assert "There is no command" not in reply.get("message", "")
        status, text = metrics(running, local)
    assert status == 200
    assert 'oxydra_turns{state="running"} 0' in text and "oxydra_clients 1" in text


def test_without_a_daemon(home):  # noqa: F811
    token = home.run("token", "create", "laptop").strip()
    assert token.startswith("oxydra_")
    assert "laptop" in home.run("token", "list")
    assert "There are: laptop" in home.fails("token", "revoke", "phone")
    assert "rotate local" in home.fails("token", "revoke", "local", code=2)
    assert "none" in home.fails(
        "token", "create", "x", "--scope", "none", "--scope", "chat", code=2
    )
    made = json.loads(home.run("token", "rotate", "laptop", "--json"))
    assert made["token"] != token and made["running"] is False
    home.run("start", "--detach")
    assert metrics(home, made["token"])[0] == 200
    assert metrics(home, token)[0] == 401
