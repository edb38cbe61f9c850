"""Configuration: layers, hints, safety of files, trust, keys and where they may go."""

from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxydra import config
from oxydra.config.check import all_keys, dump, leaves_of
from oxydra.config.fields import Section
from oxydra.config.lines import key_lines
from oxydra.config.schema import AgentConfig, RunnerConfig, UserConfig
from oxydra.errors import ConfigError, UsageError
from tests.config_place import RUNNER, Place, write

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples" / "config"
SECRET = "sk-test-0123456789abcdefghijklmnop"
MARKS = (
    "<!-- keys: tests/test_config.py compares this with the schema -->",
    "<!-- end of keys -->",
)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# ------------------------------------------------------------------------------------------- layers


def test_each_layer_overrides_the_one_below_and_the_source_is_remembered(place: Place) -> None:
    lines = "[runtime]\nmax_turns = {}\n"
    place.local_files()
    named = place.local / "runner.toml"

    def turns(**more: Any) -> tuple[int, str]:
        settings = place.load(named, **more)
        return settings.agent.runtime.max_turns, str(settings.source("runtime.max_turns"))

    assert turns() == (50, "built-in")
    write(place.system / "agent.toml", lines.format(1))
    assert turns() == (1, f"{place.system}/agent.toml:2")
    write(place.home / "agent.toml", lines.format(2))
    assert turns() == (2, f"{place.home}/agent.toml:2")
    write(place.local / "agent.toml", "\n" + lines.format(3))
    assert turns() == (3, f"{place.local}/agent.toml:3")
    write(place.local / "providers.toml", "runtime.max_turns = 4")
    assert turns() == (4, f"{place.local}/providers.toml:1")
    place.env["OXYDRA__RUNTIME__MAX_TURNS"] = "5"
    assert turns() == (5, "OXYDRA__RUNTIME__MAX_TURNS")
    assert turns(overrides={"runtime.max_turns": 6}) == (6, "command line")
    assert turns(overrides={"runtime.max_turns": "7"}) == (7, "command line")


def test_tables_merge_and_lists_are_replaced(place: Place) -> None:
    write(
        place.home / "providers.toml",
        '[providers.registry.corp]\nprovider_type = "openai"\nbase_url = "https://llm.corp"\n'
        'extra_headers = { "X-Team" = "a", "X-Title" = "b" }\n'
        '[gateway]\nallowed_hosts = ["one", "two"]\n',
    )
    settings = place.load_local(
        '[providers.registry.corp]\nmax_output_tokens = 100\nextra_headers = { "X-Team" = "c" }\n'
        '[gateway]\nallowed_hosts = ["three"]\n'
    )
    entry = settings.agent.providers.registry["corp"]
    assert (entry.base_url, entry.max_output_tokens) == ("https://llm.corp", 100)
    assert entry.extra_headers == {"X-Team": "c", "X-Title": "b"}
    assert settings.agent.gateway.allowed_hosts == ("three",)


def test_without_config_the_folder_of_xdg_is_used(place: Place, tmp_path: Path) -> None:
    place.env["XDG_CONFIG_HOME"] = str(tmp_path / "xdg")
    write(tmp_path / "xdg/oxydra/runner.toml", RUNNER)
    write(tmp_path / "xdg/oxydra/users/alice.toml", '[behavior]\ntimezone = "UTC"\n')
    assert place.load().user_id == "alice"
    place.env["XDG_CONFIG_HOME"] = "relative"  # the specification: ignored
    with pytest.raises(ConfigError, match="No user is configured"):
        place.load()


def test_the_users_file_stands_below_variables(place: Place) -> None:
    named = place.local_files(user='[behavior]\ntimezone = "Europe/Berlin"\n')
    assert place.load(named).user.behavior.timezone == "Europe/Berlin"
    place.env["OXYDRA__BEHAVIOR__TIMEZONE"] = "UTC"
    assert place.load(named).user.behavior.timezone == "UTC"


def test_relative_paths_mean_the_folder_of_their_file(place: Place) -> None:
    named = place.local_files(runner='workspace_root = "work"\n' + RUNNER)
    assert place.load(named).workspace_root == place.local / "work"


