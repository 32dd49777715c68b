"""``pytest tests/benchmarks/benchmark_*.py --benchmark-only``: the files and functions are named as benchmarks, so that
the tests' run does not find them."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Measure in one process: pytest-benchmark refuses to share the machine with itself."""
    if config.getoption("benchmark_only", default=False):
        config.option.numprocesses, config.option.dist, config.option.tx = 0, "no", []


def pytest_configure(config: pytest.Config) -> None:
    """Call ``benchmark_…`` files and functions tests, where benchmarks were asked for."""
    if config.getoption("benchmark_only", default=False):
        config.addinivalue_line("python_files", "benchmark_*.py")
        config.addinivalue_line("python_functions", "benchmark_*")
