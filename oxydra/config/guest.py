"""What an agent guest is told: the effective configuration without a secret, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from oxydra.config.channels import ChannelsConfig
from oxydra.config.check import build, dotted, dump, find, read
from oxydra.config.credentials import Selection
from oxydra.config.fields import key, section
from oxydra.config.lines import KeyPath
from oxydra.config.load import Config
from oxydra.config.schema import AgentConfig
from oxydra.errors import ConfigError

if TYPE_CHECKING:  # importing it takes longer than the rest of this package
    from oxydra.budget import Caps
    from oxydra.types import ModelSpec

STRICTNESS = ("allow", "ask", "deny")
EXPIRY_SECS = 600.0  # of a request for an approval
SHORTEST_SECRET = 16  # what is shorter, like the "test" that a local server takes, is no secret


@section
class GuestConfig(AgentConfig):
    """`AgentConfig` as a guest knows it: which models answer is decided.

    `models` are the first choice and its fallbacks, each with the name of its entry in the registry
    as `provider`; `reason` says why the first one. `agent_models` are those of the agents,
    `summary_models` the one that makes summaries, if it is none of them.
    """

    models: tuple[ModelSpec, ...] = key(..., "")
    reason: str = key("", "")
    agent_models: dict[str, tuple[ModelSpec, ...]] = key(dict, "")
    summary_models: tuple[ModelSpec, ...] = key((), "")

    @property
    def model(self) -> ModelSpec:
        """The first choice."""
        return self.models[0]


def effective(
    config: Config,
    selection: Selection,
    fallback: Sequence[Selection] = (),
    agents: Mapping[str, Sequence[Selection]] | None = None,
    summaries: Selection | None = None,
) -> dict[str, Any]:
    """What goes into the bootstrap envelope. Raises `ConfigError` if a key got into it.

    Files that the configuration names are in it, the user's time zone is the scheduler's default,
    their shell_enabled is in the shell's, and `selection` stands in the place of `auto`. `agents`
    has the models of each agent; `summaries` makes summaries, None: each agent's own model does.
    """
    agent = config.agent
    chosen = replace(agent.selection, provider=selection.provider, model=selection.model)
    zone = config.user.behavior.timezone or agent.scheduler.default_timezone
    enabled = agent.tools.shell.enabled and config.user.behavior.shell_enabled
    agent = replace(
        agent,
        selection=chosen,
        scheduler=replace(agent.scheduler, default_timezone=zone),
        tools=replace(agent.tools, shell=replace(agent.tools.shell, enabled=enabled)),
    )
    result = dump(agent, for_guest=True)
    chain = (selection, *fallback)
    result["models"] = [choice.spec.to_json() for choice in chain]
    agents = agents or {}
    result["agent_models"] = {
        name: [choice.spec.to_json() for choice in own] for name, own in agents.items()
    }
    chain += tuple(choice for own in agents.values() for choice in own)
    made = () if summaries is None else (summaries,)
    result["summary_models"] = [choice.spec.to_json() for choice in made]
    chain += made
    result["reason"] = selection.reason
    secrets = {name: entry.api_key for name, entry in agent.providers.registry.items()}
    secrets |= {c.provider: c.credential.value for c in chain if c.credential is not None}
    text = json.dumps(result, ensure_ascii=False)
    for name, secret in secrets.items():
        if len(secret) >= SHORTEST_SECRET and json.dumps(secret, ensure_ascii=False)[1:-1] in text:
            raise ConfigError(
                f"The key of provider {name!r} also stands at another place of the configuration, "
                "where the agent guest would see it.",
                remedy="Look for it in system prompts, extra_headers and base_url, and remove it.",
            )
    return result


def runtime_policy(config: Config) -> dict[str, Any]:
    """What limits this user's agent, for the bootstrap envelope.

    `approvals.rules` has the runner's rules and the user's: both have a say and the stricter
    counts, so that a user's file can narrow and never widen. `exfiltration` and `expiry_secs` are
    the stricter of the two, `private` is what either names. `egress_allowlist` has the local
    services that web tools may reach; `budget` has the stricter of each cap. The workspace's own
    folders hold `workspace_bytes` at most. `channels` are the user's bots, without their tokens.
    `log_format` is what the guest logs as.
    """
    both = (config.runner.approvals, config.user.approvals)
    decisions = [a.exfiltration or "ask" for a in both[:1]]
    decisions += [a.exfiltration for a in both[1:] if a.exfiltration]
    seconds = [a.expiry_secs for a in both if a.expiry_secs is not None]
    return {
        "approvals": {
            "rules": [dump(approvals, for_guest=True)["rules"] for approvals in both],
            "exfiltration": max(decisions, key=STRICTNESS.index),
            "expiry_secs": min(seconds, default=EXPIRY_SECS),
            "private": sorted({path for approvals in both for path in approvals.private}),
        },
        "egress_allowlist": list(_allowed_services(config)),
        "budget": caps(config).to_json(),
        "workspace_bytes": config.user.resources.max_workspace_mib << 20,
        "channels": dump(config.user.channels, for_guest=True),
        "log_format": config.runner.log_format,
    }


def channels(policy: Mapping[str, Any]) -> ChannelsConfig:
    """The user's bots, out of a `runtime_policy`. Raises `ConfigError`."""

    def fail(path: KeyPath, message: str, remedy: str) -> ConfigError:
        key = dotted(("channels", *path))
        return ConfigError(message, remedy=remedy, file="bootstrap", key=key)

    return build(ChannelsConfig, read(ChannelsConfig, policy.get("channels", {}), fail), fail)


