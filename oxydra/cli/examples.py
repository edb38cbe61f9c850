"""What `--help` shows of each command: how it is typed. A test parses every line."""

from __future__ import annotations

import argparse

EXAMPLES: dict[str, tuple[str, ...]] = {
    "": ("--tui", 'ask "what is in /shared?"', "--config ~/oxydra/runner.toml --user bob status"),
    "start": ("start --detach", "--log-format json start", "start --all", "--user bob start"),
    "status": ("status", "status --all --json"),
    "stop": ("stop", "stop --all"),
    "restart": ("restart", "--insecure restart"),
    "doctor": ("doctor", "doctor --json"),
    "logs": ("logs --follow", "logs --since 10m --role shell", "logs --tail 50 --json"),
    "ask": (
        'ask "list the files in /shared"',
        "git diff | oxydra-runner ask -",
        'ask --attach plan.pdf --session plans "what does it cost?"',
    ),
    "approvals": ("approvals list",),
    "approvals list": ("approvals list", "approvals list --json"),
    "approvals allow": ("approvals allow 3f2a", "approvals allow 3f2a --for-session"),
    "approvals deny": ("approvals deny 3f2a",),
    "session": ("session list", "session export plans"),
    "session list": ("session list", "session list --all --json"),
    "session rename": ('session rename 3f2a "plans for the garden"',),
    "session fork": ("session fork plans --name other --at 12",),
    "session export": (
        "session export plans > plans.md",
        "session export plans --format json > plans.json",
    ),
    "export": (
        "export plans > plans.md",
        "export plans --format html -o plans.html",
        "export plans --format json -o plans.json",
    ),
    "trace": ("trace last", "trace last --of plans", "trace 9c1d --json"),
    "session pins": ("session pins plans",),
    "session pin": ('session pin plans "Prices are in euros."',),
    "session unpin": ("session unpin plans 2",),
    "fork": ("fork plans --at 12",),
    "undo": ("undo plans --dry-run", "undo plans --keep-changed"),
    "replay": ("replay plans", "replay plans --turn 3"),
    "memory": ('memory search "spare key"', "memory list"),
    "memory search": ('memory search "spare key" --top 3', "memory search boiler --notes"),
    "memory list": ("memory list", "memory list --tag house"),
    "memory show": ("memory show 45a8a447a6",),
    "memory save": ('memory save "The key is next door." --tag house', "memory save - < note.txt"),
    "memory edit": ('memory edit 45a8a447a6 "The key is at home."', "memory edit 45a8a447a6"),
    "memory delete": ("memory delete 45a8a447a6",),
    "memory pin": ("memory pin 45a8a447a6",),
    "memory unpin": ("memory unpin 45a8a447a6",),
    "memory export": ("memory export --output notes.jsonl", "memory export --format markdown"),
    "memory import": ("memory import notes.jsonl --own",),
    "memory stats": ("memory stats",),
    "memory check": ("memory check",),
    "memory rebuild": ("memory rebuild --background",),
    "memory forget": (
        "memory forget --session plans --dry-run",
        "memory forget --matching 555-0142 --look-in /backups",
    ),
    "schedule": ("schedule list", "schedule runs news"),
    "schedule create": (
        'schedule create --cron "0 9 * * mon-fri" --tz Europe/Berlin --name news "What is new?"',
        "schedule create --every 3600 --notify always @goal.txt",
        'schedule create --at 2026-12-24T18:00:00+01:00 "Say merry Christmas."',
    ),
    "schedule edit": ("schedule edit news --every 7200", "schedule edit news --goal @goal.txt"),
    "schedule list": ("schedule list",),
    "schedule show": ("schedule show news",),
    "schedule pause": ("schedule pause news",),
    "schedule resume": ("schedule resume news",),
    "schedule run-now": ("schedule run-now news",),
    "schedule delete": ("schedule delete news",),
    "schedule runs": ("schedule runs news", "schedule runs news --json"),
    "schedule output": ("schedule output 17",),
    "cost": ("cost", "cost --by model", "cost --by day --json"),
    "init": ("init", "--config ~/oxydra/runner.toml --user bob init"),
    "config": ("config explain",),
    "config explain": ("config explain", "config explain --json"),
    "explain": ("explain prompt", 'explain recall "where is the key?"'),
    "explain prompt": ("explain prompt", "explain prompt --agent reader"),
    "explain recall": ('explain recall "where is the key?"',),
    "catalog": ("catalog show",),
    "catalog show": ("catalog show", "catalog show --provider anthropic --json"),
    "catalog fetch": ("catalog fetch", "catalog fetch --from models.json"),
    "catalog verify": ("catalog verify",),
    "trust": ("trust", "trust ~/project/.oxydra"),
    "key": ("key set OPENAI_API_KEY", "key list"),
    "key set": ("key set OPENAI_API_KEY", "key set TELEGRAM_BOT_TOKEN < token.txt"),
    "key remove": ("key remove OPENAI_API_KEY",),
    "key list": ("key list",),
    "images": ("images build all",),
    "audit": ("audit verify",),
    "audit verify": (
        "audit verify",
        f"audit verify --head 1042:{'0a' * 32}",
        "audit verify --json",
    ),
    "egress": ("egress log", "egress test https://example.org"),
    "egress log": ("egress log --tail 20", "egress log --verify"),
    "egress test": (
        "egress test https://example.org/page",
        "egress test http://10.0.0.1/ --guest agent",
    ),
    "workspace": ("workspace audit", "workspace size"),
    "workspace audit": ("workspace audit", "workspace audit --json"),
    "workspace size": ("workspace size",),
    "backup": ("backup ~/backups/alice.tar", "backup --verify ~/backups/alice.tar"),
    "restore": ("restore --dry-run ~/backups/alice.tar", "restore ~/backups/alice.tar"),
    "token": ("token list", "token create phone"),
    "token create": ("token create phone --scope chat --scope approve",),
    "token list": ("token list",),
    "token revoke": ("token revoke phone",),
    "token rotate": ("token rotate phone",),
    "mcp": ("mcp", "mcp --token-file ~/.config/oxydra/mcp-token"),
    "mcp-servers": ("mcp-servers list", "mcp-servers trust files"),
    "mcp-servers list": ("mcp-servers list", "mcp-servers list --json"),
    "mcp-servers show": ("mcp-servers show files",),
    "mcp-servers trust": ("mcp-servers trust files", "mcp-servers trust files --yes"),
    "mcp-servers distrust": ("mcp-servers distrust files",),
    "mcp-servers restart": ("mcp-servers restart files",),
    "mcp-servers logs": ("mcp-servers logs files",),
    "skill": ("skill list", "skill trust invoices"),
    "skill list": ("skill list", "skill list --json"),
    "skill show": ("skill show daily-report", "skill show invoices --place own"),
    "skill add": ("skill add ~/downloads/invoices", "skill add ./invoices --replace"),
    "skill trust": ("skill trust invoices", "skill trust invoices --yes"),
    "skill remove": ("skill remove invoices",),
    "skill check": ("skill check", "skill check ./invoices"),
    "completion": (
        "completion bash > ~/.local/share/bash-completion/completions/oxydra-runner",
        'completion zsh > "${fpath[1]}/_oxydra-runner"',
        "completion fish > ~/.config/fish/completions/oxydra-runner.fish",
    ),
}
OTHERS: dict[str, tuple[str, ...]] = {
    "oxydra-tui": (
        "--gateway-endpoint ws://127.0.0.1:7777/ws --user alice",
        "--gateway-endpoint wss://home.example.org/ws --user alice --token-file ~/token",
    ),
    "oxydra-health": ("--quiet", "--config ~/oxydra/runner.toml --json"),
}


def lines(program: str, path: str = "") -> list[str]:
    """How a command is typed, whole."""
    shown = OTHERS[program] if program in OTHERS else EXAMPLES.get(path, ())
    return [line if program in line else f"{program} {line}" for line in shown]


def add_examples(parser: argparse.ArgumentParser, path: str = "") -> None:
    """Put them below the options of a parser and of all its commands."""
    program = parser.prog.split()[0]
    if found := lines(program, path):
        parser.epilog = "\n".join(("examples:", *(f"  {line}" for line in found)))
        parser.epilog = parser.epilog.replace("%", "%%")
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            told = {choice.dest: choice.help for choice in action._choices_actions}
            for name, command in action.choices.items():
                command.description = command.description or told.get(name)
                add_examples(command, f"{path} {name}".strip())
