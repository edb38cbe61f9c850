"""Every configuration key: its type, default, bounds and meaning. Pure.

`AgentConfig` is agent.toml and providers.toml, `RunnerConfig` is runner.toml, `UserConfig` is
users/<id>.toml. A section is an immutable dataclass; `key` gives a field its default and what it
means; a field that is itself a section is a TOML table, a `dict` of sections is a table of named
ones. `docs/configuration.md` lists all of it, and a test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import MISSING, FrozenInstanceError, dataclass, field, fields
from decimal import Decimal
from typing import Any, Literal, TypeVar, dataclass_transform

Check = Callable[[Any], str]
"""Returns what is wrong with a value, as the end of a sentence; "" if nothing is."""

T = TypeVar("T")


class Section:
    """What sections share: fields that are set once, comparison, and a `repr` without secrets."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in vars(self):
            raise FrozenInstanceError(f"cannot assign to field {name!r}")
        object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __repr__(self) -> str:
        shown = (
            f"{f.name}={'***' if f.metadata.get('secret') and value else repr(value)}"
            for f in fields(self)  # type: ignore[arg-type]
            for value in (getattr(self, f.name),)
        )
        return f"{type(self).__name__}({', '.join(shown)})"


def key(
    default: Any,
    doc: str,
    *,
    least: float | None = None,
    most: float | None = None,
    check: Check | None = None,
    secret: bool = False,
    runner_only: bool = False,
) -> Any:
    """A field: `...` as default means that it must be given, a class that a new one is made.

    `least` and `most` bound a number, and both inclusively. `secret` values are masked wherever
    they are shown; `runner_only` ones never reach a guest.
    """
    metadata = {
        "doc": doc,
        "least": least,
        "most": most,
        "check": check,
        "secret": secret,
        "runner_only": runner_only or secret,
    }
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=MISSING if default is ... else default, metadata=metadata)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(key,))
def section(cls: type[T]) -> type[T]:
    """`dataclass`, without the methods that `Section` has once for all (each costs start-up)."""
    return dataclass(eq=False, repr=False, kw_only=True)(cls)


# ------------------------------------------------------------------------------------------- checks

VARIABLE = r"[A-Za-z_][A-Za-z0-9_]{0,127}"
NAME = r"[a-z0-9][a-z0-9_-]{0,63}"
USER = r"[a-z0-9][a-z0-9._-]{0,31}"
HEADER = r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}"  # a token of RFC 9110
SECRET_HEADER = r"(?i)auth|cookie|api-?key|token|secret|credential|password"
ROUTING_HEADERS = ("host", "connection", "content-length", "transfer-encoding", "upgrade")


def is_variable(value: str) -> str:
    if not value or re.fullmatch(VARIABLE, value):
        return ""
    return "is no name of an environment variable (the key itself belongs in `key set` or api_key)"


def is_url(value: str) -> str:
    """An address without a credential in it: a guest is told it."""
    if not value:
        return ""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is no URL"
    if parts.scheme not in ("http", "https") or not host:
        return "must start with http:// or https:// and name a host"
    if "@" in parts.netloc:
        return "carries a user or password: use api_key or api_key_env instead"
    if re.search(r"(?i)key|token|secret|sig|auth|passw", parts.query):
        return "carries a credential in its query: use api_key or api_key_env instead"
    if parts.fragment or re.search(r"[\s\\\x00-\x20\x7f]", value):
        return "may not hold a fragment, a backslash or a space"
    return ""


def is_headers(value: dict[str, str]) -> str:
    for name, content in value.items():
        if not re.fullmatch(HEADER, name) or not re.fullmatch(r"[\x20-\x7e]{0,1024}", content):
            return f"holds {name!r}, which is no HTTP header of visible ASCII"
        if re.search(SECRET_HEADER, name):
            return (
                f"holds {name!r}, which looks like a credential: set api_key, api_key_env or "
                "api_key_cmd instead, headers are shown to the agent guest"
            )
        if name.lower() in ROUTING_HEADERS:
            return f"holds {name!r}, which the transport sets itself"
    return ""


def is_origins(value: tuple[str, ...]) -> str:
    for origin in value:
        if is_url(origin) or origin.count("/") != 2:
            return f"holds {origin!r}; an origin is written like https://app.example.org"
    return ""


