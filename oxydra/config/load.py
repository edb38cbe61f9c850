"""The layers: which files, variables and options there are, and what comes out of them.

Built in < /etc/oxydra < ~/.config/oxydra < ./.oxydra (or the folder of `--config`) < environment <
command line. Every value remembers where it came from: `explain` shows it, errors name it, and
whether a key may be sent to a host depends on it.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from oxydra.config import files
from oxydra.config.check import (
    EXISTS,
    Key,
    Leaves,
    all_keys,
    build,
    did_you_mean,
    dotted,
    find,
    from_text,
    leaves_of,
    read,
)
from oxydra.config.fields import Section
from oxydra.config.lines import KeyPath, key_lines
from oxydra.config.mcp import MAX_SERVER_NAME, SERVER_NAME, references
from oxydra.config.schema import (
    BUILT_IN_PROVIDERS,
    GENERIC_VARIABLE,
    TIERS,
    VARIABLES,
    AgentConfig,
    RunnerConfig,
    SelectionConfig,
    UserConfig,
)
from oxydra.errors import ConfigError, UsageError

Kind = Literal["agent", "runner", "user"]
SCHEMAS: dict[Kind, type[Section]] = {
    "agent": AgentConfig,
    "runner": RunnerConfig,
    "user": UserConfig,
}
FILE_NAMES: dict[Kind, str] = {
    "agent": "agent.toml",
    "runner": "runner.toml",
    "user": "users/<id>.toml",
}
ADMIN_ONLY = ("egress", "approvals", "budget", "mounts")  # limits: SECURITY, 'configuration'
OWNED = (*ADMIN_ONLY, "resources", "guest_images")  # never from what came with a clone
PREFIX = "OXYDRA__"
SYSTEM = Path("/etc/oxydra")
SECRET_MASK = "********"
MAX_PROMPT = 256 << 10  # bytes of a system_prompt_file


class Source(NamedTuple):
    """Where a value came from. `own` says that the user or the system put it there: what may
    have come with somebody else's folder is not. `folder` is what a relative path is relative to.
    """

    file: str
    line: int = 0
    own: bool = True
    folder: Path | None = None
    variable: str = ""

    def __str__(self) -> str:
        return self.variable or (f"{self.file}:{self.line}" if self.line else self.file)


BUILT_IN = Source("built-in")


class Layer(NamedTuple):
    """A folder of configuration files. `runner_file` is the file that `--config` named."""

    folder: Path
    own: bool
    runner_file: Path


class Row(NamedTuple):
    """One line of `config explain`: `value` is fit to be shown, secrets are masked."""

    file: str
    key: str
    value: str
    source: str


class Values:
    """The merged leaves of one schema with the source of each."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.schema = SCHEMAS[kind]
        self.leaves: Leaves = {}
        self.sources: dict[KeyPath, Source] = {}

    def add(self, leaves: Leaves, source_of: Mapping[KeyPath, Source]) -> None:
        for path, value in leaves.items():
            if value is EXISTS and path in self.leaves:
                continue  # the section's first mention is where it was made
            self.leaves[path] = value
            self.sources[path] = source_of[path]

    def source(self, path: KeyPath) -> Source:
        """Of a key, or of the section nearest to it."""
        while path:
            if path in self.sources:
                return self.sources[path]
            path = path[:-1]
        return BUILT_IN

    def fail(self, path: KeyPath, message: str, remedy: str = "", command: str = "") -> ConfigError:
        """An error about the value at `path`, naming where it was set."""
        source = self.source(path)
        place = "environment" if source.variable else source.file
        return ConfigError(
            message,
            remedy=remedy,
            file=place,
            line=source.line,
            key=dotted(path),
            command=command,
        )

    def build(self) -> Any:
        return build(self.schema, self.leaves, self.fail)


