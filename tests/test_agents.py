"""Agents run over the bus: models, tools that are Agno's own, sessions that survive and stay apart, streams."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import pytest
from agents_stand_in import Broken, StandIn, call

from kit.catalogue import (
    AGENT_LLM_CALL,
    AGENT_SESSION_CREATE,
    AGENT_SESSIONS_CREATED,
    AGENT_TASK_EXECUTE,
    AGENT_TASKS_EXECUTED,
    AGENT_TOOL_EXECUTE,
    AGENT_TOOLS_EXECUTED,
    GATEWAY_GENERATE,
    GATEWAY_REQUESTS,
    GATEWAY_WORKER_PROCESS,
)
from kit.components import agents, gateway
from kit.components.agents import Agent, ModelFailed, RunTimeout, SessionRefused, ToolFailed, ToolTimeout
from kit.components.agents.brain import chunk_of, request_of, response_of
from kit.components.agents.engine import agno_classes
from kit.errors import ConfigurationError
from kit.nats.bus import Bus
from kit.nats.connection import connect
from kit.nats.server import Server


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first number
        b: the second number
    """
    return a + b


def script(*turns: Any) -> Any:
    """A model that says these in turn, and the last one ever after."""
    left = list(turns)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


# --- the brain ------------------------------------------------------------------------------------------------------


async def test_a_run_asks_the_gateway_with_messages_and_tools_as_one_trace(tenant_bus: Bus, telemetry: Any) -> None:
    turns = script([call("add", '{"a": 3, "b": 4}')], "It is 7.")
    async with StandIn(tenant_bus, turns) as model:
        answer = await Agent(tenant_bus, "ada", instructions="Be brief.", tools=[add], parameters={"seed": 7}).run(
            "What is 3 + 4?", user_id="u1"
        )
    assert str(answer) == "It is 7."
    assert (answer.tokens, answer.cost) == ({"prompt": 6, "completion": 4, "total": 10}, pytest.approx(0.002))
    assert [(use.name, use.arguments, use.error) for use in answer.tools] == [("add", {"a": 3, "b": 4}, None)]
    first, second = model.requests
    assert [message["role"] for message in first["messages"]] == ["system", "user"]
    assert first["messages"][0]["content"] == "Be brief."
    assert first["parameters"] == {"seed": 7}
    assert (first["agent_id"], first["user_id"], first["component"]) == ("ada", "u1", "agents")
    schema = first["tools"][0]["function"]
    assert (schema["name"], schema["parameters"]["required"]) == ("add", ["a", "b"])
    asked, result = second["messages"][-2:]
    assert asked["tool_calls"] == [call("add", '{"a": 3, "b": 4}')]
    assert (result["role"], result["content"], result["tool_call_id"]) == ("tool", "7", "call_1")
    trace = telemetry.recorder.trace()
    assert trace.connected
    assert trace.root.name == AGENT_TASK_EXECUTE.name
    for row in (AGENT_LLM_CALL, AGENT_TOOL_EXECUTE, GATEWAY_GENERATE, GATEWAY_WORKER_PROCESS):
        assert trace.find(row.name), row.name
    assert telemetry.recorder.total(AGENT_TASKS_EXECUTED.name, status="success") == 1
    assert telemetry.recorder.total(AGENT_TOOLS_EXECUTED.name, status="success") == 1


async def test_a_run_with_the_real_gateway_uses_the_tool_that_fits(tenant_bus: Bus) -> None:
    async with await gateway.serve(tenant_bus):
        agent = Agent(tenant_bus, "ada", tools=[add])
        assert "7" in str(await agent.run("What is 3 plus 4? Add the numbers."))
        pieces = [piece async for piece in agent.stream("What is 30 plus 4? Add the numbers.")]
        assert "34" in "".join(pieces)
        assert len(pieces) > 1


