"""The MCP server before clients of others: the conformance suite of the protocol's authors, and
their Python SDK.

The suite speaks HTTP, so it comes through a bridge, and it asks for tools, resources and prompts of
its own; so there are two servers here: `oxydra-runner mcp`, for the scenarios that any server can
pass, and one of the tests', made of the same protocol code, for those of its own. `MCP_CONFORMANCE`
names the folder of the suite's programs; `.ci/run` installs it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from oxydra.mcp.protocol import INVALID_PARAMS, RESOURCE_NOT_FOUND, RpcError
from oxydra.mcp.server import Server
from tests.mcp_bridge import bridged
from tests.mcp_kit import Hosted
from tests.test_daemon import RUNNER, home, running  # noqa: F401
from tests.test_door_clients import installed  # noqa: F401
from tests.test_mcp_daemon import Process, token_of

pytestmark = pytest.mark.slow

SDK = "mcp==2.3.0"
OURS = ("server-initialize", "ping", "tools-list", "resources-list")
NOT_OFFERED = (  # requests to the client
    "tools-call-sampling",
    "tools-call-elicitation",
    "elicitation-sep1034-defaults",
    "elicitation-sep1330-enums",
)
OF_HTTP = ("server-sse-polling", "server-sse-multiple-streams", "dns-rebinding-protection")

PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5Er"
    "kJggg=="
)
WAV = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA="
TEXT = {"type": "text", "text": "This is a simple text response for testing."}
IMAGE = {"type": "image", "data": PNG, "mimeType": "image/png"}
AUDIO = {"type": "audio", "data": WAV, "mimeType": "audio/wav"}


def embedded(uri):
    resource = {"uri": uri, "mimeType": "text/plain", "text": "Embedded content."}
    return {"type": "resource", "resource": resource}


CONTENTS = {
    "test_simple_text": [TEXT],
    "test_image_content": [IMAGE],
    "test_audio_content": [AUDIO],
    "test_embedded_resource": [embedded("test://embedded-resource")],
    "test_multiple_content_types": [TEXT, IMAGE, embedded("test://mixed-content-resource")],
    "test_tool_with_logging": [TEXT],
    "test_tool_with_progress": [TEXT],
    "test_error_handling": [TEXT],
    "json_schema_2020_12_tool": [TEXT],
}
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {"address": {"type": "object", "properties": {"street": {"type": "string"}}}},
    "properties": {"name": {"type": "string"}, "address": {"$ref": "#/$defs/address"}},
    "additionalProperties": False,
}
RESOURCES = {
    "test://static-text": {"mimeType": "text/plain", "text": "Some text."},
    "test://static-binary": {"mimeType": "image/png", "blob": PNG},
    "test://template/123/data": {"mimeType": "application/json", "text": '{"id":"123"}'},
    "test://watched-resource": {"mimeType": "text/plain", "text": "Some text."},
}


def call_tool(params, call):
    name = params["name"]
    if name not in CONTENTS:
        raise RpcError(INVALID_PARAMS, f"Unknown tool: {name}")
    for step in ("started", "goes on", "completed"):
        if name == "test_tool_with_logging":
            call.send("notifications/message", {"level": "info", "data": step})
        if name == "test_tool_with_progress":
            call.progress(step)
    failed = {"isError": True} if name == "test_error_handling" else {}
    return {"content": CONTENTS[name], **failed}


def read_resource(params, _call):
    uri = params["uri"]
    if uri not in RESOURCES:
        raise RpcError(RESOURCE_NOT_FOUND, "There is no such resource.", data={"uri": uri})
    return {"contents": [{"uri": uri, **RESOURCES[uri]}]}


def get_prompt(params, _call):
    given = params.get("arguments", {})
    contents = {
        "test_simple_prompt": [TEXT],
        "test_prompt_with_arguments": [{"type": "text", "text": json.dumps(given)}],
        "test_prompt_with_embedded_resource": [embedded(given.get("resourceUri")), TEXT],
        "test_prompt_with_image": [IMAGE, TEXT],
    }[params["name"]]
    return {"messages": [{"role": "user", "content": content} for content in contents]}


def everything():
    """A server that offers what the suite asks for."""
    tools = [
        {
            "name": name,
            "description": name,
            "inputSchema": SCHEMA if "schema" in name else {"type": "object"},
        }
        for name in CONTENTS
    ]
    template = {"uriTemplate": "test://template/{id}/data", "name": "template"}
    named = [{"uri": uri, "name": uri, "description": uri} for uri in RESOURCES]
    prompts = [
        {"name": f"test_{name}", "description": name}
        for name in ("simple_prompt", "prompt_with_arguments", "prompt_with_embedded_resource")
    ]
    return Server(
        {"name": "everything", "version": "1"},
        {
            "tools": {},
            "resources": {"subscribe": True},
            "prompts": {},
            "logging": {},
            "completions": {},
        },
        {
            "tools/list": lambda _params, _call: {"tools": tools},
            "tools/call": call_tool,
            "resources/list": lambda _params, _call: {"resources": named},
            "resources/templates/list": lambda _params, _call: {"resourceTemplates": [template]},
            "resources/read": read_resource,
            "resources/subscribe": lambda _params, _call: {},
            "resources/unsubscribe": lambda _params, _call: {},
            "prompts/list": lambda _params, _call: {"prompts": prompts},
            "prompts/get": get_prompt,
            "logging/setLevel": lambda _params, _call: {},
            "completion/complete": lambda _params, _call: {"completion": {"values": []}},
        },
    )


# --------------------------------------------------------------------------------------- the suite


@pytest.fixture
def suite(tmp_path):
    """A function that runs the suite, with what arguments, and returns its exit code and words."""
    folder = os.environ.get("MCP_CONFORMANCE", "")
    if not folder or not (Path(folder) / "conformance").exists():
        pytest.skip("MCP_CONFORMANCE names no folder of @modelcontextprotocol/conformance")

    def run(url, *arguments):
        done = subprocess.run(
            [Path(folder) / "conformance", "server", "--url", url, *arguments],
            capture_output=True,
            text=True,
            timeout=600,
            cwd=tmp_path,
            env={"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(tmp_path)},
        )
        return done.returncode, done.stdout + done.stderr

    return run


def test_every_scenario_but_those_of_http_and_of_what_is_not_offered(suite):
    with bridged(lambda: Hosted(everything())) as url:
        _code, said = suite(url, "--suite", "all")
    results = {
        name: bool(mark) for mark, name in re.findall("(✓)?✗? ([a-z0-9-]+): [0-9]+ pas", said)
    }
    others = {name: passed for name, passed in results.items() if name not in OF_HTTP}
    failed = sorted(name for name, passed in others.items() if not passed)
    assert failed == sorted(NOT_OFFERED), said
    assert len(others) == 29


def test_the_agents_own_server(suite, running):  # noqa: F811
    token = token_of(running, "ask")
    with bridged(lambda: Process(running, "--token-file", str(token))) as url:
        for scenario in OURS:
            code, said = suite(url, "--scenario", scenario)
            assert code == 0, said


# ----------------------------------------------------------------------------------------- the SDK

CLIENT = """
import json, sys
import anyio
from mcp import ClientSession, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client

