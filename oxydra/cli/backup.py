"""`backup` and `restore`: all that a person needs to go on elsewhere, in one file and out of it."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from oxydra.cli.target import load, locate, workspace_of
from oxydra.errors import EXIT_FAILED, NoDaemonError, UsageError
from oxydra.scrub import printable

if TYPE_CHECKING:  # imported when a command needs them
    from oxydra.config import Config
    from oxydra.config.kept import Kept
    from oxydra.runner.backup import Ask, Report
    from oxydra.runner.restore import Found, Restored
    from oxydra.runner.workspace import Workspace

PATIENCE = 60.0  # seconds for an answer of a daemon that has much to do


def backup(options: argparse.Namespace) -> int:
    """Exit code 1 where something that should be in it could not be read."""
    if options.verify:
        return _verify(options)
    from oxydra import config
    from oxydra.config.kept import kept
    from oxydra.runner import backup as making

    settings = load(options, need_user=False)
    users = [options.user] if options.user else sorted(settings.runner.users)
    if not users:
        raise UsageError("No user is configured.", remedy="Run `oxydra-runner init`.")
    workspaces = []
    for user in users:
        one = config.load(options.config, user)
        workspaces.append(workspace_of(one, config.mounts(one)))
    path: Path = options.file.expanduser().absolute()
    of = options.user or ""
    folder = path if path.is_dir() else path.parent
    if options.keep is not None and folder is not path:
        raise UsageError(
            "--keep needs a folder of backups, not a file.", remedy=f"Name {folder}, for instance."
        )
    for workspace in workspaces:
        if folder.resolve().is_relative_to(workspace.path.resolve()):
            raise UsageError(
                f"{folder} is in the workspace itself.", remedy="Name a place outside of it."
            )
    if folder is path:
        path = folder / making.name_for(of, datetime.datetime.now(datetime.UTC))
    layers = kept(options.config, making.CATALOG)
    report = making.write(
        path, layers, _root(settings, layers), workspaces, _asking, keys=options.with_keys
    )
    gone = making.prune(folder, of, options.keep) if options.keep is not None else []
    if options.json:
        print(json.dumps({**report.to_json(), "removed": [str(one) for one in gone]}, indent=2))
    else:
        _tell(report, gone)
    return EXIT_FAILED if report.troubles else 0


def _root(settings: Config, layers: list[Kept]) -> dict[str, str]:
    """Where the workspaces are, as which layer says it."""
    source = settings.source("workspace_root", "runner")
    folder = str(source.folder) if source.folder else ""
    names = {str(one.folder): one.name for one in layers}
    layer = names.get(folder, "")
    said = settings.runner.workspace_root if layer else str(settings.workspace_root)
    return {"said": said, "layer": layer, "was": str(settings.workspace_root)}


@contextlib.contextmanager
def _asking(workspace: Workspace) -> Iterator[Ask | None]:
    """The way to ask a user's daemon; None where none runs."""
    from oxydra.tui.answer import desk

    with contextlib.ExitStack() as stack:
        ask = None
        with contextlib.suppress(NoDaemonError):
            asked = desk(lambda: locate(workspace), workspace.user, patience=PATIENCE)
            ask = stack.enter_context(asked).command
        yield ask


def _tell(report: Report, gone: list[Path]) -> None:
    users = ", ".join(report.users)
    size = f"{report.files:,} files, {report.bytes / 1e6:,.1f} MB in {report.size / 1e6:,.1f} MB"
    print(printable(f"{report.path}: {users}; {size}"))
    for path in gone:
        print(printable(f"{path} was removed."))
    for line in report.left_out:
        print(printable(f"Left out: {line}."))
    for line in report.troubles:
        print(printable(f"Not in the backup: {line}."), file=sys.stderr)


def _verify(options: argparse.Namespace) -> int:
    from oxydra.runner.restore import verify

    found = verify(options.file)
    if options.json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        print(printable("\n".join(_about(found))))
    return EXIT_FAILED if found.troubles else 0


def _about(found: Found) -> list[str]:
    schemas = [f"{user} (schema {schema})" for user, schema in found.schemas.items()]
    rest = [f"{user} (no database)" for user in found.users if user not in found.schemas]
    size = f"{found.files:,} files, {found.size / 1e6:,.1f} MB"
    made = f"made {found.about['created_at']} by Oxydra {found.about['oxydra']}"
    sound = "as they were written" if not found.troubles else "DAMAGED"
    lines = [f"{', '.join(schemas + rest)}; {size}, {sound}; {made}"]
    return lines + [f"Wrong: {line}." for line in found.troubles]


def restore(options: argparse.Namespace) -> int:
    from oxydra.runner import restore as reading

    folder = options.config or Path(".oxydra")
    root = options.workspace_root or ""
    users = [options.user] if options.user else []
    if users and not root:
        root = str(load(options).workspace_root)
    plan = reading.Plan(
        folder=folder.parent if folder.suffix == ".toml" else folder,
        root=root,
        users=users,
        replace=options.replace,
        dry_run=options.dry_run,
    )
    done = reading.restore(options.file, plan)
    if options.json:
        print(json.dumps(done.to_json(), indent=2))
    else:
        print(printable("\n".join(_restored(done, options.dry_run))))
    for line in done.told:
        print(printable(f"Note: {line}."), file=sys.stderr)
    return 0


def _restored(done: Restored, dry_run: bool) -> list[str]:
    verb = "Would be restored" if dry_run else "Restored"
    lines = [*_about(done.found), f"{verb}: {', '.join(done.users)} below {done.root}"]
    lines += [f"{verb}: {path}" for path in done.files]
    if not dry_run:
        lines.append("`oxydra-runner doctor` says what this machine still lacks, such as keys.")
    return lines
