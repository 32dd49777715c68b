"""Agents: Agno agents that think, remember, use tools, do tasks and talk over the bus.

agent = Agent(bus, "analyst", instructions="Be brief.", tools=["calculate"])   # a tool by name: served over the bus
answer = await agent.run("What is 19 * 23?", session_id="monday")              # the session outlives the process
await agent.remember("Ada prefers short answers.", "preference")
reply = await agent.ask("archivist", "Where are the minutes?")
task = await AgentManager(bus).submit_task("Sum up the minutes.", priority=8)  # a worker anywhere does it, once

``serve`` (``kit worker agents``) runs what they need: the memory service, a tool executor and task workers, whose
agents also do ``document_qa`` tasks: an answer from the tenant's documents, orchestrated over the bus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.catalogue import AGENT_MEMORY, AGENT_TOOLS
from kit.components import Service
from kit.components.agents import questions
from kit.components.agents.agent import MODEL, Agent
from kit.components.agents.engine import agno_classes
from kit.components.agents.errors import (
    AgentError,
    AgentFailed,
    ArgumentsRefused,
    MemoryPending,
    MemoryRefused,
    ModelFailed,
    NoAgent,
    NoReply,
    RunTimeout,
    SessionRefused,
    StateConflict,
    StepFailed,
    TaskError,
    TaskExpired,
    TaskFailed,
    TaskRefused,
    ToolElsewhere,
    ToolError,
    ToolFailed,
    ToolTimeout,
    UnknownTool,
)
from kit.components.agents.executor import TIMEOUT, ToolExecutor
from kit.components.agents.manager import AgentManager, Task, TaskResult
from kit.components.agents.memory import Memories, Memory
from kit.components.agents.memory_service import MemoryService
from kit.components.agents.messaging import AgentMessage, Gathered
from kit.components.agents.presence import INTERVAL
from kit.components.agents.runs import Answer, ToolUse
from kit.components.agents.sessions import Session, Sessions
from kit.components.agents.tasks import TaskWorker
from kit.components.agents.toolbox import calculate, count_words
from kit.components.agents.tools import call_tool, tools_table

if TYPE_CHECKING:
    from kit.nats.bus import Bus

__all__ = [
    "Agent",
    "AgentError",
    "AgentFailed",
    "AgentManager",
    "AgentMessage",
    "Answer",
    "ArgumentsRefused",
    "Gathered",
    "Memories",
    "Memory",
    "MemoryPending",
    "MemoryRefused",
    "ModelFailed",
    "NoAgent",
    "NoReply",
    "RunTimeout",
    "Session",
    "SessionRefused",
    "Sessions",
    "StateConflict",
    "StepFailed",
    "Task",
    "TaskError",
    "TaskExpired",
    "TaskFailed",
    "TaskRefused",
    "TaskResult",
    "ToolElsewhere",
    "ToolError",
    "ToolFailed",
    "ToolTimeout",
    "ToolUse",
    "UnknownTool",
    "call_tool",
    "serve",
    "tools_table",
]


async def serve(
    bus: Bus,
    *,
    agents: Mapping[str, Mapping[str, Any]] | Sequence[Agent] | None = None,
    tools: Sequence[Any] = (calculate, count_words),
    model: str = MODEL,
    uri: str | Path | None = None,
    concurrency: int = 4,
    tool_concurrency: int = 32,
    tool_timeout: float = TIMEOUT,
    interval: float = INTERVAL,
) -> Service:
    """Start the memory service, a tool executor and the task workers of the bus's tenant; any number may work at once.

    Args:
        agents: that do tasks: agents, or the settings of each by its name; None: one that is named ``worker`` and has
            all the tools that are served here.
        tools: served over the bus: functions, Agno's functions and toolkits, or ``"package.module:name"``.
        model: of agents whose settings name none.
        uri: of the databases of memories' vectors; None: ``KIT_LANCEDB_URI``, else ``.kit/lancedb``.
        concurrency: tasks done at once; tool_concurrency: calls of tools.
        tool_timeout: seconds that one call of a tool may take.
        interval: seconds between two heartbeats.

    Raises:
        ConfigurationError: a setting that cannot work.
    """
    await agno_classes()
    memory = await MemoryService.open(bus, uri)
    executor = await ToolExecutor.open(bus, tools, timeout=tool_timeout)
    agents = {"worker": {"tools": executor.names}} if agents is None else agents
    crew = _crew(bus, agents, {"model": model, "uri": uri, "interval": interval})
    for agent in crew.values():
        agent.task_handlers.setdefault(questions.TASK_TYPE, questions.answer)
    tasks = TaskWorker(bus, crew)
    workers = [
        await bus.work(AGENT_MEMORY, memory.handle, concurrency=8),
        await bus.work(AGENT_TOOLS, executor.handle, concurrency=tool_concurrency),
    ]
    for agent in crew.values():
        await agent.start()
    workers.append(await tasks.start(concurrency=concurrency))

    async def end() -> None:
        for agent in crew.values():
            await agent.stop()
        await memory.close()

    return Service(workers, end)


def _crew(
    bus: Bus, agents: Mapping[str, Mapping[str, Any]] | Sequence[Agent], common: Mapping[str, Any]
) -> dict[str, Agent]:
    """Return the agents of a worker by name."""
    if isinstance(agents, Mapping):
        return {name: Agent(bus, name, **{**common, **settings}) for name, settings in agents.items()}
    return {agent.agent_id: agent for agent in agents}
