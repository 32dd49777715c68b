"""Tasks are queued by priority and done once, tools are served over the bus, and everybody may watch both."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from agent_worker import QUICK
from agents_stand_in import StandIn, call
from samples import eventually, sample

from kit.catalogue import (
    AGENT_MEMORY,
    AGENT_MESSAGE,
    AGENT_RESULTS,
    AGENT_STATUS,
    AGENT_TASKS,
    AGENT_TOOL_RESULTS,
    AGENT_TOOLS,
    METRICS,
    SPANS,
    JobPolicy,
    Operation,
)
from kit.components import agents
from kit.components.agents import (
    Agent,
    AgentManager,
    ArgumentsRefused,
    TaskExpired,
    TaskFailed,
    TaskRefused,
    ToolFailed,
    ToolTimeout,
    UnknownTool,
)
from kit.components.agents.executor import ToolExecutor
from kit.components.agents.tasks import TaskWorker
from kit.components.agents.toolbox import calculate, count_words
from kit.components.agents.tools import ToolRecord, register_tool, tools_table
from kit.errors import ConfigurationError, JobDead
from kit.nats.bus import Bus
from kit.nats.layout import levels
from kit.nats.server import Server


async def watched(bus: Bus, operation: Operation) -> list[dict[str, Any]]:
    """A list that fills with the data of an operation's events."""
    seen: list[dict[str, Any]] = []

    async def note(message: Any) -> None:
        seen.append(message.data)

    await bus.subscribe(operation, note)
    return seen


# --- tools over the bus ---------------------------------------------------------------------------------------------


async def executor(bus: Bus, *tools: Any, timeout: float = 30.0) -> ToolExecutor:
    made = await ToolExecutor.open(bus, tools, timeout=timeout)
    await bus.work(AGENT_TOOLS, made.handle, concurrency=16)
    return made


async def test_a_tool_is_served_with_its_schema_and_its_results_can_be_watched(tenant_bus: Bus) -> None:
    made = await executor(tenant_bus, calculate, "kit.components.agents.toolbox:count_words")
    assert made.names == ["calculate", "count_words"]
    seen = await watched(tenant_bus, AGENT_TOOL_RESULTS)
    agent = Agent(tenant_bus, "ada", tools=["count_words"])
    assert await agent.call_tool("calculate", expression="(3 + 4) × 12 - -1") == 85
    assert (await tools_table(tenant_bus))["arguments"].tolist() == ["expression", "text"]
    await eventually(lambda: len(seen) == 1)
    assert (seen[0]["status"], seen[0]["output"], seen[0]["agent_id"]) == ("success", 85, "ada")
    async with StandIn(tenant_bus) as model:
        turns: list[Any] = [[call("count_words", '{"text": "a b c"}')], "Three."]
        model.say = lambda _: turns.pop(0)
        assert str(await agent.run("How many words?")) == "Three."
        assert model.requests[-1]["messages"][-1]["content"] == "3"
        assert model.requests[0]["tools"][0]["function"]["parameters"]["required"] == ["text"]


def test_what_is_wrong_with_arguments_is_told_in_words_of_the_schema_alone() -> None:
    counts = {"type": "object", "additionalProperties": {"type": "integer"}}
    deep = {"type": "object", "properties": {"rows": {"type": "array", "items": counts}}}
    record = ToolRecord(name="count", description="", parameters=deep, timeout=1.0)
    with pytest.raises(ArgumentsRefused, match=r"\$\.rows\[1\] breaks the rule 'type'$"):
        record.check({"rows": [{}, {"canary-4711": "sings"}]})


