"""Every wire against a server that was not written here: the npm package `@copilotkit/aimock`.

`AIMOCK` names its program; `.ci/run` installs it. Without it, or without Node, the tests are
skipped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess

import pytest

from oxydra.providers.base import ProviderSettings
from oxydra.providers.registry import PROVIDERS, create, credential
from oxydra.threads import CancelToken
from oxydra.transport import DirectTransport
from oxydra.types import (
    Completed,
    Message,
    ModelRequest,
    ModelSpec,
    TextDelta,
    ToolSpec,
)

pytestmark = pytest.mark.slow

MODELS = {
    "openai": "gpt-4o",
    "openai_responses": "gpt-4o",
    "anthropic": "claude-sonnet-4-5",
    "gemini": "gemini-2.5-flash",
}
WEATHER = ToolSpec(
    "get_weather",
    "The weather at a place.",
    {
        "type": "object",
        "properties": {"place": {"type": "string"}},
        "required": ["place"],
        "additionalProperties": False,
    },
)
FIXTURES = [
    {"match": {"userMessage": "rain", "hasToolResult": True}, "response": {"content": "Take it."}},
    {
        "match": {"userMessage": "rain"},
        "response": {"toolCalls": [{"name": "get_weather", "arguments": {"place": "Kiel"}}]},
    },
    {"match": {"userMessage": "hello"}, "response": {"content": "Moin, schöne Welt! " * 20}},
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    program = os.environ.get("AIMOCK") or shutil.which("llmock")
    if not program or shutil.which("node") is None:
        pytest.skip("AIMOCK does not name @copilotkit/aimock's llmock, or Node is missing")
    folder = tmp_path_factory.mktemp("aimock")
    (folder / "all.json").write_text(json.dumps({"fixtures": FIXTURES}))
    process = subprocess.Popen(
        [program, "--port", "0", "--fixtures", str(folder), "--strict"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = ""
    for line in process.stdout:
        said += line
        if found := re.search(r"http://[^:/\s]+:\d+", line):
            yield found[0]
            break
    else:
        pytest.fail(f"aimock did not start: {said}")
    process.terminate()
    process.wait(timeout=60)
    process.stdout.close()


@pytest.fixture(params=sorted(set(MODELS) & set(PROVIDERS)))
def model(request, server):
    """A function that sends messages over one wire and returns the deltas and the end."""
    kind = request.param
    settings = ProviderSettings("mine", kind, base_url=server, credential="mine")
    transport = DirectTransport({"mine": credential(settings, "test-key-1234567890")})
    provider = create(settings, transport)
    spec = ModelSpec("mine", MODELS[kind], 100_000, 4_000, images=True)

    def ask(*messages):
        wanted = ModelRequest(spec, messages, tools=(WEATHER,))
        *deltas, end = provider.stream(wanted, CancelToken())
        assert isinstance(end, Completed)
        return "".join(d.text for d in deltas if isinstance(d, TextDelta)), end

    yield ask
    transport.close()


def test_text_is_streamed(model):
    text, end = model(Message("system", "Be brief."), Message("user", "hello"))
    assert text == end.message.content == "Moin, schöne Welt! " * 20
    assert end.finish_reason == "stop"


def test_a_tool_call_and_its_result(model):
    history = [Message("system", "Be brief."), Message("user", "Will it rain?")]
    _text, end = model(*history)
    (call,) = end.message.tool_calls
    assert (end.finish_reason, call.name) == ("tool_calls", "get_weather")
    assert json.loads(call.arguments) == {"place": "Kiel"}
    result = Message("tool", "Rain.", tool_call_id=call.id, name=call.name)
    text, end = model(*history, end.message, result)
    assert (text, end.finish_reason) == ("Take it.", "stop")
