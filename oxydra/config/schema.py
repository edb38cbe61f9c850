"""Every configuration key: its type, default, bounds and meaning. Pure.

`AgentConfig` is agent.toml and providers.toml, `RunnerConfig` is runner.toml, `UserConfig` is
users/<id>.toml. A field that is itself a section is a TOML table, a `dict` of sections is a table
of named ones, a tuple of sections a list of tables. `docs/configuration.md` lists all of it, and a
test compares the two.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from oxydra.config.channels import ChannelsConfig
from oxydra.config.fields import (
    Section,
    is_address,
    is_addresses,
    is_destinations,
    is_git_credentials,
    is_headers,
    is_hosts,
    is_image,
    is_mount_name,
    is_origins,
    is_packages,
    is_path,
    is_presets,
    is_refs,
    is_services,
    is_timezone,
    is_url,
    is_variable,
    is_variables,
    is_workspace,
    key,
    section,
)
from oxydra.config.mcp import McpConfig

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
    min_turns: int = key(
        6, "Newest turns that stay whole as long as there is room for them.", least=1
    )
    provider: str = key(
        "auto", "Who makes summaries: a name in the registry; `auto`: that of `[selection]`."
    )
    model: str = key("", "Which model makes summaries; with `auto` and no name: each agent's own.")


@section
class LoopGuardConfig(Section):
    """`[runtime.loop_guard]`: what is done about a model that repeats itself."""

    warn_after: int = key(
        3, "The same call with the same result so often gets a warning; 0: never.", least=0
    )
    stop_after: int = key(5, "So often, the turn is ended; 0: never.", least=0)


@section
class DelegationConfig(Section):
    """`[runtime.delegation]`: work that an agent gives to another one."""

    max_depth: int = key(
        1, "How far delegated work is delegated on; 1: not at all, 0: nothing is.", least=0, most=5
    )
    max_per_turn: int = key(
        8, "Delegations of one turn with all that work for it, at most.", least=1, most=100
    )
    timeout_secs: float = key(
        600.0, "Seconds after which a delegated turn is ended.", least=1, most=604_800
    )
    budget_share: float = key(
        0.5, "Share of what a turn may still cost that one delegation may.", least=0.01, most=1
    )


@section
class RuntimeConfig(Section):
    """`[runtime]`: the turn loop."""

    max_turns: int = key(50, "Model calls in one turn, at most.", least=1, most=10_000)
    turn_timeout_secs: float = key(
        900.0, "Seconds after which a turn is ended.", least=1, most=604_800
    )
    max_cost: Decimal | None = key(None, "USD that one turn may cost; left out: no cap.", least=0)
    undo_mib: int = key(
        64,
        "MiB of copies of what file tools changed, to take it back; 0: none.",
        least=0,
        most=100_000,
    )
    loop_guard: LoopGuardConfig = key(LoopGuardConfig, "")
    delegation: DelegationConfig = key(DelegationConfig, "")
    context_budget: ContextBudgetConfig = key(ContextBudgetConfig, "")
    summarization: SummarizationConfig = key(SummarizationConfig, "")


@section
class RetrievalConfig(Section):
    """`[memory.retrieval]`: how memory is searched."""

    top_k: int = key(8, "Passages recalled before a turn.", least=1, most=100)
    recall_tokens: int = key(
        600, "Tokens that they may take together; 0: nothing is recalled.", least=0, most=100_000
    )
    vector_weight: float = key(0.25, "Weight of similarity in meaning.", least=0, most=1)
    fts_weight: float = key(0.75, "Weight of matching words.", least=0, most=1)


@section
class MemoryConfig(Section):
    """`[memory]`: what is found again."""

    enabled: bool = key(True, "Whether anything is recalled or noted.")
    max_notes: int = key(10_000, "Notes that there may be.", least=1, most=100_000)
    embedding_backend: Literal["auto", "wordllama", "deterministic", "openai_compatible"] = key(
        "auto",
        "What makes vectors of text; `auto`: `wordllama` where the extra `embeddings` is "
        "installed, else `deterministic`.",
    )
    embedding_provider: str = key(
        "", "Entry of providers.registry that `openai_compatible` asks for /v1/embeddings."
    )
    embedding_model: str = key("", "The id of its model.")
    embedding_dimensions: int = key(1536, "Numbers of its vectors.", least=1, most=8192)
    embedding_price: Decimal | None = key(
        None,
        "USD for a million tokens of it, 0 on a server of your own; unset: not known, so that a"
        " budget refuses it.",
        least=0,
    )
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

    listen: str = key(
        "127.0.0.1",
        "The address to listen on; one beyond this machine needs behind_proxy.",
        check=is_address,
    )
    port: int = key(0, "TCP port; 0: any free one.", least=0, most=65535)
    behind_proxy: bool = key(
        False,
        "Whether a reverse proxy, which speaks TLS, stands before it: nobody else is answered, and "
        "its X-Forwarded-For is believed.",
    )
    trusted_proxies: tuple[str, ...] = key(
        (), "Addresses of that proxy, where it is not on this machine.", check=is_addresses
    )
    allowed_origins: tuple[str, ...] = key(
        (), "Origins whose web pages may connect; none by default.", check=is_origins
    )
    allowed_hosts: tuple[str, ...] = key(
        (), "Names besides localhost under which clients may reach it.", check=is_hosts
    )
    openai_api: bool = key(
        False, "Whether OpenAI's clients may talk to the agent, at `/v1` (docs/openai-api.md)."
    )
    max_sessions_per_user: int = key(1000, "Sessions that are not archived.", least=1)
    max_concurrent_turns_per_user: int = key(8, "Turns running at once.", least=1, most=256)
    session_idle_ttl_hours: float = key(
        0.0,
        "Hours without use after which a session is archived, until its next message; 0: never.",
        least=0,
    )
    max_attachments_mib: int = key(4096, "MiB of all attachments together.", least=1, most=100_000)


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
    max_turns_per_day: int = key(
        2000, "Model calls that the runs of one schedule may make in a day; 0: any.", least=0
    )
    max_cost_per_day: Decimal | None = key(
        Decimal("5.00"), "USD that the runs of one schedule may cost in a day.", least=0
    )
    timeout_secs: float = key(600.0, "Seconds after which a run is ended.", least=1, most=604_800)
    jitter_secs: int = key(
        0,
        "Seconds that a repeated run may begin later, always the same for one schedule.",
        least=0,
        most=3600,
    )
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

    search_above_kib: int = key(
        16,
        "KiB that the tools' definitions may take in a request; where they take more, the agent"
        " finds those of MCP servers by `tool_search`.",
        least=0,
        most=1024,
    )
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
    tools: tuple[str, ...] | None = key(
        None, "The tools it may use, by names or patterns (`*`, `?`); left out: all."
    )
    max_turns: int | None = key(None, "Model calls in one turn, at most.", least=1, most=10_000)
    max_cost: Decimal | None = key(None, "USD that one turn may cost.", least=0)


@section
class SkillsConfig(Section):
    """`[skills]`: folders of instructions that the person has looked at (docs/skills.md)."""

    enabled: bool = key(True, "Whether the agent has any.")
    exclude: tuple[str, ...] = key((), "Names of skills that it has not.")
    env_keys: tuple[str, ...] = key(
        (), "Variables that skills may show; never one that holds a key.", check=is_variables
    )


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
    system_prompt: str = key(
        "", "What the model is told it is, in the place of the built-in words; the rules stay."
    )
    system_prompt_file: str = key(
        "", "The same, read from a file; relative to the file that says so.", runner_only=True
    )
    agents: dict[str, AgentProfile] = key(dict, "Agents by name.")
    mcp: McpConfig = key(McpConfig, "")
    skills: SkillsConfig = key(SkillsConfig, "")


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
    private: tuple[str, ...] = key(
        (),
        "Files and folders below /shared or /tmp that hold private data, as the vault does.",
        check=is_workspace,
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
class GuestImagesConfig(Section):
    """`[guest_images]`: what the guests of the container tier are made of."""

    agent: str = key(
        "", "The agent guest's image; empty: the one built for this version.", check=is_image
    )
    shell: str = key(
        "", "The shell guest's image; empty: the one built for this version.", check=is_image
    )
    extra_packages: tuple[str, ...] = key(
        (),
        "Debian packages that the shell guest's image gets besides its own, when it is built.",
        check=is_packages,
    )


ShellEgress = Literal["none", "allowlist", "open"]


@section
class EgressConfig(Section):
    """`[egress]` in runner.toml: what leaves the machine through the broker."""

    shell: ShellEgress = key(
        "none",
        "What commands may reach: nothing, what `allow` and `presets` list, or the public "
        "internet.",
    )
    allow: tuple[str, ...] = key(
        (),
        "Destinations of commands, as `host:port` or `*.host:port`; empty: none.",
        check=is_destinations,
    )
    presets: tuple[str, ...] = key(
        (), "Ready-made lists of destinations, by name, besides `allow`.", check=is_presets
    )
    git_credentials: dict[str, str] = key(
        dict,
        "For a git host, the variable with its token, as `env:VARIABLE`; the broker puts it in.",
        check=is_git_credentials,
        runner_only=True,
    )
    max_requests_per_minute: int = key(
        600, "Requests that a user's guests may make in a minute.", least=1, most=1_000_000
    )
    max_requests_per_day: int = key(
        50_000, "Requests that a user's guests may make in a day.", least=1, most=1_000_000_000
    )
    max_mib_per_day: int = key(
        20_000,
        "MiB that a user's guests may move in a day, both ways.",
        least=1,
        most=1_000_000_000,
    )


@section
class BudgetConfig(Section):
    """`[budget]` in runner.toml: what a user's model calls may cost, in USD by catalog prices; left
    out: no cap.
    """

    per_turn: Decimal | None = key(None, "USD that one turn may cost.", least=0)
    per_session: Decimal | None = key(None, "USD that one session may cost.", least=0)
    per_day: Decimal | None = key(
        None, "USD a day; it begins at midnight in the user's time zone.", least=0
    )
    per_month: Decimal | None = key(None, "USD a calendar month.", least=0)
    allow_unpriced: bool | None = key(
        None,
        "Whether a model whose price is not known may be asked where a cap is set; left out: no.",
    )


@section
class RunnerConfig(Section):
    """runner.toml: who is served, where, and how they are kept apart."""

    workspace_root: str = key(
        "~/.local/share/oxydra",
        "The folder of the users' workspaces; relative to the file that says so.",
    )
    default_tier: TierName = key("container", "What isolates a user's guests.")
    log_format: Literal["text", "json"] = key("text", "What the logs' records are written as.")
    guest_images: GuestImagesConfig = key(GuestImagesConfig, "")
    egress: EgressConfig = key(EgressConfig, "")
    approvals: ApprovalsConfig = key(ApprovalsConfig, "")
    budget: BudgetConfig = key(BudgetConfig, "")
    tools: RunnerToolsConfig = key(RunnerToolsConfig, "")
    users: dict[str, UserEntry] = key(dict, "Users by id.")


# ---------------------------------------------------------------------------------- users/<id>.toml


@section
class BehaviorConfig(Section):
    """`[behavior]`."""

    sandbox_tier: TierName | None = key(
        None, "A tier that isolates at least as much as the runner's default_tier."
    )
    shell_enabled: bool = key(
        True, "Whether the model may run commands; tools.shell.enabled must allow it too."
    )
    timezone: str = key(
        "", "The user's time zone; empty: scheduler.default_timezone.", check=is_timezone
    )


@section
class ExtraMount(Section):
    """One entry of `mounts.extra`: a folder of the user's own."""

    path: str = key(..., "The folder; relative to the file that says so.", check=is_path)
    mode: Literal["ro", "rw"] = key("ro", "Whether it may only be read, or written too.")
    name: str = key("", "Its name below /mnt; empty: the folder's own.", check=is_mount_name)


