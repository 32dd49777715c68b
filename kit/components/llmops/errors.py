"""What the operation log refuses.

ComponentError
└── LLMOpsError
    ├── OperationRefused    a record that the log's pandera schema does not take; names the column
    └── ReportRefused       a usage report that cannot be built as asked
"""

from __future__ import annotations

from kit.errors import ComponentError


class LLMOpsError(ComponentError):
    """The operation log refused or failed."""

    retryable = False
    content_free = True  # messages are made of names, types and sizes only


class OperationRefused(LLMOpsError):
    """A record that the log does not take.

    Attributes:
        column: the column that broke its check.
        check: the check, e.g. ``greater_than_or_equal_to(0)``.
    """

    def __init__(self, operation_id: str, *, column: str, check: str) -> None:
        self.operation_id, self.column, self.check = operation_id, column, check
        super().__init__(f"operation {operation_id!r} is not logged: {column} breaks {check}")


class ReportRefused(LLMOpsError):
    """A usage report cannot be built as asked."""
