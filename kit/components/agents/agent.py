"""An agent: an Agno agent whose model is the gateway, with sessions, memories, tools and messages over the bus."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from kit.catalogue import AGENT_TASK_EXECUTE, check_id
from kit.components.agents.memory import Memories, Memory
from kit.components.agents.messaging import AgentMessage, Gathered, Mailbox, MessageHandler
from kit.components.agents.presence import INTERVAL, Presence
from kit.components.agents.running import Plan, Runner
from kit.components.agents.runs import Answer, Run
from kit.components.agents.sessions import Session, Sessions
from kit.components.agents.tools import call_tool
from kit.otel import semconv

if TYPE_CHECKING:
    from kit.nats.bus import Bus

MODEL = "kit/extractive"
RUN = "run"  # task.type of a run that no task asked for

TaskHandler: TypeAlias = Callable[["Agent", dict[str, Any]], Awaitable[Any]]


class Agent:
    """An agent of a bus's tenant. ``run`` needs nothing else; ``async with`` or ``start`` makes it present, too.

    Args:
        bus: of the tenant.
        agent_id: its name; a process that gives the same name goes on with its sessions and memories.
        model: the gateway's name of a model.
        instructions: what it is told to be.
        tools: functions, Agno's functions and toolkits, and names of tools that somebody serves over the bus.
        role: what it is for, for people and other agents; capabilities: what tasks may ask of it.
        parameters: of the model's requests, e.g. ``{"temperature": 0.2}``.
        history: runs of a session that the model is shown.
        memories: memories that each run begins with, at most; 0: none.
        min_relevance: least cosine of those.
        timeout: seconds for a run; tool_timeout: for one call of a tool.
        strict_tools: whether a run ends with the error of a tool; else the model is told of it.
        uri: of the databases of memories' vectors; None: ``KIT_LANCEDB_URI``, else ``.kit/lancedb``.
        interval: seconds between two heartbeats.

    Raises:
        ConfigurationError: the name cannot be one.
    """

    def __init__(
        self,
        bus: Bus,
        agent_id: str,
        *,
        model: str = MODEL,
        instructions: str | Sequence[str] | None = None,
        tools: Sequence[Any] = (),
        role: str | None = None,
        capabilities: Sequence[str] = (),
        parameters: Mapping[str, Any] | None = None,
        history: int = 10,
        memories: int = 0,
        min_relevance: float = 0.2,
        timeout: float = 60.0,
        tool_timeout: float = 30.0,
        strict_tools: bool = False,
        uri: str | Path | None = None,
        embedding_model: str = "default",
        interval: float = INTERVAL,
    ) -> None:
        self.bus, self.agent_id, self.model = bus, check_id(agent_id, what="agent_id"), model
        self.role, self.capabilities = role, tuple(capabilities)
        self.sessions = Sessions(bus, agent_id)
        self.memories = Memories(bus, agent_id, uri=uri, embedding_model=embedding_model)
        self.task_handlers: dict[str, TaskHandler] = {}
        self.takes_tasks = False  # a task worker that has it says so
        self._plan = Plan(
            instructions=instructions, tools=tuple(tools), parameters=dict(parameters or {}), history=history,
            timeout=timeout, tool_timeout=tool_timeout, strict_tools=strict_tools,
        )  # fmt: skip
        self._recalls, self._min_relevance = memories, min_relevance
        self._mailbox = Mailbox(bus, agent_id, self._reply)
        self._presence = Presence(bus, agent_id, self._about, interval=interval)

    def __repr__(self) -> str:
        return f"<Agent {self.agent_id} of {self.bus.tenant_id}, {self.model}>"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def start(self) -> Self:
        """Listen to messages and tell that the agent is there."""
        await self._mailbox.open()
        await self._presence.begin()
        return self

    async def stop(self, timeout: float = 10.0) -> None:
        """Take nothing new, finish within ``timeout`` seconds what is being answered, and tell that the agent goes."""
        await self._presence.drain()
        await self._mailbox.close(timeout)
        await self._presence.end()
        self.memories.close()

    # --- runs ---------------------------------------------------------------------------------------------------

    async def run(
        self,
        prompt: str,
        *,
        session_id: str | None = None,
        user_id: str | None = None,
        timeout: float | None = None,
        model: str | None = None,
        tools: Sequence[str] | None = None,
    ) -> Answer:
        """Ask the agent, and return its answer: one trace.

        Args:
            prompt: what it is asked.
            session_id: of the session to go on with, or to begin; None: a question on its own, which nobody keeps.
            user_id: who asks; a session that a user began is closed to others, and so are a user's memories.
            timeout: seconds; None: the agent's own.
            model: None: the agent's own.
            tools: names of those that it may use; None: all.

        Raises:
            AgentFailed: there is no answer; ModelFailed, RunTimeout and StateConflict say why.
            SessionRefused: the session is another user's.
            ToolError: a tool failed, and the agent is strict.
        """
        run = self._new_run(session_id, user_id)
        with self.bus.telemetry.operation(AGENT_TASK_EXECUTE, self._attributes(run)):
            return await self._perform(run, prompt, timeout=timeout, model=model, tools=tools)

    async def stream(self, prompt: str, **options: Any) -> AsyncIterator[str]:
        """Ask the agent and yield its answer piece by piece; leave the loop, and the run is cancelled.

        Args:
            options: as for ``run``.

        Raises:
            AgentError: as for ``run``; also in the middle of an answer.
        """
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        run = self._new_run(options.pop("session_id", None), options.pop("user_id", None))

        async def work() -> None:
            try:
                with self.bus.telemetry.operation(AGENT_TASK_EXECUTE, self._attributes(run)):
                    await self._perform(run, prompt, pieces=pieces.put_nowait, **options)
            finally:
                pieces.put_nowait(None)

        # A task of its own: a span left open in a generator would be the parent of what its caller does meanwhile.
        task = asyncio.ensure_future(work())
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            await task
        finally:
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def perform(self, task: Mapping[str, Any], prompt: str) -> Answer:
        """Do a task's run, within the span that the task has; done again under the same id, it is answered at once.

        Raises:
            AgentError: as for ``run``.
        """
        run = Run(
            run_id=task["task_id"], task_id=task["task_id"], agent_id=self.agent_id,
            session_id=task.get("session_id"), user_id=task.get("user_id"),
        )  # fmt: skip
        return await self._perform(
            run, prompt, timeout=task.get("timeout"), model=task.get("model"), tools=task.get("tools")
        )

    async def _perform(
        self,
        run: Run,
        prompt: str,
        *,
        timeout: float | None = None,
        model: str | None = None,
        tools: Sequence[str] | None = None,
        pieces: Callable[[str], None] | None = None,
    ) -> Answer:
        session = await self._session(run)
        if session is not None and run.task_id is not None and (kept := await session.find(run.run_id)) is not None:
            # Its run is written; whether it had a place in the session too is made sure of.
            await session.append(run.run_id, kept["messages"], kept["answer"])
            return Answer.kept(self.agent_id, session.session_id, kept)
        plan = self._plan if timeout is None else replace(self._plan, timeout=timeout)
        await self._presence.busy(run.run_id, run.task_id)
        failed = True
        try:
            recalled = await self._recalled(prompt, run.user_id)
            runner = Runner(
                self.bus, plan, run, model=model or self.model, session=session, memories=recalled, names=tools
            )
            answer = await runner.answer(prompt, pieces)
            failed = False
            self.bus.telemetry.annotate({semconv.LLM_TOKENS: answer.tokens["total"]})
            return answer
        finally:
            await self._presence.done(run.run_id, failed=failed)

    async def _session(self, run: Run) -> Session | None:
        return None if run.session_id is None else await self.sessions.open(run.session_id, run.user_id)

    async def _recalled(self, prompt: str, user_id: str | None) -> list[Memory]:
        if not self._recalls:
            return []
        return await self.memories.recall(prompt, self._recalls, min_relevance=self._min_relevance, user_id=user_id)

    def _new_run(self, session_id: str | None, user_id: str | None) -> Run:
        return Run(run_id=uuid.uuid4().hex, agent_id=self.agent_id, session_id=session_id, user_id=user_id)

    def _attributes(self, run: Run) -> dict[str, Any]:
        attributes = {
            semconv.AGENT_ID: self.agent_id, semconv.TASK_TYPE: RUN, semconv.SESSION_ID: run.session_id,
            semconv.USER_ID: run.user_id,
        }  # fmt: skip
        return {name: value for name, value in attributes.items() if value is not None}

    # --- memories -----------------------------------------------------------------------------------------------

    async def remember(self, content: str, type: str = "fact", **options: Any) -> str:
        """Hand something over to be remembered and return its id; see ``Memories.remember``."""
        return await self.memories.remember(content, type, **options)

    async def recall(self, query: str, limit: int = 5, **options: Any) -> list[Memory]:
        """Return what is remembered that matters here, the most relevant first; see ``Memories.recall``."""
        return await self.memories.recall(query, limit, **options)

    async def forget(self, memory_id: str, **options: Any) -> None:
        """Have a memory forgotten, for good; see ``Memories.forget``."""
        await self.memories.forget(memory_id, **options)

    # --- tools --------------------------------------------------------------------------------------------------

    async def call_tool(self, name: str, /, *, timeout: float | None = None, **arguments: Any) -> Any:
        """Call a tool that somebody serves over the bus, without asking the model, and return its output.

        Raises:
            UnknownTool, ArgumentsRefused, ToolFailed, ToolTimeout: as they say; none comes after ``timeout`` seconds.
        """
        seconds = self._plan.tool_timeout if timeout is None else timeout
        return await call_tool(self.bus, self.agent_id, name, arguments, timeout=seconds)

    # --- messages -----------------------------------------------------------------------------------------------

    def on_message(self, handler: MessageHandler) -> MessageHandler:
        """Have this function hear what is said to the agent; the text that it returns is the answer."""
        self._mailbox.handler = handler
        return handler

    async def send(self, to: str, content: str, **more: Any) -> str:
        """Say something to an agent and return the message's id; ``kind=`` says what kind of thing it is."""
        return await self._mailbox.send(check_id(to, what="agent_id"), content, **more)

    async def broadcast(self, content: str, **more: Any) -> str:
        """Say something to every agent of the tenant and return the message's id."""
        return await self._mailbox.send(None, content, **more)

    async def ask(self, to: str, content: str, *, timeout: float = 30.0, **more: Any) -> AgentMessage:
        """Ask an agent and wait for its answer.

        Raises:
            NoReply: there is none within ``timeout`` seconds.
            AgentError: it could not answer; says why.
        """
        return await self._mailbox.ask(check_id(to, what="agent_id"), content, timeout=timeout, **more)

    async def gather(self, to: Iterable[str], content: str, *, timeout: float = 30.0, **more: Any) -> Gathered:
        """Ask several agents at once and return what they answered by the deadline, and who did not."""
        return await self._mailbox.gather(to, content, timeout=timeout, **more)

    async def receive(self, timeout: float = 30.0) -> AgentMessage:
        """Return the next thing that was said to this agent, within ``timeout`` seconds."""
        return await self._mailbox.receive(timeout)

    async def _reply(self, message: AgentMessage) -> str | None:
        """Answer a question by a run: what an agent does unless it is told otherwise."""
        if not message.expects_reply:
            return None
        return (await self.run(message.content, session_id=message.session_id or message.conversation_id)).text

    # --- tasks --------------------------------------------------------------------------------------------------

    def task(self, task_type: str) -> Callable[[TaskHandler], TaskHandler]:
        """Have a function do the tasks of a type: it gets the agent and the task, and returns the output."""

        def keep(handler: TaskHandler) -> TaskHandler:
            self.task_handlers[task_type] = handler
            return handler

        return keep

    def _about(self) -> dict[str, Any]:
        about: dict[str, Any] = {"model": self.model, "capabilities": list(self.capabilities)}
        tools = [name for tool in self._plan.tools for name in _names(tool)]
        about |= {"metadata": {"takes_tasks": True}} if self.takes_tasks else {}
        return about | ({"tools": tools} if tools else {}) | ({"role": self.role} if self.role else {})


def _names(tool: Any) -> list[str]:
    """Return the names of a tool, or of a toolkit's."""
    if isinstance(tool, str):
        return [tool.rpartition(":")[2]]
    return [*getattr(tool, "functions", ())] or [str(getattr(tool, "name", None) or getattr(tool, "__name__", tool))]
