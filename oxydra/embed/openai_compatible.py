"""`openai_compatible`: vectors of any server that speaks OpenAI's `POST /v1/embeddings`.

Texts go out in batches, each priced before it is sent and settled by what the server reports; what
may pass is repeated after a growing pause. The vectors of texts are kept by whoever asks, those of
the latest questions here. No thread of its own: a request blocks its caller until its token is
cancelled or its deadline has passed.
"""

from __future__ import annotations

import json
import math
import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from oxydra.embed.base import packed
from oxydra.errors import ProviderError, TransportError
from oxydra.scrub import printable
from oxydra.threads import CancelToken, Deadline
from oxydra.transport import RETRYABLE, HttpRequest, Transport
from oxydra.types import Completed, Message, Meter, ModelRequest, ModelSpec, Usage

BATCH = 64  # texts of one request
MOST_CHARS = 8000  # of a text
QUESTIONS = 64  # whose vectors are kept
ATTEMPTS = 4
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between attempts
BATCH_SECONDS, QUESTION_SECONDS = 120.0, 10.0


@dataclass(frozen=True, slots=True)
class Service:
    """Where vectors are made, and who pays. `model.price_input` is what a million tokens cost;
    `credential` names the key; `meter` gives one for each request.
    """

    url: str
    model: ModelSpec
    dimensions: int
    transport: Transport
    meter: Callable[[], Meter]
    credential: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    first_pause: float = FIRST_PAUSE


class OpenAICompatible:
    """See the `Embedder` Protocol."""

    trust = 1.0
    metered = True
    ready = False  # it is another machine, and may be away

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._questions: OrderedDict[str, bytes] = OrderedDict()
        spec = service.model
        self.model = f"{spec.provider}/{spec.id}-{service.dimensions}"
        self.dimensions = self.scanned = service.dimensions

    def embed(self, texts: Sequence[str], token: CancelToken | None = None) -> list[bytes]:
        token = token or CancelToken()
        found: list[bytes] = []
        for start in range(0, len(texts), BATCH):
            found += self._patiently(texts[start : start + BATCH], token)
        return found

    def query(
        self, text: str, words: Sequence[tuple[str, float]], token: CancelToken | None = None
    ) -> bytes:
        text = text[:MOST_CHARS]
        with self._lock:
            if text in self._questions:
                self._questions.move_to_end(text)
                return self._questions[text]
        [vector] = self._ask([text], token or CancelToken(), QUESTION_SECONDS)
        with self._lock:
            self._questions[text] = vector
            while len(self._questions) > QUESTIONS:
                self._questions.popitem(last=False)
        return vector

    def _patiently(self, texts: Sequence[str], token: CancelToken) -> list[bytes]:
        pause = self._service.first_pause
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._ask(texts, token, BATCH_SECONDS)
            except ProviderError as error:
                rest = error.retry_after or 0.0
                if not error.retryable or attempt == ATTEMPTS or rest > LONGEST_PAUSE:
                    raise
                token.wait(max(rest, pause * random.uniform(0.5, 1.0)))
                token.check()
                pause = min(2 * pause, LONGEST_PAUSE)
        raise AssertionError("unreachable")

    def _ask(self, texts: Sequence[str], token: CancelToken, seconds: float) -> list[bytes]:
        """One request, reserved before and settled after."""
        service, deadline = self._service, Deadline.after(seconds)
        texts = [text[:MOST_CHARS] or " " for text in texts]
        messages = [Message("user", text) for text in texts]
        bill = service.meter().open(ModelRequest(service.model, messages, deadline=deadline))
        try:
            answer = self._post(texts, token, deadline)
            vectors = self._vectors(answer, len(texts))
        except BaseException as error:
            bill.broken(error, 0, began=False)
            raise
        usage = answer.get("usage")
        tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else 0
        prompt = tokens if isinstance(tokens, int) and tokens > 0 else 0
        bill.settle(Completed(Message("assistant"), "stop", Usage(prompt, 0)))
        return vectors

    def _post(self, texts: Sequence[str], token: CancelToken, deadline: Deadline) -> dict[str, Any]:
        service = self._service
        body = {"model": service.model.id, "input": list(texts), "encoding_format": "float"}
        request = HttpRequest(
            "POST",
            service.url,
            {"content-type": "application/json", **service.headers},
            json.dumps(body).encode(),
            credential=service.credential,
            deadline=deadline,
        )
        try:
            with service.transport.open(request, token) as stream:
                if stream.status != 200:
                    raise self._refused(stream.status, stream.headers, stream.text())
                parsed = json.loads(stream.read())
        except TransportError as error:
            unsent = error.kind in ("url", "credential", "resolve", "connect", "tls")
            raise self._error(
                error.message, remedy=error.remedy, retryable=error.retryable, unsent=unsent
            ) from None
        except (ValueError, RecursionError):
            raise self._error("its answer is no JSON", retryable=True) from None
        return parsed if isinstance(parsed, dict) else {}

    def _vectors(self, answer: Mapping[str, Any], wanted: int) -> list[bytes]:
        found: dict[int, bytes] = {}
        rows = answer.get("data")
        for place, row in enumerate(rows if isinstance(rows, list) else ()):
            numbers = row.get("embedding") if isinstance(row, dict) else None
            if not isinstance(numbers, list) or not all(
                isinstance(number, int | float) and math.isfinite(number) for number in numbers
            ):
                break
            if len(numbers) != self.dimensions:
                raise self._error(
                    f"it gives vectors of {len(numbers)} numbers, not {self.dimensions}",
                    remedy=f"Set memory.embedding_dimensions = {len(numbers)}.",
                )
            index = row.get("index", place)
            found[index if isinstance(index, int) else place] = packed(numbers)
        if sorted(found) != list(range(wanted)):
            raise self._error("its answer has not a vector for each text", retryable=True)
        return [found[place] for place in range(wanted)]

    def _refused(self, status: int, headers: Mapping[str, str], body: str) -> ProviderError:
        rest = headers.get("retry-after", "")
        codes = {401: "provider_auth", 403: "provider_auth", 404: "model_not_found"}
        remedies = {
            401: "Its key is refused: `oxydra-runner key set`, or credential_refs.",
            403: "Its key is refused: `oxydra-runner key set`, or credential_refs.",
            404: "Is memory.embedding_model right, and has the server /v1/embeddings?",
        }
        return self._error(
            f"status {status}: {printable(body[:200])}",
            remedy=remedies.get(status, ""),
            status=status,
            code=codes.get(status, ""),
            retryable=status in RETRYABLE,
            retry_after=float(rest) if rest.isdigit() else None,
        )

    def _error(self, why: str, **rest: Any) -> ProviderError:
        spec = self._service.model
        return ProviderError(
            f"No vectors from {spec.provider} ({spec.id}): {why}.",
            provider=spec.provider,
            model=spec.id,
            **rest,
        )
