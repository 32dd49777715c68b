"""Messages between agents: direct, to all, asked and waited for, gathered from several.

A message to one agent goes to a subject of its own; nobody receives what is meant for another. An answer names the
message that it answers, and finds whoever waits for it.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from kit import codec
from kit.catalogue import AGENT_MESSAGE
from kit.components.agents.errors import AgentError, NoReply
from kit.nats.faults import told
from kit.nats.worker import is_cancellation
from kit.otel import semconv

if TYPE_CHECKING:
    from kit.nats.bus import Bus
    from kit.nats.message import Message
    from kit.nats.worker import Worker

ANSWER, FAILURE, QUESTION, NOTE = "answer", "failure", "question", "note"
CONCURRENCY = 32  # messages handled at once: one that waits for an answer must not hold up the answer
_INBOX = 1000  # messages kept for `receive`; then the oldest goes


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentMessage:
    """What one agent said to another, or to all; ``str()`` of it is what was said.

    Attributes:
        kind: ``note``, ``question``, ``answer``, ``failure``, or a word of the agents' own.
        target: who is meant; None: all.
        reply_to: id of the message that it answers.
        expects_reply: whether the sender waits for an answer.
    """

    message_id: str
    source: str
    content: str
    kind: str = NOTE
    target: str | None = None
    reply_to: str | None = None
    conversation_id: str | None = None
    session_id: str | None = None
    expects_reply: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.content

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> AgentMessage:
        """Return the message that these data are."""
        return cls(
            message_id=data["message_id"], source=data["source_agent_id"], content=data["content"],
            kind=data["message_type"], target=data.get("target_agent_id"), reply_to=data.get("reply_to"),
            conversation_id=data.get("conversation_id"), session_id=data.get("session_id"),
            expects_reply=data.get("expects_reply", False), metadata=data.get("metadata", {}),
        )  # fmt: skip


MessageHandler: TypeAlias = Callable[[AgentMessage], Awaitable[str | None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Gathered:
    """What several agents answered by the deadline.

    Attributes:
        answers: by agent, in the order in which they came.
        failures: what those said that could not answer, by agent.
        missing: who was asked and said nothing.
    """

    answers: Mapping[str, AgentMessage]
    failures: Mapping[str, str]
    missing: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether everybody who was asked answered."""
        return not self.failures and not self.missing


