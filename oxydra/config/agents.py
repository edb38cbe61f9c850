"""Which models answer for each agent of `[agents]`, and which makes summaries. Only the runner
resolves them: it has the keys.

An agent whose selection names neither a provider nor a model is answered by those of `[selection]`;
one that names only a model takes it from that provider, one that names no fallback has that of
`[selection]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from oxydra.config.credentials import OFFLINE, Models, Selection, select
from oxydra.config.load import Config
from oxydra.config.schema import AgentProfile, FallbackConfig


def agent_models(
    config: Config,
    catalog: Models,
    chain: Sequence[Selection],
    env: Mapping[str, str] | None = None,
) -> dict[str, list[Selection]]:
    """The first choice and the fallbacks of every agent; `chain` are those of `[selection]`.

    Raises `ConfigError`, with file and line, for a provider without its key and a model that does
    not exist.
    """
    found = {}
    for name, profile in config.agent.agents.items():
        where = f"agents.{name}.selection"
        first = _first(config, catalog, profile, chain[0], where, env)
        fallback = [
            select(config, catalog, env, wanted=wanted, where=where)
            for wanted in profile.selection.fallback
        ]
        found[name] = [first, *(fallback or chain[1:])]
    return found


def _first(
    config: Config,
    catalog: Models,
    profile: AgentProfile,
    general: Selection,
    where: str,
    env: Mapping[str, str] | None,
) -> Selection:
    provider, model = profile.selection.provider, profile.selection.model
    if provider == "auto" and (not model or general.provider == OFFLINE):
        return general  # without any key the offline model plays every part
    named = general.provider if provider == "auto" else provider
    wanted = FallbackConfig(provider=named, model=model)
    return select(config, catalog, env, wanted=wanted, where=where)


def summary_model(
    config: Config,
    catalog: Models,
    general: Selection,
    env: Mapping[str, str] | None = None,
) -> Selection | None:
    """The model of `[runtime.summarization]`; None where each agent's own makes summaries, and
    where without any key the `general` one of `[selection]` is the offline model.

    Raises `ConfigError` like `agent_models`.
    """
    wanted = config.agent.runtime.summarization
    named = wanted.provider
    if named == "auto":
        if not wanted.model or general.provider == OFFLINE:
            return None
        named = general.provider
    choice = FallbackConfig(provider=named, model=wanted.model)
    return select(config, catalog, env, wanted=choice, where="runtime.summarization")