@dataclass(frozen=True)
class Config:
    """What is in force for one user. `user_id` is "" where none was asked for. `folder` is the
    project's: `.oxydra` here, or that of `--config`; it need not be there.
    """

    agent: AgentConfig
    runner: RunnerConfig
    user: UserConfig
    user_id: str
    home: Path
    folder: Path
    workspace_root: Path
    values: Mapping[Kind, Values] = field(repr=False)

    @property
    def tier(self) -> str:
        return self.user.behavior.sandbox_tier or self.runner.default_tier

    def source(self, key: str, kind: Kind = "agent") -> Source:
        """Where a dotted key's value came from."""
        return self.values[kind].source(tuple(key.split(".")))

    def explain(self) -> Iterator[Row]:
        """Each effective value with its source, in the order of the schema."""
        sections: dict[Kind, Section] = {"agent": self.agent, "runner": self.runner}
        if self.user_id:
            sections["user"] = self.user
        for kind, section in sections.items():
            name = FILE_NAMES[kind].replace("<id>", self.user_id)
            sources = self.values[kind].sources
            for path, key, value in leaves_of(section):
                entries = {(*path, k): v for k, v in value.items()} if key.kind is dict else {}
                for at, shown in (entries or {path: value}).items():
                    source = sources.get(at, BUILT_IN)
                    yield Row(name, dotted(at), _shown(key, shown), str(source))


def load(
    config: Path | None = None,
    user: str | None = None,
    *,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    system: Path = SYSTEM,
    need_user: bool = True,
) -> Config:
    """Read all layers. Raises `ConfigError`, or `UsageError` if it is not clear for which user.

    `config` is the runner.toml named by `--config`, or its folder; without it `.oxydra` in `folder`
    (the current one) is looked for, which must be trusted. `overrides` are dotted keys of the
    command line with their values, as text or typed. With `need_user` False no user is needed.
    """
    env = os.environ if env is None else env
    home = files.config_home(env)
    found = list(layers(config, folder or Path.cwd(), system, home))
    values: dict[Kind, Values] = {kind: Values(kind) for kind in SCHEMAS}
    _add_built_in(values["agent"])
    for layer in found:
        for name in ("agent.toml", "providers.toml"):
            _add_file(values["agent"], layer.folder / name, layer.own)
        _add_file(values["runner"], layer.runner_file, layer.own)
    _add_environment(values, env)
    _add_overrides(values, overrides or {})
    runner: RunnerConfig = values["runner"].build()
    user_id = _choose_user(runner, user, need_user, [layer.folder for layer in found])
    if user_id:
        above = values["user"]  # what variables and options said
        values["user"] = _user_file(values["runner"], runner, user_id)
        values["user"].add(above.leaves, above.sources)
    _add_prompts(values["agent"])
    root = _below(values["runner"].source(("workspace_root",)), runner.workspace_root)
    result = Config(
        agent=values["agent"].build(),
        runner=runner,
        user=values["user"].build(),
        user_id=user_id,
        home=home,
        folder=_project(config, folder or Path.cwd()),
        workspace_root=root.absolute(),
        values=values,
    )
    _check_together(result)
    return result


# ------------------------------------------------------------------------------------------- layers


def _project(config: Path | None, here: Path) -> Path:
    if config is None:
        return here / ".oxydra"
    return config if os.path.isdir(config) else config.parent


def layers(config: Path | None, here: Path, system: Path, home: Path) -> Iterator[Layer]:
    for folder in (system, home):
        yield Layer(folder, True, folder / "runner.toml")
    if config is None:
        folder = here / ".oxydra"
        if folder.is_dir():
            files.check_folder(folder)
        if files.holds_configuration(folder):
            if not files.is_trusted(folder, home):
                raise ConfigError(
                    "This folder was found here, was not made here by `init`, and is not trusted "
                    "as it is now: whoever wrote it could decide where your messages and files go.",
                    remedy=f"Look at it, then run: oxydra-runner trust '{folder}'.",
                    command=f"oxydra-runner trust {shlex.quote(str(folder))}",
                    file=str(folder),
                )
            yield Layer(folder, True, folder / "runner.toml")
        return
    named = config / "runner.toml" if os.path.isdir(config) else config
    if not os.path.exists(named):
        raise ConfigError(
            "There is no such file, or it can't be reached.",
            remedy="Run `oxydra-runner init` to make a configuration, or name another file.",
            file=str(named),
        )
    folder = named.parent
    if folder.resolve() in (system.resolve(), home.resolve()) and named.name == "runner.toml":
        return  # it is a layer already
    # Naming a folder is enough to use it; it is not enough to send keys where it says, if it may
    # have come with a cloned repository.
    own = not files.in_checkout(folder) or files.is_trusted(folder, home)
    yield Layer(folder, own, named)


