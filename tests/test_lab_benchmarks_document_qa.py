"""What notebook 34 shows: flames from traces and profiles, a provider on this machine, lines through medians."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

import kit
from kit.catalogue import LLMOPS_OPERATION_PUBLISH, RAG_VECTOR_SEARCH, USE_CASE_DOCUMENT_QA
from kit.components.gateway.litellm_calls import litellm_module
from kit.errors import ReportError
from kit.lab import charts
from kit.lab.bench import Comparison
from kit.lab.benchmarks import document_qa, document_search, question_flame
from kit.lab.benchmarks.kept import Kept
from kit.lab.benchmarks.provider import ANSWER, provider
from kit.lab.benchmarks.question_flame import Box, Profile
from kit.otel import start_telemetry

_CODEC = f"{kit.__path__[0]}/codec/decoding.py"
_RAG = f"{kit.__path__[0]}/components/rag/index.py"


def test_functions_in_c_count_for_their_callers_and_the_loops_sleep_for_nobody() -> None:
    decode, search = (_CODEC, 1, "decode"), (_RAG, 9, "search")
    stats = {
        decode: (4, 4, 1.0, 2.0, {}),
        search: (1, 1, 1.0, 1.0, {}),
        ("~", 0, "<built-in loads>"): (4, 4, 2.0, 2.0, {decode: (4, 4, 2.0, 2.0)}),
        ("~", 0, "<method 'poll' of 'select.epoll' objects>"): (9, 9, 50.0, 50.0, {search: (9, 9, 50.0, 50.0)}),
    }
    parts, calls = question_flame.shares(stats)
    assert parts == {("kit.codec", "decoding.decode"): 0.75, ("kit.components.rag", "index.search"): 0.25}
    assert calls["kit.codec", "decoding.decode"] == 4


def _profile() -> Profile:
    parts = {("litellm", "main.completion"): 0.5, ("kit.codec", "decode"): 0.2, ("kit.codec", "encode"): 0.3}
    return Profile(wall=0.1, work=0.04, parts=parts, calls=dict.fromkeys(parts, 2.0))


def test_an_icicle_is_as_wide_as_its_rooms_together_and_names_the_most_expensive() -> None:
    boxes = _profile().boxes()
    for depth in (1, 2):
        assert sum(box.seconds for box in boxes if box.depth == depth) == pytest.approx(0.04)
    assert next(box.name for box in boxes if box.depth == 2) == "main.completion"
    chart = charts.figure(question_flame.icicle(boxes, "A flame"), title="A flame")
    assert "main.completion" in chart.svg
    own = {"gateway.provider.call": 0.06, "rag.query": 0.04}
    flame = question_flame.Flame(trace=boxes, own=own, profile=_profile())
    said = question_flame.most_expensive(flame)
    assert said.startswith("The most expensive stage is gateway.provider.call: 60.0 ms of its own, 60 %")
    assert "waits 60 % of a question" in said
    assert "litellm takes most, 50 %, and of single functions main.completion (litellm), 20.0 ms." in said
    assert list(_profile().table(2)["own time"]) == ["20.0 ms", "12.0 ms"]
    assert list(flame.stages()["share"]) == ["60 %", "40 %"]
    assert question_flame.Flame.read(json.loads(json.dumps(flame.plain()))) == flame


def test_a_narrow_box_has_no_name() -> None:
    boxes = [Box(name="whole", begin=0, seconds=1, depth=0), Box(name="sliver", begin=0, seconds=0.01, depth=1)]
    assert "sliver" not in charts.figure(question_flame.icicle(boxes, "x"), title="x").svg


def test_a_document_and_each_of_its_chunks_have_a_price() -> None:
    samples = {f"{size} chunks": np.full((3, 1), 1e6 * (50 + 2 * size)) for size in (1, 4, 16)}
    fixed, each = document_qa.per_chunk(Comparison(name="made", samples=samples, baseline="1 chunks"))
    assert (fixed, each) == (pytest.approx(0.050), pytest.approx(0.002))


async def test_parts_of_a_question_are_measured_beside_what_they_wrap() -> None:
    litellm = await litellm_module()
    before = {name: list(getattr(litellm, name)) for name in ("callbacks", "success_callback", "failure_callback")}
    place = document_qa.Workplace()
    sizes = await place.ingestion((1, 3), rounds=1)
    assert list(sizes.samples) == ["1 chunk", "3 chunks"]
    result = await place.gateway(rounds=1, samples=2)
    assert list(result.samples) == [
        document_qa.DIRECT, document_qa.GATEWAY, document_qa.RECORDED, document_qa.OPENAI,
    ]  # fmt: skip
    assert {name: list(getattr(litellm, name)) for name in before} == before
    kept = await place.flame(2)
    assert question_flame.Flame.read(json.loads(json.dumps(kept))).own[USE_CASE_DOCUMENT_QA.name] > 0
    await place.close()


def test_the_gateway_is_judged_beside_litellm_asked_directly() -> None:
    times = {document_qa.DIRECT: 3.2, document_qa.GATEWAY: 3.4}
    samples = {name: np.full((3, 2), 1e6 * milliseconds) for name, milliseconds in times.items()}
    verdict = document_qa.gateway_goal(Comparison(name="made", samples=samples, baseline=document_qa.DIRECT))
    assert document_qa.DIRECT in verdict.target.metric
    assert verdict.measured == pytest.approx(1.0625)
    assert verdict.state == "missed"


async def test_searches_by_hand_find_what_the_kit_finds() -> None:
    tables = document_search.Tables()
    found = await tables.by_vector(600, rounds=1)
    mixed = await tables.hybrid(600, rounds=1)
    await tables.close()
    assert list(found.samples) == [document_search.LANCEDB, document_search.NUMPY, document_search.VECTOR]
    assert list(mixed.samples) == [document_search.LANCEDB_HYBRID, document_search.HYBRID]
    assert document_search.search_goal(found, 600).ratio is not None


def test_words_that_are_asked_for_are_rare_and_stand_together_in_one_passage() -> None:
    made = document_search.passages(2000)
    counts = [sum(word in text for text in made) for word in document_search.ASKED]
    assert counts == [5, 5]
    assert sum(all(word in text for word in document_search.ASKED) for text in made) == 1
    assert len(set(" ".join(made).split())) > 2000


async def test_a_place_that_measures_nothing_starts_nothing(tmp_path: Path) -> None:
    place, kept = document_qa.Workplace(), Kept(measure=False, folder=tmp_path)
    with pytest.raises(ReportError, match="no samples of document_qa_flame"):
        await kept.facts("document_qa_flame", place.flame, 1)
    (tmp_path / "document_qa_flame.json").write_text('{"trace": []}')
    assert await kept.facts("document_qa_flame", place.flame, 1) == {"trace": []}
    await place.close()


async def test_a_provider_ends_silently_with_a_client_still_connected(capfd: pytest.CaptureFixture[str]) -> None:
    async with provider() as url:
        where = urlsplit(url)
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
        assert ANSWER.encode() in await reader.read(2000)
    writer.close()
    assert capfd.readouterr().err == ""


async def test_what_is_told_beside_a_question_is_no_stage_of_it() -> None:
    telemetry = start_telemetry("x", tenant_id="acme")
    with telemetry.operation(USE_CASE_DOCUMENT_QA):
        with telemetry.operation(RAG_VECTOR_SEARCH):
            pass
        with telemetry.operation(LLMOPS_OPERATION_PUBLISH):
            pass
    names = [USE_CASE_DOCUMENT_QA.name, RAG_VECTOR_SEARCH.name]
    assert sorted(question_flame.stages(telemetry, 1)) == sorted(names)
    assert [box.name for box in question_flame.trace_boxes(telemetry)] == names
    telemetry.shutdown(1.0)
