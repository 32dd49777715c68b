"""The query worker: a question embedded, passages found, an answer written from them and held against them."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kit import codec
from kit.catalogue import GATEWAY_REQUESTS, RAG_RESPONSE_GENERATE, RAG_RESULTS, RAG_VECTOR_SEARCH
from kit.components.rag.citations import check
from kit.components.rag.embedding import Embedded, Embedder
from kit.components.rag.errors import EmbeddingMismatch, ModelFailed, QueryRefused
from kit.components.rag.filters import from_data
from kit.components.rag.index import COLLECTION, Collection, Database
from kit.components.rag.instructions import OWN, REFUSAL, TEMPLATE_ID, Instructions, Prompts
from kit.components.rag.ranking import Ranking
from kit.components.rag.rows import Hit, headline
from kit.errors import BusError, DeadlineExceeded, JobDead
from kit.otel import semconv

if TYPE_CHECKING:
    from kit.nats.bus import Bus
    from kit.nats.message import Message
    from kit.otel import Operation

TOP_K = 5
MIN_SUPPORT = 0.5
MAX_QUERY = 10_000  # characters
_SECONDS = 30.0
_CHARS_PER_TOKEN = 3.5  # a cautious estimate for English prose and code


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a model made of the passages."""

    text: str | None
    supported: bool
    support: float = 0.0
    reason: str | None = None
    response: dict[str, Any] | None = None