def _add_built_in(values: Values) -> None:
    for name, entry in BUILT_IN_PROVIDERS.items():
        leaves: Leaves = {("providers", "registry", name): EXISTS}
        leaves |= {("providers", "registry", name, k): v for k, v in entry.items()}
        values.add(leaves, dict.fromkeys(leaves, BUILT_IN))


def _add_file(values: Values, path: Path, own: bool, folder: Path | None = None) -> None:
    """Merge a file, if it is there; `folder` is the layer's, by default the file's own."""
    folder = folder or path.parent
    text = files.read_text(path)
    if text is None:
        return
    table = _parse(text, str(path))
    lines = key_lines(text)
    _check_version(table, str(path), lines)

    def fail(at: KeyPath, message: str, remedy: str) -> ConfigError:
        remedy = _belongs_elsewhere(values.kind, at) or remedy
        return ConfigError(
            message, remedy=remedy, file=str(path), line=_line(lines, at), key=dotted(at)
        )

    leaves = read(values.schema, table, fail)
    values.add(leaves, {at: Source(str(path), _line(lines, at), own, folder) for at in leaves})


def _parse(text: str, file: str) -> dict[str, Any]:
    from decimal import Decimal

    import tomli

    try:
        return tomli.loads(text, parse_float=Decimal)
    except tomli.TOMLDecodeError as error:
        line = getattr(error, "lineno", 0)
        what = str(getattr(error, "msg", error))
        raise ConfigError(
            f"This is no valid TOML: {what[:1].lower()}{what[1:]}.",
            remedy="Correct the line; nothing of this file was used.",
            file=file,
            line=line,
        ) from None
    except (RecursionError, ArithmeticError, ValueError) as error:
        raise ConfigError(f"This is no valid TOML: {error}.", file=file) from None


def _line(lines: Mapping[KeyPath, int], path: KeyPath) -> int:
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 0)


def _check_version(table: dict[str, Any], file: str, lines: Mapping[KeyPath, int]) -> None:
    """`config_version`, taken out of the table: 1, "1" and "1.x" are understood."""
    version = str(table.pop("config_version", 1))
    if version.partition(".")[0] != "1":
        raise ConfigError(
            f"config_version is {version[:32]!r}; this version of Oxydra understands 1.",
            remedy='Write config_version = "1", or run the Oxydra that the file was written for.',
            file=file,
            line=_line(lines, ("config_version",)),
            key="config_version",
        )


def _belongs_elsewhere(kind: Kind, path: KeyPath) -> str:
    """The remedy where a key stands in the wrong file."""
    if find(SCHEMAS[kind], path) is not None:
        return ""
    if kind == "agent" and path[0] in ADMIN_ONLY:
        return (
            f"[{path[0]}] is a limit: it is read from runner.toml and users/<id>.toml only, never "
            "from agent.toml or providers.toml."
        )
    for other, schema in SCHEMAS.items():
        if other != kind and find(schema, path) is not None:
            return f"It belongs in {FILE_NAMES[other]}."
    return ""


def _user_file(values: Values, runner: RunnerConfig, user_id: str) -> Values:
    at = ("users", user_id, "config_path")
    source = values.source(at)
    path = _below(source, runner.users[user_id].config_path)
    if not os.path.isfile(path):
        raise values.fail(
            at,
            f"The file of user {user_id!r} is missing: {path}.",
            "Make it (examples/config/runner-user.toml is a start), or correct config_path.",
            f"touch {shlex.quote(str(path))}",
        )
    found = Values("user")
    _add_file(found, path, source.own, source.folder)
    return found


def _below(source: Source, path: str) -> Path:
    """A path as the file that says it means it."""
    return (source.folder or Path.cwd()) / os.path.expanduser(path)


