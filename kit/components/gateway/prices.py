"""What calls cost: LiteLLM's price list, the gateway's own prices, and nothing for offline models."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .settings import Settings

CURRENCY = "USD"
OFFLINE = "offline model: no charge"
_COMPLETION = 1024  # tokens; what a response is taken to have at most when its request does not say
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
        self._listed = f"litellm {importlib.metadata.version('litellm')} price list"

    def source(self, model: str) -> str:
        """Return where a model's price comes from."""
        deployment = self._settings.deployment(model)
        if deployment["model"].startswith("kit/"):
            return OFFLINE
        return "gateway settings" if "input_cost_per_token" in deployment else self._listed

    def of(self, model: str, prompt: int, completion: int) -> Price:
        """Return what a call with so many tokens costs."""
        deployment = self._settings.deployment(model)
        if deployment["model"].startswith("kit/"):
            return Price(amount=0.0, source=OFFLINE)
        if "input_cost_per_token" in deployment:
            own = prompt * deployment["input_cost_per_token"] + completion * deployment.get(
                "output_cost_per_token", 0.0
            )
            return Price(amount=own, source="gateway settings")
        try:
            costs = self._litellm.cost_per_token(
                model=deployment["model"], prompt_tokens=prompt, completion_tokens=completion
            )
        except (self._litellm.exceptions.BadRequestError, ValueError, KeyError, LookupError):
            return Price(amount=None, source="no price known")
        except Exception as error:
            if type(error).__name__ != "ModelNotMappedError":
                raise
            return Price(amount=None, source="no price known")
        return Price(amount=float(sum(costs)), source=self._listed)

    def paid(self, model: str, response: Any, prompt: int, completion: int) -> Price:
        """Return what a response cost: what LiteLLM worked out for it, cached and reasoning tokens included."""
        hidden = getattr(response, "_hidden_params", None) or {}
        cost = hidden.get("response_cost")
        if isinstance(cost, int | float) and not self._settings.deployment(model)["model"].startswith("kit/"):
            return Price(amount=float(cost), source=self.source(model))
        return self.of(model, prompt, completion)

    def estimate(self, model: str, data: Mapping[str, Any]) -> float:
        """Return what a request will cost at most, as far as can be told before it is made."""
        messages = data.get("messages") or [{"content": data.get("prompt", "")}]
        characters = sum(len(str(message.get("content") or "")) for message in messages) + len(
            str(data.get("tools") or "")
        )
        completion = (data.get("parameters") or {}).get("max_tokens") or _COMPLETION
        return self.of(model, int(characters / _CHARACTERS) + 8, completion).amount or 0.0
