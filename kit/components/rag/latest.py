"""The latest message about each document that its rows do not tell of: that it was deleted, or sent again as it was.

Jobs overtake each other, and one whose worker died comes a second time, perhaps after days as a replayed dead letter.
Without a trace of what was deleted, such a message would bring the document back.

The table lies beside the collection's own, so that no search meets it. What LanceDB cannot do is to commit to both at
once. So a message is noted here first, then the rows are written, then the notes are read again: of two workers that
write at the same time, at least one sees the other's.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from kit import codec
from kit.components import KEEP_VERSIONS, commit
from kit.components.rag.filters import literal, of_documents

if TYPE_CHECKING:
    import pyarrow as pa

    from kit.components.rag.rows import Entry

KEEP_SECONDS = 60 * 86400.0  # twice as long as dead letters and stored events are kept

_AHEAD = 86400.0  # s that the server's clock may be ahead of ours


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """What the index knows of a document.

    Attributes:
        sha256: of its rows; None when it is deleted, or was never there.
        written_at: when the message was sent that its rows are of; sent_at: … the latest message about it.
        chunks: its passages that are in the table, old ones that are left over among them.
        left_over: whether rows of an older message are left, which another worker wrote at the same time.
    """

    sha256: str | None = None
    written_at: str = ""
    sent_at: str = ""
    chunks: int = 0
    left_over: bool = False


class Latest:
    """Notes of deletions and repetitions, by document.

    Args:
        table: LanceDB's.
    """

    def __init__(self, table: Any) -> None:
        self._table = table

    @classmethod
    async def open(cls, connection: Any, collection: str) -> Latest:
        """Open a collection's notes, made when they are missing."""
        import pyarrow as pa

        columns = {"document_id": pa.string(), "deleted": pa.bool_(), "sent_at": pa.string(), "noted_at": pa.float64()}
        name, schema = f"{collection}.latest", pa.schema(columns)
        return cls(await commit(connection, lambda: connection.create_table(name, schema=schema, exist_ok=True)))

    async def note(self, entries: Sequence[Entry]) -> None:
        """Keep when each document was deleted, or sent again as it was."""
        import pyarrow as pa

        if not entries:
            return
        rows = {
            "document_id": [entry.document_id for entry in entries],
            "deleted": [entry.sha256 is None for entry in entries],
            "sent_at": [entry.sent_at for entry in entries],
            "noted_at": [time.time()] * len(entries),
        }
        merge = self._table.merge_insert(["document_id", "deleted"]).when_not_matched_insert_all()
        merge.when_matched_update_all(where="target.sent_at < source.sent_at")
        made = pa.table(rows)
        await commit(self._table, lambda: merge.execute(made))

    async def of(self, document_ids: Iterable[str]) -> Mapping[bool, Mapping[str, str]]:
        """Return when documents were deleted (under True), and sent again (under False), as far as it is known."""
        columns = ["document_id", "deleted", "sent_at"]
        found = await self._table.query().where(of_documents(document_ids)).select(columns).to_list()
        noted: dict[bool, dict[str, str]] = {True: {}, False: {}}
        for row in found:  # two workers may each have put a row in: LanceDB knows no unique keys
            of_kind = noted[row["deleted"]]
            of_kind[row["document_id"]] = max(of_kind.get(row["document_id"], ""), row["sent_at"])
        return noted

    async def tidy(self) -> None:
        """Forget what is older than any message that may still come, and put small files together."""
        await commit(self._table, lambda: self._table.delete(f"noted_at < {time.time() - KEEP_SECONDS!r}"))
        await commit(self._table, lambda: self._table.optimize(cleanup_older_than=KEEP_VERSIONS))

    def close(self) -> None:
        """Release the table."""
        self._table.close()


def states_of(rows: pa.Table, noted: Mapping[bool, Mapping[str, str]]) -> dict[str, State]:
    """Return what rows, of ``document_id``, ``sha256`` and ``sent_at``, and notes tell of documents."""
    counted = rows.group_by(["document_id", "sha256", "sent_at"]).aggregate([([], "count_all")]).to_pylist()
    believable, states = codec.now(_AHEAD), dict[str, State]()
    for row in counted:
        row["sent_at"] = row["sent_at"] if row["sent_at"] <= believable else ""
    for row in sorted(counted, key=lambda row: row["sent_at"]):  # of a document's, the latest comes last
        known, at = states.get(row["document_id"], State()), row["sent_at"]
        states[row["document_id"]] = State(
            sha256=row["sha256"], written_at=at, sent_at=at, chunks=known.chunks + row["count_all"],
            left_over=known.chunks > 0,
        )  # fmt: skip
    for key, at in noted[True].items():
        known = states.get(key, State())
        if at >= known.sent_at:
            states[key] = State(sent_at=at, chunks=known.chunks, left_over=known.chunks > 0)
    for key, at in noted[False].items():
        known = states.get(key, State())
        states[key] = replace(known, sent_at=max(known.sent_at, at))
    return states


def is_news(entry: Entry, state: State) -> bool:
    """Say whether a message is to be followed: no later one is known, and it says what is not so yet."""
    if entry.sent_at < state.sent_at:
        return False
    return entry.sha256 is None or (entry.sha256 != state.sha256) is bool(entry.chunks)


def sent_before(operator: Literal["<", "<="], bounds: Mapping[str, str]) -> str:
    """Return the SQL of the condition that a passage is of an older message about its document than its bound."""
    parts = (
        f"(document_id = {literal(key)} AND (sent_at {operator} {literal(at)} OR sent_at > {beyond()}))"
        for key, at in bounds.items()
    )
    return " OR ".join(parts)


def beyond() -> str:
    """Return, as an SQL literal, when nothing can have been sent yet: senders' clocks were believed once."""
    return literal(codec.now(_AHEAD))