def is_hosts(value: tuple[str, ...]) -> str:
    for host in value:
        if not re.fullmatch(r"[a-z0-9.-]+|\[[0-9a-f:.]+\]", host):
            return f"holds {host!r}; a host is a lower-case name without a port"
    return ""


def is_services(value: tuple[str, ...]) -> str:
    for service in value:
        match = re.fullmatch(r"(?:\[[0-9a-f:.]+\]|[a-z0-9_.-]+):([1-9][0-9]{0,4})", service)
        if match is None or int(match[1]) > 65535:
            return f"holds {service!r}; a service is written like 127.0.0.1:8888"
    return ""


def is_variables(value: tuple[str, ...]) -> str:
    wrong = [name for name in value if not re.fullmatch(VARIABLE, name)]
    return f"holds {wrong[0]!r}, which is no name of an environment variable" if wrong else ""


def is_refs(value: dict[str, str]) -> str:
    for provider, reference in value.items():
        kind, _, name = reference.partition(":")
        if kind != "env" or not re.fullmatch(VARIABLE, name):
            return f'names no variable for {provider!r}; write "env:VARIABLE"'
    return ""


def is_timezone(value: str) -> str:
    if value in ("", "UTC"):
        return ""
    import difflib
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        near = difflib.get_close_matches(value, available_timezones(), 3, 0.5)
        hint = f"; near it: {', '.join(near)}" if near else ""
        return f"is no time zone of the IANA database that this system has{hint}"
    return ""


# --------------------------------------------------------------------------------------- agent.toml


@section
class FallbackConfig(Section):
    """One entry of `selection.fallback`."""

    provider: str = key(..., "Name of an entry of providers.registry.")
    model: str = key("", "The model's id; empty: the provider's default in the catalog.")


@section
class SelectionConfig(Section):
    """`[selection]`: which model answers."""

    provider: str = key(
        "auto",
        "Name of an entry of providers.registry; `auto`: the first whose key is found, else a "
        "local Ollama, else `offline`.",
    )
    model: str = key("", "The model's id; empty: the provider's default in the catalog.")
    reasoning: Literal["", "off", "minimal", "low", "medium", "high", "xhigh", "max"] = key(
        "", "How hard a model that reasons is to think; empty: its own way."
    )
    fallback: tuple[FallbackConfig, ...] = key(
        (), "Who answers while the first choice can't, in order: `{provider, model}`."
    )


ProviderType = Literal["openai", "anthropic", "gemini", "openai_responses", "offline"]


@section
class ProviderConfig(Section):
    """`[providers.registry.<name>]`: one model service. Built in: openai, openai_responses,
    anthropic, gemini, ollama, offline.
    """

    provider_type: ProviderType = key(..., "The wire that the service speaks.")
    base_url: str = key(
        "", "Where the service is, with or without `/v1`; empty: the type's own.", check=is_url
    )
    api_key: str = key("", "The key itself. Better kept out of files: see Keys.", secret=True)
    api_key_env: str = key(
        "", "The environment variable that holds the key.", check=is_variable, runner_only=True
    )
    api_key_cmd: str = key(
        "",
        "A command that prints the key; run without a shell, for at most 10 s.",
        runner_only=True,
    )
    catalog_provider: str = key(
        "", "The catalog's name for the service, for limits and prices; empty: the type's own."
    )
    store: bool = key(False, "Whether the service keeps the conversation (openai_responses only).")
    extra_headers: dict[str, str] = key(
        dict, "HTTP headers sent with each request; never a credential.", check=is_headers
    )
    reasoning: bool | None = key(None, "Whether its models reason, where the catalog is wrong.")
    max_input_tokens: int | None = key(None, "Tokens a request may hold.", least=1)
    max_output_tokens: int | None = key(None, "Tokens an answer may have.", least=1)
    max_context_tokens: int | None = key(None, "Tokens of request and answer together.", least=1)


@section
class ProvidersConfig(Section):
    """`[providers]`."""

    registry: dict[str, ProviderConfig] = key(dict, "Model services by name.")


