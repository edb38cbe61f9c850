"""What of a request its model can do: reasoning levels and attachments. Pure.

A level is a word (`minimal`, `low`, … `max`, or `off`), which the catalog's options of the model
turn into what its wire wants: the nearest level that the model has, or a budget of tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Literal

from oxydra.errors import ProviderError
from oxydra.types import Message, ModelRequest, ModelSpec, ReasoningOption

LEVELS = ("minimal", "low", "medium", "high", "xhigh", "max")
BUDGETS = dict(zip(LEVELS, (1024, 4096, 8192, 16384, 24576, 32768), strict=True))  # tokens
PDF = "application/pdf"
IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")  # what most wires carry


def option(
    model: ModelSpec, kind: Literal["toggle", "effort", "budget_tokens"]
) -> ReasoningOption | None:
    """The way `kind` to set this model's reasoning, if it has that way."""
    return next((found for found in model.reasoning_options if found.kind == kind), None)


def checked_level(request: ModelRequest, provider: str) -> str:
    """The reasoning level asked for, "" for the model's own or where the model does not reason.
    Raises `ProviderError` for a word that is no level.
    """
    model, wanted = request.model, request.reasoning
    if not wanted or not model.reasoning:
        return ""
    effort = option(model, "effort")
    known = ("off", *LEVELS, *(effort.values if effort else ()))
    if wanted not in known:
        raise ProviderError(
            f"{provider} ({model.id}) has no reasoning level {wanted!r}.",
            remedy=f"The known ones are: {', '.join(dict.fromkeys(known))}.",
            provider=provider,
            model=model.id,
            code="unsupported",
        )
    return wanted


def nearest(values: Sequence[str], wanted: str) -> str:
    """The one of a model's effort `values` that is `wanted`, or else the next lower one that it
    has, or its lowest; "" if it has none that we know. `off` wants the lowest.
    """
    if wanted in values:
        return wanted
    rank = LEVELS.index(wanted) if wanted in LEVELS else -1
    known = [level for level in LEVELS if level in values]
    lower = [level for level in known if LEVELS.index(level) <= rank]
    return lower[-1] if lower else "".join(known[:1])


def effort(model: ModelSpec, level: str) -> str:
    """The word for a level on OpenAI's wires; "" leaves it to the model."""
    known = option(model, "effort")
    if not level or known is None or not known.values:
        return "none" if level == "off" else level
    if level == "off" and "none" in known.values:
        return "none"
    return nearest(known.values, level)


def budget(found: ReasoningOption, wanted: str, max_output_tokens: int) -> int:
    """Tokens to reason with at a level: within what the model takes, and at most three quarters of
    its output limit, so that room for the answer is left; 0 if that leaves too little to reason.
    """
    tokens = BUDGETS.get(wanted, BUDGETS["medium"])
    if found.maximum is not None:
        tokens = min(tokens, found.maximum)
    tokens = max(tokens, found.minimum or 0)
    if max_output_tokens > 0:
        tokens = min(tokens, max_output_tokens * 3 // 4)
    return tokens if tokens >= (found.minimum or 1) else 0


def visible(
    history: Sequence[Message], model: ModelSpec, results: Collection[str] = IMAGES
) -> list[Message]:
    """The history without the images of tools' results that this model can't see, or its wire not
    carry (`results` are the types that it does): what the results say in words stays.
    """
    kinds = results if model.images else ()
    found = []
    for message in history:
        if message.role == "tool" and message.attachments:
            kept = tuple(a for a in message.attachments if a.mime_type in kinds and a.data)
            if len(kept) < len(message.attachments):
                message = replace(message, attachments=kept, wire={})
        found.append(message)
    return found


def check_attachments(
    provider: str,
    model: ModelSpec,
    history: Sequence[Message],
    images: Collection[str],
    pdfs: bool = True,
) -> None:
    """Raise `ProviderError` (`unsupported`) for the first attachment that is not for this model, or
    not for its wire, which carries `images` (mime types) and PDFs or not.

    What a model made itself is no reason to refuse: where a wire cannot carry it, it says so in
    words (`turns.said_of`).
    """
    for message in history:
        for attachment in message.attachments if message.role != "assistant" else ():
            kind = attachment.mime_type
            name = f"{attachment.name} ({kind})" if attachment.name else f"A file ({kind})"
            if not attachment.data:
                problem = f"{name} is empty, or its content is not there any more"
            elif kind == PDF and not (pdfs and model.pdfs):
                problem = f"{name} cannot be sent: the model takes no PDFs"
            elif kind.startswith("image/") and not model.images:
                problem = f"{name} cannot be sent: the model takes no images"
            elif kind != PDF and kind not in images:
                problem = f"{name} cannot be sent: its API takes no such files"
            else:
                continue
            raise ProviderError(
                f"{provider} ({model.id}): {problem}.",
                remedy="Choose a model that takes it in [selection], or start a new session "
                "without it.",
                provider=provider,
                model=model.id,
                code="unsupported",
            )
