"""Compare executed notebooks with their committed references, by nbval in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kit.errors import ReportError
from kit.lab.report.notebooks import read
from kit.lab.report.outcome import Mismatch, Outcome

SANITIZE = "sanitize.cfg"  # beside the notebooks; what nbval replaces in outputs before it compares


async def compare(outcomes: Sequence[Outcome]) -> None:
    """Set each outcome's comparison and mismatches.

    Failed runs are left alone. Runs with parameters other than the notebook's own are not comparable. A reference
    without outputs is said to be none, because nbval would find nothing wrong with it.
    """
    waiting = []
    for outcome in outcomes:
        if outcome.failure is not None:
            continue
        if outcome.parameters:
            outcome.comparison = "other parameters"
        elif not has_outputs(outcome.source):
            outcome.comparison = "no reference"
        else:
            waiting.append(outcome)
    if waiting:
        found = await _replayed(waiting)
        for outcome in waiting:
            outcome.mismatches = found.get(outcome.name, [])
            outcome.comparison = "differs" if outcome.mismatches else "same"


def has_outputs(path: Path) -> bool:
    """Return whether a notebook was executed before it was committed: nbval compares nothing without counts."""
    code = [cell for cell in read(path).cells if cell.cell_type == "code" and cell.source.strip()]
    return all(cell.execution_count is not None for cell in code)


async def _replayed(outcomes: Sequence[Outcome]) -> dict[str, list[Mismatch]]:
    """Run nbval over all of them at once; return the cells that differ, by notebook."""
    with tempfile.TemporaryDirectory(prefix="kit-compare-") as scratch:
        results = Path(scratch) / "results.json"
        process = await asyncio.create_subprocess_exec(
            *_command(outcomes, results),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""},
        )
        output, _ = await process.communicate()
        if process.returncode not in (0, 1) or not results.is_file():
            raise ReportError(f"nbval could not compare the notebooks:\n{output.decode(errors='replace')[-4000:]}")
        cells = json.loads(results.read_text())
    found: dict[str, list[Mismatch]] = {}
    for cell in cells:
        if cell["outcome"] == "failed":
            mismatch = Mismatch(cell=cell["cell"], detail=_uncoloured(cell["detail"]))
            found.setdefault(cell["notebook"], []).append(mismatch)
    return found


def _command(outcomes: Sequence[Outcome], results: Path) -> list[str]:
    folder = outcomes[0].source.parent
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, f"--rootdir={folder}", "--noconftest"]
    command += ["--color=no", "-p", "no:cacheprovider", "-p", "nbval.plugin", "-p", "kit.lab.report.replay"]
    if (folder / SANITIZE).is_file():
        command.append(f"--nbval-sanitize-with={folder / SANITIZE}")
    command += [f"--kit-executed={outcomes[0].executed.parent}", f"--kit-results={results}"]
    return command + [str(outcome.source) for outcome in outcomes]


def _uncoloured(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text).strip()