def _choose_user(runner: RunnerConfig, user: str | None, needed: bool, folders: list[Path]) -> str:
    if user is not None:
        if user in runner.users:
            return user
        remedy = did_you_mean(user, runner.users) or f"Known: {', '.join(runner.users)}."
        if not runner.users:
            remedy = "Run `oxydra-runner init` to make one."
        raise UsageError(f"There is no user {user[:64]!r} in runner.toml.", remedy=remedy)
    if len(runner.users) == 1:
        return next(iter(runner.users))
    if not needed:
        return ""
    if runner.users:
        raise UsageError(
            "More than one user is configured.",
            remedy=f"Say for whom with --user: {', '.join(sorted(runner.users))}.",
        )
    looked = ", ".join(str(folder) for folder in folders)
    raise ConfigError(
        f"No user is configured; looked for runner.toml in {looked} and ./.oxydra.",
        remedy="Run `oxydra-runner init`, or name a configuration with --config.",
    )


# --------------------------------------------------------------------- environment and command line


def _add_environment(values: dict[Kind, Values], env: Mapping[str, str]) -> None:
    for variable, text in sorted(env.items()):
        if variable.startswith(PREFIX):
            parts = tuple(part.lower() for part in variable[len(PREFIX) :].split("__"))
            _add_one(values, parts, text, Source("environment", variable=variable))


def _add_overrides(values: dict[Kind, Values], overrides: Mapping[str, Any]) -> None:
    for name, value in overrides.items():
        _add_one(values, tuple(name.split(".")), value, Source("command line"))


def _add_one(values: dict[Kind, Values], path: KeyPath, raw: Any, source: Source) -> None:
    """Set the one key that `path` names, in whichever schema has it."""
    if path[0] in ADMIN_ONLY:
        raise _unknown(path, source)
    for merged in values.values():
        path = _as_named(merged, path)
        key = find(merged.schema, path)
        if key is None or key.section is not None:
            continue

        def fail(at: KeyPath, message: str, remedy: str) -> ConfigError:
            name = source.variable or dotted(at)
            if source.variable:
                message = f"{name}: {message}"
            return ConfigError(message, remedy=remedy, file=source.file, key=name)

        entry_of_table = key.kind is dict and path[-1] != key.name
        tree = raw if entry_of_table or not isinstance(raw, str) else from_text(key, raw)
        for part in reversed(path):
            tree = {part: tree}
        leaves = read(merged.schema, tree, fail)
        merged.add(leaves, dict.fromkeys(leaves, source))
        return
    raise _unknown(path, source)


def _as_named(values: Values, path: KeyPath) -> KeyPath:
    """`path` with names as the files write them: a variable can't say `-` or upper case."""
    named: KeyPath = ()
    for part in path:
        here = len(named)
        known = {at[here] for at in values.leaves if at[:here] == named and len(at) > here}
        same = {name.lower().replace("-", "_"): name for name in known}
        named = (*named, part if part in known else same.get(part, part))
    return named


def _unknown(path: KeyPath, source: Source) -> ConfigError:
    name = source.variable or dotted(path)
    if path[0] in ADMIN_ONLY:
        remedy = f"[{path[0]}] is read from runner.toml and users/<id>.toml only."
    else:
        known = [full for schema in SCHEMAS.values() for full, _ in all_keys(schema)]
        if source.variable:
            known = [PREFIX + full.upper().replace(".", "__") for full in known]
        remedy = did_you_mean(name, known) or "`config explain` lists the keys there are."
    return ConfigError(f"There is no key {name}.", remedy=remedy, file=source.file, key=name)


# ------------------------------------------------------------------------------ what files refer to


def _add_prompts(values: Values) -> None:
    """Read each system_prompt_file into system_prompt: a guest reads no configuration."""
    for path, name in list(values.leaves.items()):
        if path[-1] != "system_prompt_file" or not name:
            continue
        at = (*path[:-1], "system_prompt")
        source = values.source(path)
        if values.leaves.get(at):
            raise values.fail(path, f"{dotted(path)} and {dotted(at)} are both set.", "Keep one.")
        text = files.read_text(_below(source, name))
        if text is None:
            raise values.fail(path, f"There is no file {name!r}.", "Correct the path.")
        if len(text) > MAX_PROMPT:
            raise values.fail(path, f"{name!r} is longer than {MAX_PROMPT >> 10} KiB.", "Cut it.")
        values.add({at: text}, {at: source})


