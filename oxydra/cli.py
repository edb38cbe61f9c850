"""The programs: `oxydra-runner`, `oxydra-tui`, `oxydra-health` and `oxydra-vm`.

Only argparse is imported to parse a command line: what a command needs is imported when it runs.
Every command returns its exit code: 0, 1 (it failed), 2 (usage or configuration), 3 (no daemon).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from oxydra.errors import EXIT_FAILED, EXIT_USAGE, NoDaemonError, OxydraError, UsageError
from oxydra.scrub import printable
from oxydra.version import VERSION

if TYPE_CHECKING:  # imported when a command needs them
    from oxydra.catalog import Catalog
    from oxydra.config import Config
    from oxydra.runner.daemon import RunnerSettings
    from oxydra.runner.workspace import Workspace

Locate = Callable[[], tuple[str, str]]
Json = dict[str, Any]

STOP_SECONDS = 20.0  # how long `stop` waits for a daemon to be gone
FETCH_SECONDS = 60.0  # for a catalog


def runner(argv: Sequence[str] | None = None) -> int:
    """`oxydra-runner`: configure, start, ask, stop."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.tui:
        options.run = _tui
    elif options.command is None:
        parser.print_help()
        return EXIT_USAGE
    return _guarded(options)


def tui(argv: Sequence[str] | None = None) -> int:
    """`oxydra-tui`: the terminal UI, connected directly to a gateway."""
    parser = argparse.ArgumentParser(prog="oxydra-tui", description="Oxydra's terminal UI.")
    parser.add_argument("--gateway-endpoint", required=True, metavar="URL")
    parser.add_argument("--user", required=True)
    parser.add_argument("--session", metavar="ID", help="an id, a prefix of one, or a name")
    parser.add_argument("--config", metavar="F", type=Path, help="where to find the token file")
    parser.add_argument("--token-file", metavar="F", type=Path, help="holds the gateway token")
    options = parser.parse_args(argv)
    options.run = _tui_direct
    return _guarded(options)


def health(argv: Sequence[str] | None = None) -> int:
    """`oxydra-health`: one line per user, for cron."""
    parser = argparse.ArgumentParser(
        prog="oxydra-health",
        description="Check the daemons: exit code 0 healthy, 1 degraded, 2 down.",
    )
    _add_common(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="print only what is not healthy")
    options = parser.parse_args(argv)
    options.run = _health
    return _guarded(options)


def vm(argv: Sequence[str] | None = None) -> int:
    """`oxydra-vm`: the agent guest; started by the runner."""
    from oxydra.vm import main

    return main(argv)


def build_parser() -> argparse.ArgumentParser:
    """The command line of `oxydra-runner`."""
    parser = argparse.ArgumentParser(
        prog="oxydra-runner", description="Oxydra: a self-hosted AI agent orchestrator."
    )
    parser.add_argument("--version", action="version", version=f"oxydra {VERSION}")
    _add_common(parser)
    parser.add_argument(
        "--insecure", action="store_true", help="use the process tier for this start"
    )
    parser.add_argument("--tui", action="store_true", help="open the terminal UI")
    parser.add_argument("--session", metavar="ID", help="with --tui: an id, a prefix, or a name")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, run: object, help_text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_text, description=help_text)
        sub.set_defaults(run=run)
        return sub

    command("init", _init, "write a configuration and make the workspace")
    start = command("start", _start, "start the daemon")
    start.add_argument("--detach", action="store_true", help="run it in the background")
    status = command("status", _status, "show how the daemon is")
    status.add_argument("--json", action="store_true", help="print JSON")
    command("stop", _stop, "stop the daemon; running turns resume with the next start")
    command("restart", _restart, "stop the daemon if it runs, and start it in the background")
    ask = command("ask", _ask, "ask one question and print the answer")
    ask.add_argument("prompt", metavar="PROMPT", help="the question; - reads it from stdin")
    ask.add_argument("--session", dest="ask_session", metavar="ID", help="default: a new session")
    ask.add_argument(
        "--attach", action="append", default=[], type=Path, metavar="FILE", help="image or PDF"
    )
    ask.add_argument("--json", action="store_true", help="print the final frame as JSON")
    ask.add_argument("--raw", action="store_true", help="print control characters as they are")
    config = command("config", _explain, "show the effective configuration")
    explain = config.add_subparsers(dest="action", required=True).add_parser(
        "explain", help="each effective value with its source, secrets masked"
    )
    explain.add_argument("--json", action="store_true", help="print JSON")
    catalog = command("catalog", _catalog_show, "what is known of models")
    actions = catalog.add_subparsers(dest="action", required=True)
    show = actions.add_parser("show", help="models with their limits and prices")
    show.add_argument("--provider", metavar="P", help="only this provider's")
    show.add_argument("--json", action="store_true", help="print JSON")
    fetch = actions.add_parser("fetch", help="take newer data into your own catalog")
    fetch.add_argument("--from", dest="source", metavar="URL|FILE", help="default: models.dev")
    fetch.set_defaults(run=_catalog_fetch)
    verify = actions.add_parser("verify", help="check the catalog that is in force")
    verify.set_defaults(run=_catalog_verify)
    trust = command("trust", _trust, "trust a .oxydra folder that was not made here")
    trust.add_argument("folder", nargs="?", default=".oxydra")
    key = command("key", _key, "keep API keys for daemons started without your environment")
    actions = key.add_subparsers(dest="action", required=True)
    for name, text in (("set", "read a key from the terminal or stdin"), ("remove", "forget it")):
        actions.add_parser(name, help=text).add_argument("name", metavar="NAME")
    actions.add_parser("list", help="the names of the keys that are kept")
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="F", type=Path, help="runner.toml, or its folder")
    parser.add_argument("--user", metavar="U", help="may be left out if there is only one")


