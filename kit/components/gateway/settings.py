"""What a gateway worker is told: models, limits, budgets, and how patiently it treats providers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kit.errors import ConfigurationError

DEFAULT_MODEL = "kit/extractive"
DEFAULT_EMBEDDING_MODEL = "kit/static-256"
# LiteLLM's names of prices: all of them, and those per token, which it can count from an answer's usage.
_PRICE = re.compile(r"(?:^|_)(?:cost|pricing)(?:_|$)")
_COUNTED = re.compile(
    r"(?:input|output)_cost_per_token(?:_above_\d+k_tokens)?|cache_(?:read|creation)_input_token_cost(?:_above_\d+k_tokens)?"
    r"|cache_creation_input_token_cost_above_1hr|input_cost_per_(?:audio|image|video)_token"
    r"|output_cost_per_(?:audio|image|video|reasoning)_token"
)
PERIODS: dict[str, float | None] = {"hour": 3600.0, "day": 86400.0, "week": 604800.0, "month": None, "total": None}


@dataclass(frozen=True, kw_only=True, slots=True)
class RateLimit:
    """What a tenant may ask of a model in any window of time, over all workers together.

    What counts are calls of the model's provider: each retry, each fallback to the model, each second try after a
    failed check is one; an answer from the cache, or from somebody else's flight, is none.

    Attributes:
        requests: how many calls.
        window: length of the window in seconds.
        wait: whether a request over the limit goes back to the queue until it would be let through (at most the
            queue's attempts), instead of being refused at once.
    """

    requests: int
    window: float = 60.0
    wait: bool = False

    def __post_init__(self) -> None:
        if self.requests < 1 or self.window <= 0:
            raise ConfigurationError(
                f"a rate limit of {self.requests} requests in {self.window:g} s lets nothing through"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What a tenant may spend in a period, over all workers together.

    Every call reserves what it may cost at most, a fallback when it is taken. A model whose price nobody knows is
    refused: ``kit/`` models are free, and the settings of any other may say so (``input_cost_per_token`` 0).

    Attributes:
        limit: in ``currency``.
        currency: ISO 4217 code; the price list knows US dollars only.
        period: ``hour``, ``day``, ``week``, ``month`` (calendar, UTC) or ``total``.
        near: fraction of the limit from which an alert tells that it will soon be used up.
    """

    limit: float
    currency: str = "USD"
    period: str = "day"
    near: float = 0.8

    def __post_init__(self) -> None:
        if self.period not in PERIODS:
            raise ConfigurationError(f"there is no budget period {self.period!r}: use one of {', '.join(PERIODS)}")
        if self.currency != "USD":
            raise ConfigurationError(f"the price list is in USD: a budget in {self.currency} could not be settled")
        if self.limit < 0:
            raise ConfigurationError(f"a budget of {self.limit:g} is below nothing")


def rate_limit_of(told: RateLimit | Mapping[str, Any]) -> RateLimit:
    """Return a rate limit from itself or from its fields, as a command line gives them.

    Raises:
        ConfigurationError: a field that there is not, or that cannot work.
    """
    try:
        return told if isinstance(told, RateLimit) else RateLimit(**told)
    except TypeError as error:
        raise ConfigurationError(f"a rate limit is {{'requests': n, 'window': seconds}}, not {told}") from error


def budget_of(told: Budget | Mapping[str, Any] | None) -> Budget | None:
    """Return a budget from itself or from its fields, as a command line gives them.

    Raises:
        ConfigurationError: a field that there is not, or that cannot work.
    """
    try:
        return told if told is None or isinstance(told, Budget) else Budget(**told)
    except TypeError as error:
        raise ConfigurationError(f"a budget is {{'limit': amount, 'period': 'day'}}, not {told}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Everything that ``serve`` takes.

    Attributes:
        model: what answers when a request names the model "default".
        embedding_model: what embeds when a request names the model "default".
        models: LiteLLM settings (``model``, ``api_base``, ``api_key``, prices, …) by the name that requests use.
        providers: LiteLLM's names of providers whose models a request may name besides ``models``, as ``("openai",
            "bedrock")``; None means every well-known one whose key (``OPENAI_API_KEY``, …) the environment has.
            ``kit/`` models are always allowed.
        fallbacks: models to try when one fails, by its name; a request's own list comes first.
        timeout: seconds for one call of a provider, and for a request that names no timeout of its own.
        retries: further calls of a model after a transient failure (429, 5xx, timeouts, broken connections, answers
            that cannot be read); the queue adds none.
        cooldown: seconds for which a model that fails in a row is passed over when it has a fallback.
        cache_ttl: seconds for which a response is remembered; 0 turns the cache off.
        rate_limits: by model name; "*" is for every model that has none of its own.
        budget: of this tenant, or None.
        concurrency: requests worked on at once.
        health_interval: seconds between two reports of a provider's health while it is used.
        log_interval: seconds for which a call of a provider waits for others, to be logged with them: each
            write to a socket costs a tenth of a short call.
    """

    model: str = DEFAULT_MODEL
    embedding_model: str = DEFAULT_EMBEDDING_MODEL
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)  # with keys
    providers: Sequence[str] | None = None
    fallbacks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    timeout: float = 60.0
    retries: int = 2
    cooldown: float = 10.0
    cache_ttl: float = 3600.0
    rate_limits: Mapping[str, RateLimit] = field(default_factory=dict)
    budget: Budget | None = None
    concurrency: int = 32
    health_interval: float = 30.0
    log_interval: float = 0.02
    named: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.timeout <= 0 or self.concurrency < 1 or min(self.retries, self.cache_ttl, self.log_interval) < 0:
            raise ConfigurationError(
                "timeout and concurrency must be above 0; retries, cache_ttl and log_interval not below"
            )
        if isinstance(self.providers, str):
            raise ConfigurationError(f"providers must be a list of names: [{self.providers!r}]")
        listed = (name for names in self.fallbacks.values() for name in names)
        named = frozenset((self.model, self.embedding_model, *self.models, *self.fallbacks, *listed))
        object.__setattr__(self, "named", named)  # the operator's own names
        for name, deployment in self.models.items():
            if not isinstance(deployment.get("model"), str):
                raise ConfigurationError(f"models[{name!r}] needs a 'model': its LiteLLM name, e.g. openai/gpt-4o-mini")
            for key, value in deployment.items():
                if _PRICE.search(key):
                    _check_price(name, key, value)

    def rate_limit(self, model: str) -> RateLimit | None:
        """Return the limit for a model, or None."""
        return self.rate_limits.get(model) or self.rate_limits.get("*")

    def deployment(self, model: str) -> dict[str, Any]:
        """Return LiteLLM's settings for a model's name; without prices, which it would remember for others too."""
        told = self.models.get(model) or {"model": model}
        return {name: value for name, value in told.items() if not _PRICE.search(name)}

    def prices(self, model: str) -> dict[str, float]:
        """Return a model's own prices by LiteLLM's names, in USD per token; empty if the settings have none."""
        told = self.models.get(model) or {}
        return {name: float(value) for name, value in told.items() if _PRICE.search(name)}


def _check_price(model: str, key: str, value: Any) -> None:
    """Refuse a price that the gateway cannot count, or that is not an amount."""
    if not _COUNTED.fullmatch(key):
        raise ConfigurationError(
            f"models[{model!r}] sets {key!r}, which the gateway cannot count: give prices per token, such as "
            "input_cost_per_token, output_cost_per_token and cache_read_input_token_cost"
        )
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ConfigurationError(f"models[{model!r}] sets {key!r} to {value!r}: it must be a number of USD, 0 or more")
