"""Drills of components: providers that misbehave, workers that are killed, disks and descriptors that run out."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

from kit.catalogue import AGENT_TASKS, GATEWAY_EMBEDDINGS, LLMOPS_OPERATIONS, MLOPS_TRAINING, RAG_INGEST
from kit.lab.drills.drill import Run, drill
from kit.lab.drills.faults import Stand, eventually, files_open, fill, memory, require_mounts, within
from kit.lab.drills.load import TASK, TEXTS, calls, lab_beside, shortened, working
from kit.lab.session import Lab

# --- money ------------------------------------------------------------------------------------------------------

PRICES = {"input_cost_per_token": 0.001, "output_cost_per_token": 0.002}
ANSWER = {
    "id": "c", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Well answered."}}],
    "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
}  # fmt: skip
# What a provider may do, by the model's name; and the most calls that `retries=2` may make of it.
_FAULTS: dict[str, tuple[Any, int]] = {
    "fail-402": ((402, {"error": {"message": "pay"}}), 1),
    "fail-500": ((500, {"error": {"message": "broken"}}), 3),
    "malformed": ((200, b'{"id": "x", "choices": [{"mess'), 3),
    "cut": ((200, b""), 3),
    "hang": (None, 3),
    "no-choices": ((200, {**ANSWER, "choices": []}), 3),
    "no-usage": ((200, {key: value for key, value in ANSWER.items() if key != "usage"}), 1),
    "absurd-usage": ((200, {**ANSWER, "usage": {"prompt_tokens": 11, "completion_tokens": 10**9}}), 3),
}  # fmt: skip


@drill("7", "≤ 1 + retries calls; typed errors, in time; all logged; missing usage estimated, absurd usage not paid",
       short={"timeout": 8.0}, long={"timeout": 20.0})  # fmt: skip
async def provider_faults(run: Run, timeout: float) -> None:
    """Ask a provider that refuses, fails, hangs, breaks off, answers nonsense, or reports no or absurd usage."""
    from kit.components import gateway

    called, logged = Counter[str](), Counter[str]()

    def answer(_: str, body: Any) -> Any:
        called[body["model"]] += 1
        return _FAULTS[body["model"]][0]

    async def log(message: Any) -> None:
        logged[message.data["model"]] += 1

    async with run.lab() as lab, Stand(answer) as stand:
        key = {"api_base": f"{stand.url}/v1", "api_key": "none", **PRICES}
        models = {name: {"model": f"openai/{name}", **key} for name in _FAULTS}
        await lab.serve("gateway", models=models, retries=2, timeout=timeout, budget={"limit": 100.0, "period": "day"})
        await lab.bus.subscribe(LLMOPS_OPERATIONS, log)
        asked = [
            within(gateway.generate(lab.bus, prompt="Hi", model=name, max_tokens=20, timeout=timeout))
            for name in _FAULTS
        ]
        ends = dict(zip(_FAULTS, await asyncio.gather(*asked), strict=True))
        await eventually(lambda: logged.keys() >= _FAULTS.keys() - {"hang"}, 3.0)
    run.figure("kinds of faults", len(_FAULTS))
    run.expect("calls beyond", sum(max(0, called[name] - most) for name, (_, most) in _FAULTS.items()))
    run.expect("late by", max(max(0.0, seconds - timeout - 0.5) for seconds, _ in ends.values()), "s")
    failed = [said for name, (_, said) in ends.items() if name not in ("no-usage", "absurd-usage", "hang")]
    typed = (gateway.ProviderFailed, gateway.ResponseInvalid)
    run.expect("untyped errors", sum(not isinstance(said, typed) for said in failed))
    run.expect("not in the log", len(_FAULTS.keys() - logged.keys() - {"hang"}))
    free = ends["no-usage"][1]
    run.expect("cost of no usage", free["cost"] if isinstance(free, dict) else 0.0, "USD", least=1e-6, most=1.0)
    absurd = ends["absurd-usage"][1]
    run.expect("cost of absurd usage", absurd["cost"] if isinstance(absurd, dict) else 0.0, "USD", most=1.0)


# --- documents --------------------------------------------------------------------------------------------------


def _documents(count: int, version: int, paragraphs: int = 3) -> list[dict[str, Any]]:
    text = "\n\n".join(f"Paragraph {part} of version {version}: the river runs." for part in range(paragraphs))
    return [{"document_id": f"d{number}", "content": f"Document {number}.\n\n{text}"} for number in range(count)]


async def _mixed(lab: Lab, version: int | None = None) -> tuple[int, int]:
    """Return how many of a query's documents show two versions, or another than asked for; and how many it found."""
    from kit.components import rag

    found = await rag.query(lab.bus, "the river runs", generate=False, top_k=40, mode="vector")
    versions: dict[str, set[str]] = {}
    for source in found["sources"]:
        if "of version " in source["content"]:
            number = source["content"].split("of version ")[1].split(":")[0]
            versions.setdefault(source["document_id"], set()).add(number)
    wrong = sum(len(of) > 1 or (version is not None and of != {str(version)}) for of in versions.values())
    return wrong, len(versions)