def _guarded(options: argparse.Namespace) -> int:
    """Run the command; a user's mistake is one sentence on stderr, never a stack trace."""
    try:
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except OxydraError as error:
        print(f"oxydra: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `| head` has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


# ---------------------------------------------------------------------------------- configuration


def _load(options: argparse.Namespace, *, need_user: bool = True) -> Config:
    from oxydra import config

    return config.load(options.config, options.user, need_user=need_user)


def _workspace(settings: Config) -> Workspace:
    from oxydra.runner.workspace import Workspace

    return Workspace(settings.workspace_root, settings.user_id)


def _locate(workspace: Workspace) -> tuple[str, str]:
    """The gateway's endpoint and token, as a running daemon left them."""
    from oxydra.runner.workspace import read_small

    try:
        endpoint = read_small(workspace.ipc / "gateway-endpoint").strip()
        return endpoint, read_small(workspace.ipc / "gateway-token").strip()
    except OSError:
        raise NoDaemonError(
            f"No daemon runs for {workspace.user}.",
            remedy="Start one with `oxydra-runner start --detach`.",
        ) from None


# --------------------------------------------------------------------------------- the daemon


def _start(options: argparse.Namespace) -> int:
    from oxydra.runner.daemon import Runner, handle_signals
    from oxydra.threads import install_hooks

    settings = _runner_settings(options)
    if options.detach:
        return _start_detached(settings)
    from oxydra import log
    from oxydra.scrub.exact import ExactScrubber

    log.setup("oxydra-runner", sys.stderr, scrub=ExactScrubber(settings.secrets()).text)
    install_hooks()
    daemon = Runner(settings)
    with handle_signals(daemon):
        daemon.run(on_ready=lambda endpoint: print(f"Oxydra is ready at {endpoint}", flush=True))
    return 0


def _start_detached(settings: RunnerSettings) -> int:
    """Start the daemon in a session of its own; return when it is ready, or say why it is not."""
    settings.workspace.prepare()
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)
        _daemon_process(settings, writer)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as pipe:
        report = json.loads(pipe.read() or "{}")
    if "ready" in report:
        print(f"Oxydra is ready at {report['ready']}")
        return 0
    error = OxydraError(
        report.get("error", "The daemon ended while it started."),
        remedy=report.get("remedy", f"Its log is {settings.workspace.logs / 'runner.log'}."),
    )
    error.exit_code = report.get("exit_code", error.exit_code)
    raise error


