"""JetStream of one tenant's account: the streams and consumers that the catalogue implies, and how they are asked.

Streams, made when first needed:

    AI_RAG_INGEST           a JOB's queue: work-queue retention, de-duplicated by message id
    AI_RAG_INGEST_RESULTS   its results, remembered for ``policy.result_ttl``: they are what makes an effect happen once
    AI_LLMOPS_OPERATIONS    a stored EVENT: limits retention
    KIT_DEAD                dead letters of every operation: evidence and payload
    KIT_EXHAUSTED           the server's own notes of messages that it gave up delivering
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import nats.errors
import nats.js.errors
from nats.js import JetStreamContext, api

from kit import codec
from kit.catalogue import DEAD_LETTERS_PREFIX, RESULTS_PREFIX, Mode, Operation
from kit.errors import BusError, ConfigurationError, DeadlineExceeded, Disconnected, NoResponders, NotStored
from kit.nats.ids import AGAIN, MESSAGE_ID

if TYPE_CHECKING:
    from nats.aio.msg import Msg

    from kit.nats.connection import Connection

T = TypeVar("T")
_log = logging.getLogger("kit.nats")

DEAD_STREAM = "KIT_DEAD"
EXHAUSTED_STREAM = "KIT_EXHAUSTED"
EXHAUSTED = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES"  # Source: NATS JetStream advisories
NEXT = "$JS.API.CONSUMER.MSG.NEXT"  # Source: NATS JetStream wire API, as the next one
DIRECT_GET = "$JS.API.DIRECT.GET"
SEQUENCE = "Nats-Sequence"
SUBJECT = "Nats-Subject"
TIME = "Nats-Time-Stamp"
TTL = "Nats-TTL"

_API_SECONDS = 5.0
_MOST_URGENT = 9
_USUAL = (4, 6)  # priorities of the middle level
_REPLICAS = 3  # bear the loss of one server
_PRODS = 64  # at most, of one queue at a time
_TRY_SECONDS = 2.0  # for one publish to be acknowledged, before it is sent again under the same id
_PAUSE = 0.1  # s; before it is sent again, when the answer was a refusal
_IDLE = 60.0  # s; after which the server forgets a subscriber without a name that pulls no more
_WINDOW = 600.0  # s; for which the server remembers ids of what was published
_RESULTS = 100_000  # remembered, per operation; not a number of bytes, which the server would reserve
NAME_IN_USE = 10058  # Source: nats-server's errors.json, as the next ones
_NO_MESSAGE = 10043
_NO_PEERS = 10005
_MESSAGE_TOO_LARGE = 10054


class Ack(NamedTuple):
    """What a stream said of a message.

    Attributes:
        sequence: its place in the stream; for a duplicate, that of the first one.
        duplicate: whether a message of this id was there already.
    """

    sequence: int
    duplicate: bool


class Stored(NamedTuple):
    """A message as a stream keeps it."""

    subject: str
    sequence: int
    stored_at: str
    headers: dict[str, str]
    payload: bytes


class Level(NamedTuple):
    """How urgent a job is: a consumer of its own, and a last token of the subject.

    Attributes:
        rank: 0 is worked on first.
        token: of the subject; the middle level has none.
    """

    rank: int
    token: str | None

    def subject(self, subject: str) -> str:
        """Return where jobs of this level go."""
        return subject if self.token is None else f"{subject}.{self.token}"

    def consumer(self, operation: Operation) -> str:
        """Return the consumer of jobs of this level."""
        return operation.queue if self.token is None else f"{operation.queue}-{self.token}"


_HIGH, NORMAL, _LOW = Level(0, "high"), Level(1, None), Level(2, "low")


def levels(operation: Operation) -> tuple[Level, ...]:
    """Return the levels of a JOB, the most urgent first."""
    return (_HIGH, NORMAL, _LOW) if operation.prioritized else (NORMAL,)


def level_of(operation: Operation, priority: int) -> Level:
    """Return the level of a priority from 0 (least urgent) to 9.

    Raises:
        ConfigurationError: it is none, or the row knows no priorities.
    """
    if not 0 <= priority <= _MOST_URGENT:
        raise ConfigurationError(f"priority {priority} is refused: 0 (least urgent) to {_MOST_URGENT}, 5 is usual")
    level = _HIGH if priority > _USUAL[1] else _LOW if priority < _USUAL[0] else NORMAL
    if level is not NORMAL and not operation.prioritized:
        raise ConfigurationError(f"{operation.name} knows no priorities: leave `priority` out")
    return level


class Streams:
    """The streams of one account, over one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._made: dict[str, asyncio.Task[None]] = {}
        self._context: JetStreamContext | None = None
        self.large_results_expire = True  # whether the server can forget single messages early

    # --- streams ------------------------------------------------------------------------------------------------

    async def job(self, operation: Operation) -> None:
        """Make sure that a JOB's queue and its memory of results exist."""
        await self._once(f"job {operation.name}", lambda: self._make_job(operation))

    async def event(self, operation: Operation) -> None:
        """Make sure that a stored EVENT's stream exists."""
        await self._once(f"event {operation.name}", lambda: self._make(_event_config(operation)))

    async def dead(self) -> None:
        """Make sure that dead letters can be kept, and that the server's notes of exhausted messages are."""
        await self._once("dead", self._make_dead)

    def forget(self, operation: Operation) -> None:
        """Make sure again next time: a stream has vanished."""
        for kind in ("job", "event"):
            self._made.pop(f"{kind} {operation.name}", None)

    async def _make_job(self, operation: Operation) -> None:
        await self._make(_job_config(operation))
        config = _results_config(operation)
        try:
            await self._make(config)
        except ConfigurationError:  # a server before 2.12, or 2.11
            config.persist_mode, config.allow_msg_ttl = None, None
            await self._make(config)
            self.large_results_expire = False

    async def _make_dead(self) -> None:
        await self._make(
            api.StreamConfig(
                name=DEAD_STREAM,
                subjects=[f"{DEAD_LETTERS_PREFIX}.*.*", f"{DEAD_LETTERS_PREFIX}.*.*.payload"],
                max_msgs_per_subject=1,
                allow_direct=True,
                duplicate_window=_WINDOW,
            )
        )
        await self._make(
            api.StreamConfig(
                name=EXHAUSTED_STREAM,
                subjects=[f"{EXHAUSTED}.>"],
                max_age=30 * 86400.0,
                allow_direct=True,
            )
        )

    async def _make(self, config: api.StreamConfig) -> None:
        async def make(replicas: int) -> None:
            config.num_replicas = replicas
            config.storage = api.StorageType.FILE
            if replicas > 1:  # only a stream of one server can be synced later than it acknowledges
                config.persist_mode = None
            try:
                await self.context.add_stream(config)
            except nats.js.errors.APIError as error:
                if error.err_code != NAME_IN_USE:
                    raise
                await self.context.update_stream(config)

        await self.replicated(f"stream {config.name}", make)

    async def replicated(self, what: str, make: Callable[[int], Awaitable[T]]) -> T:
        """Return what ``make`` makes of the number of servers that shall keep a stream: three in a cluster, else one.

        Raises:
            ConfigurationError: the server refuses it.
        """
        with asked(what):
            if "cluster" in self._connection.client._server_info:
                try:
                    return await make(_REPLICAS)
                except nats.js.errors.APIError as error:
                    if error.err_code != _NO_PEERS:
                        raise
                    _log.warning("%s is kept by one server: %s", what, error.description)
            return await make(1)

    # --- consumers ----------------------------------------------------------------------------------------------

    async def consumer(self, stream: str, config: api.ConsumerConfig) -> str:
        """Make sure that a consumer exists with this configuration, and return its name.

        Raises:
            ConfigurationError: one of this name serves another subject: two tenants share an account.
        """
        name = config.durable_name
        with asked(f"consumer {name or ''} of {stream}"):
            if name is not None:
                try:
                    known = (await self.context.consumer_info(stream, name)).config
                except nats.js.errors.NotFoundError:
                    known = None
                if known is not None:
                    # Where it began is history: the server refuses another beginning.
                    config.deliver_policy, config.opt_start_seq = known.deliver_policy, known.opt_start_seq
                if known is not None and known.filter_subject != config.filter_subject:
                    raise ConfigurationError(
                        f"consumer {name} of {stream} serves {known.filter_subject}, not {config.filter_subject}: "
                        "each tenant needs an account of its own, and each subscriber a durable name of its own"
                    )
            made = await self.context.add_consumer(stream, config)
        return made.name

    async def job_consumer(self, operation: Operation, subject: str, level: Level) -> str:
        """Make sure that a JOB's queue and the consumer that its workers share exist; return the consumer's name."""
        await self._present(operation, self.job)
        config = _consumer_config(operation, level.subject(subject))
        config.durable_name = level.consumer(operation)
        return await self.consumer(operation.stream or "", config)

    async def subscriber(self, operation: Operation, subject: str, *, durable: str | None, begin: int | None) -> str:
        """Make sure that a stored EVENT's stream and a consumer of it exist; return the consumer's name.

        Args:
            operation: the catalogue's row.
            subject: what to hear.
            durable: its name, under which the server keeps its place; None for one that goes with its subscriber.
            begin: sequence to begin with; None hears what is new.
        """
        await self._present(operation, self.event)
        config = _consumer_config(operation, subject)
        config.durable_name = durable
        if durable is None:
            config.inactive_threshold = _IDLE
        if begin is None:
            config.deliver_policy = api.DeliverPolicy.NEW
        elif begin > 1:
            config.deliver_policy, config.opt_start_seq = api.DeliverPolicy.BY_START_SEQUENCE, begin
        return await self.consumer(operation.stream or "", config)

    async def _present(self, operation: Operation, make: Callable[[Operation], Awaitable[None]]) -> None:
        """Make a stream that may have vanished since it was made: whoever binds to a consumer had none."""
        self.forget(operation)
        await make(operation)

    # --- messages -----------------------------------------------------------------------------------------------

    async def store(self, subject: str, payload: bytes, headers: dict[str, str], timeout: float) -> Ack:
        """Publish a message under its id and wait until the stream has it; try again under the same id.

        Raises:
            NotStored: no acknowledgement within ``timeout`` seconds, or a refusal.
            PayloadTooLarge: nothing was sent.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        reason = ""
        while (left := deadline - loop.time()) > 0:
            try:
                answer = await self._connection.request(
                    subject, payload, timeout=min(left, _TRY_SECONDS), headers=headers
                )
            except DeadlineExceeded:
                reason = f"no acknowledgement within {timeout:g} s"
            except NoResponders:
                reason = "no stream covers the subject"
                await asyncio.sleep(_PAUSE)
            except Disconnected as error:
                reason = str(error)
                await self._reconnected(deadline - loop.time())
            else:
                said = codec.loads(answer.data)
                if "error" not in said:
                    return Ack(said["seq"], bool(said.get("duplicate")))
                reason = said["error"].get("description", "refused")
                if said["error"].get("err_code") == _MESSAGE_TOO_LARGE:
                    break
                await asyncio.sleep(_PAUSE)
            headers = {**headers, AGAIN: "1"}
        raise NotStored(subject, message_id=headers.get(MESSAGE_ID, "-"), reason=reason)

    async def _reconnected(self, timeout: float) -> None:
        with suppress(Disconnected):  # what is sent next says so
            await self._connection.wait_connected(max(timeout, 0.0))

    async def last(self, stream: str, subject: str) -> Stored | None:
        """Return the last message of a subject (wildcards allowed), or None.

        Raises:
            BusError: the stream did not answer.
        """
        return await self._get(stream, {"last_by_subj": subject})

    async def next(self, stream: str, subject: str, sequence: int) -> Stored | None:
        """Return the first message of a subject from a sequence on, or None."""
        return await self._get(stream, {"seq": sequence, "next_by_subj": subject})

    async def at(self, stream: str, sequence: int) -> Stored | None:
        """Return the message of a sequence, or None."""
        return await self._get(stream, {"seq": sequence})

    async def _get(self, stream: str, wanted: dict[str, Any]) -> Stored | None:
        answer = await self._connection.request(f"{DIRECT_GET}.{stream}", codec.dumps(wanted), timeout=_API_SECONDS)
        return stored(answer)

    async def prod(self, operation: Operation) -> bool:
        """Have the server look at a queue that nobody pulls, and say whether that was of use.

        It gives a message up only when someone pulls. A pull that takes one byte at most gets nothing and costs no
        message an attempt, but makes the server give up what has had all its attempts, and tell so.
        """
        if operation.mode is not Mode.JOB or operation.stream is None:
            return False
        useful = False
        for level in levels(operation):
            consumer = level.consumer(operation)
            try:
                waiting = (await self.context.consumer_info(operation.stream, consumer)).num_redelivered or 0
            except nats.js.errors.NotFoundError:
                continue
            order = codec.dumps({"batch": 1, "max_bytes": 1, "no_wait": True})
            for _ in range(min(waiting, _PRODS)):  # each brings one to the front
                await self._connection.request(f"{NEXT}.{operation.stream}.{consumer}", order, timeout=_API_SECONDS)
            useful = useful or waiting > 0
        return useful

    async def delete(self, stream: str, sequence: int) -> None:
        """Delete a message from a stream; do nothing when it is gone."""
        with asked(f"stream {stream}"):
            try:
                await self.context.delete_msg(stream, sequence)
            except nats.js.errors.NotFoundError:
                return
            except nats.js.errors.APIError as error:
                if error.err_code != _NO_MESSAGE:
                    raise

    async def purge(self, stream: str, subject: str) -> None:
        """Delete every message of a subject."""
        with asked(f"stream {stream}"):
            await self.context.purge_stream(stream, subject=subject)

    # --- how ----------------------------------------------------------------------------------------------------

    @property
    def context(self) -> JetStreamContext:
        """nats-py's own interface to JetStream, for what is rare."""
        if self._context is None:
            self._context = self._connection.jetstream(timeout=_API_SECONDS)
        return self._context

    async def _once(self, what: str, make: Callable[[], Awaitable[None]]) -> None:
        """Run ``make`` once, for however many wait for it; again if it failed."""
        task = self._made.get(what)
        if task is not None and task.done() and not task.cancelled() and task.exception() is None:
            return
        if task is None:
            task = self._made[what] = asyncio.ensure_future(_awaited(make))
        try:
            await asyncio.shield(task)
        except BaseException:
            if task.done() and self._made.get(what) is task:
                del self._made[what]
            raise


