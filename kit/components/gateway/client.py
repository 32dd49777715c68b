"""The caller's side of the gateway: everything over the bus, errors typed."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from kit import codec
from kit.catalogue import (
    GATEWAY_CACHE_INVALIDATE,
    GATEWAY_EMBEDDINGS,
    GATEWAY_REQUESTS,
    RAG_EMBEDDINGS,
)
from kit.errors import ConfigurationError, ContractViolation, JobDead, RemoteError

from .cache import delete_keys, doomed_keys, open_cache_store
from .errors import RequestRefused, error_of
from .health import BUCKET as HEALTH_BUCKET

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from kit.nats.bus import Bus
    from kit.nats.message import Message

_BATCH = 128  # texts in one embedding request
_AT_ONCE = 4
_FIELDS_TEXT = """
tools tool_choice cache prompt_version validation fallbacks max_cost currency priority user_id agent_id
session_id task_id component metadata
"""
_FIELDS = frozenset(_FIELDS_TEXT.split())
_PARAMETERS_TEXT = """
temperature max_tokens max_completion_tokens top_p n seed stop presence_penalty frequency_penalty response_format
parallel_tool_calls reasoning_effort logprobs top_logprobs logit_bias user
"""
_PARAMETERS = frozenset(_PARAMETERS_TEXT.split())


async def generate(
    bus: Bus,
    *,
    prompt: str | None = None,
    messages: Sequence[Mapping[str, Any]] | None = None,
    model: str = "default",
    timeout: float = 60.0,
    request_id: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Ask a model, and return its ``llm_response``.

    Args:
        bus: of the tenant.
        prompt: the whole question; or ``messages``: a conversation in the OpenAI format.
        model: "default", one of the gateway's own names, or a LiteLLM model name that its settings let through: as they
            are, any of a well-known provider whose key the gateway's environment has.
        timeout: seconds for the answer; nobody works on the request after that.
        request_id: asked again under the same id, it is the same request and is answered once.
        options: the request's further fields (``tools``, ``validation``, ``cache``, ``fallbacks``, ``max_cost``,
            ``prompt_version``, …) and parameters (``temperature``, ``max_tokens``, …); the gateway refuses any other.

    Raises:
        RateLimited, BudgetExceeded, PriceUnknown, ProviderFailed, ResponseInvalid, RequestExpired, RequestRefused: see
            each.
        DeadlineExceeded: there is no answer yet.
        JobDead: any other failure of the worker.
    """
    data = _request(bus, prompt, messages, model, timeout, request_id, options)
    with _typed(data["model"]):
        answered = await bus.run(GATEWAY_REQUESTS, data, timeout=timeout, message_id=request_id)
    return answered.data


async def stream(
    bus: Bus,
    *,
    prompt: str | None = None,
    messages: Sequence[Mapping[str, Any]] | None = None,
    model: str = "default",
    timeout: float = 60.0,
    **options: Any,
) -> AsyncIterator[str]:
    """Ask a model and yield its answer piece by piece; leave the loop, and the model's provider is left too.

    That takes two seconds at most, also when no piece has come. Who asks the same at the same time shares one call.

    Raises:
        GatewayError, DeadlineExceeded, JobDead: as for ``generate``; also in the middle of an answer.
    """
    pieces = stream_messages(bus, prompt=prompt, messages=messages, model=model, timeout=timeout, **options)
    try:
        async for message in pieces:
            if message.message_type == "llm_chunk" and message.data.get("text"):
                yield message.data["text"]
    finally:
        await pieces.aclose()  # type: ignore[attr-defined]


async def stream_messages(
    bus: Bus,
    *,
    prompt: str | None = None,
    messages: Sequence[Mapping[str, Any]] | None = None,
    model: str = "default",
    timeout: float = 60.0,
    **options: Any,
) -> AsyncIterator[Message]:
    """Ask a model and yield each ``llm_chunk`` message as it comes, and the whole ``llm_response`` at the end.

    Raises:
        GatewayError, DeadlineExceeded, JobDead: as for ``generate``.
    """
    data = _request(bus, prompt, messages, model, timeout, None, options)
    data["stream"] = True
    streamed = bus.stream(GATEWAY_REQUESTS, data, timeout=timeout)
    try:
        with _typed(data["model"]):
            async for message in streamed:
                yield message
    finally:
        await streamed.aclose()  # type: ignore[attr-defined]