async def _rows(folder: Path) -> list[dict[str, Any]]:
    """Return the tenant's chunks as they lie in LanceDB."""
    from kit.components.rag import Database

    database = await Database.open("acme", folder)
    collection = await database.collection()
    assert collection is not None
    found = await collection._table.query().select(["document_id", "chunk_id", "content"]).to_arrow()
    await database.close()
    rows: list[dict[str, Any]] = found.to_pylist()
    return rows


@drill("10", "every chunk once, in its last version; no document dead",
       short={"documents": 30, "kills": 1, "versions": 2, "lease": 2.0},
       long={"documents": 200, "kills": 6, "versions": 3, "lease": 5.0})  # fmt: skip
async def rag_workers_killed(run: Run, documents: int, kills: int, versions: int, lease: float) -> None:
    """SIGKILL one of two RAG workers again and again while every document gets one version after the other."""
    from kit.components import rag

    place = {"KIT_LANCEDB_URI": str(run.folder / "lancedb")}
    async with lab_beside(run, **place) as (lab, processes):
        with shortened(lease, RAG_INGEST):
            await lab.serve("gateway")
            alive = list(await asyncio.gather(*(processes.worker("rag", lease=lease) for _ in range(2))))
            failures = 0
            for version in range(versions):
                sent = asyncio.create_task(rag.ingest_documents(lab.bus, _documents(documents, version), in_flight=8))
                for _ in range(-(-kills // versions)):
                    await asyncio.sleep(random.uniform(0.2, 0.6))
                    alive.pop(0).kill()
                    run.ledger.note("fault", detail="rag worker killed")
                    alive.append(await processes.worker("rag", lease=lease))
                failures += len((await sent).failures)
            rows = await _rows(run.folder / "lancedb")
    old = f"of version {versions - 1}:"
    run.figure("documents", len({row["document_id"] for row in rows}))
    run.expect("missing", documents - len({row["document_id"] for row in rows}))
    run.expect("chunks twice", len(rows) - len({row["chunk_id"] for row in rows}))
    run.expect("of old versions", sum("of version" in row["content"] and old not in row["content"] for row in rows))
    run.expect("failed", failures)


@drill("10", "0 errors, 0 empty, 0 documents of mixed versions",
       short={"documents": 20, "versions": 3}, long={"documents": 400, "versions": 6})  # fmt: skip
async def queries_under_updates(run: Run, documents: int, versions: int) -> None:
    """Query without a pause while every document is replaced by its next version."""
    from kit.components import rag

    async with run.lab() as lab:
        await lab.serve("gateway", "rag")
        await rag.ingest_documents(lab.bus, _documents(documents, 0))
        updates = asyncio.create_task(_update(lab, documents, versions))
        seen: list[Any] = []
        while not updates.done():
            seen.append((await within(_mixed(lab)))[1])
        await updates
        stale, _ = await _mixed(lab, versions)
    good = [one for one in seen if not isinstance(one, Exception)]
    run.expect("queries", len(seen), least=1)
    run.expect("errors", len(seen) - len(good))
    run.expect("empty", sum(not found for _, found in good))
    run.expect("mixed", sum(wrong for wrong, _ in good))
    run.expect("old at the end", stale)


async def _update(lab: Lab, documents: int, versions: int) -> None:
    from kit.components import rag

    for version in range(1, versions + 1):
        await rag.ingest_documents(lab.bus, _documents(documents, version))


@drill("10", "gone, whatever overtakes what", short={"documents": 3}, long={"documents": 10})
async def deleted_documents(run: Run, documents: int) -> None:
    """Send a long document, delete it at once, and look for it when both are done."""
    from kit.components import rag

    async with run.lab() as lab:
        await lab.serve("gateway", "rag")
        sent = [
            asyncio.create_task(rag.ingest_documents(lab.bus, [one]))
            for one in _documents(documents, 0, paragraphs=400)
        ]
        await asyncio.sleep(0.05)
        await asyncio.gather(*(rag.delete_document(lab.bus, f"d{number}") for number in range(documents)))
        await asyncio.gather(*sent)
        found = (await rag.query(lab.bus, "the river runs", generate=False, top_k=20))["sources"]
    run.figure("deleted", documents)
    run.expect("still found", len({one["document_id"] for one in found}))


@drill("8", "a named error of the kit; queries go on; works again once space is back; 0 lost",
       short={"megabytes": 24}, long={"megabytes": 96})  # fmt: skip
async def lancedb_disk_full(run: Run, megabytes: int) -> None:
    """Fill the disk (a tmpfs) under LanceDB, ingest, query, make room again."""
    from kit.components import rag

    require_mounts()
    place = {"KIT_LANCEDB_URI": str(run.folder / "disk" / "lancedb")}
    async with lab_beside(run, **place) as (lab, processes):
        await lab.serve("gateway")
        disk = processes.disk(await processes.worker("rag", disk=f"{megabytes}m"))
        await rag.ingest_documents(lab.bus, _documents(10, 0))
        filler = fill(disk)
        run.ledger.note("fault", detail="disk full")
        failed = (await rag.ingest_documents(lab.bus, _documents(10, 1, paragraphs=60), timeout=60.0)).failures
        told = " ".join(map(str, failed.values()))
        run.expect("failed", len(failed), least=1)
        run.check("typed", "RuntimeError" not in told and ".cargo" not in told)
        run.check("the error names the disk", "disk" in told or "space" in told)
        _, seen = await within(_mixed(lab))
        run.check("queries go on", not isinstance(seen, Exception))
        filler.unlink()
        run.ledger.note("back", detail="space")
        again = await rag.ingest_documents(lab.bus, _documents(10, 1, paragraphs=60), timeout=60.0)
        run.expect("fail after space is back", len(again.failures))


# --- for long ---------------------------------------------------------------------------------------------------


@drill("11", "descriptors, threads and memory stay flat",
       short={"rounds": 300, "jobs": 300, "churn": 50},
       long={"rounds": 10_000, "jobs": 20_000, "churn": 1000})  # fmt: skip
async def many_messages(run: Run, rounds: int, jobs: int, churn: int) -> None:
    """Make calls of all kinds, work on jobs, start and stop workers, again and again."""
    import threading

    async with run.lab() as lab:
        ask = await calls(lab.bus, lab.bus)

        async def all_of_it(part: int) -> None:
            for _ in range(rounds // part):
                await lab.bus.request(GATEWAY_EMBEDDINGS, TEXTS, timeout=10.0)
            for _ in range(churn // part):
                await (await lab.bus.work(AGENT_TASKS, working(run.ledger))).stop()
            async with await lab.bus.work(AGENT_TASKS, working(run.ledger), concurrency=16):
                for _ in range(jobs // part // 10):
                    sent = await asyncio.gather(*(lab.bus.enqueue(AGENT_TASKS, TASK) for _ in range(10)))
                    await asyncio.gather(*(job.result(30.0) for job in sent))

        await ask(5.0)
        await all_of_it(3)  # caches, pools and the recorder fill up
        before = (files_open(), threading.active_count(), memory())
        await all_of_it(1)
        await eventually(lambda: files_open() <= before[0], 3.0)
        after = (files_open(), threading.active_count(), memory())
    run.figure("messages", rounds + jobs)
    run.expect("more descriptors", after[0] - before[0], most=2)
    run.expect("more threads", after[1] - before[1], most=2)
    run.expect("more memory", after[2] - before[2], "MB", most=40.0)


@drill("11", "descriptors stay flat", short={"refreshes": 6, "documents": 60}, long={"refreshes": 40, "documents": 60})
async def index_refreshes(run: Run, refreshes: int, documents: int) -> None:
    """Replace documents again and again, with a refresh of the indices after each time."""
    from kit.components import rag

    async with run.lab() as lab:
        await lab.serve("gateway", "rag")
        opened = []
        for version in range(refreshes):
            docs = [
                {"document_id": f"d{k}", "content": f"Document {k}, version {version}: river{k}."}
                for k in range(documents)
            ]
            await rag.ingest_documents(lab.bus, docs)
            await asyncio.sleep(0.7)  # an idle moment, in which the indices are brought up to date
            await rag.query(lab.bus, f"river{version}", generate=False)
            opened.append(files_open())
    run.figure("refreshes", refreshes)
    run.expect("more descriptors a refresh", (opened[-1] - opened[1]) / (refreshes - 2), most=0.6)


@drill("12", "one version a job; 0 processes left",
       short={"kills": 1, "lease": 3.0}, long={"kills": 4, "lease": 5.0})  # fmt: skip
async def trainings_killed(run: Run, kills: int, lease: float) -> None:
    """SIGKILL the MLOps worker in the middle of trainings, each time with another in its place."""
    from kit.components import mlops

    place = {"KIT_MLFLOW": "", "MLFLOW_TRACKING_URI": f"sqlite:///{run.folder}/mlflow.db"}
    async with lab_beside(run, **place) as (lab, processes):
        with shortened(lease, MLOPS_TRAINING):
            worker = await processes.worker("mlops", lease=lease)
            versions = 0
            for number in range(kills):
                job = await mlops.submit(
                    lab.bus,
                    "random_forest",
                    "digits",
                    {"n_estimators": 100},
                    job_id=f"j{number}",
                    model_name=f"m{number}",
                )
                await asyncio.sleep(random.uniform(0.3, 0.9))
                worker.kill()
                run.ledger.note("fault", detail="mlops worker killed")
                worker = await processes.worker("mlops", lease=lease)
                await job.result(120.0)
            registry = mlops.Registry("acme", tracking_uri=place["MLFLOW_TRACKING_URI"])
            found = Counter(registry.versions()["model_name"])
            versions = sum(found.values())
    run.expect("versions", versions, least=kills, most=kills)
    run.expect("models with two", sum(count > 1 for count in found.values()))
