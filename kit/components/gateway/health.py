"""How providers are doing, judged by the calls of this worker, told as events and kept for a table."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from kit import codec

from .errors import ProviderFailed, as_data

BUCKET = "gateway-health"
WINDOW = 300.0  # s
_MOST = 200  # calls looked back at
_MOST_MODELS = 1000  # looked back at: requests name them
_FEW = 3  # calls below which one failure says nothing of a rate


@dataclass(slots=True)
class Provider:
    """The calls of one model in the window.

    Attributes:
        calls: (monotonic time, succeeded, seconds) of each call; ``failed`` of them did not succeed.
        failures: failed calls in a row.
        cooldown_until: monotonic time until which it is passed over when there is a fallback.
    """

    provider: str
    model: str
    calls: deque[tuple[float, bool, float]] = field(default_factory=deque)
    failed: int = 0
    failures: int = 0
    error: ProviderFailed | None = None
    status: str = "healthy"
    told_status: str | None = None
    told_at: float = 0.0
    cooldown_until: float = 0.0

    def add(self, now: float, succeeded: bool, seconds: float) -> None:
        """Add a call, and let go of those that have left the window."""
        calls = self.calls
        calls.append((now, succeeded, seconds))
        self.failed += not succeeded
        while len(calls) > _MOST or calls[0][0] < now - WINDOW:
            self.failed -= not calls.popleft()[1]

    def judged(self) -> str:
        """How it is doing: by its failures in a row, and by their share of all."""
        rate = self.failed / len(self.calls)
        if self.failures >= _FEW or (rate >= 0.5 and self.failed >= _FEW):
            return "unhealthy"
        return "degraded" if self.failures or (rate >= 0.1 and self.failed) else "healthy"


class Health:
    """Keeps count of calls, and says when something should be told of a provider."""

    def __init__(self, *, cooldown: float, interval: float, worker_id: str) -> None:
        self._cooldown, self._interval, self._worker_id = cooldown, interval, worker_id
        self._providers: dict[str, Provider] = {}

    def cooling(self, model: str) -> bool:
        """Whether a model failed so often in a row that a fallback is the better choice now."""
        known = self._providers.get(model)
        return known is not None and known.cooldown_until > time.monotonic()

    def note(
        self, provider: str, model: str, seconds: float, error: ProviderFailed | None = None, *, failed_before: int = 0
    ) -> dict[str, Any] | None:
        """Note a call, and return a ``provider_health`` event when its status changed or it is time for one.

        Args:
            provider: who runs the model.
            model: its name.
            seconds: what the call took.
            error: how it failed, or None.
            failed_before: failed attempts that the call took before it succeeded.
        """
        now = time.monotonic()
        known = self._providers.pop(model, None) or Provider(provider=provider, model=model)
        self._providers[model] = known  # the last called is last
        if len(self._providers) > _MOST_MODELS:
            del self._providers[next(iter(self._providers))]
        for _ in range(failed_before):
            known.add(now, False, seconds)
        known.add(now, error is None, seconds)
        known.failures = 0 if error is None else known.failures + 1 + failed_before
        known.error = error or known.error
        known.status = known.judged()
        if known.status == "unhealthy" and error is not None:
            known.cooldown_until = now + max(self._cooldown, error.retry_after or 0.0)
        elif error is None:
            known.cooldown_until = 0.0
        changed = known.status != (known.told_status or "healthy")
        if not changed and known.told_status is not None and now - known.told_at < self._interval:
            return None
        event = self._event(known, now)
        known.told_status, known.told_at = known.status, now
        return event

    def _event(self, known: Provider, now: float) -> dict[str, Any]:
        times = sorted(seconds for _, ok, seconds in known.calls if ok)
        failed = known.failed
        data: dict[str, Any] = {
            "provider": known.provider, "model": known.model, "status": known.status, "timestamp": codec.now(),
            "requests": len(known.calls), "errors": failed, "error_rate": failed / len(known.calls),
            "consecutive_failures": known.failures, "window": WINDOW, "worker_id": self._worker_id,
        }  # fmt: skip
        if known.told_status is not None:
            data["previous_status"] = known.told_status
        if times:
            data["latency_ms"] = median(times) * 1e3
            data["latency_p95_ms"] = times[min(int(len(times) * 0.95), len(times) - 1)] * 1e3
        if known.error is not None and failed:
            data["error"] = as_data(known.error)
            if known.error.status_code is not None:
                data["status_code"] = known.error.status_code
            if known.error.retry_after is not None:
                data["retry_after"] = known.error.retry_after
        return data
