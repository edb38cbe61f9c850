"""Where a provider's key is found, whether it may go to that provider, and which provider answers.

Only the runner does this. The order, first found wins: `credential_refs` of the user's file,
`api_key`, `api_key_cmd`, `api_key_env`, the type's own variable, the key kept by `key set
<provider>`, `API_KEY`. Where a variable is not set, a key kept by `key set <VARIABLE>` stands in
for it (systemd and cron have no login environment).

A key leaves only for its type's official host, unless the user's or the system's own configuration
says where the provider is: `base_url` in a folder that may have come with a cloned repository can't
take a key along, not even to a loopback address.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from oxydra.config import files
from oxydra.config.egress import effective_egress
from oxydra.config.fields import Section, key, section
from oxydra.config.load import Config, Kind, Source
from oxydra.config.mcp import references
from oxydra.config.schema import (
    BASE_URLS,
    CATALOG_PROVIDERS,
    GENERIC_VARIABLE,
    VARIABLES,
    FallbackConfig,
    ProviderConfig,
    SelectionConfig,
)
from oxydra.errors import ConfigError

if TYPE_CHECKING:  # importing it takes longer than the rest of this package
    from oxydra.types import ModelSpec

AUTO_ORDER = ("openai", "anthropic", "gemini")
LOCAL = "ollama"  # gets only a key that names it: what is in the environment is not meant for it
OFFLINE = "offline"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
COMMAND_SECONDS = 10.0
MAX_KEY = 16 << 10


@section
class Credential(Section):
    """A provider's key, and where it was found (fit to be shown)."""

    provider: str = key(..., "")
    source: str = key(..., "")
    value: str = key(..., "", secret=True)


class Selection(NamedTuple):
    """Which model answers, and a sentence why; `credential` is None for a server without a key."""

    provider: str
    model: str
    spec: ModelSpec
    reason: str
    credential: Credential | None = None


def address(entry: ProviderConfig) -> str:
    """Where a provider is: its base_url, or its type's own; "" for `offline`."""
    return entry.base_url or BASE_URLS[entry.provider_type]


def is_official(entry: ProviderConfig) -> bool:
    """Whether it is its type's own service, over TLS."""
    if not entry.base_url:
        return True
    from urllib.parse import urlsplit

    given, own = urlsplit(entry.base_url), urlsplit(BASE_URLS[entry.provider_type])
    return (given.scheme, given.hostname, given.port or 443) == ("https", own.hostname, 443)


# ---------------------------------------------------------------------------------------- resolving


def resolve_credential(
    name: str,
    entry: ProviderConfig,
    config: Config,
    env: Mapping[str, str] | None = None,
    *,
    generic: bool = True,
) -> Credential | None:
    """The key of provider `name`; None if there is none. `generic` False leaves out `API_KEY`.

    Raises `ConfigError` if the key may not go where the provider is, if one that was named in
    credential_refs is missing, or if its command fails.
    """
    env = os.environ if env is None else env
    if entry.provider_type == "offline":
        return None
    finder = _Finder(name, entry, config, env)
    found = finder.named() or finder.usual(generic)
    if found is not None and not re.fullmatch(r"[\x21-\x7e]+", found.value):
        raise ConfigError(
            f"The key of {name!r} in {found.source} holds characters that no key has.",
            remedy="It must be one line of visible ASCII without spaces.",
        )
    return found


