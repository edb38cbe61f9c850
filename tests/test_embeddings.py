"""Vectors by HTTP: batches, repeats, what is paid, and the way through the broker."""

from __future__ import annotations

import json
import threading
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from oxydra import embed
from oxydra.budget import Account, Caps
from oxydra.embed import Service, unpacked
from oxydra.embed.openai_compatible import ATTEMPTS, BATCH, OpenAICompatible
from oxydra.errors import BudgetError, Cancelled, ConfigError, ProviderError
from oxydra.memory import Retrieval
from oxydra.providers import registry
from oxydra.providers.base import ProviderSettings
from oxydra.runtime import Spending
from oxydra.threads import CancelToken
from oxydra.transport import Credential, DirectTransport
from oxydra.types import ModelSpec
from tests.test_daemon import home  # noqa: F401
from tests.test_memory import say, texts

DIMENSIONS = 4
POOR, RICH = Decimal("0.000000001"), Decimal(1)
KEY = "sk-secret-0123456789"


class FakeEmbeddings(ThreadingHTTPServer):
    """Says how long a text is, and whether a fox is in it; or what is in `answers`, first."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.asked, self.answers, self.headers = [], [], []
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.thread.join()
        self.server_close()


class Answer(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server = self.server
        server.asked.append((self.path, body))
        server.headers.append(dict(self.headers))
        rows = [
            {"index": n, "embedding": [1.0, "fox" in text.lower(), len(text) / 1000, 0]}
            for n, text in enumerate(body.get("input", ()))
        ]
        told = {"data": rows[::-1], "usage": {"prompt_tokens": 7 * len(rows)}}
        status, told, headers = server.answers.pop(0) if server.answers else (200, told, {})
        data = told if isinstance(told, bytes) else json.dumps(told).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def fake():
    with FakeEmbeddings() as fake:
        yield fake


def backend(fake, store, caps=None, price="0.02", **rest):
    settings = ProviderSettings("mine", "openai", fake.url)
    routes = [registry.embeddings_route(settings, KEY)]
    spending = Spending(store, caps)
    amount = None if price is None else Decimal(price)
    spec = ModelSpec(
        "mine", "m", 1 << 20, 1, price_input=amount, price_output=amount and Decimal(0)
    )
    service = Service(
        registry.embeddings_url(settings),
        spec,
        rest.pop("dimensions", DIMENSIONS),
        DirectTransport({r.name: r.credential for r in routes}),
        lambda: spending.meter(Account("t", "s", purpose="embedding")),
        credential="mine",
        first_pause=0.001,
    )
    made = embed.create("openai_compatible", service)
    assert isinstance(made, OpenAICompatible)
    return made


def test_texts_go_out_in_batches_and_come_back_in_their_order(fake, store):
    made = backend(fake, store)
    said = [f"{'fox' if n % 2 else 'hen'} {n}" for n in range(BATCH + 3)]
    vectors = [unpacked(vector) for vector in made.embed(said)]
    assert [vector[1] > 0.5 for vector in vectors] == ["fox" in text for text in said]
    assert [len(body["input"]) for _, body in fake.asked] == [BATCH, 3]
    assert {path for path, _ in fake.asked} == {"/v1/embeddings"}
    assert fake.headers[0]["Authorization"] == f"Bearer {KEY}"
    rows = Spending(store).report("model")["rows"]
    assert rows[0]["prompt_tokens"] == 7 * len(said) and rows[0]["cost_usd"] > 0


def test_a_question_is_asked_once(fake, store):
    made = backend(fake, store)
    assert made.query("where is the fox", ()) == made.query("where is the fox", ())
    assert len(fake.asked) == 1


def test_what_may_pass_is_repeated_and_what_may_not_is_told(fake, store):
    made = backend(fake, store)
    fake.answers = [(503, {}, {}), (429, {}, {"retry-after": "0"}), (200, b"<html>", {})]
    assert len(made.embed(["fox"])) == 1 and len(fake.asked) == 4
    fake.asked.clear()
    fake.answers = [(500, {}, {})] * ATTEMPTS
    with pytest.raises(ProviderError, match="status 500"):
        made.embed(["fox"])
    assert len(fake.asked) == ATTEMPTS
    for status, said in ((401, "key"), (404, "embedding_model")):
        fake.asked.clear()
        fake.answers = [(status, {}, {})]
        with pytest.raises(ProviderError) as caught:
            made.embed(["fox"])
        assert said in caught.value.remedy and len(fake.asked) == 1
    fake.answers = [(200, {"data": [{"embedding": [1]}]}, {})]
    with pytest.raises(ProviderError) as caught:
        made.embed(["fox"])
    assert "embedding_dimensions = 1" in caught.value.remedy


@pytest.mark.parametrize(
    "answer",
    [{}, {"data": None}, {"data": [{"embedding": "x"}]}, {"data": [{"embedding": [None] * 4}]}],
)
def test_an_answer_without_a_vector_for_each_text_is_none(fake, store, answer):
    fake.answers = [(200, answer, {})] * ATTEMPTS
    with pytest.raises(ProviderError, match="vector for each"):
        backend(fake, store).embed(["fox"])


def test_a_key_in_an_error_is_hidden_and_a_cancelled_call_stops(fake, store):
    made = backend(fake, store)
    fake.answers = [(400, {"error": f"bad {KEY}"}, {})]
    with pytest.raises(ProviderError) as caught:
        made.embed(["fox"])
    assert KEY not in str(caught.value)
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        made.embed(["fox"], token)


def test_nothing_is_sent_beyond_the_budget_or_without_a_price(fake, store):
    for caps, price in ((Caps(per_day=POOR), "0.02"), (Caps(per_day=RICH), None)):
        with pytest.raises(BudgetError):
            backend(fake, store, caps, price).embed(["fox " * 100])
    assert fake.asked == []
    assert len(backend(fake, store, Caps(per_day=POOR), "0").embed(["fox"])) == 1
    assert len(backend(fake, store, Caps(per_day=RICH)).embed(["fox"])) == 1


def test_only_a_command_embeds_what_another_backend_had(fake, store):
    session = store.create_session()
    say(store, session, 1, "The fox sleeps.")
    Retrieval(store, embed.create("deterministic")).catch_up()
    memory = Retrieval(store, backend(fake, store))
    assert memory.behind() == 1 and memory.embed_rest() == 0 and fake.asked == []
    say(store, session, 2, "The hen wakes.")
    memory.catch_up()
    assert memory.embed_rest() == 1  # what is new
    assert [body["input"] for _, body in fake.asked] == [["The hen wakes."]]
    memory.rebuild()
    assert store.to_embed() == 0 and fake.asked[-1][1]["input"] == ["The fox sleeps."]
    assert texts(memory.search("Foxy?", 1)) == ["The fox sleeps."]


def test_while_the_server_is_away_words_are_enough(fake, store):
    say(store, store.create_session(), 1, "The fox sleeps.")
    memory = Retrieval(store, backend(fake, store))
    fake.answers = [(500, {}, {})]
    assert texts(memory.search("fox", 1)) == ["The fox sleeps."]
    assert "status 500" in memory.report()["failed"]


@pytest.mark.parametrize(
    "base", ["http://h:1", "http://h:1/v1", "http://h:1/v1/", "http://h:1/v1/embeddings"]
)
def test_the_address_is_beside_where_a_provider_answers(base):
    settings = ProviderSettings("mine", "openai", base)
    assert registry.embeddings_url(settings) == "http://h:1/v1/embeddings"
    route = registry.embeddings_route(settings, KEY)
    assert isinstance(route.credential, Credential)
    assert route.leads_to("POST", "http://h:1", "/v1/embeddings")
    assert not route.leads_to("POST", "http://h:1", "/v1/files")


CONFIG = """
[providers.registry.mine]
provider_type = "openai"
base_url = "{url}"

