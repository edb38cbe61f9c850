"""The values that travel through Oxydra and the Protocols its parts are written against.

Nothing here does anything beyond what a value can say about itself. No thread, no I/O.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, Protocol, TypeAlias

from oxydra.threads import CancelToken, Deadline

Json: TypeAlias = dict[str, Any]
Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "tool_calls", "length", "content_filter", "refusal"]


# ---------------------------------------------------------------------------- conversation


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call as the model wrote it: `arguments` is the raw JSON text, which may be cut or wrong;
    the gate parses it.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Native:
    """What one provider needs back verbatim (signatures, encrypted reasoning). Dropped when another
    provider or model goes on.
    """

    provider: str
    model: str
    data: Json


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that belongs to a message. `sha256` (hex) is of `data`, its whole content, which is
    empty where it was not asked for; `size` is always that of the content, in bytes.
    """

    mime_type: str
    sha256: str
    data: bytes = field(repr=False)
    name: str = ""
    size: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", self.size or len(self.data))


@dataclass(frozen=True, slots=True)
class SentFile:
    """A file for a person in a chat. `kind` says how it is shown: as `photo`, `document`, `audio`,
    `voice` or `video`.
    """

    kind: str
    name: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Message:
    """One entry of a conversation, immutable once made.

    `tool_calls` belongs to role assistant; `tool_call_id`, `name` and `is_error` to role tool.
    `wire` keeps the encoded form by wire name: a provider encodes each message once, so that the
    cost of a request does not grow with its history. `tainted` says that it holds what strangers
    wrote, `sensitive` that it holds private data.
    """

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""
    is_error: bool = False
    reasoning: str = ""
    native: Native | None = None
    attachments: tuple[Attachment, ...] = ()
    tainted: bool = False
    sensitive: bool = False
    wire: dict[str, bytes] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one or more model calls; `prompt_tokens` includes `cached_tokens` (read from the
    provider's cache) and `cache_write_tokens`, `completion_tokens` includes reasoning.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: Decimal | None = None
    cache_write_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        costs = [c for c in (self.cost_usd, other.cost_usd) if c is not None]
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            sum(costs, Decimal(0)) if costs else None,
            self.cache_write_tokens + other.cache_write_tokens,
        )


# ------------------------------------------------------------------------ a model's stream


@dataclass(frozen=True, slots=True)
class TextDelta:
    """`more`: the stream calls `ModelRequest.on_wait` before it waits again, so that what arrived
    together may be shown together.
    """

    text: str
    more: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    text: str


@dataclass(frozen=True, slots=True)
class Completed:
    """The last event of a stream that ended as its provider's wire says it must; holds the whole
    message.
    """

    message: Message
    finish_reason: FinishReason
    usage: Usage


@dataclass(frozen=True, slots=True)
class ReasoningOption:
    """One way in which a model's reasoning can be set: switched (`toggle`), by one of `values`
    (`effort`), or in tokens from `minimum` to `maximum` (`budget_tokens`; None: not known).
    """

    kind: Literal["toggle", "effort", "budget_tokens"]
    values: tuple[str, ...] = ()
    minimum: int | None = None
    maximum: int | None = None


