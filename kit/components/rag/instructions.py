"""What a model is told before the passages: the tenant's own template where its prompt store has one, else RAG's.

A template called TEMPLATE_ID that the label ``production`` stands on is rendered once, by the prompt service, and kept
until an event tells that the label has moved. No question ever waits for it: one that comes meanwhile gets the text
before it.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from kit import codec
from kit.catalogue import PROMPT_CONTEXT, PROMPT_TEMPLATES
from kit.errors import KitError

if TYPE_CHECKING:
    from kit.nats.bus import Bus
    from kit.nats.message import Message
    from kit.nats.worker import Worker

TEMPLATE_ID = "rag_instructions"
REFUSAL = "The documents do not support an answer."
TEMPLATE = (
    "Answer the question from the numbered passages only, in the question's language, as briefly as its answer allows. "
    "After each sentence cite the passage it rests on by its number in square brackets, like [1]. "
    'If the passages do not support an answer, say exactly "{{ refusal }}"'
)
VARIABLES = {"refusal": {"type": "string", "default": REFUSAL}}
LABEL = "production"
_BUCKET = "prompts"  # where the prompt store keeps `<template_id>.head`: read to ask for no template that there is not
_BUDGET = 4000  # tokens that instructions may take
_TIMEOUT = 5.0  # s, for the prompt service
_AGAIN = 5.0  # s after which a service that did not answer is asked again; twice as long each time
_AGAIN_MOST = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Instructions:
    """A text, and the version of TEMPLATE_ID that it came from: None for RAG's own."""

    text: str
    version: str | None = None

    @property
    def prompt_version(self) -> str | None:
        """Template and version in one, as ``llm_request`` carries it."""
        return None if self.version is None else f"{TEMPLATE_ID}@{self.version}"


OWN = Instructions(text=TEMPLATE.replace("{{ refusal }}", REFUSAL))


class Prompts:
    """Keeps a tenant's instructions up to date.

    Attributes:
        current: what the next question's model is told.
        worker: hears of templates.
    """

    worker: Worker

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._log = bus.telemetry.logger("kit.rag")
        self._wanted: tuple[int, str | None] = (0, None)  # the newest revision of the labels, and what they stand on
        self._following: asyncio.Task[None] | None = None
        self.current = OWN

    @classmethod
    async def open(cls, bus: Bus) -> Self:
        """Follow the tenant's template; the one there is has been rendered when this returns, if somebody renders."""
        self = cls(bus)
        self.worker = await bus.subscribe(PROMPT_TEMPLATES, self._hear)
        head = await (await bus.store(_BUCKET)).get(f"{TEMPLATE_ID}.head")
        if head is not None and head.value is not None:
            await self._want(head.revision, codec.loads(head.value)["labels"].get(LABEL))
        return self

    async def close(self) -> None:
        """Ask no more."""
        if self._following is not None:
            self._following.cancel()

    async def _hear(self, message: Message) -> None:
        event = message.data
        if event["template_id"] == TEMPLATE_ID:
            await self._want(event.get("revision", 0), event.get("labels", {}).get(LABEL))

    async def _want(self, revision: int, version: str | None) -> None:
        """Take a version over, unless a newer one is wanted by then; go on trying in the background."""
        if revision < self._wanted[0]:
            return
        self._wanted = revision, version
        if not await self._take() and (self._following is None or self._following.done()):
            self._following = asyncio.ensure_future(self._follow())

    async def _follow(self) -> None:
        pause = _AGAIN
        while True:
            await asyncio.sleep(pause)
            if await self._take():
                return
            pause = min(pause * 2, _AGAIN_MOST)

    async def _take(self) -> bool:
        """Take the wanted version over; return False where nobody rendered it."""
        wanted = self._wanted
        version = wanted[1]
        if version == self.current.version:
            return True
        if version is None:
            self.current = OWN
            return True
        try:
            text = await self._rendered(version)
        except KitError as error:
            self._log.warning("%s@%s is not used yet: %s", TEMPLATE_ID, version, type(error).__name__)
            return False
        if self._wanted == wanted:
            self.current = Instructions(text=text, version=version)
        return True

    async def _rendered(self, version: str) -> str:
        request = {
            "request_id": secrets.token_hex(8), "tenant_id": self._bus.tenant_id, "timestamp": codec.now(),
            "items": [], "token_budget": _BUDGET, "template_id": TEMPLATE_ID, "version": version,
        }  # fmt: skip
        answer = await self._bus.request(PROMPT_CONTEXT, request, timeout=_TIMEOUT)
        text: str = answer.data["prompt"]
        return text
