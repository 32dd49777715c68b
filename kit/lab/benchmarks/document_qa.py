"""A document question measured end to end, and its parts beside what one would write by hand."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kit import codec
from kit.components import database_uri, document_qa, gateway, rag
from kit.components.gateway.litellm_calls import litellm_module
from kit.components.rag.index import Mode
from kit.components.rag.rows import COLUMNS, Entry
from kit.lab.bench import Comparison, Target, Verdict, compare, compare_async
from kit.lab.benchmarks.provider import ANSWER

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kit.nats.bus import Bus

KIT, HYBRID, LANCEDB, NUMPY = "kit, vector", "kit, hybrid", "bare LanceDB", "numpy"
GATEWAY, DIRECT, OPENAI = "gateway in process", "litellm.acompletion", "openai client"
IMPORT, PYTHON = "import kit", "bare Python"
HEAVY = ("nats", "opentelemetry.sdk", "litellm", "lancedb", "pandas")
DIMENSION = 256
_PROMPT = "Context:\n[1] Refunds are paid within fourteen days of purchase.\n\nQuestion: When are refunds paid?"


# --- end to end -------------------------------------------------------------------------------------------------


async def ask_all(bus: Bus, cases: Sequence[rag.Case], *, rounds: int = 1) -> Comparison:
    """Ask each question over the bus, one after the other; an answer without a source is an error."""
    questions = [case.question for case in cases] * (rounds + 1)
    waiting = iter(questions)
    return await compare_async(
        {"kit": lambda: document_qa.ask(bus, next(waiting))}, name="document_qa",
        check=lambda answer: answer["status"] == "success" and bool(answer["sources"]),
        rounds=rounds, samples=len(cases), warmup=1,
    )  # fmt: skip


# --- chunks per document ----------------------------------------------------------------------------------------


async def ingest_sizes(bus: Bus, sizes: Sequence[int], *, rounds: int) -> Comparison:
    """Measure how long one document takes from the caller's call until it is indexed, by its number of chunks.

    Each is a document that is not there yet, in a collection of its own, and has to become that many chunks.
    """
    serial = itertools.count()

    def ingest(chunks: int) -> Callable[[], Awaitable[list[int]]]:
        async def one() -> list[int]:
            number = next(serial)
            content = "\n\n".join(_section(number, part) for part in range(chunks))
            document = {"document_id": f"sized-{number}", "content": content, "media_type": "text/markdown"}
            done = await rag.ingest_documents(bus, [document], collection="sized")
            return [entry["chunks"] for entry in done.statuses]

        return one

    return await compare_async(
        {_chunks(size): ingest(size) for size in sizes}, name="ingest_chunks",
        check={_chunks(size): [size].__eq__ for size in sizes}, rounds=rounds, samples=1, warmup=1,
    )  # fmt: skip


def per_chunk(result: Comparison) -> tuple[float, float]:
    """Return the seconds that a document takes, and those that each of its chunks adds: a line through the medians."""
    sizes = [int(name.split()[0]) for name in result.samples]
    slope, fixed = np.polyfit(sizes, [result.percentile(name) for name in result.samples], 1)
    return float(fixed), float(slope)


def _chunks(number: int) -> str:
    return f"{number} chunks"


def _section(document: int, part: int) -> str:
    """A section that is a chunk: with a heading of its own, and about as long as one may be."""
    said = f"Refunds of kind {part} in case {document} are paid within {part % 31} days of the purchase. "
    return f"# Part {part} of {document}\n\n{said * 14}"


# --- the tenant's search ----------------------------------------------------------------------------------------


class Index:
    """A tenant's collection with so many made-up passages, and the same rows for those who search by hand."""

    def __init__(self, collection: rag.Collection, table: Any, vectors: NDArray[np.float32]) -> None:
        self.collection, self._table, self._vectors = collection, table, vectors
        self._asked = np.random.default_rng(1).standard_normal(DIMENSION, dtype=np.float32)

    def numpy(self) -> list[str]:
        """Return the ids of the five nearest passages: normalised vectors, one product, the best five sorted."""
        query = self._asked / np.linalg.norm(self._asked)
        cosines = self._vectors @ query
        best = np.argpartition(cosines, -5)[-5:]
        return [f"d{row}#0" for row in best[np.argsort(-cosines[best])]]

    async def bare(self) -> list[str]:
        """Return them from LanceDB by hand, with the same columns, and all partitions where there is an index."""
        query = self._table.query().nearest_to(self._asked).column("vector").distance_type("cosine").nprobes(64)
        return [row["chunk_id"] for row in await query.limit(5).select([*COLUMNS, "_distance"]).to_list()]

    async def search(self, mode: Mode = "vector") -> list[str]:
        """Return them from the kit."""
        return [hit.chunk_id for hit in await self.collection.search("passage refunds", self._asked, mode=mode)]

    async def compare(self, *, rounds: int, samples: int) -> Comparison:
        """Measure all of them; the vector searches have to find the same passages in the same order."""
        truth = self.numpy()

        async def by_hand() -> list[str]:
            return self.numpy()

        contenders: dict[str, Callable[[], Awaitable[list[str]]]] = {
            LANCEDB: self.bare, NUMPY: by_hand, KIT: self.search, HYBRID: lambda: self.search("hybrid"),
        }  # fmt: skip
        exact = dict.fromkeys((LANCEDB, NUMPY, KIT), lambda found: found == truth)
        return await compare_async(
            contenders, name=f"search_{len(self._vectors)}", check={**exact, HYBRID: lambda found: len(found) == 5},
            rounds=rounds, samples=samples,
        )  # fmt: skip