@dataclass(frozen=True, slots=True)
class PriceTier:
    """What a whole request costs once its prompt is longer than `above` tokens; as `ModelSpec`."""

    above: int
    price_input: Decimal
    price_output: Decimal
    price_cache_read: Decimal | None = None
    price_cache_write: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Rates:
    """The most that a token of a call can cost, in USD per million: of its prompt, whether cached,
    written to a cache or neither, and of its answer.
    """

    prompt: Decimal
    output: Decimal


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What the catalog (or conservative defaults) says of one model. Limits are tokens; prices are
    USD per million tokens.

    `price_reasoning` is set where reasoning costs other than `price_output`. `reasoning_field` is
    the member of an assistant message in which a Chat Completions server wants it back.
    """

    provider: str
    id: str
    max_context_tokens: int
    max_output_tokens: int
    max_input_tokens: int = 0
    tools: bool = True
    images: bool = False
    pdfs: bool = False
    images_out: bool = False
    reasoning: bool = False
    reasoning_options: tuple[ReasoningOption, ...] = ()
    reasoning_field: str = ""
    deprecated: bool = False
    price_input: Decimal | None = None
    price_output: Decimal | None = None
    price_cache_read: Decimal | None = None
    price_cache_write: Decimal | None = None
    price_reasoning: Decimal | None = None
    price_tiers: tuple[PriceTier, ...] = ()

    def to_json(self) -> Json:
        """With prices as strings, exactly as they are."""
        return {name: _plain(getattr(self, name)) for name in self.__slots__}

    @classmethod
    def from_json(cls, value: Json) -> ModelSpec:
        """Raises `KeyError`, `TypeError`, `ValueError` or `ArithmeticError` if it is broken."""
        row = dict(value)
        row["reasoning_options"] = tuple(
            ReasoningOption(**{**option, "values": tuple(option["values"])})
            for option in row["reasoning_options"]
        )
        row["price_tiers"] = tuple(PriceTier(**_priced(tier)) for tier in row["price_tiers"])
        return cls(**_priced(row))


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, ReasoningOption | PriceTier):
        return {name: _plain(getattr(value, name)) for name in value.__slots__}
    return value


def _priced(row: Json) -> Json:
    return {
        name: Decimal(value) if name.startswith("price_") and isinstance(value, str) else value
        for name, value in row.items()
    }


@dataclass(frozen=True, slots=True)
class Retrying:
    """The stream broke off and begins anew: what it has said so far is void. `attempt` is the
    number of the coming attempt, `reason` a sentence, `wait_seconds` how long it is waited before.
    """

    attempt: int
    reason: str
    wait_seconds: float


@dataclass(frozen=True, slots=True)
class FellBack:
    """Another model answers from here on: what the stream has said so far is void. `provider` is
    its name, `reason` a sentence about why those before it do not answer.
    """

    provider: str
    model: ModelSpec
    reason: str


StreamEvent: TypeAlias = TextDelta | ReasoningDelta | Retrying | FellBack | Completed


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """What a model is told of a tool. `parameters` is a JSON Schema object."""

    name: str
    description: str
    parameters: Json


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One call of a model. `messages` starts with the system message; `session_id` serves
    prompt-cache routing only; past `deadline` the stream raises `ProviderError`. `reasoning` is the
    effort asked for (`off`, `low`, `medium`, `high`, …), "" the model's own. `answer_tokens` bounds
    the answer below the model's own limit; 0: that alone does. `on_wait` is called by a stream of
    `TextDelta.more` before it waits for bytes. `meter` says who pays.
    """

    model: ModelSpec
    messages: Sequence[Message]
    tools: Sequence[ToolSpec] = ()
    session_id: str = ""
    deadline: Deadline = field(default_factory=lambda: Deadline.after(None))
    reasoning: str = ""
    answer_tokens: int = 0
    on_wait: Callable[[], None] = lambda: None
    meter: Meter | None = None


class Bill(Protocol):
    """What one call of a model may cost, set aside. It is closed once, by `settle` or `broken`;
    what comes after that changes nothing.

    `request` is what may be asked: the answer may have to be shorter. `settle` takes the end of a
    stream and returns it with a usage that makes sense; `broken` takes what ended it otherwise, and
    what was said until then (characters, of which `began` says that there was anything at all).
    """

    @property
    def request(self) -> ModelRequest: ...

    def began(self) -> None:
        """Something of the answer has come; to be said each time."""
        ...

    def settle(self, completed: Completed) -> Completed: ...

    def broken(self, error: BaseException, said: int, *, began: bool) -> None: ...


class Meter(Protocol):
    """Who answers for the cost of calls. `open` is asked before each one, a repetition and another
    model included, and raises `BudgetError` where it may not be made.
    """

    def open(self, request: ModelRequest) -> Bill: ...


class Provider(Protocol):
    """A model service. `stream` runs on the caller's thread, yields deltas and then exactly one
    `Completed`, or raises `ProviderError` or `Cancelled`; closing the iterator early releases the
    connection.
    """

    name: str

    def stream(self, request: ModelRequest, token: CancelToken) -> Iterator[StreamEvent]: ...


# ----------------------------------------------------------------------------------- tools


class SafetyTier(enum.StrEnum):
    """How much a tool can do to the user's world."""

    READ_ONLY = "read_only"
    SIDE_EFFECTING = "side_effecting"
    PRIVILEGED = "privileged"


