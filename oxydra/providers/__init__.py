"""Model providers: one file for each wire, and what they share.

`registry` knows the types, `base` and `http` are what a wire is built on, `failures` words its
errors, `repair` makes a history sendable.
"""

from oxydra.providers.base import ProviderSettings
from oxydra.providers.registry import (
    PROVIDERS,
    ProviderType,
    create,
    credential,
    provider_type,
)
from oxydra.providers.repair import repair

__all__ = [
    "PROVIDERS",
    "ProviderSettings",
    "ProviderType",
    "create",
    "credential",
    "provider_type",
    "repair",
]
