"""What the TUI knows, what can happen to it, and what it can ask for. Values only.

`model.reduce` turns a `State` and an event into a new `State` and effects; `view` draws a `State`;
`app` makes events of the world and carries effects out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from oxydra.frames import Frame
from oxydra.tui.client import Link
from oxydra.tui.editor import Editor
from oxydra.tui.keys import Key
from oxydra.types import Json

EntryKind = Literal["user", "assistant", "reasoning", "tool", "notice", "warning", "error"]
PAGE = 100  # events of history asked for at once
WAITING = ("sending", "queued")  # states of a message whose turn has not begun


@dataclass(frozen=True, slots=True)
class Entry:
    """One item of the transcript. `id` is the TUI's own and rises; `text` is not yet cleaned.

    `state` of a user's message: `sending` until the gateway has it, `queued` until its turn runs,
    `refused`, then empty. Of an answer and of reasoning: `open` while it streams, `stale` when it
    was broken off and is asked for again, then empty. Of a tool call: `started`, `finished`,
    `failed` or `unknown`. `sequence` is its place in the stored history, 0 for what came live.
    `steers`: a message that is meant for the turn which runs. `files` are a message's attachments
    by name and size, `attachments` themselves until the gateway has them.

    Of a tool call, `text` is its arguments in short, `arguments` and `result` are all there is once
    the history told, `size` the bytes of the result, `since` when it began, on `Tick`'s clock.
    """

    id: int
    kind: EntryKind
    text: str
    turn_id: str = ""
    state: str = ""
    attachments: tuple[Json, ...] = ()
    sequence: int = 0
    call_id: str = ""
    tool: str = ""
    elapsed_ms: int | None = None
    steers: bool = False
    files: tuple[str, ...] = ()
    since: float = 0.0
    arguments: str = ""
    result: str | None = None

    @property
    def size(self) -> int | None:
        return None if self.result is None else len(self.result.encode("utf-8", "replace"))


@dataclass(frozen=True, slots=True)
class Active:
    """The turn that runs. `since` is on the clock of `Tick`; `activity` says what it is at;
    `asked` that the message which began it is known or was asked for; `steps` how often the model
    was asked.
    """

    turn_id: str
    since: float
    activity: str = ""
    cancelling: bool = False
    asked: bool = False
    steps: int = 1


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for an approval. `arguments` is all of them as text, if `complete`; `since` when it
    could first be seen, on the clock of `Tick`.
    """

    approval_id: str
    turn_id: str
    tool: str
    tier: str
    arguments: str
    complete: bool
    reason: str
    since: float


@dataclass(frozen=True, slots=True)
class Health:
    """What the gateway says of itself. `problems` are sentences, the gravest first."""

    tier: str = ""
    level: str = ""
    model: str = ""
    provider: str = ""
    shell: bool = True
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A row of the gateway's list."""

    session_id: str
    name: str
    agent: str
    last_active_at: str
    archived: bool = False
    delegated: bool = False


@dataclass(frozen=True, slots=True)
class Anchor:
    """The last line in sight while an older part of the transcript is read."""

    entry_id: int
    line: int


@dataclass(frozen=True, slots=True)
class Search:
    """Looking for something that was sent: `at` is its place in the history, None for nothing
    found; `before` is the input as it was.
    """

    query: str
    at: int | None
    before: Editor


