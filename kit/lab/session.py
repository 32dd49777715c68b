"""``kit.start``: a server, a bus, telemetry and components, for as long as a notebook or a script wants them.

    lab = await kit.start(tenant_id="acme")          # in a notebook: stays until `await lab.stop()`
    async with kit.start(tenant_id="acme") as lab:   # in a script

``elsewhere=True`` leaves the components to ``kit worker`` processes, and nothing else has to be written differently.

Everything it starts ends with it, within a deadline, even when a cell is interrupted in the middle.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from kit.catalogue import check_id
from kit.cells import remember, started_earlier
from kit.errors import ConfigurationError

if TYPE_CHECKING:
    import pandas as pd

    from kit.components import Service
    from kit.nats.bus import Bus
    from kit.nats.connection import Connection
    from kit.nats.server import Server
    from kit.otel import Telemetry

CLOSE_SECONDS = 5.0  # to close everything
STOP_SECONDS = 10.0 + CLOSE_SECONDS  # … and to finish running work; each part has its own bound as well
_BUS = "bus of "  # what a bus is called among the parts


async def eventually(check: Callable[[], Any] | Callable[[], Awaitable[Any]], seconds: float = 5.0) -> Any:
    """Wait until ``check`` returns something true, and return it; ``check`` may be a coroutine function.

    Raises:
        TimeoutError: that did not happen within ``seconds``.
    """
    async with asyncio.timeout(seconds):
        while True:
            found = check()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.01)


class Lab:
    """What ``kit.start`` started.

    Attributes:
        bus: the tenant's bus.
        telemetry: traces, metrics and logs of everything in this process.
        server: the embedded server, or None when ``NATS_URL`` or ``url`` replaced it.
        elsewhere: whether components are left to ``kit worker`` processes.
        services: what runs here, by component.
    """

    def __init__(
        self, *, tenant_id: str, telemetry: Telemetry, server: Server | None, url: str, elsewhere: bool = False
    ) -> None:
        self.tenant_id, self.telemetry, self.server, self.url = tenant_id, telemetry, server, url
        self.elsewhere = elsewhere
        self.bus: Bus
        self.services: dict[str, list[Service]] = {}
        self._buses: dict[str, Bus] = {}
        self._ends: list[tuple[str, Callable[..., Awaitable[Any]]]] = []
        self._stopping: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        if self.stopped:
            return f"Lab of {self.tenant_id}, stopped"
        where = "given server" if self.server is None else self.server.trouble or "embedded server"
        serving = f", serving {', '.join(self.services)}" if self.services else ""
        return f"Lab of {self.tenant_id}, {where}{serving}"

    @property
    def stopped(self) -> bool:
        """Return whether ``stop`` was called."""
        return self._stopping is not None

    async def serve(self, *components: str, tenant_id: str | None = None, **settings: Any) -> None:
        """Serve components in this process, for this lab's tenant or another one.

        A setting goes to every component that takes one of its name. Running the same notebook cell again replaces what
        it served before. In a lab whose components run elsewhere, this starts nothing and prints the ``kit worker``
        command that serves the same.

        Raises:
            ConfigurationError: a component that does not exist, or a setting that none of them takes.
        """
        from kit.lab import components as rooms

        if self.elsewhere:
            command = rooms.command(components, settings, tenant_id or self.tenant_id)
            print("served elsewhere, with its spans and metrics:", command)  # noqa: T201 (a cell's output)
            return
        bus = self.bus if tenant_id is None else await self.tenant(tenant_id)
        await self._stop_earlier()
        for name, service in (await rooms.serve(bus, components, settings, self._places())).items():
            remember(service)
            self.services.setdefault(name, []).append(service)
            self._ends.append((name, service.stop))

    async def _stop_earlier(self) -> None:
        """Stop the services that this notebook cell started in an earlier run."""
        from kit.components import Service

        earlier = started_earlier(Service)
        for name, services in list(self.services.items()):
            for service in [service for service in services if service in earlier]:
                self._ends.remove((name, service.stop))
                services.remove(service)
                await service.stop()
            if not services:
                del self.services[name]

    @property
    def lancedb(self) -> Path | None:
        """Where LanceDB lies that goes with this lab's own server; None: where ``KIT_LANCEDB_URI`` says."""
        return self._place("KIT_LANCEDB_URI", "lancedb")

    @property
    def mlflow(self) -> Path | None:
        """Where models lie that go with this lab's own server; None: where ``MLFLOW_TRACKING_URI`` says."""
        return self._place("MLFLOW_TRACKING_URI", "mlflow")

    def _place(self, variable: str, name: str) -> Path | None:
        return None if self.server is None or variable in os.environ else self.server.store / name

    def _places(self) -> dict[str, Any]:
        """Return the settings by which files of this lab go, and end, with its own server."""
        places = {"uri": self.lancedb, "model_store": self.mlflow}
        return {name: place for name, place in places.items() if place is not None}

    async def tenant(self, tenant_id: str, **access: Any) -> Bus:
        """Return the bus of another tenant, its account made where the server is the embedded one.

        Args:
            access: credentials as ``kit.nats.connection.connect`` takes them, where the server is not the embedded
                one and the environment's credentials are another account's.
        """
        if tenant_id not in self._buses:
            if self.server is not None and tenant_id not in self.server.tenants:
                await self.server.add_tenant(check_id(tenant_id))
            self._buses[tenant_id] = await self._connect(tenant_id, access)
        return self._buses[tenant_id]

    async def _connect(self, tenant_id: str, access: dict[str, Any]) -> Bus:
        from kit.nats.bus import Bus
        from kit.nats.connection import connect

        name = f"lab-{tenant_id}"
        connection: Connection
        if self.server is not None and not access:
            connection = await self.server.connect(tenant_id, name=name)
        else:
            connection = await connect(self.url, tenant_id=tenant_id, name=name, **access)
        self._ends.append((f"connection of {tenant_id}", connection.close))
        bus = Bus(connection, tenant_id, self.telemetry)
        self._ends.append((f"{_BUS}{tenant_id}", bus.close))
        return bus

    def spans(self) -> pd.DataFrame:
        """Return the finished spans, a row a span."""
        return self.telemetry.recorder.spans()

    def metrics(self) -> pd.DataFrame:
        """Return the totals of all metrics, a row a metric and its labels."""
        return self.telemetry.recorder.metrics()

    def logs(self) -> pd.DataFrame:
        """Return the log records, a row a record, with their trace."""
        return self.telemetry.recorder.logs()

    def trace(self, trace_id: str | None = None, *, name: str | None = None) -> Any:
        """Return a trace as a tree: the one with this id, the last with a span of this name, or the last one."""
        return self.telemetry.recorder.trace(trace_id, name=name)

    def waterfall(self, trace_id: str | None = None) -> Any:
        """Return one trace as a picture: its spans over time, the last one by default."""
        return self.telemetry.recorder.waterfall(trace_id)

    async def stop(self, timeout: float = STOP_SECONDS) -> None:
        """End everything, the last started first, within ``timeout`` seconds; a second call waits for the first.

        Running work may finish, except in the last five seconds, which closing needs. Recordings stay readable. If the
        waiting cell is interrupted, the rest still ends.

        Raises:
            ExceptionGroup: parts that failed or took too long to end; all others ended all the same.
        """
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._stop(time.monotonic() + timeout))
        await asyncio.shield(self._stopping)

    async def _stop(self, deadline: float) -> None:
        faults: list[Exception] = []
        await asyncio.gather(*(bus.connection.prepare_close() for bus in self._buses.values()))
        while self._ends:
            name, end = self._ends.pop()
            left = max(1.0, deadline - time.monotonic())
            drains = name in self.services or name.startswith(_BUS)
            try:
                await asyncio.wait_for(end(max(0.0, left - CLOSE_SECONDS)) if drains else end(), left)
            except TimeoutError:
                faults.append(TimeoutError(f"{name} did not end within {left:.0f} s"))
            except Exception as fault:  # noqa: BLE001 (the rest has to end too; raised together below)
                faults.append(fault)
        self.services.clear()
        if faults:
            raise ExceptionGroup(f"{self!r}: not everything ended well", faults)

    async def __aenter__(self) -> Lab:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


