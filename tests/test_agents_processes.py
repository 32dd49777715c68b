"""Agents whose tools, tasks and memories are done by other processes, which may be killed in the middle."""

from __future__ import annotations

import asyncio
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from samples import eventually
from tool_worker import QUICK_TOOLS, gate
from worker_processes import STARTED, Workers, access, scripts

from kit.components import gateway
from kit.components.agents import Agent, AgentManager, ToolTimeout
from kit.components.agents.executor import ToolExecutor
from kit.nats.bus import Bus
from kit.nats.server import Server

TOOLS = ["kit.components.agents.toolbox:calculate", "tool_worker:gate"]


@asynccontextmanager
async def executors(server: Server, tenant_id: str, count: int) -> AsyncIterator[dict[int, Process]]:
    """Tool executors, each in a process of its own, by the number of the process."""
    who = server.credentials(tenant_id)
    arguments = [(server.url, who.user, who.password, tenant_id)] * count
    async with scripts("tool_worker.py", *arguments, stdout=PIPE) as started:
        async with asyncio.timeout(STARTED):
            for process in started:
                assert process.stdout is not None
                assert await process.stdout.readline() == b"ready\n"
        yield {process.pid: process for process in started}


async def test_a_call_whose_executor_is_killed_is_done_by_another_or_ends_in_time(
    server: Server, tenant_bus: Bus, tmp_path: Path
) -> None:
    agent, done, cut_off = Agent(tenant_bus, "ada"), tmp_path / "done", tmp_path / "cut-off"
    for folder in (done, cut_off):
        folder.mkdir()

    async def at_work(folder: Path, *but: int) -> int:
        """The process that has begun a call, and is not one of those."""

        def begun() -> list[int]:
            file = folder / "begun"
            return [pid for pid in map(int, file.read_text().split()) if pid not in but] if file.exists() else []

        return int((await eventually(begun, STARTED))[0])

    async with executors(server, tenant_bus.tenant_id, 2) as processes:
        calling = asyncio.ensure_future(agent.call_tool("gate", folder=str(done), timeout=STARTED))
        first = await at_work(done)
        processes[first].kill()
        second = await at_work(done, first)
        (done / "open").touch()
        assert await calling == second
        started = time.perf_counter()
        calling = asyncio.ensure_future(agent.call_tool("gate", folder=str(cut_off), timeout=4))
        processes[await at_work(cut_off)].kill()
        with pytest.raises(ToolTimeout, match="not done within 4 s"):
            await calling
        assert time.perf_counter() - started < 8
    # … and nobody begins it when its caller has left.
    late = await ToolExecutor.open(tenant_bus, [gate])
    await tenant_bus.work(QUICK_TOOLS, late.handle)
    (letter,) = await eventually(lambda: tenant_bus.dead_letters(QUICK_TOOLS), 30)
    assert letter.error_type == "ToolTimeout"
    assert (cut_off / "begun").read_text().split() == [str(second)]


@asynccontextmanager
async def kit_worker(server: Server, tenant_id: str, folder: Path) -> AsyncIterator[Workers]:
    """``kit worker agents``, serving."""
    path = {"PYTHONPATH": str(Path(__file__).parent)}
    workers = Workers(access(server, folder, tenant_id) | path, folder, tenant_id)
    try:
        workers.start("agents", f"tools={TOOLS}")
        await workers.ready()
        yield workers
    finally:
        workers.kill()


async def test_kit_worker_agents_does_tasks_tool_calls_and_memories_for_other_processes(
    server: Server, tenant_bus: Bus, tmp_path: Path
) -> None:
    async with (
        await gateway.serve(tenant_bus),
        AgentManager(tenant_bus) as manager,
        kit_worker(server, tenant_bus.tenant_id, tmp_path) as workers,
    ):
        assert await eventually(manager.alive, 20) == ["worker"]
        assert {worker.split("-")[0] for _, worker in manager._words} == {str(workers.processes["agents"].pid)}
        ada = Agent(tenant_bus, "ada", uri=tmp_path / "lancedb", memories=1, min_relevance=0.1)
        assert await ada.call_tool("calculate", expression="6 * 7") == 42
        task = await manager.submit_task("Calculate 6 * 7.", session_id="s")
        result = await task.result(STARTED)
        assert (str(result), result.agent_id, result.attempts) == ("The result of calculate is 42.", "worker", 1)
        memory_id = await ada.remember("The red bicycle stands in the cellar.", wait=STARTED)
        answer = await ada.run("Where does the red bicycle stand?")
        assert (str(answer), answer.memories) == ("The red bicycle stands in the cellar.", (memory_id,))
        with pytest.raises(ToolTimeout):  # the gate stays closed: a thread that would wait for ever
            await ada.call_tool("gate", folder=str(tmp_path), timeout=1)
        workers.tell_to_end("agents")
        code, said = await workers.end("agents")
        assert said.endswith("stopped\n"), said
        assert code == 0
        assert (await manager.agents())["status"].tolist() == ["stopped"]