class _Keys:
    """The keys of one section, with where they were set."""

    def __init__(self, config: Config, kind: Kind, section: str) -> None:
        self._config = config
        self._kind: Kind = kind
        self._section = section

    def refuse(self, name: str, message: str, remedy: str, command: str = "") -> ConfigError:
        """An error about one of them."""
        full = f"{self._section}.{name}"
        source = self._config.source(full, self._kind)
        return ConfigError(
            message,
            remedy=remedy,
            file=source.file,
            line=source.line,
            key=full,
            command=command,
        )

    def check_own(self, names: Iterable[str], secret: str) -> None:
        """Raises `ConfigError` where somebody else's folder says one of them: then `secret` stays
        where it is.
        """
        for name in names:
            source = self._config.source(f"{self._section}.{name}", self._kind)
            if not source.own:
                raise self.refuse(
                    name,
                    f"{secret} is not used: this file may have come with a cloned repository.",
                    f"If it is yours, run: oxydra-runner trust '{source.folder or source.file}'.",
                    f"oxydra-runner trust {shlex.quote(str(source.folder or source.file))}",
                )

    def named(self, name: str, variable: str, env: Mapping[str, str] | None) -> tuple[str, str]:
        """The key in a variable that the setting `name` names, and where it was found. Raises
        `ConfigError`.
        """
        value, label = _variable(variable, os.environ if env is None else env, self._config)
        if not re.fullmatch(r"[\x21-\x7e]+", value):
            raise self.refuse(
                name,
                f"There is no key in {variable}.",
                f"Set it, or keep it: {_set(variable)}.",
                _set(variable),
            )
        return value, label


def search_key(config: Config, env: Mapping[str, str] | None = None) -> Credential | None:
    """The key of the web search service; None where it takes none.

    Raises `ConfigError` if the service needs what is not there, or if the key may not go to it: a
    folder that may have come with a cloned repository may neither choose the variable nor the
    address.
    """
    search = config.agent.tools.web_search
    if search.provider != "google_cse":
        return None

    keys = _Keys(config, "agent", "tools.web_search")
    for name in ("api_key_env", "engine_id"):
        if not getattr(search, name):
            message = f"The search provider google_cse needs {name}."
            raise keys.refuse(
                name, message, "Set it in [tools.web_search], or use another provider."
            )
    keys.check_own(("api_key_env", "base_urls"), "The search key")
    value, label = keys.named("api_key_env", search.api_key_env, env)
    return Credential(provider="web_search", source=label, value=value)


def telegram_token(config: Config, env: Mapping[str, str] | None = None) -> Credential | None:
    """The token of the user's bot; None where there is none to be.

    Raises `ConfigError` if it is not there, or if a folder that may have come with a cloned
    repository says which variable it is or where it goes.
    """
    telegram = config.user.channels.telegram
    if not telegram.enabled:
        return None

    keys = _Keys(config, "user", "channels.telegram")
    keys.check_own(("enabled", "bot_token_env", "api_url"), "The bot's token")
    variable = telegram.bot_token_env
    value, label = _variable(variable, os.environ if env is None else env, config)
    if not re.fullmatch(r"[0-9]{1,20}:[A-Za-z0-9_-]{16,200}", value):
        raise keys.refuse(
            "bot_token_env",
            f"{variable} holds no token of a Telegram bot.",
            f"@BotFather gives one. Set it, or keep it: {_set(variable)}.",
            _set(variable),
        )
    return Credential(provider="telegram", source=label, value=value)


def mcp_keys(config: Config, env: Mapping[str, str] | None = None) -> dict[str, Credential]:
    """For each MCP server with a key in a header, the whole value of that header.

    Raises `ConfigError` if it is not there, or if a folder that may have come with a cloned
    repository says which variable it is or where it goes.
    """
    found = {}
    for name, server in config.agent.mcp.servers.items():
        if header := server.key_header:
            keys = _Keys(config, "agent", f"mcp.servers.{name}")
            keys.check_own(("url", f"headers.{header}"), f"The key of the MCP server {name}")
            text = server.headers[header]
            value, label = keys.named(f"headers.{header}", references(text)[0], env)
            before = text.rpartition("env:")[0]
            found[name] = Credential(provider=name, source=label, value=before + value)
    return found


