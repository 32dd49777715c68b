"""From notebooks to a report: execute, compare, render, sum up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

from kit.errors import ReportError
from kit.lab import readme
from kit.lab.baseline import FILE, Change, changes
from kit.lab.environment import environment
from kit.lab.project import REPORTS_VARIABLE, project_root
from kit.lab.quantities import elapsed
from kit.lab.records import collect
from kit.lab.report import notebooks
from kit.lab.report.compare import compare
from kit.lab.report.executor import Executor
from kit.lab.report.figures import figures
from kit.lab.report.outcome import Failure, Mismatch, Outcome
from kit.lab.report.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to run, and how.

    Attributes:
        folder: where the notebooks are; output: where the report goes.
        only: patterns; a notebook whose name contains or matches one is run.
        parameters: values as text, by name.
        jobs: notebooks run at the same time; benchmarks always run alone.
        timeout: seconds that one cell may take.
        check: whether outputs are compared with the committed ones.
        update: write outputs back: ``differing`` notebooks, ``all``, or none.
        run: execute; else render again what was executed last.
    """

    folder: Path
    output: Path
    only: tuple[str, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    jobs: int = 2
    timeout: float = 600.0
    check: bool = True
    update: Literal["", "differing", "all"] = ""
    run: bool = True


@dataclass(frozen=True, kw_only=True)
class Report:
    """A finished report.

    Attributes:
        outcomes: of this run; earlier: notebooks that were not part of it, as an earlier run left them.
    """

    outcomes: list[Outcome]
    earlier: list[Outcome]
    seconds: float
    environment: dict[str, Any]
    index: Path
    command: str
    changes: list[Change] = field(default_factory=list)

    @property
    def worse(self) -> list[Change]:
        """Return the ratios that are worse than the committed baseline by more than the noise."""
        return [change for change in self.changes if change.state == "worse"]

    @property
    def good(self) -> bool:
        """Return whether every notebook ran, matched, met its targets, and no ratio got worse."""
        return all(outcome.good for outcome in self.outcomes) and not self.worse


def run_report(options: Options, out: TextIO | None = None, *, command: str = "kit report") -> Report:
    """Run the notebooks and write the report.

    Raises:
        ReportError: no notebooks, or a parameter that none of them has.
    """
    return asyncio.run(_run(options, out or sys.stdout, command))


async def _run(options: Options, out: TextIO, command: str) -> Report:
    began = time.monotonic()
    paths = notebooks.find(options.folder, options.only)
    parameters = notebooks.parameters_for(paths, options.parameters)
    outcomes = [_outcome(path, options, parameters[path]) for path in paths]
    progress = Progress(out, total=len(outcomes))
    (options.output / "executed").mkdir(parents=True, exist_ok=True)
    if options.run:
        progress.note(f"executing {len(outcomes)} notebook(s), {options.jobs} at a time")
        await _execute(outcomes, options, progress)
    else:
        for outcome in outcomes:
            _recall(outcome, options)
            outcome.comparison, outcome.updated, outcome.mismatches = "not compared", False, []
    for outcome in outcomes:
        _read(outcome)
    if options.check or options.update:
        progress.note("comparing their outputs with the committed ones")
        await compare(outcomes)
        _tell_mismatches(outcomes, options, progress)
    if options.update:
        _update(outcomes, options, progress)
        if options.folder.resolve() == project_root() / "notebooks":
            readme.fill(project_root() / "README.md")
    return _render(outcomes, options, progress, command=command, began=began)


def _render(outcomes: list[Outcome], options: Options, progress: Progress, *, command: str, began: float) -> Report:
    from kit.lab.report.index import write_index
    from kit.lab.report.render import write_page

    progress.note("rendering")
    around = environment()
    for outcome in outcomes:
        write_page(outcome)
        _write_json(outcome, options, around)
    report = Report(
        outcomes=outcomes,
        earlier=_earlier(outcomes, options),
        seconds=time.monotonic() - began,
        environment=around,
        index=options.output / "index.html",
        command=command,
        changes=_changes(outcomes, options),
    )
    write_index(report)
    _sum_up(report, progress)
    return report


def _changes(outcomes: list[Outcome], options: Options) -> list[Change]:
    """Return the ratios of this run beside the baseline; runs with other parameters are not comparable."""
    around = environment()
    bodies = [
        {"notebook": each.name, "records": each.records, "environment": around}
        for each in outcomes
        if not each.parameters
    ]
    here = options.output if (options.output / FILE).is_file() else project_root() / "reports"
    return changes(bodies, here, history=True)


def _outcome(path: Path, options: Options, parameters: dict[str, Any]) -> Outcome:
    notebook = notebooks.read(path)
    title, question = notebooks.headings(notebook)
    return Outcome(
        name=path.stem,
        source=path,
        executed=options.output / "executed" / path.name,
        html=options.output / f"{path.stem}.html",
        parameters=parameters,
        title=title or path.stem,
        question=question,
    )


async def _execute(outcomes: list[Outcome], options: Options, progress: Progress) -> None:
    """Run what may run side by side, several at a time; then, one by one, what must have the machine to itself."""
    alone = [outcome for outcome in outcomes if notebooks.runs_alone(notebooks.read(outcome.source), outcome.name)]
    together = [outcome for outcome in outcomes if outcome not in alone]
    variables = {REPORTS_VARIABLE: str(options.output.resolve()), "PYTHONHASHSEED": "0"}
    logs = options.output / "executed"
    jobs = max(1, min(options.jobs, len(together) or 1))
    executors = [Executor(logs / f"executor-{number}.log", variables) for number in range(1, jobs + 1)]
    began = time.monotonic()
    ticking = asyncio.create_task(_tick(progress))
    try:
        queue = list(reversed(together))
        await asyncio.gather(*(_drain(queue, executor, options, progress, began) for executor in executors))
        await _drain(list(reversed(alone)), executors[0], options, progress, began)
    finally:
        ticking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ticking
        await asyncio.gather(*(executor.stop() for executor in executors))


async def _tick(progress: Progress) -> None:
    while True:
        await asyncio.sleep(1.0)
        progress.tick()


async def _drain(queue: list[Outcome], executor: Executor, options: Options, progress: Progress, began: float) -> None:
    """Let one executor take notebooks until there are none left."""
    while queue:
        outcome = queue.pop()
        outcome.started = time.monotonic() - began
        progress.started(outcome.name)
        job = {
            "input": str(outcome.source.resolve()),
            "output": str(outcome.executed.resolve()),
            "parameters": outcome.parameters,
            "kernel": notebooks.kernel_name(notebooks.read(outcome.source)),
            "timeout": options.timeout,
            "cwd": str(outcome.source.parent.resolve()),
        }
        outcome.executed.unlink(missing_ok=True)
        watch = _Watch(outcome.name, progress)
        try:
            answer = await executor.run(job, watch)
        except ReportError as fault:
            died = {"error": "ExecutorDied", "message": str(fault), "cell": watch.cell}
            answer = {"seconds": time.monotonic() - began - outcome.started, "failure": died}
        outcome.seconds = answer["seconds"]
        outcome.failure = Failure(**answer["failure"]) if answer["failure"] else None
        _settle(outcome)
        progress.finished(outcome)


class _Watch:
    """Takes a notebook's events: which cell it is at."""

    def __init__(self, name: str, progress: Progress) -> None:
        self._name, self._progress = name, progress
        self.cell: int | None = None

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "cell":
            self.cell = event["cell"]
            self._progress.cell(self._name, event["cell"], event["of"])


def _settle(outcome: Outcome) -> None:
    """Drop papermill's own cells from the executed notebook, and count the cells that ran."""
    if not outcome.executed.is_file():
        notebooks.write(notebooks.read(outcome.source), outcome.executed)
    executed = notebooks.read(outcome.executed)
    injected = [cell for cell in executed.cells if notebooks.INJECTED in cell.metadata.get("tags", [])]
    if not injected:
        notebooks.without_machinery(executed)
    else:  # parameters that were given stay in sight
        executed.cells = [cell for cell in executed.cells if notebooks.MARKER not in cell.metadata.get("tags", [])]
    outcome.cells = sum(cell.get("execution_count") is not None for cell in executed.cells)
    notebooks.write(executed, outcome.executed)


def _earlier(outcomes: list[Outcome], options: Options) -> list[Outcome]:
    """Return the notebooks that this run left out and an earlier one rendered: the front page shows them too."""
    now, found = {outcome.name for outcome in outcomes}, []
    for path in notebooks.find(options.folder):
        if path.stem not in now and (options.output / f"{path.stem}.html").is_file():
            with contextlib.suppress(ReportError):  # what an older version left is not shown
                outcome = _outcome(path, options, {})
                _recall(outcome, options)
                _read(outcome)
                found.append(outcome)
    return found


def _recall(outcome: Outcome, options: Options) -> None:
    """Take a notebook's run from the files that the last report left.

    Raises:
        ReportError: it was not run yet.
    """
    path = options.output / f"{outcome.name}.json"
    if not (path.is_file() and outcome.executed.is_file()):
        raise ReportError(f"{outcome.name} was not executed yet into {options.output}: run without --no-run first")
    try:
        kept = json.loads(path.read_text())
        outcome.parameters, outcome.seconds, outcome.started = kept["parameters"], kept["seconds"], kept["started"]
        outcome.failure = Failure(**kept["failure"]) if kept["failure"] else None
        outcome.comparison, outcome.updated = kept["comparison"], kept["updated"]
        outcome.mismatches = [Mismatch(**mismatch) for mismatch in kept["mismatches"]]
    except (KeyError, TypeError, ValueError) as fault:
        raise ReportError(f"{path} was not written by this version: run without --no-run first") from fault
    _settle(outcome)


def _read(outcome: Outcome) -> None:
    executed = notebooks.read(outcome.executed)
    outcome.records = collect(executed)
    outcome.figures = figures(executed)


def _tell_mismatches(outcomes: Iterable[Outcome], options: Options, progress: Progress) -> None:
    for outcome in outcomes:
        if outcome.comparison == "no reference" and not options.update:
            progress.note(f"  ✗ {outcome.name}: no reference outputs; `kit report --update` writes them")
        if outcome.comparison == "differs":
            progress.note(f"  ≠ {outcome.name}: {len(outcome.mismatches)} cell(s) differ")
            for mismatch in outcome.mismatches[:3] if not options.update else ():
                lines = mismatch.detail.splitlines()
                progress.note("\n".join("      " + line for line in lines[:40]))


def _update(outcomes: Iterable[Outcome], options: Options, progress: Progress) -> None:
    """Write executed outputs back as the reference, where they differ (or everywhere), never those of a failed run."""
    for outcome in outcomes:
        stale = outcome.comparison in ("differs", "no reference")
        if outcome.failure is None and not outcome.parameters and (stale or options.update == "all"):
            executed = notebooks.for_commit(notebooks.read(outcome.executed), project_root())
            notebooks.write(executed, outcome.source)
            outcome.updated = True
            progress.note(f"  ↻ {outcome.source} updated")


def _write_json(outcome: Outcome, options: Options, around: Mapping[str, Any]) -> None:
    body = {
        "notebook": outcome.name,
        "title": outcome.title,
        "parameters": outcome.parameters,
        "started": outcome.started,
        "seconds": outcome.seconds,
        "good": outcome.good,
        "verdict": outcome.verdict,
        "comparison": outcome.comparison,
        "updated": outcome.updated,
        "mismatches": [asdict(mismatch) for mismatch in outcome.mismatches],
        "failure": asdict(outcome.failure) if outcome.failure else None,
        "environment": dict(around),
        "records": outcome.records,
    }
    path = options.output / f"{outcome.name}.json"
    path.write_text(json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _sum_up(report: Report, progress: Progress) -> None:
    good = sum(outcome.good for outcome in report.outcomes)
    progress.note(f"\n{good} of {len(report.outcomes)} notebook(s) good, in {elapsed(report.seconds)}")
    for outcome in report.outcomes:
        if not outcome.good:
            progress.note(f"  ✗ {outcome.name}: {outcome.verdict}")
        for word, verdicts in (("target missed", outcome.missed()), ("goal not reached", outcome.missed(goals=True))):
            for verdict in verdicts:
                progress.note(f"      {word}: {verdict['name']}: {verdict['measured']:.4g} {verdict['unit']}")
    for change in report.worse:
        progress.note(f"  ✗ ratio worse than its baseline: {change}")
    progress.note(f"report: {report.index}")
