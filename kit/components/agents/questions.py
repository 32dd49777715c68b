"""Questions about documents: the built-in handler of ``document_qa`` tasks, by which an agent orchestrates an answer.

    agent.memory.retrieve    what the agent remembers of who asks
    rag.query                passages, found but not yet answered from
    prompt.context.request   the tenant's template, filled within a token budget
    agent.llm.call           the gateway's answer, with its grounding in the passages
    agent.memory.update      the exchange, remembered as an episode

It knows the other components by the catalogue's rows alone.
"""

from __future__ import annotations

import hashlib
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kit import codec
from kit.catalogue import (
    AGENT_LLM_CALL,
    AGENT_MEMORY,
    AGENT_MEMORY_RETRIEVE,
    GATEWAY_REQUESTS,
    PROMPT_CONTEXT,
    RAG_QUERIES,
    RAG_QUERIES_QUEUED,
)
from kit.components.agents.errors import MemoryRefused, StepFailed, TaskRefused
from kit.errors import BusError, JobDead, KitError, RemoteError
from kit.otel import semconv

if TYPE_CHECKING:
    from kit.catalogue import Operation
    from kit.components.agents.agent import Agent
    from kit.components.agents.memory import Memory
    from kit.nats.bus import Bus

TASK_TYPE = "document_qa"
SECONDS = 60.0
TOP_K = 5
TOKEN_BUDGET = 2000
MIN_SUPPORT = 0.5
MEMORIES = 3
MIN_RELEVANCE = 0.3
_PROMPTED = ("template_id", "version", "label")  # of the task's parameters: which template
_STEERING = ("temperature", "max_tokens")
_MARK = re.compile(r"(?<![\[(\w])\[([1-9]\d{0,2})\](?!\()")
_CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
_REFUSAL = re.compile(r"\b(?:do(?:es)? not|cannot) (?:know|support an answer)\b", re.IGNORECASE)


async def answer(agent: Agent, task: dict[str, Any]) -> dict[str, Any]:
    """Do a ``document_qa`` task.

    Its parameters are ``query``, ``template_id`` (with ``version`` or ``label``), ``collection``, ``token_budget`` and
    ``search``, the parameters of a ``rag_query``. Its output has ``answer``, ``supported``, ``sources``, ``metadata``,
    ``agent_id``, ``memory_ids`` and ``steps``, and a ``reason`` where there is no answer.

    Raises:
        TaskRefused: there is no question, or no template is named.
        StepFailed: a component that the answer needs is missing, refused or failed; says which.
    """
    return await _Question(agent, task).answered()


