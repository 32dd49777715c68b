"""A tenant's index: what is written is found at once, once, and only by its tenant; filters and modes hold."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rag_stand_in import DIMENSION, embed

from kit.components import DatabaseFailed, database_uri
from kit.components.rag import (
    Analysis,
    Collection,
    Database,
    EmbeddingMismatch,
    FilterRefused,
    Ranking,
    document,
    field,
)
from kit.components.rag.chunking import Chunking, chunk
from kit.components.rag.rows import Entry, embedded_lead, embedded_text, fingerprint, table_of
from kit.errors import ConfigurationError

TEXTS = {
    "copy": "The shutil module contains a copyfile() function for files.",
    "sort": "Use the sorted() built-in to order the items of a list.",
    "gil": "The global interpreter lock lets one thread run at a time.",
    "name": "The language was called after Monty Python's Flying Circus.",
}


def day(number: str) -> str:
    return f"2024-01-{number:0>2}T00:00:00.000000Z"


def gone(document_id: str, sent_at: str) -> Entry:
    return Entry(document_id=document_id, sha256=None, sent_at=day(sent_at))


def entry(document_id: str, text: str, *, sent_at: str = "1", sha256: str = "", **more: Any) -> Entry:
    """Return a document as it was sent on a day of January."""
    chunks = chunk(text, Chunking(max_chars=200, min_share=0))
    return Entry(
        document_id=document_id, sha256=sha256 or text, sent_at=day(sent_at), chunks=chunks,
        vectors=embed([embedded_text(part, "") for part in chunks]),
        leads=embed([embedded_lead(part, "", Chunking()) for part in chunks]), **more,
    )  # fmt: skip


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open("acme", tmp_path)
    yield opened
    await opened.close()


@pytest.fixture
async def index(database: Database) -> Collection:
    made = await database.create("documents", model="m", dimension=DIMENSION)
    rows = [
        entry(name, text, metadata={"n": n, "even": n % 2 == 0, "tags": ["x", name], "kind": f"it's {name}"})
        for n, (name, text) in enumerate(TEXTS.items())
    ]
    await made.upsert(rows)
    return made


async def found(index: Collection, query: str, **more: Any) -> list[str]:
    return [hit.document_id for hit in await index.search(query, embed([query])[0], **more)]


@pytest.mark.parametrize("mode", ["hybrid", "vector", "text"])
async def test_each_mode_finds_what_was_just_written(index: Collection, mode: Any) -> None:
    assert (await found(index, "how do I copy files with shutil", mode=mode))[0] == "copy"
    await index.upsert([entry("new", "Penguins waddle across antarctic ice.")])
    assert (await found(index, "antarctic penguins", mode=mode))[0] == "new"


UNSPACED = {
    "zh": "图书馆每天早上九点开门。",
    "ja": "会議室は三階にあります。",
    "zh2": "自行车停在地下室。",
    "mixed": "Python入門の教科書は二階の書庫にある。",
    "katakana": "コーヒーメーカーは毎週月曜日に掃除します。",
    "ko": "주차장은 건물 뒤에 있습니다.",
    "rare": "𠮷野家は駅の前にある。",
}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("图书馆几点开门？", "zh"),
        ("会議室はどこですか？", "ja"),
        ("自行车在哪里？", "zh2"),
        ("图书馆", "zh"),
        ("階の書庫", "mixed"),
        ("python", "mixed"),
        ("メーカー", "katakana"),
        ("주차장이 어디예요?", "ko"),
        ("𠮷野家", "rare"),
        ("車", None),
        ("车", "zh2"),
    ],
)
async def test_text_is_found_in_scripts_without_blanks(database: Database, query: str, expected: str | None) -> None:
    index = await database.create("documents", model="m", dimension=DIMENSION)
    await index.upsert([entry(name, text) for name, text in UNSPACED.items()])
    assert (await found(index, query, mode="text"))[:1] == ([expected] if expected else [])
    await index.cover()
    assert (await found(index, query, mode="text"))[:1] == ([expected] if expected else [])


async def test_letter_runs_find_names_by_their_parts(index: Collection) -> None:
    only = Ranking(vector=0, text=0, lead=0, grams=1)
    assert (await found(index, "copyfile", ranking=only))[0] == "copy"
    assert (await found(index, "uncopyfiled", ranking=only))[0] == "copy"


async def test_a_document_is_replaced_as_a_whole(index: Collection) -> None:
    long = "\n\n".join(f"Paragraph {n} about elephants and savannas. " * 4 for n in range(5))
    removed = await index.upsert([entry("copy", long, sent_at="2")])
    assert removed == {"copy": 1}
    documents, passages = await index.count()
    assert documents == 4 and passages == 3 + len(chunk(long, Chunking(max_chars=200, min_share=0)))  # noqa: PT018
    await index.upsert([entry("copy", "Short again.", sent_at="3")])
    assert await index.count() == (4, 4)
    assert "copy" not in await found(index, "elephants savannas", mode="text")


async def test_the_same_again_changes_nothing(index: Collection) -> None:
    before, version = await index.rows(), await index.version()
    assert await index.upsert([entry(name, text, sent_at="9") for name, text in TEXTS.items()]) == {}
    assert await index.version() == version
    assert (await index.rows()).equals(before)


async def test_an_older_message_never_replaces_a_newer_one(index: Collection) -> None:
    await index.upsert([entry("copy", "The newest text.", sent_at="5")])
    assert await index.upsert([entry("copy", "A late one.", sent_at="4")]) == {}
    state = (await index.states(["copy"]))["copy"]
    assert (state.sha256, state.sent_at) == ("The newest text.", day("5"))
    both = [entry("twice", "first", sent_at="1"), entry("twice", "second", sent_at="2")]
    await index.upsert(both)
    assert (await index.states(["twice"]))["twice"].sha256 == "second"


async def test_a_deleted_document_is_gone(index: Collection) -> None:
    assert await index.upsert([gone("copy", "2"), gone("nobody's", "2")]) == {"copy": 1, "nobody's": 0}
    assert await index.upsert([gone("copy", "3")]) == {"copy": 0}
    for mode in ("hybrid", "vector", "text"):
        assert "copy" not in await found(index, "shutil copyfile", mode=mode)


MESSAGES = {
    "deleted at last": [("One.", "2"), (None, "3")],
    "deleted between": [("One.", "2"), (None, "3"), ("Two.", "4")],
    "the same again": [("One.", "2"), (None, "3"), ("One.", "4")],
    "replaced, then deleted": [("One.", "2"), ("Two.", "3"), (None, "4")],
    "back to the first": [("One.", "2"), ("Two.", "3"), ("One.", "4")],
}


def orders() -> Iterator[Any]:
    for name, messages in MESSAGES.items():
        for number, order in enumerate(permutations(messages)):
            yield pytest.param(order, id=f"{name} {number}")


async def tell(index: Collection, text: str | None, sent_at: str) -> None:
    """Do what the ingestion does with a message: a text that is known already is noted only."""
    if text is None:
        await index.upsert([gone("zoo", sent_at)])
        return
    state = (await index.states(["zoo"])).get("zoo")
    again = Entry(document_id="zoo", sha256=text, sent_at=day(sent_at))
    if state is None or state.sha256 != text or "zoo" not in await index.upsert([again]):
        await index.upsert([entry("zoo", text, sent_at=sent_at)])


@pytest.mark.parametrize("order", list(orders()))
async def test_whatever_the_order_the_message_that_was_sent_last_holds(tmp_path: Path, order: Any) -> None:
    last = max(order, key=lambda message: message[1])[0]
    workers = [await Database.open("acme", tmp_path) for _ in range(2)]
    for number, (text, sent_at) in enumerate(order):  # by turns in two workers, the second of which begins anew
        index = await workers[number % 2].create("documents", model="m", dimension=DIMENSION)
        await tell(index, text, sent_at)
    rows = (await index.rows()).select(["document_id", "content"]).to_pylist()
    assert rows == ([] if last is None else [{"document_id": "zoo", "content": last}])
    for worker in workers:
        await worker.close()


@pytest.mark.parametrize("name", MESSAGES)
async def test_of_workers_that_write_at_once_the_message_that_was_sent_last_holds(tmp_path: Path, name: str) -> None:
    messages = MESSAGES[name]
    workers = [await Database.open("acme", tmp_path) for _ in messages]
    opened = [await worker.create("documents", model="m", dimension=DIMENSION) for worker in workers]
    for attempt in range(4):
        batches = [
            [gone(f"{n}", at) if text is None else entry(f"{n}", text, sent_at=at) for n in range(attempt, 40, 4)]
            for text, at in messages
        ]
        await asyncio.gather(*(index.upsert(batch) for index, batch in zip(opened, batches, strict=True)))
    rows = await opened[0].rows()
    last = messages[-1][0]
    assert rows["content"].to_pylist() == ([] if last is None else [last] * 40)
    for worker in workers:
        await worker.close()


async def test_a_deletion_is_known_before_there_is_a_collection(database: Database) -> None:
    assert await database.write("later", [gone("zoo", "3")], model="m") == {"zoo": 0}
    assert await database.write("later", [entry("zoo", "Late.", sent_at="2")], model="m") == {}
    assert await database.write("later", [entry("zoo", "Anew.", sent_at="4")], model="m") == {"zoo": 0}


async def test_deletions_are_forgotten_once_nothing_can_come_late(index: Collection, monkeypatch: Any) -> None:
    await index.upsert([gone("zoo", "3")])
    await index.cover()
    assert "zoo" in await index.states(["zoo"])
    monkeypatch.setattr("kit.components.rag.latest.KEEP_SECONDS", 0.0)
    await index.cover()
    assert "zoo" not in await index.states(["zoo"])


async def test_what_was_stored_with_a_time_to_come_can_be_replaced_and_deleted(index: Collection) -> None:
    future = replace(entry("copy", "From the future."), sent_at="2099-01-01T00:00:00Z")
    await index._merge(table_of([future]), "document_id = 'copy'")  # as an earlier version of the kit did
    assert await index.upsert([entry("copy", "Of today.", sent_at="2")]) == {"copy": 1}
    assert (await index.states(["copy"]))["copy"].sha256 == "Of today."
    await index._merge(table_of([replace(future, document_id="b")]), "document_id = 'b'")
    assert await index.upsert([gone("b", "2")]) == {"b": 1}
    assert "b" not in (await index.rows())["document_id"].to_pylist()


async def test_a_disk_that_takes_no_more_is_named_and_goes_on_once_it_does(index: Collection, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = entry("large", " ".join(f"word{n}" for n in range(8_000)), sent_at="2")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))  # refused by the kernel, as by a full disk
        with pytest.raises(DatabaseFailed) as failed:
            await index.upsert([large])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(failed.value).startswith(f"File too large: {tmp_path}/acme/documents.lance")
    assert ".cargo" not in str(failed.value)
    assert failed.value.retryable
    assert (await found(index, "copy files", mode="text"))[0] == "copy"
    assert await index.upsert([large]) == {"large": 0}


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_an_index_that_is_refreshed_for_ever_keeps_few_files_open(index: Collection) -> None:
    opened = []
    for number in range(40):
        await index.upsert([entry(f"d{n}", f"Number {n}, version {number}.", sent_at="2") for n in range(60)])
        await index.cover()
        await found(index, "version")
        opened.append(open_files())
    assert max(opened[20:]) <= max(opened[:20]) + 8, opened


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (field("n") >= 2, {"gil", "name"}),
        (field("n") < 1, {"copy"}),
        (field("even").is_true(), {"copy", "gil"}),
        (field("tags").contains("sort"), {"sort"}),
        (field("kind") == "it's gil", {"gil"}),
        (field("kind") == "it's gil' OR '1'='1", set()),
        (field("kind") != "it's gil", {"copy", "sort", "name"}),
        (field("n").any_of(0, 3) & ~document("copy"), {"name"}),
        (document("copy") | document("sort"), {"copy", "sort"}),
        (field("missing") == 1, set()),
        (~(field("missing") == 1), set(TEXTS)),
        (field("n") == "2", set()),
        (field("a'b.c$[0]") == "x", set()),
        (document("x'; DROP TABLE documents; --"), set()),
    ],
)
@pytest.mark.parametrize("mode", ["hybrid", "vector", "text"])
async def test_filters_hold_in_every_mode(index: Collection, mode: Any, condition: Any, expected: set[str]) -> None:
    query = "shutil files sorted list thread lock language Python"
    assert set(await found(index, query, mode=mode, condition=condition)) == expected


async def test_a_threshold_leaves_out_what_is_unlike(index: Collection) -> None:
    query = TEXTS["gil"]
    assert await found(index, query, threshold=0.9) == ["gil"]
    assert await found(index, query, mode="vector", threshold=0.9) == ["gil"]
    assert await found(index, query, threshold=1.01) == []


async def test_hits_tell_where_they_lie_and_how_they_scored(index: Collection) -> None:
    (hit,) = await index.search("shutil", embed(["shutil"])[0], top_k=1)
    assert hit.content == TEXTS["copy"][hit.start : hit.end]
    assert hit.chunk_id == "copy#0"
    assert hit.metadata == {"n": 0, "even": True, "tags": ["x", "copy"], "kind": "it's copy"}
    assert 0 < hit.vector_score <= 1
    assert hit.text_score > 0


async def test_an_empty_or_strange_question_finds_without_failing(index: Collection) -> None:
    for query in ("", "???", "how do I", "'\"(*)", "x" * 3000, "日本語"):
        await found(index, query)
        await found(index, query, mode="text")


async def test_rows_are_covered_by_every_index_once_nothing_more_is_written(index: Collection) -> None:
    await index.cover()
    assert await index.unindexed() == 0
    await index.upsert([entry("later", "One more document.")])
    for _ in range(60):
        await asyncio.sleep(0.1)
        if await index.unindexed() == 0:
            break
    assert await index.unindexed() == 0


async def test_many_new_rows_are_covered_at_once(index: Collection) -> None:
    await index.upsert([entry(f"d{n}", f"Document {n} says {n * 7}.") for n in range(300)])
    assert await index.unindexed() == 0
    assert await index.count() == (304, 304)


async def test_closing_waits_for_the_write_that_is_under_way(tmp_path: Path) -> None:
    database = await Database.open("acme", tmp_path)
    made = await database.create("documents", model="m", dimension=DIMENSION)
    await made.upsert([entry("first", "One document.")])
    await made.cover()
    writing = asyncio.create_task(made.upsert([entry(f"d{n}", f"Document {n}.") for n in range(50)]))
    await asyncio.sleep(0)
    await database.close()
    assert len(await writing) == 50
    again = await Database.open("acme", tmp_path)
    held = await again.collection()
    assert held is not None
    assert (await held.count(), await held.unindexed()) == ((51, 51), 0)
    await again.close()


async def test_two_databases_of_two_tenants_share_nothing(index: Collection, tmp_path: Path) -> None:
    other = await Database.open("globex", tmp_path)
    assert await other.collection() is None
    made = await other.create("documents", model="m", dimension=DIMENSION)
    await made.upsert([entry("theirs", "Shutil of another tenant.")])
    assert await found(made, "shutil") == ["theirs"]
    assert "theirs" not in await found(index, "shutil")
    await other.close()


async def test_another_process_sees_what_was_written(index: Collection, tmp_path: Path) -> None:
    reader = await Database.open("acme", tmp_path)
    seen = await reader.collection()
    assert seen is not None
    await index.upsert([entry("fresh", "Zebras graze.")])
    assert (await found(seen, "zebras"))[0] == "fresh"
    await asyncio.gather(
        *(writer.upsert([entry(f"w{n}", f"Writer {n}.")]) for n, writer in enumerate([index, seen] * 3))
    )
    assert (await index.count())[0] == 11
    await reader.close()


async def test_vectors_of_another_model_are_refused(database: Database, index: Collection) -> None:
    with pytest.raises(EmbeddingMismatch, match="another collection"):
        await database.create("documents", model="other", dimension=DIMENSION)
    with pytest.raises(EmbeddingMismatch):
        index.check("m", 7)
    reopened = await Database.open("acme", database._connection.uri.rsplit("/", 1)[0])
    assert (await reopened.create("documents", model="m", dimension=DIMENSION)).model == "m"
    await reopened.close()


async def test_a_large_collection_gets_a_vector_index_that_finds_the_same(tmp_path: Path) -> None:
    database = await Database.open("acme", tmp_path, flat_rows=200)
    index = await database.create("documents", model="m", dimension=DIMENSION)
    rng = np.random.default_rng(0)
    rows = []
    for n in range(600):
        vector = rng.normal(size=(1, DIMENSION)).astype(np.float32)
        rows.append(replace(entry(f"d{n}", f"Document {n}."), vectors=vector, leads=vector))
    await index.upsert(rows)
    kinds = {i.index_type for i in await index._table.list_indices() if "vector" in i.columns}
    assert kinds == {"IvfFlat"}
    assert await index.recall(k=10, sample=30) == 1.0
    await database.close()


async def test_words_are_read_as_the_analysis_says(tmp_path: Path) -> None:
    plain = await Database.open("acme", tmp_path, analysis=Analysis(stem=False, stop_words=None))
    index = await plain.create("documents", model="m", dimension=DIMENSION)
    await index.upsert([entry("a", "He copies the files.")])
    assert await found(index, "copying", mode="text") == []
    assert await found(index, "the", mode="text") == ["a"]
    await plain.close()


async def test_a_filter_that_lancedb_does_not_take_is_a_typed_error(index: Collection, monkeypatch: Any) -> None:
    monkeypatch.setattr("kit.components.rag.index.to_sql", lambda _: "no such (")
    with pytest.raises(FilterRefused):
        await found(index, "x", condition=field("n") == 1)


def test_a_tenants_uri_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert database_uri("acme", "s3://bucket/lance/") == "s3://bucket/lance/acme"
    monkeypatch.setenv("KIT_LANCEDB_URI", "/data")
    assert database_uri("acme") == "/data/acme"
    with pytest.raises(ConfigurationError):
        database_uri("../globex")


def test_a_fingerprint_is_over_everything() -> None:
    known = {"metadata": {"a": 1}}
    one = fingerprint("text", model="m", chunking=Chunking(), known=known)
    assert one == fingerprint(b"text", model="m", chunking=Chunking(), known=known)
    others = [
        fingerprint("text!", model="m", chunking=Chunking(), known=known),
        fingerprint("text", model="n", chunking=Chunking(), known=known),
        fingerprint("text", model="m", chunking=Chunking(max_chars=500), known=known),
        fingerprint("text", model="m", chunking=Chunking(), known={"metadata": {"a": 2}}),
    ]
    assert len({one, *others}) == 5
