"""The provider types: a new one is one file and one line here.

Also the one place that knows how each type sends its key.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from oxydra.config import ProviderConfig
from oxydra.config.schema import BASE_URLS, VARIABLES
from oxydra.errors import ConfigError
from oxydra.providers.base import ProviderSettings
from oxydra.transport import Credential, Route, Transport, origin_of
from oxydra.types import Provider


@dataclass(frozen=True, slots=True)
class ProviderType:
    """`target` is `module:Class`, called with settings and transport; `path` a pattern of what
    follows the version in the addresses it posts to; `key_header` and `key_prefix` say how the
    type's key is sent.
    """

    target: str
    path: str
    key_header: str = "Authorization"
    key_prefix: str = "Bearer "


PROVIDERS = {
    "openai": ProviderType("oxydra.providers.openai:OpenAI", "/chat/completions"),
    "openai_responses": ProviderType("oxydra.providers.responses:Responses", "/responses"),
    "anthropic": ProviderType("oxydra.providers.anthropic:Anthropic", "/messages", "x-api-key", ""),
    "gemini": ProviderType(
        "oxydra.providers.gemini:Gemini",
        r"/models/[\w.@-]+:streamGenerateContent",
        "x-goog-api-key",
        "",
    ),
    "offline": ProviderType("oxydra.providers.offline:Offline", ""),
}
_VERSION = r"(?:/v\d\w*)?"


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


def route(settings: ProviderSettings, key: str = "") -> Route | None:
    """Where this provider's requests may go, with its key if it has one; None for one that makes
    none.
    """
    kind = provider_type(settings.provider_type)
    address = settings.base_url or BASE_URLS[settings.provider_type]
    if not kind.path:
        return None
    base = re.sub(rf"{kind.path}/*$", "", urlsplit(address).path.rstrip("/"))
    path = re.escape(base) + _VERSION + kind.path
    sent = credential(settings, key) if key else None
    return Route(settings.name, origin_of(address), path, credential=sent)


def embeddings_url(settings: ProviderSettings) -> str:
    """Where a provider of OpenAI's wires makes vectors: beside where it answers."""
    from oxydra.providers.openai import completions_url

    base = settings.base_url or BASE_URLS[settings.provider_type]
    base = re.sub(r"/(?:responses|embeddings)/*$", "", base.strip())
    return completions_url(base).replace("/chat/completions", "/embeddings")


def embeddings_route(settings: ProviderSettings, key: str = "") -> Route:
    """Where its requests for vectors may go, and nowhere else."""
    url = embeddings_url(settings)
    sent = credential(settings, key) if key else None
    return Route(settings.name, origin_of(url), re.escape(urlsplit(url).path), credential=sent)


def credential(settings: ProviderSettings, key: str) -> Credential:
    """How the transport must send `key` for this provider: bound to the origin of its address."""
    kind = provider_type(settings.provider_type)
    origin = origin_of(settings.base_url or BASE_URLS[settings.provider_type])
    return Credential(kind.key_header, kind.key_prefix + key.strip(), origin)
