"""How one run goes: memories and history in, Agno in the middle, the answer and the session's next run out."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kit.catalogue import AGENT_TOOL_EXECUTE
from kit.components.agents.brain import GatewayClient
from kit.components.agents.engine import Agno, agno_classes
from kit.components.agents.errors import AgentFailed, RunTimeout, ToolError, ToolTimeout
from kit.components.agents.executor import NotDone, at_most, failed_tool, functions_of, on_thread
from kit.components.agents.runs import Answer, Run
from kit.components.agents.tools import call_id, call_tool, find_tool
from kit.nats.worker import is_cancellation
from kit.otel import semconv

if TYPE_CHECKING:
    from kit.components.agents.memory import Memory
    from kit.components.agents.sessions import Session
    from kit.nats.bus import Bus

_COMPLETED = "COMPLETED"  # Source: agno.run.base.RunStatus
_PIECE = "RunContent"  # Source: agno.run.agent.RunEvent
_KEPT = ("role", "content", "tool_calls", "tool_call_id", "name")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What all runs of an agent have in common.

    Attributes:
        instructions: what the agent is told to be.
        tools: functions, Agno's functions and toolkits, and names of tools that somebody serves over the bus.
        parameters: of the model's requests.
        history: runs of the session that the model is shown.
        timeout: seconds for a run; tool_timeout: for one call of a tool.
        tool_calls: at most, in one run.
        strict_tools: whether a run ends with the error of a tool; else the model is told of it.
    """

    instructions: str | Sequence[str] | None = None
    tools: Sequence[Any] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    history: int = 10
    timeout: float = 60.0
    tool_timeout: float = 30.0
    tool_calls: int = 16
    strict_tools: bool = False


