"""For ``pytest --nbval notebooks``: the same sanitising as in ``kit report``, without naming it each time.

A picture's strokes are a measurement and records are numbers for the gates; here they are left out. ``kit report``
also compares the words in each picture.
"""

from pathlib import Path
from typing import Any

NOT_COMPARED = ("image/svg+xml", "application/vnd.kit.record+json")


def pytest_configure(config: Any) -> None:
    if getattr(config.option, "nbval", False) and not config.option.nbval_sanitize_with:
        config.option.nbval_sanitize_with = str(Path(__file__).with_name("sanitize.cfg"))


def pytest_collectstart(collector: Any) -> None:
    if hasattr(collector, "skip_compare"):
        collector.skip_compare = (*collector.skip_compare, *NOT_COMPARED)
