"""The catalogue's rows in other shapes: JSON, and a table for a terminal.

Each shape is derived from the rows and from nothing else.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from kit.catalogue import METRICS, OPERATIONS, SPANS, Operation

TENANT = "{tenant_id}"


def subject_pattern(row: Operation) -> str:
    """Return a row's subject as the specification writes it, e.g. ``ai.rag.queries.{tenant_id}``."""
    return f"{row.prefix}.{TENANT}"


def address_pattern(row: Operation) -> str | None:
    """Return the subject of one named receiver, where the row has any."""
    return f"{row.prefix}.{TENANT}.{{receiver}}" if row.addressed else None


def mode_text(row: Operation) -> str:
    """Return how a row travels: ``event``, ``event, stored``, ``request`` or ``job``."""
    return f"{row.mode}, stored" if row.stored else str(row.mode)


def as_json() -> dict[str, Any]:
    """Return every row as plain JSON: operations with what is derived from them, spans, metrics."""
    return {
        "operations": [_operation(row) for row in OPERATIONS],
        "spans": [asdict(row) for row in SPANS],
        "metrics": [asdict(row) for row in METRICS],
    }


def _operation(row: Operation) -> dict[str, Any]:
    body = asdict(row)
    body |= {"subject": subject_pattern(row), "address": address_pattern(row), "queue": row.queue, "stream": row.stream}
    body["send_span"], body["handle_span"] = row.send_span.name, row.handle_span.name
    if row.stream is None or row.mode != "job":
        body["policy"] = None
    if not row.stored:
        body["max_age"] = None
    return body


def message_text(row: Operation) -> str:
    """Return what is sent, and what comes back: ``rag_query → rag_result``."""
    return f"{row.message_type} → {row.result_type}" if row.result_type else row.message_type


def as_table(width: int = 120) -> str:
    """Return the operations as a table for a terminal, a block a component; what does not fit is cut."""
    cells = [_cells(row) for row in OPERATIONS]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    served = sum(row.served for row in OPERATIONS)
    lines = []
    for component in dict.fromkeys(row.component for row in OPERATIONS):
        lines.append(f"\n{component}")
        for row, texts in zip(OPERATIONS, cells, strict=True):
            if row.component == component:
                line = "  ".join(text.ljust(size) for text, size in zip(texts, widths, strict=True))
                lines.append(_cut(f"  {line}".rstrip(), width))
    head = f"{len(OPERATIONS)} operations, {served} served (●), {len(OPERATIONS) - served} not served yet (○)"
    return head + "\n" + "\n".join(lines) + "\n"


def _cells(row: Operation) -> list[str]:
    return ["●" if row.served else "○", subject_pattern(row), mode_text(row), message_text(row), row.purpose]


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"
