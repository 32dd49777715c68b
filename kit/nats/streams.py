"""JetStream of one tenant's account, as the catalogue lays it out: made when needed, asked in time."""

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
from kit.catalogue import Mode, Operation
from kit.errors import BusError, ConfigurationError, DeadlineExceeded, Disconnected, NoResponders, NotStored
from kit.nats import layout
from kit.nats.ids import AGAIN, MESSAGE_ID

if TYPE_CHECKING:
    from nats.aio.msg import Msg

    from kit.nats.connection import Connection

T = TypeVar("T")
_log = logging.getLogger("kit.nats")

NEXT = "$JS.API.CONSUMER.MSG.NEXT"  # Source: NATS JetStream wire API, as the next ones
DIRECT_GET = "$JS.API.DIRECT.GET"
SEQUENCE = "Nats-Sequence"
SUBJECT = "Nats-Subject"
TIME = "Nats-Time-Stamp"
TTL = "Nats-TTL"
FIRST = "Nats-Expected-Last-Subject-Sequence"  # with 0: kept only where nothing of the subject is kept

_API_SECONDS = 5.0
_REPLICAS = 3  # bear the loss of one server
_ELECTION = 15.0  # s; for a cluster to have a leader again
TRY_SECONDS = 2.0  # for one publish to be acknowledged, before it is sent again under the same id
_PAUSE = 0.1  # s; before it is sent again, when the answer was a refusal
_IDLE = 60.0  # s; after which the server forgets a subscriber without a name that pulls no more
_RECEIVER_GONE = 86400.0  # s; after which the server forgets where a receiver was that nobody works for any more
NAME_IN_USE = 10058  # Source: nats-server's errors.json, as the next ones
_NO_MESSAGE = 10043
_NO_MESSAGE_FOUND = "no message found"  # … as a refused delete puts it, under a number for all of its reasons
_CONSUMER_REFUSED = 10012
_NO_PEERS = 10005
_MESSAGE_TOO_LARGE = 10054
_NOT_FIRST = 10071


