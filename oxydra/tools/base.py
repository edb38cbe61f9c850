"""`@tool`: a plain function becomes a `Tool`. Pure, apart from what the function does.

    @tool(tier=SafetyTier.READ_ONLY)
    def word_count(context: ToolContext, path: ReadPath, unit: Literal["words", "lines"]) -> str:
        '''Count the words or lines of a text file.'''

The name, the first paragraph of the docstring and the type hints are what the model is told (see
`oxydra/tools/schema.py` for the types, and for `Annotated` with a description of an argument). A
first parameter `context: ToolContext` is the tool's own and not shown. What the function returns is
the result: a `ToolResult`, text, or anything that JSON can hold. What it raises becomes a result as
well, so that the model can go on from it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import logging
import typing
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, overload

from oxydra.errors import Cancelled, OxydraError
from oxydra.frames import compact
from oxydra.tools.schema import Field, Object, compile_type, validate
from oxydra.types import Json, SafetyTier, ToolContext, ToolResult, ToolSpec

log = logging.getLogger(__name__)

DEFAULT_TIMEOUT = 60.0  # seconds

Recovered: TypeAlias = ToolResult | Literal["nothing done"] | None


class FunctionTool:
    """A `Tool` made of a function, which it still is when called."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        tier: SafetyTier,
        repeatable: bool,
        timeout: float,
        name: str = "",
        beside: bool = False,
        egress: bool = False,
        taints: bool = False,
        sensitive: bool = False,
    ) -> None:
        functools.update_wrapper(self, function)
        name = name or function.__name__
        signature = inspect.signature(function)
        self._arguments, self._wants_context = _arguments(function, signature, name)
        self._function = function
        self._probe: Callable[..., Recovered] | None = None
        self.spec = ToolSpec(name, _description(function, name), self._arguments.schema())
        self.tier = tier
        self.repeatable = repeatable
        self.timeout = timeout
        self.beside = beside
        self.egress = egress
        self.taints = taints
        self.sensitive = sensitive

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def validate(self, arguments: Json) -> Json:
        """The arguments as the function takes them, with the defaults of those that were left out:
        a rule on an argument holds for its default too. Raises `ToolError` naming each problem.
        """
        checked = validate(self._arguments, arguments, self.spec.name)
        return {**self._arguments.defaults, **checked}

    def run(self, arguments: Json, context: ToolContext) -> ToolResult:
        """Call the function with what `validate` returned. Never raises: a failure is a result."""
        try:
            if self._wants_context:
                return as_result(self._function(context, **arguments))
            return as_result(self._function(**arguments))
        except Exception as error:
            return failure(self.spec.name, error)

    def probe(self, function: Callable[..., Recovered]) -> Callable[..., Recovered]:
        """Declare how to find out what became of a call whose process ended: a function of the
        context and the same arguments, which returns what `Tool.recover` does and starts nothing.
        """
        self._probe = function
        return function

    def recover(self, arguments: Json, context: ToolContext) -> Recovered:
        """As the probe says. Without one nobody knows what became of a function that ended with
        its process.
        """
        return None if self._probe is None else self._probe(context, **arguments)


@overload
def tool(function: Callable[..., Any], /) -> FunctionTool: ...
@overload
def tool(
    *,
    tier: SafetyTier = SafetyTier.SIDE_EFFECTING,
    repeatable: bool | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    name: str = "",
    egress: bool = False,
    taints: bool = False,
    sensitive: bool = False,
) -> Callable[[Callable[..., Any]], FunctionTool]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    tier: SafetyTier = SafetyTier.SIDE_EFFECTING,
    repeatable: bool | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    name: str = "",
    egress: bool = False,
    taints: bool = False,
    sensitive: bool = False,
) -> FunctionTool | Callable[[Callable[..., Any]], FunctionTool]:
    """Make a tool of a function. `timeout` is in seconds.

    `repeatable` says that starting the same call twice does no harm, which is what read-only tools
    are unless told otherwise; `egress`, `taints` and `sensitive` are as `Tool` has them. Raises
    `TypeError` for a signature that can't be shown to a model.
    """

    def decorate(function: Callable[..., Any]) -> FunctionTool:
        again = tier is SafetyTier.READ_ONLY if repeatable is None else repeatable
        return FunctionTool(
            function,
            tier=tier,
            repeatable=again,
            timeout=timeout,
            name=name,
            egress=egress,
            taints=taints,
            sensitive=sensitive,
        )

    return decorate if function is None else decorate(function)


def as_result(value: Any) -> ToolResult:
    """What a tool function returned, as a result."""
    if isinstance(value, ToolResult):
        return value
    if isinstance(value, str):
        return ToolResult(value)
    if value is None:
        return ToolResult("Done.")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    return ToolResult(compact(value))


def failure(name: str, error: Exception) -> ToolResult:
    """An exception as the model sees it: ours in its own words, another one without its words,
    which may hold a host path or a secret; the log has them.
    """
    if isinstance(error, Cancelled):
        return ToolResult(f"{name} was stopped: {error.message or 'cancelled'}.", is_error=True)
    if isinstance(error, OxydraError):
        return ToolResult(str(error), is_error=True, summary=error.message)
    log.error("tool %s failed unexpectedly", name, exc_info=error)
    return ToolResult(
        f"{name} failed because of an error inside the tool ({type(error).__name__}).",
        is_error=True,
    )


def _arguments(
    function: Callable[..., Any], signature: inspect.Signature, name: str
) -> tuple[Object, bool]:
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = list(signature.parameters.values())
    wants_context = bool(parameters) and hints.get(parameters[0].name) is ToolContext
    fields = []
    for parameter in parameters[1:] if wants_context else parameters:
        where = f"{name}({parameter.name})"
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{where}: a tool's parameters are passed by name")
        if parameter.name not in hints:
            raise TypeError(f"{where}: has no type hint")
        required = parameter.default is parameter.empty
        kind = compile_type(hints[parameter.name], where)
        default = None if required else parameter.default
        fields.append(Field(parameter.name, kind, required, default))
    return Object(fields), wants_context


def _description(function: Callable[..., Any], name: str) -> str:
    text = inspect.getdoc(function)
    if not text:
        raise TypeError(f"{name}: a tool needs a docstring; the model reads its first paragraph")
    return " ".join(text.split("\n\n")[0].split())
