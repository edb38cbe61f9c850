"""Configuring: `init`, `config explain`, `catalog`, `trust` and `key`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from oxydra.cli.target import load, workspace_of
from oxydra.errors import OxydraError, UsageError
from oxydra.scrub import printable

if TYPE_CHECKING:  # imported when a command needs it
    from oxydra.catalog import Catalog

FETCH_SECONDS = 60.0  # for a catalog


def init(options: argparse.Namespace) -> int:
    from oxydra import config

    folder = options.config or Path(".oxydra")
    if folder.suffix == ".toml":
        folder = folder.parent
    user = options.user or "alice"
    written = config.write_default(folder, user)
    for path in written:
        print(f"wrote {path}")
    settings = config.load(folder, options.user)
    workspace = workspace_of(settings)
    workspace.prepare()
    print(f"{settings.user_id}'s workspace is {workspace.path}")
    return 0


def explain(options: argparse.Namespace) -> int:
    rows = list(load(options, need_user=False).explain())
    if options.json:
        fields = ("file", "key", "value", "source")
        print(json.dumps([{f: getattr(row, f) for f in fields} for row in rows], indent=2))
        return 0
    width = max(len(row.key) for row in rows)
    for row in rows:
        print(printable(f"{row.key:{width}}  {row.value}   ({row.source})"))
    return 0


def catalog_show(options: argparse.Namespace) -> int:
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


def catalog_fetch(options: argparse.Namespace) -> int:
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


def catalog_verify(_options: argparse.Namespace) -> int:
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


def trust(options: argparse.Namespace) -> int:
    from oxydra import config

    folder = config.trust(Path(options.folder))
    print(f"{folder} is trusted as it is now.")
    return 0


def key(options: argparse.Namespace) -> int:
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
