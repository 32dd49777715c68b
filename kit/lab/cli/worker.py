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
The worker connects to NATS_URL (nats://127.0.0.1:4222) with the credentials in the environment: NATS_USER and
NATS_PASSWORD, NATS_TOKEN, NATS_CREDS or NATS_NKEY_SEED. On SIGTERM or Ctrl-C it drains: it takes no new jobs and
finishes those it has. Another worker restarts whatever is not finished after --drain seconds.

One process can serve several tenants, each over a connection to its own account: {tenant} in NATS_USER, NATS_CREDS
and NATS_NKEY_SEED stands for the tenant's id. Put settings with secrets (api_key) into a JSON file that only you can
read, not on the command line.

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
    whose.add_argument("--tenants", type=listed, default=[], metavar="ID,ID…", help="to serve several tenants")
    parser.add_argument(
        "--setting", action="append", default=[], metavar="NAME=VALUE", help="a setting of a component; repeatable"
    )
    parser.add_argument("--settings", type=Path, metavar="FILE", help="JSON file with an object of settings")
    parser.add_argument(
        "--drain",
        type=whole(0, 86400),
        default=10,
        metavar="SECONDS",
        help="time to finish running jobs when asked to stop (10)",
    )


def _run(chosen: argparse.Namespace) -> int:
    import asyncio
    import logging

    if logging.lastResort is not None:  # it writes the log lines if nothing configured logging
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
        raise ConfigurationError(f"--settings {path} must contain a JSON object")
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
    """Stop, and report what did not end in time; that is not a failure, because another worker gets the jobs."""
    from kit.lab.session import CLOSE_SECONDS

    try:
        await lab.stop(drain + CLOSE_SECONDS)
    except* (TimeoutError, BusError) as late:
        for fault in late.exceptions:
            complain(f"kit worker: {fault}; another worker restarts its unfinished jobs")