def test_messages_tools_and_parameters_are_mapped_exactly_both_ways() -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    sent = request_of(
        {
            "model": "m",
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "assistant", "content": "", "tool_calls": [call("f", '{"x": 1}')], "name": ""},
                {"role": "tool", "content": "r", "tool_call_id": "call_1", "name": ""},
                {"role": "user", "content": [{"type": "text", "text": "t"}]},
            ],
            "tools": [tool | {"function": tool["function"] | {"requires_confirmation": None}}],
            "tool_choice": "auto",
            "temperature": 0.5,
            "top_k": 3,
            "api_key": "secret",
            "stream": True,
            "extra_body": {"metadata": {"a": 1}},
            "max_tokens": None,
        }
    )
    assert sent == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "assistant", "content": None, "tool_calls": [call("f", '{"x": 1}')]},
            {"role": "tool", "content": "r", "tool_call_id": "call_1"},
            {"role": "user", "content": [{"type": "text", "text": "t"}]},
        ],
        "tools": [tool],
        "tool_choice": "auto",
        "parameters": {"temperature": 0.5, "extra": {"top_k": 3, "metadata": {"a": 1}}},
    }
    answer = {
        "request_id": "r", "model": "m", "response": None, "tool_calls": [call("f", '{"x": 1}')],
        "tokens": {"prompt": 1, "completion": 2, "total": 3, "cached": 1, "reasoning": 2},
        "finish_reason": "tool_calls",
    }  # fmt: skip
    got = response_of(answer)
    (made,) = got.choices[0].message.tool_calls
    assert (made.id, made.type, made.function.name, made.function.arguments) == ("call_1", "function", "f", '{"x": 1}')
    assert (got.choices[0].message.content, got.choices[0].finish_reason) == (None, "tool_calls")
    assert (got.usage.total_tokens, got.usage.prompt_tokens_details.cached_tokens) == (3, 1)
    piece = chunk_of({"text": "a", "tool_calls": [{"index": 1, "id": None, "function": {"arguments": "{"}}]})
    (part,) = piece.choices[0].delta.tool_calls
    assert (piece.choices[0].delta.content, part.index, part.id, part.function.arguments) == ("a", 1, None, "{")


async def test_a_response_format_goes_as_its_schema(tenant_bus: Bus) -> None:
    from pydantic import BaseModel

    class City(BaseModel):
        name: str

    sent = request_of({"model": "m", "messages": [{"role": "user", "content": "x"}], "response_format": City})
    wanted = sent["parameters"]["response_format"]
    assert (wanted["type"], wanted["json_schema"]["name"]) == ("json_schema", "City")
    assert wanted["json_schema"]["schema"]["required"] == ["name"]
    plain = {"type": "json_object"}
    sent = request_of({"model": "m", "messages": [{"role": "user", "content": "x"}], "response_format": plain})
    assert sent["parameters"]["response_format"] == plain


