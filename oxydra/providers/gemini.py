"""Google Gemini, streamed: `models/{model}:streamGenerateContent?alt=sse`.

Specification: Gemini API reference, "Generating content", "Function calling", "Thought signatures",
"Thinking", "Image generation"; `v1beta`. The wire has no end marker: a stream is believed once a
chunk brought a `finishReason` (or the prompt was blocked) and the body then ended as HTTP says it
must. Any other end is an error, which may be tried again.

Tools are declared with `parametersJsonSchema`, which takes JSON Schema as it is, instead of
`parameters`, which takes a part of OpenAPI's. Calls have ids only where the API gave them one;
the others are answered in their order, which `repair` sees to.

Parts come with thought signatures, which must go back on the very part they came on.
`Message.native` keeps them, `{"gemini": [part, …]}`: `{"text": characters}`, `{"call": index}`,
`{"image": index}` for what the message holds already, each with its `signature` if it had one, and
`{"thought": part}` for a signed thought. The same provider and model gets all of it back. Models
since Gemini 3 refuse a call without a signature, so a call that another model made gets the one
that the documentation gives for that: `skip_thought_signature_validator`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import mimetypes
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from oxydra.errors import ProviderError
from oxydra.frames import compact
from oxydra.providers import abilities
from oxydra.providers.base import (
    Assembly,
    PendingCall,
    ProviderSettings,
    count,
    json_bytes,
    mapping,
)
from oxydra.providers.http import HttpProvider
from oxydra.providers.turns import (
    BLANK,
    Turn,
    arguments,
    kept,
    own,
    real_names,
    said_of,
    system_messages,
    text_of,
    turns,
    wire_name,
)
from oxydra.transport import HttpStream, Transport, sse
from oxydra.types import (
    Attachment,
    Completed,
    FinishReason,
    Json,
    Message,
    ModelRequest,
    ModelSpec,
    Native,
    StreamEvent,
    ToolCall,
    ToolSpec,
    Usage,
)

IMAGES = ("image/png", "image/jpeg", "image/webp", "image/heic", "image/heif")
IMAGE_EVENT = 48 << 20  # bytes of one event that may bring an image
FINISH: dict[str, FinishReason] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "LANGUAGE": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "IMAGE_SAFETY": "content_filter",
    "IMAGE_PROHIBITED_CONTENT": "content_filter",
    "IMAGE_RECITATION": "content_filter",
}
FAILED = (  # what was written is of no use, but another attempt may be
    "MALFORMED_FUNCTION_CALL",
    "MALFORMED_RESPONSE",
    "UNEXPECTED_TOOL_CALL",
    "TOO_MANY_TOOL_CALLS",
    "MISSING_THOUGHT_SIGNATURE",
)
UNSIGNED = "skip_thought_signature_validator"
_SIGNING = re.compile(r"(models/)?gemini-([3-9]|\d\d)\b")
_VERSIONED = re.compile(r"/v\d+\w*$")


class Gemini(SignedProvider):
    """`settings.base_url` with or without its version segment."""

    wire = "gemini"

    def url(self, request: ModelRequest) -> str:
        return model_url(self.settings.base_url, request.model.id)

    # ------------------------------------------------------------------------------- the request

    def encode_request(
        self, request: ModelRequest, history: Sequence[Message], tools: Sequence[bytes]
    ) -> bytes:
        abilities.check_attachments(self.name, request.model, history, IMAGES)
        model = request.model
        contents: list[bytes] = []
        with_ids: set[str] = set()  # calls whose ids are the API's own
        for turn in turns(history):
            for role, said in _contents(turn):
                parts = []
                for message in said:
                    own = self.own_parts(message, model)
                    if own is not None:
                        parts.append(self.encode_own(message, model, own, _in_order(model)))
                        calls = message.tool_calls
                        with_ids.update(c.id for c, part in zip(calls, _calls(own)) if part["id"])
                    elif message.role == "assistant":
                        parts.append(self._encoded_for(message, model))
                    else:
                        ...
                contents.append(b'{"role":"%s","parts":[%s]}' % (role, b",".join(parts)))
        return b""