async def _awaited(make: Callable[[], Awaitable[None]]) -> None:
    await make()


@contextmanager
def asked(what: str) -> Iterator[None]:
    """Turn what nats-py raises into the kit's errors.

    Raises:
        ConfigurationError: the server refuses what was asked.
        DeadlineExceeded, NoResponders, BusError: it did not answer.
    """
    try:
        yield
    except (nats.errors.NoRespondersError, nats.js.errors.ServiceUnavailableError):
        raise NoResponders(f"JetStream ({what}): is it enabled for this account?") from None
    except nats.js.errors.APIError as error:
        raise ConfigurationError(f"{what}: {error.description} (JetStream error {error.err_code})") from error
    except nats.errors.TimeoutError:
        raise DeadlineExceeded(f"JetStream ({what})", seconds=_API_SECONDS) from None
    except nats.errors.Error as error:
        raise BusError(f"{what}: {error}") from error


def stored(answer: Msg) -> Stored | None:
    """Return the message that a direct get answered with, or None when there is none."""
    headers = answer.headers or {}
    if SEQUENCE not in headers:
        return None
    kept = {name: value for name, value in headers.items() if name not in (SEQUENCE, SUBJECT, TIME, "Nats-Stream")}
    return Stored(headers[SUBJECT], int(headers[SEQUENCE]), headers[TIME], kept, answer.data)