def test_users_are_chosen_and_named(place: Place) -> None:
    two = RUNNER + '[users.bob]\nconfig_path = "users/alice.toml"\n'
    named = place.local_files(runner=two)
    assert place.load(named, user="bob").user_id == "bob"
    with pytest.raises(UsageError, match="alice, bob"):
        place.load(named)
    assert place.load(named, need_user=False).user_id == ""
    with pytest.raises(UsageError, match="Did you mean 'alice'"):
        place.load(named, user="alcie")
    (place.local / "users" / "alice.toml").unlink()
    with pytest.raises(ConfigError, match=r"runner.toml:2: .*alice.toml"):
        place.load(named, user="alice")


def test_the_insecure_switch_overrides_runner_and_user(place: Place) -> None:
    named = place.local_files(user='[behavior]\nsandbox_tier = "micro_vm"\n')
    assert place.load(named).tier == "micro_vm"
    insecure = {"default_tier": "process", "behavior.sandbox_tier": "process"}
    assert place.load(named, overrides=insecure).tier == "process"


def test_a_user_never_isolates_less_than_the_runner(place: Place) -> None:
    named = place.local_files(user='\n[behavior]\nsandbox_tier = "process"\n')
    with pytest.raises(ConfigError, match=r"alice.toml:3: .*narrow, never widen"):
        place.load(named)


# -------------------------------------------------------------------------------------------- hints


@pytest.mark.parametrize(
    ("text", "line", "key", "says"),
    [
        ("[runtime]\n\nmax_truns = 3\n", 3, "runtime.max_truns", "Did you mean 'max_turns'?"),
        ("[runtme]\nmax_turns = 3\n", 1, "runtme", "Did you mean 'runtime'?"),
        ("x = 1\nmax_turns = 3\n", 1, "x", "The keys here are: agents,"),
        ("# c\nmax_turns = 3\n", 2, "max_turns", "Did you mean"),
        ('[runtime]\nmax_turns = "3"\n', 2, "runtime.max_turns", "must be a whole number"),
        ("[runtime]\nmax_turns = true\n", 2, "runtime.max_turns", "not true"),
        ("[runtime]\nmax_turns = 1.5\n", 2, "runtime.max_turns", "not the number 1.5"),
        ("[runtime]\nmax_turns = 0\n", 2, "runtime.max_turns", "at least 1"),
        ("[runtime]\nmax_cost = nan\n", 2, "runtime.max_cost", "must be a number"),
        ("[gateway]\nport = 65536\n", 2, "gateway.port", "at most 65535"),
        ("[gateway]\nallowed_hosts = [\n1,\n]\n", 2, "gateway.allowed_hosts", "list of strings"),
        ("gateway = 3\n", 1, "gateway", "[gateway]"),
        ('[scheduler]\ncatch_up = "lats"\n', 2, "scheduler.catch_up", "Did you mean 'last'?"),
        ('[scheduler]\ndefault_timezone = "Europe/Berln"\n', 2, "", "Europe/Berlin"),
        ('[selection]\nprovider = "opneai"\n', 2, "", "Did you mean 'openai'?"),
        ('[providers.registry.x]\nbase_url = "http://h"\n', 1, "", "provider_type is missing"),
        ('[providers.registry.x]\n"provider_typ" = "openai"\n', 2, "", "'provider_type'"),
        ("[providers.registry.openai]\nbase_url = 'ftp://h'\n", 2, "", "http://"),
        ("[providers.registry.openai]\nbase_url = 'https://u:p@h'\n", 2, "", "user or password"),
        ("[providers.registry.openai]\nbase_url = 'https://h?key=1'\n", 2, "", "credential"),
        ("[providers.registry.'A b']\n", 1, "", "can't be a name"),
        ("[agents.a]\nsystem_prompt_file = 'no.md'\n", 2, "", "There is no file"),
        ("[agents.a]\nselection = { provider = 'none' }\n", 2, "", "there is no provider"),
        ("[reliability]\nbackoff_base_ms = 99999\n", 2, "", "larger than"),
        ("[runtime.summarization]\ntarget_ratio = 0.9\n", 2, "", "must be below"),
        ("workspace_root = 'x'\n", 1, "", "belongs in runner.toml"),
        ("[behavior]\ntimezone = 'UTC'\n", 1, "", "belongs in users/<id>.toml"),
        ("[budget]\nper_day = 3\n", 1, "budget", "runner.toml and users/<id>.toml only"),
        ("[egress]\nshell = 'open'\n", 1, "egress", "runner.toml and users/<id>.toml only"),
        ("config_version = '2'\n", 1, "config_version", "understands 1"),
        ("config_version = 12\n", 1, "config_version", "understands 1"),
        ("[runtime]\nmax_turns = 3\nmax_turns = 4\n", 3, "", "TOML"),
        ("[runtime\n", 1, "", "TOML"),
        ("[tools.shell]\nenv_keys = ['OPENAI_API_KEY']\n", 2, "", "holds a key"),
        (
            "[providers.registry.corp]\nprovider_type='openai'\napi_key_env='CORP'\n"
            "[tools.shell]\nenv_keys = ['PATH', 'CORP']\n",
            5,
            "",
            "names CORP",
        ),
    ],
)
def test_what_is_wrong_is_named_with_line_and_hint(
    place: Place, text: str, line: int, key: str, says: str
) -> None:
    error = place.refused(text)
    assert error.file == str(place.local / "agent.toml")
    assert error.line == line
    assert says in str(error)
    assert not key or error.key == key
    assert error.exit_code == 2


