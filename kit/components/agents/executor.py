"""The tool executor: runs registered functions, each call within its deadline, its arguments checked."""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from kit import codec
from kit.catalogue import AGENT_TOOL_RESULTS
from kit.components.agents.arguments import check_callable, describe_arguments
from kit.components.agents.engine import Agno, agno_classes
from kit.components.agents.errors import ArgumentsRefused, ToolElsewhere, ToolError, ToolFailed, ToolTimeout
from kit.components.agents.tools import ToolRecord, find_tool, register_tool
from kit.errors import CodecError, ConfigurationError
from kit.nats.faults import told
from kit.nats.worker import is_cancellation
from kit.otel import semconv
from kit.threads import on_own_thread, start_thread

if TYPE_CHECKING:
    from kit.nats.bus import Bus
    from kit.nats.message import Message

TIMEOUT = 30.0  # s; for one call
_THREAD = "kit-tool"
_ON_THE_WAY = 0.2  # s; a failure shall reach its caller before the caller stops waiting
_T = TypeVar("_T")


class ToolExecutor:
    """Serves functions to the agents of a tenant.

    Args:
        bus: of the tenant.
        records: what is told of each tool; functions: what is run, by name.
    """

    def __init__(
        self, bus: Bus, records: Mapping[str, ToolRecord], functions: Mapping[str, Callable[..., Any]]
    ) -> None:
        self._bus, self._records, self._functions = bus, dict(records), dict(functions)

    @classmethod
    async def open(cls, bus: Bus, tools: Iterable[Any], *, timeout: float = TIMEOUT) -> ToolExecutor:
        """Register tools and return their executor.

        Args:
            tools: functions, Agno's functions and toolkits, or ``"package.module:name"`` of one.
            timeout: seconds that one call may take.

        Raises:
            ConfigurationError: something is not a tool, or cannot be called over the bus.
        """
        agno = await agno_classes()
        functions = [function for tool in tools for function in functions_of(agno, tool)]
        for function in functions:
            check_callable(function)
        records = {function.name: _record(function, timeout) for function in functions}
        for record in records.values():
            await register_tool(bus, record)
        return cls(bus, records, {function.name: function.entrypoint for function in functions})

    @property
    def names(self) -> list[str]:
        """Return the names of the tools served here."""
        return sorted(self._records)

    async def handle(self, message: Message) -> dict[str, Any]:
        """Run one call and tell everybody who watches.

        Raises:
            ToolError: there is no output.
        """
        request, started = message.data, time.perf_counter()
        name = request["tool_name"]
        self._bus.telemetry.annotate({semconv.AGENT_ID: request["agent_id"], semconv.TOOL_NAME: name})
        try:
            output = await self._run(name, request)
        except ToolElsewhere:
            raise
        except ToolError as error:
            status = "timeout" if isinstance(error, ToolTimeout) else "error"
            said = {"type": type(error).__name__, "message": str(error), "retryable": error.retryable}
            await self._tell(_result(request, status, time.perf_counter() - started, error=said))
            raise
        result = _result(request, "success", time.perf_counter() - started, output=output)
        await self._tell(result)
        return result

    async def _run(self, name: str, request: Mapping[str, Any]) -> Any:
        record = self._records.get(name)
        if record is None:
            await find_tool(self._bus, name)
            raise ToolElsewhere(name)
        record.check(request["arguments"])
        seconds = min(record.timeout, _seconds_left(request))
        if seconds <= 0:
            raise ToolTimeout(name, "its deadline had passed before it was begun")
        try:
            return _as_json(await within(seconds, self._functions[name], request["arguments"]))
        except NotDone:
            raise ToolTimeout(name, f"not done within {seconds:.3g} s") from None
        except BaseException as error:  # SystemExit too: a tool may raise anything; it is told by name
            if is_cancellation(error):
                raise
            raise failed_tool(name, self._functions[name], error, request["arguments"]) from None

    async def _tell(self, result: dict[str, Any]) -> None:
        await self._bus.publish(AGENT_TOOL_RESULTS, result)


def functions_of(agno: Agno, tool: Any) -> list[Any]:
    """Return a tool, or all tools of a toolkit, as Agno functions with their schemas.

    Raises:
        ConfigurationError: it is not a tool, or cannot be called.
    """
    if isinstance(tool, str):
        tool = _imported(tool)
    if isinstance(tool, agno.Toolkit):
        found = list(tool.get_async_functions().values())
    elif isinstance(tool, agno.Function):
        found = [tool]
    elif callable(tool):
        try:
            function = agno.Function.from_callable(tool)
        except Exception as error:
            raise ConfigurationError(f"{tool!r} cannot be called as a tool: {error}") from error
        function.parameters = describe_arguments(function)
        return [function]
    else:
        raise ConfigurationError(f"{tool!r} is no tool: give a function, an Agno function or toolkit, or 'module:name'")
    prepared = []
    for function in found:
        function = function.model_copy()
        if not function.skip_entrypoint_processing:
            by_hand = bool(function.parameters.get("properties"))
            function.process_entrypoint()
            if not by_hand:
                function.parameters = describe_arguments(function)
        prepared.append(function)
    return prepared


