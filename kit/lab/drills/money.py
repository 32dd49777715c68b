"""The money's ledger: what a provider was asked, what the log says and what the budget spent, over servers and workers
that are killed meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from kit.catalogue import LLMOPS_OPERATIONS
from kit.components import gateway
from kit.errors import KitError

if TYPE_CHECKING:
    from kit.nats import Bus, Message
    from kit.nats.server import Server

_PRICES = {"input_cost_per_token": 0.001, "output_cost_per_token": 0.002}
_USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
_BUDGET = gateway.Budget(limit=1e6, period="total")
_STARTED = 120.0  # s; for workers that import LiteLLM on a busy machine
_AGREED = 60.0  # s; for dead workers to be noticed, and all to be logged


class CountingProvider:
    """An OpenAI-compatible server on loopback that counts what it is asked, by the prompt."""

    def __init__(self, seconds: float) -> None:
        self.calls: Counter[str] = Counter()
        self._seconds = seconds

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = re.search(r"content-length: (\d+)", head, re.I)
                body = json.loads(await reader.readexactly(int(length[1]) if length else 0))
                self.calls[body["messages"][0]["content"]] += 1
                await asyncio.sleep(self._seconds)
                message = {"role": "assistant", "content": "Counted."}
                answer = {
                    "id": "counted", "object": "chat.completion", "created": 1, "model": "counted", "usage": _USAGE,
                    "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                }  # fmt: skip
                data = json.dumps(answer).encode()
                about = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
                writer.write(about.encode() + data)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.close()


@dataclass(frozen=True, kw_only=True)
class Accounts:
    """What three books say at the end.

    Attributes:
        asked: requests; ``answered``: those whose caller got an answer; ``failed``: the others, by error.
        calls: of the provider, as it counted them; ``repeated``: those beyond the first of a request.
        lines: of the log; ``lost``: those of calls over which a worker died, paid as reserved.
        logged: what the log's lines cost, in USD; ``spent``: what the budget says; ``reserved``: what it still holds.
    """

    asked: int
    answered: int
    calls: int
    repeated: int
    lines: int
    lost: int
    logged: float
    spent: float
    reserved: float
    failed: dict[str, int] = field(default_factory=dict)

    @property
    def agree(self) -> bool:
        """Whether the budget spent what the log says, holds nothing back, and no call is in neither."""
        return abs(self.logged - self.spent) < 1e-6 and not self.reserved and self.calls <= self.lines

    @property
    def unexplained(self) -> int:
        """Calls, and lines, that no dead worker explains: 0 when provider, log and budget agree."""
        return max(self.calls - self.lines, self.lines - self.lost - self.calls, 0)


class _Workers:
    """Gateway workers as processes."""

    def __init__(self, server: Server, tenant_id: str, folder: Path, provider: CountingProvider) -> None:
        who = server.credentials(tenant_id)
        self._environment = {"NATS_URL": server.url, "NATS_USER": who.user, "NATS_PASSWORD": who.password}
        model = {"model": "openai/counted", "api_base": provider.url, "api_key": "none", **_PRICES}
        budget = {"limit": _BUDGET.limit, "period": _BUDGET.period}
        chosen = {"models": {"counted": model}, "budget": budget, "cache_ttl": 0, "concurrency": 4}
        settings = [part for name, value in chosen.items() for part in ("--setting", f"{name}={json.dumps(value)}")]
        self._command = [sys.executable, "-m", "kit", "worker", "gateway", "--tenant", tenant_id, *settings]
        self._folder, self.processes = folder, list[subprocess.Popen[bytes]]()

    def start(self) -> None:
        with (self._folder / f"worker-{len(self.processes)}.log").open("wb") as said:
            self.processes.append(
                subprocess.Popen(
                    self._command, stdout=said, stderr=said, cwd=self._folder, env=os.environ | self._environment
                )
            )

    async def ready(self) -> None:
        deadline = time.monotonic() + _STARTED
        logs = [self._folder / f"worker-{number}.log" for number in range(len(self.processes))]
        while not all("serving" in log.read_text() for log in logs):
            if time.monotonic() > deadline or any(process.poll() is not None for process in self.processes):
                raise TimeoutError(f"the workers did not start: {[log.read_text()[-500:] for log in logs]}")
            await asyncio.sleep(0.1)

    async def end(self) -> None:
        for process in self.processes:
            process.kill()
        await asyncio.gather(*(asyncio.to_thread(process.wait) for process in self.processes))


async def keep_accounts(
    bus: Bus, server: Server, folder: Path, *, requests: int = 120, server_kills: int = 2, worker_kills: int = 2,
    seconds: float = 0.1,
) -> Accounts:  # fmt: skip
    """Send requests through gateway workers while servers and workers are killed, and compare the books.

    Args:
        bus: of the tenant that asks.
        server: that is killed; its supervisor starts it again.
        folder: for what the workers say.
        requests: how many, ten at once.
        server_kills: spread over the requests, as ``worker_kills``.
        seconds: that the provider takes for an answer.
    """
    operations: dict[str, dict[str, Any]] = {}

    async def note(message: Message) -> None:
        operations[message.data["operation_id"]] = message.data

    async with CountingProvider(seconds) as provider:
        workers = _Workers(server, bus.tenant_id, folder, provider)
        for _ in range(worker_kills + 1):
            workers.start()
        try:
            await workers.ready()
            watching = await bus.subscribe(LLMOPS_OPERATIONS, note, replay=True)
            faults = [server.crash] * server_kills + [process.kill for process in workers.processes[:worker_kills]]
            at = {round((number + 1) * requests / (len(faults) + 1)): fault for number, fault in enumerate(faults)}
            ended = await _ask(bus, requests, at)
            purse = await _agreed(bus, operations)
            await watching.stop()
        finally:
            await workers.end()
    lines = list(operations.values())
    return Accounts(
        asked=requests, answered=ended.pop("answered", 0), failed=dict(ended), calls=sum(provider.calls.values()),
        repeated=sum(count - 1 for count in provider.calls.values()), lines=len(lines),
        lost=sum(line.get("error_type") == "WorkerLost" for line in lines),
        logged=sum(line["cost"] for line in lines), spent=purse["spent"], reserved=purse["reserved"],
    )  # fmt: skip


async def _ask(bus: Bus, requests: int, faults: dict[int, Any]) -> Counter[str]:
    """Ask ten at once; return how many were answered, and how the others failed."""
    ended: Counter[str] = Counter()
    numbers = iter(range(requests))

    async def several() -> None:
        for number in numbers:
            if number in faults:
                faults[number]()
            try:
                await gateway.generate(bus, prompt=f"count {number}", model="counted", max_tokens=20, timeout=120.0)
                ended["answered"] += 1
            except KitError as error:
                ended[type(error).__name__] += 1

    await asyncio.gather(*(several() for _ in range(10)))
    return ended


async def _agreed(bus: Bus, operations: dict[str, Any]) -> dict[str, Any]:
    """Return the budget once nothing is reserved and log and budget agree, or as it is after a minute."""
    deadline = time.monotonic() + _AGREED
    while True:
        purse = await gateway.spend(bus, _BUDGET)
        logged = sum(line["cost"] for line in operations.values())
        if (not purse["reserved"] and abs(logged - purse["spent"]) < 1e-6) or time.monotonic() > deadline:
            return purse
        await asyncio.sleep(0.5)
