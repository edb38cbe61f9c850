"""Tools as a server of the Model Context Protocol offers them, from dataclasses and functions."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from oxydra.errors import Cancelled, OxydraError, ToolError
from oxydra.frames import compact
from oxydra.mcp.protocol import INVALID_PARAMS, RpcError
from oxydra.mcp.server import Call, Method
from oxydra.tools.schema import Object, compile_type, validate
from oxydra.types import Json

TELLS_ARGUMENTS = "2025-11-25"  # from this version on, a model is told what its arguments lack


@dataclass(frozen=True, slots=True)
class Offered:
    """A tool: `run` gets a `takes` and returns a `gives`. Both are dataclasses, and the schemas
    are made of them; what is None in a `gives` is left out. The docstring of `takes` describes it.
    """

    name: str
    title: str
    takes: type[Any]
    gives: type[Any]
    run: Callable[[Any, Call], Any]
    scopes: frozenset[str]
    """Of which a token needs any, so that the tool is offered."""
    hints: Json = field(default_factory=dict)
    """`annotations` of the protocol."""
    texts: Callable[[Any], list[str]] | None = None
    """What a `gives` is as text; as JSON unless given."""


class Toolbox:
    """`tools/list` and `tools/call`. `scopes` says what the token may, and raises `OxydraError`."""

    def __init__(self, tools: Sequence[Offered], scopes: Callable[[], Collection[str]]) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._takes = {tool.name: compile_type(tool.takes, tool.name) for tool in tools}
        self._gives = {tool.name: compile_type(tool.gives, tool.name) for tool in tools}
        self._scopes = scopes

    def methods(self) -> Mapping[str, Method]:
        return {"tools/list": self.list, "tools/call": self.call}

    def list(self, params: Json, _call: Call) -> Json:
        check_cursor(params)
        scopes = self._scopes()
        offered = [tool for tool in self._tools.values() if not tool.scopes.isdisjoint(scopes)]
        return {"tools": [self._told(tool) for tool in offered]}

    def _told(self, tool: Offered) -> Json:
        return {
            "name": tool.name,
            "title": tool.title,
            "description": " ".join(inspect.cleandoc(tool.takes.__doc__ or "").split()),
            "inputSchema": self._takes[tool.name].schema(),
            "outputSchema": self._gives[tool.name].schema(),
            "annotations": {"title": tool.title, **tool.hints},
        }

    def call(self, params: Json, call: Call) -> Json:
        """Whoever may not have a tool is refused by the gateway, whatever was listed."""
        name, arguments = params.get("name"), params.get("arguments")
        tool = self._tools.get(name) if isinstance(name, str) else None
        if tool is None:
            raise RpcError(INVALID_PARAMS, f"Unknown tool: {str(name)[:64]!r}.")
        if not isinstance(arguments, dict | None):
            raise RpcError(INVALID_PARAMS, "`arguments` are an object.")
        takes = self._takes[tool.name]
        assert isinstance(takes, Object)
        try:
            taken = validate(takes, arguments or {}, tool.name)
        except ToolError as error:
            if call.version < TELLS_ARGUMENTS:
                raise RpcError(INVALID_PARAMS, str(error)) from None
            return _failed(error)
        try:
            given = tool.run(taken, call)
        except Cancelled:
            raise
        except OxydraError as error:
            return _failed(error)
        structured = dataclasses.asdict(given, dict_factory=_without_none)
        texts = [compact(structured)] if tool.texts is None else tool.texts(given)
        return {"content": [_text(text) for text in texts], "structuredContent": structured}


def check_cursor(params: Json) -> None:
    """Where there is one page only. Raises `RpcError`."""
    if params.get("cursor") is not None:
        raise RpcError(INVALID_PARAMS, "There is one page only.")


def _without_none(pairs: Sequence[tuple[str, Any]]) -> Json:
    return {name: value for name, value in pairs if value is not None}


def _text(text: str) -> Json:
    return {"type": "text", "text": text}


def _failed(error: OxydraError) -> Json:
    return {"content": [_text(str(error))], "isError": True}
