"""Tools take arguments of any type that JSON has a value for, and are refused when served if nobody could call them."""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
import functools
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Optional, Union

import pytest
from agents_stand_in import StandIn, call
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from kit.catalogue import AGENT_TASKS, AGENT_TOOLS
from kit.components.agents import Agent
from kit.components.agents.errors import ArgumentsRefused, NoReply, ToolError, ToolFailed
from kit.components.agents.executor import ToolExecutor
from kit.components.agents.manager import AgentManager
from kit.components.agents.tasks import TaskWorker
from kit.components.agents.tools import find_tool
from kit.errors import ConfigurationError
from kit.nats.bus import Bus


class Colour(enum.Enum):
    """A colour."""

    RED = "red"
    BLUE = 2


@dataclass
class Point:
    """A place."""

    x: int
    y: float = 0.5


class Guest(BaseModel):
    """Who comes."""

    name: str
    since: dt.date | None = None
    brings: list[Guest] = []


class Pair(NamedTuple):
    """Two."""

    left: int
    right: str


class Row(TypedDict):
    """A row."""

    day: dt.date


class Client:
    """Nothing that JSON has a value for."""


def made(hint: Any, **more: Any) -> Callable[..., str]:
    """Return a tool whose one parameter is of a type; it answers with what it got."""

    def tool(value: Any) -> str:
        return f"{type(value).__name__}: {value!r}" if value is not None else "nothing"

    tool.__annotations__["value"] = hint
    tool.__doc__ = "Say what came.\n\nArgs:\n    value: what is said"
    return tool


CALLS: list[tuple[Any, Any, str]] = [
    (dt.date, "2026-12-01", "date: datetime.date(2026, 12, 1)"),
    (dt.datetime, "2026-12-01T10:00:00Z", "datetime: datetime.datetime(2026, 12, 1, 10, 0, tzinfo=TzInfo(0))"),
    (dt.time, "10:30", "time: datetime.time(10, 30)"),
    (dt.timedelta, "PT90S", "timedelta: datetime.timedelta(seconds=90)"),
    (Any, 7, "int: 7"),
    (Any, {"a": [None]}, "dict: {'a': [None]}"),
    (object, "x", "str: 'x'"),
    (Sequence[str], ["Ada", "Bob"], "list: ['Ada', 'Bob']"),
    (Mapping[str, int], {"a": 1}, "dict: {'a': 1}"),
    (dict[str, list[dt.date]], {"a": ["2026-12-01"]}, "dict: {'a': [datetime.date(2026, 12, 1)]}"),
    (set[int], [1, 2], "set: {1, 2}"),
    (tuple[int, str], [1, "a"], "tuple: (1, 'a')"),
    (Path, "a/b.txt", f"{type(Path()).__name__}: {Path('a/b.txt')!r}"),
    (Decimal, "1.10", "Decimal: Decimal('1.10')"),
    (Decimal, 2.5, "Decimal: Decimal('2.5')"),
    (uuid.UUID, "0" * 32, f"UUID: {uuid.UUID('0' * 32)!r}"),
    (Colour, "red", "Colour: <Colour.RED: 'red'>"),
    (Literal["a", 3], 3, "int: 3"),
    (Optional[int], None, "nothing"),  # noqa: UP045 - as people write it
    (int | None, 4, "int: 4"),
    (Union[int, str], "x", "str: 'x'"),  # noqa: UP007
    (dt.date | int, "2026-12-01", "date: datetime.date(2026, 12, 1)"),
    (Point, {"x": 1}, "Point: Point(x=1, y=0.5)"),
    (list[Point], [{"x": 1, "y": 2.0}], "list: [Point(x=1, y=2.0)]"),
    (Guest, {"name": "Ada", "brings": [{"name": "Bob"}]}, "Guest: Guest(name='Ada'"),
    (Pair, [1, "a"], "Pair: Pair(left=1, right='a')"),
    (Row, {"day": "2026-12-01"}, "dict: {'day': datetime.date(2026, 12, 1)}"),
    (Annotated[int, Field(ge=3)], 3, "int: 3"),
]


@pytest.fixture
async def serve(tenant_bus: Bus) -> Any:
    """Serve tools and return an agent that calls them."""

    async def start(*tools: Any) -> Agent:
        await tenant_bus.work(AGENT_TOOLS, (await ToolExecutor.open(tenant_bus, tools)).handle, concurrency=8)
        return Agent(tenant_bus, "ada")

    return start


