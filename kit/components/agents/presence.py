"""Who is there: every agent tells what it does when that changes, and by a heartbeat that it still is.

The last word of each is kept in JetStream KV (bucket ``agent_presence``) for an hour, so that who comes later knows
at once; it counts for three heartbeats.
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kit import codec
from kit.catalogue import AGENT_PRESENCE, AGENT_PRESENCE_SECONDS, AGENT_STATUS
from kit.errors import KitError

if TYPE_CHECKING:
    import pandas as pd

    from kit.nats.bus import Bus
    from kit.nats.store import Store

INTERVAL = 5.0  # s; between two heartbeats
BEATS = 3.0  # heartbeats that may be missed before an agent counts as lost
GONE = ("stopped", "failed")
LOST = "lost"
_COLUMNS = ("agent", "status", "alive", "active", "completed", "failed", "model", "capabilities", "seen")

_log = logging.getLogger("kit.agents")


class Presence:
    """Tells what an agent does.

    Args:
        about: what is told beside its status: model, capabilities, tools, role.
        interval: seconds between two heartbeats.
    """

    def __init__(
        self, bus: Bus, agent_id: str, about: Callable[[], Mapping[str, Any]], *, interval: float = INTERVAL
    ) -> None:
        self._bus, self._agent_id, self._about, self._interval = bus, agent_id, about, interval
        self._worker_id = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._key = f"{agent_id}.{self._worker_id}"
        self._tasks: dict[str, str | None] = {}
        self._completed = self._failed = 0
        self._state = "stopped"
        self._started_at = codec.now()
        self._beating: asyncio.Task[None] | None = None
        self._store: Store | None = None

    @property
    def present(self) -> bool:
        """Whether its heart beats."""
        return self._beating is not None

    async def begin(self) -> None:
        """Tell that the agent is there, and go on to tell so."""
        if self._beating is None:
            self._state, self._started_at = "idle", codec.now()
            await self.tell()
            self._beating = asyncio.get_running_loop().create_task(self._beat())

    async def end(self, status: str = "stopped") -> None:
        """Tell that the agent goes."""
        beating, self._beating = self._beating, None
        if beating is not None:
            beating.cancel()
            self._state = status
            await self._told()

    async def busy(self, run_id: str, task_id: str | None = None) -> None:
        """Note that a run began."""
        self._tasks[run_id] = task_id
        if self._beating is not None:
            await self._told()

    async def done(self, run_id: str, *, failed: bool = False) -> None:
        """Note that a run ended."""
        self._tasks.pop(run_id, None)
        if failed:
            self._failed += 1
        else:
            self._completed += 1
        if self._beating is not None:
            await self._told()

    async def drain(self) -> None:
        """Tell that the agent takes nothing new."""
        if self._beating is not None:
            self._state = "draining"
            await self._told()

    async def tell(self) -> None:
        """Tell what the agent does now, to whoever watches, and for whoever comes later."""
        status = "busy" if self._tasks and self._state == "idle" else self._state
        data: dict[str, Any] = {
            "agent_id": self._agent_id, "status": status, "active_tasks": len(self._tasks),
            "completed_tasks": self._completed, "failed_tasks": self._failed, "interval": self._interval,
            "worker_id": self._worker_id, "started_at": self._started_at, "timestamp": codec.now(), **self._about(),
        }  # fmt: skip
        if task_id := next((task for task in self._tasks.values() if task), None):
            data["task_id"] = task_id
        await self._bus.publish(AGENT_STATUS, data)
        if self._store is None:
            self._store = await self._bus.store(AGENT_PRESENCE, AGENT_PRESENCE_SECONDS)
        await self._store.put(self._key, codec.dumps(data))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            await self._told()

    async def _told(self) -> None:
        try:
            await self.tell()
        except KitError as error:  # the next heartbeat tells it; no run fails for it
            _log.info("the status of %s was not told: %s", self._agent_id, error)


async def last_words(bus: Bus) -> list[dict[str, Any]]:
    """Return what every agent told last, within the hour."""
    store = await bus.store(AGENT_PRESENCE, AGENT_PRESENCE_SECONDS)
    entries = await asyncio.gather(*(store.get(key) for key in await store.keys()))
    return [codec.loads(entry.value) for entry in entries if entry is not None and entry.value]


def table_of(words: list[dict[str, Any]], now: datetime | None = None) -> pd.DataFrame:
    """Return who is there as a table, a row an agent and process: ``status`` is ``lost`` where the heart stopped.

    ``seen`` is the number of seconds since its last word.
    """
    import pandas as pd

    moment = now or datetime.now(UTC)
    rows = []
    for said in words:
        seen = max((moment - datetime.fromisoformat(said["timestamp"])).total_seconds(), 0.0)
        gone = said["status"] in GONE
        lost = not gone and seen > BEATS * said.get("interval", INTERVAL)
        rows.append(
            (
                said["agent_id"], LOST if lost else said["status"], not gone and not lost,
                said.get("active_tasks", 0), said.get("completed_tasks", 0), said.get("failed_tasks", 0),
                said.get("model", ""), ", ".join(said.get("capabilities", ())), round(seen, 1),
            )
        )  # fmt: skip
    return pd.DataFrame(sorted(rows, key=lambda row: (row[0], -row[2], row[8])), columns=list(_COLUMNS))
