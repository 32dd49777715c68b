"""What runs of one session change of its state at the same time is merged; what cannot be merged is told."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from agents_stand_in import StandIn, call

from kit.components.agents import Agent, AgentManager, StateConflict
from kit.components.agents.engine import agno_classes
from kit.components.agents.merging import Unmergeable, merged
from kit.components.agents.tasks import TaskWorker
from kit.nats.bus import Bus


@pytest.mark.parametrize(
    ("before", "mine", "now", "together"),
    [
        ({}, {"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": 1, "b": 2}, {"a": 1}, {"a": 5, "b": 2}, {"a": 5}),
        ({"words": ["x"]}, {"words": ["x", "mine"]}, {"words": ["x", "theirs"]}, {"words": ["x", "theirs", "mine"]}),
        ({}, {"words": ["same"]}, {"words": ["same"]}, {"words": ["same", "same"]}),
        ({"words": ["x", "y"]}, {"words": ["x", "y", "z"]}, {"words": []}, {"words": ["z"]}),
        ({"words": ["x", "y"]}, {"words": ["y"]}, {"words": ["x", "y", "z"]}, {"words": ["y", "z"]}),
        ({"words": ["x", "y"]}, {"words": ["y"]}, {"words": ["y"]}, {"words": ["y"]}),
        ({"count": 3}, {"count": 4}, {"count": 5}, {"count": 6}),
        ({"sum": 1.5}, {"sum": 2.5}, {"sum": 1.0}, {"sum": 2.0}),
        ({"b": {"u": {"": 1}}}, {"b": {"u": {"": 2}}}, {"b": {"u": {"": 3}, "v": 1}}, {"b": {"u": {"": 4}, "v": 1}}),
        ({"name": "x"}, {"name": "y"}, {"name": "y"}, {"name": "y"}),
        ({"a": {"b": 1}}, {}, {}, {}),
        ({}, {"on": True}, {"on": True}, {"on": True}),
    ],
)  # fmt: skip
def test_two_changes_become_one_state(before: Any, mine: Any, now: Any, together: Any) -> None:
    assert merged(before, mine, now) == together


@pytest.mark.parametrize(
    ("before", "mine", "now"),
    [
        ({"a": {"name": "x"}}, {"a": {"name": "y"}}, {"a": {"name": "z"}}),
        ({"a": {"name": 1}}, {"a": {}}, {"a": {"name": 2}}),
        ({"a": {"name": [1, 2]}}, {"a": {"name": [1]}}, {"a": {"name": [2]}}),
        ({"a": {}}, {"a": {"name": 1}}, {"a": {"name": 1}}),  # counted, or told? a number has to be there to count
        ({"a": {"name": 1}}, {"a": {"name": True}}, {"a": {"name": 2}}),
    ],
)
def test_changes_of_which_nothing_can_be_made_are_told_with_their_place(before: Any, mine: Any, now: Any) -> None:
    with pytest.raises(Unmergeable) as told:
        merged(before, mine, now)
    assert told.value.path == ("a", "name")


def both_at_once(*turns: Any) -> Any:
    """A model that calls the tool of each run, and lets none end before all have called theirs."""
    left, everybody = list(turns), asyncio.Event()

    async def say(request: dict[str, Any]) -> Any:
        if request["messages"][-1]["role"] == "tool":
            if not left:
                everybody.set()
            await everybody.wait()
            return "done"
        return [left.pop()]

    return say


async def _at_once(bus: Bus, *calls: Any) -> tuple[Agent, list[Any]]:
    """Let an agent do runs of one session that all begin with the same state, each with one call of a tool."""
    await agno_classes()
    from agents_tools import keep, name

    agent = Agent(bus, "ada", tools=[keep, name])
    async with StandIn(bus, both_at_once(*calls)):
        runs = [agent.run(f"Go {n}.", session_id="s") for n in range(len(calls))]
        answers = await asyncio.gather(*runs, return_exceptions=True)
    return agent, answers


async def test_what_concurrent_runs_put_into_one_list_is_all_there(tenant_bus: Bus) -> None:
    words = [f"word{n}" for n in range(4)]
    agent, answers = await _at_once(tenant_bus, *(call("keep", f'{{"word": "{word}"}}') for word in words))
    session = await agent.sessions.open("s")
    assert [str(answer) for answer in answers] == ["done"] * 4
    assert sorted((await session.state())["words"]) == words
    assert len(await session.runs()) == 4


async def test_a_run_whose_change_cannot_be_merged_fails_by_name_and_keeps_nothing(tenant_bus: Bus) -> None:
    agent, answers = await _at_once(tenant_bus, call("name", '{"name": "Ada"}'), call("name", '{"name": "Eve"}'))
    (refused,) = (answer for answer in answers if isinstance(answer, BaseException))
    assert isinstance(refused, StateConflict)
    assert refused.path == ("name",)
    assert refused.retryable
    assert "name" not in str(refused)
    session = await agent.sessions.open("s")
    assert len(await session.runs()) == 1
    async with StandIn(tenant_bus, both_at_once(call("name", '{"name": "Mia"}'))):
        await agent.run("Again.", session_id="s")
    assert await session.state() == {"name": "Mia"}


async def test_a_task_whose_change_cannot_be_merged_is_done_again_on_the_others_state(tenant_bus: Bus) -> None:
    await agno_classes()
    from agents_tools import name

    asked, everybody = 0, asyncio.Event()

    async def say(request: dict[str, Any]) -> Any:
        nonlocal asked
        last = request["messages"][-1]
        if last["role"] == "user":
            return [call("name", json.dumps({"name": last["content"]}))]
        asked += 1
        if asked == 2:
            everybody.set()
        await everybody.wait()
        return "done"

    agent, manager = Agent(tenant_bus, "ada", tools=[name]), AgentManager(tenant_bus)
    async with StandIn(tenant_bus, say):
        await TaskWorker(tenant_bus, {"ada": agent}).start(concurrency=2)
        tasks = {who: await manager.submit_task(who, agent_id="ada", session_id="s") for who in ("Ada", "Eve")}
        results = {who: await task.result(20) for who, task in tasks.items()}
    assert sorted(result.attempts for result in results.values()) == [1, 2]
    session = await agent.sessions.open("s")
    assert len(await session.runs()) == 2
    (last,) = (who for who, result in results.items() if result.attempts == 2)
    assert await session.state() == {"name": last}
