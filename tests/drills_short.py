"""Every fault drill, short: what it counts has to be as promised; `kit drills`, alone on a machine, judges times too.

What ``41_fault_drills`` runs, CI runs there. The rest takes minutes, so it is a run of its own, beside the suite:
`pytest tests/drills_short.py`.
"""

from __future__ import annotations

from ast import literal_eval
from pathlib import Path

import pytest

from kit.lab.drills import DRILLS, Drill, choose_drills
from kit.lab.report.notebooks import declared

_NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "41_fault_drills.ipynb"
_THERE = choose_drills(literal_eval(declared(_NOTEBOOK)["names"]["default"]).split())


def _of(module: str) -> pytest.MarkDecorator:
    """Parametrize with the drills of a module that the notebook leaves out."""
    here = [one for one in DRILLS.values() if one not in _THERE and one.body.__module__ == f"kit.lab.drills.{module}"]
    return pytest.mark.parametrize("drill", here, ids=lambda one: one.name)


class _Kept:
    async def test_the_promise_is_kept(self, drill: Drill) -> None:
        outcome = await drill.once(drill.short)
        if outcome.verdict == "not run here":
            pytest.skip(outcome.reason)
        assert outcome.reason == ""
        assert outcome.miscounted == []


# A class is run by one process of the tests, and several by several.


@_of("queues")
class TestQueues(_Kept): ...


@_of("events")
class TestEvents(_Kept): ...


@_of("hosts")
class TestHosts(_Kept): ...


@_of("parts")
class TestParts(_Kept): ...


@_of("money")
class TestMoney(_Kept): ...
