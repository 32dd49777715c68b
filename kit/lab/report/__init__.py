"""The main job: run the notebooks once, compare what came out with what is committed, render it.

papermill   executes each notebook, with parameters
nbval       compares *those* outputs with the committed reference (a replayed kernel: nothing runs twice)
nbconvert   renders *that* file as a page that opens offline
index.html  says what ran, how long, and with what verdict
"""

from __future__ import annotations

from kit.lab.report.outcome import Failure, Mismatch, Outcome
from kit.lab.report.run import Options, run_report

__all__ = ["Failure", "Mismatch", "Options", "Outcome", "run_report"]
