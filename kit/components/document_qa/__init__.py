"""Document Q&A: the specification's end-to-end case, a question answered from a tenant's documents in one trace.

    use_case.document_qa                    at the caller: ask()
    └─ api.query.process                    here: the question is routed
       └─ rag.query … gateway.generate …    at the RAG and gateway workers

In mode ``auto`` a calculation, or a command that names a tool, goes to a running agent that may call the tool
(``routing`` has the rule). Everything else, and whatever no agent can do, goes to the documents. The answer's ``mode``
says where it went, and its steps say why.

In mode ``agent`` an agent orchestrates: it remembers, finds passages, has the tenant's template filled and asks.

    await PromptStore(bus).create(TEMPLATE_ID, TEMPLATE, VARIABLES, label="production")    # once, for mode agent

It knows the other components by the catalogue's rows alone.
"""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kit import codec
from kit.catalogue import (
    AGENT_PRESENCE,
    AGENT_PRESENCE_SECONDS,
    AGENT_TASKS,
    API_QUERIES,
    GATEWAY_REQUESTS,
    RAG_QUERIES,
    RAG_QUERIES_QUEUED,
)
from kit.components import Service
from kit.components.document_qa.routing import CALCULATOR, find_tool, read_calculation, read_command
from kit.errors import BusError, ComponentError, JobDead, RemoteError
from kit.otel import captures_content, semconv

if TYPE_CHECKING:
    from kit.nats.bus import Bus
    from kit.nats.message import Message

SECONDS = 60.0
MODEL = "default"  # the gateway's
TEMPLATE_ID = "document_qa"  # in the tenant's prompt store, which has to hold it for mode ``agent``
TEMPLATE = """\
Answer the question from the numbered passages only, in the question's language, as briefly as its answer allows.
After each sentence cite the passage it rests on by its number in square brackets, like [1].
If the passages do not support an answer, say exactly "The documents do not support an answer."
{% if memories %}

What is known of who asks, to understand the question by, not to answer from:
{{ memories }}
{% endif %}

{{ context }}

Question: {{ question }}"""
VARIABLES = {"question": "string", "context": "string", "memories": "string"}
_SHARE = 0.9  # of the time left, for the agent: what failed is to be told before whoever waits gives up
_TRIED = 0.5  # of the time left, for an agent in mode ``auto``: the rest is for the documents, should it fail
_BEATS = 3.0  # heartbeats that an agent may miss before it counts as lost, as for the agents' own table
_WHO = ("user_id", "session_id")
_PASSED_ON = (*_WHO, "collection")
_PROMPTED = ("template_id", "version", "label", "token_budget")  # parameters of mode agent that are not the search's


class QuestionRefused(ComponentError):
    """A question that cannot be answered as it is asked."""

    retryable = False


class QuestionFailed(ComponentError):
    """A component that the answer needs refused or failed.

    Attributes:
        component: which one; error_type, detail: what it said.
    """

    def __init__(self, component: str, *, error_type: str, detail: str, retryable: bool = False) -> None:
        self.component, self.error_type, self.detail, self.retryable = component, error_type, detail, retryable
        super().__init__(f"{component} failed with {error_type}: {detail}")


async def serve(
    bus: Bus, *, model: str = MODEL, agent: str | None = None, template: str = TEMPLATE_ID, concurrency: int = 32
) -> Service:
    """Answer questions of the bus's tenant.

    Args:
        bus: of the tenant.
        model: the gateway's model for questions that are not for the documents (mode ``llm``).
        agent: that orchestrates in mode ``agent``, and does tools' jobs in mode ``auto``; None: whichever is able to.
        template: its id in the prompt store, for mode ``agent``; takes the variables ``VARIABLES``.
        concurrency: questions handled at once.
    """
    desk = Desk(bus, model, agent, template)
    return Service([await bus.serve(API_QUERIES, desk.handle, concurrency=concurrency)])


