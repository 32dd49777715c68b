"""The money's drill: what a provider was asked, what the operation log says and what the budget spent have to agree."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from typing import Any

from kit.catalogue import LLMOPS_OPERATIONS
from kit.errors import KitError
from kit.lab.drills.drill import Run, drill
from kit.lab.drills.faults import Stand
from kit.lab.drills.load import embedded, lab_beside
from kit.lab.drills.parts import ANSWER, PRICES
from kit.nats import Bus, Message

_AGREED = 60.0  # s; for dead workers to be noticed, and all to be logged


@drill("7", "budget spent = log; no call is in neither; nothing stays reserved; every request answered",
       short={"requests": 60, "server_kills": 1, "worker_kills": 1},
       long={"requests": 300, "server_kills": 3, "worker_kills": 3})  # fmt: skip
async def books_agree(run: Run, requests: int, server_kills: int, worker_kills: int) -> None:
    """SIGKILL nats-server and gateway workers under requests that cost money; compare provider, log and budget."""
    from kit.components import gateway

    calls, logged = Counter[str](), dict[str, dict[str, Any]]()
    budget = gateway.Budget(limit=1e6, period="total")

    async def answer(_: str, body: Any) -> Any:
        calls[body["messages"][0]["content"]] += 1
        await asyncio.sleep(0.1)
        return 200, ANSWER

    async def note(message: Message) -> None:
        logged[message.data["operation_id"]] = message.data

    async with lab_beside(run) as (lab, processes), Stand(answer) as stand:
        model = {"model": "openai/counted", "api_base": f"{stand.url}/v1", "api_key": "none", **PRICES}
        about = {"limit": budget.limit, "period": budget.period}
        chosen = {"models": {"counted": model}, "budget": about, "cache_ttl": 0, "concurrency": 4}
        settings = [part for name, value in chosen.items() for part in ("--setting", f"{name}={json.dumps(value)}")]
        workers = [processes.start("-m", "kit", "worker", "gateway", *settings) for _ in range(worker_kills + 1)]
        await asyncio.gather(*(processes.said(worker, "serving", 120.0) for worker in workers))
        await lab.bus.subscribe(LLMOPS_OPERATIONS, note, replay=True)
        faults = [embedded(lab).crash] * server_kills + [worker.kill for worker in workers[:worker_kills]]
        failed = await _ask(lab.bus, requests, faults)
        deadline = time.monotonic() + _AGREED
        while True:
            purse = await gateway.spend(lab.bus, budget)
            spent = sum(line["cost"] for line in logged.values())
            if (not purse["reserved"] and abs(spent - purse["spent"]) < 1e-6) or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.5)
    lost = sum(line.get("error_type") == "WorkerLost" for line in logged.values())
    asked = sum(calls.values())
    run.figure("calls of the provider", asked)
    run.figure("logged", spent, "USD")
    run.expect("more or less in the budget", round(abs(spent - purse["spent"]), 6), "USD")
    run.expect("still reserved", purse["reserved"], "USD")
    run.expect("calls or lines that no dead worker explains", max(asked - len(logged), len(logged) - lost - asked, 0))
    run.expect("paid for dead workers", lost, most=4 * worker_kills)  # four at once in each
    run.expect("called twice", asked - len(calls), most=4 * worker_kills)
    run.expect("failed", failed)


async def _ask(bus: Bus, requests: int, faults: list[Any]) -> int:
    """Ask ten at once, with the faults spread over the requests; return how many failed."""
    from kit.components import gateway

    at = {round((number + 1) * requests / (len(faults) + 1)): fault for number, fault in enumerate(faults)}
    failed, numbers = 0, iter(range(requests))

    async def several() -> None:
        nonlocal failed
        for number in numbers:
            if number in at:
                at[number]()
            try:
                prompt = f"count {number}"
                await gateway.generate(bus, prompt=prompt, model="counted", max_tokens=20, timeout=120.0)
            except KitError:
                failed += 1

    await asyncio.gather(*(several() for _ in range(10)))
    return failed
