"""Where the programs start: parse, import the one command that was asked for, run it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from oxydra.cli.examples import add_examples
from oxydra.cli.parser import add_common, build_parser, seconds
from oxydra.errors import EXIT_USAGE, OxydraError
from oxydra.scrub import printable


def runner(argv: Sequence[str] | None = None) -> int:
    """`oxydra-runner`: configure, start, ask, stop."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.tui:
        options.run = "oxydra.cli.conversation:tui"
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
    add_examples(parser)
    options = parser.parse_args(argv)
    options.run = "oxydra.cli.conversation:tui_direct"
    return _guarded(options)


def health(argv: Sequence[str] | None = None) -> int:
    """`oxydra-health`: one line per user and check, for cron."""
    parser = argparse.ArgumentParser(
        prog="oxydra-health",
        description="Check the daemons: exit code 0 healthy, 1 degraded, 2 down.",
    )
    add_common(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="print only what is not healthy")
    parser.add_argument(
        "--max-age",
        type=seconds,
        default="10m",
        metavar="TIME",
        help="how long something may be due or owed: 30s, 10m, 2h; default 10m",
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default="20s",
        metavar="TIME",
        help="answer within it, whatever hangs; default 20s",
    )
    add_examples(parser)
    options = parser.parse_args(argv)
    options.run = "oxydra.cli.health:health"
    return _guarded(options)


def vm(argv: Sequence[str] | None = None) -> int:
    """`oxydra-vm`: the agent guest; started by the runner."""
    from oxydra.vm import main

    return main(argv)


def command(name: str) -> Callable[[argparse.Namespace], int]:
    """The function that `module:function` names."""
    import importlib

    module, _, function = name.partition(":")
    found: Callable[[argparse.Namespace], int] = getattr(importlib.import_module(module), function)
    return found


def _guarded(options: argparse.Namespace) -> int:
    """Run the command; a user's mistake is one sentence on stderr, never a stack trace."""
    try:
        code = command(options.run)(options)
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
