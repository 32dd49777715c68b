"""The standard samplers, as one comparison.

Source: OpenTelemetry's OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG; a test compares the decisions with the SDK's.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

logger = logging.getLogger(__name__)

_ID_RANGE = 1 << 64  # the SDK decides by the lower 64 bits of a trace id
_ALL = 1.0
_RATES: dict[str, float | None] = {"always_on": 1.0, "always_off": 0.0, "traceidratio": None}


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which traces are recorded.

    Attributes:
        bound: a new trace is sampled when the lower 64 bits of its id are below this.
        parent_based: a parent's decision holds for its children, as it should.
    """

    bound: int = _ID_RANGE
    parent_based: bool = True

    @property
    def leaves_unsampled(self) -> bool:
        """Whether nothing is ever recorded below a parent that is not."""
        return self.parent_based or self.bound == 0

    def decide(self, parent_sampled: int | None, trace_id: int) -> int:
        """Return 1 when a span is to be recorded, else 0; ``parent_sampled`` is None for a new trace."""
        if parent_sampled is not None and self.parent_based:
            return parent_sampled
        return 1 if trace_id & (_ID_RANGE - 1) < self.bound else 0


def sampling_from_environment() -> Sampling:
    """Return what OTEL_TRACES_SAMPLER asks for; a name nobody knows is told and ignored, as the standard says."""
    name = os.environ.get("OTEL_TRACES_SAMPLER", "").strip().lower() or "parentbased_always_on"
    root = name.removeprefix("parentbased_")
    if root not in _RATES:
        logger.warning("OTEL_TRACES_SAMPLER=%r is unknown: everything is sampled", name)
        return Sampling()
    rate = _RATES[root]
    if rate is None:
        rate = _rate(os.environ.get("OTEL_TRACES_SAMPLER_ARG", ""))
    return Sampling(round(rate * _ID_RANGE), name != root)


def _rate(text: str) -> float:
    try:
        rate = float(text) if text.strip() else _ALL
    except ValueError:
        rate = -1.0
    if not 0.0 <= rate <= 1.0:
        logger.warning("OTEL_TRACES_SAMPLER_ARG=%r is not a number from 0 to 1: everything is sampled", text)
        return _ALL
    return rate
