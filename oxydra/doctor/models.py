"""Models: which answers, whether its key is there, whether its server is reached, and, where a
model may be called, whether it answers. The clock is compared with a server's. No thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from shlex import join

from oxydra import config
from oxydra.config import Credential, Selection
from oxydra.config.schema import VARIABLES
from oxydra.doctor.base import Case, Finding, Level
from oxydra.doctor.machine import SET_CLOCK
from oxydra.errors import OxydraError, ProviderError, TransportError
from oxydra.providers import registry
from oxydra.threads import CancelToken, Deadline
from oxydra.transport import DirectTransport, HttpRequest
from oxydra.types import Completed, Message, ModelRequest

ANSWER_SECONDS = 10.0
CANARY_SECONDS = 60.0
CLOCK_SECONDS = 120.0  # by which a clock may be off
SHOWN = 4  # characters of a key
HIDDEN = 16  # others that it has to have, at least


def model(case: Case) -> Iterator[Finding]:
    """Who answers, and who stands in for it; raises what else would keep a daemon from starting."""
    chain = chosen(case)
    first = chain[0]
    detail = f"{first.provider}/{first.model}. {first.reason}"
    if first.provider == "offline":
        variable = VARIABLES["openai"]
        yield Finding("model", "degraded", detail, case.with_key(variable))
    else:
        others = [f"then {each.provider}/{each.model}" for each in chain[1:]]
        yield Finding("model", "healthy", ", ".join([detail, *others]))
    names = ", ".join(sorted({route.origin for route in case.runner.routes}))
    yield Finding("services", "healthy", names or "none is asked")


def keys(case: Case) -> Iterator[Finding]:
    """Where each key was found, with its last characters."""
    settings = case.settings
    names = [route.name for route in case.runner.routes]
    entries = settings.agent.providers.registry
    found = [config.resolve_credential(n, entries[n], settings) for n in names if n in entries]
    found += [config.search_key(settings), config.telegram_token(settings)]
    for credential in {each.provider: each for each in found if each is not None}.values():
        detail = f"{credential.provider}: {masked(credential)}, from {credential.source}"
        yield Finding("key", "healthy", detail)


def masked(credential: Credential) -> str:
    """Enough of a key to tell it from another one."""
    value = credential.value
    return f"…{value[-SHOWN:]}" if len(value) >= SHOWN + HIDDEN else "…"


def reach(case: Case) -> Iterator[Finding]:
    """Each server that requests go to, asked for its front page without a key; and its clock."""
    origins = dict.fromkeys(route.origin for route in case.runner.routes)
    for origin in origins:
        request = HttpRequest("GET", f"{origin}/", deadline=Deadline.after(ANSWER_SECONDS))
        with closing(DirectTransport()) as transport:
            try:
                with transport.open(request, CancelToken()) as answer:
                    date = answer.headers.get("date", "")
            except TransportError as error:
                if error.kind != "redirect":  # that is an answer
                    command = join(["curl", "-sS", "-o", "/dev/null", f"{origin}/"])
                    yield Finding("reach", "degraded", f"{origin}: {error}", command)
                    continue
                date = ""
        yield Finding("reach", "healthy", f"{origin} answers")
        yield from clock(date, origin)


def clock(date: str, origin: str) -> Iterator[Finding]:
    """This machine's clock against a server's `Date` header."""
    try:
        off = (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds()
    except (ValueError, TypeError):
        return
    if abs(off) > CLOCK_SECONDS:
        how = "ahead of" if off > 0 else "behind"
        detail = f"The clock is {abs(off):,.0f} s {how} that of {origin}: schedules run at the"
        detail += " wrong time, and certificates may count as expired."
        yield Finding("clock", "degraded", detail, SET_CLOCK)
    else:
        yield Finding("clock", "healthy", f"{off:+.0f} s against {origin}")


def canary(case: Case) -> Iterator[Finding]:
    """A call of each model for one token, where that was asked for."""
    chain = [each for each in chosen(case) if each.provider != "offline"]
    if not case.canary:
        if chain:
            yield Finding("canary", "healthy", "no model was called: --canary calls each")
        return
    for number, selection in enumerate(chain):
        name = f"{selection.provider}/{selection.model}"
        try:
            end = call(case, selection)
        except OxydraError as error:
            level: Level = "degraded" if number else "down"
            yield Finding("canary", level, f"{name}: {error}", _after(case, selection, error))
        else:
            used = f"{end.usage.prompt_tokens} tokens in, {end.usage.completion_tokens} out"
            yield Finding("canary", "healthy", f"{name} answers: {used}")


def call(case: Case, selection: Selection) -> Completed:
    """Have a model say one token. Raises `OxydraError`."""
    name = selection.provider
    entry = case.settings.agent.providers.registry[name]
    key = selection.credential.value if selection.credential is not None else ""
    settings = registry.settings(name, entry, credential=name if key else "")
    sent = {name: registry.credential(settings, key)} if key else {}
    request = ModelRequest(
        model=replace(selection.spec, max_output_tokens=1),
        messages=[Message(role="user", content="Hi")],
        deadline=Deadline.after(CANARY_SECONDS),
    )
    with closing(DirectTransport(sent)) as transport:
        provider = registry.create(settings, transport)
        for event in provider.stream(request, CancelToken()):
            if isinstance(event, Completed):
                return event
    raise OxydraError("The stream ended before the answer did.")


def _after(case: Case, selection: Selection, error: OxydraError) -> str:
    """What is to be done after a call that failed."""
    status = error.status if isinstance(error, ProviderError) else 0
    if status in (401, 403):
        entry = case.settings.agent.providers.registry[selection.provider]
        return case.with_key(entry.api_key_env or VARIABLES[entry.provider_type])
    source = case.settings.source("selection.model")
    if status in (400, 404) and source.line:
        return f"${{EDITOR:-vi}} +{source.line} {join([source.file])}"
    return case.command("doctor", "--canary")


def chosen(case: Case) -> list[Selection]:
    """The model that answers, and those that stand in for it. Raises `ConfigError`."""
    settings, catalog = case.settings, case.catalog
    others = settings.agent.selection.fallback
    return [
        config.select(settings, catalog),
        *(config.select(settings, catalog, wanted=other) for other in others),
    ]
