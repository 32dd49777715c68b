"""Fault drills: a promise, a fault, and the figures that say whether the promise held.

    outcomes = await run_drills(choose_drills(["server-killed"]))     # or: kit drills server-killed
    table(outcomes)

Each drill is a small function that does harm (``kit.lab.drills.faults``) to a running kit under load
(``kit.lab.drills.load``) and judges the ledger of what was acknowledged, delivered and took effect.
"""

from __future__ import annotations

from kit.lab.drills import events, hosts, money, parts, queues
from kit.lab.drills.drill import (
    DRILLS,
    FILE,
    Drill,
    Figure,
    NotHere,
    Outcome,
    Run,
    choose_drills,
    run_drills,
    save,
    table,
    tally,
)
from kit.lab.drills.ledger import Entry, Figures, Ledger, figures, read

__all__ = [
    "DRILLS",
    "FILE",
    "Drill",
    "Entry",
    "Figure",
    "Figures",
    "Ledger",
    "NotHere",
    "Outcome",
    "Run",
    "choose_drills",
    "events",
    "figures",
    "hosts",
    "money",
    "parts",
    "queues",
    "read",
    "run_drills",
    "save",
    "table",
    "tally",
]
