"""Mode ``auto`` sends a calculation and a tool's job to an agent, everything else to the documents, and says why."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from kit.components import agents, document_qa, gateway, rag
from kit.components.document_qa.routing import find_tool, read_calculation, read_command
from kit.errors import RemoteError

POLICY = {"document_id": "policy", "title": "Refunds", "content": "Refunds are given within 14 days of purchase."}

CALCULATIONS = {
    "19 * 23": 437,
    "What is 19 * 23?": 437,
    "What's 2+2": 4,
    "2 + 2 = ?": 4,
    "Please calculate (3 + 4) × 12.": 84,
    "How much is nineteen times twenty-three?": 437,
    "How much is 15% of 240?": 36,
    "What is fifteen percent of two hundred and forty?": 36,
    "Add 3 and 4": 7,
    "Multiply 12 by 7, please.": 84,
    "Subtract five from 20": 15,
    "Divide 144 by 12": 12,
    "What is the sum of 3, 4 and 5?": 12,
    "Tell me the product of 8 and 9": 72,
    "Could you work out 17.5 − 3.25 for me?": 14.25,
    "compute the average of 3, 4, and 5": 4,
    "What do I get when I multiply 6 by 7?": 42,
    "1,200 ÷ 4": 300,
    "I'd like to know 3 * 14": 42,
    "Determine 12 * 12": 144,
    "45 minus 17 is what?": 28,
    "How much is a third of 99?": 33,
    "What is three hundred and five plus ninety-nine?": 404,
    "What is 12 squared?": 144,
    "2 to the power of 5": 32,
    "How much is half of ninety?": 45,
    "what does 7 x 8 equal?": 56,
    "one million minus a hundred and one": 999_899,
    "hey, what is three thousand and twenty divided by -10?": -302,
}
QUESTIONS = (
    "What changed in Python 3.11?",
    "Why does 0.1 + 0.2 differ from 0.3?",
    "Is 0.1 + 0.2 equal to 0.3?",
    "Why is -22 // 10 equal to -3?",
    "What does 1 // 2 return in Python?",
    "What is 3.11?",
    "What is 1.5.2?",
    "What is 2024-12-25?",
    "What is the 80/20 rule?",
    "What is the difference between Python 2 and 3?",
    "How do I add 3 and 4 in Python?",
    "How do I calculate a checksum?",
    "How many of the 12 months have 31 days?",
    "Which is better, 1 or 2?",
    "What is a += 1?",
    "What are *args and **kwargs?",
    "How much is 5 - 10 days?",
    "What is 20% - 5?",
    "What is 192.168.0.1/24?",
    "What is ... + 3?",
    "What is the square of a number?",
    "Calculate the refund deadline",
    "What does 'a' * 3 do?",
    "How can I round 2.5 to 3?",
    "What does section 3.2 - refunds say?",
    "Give me the 3 most important rules",
    "Can you calculate with Decimal in Python?",
    "Can I count words in a file?",
    "Explain how words are counted",
    "Refunds within 14 days + 2 weeks?",
    "1" * 100_000 + " + 1",
)
COMMANDS = {
    "Count the words in 'a b c'": "count_words",
    "please count words: a b c": "count_words",
    "Can you count the words of this sentence?": "count_words",
    "Use count_words on 'x y'": "count_words",
    "Calculate the standard deviation of three, 4 and 5": "calculate",
    "Use the calculate tool for 3 and 4": "calculate",
    "Get the weather in Paris": "get_weather",
    "send mail to ada@example.org": "sendMail",
}
TOOLS = ("calculate", "count_words", "get_weather", "sendMail")


@pytest.mark.parametrize(("question", "value"), CALCULATIONS.items())
def test_a_calculation_is_read_as_an_expression_with_its_value(question: str, value: float) -> None:
    expression = read_calculation(question)
    assert expression is not None
    assert agents.calculate(expression) == pytest.approx(value)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question[:40])
def test_a_question_for_the_documents_is_neither_a_calculation_nor_a_command(question: str) -> None:
    assert read_calculation(question) is None
    assert find_tool(read_command(question), TOOLS) is None


@pytest.mark.parametrize(("question", "tool"), COMMANDS.items())
def test_a_command_names_a_tool_that_is_there(question: str, tool: str) -> None:
    assert read_calculation(question) is None
    assert find_tool(read_command(question), TOOLS) == tool
    assert find_tool(read_command(question), {*TOOLS} - {tool}) is None


# --- over the bus -----------------------------------------------------------------------------------------------

Serve = Callable[..., Awaitable[Any]]


@pytest.fixture
async def serve(tenant_bus: Any, tmp_path: Path) -> AsyncIterator[Serve]:
    """Serve agents' workers as a test says, after all that answers from documents."""
    started = [await gateway.serve(tenant_bus), await rag.serve(tenant_bus, uri=tmp_path / "rag")]
    started.append(await document_qa.serve(tenant_bus))
    await rag.ingest_documents(tenant_bus, [POLICY])

    async def more(**options: Any) -> Any:
        started.append(await agents.serve(tenant_bus, uri=tmp_path / "agents", **options))
        return started[-1]

    yield more
    for service in reversed(started):
        await service.stop()