@dataclass(frozen=True, slots=True)
class Marks:
    """`tainted`: holds what strangers wrote; `sensitive`: holds private data."""

    tainted: bool = False
    sensitive: bool = False

    def __or__(self, other: Marks) -> Marks:
        return Marks(self.tainted or other.tainted, self.sensitive or other.sensitive)

    def __bool__(self) -> bool:
        return self.tainted or self.sensitive


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool answers: `content` for the model, `summary` one short line for people, `images`
    for a model that sees them. `verbatim`: the content is a file's, which the model may write back,
    so it gets it as it is. `marks`: what it holds besides what its tool and its paths say.
    """

    content: str
    is_error: bool = False
    summary: str = ""
    verbatim: bool = False
    marks: Marks = Marks()
    images: tuple[Attachment, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolContext:
    """What a running call may know and use. `services` holds what was injected by name
    (`workspace`, `shell`, `memory`, …). `step` counts the turn's model calls: a model may use the
    id of a call again in a later step. `recheck` is for a tool that sends files off the machine,
    once it has read them: it raises `PolicyDenied` where they got marks that nobody decided on.
    """

    session_id: str
    turn_id: str
    call_id: str
    token: CancelToken
    deadline: Deadline
    services: Mapping[str, Any]
    step: int = 1
    recheck: Callable[[], None] = lambda: None


class Tool(Protocol):
    """A capability offered to the model. `repeatable` says that starting the same call twice does
    no harm; `timeout` is in seconds.

    `beside`: its calls may run beside others although they are not read-only.
    `egress`: the arguments, or files that they name, leave the machine. `taints`: the result holds
    what strangers wrote, unless all of it is from the vault. `sensitive`: it moves or shows
    private data, whatever the arguments.

    `validate` takes what the model sent and returns what `run` takes, or raises `ToolError`; it is
    pure and decides by policy as well. `run` never raises: a failure is a result.

    `recover` says what became of a call that was running when this process's predecessor ended:
    its result, that it did nothing and may be started again, or None where that is not known. It
    waits until the call has ended, ends it by the token and the deadline as `run` does, and never
    starts it.
    """

    spec: ToolSpec
    tier: SafetyTier
    repeatable: bool
    beside: bool
    timeout: float
    egress: bool
    taints: bool
    sensitive: bool

    def validate(self, arguments: Json) -> Json: ...

    def run(self, arguments: Json, context: ToolContext) -> ToolResult: ...

    def recover(
        self, arguments: Json, context: ToolContext
    ) -> ToolResult | Literal["nothing done"] | None: ...


# ------------------------------------------------------------------------------ delegation

DELEGATED = "delegation"  # the `channel_origin` of a session that was made for a tool call
ASKED_ONCE = "openai:"  # and of one that was made for one request of another program

SCHEDULED = "schedule"  # and of one in which a schedule runs


@dataclass(frozen=True, slots=True)
class Errand:
    """What one agent wants of another."""

    agent: str
    goal: str
    key_facts: tuple[str, ...] = ()
    expected_output: str = ""


@dataclass(frozen=True, slots=True)
class Delegation:
    """The session and turn that work for one call: that of `step` (from 1) of the parent's turn,
    with `call_id` and an errand of which `digest` is the SHA-256 (hex). `depth` counts the turns
    above; `tools` are all that may be used; `attended`: a person may be asked; `max_cost` is in
    USD.
    """

    session_id: str
    turn_id: str
    parent_session_id: str
    parent_turn_id: str
    step: int
    call_id: str
    digest: str
    agent: str
    depth: int
    tools: frozenset[str]
    attended: bool
    max_cost: Decimal | None = None


class Delegator(Protocol):
    """Gives errands to agents. `delegate` returns when the agent has answered; the same call again
    returns the same answer and starts nothing anew. Raises `ToolError` or `Cancelled`.
    """

    def delegate(self, errand: Errand, context: ToolContext) -> ToolResult: ...


class Schedules(Protocol):
    """Tasks that run at their time. `ask` does `action` (`create`, `list`, `edit`, …, `notify`)
    for the model whose call it is; the answer, and what it holds. Raises `OxydraError`.
    """

    def ask(self, action: str, args: Json, context: ToolContext) -> tuple[Json, Marks]: ...


# ----------------------------------------------------------------------------------- memory


NOTE = "note:"
ASIDE = "[Oxydra: "  # begins a user message that no person wrote
RECALLED = "recall-"  # and the `turn_id` of what was recalled before a turn


@dataclass(frozen=True, slots=True)
class Scope:
    """Where memory looks: in notes, and in what was said if `conversations`; in notes with all of
    `tags` only, if there are any. `since` (from then on) and `until` (before then) are times as the
    store writes them (`store.notes.moment`). Nothing of the turn `without`, and nothing that
    came after the event `after` of the session `unless_of`.
    """

    conversations: bool = True
    tags: tuple[str, ...] = ()
    since: str = ""
    until: str = ""
    without: str = ""
    unless_of: str = ""
    after: int = 0


EVERYWHERE = Scope()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a message or a note that memory finds. `created_at` is UTC in RFC 3339.

    A note is the event 0 of a session that is named by `NOTE` and its id; its `role` is `note`.
    """

    chunk_id: int
    session_id: str
    sequence: int
    turn_id: str
    role: str
    text: str
    marks: Marks
    created_at: str

    @property
    def note_id(self) -> str:
        """Whose part it is; "" for a message's."""
        return self.session_id.removeprefix(NOTE) if self.session_id.startswith(NOTE) else ""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found; of two, the one with the larger `score` fits better."""

    chunk: Chunk
    score: float


class Memory(Protocol):
    """Finds what a user's notes hold and what was said in their conversations, best first.
    `fresh`: what came since the last search is indexed first. Raises `Cancelled`.
    """

    def search(
        self,
        query: str,
        top_k: int,
        scope: Scope = EVERYWHERE,
        *,
        token: CancelToken | None = None,
        fresh: bool = True,
    ) -> list[Found]: ...


# ----------------------------------------------------------------------------------- turns


class TurnState(enum.StrEnum):
    """`queued -> running -> completed | failed | cancelled`, `queued -> cancelled | failed`, and
    `queued -> joined` for a message that joined the turn which ran when it came.
    """

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    JOINED = "joined"

    @property
    def terminal(self) -> bool:
        return self not in (TurnState.QUEUED, TurnState.RUNNING)


class CallState(enum.StrEnum):
    """`intended -> running -> done | failed | unknown`, `intended -> failed` for a call that was
    never started, and `running -> running` for one that was interrupted before it did anything.
    """

    INTENDED = "intended"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Event:
    """One stored entry of a session. `created_at` is UTC in RFC 3339; `sequence` rises by one from
    1.
    """

    session_id: str
    sequence: int
    turn_id: str
    message: Message
    created_at: str


@dataclass(frozen=True, slots=True)
class Change:
    """Something that a call was about to change outside of the conversation. `kind` says what the
    payload means; whether it was done shows where it was to be done.
    """

    change_id: int
    session_id: str
    turn_id: str
    step: int
    call_id: str
    kind: str
    payload: Json


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation. Times are UTC in RFC 3339; `title` is the beginning of its first message."""

    session_id: str
    agent_name: str
    display_name: str
    channel_origin: str
    created_at: str
    last_active_at: str
    archived: bool
    title: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange. `turn_id` is the client's idempotency key, `request_id` what its frames echo;
    `terminal` is the stored last frame, `{"type", "payload"}`; `tainted`: others wrote some of what
    the person sent; `sensitive`: it holds private data.
    """

    turn_id: str
    session_id: str
    request_id: str
    state: TurnState
    prompt: str
    attachments: tuple[Attachment, ...] = ()
    terminal: Json | None = None
    tainted: bool = False
    sensitive: bool = False


@dataclass(frozen=True, slots=True)
class Folder:
    """One of the folders that a guest has. A model sees it as `/<root>`; `at` is where it is for
    whoever holds this. `guarded`: it is one of the person's own, in which what programs act upon
    by its name stays as it is.
    """

    root: str
    at: str
    writable: bool
    guarded: bool = False

    @property
    def virtual(self) -> str:
        return f"/{self.root}"

    @property
    def variable(self) -> str:
        """What holds its path in a command's environment: `HOME`, `TMPDIR`, `MNT_<NAME>`."""
        usual = {"shared": "HOME", "tmp": "TMPDIR"}
        return usual.get(self.root) or re.sub(r"\W", "_", self.root, flags=re.ASCII).upper()


