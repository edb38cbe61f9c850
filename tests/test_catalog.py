"""The model catalog: the pinned file, its layers, conversion, and what a call costs."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxydra import catalog
from oxydra.catalog import Catalog, convert, cost, encode, priced
from oxydra.errors import ConfigError
from oxydra.types import ModelSpec, PriceTier, Usage

SOURCE: dict[str, Any] = {
    "id": "m",
    "attachment": True,
    "tool_call": True,
    "reasoning": True,
    "reasoning_options": [
        {"type": "effort", "values": ["low", "high"]},
        {"type": "budget_tokens", "min": 1024, "max": 9000},
    ],
    "interleaved": {"field": "reasoning_content"},
    "limit": {"context": 1000, "input": 900, "output": 100},
    "modalities": {"input": ["text", "image", "pdf", "audio"], "output": ["text", "image"]},
    "cost": {
        "input": 0.1,
        "output": 3,
        "cache_read": 0.025,
        "cache_write": 1e-05,
        "input_audio": 7,
        "tiers": [
            {"input": 9, "output": 9, "tier": {"size": 800}},
            {"input": 0.2, "output": 6.0, "cache_read": 0.05, "tier": {"size": 500}},
        ],
    },
    "status": "deprecated",
    "name": "not used",
}


def api(**changes: Any) -> dict[str, Any]:
    return {
        "openai": {"models": {"m": SOURCE | changes}},
        "unknown": {"models": {"x": SOURCE}},
    }


def spec_of(document: dict[str, Any]) -> ModelSpec:
    return Catalog(document["providers"], {}).spec("openai", "m")


# ---------------------------------------------------------------------------------- the pinned file


def test_the_pinned_catalog_is_whole() -> None:
    found = Catalog.load()
    assert list(found.verify()) == []
    assert set(catalog.PROVIDERS) < set(found.providers())
    assert sum(len(found.models(name)) for name in catalog.PROVIDERS) > 500
    for name in catalog.PROVIDERS:
        default = found.spec(name, found.default_model(name))
        assert default.tools
        assert not default.deprecated


def test_the_pinned_file_carries_its_source_and_notice() -> None:
    text = (catalog.DATA / "models.json").read_text(encoding="utf-8")
    document = json.loads(text)
    assert "© 2025 models.dev" in document["notice"]
    assert "MIT" in document["notice"]
    assert document["source"].startswith("https://models.dev")
    assert document["schema"] == catalog.SCHEMA
    assert encode(document) == text.encode()  # a generated file, never edited by hand


def test_a_known_model() -> None:
    spec = Catalog.load().spec("openai", "gpt-5.5")
    assert (spec.max_context_tokens, spec.max_input_tokens) == (1_050_000, 922_000)
    assert spec.images
    assert spec.pdfs
    assert (spec.price_input, spec.price_output) == (Decimal(5), Decimal(30))
    assert spec.price_tiers == (PriceTier(272_000, Decimal(10), Decimal(45), Decimal(1)),)
    assert spec.reasoning_options[0].values == ("none", "low", "medium", "high", "xhigh")


def test_offline_and_any_model_of_a_local_ollama_cost_nothing() -> None:
    found = Catalog.load()
    for provider, model in (("offline", "offline"), ("ollama", "whatever:7b")):
        spec = found.spec(provider, model)
        assert (spec.id, spec.tools) == (model, True)
        assert cost(spec, Usage(10**6, 10**6)) == 0
    assert found.models("ollama") == []


def test_an_unknown_model_is_refused_with_those_near_it_or_gets_safe_limits() -> None:
    found = Catalog.load()
    with pytest.raises(ConfigError, match=r"gpt-5\.4-mini.*skip_catalog_validation"):
        found.spec("openai", "gpt-5.4-mnii")
    with pytest.raises(ConfigError, match="Known: anthropic"):
        found.spec("opneai", "gpt-5.4")
    with pytest.raises(ConfigError, match="no default"):
        found.default_model("nobody")
    spec = found.spec("openai", "new", skip_validation=True, fallback_context=4096)
    assert (spec.max_context_tokens, spec.max_output_tokens) == (4096, 2048)
    assert spec.tools
    assert not spec.images
    assert cost(spec, Usage(1, 1)) is None


# ------------------------------------------------------------------------------- the user's catalog


def keep(home: Path, document: dict[str, Any]) -> None:
    (home / catalog.CACHE_NAME).write_bytes(encode(document))


def test_the_users_catalog_lies_over_the_pinned_one(tmp_path: Path) -> None:
    assert Catalog.load(tmp_path).spec("openai", "gpt-5.5").price_input == 5
    fetched = convert({"openai": {"models": {"gpt-5.5": SOURCE, "new": SOURCE}}}, "2026-11-01")
    keep(tmp_path, fetched)
    found = Catalog.load(tmp_path)
    assert found.spec("openai", "gpt-5.5").price_input == Decimal("0.1")
    assert found.spec("openai", "new").max_context_tokens == 1000
    assert found.spec("openai", "gpt-5.4").price_input  # what was not fetched stays
    assert Catalog.load().spec("openai", "gpt-5.5").price_input == 5  # the pinned one is untouched


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"schema": 2, "providers": {}}', "schema 2"),
        ("{}", "schema None"),
        ("[]", "schema None"),
        ("{", "can't be read"),
        ('{"schema": 1, "providers": []}', "broken"),
        ('{"schema": 1, "providers": {"openai": {"m": 3}}}', "broken"),
    ],
)
def test_a_catalog_that_is_not_understood_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / catalog.CACHE_NAME
    path.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        Catalog.load(tmp_path)
    assert caught.value.file == str(path)
    assert "catalog fetch" in caught.value.remedy


def test_verify_names_what_is_wrong() -> None:
    rows: dict[str, Any] = {
        "good": {"context": 2, "output": 1},
        "missing": {"output": 1},
        "limits": {"context": 1, "output": 2},
        "price": {"context": 2, "output": 1, "price": {"input": "x"}},
        "negative": {"context": 2, "output": 1, "price": {"input": "-1"}},
    }
    problems = list(Catalog({"p": rows}, {"p": "gone"}).verify())
    assert [line.partition(":")[0] for line in problems] == [
        "p/missing",
        "p/limits",
        "p/price",
        "p/negative",
        "p",
    ]
    with pytest.raises(ConfigError, match="p/missing"):
        encode({"providers": {"p": rows}})


# --------------------------------------------------------------------------------------- conversion


def test_conversion_keeps_what_is_used_and_no_float_error() -> None:
    document = convert(api(), "2026-11-01")
    assert list(document["providers"]) == ["openai"]
    assert spec_of(document) == ModelSpec(
        provider="openai",
        id="m",
        max_context_tokens=1000,
        max_output_tokens=100,
        max_input_tokens=900,
        tools=True,
        images=True,
        pdfs=True,
        images_out=True,
        reasoning=True,
        reasoning_options=spec_of(document).reasoning_options,
        reasoning_field="reasoning_content",
        deprecated=True,
        price_input=Decimal("0.1"),
        price_output=Decimal(3),
        price_cache_read=Decimal("0.025"),
        price_cache_write=Decimal("0.00001"),
        price_tiers=(
            PriceTier(500, Decimal("0.2"), Decimal(6), Decimal("0.05")),
            PriceTier(800, Decimal(9), Decimal(9)),
        ),
    )
    options = spec_of(document).reasoning_options
    assert [(o.kind, o.values, o.minimum, o.maximum) for o in options] == [
        ("effort", ("low", "high"), None, None),
        ("budget_tokens", (), 1024, 9000),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"modalities": {"input": ["text"], "output": ["image"]}},
        {"modalities": {"input": ["audio"], "output": ["text"]}},
        {"limit": {"context": 0, "output": 0}},
        {"id": "text-embedding-x"},
    ],
)
def test_what_can_not_talk_is_left_out(changes: dict[str, Any]) -> None:
    other = {"anthropic": {"models": {"m": SOURCE}}}
    assert convert(api(**changes) | other, "")["providers"]["openai"] == {}


def test_conversion_of_odd_models() -> None:
    plain = spec_of(convert(api(reasoning=False, attachment=False, cost={}), ""))
    assert (plain.reasoning, plain.images, plain.price_input) == (False, False, None)
    assert spec_of(convert(api(limit={"context": 10, "output": 20}), "")).max_output_tokens == 10
    assert spec_of(convert(api(reasoning_options=[]), "")).reasoning


@pytest.mark.parametrize(
    "wrong", [{}, [], {"openai": {}}, {"openai": {"models": {"m": {"id": "m"}}}}, {"x": {}}]
)
def test_another_shape_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError):
        convert(wrong, "")


def test_a_converted_document_survives_being_written(tmp_path: Path) -> None:
    document = convert(api(), "2026-11-01")
    keep(tmp_path, document)
    assert catalog.read(tmp_path / catalog.CACHE_NAME) == document


# ------------------------------------------------------------------------------------------- prices

MODEL = ModelSpec(
    "p",
    "m",
    1000,
    100,
    price_input=Decimal(1),
    price_output=Decimal(10),
    price_cache_read=Decimal("0.1"),
    price_cache_write=Decimal("1.25"),
    price_tiers=(PriceTier(500, Decimal(2), Decimal(20), Decimal("0.2")),),
)


@pytest.mark.parametrize(
    ("usage", "micro_dollars"),
    [
        (Usage(100, 10), 100 + 100),
        (Usage(100, 10, cached_tokens=40), 60 + 4 + 100),
        (Usage(100, 10, cached_tokens=40, cache_write_tokens=20), 40 + 4 + 25 + 100),
        (Usage(500, 0), 500),
        (Usage(501, 10, cached_tokens=1), 1000 + Decimal("0.2") + 200),
        (Usage(501, 0, cache_write_tokens=501), 1002),
        (Usage(10, 0, cached_tokens=20), 2),
        (Usage(), 0),
    ],
)
def test_what_a_call_costs(usage: Usage, micro_dollars: Decimal) -> None:
    assert cost(MODEL, usage) == Decimal(micro_dollars) / 1_000_000


def test_reasoning_may_have_a_price_of_its_own() -> None:
    model = replace(MODEL, price_reasoning=Decimal(30))
    assert cost(model, Usage(0, 10, reasoning_tokens=4)) == Decimal(6 * 10 + 4 * 30) / 1_000_000


def test_without_a_price_nothing_is_guessed() -> None:
    assert cost(replace(MODEL, price_output=None), Usage(1, 1)) is None
    assert priced(replace(MODEL, price_input=None), Usage(1, 1)).cost_usd is None
    assert priced(MODEL, Usage(100, 10)).cost_usd == Decimal("0.0002")
    assert priced(MODEL, Usage(100, 10, cost_usd=Decimal(7))).cost_usd == 7


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_costs_of_a_known_model_are_exact(prompt: int, cached: int, completion: int) -> None:
    spec = Catalog.load().spec("anthropic", "claude-sonnet-4-6")
    usage = Usage(prompt, completion, min(cached, prompt))
    found = cost(spec, usage)
    assert found is not None
    fresh = usage.prompt_tokens - usage.cached_tokens
    assert found * 10**7 == fresh * 30 + usage.cached_tokens * 3 + completion * 150


def test_a_specification_travels_as_json() -> None:
    found = Catalog.load()
    for provider in found.providers():
        for spec in found.models(provider):
            assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    with pytest.raises(TypeError):
        ModelSpec.from_json({"reasoning_options": [], "price_tiers": []})
