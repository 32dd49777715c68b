"""Fixtures: one real nats-server for each test module, and a bus in each test's own event loop.

``pytest --benchmark-only``, or ``pytest tests/benchmarks``, runs the benchmarks instead of the tests. Their files and
functions are named as benchmarks, so that the tests' run does not find them.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

try:
    import pytest_asyncio  # noqa: F401
    import pytest_benchmark  # noqa: F401
    import xdist  # noqa: F401
except ImportError as missing:
    need = "pip install -c requirements.lock -e '.[peers,test]'"
    pytest.exit(f"the tests need {missing.name}: {need}", returncode=4)

from kit.lab.gates.evidence import Recorder
from kit.lab.project import reports_folder
from kit.nats.connection import Connection, connect
from kit.nats.server import Server

BENCHMARKS = Path(__file__).parent / "benchmarks"

_serial = itertools.count(1)


def _measures(config: pytest.Config) -> bool:
    """Return whether a run asks for the benchmarks: by an option of theirs, or by their folder."""
    asked = config.getoption("benchmark_only", default=False) or config.getoption("benchmark_json", default=None)
    folders = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    return bool(asked) or (bool(folders) and all(BENCHMARKS in (path, *path.parents) for path in folders))


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Measure in one process, and the benchmarks only: pytest-benchmark refuses to share the machine with itself."""
    if _measures(config):
        config.option.numprocesses, config.option.dist, config.option.tx = 0, "no", []
        if config.args_source is not pytest.Config.ArgsSource.ARGS:
            config.args = [str(BENCHMARKS)]


def pytest_configure(config: pytest.Config) -> None:
    """Record the run for the gates; call ``benchmark_…`` files and functions tests, where they were asked for."""
    config.pluginmanager.register(Recorder(reports_folder()), "kit-gates-recorder")
    if _measures(config):
        config.addinivalue_line("python_files", "benchmark_*.py")
        config.addinivalue_line("python_functions", "benchmark_*")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A real embedded server on a free port, with the tenants acme and globex."""
    running = Server(tenants=("acme", "globex"))
    running.launch()
    yield running
    running.shutdown()


async def _connection(server: Server, tenant_id: str) -> Connection:
    who = server.credentials(tenant_id)
    return await connect(
        server.url, tenant_id=tenant_id, user=who.user, password=who.password, name=f"test-{tenant_id}"
    )


@pytest.fixture
async def connection(server: Server) -> AsyncIterator[Connection]:
    """A connection of tenant acme."""
    async with await _connection(server, "acme") as connected:
        yield connected


@pytest.fixture
def telemetry() -> Iterator[Any]:
    """Telemetry that records in memory."""
    from kit.otel import start_telemetry

    started = start_telemetry("kit-tests", record=True)
    yield started
    started.shutdown(timeout=3.0)


async def _bus(server: Server, tenant_id: str, telemetry: Any) -> AsyncIterator[Any]:
    from kit.nats.bus import Bus

    async with await _connection(server, tenant_id) as connected, Bus(connected, tenant_id, telemetry) as made:
        yield made


@pytest.fixture
async def bus(server: Server, telemetry: Any) -> AsyncIterator[Any]:
    """The bus of tenant acme."""
    async for made in _bus(server, "acme", telemetry):
        yield made


@pytest.fixture
async def other_bus(server: Server, telemetry: Any) -> AsyncIterator[Any]:
    """The bus of tenant globex."""
    async for made in _bus(server, "globex", telemetry):
        yield made


@pytest.fixture
async def tenant_bus(server: Server, telemetry: Any) -> AsyncIterator[Any]:
    """The bus of a tenant that no other test has: nothing to clean up."""
    tenant_id = f"tenant-{next(_serial)}"
    await server.add_tenant(tenant_id)
    async for made in _bus(server, tenant_id, telemetry):
        yield made