async def test_a_tool_that_fails_hangs_or_is_called_wrongly_is_a_typed_error_in_time(
    tenant_bus: Bus, telemetry: Any
) -> None:
    def fails(text: str) -> str:
        """Fail."""
        raise LookupError(f"no such thing as {text}")

    async def hangs() -> None:
        """Hang."""
        await asyncio.sleep(60)

    over = threading.Event()

    def blocks() -> None:
        """Block."""
        over.wait(60)

    await executor(tenant_bus, fails, hangs, blocks, calculate, timeout=0.5)
    seen = await watched(tenant_bus, AGENT_TOOL_RESULTS)
    agent = Agent(tenant_bus, "ada")
    with pytest.raises(ToolFailed, match="LookupError") as failed:
        await agent.call_tool("fails", text="canary-4711-sings")
    assert "canary" not in str(failed.value)
    for name in ("hangs", "blocks"):
        started = time.perf_counter()
        with pytest.raises(ToolTimeout, match=r"not done within 0\.[0-3]"):  # the call's own, the executor's is 0.5 s
            await agent.call_tool(name, timeout=0.3)
        assert time.perf_counter() - started < 15
    with pytest.raises(ToolTimeout, match=r"0\.5 s"):
        await agent.call_tool("hangs", timeout=20)
    with pytest.raises(ArgumentsRefused, match="'required'"):
        await agent.call_tool("calculate")
    with pytest.raises(ArgumentsRefused, match="'additionalProperties'"):
        await agent.call_tool("calculate", expression="1", precision=3)
    with pytest.raises(UnknownTool, match="nobody serves"):
        await agent.call_tool("teleport")
    with pytest.raises(ToolFailed, match="ValueError"):
        await agent.call_tool("calculate", expression="__import__('os')")
    over.set()
    await eventually(lambda: len(seen) == 8)
    assert [one["status"] for one in seen].count("timeout") == 3
    assert "canary" not in str(seen)
    assert "canary" not in str(telemetry.recorder.spans().to_dict("records"))


_TRACED = """
import asyncio, sys, threading, time
from kit.components.agents.executor import within
over = threading.Event()
async def main():
    begun = time.perf_counter()
    try:
        await within(0.1, over.wait, {"timeout": 60.0})
    except TimeoutError:
        await asyncio.sleep(0.1)
        over.set()
        print(time.perf_counter() - begun < 30)
tracer = lambda *_: tracer
threading.settrace(tracer)
sys.settrace(tracer)
asyncio.run(main())
"""


async def test_a_tool_that_blocks_does_not_block_a_process_that_is_traced() -> None:
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", _TRACED], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


