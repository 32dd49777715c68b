"""``kit server``: the embedded server on its own, for workers and notebooks in other processes."""

from __future__ import annotations

import argparse
from pathlib import Path

from kit.lab.cli.console import Commands, command, say, whole

_DETAILS = """\
Each tenant has an account of its own; the line it prints for a tenant is what a client of that tenant needs (the
password is in the file that NATS_CREDS names, which only its owner can read):

  kit server --store .kit/nats --tenants acme,globex
  export NATS_URL=… NATS_CREDS=…/env/acme.env           (as printed)
  kit worker gateway rag document_qa --tenant acme

It listens on loopback only. It ends with 1 when nats-server crashes too often; its streams are then kept.
"""


def configure(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "server", _run, summary="run a NATS server until interrupted", details=_DETAILS)
    parser.add_argument("--store", type=Path, metavar="FOLDER", help="keep streams there (a temporary folder)")
    parser.add_argument("--port", type=whole(0, 65535), default=4222, metavar="N", help="0 takes a free one (4222)")
    parser.add_argument("--tenants", default="acme", metavar="ID[,ID…]", help="accounts to make (acme)")


def _run(chosen: argparse.Namespace) -> int:
    import asyncio

    from kit.nats.server import run_server

    tenants = [tenant for tenant in chosen.tenants.split(",") if tenant]
    asyncio.run(run_server(chosen.store, chosen.port, tenants, show=say))
    return 0
