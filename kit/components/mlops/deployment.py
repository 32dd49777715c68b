"""Which version is champion: moved by compare-and-swap, told by stored events, followed by prediction workers.

The order of moves stands in JetStream KV (``<model>``: revision, version, those before); the registry's champion alias
follows it, so that MLflow's own tools show the same.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from typing import TYPE_CHECKING, Any

from kit import codec
from kit.catalogue import MLOPS_DEPLOY
from kit.components.mlops.errors import UnknownModel
from kit.components.mlops.registry import CHAMPION, Registry, Version
from kit.errors import Conflict

if TYPE_CHECKING:
    from kit.nats import Bus, Store

BUCKET = "mlops-deployments"
TRIES = 20  # attempts to move a champion that others move too
REMEMBERED = 50  # versions to which one can roll back, step by step


class Deployments:
    """The champions of a tenant."""

    def __init__(self, bus: Bus, registry: Registry) -> None:
        self._bus, self._registry = bus, registry
        self._store: Store | None = None

    async def champion(self, model_name: str) -> str | None:
        """Return the version that is champion, or None."""
        return (await self.state(model_name))["version"]  # type: ignore[no-any-return]

    async def state(self, model_name: str) -> dict[str, Any]:
        """Return ``version``, ``before`` (those it followed, the last one last) and ``revision`` of the champion.

        A champion that was set by other means, in MLflow itself, counts where nobody moved it here.
        """
        state, _ = await self._read(model_name)
        return state

    async def promote(
        self, model_name: str, version: str, *, reason: str | None = None, deployed_by: str | None = None
    ) -> dict[str, Any]:
        """Make a version champion and tell it; return the ``ml_deployment``.

        Raises:
            UnknownModel: there is no such version.
        """
        found = await asyncio.to_thread(self._registry.version, model_name, version)
        return await self._move(model_name, "deploy", found, reason, deployed_by)

    async def rollback(
        self, model_name: str, *, reason: str | None = None, deployed_by: str | None = None
    ) -> dict[str, Any]:
        """Make the version before champion again and tell it; return the ``ml_deployment``.

        Raises:
            UnknownModel: there was none before.
        """
        return await self._move(model_name, "rollback", None, reason, deployed_by)

    async def retire(
        self, model_name: str, *, reason: str | None = None, deployed_by: str | None = None
    ) -> dict[str, Any]:
        """Leave a model without a champion and tell it; return the ``ml_deployment``.

        Raises:
            UnknownModel: it has none.
        """
        return await self._move(model_name, "retire", None, reason, deployed_by)

    async def _move(
        self, model_name: str, action: str, found: Version | None, reason: str | None, deployed_by: str | None
    ) -> dict[str, Any]:
        for _ in range(TRIES):
            state, entry = await self._read(model_name)
            moved = _moved(model_name, state, action, found.version if found else None)
            if moved["version"] is not None and (found is None or found.version != moved["version"]):
                found = await asyncio.to_thread(self._registry.version, model_name, moved["version"])
            value = codec.dumps(moved)
            store = await self._opened()
            try:
                if entry is None:
                    await store.create(self._key(model_name), value)
                else:
                    await store.update(self._key(model_name), value, entry)
            except Conflict:
                continue
            await self._follow(model_name)
            event = self._event(model_name, action, state, moved, found)
            told = {"reason": reason, "deployed_by": deployed_by}
            event |= {name: value for name, value in told.items() if value is not None}
            await self._bus.publish(MLOPS_DEPLOY, event, message_id=event["deployment_id"])
            return event
        raise Conflict(BUCKET, self._key(model_name), expected=entry or 0)

    async def _follow(self, model_name: str) -> None:
        """Point the registry's alias at the champion, also when others move it at the same time."""
        for attempt in range(TRIES):
            state, entry = await self._read(model_name)
            moved = await asyncio.to_thread(self._registry.set_champion, model_name, state["version"])
            if moved and (await self._read(model_name))[1] == entry:
                return
            await asyncio.sleep(random.uniform(0.0, 0.01 * (attempt + 1)))

    def _event(
        self, model_name: str, action: str, state: dict[str, Any], moved: dict[str, Any], found: Version | None
    ) -> dict[str, Any]:
        event: dict[str, Any] = {
            "model_name": model_name,
            "version": moved["version"] or state["version"],
            "alias": CHAMPION,
            "action": action,
            "tenant_id": self._bus.tenant_id,
            "timestamp": codec.now(),
            "deployment_id": f"deploy-{secrets.token_hex(8)}",
            "previous_version": state["version"],
            "revision": moved["revision"],
        }
        if found is not None and moved["version"] is not None:
            event |= {
                "run_id": found.run_id,
                "model_type": found.model_type,
                "artifact": found.artifact,
                "metrics": found.metrics,
            }
        return event

    async def _read(self, model_name: str) -> tuple[dict[str, Any], int | None]:
        store = await self._opened()
        entry = await store.get(self._key(model_name))
        if entry is not None and entry.value is not None:
            return codec.loads(entry.value), entry.revision
        found = await asyncio.to_thread(self._registry.champion, model_name)
        return {"version": found.version if found else None, "before": [], "revision": 0}, None

    async def _opened(self) -> Store:
        if self._store is None:
            self._store = await self._bus.store(BUCKET)
        return self._store

    def _key(self, model_name: str) -> str:
        return self._registry.full_name(model_name)


def _moved(model_name: str, state: dict[str, Any], action: str, version: str | None) -> dict[str, Any]:
    """Return the state after an action."""
    before = list(state["before"])
    if action == "rollback":
        if not before:
            raise UnknownModel(model_name, alias="champion before this one")
        version = before.pop()
    elif state["version"] is None and action == "retire":
        raise UnknownModel(model_name, alias=CHAMPION)
    elif state["version"] not in (None, version):
        before.append(state["version"])
    return {"version": version, "before": before[-REMEMBERED:], "revision": state["revision"] + 1}
