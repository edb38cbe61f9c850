"""Types as JSON Schema, and as the check of what a model sent. Pure.

`compile_type` turns a type hint into a `Kind` once, when a tool is defined; its `schema()` is what
the model is told and its `read()` what checks and converts the arguments, so the two can't differ.
Known: str, int, float, bool, None, Any, Literal, Enum, list, dict[str, …], unions and Optional,
dataclasses (nested), and `Annotated` with

- a plain string: the description that the model reads;
- `Bounds(low, high)`: of a number its value, of a text or list its length;
- `Parse(function)`: the model gives a string, the tool gets `function(string)`, which may raise
  `ToolError`.

Slips are repaired only where one meaning is left: "5" for a number, "true" for a boolean, one item
for a list, JSON text for a list or object, null for an argument that may be left out, another case
for a choice. Everything else is a problem, named by its place in the arguments.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from oxydra.errors import ToolError
from oxydra.types import Json, ToolCall

MAX_PROBLEMS = 5  # named in one error


@dataclass(frozen=True, slots=True)
class Bounds:
    """The least and the greatest value or length; None leaves that side open."""

    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Parse:
    """How a string becomes what the tool wants."""

    function: Callable[[str], Any]


class Kind(ABC):
    """One type. `read` returns the value as the tool gets it, or appends to `problems`.

    `lenient` is False while the options of a union are tried as they stand.
    """

    expected = "a value"
    description = ""

    @abstractmethod
    def read(self, value: Any, where: str, problems: list[str], lenient: bool) -> Any: ...

    @abstractmethod
    def shape(self) -> Json:
        """The schema without its description."""

    def schema(self) -> Json:
        shape = self.shape()
        if self.description:
            shape["description"] = self.description
        return shape

    def wrong(self, value: Any, where: str, problems: list[str]) -> None:
        problems.append(f"{where}: expected {self.expected}, got {_shown(value)}")


class _Anything(Kind):
    def read(self, value: Any, where: str, problems: list[str], lenient: bool) -> Any:
        return value

    def shape(self) -> Json:
        return {}


class _Null(Kind):
    expected = "null"

    def read(self, value: Any, where: str, problems: list[str], lenient: bool) -> Any:
        if value is not None:
            self.wrong(value, where, problems)

    def shape(self) -> Json:
        return {"type": "null"}


class _Boolean(Kind):
    expected = "true or false"

    def read(self, value: Any, where: str, problems: list[str], lenient: bool) -> Any:
        if isinstance(value, bool):
            return value
        if lenient and isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        return self.wrong(value, where, problems)

    def shape(self) -> Json:
        return {"type": "boolean"}


class _Number(Kind):
    def __init__(self, whole: bool, bounds: Bounds) -> None:
        self.whole = whole
        self.bounds = bounds
        noun = "a whole number" if whole else "a number"
        self.expected = noun + _range(bounds)

    def read(self, value: Any, where: str, problems: list[str], lenient: bool) -> Any:
        number = self._number(value, lenient)
        if number is None or not _within(number, self.bounds):
            return self.wrong(value, where, problems)
        return number

    def _number(self, value: Any, lenient: bool) -> float | None:
        if lenient and isinstance(value, str) and len(value) <= 40:
            try:
                value = float(value) if not self.whole or "." in value else int(value)
            except ValueError:
                return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if isinstance(value, int):
            return value
        if not math.isfinite(value):
            return None
        if self.whole:
            return int(value) if lenient and value.is_integer() else None
        return value

    def shape(self) -> Json:
        shape: Json = {"type": "integer" if self.whole else "number"}
        return shape | _limits(self.bounds, "minimum", "maximum")


class _Text(Kind):
    def __init__(self, bounds: Bounds, parse: Callable[[str], Any] | None) -> None:
        self.bounds = bounds
        self.parse = parse
        self.expected = "a string" + _range(bounds, " characters")

    def read(self, value: Any, where: str, problems: list[str], lenient: bool) -> Any:
        if lenient and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not _within(len(value), self.bounds):
            return self.wrong(value, where, problems)
        if not _encodable(value):
            problems.append(f"{where}: contains half of a surrogate pair, which is no character")
            return None
        if self.parse is None:
            return value
        return self.parse(value)

    def shape(self) -> Json:
        return {"type": "string"} | _limits(self.bounds, "minLength", "maxLength")


class _Choice(Kind):
    """Literal and Enum: `values` maps what the model writes to what the tool gets."""

    def __init__(self, values: Mapping[Any, Any]) -> None:
        self.values = dict(values)
        self.expected = "one of " + ", ".join(json.dumps(value) for value in self.values)

    def read(self, value: Any, where: str, problems: list[str], lenient: bool) -> Any:
        for known, meant in self.values.items():
            # True == 1: compare the types as well
            if type(value) is type(known) and value == known:
                return meant
        if lenient:
            word = str(value).strip().casefold()
            near = [known for known in self.values if str(known).casefold() == word]
            if len(near) == 1 and isinstance(value, str):
                return self.values[near[0]]
        return self.wrong(value, where, problems)

    def shape(self) -> Json:
        shape: Json = {"enum": list(self.values)}
        if all(isinstance(value, str) for value in self.values):
            shape = {"type": "string"} | shape
        return shape


class _Array(Kind):
    def __init__(self, item: Kind, bounds: Bounds) -> None:
        self.item = item
        self.bounds = bounds
        self.expected = "a list" + _range(bounds, " items")

    def read(self, value: Any, where: str, problems: list[str], lenient: bool) -> Any:
        if lenient and not isinstance(value, list):
            value = self._repaired(value)
        if not isinstance(value, list) or not _within(len(value), self.bounds):
            return self.wrong(value, where, problems)
        return [
            self.item.read(item, f"{where}[{index}]", problems, lenient)
            for index, item in enumerate(value)
        ]

    def _repaired(self, value: Any) -> Any:
        """One item as a list of it. Text that looks like a list is read as one, unless it could be
        an item.
        """
        if isinstance(value, str) and value.lstrip().startswith("["):
            return value if isinstance(self.item, _Text | _Anything) else _parsed(value, list)
        fits: list[str] = []
        self.item.read(value, "", fits, True)
        return value if fits or value is None else [value]

    def shape(self) -> Json:
        shape: Json = {"type": "array"}
        if items := self.item.schema():
            shape["items"] = items
        return shape | _limits(self.bounds, "minItems", "maxItems")


class _Mapping(Kind):
    expected = "an object"

    def __init__(self, value: Kind) -> None:
        self.value = value

    def read(self, value: Any, where: str, problems: list[str], lenient: bool) -> Any:
        if lenient and isinstance(value, str):
            value = _parsed(value, dict)
        if not isinstance(value, dict):
            return self.wrong(value, where, problems)
        return {
            key: self.value.read(item, f"{where}.{key}", problems, lenient)
            for key, item in value.items()
        }

    def shape(self) -> Json:
        shape: Json = {"type": "object"}
        if values := self.value.schema():
            shape["additionalProperties"] = values
        return shape


class _Union(Kind):
    def __init__(self, options: list[Kind]) -> None:
        self.options = options
        self.expected = " or ".join(option.expected for option in options)

    def read(self, value: Any, where: str, problems: list[str], lenient: bool) -> Any:
        """The first option that takes the value as it is, else the only one that can repair it."""
        last: list[str] = []
        for option in self.options:
            last = []
            result = option.read(value, where, last, False)
            if not last:
                return result
        if lenient:
            results = []
            for option in self.options:
                last = []
                result = option.read(value, where, last, True)
                if not last:
                    results.append(result)
            if len(results) == 1:
                return results[0]
        objects = [option for option in self.options if isinstance(option, Object)]
        if isinstance(value, dict) and len(objects) == 1:
            return objects[0].read(value, where, problems, lenient)
        return self.wrong(value, where, problems)

    def shape(self) -> Json:
        return _any_of(self.options)


def _any_of(options: list[Kind]) -> Json:
    shapes = [option.schema() for option in options]
    if len(shapes) == 1:
        return shapes[0]
    if all(list(shape) == ["type"] for shape in shapes):
        return {"type": [shape["type"] for shape in shapes]}
    return {"anyOf": shapes}


@dataclass(frozen=True, slots=True)
class Field:
    """One property of an object. `default` is what it is when left out; it has no meaning where
    `required`.
    """

    name: str
    kind: Kind
    required: bool
    default: Any = None

    def schema(self) -> Json:
        kind = self.kind
        if not self.required and isinstance(kind, _Union):
            # "may be null" needs no saying where it may be left out
            options = [option for option in kind.options if not isinstance(option, _Null)]
            schema = _any_of(options)
            if kind.description:
                schema["description"] = kind.description
        else:
            schema = kind.schema()
        default = self.default.value if isinstance(self.default, enum.Enum) else self.default
        if default and isinstance(default, str | int | float):
            schema["default"] = default  # an empty one goes without saying
        return schema


class Object(Kind):
    """A strict object: a tool's arguments (`build` is None: read as a dict), or a dataclass."""

    expected = "an object"

    def __init__(self, fields: list[Field], build: Callable[..., Any] | None = None) -> None:
        self.fields = {field.name: field for field in fields}
        self.required = [field.name for field in fields if field.required]
        self.defaults = {field.name: field.default for field in fields if not field.required}
        self.build = build

    def read(self, value: Any, where: str, problems: list[str], lenient: bool) -> Any:
        if lenient and isinstance(value, str):
            value = _parsed(value, dict)
        if not isinstance(value, dict):
            return self.wrong(value, where, problems)
        prefix = f"{where}." if where else ""
        before = len(problems)
        read = {}
        for name, item in value.items():
            field = self.fields.get(name)
            if field is None:
                problems.append(self._unknown(name, prefix))
            elif item is not None or field.required or not lenient:
                read[name] = field.kind.read(item, prefix + name, problems, lenient)
        for name in self.required:
            if name not in value:
                problems.append(f"{prefix}{name}: is missing ({self.fields[name].kind.expected})")
        if self.build is None or len(problems) > before:
            return read
        return self.build(**read)

    def _unknown(self, name: str, prefix: str) -> str:
        import difflib

        near = difflib.get_close_matches(name[:64], self.fields, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(self.fields) or 'none'}"
        return f"{prefix}{name[:64]}: is no argument here; {hint}"

    def shape(self) -> Json:
        shape: Json = {
            "type": "object",
            "properties": {name: field.schema() for name, field in self.fields.items()},
        }
        if self.required:
            shape["required"] = self.required
        return shape | {"additionalProperties": False}


