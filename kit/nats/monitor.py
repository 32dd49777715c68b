"""What a nats-server tells about itself, through its system account: as rows, for tables."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from kit.errors import ServerError
from kit.nats.config import SYSTEM
from kit.nats.connection import Connection

_TIMEOUT = 5.0  # s


@dataclass(frozen=True, kw_only=True, slots=True)
class Monitor:
    """One look at a server.

    Attributes:
        server: version, uptime, memory (bytes), connections, messages in and out, slow consumers, limits.
        connections: one row each: name, tenant, messages and bytes in and out, subscriptions, round trip.
        streams: one row each: tenant, stream, messages, bytes, consumers, replicas, and the leader in a cluster.
        raw: the three answers as the server gave them: ``varz``, ``connz``, ``jsz``.
    """

    server: dict[str, Any]
    connections: list[dict[str, Any]]
    streams: list[dict[str, Any]]
    raw: dict[str, Any]


async def look(connection: Connection, server_id: str = "") -> Monitor:
    """Ask a server for its state.

    Args:
        connection: to the system account.
        server_id: which server of a cluster; the one that is connected to by default.

    Raises:
        ServerError: it answered with an error.
    """
    server_id = server_id or connection.client.server_id

    async def ask(what: str, **options: Any) -> dict[str, Any]:
        subject = f"$SYS.REQ.SERVER.{server_id}.{what}"
        answer = json.loads((await connection.request(subject, json.dumps(options).encode(), timeout=_TIMEOUT)).data)
        if "data" not in answer:
            raise ServerError(f"{what} of {server_id}: {answer.get('error', 'no data')}")
        return dict(answer["data"])

    varz = await ask("VARZ")
    connz = await ask("CONNZ", auth=True, subscriptions=False)
    jsz = await ask("JSZ", accounts=True, streams=True, config=True)
    return Monitor(
        server={name: varz.get(name) for name in _SERVER},
        connections=[_connection(row) for row in connz.get("connections", []) if row.get("account") != SYSTEM],
        streams=[
            _stream(account["name"], row)
            for account in jsz.get("account_details", [])
            for row in account.get("stream_detail", [])
        ],
        raw={"varz": varz, "connz": connz, "jsz": jsz},
    )


_SERVER = (
    "server_name", "version", "uptime", "mem", "cpu", "cores", "connections", "total_connections",
    "in_msgs", "out_msgs", "in_bytes", "out_bytes", "slow_consumers", "subscriptions", "max_payload", "max_connections",
)  # fmt: skip


def _connection(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": row.get("name", ""),
        "tenant_id": row.get("account"),
        "in_msgs": row["in_msgs"],
        "out_msgs": row["out_msgs"],
        "in_bytes": row["in_bytes"],
        "out_bytes": row["out_bytes"],
        "subscriptions": row["subscriptions"],
        "rtt": row.get("rtt", ""),
        "uptime": row.get("uptime", ""),
    }


def _stream(tenant_id: str, row: dict[str, Any]) -> dict[str, Any]:
    cluster = row.get("cluster") or {}
    return {
        "tenant_id": tenant_id,
        "stream": row["name"],
        "messages": row["state"]["messages"],
        "bytes": row["state"]["bytes"],
        "consumers": row["state"]["consumer_count"],
        "leader": cluster.get("leader", ""),
        "replicas": row.get("config", {}).get("num_replicas", 1),
    }
