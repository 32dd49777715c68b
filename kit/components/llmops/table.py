"""The operation log: a LanceDB table in the tenant's own database, guarded by a pandera schema.

An operation is written once, whatever is replayed: rows are merged on ``operation_id``. Reading gives a DataFrame.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from kit import codec
from kit.components import KEEP_VERSIONS, commit, connect_database
from kit.components.llmops.errors import OperationRefused

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

TABLE = "llm_operations"
COMPACT_EVERY = 100  # batches; each leaves a small fragment and a version behind
TEXT = (
    "operation_id", "operation_type", "model", "provider", "status", "tenant_id", "currency", "price_source",
    "error_type", "request_id", "requested_model", "user_id", "agent_id", "session_id", "component", "prompt_version",
    "worker_id", "finish_reason", "trace_id", "span_id",
)  # fmt: skip
REQUIRED = ("operation_id", "operation_type", "model", "status", "tenant_id")
TOKENS = ("prompt", "completion", "total", "cached", "reasoning")
COUNTS = (*(f"tokens_{kind}" for kind in TOKENS), "attempts", "status_code")
NUMBERS = ("cost", "latency_ms", "time_to_first_token_ms", "queued_ms")
FLAGS = ("cached", "streamed", "validation_passed")


def schema() -> pa.Schema:
    """Return the table's Arrow schema."""
    import pyarrow as pa

    return pa.schema(
        [pa.field(name, pa.string(), nullable=name not in REQUIRED) for name in TEXT]
        + [pa.field(name, pa.int64()) for name in COUNTS]
        + [pa.field(name, pa.float64()) for name in NUMBERS]
        + [pa.field(name, pa.bool_()) for name in FLAGS]
        + [pa.field("timestamp", pa.timestamp("us", tz="UTC"), nullable=False), pa.field("metadata", pa.string())]
    )


def checks() -> Any:
    """Return the pandera schema of the log: types, ranges, and what must agree with what."""
    import pandera.pandas as pandera

    present = {name: pandera.Column(object, pandera.Check.str_length(min_value=1)) for name in REQUIRED}
    optional = {name: pandera.Column(object, nullable=True) for name in TEXT if name not in REQUIRED}
    counts = {name: pandera.Column("Int64", pandera.Check.ge(0), nullable=True) for name in COUNTS}
    numbers = {name: pandera.Column("Float64", pandera.Check.ge(0), nullable=True) for name in NUMBERS}
    flags = {name: pandera.Column("boolean", nullable=True) for name in FLAGS}
    columns = present | optional | counts | numbers | flags
    columns["status"] = pandera.Column(object, pandera.Check.isin(["success", "error"]))
    for name in ("tokens_prompt", "tokens_completion", "tokens_total", "latency_ms"):
        columns[name].nullable = False
    columns["timestamp"] = pandera.Column("datetime64[us, UTC]")
    columns["metadata"] = pandera.Column(object, nullable=True)
    priced = pandera.Check(lambda frame: frame["cost"].isna() | frame["currency"].notna(), name="currency_beside_cost")
    return pandera.DataFrameSchema(columns, checks=[priced], strict=True)


def row(operation: Mapping[str, Any]) -> dict[str, Any]:
    """Return one ``llm_operation`` as a row of the table.

    A cost without a currency is in USD, as LiteLLM's price list is.
    """
    tokens = operation["tokens"]
    flat: dict[str, Any] = {name: operation.get(name) for name in (*TEXT, *NUMBERS, *FLAGS, "attempts", "status_code")}
    flat.update({f"tokens_{kind}": tokens.get(kind) for kind in TOKENS})
    flat["timestamp"] = dt.datetime.fromisoformat(operation["timestamp"]).astimezone(dt.UTC)
    flat["metadata"] = codec.dumps(operation["metadata"]).decode() if operation.get("metadata") else None
    if flat["cost"] is not None:
        flat["cost"] = float(flat["cost"])
        flat["currency"] = flat["currency"] or "USD"
    flat["latency_ms"] = float(flat["latency_ms"])
    return flat