@asynccontextmanager
async def index(folder: Path, rows: int) -> AsyncIterator[Index]:
    """Make a tenant's collection of so many passages, and open it."""
    import lancedb

    vectors = np.random.default_rng(0).standard_normal((rows, DIMENSION), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    tenant = f"rows-{rows}"
    database = await rag.Database.open(tenant, folder)
    try:
        collection = await database.create("documents", model="random", dimension=DIMENSION)
        await collection.upsert([_entry(row, vectors[row : row + 1]) for row in range(rows)])
        await collection.cover()
        with await lancedb.connect_async(database_uri(tenant, folder)) as connection:
            yield Index(collection, await connection.open_table("documents"), vectors)
    finally:
        await database.close()


def _entry(row: int, vector: NDArray[np.float32]) -> Entry:
    text = f"Passage {row} says how refunds of kind {row % 97} are paid within {row % 31} days."
    chunks = rag.chunk(text, rag.Chunking())
    key = f"d{row}"
    return Entry(document_id=key, sha256=key, sent_at="1", chunks=chunks, vectors=vector, leads=vector)


# --- the gateway ------------------------------------------------------------------------------------------------


async def gateway_cost(bus: Bus, url: str, *, rounds: int, samples: int) -> Comparison:
    """Measure one provider, asked through the gateway in process, by LiteLLM itself and by the openai client; no cache.

    Args:
        url: of a provider that speaks OpenAI's protocol, as ``kit.lab.benchmarks.provider`` does.
    """
    litellm = await litellm_module()
    messages = [{"role": "user", "content": _PROMPT}]
    asked = {"tenant_id": bus.tenant_id, "model": "local", "messages": messages}
    deployment = {"model": "openai/answer", "api_base": url, "api_key": "none"}
    client = import_module("openai").AsyncOpenAI(base_url=url, api_key="none")  # LiteLLM comes with it

    async def direct() -> str:
        answer = await litellm.acompletion(messages=messages, **deployment)
        return str(answer.choices[0].message.content)

    async def by_openai() -> str:
        answer = await client.chat.completions.create(model="answer", messages=messages)
        return str(answer.choices[0].message.content)

    settings = gateway.Settings(cache_ttl=0, models={"local": deployment})
    async with client, gateway.in_process(bus, settings) as ours:

        async def through() -> str:
            request = {**asked, "request_id": "benchmark", "timestamp": codec.now()}
            return str((await ours.respond(request))["response"])

        return await compare_async(
            {DIRECT: direct, GATEWAY: through, OPENAI: by_openai}, name="gateway_in_process",
            check=lambda text: text == ANSWER, rounds=rounds, samples=samples,
        )  # fmt: skip


# --- importing --------------------------------------------------------------------------------------------------


def importing(*, rounds: int) -> Comparison:
    """Measure a fresh interpreter that does nothing, and one that imports the kit and tells what it has loaded."""
    told = f"import kit, sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"

    def run(code: str) -> Callable[[], str]:
        command = [sys.executable, "-c", code]
        return lambda: subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    return compare(
        {PYTHON: run("import sys; print()"), IMPORT: run(told)}, name="import", check=lambda loaded: loaded == "",
        rounds=rounds, samples=1, warmup=1,
    )  # fmt: skip


# --- goals ------------------------------------------------------------------------------------------------------


def search_goal(result: Comparison) -> Verdict:
    """Return the verdict on the tenant's search by vectors."""
    return _ratio("tenant's search", result, KIT, LANCEDB, 1.1)


def gateway_goal(result: Comparison) -> Verdict:
    """Return the verdict on the gateway."""
    return _ratio("gateway in process", result, GATEWAY, DIRECT, 1.05)


def import_goal(result: Comparison) -> Verdict:
    """Return the verdict on ``import kit``, over an interpreter that starts and ends."""
    return Target("import kit", 0.060, metric="over bare Python", goal=True).verdict(
        result.difference(IMPORT, to=PYTHON).value
    )


def _ratio(name: str, result: Comparison, mine: str, theirs: str, bound: float) -> Verdict:
    ratio = result.ratio(mine, to=theirs)
    target = Target(name, bound, unit="×", metric=f"p50 against {theirs}", goal=True)
    return target.verdict(ratio.value, ratio=ratio)