@dataclass(frozen=True, slots=True)
class Picker:
    """Choosing a session: what was typed to narrow the list, and the row that Enter takes."""

    query: str = ""
    row: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """What a reply is wanted for; `about` is the purpose's own."""

    purpose: str
    about: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """Everything that is on the screen or decides what will be.

    `nonce` makes this TUI's ids unique; `last_id` is the newest of them, of entries and requests
    alike. `more` says that the gateway has older history than `entries`, `unread` that the
    newest was asked for and did not come before the connection broke. `asked` are the requests
    for approvals that are open, oldest first. `anchor` is None while the
    newest line is in sight. `details` shows what is collapsed otherwise. `hint` stands in the
    input's title until the next key; `leaving` says that Ctrl+C was announced to leave.

    `filled` are the tokens of a request of the last turn with its answer, the mean where there were
    several, `window` those that the model takes; 0 where that is not known, -1 if nobody can say.

    `sessions` and `agents` are what the gateway told last, `unknown` the commands that it said it
    does not know; `notices` the numbers of those that were shown. `attaching` is a message whose
    files are to be confirmed. `away`: the turns that were known when the connection broke. `seen`:
    the last turn that was seen of other sessions.
    """

    user_id: str
    nonce: str
    now: float = 0.0
    last_id: int = 0
    link: Link = field(default_factory=lambda: Link(False, detail="connecting"))
    session_id: str = ""
    session_name: str = ""
    agent: str = ""
    entries: tuple[Entry, ...] = ()
    more: bool = False
    unread: bool = False
    requests: Mapping[str, Request] = field(default_factory=dict)
    active: Active | None = None
    asked: tuple[Asked, ...] = ()
    editor: Editor = field(default_factory=Editor)
    health: Health | None = None
    tokens: int = 0
    cost: float | None = None
    filled: int = 0
    window: int = 0
    anchor: Anchor | None = None
    details: bool = False
    sessions: tuple[SessionInfo, ...] = ()
    agents: tuple[str, ...] = ()
    unknown: frozenset[str] = frozenset()
    notices: frozenset[int] = frozenset()
    search: Search | None = None
    picker: Picker | None = None
    attaching: Resolved | None = None
    away: frozenset[str] | None = None
    seen: Mapping[str, str] = field(default_factory=dict)
    hint: str = ""
    judged: tuple[str, str] = ("", "")  # the MCP server that was shown to be trusted, its digest
    leaving: bool = False

    # ------------------------------------------------------------------------------------- changes

    def say(self, kind: EntryKind, text: str) -> State:
        """Append a line of the TUI's own."""
        return self.append(Entry(0, kind, text))

    def append(self, entry: Entry) -> State:
        """Append `entry` under a new id. Messages that wait for their turn stay at the end."""
        entry = replace(entry, id=self.last_id + 1)
        end = len(self.entries)
        if entry.kind != "user":
            while end and self.entries[end - 1].state in WAITING:
                end -= 1
        entries = (*self.entries[:end], entry, *self.entries[end:])
        return replace(self, last_id=entry.id, entries=entries)

    def change(self, entry: Entry) -> State:
        """Put `entry` in the place of the one with its id."""
        entries = list(self.entries)
        for i in range(len(entries) - 1, -1, -1):
            if entries[i].id == entry.id:
                entries[i] = entry
                return replace(self, entries=tuple(entries))
        return self

    def ask(self, frame_type: str, payload: Json, purpose: str = "", about: str = "") -> Step:
        """Send a frame and remember what its reply is wanted for."""
        request_id = f"{self.nonce}-{self.last_id + 1}"
        requests = {**self.requests, request_id: Request(purpose, about)}
        send = Send(frame_type, {"request_id": request_id, **payload})
        return replace(self, last_id=self.last_id + 1, requests=requests), (send,)

    def answered(self, request_id: str) -> tuple[State, Request | None]:
        """Forget a request; the answer also has what it was wanted for, None if it was not ours."""
        request = self.requests.get(request_id)
        if request is None:
            return self, None
        left = {key: value for key, value in self.requests.items() if key != request_id}
        return replace(self, requests=left), request

    def asking(self, purpose: str, about: str = "") -> bool:
        return Request(purpose, about) in self.requests.values()


# ------------------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed: `now` is in seconds of any clock that only rises."""

    now: float


@dataclass(frozen=True, slots=True)
class Scrolled:
    """The view moved: to `anchor`, None at the newest line; `top` if nothing is above."""

    anchor: Anchor | None
    top: bool


@dataclass(frozen=True, slots=True)
class Completed:
    """The paths that `word`, which begins with `@`, can become."""

    word: str
    candidates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Resolved:
    """The paths of a message were looked at: `prompt` has those of the workspace as the model sees
    them, `attachments` are the others as `send_turn` takes them, `problem` why it can't be sent.
    """

    text: str
    prompt: str
    attachments: tuple[Json, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Edited:
    """The editor that the person prefers gave this back."""

    text: str


@dataclass(frozen=True, slots=True)
class Told:
    """Something to be said to the person, such as what became of an effect."""

    kind: EntryKind
    text: str


Event: TypeAlias = Tick | Key | Frame | Link | Scrolled | Completed | Resolved | Edited | Told


# ------------------------------------------------------------------------------------------ effects


@dataclass(frozen=True, slots=True)
class Send:
    """Give the gateway a frame."""

    type: str
    payload: Json


@dataclass(frozen=True, slots=True)
class Scroll:
    """Move the view: `pages` down (up if negative), or to the newest line if 0."""

    pages: float


@dataclass(frozen=True, slots=True)
class Exit:
    """Leave with this exit code."""

    code: int = 0


@dataclass(frozen=True, slots=True)
class Suspend:
    """Stop as Ctrl+Z stops a program."""


@dataclass(frozen=True, slots=True)
class Repaint:
    """Draw everything anew."""


@dataclass(frozen=True, slots=True)
class Remember:
    """Keep what was sent, for the next time."""

    text: str


@dataclass(frozen=True, slots=True)
class Complete:
    """Say which paths `word`, which begins with `@`, can become."""

    word: str


@dataclass(frozen=True, slots=True)
class Resolve:
    """Look at the paths that a message names with `@`."""

    text: str


@dataclass(frozen=True, slots=True)
class OpenEditor:
    """Let the person write `text` on in their own editor."""

    text: str


@dataclass(frozen=True, slots=True)
class Write:
    """Write a new file."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Bell:
    """Call the person."""


Effect: TypeAlias = (
    Send
    | Scroll
    | Exit
    | Suspend
    | Repaint
    | Remember
    | Complete
    | Resolve
    | OpenEditor
    | Write
    | Bell
)
Step: TypeAlias = tuple[State, tuple[Effect, ...]]
