"""A document question measured end to end, and its parts beside what one would write by hand."""

from __future__ import annotations

import cProfile
import pstats
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kit import codec
from kit.catalogue import USE_CASE_DOCUMENT_QA
from kit.components import document_qa, gateway, rag
from kit.components.gateway.litellm_calls import litellm_module
from kit.components.rag.index import Mode, database_uri
from kit.components.rag.rows import COLUMNS, Entry
from kit.lab import charts
from kit.lab.bench import Comparison, Target, Verdict, compare, compare_async

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from kit.nats.bus import Bus
    from kit.otel import Telemetry

KIT, HYBRID, LANCEDB, NUMPY = "kit, vector", "kit, hybrid", "bare LanceDB", "numpy"
GATEWAY, DIRECT = "gateway in process", "litellm.acompletion"
IMPORT, PYTHON = "import kit", "bare Python"
HEAVY = ("nats", "opentelemetry.sdk", "litellm", "lancedb", "pandas")
DIMENSION = 256
_WHOLE = USE_CASE_DOCUMENT_QA.name
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


def stages(telemetry: Telemetry, number: int) -> pd.DataFrame:
    """Return where the last questions' time went: milliseconds that each span spent outside the spans below it.

    What a caller waits beyond the handler's own span is the way there and back: encoding, NATS, decoding.
    """
    import pandas as pd

    recorder = telemetry.recorder
    wanted = [key for key, group in recorder.spans().groupby("trace_id") if _WHOLE in set(group["name"])]
    own: dict[str, float] = defaultdict(float)
    chosen = [key for key in recorder.trace_ids() if key in set(wanted)][-number:]
    for key in chosen:
        for node, _ in recorder.trace(key).walk():
            if node.span is not None:
                end = node.start_ns + node.seconds * 1e9
                below = sorted((c.start_ns, min(c.start_ns + c.seconds * 1e9, end)) for c in node.children)
                own[node.name] += node.seconds - _covered(below) / 1e9
    table = pd.Series(own, name="own").div(len(chosen)).sort_values(ascending=False).to_frame()
    return table.assign(share=table["own"] / table["own"].sum())


def flame(table: pd.DataFrame, *, most: int = 6) -> Figure:
    """Return one stacked bar of the stages, the rest in one."""
    import matplotlib.pyplot as plt

    shown = dict(table["own"].head(most) * 1e3)
    shown["everything else"] = float(table["own"].iloc[most:].sum() * 1e3)
    with charts.style():
        drawn, axes = plt.subplots(figsize=(7.6, 2.6))
        left = 0.0
        for number, (name, width) in enumerate(shown.items()):
            color, hatch = charts.SERIES[number % len(charts.SERIES)], charts.HATCHES[number % len(charts.HATCHES)]
            axes.barh(0, width, left=left, color=color, hatch=hatch, edgecolor=charts.PAPER, height=0.6, label=name)
            left += width
        axes.set_title("Where the time of one question goes")
        axes.set_xlabel("time (ms)")
        axes.set_yticks([])
        axes.grid(visible=False, axis="y")
        drawn.legend(loc="outside lower left", ncols=2, fontsize=9)
    return drawn


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """Return the length of the union of intervals, sorted by their begin."""
    total, until = 0.0, 0.0
    for begin, end in spans:
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


async def profile(bus: Bus, cases: Sequence[rag.Case], *, rows: int = 10) -> pd.DataFrame:
    """Return the functions that took most time of their own while questions were asked, from cProfile.

    Only what runs on the event loop's thread is seen; the profiler itself makes Python's functions look slower.
    """
    import pandas as pd

    profiler = cProfile.Profile()
    profiler.enable()
    for case in cases:
        await document_qa.ask(bus, case.question)
    profiler.disable()
    found = []
    for (file, _, function), (_, calls, own, *_) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        if "poll" in function and "select" in function:  # the loop asleep: that is waiting, not work
            continue
        where = Path(file).stem if file != "~" else "built-in"
        found.append({"function": f"{where}.{function}", "calls": calls / len(cases), "own": own / len(cases)})
    return pd.DataFrame(found).set_index("function").sort_values("own", ascending=False).head(rows)


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
        """Return them from LanceDB by hand, with the same columns."""
        query = self._table.query().nearest_to(self._asked).column("vector").distance_type("cosine").limit(5)
        return [row["chunk_id"] for row in await query.select([*COLUMNS, "_distance"]).to_list()]

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


async def gateway_cost(bus: Bus, *, rounds: int, samples: int) -> Comparison:
    """Measure the same model, asked through the gateway in process and by LiteLLM itself; no cache."""
    litellm = await litellm_module()
    messages = [{"role": "user", "content": _PROMPT}]
    asked = {"tenant_id": bus.tenant_id, "model": "kit/extractive", "messages": messages}
    expected = (await litellm.acompletion(model="kit/extractive", messages=messages)).choices[0].message.content

    async def direct() -> str:
        answer = await litellm.acompletion(model="kit/extractive", messages=messages)
        return str(answer.choices[0].message.content)

    async with gateway.in_process(bus, gateway.Settings(cache_ttl=0)) as ours:

        async def through() -> str:
            request = {**asked, "request_id": "benchmark", "timestamp": codec.now()}
            return str((await ours.respond(request))["response"])

        return await compare_async(
            {DIRECT: direct, GATEWAY: through}, name="gateway_in_process", check=lambda text: text == expected,
            rounds=rounds, samples=samples,
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