@pytest.mark.parametrize(
    "header",
    ["Authorization", "x-api-key", "X-Goog-Api-Key", "Cookie", "Proxy-Authorization", "X-Token"],
)
def test_a_header_that_carries_a_key_is_refused_without_being_shown(
    place: Place, header: str
) -> None:
    error = place.refused(
        f'[providers.registry.openai]\nextra_headers = {{ "{header}" = "{SECRET}" }}\n'
    )
    assert header in str(error)
    assert "api_key" in str(error)
    assert SECRET not in str(error)


def test_a_secret_at_the_wrong_place_is_not_shown(place: Place) -> None:
    for line in (f'api_key_env = "{SECRET}"', f'max_input_tokens = "{SECRET}"'):
        assert SECRET not in str(place.refused(f"[providers.registry.openai]\n{line}\n"))
    place.env["OXYDRA__PROVIDERS__REGISTRY__OPENAI__API_KEY_ENV"] = SECRET
    assert SECRET not in str(place.refused(""))


@pytest.mark.parametrize("version", ["1", '"1"', '"1.4"', "1.0"])
def test_the_first_major_version_is_understood(place: Place, version: str) -> None:
    assert place.load_local(f"config_version = {version}\n")


def test_a_file_that_is_no_text_is_named_with_its_line(place: Place) -> None:
    named = place.local_files()
    (place.local / "agent.toml").write_bytes(b"[runtime]\nx = '\xff'\n")
    with pytest.raises(ConfigError, match=r"agent.toml:2: .*UTF-8"):
        place.load(named)


def test_a_missing_named_file_and_no_configuration_say_what_to_do(place: Place) -> None:
    with pytest.raises(ConfigError, match="oxydra-runner init"):
        place.load(place.here / "nothing.toml")
    with pytest.raises(ConfigError, match="oxydra-runner init"):
        place.load()


def test_lines_are_found_in_every_notation() -> None:
    text = (
        "a = 1 # b = 2\n"
        's = """\n[no]\nno = 1\n"""\n'
        "l = '''x\ny = ]'''\n"
        "[t.u] # [x]\n"
        'v.w = [ "]", [1, 2],\n  3, # ]\n]\n'
        'i = { "q.r" = 1, z = { y = "}" } }\n'
        '\'k k\' = "\\u0041 # = \\""\n'
        "[[many]]\nm = 1979-05-27T07:32:00Z\n"
    )
    assert key_lines(text) == {
        ("a",): 1,
        ("s",): 2,
        ("l",): 6,
        ("t",): 8,
        ("t", "u"): 8,
        ("t", "u", "v"): 9,
        ("t", "u", "v", "w"): 9,
        ("t", "u", "i"): 12,
        ("t", "u", "i", "q.r"): 12,
        ("t", "u", "i", "z"): 12,
        ("t", "u", "i", "z", "y"): 12,
        ("t", "u", "k k"): 13,
        ("many",): 14,
        ("many", "m"): 15,
    }


@given(st.text(alphabet="ab=.[]{}\"'#\n, \\1", max_size=60))
def test_looking_for_lines_always_ends(text: str) -> None:
    assert all(line >= 1 for line in key_lines(text).values())


