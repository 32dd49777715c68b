"""What calls cost: LiteLLM's price list, the gateway's own prices, and nothing for offline models."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .litellm_calls import listed_models
from .local_llm import NAME
from .settings import Settings

CURRENCY = "USD"
OFFLINE = "offline model: no charge"
OWN = "gateway settings"
UNKNOWN = "no price known"
_LOCAL = f"openai/{NAME}"  # what ``kit local-llm`` runs; nobody sells it under this name
_COMPLETION = 1024  # tokens; what a response is taken to have at most when its request does not say
_MOST = ("max_tokens", "max_completion_tokens")  # how a request says it
_CHARACTERS = 3.0  # per token: few, so that an estimate is rather too high


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """What a call cost.

    Attributes:
        amount: in ``CURRENCY``; None when no price is known.
        source: where the price comes from.
    """

    amount: float | None
    source: str


class Prices:
    """Prices of calls by model, from the list that the installed LiteLLM carries; no network is asked."""

    def __init__(self, settings: Settings, litellm: Any) -> None:
        self._settings, self._litellm = settings, litellm
        self._names = listed_models(litellm)
        self._listed = f"litellm {importlib.metadata.version('litellm')} price list"

    def source(self, model: str) -> str:
        """Return where a model's price comes from."""
        return self.of(model, 0, 0).source

    def of(self, model: str, prompt: int, completion: int) -> Price:
        """Return what a call with so many tokens costs."""
        name = self._settings.deployment(model)["model"]
        own = self._settings.prices(model)
        if own is not None:
            return Price(amount=prompt * own[0] + completion * own[1], source=OWN)
        if name.startswith("kit/") or name == _LOCAL:
            return Price(amount=0.0, source=OFFLINE)
        if not {name, name.partition("/")[2], name.rpartition("/")[2]} & self._names:
            return Price(amount=None, source=UNKNOWN)
        try:
            costs = self._litellm.cost_per_token(model=name, prompt_tokens=prompt, completion_tokens=completion)
        except (self._litellm.exceptions.ModelNotMappedError, self._litellm.exceptions.BadRequestError):
            return Price(amount=None, source=UNKNOWN)
        return Price(amount=float(sum(costs)), source=self._listed)

    def paid(self, model: str, response: Any, prompt: int, completion: int) -> Price:
        """Return what a response cost: what LiteLLM worked out for it, cached and reasoning tokens included."""
        cost = (getattr(response, "_hidden_params", None) or {}).get("response_cost")
        price = self.of(model, prompt, completion)
        if price.source == self._listed and isinstance(cost, int | float):
            return Price(amount=float(cost), source=price.source)
        return price

    def estimate(self, model: str, data: Mapping[str, Any]) -> Price:
        """Return what a request will cost at most, as far as can be told before it is made."""
        messages = data.get("messages") or [{"content": data.get("prompt", "")}]
        characters = sum(len(str(message.get("content") or "")) for message in messages) + len(
            str(data.get("tools") or "")
        )
        given = data.get("parameters") or {}
        asked = {**self._settings.deployment(model), **given, **(given.get("extra") or {})}
        most = [asked[name] for name in _MOST if isinstance(asked.get(name), int)]
        answers = asked["n"] if isinstance(asked.get("n"), int) else 1
        return self.of(model, int(characters / _CHARACTERS) + 8, max(most, default=_COMPLETION) * answers)
