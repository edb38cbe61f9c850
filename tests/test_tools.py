"""Tools from functions: schema, validation, results, registry."""

from __future__ import annotations

import enum
import logging
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxydra.errors import Cancelled, PolicyDenied, ToolError, UsageError
from oxydra.frames import compact
from oxydra.policy import VirtualPath, parse_virtual
from oxydra.threads import CancelToken, Deadline
from oxydra.tools import TOOLS, Bounds, FunctionTool, Parse, ToolRegistry, tool
from oxydra.types import Json, SafetyTier, ToolContext, ToolResult


def context(**services: Any) -> ToolContext:
    return ToolContext("s", "t", "c", CancelToken(), Deadline.after(60), services)


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


@dataclass
class Point:
    x: int
    y: Annotated[int, "upwards"] = 0


@dataclass
class Shape:
    name: str
    corners: list[Point]
    colour: Colour = Colour.RED
    labels: dict[str, int] = field(default_factory=dict)


@tool(tier=SafetyTier.PRIVILEGED, timeout=5)
def everything(
    context: ToolContext,
    text: Annotated[str, Bounds(1, 10), "some text"],
    count: Annotated[int, Bounds(1, 100)],
    ratio: float = 0.5,
    on: bool = True,
    unit: Literal["words", "lines"] = "words",
    names: Annotated[list[str], Bounds(None, 3)] = [],  # noqa: B006
    shape: Shape | None = None,
    either: int | list[int] = 0,
    end: Annotated[int | None, Bounds(1)] = None,
    path: Annotated[VirtualPath, Parse(parse_virtual)] = VirtualPath("shared"),  # noqa: B008
    extra: Any = None,
) -> str:
    """Do everything,
    and more.

    This is not for the model.
    """
    return repr((text, count, ratio, on, unit, names, shape, either, end, path, extra))


def check(**arguments: Any) -> Json:
    return everything.validate({"text": "a", "count": 1} | arguments)


# ---------------------------------------------------------------------------------------- schema


def test_schema_of_everything() -> None:
    assert everything.spec.name == "everything"
    assert everything.spec.description == "Do everything, and more."
    assert everything.tier is SafetyTier.PRIVILEGED
    assert everything.timeout == 5 and not everything.repeatable
    point = {
        "type": "object",
        "properties": {
            "x": {"type": "integer"},
            "y": {"type": "integer", "description": "upwards"},
        },
        "required": ["x"],
        "additionalProperties": False,
    }
    assert everything.spec.parameters == {
        "type": "object",
        "properties": {
            "text": {"type": "string", "minLength": 1, "maxLength": 10, "description": "some text"},
            "count": {"type": "integer", "minimum": 1, "maximum": 100},
            "ratio": {"type": "number", "default": 0.5},
            "on": {"type": "boolean", "default": True},
            "unit": {"type": "string", "enum": ["words", "lines"], "default": "words"},
            "names": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
            "shape": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "corners": {"type": "array", "items": point},
                    "colour": {"type": "string", "enum": ["red", "green"], "default": "red"},
                    "labels": {"type": "object", "additionalProperties": {"type": "integer"}},
                },
                "required": ["name", "corners"],
                "additionalProperties": False,
            },
            "either": {
                "anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}}]
            },
            "end": {"type": "integer", "minimum": 1},
            "path": {"type": "string"},
            "extra": {},
        },
        "required": ["text", "count"],
        "additionalProperties": False,
    }


def test_a_required_argument_may_be_null_where_the_type_says_so() -> None:
    @tool
    def f(a: Optional[str], b: int | str | None) -> None:  # noqa: UP045
        """F."""

    assert f.spec.parameters["properties"] == {
        "a": {"type": ["string", "null"]},
        "b": {"type": ["integer", "string", "null"]},
    }
    assert f.validate({"a": None, "b": None}) == {"a": None, "b": None}
    with pytest.raises(ToolError, match="a: is missing"):
        f.validate({"b": 1})


