"""Reading TOML against the schema: strict, and with a hint for whoever mistyped. Pure.

`read` turns a parsed file into flat leaves (`("runtime", "max_turns"): 50`), checking every name
and value; `from_text` does so for one value that came as text; `build` makes the sections again
from the leaves of all layers; `dump` is the way back, to JSON. Leaves are what layers are merged
by.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from decimal import Decimal, InvalidOperation
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from oxydra.config.fields import NAME, USER, Section
from oxydra.config.lines import KeyPath
from oxydra.errors import ConfigError

S = TypeVar("S", bound=Section)
Leaves = dict[KeyPath, Any]
Fail = Callable[[KeyPath, str, str], ConfigError]
"""Makes the error for a key: path, what is wrong (a sentence), remedy."""

EXISTS = object()
"""The leaf of a named section itself, which may be there without any key."""

LARGEST = 1 << 53  # what JSON carries exactly


class Key(NamedTuple):
    """One field of a section. `kind` is a scalar type, `tuple` (a list of strings), `dict` (a table
    of strings), `list` (a list of tables, each an `item`) or `section`; `many` says that `section`
    comes as a table of named ones.
    """

    name: str
    kind: type
    optional: bool
    choices: tuple[str, ...]
    section: type[Section] | None
    many: bool
    default: Any
    meta: Mapping[str, Any]
    item: type[Section] | None = None

    @property
    def required(self) -> bool:
        return self.default is MISSING

    @property
    def type_name(self) -> str:
        """As a person reads it."""
        if self.choices:
            return " or ".join(f'"{choice}"' for choice in self.choices)
        return _TYPE_NAMES[self.kind]


_TYPE_NAMES: dict[type, str] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    Decimal: "a number",
    bool: "true or false",
    tuple: "a list of strings",
    dict: "a table of strings",
    list: "a list of tables",
    Section: "a table",
}


_KEYS: dict[type[Section], dict[str, Key]] = {}


def keys(schema: type[Section]) -> dict[str, Key]:
    """The fields of a section by name; read once for each."""
    if schema not in _KEYS:
        hints = get_type_hints(schema)
        _KEYS[schema] = {
            item.name: _key(
                item.name,
                hints[item.name],
                item.default if item.default_factory is MISSING else item.default_factory(),
                item.metadata,
            )
            for item in fields(schema)  # type: ignore[arg-type]
        }
    return _KEYS[schema]


def _key(name: str, hint: Any, default: Any, meta: Mapping[str, Any]) -> Key:
    optional = get_origin(hint) in (Union, UnionType)
    if optional:
        hint = next(kind for kind in get_args(hint) if kind is not NoneType)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return Key(name, str, optional, arguments, None, False, default, meta)
    if origin is dict and issubclass(arguments[1], Section):
        return Key(name, Section, optional, (), arguments[1], True, default, meta)
    if isinstance(hint, type) and issubclass(hint, Section):
        return Key(name, Section, optional, (), hint, False, default, meta)
    if origin is tuple and issubclass(arguments[0], Section):
        return Key(name, list, optional, (), None, False, default, meta, arguments[0])
    return Key(name, origin or hint, optional, (), None, False, default, meta)


def all_keys(schema: type[Section], prefix: str = "") -> Iterator[tuple[str, Key]]:
    """Every key of a schema that can be given, as `providers.registry.<name>.base_url`."""
    for key in keys(schema).values():
        here = prefix + key.name
        if key.section is None:
            yield here, key
        else:
            name = ("<id>." if key.name == "users" else "<name>.") if key.many else ""
            yield from all_keys(key.section, f"{here}.{name}")


def find(schema: type[Section], path: KeyPath) -> Key | None:
    """The key at `path`, where names stand for themselves; None if there is none.

    An entry of a table of strings is found as its table.
    """
    names = keys(schema)
    for index, part in enumerate(path):
        key = names.get(part)
        if key is None:
            return None
        rest = path[index + 1 :]
        if not rest or (key.kind is dict and len(rest) == 1):
            return key
        if key.section is None:
            return None
        if not key.many:
            return find(key.section, rest)
        return find(key.section, rest[1:]) if len(rest) > 1 else key
    return None


# ------------------------------------------------------------------------------------------ reading


def read(schema: type[Section], table: Mapping[str, Any], fail: Fail, path: KeyPath = ()) -> Leaves:
    """Check a parsed table; return its leaves. Raises what `fail` makes."""
    leaves: Leaves = {}
    for name, raw in table.items():
        here = (*path, name)
        key = keys(schema).get(name)
        if key is None:
            raise fail(here, f"There is no key {dotted(here)!r}.", nearest(schema, name, path))
        if key.section is None:
            if key.kind is dict and isinstance(raw, dict):
                leaves |= {(*here, k): v for k, v in value_of(key, raw, here, fail).items()}
            else:
                leaves[here] = value_of(key, raw, here, fail)
            continue
        if not isinstance(raw, dict):
            raise fail(here, f"{dotted(here)} must be a table.", f"Write it as [{dotted(here)}].")
        if not key.many:
            leaves |= read(key.section, raw, fail, here)
            continue
        pattern = USER if name == "users" else NAME
        for entry, content in raw.items():
            there = (*here, entry)
            if not re.fullmatch(pattern, entry):
                raise fail(
                    there,
                    f"{entry[:64]!r} can't be a name in [{dotted(here)}].",
                    "Use lower-case letters, digits, '_' and '-'; start with a letter or digit.",
                )
            if not isinstance(content, dict):
                raise fail(
                    there,
                    f"{dotted(there)} must be a table.",
                    f"Write its keys below [{dotted(there)}].",
                )
            leaves[there] = EXISTS
            leaves |= read(key.section, content, fail, there)
    return leaves


def value_of(key: Key, raw: Any, path: KeyPath, fail: Fail) -> Any:
    """The value of one key, of its exact type and within its bounds."""
    value = _items(key.item, raw, path, fail) if key.item is not None else _typed(key, raw)
    if value is None:
        remedy = did_you_mean(str(raw), key.choices) if key.choices and isinstance(raw, str) else ""
        # What was written is not repeated: a secret may stand at the wrong key.
        raise fail(path, f"{dotted(path)} must be {key.type_name}, not {_type_of(raw)}.", remedy)
    least, most, check = key.meta["least"], key.meta["most"], key.meta["check"]
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        if least is not None and value < least:
            raise fail(path, f"{dotted(path)} is {value}, but at least {least:g} is needed.", "")
        if (most is not None and value > most) or value > LARGEST:
            limit = LARGEST if most is None else most
            raise fail(path, f"{dotted(path)} is {value}, but may be at most {limit:g}.", "")
    if check is not None and (problem := check(value)):
        raise fail(path, f"{dotted(path)} {problem}.", "")
    return value


def _items(item: type[S], raw: Any, path: KeyPath, fail: Fail) -> tuple[S, ...] | None:
    """A list of tables as sections; None if it is none."""
    if not isinstance(raw, list) or not all(isinstance(row, dict) for row in raw):
        return None

    def inside(at: KeyPath, message: str, remedy: str) -> ConfigError:
        return fail((*path, *at), message, remedy)

    return tuple(build(item, read(item, row, inside), inside) for row in raw)


def _typed(key: Key, raw: Any) -> Any:
    """`raw` as the key's type; None if it is not of that type. tomli gives floats as Decimal."""
    if key.kind is tuple:
        good = isinstance(raw, list | tuple) and all(isinstance(item, str) for item in raw)
        return tuple(raw) if good else None
    if key.kind is dict:
        good = isinstance(raw, dict) and all(isinstance(item, str) for item in raw.values())
        return dict(raw) if good else None
    if key.kind is str:
        good = isinstance(raw, str) and "\0" not in raw
        return raw if good and (not key.choices or raw in key.choices) else None
    if key.kind is bool or isinstance(raw, bool):
        return raw if key.kind is bool and isinstance(raw, bool) else None
    if key.kind is int:
        return raw if isinstance(raw, int) else None
    if not isinstance(raw, int | float | Decimal):
        return None
    number = Decimal(str(raw))
    if not number.is_finite():
        return None
    return number if key.kind is Decimal else float(number)