@section
class ContextBudgetConfig(Section):
    """`[runtime.context_budget]`: how a history is fitted into a model's context."""

    trigger_ratio: float = key(
        0.85, "Share of the context that, once filled, starts a summary.", least=0.1, most=1
    )
    safety_buffer_tokens: int = key(1024, "Tokens kept free for errors of estimation.", least=0)
    fallback_max_context_tokens: int = key(
        32768, "Context of a model that the catalog does not know.", least=1024
    )


@section
class SummarizationConfig(Section):
    """`[runtime.summarization]`: how an old history is shortened."""

    target_ratio: float = key(
        0.5, "Share of the context that a summary brings it down to.", least=0.05, most=0.95
    )
    min_turns: int = key(6, "Newest turns that are never summarized.", least=1)


@section
class LoopGuardConfig(Section):
    """`[runtime.loop_guard]`: what is done about a model that repeats itself."""

    warn_after: int = key(
        3, "The same call with the same result so often gets a warning; 0: never.", least=0
    )
    stop_after: int = key(5, "So often, the turn is ended; 0: never.", least=0)


@section
class RuntimeConfig(Section):
    """`[runtime]`: the turn loop."""

    max_turns: int = key(50, "Model calls in one turn, at most.", least=1, most=10_000)
    turn_timeout_secs: float = key(
        900.0, "Seconds after which a turn is ended.", least=1, most=604_800
    )
    max_cost: Decimal | None = key(None, "USD that one turn may cost; left out: no cap.", least=0)
    loop_guard: LoopGuardConfig = key(LoopGuardConfig, "")
    context_budget: ContextBudgetConfig = key(ContextBudgetConfig, "")
    summarization: SummarizationConfig = key(SummarizationConfig, "")


@section
class RetrievalConfig(Section):
    """`[memory.retrieval]`: how memory is searched."""

    top_k: int = key(8, "Passages recalled before a turn.", least=1, most=100)
    vector_weight: float = key(0.2, "Weight of similarity in meaning.", least=0, most=1)
    fts_weight: float = key(0.8, "Weight of matching words.", least=0, most=1)


@section
class MemoryConfig(Section):
    """`[memory]`: what is found again."""

    enabled: bool = key(True, "Whether anything is recalled or noted.")
    retrieval: RetrievalConfig = key(RetrievalConfig, "")


@section
class ReliabilityConfig(Section):
    """`[reliability]`: repeating a model call that failed."""

    max_attempts: int = key(4, "Attempts of one call, the first included.", least=1, most=20)
    backoff_base_ms: int = key(500, "Milliseconds before the second attempt.", least=1)
    backoff_max_ms: int = key(30_000, "Milliseconds between two attempts, at most.", least=1)
    jitter: bool = key(True, "Whether waiting times are spread at random.")


@section
class GatewayConfig(Section):
    """`[gateway]`: the door for clients."""

    port: int = key(0, "TCP port on 127.0.0.1; 0: any free one.", least=0, most=65535)
    allowed_origins: tuple[str, ...] = key(
        (), "Origins whose web pages may connect; none by default.", check=is_origins
    )
    allowed_hosts: tuple[str, ...] = key(
        (), "Names besides localhost under which clients may reach it.", check=is_hosts
    )
    max_sessions_per_user: int = key(1000, "Sessions that are not archived.", least=1)
    max_concurrent_turns_per_user: int = key(8, "Turns running at once.", least=1, most=256)
    session_idle_ttl_hours: float = key(
        0.0, "Hours without use after which a session is archived; 0: never.", least=0
    )


@section
class SchedulerConfig(Section):
    """`[scheduler]`: tasks that run at their time."""

    enabled: bool = key(True, "Whether due schedules run.")
    poll_interval_secs: float = key(
        60.0, "Seconds between two looks at the clock, at most.", least=1, most=3600
    )
    max_concurrent: int = key(2, "Scheduled runs at once.", least=1, most=64)
    max_schedules_per_user: int = key(100, "Schedules a user may have.", least=1)
    max_turns: int = key(20, "Model calls in one run, at most.", least=1, most=10_000)
    max_cost: Decimal | None = key(Decimal("0.50"), "USD that one run may cost.", least=0)
    max_run_history: int = key(50, "Runs kept for each schedule.", least=1)
    min_interval_secs: int = key(60, "Seconds between two runs, at least.", least=1)
    default_timezone: str = key(
        "UTC", "Time zone of schedules and dates that name none.", check=is_timezone
    )
    auto_disable_after_failures: int = key(
        5, "Failed runs in a row that switch a schedule off; 0: never.", least=0
    )
    notify_after_failures: int = key(
        2, "Failed runs in a row after which the user is told; 0: never.", least=0
    )
    catch_up: Literal["skip", "last", "all"] = key(
        "last", "What runs of the times that passed while nothing ran."
    )


