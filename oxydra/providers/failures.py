"""What a provider's failures mean, as `ProviderError`s with a cause and a remedy. Pure.

Each names provider and model. What the server said is quoted short, without control characters; the
caller has taken reflected keys out of it. `code` tells what kind of failure it is:
`provider_auth`, `quota`, `rate_limited`, `model_not_found`, `context_overflow`, `bad_request`,
`timeout`, else `provider_unavailable`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from oxydra.errors import ProviderError, TransportError
from oxydra.providers.base import ProviderSettings, mapping
from oxydra.scrub import printable
from oxydra.transport import RETRYABLE

QUOTE_CHARS = 300
UNSENT = ("url", "credential", "resolve", "connect", "tls", "limit", "busy")  # kinds of errors

# Error types and codes of the known wires, where a failure inside a stream carries no HTTP status.
_STATUS_OF = {
    "authentication_error": 401,
    "invalid_api_key": 401,
    "permission_error": 403,
    "permission_denied": 403,
    "insufficient_quota": 429,
    "billing_error": 402,
    "not_found_error": 404,
    "model_not_found": 404,
    "context_length_exceeded": 400,
    "invalid_request_error": 400,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "resource_exhausted": 429,
    "api_error": 500,
    "server_error": 500,
    "internal_error": 500,
    "timeout_error": 504,
    "unavailable": 503,
    "overloaded_error": 529,
    "overloaded": 529,
}
_OVERFLOW = re.compile(
    r"context_length|context length|context window|maximum context|prompt is too long"
    r"|too many (input )?tokens|exceeds the available context",
    re.IGNORECASE,
)
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def from_response(
    settings: ProviderSettings, model: str, status: int, headers: Mapping[str, str], body: str
) -> ProviderError:
    """The error that an HTTP status other than 200 stands for; `body` is what came with it."""
    if login_page(headers, body):
        return web_page(settings, model, status)
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        parsed = body
    words, kinds = _said(parsed)
    return _build(settings, model, status, words, kinds, retry_after(headers))


def from_event(
    settings: ProviderSettings, model: str, error: Any, scrub: Callable[[str], str]
) -> ProviderError:
    """The error that an `error` object inside a stream stands for; `scrub` hides reflected keys."""
    words, kinds = _said({"error": error})
    words = scrub(words)
    status = 0
    for kind in kinds:
        number = int(kind) if kind.isdigit() else _STATUS_OF.get(kind, 0)
        if 400 <= number < 600:
            status = number
            break
    return _build(settings, model, status, words, kinds, None)


def from_transport(settings: ProviderSettings, model: str, error: TransportError) -> ProviderError:
    """The error for a request that got no whole answer."""
    remedy, code = error.remedy, ""
    if error.kind in ("connect", "resolve"):
        remedy = (
            f"Is the server running at {_address(settings)}? The address is base_url in "
            f"[providers.registry.{settings.name}]."
        )
    elif error.kind == "url":
        remedy = f"{error.remedy} It is base_url in [providers.registry.{settings.name}]."
    elif error.kind == "deadline":
        code = "timeout"
    elif error.kind == "credential":
        code = "provider_auth"
    elif error.kind in ("limit", "busy"):  # of our own broker
        code = "rate_limited"
    return ProviderError(
        f"{_who(settings, model)}: {error.message}",
        remedy=remedy,
        provider=settings.name,
        model=model,
        retryable=error.retryable,
        code=code,
        unsent=error.kind in UNSENT,
    )


def malformed(
    settings: ProviderSettings, model: str, what: str, *, retryable: bool = True
) -> ProviderError:
    """The answer did not follow its wire; `what` completes the sentence."""
    return ProviderError(
        f"{_who(settings, model)} {what}.",
        remedy="Try again; if it stays, check that base_url and provider_type belong together.",
        provider=settings.name,
        model=model,
        retryable=retryable,
    )


def login_page(headers: Mapping[str, str], body: str = "") -> bool:
    """Whether an answer is a web page, as proxies, portals and mistyped addresses give."""
    return "html" in headers.get("content-type", "") or body.lstrip()[:1] == "<"


def web_page(settings: ProviderSettings, model: str, status: int) -> ProviderError:
    return ProviderError(
        f"{_who(settings, model)} answered with a web page (HTTP {status}) instead of a model's "
        "answer.",
        remedy=f"Check base_url ({_address(settings)}), and whether a proxy or a network's login "
        "page stands before it.",
        provider=settings.name,
        model=model,
        status=status,
        retryable=status in RETRYABLE,
    )


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds that the server asks to wait: `Retry-After` (RFC 9110, 10.2.3; seconds or a date),
    `retry-after-ms`, or the reset time of a rate limit that is used up; None if it asks nothing.
    """
    text = headers.get("retry-after-ms", "")
    if _is_number(text):
        return float(text) / 1000
    text = headers.get("retry-after", "")
    if _is_number(text):
        return float(text)
    if text:
        try:
            at = parsedate_to_datetime(text)
        except ValueError:
            at = None
        if at is not None:
            at = at if at.tzinfo else at.replace(tzinfo=UTC)
            return max(0.0, (at - (now or datetime.now(UTC))).total_seconds())
    waits = [
        sum(float(number) * _SECONDS[unit] for number, unit in _SPAN.findall(reset))
        for limit in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{limit}") == "0"
        and _SPAN.match(reset := headers.get(f"x-ratelimit-reset-{limit}", ""))
    ]
    return max(waits, default=None)


