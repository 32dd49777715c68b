"""LiteLLM as the gateway uses it: loaded late and quietly, called directly, and by its Router once a call fails."""

from __future__ import annotations

import asyncio
import functools
import logging
import operator
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from kit.components import on_own_thread
from kit.errors import KitError

from .errors import ProviderFailed, RequestRefused
from .settings import Settings

if TYPE_CHECKING:
    from .till import Meter

# What would let a request steer the gateway's own credentials, addresses or LiteLLM itself.
_FORBIDDEN_TEXT = """
api_base base_url api_key api_version headers extra_headers custom_llm_provider organization client model
messages callbacks success_callback failure_callback mock_response fallbacks num_retries max_retries timeout
stream tools tool_choice input
"""
_FORBIDDEN = frozenset(_FORBIDDEN_TEXT.split())
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
        retries: further attempts after a transient failure.
    """

    model: str
    messages: Sequence[dict[str, Any]]
    parameters: dict[str, Any]
    timeout: float
    retries: int
    fallbacks: tuple[str, ...] = ()


class _Zero(int):
    """A 0 that is true: LiteLLM takes an embedding's ``max_retries`` of 0 for none, and has OpenAI's client retry."""

    def __bool__(self) -> bool:
        return True


class _NotLetThrough(ValueError):
    """Told to LiteLLM's Router when the meter holds a call back: it is not tried again, but another model may be."""

    status_code = 400


_METER: ContextVar[Meter] = ContextVar("kit_gateway_meter")  # of the request for which the Router works