@section
class ShellConfig(Section):
    """`[tools.shell]`: commands that the model chooses."""

    enabled: bool = key(True, "Whether the model may run commands.")
    allow: tuple[str, ...] = key((), "Commands allowed besides the built-in ones; `*`: all.")
    deny: tuple[str, ...] = key((), "Commands refused whatever allows them.")
    replace_defaults: bool = key(False, "Whether `allow` stands alone.")
    allow_operators: bool = key(True, "Whether `|`, `&&`, `||` and `;` may join commands.")
    env_keys: tuple[str, ...] = key(
        (), "Environment variables the shell gets; never a key's.", check=is_variables
    )
    command_timeout_secs: float = key(60.0, "Seconds a command may run.", least=1, most=86_400)
    allow_unsandboxed: bool = key(False, "Whether it runs where nothing can cage it.")


@section
class WebSearchConfig(Section):
    """`[tools.web_search]`: searching the web."""

    provider: Literal["duckduckgo", "searxng", "google_cse"] = key(
        "duckduckgo", "The search service."
    )
    base_urls: tuple[str, ...] = key(
        (),
        "Its addresses, tried in order; empty: the service's own (searxng has none). One on this "
        "machine or network must also be in runner.toml's egress_allowlist.",
        check=lambda urls: next((f"holds {u!r}, which {is_url(u)}" for u in urls if is_url(u)), ""),
    )
    api_key_env: str = key(
        "", "The variable that holds its key (google_cse).", check=is_variable, runner_only=True
    )
    engine_id: str = key("", "The search engine's id (google_cse).")
    max_results: int = key(
        8, "Results of one search, where the model does not say.", least=1, most=50
    )


@section
class ToolsConfig(Section):
    """`[tools]`."""

    shell: ShellConfig = key(ShellConfig, "")
    web_search: WebSearchConfig = key(WebSearchConfig, "")


@section
class CatalogConfig(Section):
    """`[catalog]`: what is known of models."""

    skip_catalog_validation: bool = key(
        False, "Whether a model that the catalog does not know may be used, with safe limits."
    )


@section
class AgentProfile(Section):
    """`[agents.<name>]`: an agent that sessions can name and work can be delegated to."""

    system_prompt: str = key("", "What it is told it is.")
    system_prompt_file: str = key(
        "", "The same, read from a file; relative to the file that says so.", runner_only=True
    )
    selection: SelectionConfig = key(SelectionConfig, "")
    tools: tuple[str, ...] | None = key(None, "The tools it may use; left out: all.")
    max_turns: int | None = key(None, "Model calls in one turn, at most.", least=1, most=10_000)
    max_cost: Decimal | None = key(None, "USD that one turn may cost.", least=0)


@section
class AgentConfig(Section):
    """agent.toml and providers.toml: what the agent guest is told, without the keys."""

    selection: SelectionConfig = key(SelectionConfig, "")
    providers: ProvidersConfig = key(ProvidersConfig, "")
    runtime: RuntimeConfig = key(RuntimeConfig, "")
    memory: MemoryConfig = key(MemoryConfig, "")
    reliability: ReliabilityConfig = key(ReliabilityConfig, "")
    gateway: GatewayConfig = key(GatewayConfig, "")
    scheduler: SchedulerConfig = key(SchedulerConfig, "")
    tools: ToolsConfig = key(ToolsConfig, "")
    catalog: CatalogConfig = key(CatalogConfig, "")
    agents: dict[str, AgentProfile] = key(dict, "Agents by name.")


# -------------------------------------------------------------------------------------- runner.toml

TIERS = ("process", "container", "micro_vm")  # each isolates more than the one before
TierName = Literal["process", "container", "micro_vm"]


