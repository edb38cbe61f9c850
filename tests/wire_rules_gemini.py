"""What the Gemini wire demands of a request, as a validator; see `wire_rules`.

From the API reference ("Generating content", "Function calling", "Thought signatures") and from
what the API is known to refuse.
"""

from __future__ import annotations

import base64
import re
from typing import Any

NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_.:-]{0,63}")
TOP = {"generationConfig", "tools", "systemInstruction", "contents"}
LEVELS = ("minimal", "low", "medium", "high")
KINDS = ("text", "functionCall", "functionResponse", "inlineData")


def check_gemini(body: Any, *, signatures: bool = False) -> None:
    """Raise `AssertionError` that says which rule `body` breaks; with `signatures`, those that hold
    since Gemini 3 as well.
    """
    assert body.keys() <= TOP, f"unknown fields {body.keys() - TOP}"
    config = body["generationConfig"]
    assert config.get("maxOutputTokens", 1) > 0
    thinking = config.get("thinkingConfig", {})
    assert not {"thinkingBudget", "thinkingLevel"} <= thinking.keys(), "a level and a budget"
    assert thinking.get("thinkingLevel", "low") in LEVELS
    for tool in body.get("tools", ()):
        names = [function["name"] for function in tool["functionDeclarations"]]
        assert names, "no functions are declared"
        assert len(names) == len(set(names)), "a function is declared twice"
        for function in tool["functionDeclarations"]:
            assert NAME.fullmatch(function["name"]), f"invalid function name {function['name']!r}"
            assert function["parametersJsonSchema"]["type"] == "object"
    for part in body.get("systemInstruction", {}).get("parts", ()):
        assert part["text"]
    contents = body["contents"]
    assert contents, "contents are required"
    assert contents[0]["role"] == "user", "the first content must be the user's"
    assert contents[-1]["role"] == "user", "the last content must be the user's"
    calls: list[Any] = []
    for index, content in enumerate(contents):
        assert content["role"] in ("user", "model")
        assert content["parts"], "parts must not be empty"
        for part in content["parts"]:
            _part(part, content["role"])
        made = [part["functionCall"] for part in content["parts"] if "functionCall" in part]
        answers = [
            part["functionResponse"] for part in content["parts"] if "functionResponse" in part
        ]
        shape = [(call["name"], call.get("id")) for call in calls]
        assert [(a["name"], a.get("id")) for a in answers] == shape, (
            "a function call must be followed at once by as many responses"
        )
        if made:
            assert contents[index - 1]["role"] == "user", "a call must follow the user"
        if made and signatures:
            first = next(part for part in content["parts"] if "functionCall" in part)
            assert first.get("thoughtSignature"), "a function call is missing a thought_signature"
        calls = made


def _part(part: Any, role: str) -> None:
    kinds = [kind for kind in KINDS if kind in part]
    assert len(kinds) == 1, f"a part must have one kind of data, not {kinds}"
    assert part.keys() <= {*kinds, "thought", "thoughtSignature"}
    match kinds[0]:
        case "text":
            assert part["text"] or part.get("thoughtSignature"), "an empty text"
            part["text"].encode()
        case "functionCall":
            assert role == "model"
            assert NAME.fullmatch(part["functionCall"]["name"])
            assert isinstance(part["functionCall"]["args"], dict)
        case "functionResponse":
            assert role == "user"
            assert isinstance(part["functionResponse"]["response"], dict)
        case "inlineData":
            assert base64.b64decode(part["inlineData"]["data"], validate=True)
            assert "/" in part["inlineData"]["mimeType"]
