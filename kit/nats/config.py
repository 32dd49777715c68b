"""What an embedded nats-server is told: its tenants, its secrets, its limits, and the file that says so.

The file is JSON, which nats-server's own format includes, so that nothing needs quoting by hand.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kit.catalogue import check_id
from kit.errors import ServerError

HOST = "127.0.0.1"
SYSTEM = "SYS"  # the system account and its user; upper case, so that no tenant can have the name
_EVENTS = "$JS.EVENT.>"  # what JetStream itself says: a client that did so could have jobs given up
_OPERATORS = 64  # connections reserved for the system account


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """A user of the server, with its password, which no repr shows."""

    user: str
    password: str = field(repr=False)

    def environment(self, url: str) -> dict[str, str]:
        """Return the variables by which another process connects as this user."""
        return {"NATS_URL": url, "NATS_USER": self.user, "NATS_PASSWORD": self.password}


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The limits of one tenant; beyond them the server refuses, and other tenants are not affected.

    Attributes:
        max_payload: bytes of one message, headers and body together.
        max_connections: clients at a time.
        max_subscriptions: per connection; the server closes a connection that exceeds it.
        max_memory_store: bytes of all memory streams.
        max_file_store: bytes of all file streams; in a cluster, every replica counts.
        max_streams: queues, stored events, key-value stores and object stores.
        max_consumers: per stream.
    """

    max_payload: int = 1024 * 1024
    max_connections: int = 256
    max_subscriptions: int = 10_000
    max_memory_store: int = 64 * 1024 * 1024
    max_file_store: int = 2 * 1024**3
    max_streams: int = 256
    max_consumers: int = 2_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Routes:
    """The place of one server in a local cluster: its own route port and those of all members."""

    name: str
    port: int
    ports: tuple[int, ...]
    password: str = field(repr=False)


class Secrets:
    """The passwords of the tenants and of the system account, kept in the store (mode 0600)."""

    def __init__(self, tenants: dict[str, str], system: str) -> None:
        self.tenants, self.system = tenants, system

    @classmethod
    def new(cls) -> Secrets:
        """Make the secrets of a server that nobody has run yet."""
        return cls({}, _password())

    @classmethod
    def load(cls, path: Path) -> Secrets:
        """Read what an earlier server on this store has written, or begin anew.

        Raises:
            ServerError: the file is there and cannot be read.
        """
        if not path.exists():
            return cls.new()
        try:
            fields = json.loads(path.read_text())
            return cls(
                {check_id(tenant): str(password) for tenant, password in fields["tenants"].items()}, fields["system"]
            )
        except (OSError, ValueError, LookupError, AttributeError) as error:
            raise ServerError(
                f"{path} cannot be read ({error}): restore it, or remove it to have new secrets made"
            ) from error

    def add(self, tenant_id: str) -> bool:
        """Give a tenant a password, unless it has one; return whether it is new."""
        if check_id(tenant_id) in self.tenants:
            return False
        self.tenants[tenant_id] = _password()
        return True

    def save(self, path: Path) -> None:
        """Write the secrets for the next server on this store."""
        write_private(path, json.dumps({"tenants": self.tenants, "system": self.system}, indent=2))


def render(*, name: str, store: Path, port: int, secrets: Secrets, limits: Limits, routes: Routes | None = None) -> str:
    """Return the configuration file of one server.

    Every tenant is an account of its own with JetStream; the file store is synced on each write (``sync_interval:
    always``), so that an acknowledgement means that the message is on the disk.
    """
    document: dict[str, Any] = {
        "server_name": name,
        "host": HOST,
        "port": port or -1,
        "ping_interval": "20s",
        "write_deadline": "10s",
        "ports_file_dir": str(store / "run"),
        "logfile": str(store / "nats-server.log"),
        "logfile_size_limit": 4 * 1024 * 1024,
        "logfile_max_num": 3,
        "jetstream": {
            "store_dir": str(store),
            "sync_interval": "always",
        },
        "authorization": {"timeout": 5},  # s; the default of 2 is missed on a machine under load
        **_tenancy(secrets, limits),
    }
    document["jetstream"] |= _totals(secrets, limits)
    if routes is not None:
        document["cluster"] = {
            "name": routes.name,
            "host": HOST,
            "port": routes.port,
            "no_advertise": True,  # clients are told all URLs by the cluster object
            "authorization": {"user": "route", "password": routes.password, "timeout": 5},
            "routes": [f"nats://route:{routes.password}@{HOST}:{port}" for port in routes.ports if port != routes.port],
        }
    return json.dumps(document, indent=2, ensure_ascii=False)  # nats-server does not know \u escapes


