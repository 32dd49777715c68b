"""LLMOps: a log of every model call, cost against thresholds, usage reports.

await lab.serve("llmops", thresholds=[5.0])                     # the log, and an alert at 5 USD a day
usage = await llmops.report(bus, ["day", "model"])              # over the bus
usage.frame; usage.figure("cost")
frame = await llmops.operations(bus)                            # the log itself, where its database is at hand
"""

from kit.components.llmops.costs import CostTracker, Threshold
from kit.components.llmops.errors import LLMOpsError, OperationRefused, ReportRefused
from kit.components.llmops.reports import UsageReport, usage
from kit.components.llmops.service import operations, report, serve
from kit.components.llmops.table import OperationLog

__all__ = [
    "CostTracker",
    "LLMOpsError",
    "OperationLog",
    "OperationRefused",
    "ReportRefused",
    "Threshold",
    "UsageReport",
    "operations",
    "report",
    "serve",
    "usage",
]