def _type_of(raw: Any) -> str:
    names: dict[type, str] = {str: "a string", list: "a list", tuple: "a list", dict: "a table"}
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if isinstance(raw, int | float | Decimal):
        return f"the number {raw}"
    return names.get(type(raw), f"a {type(raw).__name__}")


def from_text(key: Key, text: str) -> Any:
    """What `text` would be in TOML for `key`: for environment variables and the command line.

    Lists are written `a, b` or as TOML; tables as TOML (`{a = "b"}`). What is not of the key's type
    comes back as it is, for `read` to refuse.
    """
    stripped = text.strip()
    if key.kind is bool:
        words = {"true": True, "1": True, "yes": True, "on": True}
        words |= {"false": False, "0": False, "no": False, "off": False}
        return words.get(stripped.lower(), text)
    if key.kind is int:
        return int(stripped) if re.fullmatch(r"[+-]?[0-9]{1,18}", stripped) else text
    if key.kind in (float, Decimal):
        with contextlib.suppress(InvalidOperation):
            return Decimal(stripped)
    if key.kind is tuple and not stripped.startswith("["):
        return [item.strip() for item in stripped.split(",") if item.strip()]
    if key.kind in (tuple, dict, list):
        import tomli

        with contextlib.suppress(tomli.TOMLDecodeError):
            return tomli.loads(f"value = {stripped}")["value"]
    return text


