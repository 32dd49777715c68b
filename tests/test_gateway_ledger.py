"""Provider, operation log and budget say the same in the end, whoever is killed meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kit.lab.drills.money import keep_accounts
from kit.nats.bus import Bus
from kit.nats.server import Server


async def test_budget_log_and_provider_agree_over_kills_of_servers_and_workers(tmp_path: Path, telemetry: Any) -> None:
    async with (
        Server(tenants=("acme",)) as server,
        await server.connect("acme") as connection,
        Bus(connection, "acme", telemetry) as bus,
    ):
        accounts = await keep_accounts(bus, server, tmp_path, requests=60, server_kills=2, worker_kills=2)
        assert server.restarts == 2
    assert (accounts.answered, accounts.failed) == (60, {}), accounts
    assert accounts.agree, accounts
    assert accounts.unexplained == 0, accounts
    assert max(accounts.repeated, accounts.lost) <= 8, accounts  # four at once in each worker that died
