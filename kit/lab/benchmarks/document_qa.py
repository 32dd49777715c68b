"""A document question measured end to end, and its parts beside what one would write by hand."""

from __future__ import annotations

import functools
import itertools
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from kit import codec
from kit.components import document_qa, gateway, rag
from kit.components.gateway.litellm_calls import litellm_module
from kit.lab.bench import Comparison, Target, Verdict, compare_async
from kit.lab.benchmarks import question_flame
from kit.lab.benchmarks.contest import Contender, Contest
from kit.lab.benchmarks.provider import ANSWER, provider
from kit.lab.project import project_root
from kit.lab.session import start

if TYPE_CHECKING:
    from kit.lab.session import Lab
    from kit.nats.bus import Bus

DIRECT, OPENAI = "litellm.acompletion", "openai client"
GATEWAY, RECORDED = "gateway in process", "gateway, with LiteLLM's record"
IMPORT, PYTHON = "import kit", "bare Python"
HEAVY = ("nats", "opentelemetry.sdk", "litellm", "lancedb", "pandas")
_CALLBACK_LISTS = (
    "callbacks", "success_callback", "failure_callback", "_async_success_callback", "_async_failure_callback",
)  # fmt: skip
_PROMPT = "Context:\n[1] Refunds are paid within fourteen days of purchase.\n\nQuestion: When are refunds paid?"


class Workplace:
    """Document Q&A, RAG and the gateway, served on a lab of its own over the questions of ``data/python_faq.jsonl``.

    It starts when something is measured on it first: what renders kept samples again never starts it.
    """

    def __init__(self) -> None:
        self.corpus = project_root() / "data" / "python_faq.jsonl"
        self._lab: Lab | None = None

    def cases(self, number: int) -> list[rag.Case]:
        """Return so many of the corpus' questions, from all over it."""
        cases = rag.read_cases(self.corpus)
        return cases[:: max(1, len(cases) // number)][:number]

    async def lab(self) -> Lab:
        """Return the lab, its workers started and the corpus ingested."""
        if self._lab is None:
            self._lab = await start()
            await self._lab.serve("gateway", "rag", "document_qa", cache_ttl=0)
            await rag.ingest_jsonl(self._lab.bus, self.corpus)
        return self._lab

    async def questions(self, number: int) -> Comparison:
        """Ask so many questions, end to end."""
        return await ask_all((await self.lab()).bus, self.cases(number))

    async def flame(self, number: int) -> dict[str, Any]:
        """Return where the time of the last questions went, as plain JSON: from their traces, and from a profile."""
        lab = await self.lab()
        return (await question_flame.measure(lab.bus, lab.telemetry, self.cases(number))).plain()

    async def ingestion(self, sizes: Sequence[int], *, rounds: int) -> Comparison:
        """Ingest documents of so many chunks."""
        return await ingest_sizes((await self.lab()).bus, sizes, rounds=rounds)

    async def gateway(self, *, rounds: int, samples: int) -> Comparison:
        """Ask one provider through the gateway, and beside it."""
        async with provider() as url:
            return await gateway_cost((await self.lab()).bus, url, rounds=rounds, samples=samples)

    async def close(self) -> None:
        """Stop the lab, if it was started."""
        if self._lab is not None:
            await self._lab.stop()


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
    return f"{number} chunk{'s' if number > 1 else ''}"


def _section(document: int, part: int) -> str:
    """A section that is a chunk: with a heading of its own, and about as long as one may be."""
    said = f"Refunds of kind {part} in case {document} are paid within {part % 31} days of the purchase. "
    return f"# Part {part} of {document}\n\n{said * 14}"


# --- the gateway ------------------------------------------------------------------------------------------------


async def gateway_cost(bus: Bus, url: str, *, rounds: int, samples: int) -> Comparison:
    """Measure one provider, asked through the gateway in process, by LiteLLM itself and by the openai client; no cache.

    The gateway works in two ways: as it is, and with somebody's callback, for which LiteLLM records each success. Calls
    of one contender stand in a row, since what LiteLLM leaves to the background falls on the call after it.

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
    async with client, _closing_clients(litellm), gateway.in_process(bus, settings) as ours:

        async def through() -> str:
            request = {**asked, "request_id": "benchmark", "timestamp": codec.now()}
            return str((await ours.respond(request))["response"])

        async def recorded() -> str:
            with _callback(litellm):
                return await through()

        return await compare_async(
            {DIRECT: direct, GATEWAY: through, RECORDED: recorded, OPENAI: by_openai},
            name="gateway_in_process", check=ANSWER.__eq__, rounds=rounds, samples=samples,
        )  # fmt: skip


@contextmanager
def _callback(litellm: Any) -> Iterator[None]:
    """Register a callback that does nothing, and take it out of each list into which LiteLLM puts it."""
    lists = [getattr(litellm, name) for name in _CALLBACK_LISTS]
    before = [list(held) for held in lists]
    litellm.callbacks.append(_idle_callback())
    try:
        yield
    finally:
        for held, kept in zip(lists, before, strict=True):
            held[:] = kept


@functools.cache
def _idle_callback() -> Any:
    return import_module("litellm.integrations.custom_logger").CustomLogger()


@asynccontextmanager
async def _closing_clients(litellm: Any) -> AsyncIterator[None]:
    """Close the clients that LiteLLM makes meanwhile, and have it forget them."""
    held = litellm.in_memory_llm_clients_cache.cache_dict
    before = set(held)
    try:
        yield
    finally:
        for name in set(held) - before:
            await held.pop(name).close()


# --- importing --------------------------------------------------------------------------------------------------


def importing() -> Contest:
    """Return a fresh interpreter that does nothing, and one that imports the kit and tells what it has loaded."""
    told = f"import kit, sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"

    def run(code: str) -> Callable[[], str]:
        command = [sys.executable, "-c", code]
        return lambda: subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    calls = {PYTHON: run("import sys; print()"), IMPORT: run(told)}
    return Contest(
        name="import",
        contenders={name: Contender(call=call, check="".__eq__, contract=False) for name, call in calls.items()},
    )


# --- goals ------------------------------------------------------------------------------------------------------


def gateway_goal(result: Comparison) -> Verdict:
    """Return the verdict on the gateway, beside LiteLLM that is asked directly."""
    ratio = result.ratio(GATEWAY, to=DIRECT)
    target = Target(
        "gateway in process", 1.05, unit="×", metric=f"p50 against {DIRECT}, no callback registered", goal=True
    )
    return target.verdict(ratio.value, ratio=ratio, interval=ratio)


def import_goal(result: Comparison) -> Verdict:
    """Return the verdict on ``import kit``, over an interpreter that starts and ends."""
    more = result.difference(IMPORT, to=PYTHON)
    target = Target("import kit", 0.060, metric="over bare Python", goal=True)
    return target.verdict(more.value, interval=more, ratio=result.ratio(IMPORT, to=PYTHON))
