"""The catalogue as DataFrames, for the summary tables of notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kit.catalogue import METRICS, OPERATIONS, SPANS, Metric, Operation, Span
from kit.errors import ConfigurationError
from kit.lab.catalogue_export import message_text, mode_text, subject_pattern

if TYPE_CHECKING:
    import pandas as pd


def operations(component: str | None = None) -> pd.DataFrame:
    """Return the subjects of a component (of all of them without one): mode, messages, who sends what to whom."""
    import pandas as pd

    rows = [
        {
            "operation": row.name,
            "subject": subject_pattern(row),
            "mode": mode_text(row),
            "message": message_text(row),
            "from": row.publisher,
            "to": row.subscriber,
            "purpose": row.purpose,
            "served": "✓" if row.served else "later",
        }
        for row in _operations_of(component)
    ]
    return pd.DataFrame(rows).set_index("operation")


def spans(component: str | None = None) -> pd.DataFrame:
    """Return the spans of a component: kind, purpose, and the metrics that end with each."""
    import pandas as pd

    rows = [
        {
            "span": row.name,
            "kind": row.kind,
            "purpose": row.purpose,
            "counter": row.counter.name if row.counter else "",
            "duration": row.duration.name if row.duration else "",
        }
        for row in _spans_of(component)
    ]
    return pd.DataFrame(rows).set_index("span")


def metrics(component: str | None = None) -> pd.DataFrame:
    """Return the metrics of a component: instrument, unit, purpose."""
    import pandas as pd

    chosen: list[Metric] = list(METRICS) if component is None else _metrics_of(component)
    rows = [
        {"metric": row.name, "instrument": str(row.instrument), "unit": row.unit, "purpose": row.purpose}
        for row in chosen
    ]
    return pd.DataFrame(rows).set_index("metric")


def _metrics_of(component: str) -> list[Metric]:
    """A component's metrics are those named after it, and those that end with its spans."""
    found = _spans_of(component)
    families = {span.component for span in found}
    ended = {metric for span in found for metric in (span.counter, span.duration)}
    return [metric for metric in METRICS if metric.name.partition(".")[0] in families or metric in ended]


def _operations_of(component: str | None) -> list[Operation]:
    chosen = [row for row in OPERATIONS if component is None or row.component == component]
    if not chosen:
        known = ", ".join(dict.fromkeys(row.component for row in OPERATIONS))
        raise ConfigurationError(f"no component {component!r} in the catalogue; there are {known}")
    return chosen


def _spans_of(component: str | None) -> list[Span]:
    """A component's spans are named after the second token of its subjects: ``agents`` has ``agent.…``."""
    if component is None:
        return list(SPANS)
    family = _operations_of(component)[0].prefix.split(".")[1]
    return [span for span in SPANS if span.component == family]
