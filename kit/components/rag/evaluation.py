"""How good retrieval and answers are: recall, MRR and grounding, as tables and pictures.

A case is a question and the document that answers it. Recall@k is the share of cases whose document is among the
first k documents found; MRR@10 is the mean of one over its place, 0 from the eleventh on. A document stands where its
best passage stands.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kit import codec
from kit.components.rag.chunking import Chunking, chunk
from kit.components.rag.citations import check_citations
from kit.components.rag.client import query
from kit.components.rag.embedding import Embedder
from kit.components.rag.index import Analysis, Collection, Database, Mode
from kit.components.rag.ranking import Ranking
from kit.components.rag.readers import Document, read, title_from
from kit.components.rag.rows import Entry, embedded_lead, embedded_text
from kit.components.rag.service import EMBEDDING_MODEL

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from kit.nats.bus import Bus

DEPTH = 50  # passages looked at for one question: as many as each search brings a query
MRR_AT = 10
KS = (1, 3, 5, 10)
_AT_ONCE = 4
_PLAIN = Analysis(stem=False, stop_words=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A question, and the document that answers it."""

    question: str
    document_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One way to search, to be compared with others."""

    name: str
    mode: Mode = "hybrid"
    ranking: Ranking = field(default_factory=Ranking)
    analysis: Analysis = field(default_factory=Analysis)


STEPS = (
    Step(name="vector only", mode="vector"),
    Step(name="text only, as LanceDB reads it", mode="text", analysis=_PLAIN),
    Step(name="text only, stems and no stop words", mode="text"),
    Step(name="both, reciprocal ranks", ranking=Ranking(lead=0, grams=0, fusion="reciprocal"), analysis=_PLAIN),
    Step(name="+ stems, no stop words", ranking=Ranking(lead=0, grams=0, fusion="reciprocal")),
    Step(name="+ standard scores for ranks", ranking=Ranking(lead=0, grams=0)),
    Step(name="+ the passage's lead", ranking=Ranking(grams=0)),
    Step(name="+ letter runs", ranking=Ranking()),
)


def read_cases(path: str | Path, *, question: str = "question") -> list[Case]:
    """Return the cases of a JSON Lines file: each line's question, where it is one, and its ``document_id``."""
    rows = [codec.loads(line) for line in Path(path).read_bytes().splitlines() if line.strip()]
    return [Case(question=row[question], document_id=row["document_id"]) for row in rows if row[question].endswith("?")]


async def evaluate(
    bus: Bus,
    cases: Iterable[Case],
    *,
    modes: Sequence[Mode] = ("hybrid", "vector", "text"),
    ks: Sequence[int] = KS,
    collection: str | None = None,
    **parameters: Any,
) -> pd.DataFrame:
    """Ask every case over the bus, and return recall@k and MRR@10 for each mode.

    Args:
        cases: the documents must be in the index.
        modes: ways to search.
        ks: where to look at recall.
        collection, parameters: as for ``query``.
    """
    import pandas as pd

    asked, rows = list(cases), {}
    gate = asyncio.Semaphore(_AT_ONCE)

    async def place(case: Case, mode: Mode) -> int:
        async with gate:
            found = await query(
                bus, case.question, mode=mode, top_k=DEPTH, generate=False, collection=collection,
                include_content=False, **parameters,
            )  # fmt: skip
        return rank(case.document_id, [source["document_id"] for source in found["sources"]])

    for mode in modes:
        rows[mode] = measures(await asyncio.gather(*(place(case, mode) for case in asked)), ks)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("mode")


async def evaluate_answers(
    bus: Bus, cases: Iterable[Case], *, collection: str | None = None, **parameters: Any
) -> pd.DataFrame:
    """Have every case answered over the bus, and return a row for each: answered, right document cited, grounding.

    ``grounding`` is the share of the answer's claims that the cited passages support; it is missing where there is no
    answer. The model sees a document's id as its title where it has no other, as any question's answerer does.
    """
    import pandas as pd

    gate = asyncio.Semaphore(_AT_ONCE)

    async def row(case: Case) -> dict[str, Any]:
        async with gate:
            result = await query(bus, case.question, collection=collection, **parameters)
        cited = [source["document_id"] for source in result["sources"] if source.get("cited")]
        checked = check_citations(result)
        return {
            "question": case.question,
            "answered": result["supported"],
            "cites the right document": case.document_id in cited,
            "grounding": checked.supported_share if result["supported"] else np.nan,
            "claims": len(checked.claims),
        }

    return pd.DataFrame(await asyncio.gather(*(row(case) for case in cases)))