async def test_a_tool_that_never_ends_is_stopped_at_its_deadline(
    tenant_bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kit.components.agents.executor._is_traced", lambda: False)  # by coverage, here
    turns = {"served": 0, "local": 0}

    def for_ever(name: str) -> None:
        """Go round and round."""
        while True:
            turns[name] += 1
            time.sleep(0.001)

    await executor(tenant_bus, for_ever, timeout=0.3)
    with pytest.raises(ToolTimeout):
        await Agent(tenant_bus, "ada").call_tool("for_ever", name="served")
    async with StandIn(tenant_bus, lambda _: [call("for_ever", '{"name": "local"}')]):
        with pytest.raises(ToolTimeout):
            await Agent(tenant_bus, "ada", tools=[for_ever], tool_timeout=0.3, strict_tools=True).run("Go.")
    assert min(turns.values()) > 0
    await asyncio.sleep(0.1)
    before = dict(turns)
    await asyncio.sleep(0.1)
    assert turns == before


async def test_a_call_goes_back_to_the_queue_when_another_executor_serves_the_tool(tenant_bus: Bus) -> None:
    await register_tool(tenant_bus, ToolRecord(name="elsewhere", description="", parameters={}, timeout=5.0))
    await executor(tenant_bus, calculate)
    calling = asyncio.ensure_future(Agent(tenant_bus, "ada").call_tool("elsewhere", timeout=8))
    await asyncio.sleep(0.1)

    def elsewhere() -> list[Any]:
        """Be somewhere else."""
        return [object]

    await executor(tenant_bus, elsewhere)
    assert await calling == "[<class 'object'>]"  # what is no JSON is told as text


async def test_what_is_no_tool_is_refused(tenant_bus: Bus) -> None:
    for wrong in ("no.such:thing", "kit.errors:nothing", 7):
        with pytest.raises(ConfigurationError, match="no tool"):
            await ToolExecutor.open(tenant_bus, [wrong])


@pytest.mark.parametrize("wrong", ["1 +", "x", "2 ** 9", "9" * 300])
def test_the_calculator_calculates_and_nothing_else(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"expression|numbers"):
        calculate(wrong)
    assert (calculate("7 // 2 + 7 % 4 - 1 / 4"), count_words("a  b")) == (5.75, 2)


# --- tasks ----------------------------------------------------------------------------------------------------------


async def test_a_task_is_done_by_a_worker_and_its_result_and_status_are_told(tenant_bus: Bus, telemetry: Any) -> None:
    async with StandIn(tenant_bus), Agent(tenant_bus, "bob", interval=0.1) as bob:
        statuses = await watched(tenant_bus, AGENT_STATUS)
        await tenant_bus.work(AGENT_TASKS, TaskWorker(tenant_bus, {"bob": bob}).handle)
        async with AgentManager(tenant_bus) as manager:
            task = await manager.submit_task("Say it.", priority=8, session_id="s", user_id="u1")
            result = await task.result(10)
            assert (str(result), result.agent_id, result.status) == ("You said: Say it.", "bob", "success")
            assert (result.tokens["total"], result.cost, result.attempts, task.done) == (5, 0.001, 1, True)
            told = await asyncio.wait_for(anext(manager.results()), 5)
            assert told == result
            row = manager.tasks().iloc[0]
            assert (row["status"], row["priority"], row["agent"]) == ("success", 8, "bob")
            await eventually(lambda: {"busy", "idle"} <= {said["status"] for said in statuses})
            assert task.task_id in {said.get("task_id") for said in statuses}
            table = await manager.agents()
            assert table.loc[0, ["agent", "alive", "completed"]].tolist() == ["bob", True, 1]
            assert await manager.alive() == ["bob"]
        assert len(await (await bob.sessions.open("s", "u1")).runs()) == 1
    trace = telemetry.recorder.trace(name="agent.task.submit")
    assert trace.connected
    assert trace.find("agent.llm.call")
    assert trace.find("agent.result.publish")


async def test_urgent_tasks_overtake_others_and_within_a_level_the_first_is_first(tenant_bus: Bus) -> None:
    manager, order = AgentManager(tenant_bus), []
    agent = Agent(tenant_bus, "bob")

    @agent.task("note")
    async def note(_: Agent, task: dict[str, Any]) -> int:
        order.append((task["priority"], task["parameters"]["n"]))
        return task["parameters"]["n"] + 1  # type: ignore[no-any-return]

    submitted = [(priority, n) for n, priority in enumerate((0, 5, 9, 3, 4, 7, 6, 8, 1) * 3)]
    waiting = [
        await manager.submit_task(task_type="note", parameters={"n": n}, priority=priority) for priority, n in submitted
    ]
    await tenant_bus.work(AGENT_TASKS, TaskWorker(tenant_bus, {"bob": agent}).handle)
    assert [(await task.result(10)).output for task in waiting] == [n + 1 for _, n in submitted]
    urgent, usual, other = (
        [one for one in submitted if least <= one[0] <= most] for least, most in ((7, 9), (4, 6), (0, 3))
    )
    # A worker asks for all three levels as it starts, and what comes first it begins: at most one task of each level.
    assert [one for one in order if one in urgent] == urgent
    assert [one for one in order if one in usual] == usual
    assert [one for one in order if one in other] == other
    early = [one for one in order[: len(urgent)] if one not in urgent]
    assert len(early) <= 2
    assert order.index(usual[-1]) < order.index(other[2])


async def test_a_task_goes_to_the_agent_that_it_names_or_one_that_is_able(tenant_bus: Bus) -> None:
    crew = {
        "ada": Agent(tenant_bus, "ada", capabilities=["sums", "words"]),
        "bob": Agent(tenant_bus, "bob", capabilities=["words"]),
    }
    await TaskWorker(tenant_bus, crew).start()
    manager = AgentManager(tenant_bus)
    async with StandIn(tenant_bus):
        named = await manager.submit_task("x", agent_id="bob")
        able = await manager.submit_task("x", capabilities=["sums"])
        assert (await named.result(10)).agent_id == "bob"
        assert (await able.result(10)).agent_id == "ada"


async def test_a_task_that_names_an_agent_waits_for_its_worker_and_costs_no_attempt(tenant_bus: Bus) -> None:
    crew = {name: Agent(tenant_bus, name) for name in ("ada", "bob")}
    for agent in crew.values():
        agent.task("who")(_who)
    manager = AgentManager(tenant_bus)
    async with crew["ada"]:
        worker = await TaskWorker(tenant_bus, {"ada": crew["ada"]}).start(concurrency=4)
        tasks = [await manager.submit_task(task_type="who", agent_id="bob", priority=n) for n in (1, 5, 9)]
        anybody = await manager.submit_task(task_type="who")
        assert (await anybody.result(10)).agent_id == "ada"
        await asyncio.sleep(0.3)
        assert worker.handled == 1  # none of bob's has been here
        assert (await manager.queue()).to_numpy().tolist() == [["bob", 3, False]]
        assert await tenant_bus.dead_letters(AGENT_TASKS) == []
    async with crew["bob"], await TaskWorker(tenant_bus, {"bob": crew["bob"]}).start():
        results = [await task.result(10) for task in tasks]
        assert [(one.output, one.agent_id, one.attempts) for one in results] == [("bob", "bob", 1)] * 3
    await eventually(lambda: _empty(manager))


async def _empty(manager: AgentManager) -> bool:
    return (await manager.queue()).empty


async def test_a_task_for_an_agent_that_never_comes_is_a_dead_letter_once_its_time_is_over(tenant_bus: Bus) -> None:
    manager = AgentManager(tenant_bus)
    patient = await manager.submit_task(task_type="who", agent_id="bob")
    task = await manager.submit_task(task_type="who", agent_id="bob", expires=0.3)
    with pytest.raises(TaskFailed, match="JobExpired: nobody had begun it"):
        await task.result(20)
    (letter,) = await tenant_bus.dead_letters(AGENT_TASKS)
    assert letter.attempts == 0
    assert (letter.message_id, letter.subject) == (task.task_id, AGENT_TASKS.subject(tenant_bus.tenant_id, "bob"))
    assert (await manager.queue())["tasks"].tolist() == [1]
    bob = Agent(tenant_bus, "bob")
    bob.task("who")(_who)
    await TaskWorker(tenant_bus, {"bob": bob}).start()
    assert (await patient.result(10)).output == "bob"


async def test_a_task_that_has_been_begun_is_not_over_however_long_it_takes(tenant_bus: Bus) -> None:
    bob, begun, go_on = Agent(tenant_bus, "bob"), asyncio.Event(), asyncio.Event()

    @bob.task("slow")
    async def slow(_: Agent, task: dict[str, Any]) -> str:
        begun.set()
        await go_on.wait()
        return "done"

    await TaskWorker(tenant_bus, {"bob": bob}).start()
    task = await AgentManager(tenant_bus).submit_task(task_type="slow", agent_id="bob", expires=0.5)
    await asyncio.wait_for(begun.wait(), 5)
    await asyncio.sleep(0.6)
    assert await tenant_bus.dead_letters(AGENT_TASKS) == []
    go_on.set()
    assert (await task.result(10)).output == "done"


async def test_a_task_of_an_agent_whose_workers_were_all_lost_is_a_dead_letter(tenant_bus: Bus) -> None:
    """What a worker that was killed at every attempt leaves behind, the sweep finds under the agent's name."""
    subject = AGENT_TASKS.subject(tenant_bus.tenant_id, "bob")
    level = levels(AGENT_TASKS)[1]
    lost = replace(AGENT_TASKS, policy=JobPolicy(ack_wait=0.1, max_attempts=2))
    consumer = await tenant_bus._streams.job_consumer(lost, tenant_bus.tenant_id, level, "bob")
    task = await AgentManager(tenant_bus).submit_task(task_type="who", agent_id="bob")
    assert consumer == "agents-workers@bob"
    info = await tenant_bus._streams.context.consumer_info(AGENT_TASKS.stream or "", consumer)
    assert info.config.inactive_threshold == 86400.0  # receivers come and go
    puller = await tenant_bus.connection.jetstream().pull_subscribe_bind(consumer, AGENT_TASKS.stream)
    for _ in range(2):
        (message,) = await puller.fetch(1, timeout=5)
        assert message.subject == subject
        await asyncio.sleep(0.15)
    (letter,) = await eventually(lambda: tenant_bus.dead_letters(AGENT_TASKS))
    assert (letter.message_id, letter.error_type, letter.attempts) == (task.task_id, "WorkerLost", 2)


async def test_a_task_handed_to_a_worker_that_lacks_its_agent_is_handed_back(tenant_bus: Bus) -> None:
    """Who enqueues a task without its address, as another program may, gets it done by the workers that all share."""
    ada = Agent(tenant_bus, "ada")
    await TaskWorker(tenant_bus, {"ada": ada}).start(operation=QUICK)
    strange = sample("agent_task", agent_id="bob")
    with pytest.raises(JobDead, match="NoAgent") as dead:
        await tenant_bus.run(QUICK, strange, timeout=10)
    assert dead.value.attempts == QUICK.policy.max_attempts


async def test_an_agent_that_is_named_like_a_level_of_urgency_gets_no_task_by_name(tenant_bus: Bus) -> None:
    for name in ("high", "low"):
        with pytest.raises(ConfigurationError, match="how urgent"):
            await AgentManager(tenant_bus).submit_task("x", agent_id=name)
        with pytest.raises(ConfigurationError, match="how urgent"):
            await TaskWorker(tenant_bus, {name: Agent(tenant_bus, name)}).start()


async def _who(agent: Agent, task: dict[str, Any]) -> str:
    return agent.agent_id


async def test_a_task_that_cannot_be_done_is_a_typed_failure_and_told(tenant_bus: Bus) -> None:
    agent = Agent(tenant_bus, "bob")

    @agent.task("explode")
    async def explode(_: Agent, task: dict[str, Any]) -> None:
        raise ArgumentsRefused("fuse", "canary is too short")

    worker = TaskWorker(tenant_bus, {"bob": agent})
    await tenant_bus.work(AGENT_TASKS, worker.handle)
    async with AgentManager(tenant_bus) as manager:
        task = await manager.submit_task(task_type="explode")
        with pytest.raises(TaskFailed, match="ArgumentsRefused") as failed:
            await task.result(10)
        assert (failed.value.attempts, failed.value.error_type) == (1, "ArgumentsRefused")
        told = await asyncio.wait_for(anext(manager.results()), 5)
        assert (told.status, told.error["type"]) == ("error", "ArgumentsRefused")  # type: ignore[index]
        silent = await manager.submit_task(task_type="unheard-of")
        with pytest.raises(TaskFailed, match="TaskRefused"):
            await silent.result(10)
        late = await manager.submit_task("x", expires=-1.0)
        with pytest.raises(TaskFailed, match=TaskExpired.__name__):
            await late.result(10)
        with pytest.raises(TaskRefused):
            await manager.submit_task()
    for wanted in ({"agent_id": "carol"}, {"capabilities": ["flying"]}):
        with pytest.raises(agents.NoAgent) as nobody:
            worker._choose({"task_id": "t", **wanted})
        assert nobody.value.retryable


async def test_a_worker_killed_in_the_middle_loses_no_task_and_repeats_no_effect(
    tenant_bus: Bus, server: Server
) -> None:
    effects: list[str] = []
    opened = asyncio.Event()

    async def note(text: str) -> str:
        """Note."""
        effects.append(f"note {text}")
        return "noted"

    async def gate() -> str:
        """Wait."""
        effects.append("gate")
        await opened.wait()
        return "open"

    turns = {0: [call("note", '{"text": "x"}')], 1: [call("gate", "{}")], 2: "Done."}
    await executor(tenant_bus, note, gate)
    manager, who = AgentManager(tenant_bus), server.credentials(tenant_bus.tenant_id)
    script = str(Path(__file__).with_name("agent_worker.py"))
    async with StandIn(tenant_bus, lambda request: turns[len(request["messages"]) // 2]) as model:
        process = await asyncio.create_subprocess_exec(
            sys.executable, script, server.url, who.user, who.password, tenant_bus.tenant_id
        )
        try:
            await eventually(manager.alive, 150)  # it imports Agno, and the machine may be busy
            task = await manager.submit_task("Go.", session_id="s")
            await eventually(lambda: "gate" in effects, 60)
        finally:
            process.kill()
            await process.wait()
        survivor = Agent(tenant_bus, "worker", tools=["note", "gate"])
        await tenant_bus.work(QUICK, TaskWorker(tenant_bus, {"worker": survivor}).handle)
        await eventually(lambda: survivor._presence._tasks, 60)  # the lease of the dead one has run out
        opened.set()
        result = await task.result(150)  # it may have to import Agno first, too
        assert str(result) == "Done."
        assert result.attempts >= 2
        assert effects == ["note x", "gate"]
        assert len(model.requests) == 3  # what the dead worker had asked was not asked again
        runs = await (await survivor.sessions.open("s")).runs()
        assert [run["answer"]["text"] for run in runs] == ["Done."]
        # … and delivered once more, after all that, it is answered from the session.
        again = await survivor.perform({"task_id": task.task_id, "session_id": "s"}, "Go.")
        assert (again.text, again.repeated, len(model.requests)) == ("Done.", True, 3)
        assert len(await (await survivor.sessions.open("s")).runs()) == 1


# --- the whole component --------------------------------------------------------------------------------------------


async def test_every_row_of_the_agents_carries_messages_and_every_span_and_metric_is_emitted(
    tenant_bus: Bus, telemetry: Any, tmp_path: Path
) -> None:
    rows = (
        AGENT_MESSAGE, AGENT_TASKS, AGENT_RESULTS, AGENT_STATUS, AGENT_MEMORY, AGENT_TOOLS, AGENT_TOOL_RESULTS,
    )  # fmt: skip
    assert all(row.served for row in rows)
    seen = await watched(tenant_bus, AGENT_TOOL_RESULTS)
    async with StandIn(tenant_bus), await agents.serve(tenant_bus, uri=tmp_path, interval=0.2) as service:
        assert {worker.operation for worker in service.workers} == {AGENT_MEMORY, AGENT_TOOLS, AGENT_TASKS}
        async with AgentManager(tenant_bus) as manager:
            async with Agent(tenant_bus, "ada", uri=tmp_path, memories=2, min_relevance=0.1) as ada:
                await ada.remember("The answer is 42.", wait=10)
                await ada.call_tool("calculate", expression="6 * 7")
                task = await manager.submit_task("What is the answer?", agent_id="worker")
                await task.result(10)
                assert "You said" in str(await ada.ask("worker", "What is the answer?", session_id="s"))
                answer = await ada.run("What is the answer?", session_id="s")
                assert len(answer.memories) == 1
            await eventually(lambda: len(seen) == 1)
            await eventually(lambda: telemetry.recorder.total("agent.messages.received", status="success") >= 2)
    spans = {span.name for span in SPANS if span.component == "agent"}
    missing = spans - set(telemetry.recorder.spans()["name"])
    assert spans
    assert not missing
    metrics = {metric.name for metric in METRICS if metric.name.startswith("agent.")}
    assert not metrics - set(telemetry.recorder.metrics()["name"])


async def test_a_worker_serves_the_agents_that_it_is_told_of(tenant_bus: Bus, tmp_path: Path) -> None:
    mine = Agent(tenant_bus, "mine", uri=tmp_path)
    async with await agents.serve(tenant_bus, agents=[mine], tools=[], uri=tmp_path):
        assert await AgentManager(tenant_bus).alive() == ["mine"]
    described = {"summer": {"instructions": "Sum.", "role": "sums", "capabilities": ["sums"]}}
    async with await agents.serve(tenant_bus, agents=described, tools=[], uri=tmp_path, model="m"):
        table = (await AgentManager(tenant_bus).agents()).set_index("agent")
    assert table.loc["summer", ["status", "model", "capabilities"]].tolist() == ["idle", "m", "sums"]
    assert table.loc["mine", "status"] == "stopped"