async def ask(
    bus: Bus,
    question: str,
    *,
    user_id: str | None = None,
    session_id: str | None = None,
    mode: str = "auto",
    collection: str | None = None,
    timeout: float = SECONDS,
    **parameters: Any,
) -> dict[str, Any]:
    """Ask a question and return its ``api_answer``: the answer with numbered sources, or the reason why there is none.

    Args:
        question: in words.
        user_id, session_id: who asks, and in which conversation.
        mode: ``rag`` asks the tenant's documents; ``agent`` has an agent do so, which remembers who asks and takes its
            prompt from the prompt store; ``llm`` asks the model alone: nothing supports that. ``auto`` lets an
            agent do calculations and tools' jobs, and asks the documents everything else; ``mode`` says which.
        collection: of documents; None: the default one.
        timeout: seconds for the whole answer.
        parameters: of the search and of the model, as in the ``rag_query`` contract (``top_k``, ``model``, …); in mode
            ``agent`` also ``token_budget``, ``template_id``, and its ``version`` or ``label``.

    Raises:
        QuestionRefused: there is no question.
        NoResponders: nobody serves Document Q&A.
        RemoteError: it was refused, or a component failed; ``error_type`` tells which error it was.
        DeadlineExceeded: no answer within ``timeout`` seconds.
    """
    if not question.strip():
        raise QuestionRefused("there is no question")
    data: dict[str, Any] = {
        "query_id": uuid.uuid4().hex, "query": question, "tenant_id": bus.tenant_id, "mode": mode,
        "timestamp": codec.now(), "timeout": timeout,
    }  # fmt: skip
    given = {"user_id": user_id, "session_id": session_id, "collection": collection}
    data |= {key: value for key, value in given.items() if value is not None}
    if parameters:
        data["parameters"] = parameters
    return (await bus.request(API_QUERIES, data, timeout=timeout)).data


