"""What calls cost: LiteLLM's price list, the gateway's own prices, and nothing for offline models."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .litellm_calls import listed_models
from .local_llm import NAME
from .settings import Settings
from .usage import size_of

CURRENCY = "USD"
OFFLINE = "offline model: no charge"
OWN = "gateway settings"
UNKNOWN = "no price known"
_LOCAL = f"openai/{NAME}"  # what ``kit local-llm`` runs; nobody sells it under this name
_COMPLETION = 1024  # tokens; what a response is taken to have at most when its request does not say
_MOST = ("max_tokens", "max_completion_tokens")  # how a request says it
_USUAL = frozenset({"input_cost_per_token", "output_cost_per_token"})
_BYTES = 3.0  # per token: few, so that an estimate is rather too high, in any script


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
        self._own: set[str] = set()  # names under which LiteLLM knows models' own prices

    def source(self, model: str) -> str:
        """Return where a model's price comes from."""
        return self.of(model, 0, 0).source

    def of(self, model: str, prompt: int, completion: int, usage: Any = None) -> Price:
        """Return a call's cost; ``usage``, LiteLLM's, says which tokens have special prices."""
        name = self._settings.deployment(model)["model"]
        if own := self._settings.prices(model):
            return Price(amount=self._own_cost(own, prompt, completion, usage), source=OWN)
        if name.startswith("kit/") or name == _LOCAL:
            return Price(amount=0.0, source=OFFLINE)
        if not {name, name.partition("/")[2], name.rpartition("/")[2]} & self._names:
            return Price(amount=None, source=UNKNOWN)
        try:
            costs = self._litellm.cost_per_token(
                model=name, prompt_tokens=prompt, completion_tokens=completion, usage_object=usage
            )
        except (self._litellm.exceptions.ModelNotMappedError, self._litellm.exceptions.BadRequestError):
            return Price(amount=None, source=UNKNOWN)
        return Price(amount=float(sum(costs)), source=self._listed)

    def _own_cost(self, own: dict[str, float], prompt: int, completion: int, usage: Any) -> float:
        """Apply a model's own prices; LiteLLM computes with them if there are more than the usual two."""
        if own.keys() <= _USUAL:
            return prompt * own.get("input_cost_per_token", 0.0) + completion * own.get("output_cost_per_token", 0.0)
        told = {**dict.fromkeys(_USUAL, 0.0), **own}
        name = f"openai/kit-own-{hashlib.sha256(repr(sorted(told.items())).encode()).hexdigest()[:24]}"
        if name not in self._own:
            self._litellm.register_model({name: {**told, "litellm_provider": "openai", "mode": "chat"}})
            self._own.add(name)
        usage = usage or self._litellm.Usage(prompt_tokens=prompt, completion_tokens=completion)
        return float(sum(self._litellm.cost_per_token(model=name, custom_llm_provider="openai", usage_object=usage)))

    def paid(self, model: str, response: Any, tokens: Mapping[str, int]) -> Price:
        """Return what a response cost: what LiteLLM worked out for it, cached and reasoning tokens included."""
        cost = (getattr(response, "_hidden_params", None) or {}).get("response_cost")
        price = self.of(model, tokens["prompt"], tokens["completion"], response.usage)
        if price.source == self._listed and isinstance(cost, int | float) and 0 <= cost < math.inf:
            return Price(amount=float(cost), source=price.source)
        return price

    def estimate(self, model: str, data: Mapping[str, Any]) -> Price:
        """Return what a request will cost at most, as far as can be told before it is made."""
        messages = data.get("messages") or [{"content": data.get("prompt", "")}]
        texts = [str(value) for message in messages for value in message.values() if value]
        texts += [str(data.get("tools") or ""), str((data.get("parameters") or {}).get("response_format") or "")]
        prompt, most = int(size_of(texts) / _BYTES) + 8, self._stated(model, data)
        completion = (most or _COMPLETION) * self._answers(model, data)
        price, own = self.of(model, prompt, completion), self._settings.prices(model)
        if price.amount is None or own.keys() <= _USUAL:
            return price
        dearest = [
            max((amount for name, amount in own.items() if side in name and "_above_" not in name), default=0.0)
            for side in ("input", "output")
        ]
        return replace(price, amount=max(price.amount, prompt * dearest[0] + completion * dearest[1]))

    def completion_bound(self, model: str, data: Mapping[str, Any]) -> int:
        """Return the tokens that a model may write for a request; what it shows may prove more."""
        most = self._stated(model, data)
        if most is None:
            name = self._settings.deployment(model)["model"]
            info = self._litellm.model_cost.get(name) or self._litellm.model_cost.get(name.partition("/")[2]) or {}
            thinks = info.get("max_output_tokens") if info.get("supports_reasoning") else None
            most = max(_COMPLETION, thinks if isinstance(thinks, int) else 0)
        return most * self._answers(model, data)

    def _stated(self, model: str, data: Mapping[str, Any]) -> int | None:
        asked = self._asked(model, data)
        return max((asked[name] for name in _MOST if isinstance(asked.get(name), int)), default=None)

    def _answers(self, model: str, data: Mapping[str, Any]) -> int:
        answers = self._asked(model, data).get("n")
        return answers if isinstance(answers, int) else 1

    def _asked(self, model: str, data: Mapping[str, Any]) -> dict[str, Any]:
        given = data.get("parameters") or {}
        return {**self._settings.deployment(model), **given, **(given.get("extra") or {})}