class Answerer:
    """Handles ``rag.queries``: returns a ``rag_result``."""

    def __init__(
        self, bus: Bus, database: Database, embedder: Embedder, ranking: Ranking, model: str, prompts: Prompts
    ) -> None:
        self._bus, self._database, self._embedder = bus, database, embedder
        self._ranking, self._model, self._prompts = ranking, model, prompts

    async def handle(self, message: Message) -> dict[str, Any]:
        """Answer one question.

        Raises:
            QueryRefused, FilterRefused: a parameter cannot work.
            ModelFailed: the gateway gave no embedding or no answer.
        """
        data, started = message.data, time.monotonic()
        parameters = data.get("parameters", {})
        self._bus.telemetry.annotate(
            {semconv.RAG_QUERY_ID: data["query_id"], semconv.RAG_QUERY_LENGTH: len(data["query"])}
        )
        _check(data, parameters)
        deadline = started + float(data.get("timeout") or _SECONDS)
        collection = await self._database.collection(data.get("collection", COLLECTION))
        embedded, hits = await self._found(data, parameters, collection)
        if not hits or not parameters.get("generate", True):
            reason = None if hits else _nothing(collection, parameters)
            answer = Answer(text=None, supported=bool(hits), reason=reason)
        else:
            answer = await self._generate(data, parameters, hits, deadline)
        result = self._result(data, hits, answer, embedded)
        result["duration"] = time.monotonic() - started
        if collection is not None:
            result["index_version"] = await collection.version()
        self._bus.telemetry.annotate({semconv.RESULTS_COUNT: len(hits), semconv.RAG_SUPPORTED: answer.supported})
        await self._bus.publish(RAG_RESULTS, result)
        return result

    # --- finding ------------------------------------------------------------------------------------------------

    async def _found(
        self, data: dict[str, Any], parameters: dict[str, Any], collection: Collection | None
    ) -> tuple[Embedded | None, list[Hit]]:
        condition = from_data(parameters.get("filters"))
        mode = parameters.get("mode", "hybrid")
        embedded = None if mode == "text" or collection is None else await self._embedded(data, parameters, collection)
        telemetry = self._bus.telemetry
        with telemetry.operation(
            RAG_VECTOR_SEARCH, {semconv.RAG_QUERY_ID: data["query_id"], semconv.RAG_MODE: mode}
        ) as op:
            hits: list[Hit] = []
            if collection is not None:
                hits = await collection.search(
                    data["query"],
                    None if embedded is None else embedded.vectors[0],
                    mode=mode,
                    top_k=parameters.get("top_k", TOP_K),
                    condition=condition,
                    threshold=parameters.get("similarity_threshold"),
                    ranking=_ranking(self._ranking, parameters),
                )
            _describe(op, hits)
        return embedded, hits

    async def _embedded(self, data: dict[str, Any], parameters: dict[str, Any], collection: Collection) -> Embedded:
        """Return the question's embedding, by the model that embedded the documents."""
        model = parameters.get("embedding_model", collection.model)
        given = data.get("embedding")
        embedded = Embedded(vectors=given[np.newaxis]) if given is not None else None
        if model != collection.model:
            raise EmbeddingMismatch(data.get("collection", COLLECTION), held=collection.model, given=model)
        embedded = embedded or await self._embedder.query(data["query"], model=model)
        collection.check(model, embedded.vectors.shape[1])
        return embedded

    # --- answering ----------------------------------------------------------------------------------------------

    async def _generate(
        self, data: dict[str, Any], parameters: dict[str, Any], hits: Sequence[Hit], deadline: float
    ) -> Answer:
        """Have an answer written from the passages, and keep it only if they support it."""
        passages = _within(hits, parameters.get("max_context_tokens"))
        told = self._prompts.current
        with self._bus.telemetry.operation(RAG_RESPONSE_GENERATE, {semconv.RAG_QUERY_ID: data["query_id"]}) as op:
            if told.version is not None:
                op.update({semconv.PROMPT_NAME: TEMPLATE_ID, semconv.PROMPT_VERSION: told.version})
            response = await self._asked(self._request(data, parameters, passages, told), deadline - time.monotonic())
            op.update({semconv.LLM_TOKENS: response["tokens"]["total"], semconv.LLM_MODEL: response["model"]})
            if response["cost"] is not None:
                op.set(semconv.LLM_COST, response["cost"])
            answer = _judged(response, passages, parameters.get("min_support", MIN_SUPPORT))
            op.update({semconv.RAG_SUPPORTED: answer.supported, semconv.RAG_SUPPORT: answer.support})
            op.label("supported", answer.supported)
        return answer

    def _request(
        self, data: dict[str, Any], parameters: dict[str, Any], passages: Sequence[Hit], told: Instructions
    ) -> dict[str, Any]:
        request: dict[str, Any] = {
            "request_id": uuid.uuid4().hex, "tenant_id": self._bus.tenant_id, "timestamp": codec.now(),
            "model": parameters.get("model", self._model), "messages": prompt(data["query"], passages, told.text),
            "component": "rag",
        }  # fmt: skip
        if told.prompt_version is not None:
            request["prompt_version"] = told.prompt_version
        steering = {key: parameters[key] for key in ("temperature", "max_tokens") if key in parameters}
        if steering:
            request["parameters"] = steering
        request |= {key: parameters[key] for key in ("cache", "prompt_version") if key in parameters}
        return request | {key: data[key] for key in ("user_id", "agent_id", "session_id") if key in data}

    async def _asked(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        model = request["model"]
        try:
            return (await self._bus.run(GATEWAY_REQUESTS, request, timeout=max(seconds, 0.1))).data
        except JobDead as error:
            raise ModelFailed(
                "generate", model, error_type=error.error_type, detail=error.detail, retryable=False
            ) from error
        except BusError as error:
            passing = isinstance(error, DeadlineExceeded)
            raise ModelFailed(
                "generate", model, error_type=type(error).__name__, detail=str(error), retryable=passing
            ) from error

    # --- telling ------------------------------------------------------------------------------------------------

    def _result(
        self, data: dict[str, Any], hits: Sequence[Hit], answer: Answer, embedded: Embedded | None
    ) -> dict[str, Any]:
        parameters = data.get("parameters", {})
        sources = _sources(hits, answer, bool(parameters.get("include_content", True)))
        result: dict[str, Any] = {
            "query_id": data["query_id"], "query": data["query"], "answer": answer.text, "supported": answer.supported,
            "sources": sources, "metadata": _metadata(hits, answer, embedded), "timestamp": codec.now(),
            "tenant_id": self._bus.tenant_id, "mode": parameters.get("mode", "hybrid"), "support": answer.support,
        }  # fmt: skip
        if answer.reason is not None:
            result["reason"] = answer.reason
        return result | {key: data[key] for key in ("user_id", "session_id", "collection") if key in data}


def prompt(question: str, passages: Sequence[Hit], instructions: str = OWN.text) -> list[dict[str, str]]:
    """Return the conversation that asks a model: instructions, numbered passages, then the question."""
    numbered = "\n\n".join(
        f"[{number}] {_title(hit)}\n{_unnumbered(hit.content)}" for number, hit in enumerate(passages, start=1)
    )
    return [
        {"role": "system", "content": instructions},
        {"role": "user", "content": f"{numbered}\n\nQuestion: {question}"},
    ]


def _title(hit: Hit) -> str:
    """Return what a passage is called: its headings, or its document's name where it has none."""
    name = headline(hit.heading, hit.title) or hit.document_id
    return " ".join(name.split())[:150].rstrip(" .!;:,")


def _unnumbered(text: str) -> str:
    """Return a passage without lines that would pass for another passage or for the question."""
    text = re.sub(r"^([^\S\n]*)\[(\d{1,3})\]", r"\1(\2)", text, flags=re.MULTILINE)
    return re.sub(r"^([^\S\n]*)(question|query)(\s*:)", r"\1\2 -", text, flags=re.MULTILINE | re.IGNORECASE)


def _judged(response: dict[str, Any], passages: Sequence[Hit], min_support: float) -> Answer:
    """Keep an answer that cites passages which say what it says; anything else is no answer from the documents."""
    text = (response["response"] or "").strip()
    if not text or REFUSAL.rstrip(".").lower() in text.lower():
        return Answer(text=None, supported=False, reason="the documents do not support an answer", response=response)
    checked = check(text, [{"document_id": hit.document_id, "content": hit.content, "title": hit.title,
                            "heading": hit.heading} for hit in passages])  # fmt: skip
    known = [number for claim in checked.claims for number in claim.citations if number not in claim.unknown]
    if not known:
        return Answer(text=None, supported=False, reason="the model's answer cites no passage", response=response)
    if checked.support < min_support:
        reason = f"the cited passages support {checked.support:.0%} of the model's answer, {min_support:.0%} are needed"
        return Answer(text=None, supported=False, support=checked.support, reason=reason, response=response)
    return Answer(text=text, supported=True, support=checked.support, response=response)


def _sources(hits: Sequence[Hit], answer: Answer, with_content: bool) -> list[dict[str, Any]]:
    sources: list[dict[str, Any]] = []
    for rank, hit in enumerate(hits, start=1):
        source = {
            "document_id": hit.document_id, "chunk_id": hit.chunk_id, "score": hit.score, "rank": rank,
            "citation": rank, "cited": False, "content": hit.content, "vector_score": hit.vector_score,
            "text_score": hit.text_score, "start": hit.start, "end": hit.end, "metadata": dict(hit.metadata),
        }  # fmt: skip
        sources.append(source | {key: getattr(hit, key) for key in ("title", "heading", "source") if getattr(hit, key)})
    for claim in check(answer.text or "", sources).claims:
        for number in claim.citations:
            if 0 < number <= len(sources):
                sources[number - 1]["cited"] = True
        if claim.quote is not None and claim.citations:
            quoted = sources[claim.quote.citation - 1]
            quoted["quote"] = "\n".join(
                dict.fromkeys([*quoted.get("quote", "").splitlines(), *claim.quote.text.splitlines()])
            )
    if not with_content:
        for source in sources:
            del source["content"]
    return sources


def _metadata(hits: Sequence[Hit], answer: Answer, embedded: Embedded | None) -> dict[str, Any]:
    """Return what the answer took: tokens and cost of embedding and generation together."""
    response = answer.response or {}
    tokens = dict(response.get("tokens", {"prompt": 0, "completion": 0, "total": 0}))
    costs = [response.get("cost")]
    if embedded is not None:
        tokens["prompt"] += embedded.tokens
        tokens["total"] += embedded.tokens
        costs.append(embedded.cost)
    metadata: dict[str, Any] = {"tokens": tokens, "documents_retrieved": len(hits)}
    known = [cost for cost in costs if cost is not None]
    metadata["cost"] = sum(known) if known else None
    metadata["currency"] = response.get("currency", "USD")
    return metadata | {key: response[key] for key in ("model", "cached", "price_source") if key in response}


def _check(data: dict[str, Any], parameters: dict[str, Any]) -> None:
    """Raise QueryRefused for what cannot work, before anything is spent on it."""
    query = data["query"]
    if not query.strip():
        raise QueryRefused("there is no question", parameter="query")
    if len(query) > MAX_QUERY:
        raise QueryRefused(f"{len(query):,} characters are no question; {MAX_QUERY:,} are the most", parameter="query")
    if parameters.get("mode") == "text" and parameters.get("similarity_threshold") is not None:
        raise QueryRefused("text search knows no cosine: use mode hybrid or vector", parameter="similarity_threshold")


def _ranking(ranking: Ranking, parameters: dict[str, Any]) -> Ranking:
    if "candidates" in parameters:
        ranking = replace(ranking, candidates=parameters["candidates"])
    return replace(ranking, lead=0.0) if parameters.get("rerank") is False else ranking


def _nothing(collection: Collection | None, parameters: dict[str, Any]) -> str:
    if collection is None:
        return "there are no documents yet"
    limits = [name for name in ("similarity_threshold", "filters") if parameters.get(name)]
    return f"no passage passes {' and '.join(limits)}" if limits else "no passage was found"


def _within(hits: Sequence[Hit], max_tokens: int | None) -> list[Hit]:
    """Return as many of the best passages as fit a number of tokens, one at least."""
    if max_tokens is None:
        return list(hits)
    kept: list[Hit] = []
    room = max_tokens * _CHARS_PER_TOKEN
    for hit in hits:
        room -= len(hit.content)
        if kept and room < 0:
            break
        kept.append(hit)
    return kept


def _describe(op: Operation, hits: Sequence[Hit]) -> None:
    """Put what was found on the search's span: ids and scores, never text."""
    op.set(semconv.RESULTS_COUNT, len(hits))
    if op.recording and hits:
        op.set(semconv.RAG_TOP_SIMILARITY, max(hit.vector_score for hit in hits))
        for place, hit in enumerate(hits[:10]):
            op.set(f"{semconv.RETRIEVAL_DOCUMENTS}.{place}.document.id", hit.document_id)
            op.set(f"{semconv.RETRIEVAL_DOCUMENTS}.{place}.document.score", hit.score)