class Mailbox:
    """Sends an agent's messages and receives those that are meant for it.

    Args:
        handler: gets what is said to the agent; the text that it returns is the answer, None says nothing.
    """

    def __init__(self, bus: Bus, agent_id: str, handler: MessageHandler) -> None:
        self._bus, self._agent_id, self.handler = bus, agent_id, handler
        self._waiting: dict[str, asyncio.Queue[AgentMessage]] = {}
        self._inbox: asyncio.Queue[AgentMessage] = asyncio.Queue(_INBOX)
        self._workers: list[Worker] = []

    async def open(self) -> list[Worker]:
        """Listen to what is said to this agent, and to all; on return the server knows it."""
        if not self._workers:
            self._workers = [
                await self._bus.subscribe(AGENT_MESSAGE, self._take, to=self._agent_id, concurrency=CONCURRENCY),
                await self._bus.subscribe(AGENT_MESSAGE, self._take, concurrency=CONCURRENCY),
            ]
        return self._workers

    async def close(self, timeout: float = 10.0) -> None:
        """Listen no more; what is being answered may be finished within ``timeout`` seconds."""
        await asyncio.gather(*(worker.stop(timeout) for worker in self._workers))
        self._workers = []

    async def send(self, to: str | None, content: str, *, kind: str = NOTE, **more: Any) -> str:
        """Say something to one agent, or to all of the tenant, and return the message's id.

        Args:
            more: further fields of ``agent_message``; None leaves one out.
        """
        message_id = more.pop("message_id", None) or uuid.uuid4().hex
        told = {
            "message_id": message_id, "source_agent_id": self._agent_id, "target_agent_id": to, "content": content,
            "message_type": kind, "timestamp": codec.now(), **more,
        }  # fmt: skip
        data = {name: value for name, value in told.items() if value is not None}
        await self._bus.publish(AGENT_MESSAGE, data, to=to)
        return message_id

    async def ask(self, to: str, content: str, *, timeout: float = 30.0, **more: Any) -> AgentMessage:
        """Say something to one agent and wait for what it answers.

        Raises:
            NoReply: it did not answer within ``timeout`` seconds.
            AgentError: it could not answer; says why.
        """
        gathered = await self.gather([to], content, timeout=timeout, **more)
        if to in gathered.failures:
            raise AgentError(f"{to} could not answer: {gathered.failures[to]}")
        if to not in gathered.answers:
            raise NoReply(to, seconds=timeout)
        return gathered.answers[to]

    async def gather(
        self, to: Iterable[str], content: str, *, timeout: float = 30.0, everybody: bool = False, **more: Any
    ) -> Gathered:
        """Ask several agents at once and return what came by the deadline.

        Args:
            to: whom.
            timeout: seconds for all of them together.
            everybody: whether to ask by one message to all of the tenant; answers of others count too, ``to`` says
                whom to wait for.
        """
        await self.open()
        expected = dict.fromkeys(to)
        message_id, came = uuid.uuid4().hex, asyncio.Queue[AgentMessage]()
        until = codec.now(timeout)
        more = {"kind": QUESTION, "expects_reply": True, "expires_at": until, **more}
        answers: dict[str, AgentMessage] = {}
        failures: dict[str, str] = {}
        self._waiting[message_id] = came
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    targets: list[str | None] = [None] if everybody else list(expected)
                    await asyncio.gather(
                        *(self.send(target, content, message_id=message_id, **more) for target in targets)
                    )
                    while not expected.keys() <= answers.keys() | failures.keys():
                        reply = await came.get()
                        if reply.kind == FAILURE:
                            failures[reply.source] = reply.content
                        else:
                            answers[reply.source] = reply
        finally:
            del self._waiting[message_id]
        missing = tuple(agent for agent in expected if agent not in answers and agent not in failures)
        return Gathered(answers=answers, failures=failures, missing=missing)

    async def receive(self, timeout: float = 30.0) -> AgentMessage:
        """Return the next thing that was said to this agent.

        Raises:
            TimeoutError: nothing was, within ``timeout`` seconds.
        """
        await self.open()
        async with asyncio.timeout(timeout):
            return await self._inbox.get()

    async def _take(self, message: Message) -> None:
        said = AgentMessage.of(message.data)
        attributes = {semconv.SOURCE_AGENT_ID: said.source, semconv.MESSAGE_ID: said.message_id}
        self._bus.telemetry.annotate({**attributes, semconv.TARGET_AGENT_ID: self._agent_id})
        if said.source == self._agent_id and said.target is None:
            return  # its own words to all
        if said.reply_to is not None and (waiting := self._waiting.get(said.reply_to)) is not None:
            waiting.put_nowait(said)
            return
        if self._inbox.full():
            self._inbox.get_nowait()
        self._inbox.put_nowait(said)
        if not _expired(message.data):
            await self._answer(said)

    async def _answer(self, said: AgentMessage) -> None:
        same = {"reply_to": said.message_id, "conversation_id": said.conversation_id, "session_id": said.session_id}
        try:
            reply = await self.handler(said)
        except BaseException as error:  # SystemExit too: a handler may raise anything
            if said.expects_reply and not is_cancellation(error):  # the asker need not wait for the deadline
                reason = told(error, None) if getattr(error, "content_free", False) else type(error).__name__
                await self.send(said.source, reason, kind=FAILURE, **same)
            raise
        if reply is not None:
            await self.send(said.source, reply, kind=ANSWER, **same)


def _expired(data: Mapping[str, Any]) -> bool:
    until = data.get("expires_at")
    return until is not None and datetime.fromisoformat(until) <= datetime.now(UTC)
