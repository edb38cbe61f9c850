"""The floor: the least that Python with requests and an SSE parser needs for the same work.

A loop that posts a growing list of messages and reads the answer; no daemon, no history on disk, no
policy, no client. It runs in a process of its own and prints one JSON object, which `measures`
reads: `python -m tests.bench.floor BASE_URL OPTIONS`, the options being those of `main` as JSON.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import requests
import sseclient

IMPORTED_CPU = time.process_time()  # before anything of the benchmark is imported

from tests.bench import proc  # noqa: E402

STAMP = re.compile(r"\[(\d+)\]")
LISTING = "\n".join(f"notes-{number}.md" for number in range(10))


def body_of(response: requests.Response) -> Iterator[bytes]:
    while data := response.raw.read1(65536):
        yield data


class Loop:
    """One conversation."""

    def __init__(self, base_url: str) -> None:
        self.url = f"{base_url}/v1/chat/completions"
        self.http = requests.Session()
        self.messages: list[dict[str, Any]] = []
        self.lags: list[float] = []

    def turn(self, prompt: str) -> int:
        """Until there is an answer; returns when the turn began, CLOCK_MONOTONIC nanoseconds."""
        began = time.monotonic_ns()
        self.messages.append({"role": "user", "content": prompt})
        while True:
            message = self.ask()
            self.messages.append(message)
            if "tool_calls" not in message:
                return began
            call = message["tool_calls"][0]
            self.messages.append({"role": "tool", "tool_call_id": call["id"], "content": LISTING})

    def ask(self) -> dict[str, Any]:
        body = {"model": "load-1", "stream": True, "messages": self.messages}
        text: list[str] = []
        call: dict[str, Any] = {}
        with self.http.post(self.url, json=body, stream=True) as response:
            for event in sseclient.SSEClient(body_of(response)).events():
                if event.data == "[DONE]":
                    break
                for choice in json.loads(event.data)["choices"]:
                    delta = choice["delta"]
                    if delta.get("content"):
                        text.append(delta["content"])
                        self.measure(delta["content"])
                    for part in delta.get("tool_calls", ()):
                        if not call:
                            call = part
                        else:
                            call["function"]["arguments"] += part["function"]["arguments"]
        message: dict[str, Any] = {"role": "assistant", "content": "".join(text)}
        return message | {"tool_calls": [call]} if call else message

    def measure(self, text: str) -> None:
        found = STAMP.match(text)
        if found:
            self.lags.append(time.monotonic_ns() / 1e6 - int(found.group(1)) / 1000)


def cpu_of(work: Any, *arguments: Any) -> float:
    """CPU milliseconds of this process for one call."""
    began = time.process_time()
    work(*arguments)
    return (time.process_time() - began) * 1000


def crowd(base_url: str, prompt: str, people: int) -> tuple[float, list[float]]:
    """Everyone on a thread of their own: seconds, and the lags in milliseconds."""
    loops = [Loop(base_url) for _ in range(people)]
    threads = [threading.Thread(target=loop.turn, args=(prompt,)) for loop in loops]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - began, [lag for loop in loops for lag in loop.lags]


def main(base_url: str, prompts: dict[str, str], turns: int, people: int) -> dict[str, Any]:
    """What was measured; `prompts` are those of `measures`, with TAG where a request is named."""
    rss = proc.rss_mb(os.getpid())
    loop = Loop(base_url)
    loop.turn("[[load n=1]]")  # the connection is there, as in a daemon that has run before
    began = [0] * turns

    def many() -> None:
        for number in range(turns):
            began[number] = loop.turn(prompts["turn"].replace("TAG", f"floor-{number}"))

    turn_cpu = cpu_of(many) / turns
    chain_cpu = cpu_of(Loop(base_url).turn, prompts["chain"].replace("TAG", "floor-chain"))
    long_cpu = cpu_of(Loop(base_url).turn, prompts["long"])
    burst_cpu = cpu_of(Loop(base_url).turn, prompts["burst"])
    paced_cpu = cpu_of(Loop(base_url).turn, prompts["paced"])
    crowd_cpu = time.process_time()
    seconds, lags = crowd(base_url, prompts["crowd"], people)
    return {
        "import_cpu_ms": IMPORTED_CPU * 1000,
        "rss_mb": rss,
        "began_ns": began,
        "turn_cpu_ms": turn_cpu,
        "chain_cpu_ms": chain_cpu,
        "long_cpu_ms": long_cpu,
        "burst_cpu_ms": burst_cpu,
        "paced_cpu_ms": paced_cpu,
        "crowd_s": seconds,
        "crowd_lag_p50_ms": proc.percentile(lags, 0.5),
        "crowd_lag_p99_ms": proc.percentile(lags, 0.99),
        "crowd_cpu_ms": (time.process_time() - crowd_cpu) * 1000,
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], **json.loads(sys.argv[2]))))