# ---------------------------------------------------------------------- environment, command line


def test_variables_are_typed_by_the_schema(place: Place) -> None:
    place.env |= {
        "OXYDRA__MEMORY__ENABLED": "off",
        "OXYDRA__RUNTIME__MAX_COST": "0.10",
        "OXYDRA__RUNTIME__TURN_TIMEOUT_SECS": "90",
        "OXYDRA__GATEWAY__ALLOWED_HOSTS": "one.example, two.example",
        "OXYDRA__TOOLS__SHELL__ALLOW": '["a b", "c"]',
        "OXYDRA__SELECTION__MODEL": "123",
        "OXYDRA__PROVIDERS__REGISTRY__MY_BOX__MAX_OUTPUT_TOKENS": "77",
        "OXYDRA__PROVIDERS__REGISTRY__OPENAI__EXTRA_HEADERS": '{ "X-A" = "b" }',
        "OXYDRA__CREDENTIAL_REFS__OPENAI": "env:MINE",
        "OXYDRA__DEFAULT_TIER": "process",
        "OXYDRA_OTHER": "not ours",
    }
    settings = place.load_local('[providers.registry.my-box]\nprovider_type = "openai"\n')
    agent = settings.agent
    assert agent.memory.enabled is False
    assert agent.runtime.max_cost == Decimal("0.10")
    assert agent.runtime.turn_timeout_secs == 90.0
    assert isinstance(agent.runtime.turn_timeout_secs, float)
    assert agent.gateway.allowed_hosts == ("one.example", "two.example")
    assert agent.tools.shell.allow == ("a b", "c")
    assert agent.selection.model == "123"
    assert agent.providers.registry["my-box"].max_output_tokens == 77
    assert agent.providers.registry["openai"].extra_headers == {"X-A": "b"}
    assert settings.user.credential_refs == {"openai": "env:MINE"}
    assert settings.tier == "process"


@pytest.mark.parametrize(
    ("variable", "text", "says"),
    [
        ("OXYDRA__RUNTIME__MAX_TRUNS", "3", "OXYDRA__RUNTIME__MAX_TURNS"),
        ("OXYDRA__RUNTIME", "3", "no key"),
        ("OXYDRA__", "3", "no key"),
        ("OXYDRA__RUNTIME__MAX_TURNS", "many", "must be a whole number"),
        ("OXYDRA__MEMORY__ENABLED", "maybe", "must be true or false"),
        ("OXYDRA__GATEWAY__PORT", "70000", "at most 65535"),
        ("OXYDRA__BUDGET__PER_DAY", "100", "runner.toml and users/<id>.toml only"),
    ],
)
def test_a_wrong_variable_is_refused(place: Place, variable: str, text: str, says: str) -> None:
    place.env[variable] = text
    error = place.refused("")
    assert error.file == "environment"
    assert variable in str(error)
    assert says in str(error)


def test_a_wrong_option_is_refused(place: Place) -> None:
    error = place.refused("", overrides={"runtime.max_truns": 3})
    assert (error.file, "runtime.max_turns" in error.remedy) == ("command line", True)
    error = place.refused("", overrides={"gateway.port": -1})
    assert (error.file, error.key) == ("command line", "gateway.port")


# --------------------------------------------------------------------------------------------- init


def test_init_writes_private_files_for_the_process_tier_and_never_overwrites(place: Place) -> None:
    written = config.write_default(place.local, "bob", place.home)
    assert sorted(path.name for path in written) == ["agent.toml", "bob.toml", "runner.toml"]
    assert {path.stat().st_mode & 0o777 for path in written} == {0o600}
    assert {p.stat().st_mode & 0o777 for p in (place.local, place.local / "users")} == {0o700}
    settings = place.load(place.local / "runner.toml")
    assert (settings.user_id, settings.tier) == ("bob", "process")
    assert settings.workspace_root == place.local / "workspaces"
    write(place.local / "agent.toml", "runtime.max_turns = 9")
    assert config.write_default(place.local, "bob", place.home) == []
    assert (place.local / "agent.toml").read_text() == "runtime.max_turns = 9"
    with pytest.raises(ConfigError, match="user's name"):
        config.write_default(place.local, "../x", place.home)


@pytest.mark.parametrize("name", ["agent.toml", "runner.toml", "runner-user.toml"])
def test_the_package_carries_the_examples(name: str) -> None:
    assert config.template(name) == (EXAMPLES / name).read_text()