def _daemon_process(settings: RunnerSettings, report: int) -> NoReturn:
    """The background process, from fork to its end; `report` is told how the start went."""
    from oxydra import log
    from oxydra.runner.daemon import Runner, handle_signals
    from oxydra.scrub.exact import ExactScrubber
    from oxydra.threads import install_hooks

    told = False

    def tell(**what: object) -> None:
        nonlocal told
        if not told:
            told = True
            os.write(report, json.dumps(what).encode())
            os.close(report)

    code = EXIT_FAILED
    try:
        os.setsid()
        output = settings.workspace.open_log("runner.log")
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        os.close(output)
        os.close(null)
        log.setup("oxydra-runner", sys.stderr, scrub=ExactScrubber(settings.secrets()).text)
        install_hooks()
        daemon = Runner(settings)
        with handle_signals(daemon):
            daemon.run(on_ready=lambda endpoint: tell(ready=endpoint))
        code = 0
    except OxydraError as error:
        tell(error=error.message, remedy=error.remedy, exit_code=error.exit_code)
        code = error.exit_code
    except OSError as error:
        tell(error=f"The daemon could not start: {error}.")
    except BaseException:
        logging.getLogger(__name__).critical("the daemon failed", exc_info=True)
    finally:
        logging.shutdown()
        os._exit(code)


def _status(options: argparse.Namespace) -> int:
    from oxydra.runner.control import call

    workspace = _workspace(_load(options))
    try:
        status = call(workspace.control_socket, "health_check", {})
    except NoDaemonError as error:
        if options.json:
            print(json.dumps({"user_id": workspace.user, "running": False}))
            return error.exit_code
        raise
    if options.json:
        print(json.dumps({"running": True, **status}, indent=2))
    else:
        print("\n".join(_status_lines(status)))
    return 0 if status.get("healthy") else EXIT_FAILED


def _status_lines(status: Json) -> list[str]:
    startup = status.get("startup_status", {})
    model = status.get("model", {})
    health = "healthy" if status.get("healthy") else f"not healthy: {status.get('message', '')}"
    lines = [
        f"{status['user_id']}: {health}",
        f"  gateway   {status['gateway_endpoint']}",
        f"  model     {model.get('model', '?')} ({model.get('provider', '?')})",
        f"  tier      {startup.get('sandbox_tier', '?')}, sandbox {startup.get('sandbox_level')}",
        f"  processes runner {status['runner_pid']}, agent {status['guest_pid']},"
        f" up {status['uptime_secs']:.0f} s, {status['guest_restarts']} restarts of the agent",
    ]
    if "last_guest_end" in status:
        lines.append(f"  the agent last ended: {status['last_guest_end']}")
    if "running_turns" in status:
        turns = f"{status['running_turns']} running, {status['queued_turns']} waiting"
        lines.append(f"  turns     {turns}")
    if usage := status.get("usage"):
        lines.append(f"  usage     {_usage_line(usage)}")
    lines += [f"  ! {row['detail']}" for row in startup.get("degraded_reasons", [])]
    return [printable(line) for line in lines]


def _usage_line(usage: Json) -> str:
    """Tokens since the start, how many of them came from a prompt cache, and their cost."""
    prompt = usage["prompt_tokens"]
    line = f"{prompt} tokens in, {usage['completion_tokens']} out"
    if prompt:
        line += f", {usage.get('cached_tokens', 0) / prompt:.0%} of the input from cache"
    return line + (f", ${usage['cost_usd']:.4f}" if "cost_usd" in usage else "")


def _stop(options: argparse.Namespace) -> int:
    workspace = _workspace(_load(options))
    _stop_daemon(workspace)
    print(f"Oxydra was stopped for {workspace.user}.")
    return 0


def _stop_daemon(workspace: Workspace) -> None:
    """Raises `NoDaemonError` if there is none; returns when it is gone."""
    from oxydra.runner.control import call

    call(workspace.control_socket, "shutdown_user", {"user_id": workspace.user})
    with workspace.lock(wait=STOP_SECONDS):
        pass


def _restart(options: argparse.Namespace) -> int:
    settings = _runner_settings(options)  # a broken configuration must not stop what runs
    try:
        _stop_daemon(settings.workspace)
    except NoDaemonError:
        print(f"No daemon was running for {settings.workspace.user}.", file=sys.stderr)
    return _start_detached(settings)


# ----------------------------------------------------------------------------- conversations


def _ask(options: argparse.Namespace) -> int:
    from oxydra.tui.ask import ask

    workspace = _workspace(_load(options))
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    if not prompt.strip():
        raise UsageError("The question is empty.")
    raw = options.raw or not sys.stdout.isatty()
    return ask(
        prompt,
        lambda: _locate(workspace),
        workspace.user,
        session_id=options.ask_session,
        attachments=[_attachment(path) for path in options.attach],
        as_json=options.json,
        clean=str if raw else printable,
    )


