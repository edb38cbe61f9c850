"""Our client as the conformance suite starts it: with the server's address as its last argument."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from oxydra.mcp.client import Client
from oxydra.mcp.http import HttpLink
from oxydra.threads import CancelToken, Deadline
from oxydra.transport import DirectTransport


def main() -> None:
    transport, token, deadline = DirectTransport(), CancelToken(), Deadline.after(120)
    client = Client(print)
    link = HttpLink("conformance", sys.argv[-1], transport, client.peer, headers={})
    client.peer.link = link
    client.open(token, deadline)
    link.version = client.version
    client.opened(deadline)
    for tool in client.tools(token, deadline):
        arguments = {"a": 2, "b": 3} if tool["name"] == "add_numbers" else {}
        print(client.call(tool["name"], arguments, token, deadline))
    link.close()
    transport.close()


if __name__ == "__main__":
    main()