def copy_examples(place: Place) -> Path:
    write(place.local / "users" / "alice.toml", (EXAMPLES / "runner-user.toml").read_text())
    write(place.local / "agent.toml", (EXAMPLES / "agent.toml").read_text())
    return write(place.local / "runner.toml", (EXAMPLES / "runner.toml").read_text())


@pytest.mark.parametrize(
    ("variable", "provider"),
    [
        ("OPENAI_API_KEY", "openai"),
        ("ANTHROPIC_API_KEY", "anthropic"),
        ("GEMINI_API_KEY", "gemini"),
        ("API_KEY", "openai"),
    ],
)
def test_the_examples_work_as_copied_with_any_one_key(
    place: Place, variable: str, provider: str
) -> None:
    settings = place.load(copy_examples(place))
    assert settings.tier == "container"
    place.env[variable] = SECRET
    chosen = place.select(settings)
    assert chosen.provider == provider
    assert chosen.credential is not None
    assert chosen.credential.value == SECRET
    assert chosen.spec.tools
    assert variable in chosen.reason


def test_every_example_is_valid_with_all_that_is_commented_out(place: Place) -> None:
    named = copy_examples(place)
    write(place.local / "providers.toml", (EXAMPLES / "providers.toml").read_text())
    place.load(named)
    for folder in ("projects/current", "papers", "code"):
        (place.home.parents[1] / folder).mkdir(parents=True)
    for name in ("agent.toml", "runner.toml", "users/alice.toml"):
        path = place.local / name
        lines = path.read_text().splitlines()
        shown = [f"{line[2:]}" if is_setting(line) else line for line in lines]
        assert shown != lines
        path.write_text("\n".join(shown))
    settings = place.load(named)
    assert settings.agent.runtime.max_cost == Decimal("1.00")
    assert settings.agent.agents["reviewer"].selection.model == "claude-sonnet-5"
    assert settings.user.behavior.timezone == "Europe/Berlin"
    policy = config.runtime_policy(settings)["approvals"]
    assert [[rule["decision"] for rule in layer] for layer in policy["rules"]] == [
        ["deny", "ask", "ask"],
        ["ask"],
    ]
    assert (policy["exfiltration"], policy["expiry_secs"]) == ("deny", 120)


def is_setting(line: str) -> bool:
    words = line.split()
    return len(words) > 1 and words[0] == "#" and (words[1][0] == "[" or words[2:3] == ["="])


def test_the_commented_examples_show_the_defaults() -> None:
    """Where a line of agent.toml shows a default, it is the schema's."""
    import tomli

    lines = (EXAMPLES / "agent.toml").read_text().splitlines()
    end = next(i for i, line in enumerate(lines) if line.startswith("# An agent of its own"))
    start = lines.index("[runtime]")
    text = "\n".join(line[2:] if is_setting(line) else line for line in lines[start:end])
    shown = tomli.loads(text)
    assert shown["runtime"].pop("max_cost") == 1.0  # an example: there is no cap by default
    assert shown["memory"].pop("embedding_price") == 0.02  # and no price
    defaults = dump(AgentConfig(), for_guest=False)
    for section, values in shown.items():
        assert values == defaults[section], section


# ------------------------------------------------------------------------------------------ explain


def test_explain_shows_every_key_with_its_source_and_no_secret(place: Place) -> None:
    place.env["OXYDRA__PROVIDERS__REGISTRY__GEMINI__API_KEY"] = SECRET
    settings = place.load_local(
        f'[providers.registry.openai]\napi_key = "{SECRET}"\n[runtime]\nmax_turns = 3\n'
    )
    rows = {row.key: row for row in settings.explain()}
    assert SECRET not in "".join(map(str, rows.values()))
    assert rows["providers.registry.openai.api_key"].value == "********"
    assert rows["providers.registry.openai.api_key"].source == f"{place.local}/agent.toml:2"
    assert rows["providers.registry.openai.base_url"].source == "built-in"
    assert rows["providers.registry.gemini.api_key"].source.startswith("OXYDRA__PROVIDERS")
    assert (rows["runtime.max_turns"].value, rows["runtime.max_turns"].source) == (
        "3",
        f"{place.local}/agent.toml:4",
    )
    assert rows["users.alice.config_path"].file == "runner.toml"
    assert rows["behavior.timezone"].file == "users/alice.toml"
    for schema in (AgentConfig, RunnerConfig, UserConfig):
        for name, key in all_keys(schema):
            if "<" not in name and key.kind is not dict:
                assert name in rows, name


