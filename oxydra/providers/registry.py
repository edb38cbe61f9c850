"""The provider types: a new one is one file and one line here.

Also the one place that knows how each type sends its key.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace

from oxydra.config import ProviderConfig
from oxydra.config.schema import BASE_URLS, VARIABLES
from oxydra.errors import ConfigError
from oxydra.providers.base import ProviderSettings
from oxydra.transport import Credential, Transport, origin_of
from oxydra.types import Provider


@dataclass(frozen=True, slots=True)
class ProviderType:
    """`target` is `module:Class`, called with settings and transport; `key_header` and `key_prefix`
    say how the type's key is sent.
    """

    target: str
    key_header: str = "Authorization"
    key_prefix: str = "Bearer "


PROVIDERS = {
    "openai": ProviderType("oxydra.providers.openai:OpenAI"),
    "openai_responses": ProviderType("oxydra.providers.responses:Responses"),
    "anthropic": ProviderType("oxydra.providers.anthropic:Anthropic", "x-api-key", ""),
    "gemini": ProviderType("oxydra.providers.gemini:Gemini", "x-goog-api-key", ""),
    "offline": ProviderType("oxydra.providers.offline:Offline"),
}


def provider_type(name: str) -> ProviderType:
    """The type `name`; raises `ConfigError` that lists the known ones."""
    found = PROVIDERS.get(name)
    if found is None:
        known = ", ".join(PROVIDERS)
        raise ConfigError(
            f"There is no provider type {name!r}.", remedy=f"The known ones are: {known}."
        )
    return found


def create(settings: ProviderSettings, transport: Transport) -> Provider:
    """The provider that `settings` describe; its module is imported now."""
    kind = provider_type(settings.provider_type)
    module, _, name = kind.target.partition(":")
    provider: Provider = getattr(importlib.import_module(module), name)(
        replace(
            settings,
            base_url=settings.base_url or BASE_URLS[settings.provider_type],
            key_source=settings.key_source or VARIABLES.get(settings.provider_type, ""),
        ),
        transport,
    )
    return provider


def settings(name: str, entry: ProviderConfig, *, credential: str = "") -> ProviderSettings:
    """What a provider needs of its entry in the configuration's registry."""
    return ProviderSettings(
        name=name,
        provider_type=entry.provider_type,
        base_url=entry.base_url,
        credential=credential,
        extra_headers=entry.extra_headers,
        store=entry.store,
    )


def credential(settings: ProviderSettings, key: str) -> Credential:
    """How the transport must send `key` for this provider: bound to the origin of its address."""
    kind = provider_type(settings.provider_type)
    origin = origin_of(settings.base_url or BASE_URLS[settings.provider_type])
    return Credential(kind.key_header, kind.key_prefix + key.strip(), origin)
