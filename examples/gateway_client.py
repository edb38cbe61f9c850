#!/usr/bin/env python3
"""A client of a running daemon in 40 lines: one question over the WebSocket, the answer streamed.

    gateway_client.py WORKSPACE USER QUESTION      as in: .oxydra/workspaces/alice alice "Hello!"

docs/protocol.md explains every frame. `websocket-client` is the only package it needs.
"""

import json
import sys
import uuid
from pathlib import Path

import websocket

workspace, user, question = sys.argv[1:]
endpoint, token = (
    Path(workspace, "ipc", name).read_text().strip()
    for name in ("gateway-endpoint", "gateway-token")
)
gateway = websocket.create_connection(
    endpoint, header=[f"Authorization: Bearer {token}"], suppress_origin=True
)


def send(kind, **payload):
    payload = {"request_id": uuid.uuid4().hex, **payload}
    gateway.send(json.dumps({"type": kind, "payload": payload}))


send("hello", protocol_version=2, user_id=user, create_new_session=True)
greeting = json.loads(gateway.recv())["payload"]
session_id = greeting["session"]["session_id"]
send("send_turn", session_id=session_id, turn_id=uuid.uuid4().hex, prompt=question)
while True:
    frame = json.loads(gateway.recv())
    if frame["type"] == "assistant_delta":
        print(frame["payload"]["delta"], end="", flush=True)
    elif frame["type"] in ("turn_completed", "turn_cancelled", "error"):
        print(frame["payload"].get("message", ""))
        break
gateway.close()
