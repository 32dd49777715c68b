"""The task worker: does the tasks of the queue by the agents of its process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kit import codec
from kit.catalogue import AGENT_RESULTS, AGENT_TASKS, Operation
from kit.components.agents.errors import NoAgent, TaskExpired, TaskRefused
from kit.components.agents.runs import Answer
from kit.nats.faults import is_retryable, told
from kit.nats.worker import is_cancellation
from kit.otel import semconv

if TYPE_CHECKING:
    from kit.components.agents.agent import Agent
    from kit.nats.bus import Bus
    from kit.nats.message import Message
    from kit.nats.worker import Worker


class TaskWorker:
    """Does tasks.

    A task done again after a crash does nothing again that was finished over the bus: its run is found in its session,
    its calls of models and of tools over the bus carry ids of their own and are answered from memory. What runs in this
    process, a local tool or an agent's own function, runs again.

    Args:
        agents: of this process. A task that names one of them comes here alone, and waits in the queue while no worker
            has that agent; of the others each goes to an agent that is able to do it.
    """

    def __init__(self, bus: Bus, agents: Mapping[str, Agent]) -> None:
        self._bus, self._agents = bus, dict(agents)
        self._turn = 0
        for agent in self._agents.values():
            agent.takes_tasks = True

    async def start(self, *, concurrency: int = 1, operation: Operation = AGENT_TASKS) -> Worker:
        """Begin to do tasks, ``concurrency`` at once; on return the server knows it."""
        return await self._bus.work(operation, self.handle, concurrency=concurrency, receivers=list(self._agents))

    async def handle(self, message: Message) -> dict[str, Any]:
        """Do one task, tell everybody who watches, and return its ``agent_result``.

        Raises:
            AgentError: it could not be done; ``retryable`` says whether it may be later.
        """
        task, started, begun = message.data, time.perf_counter(), codec.now()
        agent = self._choose(task)
        self._bus.telemetry.annotate(_attributes(task, agent.agent_id))
        result: dict[str, Any] = {
            "task_id": task["task_id"], "agent_id": agent.agent_id, "task_type": task["task_type"],
            "attempts": message.attempt, "started_at": begun,
            **({"session_id": task["session_id"]} if "session_id" in task else {}),
        }  # fmt: skip
        try:
            done = await self._done(agent, task)
        except BaseException as error:  # SystemExit too: a handler may raise anything
            if is_cancellation(error):
                raise
            if not is_retryable(error) or message.is_last:
                await self._tell(result | _ended("error", started) | {"error": _error(error, task)})
            raise
        result |= done | _ended("success", started)
        await self._tell(result)
        return result

    def _choose(self, task: Mapping[str, Any]) -> Agent:
        """Return the agent that a task names, or the next one that is able to do it."""
        if _over(task.get("expires_at")):
            raise TaskExpired(task["task_id"])
        wanted, able = task.get("agent_id"), set(task.get("capabilities", ()))
        if wanted is not None:
            if wanted not in self._agents:
                raise NoAgent(f"agent {wanted} is not of this worker")
            return self._agents[wanted]
        fitting = [agent for agent in self._agents.values() if able <= set(agent.capabilities)]
        if not fitting:
            raise NoAgent(f"no agent of this worker is able to do {', '.join(sorted(able)) or 'anything'}")
        self._turn += 1
        return fitting[self._turn % len(fitting)]

    async def _done(self, agent: Agent, task: dict[str, Any]) -> dict[str, Any]:
        handler = agent.task_handlers.get(task["task_type"])
        if handler is not None:
            return {"output": await handler(agent, task)}
        prompt = task.get("prompt") or task["parameters"].get("prompt")
        if not isinstance(prompt, str):
            raise TaskRefused(f"task {task['task_id']} has no prompt, and {agent.agent_id} has no handler for its type")
        return _told(await agent.perform(task, prompt))

    async def _tell(self, result: dict[str, Any]) -> None:
        await self._bus.publish(AGENT_RESULTS, result)


def _told(answer: Answer) -> dict[str, Any]:
    return {
        "output": answer.text, "tokens": dict(answer.tokens), "cost": answer.cost, "currency": "USD",
        "model": answer.model, "tool_calls": len(answer.tools),
    }  # fmt: skip


def _attributes(task: Mapping[str, Any], agent_id: str) -> dict[str, Any]:
    named = {
        semconv.AGENT_ID: agent_id, semconv.TASK_ID: task["task_id"], semconv.TASK_TYPE: task["task_type"],
        semconv.SESSION_ID: task.get("session_id"), semconv.USER_ID: task.get("user_id"),
    }  # fmt: skip
    return {name: value for name, value in named.items() if value is not None}


def _ended(status: str, started: float) -> dict[str, Any]:
    return {"status": status, "duration": time.perf_counter() - started, "timestamp": codec.now()}


def _error(error: BaseException, task: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": type(error).__name__, "message": told(error, dict(task)), "retryable": is_retryable(error)}


def _over(until: str | None) -> bool:
    return until is not None and datetime.fromisoformat(until) <= datetime.now(UTC)