def test_the_tools_on_the_wire_are_as_recorded() -> None:
    """The prompt cache and the size of the first request hang on these bytes."""
    specs = {spec.name: compact(spec.parameters) for spec in ToolRegistry().specs}
    assert specs["file_write"] == (
        '{"type":"object","properties":{"path":{"type":"string"},"content":{"type":"string"}},'
        '"required":["path","content"],"additionalProperties":false}'
    )
    assert specs["file_read"] == (
        '{"type":"object","properties":{"path":{"type":"string"},'
        '"start_line":{"type":"integer","minimum":1,"default":1},'
        '"end_line":{"type":"integer","minimum":1}},'
        '"required":["path"],"additionalProperties":false}'
    )
    wire = compact([[s.name, s.description, s.parameters] for s in ToolRegistry().specs])
    assert len(wire) < 350 * len(specs)


def no_hint(a) -> None:  # type: ignore[no-untyped-def]
    """A."""


def no_docstring(a: int) -> None: ...


def positional(a: int, /) -> None:
    """A."""


def variadic(*a: int) -> None:
    """A."""


def strange(a: set[int]) -> None:
    """A."""


def keyed(a: dict[int, str]) -> None:
    """A."""


@dataclass
class Endless:
    inner: list[Endless]


def endless(a: Endless) -> None:
    """A."""


@pytest.mark.parametrize(
    "function", [no_hint, no_docstring, positional, variadic, strange, keyed, endless]
)
def test_what_a_model_cannot_be_asked_for_is_a_type_error(function: Any) -> None:
    with pytest.raises(TypeError, match=function.__name__):
        tool(function)


# ------------------------------------------------------------------------------------ validation


def test_what_is_right_arrives_as_it_is() -> None:
    values = {
        "ratio": 2,
        "on": False,
        "unit": "lines",
        "names": ["a"],
        "either": [1, 2],
        "extra": {"a": [1]},
    }
    left_out = {"shape": None, "end": None, "path": VirtualPath("shared")}
    assert check(**values) == {"text": "a", "count": 1} | left_out | values
    shape = {"name": "box", "corners": [{"x": 1, "y": 2}, {"x": 3}], "colour": "green"}
    assert check(shape=shape)["shape"] == Shape("box", [Point(1, 2), Point(3)], Colour.GREEN)
    assert check(path="a/b")["path"] == VirtualPath("shared", ("a", "b"))


@pytest.mark.parametrize(
    ("name", "sent", "got"),
    [
        ("count", "5", 5),
        ("count", " 7 ", 7),
        ("count", 5.0, 5),
        ("count", "5.0", 5),
        ("ratio", "1.5", 1.5),
        ("ratio", "1e-1", 0.1),
        ("on", "true", True),
        ("on", "False", False),
        ("text", 12, "12"),
        ("unit", "LINES", "lines"),
        ("unit", " words ", "words"),
        ("names", "solo", ["solo"]),
        ("names", 5, ["5"]),
        ("either", "[1, 2]", [1, 2]),
        ("shape", '{"name": "p", "corners": {"x": "1"}}', Shape("p", [Point(1)])),
    ],
)
def test_slips_with_one_meaning_are_repaired(name: str, sent: Any, got: Any) -> None:
    assert check(**{name: sent})[name] == got


@pytest.mark.parametrize("name", ["ratio", "on", "unit", "names", "shape", "end", "path"])
def test_null_for_what_may_be_left_out_leaves_it_out(name: str) -> None:
    assert check(**{name: None}) == check()


