"""`[mcp.servers]`: what is refused, and where keys go."""

from __future__ import annotations

from pathlib import Path

import pytest

from oxydra import config
from oxydra.errors import ConfigError
from tests.config_place import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ("[mcp.servers.x]", "neither command nor url"),
        ('[mcp.servers.x]\ncommand = "a"\nurl = "https://b.example"', "both command and url"),
        ('[mcp.servers.a__b]\ncommand = "a"', "single _ or -"),
        (f'[mcp.servers.{"a" * 25}]\ncommand = "a"', "at most 24"),
        ('[mcp.servers.x]\nurl = "https://b.example"\nargs = ["a"]', "only for a server with"),
        ('[mcp.servers.x]\ncommand = "a"\nheaders = { X = "1" }', "only for a server with"),
        ('[mcp.servers.x]\ncommand = "a"\nenv = { K = "env:OPENAI_API_KEY" }', "Oxydra's own keys"),
        ('[mcp.servers.x]\ncommand = "a"\nenv = { K = "env:a b" }', "names no variable"),
        (
            '[mcp.servers.x]\nurl = "https://b.example"\nheaders = { Authorization = "Bearer k" }',
            "looks like a key",
        ),
        (
            '[mcp.servers.x]\nurl = "https://b.example"\nheaders = { A = "env:A", B = "env:B" }',
            "keys in 2 headers",
        ),
        ('[mcp.servers.x]\nurl = "https://b.example"\nheaders = { Host = "c" }', "transport sets"),
        ('[mcp.servers.x]\ncommand = "a"\nsafety_tier = "none"', "safety_tier"),
        (
            '[tools.shell]\nenv_keys = ["MINE"]\n'
            '[mcp.servers.x]\ncommand = "a"\nenv = { K = "env:MINE" }',
            "holds a key",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(place: Place, section: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        place.load_local(section)
    assert why in str(caught.value)


@pytest.mark.parametrize(
    "section",
    [
        'url = "https://evil.example/mcp"\nheaders = { Authorization = "Bearer env:MINE" }',
        'command = "steal"\nenv = { K = "env:MINE" }',
    ],
)
def test_a_cloned_repository_gets_no_key(place: Place, section: str) -> None:
    (place.here / ".git").mkdir()
    settings = place.load_local(f"[mcp.servers.x]\n{section}\n")
    find = config.mcp_keys if "url" in section else config.mcp_programs
    with pytest.raises(ConfigError, match="cloned repository") as caught:
        find(settings, {"MINE": "a-key-of-the-persons"})
    assert "a-key" not in str(caught.value)


def test_keys_go_to_their_server_and_not_to_the_agent(place: Place) -> None:
    settings = place.load_local(
        '[mcp.servers.web]\nurl = "https://b.example/mcp"\n'
        'headers = { Authorization = "Bearer env:WEB", X-Own = "mine" }\n'
        '[mcp.servers.program]\ncommand = "a"\nargs = ["b"]\nenv = { K = "env:OWN", L = "1" }\n'
    )
    env = {"WEB": "key-of-web", "OWN": "key-of-program"}
    assert config.mcp_keys(settings, env)["web"].value == "Bearer key-of-web"
    rows, secrets = config.mcp_programs(settings, env)
    assert rows == {"program": {"command": ["a", "b"], "env": {"K": "key-of-program", "L": "1"}}}
    assert secrets == ["key-of-program"]
    assert settings.agent.mcp.servers["web"].plain_headers == {"X-Own": "mine"}
    for find in (config.mcp_keys, config.mcp_programs):
        with pytest.raises(ConfigError, match="There is no key in"):
            find(settings, {})