class Starting:
    """A lab that has not started yet: ``await`` it, or enter it by ``async with``."""

    def __init__(self, begin: Callable[[], Awaitable[Lab]]) -> None:
        self._begin = begin
        self._lab: Lab | None = None

    def __repr__(self) -> str:
        return "a lab that has not started: write `lab = await kit.start(…)`"

    def __await__(self) -> Generator[Any, None, Lab]:
        return self._begin().__await__()

    async def __aenter__(self) -> Lab:
        self._lab = await self._begin()
        return self._lab

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._lab is not None
        await self._lab.stop()


def start(
    tenant_id: str = "acme",
    *,
    tenants: Sequence[str] = (),
    store: str | Path | None = None,
    url: str | None = None,
    elsewhere: bool = False,
    service_name: str = "kit",
) -> Starting:
    """Start a lab: ``lab = await kit.start()``, or ``async with kit.start() as lab``.

    Without a URL it starts a server of its own, in a temporary folder. Several labs may run in one kernel. Running
    the same notebook cell again first stops the lab that the cell started before.

    Args:
        tenant_id: whose bus ``lab.bus`` is.
        tenants: accounts to make beside it on the embedded server; ``lab.tenant`` makes more later.
        store: folder that keeps the embedded server's streams; it is made when missing.
        url: a server to use instead; the default is ``NATS_URL``, with the credentials of the environment.
        elsewhere: leave components to ``kit worker`` processes at ``NATS_URL``, else where ``kit server`` listens;
            ``lab.serve`` then starts none. Their spans and metrics are at their own telemetry's endpoint.
        service_name: ``service.name`` of the telemetry.

    Raises:
        ConfigurationError: an id that is none, or a store together with a URL or with components elsewhere.
        StoreInUse: another server owns the store.
        ConnectError: no server answers at the URL, or it refuses.
    """
    check_id(tenant_id)
    if store is not None and (url is not None or elsewhere):
        raise ConfigurationError("a store belongs to the embedded server: give no `url`, nor `elsewhere`, beside it")
    if url is None and store is None:
        url = _given_url() if elsewhere else os.environ.get("NATS_URL")
    accounts = tuple(dict.fromkeys((tenant_id, *tenants)))
    return Starting(lambda: _begin(accounts, store, url or None, elsewhere, service_name))


