"""Workers on JetStream: jobs that are done once, stored events that are heard at least once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from nats.aio.msg import Msg

from kit import codec
from kit.catalogue import JOBS_DEDUPLICATED, JOBS_RETRIED, JobPolicy
from kit.errors import BusError, Disconnected, KitError, NotStored
from kit.nats.dead import Graveyard
from kit.nats.deadlines import bounded
from kit.nats.faults import Fault
from kit.nats.handling import Handling
from kit.nats.ids import AGAIN, REPLY, Delivery, delivered_before, is_inbox, job_id
from kit.nats.letters import Body, reason_of
from kit.nats.message import Handler
from kit.nats.pulling import Bind, Puller
from kit.nats.results import Recent, Results
from kit.nats.route import Route
from kit.nats.streaming import CallerGone
from kit.nats.worker import Tasks, Worker

if TYPE_CHECKING:
    from kit.nats.bus import Bus

T = TypeVar("T")
_log = logging.getLogger("kit.nats")

_ACK = b"+ACK"  # Source: NATS JetStream, acknowledgements, as the next two
_PROGRESS = b"+WPI"
_NAK = b"-NAK "
_HAND_BACK = 0.1  # s; before another worker gets what this one hands back on stop
_BURY_AGAIN = 2.0  # s; before the next try, when a dead letter could not be stored
_BACK = 60.0  # s; to wait for the connection, with a result that has to be told
_LATE = 10.0  # s; beyond the ack wait, for a crashed server to redeliver finished jobs
_ALL = 2**63
_CONFIRM = 2.0  # s; for an acknowledgement to be confirmed
_ASK_AGAIN = 0.25  # s
_GOODBYE = 2.0  # s; for the server to confirm the unsubscribing
_NAMED = 10  # unfinished jobs to name
_CUT_OFF = (
    "%d job(s) of %s did not finish within %.3g s and go back to their queue: another worker runs them from the start "
    "and pays for their calls again (%s); allow more time to drain"
)
_GIVE_UP = 1.0  # s; to leave again what could not be started
_QUICK = 0.005  # s; handlers that take less get their next messages ahead of time
_AHEAD = 16  # messages at most
_STOOD_STILL = (
    "the event loop was blocked for %.1f s while %s ran %s: no heartbeat was sent, and after %g s without one another "
    "worker runs the same job; make the handler a plain function (def) to run it on a thread"
)
_CAREFUL = 64  # messages to go without any ahead, after one that was delivered before


class LeaseLost(BusError):
    """The server heard nothing of this worker for too long and gave the job to another."""

    def __init__(self, subject: str, *, seconds: float) -> None:
        self.subject, self.seconds = subject, seconds
        super().__init__(f"the lease on a job of {subject} ran out: no heartbeat for {seconds:g} s")


class _Held:
    """A message that this worker has: until it is acknowledged, or its lease is lost."""

    __slots__ = (
        "beat", "before", "delivery", "handed_back", "lost", "message", "message_id", "rank", "settling", "task",
    )  # fmt: skip

    def __init__(self, message: Msg, given: Delivery, message_id: str, now: float, rank: int) -> None:
        self.message, self.delivery, self.message_id, self.rank = message, given, message_id, rank
        self.beat = now  # when the server last heard that it is worked on
        self.before = delivered_before(message.headers)
        self.handed_back = 0 if self.attempt == 1 else None  # of all deliveries; None until it is looked up
        self.task: asyncio.Task[None] | None = None  # while its handler runs
        self.lost = self.settling = False

    @property
    def attempt(self) -> int:
        """Which delivery of the job this is, from 1, even if the job was requeued."""
        return self.before + self.delivery.attempt

    def renew(self, message: Msg, given: Delivery, now: float) -> None:
        """Take a later delivery of the same message in place of this one."""
        self.message, self.delivery, self.beat = message, given, now


def _rank(held: _Held) -> int:
    return held.rank


class PullWorker(Worker):
    """A worker of a JetStream consumer.

    Args:
        bindings: each makes sure that a consumer exists and returns its name; those of one urgency together, the most
            urgent first.
        once: whether results are remembered by message id, so that an effect happens once.
    """

    def __init__(
        self,
        bus: Bus,
        route: Route,
        handler: Handler,
        *,
        results: Results,
        graveyard: Graveyard,
        group: str | None,
        concurrency: int,
        bindings: Sequence[Sequence[Bind]],
        once: bool,
    ) -> None:
        super().__init__(route.operation, route.subject)
        assert route.operation.stream is not None
        self._bus, self._results, self._graveyard = bus, results, graveyard
        self._policy: JobPolicy = route.operation.policy
        self._once = once
        self._concurrency = concurrency
        self._handling = Handling(bus, route, handler, kind="consumer", group=group)
        self._loop = asyncio.get_running_loop()
        self._held: dict[int, _Held] = {}  # by their sequence in the stream
        self._at_rank = [0] * len(bindings)  # how many of them are of each rank
        self._tasks: Tasks[_Held] = Tasks(self._work, concurrency, rank=_rank if len(bindings) > 1 else None)
        self._by_rank: tuple[tuple[Puller, ...], ...] = ()
        self._by_rank = tuple(
            tuple(self._puller(rank, bind, route.operation.stream) for bind in equals)
            for rank, equals in enumerate(bindings)
        )
        self._pullers = tuple(puller for equals in self._by_rank for puller in equals)
        self._pulse: asyncio.Task[None] | None = None
        self._recent = Recent(self._policy.ack_wait + _LATE)  # results, in case the server loses them
        self._cut_off: list[str] = []  # jobs that did not finish in time
        self._doubt = 0  # up to this sequence in the stream, any job may have been done before
        self._trusted = bus.connection.counters.disconnects  # when the connection broke since, any job may have been
        self._careful = 0
        self._seconds = _QUICK * 2  # of a handler, smoothed

    def _puller(self, rank: int, bind: Bind, stream: str) -> Puller:
        take, wanted = partial(self._take, rank), partial(self._wanted, rank)
        return Puller(self._bus.connection, stream, bind=bind, take=take, wanted=wanted)

    async def start(self) -> None:
        """Start to pull; on return the consumer exists."""
        await self._graveyard.open()
        try:
            for puller in self._pullers:
                await puller.start()
        except BaseException:
            await asyncio.gather(*(puller.stop(_GIVE_UP) for puller in self._pullers))
            raise
        self._pulse = self._loop.create_task(self._beat())
        self._bus.connection.on_reconnect.append(self._on_reconnect)
        if self._once:
            self._bus.background(self._clear_queue())

    @property
    def in_flight(self) -> int:
        """Messages that are here and not done yet."""
        return len(self._held)

    # --- what comes ---------------------------------------------------------------------------------------------

    def _wanted(self, rank: int) -> int:
        """How many more there is room for; what is less urgent takes no room from what is more."""
        room = self._concurrency
        if self._seconds < _QUICK and not self._careful:
            room += max(_AHEAD, room)
        for held in self._at_rank[: rank + 1]:
            room -= held
        for equals in self._by_rank[:rank]:
            for puller in equals:
                room -= puller.coming
        return room

    def _take(self, rank: int, message: Msg, given: Delivery) -> None:
        if given.attempt > 1:
            self._careful = _CAREFUL  # what killed a worker shall not take unstarted jobs along once more
        elif self._careful:
            self._careful -= 1
        here = self._held.get(given.sequence)
        if here is not None and not here.lost:
            # Given away and got back, with a connection that broke for a while: it is being worked on already.
            here.renew(message, given, self._loop.time())
            return
        held = _Held(message, given, job_id(message.headers, self.operation, given.sequence), self._loop.time(), rank)
        self._held[given.sequence] = held
        self._at_rank[rank] += 1
        self._tasks.put(held)

    async def _work(self, held: _Held) -> None:
        try:
            if not held.lost:
                held.task = asyncio.current_task()
                await self._handle(held)
        except asyncio.CancelledError:
            if not held.lost:  # on stop; shielded by nothing, so quick
                if held.task is not None:
                    self._cut_off.append(held.message_id)
                await self._hand_back(held)
            raise
        except KitError as error:
            # Not settled: the server gives it to somebody once the lease runs out.
            _log.warning("%s %s was left unsettled: %s", self.operation.name, held.message_id, error)
        finally:
            if self._held.get(held.delivery.sequence) is held:
                del self._held[held.delivery.sequence]
            self._at_rank[held.rank] -= 1
            self.handled += 1
            if self._stopping is None:
                await self._top_up()

    async def _handle(self, held: _Held) -> None:
        message, given = held.message, held.delivery
        if self._once and self._is_doubtful(held):
            if await self._done_before(held):
                return
            if held.handed_back is None:
                times = await self._insist(lambda: self._results.handed_back(self.operation, held.message_id))
                held.handed_back = min(times, held.attempt - 1)
        with self._handling.operation(message) as recorded:
            started = self._loop.time()
            try:
                answer = await self._handling.run(
                    message,
                    recorded,
                    message_id=held.message_id,
                    attempt=held.attempt,
                    handed_back=held.handed_back or 0,
                    stored_ns=given.stored_ns,
                )
            except asyncio.CancelledError:
                if held.lost:
                    Fault(LeaseLost(self.subject, seconds=self._policy.ack_wait)).record(recorded)
                raise
            held.task = None  # the effect has happened: from here on it must be told, lease or no lease
            held.settling = True
            self._seconds += 0.1 * (self._loop.time() - started - self._seconds)
            if isinstance(answer, Fault):
                await self._failed(held, answer)
            else:
                await self._succeeded(held, answer)

    def _is_doubtful(self, held: _Held) -> bool:
        """Say whether the job may have been done before, so that it has to be looked up."""
        headers, given = held.message.headers, held.delivery
        if held.attempt > 1 or given.sequence <= self._doubt or (headers and AGAIN in headers):
            return True
        return self._bus.connection.counters.disconnects != self._trusted

    def _on_reconnect(self) -> None:
        # A server that crashed forgets deliveries and acknowledgements of its last moments, and counts attempts anew.
        self._doubt, self._trusted = _ALL, self._bus.connection.counters.disconnects
        self._recent.renew()
        self._bus.background(self._doubt_what_is_stored())
        if self._once:
            self._bus.background(self._clear_queue())

    async def _doubt_what_is_stored(self) -> None:
        try:
            self._doubt = await self._results.stored(self.operation)
        except KitError as error:
            _log.info("%r: every job is looked up: %s", self, error)

    async def _clear_queue(self) -> None:
        """Delete finished jobs that a crashed server keeps for ever, once it no longer delivers them."""
        reconnects, last = self._bus.connection.counters.reconnects, 0
        while True:
            await asyncio.sleep(self._policy.ack_wait + _LATE / 2)
            if self._stopping is not None or self._bus.connection.counters.reconnects != reconnects:
                return  # after a reconnect there is another look
            try:
                last = last or await self._results.stored(self.operation)
                if await self._results.clear(self.operation, last, self._recent):
                    return
            except KitError as error:
                _log.info("%r: finished jobs were not cleaned up: %s", self, error)

    # --- how it ends --------------------------------------------------------------------------------------------

    async def _succeeded(self, held: _Held, answer: bytes) -> None:
        try:
            if self._loop.time() - held.beat > self._policy.ack_wait:
                await self._succeeded_late(held, answer)
                return
            if self._once:
                # First the note, then the acknowledgement, on one connection: a worker that dies in between is one
                # whose job is found done.
                await self._remember(held, answer)
            await self._bus.connection.client.publish(held.message.reply, _ACK)
        except Disconnected:
            await self._reconnected()
            await self._succeeded_late(held, answer)

    async def _succeeded_late(self, held: _Held, answer: bytes) -> None:
        """Settle a job that may have been given to another meanwhile: the first result counts, and is confirmed."""
        if self._once:
            if await self._done_before(held):
                return
            await self._remember(held, answer)
        await self._confirm(held)

    async def _remember(self, held: _Held, answer: bytes) -> None:
        headers = held.message.headers
        reply = headers.get(REPLY) if headers else None
        self._recent.put(held.message_id, answer, connected=self._bus.connection.client.is_connected)
        await self._results.remember(self.operation, held.message_id, reply, answer)

    async def _done_before(self, held: _Held) -> bool:
        """Answer with the remembered result, if there is one, and acknowledge."""
        answer = self._recent.get(held.message_id)
        if answer is None:
            answer = (await self._insist(lambda: self._results.recall(self.operation, held.message_id))).answer
        if answer is None:
            return False
        self._bus.telemetry.count(JOBS_DEDUPLICATED, operation=self.operation.name)
        reply = held.message.headers.get(REPLY) if held.message.headers else None
        if reply is not None and is_inbox(reply):
            await self._bus.connection.client.publish(reply, answer)
        await self._confirm(held)
        return True

    async def _confirm(self, held: _Held) -> None:
        """Acknowledge, and wait until the server has it: a plain acknowledgement may go unheard after a lost lease.

        A server that crashed may not know of the delivery and say nothing: then it delivers the message again, and the
        remembered result is acknowledged.
        """
        try:
            await self._bus.connection.request(held.message.reply, _ACK, timeout=min(self._policy.ack_wait, _CONFIRM))
        except BusError as error:
            _log.info("%s %s is not known to be acknowledged: %s", self.operation.name, held.message_id, error)

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask until there is an answer: it decides whether an effect happens twice; the lease is kept meanwhile."""
        deadline = self._loop.time() + _BACK
        while True:
            try:
                return await ask()
            except BusError as error:
                if self._loop.time() > deadline or self._stopping is not None:
                    raise
                _log.info("%r: %s; asked again", self, error)
            await asyncio.sleep(_ASK_AGAIN)

    async def _failed(self, held: _Held, fault: Fault) -> None:
        policy, attempt = self._policy, held.attempt - (held.handed_back or 0)
        try:
            if isinstance(fault.error, CallerGone):  # nobody wants it any more, so it is done
                await self._succeeded(held, fault.encoded(self.operation, held.attempt))
                return
            if fault.retryable and not fault.refused and attempt < policy.max_attempts:
                self._bus.telemetry.count(JOBS_RETRIED, operation=self.operation.name, error_type=fault.error_type)
                after = policy.backoff[min(attempt, len(policy.backoff)) - 1] if policy.backoff else _HAND_BACK
                await self._give_up_for(held, max(after, fault.retry_after or 0.0))
                return
            await self._bury(held, fault)
        except Disconnected:
            await self._reconnected()
            await self._bury(held, fault) if attempt >= policy.max_attempts else await self._give_up_for(held, 0.0)

    async def _bury(self, held: _Held, fault: Fault) -> None:
        message, given = held.message, held.delivery
        body = Body(
            operation=self.operation,
            subject=message.subject,
            payload=message.data,
            headers=dict(message.headers or {}),
            sequence=given.sequence,
            stored_at=given.stored_at,
            attempts=held.attempt,
        )
        try:
            await self._graveyard.bury(body, fault, reason_of(fault))
        except NotStored as error:
            _log.error("%s %s stays in its queue: %s", self.operation.name, held.message_id, error)
            await self._give_up_for(held, _BURY_AGAIN)
        else:
            await self._bus.connection.client.publish(message.reply, _ACK)

    async def _give_up_for(self, held: _Held, seconds: float) -> None:
        """Have the server deliver the message again, but not at once: that would burn every attempt in no time."""
        delay = codec.dumps({"delay": int(max(seconds, _HAND_BACK) * 1e9)})
        await self._bus.connection.client.publish(held.message.reply, _NAK + delay)

    async def _hand_back(self, held: _Held) -> None:
        with suppress(BusError):  # the lease runs out by itself
            if self._once:  # without this note it would be an attempt as any other
                if (times := held.handed_back) is None:
                    times = await self._results.handed_back(self.operation, held.message_id)
                await self._results.hand_back(self.operation, held.message_id, times + 1)
            await self._give_up_for(held, _HAND_BACK)

    async def _reconnected(self) -> None:
        with suppress(Disconnected):  # what is sent next says so
            await self._bus.connection.wait_connected(_BACK)

    # --- the pulse ----------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        """Tell the server what is still worked on; give up what it must have given to another; pull what was lost."""
        every = self._policy.ack_wait / 3
        pause = min(every, 1.0)
        while True:
            handled, began = self.handled, self._loop.time()
            await asyncio.sleep(pause)
            stood = self._loop.time() - began - pause
            if stood > every and (self._held or self.handled > handled):
                _log.warning(_STOOD_STILL, stood, self._handling.name, self.operation.name, self._policy.ack_wait)
            try:
                await self._keep_leases(every)
                if self._stopping is None:
                    for puller in self._pullers:
                        await puller.check()
            except KitError as error:
                _log.info("%r: %s", self, error)

    async def _keep_leases(self, every: float) -> None:
        client = self._bus.connection.client
        for held in tuple(self._held.values()):
            silent = self._loop.time() - held.beat
            if silent > self._policy.ack_wait and not held.lost and not held.settling:
                held.lost = True
                _log.warning("%s %s: its lease ran out", self.operation.name, held.message_id)
                if held.task is not None:
                    held.task.cancel()
            elif silent >= every * 0.9 and client.is_connected:
                await client.publish(held.message.reply, _PROGRESS)
                held.beat = self._loop.time()

    async def _top_up(self) -> None:
        with suppress(Disconnected):  # the pulse pulls again once the connection is back
            for puller in self._pullers:
                if puller.missing:
                    await puller.top_up()

    async def _stop(self, timeout: float) -> None:
        deadline = self._loop.time() + timeout
        with suppress(ValueError):
            self._bus.connection.on_reconnect.remove(self._on_reconnect)
        await asyncio.gather(*(puller.stop(min(timeout, _GOODBYE)) for puller in self._pullers))
        await self._tasks.end(max(0.0, deadline - self._loop.time()))
        if self._pulse is not None:
            self._pulse.cancel()
        await bounded(asyncio.gather(*map(self._hand_back, tuple(self._held.values()))), _GOODBYE)
        if self._cut_off:
            _log.warning(_CUT_OFF, len(self._cut_off), self.operation.name, timeout, ", ".join(self._cut_off[:_NAMED]))
        if self._bus.connection.client.is_connected:
            try:
                await self._bus.connection.flush(_GOODBYE)
            except BusError as error:  # jobs handed back without an answer are redelivered once their lease ends
                _log.warning("%r: stopped without unsubscribing: %s", self, error)