def validate(arguments: Object, values: Json, tool: str) -> Json:
    """What the model sent, as keyword arguments. Raises `ToolError` with every problem found, up to
    `MAX_PROBLEMS`.
    """
    problems: list[str] = []
    read = arguments.read(values, "", problems, True)
    if problems:
        named = "; ".join(problems[:MAX_PROBLEMS])
        more = len(problems) - MAX_PROBLEMS
        tail = f"; and {more} more" if more > 0 else ""
        raise ToolError(
            f"Wrong arguments for {tool}: {named}{tail}.",
            remedy="Nothing was done. Correct the arguments and call it again.",
            code="bad_arguments",
        )
    return typing.cast(Json, read)


# ------------------------------------------------------------------------------------- compiling


def compile_type(hint: Any, where: str) -> Kind:
    """The `Kind` of a type hint. Raises `TypeError` naming `where` for a type that a model can't
    be asked for.
    """
    return _compile(hint, where, Bounds(), ())


def _compile(hint: Any, where: str, bounds: Bounds, inside: tuple[type, ...]) -> Kind:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _annotated(args[0], args[1:], where, inside)
    if hint is int or hint is float:
        return _Number(hint is int, bounds)
    if hint is str:
        return _Text(bounds, None)
    if hint is bool:
        return _Boolean()
    if hint is None or hint is type(None):
        return _Null()
    if hint is Any:
        return _Anything()
    if origin is Literal:
        return _Choice({value: value for value in args})
    if origin in (typing.Union, types.UnionType):
        return _Union([_compile(option, where, bounds, inside) for option in args])
    if hint is list or origin is list:
        return _Array(_compile(args[0] if args else Any, f"{where}[]", Bounds(), inside), bounds)
    if hint is dict or (origin is dict and args[0] is str):
        return _Mapping(_compile(args[1] if args else Any, f"{where}.*", Bounds(), inside))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _Choice({member.value: member for member in hint})
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if hint in inside:
            raise TypeError(f"{where}: {hint.__name__} contains itself")
        return _dataclass(hint, where, (*inside, hint))
    raise TypeError(f"{where}: a model can't be asked for {hint!r}")


