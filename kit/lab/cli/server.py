"""``kit server``: the embedded server on its own, for workers and notebooks in other processes."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from kit.lab.cli.console import Commands, command, complain, listed, say, whole

_DETAILS = """\
Each tenant has its own account. For each tenant, the command prints the variables that its clients need (the password
is in the file that NATS_CREDS names, which only its owner can read):

  kit server --store .kit/nats --tenants acme,globex
  export NATS_URL=… NATS_CREDS=…/env/acme.env           (as printed)
  kit worker gateway rag document_qa --tenant acme

The server listens on loopback only. If nats-server crashes too often, the command exits with 1 and keeps the streams.

For more than one machine, run nats-server yourself. --print-config prints a configuration that you can edit: accounts,
users, limits, JetStream, TLS. With --store, the passwords are the store's, and each tenant's NATS_CREDS file is written
to the folder env in the store:

  kit server --print-config --tenants acme,globex --store .kit/nats > nats.conf
  kit server --print-config --tenants acme,globex --hosts n1,n2,n3 > nats.conf
"""


def configure(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "server", _run, summary="run a NATS server until interrupted", details=_DETAILS)
    parser.add_argument("--store", type=Path, metavar="FOLDER", help="keep streams there (a temporary folder)")
    parser.add_argument("--port", type=whole(0, 65535), default=4222, metavar="N", help="0 takes a free one (4222)")
    parser.add_argument("--tenants", default="acme", metavar="ID[,ID…]", help="accounts to make (acme)")
    parser.add_argument("--print-config", action="store_true", help="print a nats-server configuration and exit")
    parser.add_argument("--hosts", default="", metavar="HOST,HOST…", help="with --print-config: a cluster's servers")


def _run(chosen: argparse.Namespace) -> int:
    import asyncio

    from kit.nats.server import run_server

    tenants = listed(chosen.tenants)
    if chosen.print_config:
        return _print_config(chosen, tenants)
    asyncio.run(run_server(chosen.store, chosen.port, tenants, show=say))
    return 0


def _print_config(chosen: argparse.Namespace, tenants: list[str]) -> int:
    from kit.nats.config import Limits, Secrets, render_cluster, write_credentials

    secrets = Secrets.new() if chosen.store is None else Secrets.load(chosen.store / "secrets.json")
    for tenant in tenants:
        secrets.add(tenant)
    hosts = listed(chosen.hosts)
    if chosen.store is not None:
        chosen.store.mkdir(mode=0o700, parents=True, exist_ok=True)
        secrets.save(chosen.store / "secrets.json")
        url = ",".join(f"nats://{host.partition(':')[0]}:{chosen.port}" for host in hosts or ["127.0.0.1"])
        for path in write_credentials(secrets, chosen.store / "env", url).values():
            complain(f"export NATS_URL={url} NATS_CREDS={shlex.quote(str(path))}")
    say(render_cluster(secrets=secrets, limits=Limits(), hosts=hosts, store="./jetstream", port=chosen.port))
    return 0
