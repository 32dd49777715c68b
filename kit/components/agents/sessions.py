"""Sessions of an agent in JetStream KV: created once, appended to by any number of runs at once, in any process.

Agno keeps a session as one document that a run reads at its start and writes back at its end, so that of two runs at
once one is lost (https://github.com/agno-agi/agno/issues/7791). Here each run is a document of its own, and its place
in the session is taken by a conditional write: of two that want the same place one gets it and the other the next.
What tools keep in ``session_state`` is merged: keys one by one, what was put at the end of lists, differences of
numbers; where nothing can be made of two changes, the second run fails with ``StateConflict``. Nothing is lost unsaid.

Keys, in the bucket ``agent_sessions`` of the tenant: ``<agent>.<session>.head`` says whose it is and about where it
ends, ``….run.<id>`` is a run, ``….at.<n>`` names the run at place n, ``….state`` is what tools keep,
with the ids of the last runs that changed it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from kit import codec
from kit.catalogue import AGENT_SESSION_CREATE
from kit.components.agents.errors import SessionRefused, StateConflict
from kit.components.agents.merging import Unmergeable, merged
from kit.errors import BusError, Conflict
from kit.nats.ids import token
from kit.otel import semconv
from kit.otel.operation import STATUS

if TYPE_CHECKING:
    import pandas as pd

    from kit.nats.bus import Bus
    from kit.nats.store import Store

BUCKET = "agent_sessions"
RESUMED = "resumed"  # status of a creation that came second
_LONGEST = 200  # characters of a session's id
_FILL = 0.8  # of the server's max_payload, above which a run goes to the object store
_TRIES = 100  # at the state, when others write it too
_CHANGED_BY = 200  # runs that are known to have changed the state, should one of them be done again


class Sessions:
    """The sessions of one agent."""

    def __init__(self, bus: Bus, agent_id: str) -> None:
        self._bus, self._agent_id = bus, agent_id
        self._opened: Store | None = None

    async def open(self, session_id: str, user_id: str | None = None) -> Session:
        """Return a session: created when there is none, resumed when there is one.

        Raises:
            SessionRefused: it is another user's, or its id cannot be one.
        """
        if not 0 < len(session_id) <= _LONGEST:
            raise SessionRefused(self._agent_id)
        store = await self._store()
        base = f"{self._agent_id}.{token(session_id)}"
        head = {
            "session_id": session_id, "agent_id": self._agent_id, "user_id": user_id, "created_at": codec.now(),
            "runs": 0,
        }  # fmt: skip
        entry = await store.get(f"{base}.head")
        if entry is None:
            if await self._created(store, base, head):
                return Session(self._bus, store, base, head)
            entry = await store.get(f"{base}.head")
        if entry is not None and entry.value is not None:
            head = codec.loads(entry.value)
        if head["user_id"] not in (None, user_id):
            raise SessionRefused(self._agent_id)
        return Session(self._bus, store, base, head)

    async def table(self) -> pd.DataFrame:
        """Return the agent's sessions, the oldest first: whose they are, since when, and how many runs they hold."""
        import pandas as pd

        store = await self._store()
        keys = [key for key in await store.keys(f"{self._agent_id}.") if key.endswith(".head")]
        heads = [codec.loads(entry.value) for key in keys if (entry := await store.get(key)) and entry.value]
        for head in heads:
            head["runs"] = await Session(self._bus, store, self._base(head["session_id"]), head).length()
            head["user_id"] = head["user_id"] or ""  # a table shows None as NaN
        frame = pd.DataFrame(heads, columns=["session_id", "user_id", "created_at", "runs"])
        return frame.sort_values("created_at", ignore_index=True)

    async def delete(self, session_id: str) -> bool:
        """Forget a session with everything in it; return whether there was one."""
        store, base = await self._store(), self._base(session_id)
        known = bool(await store.keys(f"{base}."))
        await store.delete(f"{base}.head")  # first: a run that is under way finds it gone, and leaves nothing behind
        for key in await store.keys(f"{base}."):
            await _delete(self._bus, store, key)
        return known

    async def _created(self, store: Store, base: str, head: Mapping[str, Any]) -> bool:
        """Create a session; say no when somebody else was quicker: it is theirs, and resumed here."""
        attributes = {semconv.AGENT_ID: self._agent_id, semconv.SESSION_ID: head["session_id"]}
        with self._bus.telemetry.operation(AGENT_SESSION_CREATE, attributes) as op:
            try:
                await store.create(f"{base}.head", codec.dumps(head))
            except Conflict:
                op.label(STATUS, RESUMED)
                return False
        return True

    def _base(self, session_id: str) -> str:
        return f"{self._agent_id}.{token(session_id)}"

    async def _store(self) -> Store:
        if self._opened is None:
            self._opened = await self._bus.store(BUCKET)
        return self._opened


