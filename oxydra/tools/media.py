"""`send_media`: files into the chat that a conversation is held in. It runs on the turn's threads.

What goes out is what the files hold when the call is made: it is read then, once, and the service
`media` owes it to the chat, durably and under the call's own number. So nothing that is written
meanwhile goes with it, and the same call made again after a crash sends nothing twice. It counts as
a way out (`egress`): the gate asks where a conversation of strangers' content would send private
data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Protocol

from oxydra.errors import ToolError
from oxydra.policy import VirtualPath
from oxydra.tools.base import tool
from oxydra.tools.confine import Workspace
from oxydra.tools.files import ReadPath
from oxydra.tools.schema import Bounds
from oxydra.types import SafetyTier, SentFile, ToolContext

MAX_BYTES = 20 << 20  # of all files of one call; they are held in memory while they are sent
ALBUM = 10  # files at most
CAPTION = 990  # characters; what chats take, less what a repetition begins with

MediaType = Literal["photo", "document", "audio", "voice", "video"]


class Chat(Protocol):
    """Where files go: a channel."""

    def owes_media(self, context: ToolContext) -> bool:
        """Whether what this call sends is owed already, or has arrived."""
        ...

    def owe_media(self, context: ToolContext, files: Sequence[SentFile], caption: str) -> None:
        """Owe it to the chat that the turn came from. Raises `ToolError` where there is none."""
        ...


class Outgoing:
    """The service, for which the channel comes later than the tools."""

    def __init__(self) -> None:
        self._chat: Chat | None = None

    def attach(self, chat: Chat) -> None:
        self._chat = chat

    @property
    def chat(self) -> Chat:
        if self._chat is None:
            raise ToolError("There is no chat here that files could be sent to.")
        return self._chat


@tool(tier=SafetyTier.SIDE_EFFECTING, repeatable=True, egress=True)
def send_media(
    context: ToolContext,
    path: ReadPath,
    media_type: MediaType = "document",
    caption: Annotated[str, Bounds(0, CAPTION)] = "",
    also: Annotated[list[ReadPath], Bounds(0, ALBUM - 1)] | None = None,
) -> str:
    """Send a file to the person in the chat of this conversation; with `also`, further ones of the
    same kind as one album.
    """
    chat = context.services["media"].chat
    paths = [path, *(also or ())]
    named = ", ".join(map(str, paths))
    if not chat.owes_media(context):
        if media_type == "voice" and len(paths) > 1:
            raise ToolError("Voice messages make no album.", remedy="Send one at a time.")
        files = _read(context.services["workspace"], paths, media_type)
        context.recheck()  # after the last byte was read
        chat.owe_media(context, files, caption)
    return f"On the way to the chat: {named}"


def _read(
    workspace: Workspace, paths: Sequence[VirtualPath], media_type: MediaType
) -> list[SentFile]:
    files: list[SentFile] = []
    left = MAX_BYTES
    for path in paths:
        with workspace.open(path) as file:
            data = file.read(left + 1)
        left -= len(data)
        if left < 0:
            raise ToolError(
                f"{path} is too large: {MAX_BYTES >> 20} MB can be sent at once.",
                remedy="Send less, or say where it lies.",
            )
        if not data:
            raise ToolError(f"{path} is empty: there is nothing to send.")
        files.append(SentFile(media_type, path.name, data))
    return files
