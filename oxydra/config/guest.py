"""What an agent guest is told: the effective configuration without a secret, as JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from oxydra.config.check import build, dotted, dump, find, read
from oxydra.config.credentials import Selection
from oxydra.config.lines import KeyPath
from oxydra.config.load import Config
from oxydra.config.schema import AgentConfig, ProviderConfig, key, section
from oxydra.errors import ConfigError

if TYPE_CHECKING:  # importing it takes longer than the rest of this package
    from oxydra.types import ModelSpec

SHORTEST_SECRET = 16  # what is shorter, like the "test" that a local server takes, is no secret


@section
class GuestConfig(AgentConfig):
    """`AgentConfig` as a guest knows it: its provider and model are decided.

    `provider` is the entry of the registry named `model.provider`; `reason` says why that one.
    """

    provider: ProviderConfig = key(..., "")
    model: ModelSpec = key(..., "")
    reason: str = key("", "")


def effective(config: Config, selection: Selection) -> dict[str, Any]:
    """What goes into the bootstrap envelope. Raises `ConfigError` if a key got into it.

    Files that the configuration names are in it, the user's time zone is the scheduler's default,
    and `selection` stands in the place of `auto`.
    """
    agent = config.agent
    chosen = replace(agent.selection, provider=selection.provider, model=selection.model)
    zone = config.user.behavior.timezone or agent.scheduler.default_timezone
    agent = replace(
        agent, selection=chosen, scheduler=replace(agent.scheduler, default_timezone=zone)
    )
    result = dump(agent, for_guest=True)
    result["model"] = selection.spec.to_json()
    result["reason"] = selection.reason
    secrets = {name: entry.api_key for name, entry in agent.providers.registry.items()}
    if selection.credential is not None:
        secrets[selection.provider] = selection.credential.value
    text = json.dumps(result, ensure_ascii=False)
    for name, secret in secrets.items():
        if len(secret) >= SHORTEST_SECRET and json.dumps(secret, ensure_ascii=False)[1:-1] in text:
            raise ConfigError(
                f"The key of provider {name!r} also stands at another place of the configuration, "
                "where the agent guest would see it.",
                remedy="Look for it in system prompts, extra_headers and base_url, and remove it.",
            )
    return result


def from_effective(table: dict[str, Any]) -> GuestConfig:
    """The way back, in the guest: as strict as with a file. Raises `ConfigError`."""
    from oxydra.types import ModelSpec

    def fail(path: KeyPath, message: str, remedy: str) -> ConfigError:
        return ConfigError(message, remedy=remedy, file="bootstrap", key=dotted(path))

    table = dict(table)
    model, reason = table.pop("model", None), str(table.pop("reason", ""))
    leaves = read(AgentConfig, table, fail)
    for path in leaves:
        found = find(AgentConfig, path)
        if found is not None and found.meta["runner_only"]:
            raise fail(path, f"{dotted(path)} must not reach a guest.", "")
    agent = build(AgentConfig, leaves, fail)
    try:
        spec = ModelSpec.from_json(model)
        entry = agent.providers.registry[spec.provider]
    except (KeyError, TypeError, ValueError, ArithmeticError):
        raise fail(("model",), "The model's description is broken.", "") from None
    return GuestConfig(**vars(agent), provider=entry, model=spec, reason=reason)