def test_what_is_left_out_has_its_default() -> None:
    assert check()["path"] == VirtualPath("shared") and check()["ratio"] == 0.5


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        ({"count": "five"}, 'count: expected a whole number from 1 to 100, got the string "five"'),
        ({"count": 5.5}, "count: expected a whole number from 1 to 100, got the number 5.5"),
        ({"count": 0}, "got the number 0"),
        ({"count": 101}, "got the number 101"),
        ({"count": True}, "got true"),
        ({"count": None}, "got null"),
        ({"count": [1]}, "got a list of 1"),
        ({"count": 10**400}, "got the number a huge one"),
        ({"count": "9" * 5000}, "5000 characters"),
        ({"ratio": float("nan")}, "ratio: expected a number"),
        ({"ratio": "inf"}, "ratio: expected a number"),
        ({"on": 1}, "on: expected true or false, got the number 1"),
        ({"on": "yes"}, 'got the string "yes"'),
        ({"text": ""}, "text: expected a string from 1 to 10 characters"),
        ({"text": "x" * 11}, "text: expected a string"),
        ({"text": "\ud800"}, "text: contains half of a surrogate pair"),
        ({"text": {"a": 1}}, "got an object"),
        ({"unit": "pages"}, 'unit: expected one of "words", "lines", got the string "pages"'),
        ({"unit": 1}, "unit: expected one of"),
        ({"names": ["a", 2.5]}, "names[1]: expected a string, got the number 2.5"),
        ({"names": '["a"]'}, "names: expected a list of at most 3 items"),
        ({"names": ["a"] * 4}, "got a list of 4"),
        ({"either": "5"}, "either: expected a whole number or a list"),
        ({"either": "many"}, "either: expected a whole number or a list"),
        ({"either": [1, "x"]}, "either: expected a whole number or a list"),
        (
            {"shape": {"name": "n", "corners": [{"x": 1}, {"y": 2}]}},
            "shape.corners[1].x: is missing",
        ),
        ({"shape": {"name": "n", "corners": [], "labels": {"a": "b"}}}, "shape.labels.a: expected"),
        (
            {"shape": {"nam": "n", "corners": []}},
            "shape.nam: is no argument here; did you mean name?",
        ),
        ({"shape": 5}, "shape: expected an object or null"),
        ({"txt": "a"}, "txt: is no argument here; did you mean text?"),
        ({"zzz": "a"}, "zzz: is no argument here; known: text, count"),
    ],
)
def test_what_is_wrong_is_named_by_its_place(sent: Json, problem: str) -> None:
    with pytest.raises(ToolError) as caught:
        check(**sent)
    assert problem in str(caught.value)
    assert caught.value.code == "bad_arguments"


def test_all_problems_are_told_at_once_up_to_a_bound() -> None:
    with pytest.raises(ToolError, match=r"text: is missing.*count: is missing"):
        everything.validate({})
    with pytest.raises(ToolError, match=r"and 7 more"):
        everything.validate({f"q{i}": 1 for i in range(10)})


def test_policy_speaks_for_itself() -> None:
    with pytest.raises(PolicyDenied, match="outside the workspace"):
        check(path="/etc/passwd")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None), max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)
argument_names = st.sampled_from(list(everything.spec.parameters["properties"])) | st.text(
    max_size=5
)


@given(st.dictionaries(argument_names, json_values, max_size=8))
def test_whatever_is_sent_is_taken_or_refused_in_words(sent: Json) -> None:
    try:
        read = everything.validate(sent)
    except ToolError as error:
        assert str(error).encode("utf-8", "surrogatepass")
        assert error.remedy
        return
    assert {"text", "count"} <= set(read) <= set(everything.spec.parameters["properties"])
    assert 1 <= len(read["text"]) <= 10 and type(read["count"]) is int and 1 <= read["count"] <= 100
    assert all(isinstance(name, str) for name in read.get("names", []))
    assert isinstance(read["shape"], Shape | None)
    everything(context(), **read)


points = st.fixed_dictionaries({"x": st.integers()}, optional={"y": st.integers()})


