"""What a daemon is started with: configuration, keys and model, read and resolved once."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from oxydra import config
from oxydra.broker import Destinations
from oxydra.catalog import Catalog
from oxydra.config import Config, Isolation, Selection
from oxydra.errors import ConfigError, UsageError
from oxydra.policy.network import Egress
from oxydra.providers import registry
from oxydra.runner.workspace import Workspace
from oxydra.skills import Shelf
from oxydra.transport import Route, Routes
from oxydra.types import Json


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """What a daemon is started with.

    `config` is the effective configuration without secrets, as the guest gets it; `routes` are the
    services it may reach through the broker, with their keys, `git_tokens` those of git hosts;
    `servers` are programs that the shell guest may start by name, `server_keys` the keys in them;
    `port` 0 takes any free one; `policy` is what limits the user's agent, `isolation` what holds
    the guests; `shelf` are the skills.
    """

    workspace: Workspace
    tier: str
    config: Json
    routes: tuple[Route, ...]
    isolation: Isolation
    shelf: Shelf = field(default_factory=lambda: Shelf((), {}))
    git_tokens: Mapping[str, str] = field(default_factory=dict, repr=False)
    servers: Mapping[str, Json] = field(default_factory=dict, repr=False)
    server_keys: Sequence[str] = field(default=(), repr=False)
    listen: str = "127.0.0.1"
    port: int = 0
    notices: tuple[Json, ...] = ()
    policy: Json = field(default_factory=dict)
    log_format: Literal["text", "json"] = "text"

    def destinations(self) -> Destinations:
        """Where the broker lets the guests go."""
        return Destinations(
            routes=Routes(self.routes),
            egress=Egress.parse(self.policy.get("egress_allowlist", ())),
            shell=self.isolation.egress,
            git=self.git_tokens,
        )

    def secrets(self) -> list[str]:
        """Every value that must not be seen outside: keys, and headers that carry them."""
        values = [r.credential.value for r in self.routes if r.credential is not None]
        values += [*self.git_tokens.values(), *self.server_keys]
        return [*values, *(value.rpartition(" ")[2] for value in values)]


def from_config(settings: Config) -> RunnerSettings:
    """Raises `ConfigError`."""
    catalog = Catalog.load(home=settings.home)
    wanted = settings.agent.selection.fallback
    chain = [config.select(settings, catalog)]
    chain += [config.select(settings, catalog, wanted=choice) for choice in wanted]
    agents = config.agent_models(settings, catalog, chain)
    summaries = config.summary_model(settings, catalog, chain[0])
    _check_tools(settings)
    routes: list[Route] = []
    every = [*chain, *(one for own in agents.values() for one in own)]
    every += [] if summaries is None else [summaries]
    for selection in _once(every):
        entry = settings.agent.providers.registry[selection.provider]
        key = selection.credential.value if selection.credential is not None else ""
        route = registry.route(registry.settings(selection.provider, entry), key)
        if route is not None:
            routes.append(route)
    routes += _embedding_routes(settings)
    keys = [route.name for route in routes if route.credential is not None]
    if (found := config.search_key(settings)) is not None:
        from oxydra.tools.web import search_routes

        routes += search_routes(settings.agent.tools.web_search, found.value)
    if (bot := config.telegram_token(settings)) is not None:
        from oxydra.channels.route import telegram_route

        routes.append(telegram_route(settings.user.channels.telegram, bot.value))
    routes += _mcp_routes(settings)
    keys += [r.name for r in routes if r.credential is not None and r.name.startswith("mcp:")]
    servers, server_keys = config.mcp_programs(settings)
    notices: list[Json] = []
    if chain[0].provider == "offline":
        notices.append({"code": "no_model", "detail": chain[0].reason})
    isolation = config.isolation(settings)
    shelf = Shelf.of(settings)
    notices += shelf.notices()
    made = RunnerSettings(
        workspace=Workspace(
            *(settings.workspace_root, settings.user_id, isolation.mounts), skills=bool(shelf.used)
        ),
        shelf=shelf,
        tier=settings.tier,
        config=config.effective(settings, chain[0], chain[1:], agents, summaries),
        routes=tuple(routes),
        listen=_address(settings),
        port=settings.agent.gateway.port,
        notices=tuple(notices),
        policy={**config.runtime_policy(settings), "keys": sorted(set(keys))},
        log_format=settings.runner.log_format,
        isolation=isolation,
        servers=servers,
        server_keys=server_keys,
        git_tokens={host: token.value for host, token in config.git_tokens(settings).items()},
    )
    return replace(made, policy={**made.policy, "skills": shelf.rows(made.secrets())})


def _mcp_routes(settings: Config) -> list[Route]:
    """The ways to MCP servers. Raises `ConfigError`."""
    servers = {name: one for name, one in settings.agent.mcp.servers.items() if one.url}
    if not servers:
        return []
    from oxydra.mcp.route import mcp_route

    found = config.mcp_keys(settings)
    return [
        mcp_route(name, server, found[name].value if name in found else "")
        for name, server in servers.items()
    ]


def _embedding_routes(settings: Config) -> list[Route]:
    """Where memory's vectors are made, if that is not here. Raises `ConfigError`."""
    memory = settings.agent.memory
    if not memory.enabled or memory.embedding_backend != "openai_compatible":
        return []
    name = memory.embedding_provider
    entry = settings.agent.providers.registry[name]
    found = config.resolve_credential(name, entry, settings)
    key = found.value if found is not None else ""
    return [registry.embeddings_route(registry.settings(name, entry), key)]


def _address(settings: Config) -> str:
    """Where the gateway listens. Raises `ConfigError` where its tokens would cross a network as
    they are: TLS is a reverse proxy's work.
    """
    gateway, source = settings.agent.gateway, settings.source("gateway.listen")
    if not ipaddress.ip_address(gateway.listen).is_loopback and not gateway.behind_proxy:
        raise ConfigError(
            f"The gateway would listen on {gateway.listen} without TLS: tokens and conversations "
            "could be read on the way.",
            remedy="Put a reverse proxy with TLS before it and set behind_proxy = true "
            "(docs/access.md), or take the key out.",
            file=source.file,
            line=source.line,
            key="gateway.listen",
        )
    return gateway.listen


def _once(selections: Sequence[Selection]) -> list[Selection]:
    """One for each provider, in order: a model makes no difference to where requests go."""
    found: dict[str, Selection] = {}
    for selection in selections:
        found.setdefault(selection.provider, selection)
    return list(found.values())


def _check_tools(settings: Config) -> None:
    """Raises `ConfigError` where an agent is given a tool that there is not."""
    from oxydra.tools.registry import check_pattern

    for name, profile in settings.agent.agents.items():
        for pattern in profile.tools or ():
            try:
                check_pattern(pattern)
            except UsageError as error:
                key = f"agents.{name}.tools"
                source = settings.source(key)
                raise ConfigError(
                    f"{key}: {error.message}",
                    remedy=error.remedy,
                    file=source.file,
                    line=source.line,
                    key=key,
                ) from None
