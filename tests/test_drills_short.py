"""Every fault drill, short: what it counts has to be as promised; `kit drills`, alone on a machine, judges times too.

What ``41_fault_drills`` runs, CI runs there.
"""

from __future__ import annotations

from ast import literal_eval
from pathlib import Path

import pytest

from kit.lab.drills import DRILLS, Drill, chosen
from kit.lab.report.notebooks import declared

_NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "41_fault_drills.ipynb"
_THERE = chosen(literal_eval(declared(_NOTEBOOK)["names"]["default"]).split())
_HERE = [one for one in DRILLS.values() if one not in _THERE]
_HEAVY = ("kit.lab.drills.parts", "kit.lab.drills.hosts")  # they import engines, or start kernels


async def _keep(drill: Drill) -> None:
    outcome = await drill.once(drill.short)
    if outcome.verdict == "not run here":
        pytest.skip(outcome.reason)
    assert outcome.figures or outcome.reason == ""
    assert outcome.reason == ""
    assert [str(figure) for figure in outcome.figures if not figure.good and figure.unit not in ("s", "ms")] == []


class TestMessages:
    """One class is one process of the tests."""

    @pytest.mark.parametrize(
        "drill", [one for one in _HERE if one.body.__module__ not in _HEAVY], ids=lambda one: one.name
    )
    async def test_the_promise_holds(self, drill: Drill) -> None:
        await _keep(drill)


class TestComponents:
    """Another."""

    @pytest.mark.parametrize("drill", [one for one in _HERE if one.body.__module__ in _HEAVY], ids=lambda one: one.name)
    async def test_the_promise_holds(self, drill: Drill) -> None:
        await _keep(drill)
