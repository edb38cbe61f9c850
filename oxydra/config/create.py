"""What `init` writes: the annotated examples, for one user and the process tier."""

from __future__ import annotations

import re
from pathlib import Path

from oxydra.config import files
from oxydra.config.fields import USER
from oxydra.errors import ConfigError


def template(name: str) -> str:
    """An annotated example: `agent.toml`, `runner.toml` or `runner-user.toml`."""
    return (Path(__file__).parents[1] / "data" / name).read_text(encoding="utf-8")


def write_default(folder: Path, user: str = "alice", home: Path | None = None) -> list[Path]:
    """Write agent.toml, runner.toml and users/<user>.toml into `folder`; return what was written.

    Folders get mode 0700, files 0600; what is there already is left as it is. A folder that held
    no configuration is remembered as made here, and needs no `trust`; one that did may be somebody
    else's. Raises `ConfigError`.
    """
    if not re.fullmatch(USER, user):
        raise ConfigError(
            f"{user[:64]!r} can't be a user's name.",
            remedy="Use up to 32 of a-z, 0-9, '.', '_', '-'; start with a letter or digit.",
        )
    files.private_folder(folder)
    files.check_folder(folder)
    made_here = not files.holds_configuration(folder)
    files.private_folder(folder / "users")
    quoted = user if user.replace(".", "") == user else f'"{user}"'
    runner = (
        template("runner.toml")
        .replace('default_tier = "container"', 'default_tier = "process"')
        .replace("[users.alice]", f"[users.{quoted}]")
        .replace("alice", user)
    )
    texts = {
        folder / "agent.toml": template("agent.toml"),
        folder / "runner.toml": runner,
        folder / "users" / f"{user}.toml": template("runner-user.toml"),
    }
    written = [path for path, text in texts.items() if files.write_new(path, text)]
    if made_here:
        files.mark_made(folder, home)
    return written
