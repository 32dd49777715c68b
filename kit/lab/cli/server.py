"""``kit server``: the embedded server on its own, for workers and notebooks in other processes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kit.lab.cli.console import Commands, command, say, whole

if TYPE_CHECKING:
    from kit.nats.server import Server

_DETAILS = """\
Each tenant has an account of its own; the lines it prints are what a client of that tenant needs:

  kit server --store .kit/nats --tenants acme,globex
  export NATS_URL=… NATS_USER=acme NATS_PASSWORD=…      (as printed)
  kit worker gateway rag document_qa

It listens on loopback only. For more than one machine run nats-server itself and set NATS_URL to it.
"""


def configure(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "server", _run, summary="run a NATS server until interrupted", details=_DETAILS)
    parser.add_argument("--store", type=Path, metavar="FOLDER", help="keep streams there (a temporary folder)")
    parser.add_argument("--port", type=whole(0, 65535), default=4222, metavar="N", help="0 takes a free one (4222)")
    parser.add_argument("--tenants", default="acme", metavar="ID[,ID…]", help="accounts to make (acme)")


def _run(chosen: argparse.Namespace) -> int:
    import asyncio

    asyncio.run(_serve(chosen.store, [tenant for tenant in chosen.tenants.split(",") if tenant], chosen.port))
    return 0


async def _serve(store: Path | None, tenants: list[str], port: int) -> None:
    from kit.lab.cli.signals import asked_to_end
    from kit.nats.server import Server

    with asked_to_end() as asked:
        async with Server(store, tenants=tenants, port=port) as server:
            _tell(server)
            await asked.wait()
    say("stopped")


def _tell(server: Server) -> None:
    say(f"nats-server at {server.url}, streams in {server.store}")
    for tenant in server.tenants:
        who = server.credentials(tenant)
        say(f"export NATS_URL={server.url} NATS_USER={who.user} NATS_PASSWORD={who.password}")
    say("Ctrl-C stops it")
