"""``kit dead-letters``: jobs that failed for good, and another try for them."""

from __future__ import annotations

import argparse
import json
from typing import Any

from kit.lab.cli.console import Commands, command, say
from kit.lab.quantities import shown

_DETAILS = """\
  kit dead-letters RAG_INGEST                   what died, and why
  kit dead-letters RAG_INGEST --replay          all of them once more
  kit dead-letters RAG_INGEST --replay ID ID    these

The operation is a row of `kit catalogue --json` with mode job; the server is NATS_URL's.
"""


def configure(commands: Commands) -> None:
    """Add the command."""
    summary = "list jobs that failed for good, and replay them"
    parser = command(commands, "dead-letters", _run, summary=summary, details=_DETAILS)
    parser.add_argument("operation", metavar="OPERATION", help="a job's row of the catalogue, e.g. RAG_INGEST")
    parser.add_argument("--replay", nargs="*", metavar="ID", help="enqueue again: these, or all")
    parser.add_argument("--tenant", default="acme", metavar="ID", help="whose jobs (acme)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def _run(chosen: argparse.Namespace) -> int:
    import asyncio

    return asyncio.run(_handle(chosen))


async def _handle(chosen: argparse.Namespace) -> int:
    from kit.lab.session import attach

    row = _row(chosen.operation)
    async with attach(chosen.tenant) as lab:
        if chosen.replay is not None:
            count = await lab.bus.replay(row, chosen.replay or None)
            say(f"{count} job(s) enqueued again")
            return 0
        letters = await lab.bus.dead_letters(row)
        for letter in letters:
            say(json.dumps(_plain(letter)) if chosen.json else _line(letter))
        if not chosen.json:
            say(f"{len(letters)} dead letter(s) of {row.name} for {chosen.tenant}")
    return 0


def _row(name: str) -> Any:
    from kit.catalogue import OPERATIONS, Mode
    from kit.errors import ConfigurationError

    jobs = {row.name: row for row in OPERATIONS if row.mode is Mode.JOB}
    if name.upper() not in jobs:
        raise ConfigurationError(f"{name!r} is no job; jobs are {', '.join(jobs)}")
    return jobs[name.upper()]


_SHOWN = ("message_id", "subject", "error_type", "detail", "reason", "attempts", "first_seen", "failed_at", "path")


def _plain(letter: Any) -> dict[str, Any]:
    """A dead letter without what was sent: content is nobody's business in a terminal."""
    return {"operation": letter.operation.name, **{name: getattr(letter, name) for name in _SHOWN}}


def _line(letter: Any) -> str:
    tries = f"{letter.attempts} attempt(s), {letter.reason}"
    return shown(f"{letter.message_id}  {letter.failed_at}  {tries}  {letter.error_type}: {letter.detail}", line=True)
