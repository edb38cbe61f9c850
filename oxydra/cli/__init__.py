"""The programs `oxydra-runner`, `oxydra-tui`, `oxydra-health` and `oxydra-vm`.

`main` starts them, `parser` is the command line of `oxydra-runner`; the other files hold the
commands and are imported when one of theirs runs. Every command returns its exit code: 0, 1 (it
failed), 2 (usage or configuration), 3 (no daemon).
"""

from oxydra.cli.main import health, runner, tui, vm
from oxydra.cli.parser import build_parser

__all__ = ["build_parser", "health", "runner", "tui", "vm"]