@given(
    st.fixed_dictionaries(
        {
            "text": st.text(st.characters(codec="utf-8"), min_size=1, max_size=10),
            "count": st.integers(1, 100),
        },
        optional={
            "ratio": st.floats(allow_nan=False, allow_infinity=False),
            "on": st.booleans(),
            "unit": st.sampled_from(["words", "lines"]),
            "names": st.lists(st.text(st.characters(codec="utf-8")), max_size=3),
            "either": st.integers() | st.lists(st.integers()),
            "extra": json_values.filter(lambda value: value is not None),
        },
    )
)
def test_what_the_schema_allows_is_never_changed(sent: Json) -> None:
    read = everything.validate(sent)
    assert compact({name: read[name] for name in sent}) == compact(sent)
    assert all(read[name] == default for name, default in check().items() if name not in sent)


# --------------------------------------------------------------------------------------- results


def result_of(returned: Any) -> ToolResult:
    @tool
    def f() -> Any:
        """F."""
        if isinstance(returned, Exception):
            raise returned
        return returned

    return f.run({}, context())


def test_what_a_function_returns_becomes_a_result() -> None:
    assert result_of("text") == ToolResult("text")
    assert result_of(ToolResult("x", is_error=True)) == ToolResult("x", is_error=True)
    assert result_of({"a": [1, "é"]}).content == '{"a":[1,"é"]}'
    assert result_of(Point(1, 2)).content == '{"x":1,"y":2}'
    assert result_of(None).content == "Done."


def test_what_a_function_raises_becomes_a_result(caplog: pytest.LogCaptureFixture) -> None:
    failed = result_of(ToolError("No such thing.", remedy="Look again."))
    assert failed.is_error and failed.content == "No such thing. Look again."
    assert result_of(Cancelled("shutdown")).content == "f was stopped: shutdown."
    with caplog.at_level(logging.ERROR):
        failed = result_of(OSError(2, "gone", "/home/secret/path"))
    assert failed.is_error and "FileNotFoundError" in failed.content
    assert "secret" not in failed.content and "/home/secret/path" in caplog.text
    assert result_of({1, 2}).is_error


def test_a_tool_is_still_a_function() -> None:
    @tool(tier=SafetyTier.READ_ONLY, name="other")
    def double(value: int) -> int:
        """Double."""
        return 2 * value

    assert double(4) == 8 and double.__doc__ == "Double."
    assert double.spec.name == "other" and double.repeatable
    assert double.run(double.validate({"value": "4"}), context()).content == "8"


# -------------------------------------------------------------------------------------- registry


def test_every_registered_tool_loads_under_its_name() -> None:
    registry = ToolRegistry()
    assert [spec.name for spec in registry.specs] == sorted(TOOLS)
    for name in TOOLS:
        found = registry.get(name)
        assert found.spec.name == name and found.spec.description and found.timeout > 0
        assert found.spec.parameters["additionalProperties"] is False


def test_specs_are_the_same_bytes_whatever_the_order_of_names() -> None:
    names = list(TOOLS)
    one = ToolRegistry(names, extra=[everything]).specs
    other = ToolRegistry(reversed(names), extra=[everything]).specs
    assert repr(one) == repr(other)


def test_an_unknown_name_lists_the_known_ones() -> None:
    registry = ToolRegistry(["file_read", "file_write"])
    with pytest.raises(
        ToolError, match=r"Did you mean file_read\? There are: file_read, file_write"
    ):
        registry.get("file_reed")
    with pytest.raises(ToolError, match="There are"):
        registry.get("x" * 10_000)
    with pytest.raises(UsageError, match="file_delete"):
        ToolRegistry(["file_remove"])
    with pytest.raises(UsageError, match="two tools"):
        ToolRegistry(extra=[ToolRegistry().get("file_read")])
    assert "file_read" in registry and "file_delete" not in registry


def test_a_function_tool_is_a_tool() -> None:
    from oxydra.types import Tool

    def takes(tool: Tool) -> str:
        return tool.spec.name

    assert isinstance(everything, FunctionTool) and takes(everything) == "everything"