class Runner:
    """Does one run with Agno.

    Args:
        model: the model to ask, by the gateway's name for it.
        names: of the tools that this run may use; None: all.
    """

    def __init__(
        self, bus: Bus, plan: Plan, run: Run, *, model: str, session: Session | None = None,
        memories: Sequence[Memory] = (), names: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        self._bus, self._plan, self._run, self._model = bus, plan, run, model
        self._session, self._memories, self._names = session, memories, names
        self._remote: set[str] = set()
        self._agno: Agno

    async def answer(self, prompt: str, pieces: Callable[[str], None] | None = None) -> Answer:
        """Run, note the run in its session, and return the answer.

        Args:
            pieces: gets the text as it comes.

        Raises:
            AgentFailed: there is no answer; StateConflict: what tools keep could not be made one with others' changes.
            ToolError: a tool failed, and the agent is strict.
        """
        run, plan = self._run, self._plan
        self._agno = await agno_classes()  # the first import takes seconds that are not the run's
        started = time.perf_counter()
        try:
            async with asyncio.timeout(plan.timeout):
                history = [] if self._session is None else await self._session.runs(plan.history)
                state = {} if self._session is None else await self._session.state()
                agent = await self._agent()
                messages = [self._agno.Message(**m) for kept in history for m in kept["messages"]]
                asked = [*messages, self._agno.Message(role="user", content=prompt)]
                output = await self._arun(agent, asked, deepcopy(state), pieces)
        except TimeoutError:
            raise RunTimeout(run.agent_id, seconds=plan.timeout) from None
        if run.fault is not None:
            raise run.fault
        if str(getattr(output.status, "value", output.status)) != _COMPLETED:
            raise AgentFailed(f"{run.agent_id}: the run ended {output.status}")
        answer = self._made(output, time.perf_counter() - started)
        if self._session is not None:
            said = [_kept(message) for message in output.messages if message.role != "system"]
            await self._session.change(state, _state(output.session_state), run.run_id)
            await self._session.append(run.run_id, said[len(messages) :], answer.document())
        return answer

    def _made(self, output: Any, seconds: float) -> Answer:
        run = self._run
        return Answer(
            text=output.content if isinstance(output.content, str) else str(output.content or ""),
            run_id=run.run_id, agent_id=run.agent_id, model=run.model or self._model, session_id=run.session_id,
            tokens=dict(run.tokens), cost=run.cost, tools=tuple(run.tools), tool_errors=tuple(run.tool_errors),
            memories=tuple(memory.memory_id for memory in self._memories), seconds=seconds,
        )  # fmt: skip

    async def _arun(
        self, agent: Any, asked: list[Any], state: dict[str, Any], pieces: Callable[[str], None] | None
    ) -> Any:
        run = self._run
        ids = {"session_id": run.session_id or run.run_id, "user_id": run.user_id, "run_id": run.run_id}
        if pieces is None:
            return await agent.arun(asked, session_state=state, **ids)
        output = None
        events: AsyncIterator[Any] = agent.arun(asked, session_state=state, stream=True, yield_run_output=True, **ids)
        async for event in events:
            if getattr(event, "event", None) == _PIECE and isinstance(event.content, str):
                pieces(event.content)
            elif hasattr(event, "status") and hasattr(event, "messages"):
                output = event
        return output

    async def _agent(self) -> Any:
        """Make an Agno agent for this run alone: nothing of one run can get into another."""
        agno, plan, run = self._agno, self._plan, self._run
        client = GatewayClient(self._bus, run, timeout=plan.timeout)
        parameters = {"temperature": None, "top_p": None, "request_params": dict(plan.parameters) or None}
        return agno.Agent(
            model=agno.LiteLLM(id=self._model, client=client, append_trailing_user_message=False, **parameters),
            id=run.agent_id, name=run.agent_id, instructions=_instructions(plan.instructions),
            additional_context=_context(self._memories), tools=await self._tools() or None,
            tool_hooks=[self._hook], tool_call_limit=plan.tool_calls, telemetry=False, retries=0,
        )  # fmt: skip

    # --- tools --------------------------------------------------------------------------------------------------

    async def _tools(self) -> list[Any]:
        names = [tool for tool in self._plan.tools if isinstance(tool, str) and ":" not in tool]
        local = [tool for tool in self._plan.tools if tool not in names]
        found = [function for tool in local for function in self._local(tool)]
        if self._names is not None:
            found = [tool for tool in found if getattr(tool, "name", None) in self._names]
            mine = {getattr(tool, "name", None) for tool in found}
            names = [name for name in self._names if name not in mine]
        return [*found, *[await self._served(name) for name in dict.fromkeys(names)]]

    def _local(self, tool: Any) -> list[Any]:
        """A toolkit stays whole, since it may give instructions; unless only some of its tools are wanted."""
        if isinstance(tool, self._agno.Toolkit) and self._names is None:
            return [tool]
        return functions_of(self._agno, tool)

    async def _served(self, name: str) -> Any:
        """Return a tool that somebody serves over the bus as one of Agno's functions."""
        record = await find_tool(self._bus, name)
        self._remote.add(name)

        async def call(**arguments: Any) -> Any:
            return await self._call(name, arguments, min(record.timeout, self._plan.tool_timeout))

        return self._agno.Function(
            name=record.name, description=record.description, parameters=dict(record.parameters), entrypoint=call,
            skip_entrypoint_processing=True,
        )  # fmt: skip

    async def _call(self, name: str, arguments: Mapping[str, Any], timeout: float) -> Any:
        run = self._run
        again = run.again(f"{name} {sorted(arguments.items())}")
        message_id = None if run.task_id is None else call_id(run.run_id, name, arguments, again)
        output = await call_tool(
            self._bus, run.agent_id, name, arguments, timeout=timeout, message_id=message_id,
            session_id=run.session_id, task_id=run.task_id, user_id=run.user_id,
        )  # fmt: skip
        return output if isinstance(output, str) else str(output)

    def _hook(self, function_name: str, function_call: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Stand around every call that Agno makes: its span, its deadline, and its error by name.

        Agno runs a tool that blocks on a thread and awaits one that does not; a plain function serves both.
        """
        if inspect.iscoroutinefunction(function_call):
            return self._awaited(function_name, function_call, arguments)
        return self._blocking(function_name, function_call, arguments)

    async def _awaited(self, name: str, call: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        seconds = self._plan.tool_timeout
        try:
            if name in self._remote:  # the bus has a span of its own for it
                return self._used(name, arguments, await call(**arguments))
            with self._operation(name):
                try:
                    async with at_most(seconds):
                        return self._used(name, arguments, await call(**arguments))
                except self._agno.ControlFlow:
                    raise
                except BaseException as error:  # SystemExit too: a tool may raise anything; it is told by name
                    if is_cancellation(error):
                        raise
                    raise self._error(name, call, error, arguments) from None
        except ToolError as error:
            raise self._noted(name, arguments, error) from None

    def _blocking(self, name: str, call: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        try:
            with self._operation(name):
                try:
                    return self._used(name, arguments, on_thread(lambda: call(**arguments), self._plan.tool_timeout))
                except self._agno.ControlFlow:
                    raise
                except BaseException as error:  # noqa: BLE001 - as above; nothing cancels a thread
                    raise self._error(name, call, error, arguments) from None
        except ToolError as error:
            raise self._noted(name, arguments, error) from None

    def _operation(self, name: str) -> Any:
        attributes = {semconv.AGENT_ID: self._run.agent_id, semconv.TOOL_NAME: name}
        return self._bus.telemetry.operation(AGENT_TOOL_EXECUTE, attributes)

    def _used(self, name: str, arguments: Mapping[str, Any], output: Any) -> Any:
        self._run.used(name, arguments)
        return output

    def _error(
        self, name: str, call: Callable[..., Any], error: BaseException, arguments: Mapping[str, Any]
    ) -> ToolError:
        if isinstance(error, ToolError):
            return error
        if isinstance(error, NotDone):
            return ToolTimeout(name, f"not done within {self._plan.tool_timeout:g} s")
        return failed_tool(name, call, error, arguments)

    def _noted(self, name: str, arguments: Mapping[str, Any], error: ToolError) -> Exception:
        """Note a tool's error; return what Agno shall get: the error, which it tells the model, or the run's end."""
        self._run.used(name, arguments, error)
        if not self._plan.strict_tools:
            return error
        self._run.fault = error
        return self._agno.ControlFlow(error, stop_execution=True)  # type: ignore[call-arg]


def _instructions(given: str | Sequence[str] | None) -> Any:
    return given if given is None or isinstance(given, str) else list(given)


def _context(memories: Sequence[Memory]) -> str | None:
    if not memories:
        return None
    lines = "\n\n".join(memory.content for memory in memories)
    return f"What you remember that may matter here:\n<memories>\n{lines}\n</memories>"


def _kept(message: Any) -> dict[str, Any]:
    """Return what a session keeps of one of Agno's messages."""
    found = {name: getattr(message, name, None) for name in _KEPT}
    return {name: value for name, value in found.items() if value is not None}


def _state(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what tools keep, without what Agno puts beside it for each run."""
    return {name: value for name, value in (given or {}).items() if not name.startswith("current_")}