class NotDone(TimeoutError):
    """The time of a tool is over; a TimeoutError that the tool itself raises is another matter."""


@asynccontextmanager
async def at_most(seconds: float) -> AsyncIterator[None]:
    """Cancel what is inside after some seconds.

    Raises:
        NotDone: it was cancelled.
    """
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield
    except TimeoutError:
        if limit.expired():
            raise NotDone from None
        raise


async def within(seconds: float, function: Callable[..., _T | Awaitable[_T]], arguments: Mapping[str, Any]) -> _T:
    """Run a function for at most some seconds; one that blocks has a thread of its own, which nobody waits for.

    What is not done by then is stopped, on a thread at its next step in Python, unless this process is traced.

    Raises:
        NotDone: it was not done.
    """
    async with at_most(seconds):
        if inspect.iscoroutinefunction(function):
            return await function(**arguments)  # type: ignore[no-any-return]
        outcome = await on_own_thread(lambda: function(**arguments), name=_THREAD, given_up=_stop)
        return await outcome if inspect.isawaitable(outcome) else outcome


def failed_tool(
    name: str, function: Callable[..., Any], error: BaseException, arguments: Mapping[str, Any]
) -> ToolError:
    """Return the error for a tool's caller, without the content of its arguments."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError) and error.title == getattr(function, "__qualname__", None):
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        declared = first["loc"][0] in inspect.signature(function).parameters  # other names are content
        where = f"$.{first['loc'][0]}" if declared else "$"
        return ArgumentsRefused(name, f"{where} breaks the rule '{first['type']}'")
    return ToolFailed(name, f"{type(error).__name__}: {told(error, dict(arguments))}")


def on_thread(call: Callable[[], _T], seconds: float) -> _T:
    """Run a call for at most some seconds, from a thread that may block; then it is stopped as by ``within``.

    Raises:
        NotDone: it was not done.
    """
    ended = threading.Event()
    outcome: list[tuple[_T, BaseException | None]] = []

    def done(result: _T, error: BaseException | None) -> None:
        outcome.append((result, error))
        ended.set()

    thread = start_thread(call, done, name=_THREAD)
    if not ended.wait(seconds):
        _stop(thread)
        raise NotDone
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


class _Stopped(SystemExit):
    """Ends the thread of a tool whose time is over."""


def _stop(thread: threading.Thread) -> None:
    """Have a thread end at its next step in Python.

    One that went on for ever would take time from all others, and abort the process when that ends: a daemon thread
    that wakes up then is thrown out through the frames of pydantic, which cannot be unwound.

    Where a debugger or coverage traces, it is left alone: while the exception waits for a thread that blocks outside of
    Python, traced threads of CPython 3.11 go round in the entry of the next function that they call, all of them.
    Source: CPython's C API, PyThreadState_SetAsyncExc; https://github.com/python/cpython/issues/87135
    """
    if thread.ident is not None and thread.is_alive() and not _is_traced():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_Stopped))


def _is_traced() -> bool:
    return sys.gettrace() is not None or threading.gettrace() is not None


def _record(function: Any, timeout: float) -> ToolRecord:
    parameters = {**function.parameters}
    parameters.setdefault("additionalProperties", False)
    return ToolRecord(
        name=function.name, description=function.description or "", parameters=parameters, timeout=timeout
    )


def _imported(path: str) -> Any:
    module, _, name = path.partition(":")
    try:
        return getattr(import_module(module), name)
    except (Exception, SystemExit) as error:  # a module does what it likes when it is imported
        raise ConfigurationError(f"there is no tool {path!r}: {error}; write 'package.module:name'") from error


def _seconds_left(request: Mapping[str, Any]) -> float:
    timeout = request.get("timeout")
    if not timeout:
        return float("inf")
    waited = max(time.time() - datetime.fromisoformat(request["timestamp"]).timestamp(), 0.0)
    return float(timeout - waited - min(_ON_THE_WAY, timeout / 10))


def _as_json(output: Any) -> Any:
    """Return an output as it can be sent: what is no JSON as text."""
    try:
        codec.dumps(output)
    except (CodecError, TypeError, ValueError):
        return str(output)
    return output


def _result(request: Mapping[str, Any], status: str, seconds: float, **more: Any) -> dict[str, Any]:
    same = ("request_id", "tool_name", "agent_id", "tool_call_id", "session_id", "task_id")
    return {
        **{name: request[name] for name in same if name in request},
        "status": status, "duration": seconds, "timestamp": codec.now(), **more,
    }  # fmt: skip