async def embed(
    bus: Bus, texts: Sequence[str], *, model: str = "default", timeout: float = 30.0, **fields: Any
) -> NDArray[np.float32]:
    """Return the embeddings of texts, float32 (n, dim), in their order; large lists go in several requests at once.

    Args:
        bus: of the tenant.
        texts: any number; none gives an array of shape (0, 0), and a single ``str`` is one text.
        model: a LiteLLM embedding model, or "default".
        timeout: seconds for each request.
        fields: further fields of ``embedding_request``, such as ``input_type`` or ``dimensions``.

    Raises:
        GatewayError: the gateway refused or its provider failed.
        NoResponders: no gateway is at work.
    """
    gate, texts = asyncio.Semaphore(_AT_ONCE), _listed(texts)

    async def one(batch: Sequence[str]) -> NDArray[np.float32]:
        async with gate:
            with _typed(model):
                answered = await bus.request(
                    GATEWAY_EMBEDDINGS, _embedding_request(bus, batch, model, timeout, fields), timeout=timeout
                )
            return await vectors_of(bus, answered.data)

    batches = [texts[begin : begin + _BATCH] for begin in range(0, len(texts), _BATCH)]
    if not batches:
        return np.zeros((0, 0), np.float32)
    return np.concatenate(await asyncio.gather(*(one(batch) for batch in batches)))


async def embed_bulk(
    bus: Bus, texts: Sequence[str], *, model: str = "default", timeout: float = 300.0, **fields: Any
) -> NDArray[np.float32]:
    """Return the embeddings of texts, float32 (n, dim), by a durable job: it survives workers that die.

    Raises:
        GatewayError: the gateway refused or its provider failed in every attempt.
        DeadlineExceeded: it is not done yet.
    """
    data = _embedding_request(bus, _listed(texts), model, None, fields)
    with _typed(model):
        answered = await bus.run(RAG_EMBEDDINGS, data, timeout=timeout)
    return await vectors_of(bus, answered.data)


def _listed(texts: Sequence[str]) -> Sequence[str]:
    """Return the texts as a sequence; a single ``str`` is one text.

    Raises:
        ConfigurationError: an item is not a text.
    """
    listed = [texts] if isinstance(texts, str) else texts if isinstance(texts, list | tuple) else list(texts)
    for text in listed:
        if not isinstance(text, str):
            raise ConfigurationError(f"each text must be a str, not {type(text).__name__}")
    return listed


