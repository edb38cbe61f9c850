"""Which tiers there are: one line each."""

from __future__ import annotations

import importlib

from oxydra.errors import ConfigError
from oxydra.tiers.base import Tier

TIERS = {
    "container": "oxydra.tiers.container:ContainerTier",
    "micro_vm": "oxydra.tiers.microvm:MicroVmTier",
    "process": "oxydra.tiers.process:ProcessTier",
}


def create(name: str) -> Tier:
    """The tier of that name. Raises `ConfigError` that lists those there are."""
    if name not in TIERS:
        raise ConfigError(
            f"The {name!r} tier is not part of this version (there is: {', '.join(TIERS)}).",
            remedy='Set default_tier = "process" in runner.toml, or start with --insecure.',
            key="default_tier",
        )
    module, _, attribute = TIERS[name].partition(":")
    tier: Tier = getattr(importlib.import_module(module), attribute)()
    return tier