def results_stream(operation: Operation) -> str:
    """Return the stream that remembers a JOB's results."""
    return f"{operation.stream}_RESULTS"


def _consumer_config(operation: Operation, subject: str) -> api.ConsumerConfig:
    """Return the configuration of a consumer that is pulled and whose messages are acknowledged one by one."""
    policy = operation.policy
    return api.ConsumerConfig(
        filter_subject=subject,
        ack_policy=api.AckPolicy.EXPLICIT,
        ack_wait=policy.ack_wait,
        max_deliver=policy.max_attempts,
        max_ack_pending=-1,
        description=f"{operation.subscriber}: {operation.purpose}",
    )


def _job_config(operation: Operation) -> api.StreamConfig:
    assert operation.mode is Mode.JOB
    return api.StreamConfig(
        name=operation.stream,
        description=operation.purpose,
        subjects=[f"{operation.prefix}.*", f"{operation.prefix}.*.*"],
        retention=api.RetentionPolicy.WORK_QUEUE,
        duplicate_window=min(operation.policy.result_ttl, _WINDOW),
        allow_direct=True,
    )


def _results_config(operation: Operation) -> api.StreamConfig:
    """Return the configuration of the memory of results.

    It need not be fsynced: it is read after a worker's death, not after the machine's. A result that the machine took
    with it is worked out again, as it would be had the worker died a moment earlier.
    """
    return api.StreamConfig(
        name=results_stream(operation),
        description=f"results of {operation.name}",
        subjects=[f"{RESULTS_PREFIX}.{operation.stream}.*.*"],
        max_age=operation.policy.result_ttl,
        max_msgs=_RESULTS,
        max_msgs_per_subject=1,
        discard=api.DiscardPolicy.OLD,
        allow_msg_ttl=True,
        duplicate_window=min(operation.policy.result_ttl, 120.0),
        allow_direct=True,
        persist_mode=api.PersistMode.ASYNC,
    )


def _event_config(operation: Operation) -> api.StreamConfig:
    return api.StreamConfig(
        name=operation.stream,
        description=operation.purpose,
        subjects=[f"{operation.prefix}.*"],
        max_age=operation.max_age,
        duplicate_window=min(operation.max_age, 120.0),
        allow_direct=True,
    )
