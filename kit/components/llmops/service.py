"""The LLMOps service: every operation of the stored stream into the log, its cost against thresholds, reports."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit import codec
from kit.catalogue import LLMOPS_COST_TRACK, LLMOPS_OPERATIONS, LLMOPS_REPORTS
from kit.components import Service
from kit.components.llmops.costs import CostTracker, Threshold
from kit.components.llmops.errors import ReportRefused
from kit.components.llmops.reports import PERCENTILES, UsageReport, usage
from kit.components.llmops.table import OperationLog, row
from kit.errors import KitError
from kit.otel import semconv

if TYPE_CHECKING:
    import pandas as pd

    from kit.nats import Bus, Message

DURABLE = "llmops"
BATCH = 256  # operations written at once, at most
LINGER = 0.02  # seconds that a batch waits for company

logger = logging.getLogger(__name__)


async def serve(
    bus: Bus,
    *,
    uri: str | Path | None = None,
    thresholds: Iterable[Threshold | Mapping[str, Any] | float] | float = (),
    sweep_seconds: float = 30.0,
    storage_options: dict[str, str] | None = None,
) -> Service:
    """Write the tenant's operations to its log, watch its spend, answer LLMOPS_REPORTS.

    Args:
        uri: folder or LanceDB URI that holds a database for each tenant; None: KIT_LANCEDB_URI, else
            ``.kit/lancedb``.
        thresholds: of spend; a number is the tenant's, in USD a day.
        sweep_seconds: seconds between two recounts from the log, which see other workers' operations and notice that
            spend fell.
        storage_options: LanceDB's, for object storage.
    """
    log = await OperationLog.open(bus.tenant_id, uri, storage_options=storage_options)
    await asyncio.to_thread(log.check, [])  # loads pandera now, not while the first operations wait
    several = [thresholds] if isinstance(thresholds, int | float) else thresholds
    tracker = CostTracker(bus, log, [_threshold(given) for given in several])
    await tracker.start()
    writer = _Writer(bus, log, tracker)
    workers = [
        await bus.subscribe(LLMOPS_OPERATIONS, writer.log, durable=DURABLE, replay=True, concurrency=BATCH),
        await bus.serve(LLMOPS_REPORTS, _Reporter(bus, log).answer, concurrency=4),
    ]
    sweeping = asyncio.ensure_future(_sweep(bus, tracker, sweep_seconds))

    async def end() -> None:
        sweeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sweeping
        await writer.close()
        log.close()

    return Service(workers, end)


async def report(
    bus: Bus,
    group_by: Sequence[str] = ("model",),
    *,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
    timeout: float = 10.0,
    **fields: Any,
) -> UsageReport:
    """Ask LLMOps for a usage report.

    Args:
        group_by: any of tenant, model, provider, day, hour, operation_type, status, user, agent, component.
        fields: further fields of the ``usage_report_request``: ``models``, ``currency``, ``percentiles``, ``limit`` …

    Raises:
        RemoteError: the report cannot be built as asked.
    """
    data: dict[str, Any] = {
        "request_id": secrets.token_hex(8),
        "tenant_id": bus.tenant_id,
        "timestamp": codec.now(),
        "group_by": list(group_by),
    }
    bounds = {"since": since, "until": until}
    data |= {name: _text(moment) for name, moment in bounds.items() if moment is not None}
    return UsageReport((await bus.request(LLMOPS_REPORTS, data | fields, timeout=timeout)).data)


async def operations(
    tenants: Bus | str | Sequence[str],
    *,
    uri: str | Path | None = None,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
    storage_options: dict[str, str] | None = None,
) -> pd.DataFrame:
    """Return logged operations, the oldest first: a bus's tenant's, or those of tenants whose databases are at hand.

    Args:
        tenants: a bus, a tenant's id, or several.
        uri: as for ``serve``, as ``storage_options``.
    """
    import pandas as pd

    named = [tenants] if isinstance(tenants, str) else tenants
    ids = list(named) if isinstance(named, Sequence) else [named.tenant_id]
    frames = []
    for tenant_id in ids:
        log = await OperationLog.open(tenant_id, uri, storage_options=storage_options)
        frames.append(await log.frame(since, until))
        log.close()
    return frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True).sort_values("timestamp")


class _Writer:
    """Takes operations one by one and writes them in batches; each is acknowledged once it is on disk."""

    def __init__(self, bus: Bus, log: OperationLog, tracker: CostTracker) -> None:
        self._telemetry, self._log, self._tracker = bus.telemetry, log, tracker
        self._waiting: list[tuple[dict[str, Any], asyncio.Future[bool]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def log(self, message: Message) -> None:
        """Write one operation, and add its cost unless it was there already.

        Raises:
            OperationRefused: pandera does not take it.
            OSError: the log cannot be written to; the operation will come again.
        """
        operation = message.data
        new = await self._write(operation)
        self._telemetry.annotate(
            {
                semconv.MODEL: operation["model"],
                semconv.OPERATION_TYPE: operation["operation_type"],
                semconv.OPERATION_REPEATED: not new,
            }
        )
        if not new:
            return
        flat = row(operation)
        attributes = {semconv.MODEL: flat["model"]}
        if flat["cost"] is not None:
            attributes |= {semconv.COST_AMOUNT: flat["cost"], semconv.COST_CURRENCY: flat["currency"]}
        with self._telemetry.operation(LLMOPS_COST_TRACK, attributes) as tracking:
            tracking.set(semconv.ALERTS_RAISED, await self._tracker.judge(flat))

    async def close(self) -> None:
        """Wait for what is being written."""
        if self._writing is not None:
            await self._writing

    async def _write(self, operation: dict[str, Any]) -> bool:
        """Return whether the operation is new, once its batch is written."""
        written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((operation, written))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.ensure_future(self._flush())
        return await written

    async def _flush(self) -> None:
        await asyncio.sleep(LINGER)
        while self._waiting:
            batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
            await self._write_batch(batch)

    async def _write_batch(self, batch: list[tuple[dict[str, Any], asyncio.Future[bool]]]) -> None:
        """Write a batch; halved, where not the database but one of its operations fails it."""
        try:
            rows, refused = await asyncio.to_thread(self._log.check, [operation for operation, _ in batch])
            async with self._tracker.counting:
                new = set(await self._log.append(rows))
                self._tracker.count(flat for flat in rows.to_pylist() if flat["operation_id"] in new)
        except Exception as error:  # noqa: BLE001 - each operation's own handler raises it again
            if len(batch) > 1 and not isinstance(error, OSError | KitError):
                half = len(batch) // 2
                await self._write_batch(batch[:half])
                await self._write_batch(batch[half:])
                return
            for _, written in batch:
                if not written.done():
                    written.set_exception(error)
            return
        for index, (operation, written) in enumerate(batch):
            if index in refused:
                logger.warning("%s", refused[index])
            if written.done():
                continue  # its handler was cancelled meanwhile
            operation_id = operation["operation_id"]
            if index in refused:
                written.set_exception(refused[index])
            else:
                written.set_result(operation_id in new)
                new.discard(operation_id)


class _Reporter:
    """Answers requests for usage reports."""

    def __init__(self, bus: Bus, log: OperationLog) -> None:
        self._telemetry, self._tenant_id, self._log = bus.telemetry, bus.tenant_id, log

    async def answer(self, message: Message) -> dict[str, Any]:
        """Build the report from the log."""
        started, data = time.perf_counter(), message.data
        since, until = _moment(data.get("since")), _moment(data.get("until"))
        if since is not None and until is not None and until <= since:
            raise ReportRefused("a report's `until` comes after its `since`")
        frame = await self._log.frame(since, until)
        for field, column in (("models", "model"), ("operation_types", "operation_type")):
            if field in data:
                frame = frame[frame[column].isin(data[field])]
        built = await asyncio.to_thread(
            usage,
            frame,
            data.get("group_by", ["model"]),
            percentiles=data.get("percentiles", PERCENTILES),
            currency=data.get("currency"),
            limit=data.get("limit"),
        )
        self._telemetry.annotate({semconv.RESULTS_COUNT: len(built["rows"])})
        bounds = {name: data[name] for name in ("since", "until") if name in data}
        answered = {"request_id": data["request_id"], "tenant_id": self._tenant_id, "timestamp": codec.now()}
        return answered | bounds | built | {"duration": time.perf_counter() - started}


async def _sweep(bus: Bus, tracker: CostTracker, seconds: float) -> None:
    """Recount spend from time to time."""
    log = bus.telemetry.logger("kit.llmops")
    while True:
        await asyncio.sleep(seconds)
        try:
            await tracker.sweep()
        except (KitError, OSError) as error:
            log.warning("spend was not recounted: %s; the next recount is in %g s", type(error).__name__, seconds)


def _threshold(given: Threshold | Mapping[str, Any] | float) -> Threshold:
    if isinstance(given, Threshold):
        return given
    return Threshold(**given) if isinstance(given, Mapping) else Threshold(limit=float(given))


def _moment(text: str | None) -> dt.datetime | None:
    return None if text is None else dt.datetime.fromisoformat(text)


def _text(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