def attach(tenant_id: str = "acme", *, service_name: str = "kit") -> Starting:
    """Start a lab on a server that runs elsewhere: that of ``NATS_URL``, else where ``kit server`` listens.

    Raises:
        ConfigurationError: an id that is none.
        ConnectError: no server answers, or it refuses.
    """
    return start(tenant_id, url=_given_url(), service_name=service_name)


def _given_url() -> str:
    """The server of the environment, else where ``kit server`` listens."""
    from kit.nats.auth import DEFAULT_URL

    return os.environ.get("NATS_URL") or DEFAULT_URL


async def _begin(
    tenants: tuple[str, ...], store: str | Path | None, url: str | None, elsewhere: bool, service_name: str
) -> Lab:
    for earlier in started_earlier(Lab):
        await earlier.stop()
    from kit.nats.server import Server
    from kit.otel import start_telemetry

    telemetry = start_telemetry(service_name, tenant_id=tenants[0])
    server = Server(store, tenants=tenants) if url is None else None
    lab = Lab(tenant_id=tenants[0], telemetry=telemetry, server=server, url=url or "", elsewhere=elsewhere)
    remember(lab)
    lab._ends.append(("telemetry", lambda: asyncio.to_thread(telemetry.shutdown, 3.0)))
    try:
        if server is not None:
            lab._ends.append(("server", server.stop))
            await server.start()
            lab.url = server.url
        lab.bus = await lab.tenant(lab.tenant_id)
    except BaseException:  # an interrupt too: what has begun must not stay behind
        await lab.stop()
        raise
    return lab
