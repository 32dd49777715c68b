"""``kit worker``: components as a process of their own, any number of them on any number of machines."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.errors import BusError, ConfigurationError
from kit.lab import components
from kit.lab.cli.console import Commands, Shown, command, complain, listed, say, settings, whole

if TYPE_CHECKING:
    from kit.lab.session import Lab

_DETAILS = """\
The server is NATS_URL's (nats://127.0.0.1:4222), the credentials are those of the environment: NATS_USER and
NATS_PASSWORD, NATS_TOKEN, NATS_CREDS or NATS_NKEY_SEED. SIGTERM or Ctrl-C drains: what was begun is finished,
nothing new is taken. What has not ended after --drain seconds goes to another worker, from its beginning.

A process can serve several tenants, each over a connection to its own account: NATS_USER, NATS_CREDS and
NATS_NKEY_SEED may have {tenant} in them, which stands for the tenant's id. Settings that hold secrets (api_key)
belong into a JSON file that only its owner can read, not on a command line.

  kit worker gateway rag --tenant acme --setting concurrency=4
  NATS_CREDS=.kit/nats/env/{tenant}.env kit worker gateway rag --tenants acme,globex
  kit worker gateway --settings models.json
  kit worker gateway --setting 'rate_limits={"*": {"requests": 60, "window": 60}}'
"""


def configure(commands: Commands) -> None:
    """Add the command."""
    offered = "".join(f"  {name:<12} {components.summary(name)}\n" for name in components.names())
    details = f"components:\n{offered}\n{_DETAILS}"
    parser = command(commands, "worker", _run, summary="serve components until interrupted", details=details)
    parser.add_argument("components", nargs="+", metavar="COMPONENT", help="what to serve")
    whose = parser.add_mutually_exclusive_group()
    whose.add_argument("--tenant", default="acme", metavar="ID", help="whose messages (acme)")
    whose.add_argument("--tenants", type=listed, default=[], metavar="ID,ID…", help="whose messages, if of several")
    parser.add_argument(
        "--setting", action="append", default=[], metavar="NAME=VALUE", help="a setting of a component; repeatable"
    )
    parser.add_argument("--settings", type=Path, metavar="FILE", help="settings as a JSON object")
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
    taken = _of_file(chosen.settings) | settings(chosen.setting, option="--setting")
    asyncio.run(_serve(chosen.components, chosen.tenants or [chosen.tenant], taken, chosen.drain))
    return 0


def _of_file(path: Path | None) -> dict[str, Any]:
    try:
        found = {} if path is None else json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"--settings {path} cannot be read: {type(error).__name__}") from None
    if not isinstance(found, dict):
        raise ConfigurationError(f"--settings {path} has no JSON object in it")
    return found


async def _serve(names: list[str], tenants: list[str], chosen: dict[str, Any], drain: int) -> None:
    from kit.lab.cli.signals import asked_to_end
    from kit.lab.session import attach

    with asked_to_end() as asked:
        lab = await attach(tenants[0], service_name=f"kit-{'-'.join(names)}")
        try:
            for tenant in dict.fromkeys(tenants):
                await lab.serve(*names, tenant_id=tenant, **chosen)
            say(f"serving {', '.join(names)} for {', '.join(tenants)}; Ctrl-C drains and stops")
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