async def vectors_of(bus: Bus, response: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return the embeddings of an ``embedding_response``, which may carry them or a claim for them."""
    if "embeddings" in response:
        return np.asarray(response["embeddings"], np.float32)
    data = await bus.get_object(response["claim"])
    return np.frombuffer(data, "<f4").reshape(-1, response["dimension"])


async def invalidate(
    bus: Bus,
    scope: str = "all",
    *,
    model: str | None = None,
    prompt_version: str | None = None,
    keys: Sequence[str] = (),
    reason: str | None = None,
) -> int:
    """Forget remembered responses of this tenant, in the store and in every worker, and return how many there were.

    Args:
        bus: of the tenant.
        scope: "all", "model", "prompt" or "keys"; the latter three need the argument of that name.
        model: whose responses to forget.
        prompt_version: whose responses to forget.
        keys: cache keys (spans tell them as ``cache.key``).
        reason: why, for whoever watches.

    Raises:
        ConfigurationError: the scope's argument is missing.
    """
    given = {"model": model, "prompt": prompt_version, "keys": keys, "all": True}
    if not given.get(scope):
        raise ConfigurationError(f"cannot invalidate by {scope!r}: give one of all, model, prompt, keys, and its value")
    data: dict[str, Any] = {
        "scope": scope, "tenant_id": bus.tenant_id, "timestamp": codec.now(), "invalidation_id": uuid.uuid4().hex,
    }  # fmt: skip
    named = {"model": model, "prompt_version": prompt_version, "keys": list(keys), "reason": reason}
    data.update({name: value for name, value in named.items() if value})
    store = await open_cache_store(bus)
    doomed = await doomed_keys(store, data)
    # The workers hear of it before the store is cleared: what they are about to store is stale.
    await bus.publish(GATEWAY_CACHE_INVALIDATE, data)
    await delete_keys(store, doomed)
    return len(doomed)


async def provider_health(bus: Bus) -> pd.DataFrame:
    """Return how providers are doing, a row for each worker and model, as last told within the hour."""
    import pandas as pd

    store = await bus.store(HEALTH_BUCKET, 3600.0)
    entries = await asyncio.gather(*(store.get(key) for key in await store.keys()))
    rows = [codec.loads(entry.value) for entry in entries if entry is not None and entry.value]
    columns = [
        "provider", "model", "status", "requests", "errors", "error_rate", "consecutive_failures", "latency_ms",
        "latency_p95_ms", "worker_id", "timestamp",
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=columns)
    return frame.sort_values(["provider", "model", "worker_id"], ignore_index=True)


def _request(
    bus: Bus,
    prompt: str | None,
    messages: Sequence[Mapping[str, Any]] | None,
    model: str,
    timeout: float,
    request_id: str | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Build an ``llm_request`` from arguments."""
    if (prompt is None) == (messages is None):
        raise ConfigurationError("give either prompt= or messages=")
    if isinstance(messages, str | Mapping):
        raise ConfigurationError("messages must be a list of messages: [{'role': 'user', 'content': …}]")
    if not math.isfinite(timeout) or timeout <= 0:
        raise ConfigurationError(f"timeout {timeout} is no number of seconds above 0")
    fields = {name: value for name, value in options.items() if name in _FIELDS and value is not None}
    parameters = {name: value for name, value in options.items() if name in _PARAMETERS and value is not None}
    extra = {name: value for name, value in options.items() if name not in _FIELDS | _PARAMETERS}
    given = extra.pop("parameters", None) or {}
    parameters = {**given, **parameters}
    if extra:
        parameters["extra"] = {**parameters.get("extra", {}), **extra}
    data: dict[str, Any] = {
        "request_id": request_id or uuid.uuid4().hex, "model": model, "tenant_id": bus.tenant_id,
        "timestamp": codec.now(), "timeout": float(timeout), **fields,
    }  # fmt: skip
    if parameters:
        data["parameters"] = parameters
    if prompt is not None:
        data["prompt"] = prompt
    else:
        data["messages"] = [dict(message) for message in messages or ()]
    return data


def _embedding_request(
    bus: Bus, texts: Sequence[str], model: str, timeout: float | None, fields: Mapping[str, Any]
) -> dict[str, Any]:
    data: dict[str, Any] = {
        "request_id": uuid.uuid4().hex, "texts": list(texts), "model": model, "tenant_id": bus.tenant_id,
        "timestamp": codec.now(), **fields,
    }  # fmt: skip
    if timeout is not None:
        data["timeout"] = timeout
    return data


@contextmanager
def _typed(model: str) -> Iterator[None]:
    """Raise the gateway's own errors in place of what the bus reports of them."""
    try:
        yield
    except ContractViolation as error:
        if (error.path or "").startswith("/data/parameters"):
            raise RequestRefused(f"{(error.path or '')[6:].replace('/', '.')}: {error.reason}") from error
        raise
    except (JobDead, RemoteError) as error:
        known = error_of(error.error_type, error.detail, model, error.retry_after)
        if known is None:
            raise
        if isinstance(error, RemoteError):
            known.retryable = error.retryable
        raise known from error