async def test_a_tool_gets_its_arguments_in_their_types(serve: Any) -> None:
    tools = []
    for n, (hint, _, _) in enumerate(CALLS):
        tools.append(made(hint))
        tools[-1].__name__ = f"tool_{n}"
    agent = await serve(*tools)
    for n, (hint, value, wanted) in enumerate(CALLS):
        said = await agent.call_tool(f"tool_{n}", value=value)
        assert said.startswith(wanted), (hint, said)


async def test_a_model_is_told_what_a_tool_takes(tenant_bus: Bus, serve: Any) -> None:
    def book(day: dt.date, guests: Sequence[str] = (), client: Client | None = None, **more: int) -> str:
        """Book a day.

        Args:
            day: the day that is booked
        """
        return f"{day:%d %B} {'+'.join(guests)} {client} {more}"

    agent = await serve(book)
    assert (await find_tool(tenant_bus, "book")).parameters == {
        "type": "object", "required": ["day"], "additionalProperties": {"type": "integer"},
        "properties": {
            "day": {"type": "string", "format": "date", "description": "the day that is booked"},
            "guests": {"type": "array", "items": {"type": "string"}},
        },
    }  # fmt: skip
    assert await agent.call_tool("book", day="2026-12-01", guests=["Ada"], beds=2) == "01 December Ada None {'beds': 2}"
    with pytest.raises(ArgumentsRefused, match="type"):
        await agent.call_tool("book", day="2026-12-01", beds="two")


async def test_names_that_nobody_declared_are_content(serve: Any) -> None:
    def keep(**days: dt.date) -> str:
        """Keep days."""
        return str(len(days))

    agent = await serve(keep)
    assert await agent.call_tool("keep", birthday="2026-12-01") == "1"
    with pytest.raises(ArgumentsRefused, match=r"\$ breaks the rule 'date_") as refused:
        await agent.call_tool("keep", birthday="some day")
    assert "birthday" not in str(refused.value)


@pytest.mark.parametrize(
    ("hint", "value", "rule"),
    [
        (dt.date, "some day", r"\$\.value breaks the rule 'date_"),
        (dt.date, 7.5, r"\$\.value breaks the rule 'type'"),
        (uuid.UUID, "no uuid", "'uuid_parsing'"),
        (Sequence[str], "abc", "'type'"),
        (Mapping[str, int], {"a": "one"}, "'type'"),
        (Point, {"y": 1.0}, "'required'"),
        (Colour, "green", "'enum'"),
        (list[dt.date], ["2026-12-01", "some day"], r"\$\.value breaks the rule 'date_"),
    ],
)
async def test_arguments_that_do_not_fit_are_refused_by_path_and_rule(
    serve: Any, hint: Any, value: Any, rule: str
) -> None:
    agent = await serve(made(hint))
    with pytest.raises(ArgumentsRefused, match=rule) as refused:
        await agent.call_tool("tool", value=value)
    assert "some day" not in str(refused.value)
    assert "no uuid" not in str(refused.value)


def many(*values: int) -> int:
    """Add up."""
    return sum(values)


def placed(value: int, /) -> int:
    """Give it back."""
    return value


def injected(run_context: Any, word: str) -> str:
    """Keep a word in the session."""
    return word


def unknown(value: Nowhere) -> str:  # type: ignore[name-defined] # noqa: F821 - on purpose
    """Say nothing."""
    return ""