def mcp_programs(
    config: Config, env: Mapping[str, str] | None = None
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The MCP servers that are programs, as the shell guest is told of them: rows `{command, env}`
    by name. And the keys that are in them. Raises `ConfigError` as `mcp_keys`.
    """
    found: dict[str, dict[str, Any]] = {}
    secrets = []
    for name, server in config.agent.mcp.servers.items():
        if not server.command:
            continue
        variables = dict(server.env)
        for variable, text in server.env.items():
            if references(text):
                keys = _Keys(config, "agent", f"mcp.servers.{name}")
                named = ("command", "args", f"env.{variable}")
                keys.check_own(named, f"The key of the MCP server {name}")
                value, _label = keys.named(f"env.{variable}", references(text)[0], env)
                variables[variable] = value
                secrets.append(value)
        found[name] = {"command": [server.command, *server.args], "env": variables}
    return found, secrets


def git_tokens(config: Config, env: Mapping[str, str] | None = None) -> dict[str, Credential]:
    """The token of each git host that the user's commands may reach, by host.

    Raises `ConfigError`, with file and line, if one is missing.
    """
    env = os.environ if env is None else env
    found = {}
    for host, reference in effective_egress(config).git_hosts.items():
        variable = reference.partition(":")[2]
        value, label = _variable(variable, env, config)
        if not re.fullmatch(r"[\x21-\x7e]+", value):
            source = config.values["runner"].source(("egress", "git_credentials", host))
            raise ConfigError(
                f"egress.git_credentials names {variable} for {host}, which holds no token.",
                remedy=f"Set it, or keep the token: {_set(variable)}.",
                command=_set(variable),
                file=source.file,
                line=source.line,
            )
        found[host] = Credential(provider=host, source=label, value=value)
    return found


def _set(variable: str) -> str:
    """The line that keeps a key under this name."""
    return f"oxydra-runner key set {variable}"


def _variable(variable: str, env: Mapping[str, str], config: Config) -> tuple[str, str]:
    """The value of an environment variable, or of the key kept under its name, and which it was."""
    if value := env.get(variable, "").strip():
        return value, f"the environment variable {variable}"
    return files.get_key(variable, config.home), f"key set {variable}"


class _Finder:
    """One search for the key of one provider."""

    def __init__(
        self, name: str, entry: ProviderConfig, config: Config, env: Mapping[str, str]
    ) -> None:
        self._name = name
        self._entry = entry
        self._config = config
        self._env = env

    def named(self) -> Credential | None:
        """What configuration says of this very provider."""
        entry, name = self._entry, self._name
        reference = self._config.user.credential_refs.get(name)
        if reference is not None:
            variable = reference.partition(":")[2]
            source = self._config.source(f"credential_refs.{name}", "user")
            value, label = self._variable(variable)
            if not value:
                raise ConfigError(
                    f"credential_refs.{name} names {variable}, which is not set.",
                    remedy=f"Set it, or keep the key: {_set(variable)}.",
                    command=_set(variable),
                    file=source.file,
                    line=source.line,
                )
            self._check_name(variable, source)
            return self._found(value, f"{label} ({source})", owned=source.own)
        if entry.api_key:
            source = self._source("api_key")
            if not source.own:  # the folder's own key may go where the folder says
                return Credential(provider=name, source=str(source), value=entry.api_key.strip())
            return self._found(entry.api_key, str(source), owned=True)
        if entry.api_key_cmd:
            source = self._source("api_key_cmd")
            if not source.own:
                raise self._refused(source, "api_key_cmd is not run", "it would run a command")
            self._check_place("the key of its api_key_cmd", owned=True)
            value = _run(entry.api_key_cmd, source)
            return Credential(provider=name, source=f"api_key_cmd ({source})", value=value)
        if entry.api_key_env:
            value, label = self._variable(entry.api_key_env)
            if value:
                source = self._source("api_key_env")
                self._check_name(entry.api_key_env, source)
                return self._found(value, label, owned=source.own)
        return None

    def usual(self, generic: bool) -> Credential | None:
        """What is found without being configured."""
        if self._name != LOCAL:
            value, label = self._variable(VARIABLES[self._entry.provider_type])
            if value:
                return self._found(value, label)
        if value := files.get_key(self._name, self._config.home):
            return self._found(value, f"key set {self._name}", owned=True)
        if generic and self._name != LOCAL:
            value, label = self._variable(GENERIC_VARIABLE)
            if value:
                return self._found(value, label)
        return None

    def _source(self, key: str) -> Source:
        return self._config.source(f"providers.registry.{self._name}.{key}")

    def _variable(self, variable: str) -> tuple[str, str]:
        return _variable(variable, self._env, self._config)

    def _found(self, value: str, label: str, *, owned: bool = False) -> Credential:
        """`owned`: the user's own configuration meant this key for this provider."""
        self._check_place(f"the key in {label}", owned)
        return Credential(provider=self._name, source=label, value=value.strip())

    def _check_place(self, what: str, owned: bool) -> None:
        """Raise unless the key may go where this provider is."""
        place, kind = self._source("base_url"), self._source("provider_type")
        if owned and not kind.own:
            raise self._refused(kind, f"{what} is not used", "it changes provider_type")
        if not is_official(self._entry) and not place.own:
            raise self._refused(
                place, f"{what} is not sent to {self._entry.base_url}", "it sets base_url"
            )

    def _check_name(self, variable: str, source: Source) -> None:
        """A foreign file may name the variable that is its type's own, and no other."""
        usual = (VARIABLES[self._entry.provider_type], GENERIC_VARIABLE)
        if not source.own and variable not in usual:
            raise self._refused(source, f"{variable} is not used", "it names that variable")

    def _refused(self, source: Source, what: str, why: str) -> ConfigError:
        folder = source.folder or source.file
        return ConfigError(
            f"Provider {self._name!r}: {what}, because {why} and may have come with a cloned "
            "repository.",
            remedy=f"If it is yours, run: oxydra-runner trust '{folder}'; or set it in "
            f"{self._config.home / 'providers.toml'}.",
            command=f"oxydra-runner trust {shlex.quote(str(folder))}",
            file=source.file,
            line=source.line,
            key=f"providers.registry.{self._name}",
        )


def _run(command: str, source: Source) -> str:
    """What `command` prints, run without a shell; its own messages go to our standard error."""
    import shlex
    import signal
    import subprocess

    def failed(how: str) -> ConfigError:
        return ConfigError(
            f"api_key_cmd {how}.",
            remedy="Run it by hand; it must print the key within 10 s and ask nothing.",
            file=source.file,
            line=source.line,
        )

    try:
        process = subprocess.Popen(
            shlex.split(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,  # one kill reaches all it started
        )
    except (OSError, ValueError, IndexError) as error:
        raise failed(f"can't be run: {error}") from None
    with process:
        try:
            output, _ = process.communicate(timeout=COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise failed(f"did not end within {COMMAND_SECONDS:g} s") from None
    if process.returncode:
        raise failed(f"failed with status {process.returncode}")
    value = output[: MAX_KEY + 1].decode("utf-8", "replace").strip()
    if not value:
        raise failed("printed nothing")
    return value


# ---------------------------------------------------------------------------------------- selecting


class Models(Protocol):
    """What is needed of the catalog."""

    def default_model(self, provider: str) -> str: ...

    def spec(
        self,
        provider: str,
        model: str,
        *,
        skip_validation: bool = False,
        fallback_context: int = 0,
    ) -> ModelSpec: ...


def answers(url: str) -> bool:
    """Whether something on this machine listens at a URL's port: a TCP connection within 0.2 s.

    False for every other host: what leaves the machine goes through the transport.
    """
    import socket
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    if parts.hostname not in LOOPBACK:
        return False
    family = socket.AF_INET6 if ":" in parts.hostname else socket.AF_INET
    try:
        with socket.socket(family) as sock:
            sock.settimeout(0.2)
            sock.connect((parts.hostname, parts.port or 80))
    except OSError:
        return False
    return True


def select(
    config: Config,
    catalog: Models,
    env: Mapping[str, str] | None = None,
    *,
    wanted: SelectionConfig | FallbackConfig | None = None,
    probe: Callable[[str], bool] = answers,
    where: str = "selection",
) -> Selection:
    """The model that `wanted` (by default `[selection]`) means; `where` it stands in agent.toml.

    `auto` takes the first provider whose key is found: openai, anthropic, gemini, then the other
    entries of the registry; `API_KEY`, which says nothing of its provider, counts only if no other
    key is there. Then a local Ollama for which `probe` says that it answers, then `offline`. Raises
    `ConfigError` for a provider without its key and a model that does not exist.
    """
    wanted = wanted or config.agent.selection
    registry = config.agent.providers.registry
    if wanted.provider == "auto":
        name, credential, reason = _choose(config, env, probe)
    else:
        name, reason = wanted.provider, f"It is set by {config.source(f'{where}.provider')}."
        credential = resolve_credential(name, registry[name], config, env)
        if credential is None and address(registry[name]) and is_official(registry[name]):
            raise _no_key(name, config, where)
    entry = registry[name]
    spec = _spec(name, entry, wanted.model, config, catalog, where)
    return Selection(name, spec.id, spec, reason, credential)


def _choose(
    config: Config, env: Mapping[str, str] | None, probe: Callable[[str], bool]
) -> tuple[str, Credential | None, str]:
    registry = config.agent.providers.registry
    names = [*AUTO_ORDER, *(n for n in registry if n not in (*AUTO_ORDER, LOCAL, OFFLINE))]
    for generic in (False, True):
        for name in names:
            found = resolve_credential(name, registry[name], config, env, generic=generic)
            if found is not None:
                return name, found, f"Its key was found in {found.source}."
    url = address(registry[LOCAL])
    if probe(url):
        found = resolve_credential(LOCAL, registry[LOCAL], config, env)
        return LOCAL, found, f"No key was found, and a local Ollama answers at {url}."
    return (
        OFFLINE,
        None,
        (
            "No key was found and no local Ollama answers, so no model is configured: the built-in "
            "offline one plays along. Set OPENAI_API_KEY, ANTHROPIC_API_KEY or GEMINI_API_KEY, or "
            "run `oxydra-runner key set OPENAI_API_KEY`, and restart."
        ),
    )


def _no_key(name: str, config: Config, where: str) -> ConfigError:
    entry = config.agent.providers.registry[name]
    variable = entry.api_key_env or VARIABLES[entry.provider_type]
    source = config.source(f"{where}.provider")
    return ConfigError(
        f"There is no key for provider {name!r}.",
        remedy=f"Set {variable}, or keep it: {_set(variable)}.",
        command=_set(variable),
        file=source.file,
        line=source.line,
        key=f"{where}.provider",
    )


def _spec(
    name: str, entry: ProviderConfig, model: str, config: Config, catalog: Models, where: str
) -> ModelSpec:
    """What is known of the model, with the limits that the registry's entry sets."""
    described = entry.catalog_provider or (
        CATALOG_PROVIDERS.get(entry.provider_type, OFFLINE) if name != LOCAL else LOCAL
    )
    # A server of one's own serves what it likes; the catalog binds those that it describes.
    foreign = not entry.catalog_provider and not is_official(entry)
    try:
        spec = catalog.spec(
            described,
            model or catalog.default_model(described),
            skip_validation=foreign or config.agent.catalog.skip_catalog_validation,
            fallback_context=config.agent.runtime.context_budget.fallback_max_context_tokens,
        )
    except ConfigError as error:
        source = config.source(f"{where}.model")
        raise ConfigError(
            error.message,
            remedy=error.remedy,
            file=source.file,
            line=source.line,
            key=f"{where}.model",
        ) from None
    limits = {
        limit: value
        for limit in ("max_input_tokens", "max_output_tokens", "max_context_tokens", "reasoning")
        if (value := getattr(entry, limit)) is not None
    }
    return replace(spec, provider=name, **limits)