class Session:
    """One session: a log of runs that only grows, and what tools keep in it.

    Attributes:
        session_id: its name; user_id: whose it is, or None.
    """

    def __init__(self, bus: Bus, store: Store, base: str, head: Mapping[str, Any]) -> None:
        self.session_id: str = head["session_id"]
        self.user_id: str | None = head["user_id"]
        self._agent_id: str = head["agent_id"]
        self._bus, self._store, self._base = bus, store, base
        self._hint: int = head["runs"]
        self._head = dict(head)

    # --- reading ------------------------------------------------------------------------------------------------

    async def length(self) -> int:
        """Return how many places are taken."""
        while await self._store.get(self._at(self._hint)) is not None:
            self._hint += 1
        return self._hint

    async def runs(self, last: int | None = None) -> list[dict[str, Any]]:
        """Return the last runs, or all, the oldest first: ``run_id``, ``messages``, ``answer``, ``timestamp``."""
        end = await self.length()
        begin = 0 if last is None else max(end - last, 0)
        places = await asyncio.gather(*(self._store.get(self._at(place)) for place in range(begin, end)))
        names = dict.fromkeys(entry.value.decode() for entry in places if entry is not None and entry.value)
        found = await asyncio.gather(*(self._run(name) for name in names))
        return [run for run in found if run is not None]

    async def find(self, run_id: str) -> dict[str, Any] | None:
        """Return a run by its id, or None."""
        return await self._run(token(run_id))

    async def state(self) -> dict[str, Any]:
        """Return what tools keep in the session."""
        return (await self._state())[0]["state"]  # type: ignore[no-any-return]

    # --- writing ------------------------------------------------------------------------------------------------

    async def append(self, run_id: str, messages: Sequence[Mapping[str, Any]], answer: Mapping[str, Any]) -> None:
        """Put a run at the end; of the same run, done twice, the first one stays and nothing is added.

        Nothing is added to a session that was deleted since it was opened.
        """
        if not await self._revision():
            return
        run = {
            "run_id": run_id, "timestamp": codec.now(), "messages": list(messages), "answer": dict(answer),
        }  # fmt: skip
        name = token(run_id)
        try:
            await self._store.create(f"{self._base}.run.{name}", await self._fitting(codec.dumps(run), name))
        except Conflict:
            if any(kept["run_id"] == run_id for kept in await self.runs()):
                return  # … else whoever wrote it died before it had a place
        await self._place(name)

    async def change(self, before: Mapping[str, Any], after: Mapping[str, Any], run_id: str) -> None:
        """Write what a run changed of the state, beside what others changed meanwhile; of a run done twice, once.

        Raises:
            StateConflict: another run changed the same value, and nothing can be made of both; nothing was written.
            CodecError: the state is no JSON.
        """
        before, after = codec.loads(codec.dumps(dict(before))), codec.loads(codec.dumps(dict(after)))
        if before == after or not await self._revision():
            return
        for _ in range(_TRIES):
            known, revision = await self._state()
            if run_id in known["runs"]:
                return
            try:
                state = merged(before, after, known["state"])
            except Unmergeable as error:
                raise StateConflict(self._agent_id, path=error.path) from error
            document = codec.dumps({"state": state, "runs": [*known["runs"], run_id][-_CHANGED_BY:]})
            try:
                if revision:
                    await self._store.update(f"{self._base}.state", document, revision)
                else:
                    await self._store.create(f"{self._base}.state", document)
                if not await self._revision():  # deleted meanwhile
                    await self._store.delete(f"{self._base}.state")
                return
            except Conflict:
                continue
        raise BusError(f"the state of a session was written by others in {_TRIES} attempts on end")

    async def _place(self, name: str) -> None:
        """Take the first free place."""
        while True:
            try:
                await self._store.create(self._at(self._hint), name.encode())
                break
            except Conflict:
                self._hint += 1
        revision = await self._revision()
        if not revision:  # deleted meanwhile
            for key in (self._at(self._hint), f"{self._base}.run.{name}"):
                await _delete(self._bus, self._store, key)
            return
        self._hint += 1
        # Only where to begin looking: one that another overtook says less than is true, never more.
        self._head["runs"] = self._hint
        with suppress(Conflict):
            await self._store.update(f"{self._base}.head", codec.dumps(self._head), revision)

    async def _revision(self) -> int:
        """Return the revision of the session's head; 0 when it was deleted since it was opened."""
        entry = await self._store.get(f"{self._base}.head")
        if entry is None or not entry.value:
            return 0
        return entry.revision if codec.loads(entry.value)["created_at"] == self._head["created_at"] else 0

    async def _fitting(self, document: bytes, name: str) -> bytes:
        if len(document) <= _FILL * self._bus.connection.max_payload:
            return document
        claim = await self._bus.put_object(f"agent-run-{self._base}-{name}", document)
        return codec.dumps({"claim": claim})

    async def _run(self, name: str) -> dict[str, Any] | None:
        entry = await self._store.get(f"{self._base}.run.{name}")
        if entry is None or entry.value is None:
            return None
        run: dict[str, Any] = codec.loads(entry.value)
        return codec.loads(await self._bus.get_object(run["claim"])) if "claim" in run else run

    async def _state(self) -> tuple[dict[str, Any], int]:
        entry = await self._store.get(f"{self._base}.state")
        if entry is None or not entry.value:
            return {"state": {}, "runs": []}, 0
        return codec.loads(entry.value), entry.revision

    def _at(self, place: int) -> str:
        return f"{self._base}.at.{place}"


async def _delete(bus: Bus, store: Store, key: str) -> None:
    """Delete a key, with the object that a large run is in."""
    if ".run." in key:
        document = codec.loads(entry.value) if (entry := await store.get(key)) and entry.value else {}
        if "claim" in document:
            await bus.delete_object(document["claim"])
    await store.delete(key)
