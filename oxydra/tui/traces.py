"""What `oxydra-runner trace` and `/trace` say, from the data of the command `trace`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from oxydra.scrub import printable
from oxydra.types import Json


def trace_lines(data: Mapping[str, Any]) -> list[str]:
    """The turn in a line, then a line for each step with its seconds since the turn was accepted;
    below that the turns that worked for it.
    """
    try:
        lines = _lines(data, "")
    except (KeyError, TypeError, ValueError):
        return ["This daemon's answer is no trace: it may be of another version."]
    return [printable(line).replace("\n", " ") for line in lines]


def _lines(data: Mapping[str, Any], indent: str) -> list[str]:
    took = data.get("seconds")
    parts = [str(data.get("state")) + ("" if took is None else f" in {_seconds(took)}")]
    parts += [_count(data.get("model_calls"), "model call"), _count(data.get("tool_calls"), "tool")]
    parts.append(f"{data.get('prompt_tokens', 0):,} tokens in")
    parts.append(f"{data.get('completion_tokens', 0):,} out")
    parts.append(_usd(data.get("cost_usd")))
    name = f"{indent}turn {data.get('turn_id')} of session {data.get('session_id')}"
    lines = [f"{name} ({data.get('agent')})", f"{indent}{', '.join(parts)}"]
    begin = datetime.fromisoformat(str(data["accepted_at"]))
    lines.append(f"{indent}{data['accepted_at']}")
    for step in data.get("steps") or ():
        since = (datetime.fromisoformat(step["at"]) - begin).total_seconds()
        lines.append(f"{indent}{max(0.0, since):>+10.3f}  {_said(step)}")
    if data.get("interrupted"):
        lines.append(f"{indent}{'':10}  interrupted: it goes on with the next start of the daemon")
    for child in data.get("children") or ():
        lines += ["", *_lines(child, indent + "    ")]
    return lines


def _said(step: Json) -> str:
    match step["kind"]:
        case "model" | "summary":
            return _model(step)
        case "tool":
            return f"{step['tool']}: {_tool(step)}"
        case "approval":
            return f"approval of {step['tool']}: {_approval(step)}"
        case "started" if step.get("waited") is not None:
            return f"started, after {_seconds(step['waited'])} in the queue"
        case "pause" if step.get("seconds") is not None:
            return f"waited {_seconds(step['seconds'])} before the next try"
        case "resumed":
            return "resumed after a restart"
        case "joined":
            return f"a message joined it ({step.get('turn_id')})"
        case kind:
            return f"{kind}: {step['code']}" if step.get("code") else str(kind)


def _model(step: Json) -> str:
    said = f"{step['provider']}/{step['model']}"
    said += " (summary)" if step["kind"] == "summary" else ""
    said += "" if step["purpose"] in ("turn", "summary") else f" ({step['purpose']})"
    if step["outcome"] != "answered":
        said += f": {step['outcome']}"
    parts = []
    if step["seconds"] is not None:
        parts.append(_seconds(step["seconds"]))
    if step["first_seconds"] is not None:
        parts.append(f"first word after {_seconds(step['first_seconds'])}")
    if step["prompt_tokens"]:
        cached = f" ({step['cached_tokens']:,} cached)" if step["cached_tokens"] else ""
        parts.append(f"{step['prompt_tokens']:,} tokens in{cached}")
        thought = f" ({step['reasoning_tokens']:,} thinking)" if step["reasoning_tokens"] else ""
        parts.append(f"{step['completion_tokens']:,} out{thought}")
    parts.append(_usd(step["cost_usd"]) + (", estimated" if step["guessed"] else ""))
    return f"{said}  {', '.join(parts)}"


def _tool(step: Json) -> str:
    said = str(step["outcome"])
    if step["seconds"] is not None:
        said += f" in {_seconds(step['seconds'])}"
    if step["waited"]:
        said += f", {_seconds(step['waited'])} after the model asked"
    return said


def _approval(step: Json) -> str:
    said = str(step["outcome"])
    said += " for the session" if step.get("scope") == "session" else ""
    said += f" by {step['decided_by']}" if step.get("decided_by") else ""
    return said + (f" after {_seconds(step['seconds'])}" if step["seconds"] is not None else "")


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 100 else f"{value:.2f} s"


def _usd(value: Any) -> str:
    return "price not known" if value is None else f"${value:.4f}"


def _count(number: Any, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