@section
class MountsConfig(Section):
    """`[mounts]`: folders in the place of the workspace's own, and besides them."""

    shared: str = key("", "The folder that the model sees as /shared; empty: the workspace's.")
    tmp: str = key("", "The folder that the model sees as /tmp; empty: the workspace's.")
    vault: str = key("", "The folder that the model sees as /vault; empty: the workspace's.")
    extra: tuple[ExtraMount, ...] = key(
        (), "Folders that the model sees as /mnt/<name>: `{path, mode, name}`."
    )


@section
class ResourcesConfig(Section):
    """`[resources]`: what the user's guests may take."""

    max_vcpus: float = key(
        2.0,
        "CPUs that each guest may use; the process tier can't limit them.",
        least=0.1,
        most=1024,
    )
    max_memory_mib: int = key(
        1024,
        "MiB of memory of each guest; in the process tier of each process of the shell guest.",
        least=128,
        most=16_000_000,
    )
    max_processes: int = key(
        256,
        "Processes and threads of each guest; in the process tier of the shell guest.",
        least=32,
        most=4_000_000,
    )
    max_workspace_mib: int = key(
        4096,
        "MiB in the workspace's own shared and tmp; beyond it nothing is written to them.",
        least=16,
        most=1_000_000_000,
    )


@section
class UserEgressConfig(Section):
    """`[egress]` in users/<id>.toml: narrower than runner.toml's, never wider."""

    shell: ShellEgress | None = key(None, "As in runner.toml; left out: what is said there.")
    allow: tuple[str, ...] | None = key(
        None,
        "Destinations of commands, each one that runner.toml allows; left out: all of those.",
        check=is_destinations,
    )
    presets: tuple[str, ...] | None = key(
        None,
        "Ready-made lists besides `allow`, each one that runner.toml allows; left out: all, or "
        "none where `allow` is given.",
        check=is_presets,
    )
    max_requests_per_minute: int | None = key(
        None, "As in runner.toml, at most what is said there.", least=1
    )
    max_requests_per_day: int | None = key(
        None, "As in runner.toml, at most what is said there.", least=1
    )
    max_mib_per_day: int | None = key(
        None, "As in runner.toml, at most what is said there.", least=1
    )


@section
class UserBudgetConfig(Section):
    """`[budget]` in users/<id>.toml: the stricter of this and runner.toml's counts."""

    per_turn: Decimal | None = key(None, "As in runner.toml.", least=0)
    per_session: Decimal | None = key(None, "As in runner.toml.", least=0)
    per_day: Decimal | None = key(None, "As in runner.toml.", least=0)
    per_month: Decimal | None = key(None, "As in runner.toml.", least=0)
    allow_unpriced: bool | None = key(
        None, "As in runner.toml; `true` counts only where that sets no cap and does not say."
    )


@section
class UserConfig(Section):
    """users/<id>.toml: what holds for one user."""

    behavior: BehaviorConfig = key(BehaviorConfig, "")
    mounts: MountsConfig = key(MountsConfig, "")
    resources: ResourcesConfig = key(ResourcesConfig, "")
    egress: UserEgressConfig = key(UserEgressConfig, "")
    budget: UserBudgetConfig = key(UserBudgetConfig, "")
    approvals: ApprovalsConfig = key(ApprovalsConfig, "")
    channels: ChannelsConfig = key(ChannelsConfig, "")
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
