"""LiteLLM as the gateway uses it: loaded late and quietly, called directly, with retries and fallbacks."""

from __future__ import annotations

import asyncio
import functools
import importlib
import logging
import operator
import os
import warnings
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

from kit.errors import KitError
from kit.threads import on_own_thread

from .errors import ProviderFailed, RequestRefused, timed_out, unusable
from .parameters import is_model_name
from .settings import Settings

if TYPE_CHECKING:
    from .till import Meter

T = TypeVar("T")

# Providers whose models a request may name if the gateway's environment has their key; settings enable others.
_KEYED_TEXT = """
ai21 anthropic azure azure_ai cerebras codestral cohere dashscope databricks deepinfra deepseek fireworks_ai gemini
groq huggingface hyperbolic jina_ai meta_llama minimax mistral moonshot nebius novita nvidia_nim openai openrouter
replicate sambanova voyage xai zai
"""
_KEYS = {name: f"{name.upper()}_API_KEY" for name in _KEYED_TEXT.split()} | {
    "together_ai": "TOGETHERAI_API_KEY", "perplexity": "PERPLEXITYAI_API_KEY",
}  # fmt: skip
_MOST_NAMES = 1000
_MOST_COUNTED = 100_000  # characters; a longer text is taken to have a token for four of them, so that nobody waits
_CALLBACKS = operator.attrgetter(
    "callbacks", "success_callback", "failure_callback", "_async_success_callback", "_async_failure_callback"
)
_OFFLINE_PRICES = {
    "input_cost_per_token": 0.0, "output_cost_per_token": 0.0, "cache_creation_input_token_cost": 0.0,
    "cache_read_input_token_cost": 0.0, "litellm_provider": "kit", "max_input_tokens": 1_000_000,
}  # fmt: skip


@functools.cache
def load_litellm() -> Any:
    """Import LiteLLM and set it up; it takes seconds, so call it on another thread (``litellm_module``).

    It fetches no price list, reads no ``.env`` file and reports nothing to anyone. The offline models
    ``kit/extractive`` and ``kit/static-256`` are registered with it. Sessions that it opens it closes as the process
    ends.
    """
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    os.environ.setdefault("LITELLM_MODE", "PRODUCTION")
    os.environ.setdefault("LITELLM_DISABLE_BUG_REPORT", "true")
    import litellm

    from .models.provider import CHAT_MODEL, EMBEDDING_MODEL, PROVIDER, OfflineModels

    # pydantic's warning about an answer of odd types would quote it.
    warnings.filterwarnings("ignore", message="Pydantic serializer warnings", category=UserWarning)
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    for name in ("LiteLLM", "LiteLLM Router"):  # what they log of a failure may quote a prompt
        logging.getLogger(name).setLevel(logging.CRITICAL)
    litellm.custom_provider_map = [
        *(row for row in litellm.custom_provider_map if row["provider"] != PROVIDER),
        {"provider": PROVIDER, "custom_handler": OfflineModels()},
    ]
    litellm.register_model(
        {
            f"{PROVIDER}/{CHAT_MODEL}": {**_OFFLINE_PRICES, "mode": "chat", "supports_function_calling": True},
            f"{PROVIDER}/{EMBEDDING_MODEL}": {**_OFFLINE_PRICES, "mode": "embedding"},
        }
    )
    listed_models(litellm)
    _warm_up(litellm)
    return litellm


def load_client() -> None:
    """Import on this thread what most providers' first call would otherwise import on the event loop, for seconds."""
    importlib.import_module("openai.resources")


@functools.cache
def listed_models(litellm: Any) -> frozenset[str]:
    """Return the models whose prices the installed LiteLLM carries; read before its Router adds others without any."""
    return frozenset(litellm.model_cost)


def _warm_up(litellm: Any) -> None:
    """Have LiteLLM import now, on this thread, what it would import in its first call on the event loop."""
    litellm.completion(model="kit/extractive", messages=[{"role": "user", "content": "Context: a\n\nQuestion: b?"}])
    litellm.embedding(model="kit/static-256", input=["a"])