class Ack(NamedTuple):
    """What a stream said of a message.

    Attributes:
        sequence: its place in the stream; for a duplicate, that of the first one, or 0 where only the first is kept.
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
        await self._once(f"event {operation.name}", lambda: self._make(layout.event_config(operation)))

    def has(self, operation: Operation) -> bool:
        """Whether an operation's streams are known to exist."""
        return self._done(f"{'job' if operation.mode is Mode.JOB else 'event'} {operation.name}")

    async def set_up(self, make: Callable[[], Awaitable[None]], subject: str, message_id: str, seconds: float) -> None:
        """Create the stream for a message, within the time for storing it.

        Raises:
            NotStored: it could not be created within ``seconds``.
            ConfigurationError: the server refuses it.
        """
        reason = f"no acknowledgement within {seconds:g} s"
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        return await make()
                    except BusError as error:
                        reason = str(error)
                        if not self._connection.patient:
                            break
                    await asyncio.sleep(_PAUSE)
        raise NotStored(subject, message_id=message_id, reason=self.trouble or reason)

    async def dead(self) -> None:
        """Make sure that dead letters can be kept, and that the server's notes of exhausted messages are."""
        await self._once("dead", self._make_dead)

    async def again(self, operation: Operation) -> None:
        """Make an operation's streams that may have vanished since they were made."""
        job = operation.mode is Mode.JOB
        self._made.pop(f"{'job' if job else 'event'} {operation.name}", None)
        await (self.job if job else self.event)(operation)

    async def _make_job(self, operation: Operation) -> None:
        config = layout.job_config(operation)
        try:
            await self._make(config)
        except ConfigurationError:  # a server before 2.12
            config.allow_atomic = None
            await self._make(config)
        config = layout.results_config(operation)
        try:
            await self._make(config)
        except ConfigurationError:  # a server before 2.12, or 2.11
            config.persist_mode, config.allow_msg_ttl = None, None
            await self._make(config)
        self.large_results_expire = bool(config.allow_msg_ttl)

    async def _make_dead(self) -> None:
        await self._make(layout.dead_config())
        await self._make(layout.exhausted_config())

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
                await self._adopt(config)

        await self.replicated(f"stream {config.name}", make)

    async def _adopt(self, wanted: api.StreamConfig) -> None:
        """Take a stream as it is, however an operator or another version set it up, if it has the subjects."""
        known = (await self.context.stream_info(wanted.name or "")).config
        subjects = set(known.subjects or ()) | set(wanted.subjects or ())
        if subjects != set(known.subjects or ()) or (known.num_replicas or 1) < (wanted.num_replicas or 1):
            known.subjects, known.num_replicas = sorted(subjects), wanted.num_replicas
            await self.context.update_stream(known)
        wanted.allow_msg_ttl = known.allow_msg_ttl

    async def replicated(self, what: str, make: Callable[[int], Awaitable[T]]) -> T:
        """Return what ``make`` makes of the number of servers that shall keep a stream: three in a cluster, else one.

        Raises:
            ConfigurationError: the server refuses it.
        """

        async def work() -> T:
            if self.clustered:
                try:
                    return await make(_REPLICAS)
                except nats.js.errors.APIError as error:
                    if error.err_code != _NO_PEERS:
                        raise
                    _log.warning("%s is kept by one server: %s", what, error.description)
            return await make(1)

        return await self.patiently(what, work)

    # --- consumers ----------------------------------------------------------------------------------------------

    async def consumer(self, stream: str, config: api.ConsumerConfig) -> str:
        """Make sure that a consumer exists with this configuration, and return its name.

        Raises:
            ConfigurationError: one of this name serves another subject: two tenants share an account.
        """
        name = config.durable_name

        async def make() -> str:
            if name is not None:
                with suppress(nats.js.errors.NotFoundError):
                    self._agree((await self.context.consumer_info(stream, name)).config, config)
            return (await self.context.add_consumer(stream, config)).name

        async def work() -> str:
            try:
                return await make()
            except nats.js.errors.APIError as error:
                if name is None or error.err_code != _CONSUMER_REFUSED:
                    raise
            return await make()  # somebody else made it meanwhile, with another beginning

        return await self.patiently(f"consumer {name or ''} of {stream}", work)

    @staticmethod
    def _agree(known: api.ConsumerConfig, wanted: api.ConsumerConfig) -> None:
        if known.filter_subject != wanted.filter_subject:
            raise ConfigurationError(
                f"consumer {wanted.durable_name} serves {known.filter_subject}, not {wanted.filter_subject}: "
                "each tenant needs an account of its own, and each subscriber a durable name of its own"
            )
        # Where it began is history: the server refuses another beginning.
        wanted.deliver_policy, wanted.opt_start_seq = known.deliver_policy, known.opt_start_seq

    async def job_consumer(self, operation: Operation, tenant_id: str, level: layout.Level, to: str | None) -> str:
        """Make sure that a JOB's queue and the consumer that its workers share exist; return the consumer's name."""
        await self.again(operation)
        config = layout.consumer_config(operation, level.subject(operation.subject(tenant_id, to)))
        config.durable_name = level.consumer(operation, to)
        if to is not None:  # receivers come and go; what is in the queue stays without a consumer
            config.inactive_threshold = _RECEIVER_GONE
        return await self.consumer(operation.stream or "", config)

    async def subscriber(self, operation: Operation, subject: str, *, durable: str | None, begin: int | None) -> str:
        """Make sure that a stored EVENT's stream and a consumer of it exist; return the consumer's name.

        Args:
            operation: the catalogue's row.
            subject: what to hear.
            durable: its name, under which the server keeps its place; None for one that goes with its subscriber.
            begin: sequence to begin with; None hears what is new.
        """
        await self.again(operation)
        config = layout.consumer_config(operation, subject)
        config.durable_name = durable
        if durable is None:
            config.inactive_threshold = _IDLE
        if begin is None:
            config.deliver_policy = api.DeliverPolicy.NEW
        elif begin > 1:
            config.deliver_policy, config.opt_start_seq = api.DeliverPolicy.BY_START_SEQUENCE, begin
        return await self.consumer(operation.stream or "", config)

    # --- messages -----------------------------------------------------------------------------------------------

    async def store(
        self,
        subject: str,
        payload: bytes,
        headers: dict[str, str],
        timeout: float,
        make: Callable[[], Awaitable[None]] | None = None,
    ) -> Ack:
        """Publish a message under its id and wait until the stream has it; try again under the same id.

        Args:
            subject: where to.
            payload: what.
            headers: with the message's id.
            timeout: seconds, for all attempts together.
            make: makes the stream, should it have vanished.

        Raises:
            NotStored: no acknowledgement within ``timeout`` seconds, or a refusal.
            PayloadTooLarge: nothing was sent.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        reason = f"no acknowledgement within {timeout:g} s"
        while (left := deadline - loop.time()) > 0:
            try:
                answer = await self._connection.request(
                    subject, payload, timeout=min(left, TRY_SECONDS), headers=headers
                )
            except DeadlineExceeded:
                reason = self.trouble or f"no acknowledgement within {timeout:g} s"
                if self.trouble:
                    break
            except NoResponders:
                reason = "its stream has no leader" if self.clustered else "no stream covers the subject"
                await asyncio.sleep(_PAUSE)
                if make is not None:
                    with suppress(TimeoutError, BusError, ConfigurationError):  # what is tried next says so
                        await asyncio.wait_for(make(), max(deadline - loop.time(), 0.0))
            except Disconnected as error:
                reason = str(error)
                if not self._connection.patient:
                    break
                await self._reconnected(deadline - loop.time())
            else:
                said = codec.loads(answer.data)
                if "error" not in said:
                    return Ack(said["seq"], bool(said.get("duplicate")))
                reason = self.trouble or said["error"].get("description", "refused")
                if said["error"].get("err_code") == _NOT_FIRST:
                    return Ack(0, duplicate=True)
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
        return stored(await self.ask(f"{DIRECT_GET}.{stream}", codec.dumps(wanted)))

    async def last_sequence(self, stream: str) -> int:
        """Return the sequence of the last message that a stream ever took."""
        info = await self.patiently(f"stream {stream}", lambda: self.context.stream_info(stream))
        return int(info.state.last_seq)

    async def state(self, stream: str) -> tuple[api.StreamConfig, api.StreamState]:
        """Return the configuration and the state of a stream."""
        info = await self.patiently(f"stream {stream}", lambda: self.context.stream_info(stream))
        return info.config, info.state

    async def delete(self, stream: str, sequence: int) -> None:
        """Delete a message from a stream; do nothing when it is gone."""

        async def work() -> None:
            try:
                await self.context.delete_msg(stream, sequence)
            except nats.js.errors.NotFoundError:
                return
            except nats.js.errors.APIError as error:
                gone = error.err_code == _NO_MESSAGE or error.description == _NO_MESSAGE_FOUND
                if not gone:
                    raise

        await self.patiently(f"stream {stream}", work)

    async def purge(self, stream: str, subject: str) -> None:
        """Delete every message of a subject."""
        await self.patiently(f"stream {stream}", lambda: self.context.purge_stream(stream, subject=subject))

    # --- how ----------------------------------------------------------------------------------------------------

    async def ask(
        self, subject: str, payload: bytes, *, headers: dict[str, str] | None = None, once: bool = False
    ) -> Msg:
        """Send a request; in a cluster, wait for a leader that is being elected.

        Args:
            subject: where to.
            payload: what.
            headers: with it.
            once: it must not be sent again when it may have been heard.

        Raises:
            BusError: no answer in time.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _API_SECONDS
        while True:
            left = deadline - loop.time()
            timeout = min(left, TRY_SECONDS) if (self.clustered and not once) or self.trouble else left
            try:
                return await self._connection.request(subject, payload, timeout=timeout, headers=headers)
            except (NoResponders, DeadlineExceeded) as error:
                if self.trouble:
                    raise BusError(f"{subject}: {self.trouble}") from error
                silent = isinstance(error, DeadlineExceeded)
                if not self.clustered or (once and silent) or loop.time() + _PAUSE >= deadline:
                    raise
            await asyncio.sleep(_PAUSE)

    async def patiently(self, what: str, work: Callable[[], Awaitable[T]]) -> T:
        """Do what may be repeated over nats-py's interface; in a cluster, wait for a leader that is being elected.

        Raises:
            ConfigurationError: the server refuses what was asked.
            BusError: no answer in time.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (_ELECTION if self.clustered else _API_SECONDS)
        while True:
            try:
                with self.asked(what):
                    return await work()
            except Disconnected:
                if not self._connection.patient:
                    raise
                await self._connection.wait_connected(max(deadline - loop.time(), 0.0))
            except (NoResponders, DeadlineExceeded):
                if not self.clustered or loop.time() > deadline:
                    raise
            await asyncio.sleep(_PAUSE)

    @contextmanager
    def asked(self, what: str) -> Iterator[None]:
        """Turn nats-py's errors into the kit's, with the reason why the server cannot work, if known.

        Raises:
            ConfigurationError: the server refuses what was asked.
            DeadlineExceeded, NoResponders, BusError: it did not answer.
        """
        try:
            with asked(what):
                yield
        except (NoResponders, DeadlineExceeded, ConfigurationError) as error:
            if self.trouble:
                raise BusError(f"{what}: {self.trouble}") from error
            raise

    @property
    def trouble(self) -> str:
        """Why the server cannot work; empty if unknown."""
        return self._connection.client.trouble()

    @property
    def clustered(self) -> bool:
        """Whether the server is one of several."""
        return "cluster" in self._connection.client._server_info

    @property
    def context(self) -> JetStreamContext:
        """nats-py's own interface to JetStream, for what is rare."""
        if self._context is None:
            self._context = self._connection.jetstream(timeout=_API_SECONDS)
        return self._context

    async def _once(self, what: str, make: Callable[[], Awaitable[None]]) -> None:
        """Run ``make`` once, for however many wait for it; again if it failed."""
        if self._done(what):
            return
        task = self._made.get(what)
        if task is None:
            task = self._made[what] = asyncio.ensure_future(_awaited(make))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # the caller may have left
        try:
            await asyncio.shield(task)
        except BaseException:
            if task.done() and self._made.get(what) is task:
                del self._made[what]
            raise

    def _done(self, what: str) -> bool:
        task = self._made.get(what)
        return task is not None and task.done() and not task.cancelled() and task.exception() is None


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
        raise NoResponders(f"JetStream ({what}): is it enabled for this account, and is there a quorum?") from None
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