def test_no_repr_shows_a_secret(place: Place) -> None:
    settings = place.load_local(f'[providers.registry.openai]\napi_key = "{SECRET}"\n')
    chosen = place.select(settings)
    assert chosen.credential is not None
    assert chosen.credential.value == SECRET
    for thing in (settings, settings.agent, chosen, chosen.credential):
        assert SECRET not in repr(thing)


# ---------------------------------------------------------------------------------------- the guest


def test_a_guest_gets_everything_but_the_keys(place: Place) -> None:
    place.env |= {"CORP": SECRET, "ANTHROPIC_API_KEY": SECRET}
    named = place.local_files(
        f'[providers.registry.openai]\napi_key = "{SECRET}"\n'
        '[providers.registry.corp]\nprovider_type = "openai"\napi_key_env = "CORP"\n'
        'api_key_cmd = "pass show corp"\n'
        '[agents.a]\nsystem_prompt = "Hi."\nmax_cost = 0.1\n[runtime]\nmax_turns = 7\n',
        user='[behavior]\ntimezone = "Europe/Berlin"\n[credential_refs]\ncorp = "env:CORP"\n',
    )
    settings = place.load(named)
    chosen = place.select(settings)
    told = config.effective(settings, chosen)
    text = json.dumps(told)
    for hidden in (SECRET, "CORP", "pass show", "api_key", "credential_refs"):
        assert hidden not in text
    guest = config.from_effective(json.loads(text))
    assert guest.model == chosen.spec
    assert guest.providers.registry["openai"] == config.ProviderConfig(provider_type="openai")
    assert (guest.selection.provider, guest.selection.model) == ("openai", chosen.model)
    assert guest.reason == chosen.reason
    assert guest.scheduler.default_timezone == "Europe/Berlin"
    assert guest.runtime == settings.agent.runtime
    assert guest.gateway == settings.agent.gateway
    assert guest.agents["a"].max_cost == Decimal("0.1")


def test_a_key_that_was_written_elsewhere_too_never_reaches_a_guest(place: Place) -> None:
    settings = place.load_local(
        f'[providers.registry.openai]\napi_key = "{SECRET}"\n'
        f'[agents.a]\nsystem_prompt = "Use {SECRET}."\n'
    )
    with pytest.raises(ConfigError, match="another place") as caught:
        config.effective(settings, place.select(settings))
    assert SECRET not in str(caught.value)


def test_a_placeholder_for_a_key_may_be_any_word(place: Place) -> None:
    place.env["OPENAI_API_KEY"] = "openai"
    settings = place.load_local()
    assert config.effective(settings, place.select(settings))


def test_fallbacks_are_a_list_of_tables(place: Place) -> None:
    text = '[selection]\nfallback = [{provider = "ollama", model = "m"}]\n'
    named = place.local_files(text)
    (choice,) = place.load(named).agent.selection.fallback
    assert (choice.provider, choice.model) == ("ollama", "m")
    variable = "OXYDRA__SELECTION__FALLBACK"
    place.env[variable] = '[{provider = "openai"}, {provider = "gemini"}]'
    assert [c.provider for c in place.load(named).agent.selection.fallback] == ["openai", "gemini"]
    for wrong, match in (
        ('[{provider = "opnai"}]', "opnai"),
        ('[{provdier = "openai"}]', "provider"),
        ("[{}]", "provider"),
        ("openai", "a list of tables"),
    ):
        place.env[variable] = wrong
        with pytest.raises(ConfigError, match=match):
            place.load(named)


def test_a_guest_is_as_strict_as_a_file(place: Place) -> None:
    settings = place.load_local()
    told = config.effective(settings, place.select(settings))
    config.from_effective(told)
    wrong: list[dict[str, Any]] = [
        told | {"runtme": {}},
        told | {"runtime": {"max_turns": "3"}},
        told | {"models": []},
        told | {"models": [{}]},
        told | {"models": None},
        told | {"models": [told["models"][0] | {"provider": "nobody"}]},
    ]
    leaky = json.loads(json.dumps(told))
    leaky["providers"]["registry"]["openai"]["api_key"] = SECRET
    for table in (*wrong, leaky):
        with pytest.raises(ConfigError, match="bootstrap") as caught:
            config.from_effective(table)
        assert SECRET not in str(caught.value)


