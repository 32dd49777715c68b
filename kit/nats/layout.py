"""What the catalogue implies for JetStream: streams, consumers and levels of urgency, as configurations.

Streams, made when first needed:

    AI_RAG_INGEST           a JOB's queue: work-queue retention, de-duplicated by message id
    AI_AGENT_TASKS          … of an addressed row: jobs for one receiver have a subject and consumers of their own
    AI_RAG_INGEST_RESULTS   its results, remembered for ``policy.result_ttl``: they are what makes an effect happen once
    AI_LLMOPS_OPERATIONS    a stored EVENT: limits retention
    KIT_DEAD                dead letters of every operation: evidence and payload
    KIT_EXHAUSTED           the server's own notes of messages that it gave up delivering
"""

from __future__ import annotations

from typing import NamedTuple

from nats.js import api

from kit.catalogue import DEAD_LETTERS_PREFIX, RESULTS_PREFIX, URGENCIES, Operation
from kit.errors import ConfigurationError

DEAD_STREAM = "KIT_DEAD"
EXHAUSTED_STREAM = "KIT_EXHAUSTED"
EXHAUSTED = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES"  # Source: NATS JetStream advisories

_MOST_URGENT = 9
_USUAL = (4, 6)  # priorities of the middle level
_WINDOW = 600.0  # s; for which the server remembers ids of what was published
_DEAD_SECONDS = 31 * 86400.0  # a month of dead letters; they are dropped with a warning before its last day ends
_DEAD_MESSAGES = 20_000  # two for each; not a number of bytes, which the server would reserve
DEAD_BYTES = 256 * 1024 * 1024  # of them all, where their stream itself has no such limit
_RESULTS = 100_000  # remembered, per operation; not a number of bytes, which the server would reserve


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

    def consumer(self, operation: Operation, to: str | None = None) -> str:
        """Return the consumer of jobs of this level, for one receiver or for nobody in particular."""
        common = operation.queue if self.token is None else f"{operation.queue}-{self.token}"
        return common if to is None else f"{common}@{to}"


_HIGH, NORMAL, _LOW = Level(0, URGENCIES[0]), Level(1, None), Level(2, URGENCIES[1])


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


def receiver_of(operation: Operation, subject: str) -> str | None:
    """Return whom a job is for, by its subject; None: nobody in particular."""
    tokens = subject.removeprefix(f"{operation.prefix}.").split(".")[1:]
    if operation.prioritized and tokens and tokens[-1] in URGENCIES:
        tokens.pop()
    return tokens[0] if tokens else None


def is_own_subject(operation: Operation, tenant_id: str, subject: str) -> bool:
    """Return whether an operation's jobs are sent to a subject."""
    try:
        plain = operation.subject(tenant_id, receiver_of(operation, subject))
    except ConfigurationError:
        return False
    return any(level.subject(plain) == subject for level in levels(operation))


def results_stream(operation: Operation) -> str:
    """Return the stream that remembers a JOB's results."""
    return f"{operation.stream}_RESULTS"


def consumer_config(operation: Operation, subject: str) -> api.ConsumerConfig:
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


def job_config(operation: Operation) -> api.StreamConfig:
    """Return the configuration of a JOB's queue."""
    return api.StreamConfig(
        name=operation.stream,
        description=operation.purpose,
        subjects=[f"{operation.prefix}{'.*' * count}" for count in range(1, 4 if operation.addressed else 3)],
        retention=api.RetentionPolicy.WORK_QUEUE,
        duplicate_window=min(operation.policy.result_ttl, _WINDOW),
        allow_direct=True,
        allow_atomic=True,
    )


def results_config(operation: Operation) -> api.StreamConfig:
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


def event_config(operation: Operation) -> api.StreamConfig:
    """Return the configuration of a stored EVENT's stream."""
    return api.StreamConfig(
        name=operation.stream,
        description=operation.purpose,
        subjects=[f"{operation.prefix}.*"],
        max_age=operation.max_age,
        duplicate_window=min(operation.max_age, 120.0),
        allow_direct=True,
    )


def dead_config() -> api.StreamConfig:
    """Return the configuration of the dead letters' stream: one per job, until it is replayed or dropped."""
    return api.StreamConfig(
        name=DEAD_STREAM,
        subjects=[f"{DEAD_LETTERS_PREFIX}.*.*", f"{DEAD_LETTERS_PREFIX}.*.*.payload"],
        max_msgs_per_subject=1,
        max_age=_DEAD_SECONDS,
        max_msgs=_DEAD_MESSAGES,
        discard=api.DiscardPolicy.OLD,
        allow_direct=True,
        duplicate_window=_WINDOW,
    )


def exhausted_config() -> api.StreamConfig:
    """Return the configuration of the stream that keeps the server's advisories, which are else gone unheard."""
    return api.StreamConfig(name=EXHAUSTED_STREAM, subjects=[f"{EXHAUSTED}.>"], max_age=30 * 86400.0, allow_direct=True)