class Desk:
    """Handles ``api.queries``: returns an ``api_answer``."""

    def __init__(self, bus: Bus, model: str, agent: str | None = None, template: str = TEMPLATE_ID) -> None:
        self._bus, self._model, self._agent, self._template = bus, model, agent, template

    async def handle(self, message: Message) -> dict[str, Any]:
        """Route a question to its answer.

        Raises:
            QuestionRefused: no question.
            QuestionFailed: a component that the answer needs failed.
        """
        data, started = message.data, time.monotonic()
        self._describe(data)
        if not data["query"].strip():
            raise QuestionRefused("there is no question")
        mode = data.get("mode", "auto")
        routes = {
            "auto": self._from_whoever_fits, "rag": self._from_documents, "agent": self._from_agent,
            "llm": self._from_model,
        }  # fmt: skip
        deadline = started + float(data.get("timeout") or SECONDS)
        answer = await routes[mode](data, deadline)
        answer |= {
            "query_id": data["query_id"], "timestamp": codec.now(), "tenant_id": self._bus.tenant_id,
            "duration": time.monotonic() - started, "status": "success",
        }  # fmt: skip
        self._bus.telemetry.annotate(
            {
                semconv.RESPONSE_RECEIVED: True,
                semconv.RESPONSE_TOKENS: answer["metadata"]["tokens"]["total"],
                semconv.RAG_SUPPORTED: answer["supported"],
            }
        )
        return answer | {key: data[key] for key in ("user_id", "session_id") if key in data}

    async def _from_whoever_fits(self, data: dict[str, Any], deadline: float) -> dict[str, Any]:
        """Let an agent do a calculation or a tool's job; ask the documents everything else, or if the agent fails."""
        question, started, agents = data["query"], time.monotonic(), {}
        expression, command, why = read_calculation(question), read_command(question), ""
        if expression or command:
            try:
                agents = await self._agents()
            except BusError as error:
                why = f"the running agents cannot be listed: {type(error).__name__}"
        tool = CALCULATOR if expression else find_tool(command, set().union(*agents.values()))
        if tool is None:
            answer = await self._from_documents(data, deadline)
            answer["steps"][0]["detail"] = "a question for the documents: no calculation, and no command for a tool"
            return answer
        what = "a calculation" if expression else f"a job for the tool {tool}"
        agent, status = min((name for name, tools in agents.items() if tool in tools), default=None), "skipped"
        if agent is None:
            why = f"{what}, but {why or f'no agent that takes tasks and may call {tool} is here'}"
        else:
            prompt = f"Calculate {expression}" if expression else question
            try:
                return await self._from_tool(data, deadline, agent, tool, prompt, what)
            except QuestionFailed as error:
                status, why = "error", f"{what}, but agent {agent} did not do it: {error.error_type}: {error.detail}"
        step = {"name": AGENT_TASKS.name, "status": status, "duration": time.monotonic() - started, "detail": why}
        try:
            answer = await self._from_documents(data, deadline)
        except QuestionFailed as error:
            detail = f"{error.detail} (asked because it was {why})"
            raise QuestionFailed(
                error.component, error_type=error.error_type, detail=detail, retryable=error.retryable
            ) from error
        reason = {"reason": f"{answer['reason']}; it was {why}"} if "reason" in answer else {}
        return {**answer, **reason, "steps": [step, *answer["steps"]]}

    async def _agents(self) -> dict[str, set[str]]:
        """Return the tools of each running agent that takes tasks, by the agent's name."""
        store = await self._bus.store(AGENT_PRESENCE, AGENT_PRESENCE_SECONDS)
        entries = [await store.get(key) for key in await store.keys()]
        found: dict[str, set[str]] = {}
        for said in (codec.loads(entry.value) for entry in entries if entry is not None and entry.value):
            silent = (datetime.now(UTC) - datetime.fromisoformat(said["timestamp"])).total_seconds()
            there = said["status"] in ("idle", "busy") and silent <= _BEATS * said.get("interval", 5.0)
            takes_tasks = said.get("metadata", {}).get("takes_tasks", False)
            if there and takes_tasks and self._agent in (None, said["agent_id"]):
                found.setdefault(said["agent_id"], set()).update(said.get("tools", ()))
        return found

    async def _from_tool(
        self, data: dict[str, Any], deadline: float, agent: str, tool: str, prompt: str, what: str
    ) -> dict[str, Any]:
        """Let an agent use a tool: no document supports the answer, and the answer says so."""
        task: dict[str, Any] = {"task_type": "prompt", "parameters": {}, "prompt": prompt, "tools": [tool]}
        result = await self._done(data, task, _left(deadline) * _TRIED, agent)
        if not result.get("tool_calls"):
            raise QuestionFailed("agents", error_type="NoToolCalled", detail=f"it answered without {tool}")
        metadata = {key: result[key] for key in ("tokens", "cost", "currency", "model") if key in result}
        step = {"name": AGENT_TASKS.name, "status": "success", "duration": result.get("duration", 0.0)}
        step["detail"] = f"{what}: agent {agent} was asked {prompt[:200]!r}, with {tool}"
        return {
            "answer": result["output"], "supported": False, "sources": [], "metadata": metadata, "mode": "agent",
            "agent_id": agent, "reason": f"{what}: agent {agent} called {tool}, no documents were looked at",
            "steps": [step],
        }  # fmt: skip

    async def _from_documents(self, data: dict[str, Any], deadline: float) -> dict[str, Any]:
        """Ask the tenant's documents."""
        parameters = {**data.get("parameters", {}), **({"model": data["model"]} if "model" in data else {})}
        asked: dict[str, Any] = {
            "query_id": data["query_id"], "query": data["query"], "tenant_id": self._bus.tenant_id,
            "timestamp": codec.now(), "parameters": parameters, "timeout": _left(deadline),
        }  # fmt: skip
        asked |= {key: data[key] for key in _PASSED_ON if key in data}
        self._bus.telemetry.count(RAG_QUERIES_QUEUED)
        try:
            result = (await self._bus.request(RAG_QUERIES, asked, timeout=_left(deadline))).data
        except RemoteError as error:
            raise QuestionFailed(
                "rag", error_type=error.error_type, detail=error.detail, retryable=error.retryable
            ) from error
        except BusError as error:
            raise QuestionFailed("rag", error_type=type(error).__name__, detail=str(error), retryable=True) from error
        kept: dict[str, Any] = {
            key: result[key] for key in ("answer", "supported", "sources", "reason") if key in result
        }
        step = {"name": RAG_QUERIES.name, "status": "success", "duration": result.get("duration", 0.0)}
        return {**kept, "metadata": result["metadata"], "mode": "rag", "steps": [step]}

    async def _from_agent(self, data: dict[str, Any], deadline: float) -> dict[str, Any]:
        """Have an agent ask the tenant's documents."""
        given = dict(data.get("parameters", {}))
        parameters: dict[str, Any] = {"template_id": self._template, "query": data["query"]}
        parameters |= {key: given.pop(key) for key in _PROMPTED if key in given}
        parameters |= {"query_id": data["query_id"], "search": given}
        if "collection" in data:
            parameters["collection"] = data["collection"]
        task = {"task_type": "document_qa", "parameters": parameters}
        result = await self._done(data, task, _left(deadline) * _SHARE, self._agent)
        output = result["output"]
        step = {"name": AGENT_TASKS.name, "status": "success", "duration": result.get("duration", 0.0)}
        return {**output, "mode": "agent", "steps": [step, *output["steps"]]}

    async def _done(
        self, data: dict[str, Any], task: dict[str, Any], seconds: float, agent: str | None
    ) -> dict[str, Any]:
        """Return the result of a task of an agent; None: whichever is able to."""
        task |= {
            "task_id": uuid.uuid4().hex, "timestamp": codec.now(), "timeout": seconds * _SHARE,
            "expires_at": codec.now(seconds), **{key: data[key] for key in (*_WHO, "model") if key in data},
        }  # fmt: skip
        if agent is not None:
            task["agent_id"] = agent
        try:
            return (await self._bus.run(AGENT_TASKS, task, timeout=seconds, to=agent)).data
        except JobDead as error:
            raise QuestionFailed("agents", error_type=error.error_type, detail=error.detail) from error
        except BusError as error:
            raise QuestionFailed(
                "agents", error_type=type(error).__name__, detail=str(error), retryable=True
            ) from error

    async def _from_model(self, data: dict[str, Any], deadline: float) -> dict[str, Any]:
        """Ask the model alone: an answer that no document supports, and that says so."""
        asked: dict[str, Any] = {
            "request_id": uuid.uuid4().hex, "tenant_id": self._bus.tenant_id, "timestamp": codec.now(),
            "model": data.get("model", self._model), "messages": [{"role": "user", "content": data["query"]}],
            "component": "document_qa",
        }  # fmt: skip
        asked |= {key: data[key] for key in ("user_id", "session_id") if key in data}
        try:
            response = (await self._bus.run(GATEWAY_REQUESTS, asked, timeout=_left(deadline))).data
        except JobDead as error:
            raise QuestionFailed("gateway", error_type=error.error_type, detail=error.detail) from error
        except BusError as error:
            raise QuestionFailed(
                "gateway", error_type=type(error).__name__, detail=str(error), retryable=True
            ) from error
        metadata = {
            key: response[key] for key in ("tokens", "cost", "currency", "price_source", "model") if key in response
        }
        step = {"name": GATEWAY_REQUESTS.name, "status": "success", "duration": response.get("duration", 0.0)}
        return {
            "answer": response["response"], "supported": False, "sources": [], "metadata": metadata, "mode": "llm",
            "reason": "the model was asked alone, no documents were looked at", "steps": [step],
        }  # fmt: skip

    def _describe(self, data: dict[str, Any]) -> None:
        """Put what is known of the question on its span; its words only where content is asked for."""
        attributes: dict[str, Any] = {
            semconv.RAG_QUERY_ID: data["query_id"],
            semconv.RAG_QUERY_LENGTH: len(data["query"]),
        }
        if "user_id" in data:
            attributes[semconv.USER_ID] = data["user_id"]
        if captures_content():
            attributes[semconv.QUERY] = data["query"]
        self._bus.telemetry.annotate(attributes)


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.1)
