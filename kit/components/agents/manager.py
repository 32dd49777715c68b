"""The agent manager: submits tasks, follows their results, and knows who is there."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from kit import codec
from kit.catalogue import AGENT_RESULTS, AGENT_STATUS, AGENT_TASKS, check_id
from kit.components.agents.errors import TaskFailed, TaskRefused
from kit.components.agents.presence import last_words, table_of
from kit.errors import JobDead

if TYPE_CHECKING:
    import pandas as pd

    from kit.nats.bus import Bus
    from kit.nats.jobs import Job
    from kit.nats.message import Message
    from kit.nats.worker import Worker

_MOST_TASKS, _MOST_AGENTS = 10_000, 10_000  # remembered; their names are foreign
_MANY = 1000  # results and words that wait for a watcher; then the oldest goes
_COLUMNS = ("task", "type", "priority", "status", "agent", "attempts", "seconds")


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """What became of a task; ``str()`` of it is its output.

    Attributes:
        status: ``success`` or ``error``.
        output: any JSON value; of a prompt, the answer.
        error: ``type``, ``message`` and ``retryable``, or None.
        attempts: deliveries that it took.
    """

    task_id: str
    agent_id: str
    status: str
    output: Any = None
    error: Mapping[str, Any] | None = None
    attempts: int = 1
    seconds: float = 0.0
    tokens: Mapping[str, int] = field(default_factory=dict)
    cost: float | None = None
    model: str | None = None

    def __str__(self) -> str:
        return str(self.output)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> TaskResult:
        """Return the result that an ``agent_result`` tells."""
        return cls(
            task_id=data["task_id"], agent_id=data["agent_id"], status=data["status"], output=data.get("output"),
            error=data.get("error"), attempts=data.get("attempts", 1), seconds=data.get("duration", 0.0),
            tokens=data.get("tokens", {}), cost=data.get("cost"), model=data.get("model"),
        )  # fmt: skip


class Task:
    """A task that was submitted.

    Attributes:
        task_id: its id: submitted again under it, nothing is done twice.
        priority: 0 (least urgent) to 9.
    """

    def __init__(self, job: Job, data: Mapping[str, Any]) -> None:
        self.task_id: str = data["task_id"]
        self.task_type: str = data["task_type"]
        self.priority: int = data["priority"]
        self._job = job

    def __repr__(self) -> str:
        return f"<Task {self.task_type} of priority {self.priority} {'done' if self._job.done else 'under way'}>"

    @property
    def done(self) -> bool:
        """Whether its result is here."""
        return self._job.done

    async def result(self, timeout: float = 60.0) -> TaskResult:
        """Wait for the result, at most ``timeout`` seconds.

        Raises:
            TaskFailed: every attempt failed; the task is kept as a dead letter.
            DeadlineExceeded: there is none yet; it may be waited for again.
        """
        try:
            return TaskResult.of((await self._job.result(timeout)).data)
        except JobDead as error:
            raise TaskFailed(
                self.task_id, error_type=error.error_type, detail=error.detail, attempts=error.attempts
            ) from error


class AgentManager:
    """Submits tasks and watches agents; ``async with`` or ``start`` makes it watch.

    An agent that tasks name must not be called ``high`` or ``low``: the subject says by these how urgent a task is.

    Args:
        bus: of the tenant.
        agent_id: in whose name tasks are submitted.
    """

    def __init__(self, bus: Bus, agent_id: str = "manager") -> None:
        self._bus, self._agent_id = bus, check_id(agent_id, what="agent_id")
        self._workers: list[Worker] = []
        self._words: dict[tuple[str, str], dict[str, Any]] = {}
        self._tasks: dict[str, dict[str, Any]] = {}
        self._results: asyncio.Queue[TaskResult] = asyncio.Queue(_MANY)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def start(self) -> Self:
        """Watch the results of tasks and the presence of agents; on return the server knows it."""
        if not self._workers:
            self._workers = [
                await self._bus.subscribe(AGENT_RESULTS, self._on_result),
                await self._bus.subscribe(AGENT_STATUS, self._on_status),
            ]
        return self

    async def stop(self, timeout: float = 10.0) -> None:
        """Watch no more."""
        await asyncio.gather(*(worker.stop(timeout) for worker in self._workers))
        self._workers = []

    # --- tasks --------------------------------------------------------------------------------------------------

    async def submit_task(
        self,
        prompt: str | None = None,
        *,
        task_type: str = "prompt",
        parameters: Mapping[str, Any] | None = None,
        priority: int = 5,
        agent_id: str | None = None,
        capabilities: Sequence[str] = (),
        session_id: str | None = None,
        user_id: str | None = None,
        model: str | None = None,
        tools: Sequence[str] | None = None,
        timeout: float | None = None,
        expires: float | None = None,
        task_id: str | None = None,
    ) -> Task:
        """Put a task into the queue; on return it is stored, and done by some worker sooner or later.

        Args:
            prompt: what an agent is asked; None for a type of task that agents have a handler for.
            parameters: of such a handler.
            priority: 0 (least urgent) to 9, of which the queue knows three levels: 7 to 9 are begun before 4 to 6, and
                these before 0 to 3; within a level first come, first begun. A worker that starts, or has several
                places, may begin a few of a lower level while the others are on their way; one that is tried again
                loses its place. What has begun is not interrupted.
            agent_id: the agent that should do it: the task goes to the workers that have it, and to no other. While
                there is none it waits, which costs no attempt; ``queue`` shows it.
            capabilities: what an agent must be able to do, when none is named. Workers share these tasks: one that has
                no such agent hands the task back, which costs one of four attempts and 0.2, 1 or 5 s; the fourth such
                worker makes it a dead letter of error ``NoAgent``, kept for ``bus.replay``.
            timeout: seconds for the run.
            expires: seconds after which it need not be begun any more. Then it is a dead letter: of error
                ``TaskExpired`` when a worker comes to it, of ``JobExpired`` when none does and somebody waits for it
                or lists dead letters.
            task_id: submitted again under the same id, it is the same task and is done once.

        Raises:
            TaskRefused: there is neither a prompt nor a type of its own.
            NotStored: the queue did not take it; submit it again under the same id.
        """
        if prompt is None and task_type == "prompt":
            raise TaskRefused("a task needs a prompt, or a task_type that agents have a handler for")
        told = {
            "prompt": prompt, "agent_id": agent_id, "session_id": session_id, "user_id": user_id, "model": model,
            "tools": None if tools is None else list(tools), "capabilities": list(capabilities) or None,
            "timeout": timeout, "expires_at": None if expires is None else codec.now(expires),
        }  # fmt: skip
        name = task_id or uuid.uuid4().hex
        data: dict[str, Any] = {
            "task_id": name, "task_type": task_type, "parameters": dict(parameters or {}),
            "priority": priority, "timestamp": codec.now(), "submitted_by": self._agent_id,
            **{name: value for name, value in told.items() if value is not None},
        }  # fmt: skip
        job = await self._bus.enqueue(
            AGENT_TASKS, data, message_id=name, priority=priority, to=agent_id, expires=expires
        )
        known = self._known(name, {"status": "queued"})
        known.update(task_type=task_type, priority=priority)
        return Task(job, data)

    async def results(self) -> AsyncIterator[TaskResult]:
        """Yield the result of each task of the tenant as it comes; what was told before ``start`` is not among them."""
        await self.start()
        while True:
            yield await self._results.get()

    def tasks(self) -> pd.DataFrame:
        """Return the tasks that this manager submitted or heard of, in that order, and what became of them."""
        import pandas as pd

        rows = [
            (
                task_id, known.get("task_type", ""), known.get("priority", 5), known["status"], known.get("agent", ""),
                known.get("attempts", 0), known.get("seconds"),
            )
            for task_id, known in self._tasks.items()
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=list(_COLUMNS))

    async def queue(self) -> pd.DataFrame:
        """Return how many tasks are not done yet, a row an agent that they name, and whether that agent is there.

        Tasks that name none are in the row of no name, for which anybody who is there counts.
        """
        import pandas as pd

        alive = set(await self.alive())
        backlog = await self._bus.backlog(AGENT_TASKS)
        rows = [(name or "", count, name in alive if name else bool(alive)) for name, count in backlog.items()]
        return pd.DataFrame(sorted(rows), columns=["agent", "tasks", "alive"])

    # --- agents -------------------------------------------------------------------------------------------------

    async def agents(self) -> pd.DataFrame:
        """Return who is there, a row an agent and process: what it does, whether it is alive, and what it did."""
        for said in await last_words(self._bus):
            self._hear(said)
        return table_of(list(self._words.values()))

    async def alive(self) -> list[str]:
        """Return the names of the agents that are there."""
        table = await self.agents()
        return sorted(set(table.loc[table["alive"], "agent"]))

    async def _on_result(self, message: Message) -> None:
        result = TaskResult.of(message.data)
        known = self._known(result.task_id, {"task_type": message.data.get("task_type", "")})
        first = known.get("status") not in ("success", "error")
        known.update(status=result.status, agent=result.agent_id, attempts=result.attempts, seconds=result.seconds)
        if first:  # a worker that died between its word and its acknowledgement says it twice
            if self._results.full():
                self._results.get_nowait()
            self._results.put_nowait(result)

    async def _on_status(self, message: Message) -> None:
        said = message.data
        self._hear(said)
        known = self._tasks.get(said.get("task_id", ""))
        if known is not None and known["status"] == "queued":
            known.update(status="running", agent=said["agent_id"])

    def _known(self, task_id: str, new: dict[str, Any]) -> dict[str, Any]:
        """Return what is known of a task; of the oldest nothing, once there are many."""
        known = self._tasks.setdefault(task_id, new)
        if len(self._tasks) > _MOST_TASKS:
            del self._tasks[next(iter(self._tasks))]
        return known

    def _hear(self, said: dict[str, Any]) -> None:
        key = (said["agent_id"], said.get("worker_id", ""))
        known = self._words.get(key)
        if known is None or datetime.fromisoformat(known["timestamp"]) <= datetime.fromisoformat(said["timestamp"]):
            self._words[key] = said
            if len(self._words) > _MOST_AGENTS:
                del self._words[min(self._words, key=lambda one: self._words[one]["timestamp"])]
