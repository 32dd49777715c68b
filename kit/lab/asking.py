"""Ask a question of a corpus from the command line: index what is new, ask, show the answer with its sources."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from kit.catalogue import API_QUERIES
from kit.errors import ConfigurationError, NoResponders, StoreInUse
from kit.lab.project import project_root
from kit.lab.quantities import elapsed, shown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from kit.components.rag import Ingestion
    from kit.lab.session import Lab

UNSUPPORTED = "The documents do not support an answer"
NEEDED = ("gateway", "rag", "document_qa")
TIMEOUT = 120.0  # seconds for an answer; a large local model takes its time
_TOLD = 10  # of the documents that were not read, by name
_SILENCE = 5.0  # seconds, before somebody who waits is told so


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked, of which documents, and how.

    Attributes:
        corpus: a folder or a file; None: the project's own, or on a cluster the tenant's default collection there.
        store: where the index is kept; of no meaning on a cluster.
    """

    text: str
    corpus: Path | None = None
    tenant_id: str = "acme"
    model: str | None = None
    top_k: int = 5
    store: Path = Path(".kit")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back.

    Attributes:
        data: the answer's message: ``answer``, ``supported``, ``sources`` …
        trace: the question's trace as text, empty unless it was asked for.
    """

    data: dict[str, Any]
    trace: str = ""


async def ask(question: Question, *, trace: bool = False, progress: TextIO = sys.stderr) -> Answer:
    """Index the corpus where it is new, ask, and return the answer.

    Raises:
        ConfigurationError: there is no such corpus, nothing in it can be read, or with NATS_URL nobody answers there.
    """
    if not question.text.strip():
        raise ConfigurationError("there is no question")
    on_cluster = bool(os.environ.get("NATS_URL"))
    corpus = question.corpus or (None if on_cluster else default_corpus())
    if corpus is not None and not corpus.exists():
        raise ConfigurationError(f"there is no {corpus}: say where the documents are by --corpus")
    async with _on_cluster(question) if on_cluster else _served(question, progress) as lab:
        if corpus is not None:
            await _index(lab, corpus, None if on_cluster else question.store, progress)
        return await _asked(lab, question, None if corpus is None else collection(corpus), trace, progress)


def collection(corpus: Path) -> str:
    """Return the corpus' own collection, so that two corpora never mix: its name, and where it is."""
    where = hashlib.sha256(os.fsencode(corpus.resolve())).hexdigest()[:8]
    slug = re.sub(r"[^a-z0-9]+", "-", corpus.stem.lower()).strip("-")[:40] or "corpus"
    return f"{slug}-{where}"


@asynccontextmanager
async def _on_cluster(question: Question) -> AsyncIterator[Lab]:
    """A lab at NATS_URL, where workers are expected."""
    from kit.lab.session import start

    async with await start(question.tenant_id) as lab:
        try:
            yield lab
        except NoResponders as error:
            needed = f"kit worker {' '.join(NEEDED)} --tenant {question.tenant_id}"
            raise ConfigurationError(f"{error}; there: {needed}") from error


@asynccontextmanager
async def _served(question: Question, progress: TextIO) -> AsyncIterator[Lab]:
    """A lab on the kept store, with what answers; while another process has the store, on a temporary one."""
    from kit.lab.session import start

    try:
        lab = await start(question.tenant_id, store=question.store / "nats")
    except StoreInUse:
        lab = await start(question.tenant_id)
    line = _Line(progress)
    async with lab:
        line.show(f"starting {', '.join(NEEDED)} …")
        own = {} if question.model is None else {"model": question.model}  # named by the operator, so let through
        await lab.serve(*NEEDED, uri=question.store / "lancedb", **own)
        line.end()
        yield lab


# --- indexing ---------------------------------------------------------------------------------------------------


async def _index(lab: Lab, corpus: Path, store: Path | None, progress: TextIO) -> None:
    """Index the corpus, unless a mark in the store says that it is there as it is now."""
    now, mark = _fingerprint(corpus), None
    if store is not None:
        mark = store / "corpora" / f"{lab.tenant_id}-{collection(corpus)}.json"
        if mark.is_file() and (store / "lancedb").is_dir() and json.loads(mark.read_text()) == now:
            return
    from kit.components import rag

    line = _Line(progress)
    into: dict[str, Any] = {"collection": collection(corpus), "progress": line.documents}
    if corpus.suffix in (".jsonl", ".ndjson"):
        done = await rag.ingest_jsonl(lab.bus, corpus, **into)
    else:
        done = await rag.ingest_folder(lab.bus, corpus, **into)
    read = [status for status in done.statuses if status["status"] != "failed"]
    line.end(f"indexed {done.chunks} passages of {len(read)} documents in {elapsed(done.seconds)}")
    progress.writelines(_unread(done))
    if not read:
        raise ConfigurationError(f"nothing in {corpus} can be read")
    # What cannot be read today cannot be read tomorrow; what failed otherwise is tried again by the next question.
    if mark is not None and not any(status["error"]["retryable"] for status in done.statuses if "error" in status):
        from kit.nats.config import private_folder

        private_folder(mark.parent)
        mark.write_text(json.dumps(now))