@pytest.mark.parametrize(
    ("tool", "says"),
    [
        (made(Client), r"parameter value: .*Client.*: Unable to generate"),
        (made(Callable[[int], int]), "Cannot generate a JsonSchema"),
        (made(list[Client]), "Unable to generate"),
        (many, r"\*values: 'int': arguments are passed by name"),
        (placed, "passed by name"),
        (injected, "Agno fills its parameter 'run_context'"),
        (unknown, "Nowhere"),
        (functools.partial(placed, 1), "no attribute"),
        (Client(), "no tool"),
    ],
)
async def test_what_nobody_could_call_is_refused_when_it_is_served(tenant_bus: Bus, tool: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        await ToolExecutor.open(tenant_bus, [tool])


# --- a tool's end is its own ----------------------------------------------------------------------------------------


class Odd(BaseException):
    """Something that is no Exception."""


class Mute(Exception):
    """An error that cannot say what it is."""

    def __str__(self) -> str:
        raise SystemExit(3)


class Untellable:
    """A result that cannot be told."""

    def __str__(self) -> str:
        raise KeyboardInterrupt


ENDS: list[Callable[[], BaseException]] = [
    lambda: SystemExit(2), KeyboardInterrupt, Odd, asyncio.CancelledError, StopIteration, StopAsyncIteration, Mute,
    lambda: RecursionError("deep"), MemoryError, TimeoutError,
]  # fmt: skip


@pytest.mark.parametrize("error", ENDS)
@pytest.mark.parametrize("is_async", [False, True])
async def test_whatever_a_tool_raises_ends_its_call_alone(
    serve: Any, error: Callable[[], BaseException], is_async: bool
) -> None:
    def plain() -> str:
        """End."""
        raise error()

    async def awaited() -> str:
        """End."""
        raise error()

    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    tool = awaited if is_async else plain
    agent = await serve(tool, add)
    with pytest.raises(ToolFailed):
        await agent.call_tool(tool.__name__, timeout=10)
    assert await agent.call_tool("add", a=1, b=2, timeout=10) == 3


async def test_a_result_that_cannot_be_told_is_the_tools_failure(serve: Any) -> None:
    agent = await serve(made(int), unspeakable)
    with pytest.raises(ToolFailed, match="KeyboardInterrupt"):
        await agent.call_tool("unspeakable")
    assert await agent.call_tool("tool", value=1) == "int: 1"


def unspeakable() -> Any:
    """Return something odd."""
    return Untellable()


@pytest.mark.parametrize("error", [lambda: SystemExit(2), KeyboardInterrupt, Odd])
async def test_whatever_a_handler_raises_ends_its_message_alone(tenant_bus: Bus, error: Any) -> None:
    async with StandIn(tenant_bus), Agent(tenant_bus, "bob") as bob, Agent(tenant_bus, "ada") as ada:

        @bob.task("odd")
        async def end(agent: Agent, task: dict[str, Any]) -> Any:
            raise error()

        @bob.on_message
        async def hear(message: Any) -> str:
            raise error()

        await tenant_bus.work(AGENT_TASKS, TaskWorker(tenant_bus, {"bob": bob}).handle)
        with pytest.raises(Exception, match=type(error()).__name__) as failed:
            await ada.ask("bob", "Are you there?", timeout=10)
        assert not isinstance(failed.value, NoReply)
        async with AgentManager(tenant_bus) as manager:
            await manager.submit_task(task_type="odd")
            assert str(await (await manager.submit_task("Say it.")).result(10)) == "You said: Say it."


@pytest.mark.parametrize("error", [lambda: SystemExit(2), KeyboardInterrupt, Odd])
async def test_a_local_tool_ends_its_call_and_not_the_run(tenant_bus: Bus, error: Any) -> None:
    def end() -> str:
        """End."""
        raise error()

    async with StandIn(tenant_bus, lambda request: [call("end", "{}")]):
        with pytest.raises(ToolError, match=type(error()).__name__):
            await Agent(tenant_bus, "bob", tools=[end], strict_tools=True).run("End.")


def test_a_process_survives_a_handler_that_exits(tmp_path: Path) -> None:
    script = tmp_path / "handler.py"
    script.write_text(
        "import asyncio, sys, kit\n"
        "from kit.catalogue import API_QUERIES\n"
        "from kit import codec\n"
        "def leave(message): sys.exit(5)\n"
        "async def main():\n"
        "    async with kit.start() as lab:\n"
        "        await lab.bus.serve(API_QUERIES, leave)\n"
        "        asked = {'query_id': 'q', 'tenant_id': lab.bus.tenant_id, 'query': 'x', 'timestamp': codec.now()}\n"
        "        try: await lab.bus.request(API_QUERIES, asked, timeout=20)\n"
        "        except Exception as error: print(error)\n"
        "asyncio.run(main())\n"
    )
    ended = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=90, check=False, cwd=tmp_path
    )
    assert (ended.returncode, "SystemExit" in ended.stdout) == (0, True), ended.stderr
