"""A provider for tests of what stands on providers: it does what a list of steps says.

A step is a `Message` to answer with, a list of text deltas, an exception to raise, or a function of
the request that returns or does one of these.
"""

from __future__ import annotations

from oxydra.types import Completed, Message, ModelSpec, TextDelta, ToolCall, Usage

MODEL = ModelSpec("scripted", "script-1", max_context_tokens=100_000, max_output_tokens=4_000)


def calls(*wanted, text=""):
    """An assistant message that calls tools: pairs of name and JSON arguments."""
    return Message(
        "assistant",
        text,
        tool_calls=tuple(
            ToolCall(f"call-{n}", name, arguments) for n, (name, arguments) in enumerate(wanted)
        ),
    )


class Scripted:
    name = "scripted"

    def __init__(self, *steps):
        self.steps = list(steps)
        self.requests = []

    def stream(self, request, token):
        self.requests.append(request)
        step = self.steps.pop(0) if self.steps else "done"
        if callable(step) and not isinstance(step, type):
            step = step(request, token)
        if isinstance(step, BaseException):
            raise step
        if isinstance(step, str):
            step = [step]
        if isinstance(step, list):
            for text in step:
                token.check()
                yield TextDelta(text)
            step = Message("assistant", "".join(step))
        reason = "tool_calls" if step.tool_calls else "stop"
        yield Completed(step, reason, Usage(10, 5))