def _unread(done: Ingestion) -> Iterator[str]:
    """A line for each document that was not read, or only in part, and for each file of an unsupported type."""
    lines = [f"not read: {status['error']['message']}" for status in done.statuses if "error" in status]
    lines += [f"{document_id}: {note}" for document_id, notes in done.notes.items() for note in notes]
    lines += [f"not read: {name}: no reader for this type of file" for name in done.skipped]
    yield from (f"  {shown(line, line=True)}\n" for line in lines[:_TOLD])
    if len(lines) > _TOLD:
        yield f"  … and {len(lines) - _TOLD} more\n"


def _fingerprint(corpus: Path) -> dict[str, Any]:
    """What tells one state of a corpus from another without reading it: names, sizes, times of change."""
    digest, count = hashlib.sha256(), 0
    for path in sorted(corpus.rglob("*")) if corpus.is_dir() else [corpus]:
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(corpus).parts):
            facts, count = path.stat(), count + 1
            digest.update(os.fsencode(path.relative_to(corpus)) + f"\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
    return {"corpus": str(corpus.resolve()), "files": count, "state": digest.hexdigest()}


class _Line:
    """A line of progress that moves in a terminal; in a log, nothing but what it ends with."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._moves, self._width = out, out.isatty(), 0

    def show(self, text: str) -> None:
        """Show the text in place of the one before."""
        if self._moves:
            self._out.write(f"\r{text:<{self._width}}")
            self._out.flush()
            self._width = len(text)

    def documents(self, state: Any) -> None:
        """Show how many documents are indexed."""
        self.show(f"indexing {state.done} of {state.total} documents")

    def end(self, text: str = "") -> None:
        """Leave this text; none leaves nothing."""
        self.show("")
        self._out.write(("\r" if self._moves else "") + (f"{text}\n" if text else ""))
        self._out.flush()


# --- asking -----------------------------------------------------------------------------------------------------


async def _asked(lab: Lab, question: Question, within: str | None, trace: bool, progress: TextIO) -> Answer:
    from kit.components import document_qa

    parameters: dict[str, Any] = {"top_k": question.top_k, **({"model": question.model} if question.model else {})}
    patience = f"still waiting for an answer, for at most {TIMEOUT:.0f} s\n"
    reminder = asyncio.get_running_loop().call_later(_SILENCE, progress.write, patience)
    try:
        data = await document_qa.ask(
            lab.bus, question.text, mode="rag", collection=within, timeout=TIMEOUT, **parameters
        )
    finally:
        reminder.cancel()
    return Answer(data=data, trace=_trace(lab) if trace else "")


def _trace(lab: Lab) -> str:
    """The trace that began with the question."""
    spans = lab.spans()
    found = spans[spans["name"] == API_QUERIES.send_span.name]
    return str(lab.trace(str(found.iloc[-1]["trace_id"]))) if len(found) else "nothing was recorded"


# --- showing ----------------------------------------------------------------------------------------------------


def as_text(answer: Answer, width: int = 100) -> str:
    """Return an answer for a terminal: the answer, its numbered sources, what it took."""
    data = answer.data
    blocks = []
    if data["supported"] and data["answer"]:
        blocks.append("\n".join(textwrap.fill(line, width) for line in data["answer"].splitlines()))
        blocks.append("Sources\n" + "\n".join(_sources(data["sources"], width, cited=True)))
    else:
        reason = (data.get("reason") or "").rstrip(".")
        more = f" ({reason})" if reason and reason.lower() not in UNSUPPORTED.lower() else ""
        blocks.append(f"{UNSUPPORTED}{more}.")
        if data["sources"]:
            blocks.append("Closest passages\n" + "\n".join(_sources(data["sources"][:3], width, cited=False)))
    blocks.append(_footer(data))
    if answer.trace:
        blocks.append(answer.trace)
    return shown("\n\n".join(blocks)) + "\n"


def _sources(sources: list[dict[str, Any]], width: int, *, cited: bool) -> Iterator[str]:
    """Each source with its number, its name, where it is from, and the words that support the answer."""
    chosen = [source for source in sources if not cited or source.get("cited", True)]
    for place, source in enumerate(chosen or sources, start=1):
        number = source.get("citation") or source.get("rank") or place
        yield f"  [{number}] {_title(source)}"
        if source.get("source"):
            yield f"      {shown(source['source'], line=True)}"
        quote = source.get("quote") or source.get("content")
        if quote:
            yield textwrap.indent(textwrap.shorten(quote, 2 * width, placeholder=" …"), "      ")


def _title(source: dict[str, Any]) -> str:
    metadata = source.get("metadata") or {}
    title = source.get("title") or source.get("heading") or metadata.get("question")
    return shown(f"{title} ({source['document_id']})" if title else source["document_id"], line=True)


def _footer(data: dict[str, Any]) -> str:
    facts = data.get("metadata") or {}
    parts = [f"answered in {elapsed(data['duration'])}" if "duration" in data else "answered"]
    parts += [str(facts["model"])] if facts.get("model") else []
    parts += [f"cost {facts['cost']:.6f} {facts.get('currency', '')}".strip()] if facts.get("cost") else []
    return " · ".join(parts)


def default_corpus() -> Path:
    """Return the corpus that comes with the project."""
    return project_root() / "data" / "python_faq.jsonl"
