"""The MCP client before programs of others: the conformance suite of the protocol's authors, and
two of their servers in the sandbox.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mcp_desk import LEVELS, desk
from tests.sandbox import missing, sandbox

pytestmark = pytest.mark.slow
BIN = os.environ.get("MCP_CONFORMANCE", "")
CLIENT = Path(__file__).with_name("mcp_conformance_client.py")
LATE = "client-sse-retry-timing"  # on a busy machine it may come late, which decides nothing


def there(name: str) -> Path:
    """Where a package's program is; skips where it is not installed."""
    if not BIN or not (Path(BIN) / name).exists():
        pytest.skip(f"MCP_CONFORMANCE names no folder with {name}")
    return Path(BIN) / name


@pytest.mark.parametrize("scenario", ["initialize", "tools_call", "sse-retry"])
def test_the_scenarios_of_clients(tmp_path, scenario):
    """All but those of OAuth and elicitation, which are not offered."""
    suite = there("conformance")
    command = f"{sys.executable} {CLIENT}"
    subprocess.run(
        [
            *(suite, "client", "--command", command, "--scenario", scenario),
            *("--timeout", "120000", "--output-dir", tmp_path),
        ],
        capture_output=True,
        timeout=300,
        cwd=tmp_path,
        env={"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(tmp_path)},
    )
    (found,) = tmp_path.rglob("checks.json")
    checks = [row for row in json.loads(found.read_text()) if row["status"] != "INFO"]
    failed = [row for row in checks if row["status"] != "SUCCESS" and row["id"] != LATE]
    assert checks and not failed


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """A sandbox whose workspace holds the installed packages."""
    folder = tmp_path_factory.mktemp("node")
    packages = there("mcp-server-filesystem").parent.parent
    level = next(level for level in LEVELS if not missing(level))
    shared = folder / "shared"
    shared.mkdir()
    shutil.copytree(packages, shared / "node_modules", symlinks=True)
    for place in (shared, *shared.rglob("*")):
        if not place.is_symlink():
            place.chmod(0o755)
    own = shared / "node_modules" / "node" / "bin" / "node"
    program = "node_modules/node/bin/node" if own.exists() else "node"
    start = "node_modules/@modelcontextprotocol"
    rows = {
        "files": {"command": [program, f"{start}/server-filesystem/dist/index.js", "."], "env": {}},
        "all": {"command": [program, f"{start}/server-everything/dist/index.js"], "env": {}},
    }
    with sandbox(folder, level, servers=rows) as box:
        yield box


def test_the_filesystem_server(node, tmp_path):
    (node.folder / "shared" / "a.txt").write_text("what is in it")
    with desk(tmp_path, "files", box=node) as made:
        made.look()
        assert not made.trouble(), made.said()
        result = made.call("read_text_file", path="a.txt")
        assert not result.is_error and "what is in it" in result.content
        outside = made.call("read_text_file", path="/etc/passwd")
        assert outside.is_error and "denied" in outside.content.lower()


def test_the_server_of_everything(node, tmp_path):
    there("mcp-server-everything")
    with desk(tmp_path, "all", box=node) as made:
        made.look()
        assert not made.trouble(), made.said()
        assert "hello" in made.call("echo", message="hello").content
        assert made.call("resources").content and made.call("prompts").content