@dataclass(frozen=True, slots=True)
class Summary:
    """What stands for the beginning of a session: its events up to `through` (a sequence).

    `epoch` rises by one from 1; `carries` are the sequences of messages among those events that go
    on word for word beside it. `model` made it, "" where it was extracted without one.
    """

    session_id: str
    epoch: int
    through: int
    content: str
    carries: tuple[int, ...] = ()
    model: str = ""
    marks: Marks = Marks()


@dataclass(frozen=True, slots=True)
class Pin:
    """A rule of the person's that is never cut. `sequence` is the event in which it was said, 0 for
    one that was pinned by hand.
    """

    pin_id: int
    text: str
    sequence: int = 0


class ApprovalState(enum.StrEnum):
    """`pending -> allowed | denied | expired`."""

    PENDING = "pending"
    ALLOWED = "allowed"
    DENIED = "denied"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Approval:
    """A request to allow one tool call, and its answer. Times are UTC in RFC 3339.

    The call is that of `step` (which model call of the turn, from 1) with `call_id`, and its exact
    arguments are those with `arguments_sha256`; `arguments` is what a person is shown of them,
    `complete` says that it is all of them. `scope` is `once` or `session`, empty while it is open;
    `decided_by` names a token, a person or a rule.
    """

    approval_id: str
    session_id: str
    turn_id: str
    step: int
    call_id: str
    tool: str
    tier: str
    arguments: str
    arguments_sha256: str
    complete: bool
    reason: str
    created_at: str
    expires_at: str
    state: ApprovalState = ApprovalState.PENDING
    scope: str = ""
    decided_by: str = ""


Emit: TypeAlias = Callable[[str, Json], None]
"""`emit(frame_type, payload)`: tells whoever listens to a session; never blocks on a reader."""
