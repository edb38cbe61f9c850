"""A server's tools as tools of ours: each passes the one gate with its server's safety tier.

What a server says of its own tools, as that they only read, decides nothing. Two tools more stand
for its resources and prompts, where it has them. Everything that comes back is a stranger's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from oxydra.errors import Cancelled, DeadlineExceeded, OxydraError, ToolError
from oxydra.frames import compact
from oxydra.mcp import results
from oxydra.mcp.client import Client
from oxydra.mcp.http import SessionExpired
from oxydra.mcp.offers import Offer
from oxydra.mcp.peer import ServerLost
from oxydra.mcp.protocol import RpcError
from oxydra.scrub.terminal import explicit
from oxydra.tools.base import failure
from oxydra.types import Json, SafetyTier, ToolContext, ToolResult, ToolSpec

MAX_ARGUMENTS = 256 << 10  # characters

RESOURCES = Offer(
    "resources",
    "List its resources, or read the one at `uri`.",
    {"type": "object", "properties": {"uri": {"type": "string"}}},
    "",
)
PROMPTS = Offer(
    "prompts",
    "List its prompts, or get the one named `name`, filled in with `arguments`.",
    {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "arguments": {"type": "object", "additionalProperties": {"type": "string"}},
        },
    },
    "",
)


class _NotSent(Exception):
    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Host(Protocol):
    """Who keeps the server: `oxydra.mcp.servers.Server`."""

    name: str

    def client(self, context: ToolContext) -> Client:
        """A session that is open, begun where there is none. Raises `OxydraError`."""
        ...

    def check(self, offer: Offer) -> None:
        """Raises `ToolError` unless the server says of this tool today what the person trusted."""
        ...

    def progress(self, text: str) -> None: ...

    def answered(self) -> None:
        """It works: failures before that do not count any more."""
        ...


class McpTool:
    """See `Tool`. `in_sandbox`: the server runs where commands do, and reaches what they reach;
    `contained` is what approvals ask of a tool that can do anything.
    """

    def __init__(
        self,
        host: Host,
        offer: Offer,
        name: str,
        tier: SafetyTier,
        *,
        timeout: float,
        in_sandbox: bool,
        egress: bool,
        sensitive: bool = False,
    ) -> None:
        self._host = host
        self._offer = offer
        text = f"MCP server {host.name}: {offer.description}"
        self.spec = ToolSpec(name, text, offer.schema)
        self.tier = tier
        self.repeatable = tier is SafetyTier.READ_ONLY
        self.beside = False
        self.timeout = timeout
        self.egress = egress
        self.taints = True
        self.sensitive = sensitive
        self.in_sandbox = in_sandbox
        self.contained = in_sandbox

    def validate(self, arguments: Json) -> Json:
        """What is surely wrong is said at once; the rest is the server's to check."""
        schema = self._offer.schema
        known = schema.get("properties")
        known = known if isinstance(known, dict) else {}
        problems = [
            f"{explicit(str(name)[:64])}: is missing"
            for name in _list(schema.get("required"))
            if name not in arguments
        ]
        if schema.get("additionalProperties") is False:
            there = ", ".join(known) or "none"
            problems += [
                f"{explicit(name[:64])}: is no argument here; known: {there}"
                for name in arguments
                if name not in known
            ]
        problems += [
            f"{explicit(name[:64])}: expected {wanted}"
            for name, value in arguments.items()
            if (wanted := _unlike(value, known.get(name)))
        ]
        if len(compact(arguments)) > MAX_ARGUMENTS:
            problems.append(f"they are longer than {MAX_ARGUMENTS >> 10} KiB")
        if problems:
            raise ToolError(
                f"Wrong arguments for {self.spec.name}: {'; '.join(problems[:5])}.",
                remedy="Nothing was done. Correct the arguments and call it again.",
                code="bad_arguments",
            )
        return arguments

    def run(self, arguments: Json, context: ToolContext) -> ToolResult:
        name = self.spec.name
        try:
            try:
                result = self._tried(arguments, context)
            except SessionExpired:  # it took nothing of the call
                result = self._tried(arguments, context)
        except RpcError as error:
            self._host.answered()
            said = explicit(error.message[:2000])
            return ToolResult(f"{name}: the server answered with an error: {said}", is_error=True)
        except ServerLost as error:
            return failure(name, error if error.unsent else _unsure(name, error))
        except _NotSent as error:
            return failure(name, error.cause)
        except (Cancelled, DeadlineExceeded) as error:
            why = "It was stopped" if isinstance(error, Cancelled) else "Its time was up"
            return ToolResult(
                f"{name}: {why} before the server answered; how far it came is not known.",
                is_error=True,
            )
        except Exception as error:
            return failure(name, error)
        self._host.answered()
        return result

    def recover(self, _arguments: Json, _context: ToolContext) -> None:
        """None: no server can say what became of a call."""

    def _tried(self, arguments: Json, context: ToolContext) -> ToolResult:
        """Raises `_NotSent` for what went wrong before the server was asked."""
        try:
            client = self._host.client(context)
            self._host.check(self._offer)
        except Exception as error:
            raise _NotSent(error) from error
        return self._answer(client, arguments, context)

    def _answer(self, client: Client, arguments: Json, context: ToolContext) -> ToolResult:
        workspace = context.services.get("workspace")
        said = client.call(
            *(self._offer.name, arguments, context.token, context.deadline),
            self._host.progress,
        )
        return results.result_of(said, results.save(workspace))