class OperationLog:
    """One tenant's log of operations.

    Attributes:
        tenant_id: whose log it is; a row of another tenant is refused.
    """

    def __init__(self, table: Any, tenant_id: str) -> None:
        self._table = table
        self._batches = 0
        self.tenant_id = tenant_id
        self._checks: Any = None

    @classmethod
    async def open(
        cls, tenant_id: str, uri: str | Path | None = None, *, storage_options: dict[str, str] | None = None
    ) -> Self:
        """Open a tenant's log, made when it is missing.

        Args:
            uri: folder or LanceDB URI that holds a database for each tenant; None: KIT_LANCEDB_URI, else
                ``.kit/lancedb`` in the working directory.
            storage_options: LanceDB's, for object storage.
        """
        connection = await connect_database(tenant_id, uri, storage_options=storage_options)
        return cls(await connection.create_table(TABLE, schema=schema(), exist_ok=True), tenant_id)

    def check(self, operations: Sequence[Mapping[str, Any]]) -> tuple[pa.Table, dict[int, OperationRefused]]:
        """Return what may be written, as an Arrow table, and the refusals of the rest, by their place.

        Raises:
            ValueError: pandera does not say which of the operations it does not take.
        """
        import pandas as pd
        import pandera.errors
        import pyarrow as pa

        if self._checks is None:
            self._checks = checks()
        rows: dict[int, dict[str, Any]] = {}
        refused: dict[int, OperationRefused] = {}
        for index, operation in enumerate(operations):
            try:
                rows[index] = flat = row(operation)
            except (ValueError, OverflowError):  # RFC 3339 has leap seconds, and moments before the year 1
                fault = OperationRefused(operation["operation_id"], column="timestamp", check="representable")
                refused[index] = fault
                continue
            if flat["tenant_id"] != self.tenant_id:
                check = f"equal_to({self.tenant_id})"
                refused[index] = OperationRefused(flat["operation_id"], column="tenant_id", check=check)
        frame = _typed(pd.DataFrame(list(rows.values()), columns=schema().names, index=list(rows)))
        try:
            self._checks.validate(frame, lazy=True)
        except pandera.errors.SchemaErrors as errors:
            for index, column, check in _faults(errors.failure_cases, list(rows)):
                fault = OperationRefused(rows[index]["operation_id"], column=column, check=check)
                refused.setdefault(index, fault)
        taken: dict[str, dict[str, Any]] = {}
        for index, flat in rows.items():
            if index not in refused:
                taken.setdefault(flat["operation_id"], flat)  # the first one stands, within a batch as across batches
        return pa.Table.from_pylist(list(taken.values()), schema=schema()), refused

    async def append(self, rows: pa.Table) -> list[str]:
        """Write rows that are not there yet and return their operation ids; an id that is there already stays as it is.

        Raises:
            OSError: the database cannot be written to.
        """
        from lancedb.expr import col

        if not rows.num_rows:
            return []
        ids: list[str] = rows.column("operation_id").to_pylist()
        found = await self._table.query().select(["operation_id"]).where(col("operation_id").isin(ids)).to_arrow()
        known = set(found.column("operation_id").to_pylist())
        merge = self._table.merge_insert("operation_id").when_not_matched_insert_all()
        await commit(self._table, partial(merge.execute, rows))
        self._batches += 1
        if self._batches % COMPACT_EVERY == 0:
            await self._table.optimize(cleanup_older_than=KEEP_VERSIONS)
        return [operation_id for operation_id in ids if operation_id not in known]

    async def frame(
        self, since: dt.datetime | None = None, until: dt.datetime | None = None, columns: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Return the operations from ``since`` up to, but not at, ``until``, the oldest first."""
        from lancedb.expr import col, lit

        query = self._table.query()
        bounds = []
        if since is not None:
            bounds.append(col("timestamp").gte(lit(since.astimezone(dt.UTC))))
        if until is not None:
            bounds.append(col("timestamp").lt(lit(until.astimezone(dt.UTC))))
        if bounds:
            query = query.where(bounds[0] if len(bounds) == 1 else bounds[0].and_(bounds[1]))
        if columns is not None:
            query = query.select(list(columns))
        found = await query.to_arrow()
        return await asyncio.to_thread(_sorted, found)

    async def count(self) -> int:
        """Return the number of operations in the log."""
        return int(await self._table.count_rows())

    def close(self) -> None:
        """Give the table's resources back."""
        self._table.close()


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Give nullable columns types that keep a missing number apart from NaN."""
    kinds: dict[str, Any] = dict.fromkeys(COUNTS, "Int64") | dict.fromkeys(NUMBERS, "Float64")
    kinds |= dict.fromkeys(FLAGS, "boolean") | dict.fromkeys((*TEXT, "metadata"), object)
    return frame.astype(kinds | {"timestamp": "datetime64[us, UTC]"})


def _faults(cases: pd.DataFrame, rows: Sequence[int]) -> list[tuple[int, str, str]]:
    """Return (row, column, check) for each failure case that pandera lists."""
    faults = []
    for case in cases.itertuples():
        column = str(case.column) if case.column in schema().names else "cost"
        unnamed = case.index is None or case.index != case.index
        if unnamed and len(rows) != 1:
            raise ValueError(f"one of {len(rows)} operations breaks {case.check}")
        faults.append((rows[0] if unnamed else int(case.index), column, str(case.check)))
    return faults


def _sorted(found: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = found.to_pandas()
    keys = [name for name in ("timestamp", "operation_id") if name in frame]
    if "operation_id" in frame:
        frame = frame.drop_duplicates("operation_id")  # two workers may have written one id at the same instant
    return frame.sort_values(keys, ignore_index=True) if keys else frame