class _Question:
    """One question on its way to its answer."""

    def __init__(self, agent: Agent, task: Mapping[str, Any]) -> None:
        self._agent, self._task, self._bus = agent, task, agent.bus
        given = task["parameters"]
        self._query, self._given, self._search = given.get("query"), given, dict(given.get("search", {}))
        for name in ("query", "template_id"):
            if not isinstance(given.get(name), str) or not given[name].strip():
                raise TaskRefused(f"task {task['task_id']} has no {name} among its parameters")
        self._model = task.get("model") or self._search.get("model") or agent.model
        self._deadline = time.monotonic() + float(task.get("timeout") or SECONDS)
        self._who = {name: task[name] for name in ("user_id", "session_id") if name in task}
        self._who |= {"agent_id": agent.agent_id}
        self._steps: list[dict[str, Any]] = []

    async def answered(self) -> dict[str, Any]:
        """Return the task's output."""
        remembered = await self._recall()
        found = await self._find()
        metadata = dict(found.get("metadata", {}))
        sources, text, reason = found["sources"], None, found.get("reason")
        if sources:
            sources, prompt = await self._prompt(sources, remembered)
            response = await self._ask(prompt, sources)
            text, reason = self._judged(response, sources)
            metadata |= _spent(metadata, response)
        written = await self._remember(text)
        output: dict[str, Any] = {
            "answer": text, "supported": text is not None, "sources": sources, "metadata": metadata,
            "agent_id": self._agent.agent_id, "steps": self._steps,
            "memory_ids": [*(memory.memory_id for memory in remembered), *written],
        }  # fmt: skip
        return output | ({"reason": reason} if text is None and reason else {})

    # --- the steps ----------------------------------------------------------------------------------------------

    async def _recall(self) -> list[Memory]:
        """Recall what is known of who asks: of this user, or of this session where nobody is named."""
        started, session = time.monotonic(), self._task.get("session_id")
        try:
            near = await self._agent.memories.recall(
                self._query, MEMORIES, min_relevance=MIN_RELEVANCE, user_id=self._task.get("user_id"),
                timeout=self._left(),
            )  # fmt: skip
        except MemoryRefused as error:
            raise StepFailed("gateway", error_type="MemoryRefused", detail=error.reason) from error
        kept = [
            memory
            for memory in near
            if (memory.user_id is not None or memory.session_id in (None, session))
            and memory.metadata.get("supported", True)
        ]
        self._step(AGENT_MEMORY_RETRIEVE.name, started, f"{len(kept)} memories")
        return kept

    async def _find(self) -> dict[str, Any]:
        """Have passages found, without an answer being written."""
        asked: dict[str, Any] = {
            "query_id": self._given.get("query_id") or self._task["task_id"], "query": self._query,
            "tenant_id": self._bus.tenant_id, "timestamp": codec.now(), "timeout": self._left(),
            "parameters": {"top_k": TOP_K, **self._search, "generate": False, "include_content": True}, **self._who,
        }  # fmt: skip
        if "collection" in self._given:
            asked["collection"] = self._given["collection"]
        self._bus.telemetry.count(RAG_QUERIES_QUEUED)
        started = time.monotonic()
        found = await self._asked(RAG_QUERIES, asked)
        self._step(RAG_QUERIES.name, started, f"{len(found['sources'])} passages")
        return found

    async def _prompt(
        self, sources: Sequence[dict[str, Any]], remembered: Sequence[Memory]
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Have the template filled; return the sources as they are numbered in it, and the ``prompt_context``.

        What repeats another passage or exceeds the budget is left out; the rest is then numbered anew, without gaps.
        """
        started = time.monotonic()
        numbered = _numbered(sources)
        prompt = await self._asked(PROMPT_CONTEXT, self._request(numbered, remembered))
        if not prompt["included"]:
            raise StepFailed("prompts", error_type="BudgetTooSmall", detail="not one passage is within the budget")
        inside = [int(item["item_id"]) for item in prompt["included"]]
        if inside != list(range(1, len(inside) + 1)):
            kept = [numbered[number - 1] for number in inside]
            numbered = _numbered([*kept, *(source for source in numbered if source["citation"] not in inside)])
            prompt = await self._asked(PROMPT_CONTEXT, self._request(numbered[: len(inside)], remembered))
        detail = f"{prompt['template_id']}@{prompt['version']}, {len(prompt['included'])} passages"
        self._step(PROMPT_CONTEXT.name, started, detail)
        return numbered, prompt

    async def _ask(self, prompt: Mapping[str, Any], sources: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Ask the gateway, which also measures how much of its answer stands in the passages."""
        started, task_id = time.monotonic(), self._task["task_id"]
        shown = [sources[int(item["item_id"]) - 1]["content"] for item in prompt["included"]]
        asked: dict[str, Any] = {
            "request_id": uuid.uuid4().hex, "tenant_id": self._bus.tenant_id, "timestamp": codec.now(),
            "model": self._model, "messages": [{"role": "user", "content": prompt["prompt"]}],
            "prompt_version": f"{prompt['template_id']}@{prompt['version']}", "component": "agents",
            "task_id": task_id, "timeout": self._left(),
            "validation": {"level": "grounding", "context": shown, "min_score": 0.0}, **self._who,
        }  # fmt: skip
        steering = {name: self._search[name] for name in _STEERING if name in self._search}
        asked |= ({"parameters": steering} if steering else {}) | (
            {"cache": self._search["cache"]} if "cache" in self._search else {}
        )
        attributes = {semconv.AGENT_ID: self._agent.agent_id, semconv.LLM_MODEL: self._model}
        with self._bus.telemetry.operation(AGENT_LLM_CALL, attributes) as op:
            response = await self._asked(GATEWAY_REQUESTS, asked, message_id=f"qa-{_short(task_id)}")
            op.set(semconv.LLM_TOKENS, response["tokens"]["total"])
            if response.get("cost") is not None:
                op.set(semconv.LLM_COST, response["cost"])
        self._bus.telemetry.annotate({semconv.LLM_TOKENS: response["tokens"]["total"]})
        self._step(GATEWAY_REQUESTS.name, started, response["model"])
        return response

    def _judged(self, response: Mapping[str, Any], sources: Sequence[dict[str, Any]]) -> tuple[str | None, str | None]:
        """Return an answer that cites passages which hold what it says, else None and why; mark what it cites."""
        text = (response["response"] or "").strip()
        cited = {int(number) for number in _MARK.findall(_CODE.sub("", text))} & {s["citation"] for s in sources}
        if not text or (_REFUSAL.search(text) and not cited):
            return None, "the documents do not support an answer"
        if not cited:
            return None, "the model's answer cites no passage"
        score, least = response.get("validation", {}).get("score", 1.0), self._search.get("min_support", MIN_SUPPORT)
        if score < least:
            return None, f"the passages support {score:.0%} of the model's answer, {least:.0%} are needed"
        for source in sources:
            source["cited"] = source["citation"] in cited
        return text, None

    async def _remember(self, text: str | None) -> list[str]:
        """Hand the exchange over as an episode of who asked; an answer is not lost because that fails."""
        if not {"user_id", "session_id"} & self._who.keys():
            return []  # nobody to remember it for
        started = time.monotonic()
        said = _MARK.sub("", text).strip() if text else "the documents support no answer"
        who = {name: self._task.get(name) for name in ("user_id", "session_id")}
        metadata = {"supported": text is not None, "task_id": self._task["task_id"]}
        try:
            written = await self._agent.remember(
                f"Asked: {self._query.strip()} Answered: {said}", "episode",
                memory_id=f"qa-{_short(self._task['task_id'])}", metadata=metadata, **who,
            )  # fmt: skip
        except KitError as error:
            self._step(AGENT_MEMORY.name, started, type(error).__name__, status="error")
            return []
        self._step(AGENT_MEMORY.name, started, "1 episode")
        return [written]

    # --- what they share ----------------------------------------------------------------------------------------

    def _request(self, sources: Sequence[Mapping[str, Any]], remembered: Sequence[Memory]) -> dict[str, Any]:
        items = [
            {"item_id": str(source["citation"]), "kind": "passage", "content": _passage(source)} for source in sources
        ]
        known = "\n".join(f"- {' '.join(str(memory).split())}" for memory in remembered)
        return {
            "request_id": uuid.uuid4().hex, "tenant_id": self._bus.tenant_id, "timestamp": codec.now(), "items": items,
            "token_budget": self._given.get("token_budget", TOKEN_BUDGET), "model": self._model,
            "variables": {"question": self._query, "memories": known}, **self._who,
            **{name: self._given[name] for name in _PROMPTED if name in self._given},
        }  # fmt: skip

    async def _asked(
        self, operation: Operation, data: dict[str, Any], *, message_id: str | None = None
    ) -> dict[str, Any]:
        return await call(self._bus, operation, data, timeout=self._left(), message_id=message_id)

    def _step(self, name: str, started: float, detail: str, *, status: str = "success") -> None:
        self._steps.append({"name": name, "status": status, "duration": time.monotonic() - started, "detail": detail})

    def _left(self) -> float:
        return max(self._deadline - time.monotonic(), 0.1)


async def call(
    bus: Bus, operation: Operation, data: dict[str, Any], *, timeout: float, message_id: str | None = None
) -> dict[str, Any]:
    """Have another component do something and return its result, by a request or by a job as the row says.

    Raises:
        StepFailed: it is missing, refused or failed.
    """
    component = operation.component
    try:
        if operation.mode == "job":
            return (await bus.run(operation, data, timeout=timeout, message_id=message_id)).data
        return (await bus.request(operation, data, timeout=timeout)).data
    except RemoteError as error:
        raise StepFailed(component, error_type=error.error_type, detail=error.detail) from error
    except JobDead as error:
        raise StepFailed(component, error_type=error.error_type, detail=error.detail) from error
    except BusError as error:
        raise StepFailed(component, error_type=type(error).__name__, detail=str(error)) from error


def _numbered(sources: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return sources numbered from 1 in their order."""
    return [{**source, "rank": place, "citation": place} for place, source in enumerate(sources, start=1)]


def _passage(source: Mapping[str, Any]) -> str:
    """Return a numbered passage, without lines that would pass for another passage or for the question."""
    text = re.sub(r"^([^\S\n]*)\[(\d{1,3})\]", r"\1(\2)", source["content"], flags=re.MULTILINE)
    text = re.sub(r"^([^\S\n]*)(question|query)(\s*:)", r"\1\2 -", text, flags=re.MULTILINE | re.IGNORECASE)
    title = source.get("heading") or source.get("title") or source["document_id"]
    title = " ".join(title.split() if isinstance(title, str) else title)
    return f"[{source['citation']}] {title[:150].rstrip(' .!;:,')}\n{text}"


def _spent(metadata: Mapping[str, Any], response: Mapping[str, Any]) -> dict[str, Any]:
    """Return tokens and cost of the search and of the answer together."""
    tokens = dict(response["tokens"])
    for name in ("prompt", "completion", "total"):
        tokens[name] += metadata.get("tokens", {}).get(name, 0)
    known = [cost for cost in (metadata.get("cost"), response.get("cost")) if cost is not None]
    told = {name: response[name] for name in ("model", "cached", "price_source", "currency") if name in response}
    return {"tokens": tokens, "cost": sum(known) if known else None, **told}


def _short(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:24]
