"""Programs that were written for OpenAI talk to the agent, unmodified: its Python SDK, the `llm`
command, and Gradio's chat page. Each is installed in an environment of its own, in a version that
is known; skipped where it can't be installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.scripted import Scripted
from tests.test_gateway import TOKEN, Running
from tests.test_openai_api import PNG

pytestmark = pytest.mark.slow

SDK = "openai==3.57.0"


@pytest.fixture
def installed(tmp_path_factory, real_environment):
    """A function that installs packages into a fresh environment and returns its `bin`."""

    def install(*packages):
        folder = tmp_path_factory.mktemp("client")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        done = subprocess.run(
            [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", *packages],
            capture_output=True,
            text=True,
            timeout=900,
            env=real_environment,
        )
        if done.returncode:
            pytest.skip(f"{' '.join(packages)} can't be installed: {done.stderr.strip()[-300:]}")
        return folder / "bin"

    return install


@pytest.fixture
def gateway(tmp_path):
    running = Running(tmp_path / "oxydra.db", Scripted(), openai_api=True)
    yield running
    running.stop()


def run(program, *arguments, gateway, home, code="", **environment):
    """What a program prints; it must succeed."""
    done = subprocess.run(
        [str(program), *arguments],
        input=code,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=home,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "OPENAI_BASE_URL": f"http://127.0.0.1:{gateway.port}/v1",
            "OPENAI_API_KEY": TOKEN,
            **environment,
        },
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


SDK_CODE = """
import json, openai
client = openai.OpenAI(max_retries=0)
out = {"models": [model.id for model in client.models.list()]}
ask = client.chat.completions.create
def say(text, **more):
    return ask(model="oxydra", messages=[{"role": "user", "content": text}], **more)
whole = say("whole", user="ann")
out["whole"] = whole.choices[0].message.content
out["tokens"] = whole.usage.total_tokens
chunks = list(say("streamed", user="ann", stream=True, stream_options={"include_usage": True}))
out["streamed"] = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
out["finish"] = [c.choices[0].finish_reason for c in chunks if c.choices][-1]
out["streamed_tokens"] = chunks[-1].usage.total_tokens
parts = [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "URL"}}]
ask(model="oxydra", messages=[{"role": "user", "content": parts}])
with client.chat.completions.with_streaming_response.create(
    model="oxydra", messages=[{"role": "user", "content": "raw"}]
) as response:
    out["raw"] = response.parse().choices[0].message.content
for name, wrong in {
    "model": lambda: ask(model="gpt-9", messages=[{"role": "user", "content": "x"}]),
    "tools": lambda: say("x", tools=[{"type": "function", "function": {"name": "f"}}]),
    "key": lambda: client.with_options(api_key="wrong").models.list(),
    "failed": lambda: say("fails"),
    "broken": lambda: list(say("fails", stream=True)),
}.items():
    try:
        wrong()
    except openai.APIError as error:
        out[name] = [type(error).__name__, error.code]
print(json.dumps(out))
"""


def test_the_python_sdk(installed, gateway, tmp_path):
    from oxydra.errors import ProviderError

    def fail(_request, _token):
        raise ProviderError("The model is down.", code="provider_unavailable")

    gateway.provider.steps = [["wh", "ole"], ["stre", "amed"], "seen", "raw", fail, fail]
    python = installed(SDK) / "python"
    code = SDK_CODE.replace("URL", f"data:image/png;base64,{PNG}")
    out = json.loads(run(python, "-", gateway=gateway, home=tmp_path, code=code))
    assert out == {
        "models": ["oxydra"],
        "whole": "whole",
        "tokens": 15,
        "streamed": "streamed",
        "finish": "stop",
        "streamed_tokens": 15,
        "raw": "raw",
        "model": ["NotFoundError", "model_not_found"],
        "tools": ["BadRequestError", "unsupported_parameter"],
        "key": ["AuthenticationError", None],
        "failed": ["InternalServerError", "provider_unavailable"],
        "broken": ["InternalServerError", "provider_unavailable"],
    }
    assert gateway.provider.requests[2].messages[-1].attachments[0].mime_type == "image/png"
    assert [m.content for m in gateway.provider.requests[1].messages][1:] == [
        "whole",
        "whole",
        "streamed",
    ]


def test_the_llm_command(installed, gateway, tmp_path):
    gateway.provider.steps = [["from ", "llm"], "and again", "at once"]
    folder = tmp_path / "llm"
    folder.mkdir()
    (folder / "extra-openai-models.yaml").write_text(
        "- model_id: oxydra\n  model_name: oxydra\n  api_key_name: oxydra\n"
        f'  api_base: "http://127.0.0.1:{gateway.port}/v1"\n'
    )
    (folder / "keys.json").write_text(json.dumps({"oxydra": TOKEN}))
    llm = installed("llm==0.36") / "llm"

    def say(*words):
        return run(llm, *words, gateway=gateway, home=tmp_path, LLM_USER_PATH=str(folder))

    assert "oxydra" in say("models")
    assert say("-m", "oxydra", "-s", "Be brief.", "hello").strip() == "from llm"
    assert say("-c", "and now?").strip() == "and again"
    assert say("-m", "oxydra", "--no-stream", "hello").strip() == "at once"
    prompt = gateway.provider.requests[1].messages[-1].content
    assert "> assistant: from llm" in prompt and prompt.endswith("and now?")


# What its own client says of a conversation so far is refused by this version of the page itself.
PAGE = """
import gradio
base_url = "http://127.0.0.1:PORT/v1/"
page = gradio.load_chat(
    base_url, model="oxydra", token="TOKEN", file_types=None, api_name="chat"
)
_app, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
from gradio_client import Client
for text in ("hello", "and now?"):  # two visitors
    client = Client(url, verbose=False)
    print("said:", client.predict(text, api_name="/chat"))
page.close()
"""


def test_a_chat_page(installed, gateway, tmp_path):
    """Gradio's `load_chat`, a web page before any server of OpenAI's kind."""
    gateway.provider.steps = [["from ", "the page"], "and again"]
    python = installed("gradio==6.31.0", SDK) / "python"
    code = PAGE.replace("PORT", str(gateway.port)).replace("TOKEN", TOKEN)
    said = run(
        python,
        "-",
        gateway=gateway,
        home=tmp_path,
        code=code,
        GRADIO_ANALYTICS_ENABLED="False",
        HF_HUB_OFFLINE="1",
        NO_PROXY="127.0.0.1",
    )
    assert [line for line in said.splitlines() if line.startswith("said:")] == [
        "said: from the page",
        "said: and again",
    ]
    asked = [request.messages[-1].content for request in gateway.provider.requests]
    assert asked == ["hello", "and now?"]
