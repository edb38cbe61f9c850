"""Searching text by a regular expression that a model wrote. Runs in a tool worker only.

The pattern may take for ever or all memory; the child is killed then.
"""

from __future__ import annotations

import re
from typing import Any


def regex_search(arguments: dict[str, Any], data: bytes) -> dict[str, Any]:
    """The lines of a text in which `pattern` is found: `hits` of [number, text], at most `limit`.

    `line_chars` of a long line are shown, around the match. `ignore_case` is as its name says.
    """
    try:
        pattern = re.compile(arguments["pattern"], re.IGNORECASE if arguments["ignore_case"] else 0)
    except (re.error, OverflowError, RecursionError) as error:
        return {"refused": f"The pattern is no valid regular expression of Python: {error}."}
    width, limit = arguments["line_chars"], arguments["limit"]
    hits: list[tuple[int, str]] = []
    for number, line in enumerate(data.decode("utf-8", "replace").split("\n"), start=1):
        found = pattern.search(line.removesuffix("\r"))
        if found is None:
            continue
        start = max(0, found.start() - width // 2) if len(line) > width else 0
        hits.append((number, line[start : start + width].strip()))
        if len(hits) >= limit:
            break
    return {"hits": hits}