@contextmanager
def unlogged(litellm: Any) -> Iterator[None]:
    """Spare LiteLLM the record that it makes of each call for callbacks, unless somebody has registered one.

    Nobody would read it: the gateway's own spans, metrics and log say the same. It takes a fifth of a short call.
    """
    switch = _internal_call()
    if switch is None or any(map(_is_foreign, _CALLBACKS(litellm))):
        yield
        return
    before = switch.set(True)
    try:
        yield
    finally:
        switch.reset(before)


@functools.cache
def _internal_call() -> ContextVar[bool] | None:
    """LiteLLM's mark of calls that are not to be logged, where it has one."""
    try:
        from litellm._internal_context import is_internal_call
    except ImportError:
        return None
    return is_internal_call


def _is_foreign(callbacks: list[Any]) -> bool:
    """Whether one of the callbacks is not that of LiteLLM's own Router, which has nothing to do with direct calls."""
    return any(getattr(callback, "__module__", None) != "litellm.router" for callback in callbacks)


async def litellm_module() -> Any:
    """Return LiteLLM, imported on a thread of its own the first time."""
    if load_litellm.cache_info().currsize:
        return load_litellm()
    return await on_own_thread(load_litellm, name="kit-litellm")


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One call that a request asks for.

    Attributes:
        model: the name that the request used; ``fallbacks``: further names, in their order.
        messages: in the OpenAI format; ``parameters``: what else goes to the provider.
        timeout: seconds for each attempt.
    """

    model: str
    messages: Sequence[dict[str, Any]]
    parameters: dict[str, Any]
    timeout: float
    fallbacks: tuple[str, ...] = ()


class _Zero(int):
    """A 0 that is true: LiteLLM takes an embedding's ``max_retries`` of 0 for none, and has OpenAI's client retry."""

    def __bool__(self) -> bool:
        return True


class Providers:
    """Calls models for one gateway: one after the other, with retries after transient failures.

    Attributes:
        litellm: the module; ``errors``: what it raises.
    """

    def __init__(self, settings: Settings, litellm: Any) -> None:
        self._settings = settings
        self.litellm = litellm
        self._names: dict[str, str] = {}
        import openai  # LiteLLM's own errors hang under its tree

        self.errors: tuple[type[Exception], ...] = (openai.OpenAIError, ValueError)

    def admit(self, model: str) -> None:
        """Check that a model may be called: the settings name it, or the operator enabled its provider.

        Raises:
            RequestRefused: it may not, or its name is invalid.
            ProviderFailed: its provider is unknown, or the gateway's environment has no key for it.
        """
        enabled = self._settings.providers
        if model in self._settings.named:
            return
        if not is_model_name(model):
            raise RequestRefused("invalid model name: use letters, digits and . _ : @ + - between single slashes")
        provider = self._vendor(model)
        if provider == "kit" or (enabled is not None and provider in enabled):
            return
        key = _KEYS.get(provider) if enabled is None else None
        if key is None:
            raise RequestRefused(
                f"models of {provider} are not enabled: list them in the gateway's settings (models=), "
                "or list their provider (providers=)"
            )
        if not os.environ.get(key) and not (provider == "gemini" and os.environ.get("GOOGLE_API_KEY")):
            raise ProviderFailed(model, kind="MissingKey", status_code=None, retryable=False, missing=key)

    def _vendor(self, model: str) -> str:
        """Return a model's provider by its name alone; LiteLLM would ask some providers over the network."""
        prefix, slash, _ = model.partition("/")
        if slash and (prefix == "kit" or prefix in self.litellm.provider_list):
            return prefix
        listed = self.litellm.model_cost.get(model) if model in listed_models(self.litellm) else None
        if listed is None:
            raise ProviderFailed(model, kind="UnknownProvider", status_code=400, retryable=False)
        return str(listed.get("litellm_provider"))

    def provider_of(self, model: str) -> str:
        """Return who runs a model, as LiteLLM names it: ``openai``, ``kit``, …"""
        known = self._names.get(model)
        if known is None:
            if len(self._names) > _MOST_NAMES:
                self._names.clear()
            known = self._names[model] = self._provider_of(model)
        return known

    def _provider_of(self, model: str) -> str:
        deployment = self._settings.deployment(model)
        try:
            return str(self.litellm.get_llm_provider(deployment["model"], api_base=deployment.get("api_base"))[1])
        except self.litellm.exceptions.BadRequestError:
            return str(deployment["model"]).partition("/")[0]

    async def complete(
        self,
        call: Call,
        meter: Meter,
        read: Callable[[str, Any], Awaitable[T]],
        wasted: Callable[[ProviderFailed], None],
    ) -> T:
        """Call a chat model, with retries and fallbacks as configured; return the result of ``read``.

        Args:
            call: the request.
            meter: the request's account; it admitted the first call, and must admit each further one.
            read: gets the model's name and LiteLLM's response, or its iterator of a stream.
            wasted: is called after each paid call without a usable answer, before the next call.

        Raises:
            ProviderFailed: no call succeeded.
            RateLimited, BudgetExceeded, PriceUnknown: no call succeeded, and a further one was not admitted.
            asyncio.CancelledError: the caller left.
        """

        async def once(model: str) -> T:
            with unlogged(self.litellm):
                response = await self.litellm.acompletion(
                    messages=list(call.messages), timeout=call.timeout, max_retries=0, _skip_mcp_handler=True,
                    **{**self._settings.deployment(model), **call.parameters},
                )  # fmt: skip
            return await read(model, response)

        return await self._in_turn([call.model, *call.fallbacks], meter, once, wasted)

    async def embed(
        self, model: str, texts: Sequence[str], timeout: float, parameters: dict[str, Any], meter: Meter,
        read: Callable[[Any], T], wasted: Callable[[ProviderFailed], None],
    ) -> T:  # fmt: skip
        """Call an embedding model as ``complete`` does a chat model, without fallbacks."""

        async def once(model: str) -> T:
            with unlogged(self.litellm):
                response = await self.litellm.aembedding(
                    input=list(texts), timeout=timeout, max_retries=_Zero(0),
                    **{**self._settings.deployment(model), **parameters},
                )  # fmt: skip
            return read(response)

        return await self._in_turn([model], meter, once, wasted)

    async def _in_turn(
        self, models: Sequence[str], meter: Meter, once: Callable[[str], Awaitable[T]],
        wasted: Callable[[ProviderFailed], None],
    ) -> T:  # fmt: skip
        """Call models in turn until one answers; a retry waits as its provider asks, or exponentially longer."""
        for model in models:
            left = retries = max(self.retries_of(model) - meter.before, 0)
            while True:
                try:
                    if not meter.calling:
                        await meter.enter(model)
                except KitError as error:  # this call is not admitted; another model's may be
                    meter.refused = error
                    break
                try:
                    return await once(model)
                except self.errors as error:
                    failed, pause = self.failure(model, error), self._pause(error, left, retries)
                except ProviderFailed as error:
                    failed, pause = error, self._pause(error, left, retries)
                meter.failed(failed)
                again = failed.retryable and left > 0 and meter.can_wait(max(pause, failed.retry_after or 0.0))
                if failed.final or not (again or model != models[-1]):
                    raise meter.refused or failed
                if failed.worked:
                    wasted(failed)
                meter.calling = False
                if not again:
                    break
                left -= 1
                await asyncio.sleep(pause)
        raise meter.refused or meter.lost or timed_out(models[0])

    def retries_of(self, model: str) -> int:
        """Return how many retries a model gets after transient failures; an offline model gets none."""
        return 0 if self._settings.deployment(model)["model"].startswith("kit/") else self._settings.retries

    def _pause(self, error: Any, left: int, retries: int) -> float:
        """Seconds before the next attempt, by LiteLLM's own rule: Retry-After, else exponential with jitter."""
        headers = getattr(error, "litellm_response_headers", None)
        return float(
            self.litellm.calculate_retry_after(
                remaining_retries=left, max_retries=retries, response_headers=headers, min_timeout=0
            )
        )

    def _missing_key(self, model: str) -> str:
        """Return the environment variable whose key a model's provider asks for, empty when it has one."""
        deployment = self._settings.deployment(model)
        if deployment.get("api_key") or deployment["model"].startswith("kit/"):
            return ""
        wanted = self.litellm.validate_environment(deployment["model"])["missing_keys"]
        return " and ".join(name for name in wanted if name.endswith("_KEY"))

    def failure(self, model: str, error: Any) -> ProviderFailed:
        """Return the gateway's error for one of LiteLLM's; 402 and what else a retry cannot mend is not retryable."""
        error = getattr(error, "original_exception", None) or error  # of a stream that broke off
        status = getattr(error, "status_code", None)
        status = int(status) if isinstance(status, int | str) and str(status).isdigit() else None
        headers = getattr(error, "litellm_response_headers", None) or {}
        unknown = status == 400 and "LLM Provider NOT provided" in str(error)
        if status in (None, 401, 500) and (missing := self._missing_key(model)):
            return ProviderFailed(model, kind="MissingKey", status_code=None, retryable=False, missing=missing)
        worked, whole = _worked(error)
        if whole and status == 500 and not self._settings.deployment(model)["model"].startswith("kit/"):
            return unusable(model, "MalformedAnswer", retryable=True)  # LiteLLM's 500, not the provider's
        failed = ProviderFailed(
            model,
            kind="UnknownProvider" if unknown else type(error).__name__,
            status_code=status,
            retryable=status is not None and (status in (408, 409, 429) or status >= 500),
            retry_after=_seconds_to_wait(str(headers.get("retry-after") or "")),
        )
        failed.worked, failed.final = worked or failed.kind == "Timeout", status in (400, 413, 422)
        return failed

    def count(self, asked: Sequence[str], said: str = "") -> dict[str, int]:
        """Return an estimate of the tokens that nobody reported, of texts that a model read and of what it wrote.

        By one tokenizer for every model, which is close enough for an account of what cannot be known.
        """
        read, written = (
            self.litellm.token_counter(text=text) if len(text) < _MOST_COUNTED else len(text) // 4
            for text in ("\n".join(asked), said)
        )
        return {"prompt": read, "completion": written, "total": read + written}


