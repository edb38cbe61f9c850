"""The command line of `oxydra-runner`. Only argparse is imported to parse it.

What runs is named, `module:function`, and imported when it does.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

from oxydra.cli.examples import add_examples
from oxydra.version import VERSION

MAX_TAIL = 2000  # lines of `logs`
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def build_parser() -> argparse.ArgumentParser:
    """The parser of `oxydra-runner`; `run` names the function of the command."""
    parser = argparse.ArgumentParser(
        prog="oxydra-runner", description="Oxydra: a self-hosted AI agent orchestrator."
    )
    parser.add_argument(
        "--version", action="version", version=f"oxydra {VERSION}", help="print the version"
    )
    add_common(parser)
    parser.add_argument(
        "--insecure", action="store_true", help="use the process tier for this start"
    )
    parser.add_argument(
        "--log-format", choices=("text", "json"), help="of this start; default: as runner.toml says"
    )
    parser.add_argument("--tui", action="store_true", help="open the terminal UI")
    parser.add_argument("--session", metavar="ID", help="with --tui: an id, a prefix, or a name")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_daemon(commands)
    _add_conversation(commands)
    _add_configuration(commands)
    _add_images(commands)
    _add_egress(commands)
    _add_workspace(commands)
    _add_backup(commands)
    _add_token(commands)
    _add_mcp(commands)
    _add_skills(commands)
    text = "print what makes a shell complete commands and options"
    completion = _command(commands, "completion", "oxydra.cli.completion:completion", text)
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    add_examples(parser)
    return parser


def add_common(parser: argparse.ArgumentParser) -> None:
    """The options that say which configuration, and whose."""
    parser.add_argument("--config", metavar="F", type=Path, help="runner.toml, or its folder")
    parser.add_argument("--user", metavar="U", help="may be left out if there is only one")


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _command(commands: Commands, name: str, run: str, help_text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=help_text, description=help_text)
    command.set_defaults(run=run)
    return command


def _add_daemon(commands: Commands) -> None:
    start = _command(commands, "start", "oxydra.cli.daemon:start", "start the daemon")
    start.add_argument("--detach", action="store_true", help="run it in the background")
    status = _command(commands, "status", "oxydra.cli.daemon:status", "show how the daemon is")
    status.add_argument("--json", action="store_true", help="print JSON")
    stop = _command(
        commands,
        "stop",
        "oxydra.cli.daemon:stop",
        "stop the daemon; running turns resume with the next start",
    )
    restart = _command(
        commands,
        "restart",
        "oxydra.cli.daemon:restart",
        "stop the daemon if it runs, and start it in the background",
    )
    for command in (start, status, stop, restart):
        command.add_argument("--all", action="store_true", help="for every user of runner.toml")
    text = "look whether all is well, and say what to do where it is not: exit code 1 or 2"
    doctor = _command(commands, "doctor", "oxydra.cli.health:doctor", text)
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.add_argument(
        "--canary", action="store_true", help="ask each provider for one token: costs a little"
    )
    doctor.add_argument("checks", nargs="*", metavar="CHECK", help="only these; default: all")
    doctor.add_argument("--fix", action="store_true", help="end what can be ended without harm")
    logs = _command(commands, "logs", "oxydra.cli.logs:logs", "show what was logged")
    logs.add_argument(
        "--role",
        choices=("runtime", "shell", "runner", "all"),
        default="all",
        help="whose: the agent guest's, the shell guest's, the runner's; default: all",
    )
    logs.add_argument("--follow", action="store_true", help="go on until Ctrl+C")
    logs.add_argument(
        "--tail", type=_count, default=200, metavar="N", help="so many lines; default 200"
    )
    logs.add_argument("--since", default="", metavar="T", help="10m, 2h, 3d or an ISO 8601 time")
    logs.add_argument("--json", action="store_true", help="print each line as JSON")
    logs.add_argument("--raw", action="store_true", help="print control characters as they are")


def seconds(text: str) -> int:
    """`30s`, `10m`, `2h`, `3d`."""
    number, unit = text[:-1], text[-1:]
    if not number.isdecimal() or unit not in UNITS or not 0 < int(number) * UNITS[unit] < 1 << 31:
        raise argparse.ArgumentTypeError("write 30s, 10m, 2h or 3d")
    return int(number) * UNITS[unit]


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) > MAX_TAIL:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to {MAX_TAIL}")
    return int(text)


def _add_conversation(commands: Commands) -> None:
    ask = _command(
        commands, "ask", "oxydra.cli.conversation:ask", "ask one question and print the answer"
    )
    ask.add_argument("prompt", metavar="PROMPT", help="the question; - reads it from stdin")
    ask.add_argument("--session", dest="ask_session", metavar="ID", help="default: a new session")
    ask.add_argument(
        "--attach", action="append", default=[], type=Path, metavar="FILE", help="image or PDF"
    )
    ask.add_argument("--agent", default="", metavar="NAME", help="whose session the new one is")
    ask.add_argument("--steer", action="store_true", help="tell it to the turn that runs there")
    ask.add_argument("--json", action="store_true", help="print the final frame as JSON")
    ask.add_argument("--raw", action="store_true", help="print control characters as they are")
    _add_approvals(commands)
    _add_sessions(commands)
    _add_memory(commands)
    _add_schedules(commands)
    text = "what the models have cost, and what is left of each cap"
    cost = _command(commands, "cost", "oxydra.cli.cost:cost", text)
    cost.add_argument(
        "--by",
        choices=("day", "model", "session", "schedule"),
        help="a row for each: of the last 31 days, or of this month",
    )
    cost.add_argument("--json", action="store_true", help="print JSON")


def _add_mcp(commands: Commands) -> None:
    text = "offer the agent to one MCP client, on stdin and stdout; its token is in OXYDRA_TOKEN"
    mcp = _command(commands, "mcp", "oxydra.cli.mcp:mcp", text)
    mcp.add_argument("--token-file", metavar="F", type=Path, help="holds the client's token")
    text = "servers of others whose tools the agent may use, by the Model Context Protocol"
    servers = commands.add_parser("mcp-servers", help=text, description=text)
    actions = servers.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text in (
        ("list", "list them, and how they are"),
        ("show", "start one and show what it offers, as a model would read it"),
        ("trust", "the same, and have its tools offered as they are described"),
        ("distrust", "offer the tools of one no more"),
        ("restart", "end one; the next call starts it at once, whatever failed before"),
        ("logs", "show what one said for people"),
    ):
        action = _command(actions, name, "oxydra.cli.mcp_servers:servers", text)
        action.add_argument("--json", action="store_true", help="print JSON")
        if name != "list":
            action.add_argument("name", metavar="NAME", help="a server of [mcp.servers]")
        if name == "trust":
            action.add_argument("--yes", action="store_true", help="do not ask")


def _add_skills(commands: Commands) -> None:
    text = "folders of instructions that the agent may use once you have looked at them"
    skills = commands.add_parser("skill", help=text, description=text)
    actions = skills.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text in (
        ("list", "list them, and which are used"),
        ("show", "show all of one"),
        ("add", "copy one into your own folder; it is not used before you trust it"),
        ("trust", "show one, and have it used as it is now"),
        ("remove", "take one of yours away, or trust one of the project's no more"),
        ("check", "say what is wrong with one, or with any"),
    ):
        action = _command(actions, name, "oxydra.cli.skill:skill", text)
        if name in ("list", "show"):
            action.add_argument("--json", action="store_true", help="print JSON")
        if name in ("show", "trust", "remove"):
            action.add_argument("name", metavar="NAME", help="as `skill list` shows it")
            action.add_argument(
                "--place", choices=("built-in", "own", "folder"), help="where several have the name"
            )
    actions.choices["trust"].add_argument("--yes", action="store_true", help="do not ask")
    add, check = actions.choices["add"], actions.choices["check"]
    add.add_argument("path", metavar="PATH", help="a folder with a SKILL.md")
    add.add_argument("--replace", action="store_true", help="in the place of one with its name")
    check.add_argument("name", metavar="NAME", nargs="?", default="", help="one, or a path")


def _add_schedules(commands: Commands) -> None:
    run = "oxydra.cli.schedule:schedule"
    schedule = _command(commands, "schedule", run, "tasks that run at their time")
    actions = schedule.add_subparsers(dest="action", required=True)
    create = actions.add_parser("create", help="run a goal at a time, or again and again")
    edit = actions.add_parser("edit", help="change a schedule")
    for action in (create, edit):
        when = action.add_mutually_exclusive_group(required=action is create)
        when.add_argument("--every", metavar="SECONDS", help="so many seconds apart")
        when.add_argument("--cron", metavar="EXPR", help='such as "0 9 * * mon-fri"')
        when.add_argument("--at", metavar="RFC3339", help='such as "2026-03-01T09:00:00+01:00"')
        action.add_argument("--tz", metavar="ZONE", help="an IANA time zone")
        action.add_argument("--name", metavar="N", help="what it is called")
        action.add_argument("--notify", choices=("always", "conditional", "never"))
    create.add_argument("goal", metavar="GOAL", help="what to do; @file reads it from a file")
    listed = actions.add_parser("list", help="all schedules, those due first first")
    others = {
        "show": "one schedule and its next times",
        "pause": "let it rest",
        "resume": "go on from now",
        "run-now": "run it once, now",
        "delete": "with the record of its runs",
        "runs": "what became of its due times",
    }
    rest = [actions.add_parser(name, help=text) for name, text in others.items()]
    output = actions.add_parser("output", help="what a run said")
    output.add_argument("run_id", metavar="RUN", type=int, help="as `schedule runs` shows it")
    for action in (edit, *rest):
        action.add_argument("id", metavar="ID", help="an id, a prefix of one, or a name")
    edit.add_argument("--goal", metavar="GOAL", help="another one; @file reads it from a file")
    for action in (create, edit, listed, output, *rest):
        action.add_argument("--json", action="store_true", help="print JSON")


def _add_approvals(commands: Commands) -> None:
    run = "oxydra.cli.conversation:approvals"
    approvals = _command(commands, "approvals", run, "what the agent asks you to allow")
    actions = approvals.add_subparsers(dest="action", required=True)
    listed = actions.add_parser("list", help="open requests with all their arguments")
    allow = actions.add_parser("allow", help="let this call run")
    allow.add_argument(
        "--for-session", action="store_true", help="and any with exactly the same arguments"
    )
    deny = actions.add_parser("deny", help="do not let it run")
    for action in (allow, deny):
        action.add_argument("id", metavar="ID", help="as `approvals list` shows it")
    for action in (listed, allow, deny):
        action.add_argument("--json", action="store_true", help="print JSON")


def _add_sessions(commands: Commands) -> None:
    text = "the conversations of a running daemon"
    session = _command(commands, "session", "oxydra.cli.session:session", text)
    actions = session.add_subparsers(dest="action", required=True, metavar="ACTION")
    listed = actions.add_parser("list", help="the most recently used first")
    listed.add_argument("--all", action="store_true", help="with the archived ones")
    rename = actions.add_parser("rename", help="give one a name")
    fork = actions.add_parser("fork", help="a new one that begins with a copy of this one")
    _add_export(actions)
    pins = actions.add_parser("pins", help="the rules in it that are never cut")
    pin = actions.add_parser("pin", help="add one")
    unpin = actions.add_parser("unpin", help="take one out")
    for action in (rename, fork, pins, pin, unpin):
        action.add_argument("id", metavar="ID", help="an id, a prefix of one, or a name")
    rename.add_argument("name", metavar="NAME")
    _take_fork(fork)
    pin.add_argument("text", metavar="TEXT")
    unpin.add_argument("number", metavar="NUMBER", help="as `session pins` shows it")
    for action in (listed, rename, fork, pins, pin, unpin):
        action.add_argument("--json", action="store_true", help="print JSON")
    _add_export(commands)
    text = (
        "what a turn did and when: model calls, tools, waits, tokens, cost; also as a crash left it"
    )
    trace = _command(commands, "trace", "oxydra.cli.trace:trace", text)
    trace.add_argument("turn", metavar="TURN", help="an id, a prefix of one, or `last`")
    trace.add_argument(
        "--of", dest="of_session", metavar="SESSION", help="with `last`: the last of this session"
    )
    trace.add_argument("--json", action="store_true", help="print JSON")
    module = "oxydra.cli.session"
    text = "a new session that begins with a copy of this one: `session fork`"
    fork = _command(commands, "fork", f"{module}:session", text)
    text = "take back what the last turn of a session did to files, and list what stays"
    undo = _command(commands, "undo", f"{module}:undo", text)
    text = "run a session again on what was recorded of it: exit code 1 where it differs"
    replay = _command(commands, "replay", f"{module}:replay", text)
    for action in (fork, undo, replay):
        action.add_argument("id", metavar="SESSION", help="an id, a prefix of one, or a name")
        action.add_argument("--json", action="store_true", help="print JSON")
    _take_fork(fork)
    fork.set_defaults(action="fork")
    undo.add_argument("--dry-run", action="store_true", help="only say what would be done")
    undo.add_argument(
        "--keep-changed",
        action="store_true",
        help="leave files as they are that were changed since, and take back the rest",
    )
    replay.add_argument("--turn", type=_count, metavar="N", help="only the Nth turn of the session")


def _add_export(commands: Commands) -> None:
    text = "print all that was said in a session, with or without a daemon"
    export = _command(commands, "export", "oxydra.cli.export:export", text)
    export.add_argument("id", metavar="SESSION", help="an id, a prefix of one, or a name")
    export.add_argument("--format", choices=("md", "markdown", "json", "html"), default="md")
    export.add_argument(
        "-o", "--output", metavar="FILE", help="a new one, for you alone; default: stdout"
    )
    export.add_argument("--raw", action="store_true", help="control characters as they are")


def _add_memory(commands: Commands) -> None:
    memory = commands.add_parser("memory", help="what was said before, and notes")
    actions = memory.add_subparsers(dest="action", required=True, metavar="ACTION")
    text = "what fits some words, best first, from notes and all conversations"
    search = _command(actions, "search", "oxydra.cli.memory:search", text)
    search.add_argument("query", metavar="WORDS")
    search.add_argument("--top", type=_count, default=8, metavar="N", help="so many; default 8")
    search.add_argument("--notes", action="store_true", help="only from notes")
    search.add_argument("--since", default="", metavar="T", help="from then on: RFC 3339")
    search.add_argument("--until", default="", metavar="T", help="from before then")
    module = "oxydra.cli.notes:notes"
    listed = _command(actions, "list", module, "notes, pinned ones first and then the newest")
    show = _command(actions, "show", module, "a note, with what it said before")
    save = _command(actions, "save", module, "make a note")
    edit = _command(actions, "edit", module, "have a note say something else, or have other tags")
    delete = _command(actions, "delete", module, "delete a note and its history, for good")
    pin = _command(actions, "pin", module, "have a note come before others")
    unpin = _command(actions, "unpin", module, "and no longer")
    export = _command(actions, "export", module, "write notes as JSON Lines or Markdown")
    taken = _command(actions, "import", module, "take notes in from what `export` wrote")
    for action in (show, edit, delete, pin, unpin):
        action.add_argument("id", metavar="NOTE", help="as `memory list` shows it")
    save.add_argument("text", metavar="TEXT", help="- reads it from stdin")
    edit.add_argument("text", nargs="?", metavar="TEXT", help="default: what your $EDITOR leaves")
    for action in (search, listed, save, edit, export):
        action.add_argument("--tag", action="append", metavar="TAG", help="may be repeated")
    export.add_argument("--format", choices=("jsonl", "markdown"), default="jsonl")
    export.add_argument("--output", metavar="FILE", help="a new one; default: stdout")
    taken.add_argument("file", metavar="FILE", help="- reads stdin")
    taken.add_argument(
        "--own", action="store_true", help="they are yours: do not count them as strangers' words"
    )
    module = "oxydra.cli.memory:"
    stats = _command(actions, "stats", module + "stats", "what is indexed, and by what it is found")
    text = "whether the database and memory's indexes are right: exit code 1 if not"
    check = _command(actions, "check", module + "check", text)
    text = "make chunks, vectors and indexes anew, while what is there is searched"
    rebuild = _command(actions, "rebuild", module + "rebuild", text)
    rebuild.add_argument("--background", action="store_true", help="do not wait for the end")
    _add_forget(actions)
    for action in (stats, check, search, listed, show, save, edit, delete, pin, unpin, taken):
        action.add_argument("--json", action="store_true", help="print JSON")


def _add_forget(actions: Commands) -> None:
    text = "take a session, a note or some words out of all that is kept: exit code 1 if any stays"
    forget = _command(actions, "forget", "oxydra.cli.forget:forget", text)
    what = forget.add_mutually_exclusive_group(required=True)
    what.add_argument("--session", dest="of_session", metavar="ID", help="an id, or a name")
    what.add_argument("--note", metavar="NOTE", help="with all that quotes it")
    what.add_argument("--matching", metavar="WORDS", help="every message and note that holds them")
    forget.add_argument("--dry-run", action="store_true", help="only say what would be forgotten")
    forget.add_argument("--yes", action="store_true", help="do not ask")
    forget.add_argument(
        "--look-in",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="backups: say which of their files still hold it; may be repeated",
    )
    forget.add_argument("--json", action="store_true", help="print JSON")


def _take_fork(fork: argparse.ArgumentParser) -> None:
    fork.add_argument("--name", metavar="NAME", help="the new one's; default: the same")
    fork.add_argument("--at", type=int, metavar="SEQ", help="the last event that it takes over")


def _add_configuration(commands: Commands) -> None:
    module = "oxydra.cli.configuration"
    _command(commands, "init", f"{module}:init", "write a configuration and make the workspace")
    config = _command(commands, "config", f"{module}:explain", "show the effective configuration")
    explain = config.add_subparsers(dest="action", required=True).add_parser(
        "explain", help="each effective value with its source, secrets masked"
    )
    explain.add_argument("--json", action="store_true", help="print JSON")
    about = commands.add_parser("explain", help="what the model is told")
    subjects = about.add_subparsers(dest="subject", required=True, metavar="SUBJECT")
    text = "the system prompt: each part with its tokens, the tools', and the total"
    prompt = _command(subjects, "prompt", "oxydra.cli.prompt:explain", text)
    prompt.add_argument("--agent", metavar="NAME", help="of this agent; default: the general one")
    prompt.add_argument("--json", action="store_true", help="print JSON")
    text = "what memory would tell a new session's model before this message"
    recall = _command(subjects, "recall", "oxydra.cli.prompt:recall", text)
    recall.add_argument("text", metavar="MESSAGE")
    recall.add_argument("--json", action="store_true", help="print JSON")
    catalog = _command(commands, "catalog", f"{module}:catalog_show", "what is known of models")
    actions = catalog.add_subparsers(dest="action", required=True)
    show = actions.add_parser("show", help="models with their limits and prices")
    show.add_argument("--provider", metavar="P", help="only this provider's")
    show.add_argument("--json", action="store_true", help="print JSON")
    fetch = actions.add_parser("fetch", help="take newer data into your own catalog")
    fetch.add_argument("--from", dest="source", metavar="URL|FILE", help="default: models.dev")
    fetch.set_defaults(run=f"{module}:catalog_fetch")
    verify = actions.add_parser("verify", help="check the catalog that is in force")
    verify.set_defaults(run=f"{module}:catalog_verify")
    trust = _command(
        commands, "trust", f"{module}:trust", "trust a .oxydra folder that was not made here"
    )
    trust.add_argument("folder", nargs="?", default=".oxydra")
    key = _command(
        commands,
        "key",
        f"{module}:key",
        "keep API keys for daemons started without your environment",
    )
    actions = key.add_subparsers(dest="action", required=True)
    for name, text in (("set", "read a key from the terminal or stdin"), ("remove", "forget it")):
        actions.add_parser(name, help=text).add_argument("name", metavar="NAME")
    actions.add_parser("list", help="the names of the keys that are kept")


def _add_images(commands: Commands) -> None:
    images = commands.add_parser("images", help="the container tier's images")
    actions = images.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser(
        "build",
        add_help=False,
        prefix_chars="\0",  # whatever follows is for the program that builds
        help="build them; takes the arguments of guest/build-images (--help lists them)",
    )
    build.add_argument("arguments", nargs="*", metavar="ARGUMENT")
    build.set_defaults(run="oxydra.cli.images:build")


def _add_egress(commands: Commands) -> None:
    egress = commands.add_parser("egress", help="what leaves this machine")
    actions = egress.add_subparsers(dest="action", required=True, metavar="ACTION")
    log = _command(
        actions, "log", "oxydra.cli.egress:log", "requests and connections, oldest first"
    )
    log.add_argument("--tail", type=_count, default=50, metavar="N", help="so many; default 50")
    log.add_argument("--json", action="store_true", help="print each row as JSON")
    log.add_argument("--verify", action="store_true", help="look whether a row was changed")
    text = "the record of what left this machine"
    audit = commands.add_parser("audit", help=text, description=text)
    actions_of_audit = audit.add_subparsers(dest="action", required=True, metavar="ACTION")
    text = "whether the record is as it was written: exit code 1 if not; with or without a daemon"
    verify = _command(actions_of_audit, "verify", "oxydra.cli.egress:verify", text)
    verify.add_argument(
        "--head", type=_head, metavar="HEAD", help="what an earlier one printed: is it still there?"
    )
    verify.add_argument("--json", action="store_true", help="print JSON")
    text = "whether an address may be reached, and why not: exit code 1; nothing is dialled"
    test = _command(actions, "test", "oxydra.cli.egress:test", text)
    test.add_argument("url", metavar="URL")
    test.add_argument(
        "--guest",
        choices=("agent", "shell"),
        default="shell",
        help="who asks: a command, or the web tools; default: shell",
    )


def _head(text: str) -> str:
    number, _, digest = text.partition(":")
    if not (number.isdecimal() and len(number) < 20 and len(digest) == 64):
        raise argparse.ArgumentTypeError("must be NUMBER:HASH, as `audit verify` prints it")
    return text


def _add_workspace(commands: Commands) -> None:
    workspace = commands.add_parser("workspace", help="look into a user's folders")
    actions = workspace.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in (
        ("audit", "what commands left behind that could do harm: exit code 1 if there is any"),
        ("size", "what the folders take, and what they may: exit code 1 if it is more"),
    ):
        action = _command(actions, name, f"oxydra.cli.workspace:{name}", text)
        action.add_argument("--json", action="store_true", help="print JSON")


def _add_backup(commands: Commands) -> None:
    text = "put all that is kept into one file, while the daemon runs or not; of all users"
    backup = _command(commands, "backup", "oxydra.cli.backup:backup", text)
    backup.add_argument("file", metavar="FILE", type=Path, help="or a folder of backups")
    what = backup.add_mutually_exclusive_group()
    what.add_argument("--verify", action="store_true", help="look whether one is whole and sound")
    what.add_argument(
        "--keep", type=_some, metavar="N", help="in a folder: the newest N, and remove the others"
    )
    backup.add_argument("--with-keys", action="store_true", help="and the keys of `key set`")
    text = "put a backup back, here or on another machine"
    restore = _command(commands, "restore", "oxydra.cli.backup:restore", text)
    restore.add_argument("file", metavar="FILE", type=Path, help="as `backup` made it")
    restore.add_argument("--dry-run", action="store_true", help="only say what would be done")
    restore.add_argument(
        "--replace", action="store_true", help="in the place of what is there, which is then gone"
    )
    restore.add_argument(
        "--workspace-root", metavar="FOLDER", help="where the workspaces go; default: as they were"
    )
    for command in (backup, restore):
        command.add_argument("--json", action="store_true", help="print JSON")


def _some(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 10_000:
        raise argparse.ArgumentTypeError("must be a number from 1 on")
    return int(text)


def _add_token(commands: Commands) -> None:
    text = "who may use the gateway, and for what"
    token = _command(commands, "token", "oxydra.cli.token:token", text)
    actions = token.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="make one, and print it: this once")
    create.add_argument(
        "--scope",
        action="append",
        choices=("ask", "chat", "approve", "admin", "none"),
        help="may be repeated; default: chat. `none`: only /metrics",
    )
    listed = actions.add_parser("list", help="names and scopes; only hashes are kept")
    revoke = actions.add_parser("revoke", help="make it good for nothing, at once")
    rotate = actions.add_parser("rotate", help="give it a new value, and print that: this once")
    for action in (create, revoke, rotate):
        action.add_argument("name", metavar="NAME")
    for action in (create, listed, revoke, rotate):
        action.add_argument("--json", action="store_true", help="print JSON")
