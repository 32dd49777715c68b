"""Agents talk: direct, to all, asked and waited for, gathered by a deadline; and they say that they are there."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from agents_stand_in import StandIn
from samples import eventually, sample

from kit.catalogue import AGENT_MESSAGE, AGENT_MESSAGES_RECEIVED, AGENT_MESSAGES_SENT
from kit.components.agents import Agent, AgentError, AgentManager, AgentMessage, NoReply
from kit.components.agents.engine import agno_classes
from kit.components.agents.errors import UnknownTool
from kit.components.agents.presence import table_of
from kit.nats.bus import Bus


def silent(agent: Agent) -> Agent:
    """An agent that hears everything and says nothing."""

    @agent.on_message
    async def nothing(_: AgentMessage) -> None:
        return None

    return agent


async def test_a_direct_message_reaches_the_one_that_is_meant_and_nobody_else(tenant_bus: Bus, telemetry: Any) -> None:
    async with Agent(tenant_bus, "ada") as ada, Agent(tenant_bus, "bob") as bob, Agent(tenant_bus, "carol") as carol:
        message_id = await ada.send("bob", "hello", kind="greeting", metadata={"tone": "warm"})
        heard = await bob.receive(5)
        assert (heard.message_id, heard.source, heard.target, str(heard)) == (message_id, "ada", "bob", "hello")
        assert (heard.kind, heard.metadata) == ("greeting", {"tone": "warm"})
        with pytest.raises(TimeoutError):
            await carol.receive(0.1)
    recorder = telemetry.recorder
    assert recorder.total(AGENT_MESSAGES_SENT.name, status="success") == 1
    assert recorder.total(AGENT_MESSAGES_RECEIVED.name, status="success") == 1


async def test_a_broadcast_reaches_all_but_its_sender(tenant_bus: Bus, other_bus: Bus) -> None:
    async with (
        Agent(tenant_bus, "ada") as ada,
        Agent(tenant_bus, "bob") as bob,
        Agent(tenant_bus, "carol") as carol,
        Agent(other_bus, "dave") as dave,
    ):
        await ada.broadcast("all hands")
        assert [str(await agent.receive(5)) for agent in (bob, carol)] == ["all hands"] * 2
        for agent in (ada, dave):
            with pytest.raises(TimeoutError):
                await agent.receive(0.1)


async def test_an_agent_is_asked_and_answers_by_a_run_in_one_trace(tenant_bus: Bus, telemetry: Any) -> None:
    await agno_classes()  # importing Agno takes its time, which is not the answer's
    async with StandIn(tenant_bus), Agent(tenant_bus, "bob"):
        reply = await Agent(tenant_bus, "ada").ask("bob", "Where is it?", timeout=20, conversation_id="c1")
        assert (reply.kind, reply.source, str(reply)) == ("answer", "bob", "You said: Where is it?")
        assert reply.conversation_id == "c1"
        assert len(await (await Agent(tenant_bus, "bob").sessions.open("c1")).runs()) == 1
    trace = telemetry.recorder.trace(name="agent.llm.call")
    assert trace.connected
    assert trace.root.name == "agent.message.send"
    assert len(trace.find("agent.message.receive")) == 2


async def test_two_agents_talk_to_and_fro(tenant_bus: Bus) -> None:
    async with Agent(tenant_bus, "ada") as ada, Agent(tenant_bus, "bob") as bob:

        @ada.on_message
        async def name(_: AgentMessage) -> str:
            return "blue"

        @bob.on_message
        async def paint(message: AgentMessage) -> str:
            colour = await bob.ask(message.source, "Which colour?", timeout=5)
            return f"{message} is {colour} now"

        assert str(await ada.ask("bob", "the door", timeout=5)) == "the door is blue now"


async def test_no_answer_and_a_failure_are_told_apart(tenant_bus: Bus, telemetry: Any) -> None:
    async with Agent(tenant_bus, "ada") as ada, silent(Agent(tenant_bus, "bob")), Agent(tenant_bus, "carol") as carol:

        @carol.on_message
        async def fails(message: AgentMessage) -> str:
            if "named" in message.content:
                raise UnknownTool("hammer")
            raise ValueError(f"cannot say {message}")

        started = time.perf_counter()
        with pytest.raises(NoReply, match=r"bob did not answer within 0\.3 s"):
            await ada.ask("bob", "anything", timeout=0.3)
        assert time.perf_counter() - started < 2
        with pytest.raises(AgentError, match="carol could not answer: ValueError") as failed:
            await ada.ask("carol", "canary-4711-sings", timeout=5)
        assert "canary" not in str(failed.value)
        with pytest.raises(AgentError, match="nobody serves"):
            await ada.ask("carol", "named", timeout=5)
    assert telemetry.recorder.total(AGENT_MESSAGES_RECEIVED.name, status="error") == 2
    assert "canary" not in str(telemetry.recorder.spans().to_dict("records"))


@pytest.mark.parametrize("everybody", [False, True])
async def test_what_several_answered_by_the_deadline_is_gathered(tenant_bus: Bus, everybody: bool) -> None:
    def delayed(agent: Agent, seconds: float) -> Agent:
        @agent.on_message
        async def answer(message: AgentMessage) -> str | None:
            if seconds < 0:
                raise UnknownTool("hammer")
            await asyncio.sleep(seconds)
            return agent.agent_id.upper() if message.expects_reply else None

        return agent

    names = {"bob": 0.0, "carol": 0.05, "dave": 5.0, "eve": -1.0}
    crew = [delayed(Agent(tenant_bus, name), seconds) for name, seconds in names.items()]
    await asyncio.gather(*(agent.start() for agent in crew))
    ada = await Agent(tenant_bus, "ada").start()
    gathered = await ada.gather(names, "Who are you?", timeout=0.6, everybody=everybody)
    assert {name: str(reply) for name, reply in gathered.answers.items()} == {"bob": "BOB", "carol": "CAROL"}
    assert gathered.missing == ("dave",)
    assert list(gathered.failures) == ["eve"]
    assert not gathered.complete
    assert (await ada.gather(["bob"], "And you?", timeout=5)).complete
    await asyncio.gather(*(agent.stop(0.1) for agent in [*crew, ada]))


async def test_a_question_that_nobody_waits_for_any_more_is_not_answered(tenant_bus: Bus) -> None:
    heard: list[str] = []
    async with Agent(tenant_bus, "bob") as bob:

        @bob.on_message
        async def note(message: AgentMessage) -> None:
            heard.append(message.content)

        past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat().replace("+00:00", "Z")
        await tenant_bus.publish(AGENT_MESSAGE, sample("agent_message", content="late", expires_at=past), to="bob")
        await tenant_bus.publish(AGENT_MESSAGE, sample("agent_message", content="now"), to="bob")
        await eventually(lambda: heard == ["now"])


# --- presence -------------------------------------------------------------------------------------------------------


async def test_the_manager_sees_who_is_there_who_went_and_who_was_lost(tenant_bus: Bus) -> None:
    before = AgentManager(tenant_bus)
    async with before:
        ada = await Agent(tenant_bus, "ada", interval=0.1, role="reads", tools=["calculate"]).start()
        bob = await Agent(tenant_bus, "bob", interval=0.1).start()
        assert await before.alive() == ["ada", "bob"]
        await bob.stop()
        assert ada._presence._beating is not None
        ada._presence._beating.cancel()  # as if its process had died
        await asyncio.sleep(0.5)
        for manager in (before, AgentManager(tenant_bus)):  # one that watched, one that comes later
            table = (await manager.agents()).set_index("agent")
            assert table["status"].to_dict() == {"ada": "lost", "bob": "stopped"}
            assert not table["alive"].any()
            assert await manager.alive() == []
        await ada.stop()


def test_the_table_is_worked_out_from_last_words() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    words = [
        {"agent_id": name, "status": status, "interval": 2.0, "timestamp": (now - timedelta(seconds=ago)).isoformat()}
        for name, status, ago in (("a", "idle", 5), ("b", "busy", 7), ("c", "stopped", 100), ("d", "draining", 1))
    ]
    table = table_of(words, now)
    assert table[["agent", "status", "alive", "seen"]].to_numpy().tolist() == [
        ["a", "idle", True, 5.0], ["b", "lost", False, 7.0], ["c", "stopped", False, 100.0],
        ["d", "draining", True, 1.0],
    ]  # fmt: skip