def _check_together(config: Config) -> None:
    """What no key can say of itself."""
    agent, values = config.agent, config.values["agent"]
    runtime, reliability = agent.runtime, agent.reliability
    if runtime.summarization.target_ratio >= runtime.context_budget.trigger_ratio:
        raise values.fail(
            ("runtime", "summarization", "target_ratio"),
            "runtime.summarization.target_ratio must be below runtime.context_budget.trigger_ratio,"
            " or every turn would start a summary.",
        )
    if reliability.backoff_base_ms > reliability.backoff_max_ms:
        raise values.fail(
            ("reliability", "backoff_base_ms"),
            "reliability.backoff_base_ms is larger than reliability.backoff_max_ms.",
        )
    if not agent.memory.retrieval.vector_weight + agent.memory.retrieval.fts_weight:
        raise values.fail(
            ("memory", "retrieval", "vector_weight"),
            "memory.retrieval.vector_weight and fts_weight are both 0: nothing would be found.",
        )
    selections: dict[KeyPath, SelectionConfig] = {("selection",): agent.selection}
    for name, profile in agent.agents.items():
        selections[("agents", name, "selection")] = profile.selection
    for path, selection in selections.items():
        if selection.provider != "auto":
            _check_provider(values, (*path, "provider"), selection.provider, agent)
        for choice in selection.fallback:
            _check_provider(values, (*path, "fallback"), choice.provider, agent)
    if (named := agent.runtime.summarization.provider) != "auto":
        _check_provider(values, ("runtime", "summarization", "provider"), named, agent)
    _check_embedding(config)
    for provider in config.user.credential_refs:
        _check_provider(config.values["user"], ("credential_refs", provider), provider, agent)
    _check_shell(config)
    _check_skills(config)
    _check_mcp(config)
    _check_folders(config)
    _check_owned(config)
    wanted = config.user.behavior.sandbox_tier
    if wanted and TIERS.index(wanted) < TIERS.index(config.runner.default_tier):
        raise config.values["user"].fail(
            ("behavior", "sandbox_tier"),
            f"{wanted!r} isolates less than the runner's default_tier, "
            f"{config.runner.default_tier!r}: a user's file may narrow, never widen.",
            "Change default_tier in runner.toml, or start once with --insecure.",
        )


def _check_provider(values: Values, path: KeyPath, name: str, agent: AgentConfig) -> None:
    if name in agent.providers.registry:
        return
    known = f"Known: auto, {', '.join(agent.providers.registry)}."
    raise values.fail(
        path,
        f"{dotted(path)}: there is no provider {name[:64]!r}.",
        f"{did_you_mean(name, agent.providers.registry)} {known}".strip(),
    )


def _check_embedding(config: Config) -> None:
    """What `openai_compatible` needs."""
    memory, values = config.agent.memory, config.values["agent"]
    if memory.embedding_backend != "openai_compatible":
        return
    path: KeyPath = ("memory", "embedding_provider")
    if not memory.embedding_provider or not memory.embedding_model:
        raise values.fail(
            ("memory", "embedding_backend"),
            "memory.embedding_backend is openai_compatible, which needs memory.embedding_provider"
            " and memory.embedding_model.",
        )
    _check_provider(values, path, memory.embedding_provider, config.agent)
    kind = config.agent.providers.registry[memory.embedding_provider].provider_type
    if kind not in ("openai", "openai_responses"):
        raise values.fail(
            path,
            f"memory.embedding_provider: {memory.embedding_provider!r} is of the type {kind}, which"
            " has no /v1/embeddings.",
        )


def _keys_of_ours(config: Config) -> set[str]:
    """The variables that hold what the broker keeps to itself."""
    secret = {GENERIC_VARIABLE, *VARIABLES.values(), config.agent.tools.web_search.api_key_env}
    secret |= {entry.api_key_env for entry in config.agent.providers.registry.values()}
    named = {**config.user.credential_refs, **config.runner.egress.git_credentials}
    return secret | {reference.partition(":")[2] for reference in named.values()}