async def main():
    out, told = {}, []
    async def progress(done, total, message):
        told.append((done, message))
    program = StdioServerParameters(command=sys.argv[1], args=sys.argv[2:])
    async with stdio_client(program) as streams, ClientSession(*streams) as session:
        hello = await session.initialize()
        out["server"] = [hello.server_info.name, str(hello.protocol_version)]
        tools = (await session.list_tools()).tools
        out["tools"] = [tool.name for tool in tools if tool.output_schema]
        async def call(name, /, **arguments):  # it looks at what comes by the tool's schema
            return await session.call_tool(name, arguments, progress_callback=progress)
        asked = await call("ask", prompt="list the files in /shared")
        out["answer"] = asked.structured_content["answer"]
        out["text"] = asked.content[0].text
        out["told"] = told == sorted(told) and len(told) > 2
        made = await call("schedule_create", goal="x", cadence_type="interval", cadence_value="600")
        schedule = {"schedule_id": made.structured_content["schedule_id"]}
        for name, arguments in {
            "session_list": {},
            "session_read": {"session_id": asked.structured_content["session_id"]},
            "session_new": {"name": "n"},
            "memory_search": {"query": "files"},
            "schedule_list": {},
            "schedule_runs": schedule,
            "ask_wait": {"turn_id": asked.structured_content["turn_id"]},
            "ask_cancel": {"turn_id": asked.structured_content["turn_id"]},
        }.items():
            out[name] = (await call(name, **arguments)).is_error
        out["wrong"] = (await call("ask")).is_error
        try:
            await call("mischief")
        except MCPError as error:
            out["unknown"] = error.code
        listed = (await session.list_resources()).resources
        read = await session.read_resource(listed[0].uri)
        out["resource"] = read.contents[0].mime_type
        await session.send_ping()
    print(json.dumps(out))

anyio.run(main)
"""


def test_the_python_sdk(installed, running):  # noqa: F811
    python = installed(SDK) / "python"
    token = token_of(running, "ask")
    program = (sys.executable, RUNNER, *running.at(("mcp", "--token-file", str(token))))
    done = subprocess.run(
        [python, "-c", CLIENT, *program],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=running.path,
        env=running.env,
    )
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert out["server"] == ["oxydra", "2025-11-25"] and len(out["tools"]) == 11
    assert out["answer"] == out["text"] and "/shared" in out["answer"]
    assert out["told"] and out["wrong"] and out["unknown"] == INVALID_PARAMS
    assert out["resource"] == "text/markdown"
    reading = ("session_list", "session_read", "session_new", "memory_search")
    others = ("schedule_list", "schedule_runs", "ask_wait", "ask_cancel")
    assert not any(out[name] for name in (*reading, *others)), out