def _attachment(path: Path) -> Json:
    """A file as `send_turn` takes it."""
    import base64

    from oxydra.gateway.attachments import media_type

    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    kind = media_type(data)
    if not kind:
        raise UsageError(
            f"{path} cannot be attached.",
            remedy="PNG, JPEG, GIF and WebP images and PDFs can; text goes into the question.",
        )
    return {"mime_type": kind, "data": base64.b64encode(data).decode(), "name": path.name}


def _tui(options: argparse.Namespace) -> int:
    workspace = _workspace(_load(options))
    return _open_tui(lambda: _locate(workspace), workspace.user, options.session)


def _tui_direct(options: argparse.Namespace) -> int:
    from oxydra.runner.workspace import read_small

    path = options.token_file
    if path is None:
        path = _workspace(_load(options)).ipc / "gateway-token"

    def locate() -> tuple[str, str]:
        try:
            return options.gateway_endpoint, read_small(path).strip()
        except OSError as error:
            raise UsageError(
                f"The token file {path} cannot be read: {error.strerror}.",
                remedy="Name the one that the daemon wrote with --token-file.",
            ) from None

    return _open_tui(locate, options.user, options.session)


def _open_tui(locate: Locate, user: str, session: str | None) -> int:
    try:
        from oxydra.tui.app import main
    except ImportError as error:
        raise UsageError(
            "oxydra-tui was not found in PATH.",
            remedy=f"Install Oxydra with its dependencies ({error.name} is missing).",
        ) from None
    endpoint, token = locate()
    return main(endpoint, user, token, session, locate=locate)


# ---------------------------------------------------------------------------- configuration


def _init(options: argparse.Namespace) -> int:
    from oxydra import config

    folder = options.config or Path(".oxydra")
    if folder.suffix == ".toml":
        folder = folder.parent
    user = options.user or "alice"
    written = config.write_default(folder, user)
    for path in written:
        print(f"wrote {path}")
    settings = config.load(folder, options.user)
    workspace = _workspace(settings)
    workspace.prepare()
    print(f"{settings.user_id}'s workspace is {workspace.path}")
    return 0


def _runner_settings(options: argparse.Namespace) -> RunnerSettings:
    """Configuration and keys, read and resolved: what a daemon is started with."""
    from dataclasses import asdict

    from oxydra import config
    from oxydra.catalog import Catalog
    from oxydra.providers import registry
    from oxydra.runner.daemon import RunnerSettings

    insecure = {"default_tier": "process", "behavior.sandbox_tier": "process"}
    settings = config.load(
        options.config, options.user, overrides=insecure if options.insecure else None
    )
    catalog = Catalog.load(home=settings.home)
    chain = [config.select(settings, catalog)]
    chain += [
        config.select(settings, catalog, wanted=choice)
        for choice in settings.agent.selection.fallback
    ]
    credentials: dict[str, Json] = {}
    for selection in chain:
        if selection.credential is not None:
            entry = settings.agent.providers.registry[selection.provider]
            provider = registry.settings(selection.provider, entry)
            sent = registry.credential(provider, selection.credential.value)
            credentials[selection.provider] = asdict(sent)
    if (found := config.search_key(settings)) is not None:
        from oxydra.tools.web import search_credentials

        keys = search_credentials(settings.agent.tools.web_search, found.value)
        credentials |= {name: asdict(credential) for name, credential in keys.items()}
    notices: list[Json] = []
    if chain[0].provider == "offline":
        notices.append({"code": "no_model", "detail": chain[0].reason})
    return RunnerSettings(
        workspace=_workspace(settings),
        tier=settings.tier,
        config=config.effective(settings, chain[0], chain[1:]),
        credentials=credentials,
        port=settings.agent.gateway.port,
        notices=tuple(notices),
        policy=config.runtime_policy(settings),
        isolation=config.isolation(settings),
        git_tokens={host: token.value for host, token in config.git_tokens(settings).items()},
    )


def _explain(options: argparse.Namespace) -> int:
    rows = list(_load(options, need_user=False).explain())
    if options.json:
        fields = ("file", "key", "value", "source")
        print(json.dumps([{f: getattr(row, f) for f in fields} for row in rows], indent=2))
        return 0
    width = max(len(row.key) for row in rows)
    for row in rows:
        print(printable(f"{row.key:{width}}  {row.value}   ({row.source})"))
    return 0