def _annotated(hint: Any, notes: tuple[Any, ...], where: str, inside: tuple[type, ...]) -> Kind:
    bounds = next((note for note in notes if isinstance(note, Bounds)), Bounds())
    parse = next((note for note in notes if isinstance(note, Parse)), None)
    kind = _Text(bounds, parse.function) if parse else _compile(hint, where, bounds, inside)
    kind.description = next((note for note in notes if isinstance(note, str)), "")
    return kind


def _dataclass(hint: Any, where: str, inside: tuple[type, ...]) -> Object:
    hints = typing.get_type_hints(hint, include_extras=True)
    missing = dataclasses.MISSING
    fields = [
        Field(
            name=field.name,
            kind=_compile(hints[field.name], f"{where}.{field.name}", Bounds(), inside),
            required=field.default is missing and field.default_factory is missing,
            default=None if field.default is missing else field.default,
        )
        for field in dataclasses.fields(hint)
        if field.init
    ]
    return Object(fields, hint)


# --------------------------------------------------------------------------------------- helpers


def _within(size: float, bounds: Bounds) -> bool:
    return (bounds.low is None or size >= bounds.low) and (
        bounds.high is None or size <= bounds.high
    )


def _range(bounds: Bounds, unit: str = "") -> str:
    low, high = bounds.low, bounds.high
    if low is None and high is None:
        return ""
    if high is None:
        return f" of at least {low}{unit}"
    return f" of at most {high}{unit}" if low is None else f" from {low} to {high}{unit}"


