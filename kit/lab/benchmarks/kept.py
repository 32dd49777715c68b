"""Measure, keep, render: what a table or a picture shows is read from the file of its raw samples."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, ParamSpec

from kit.errors import ReportError
from kit.lab.bench import Comparison, load
from kit.lab.benchmarks.contest import Contest
from kit.lab.project import reports_folder

P = ParamSpec("P")


class Kept:
    """Comparisons by their names, each measured, written to its file, and read from there.

    Args:
        measure: False reads what an earlier run kept, and measures nothing.
        folder: of the files; ``reports/samples`` by default.
    """

    def __init__(self, *, measure: bool = True, folder: Path | None = None) -> None:
        self._measure, self._folder = measure, folder or reports_folder() / "samples"
        self._read: dict[str, Comparison] = {}

    def __len__(self) -> int:
        return len(self._read)

    @property
    def comparisons(self) -> dict[str, Comparison]:
        """Everything that was taken here, by name."""
        return dict(self._read)

    def run(self, contest: Contest, *, rounds: int, samples: int) -> Comparison:
        """Return the contest's comparison, as it is kept.

        Raises:
            ReportError: an answer is wrong, or nothing was kept.
        """
        if self._measure:
            contest.run(rounds=rounds, samples=samples).save(self._folder)
        return self._load(contest.name)

    async def take(
        self, name: str, measure: Callable[P, Awaitable[Comparison]], *args: P.args, **kwargs: P.kwargs
    ) -> Comparison:
        """Return the comparison of this name, which ``measure`` makes of the arguments, as it is kept.

        Raises:
            ReportError: an answer is wrong, the comparison has another name, or nothing was kept.
        """
        if self._measure:
            result = await measure(*args, **kwargs)
            if result.name != name:
                raise ReportError(f"what was measured as {name} calls itself {result.name}")
            result.save(self._folder)
        return self._load(name)

    async def facts(
        self, name: str, find: Callable[P, Awaitable[dict[str, Any]]], *args: P.args, **kwargs: P.kwargs
    ) -> dict[str, Any]:
        """Return what ``find`` finds out with the arguments and no comparison says, plain JSON, as it is kept.

        Raises:
            ReportError: nothing was kept.
        """
        if self._measure:
            found = await find(*args, **kwargs)
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / f"{name}.json").write_text(json.dumps(found))
        kept: dict[str, Any] = json.loads(self._file(name).read_text())
        return kept

    def _load(self, name: str) -> Comparison:
        self._read[name] = load(self._file(name))
        return self._read[name]

    def _file(self, name: str) -> Path:
        path = self._folder / f"{name}.json"
        if not path.is_file():
            raise ReportError(f"no samples of {name} are kept in {self._folder}: measure first")
        return path
