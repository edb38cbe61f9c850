"""`make bench-memory DATA=<file>`: how much of what answers a question memory finds.

The file has conversations in the shape of LoCoMo: a list of `{"sample_id", "qa", "conversation"}`.
Each conversation is one user's: its sessions are stored turn by turn, and each question of the
categories 1 to 4 is searched. Recall at k is the share of a question's evidence that is among the
first k messages found, as a mean over questions.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from oxydra import embed
from oxydra.memory import Retrieval
from oxydra.store import Store
from oxydra.types import TurnState

CATEGORIES = (1, 2, 3, 4)
CUTS = (5, 10)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.memory", description=__doc__)
    parser.add_argument("data", type=Path)
    options = parser.parse_args()
    scores: list[list[float]] = []
    for sample in json.loads(options.data.read_text("utf-8")):
        with tempfile.TemporaryDirectory() as folder:
            store = Store(Path(folder) / "oxydra.db")
            try:
                own = measure(store, sample)
            finally:
                store.close()
        print(f"{sample['sample_id']}: {len(own)} questions, {line(own)}", flush=True)
        scores += own
    print(line(scores))


def measure(store: Store, sample: dict[str, Any]) -> list[list[float]]:
    """The recall of each question of one conversation, at each of `CUTS`."""
    place = keep(store, sample["conversation"])
    memory = Retrieval(store, embed.create("auto"))
    found = []
    for question in sample["qa"]:
        named = re.findall(r"D\d+:\d+", " ".join(question.get("evidence", ())))
        wanted = {place[name] for name in named if name in place}
        if question["category"] not in CATEGORIES or not wanted:
            continue
        hits = memory.search(question["question"], max(CUTS))
        got = [(hit.chunk.session_id, hit.chunk.sequence) for hit in hits]
        found.append([len(wanted & set(got[:cut])) / len(wanted) for cut in CUTS])
    return found


def keep(store: Store, conversation: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """Store a conversation; returns where each of its turns went."""
    place = {}
    number = 1
    while f"session_{number}_date_time" in conversation:
        date = conversation[f"session_{number}_date_time"]
        session = store.create_session(display_name=f"session {number}, {date}")
        for said in conversation.get(f"session_{number}", ()):
            text = f"{said['speaker']}: {said['text']}"
            if caption := said.get("blip_caption"):
                text += f" [shares a picture: {caption}]"
            turn_id = said["dia_id"]
            turn, _ = store.accept_turn(session.session_id, turn_id, turn_id, text)
            event = store.start_turn(turn)
            store.finish_turn(turn, TurnState.COMPLETED, {"type": "turn_completed", "payload": {}})
            place[turn_id] = (session.session_id, event.sequence)
        number += 1
    return place


def line(scores: list[list[float]]) -> str:
    means = [sum(column) / len(scores) for column in zip(*scores, strict=True)]
    return " ".join(f"recall@{cut} {mean:.3f}" for cut, mean in zip(CUTS, means, strict=True))


if __name__ == "__main__":
    main()