async def test_a_stream_gives_pieces_calls_tools_and_keeps_the_run(tenant_bus: Bus, telemetry: Any) -> None:
    async with StandIn(tenant_bus, script([call("add", '{"a": 1, "b": 2}')], "The sum is 3.")) as model:
        agent = Agent(tenant_bus, "ada", tools=[add])
        pieces = [piece async for piece in agent.stream("1 + 2?", session_id="s")]
        assert pieces == ["The ", "sum ", "is ", "3."]
        assert all(request["stream"] for request in model.requests)
        (run,) = await (await agent.sessions.open("s")).runs()
    assert run["answer"]["text"] == "The sum is 3."
    assert [message["role"] for message in run["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert telemetry.recorder.trace(name=AGENT_TASK_EXECUTE.name).connected


async def test_a_stream_that_is_left_cancels_its_run_and_one_that_fails_raises(tenant_bus: Bus) -> None:
    async with StandIn(tenant_bus, script("one two three")) as model:
        agent = Agent(tenant_bus, "ada")
        stream = agent.stream("Count.", session_id="s")
        assert await anext(stream) == "one "
        await stream.aclose()

        def broken(_: Any) -> Any:
            raise Broken("out of words")

        model.say = broken
        with pytest.raises(ModelFailed, match="Broken"):
            _ = [piece async for piece in agent.stream("Count.")]


async def test_what_the_gateway_refuses_is_a_typed_error_and_marks_the_run(tenant_bus: Bus, telemetry: Any) -> None:
    def broken(_: Any) -> Any:
        raise Broken("no money left")

    async with StandIn(tenant_bus, broken):
        with pytest.raises(ModelFailed, match="gave no answer: Broken") as failed:
            await Agent(tenant_bus, "ada").run("Anything?", session_id="s")
    assert not failed.value.retryable
    assert telemetry.recorder.total(AGENT_TASKS_EXECUTED.name, status="error", error_type="ModelFailed") == 1
    assert await (await Agent(tenant_bus, "ada").sessions.open("s")).runs() == []


async def test_nobody_at_work_is_a_timeout_by_name(tenant_bus: Bus) -> None:
    started = time.perf_counter()
    with pytest.raises((RunTimeout, ModelFailed)):
        await Agent(tenant_bus, "ada").run("Anything?", timeout=0.4)
    assert time.perf_counter() - started < 5


# --- tools of Agno --------------------------------------------------------------------------------------------------


async def test_any_tool_of_agno_works_unchanged(tenant_bus: Bus) -> None:
    await agno_classes()
    from agents_tools import CalculatorTools, keep, loud

    turns = script(
        [call("multiply", '{"a": 6, "b": 7}', "c1"), call("shout", '{"text": "hi"}', "c2")],
        [call("keep", '{"word": "blue"}', "c3")],
        "done",
    )
    async with StandIn(tenant_bus, turns) as model:
        agent = Agent(tenant_bus, "ada", tools=[CalculatorTools(), loud, keep])
        answer = await agent.run("Go.", session_id="s")
        contents = [m["content"] for request in model.requests[-1:] for m in request["messages"] if m["role"] == "tool"]
        assert json.loads(contents[0])["result"] == 42
        assert contents[1:] == ["HI", "kept"]
        assert sorted(use.name for use in answer.tools) == ["keep", "multiply", "shout"]
        model.say = script([call("keep", '{"word": "red"}', "c4")], "done")
        await agent.run("Again.", session_id="s")
        assert await (await agent.sessions.open("s")).state() == {"words": ["blue", "red"]}
        await agent.run("Only one.", tools=["multiply"])
        assert [tool["function"]["name"] for tool in model.requests[-1]["tools"]] == ["multiply"]


@pytest.mark.parametrize("strict", [False, True])
async def test_a_tool_that_fails_is_told_to_the_model_or_ends_the_run(
    tenant_bus: Bus, telemetry: Any, strict: bool
) -> None:
    def divide(a: int, b: int) -> float:
        """Divide."""
        return a / b

    async with StandIn(tenant_bus, script([call("divide", '{"a": 1, "b": 0}')], "It cannot be done.")) as model:
        agent = Agent(tenant_bus, "ada", tools=[divide], strict_tools=strict)
        if strict:
            with pytest.raises(ToolFailed, match="ZeroDivisionError"):
                await agent.run("1 / 0?")
        else:
            answer = await agent.run("1 / 0?")
            assert str(answer) == "It cannot be done."
            assert isinstance(answer.tool_errors[0], ToolFailed)
            assert "ZeroDivisionError" in model.requests[-1]["messages"][-1]["content"]
    assert telemetry.recorder.total(AGENT_TOOLS_EXECUTED.name, status="error", error_type="ToolFailed") == 1


async def test_a_tool_that_hangs_is_left_at_its_deadline(tenant_bus: Bus) -> None:
    over = threading.Event()

    def blocks() -> str:
        """Block."""
        over.wait(60)
        return "late"

    async def waits() -> str:
        """Wait."""
        await asyncio.sleep(30)
        return "late"

    async with StandIn(tenant_bus, script([call("blocks", "{}", "a"), call("waits", "{}", "b")], "gave up")):
        started = time.perf_counter()
        answer = await Agent(tenant_bus, "ada", tools=[blocks, waits], tool_timeout=0.2).run("Go.")
        taken = time.perf_counter() - started
    over.set()
    assert taken < 20  # and not the 60 s or 30 s for which they hang
    assert [type(error) for error in answer.tool_errors] == [ToolTimeout, ToolTimeout]


# --- sessions -------------------------------------------------------------------------------------------------------


async def test_a_session_is_created_once_and_resumed_after_a_restart(
    server: Server, tenant_bus: Bus, telemetry: Any
) -> None:
    async with StandIn(tenant_bus) as model:
        await Agent(tenant_bus, "ada").run("My name is Ada.", session_id="monday", user_id="u1")
        who = server.credentials(tenant_bus.tenant_id)
        tenant_id = tenant_bus.tenant_id
        async with (
            await connect(server.url, tenant_id=tenant_id, user=who.user, password=who.password) as connection,
            Bus(connection, tenant_id, telemetry) as restarted,
        ):
            agent = Agent(restarted, "ada")
            await agent.run("Who am I?", session_id="monday", user_id="u1")
            table = await agent.sessions.table()
        shown = [message["content"] for message in model.requests[-1]["messages"]]
    assert shown == ["My name is Ada.", "You said: My name is Ada.", "Who am I?"]
    assert table[["session_id", "user_id", "runs"]].to_numpy().tolist() == [["monday", "u1", 2]]
    assert len(telemetry.recorder.spans(AGENT_SESSION_CREATE.name)) == 1
    assert telemetry.recorder.total(AGENT_SESSIONS_CREATED.name, status="success") == 1


async def test_the_model_is_shown_the_last_runs_only(tenant_bus: Bus) -> None:
    async with StandIn(tenant_bus) as model:
        agent = Agent(tenant_bus, "ada", history=2)
        for number in range(4):
            await agent.run(f"number {number}", session_id="s")
    assert [m["content"] for m in model.requests[-1]["messages"] if m["role"] == "user"] == [
        "number 1", "number 2", "number 3",
    ]  # fmt: skip


async def test_sessions_are_apart_from_each_other_by_name_agent_user_and_tenant(bus: Bus, other_bus: Bus) -> None:
    async with StandIn(bus) as model, StandIn(other_bus) as other_model:
        agent = Agent(bus, "apart")
        await agent.run("a secret", session_id="s1", user_id="u1")
        await agent.run("hello", session_id="s2", user_id="u1")
        await Agent(bus, "another").run("hello", session_id="s1", user_id="u1")
        for request in model.requests[1:]:
            assert "secret" not in str(request["messages"])
        with pytest.raises(SessionRefused, match="another user's"):
            await agent.run("what is the secret?", session_id="s1", user_id="u2")
        with pytest.raises(SessionRefused, match="another user's"):
            await agent.run("what is the secret?", session_id="s1")
        await Agent(other_bus, "apart").run("hello", session_id="s1", user_id="u1")
        assert "secret" not in str(other_model.requests)
        with pytest.raises(SessionRefused):
            await agent.sessions.open("")


async def test_concurrent_runs_of_one_session_lose_nothing(server: Server, tenant_bus: Bus, telemetry: Any) -> None:
    who, tenant_id = server.credentials(tenant_bus.tenant_id), tenant_bus.tenant_id
    async with (
        await connect(server.url, tenant_id=tenant_id, user=who.user, password=who.password) as connection,
        Bus(connection, tenant_id, telemetry) as second,
        StandIn(tenant_bus),
    ):
        crew = [Agent(tenant_bus, "ada"), Agent(second, "ada")]
        answers = await asyncio.gather(*(crew[n % 2].run(f"number {n}", session_id="s") for n in range(12)))
        runs = await (await crew[0].sessions.open("s")).runs()
    assert sorted(run["run_id"] for run in runs) == sorted(answer.run_id for answer in answers)
    assert {run["messages"][0]["content"] for run in runs} == {f"number {n}" for n in range(12)}
    assert telemetry.recorder.total(AGENT_SESSIONS_CREATED.name, status="success") == 1
    assert telemetry.recorder.total(AGENT_SESSIONS_CREATED.name, status="error") == 0


async def test_concurrent_changes_of_the_state_and_repeated_runs_are_kept_once(tenant_bus: Bus) -> None:
    session = await Agent(tenant_bus, "ada").sessions.open("s")
    await asyncio.gather(*(session.change({}, {f"key{n}": n}, f"r{n}") for n in range(8)))
    assert await session.state() == {f"key{n}": n for n in range(8)}
    await session.change({"key0": 0, "key1": 1}, {"key1": 5}, "once")
    await session.change({"key1": 5}, {"key1": 6}, "once")  # of a run that is done again after a crash
    assert (await session.state()).items() >= {"key1": 5, "key2": 2}.items()
    assert "key0" not in await session.state()
    await session.append("r1", [], {"text": "a"})
    await session.append("r1", [], {"text": "b"})
    assert [run["answer"]["text"] for run in await session.runs()] == ["a"]


async def test_a_run_too_large_for_a_message_is_kept_and_a_session_is_forgotten_whole(tenant_bus: Bus) -> None:
    agent = Agent(tenant_bus, "ada")
    session = await agent.sessions.open("big")
    large = "x" * (tenant_bus.connection.max_payload + 10)
    await session.append("r1", [{"role": "user", "content": large}], {"text": "a"})
    assert (await session.runs())[0]["messages"][0]["content"] == large
    assert (await session.find("r1")) is not None
    assert await agent.sessions.delete("big")
    assert not await agent.sessions.delete("big")


@pytest.mark.parametrize("size", [10, 2_000_000])
@pytest.mark.parametrize("opened_anew", [False, True])
async def test_a_run_that_was_under_way_does_not_bring_a_deleted_session_back(
    tenant_bus: Bus, size: int, opened_anew: bool
) -> None:
    agent = Agent(tenant_bus, "ada")
    session = await agent.sessions.open("s")
    await session.append("r1", [{"role": "user", "content": "x" * size}], {"text": "a"})
    await session.change({}, {"code": 4711}, "r1")
    running = await agent.sessions.open("s")
    state = await running.state()
    assert await agent.sessions.delete("s")
    later = [await agent.sessions.open("s")] if opened_anew else []
    await running.change(state, state | {"more": 1}, "r2")
    await running.append("r2", [{"role": "user", "content": "y" * size}], {"text": "b"})
    store = await tenant_bus.store("agent_sessions")
    assert [key for key in await store.keys("ada.") if not key.endswith(".head")] == []
    assert len(await store.keys("ada.")) == len(later)
    for anew in later:
        await anew.append("r3", [], {"text": "c"})
        assert [run["run_id"] for run in await anew.runs()] == ["r3"]


async def test_a_session_that_is_deleted_while_a_run_is_written_stays_deleted(
    tenant_bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Agent(tenant_bus, "ada")
    session = await agent.sessions.open("s")
    fitting = type(session)._fitting

    async def delete_first(self: Any, document: bytes, name: str) -> bytes:
        await agent.sessions.delete("s")
        return await fitting(self, document, name)

    monkeypatch.setattr(type(session), "_fitting", delete_first)
    await session.append("r1", [], {"text": "a"})
    assert await (await tenant_bus.store("agent_sessions")).keys("ada.") == []
    assert await (await agent.sessions.open("big")).runs() == []


async def test_an_agent_needs_a_name_that_can_be_one(tenant_bus: Bus) -> None:
    with pytest.raises(ConfigurationError):
        Agent(tenant_bus, "Not An Id")
    assert repr(Agent(tenant_bus, "ada")) == f"<Agent ada of {tenant_bus.tenant_id}, {agents.agent.MODEL}>"


async def test_what_is_said_is_on_no_span_log_or_dead_letter(tenant_bus: Bus, telemetry: Any) -> None:
    def fails(text: str) -> str:
        """Fail."""
        raise ValueError(f"cannot do {text}")

    async with StandIn(tenant_bus, script([call("fails", '{"text": "canary-4711-sings"}')], "the canary-4711-sings")):
        agent = Agent(tenant_bus, "ada", tools=[fails])
        answer = await agent.run("Let the canary-4711-sings sing.", session_id="s")
        assert "canary" in answer.text
    recorder = telemetry.recorder
    for frame in (recorder.spans(), recorder.metrics(), recorder.logs()):
        assert "canary" not in str(frame.to_dict("records"))
    assert all("canary" not in str(letter) for letter in await tenant_bus.dead_letters(GATEWAY_REQUESTS))
