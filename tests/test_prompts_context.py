"""A context is ranked, free of repetitions, cut at sentence ends, within its budget, and accounts for the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kit.components.prompts import tokens
from kit.components.prompts.context import build_context, sentence_ends
from kit.components.prompts.errors import BudgetTooSmall
from kit.components.prompts.tokens import TokenCounter, estimate_tokens

FOX = "The quick brown fox jumps over the lazy dog on every single day of the week."
LONG = (
    "One sentence stands here and has some words. Another sentence follows it with more words. The third one is left."
)


def item(item_id: str, content: str, **fields: Any) -> dict[str, Any]:
    return {"item_id": item_id, "content": content, **fields}


def test_scores_rank_after_priority_and_required() -> None:
    items = [
        item("low", "Low one.", score=0.1),
        item("high", "High one.", score=0.9),
        item("first", "First one.", score=0.0, priority=9),
        item("must", "Must be in.", score=0.0, required=True),
    ]
    built = build_context(items, 100)
    assert [part.item_id for part in built.included] == ["must", "first", "high", "low"]
    assert [part.rank for part in built.included] == [1, 2, 3, 4]
    assert built.text.split("\n\n") == ["Must be in.", "First one.", "High one.", "Low one."]


def test_without_scores_the_query_ranks() -> None:
    built = build_context(["Cats sleep a lot.", "Copy a file with shutil.", "Dogs bark."], 100, query="copy a file")
    assert built.text.startswith("Copy a file")


def test_without_scores_and_query_the_order_stays() -> None:
    assert build_context(["b b b", "a a a"], 100).text == "b b b\n\na a a"


def test_repetitions_are_left_out_and_say_of_what() -> None:
    items = [
        item("a", FOX),
        item("b", FOX.upper().replace(",", "")),
        item("c", FOX[: len(FOX) - 14]),
        item("d", "Something else entirely stands in this one."),
        item("e", "  "),
    ]
    built = build_context(items, 500)
    assert [part.item_id for part in built.included] == ["a", "d"]
    assert [(part.item_id, part.reason, part.duplicate_of) for part in built.left_out] == [
        ("b", "duplicate", "a"),
        ("c", "duplicate", "a"),
        ("e", "empty", None),
    ]


def test_what_scores_too_little_is_left_out() -> None:
    built = build_context([item("a", "Good.", score=0.9), item("b", "Bad.", score=0.1)], 50, min_score=0.5)
    assert [(part.item_id, part.reason) for part in built.left_out] == [("b", "threshold")]


def test_the_cut_is_at_a_sentence_end() -> None:
    whole = TokenCounter("gpt-4").count(LONG)
    built = build_context([item("a", LONG)], whole - 1, model="gpt-4")
    assert built.text == "One sentence stands here and has some words. Another sentence follows it with more words."
    (part,) = built.included
    assert part.truncated
    assert part.tokens + part.tokens_left_out == whole
    assert built.account()["included"][0]["tokens_left_out"] == part.tokens_left_out


def test_a_title_stays_with_its_text() -> None:
    assert build_context([item("a", "Text.", title="Title")], 50).text == "Title\nText."


@pytest.mark.parametrize("budget", [1, 10, 30, 75, 200, 1000])
def test_the_budget_holds_on_real_documents(budget: int, request: pytest.FixtureRequest) -> None:
    lines = Path(request.config.rootpath, "data", "python_faq.jsonl").read_text().splitlines()[:40]
    items = [item(row["document_id"], row["content"]) for row in map(json.loads, lines)]
    for model in ("gpt-4", "gpt-4o", "kit/extractive", "mistral/large"):
        built = build_context(items, budget, model=model, query="How do I copy a file?", reserve=5)
        assert built.tokens <= max(0, budget - 5)
        assert built.tokens == TokenCounter(model).count(built.text)
        told = [part.item_id for part in (*built.included, *built.left_out)]
        assert sorted(told) == sorted(part["item_id"] for part in items)


def test_a_required_item_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(BudgetTooSmall, match="nothing fits"):
        build_context([item("a", LONG, required=True)], 5)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Dr. No said e.g. this. Then (that!) Really? E", ["Dr. No said e.g. this.", "Then (that!)", "Really?", "E"]),
        ("First paragraph\n\nSecond", ["First paragraph", "Second"]),
        ("List:\n- one\n- two", ["List:", "- one", "- two"]),
        ("これは文です。次の文です。", ["これは文です。", "次の文です。"]),
        ("Version 3.11 is out. Ok.", ["Version 3.11 is out.", "Ok."]),
        ("", []),
    ],
)  # fmt: skip
def test_sentence_ends(text: str, pieces: list[str]) -> None:
    ends = sentence_ends(text)
    assert [text[start:end].strip() for start, end in zip([0, *ends], ends, strict=False)] == pieces


def test_tokens_name_their_method() -> None:
    exact = estimate_tokens("Hello world", "openai/gpt-4o")
    assert (exact.tokens, exact.method, exact.exact) == (2, "tiktoken/o200k_base", True)
    near = estimate_tokens("Hello world", "anthropic/claude-opus-4")
    assert (near.tokens, near.method, near.exact) == (2, "tiktoken/cl100k_base (approximation)", False)
    own = estimate_tokens("Hello world", "kit/extractive")
    assert (own.tokens, own.method, own.exact) == (2, "wordllama/l2_supercat", True)


def test_the_offline_models_are_counted_as_they_bill(request: pytest.FixtureRequest) -> None:
    from kit.components.gateway.models.static import static_embeddings

    counter, model = TokenCounter("kit/extractive"), static_embeddings()
    for line in Path(request.config.rootpath, "data", "python_faq.jsonl").read_text().splitlines()[:20]:
        assert counter.count(json.loads(line)["content"]) == model.count_tokens(json.loads(line)["content"])


@pytest.mark.parametrize("model", ["gpt-4", "kit/extractive", "mistral/large"])
def test_without_a_vocabulary_bytes_are_counted(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_package", lambda name: None)
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    caches = (tokens._shipped, tokens._openai, tokens._own)
    for cache in caches:
        cache.cache_clear()
    counter = TokenCounter(model)
    assert (counter.method, counter.exact, counter.count("1234567"), counter.count("")) == ("bytes/3.5", False, 2, 0)
    for cache in caches:
        cache.cache_clear()