def _worked(error: BaseException | None) -> tuple[bool, bool]:
    """Return whether a provider may have worked on a failed call, and whether its answer arrived completely.

    LiteLLM reports an unreadable answer as status 500. Only the HTTP client's error distinguishes the two: there is
    none if an answer arrived.
    """
    while error is not None:
        package, name = type(error).__module__.partition(".")[0], type(error).__name__
        if package == "httpx":
            return name in ("ReadError", "ReadTimeout", "WriteError", "RemoteProtocolError"), False
        if package == "openai" and name not in ("OpenAIError", "APIConnectionError", "APITimeoutError"):
            return False, False  # a status; of what broke on the way, httpx says where
        error = error.__cause__ or error.__context__
    return False, True


def _seconds_to_wait(retry_after: str) -> float | None:
    """Read a ``Retry-After`` header: seconds, or an HTTP date. Source: RFC 9110, section 10.2.3."""
    if retry_after.replace(".", "", 1).isdigit():
        return float(retry_after)
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max((date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds(), 0.0) or None


async def close_stream(response: Any) -> None:
    """Close a streamed response whose reader leaves early: the provider's connection with it."""
    for stream in (getattr(response, "completion_stream", None), response):
        close = getattr(stream, "aclose", None) or getattr(stream, "close", None)
        if close is not None:
            closing = close()
            if hasattr(closing, "__await__"):
                await closing