async def test_each_question_goes_its_way_and_the_answer_says_which(tenant_bus: Any, serve: Serve) -> None:
    await serve()
    for question, result in (("What is nineteen times 23?", "437"), ("15% of 240", "36")):
        answer = await document_qa.ask(tenant_bus, question, user_id="ada", session_id="s")
        assert result in answer["answer"]
        assert (answer["mode"], answer["agent_id"], answer["supported"]) == ("agent", "worker", False)
        assert answer["reason"] == "a calculation: agent worker called calculate, no documents were looked at"
        (step,) = answer["steps"]
        assert (step["name"], step["status"]) == ("AGENT_TASKS", "success")
        assert answer["metadata"]["tokens"]["total"] > 0
    counted = await document_qa.ask(tenant_bus, "Count the words in 'the quick brown fox'")
    assert counted["answer"] == "The result of count_words is 4."
    assert (counted["mode"], counted["reason"].split(":")[0]) == ("agent", "a job for the tool count_words")
    asked = await document_qa.ask(tenant_bus, "Within how many days are refunds given?")
    assert (asked["mode"], asked["supported"]) == ("rag", True)
    assert [step["name"] for step in asked["steps"]] == ["RAG_QUERIES"]
    assert "no calculation" in asked["steps"][0]["detail"]
    by_hand = await document_qa.ask(tenant_bus, "What is 19 * 23?", mode="rag")
    assert (by_hand["mode"], "detail" in by_hand["steps"][0]) == ("rag", False)


async def test_an_agent_that_came_before_document_qa_is_known_at_once(tenant_bus: Any, tmp_path: Path) -> None:
    async with (
        await gateway.serve(tenant_bus),
        await agents.serve(tenant_bus, uri=tmp_path, agents={"ada": {"tools": [agents.calculate]}}),
        await document_qa.serve(tenant_bus),
    ):
        answer = await document_qa.ask(tenant_bus, "What is 6 * 7?")
        assert (answer["mode"], answer["agent_id"]) == ("agent", "ada")


async def _fell_back(bus: Any, question: str = "What is 19 * 23?", timeout: float = 20.0) -> tuple[str, str]:
    """Ask, check that the documents were asked quickly, and return why."""
    begin = time.monotonic()
    answer = await document_qa.ask(bus, question, timeout=timeout)
    assert time.monotonic() - begin < timeout * 0.9
    assert (answer["mode"], answer["answer"], answer["supported"]) == ("rag", None, False)
    skipped, asked = answer["steps"]
    assert (skipped["name"], asked["name"]) == ("AGENT_TASKS", "RAG_QUERIES")
    assert answer["reason"].endswith(skipped["detail"])
    return skipped["status"], skipped["detail"]


async def test_where_no_agent_can_the_documents_are_asked(tenant_bus: Any, serve: Serve, tmp_path: Path) -> None:
    missing = ("skipped", "a calculation, but no agent that takes tasks and may call calculate is here")
    assert await _fell_back(tenant_bus) == missing
    async with agents.Agent(tenant_bus, "guest", tools=["calculate"], uri=tmp_path):  # there, but takes no tasks
        assert await _fell_back(tenant_bus) == missing
    worker = await serve(agents={"ada": {"tools": ["count_words"]}})
    assert await _fell_back(tenant_bus) == missing
    command = await document_qa.ask(tenant_bus, "Calculate the mode of 3 and 3")
    assert (command["mode"], len(command["steps"])) == ("rag", 1)
    await worker.stop()
    await (await serve(agents={"bob": {"tools": ["calculate"]}})).stop()
    assert await _fell_back(tenant_bus) == missing


async def test_what_an_agent_fails_to_do_the_documents_are_asked(tenant_bus: Any, serve: Serve) -> None:
    await serve(agents={"ada": {"tools": ["calculate"], "model": "no/such-model"}})
    status, why = await _fell_back(tenant_bus, timeout=40.0)
    assert status == "error"
    assert why.startswith("a calculation, but agent ada did not do it: ModelFailed: ")


async def test_an_agent_that_calls_no_tool_has_not_done_it(tenant_bus: Any, serve: Serve) -> None:
    async def says(agent: agents.Agent, task: dict[str, Any]) -> str:
        return "437, I guess"

    ada = agents.Agent(tenant_bus, "ada", tools=["calculate"])
    ada.task("prompt")(says)
    await serve(agents=[ada])
    assert (await _fell_back(tenant_bus))[1].endswith("NoToolCalled: it answered without calculate")


async def test_an_agent_that_hangs_leaves_time_for_the_documents(tenant_bus: Any, serve: Serve) -> None:
    over = asyncio.Event()

    async def hangs(agent: agents.Agent, task: dict[str, Any]) -> str:
        await over.wait()
        return ""

    ada = agents.Agent(tenant_bus, "ada", tools=["calculate"])
    ada.task("prompt")(hangs)
    await serve(agents=[ada])
    status, why = await _fell_back(tenant_bus, timeout=8.0)
    over.set()
    assert (status, "DeadlineExceeded" in why) == ("error", True)


async def test_when_the_documents_fail_too_the_error_says_both(tenant_bus: Any) -> None:
    async with await document_qa.serve(tenant_bus):
        with pytest.raises(RemoteError, match=r"rag failed with NoResponders: .* no agent that takes tasks"):
            await document_qa.ask(tenant_bus, "What is 19 * 23?")
