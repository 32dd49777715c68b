"""``kit worker``: components as a process of their own, any number of them on any number of machines."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from kit.errors import BusError
from kit.lab import components
from kit.lab.cli.console import Commands, Shown, command, complain, say, settings, whole

if TYPE_CHECKING:
    from kit.lab.session import Lab

_DETAILS = """\
The server is NATS_URL's (nats://127.0.0.1:4222), the credentials are those of the environment: NATS_USER and
NATS_PASSWORD, NATS_TOKEN, NATS_CREDS or NATS_NKEY_SEED. SIGTERM or Ctrl-C drains: what was begun is finished,
nothing new is taken. What has not ended after --drain seconds goes to another worker, from its beginning.

  kit worker gateway rag --tenant acme --setting concurrency=4
  kit worker gateway --setting 'rate_limits={"*": {"requests": 60, "window": 60}}'
"""


def configure(commands: Commands) -> None:
    """Add the command."""
    listed = "".join(f"  {name:<12} {components.summary(name)}\n" for name in components.names())
    details = f"components:\n{listed}\n{_DETAILS}"
    parser = command(commands, "worker", _run, summary="serve components until interrupted", details=details)
    parser.add_argument("components", nargs="+", metavar="COMPONENT", help="what to serve")
    parser.add_argument("--tenant", default="acme", metavar="ID", help="whose messages (acme)")
    parser.add_argument(
        "--setting", action="append", default=[], metavar="NAME=VALUE", help="a setting of a component; repeatable"
    )
    parser.add_argument(
        "--drain",
        type=whole(0, 86400),
        default=10,
        metavar="SECONDS",
        help="to finish what was begun, when asked to end (10)",
    )


def _run(chosen: argparse.Namespace) -> int:
    import asyncio
    import logging

    if logging.lastResort is not None:  # what writes the log lines of a process that set up no logging
        logging.lastResort.setFormatter(Shown())
    for name in chosen.components:  # before anything is connected to
        components.known(name)
    taken = settings(chosen.setting, option="--setting")
    asyncio.run(_serve(chosen.components, chosen.tenant, taken, chosen.drain))
    return 0


async def _serve(names: list[str], tenant_id: str, chosen: dict[str, Any], drain: int) -> None:
    from kit.lab.cli.signals import asked_to_end
    from kit.lab.session import attach

    with asked_to_end() as asked:
        lab = await attach(tenant_id, service_name=f"kit-{'-'.join(names)}")
        try:
            await lab.serve(*names, **chosen)
            say(f"serving {', '.join(names)} for {tenant_id}; Ctrl-C drains and stops")
            await asked.wait()
        finally:
            await _stop(lab, drain)
    say("stopped")


async def _stop(lab: Lab, drain: int) -> None:
    """Stop, and say what did not end in time: another worker gets its jobs, so that is no failure."""
    from kit.lab.session import CLOSE_SECONDS

    try:
        await lab.stop(drain + CLOSE_SECONDS)
    except* (TimeoutError, BusError) as late:
        for fault in late.exceptions:
            complain(f"kit worker: {fault}; what it had begun goes to another worker")
