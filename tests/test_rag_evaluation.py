"""Retrieval and answers are measured: places, recall, MRR, grounding, and what each step brings."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from rag_stand_in import StandIn

from kit.components import rag
from kit.components.rag.evaluation import STEPS, Case, measures, rank

ANIMALS = ("elephant", "zebra", "penguin", "tiger", "camel", "otter")
DOCUMENTS = [
    rag.Document(document_id=name, content=f"The {name} lives long. It eats what {name} cubs eat. Number {n}.")
    for n, name in enumerate(ANIMALS)
]
CASES = [Case(question=f"What does the {name} eat?", document_id=name) for name in ANIMALS]


@pytest.fixture
async def gateway(tenant_bus: Any) -> AsyncIterator[StandIn]:
    async with StandIn(tenant_bus) as stand_in:
        yield stand_in


def test_a_document_stands_where_its_best_passage_stands() -> None:
    assert rank("b", ["a", "a", "b", "c", "b"]) == 2
    assert rank("z", ["a"]) == 0


def test_measures_count_what_was_found_where() -> None:
    table = measures([1, 2, 0, 11], ks=(1, 5))
    assert table == {"recall@1": 0.25, "recall@5": 0.5, "MRR@10": 0.375}


def test_cases_are_the_lines_that_ask(tmp_path: Path) -> None:
    file = tmp_path / "c.jsonl"
    rows = [{"question": "Why?", "document_id": "a"}, {"question": "A heading", "document_id": "b"}]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    assert rag.read_cases(file) == [Case(question="Why?", document_id="a")]
    assert len(rag.read_cases("data/python_faq.jsonl")) == 171


async def test_each_mode_is_measured_over_the_bus(tenant_bus: Any, gateway: StandIn, tmp_path: Path) -> None:
    service = await rag.serve(tenant_bus, uri=tmp_path)
    await rag.ingest_documents(tenant_bus, DOCUMENTS)
    table = await rag.evaluate(tenant_bus, CASES, modes=("hybrid", "text"), ks=(1, 5))
    assert list(table.index) == ["hybrid", "text"]
    assert table.loc["text", "recall@1"] == 1.0
    assert list(table.columns) == ["recall@1", "recall@5", "MRR@10"]
    answers = await rag.evaluate_answers(tenant_bus, CASES)
    assert answers["answered"].all()
    assert (answers["grounding"] == 1.0).all()
    assert answers["cites the right document"].mean() > 0.5
    await service.stop()


async def test_each_step_is_measured_on_an_index_of_its_own(tenant_bus: Any, gateway: StandIn) -> None:
    table = await rag.ablation(tenant_bus, DOCUMENTS, CASES, embedding_model="stand-in")
    assert list(table.index) == [step.name for step in STEPS]
    assert table.loc["+ letter runs", "recall@1"] == 1.0
    assert table["MRR@10"].between(0, 1).all()
    drawn = rag.figure(table, title="Animals", target={"recall@5": 0.865, "MRR@10": 0.7})
    (axes,) = drawn.axes
    assert axes.get_title(loc="left") == "Animals"
    assert [label.get_text() for label in axes.get_yticklabels()][-1] == "+ letter runs"
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"recall@5", "MRR@10"}