class ResourceTool(McpTool):
    """Reading a server's resources."""

    def _answer(self, client: Client, arguments: Json, context: ToolContext) -> ToolResult:
        keep = results.save(context.services.get("workspace"))
        if uri := arguments.get("uri"):
            said = client.read(str(uri), context.token, context.deadline)
            return ToolResult(results.resource_of(said, keep))
        rows = client.resources(context.token, context.deadline)
        text = results.rows_of(rows, ("uri", "uriTemplate", "name", "mimeType", "description"))
        return ToolResult(text or "There are no resources.")


class PromptTool(McpTool):
    """Using a server's prompts."""

    def _answer(self, client: Client, arguments: Json, context: ToolContext) -> ToolResult:
        keep = results.save(context.services.get("workspace"))
        if name := arguments.get("name"):
            given = arguments.get("arguments")
            given = given if isinstance(given, dict) else {}
            filled = {str(key): str(value) for key, value in given.items()}
            said = client.prompt(str(name), filled, context.token, context.deadline)
            return ToolResult(results.prompt_of(said, keep))
        rows = client.prompts(context.token, context.deadline)
        return ToolResult(results.rows_of(rows, ("name", "description")) or "There are no prompts.")


MORE: dict[str, tuple[Offer, Callable[..., McpTool]]] = {
    "resources": (RESOURCES, ResourceTool),
    "prompts": (PROMPTS, PromptTool),
}
"""What stands for the abilities of a server besides tools."""


_TYPES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: _whole(value),
}


def _whole(value: Any) -> bool:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return whole and not isinstance(value, bool)


def _unlike(value: Any, schema: Any) -> str:
    """What an argument should have been by its schema's `type` and `enum`; "" if it is that."""
    if not isinstance(schema, dict):
        return ""
    choices = schema.get("enum")
    if isinstance(choices, list) and value not in choices:
        return f"one of {compact(choices)[:200]}"
    kinds = schema.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    tests = [_TYPES.get(kind) if isinstance(kind, str) else None for kind in kinds]
    if all(test is not None and not test(value) for test in tests):
        return " or ".join(map(str, kinds))
    return ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _unsure(name: str, error: OxydraError) -> ToolError:
    return ToolError(
        f"{name}: {error.message} How far the call came is not known.",
        remedy="Look before you do it again.",
        code="mcp_lost",
    )