@section
class UserEntry(Section):
    """`[users.<id>]`: somebody whom this installation serves."""

    config_path: str = key(..., "The user's file, relative to runner.toml.")


Decision = Literal["allow", "ask", "deny"]


@section
class ApprovalRule(Section):
    """One entry of `approvals.rules`; it applies to a call that all of its patterns match."""

    decision: Decision = key(..., "What becomes of the call.")
    tool: str = key("*", "The tool's name; `*` and `?` stand for any characters or one.")
    tier: Literal["", "read_only", "side_effecting", "privileged"] = key(
        "", "The tool's safety tier; empty: any."
    )
    arguments: dict[str, str] = key(
        dict, "For each argument named, a pattern for the whole of its value."
    )


@section
class ApprovalsConfig(Section):
    """`[approvals]`: which tool calls a person is asked about. The first rule that applies decides;
    without one, privileged calls that no sandbox contains are asked about and all others allowed.
    """

    rules: tuple[ApprovalRule, ...] = key((), "In order: `{decision, tool, tier, arguments}`.")
    exfiltration: Decision | None = key(
        None,
        "What becomes of a call that sends something away while the conversation holds private "
        "data and untrusted content; left out: ask.",
    )
    expiry_secs: float | None = key(
        None,
        "Seconds after which a request that nobody answered counts as denied; left out: 600.",
        least=5,
        most=86_400,
    )


@section
class WebConfig(Section):
    """`[tools.web]` in runner.toml: what the web tools may reach."""

    egress_allowlist: tuple[str, ...] = key(
        (),
        "Local services, as `host:port`, that may be fetched besides the public internet.",
        check=is_services,
    )


@section
class RunnerToolsConfig(Section):
    """`[tools]` in runner.toml: what no guest may decide about its tools."""

    web: WebConfig = key(WebConfig, "")


@section
class RunnerConfig(Section):
    """runner.toml: who is served, where, and how they are kept apart."""

    workspace_root: str = key(
        "~/.local/share/oxydra",
        "The folder of the users' workspaces; relative to the file that says so.",
    )
    default_tier: TierName = key("container", "What isolates a user's guests.")
    approvals: ApprovalsConfig = key(ApprovalsConfig, "")
    tools: RunnerToolsConfig = key(RunnerToolsConfig, "")
    users: dict[str, UserEntry] = key(dict, "Users by id.")


# ---------------------------------------------------------------------------------- users/<id>.toml


@section
class BehaviorConfig(Section):
    """`[behavior]`."""

    sandbox_tier: TierName | None = key(
        None, "A tier that isolates at least as much as the runner's default_tier."
    )
    timezone: str = key(
        "", "The user's time zone; empty: scheduler.default_timezone.", check=is_timezone
    )


@section
class UserConfig(Section):
    """users/<id>.toml: what holds for one user."""

    behavior: BehaviorConfig = key(BehaviorConfig, "")
    approvals: ApprovalsConfig = key(ApprovalsConfig, "")
    credential_refs: dict[str, str] = key(
        dict,
        "Where a provider's key is, as `env:VARIABLE`; overrides every other place.",
        check=is_refs,
        runner_only=True,
    )


BUILT_IN_PROVIDERS: dict[str, dict[str, str]] = {
    "openai": {"provider_type": "openai"},
    "anthropic": {"provider_type": "anthropic"},
    "gemini": {"provider_type": "gemini"},
    "openai_responses": {"provider_type": "openai_responses"},
    "ollama": {"provider_type": "openai", "base_url": "http://127.0.0.1:11434/v1"},
    "offline": {"provider_type": "offline"},
}

BASE_URLS = {  # the types' own services
    "openai": "https://api.openai.com/v1",
    "openai_responses": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com",
    "gemini": "https://generativelanguage.googleapis.com",
    "offline": "",
}
VARIABLES = {  # where their keys usually are
    "openai": "OPENAI_API_KEY",
    "openai_responses": "OPENAI_API_KEY",
    "anthropic": "ANTHROPIC_API_KEY",
    "gemini": "GEMINI_API_KEY",
}
CATALOG_PROVIDERS = {  # what the catalog calls them
    "openai": "openai",
    "openai_responses": "openai",
    "anthropic": "anthropic",
    "gemini": "google",
}
GENERIC_VARIABLE = "API_KEY"