def caps(config: Config) -> Caps:
    """What the user's model calls may cost: of each cap the stricter one. A model without a price
    is for runner.toml to allow, or where that sets no cap and does not say, for the user's file.
    """
    from oxydra.budget import Caps
    from oxydra.budget.caps import CAPS, stricter

    ours, theirs = config.runner.budget, config.user.budget
    amounts = {name: stricter(getattr(ours, name), getattr(theirs, name)) for name in CAPS}
    allowed = ours.allow_unpriced
    if allowed is None:
        capped = any(getattr(ours, name) is not None for name in CAPS)
        allowed = not capped and bool(theirs.allow_unpriced)
    return Caps(**amounts, allow_unpriced=allowed and theirs.allow_unpriced is not False)


def from_effective(table: dict[str, Any]) -> GuestConfig:
    """The way back, in the guest: as strict as with a file. Raises `ConfigError`."""

    def fail(path: KeyPath, message: str, remedy: str) -> ConfigError:
        return ConfigError(message, remedy=remedy, file="bootstrap", key=dotted(path))

    table = dict(table)
    models, reason = table.pop("models", None), str(table.pop("reason", ""))
    of_agents = table.pop("agent_models", {})
    of_summaries = table.pop("summary_models", [])
    leaves = read(AgentConfig, table, fail)
    for path in leaves:
        found = find(AgentConfig, path)
        if found is not None and found.meta["runner_only"]:
            raise fail(path, f"{dotted(path)} must not reach a guest.", "")
    agent = build(AgentConfig, leaves, fail)
    try:
        chains = {name: _specs(rows) for name, rows in {"": models, **of_agents}.items()}
        specs = chains.pop("")
        every = [specs, *chains.values()]
        registry = agent.providers.registry
        known = all(chain and all(spec.provider in registry for spec in chain) for chain in every)
        known = known and set(chains) <= set(agent.agents)
        summaries = _specs(of_summaries)
        known = known and all(spec.provider in registry for spec in summaries)
    except (KeyError, TypeError, ValueError, ArithmeticError):
        known = False
    if not known:
        raise fail(("models",), "The models' description is broken.", "")
    return GuestConfig(
        **vars(agent),
        models=specs,
        reason=reason,
        agent_models=chains,
        summary_models=summaries,
    )


def _specs(rows: Sequence[dict[str, Any]]) -> tuple[ModelSpec, ...]:
    from oxydra.types import ModelSpec

    return tuple(ModelSpec.from_json(row) for row in rows)


def _allowed_services(config: Config) -> tuple[str, ...]:
    """Raises `ConfigError` where somebody else's folder would open this machine's services."""
    allowed = config.runner.tools.web.egress_allowlist
    source = config.source("tools.web.egress_allowlist", "runner")
    if allowed and not source.own:
        raise ConfigError(
            "egress_allowlist is not used: this file may have come with a cloned repository.",
            remedy=f"If it is yours, run: oxydra-runner trust '{source.folder or source.file}'.",
            file=source.file,
            line=source.line,
            key="tools.web.egress_allowlist",
        )
    return allowed