def _catalog_show(options: argparse.Namespace) -> int:
    catalog = _load_catalog()
    providers = [options.provider] if options.provider else catalog.providers()
    specs = [spec for provider in providers for spec in catalog.models(provider)]
    if options.json:
        print(json.dumps([spec.to_json() for spec in specs], indent=2))
        return 0
    print(f"{'provider':14} {'model':48} {'context':>9} {'output':>8}  USD per 1M tokens in/out")
    for spec in specs:
        prices = f"{_price(spec.price_input)} / {_price(spec.price_output)}"
        sizes = f"{spec.max_context_tokens:>9} {spec.max_output_tokens:>8}"
        print(printable(f"{spec.provider:14} {spec.id:48} {sizes}  {prices}"))
    return 0


def _catalog_fetch(options: argparse.Namespace) -> int:
    import datetime

    from oxydra import catalog, config

    source = options.source or catalog.SOURCE
    try:
        api = json.loads(_read_source(source))
    except (OSError, ValueError, RecursionError) as error:
        raise OxydraError(
            f"{source} holds no model list: {error}.", remedy="Nothing was changed."
        ) from None
    document = catalog.convert(api, datetime.date.today().isoformat())
    path = config.config_home() / catalog.CACHE_NAME
    config.write_private(path, catalog.encode(document))
    models = sum(len(rows) for rows in document["providers"].values())
    print(f"{models} models of {len(document['providers'])} providers are kept in {path}.")
    print("`oxydra-runner restart` puts them in force.")
    return 0


def _read_source(source: str) -> bytes:
    """The bytes behind a URL or in a file."""
    if not source.startswith(("http://", "https://")):
        return Path(source).read_bytes()
    from oxydra.threads import CancelToken, Deadline
    from oxydra.transport import DirectTransport, HttpRequest

    transport = DirectTransport()
    request = HttpRequest("GET", source, deadline=Deadline.after(FETCH_SECONDS))
    try:
        with transport.open(request, CancelToken()) as answer:
            if answer.status != 200:
                raise OxydraError(f"{source} answers with status {answer.status}.")
            return answer.read()
    finally:
        transport.close()


def _catalog_verify(_options: argparse.Namespace) -> int:
    catalog = _load_catalog()
    problems = list(catalog.verify())
    for problem in problems:
        print(printable(problem))
    if problems:
        raise OxydraError(
            f"The model catalog has {len(problems)} problems.",
            remedy="Fetch it again: oxydra-runner catalog fetch.",
        )
    models = sum(len(catalog.models(provider)) for provider in catalog.providers())
    print(f"The catalog is sound: {models} models of {len(catalog.providers())} providers.")
    return 0


def _load_catalog() -> Catalog:
    from oxydra import config
    from oxydra.catalog import Catalog

    return Catalog.load(home=config.config_home())


def _price(price: object) -> str:
    return "?" if price is None else f"{price}"


def _trust(options: argparse.Namespace) -> int:
    from oxydra import config

    folder = config.trust(Path(options.folder))
    print(f"{folder} is trusted as it is now.")
    return 0


def _key(options: argparse.Namespace) -> int:
    from oxydra import config

    if options.action == "list":
        for name in config.list_keys():
            print(name)
    elif options.action == "remove":
        config.remove_key(options.name)
        print(f"The key {options.name} was removed.")
    else:
        print(f"The key is kept in {config.set_key(options.name, _read_key(options.name))}.")
    return 0


def _read_key(name: str) -> str:
    """From the terminal without echo, or from stdin: never from the command line."""
    import getpass

    value = getpass.getpass(f"{name}: ") if sys.stdin.isatty() else sys.stdin.read()
    if not value.strip():
        raise UsageError("The key is empty.", remedy="Pipe it in, or type it at the prompt.")
    return value.strip()


# ------------------------------------------------------------------------------------ health


def _health(options: argparse.Namespace) -> int:
    from oxydra import config, doctor
    from oxydra.runner.workspace import Workspace

    settings = config.load(options.config, options.user, need_user=False)
    users = [options.user] if options.user else sorted(settings.runner.users)
    checks = [
        check for user in users for check in doctor.health(Workspace(settings.workspace_root, user))
    ]
    if options.json:
        print(json.dumps([check.to_json() for check in checks], indent=2))
    else:
        for check in checks:
            if check.level != "healthy" or not options.quiet:
                line = f"{check.user} {check.name}: {check.level} {check.detail}"
                print(printable(line.rstrip()))
    if not checks:
        raise UsageError("No user is configured.", remedy="Run `oxydra-runner init`.")
    return max(doctor.EXIT_CODES[check.level] for check in checks)
