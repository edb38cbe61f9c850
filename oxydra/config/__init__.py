"""Configuration: four files, five layers, one schema.

`schema` says which keys there are, `load` merges the layers into a `Config` and explains it,
`credentials` finds keys and chooses the model, `agents` does so for each agent, `guest` is what an
agent guest is told, `isolation` and `egress` are what holds the guests, `create` is `init`, and
`files` reads and writes with the caller's safety in mind. Only the runner reads configuration. No
thread.
"""

from oxydra.config.agents import agent_models, summary_model
from oxydra.config.channels import ChannelsConfig, SenderConfig, TelegramConfig
from oxydra.config.create import template, write_default
from oxydra.config.credentials import (
    Credential,
    Selection,
    address,
    answers,
    git_tokens,
    is_official,
    resolve_credential,
    search_key,
    select,
    telegram_token,
)
from oxydra.config.egress import EgressLimits, EgressPolicy, effective_egress
from oxydra.config.files import (
    config_home,
    get_key,
    is_trusted,
    list_keys,
    remove_key,
    set_key,
    trust,
    write_private,
)
from oxydra.config.guest import (
    GuestConfig,
    caps,
    channels,
    effective,
    from_effective,
    runtime_policy,
)
from oxydra.config.isolation import Isolation, Mount, Mounts, isolation, mounts
from oxydra.config.load import Config, Row, Source, load
from oxydra.config.schema import (
    AgentConfig,
    AgentProfile,
    DelegationConfig,
    GatewayConfig,
    GuestImagesConfig,
    MemoryConfig,
    ProviderConfig,
    ReliabilityConfig,
    ResourcesConfig,
    RetrievalConfig,
    RunnerConfig,
    RuntimeConfig,
    SchedulerConfig,
    SelectionConfig,
    ShellConfig,
    ToolsConfig,
    UserConfig,
    WebSearchConfig,
)

__all__ = [
    "AgentConfig",
    "AgentProfile",
    "ChannelsConfig",
    "Config",
    "Credential",
    "DelegationConfig",
    "EgressLimits",
    "EgressPolicy",
    "GatewayConfig",
    "GuestConfig",
    "GuestImagesConfig",
    "Isolation",
    "MemoryConfig",
    "Mount",
    "Mounts",
    "ProviderConfig",
    "ReliabilityConfig",
    "ResourcesConfig",
    "RetrievalConfig",
    "Row",
    "RunnerConfig",
    "RuntimeConfig",
    "SchedulerConfig",
    "Selection",
    "SelectionConfig",
    "SenderConfig",
    "ShellConfig",
    "Source",
    "TelegramConfig",
    "ToolsConfig",
    "UserConfig",
    "WebSearchConfig",
    "address",
    "agent_models",
    "answers",
    "caps",
    "channels",
    "config_home",
    "effective",
    "effective_egress",
    "from_effective",
    "get_key",
    "git_tokens",
    "is_official",
    "is_trusted",
    "isolation",
    "list_keys",
    "load",
    "mounts",
    "remove_key",
    "resolve_credential",
    "runtime_policy",
    "search_key",
    "select",
    "set_key",
    "summary_model",
    "telegram_token",
    "template",
    "trust",
    "write_default",
    "write_private",
]
