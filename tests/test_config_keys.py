"""Which configuration is trusted, where keys are found and may go, and which model answers."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from oxydra import config
from oxydra.config import files
from oxydra.errors import ConfigError
from tests.config_place import Place, write
from tests.conftest import eventually

SECRET = "sk-test-0123456789abcdefghijklmnop"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# --------------------------------------------------------------------------------- safety of files


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
@pytest.mark.parametrize("name", ["agent.toml", "runner.toml", "users/alice.toml", "users"])
def test_what_others_can_write_is_refused(place: Place, name: str, mode: int) -> None:
    named = place.local_files()
    target = place.local / name
    target.chmod(mode | 0o100 if target.is_dir() else mode)
    with pytest.raises(ConfigError, match="chmod go-w") as caught:
        place.load(named)
    assert caught.value.file == str(target)
    target.chmod(0o700 if target.is_dir() else 0o644)
    place.load(named)


def test_what_somebody_else_owns_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    named = place.local_files()
    if os.geteuid() == 0:
        os.chown(place.local / "agent.toml", 1, 1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4242)
    with pytest.raises(ConfigError, match="another user"):
        place.load(named)


def test_what_is_no_regular_file_is_refused_without_hanging(place: Place) -> None:
    named = place.local_files()
    (place.local / "agent.toml").unlink()
    os.mkfifo(place.local / "agent.toml", 0o600)
    with pytest.raises(ConfigError, match="no regular file"):
        place.load(named)


def test_a_link_leads_to_the_checks_of_its_target(place: Place) -> None:
    named = place.local_files()
    open_folder = place.here / "open"
    target = write(open_folder / "real.toml")
    open_folder.chmod(0o777)
    (place.local / "agent.toml").unlink()
    (place.local / "agent.toml").symlink_to(target)
    with pytest.raises(ConfigError, match="chmod go-w"):
        place.load(named)


def test_a_huge_file_is_refused(place: Place) -> None:
    assert "larger than" in str(place.refused("#" * (files.MAX_BYTES + 1)))


def test_configuration_inside_a_workspace_is_refused(place: Place) -> None:
    runner = f'workspace_root = "{place.here.parent}"\n[users.work]\nconfig_path="users/alice.toml"'
    with pytest.raises(ConfigError, match=r"runner.toml:1: .*a guest may write"):
        place.load(place.local_files(runner=runner))


# -------------------------------------------------------------------------------------------- trust


def test_a_folder_found_here_needs_trust_for_exactly_what_is_in_it(place: Place) -> None:
    place.local_files()
    with pytest.raises(ConfigError, match="oxydra-runner trust"):
        place.load()
    config.trust(place.local, place.home)
    assert place.load().user_id == "alice"
    for name in ("agent.toml", "users/alice.toml", "providers.toml"):
        config.trust(place.local, place.home)
        write(place.local / name, "# changed\n")
        with pytest.raises(ConfigError, match="oxydra-runner trust"):
            place.load()


def test_trust_covers_the_files_that_the_configuration_names(place: Place) -> None:
    place.local_files('[agents.a]\nsystem_prompt_file = "prompts/a.md"\n')
    write(place.local / "prompts" / "a.md", "Be kind.")
    config.trust(place.local, place.home)
    assert place.load().agent.agents["a"].system_prompt == "Be kind."
    write(place.local / "prompts" / "a.md", "Be evil.")
    with pytest.raises(ConfigError, match="oxydra-runner trust"):
        place.load()


def test_trust_is_of_one_place(place: Place) -> None:
    place.local_files()
    config.trust(place.local, place.home)
    other = place.here.parent / "elsewhere"
    shutil.copytree(place.local, other / ".oxydra")
    with pytest.raises(ConfigError, match="oxydra-runner trust"):
        config.load(env=place.env, folder=other, system=place.system)


def test_a_folder_made_here_stays_ours_and_its_successor_does_not(place: Place) -> None:
    config.write_default(place.local, home=place.home)
    assert place.load().user_id == "alice"
    write(place.local / "agent.toml", "runtime.max_turns = 3")
    assert place.load().agent.runtime.max_turns == 3
    shutil.rmtree(place.local)
    place.local_files()
    with pytest.raises(ConfigError, match="oxydra-runner trust"):
        place.load()


def test_init_does_not_adopt_what_was_there(place: Place) -> None:
    theirs = write(place.local / "providers.toml", "# came with a clone\n")
    written = config.write_default(place.local, home=place.home)
    assert theirs not in written
    assert theirs.read_text() == "# came with a clone\n"
    with pytest.raises(ConfigError, match="oxydra-runner trust"):
        place.load()


def test_a_broken_record_of_trust_trusts_nothing(place: Place) -> None:
    place.local_files()
    for text in ("{", "[]", '{"folders": 3}'):
        write(place.home / "trusted.json", text)
        with pytest.raises(ConfigError, match=r"trusted\.json"):
            place.load()
    write(place.home / "trusted.json", json.dumps({"folders": {str(place.local): 3}}))
    with pytest.raises(ConfigError, match="oxydra-runner trust"):
        place.load()


# --------------------------------------------------------------------------------------------- keys


def key_of(place: Place, settings: config.Config, name: str = "openai") -> tuple[str, str]:
    entry = settings.agent.providers.registry[name]
    found = config.resolve_credential(name, entry, settings, place.env)
    return (found.value, found.source) if found else ("", "")


def test_the_order_in_which_a_key_is_found(place: Place) -> None:
    def values(agent: str = "", user: str = "") -> str:
        return key_of(place, place.load(place.local_files(agent, user=user)))[0]

    head = "[providers.registry.openai]\n"
    assert values() == ""
    place.env["API_KEY"] = "generic"
    assert values() == "generic"
    config.set_key("API_KEY", "generic-kept", place.home)
    assert values() == "generic"
    config.set_key("openai", "kept", place.home)
    assert values() == "kept"
    config.set_key("OPENAI_API_KEY", "kept-type", place.home)
    assert values() == "kept-type"
    place.env["OPENAI_API_KEY"] = "type"
    assert values() == "type"
    named = head + 'api_key_env = "MINE"\n'
    assert values(named) == "type"
    config.set_key("MINE", "kept-named", place.home)
    assert values(named) == "kept-named"
    place.env["MINE"] = "named"
    assert values(named) == "named"
    command = named + "api_key_cmd = \"printf '%s\\\\n' printed\"\n"
    assert values(command) == "printed"
    literal = command + 'api_key = "literal"\n'
    assert values(literal) == "literal"
    place.env["ALICE"] = "referred"
    assert values(literal, '[credential_refs]\nopenai = "env:ALICE"\n') == "referred"


def test_a_reference_to_nothing_is_an_error(place: Place) -> None:
    place.env["OPENAI_API_KEY"] = SECRET
    settings = place.load(place.local_files(user='[credential_refs]\nopenai = "env:ALICE"\n'))
    with pytest.raises(ConfigError, match=r"alice.toml:2: .*ALICE.*key set ALICE"):
        key_of(place, settings)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("false", "status 1"),
        ("true", "printed nothing"),
        ("/nonexistent/program", "can't be run"),
        ("printf 'a\\\\nb'", "characters that no key has"),
        ("'", "can't be run"),
    ],
)
def test_a_key_command_that_fails_says_how(place: Place, command: str, says: str) -> None:
    settings = place.load_local(f'[providers.registry.openai]\napi_key_cmd = "{command}"\n')
    with pytest.raises(ConfigError, match=says):
        key_of(place, settings)


def test_a_key_command_has_no_shell_and_no_terminal(place: Place) -> None:
    marker = place.here / "marker"
    settings = place.load_local(
        f"[providers.registry.openai]\napi_key_cmd = 'echo ok;touch${{IFS}}{marker}'\n"
    )
    assert key_of(place, settings)[0].startswith("ok;touch${IFS}")
    assert not marker.exists()


def test_a_key_command_that_hangs_is_ended_with_its_children(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oxydra.config.credentials.COMMAND_SECONDS", 2.0)
    pid_file = place.here / "pid"
    script = write(
        place.here / "hang.sh", f"#!/bin/sh\nsleep 600 &\necho $! > {pid_file}\nwait\n", 0o700
    )
    settings = place.load_local(f'[providers.registry.openai]\napi_key_cmd = "{script}"\n')
    with pytest.raises(ConfigError, match="did not end"):
        key_of(place, settings)
    child = int(pid_file.read_text())
    eventually(lambda: not running(child), what="the child of the command ended")


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def test_kept_keys_are_private_files(place: Place) -> None:
    path = config.set_key("openai", f"  {SECRET}\n", place.home)
    assert path == place.home / "keys" / "openai"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert config.get_key("openai", place.home) == SECRET
    assert config.list_keys(place.home) == ["openai"]
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod go-rwx"):
        config.get_key("openai", place.home)
    config.remove_key("openai", place.home)
    assert config.list_keys(place.home) == []
    with pytest.raises(ConfigError, match="no key 'openai'"):
        config.remove_key("openai", place.home)
    for name in ("../x", "a/b", "", ".hidden", "a" * 200):
        with pytest.raises(ConfigError, match="name of a key"):
            config.set_key(name, "x", place.home)


# -------------------------------------------------------------------------- where a key may be sent


@pytest.fixture
def clone(place: Place) -> Place:
    """A current folder that is a checkout: what is in it may have come with it."""
    (place.here / ".git").mkdir()
    place.env["OPENAI_API_KEY"] = SECRET
    return place


STEAL = '[providers.registry.openai]\nbase_url = "{}"\n'


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example",
        "http://127.0.0.1:8080/v1",
        "http://localhost:11434",
        "http://api.openai.com/v1",
        "https://api.openai.com:8443/v1",
        "https://api.openai.com.evil.example/v1",
        "https://evil.example/api.openai.com",
        "https://API.OPENAI.COM./v1",
    ],
)
def test_a_clone_can_not_take_a_key_along(clone: Place, url: str) -> None:
    settings = clone.load_local(STEAL.format(url))
    with pytest.raises(ConfigError, match="oxydra-runner trust") as caught:
        clone.select(settings)
    assert (caught.value.file, caught.value.line) == (str(clone.local / "agent.toml"), 2)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("url", ["https://api.openai.com", "https://API.openai.com:443/v1/"])
def test_a_clone_may_say_what_is_official(clone: Place, url: str) -> None:
    assert clone.select(clone.load_local(STEAL.format(url))).provider == "openai"


def test_a_clone_can_not_redirect_what_the_user_configured(clone: Place) -> None:
    write(
        clone.home / "providers.toml",
        f'[providers.registry.corp]\nprovider_type = "openai"\nbase_url = "https://llm.corp"\n'
        f'api_key = "{SECRET}"\n',
    )
    chosen = '[selection]\nprovider = "corp"\nmodel = "m"\n[providers.registry.corp]\n'
    assert clone.select(clone.load_local(chosen)).credential
    for line in ('base_url = "https://evil.example"', 'provider_type = "anthropic"'):
        with pytest.raises(ConfigError, match="oxydra-runner trust"):
            clone.select(clone.load_local(f"{chosen}{line}\n"))


def test_a_clone_can_not_choose_the_key_or_run_a_command(clone: Place) -> None:
    clone.env["GITHUB_TOKEN"] = "ghp_x"
    marker = clone.here / "marker"
    head = "[providers.registry.openai]\n"
    for line in ('api_key_env = "GITHUB_TOKEN"', f'api_key_cmd = "touch {marker}"'):
        with pytest.raises(ConfigError, match="oxydra-runner trust"):
            clone.select(clone.load_local(f"{head}{line}\n"))
    assert not marker.exists()
    named = clone.local_files(user='[credential_refs]\nopenai = "env:GITHUB_TOKEN"\n')
    with pytest.raises(ConfigError, match="oxydra-runner trust"):
        clone.select(clone.load(named))
    assert clone.select(clone.load_local(head + 'api_key_env = "OPENAI_API_KEY"\n')).credential


def test_a_kept_key_does_not_follow_a_clone_either(clone: Place) -> None:
    del clone.env["OPENAI_API_KEY"]
    config.set_key("openai", SECRET, clone.home)
    with pytest.raises(ConfigError, match="oxydra-runner trust"):
        clone.select(clone.load_local(STEAL.format("https://evil.example")))


def test_the_clones_own_key_goes_where_the_clone_says(clone: Place) -> None:
    settings = clone.load_local(STEAL.format("https://llm.example") + 'api_key = "theirs"\n')
    chosen = clone.select(settings)
    assert chosen.credential is not None
    assert chosen.credential.value == "theirs"


@pytest.mark.parametrize("how", ["home", "system", "variable", "option", "trust", "init"])
def test_ones_own_configuration_pairs_key_and_host(clone: Place, how: str) -> None:
    text, more = STEAL.format("http://127.0.0.1:9/v1"), {}
    named = clone.local / "runner.toml"
    if how == "init":
        config.write_default(clone.local, home=clone.home)
    else:
        clone.local_files()
    if how in ("home", "system"):
        write(getattr(clone, how) / "providers.toml", text)
    elif how == "variable":
        clone.env["OXYDRA__PROVIDERS__REGISTRY__OPENAI__BASE_URL"] = "http://127.0.0.1:9/v1"
    elif how == "option":
        more = {"overrides": {"providers.registry.openai.base_url": "http://127.0.0.1:9/v1"}}
    else:
        write(clone.local / "agent.toml", text)
    if how == "trust":
        config.trust(clone.local, clone.home)
    chosen = clone.select(clone.load(named, **more))
    assert chosen.credential is not None
    assert chosen.credential.value == SECRET


def test_a_folder_named_outside_of_any_checkout_is_ones_own(place: Place) -> None:
    place.env["OPENAI_API_KEY"] = SECRET
    assert place.select(place.load_local(STEAL.format("http://127.0.0.1:9"))).credential


# ---------------------------------------------------------------------------------------- selection


def test_auto_prefers_keys_that_name_a_service_then_ollama_then_offline(place: Place) -> None:
    settings = place.load_local('[providers.registry.groq]\nprovider_type = "openai"\napi_key="g"')
    probed: list[str] = []

    def choose(answer: bool) -> str:
        return place.select(settings, probe=lambda url: probed.append(url) or answer).provider

    assert choose(True) == "groq"
    assert not probed  # no probe where a key is found
    place.env["API_KEY"] = "k"
    assert choose(True) == "groq"
    place.env["GEMINI_API_KEY"] = "k"
    assert choose(True) == "gemini"
    place.env["ANTHROPIC_API_KEY"] = "k"
    assert choose(True) == "anthropic"
    place.env["OPENAI_API_KEY"] = "k"
    assert choose(True) == "openai"


def test_without_a_key_a_local_ollama_or_offline_is_said(place: Place) -> None:
    settings = place.load_local()
    chosen = place.select(settings, probe=lambda url: url == "http://127.0.0.1:11434/v1")
    assert (chosen.provider, chosen.credential) == ("ollama", None)
    assert (chosen.model, chosen.spec.price_input) == ("qwen3", 0)
    assert "Ollama" in chosen.reason
    chosen = place.select(settings)
    assert (chosen.provider, chosen.model, chosen.credential) == ("offline", "offline", None)
    assert "OPENAI_API_KEY" in chosen.reason


def test_a_local_ollama_never_gets_a_key_that_does_not_name_it(place: Place) -> None:
    place.env |= {"OPENAI_API_KEY": SECRET, "API_KEY": SECRET}
    settings = place.load_local('[selection]\nprovider = "ollama"\n')
    assert place.select(settings).credential is None
    config.set_key("ollama", "mine", place.home)
    assert key_of(place, settings, "ollama")[0] == "mine"


def test_a_named_provider_without_its_key_says_where_to_put_it(place: Place) -> None:
    settings = place.load_local('[selection]\nprovider = "anthropic"\n')
    with pytest.raises(ConfigError, match=r"agent.toml:2: .*ANTHROPIC_API_KEY.*key set"):
        place.select(settings)


def test_an_own_server_needs_no_key_and_serves_what_it_likes(place: Place) -> None:
    settings = place.load_local(
        '[selection]\nprovider = "box"\nmodel = "my-model"\n'
        '[providers.registry.box]\nprovider_type = "openai"\nbase_url = "http://127.0.0.1:8000"\n'
        "max_context_tokens = 9000\nmax_output_tokens = 500\nreasoning = true\n"
    )
    chosen = place.select(settings)
    assert (chosen.credential, chosen.model, chosen.spec.provider) == (None, "my-model", "box")
    assert (chosen.spec.max_context_tokens, chosen.spec.max_output_tokens) == (9000, 500)
    assert chosen.spec.reasoning
    assert chosen.spec.price_input is None


def test_a_model_is_checked_where_the_catalog_knows_the_service(place: Place) -> None:
    place.env["OPENAI_API_KEY"] = "k"
    text = '[selection]\nmodel = "gpt-5.4-mnii"\n'
    with pytest.raises(ConfigError, match=r"agent.toml:2: .*gpt-5.4-mini"):
        place.select(place.load_local(text))
    settings = place.load_local(text + "[catalog]\nskip_catalog_validation = true\n")
    spec = place.select(settings).spec
    assert spec.max_context_tokens == 32768


def test_the_probe_is_one_tcp_connection() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert config.answers(f"http://127.0.0.1:{port}/v1")
    assert not config.answers(f"http://127.0.0.1:{port}/v1")
    assert not config.answers("http://192.0.2.1/v1")
