"""A daemon with an MCP server: from its section of the configuration to tools that are offered."""

from __future__ import annotations

import json
import shutil

from tests.conftest import eventually
from tests.mcp_desk import PROGRAM
from tests.test_daemon import home  # noqa: F401

SECTION = """
[mcp.servers.plain]
command = "python3"
args = ["mcp_program.py"]
env = { KEY = "env:PLAIN_KEY" }
tools = ["add", "environment"]
"""


def test_a_server_of_the_configuration(home):  # noqa: F811
    with (home.folder / "agent.toml").open("a") as file:
        file.write(SECTION)
    home.run("key", "set", "PLAIN_KEY", input="a-key-for-the-server\n")
    home.run("start", "--detach")
    shutil.copy(PROGRAM, home.workspace / "shared")
    (home.workspace / "shared" / PROGRAM.name).chmod(0o644)
    eventually(lambda: home.status()["startup_status"].get("shell_available"))
    assert "not trusted" in home.run("mcp-servers", "list")
    rows = home.status()["startup_status"]["degraded_reasons"]
    assert "mcp_untrusted" in [row["code"] for row in rows]
    assert (
        "Nothing was changed" in home.command("mcp-servers", "trust", "plain", input="n\n").stdout
    )
    shown = home.run("mcp-servers", "trust", "plain", "--yes")
    assert "Add two numbers." in shown and "everything" not in shown
    (row,) = json.loads(home.run("mcp-servers", "list", "--json"))
    names = ["add", "environment", "resources", "prompts"]
    assert row["tools"] == [f"mcp__plain__{name}" for name in names]
    assert (row["state"], row["trusted"]) == ("running", True)
    (agent,) = home.status()["mcp"]
    assert agent["tools"] == row["tools"]
    assert "  mcp       plain: running, 4 tools" in home.run("status").splitlines()
    assert "a line of its log" in home.run("mcp-servers", "logs", "plain")
    # a restart begins no server: what was trusted is kept
    home.run("restart")
    (row,) = json.loads(home.run("mcp-servers", "list", "--json"))
    assert row["state"] == "idle" and len(row["tools"]) == 4
    assert "a-key-for" not in (home.workspace / "logs" / "runtime.log").read_text()
    home.run("mcp-servers", "distrust", "plain")
    assert "not trusted" in home.run("mcp-servers", "list")