class Providers:
    """Calls models for one gateway: directly while all goes well, through LiteLLM's Router once something fails.

    Attributes:
        litellm: the module; ``errors``: what it raises.

    The Router brings backoff, ``Retry-After`` and fallbacks; its bookkeeping costs as much as LiteLLM's call itself, so
    a request pays for it only when its first attempt has failed.
    """

    def __init__(self, settings: Settings, litellm: Any) -> None:
        self._settings = settings
        self.litellm = litellm
        self._router: Any = None
        self._names: dict[str, str] = {}
        import openai  # LiteLLM's own errors hang under its tree

        self.errors: tuple[type[Exception], ...] = (openai.OpenAIError, ValueError)

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

    async def complete(self, call: Call, meter: Meter) -> Any:
        """Call a chat model, retry and fall back as the call says; return LiteLLM's response, or its iterator.

        The first call has passed the meter; each further one does before it is made. The meter knows what was called
        in the end, and how often.

        Raises:
            ProviderFailed: no attempt succeeded.
            RateLimited, BudgetExceeded, PriceUnknown: none did, and a further one was not let through.
            asyncio.CancelledError: the caller left.
        """
        try:
            return await self._direct(call)
        except self.errors as error:
            first = error
        failed = self.failure(call.model, first)
        meter.failed(failed)
        if failed.retryable and call.retries > 0:
            pause = self._pause(first, call.retries)
            if meter.can_wait(max(pause, failed.retry_after or 0.0)):
                await asyncio.sleep(pause)
                return await self._routed(call, call.model, call.fallbacks, call.retries - 1, meter)
        if call.fallbacks and failed.status_code not in (400, 413, 422):
            return await self._routed(call, call.fallbacks[0], call.fallbacks[1:], call.retries, meter)
        raise failed from None

    async def embed(
        self, model: str, texts: Sequence[str], timeout: float, parameters: dict[str, Any], meter: Meter
    ) -> Any:
        """Call an embedding model; transient failures are retried while somebody waits for the answer.

        Every call but the first passes the meter.

        Raises:
            ProviderFailed: no attempt succeeded.
            RateLimited, BudgetExceeded, PriceUnknown: none did, and a further one was not let through.
        """
        deployment = self._settings.deployment(model)
        retries = 0 if deployment["model"].startswith("kit/") else self._settings.retries
        while True:
            try:
                with unlogged(self.litellm):
                    return await self.litellm.aembedding(
                        input=list(texts), timeout=timeout, max_retries=_Zero(0), **{**deployment, **parameters}
                    )
            except self.errors as error:
                failed = self.failure(model, error)
                meter.failed(failed)
                pause = self._pause(error, retries - meter.calls + 1)
                again = failed.retryable and meter.calls <= retries
                if not again or not meter.can_wait(max(pause, failed.retry_after or 0.0)):
                    raise failed from None
            await asyncio.sleep(pause)
            await meter.enter(model)

    async def _direct(self, call: Call) -> Any:
        deployment = self._settings.deployment(call.model)
        with unlogged(self.litellm):
            return await self.litellm.acompletion(
                messages=list(call.messages), timeout=call.timeout, max_retries=0, _skip_mcp_handler=True,
                **{**deployment, **call.parameters},
            )  # fmt: skip

    async def _routed(self, call: Call, model: str, fallbacks: Sequence[str], retries: int, meter: Meter) -> Any:
        router = await self._router_for([model, *fallbacks])
        _METER.set(meter)  # not reset: the Router also works while a stream is read that it has begun
        try:
            return await router.acompletion(
                model=model, messages=list(call.messages), timeout=call.timeout, num_retries=retries,
                fallbacks=[{model: list(fallbacks)}] if fallbacks else [], _skip_mcp_handler=True, **call.parameters,
            )  # fmt: skip
        except self.errors as error:
            raise self.ended(call.model, error, meter) from None

    def ended(self, model: str, error: Any, meter: Meter) -> KitError:
        """Return why a call with all its retries and fallbacks failed: what was not let through might have answered."""
        return meter.refused or self.failure(model, error)

    async def warm_up(self) -> None:
        """Make the Router ahead of the first failure: what it imports takes seconds, here on another thread."""
        if self._router is None:
            timeout = self._settings.timeout
            make = functools.partial(
                self.litellm.Router,
                model_list=[], disable_cooldowns=True, retry_after=0, timeout=timeout, num_retries=0,
            )  # fmt: skip
            made = await on_own_thread(make, name="kit-litellm")
            made.make_call = functools.partial(self._metered, made.make_call)
            self._router = self._router or made

    async def _metered(self, make_call: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        """Make one call of the Router's, a retry's or a fallback's, if the meter lets it through."""
        meter, model = _METER.get(), kwargs["model"]
        try:
            await meter.enter(model)
        except KitError as error:
            meter.refused = error
            raise _NotLetThrough from error
        try:
            return await make_call(*args, **kwargs)
        except self.errors as error:
            meter.failed(self.failure(model, error))
            raise

    async def _router_for(self, models: Sequence[str]) -> Any:
        """Return the Router, with the models in it that it needs now."""
        await self.warm_up()
        known = set(self._router.get_model_names())
        for model in models:
            if model not in known:
                deployment = self.litellm.router.Deployment(
                    model_name=model,
                    litellm_params={"max_retries": 0, **self._settings.deployment(model)},
                )
                self._router.add_deployment(deployment)
        return self._router

    def _pause(self, error: Any, retries: int) -> float:
        """Seconds before the second attempt, by LiteLLM's own rule: Retry-After, else exponential with jitter."""
        headers = getattr(error, "litellm_response_headers", None)
        return float(
            self.litellm.calculate_retry_after(
                remaining_retries=retries, max_retries=retries, response_headers=headers, min_timeout=0
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
        status = getattr(error, "status_code", None)
        status = int(status) if isinstance(status, int | str) and str(status).isdigit() else None
        headers = getattr(error, "litellm_response_headers", None) or {}
        unknown = status == 400 and "LLM Provider NOT provided" in str(error)
        if status in (None, 401, 500) and (missing := self._missing_key(model)):
            return ProviderFailed(model, kind="MissingKey", status_code=None, retryable=False, missing=missing)
        return ProviderFailed(
            model,
            kind="UnknownProvider" if unknown else type(error).__name__,
            status_code=status,
            retryable=status is not None and (status in (408, 409, 429) or status >= 500),
            retry_after=_seconds_to_wait(str(headers.get("retry-after") or "")),
        )

    def count(self, asked: Sequence[str], said: str = "") -> dict[str, int]:
        """Return an estimate of the tokens that nobody reported, of texts that a model read and of what it wrote.

        By one tokenizer for every model, which is close enough for an account of what cannot be known.
        """
        read, written = (
            self.litellm.token_counter(text=text) if len(text) < _MOST_COUNTED else len(text) // 4
            for text in ("\n".join(asked), said)
        )
        return {"prompt": read, "completion": written, "total": read + written}


def _seconds_to_wait(retry_after: str) -> float | None:
    """Read a ``Retry-After`` header: seconds, or an HTTP date. Source: RFC 9110, section 10.2.3."""
    if retry_after.replace(".", "", 1).isdigit():
        return float(retry_after)
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max((date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds(), 0.0) or None


def refuse_steering(extra: dict[str, Any]) -> None:
    """Refuse parameters of a request that would steer the gateway's credentials, addresses or LiteLLM itself.

    Raises:
        RequestRefused: naming them.
    """
    refused = sorted(name for name in extra if name in _FORBIDDEN or name.startswith(("litellm", "mock_", "_", "aws_")))
    if refused:
        raise RequestRefused(f"a request must not set {', '.join(refused)}: the gateway's settings do")


def provider_parameters(data: dict[str, Any]) -> dict[str, Any]:
    """Return what of an ``llm_request`` goes to the provider.

    Raises:
        RequestRefused: ``parameters.extra`` would steer the gateway itself.
    """
    parameters = dict(data.get("parameters") or {})
    extra = parameters.pop("extra", {})
    refuse_steering(extra)
    for name in ("tools", "tool_choice"):
        if data.get(name):
            parameters[name] = data[name]
    return {**parameters, **extra}


async def close_stream(response: Any) -> None:
    """Close a streamed response whose reader leaves early: the provider's connection with it."""
    for stream in (getattr(response, "completion_stream", None), response):
        close = getattr(stream, "aclose", None) or getattr(stream, "close", None)
        if close is not None:
            closing = close()
            if hasattr(closing, "__await__"):
                await closing