@given(
    turns=st.integers(1, 10_000),
    cost=st.none() | st.decimals(0, 10_000, places=6),
    ratio=st.floats(0.51, 1.0),
    hosts=st.lists(st.from_regex(r"[a-z0-9.-]{1,20}", fullmatch=True)),
    prompt=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
)
def test_what_a_guest_is_told_comes_back_the_same(
    turns: int, cost: Decimal | None, ratio: float, hosts: list[str], prompt: str
) -> None:
    from dataclasses import replace

    from oxydra.config.check import build, read
    from oxydra.config.schema import (
        AgentProfile,
        ContextBudgetConfig,
        GatewayConfig,
        RuntimeConfig,
    )

    agent = replace(
        AgentConfig(),
        runtime=RuntimeConfig(
            max_turns=turns, max_cost=cost, context_budget=ContextBudgetConfig(trigger_ratio=ratio)
        ),
        gateway=GatewayConfig(allowed_hosts=tuple(hosts)),
        agents={"a": AgentProfile(system_prompt=prompt)},
    )
    table = json.loads(json.dumps(dump(agent, for_guest=True)))

    def fail(path: tuple[str, ...], message: str, remedy: str) -> ConfigError:
        return ConfigError(message, remedy=remedy, key=".".join(path))

    assert build(AgentConfig, read(AgentConfig, table, fail), fail) == agent


# ---------------------------------------------------------------------------- the schema, its docs


def test_sections_are_set_once() -> None:
    settings = AgentConfig()
    with pytest.raises(AttributeError, match="memory"):
        settings.memory = settings.memory  # type: ignore[misc]


def reference() -> str:
    """The table of all keys as docs/configuration.md has it."""
    parts = []
    for title, schema in (
        ("agent.toml and providers.toml", AgentConfig),
        ("runner.toml", RunnerConfig),
        ("users/&lt;id&gt;.toml", UserConfig),
    ):
        parts.append(f"\n### {title}\n\n| key | type | default | meaning |\n|---|---|---|---|\n")
        parts += [row(name, key) for name, key in all_keys(schema)]
    return "".join(parts)


def row(name: str, key: Any) -> str:
    if key.required:
        default = "required"
    elif key.default is None:
        default = "unset"
    elif isinstance(key.default, dict):
        default = "`{}`"
    elif isinstance(key.default, Decimal):
        default = f"`{key.default}`"
    else:
        default = f"`{json.dumps(key.default)}`"
    limits = [f"at least {key.meta['least']:g}"] if key.meta["least"] is not None else []
    limits += [f"at most {key.meta['most']:g}"] if key.meta["most"] is not None else []
    kind = ", ".join([key.type_name, *limits]).replace("|", "\\|")
    return f"| `{name}` | {kind} | {default} | {key.meta['doc'].replace('|', chr(92) + '|')} |\n"


def test_every_key_is_documented_as_the_schema_has_it() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    begin, end = MARKS
    written = text[text.index(begin) + len(begin) + 1 : text.index(end)]
    assert written == reference(), "paste what reference() returns between the marks"


def test_every_key_says_what_it_means() -> None:
    schemas: tuple[type[Section], ...] = (AgentConfig, RunnerConfig, UserConfig)
    for schema in schemas:
        for name, key in all_keys(schema):
            assert key.meta["doc"].endswith((".", ":")), name


def test_defaults_are_valid(place: Place) -> None:
    settings = place.load_local()
    shown = {".".join(path): value for path, _, value in leaves_of(settings.agent)}
    assert shown["runtime.max_turns"] == 50
    assert settings.agent == place.load_local("[runtime]\n[tools.shell]\n").agent


def test_importing_stays_light() -> None:
    """Start-up time: nothing heavy is imported before it is needed."""
    done = subprocess.run(
        [sys.executable, "-c", "import oxydra.config, sys; print(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    heavy = {"tomli", "hashlib", "difflib", "subprocess", "zoneinfo", "requests"}
    assert not heavy & set(done.stdout.split())