_HEAD = """\
# nats-server configuration with an account for each tenant. An account is one trust domain: whoever has its credentials
# can read and write everything in it. This file contains passwords: make it readable for its owner only.
#
#   nats-server -c nats.conf{named}
"""
_NOTES = {
    "host": "# all interfaces; credentials that leave the machine need TLS, see the end\n",
    "jetstream": """\
# sync_interval always: whatever is acknowledged survives a power cut. The price: an acknowledged publish took 0.53 ms
# instead of 0.21, and a work queue handled 2,200 instead of 10,100 messages per second. For three servers that do not
# share a power supply, "2m" (NATS' default) is a fair choice.
""",
    "accounts": "# the limits of each tenant; max_file counts every replica, and a cluster keeps three\n",
    "cluster": "# connections between the servers\n",
}
_TAIL = """
# monitoring; it has no password, so keep it on loopback (the user SYS sees the same over NATS)
# http: "127.0.0.1:8222"

# TLS: clients then set NATS_URL=tls://… and NATS_CA; put the same block into cluster for the routes
# tls: {
#   cert_file: "/etc/nats/server.pem"
#   key_file: "/etc/nats/server-key.pem"
#   ca_file: "/etc/nats/ca.pem"
#   verify: false        # true requires clients to set NATS_CERT and NATS_KEY
# }
"""


def render_cluster(*, secrets: Secrets, limits: Limits, hosts: Sequence[str] = (), store: str, port: int = 4222) -> str:
    """Return the commented configuration of standalone nats-servers; each server takes the same file.

    Args:
        secrets: passwords of the tenants and of the system account.
        limits: the limits of each tenant.
        hosts: the cluster's hosts, each with its route port if that is not 6222; empty for a single server.
        store: folder of the streams.
        port: the port for clients.
    """
    copies = min(max(len(hosts), 1), 3)
    limits = replace(limits, max_file_store=limits.max_file_store * copies)
    document: dict[str, Any] = {
        "host": "0.0.0.0",
        "port": port,
        "jetstream": {"store_dir": store, "sync_interval": "always"} | _totals(secrets, limits),
        "authorization": {"timeout": 5},
        **_tenancy(secrets, limits),
    }
    if hosts:
        password = _password()
        places = [host if re.search(r":\d+$", host) else f"{host}:6222" for host in hosts]
        document["cluster"] = {
            "name": "kit",
            "listen": "0.0.0.0:6222",
            "authorization": {"user": "route", "password": password, "timeout": 5},
            "routes": [f"nats://route:{password}@{place}" for place in places],
        }
    named = " --name <name of this server>    (the same file on each host)" if hosts else ""
    settings = (
        f"{_NOTES.get(name, '')}{name}: {json.dumps(value, indent=2, ensure_ascii=False)}"
        for name, value in document.items()
    )
    return "\n".join([_HEAD.format(named=named), *settings, _TAIL])


def _tenancy(secrets: Secrets, limits: Limits) -> dict[str, Any]:
    """The accounts, and the limits of all of them together, with room for operators."""
    accounts: dict[str, Any] = {
        tenant: {
            "jetstream": {
                "max_mem": limits.max_memory_store,
                "max_file": limits.max_file_store,
                "max_streams": limits.max_streams,
                "max_consumers": limits.max_consumers,
            },
            "limits": {
                "max_connections": limits.max_connections,
                "max_subscriptions": limits.max_subscriptions,
                "max_payload": limits.max_payload,
            },
            "users": [{"user": tenant, "password": password, "permissions": {"publish": {"deny": [_EVENTS]}}}],
        }
        for tenant, password in secrets.tenants.items()
    }
    accounts[SYSTEM] = {"users": [{"user": SYSTEM, "password": secrets.system}]}
    return {
        "max_payload": limits.max_payload,
        "max_connections": limits.max_connections * len(secrets.tenants) + _OPERATORS,
        "system_account": SYSTEM,
        "accounts": accounts,
    }


def _totals(secrets: Secrets, limits: Limits) -> dict[str, int]:
    """The storage of all tenants' streams together: nats-server reserves each tenant's limit."""
    count = max(len(secrets.tenants), 1)
    return {"max_memory_store": limits.max_memory_store * count, "max_file_store": limits.max_file_store * count}


def write_credentials(secrets: Secrets, folder: Path, url: str) -> dict[str, Path]:
    """Write each tenant's variables to ``<folder>/<tenant>.env``, for NATS_CREDS; only its owner can read it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    paths = {tenant: folder / f"{tenant}.env" for tenant in secrets.tenants}
    for tenant, path in paths.items():
        variables = Credentials(user=tenant, password=secrets.tenants[tenant]).environment(url)
        write_private(path, "".join(f"{name}={value}\n" for name, value in variables.items()))
    return paths


def private_folder(folder: Path) -> Path:
    """Make a folder and its parents that only the owner can enter; ``.kit`` and folders below it become private."""
    folder = folder.absolute()
    for part in (*reversed(folder.parents), folder):
        if not part.exists():
            part.mkdir(mode=0o700, exist_ok=True)
        elif ".kit" in part.parts and part.is_dir() and part.stat().st_uid == os.getuid():
            part.chmod(0o700)
    return folder


def write_private(path: Path, text: str) -> None:
    """Write a file at once and for its owner only (mode 0600)."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    temporary.replace(path)


def _password() -> str:
    return secrets.token_urlsafe(24)
