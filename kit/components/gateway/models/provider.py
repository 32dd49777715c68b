"""The offline models as LiteLLM custom providers: ``kit/extractive`` and ``kit/static-256``, called like any other."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

from litellm.llms.custom_llm import CustomLLM, CustomLLMError
from litellm.types.utils import (
    ChatCompletionMessageToolCall,
    Choices,
    EmbeddingResponse,
    Function,
    GenericStreamingChunk,
    Message,
    ModelResponse,
    Usage,
)

from .extractive import Completion, complete
from .static import StaticEmbeddings, static_embeddings

PROVIDER = "kit"
CHAT_MODEL = "extractive"
EMBEDDING_MODEL = "static-256"
_LIGHT = 6_000  # characters up to which the event loop waits less for the answer than for a worker thread

_Result = TypeVar("_Result")


class OfflineModels(CustomLLM):
    """Chat and embeddings without a network and without a key, deterministic, counted in tokens, at no cost."""

    def completion(self, *args: Any, **kwargs: Any) -> ModelResponse:
        """Answer a chat request (blocking)."""
        return _respond(_complete(kwargs), kwargs)

    async def acompletion(self, *args: Any, **kwargs: Any) -> ModelResponse:
        """Answer a chat request; a long one is read on a worker thread."""
        size = sum(len(str(message.get("content") or "")) for message in kwargs["messages"])
        return _respond(await _off_loop(lambda: _complete(kwargs), heavy=size > _LIGHT), kwargs)

    def streaming(self, *args: Any, **kwargs: Any) -> Iterator[GenericStreamingChunk]:
        """Answer a chat request word by word (blocking)."""
        yield from _chunks(_complete(kwargs))

    async def astreaming(  # type: ignore[override]  # its own is declared as a coroutine and used as this
        self, *args: Any, **kwargs: Any
    ) -> AsyncIterator[GenericStreamingChunk]:
        """Answer a chat request word by word, giving way to others after each."""
        completion = await _off_loop(lambda: _complete(kwargs), heavy=True)
        for chunk in _chunks(completion):
            yield chunk
            await asyncio.sleep(0)

    def embedding(self, *args: Any, **kwargs: Any) -> EmbeddingResponse:
        """Embed a list of texts (blocking)."""
        return _embed(kwargs, _weights())

    async def aembedding(self, *args: Any, **kwargs: Any) -> EmbeddingResponse:
        """Embed a list of texts; more than a handful on a worker thread."""
        heavy = sum(map(len, kwargs["input"])) > _LIGHT
        return await _off_loop(lambda: _embed(kwargs, _weights()), heavy=heavy)


def _weights() -> StaticEmbeddings:
    return static_embeddings()


async def _off_loop(work: Callable[[], _Result], *, heavy: bool) -> _Result:
    return await asyncio.to_thread(work) if heavy or not static_embeddings.cache_info().currsize else work()


def _unknown(kind: str, model: str, known: str) -> CustomLLMError:
    message = f"there is no {kind} model {PROVIDER}/{model}: use {PROVIDER}/{known}"
    return CustomLLMError(404, message)  # type: ignore[no-untyped-call]


def _complete(kwargs: dict[str, Any]) -> Completion:
    if kwargs["model"] != CHAT_MODEL:
        raise _unknown("chat", kwargs["model"], CHAT_MODEL)
    options = kwargs.get("optional_params") or {}
    limit = options.get("max_completion_tokens") or options.get("max_tokens")
    return complete(
        kwargs["messages"],
        _weights(),
        tools=options.get("tools") or (),
        tool_choice=options.get("tool_choice") or "auto",
        max_tokens=limit,
        response_format=options.get("response_format"),
    )


def _respond(completion: Completion, kwargs: dict[str, Any]) -> ModelResponse:
    """Fill LiteLLM's response object, as a provider's own adapter does."""
    response: ModelResponse = kwargs["model_response"]
    message = Message(role="assistant", content=completion.text or None)
    if completion.tool_call is not None:
        call = completion.tool_call
        message.tool_calls = [
            ChatCompletionMessageToolCall(
                id=f"call_{call.name}_1", type="function", function=Function(name=call.name, arguments=call.arguments)
            )
        ]
    response.choices = [Choices(index=0, finish_reason=completion.finish_reason, message=message)]
    response.model = f"{PROVIDER}/{CHAT_MODEL}"
    response.usage = _usage(completion)  # type: ignore[attr-defined]
    return response


def _usage(completion: Completion) -> Usage:
    prompt, written = completion.prompt_tokens, completion.completion_tokens
    return Usage(prompt_tokens=prompt, completion_tokens=written, total_tokens=prompt + written)


def _chunks(completion: Completion) -> Iterator[GenericStreamingChunk]:
    """Cut an answer into words with the white space after them; the last chunk says why it ends and what it cost."""
    for index, piece in enumerate(re.findall(r"\S+\s*|^\s+", completion.text)):
        yield GenericStreamingChunk(
            text=piece, is_finished=False, finish_reason="", usage=None, index=index, tool_use=None
        )
    tool_use: Any = None
    if completion.tool_call is not None:
        call = completion.tool_call
        tool_use = {
            "id": f"call_{call.name}_1", "type": "function", "index": 0,
            "function": {"name": call.name, "arguments": call.arguments},
        }  # fmt: skip
    usage: Any = _usage(completion).model_dump(include={"prompt_tokens", "completion_tokens", "total_tokens"})
    yield GenericStreamingChunk(
        text="", is_finished=True, finish_reason=completion.finish_reason, usage=usage, index=0, tool_use=tool_use
    )


def _embed(kwargs: dict[str, Any], weights: StaticEmbeddings) -> EmbeddingResponse:
    if kwargs["model"] != EMBEDDING_MODEL:
        raise _unknown("embedding", kwargs["model"], EMBEDDING_MODEL)
    texts = [kwargs["input"]] if isinstance(kwargs["input"], str) else list(kwargs["input"])
    response: EmbeddingResponse = kwargs["model_response"]
    response.model = f"{PROVIDER}/{EMBEDDING_MODEL}"
    response.data = [
        {"object": "embedding", "index": index, "embedding": row}
        for index, row in enumerate(weights.embed(texts).tolist())
    ]
    tokens = sum(map(weights.count_tokens, texts))
    response.usage = Usage(prompt_tokens=tokens, completion_tokens=0, total_tokens=tokens)
    return response