def _limits(bounds: Bounds, low: str, high: str) -> Json:
    pairs = ((low, bounds.low), (high, bounds.high))
    return {key: value for key, value in pairs if value is not None}


def _encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parsed(text: str, kind: type) -> Any:
    """JSON text as the list or object it holds, or the text itself."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, kind) else text


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        size = f" ({len(value)} characters)" if len(value) > 40 else ""
        return f"the string {json.dumps(value[:40])}{size}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    text = str(value) if abs(value) < 1e30 else "a huge one"
    return f"the number {text}"


# ------------------------------------------------------------------------------ what a model sent


def parse_arguments(call: ToolCall) -> Json:
    """The arguments as JSON. Nothing at all, which some models send, means none. Raises
    `ToolError`.
    """
    if not call.arguments.strip():
        return {}
    try:
        arguments = json.loads(
            call.arguments, object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except RecursionError:
        raise _bad_json(call, "they are nested too deeply") from None
    except ValueError as error:
        raise _bad_json(call, str(error)) from None
    if not isinstance(arguments, dict):
        raise _bad_json(call, "an object is expected")
    return arguments


def _unique(pairs: list[tuple[str, Any]]) -> Json:
    """An object. One name twice would let a person approve one value and run the other."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _bad_json(call: ToolCall, why: str) -> ToolError:
    return ToolError(
        f"The arguments of {call.name} are no valid JSON: {why}.",
        remedy="Nothing was done. Call it again with complete, valid JSON.",
        code="bad_arguments",
    )