async def ablation(
    bus: Bus,
    documents: Iterable[Document],
    cases: Iterable[Case],
    *,
    steps: Sequence[Step] = STEPS,
    chunking: Chunking | None = None,
    embedding_model: str = EMBEDDING_MODEL,
    ks: Sequence[int] = KS,
) -> pd.DataFrame:
    """Return recall@k and MRR@10 of each step from plain search to the kit's own, on an index made for it alone.

    Embeddings come over the bus; the tenant's own index is not touched.
    """
    import pandas as pd

    held, asked = list(documents), list(cases)
    embedder, chunking = Embedder(bus, embedding_model), chunking or Chunking()
    entries = [await _entry(document, embedder, chunking) for document in held]
    vectors = (await embedder.documents([case.question for case in asked])).vectors
    rows = {}
    with tempfile.TemporaryDirectory(prefix="kit-ablation-") as folder:
        for number, analysis in enumerate(dict.fromkeys(step.analysis for step in steps)):
            database = await Database.open(bus.tenant_id, Path(folder, str(number)), analysis=analysis)
            index = await database.create("ablation", model=embedding_model, dimension=vectors.shape[1])
            for begin in range(0, len(entries), 500):
                await index.upsert(entries[begin : begin + 500])
            await index.cover()
            for step in steps:
                if step.analysis == analysis:
                    rows[step.name] = measures(await _places(index, step, asked, vectors), ks)
            await database.close()
    return pd.DataFrame.from_dict({step.name: rows[step.name] for step in steps}, orient="index").rename_axis("step")


async def _entry(document: Document, embedder: Embedder, chunking: Chunking) -> Entry:
    reading = read(document.document_id, document.content, document.media_type)
    chunks = chunk(reading.text, chunking, markdown=reading.markdown)
    title = document.title or reading.title or title_from(document.source or "")
    texts = [embedded_text(part, title) for part in chunks]
    embedded = await embedder.documents(texts + [embedded_lead(part, title, chunking) for part in chunks])
    return Entry(
        document_id=document.document_id, sha256="", sent_at="", chunks=chunks, title=title,
        vectors=embedded.vectors[: len(chunks)], leads=embedded.vectors[len(chunks) :],
    )  # fmt: skip


async def _places(index: Collection, step: Step, cases: Sequence[Case], vectors: NDArray[np.float32]) -> list[int]:
    places = []
    for case, vector in zip(cases, vectors, strict=True):
        hits = await index.search(case.question, vector, mode=step.mode, top_k=DEPTH, ranking=step.ranking)
        places.append(rank(case.document_id, [hit.document_id for hit in hits]))
    return places


def rank(document_id: str, found: Iterable[str]) -> int:
    """Return the place of a document, from 1, among the documents found, each counted once; 0 where it is not."""
    order = list(dict.fromkeys(found))
    return order.index(document_id) + 1 if document_id in order else 0


def measures(places: Sequence[int], ks: Sequence[int] = KS) -> dict[str, float]:
    """Return recall@k for each k, and MRR@10, of places counted from 1; 0 stands for not found."""
    counted = np.asarray(places)
    found = {f"recall@{k}": float(((counted > 0) & (counted <= k)).mean()) for k in ks}
    reciprocal = np.divide(1.0, counted, out=np.zeros(len(counted)), where=(counted > 0) & (counted <= MRR_AT))
    return {**found, f"MRR@{MRR_AT}": float(reciprocal.mean())}


def figure(table: pd.DataFrame, *, title: str = "Retrieval", target: Mapping[str, float] | None = None) -> Figure:
    """Draw a table of ``evaluate`` or ``ablation``: recall@5 and MRR@10 for each row, with target lines.

    Args:
        table: with the columns ``recall@5`` and ``MRR@10``.
        target: column to the value that is to be beaten.
    """
    import matplotlib as mpl

    with mpl.rc_context({"text.parse_math": False}):  # a dollar in a name is a dollar
        return _drawn(table, title, target)


def _drawn(table: pd.DataFrame, title: str, target: Mapping[str, float] | None) -> Figure:
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(7.6, 0.42 * len(table) + 1.4), layout="constrained")
    axes = drawn.subplots()
    lines = np.arange(len(table))[::-1]
    for column, marker, color, dash in (("MRR@10", "s", "#e08e0b", ":"), ("recall@5", "o", "#1d4e89", "--")):
        values = table[column].to_numpy()
        axes.hlines(lines, 0, values, color="#d9dde3", linewidth=1, zorder=1)
        axes.plot(values, lines, marker, color=color, label=column, markersize=8, zorder=3)
        for value, line in zip(values, lines, strict=True):
            axes.annotate(f"{value:.3f}", (value, line), (0, 7), textcoords="offset points", ha="center", fontsize=8)
        if target and column in target:
            axes.axvline(target[column], color=color, linestyle=dash, linewidth=1.2, zorder=2)
    axes.set_yticks(lines, [str(name) for name in table.index])
    axes.set_xlim(max(0.0, float(table[["recall@5", "MRR@10"]].to_numpy().min()) - 0.1), 1.0)
    axes.set_ylim(-0.6, len(table) - 0.3)
    axes.set_xlabel("share of questions, 1 is perfect" + ("; dashed and dotted: to be beaten" if target else ""))
    axes.set_title(title, loc="left", fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, frameon=False)
    return drawn