# -------------------------------------------------------------------------------------------- hints


def dotted(path: KeyPath) -> str:
    return ".".join(part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else repr(part) for part in path)


def did_you_mean(word: str, words: Iterable[str], cutoff: float = 0.6) -> str:
    """A sentence that names the one of `words` that was probably meant; "" if none is near."""
    import difflib

    near = difflib.get_close_matches(word, list(words), 1, cutoff)
    return f"Did you mean {near[0]!r}?" if near else ""


def nearest(schema: type[Section], name: str, path: KeyPath) -> str:
    """The remedy for an unknown name at `path`: the valid key that was probably meant."""
    table = find(schema, path) if path else None
    siblings = keys(table.section if table is not None and table.section else schema)
    if hint := did_you_mean(name, siblings):
        return hint
    everywhere = {full.rpartition(".")[2]: full for full, _ in all_keys(schema)}
    if name in everywhere:
        return f"Did you mean {everywhere[name]!r}?"
    return f"The keys here are: {', '.join(sorted(siblings))}."


# ----------------------------------------------------------------------------- sections from leaves


def build(schema: type[S], leaves: Mapping[KeyPath, Any], fail: Fail) -> S:
    """The sections that the leaves describe; what is not there has its default."""
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        if value is EXISTS:
            node.setdefault(path[-1], {})
        else:
            node[path[-1]] = value
    return _make(schema, tree, fail, ())


def _make(schema: type[S], tree: Mapping[str, Any], fail: Fail, path: KeyPath) -> S:
    values: dict[str, Any] = {}
    for key in keys(schema).values():
        here = (*path, key.name)
        if key.name not in tree:
            if key.required:
                raise fail(path, f"{dotted(here)} is missing.", f"It must be {key.type_name}.")
            continue
        value = tree[key.name]
        if key.section is None:
            values[key.name] = value
        elif key.many:
            values[key.name] = {
                name: _make(key.section, content, fail, (*here, name))
                for name, content in value.items()
            }
        else:
            values[key.name] = _make(key.section, value, fail, here)
    return schema(**values)


def leaves_of(config: Section, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Key, Any]]:
    """Every key of a configuration with its value; what is None or empty by default included."""
    for key in keys(type(config)).values():
        here, value = (*path, key.name), getattr(config, key.name)
        if key.section is None:
            yield here, key, value
        elif key.many:
            for name, entry in value.items():
                yield from leaves_of(entry, (*here, name))
        else:
            yield from leaves_of(value, here)


def dump(config: Section, *, for_guest: bool) -> dict[str, Any]:
    """A configuration as JSON; `for_guest` leaves out what only the runner may know."""
    tree: dict[str, Any] = {}
    for key in keys(type(config)).values():
        value = getattr(config, key.name)
        if value is None or (for_guest and key.meta["runner_only"]):
            continue
        if key.many:
            value = {name: dump(entry, for_guest=for_guest) for name, entry in value.items()}
        elif key.section is not None:
            value = dump(cast(Section, value), for_guest=for_guest)
        elif isinstance(value, tuple):
            value = [
                dump(item, for_guest=for_guest) if isinstance(item, Section) else item
                for item in value
            ]
        elif isinstance(value, Decimal):
            value = float(value)  # comes back the same: `read` goes through its shortest repr
        tree[key.name] = value
    return tree