def _check_mcp(config: Config) -> None:
    """What a server needs to be one; and that it gets no key that is another's."""
    values, secret = config.values["agent"], _keys_of_ours(config)
    for name, server in config.agent.mcp.servers.items():
        path: KeyPath = ("mcp", "servers", name)
        if not re.fullmatch(SERVER_NAME, name) or len(name) > MAX_SERVER_NAME:
            raise values.fail(
                path,
                f"mcp.servers.{name}: the name stands before its tools' names, so it has at most "
                f"{MAX_SERVER_NAME} lower-case letters, digits, and single _ or - between them.",
            )
        if bool(server.command) == bool(server.url):
            what = "both command and url" if server.url else "neither command nor url"
            raise values.fail(path, f"mcp.servers.{name} has {what}.", "Set one of them.")
        useless = ("args", "env") if server.url else ("headers",)
        for key in useless:
            if getattr(server, key):
                other = "command" if server.url else "url"
                message = f"mcp.servers.{name}.{key} is only for a server with {other}."
                raise values.fail((*path, key), message)
        for variable, text in server.env.items():
            if set(references(text)) & secret:
                raise values.fail(
                    (*path, "env", variable),
                    f"mcp.servers.{name}.env names a variable that holds one of Oxydra's own keys.",
                    "Give the server a key of its own.",
                )


def _check_shell(config: Config) -> None:
    """A command that the model wrote must not find a key in its environment."""
    secret = _secret_variables(config)
    for name in config.agent.tools.shell.env_keys:
        if name in secret or name.startswith(PREFIX):
            raise config.values["agent"].fail(
                ("tools", "shell", "env_keys"),
                f"tools.shell.env_keys names {name}, which holds a key.",
                "Take it out: the shell runs what a model wrote.",
            )


def _check_skills(config: Config) -> None:
    """What a skill shows goes to the provider of the model."""
    secret = _secret_variables(config)
    for name in config.agent.skills.env_keys:
        if name in secret or name.startswith(PREFIX):
            raise config.values["agent"].fail(
                ("skills", "env_keys"),
                f"skills.env_keys names {name}, which holds a key.",
                "Take it out: what a skill shows goes to the model's provider.",
            )


def _secret_variables(config: Config) -> set[str]:
    """The variables that hold keys: ours, and those of MCP servers."""
    secret = set(_keys_of_ours(config))
    for server in config.agent.mcp.servers.values():
        named = (*server.env.values(), *server.headers.values())
        secret |= {variable for text in named for variable in references(text)}
    return secret


def _check_folders(config: Config) -> None:
    """What a guest may write must not hold what configures its runner, or the keys."""
    values = config.values["runner"]
    folders = {config.home}
    for merged in config.values.values():
        folders |= {source.folder for source in merged.sources.values() if source.folder}
    for user in config.runner.users:
        workspace = (config.workspace_root / user).resolve()
        for folder in folders:
            if folder.resolve().is_relative_to(workspace):
                raise values.fail(
                    ("workspace_root",),
                    f"The configuration in {folder} lies inside the workspace {workspace}, which "
                    "a guest may write.",
                    "Set workspace_root to a folder of its own.",
                )


def _check_owned(config: Config) -> None:
    """What limits an agent is the user's or the system's to say, not a cloned repository's."""
    for values in (config.values["runner"], config.values["user"]):
        for path, source in values.sources.items():
            if path[0] in OWNED and not source.own:
                raise values.fail(
                    path,
                    f"[{path[0]}] is not used: this file may have come with a cloned repository.",
                    f"If it is yours, run: oxydra-runner trust '{source.folder or source.file}'.",
                    f"oxydra-runner trust {shlex.quote(str(source.folder or source.file))}",
                )


def _shown(key: Key, value: Any) -> str:
    if key.meta["secret"] and value:
        return SECRET_MASK
    if value is None:
        return "(unset)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        value = list(value)
    return repr(value) if value == "" else str(value)
