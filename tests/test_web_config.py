"""What the configuration says about the web: the search service's key, and the local services."""

from __future__ import annotations

from pathlib import Path

import pytest

from oxydra import config
from oxydra.errors import ConfigError
from tests.config_place import RUNNER, Place

GOOGLE = (
    '[tools.web_search]\nprovider = "google_cse"\nengine_id = "cx"\napi_key_env = "GOOGLE_KEY"\n'
)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path)
    made.env["GOOGLE_KEY"] = "the-google-key"
    return made


def foreign(place: Place, agent: str, runner: str = RUNNER) -> config.Config:
    """As from a cloned repository."""
    (place.here / ".git").mkdir()
    return place.load(place.local_files(agent, runner))


def test_the_search_key(place: Place) -> None:
    assert config.search_key(place.load(place.local_files()), place.env) is None
    settings = place.load(place.local_files(GOOGLE))
    found = config.search_key(settings, place.env)
    assert found is not None and found.value == "the-google-key"
    assert "the-google-key" not in repr(found) and "GOOGLE_KEY" in found.source
    with pytest.raises(ConfigError, match="key set GOOGLE_KEY"):
        config.search_key(settings, {"HOME": place.env["HOME"]})
    config.set_key("GOOGLE_KEY", "kept-google-key", settings.home)
    kept = config.search_key(settings, {"HOME": place.env["HOME"]})
    assert kept is not None and kept.value == "kept-google-key"


@pytest.mark.parametrize("missing", ["engine_id", "api_key_env"])
def test_what_google_needs_is_asked_for(place: Place, missing: str) -> None:
    text = "\n".join(line for line in GOOGLE.splitlines() if not line.startswith(missing))
    with pytest.raises(ConfigError, match=missing) as caught:
        config.search_key(place.load(place.local_files(text)), place.env)
    assert caught.value.key == f"tools.web_search.{missing}"


@pytest.mark.parametrize("extra", ["", 'base_urls = ["https://evil.example/"]'])
def test_a_cloned_repository_gets_no_key(place: Place, extra: str) -> None:
    settings = foreign(place, GOOGLE + extra)
    with pytest.raises(ConfigError, match="cloned repository") as caught:
        config.search_key(settings, place.env)
    assert "trust" in str(caught.value)


def test_the_key_is_no_part_of_what_a_guest_is_told(place: Place) -> None:
    settings = place.load(place.local_files(GOOGLE))
    table = config.effective(settings, place.select(settings))
    assert "GOOGLE_KEY" not in str(table) and "the-google-key" not in str(table)


ALLOW = (
    RUNNER + '[tools.web]\negress_allowlist = ["127.0.0.1:8888", "[::1]:80", "wiki.internal:443"]\n'
)


def test_the_allowed_services_reach_the_guest_as_policy(place: Place) -> None:
    settings = place.load(place.local_files(runner=ALLOW))
    allowed = config.runtime_policy(settings)["egress_allowlist"]
    assert allowed == ["127.0.0.1:8888", "[::1]:80", "wiki.internal:443"]
    assert config.runtime_policy(place.load(place.local_files()))["egress_allowlist"] == []


def test_a_cloned_repository_opens_no_local_service(place: Place) -> None:
    settings = foreign(place, "", ALLOW)
    with pytest.raises(ConfigError, match="cloned repository"):
        config.runtime_policy(settings)


@pytest.mark.parametrize(
    "entry", ["127.0.0.1", "http://x:1", "x:0", "x:70000", "X.com:80", "*:80", "x:1/", "u@x:1", ""]
)
def test_a_service_is_a_host_and_a_port(place: Place, entry: str) -> None:
    runner = RUNNER + f'[tools.web]\negress_allowlist = ["{entry}"]\n'
    with pytest.raises(ConfigError, match="egress_allowlist"):
        place.load(place.local_files(runner=runner))


def test_agents_and_users_files_have_no_say(place: Place) -> None:
    text = '[tools.web]\negress_allowlist = ["127.0.0.1:1"]\n'
    assert "tools.web" in str(place.refused(text))
    with pytest.raises(ConfigError):
        place.load(place.local_files(user=text))