def _build(
    settings: ProviderSettings,
    model: str,
    status: int,
    words: str,
    kinds: list[str],
    wait: float | None,
) -> ProviderError:
    retryable = status in RETRYABLE or status == 0
    code = ""
    if "insufficient_quota" in kinds or status == 402:
        code, retryable = "quota", False
        what = "has no credit or quota left for this key"
        remedy = "Top it up or choose another provider in [selection]."
    elif status == 401:
        code = "provider_auth"
        what, remedy = _key_trouble(settings)
    elif status == 403:
        code = "provider_auth"
        what = "does not allow this key to do that"
        remedy = "Check the key's rights, the account's region, and that it may use this model."
    elif status == 404:
        code = "model_not_found"
        what = "knows no such model, or has no API at this address"
        remedy = f"Check model in [selection], and base_url ({_address(settings)})."
    elif status in (400, 413, 422) and (
        status == 413 or _OVERFLOW.search(" ".join((*kinds, words)))
    ):
        code = "context_overflow"
        what = "says that the conversation is too long for the model"
        remedy = "Start a new session, or choose a model with a larger context."
    elif status == 429:
        code = "rate_limited"
        what = "limits the rate of requests"
        remedy = f"Try again in {wait:.0f} seconds." if wait else "Try again a little later."
    elif status == 0 or status >= 500 or status in RETRYABLE:
        what = "failed" if status else "broke off with an error"
        remedy = "That is a fault on its side: try again a little later."
    else:
        code = "bad_request"
        what = "rejected the request"
        remedy = "Check that the model and its settings fit together."
    shown = f" (HTTP {status})" if status else ""
    quoted = f": {words}" if words else ""
    return ProviderError(
        f"{_who(settings, model)} {what}{shown}{quoted}{'' if words.endswith('.') else '.'}",
        remedy=remedy,
        provider=settings.name,
        model=model,
        status=status,
        retryable=retryable,
        retry_after=wait,
        code=code,
    )


def _key_trouble(settings: ProviderSettings) -> tuple[str, str]:
    name = settings.credential or settings.name
    setting = f"`oxydra-runner key set {name}`"
    if not settings.credential:
        variable = f"Set {settings.key_source} or use" if settings.key_source else "Use"
        return "wants a key, and none is configured", f"{variable} {setting}, then restart."
    source = f" in {settings.key_source}" if settings.key_source else ""
    return "refused the key", f"Check the key{source}, or set a new one with {setting}."


def _who(settings: ProviderSettings, model: str) -> str:
    return f"{settings.name} ({model})" if model else settings.name


def _address(settings: ProviderSettings) -> str:
    """The provider's address as it may be shown: what else a URL carries may be a secret."""
    return re.sub(r"//[^/]*@", "//", settings.base_url.partition("?")[0])


def _said(parsed: Any) -> tuple[str, list[str]]:
    """The server's own words, and the words it has for the kind of error, in lower case."""
    if isinstance(parsed, list) and parsed:
        parsed = parsed[0]
    error = parsed
    if isinstance(parsed, dict):
        error = next(
            (parsed[key] for key in ("error", "errors", "detail") if parsed.get(key)), parsed
        )
    if isinstance(error, list) and error:
        error = error[0]
    fields = mapping(error)
    words = next(
        (fields[key] for key in ("message", "msg", "detail") if isinstance(fields.get(key), str)),
        error if isinstance(error, str) else "",
    )
    kinds = [str(fields[key]).lower() for key in ("code", "type", "status") if fields.get(key)]
    words = " ".join(printable(words).split())
    return (f"{words[:QUOTE_CHARS]}…" if len(words) > QUOTE_CHARS else words), kinds


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\d{1,9}(\.\d+)?", text) is not None
