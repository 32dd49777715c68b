"""Lets pytest find ``benchmark_*`` functions here, and measure them in one process."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Switch pytest-xdist off for this run; pytest-benchmark refuses to measure under it."""
    if getattr(config.option, "benchmark_only", False):
        config.option.numprocesses, config.option.tx, config.option.dist = 0, [], "no"


def pytest_pycollect_makeitem(collector: Any, name: str, obj: Any) -> Any:
    """Take functions named ``benchmark_*`` for tests."""
    if name.startswith("benchmark_") and callable(obj) and collector.path.parent.name == "benchmarks":
        return list(collector._genfunctions(name, obj))
    return None