[memory]
embedding_backend = "openai_compatible"
embedding_provider = "mine"
embedding_model = "m"
embedding_dimensions = 4
embedding_price = 0
"""


def test_a_daemon_asks_through_its_broker(home, fake):  # noqa: F811
    text = (home.folder / "agent.toml").read_text().replace("\n[memory]\n", "\n")
    (home.folder / "agent.toml").write_text(text + CONFIG.format(url=fake.url))
    home.run("start", "--detach")
    home.run("ask", "The boiler was serviced by Mr Petersen.")
    assert home.run("memory", "rebuild").splitlines()[-1] == "Done: 2 chunks, 2 vectors."
    assert "boiler" in home.run("memory", "search", "who serviced the boiler?")
    stats = json.loads(home.run("memory", "stats", "--json"))
    assert (stats["backend"], stats["to_embed"]) == ("mine/m-4", 0)
    assert {path for path, _ in fake.asked} == {"/v1/embeddings"}


def test_what_the_backend_needs_is_asked_for(home):  # noqa: F811
    text = (home.folder / "agent.toml").read_text().replace("\n[memory]\n", "\n")
    told = '\n[memory]\nembedding_backend = "openai_compatible"\n'
    (home.folder / "agent.toml").write_text(text + told)
    assert "embedding_provider" in home.fails("start", "--detach", code=ConfigError.exit_code)
    (home.folder / "agent.toml").write_text(
        text + told + 'embedding_model = "m"\nembedding_provider = "anthropic"\n'
    )
    assert "/v1/embeddings" in home.fails("start", "--detach", code=ConfigError.exit_code)
