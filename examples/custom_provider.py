#!/usr/bin/env python3
"""A provider of your own: anything that yields text and then says what the whole message was.

It is metered and held to your caps like any other, for which the model needs its prices.
"""

from decimal import Decimal

from oxydra import Agent, Completed, Message, ModelSpec, TextDelta, Usage


class Backwards:
    """Answers with what it was told, backwards."""

    name = "backwards"

    def stream(self, request, token):
        said = request.messages[-1].content
        words = said.split()[::-1]
        for word in words:
            token.check()  # raises where the turn is stopped
            yield TextDelta(word + " ")
        answer = Message("assistant", " ".join(words) + " ")
        yield Completed(answer, "stop", Usage(len(said) // 4, len(said) // 4))


model = ModelSpec(
    *("backwards", "model-1"),
    max_context_tokens=8_000,
    max_output_tokens=1_000,
    price_input=Decimal("0.5"),  # USD per million tokens
    price_output=Decimal("1.5"),
)
with Agent("assistant", provider=Backwards(), model=model) as agent:
    answer = agent.run("world the hello")
    print(answer, answer.usage)
