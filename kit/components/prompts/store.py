"""The prompt store: immutable versions and movable labels in JetStream KV, cached by every reader.

Keys of a template: ``<template_id>.version.<n>``, written once; ``<template_id>.head``, which says where its labels
point and which version is the newest, and moves by compare-and-swap.
"""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from kit import codec
from kit.catalogue import PROMPT_TEMPLATE_RENDER, PROMPT_TEMPLATES, check_id
from kit.components.prompts.errors import TemplateRefused, UndeclaredVariable, UnknownTemplate
from kit.components.prompts.rendering import Renderer, Variable, check_values, declare
from kit.errors import Conflict, KitError
from kit.otel import captures_content, semconv

if TYPE_CHECKING:
    import pandas as pd

    from kit.nats import Bus, Message, Store, Worker

BUCKET = "prompts"
PRODUCTION = "production"
LATEST = "latest"  # points to the newest version by itself; nobody moves it
MAX_AGE = 60.0  # seconds after which a cached label is looked up again, should its event have been missed
TRIES = 50  # attempts to move a head that others move too
PAUSE = 0.005  # seconds between two of them, at first; they come at random, so that not all meet again


@dataclass(frozen=True, kw_only=True)
class Template:
    """One version of a template; it never changes.

    Attributes:
        document: the version as it is stored, an event's ``prompt_template`` without what happened.
    """

    template_id: str
    version: str
    template: str
    variables: dict[str, Variable]
    sha256: str
    document: dict[str, Any] = field(repr=False)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """Return the version that a stored document describes."""
        template_id, source = document["template_id"], document["template"]
        stored = {key: value for key, value in document.items() if key not in _HAPPENED}
        return cls(
            template_id=template_id,
            version=document["version"],
            template=source,
            variables=declare(template_id, document["variables"]),
            sha256=document.get("sha256") or _hash(source),
            document=stored,
        )


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A rendered prompt and the version that it came from; ``str()`` of it is its text."""

    text: str
    template_id: str
    version: str
    label: str | None = None

    def __str__(self) -> str:
        return self.text

    @property
    def prompt_version(self) -> str:
        """Template and version in one, as ``llm_request`` and ``llm_operation`` carry it."""
        return f"{self.template_id}@{self.version}"


@dataclass(kw_only=True)
class _Head:
    latest: int
    labels: dict[str, str]
    revision: int
    read_at: float

    def version(self, template_id: str, label: str) -> str:
        if label == LATEST and self.latest:
            return str(self.latest)
        if label not in self.labels:
            raise UnknownTemplate(template_id, label=label)
        return self.labels[label]


class PromptStore:
    """Templates of a bus's tenant; ``async with`` or ``await close()`` ends its subscription and its sandbox.

    Args:
        seconds: time one rendering may take.
        max_chars: characters one rendering may yield.
        max_age: seconds after which a cached label is refreshed in the background.
    """

    def __init__(self, bus: Bus, *, seconds: float = 1.0, max_chars: int = 200_000, max_age: float = MAX_AGE) -> None:
        self._bus = bus
        self._renderer = Renderer(seconds=seconds, max_chars=max_chars)
        self._max_age = max_age
        self._log = bus.telemetry.logger("kit.prompts")
        self._heads: dict[str, _Head] = {}
        self._versions: dict[tuple[str, str], Template] = {}
        self._refreshing: dict[str, asyncio.Task[_Head]] = {}
        self._opening = asyncio.Lock()
        self._store: Store | None = None
        self._worker: Worker | None = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def open(self) -> Store:
        """Follow the tenant's template events; every other method does so when it is first used."""
        async with self._opening:
            if self._store is None:
                self._worker = await self._bus.subscribe(PROMPT_TEMPLATES, self._on_event)
                self._store = await self._bus.store(BUCKET)
        return self._store

    @property
    def worker(self) -> Worker | None:
        """What follows the events, once the store is open."""
        return self._worker

    async def close(self) -> None:
        """Follow no more events and end the sandbox."""
        for task in list(self._refreshing.values()):
            task.cancel()
        if self._worker is not None:
            await self._worker.stop()
        self._worker = self._store = None
        await self._renderer.close()

    # --- writing ----------------------------------------------------------------------------------------------------

    async def create(
        self,
        template_id: str,
        template: str,
        variables: Mapping[str, Any] | None = None,
        *,
        label: str | None = None,
        description: str | None = None,
        created_by: str | None = None,
        model: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """Store a new version and return it; the same text and variables as the newest version's are that version.

        Args:
            variables: by name: a type (``str``, ``"array"`` …) or a mapping with ``type`` and, as wanted, ``default``,
                ``required``, ``description``.
            label: a label to move to it.

        Raises:
            TemplateRefused: it cannot be parsed, or is too long.
            UndeclaredVariable: it uses a variable that is not declared.
        """
        check_id(template_id, what="template_id")
        declared = declare(template_id, variables or {})
        used = await self._renderer.inspect(template_id, template)
        if undeclared := sorted(set(used) - set(declared)):
            raise UndeclaredVariable(template_id, undeclared)
        content: dict[str, Any] = {
            "template_id": template_id,
            "tenant_id": self._bus.tenant_id,
            "template": template,
            "variables": {name: variable.document() for name, variable in sorted(declared.items())},
            "sha256": _hash(template),
        }
        told = {"description": description, "created_by": created_by, "model": model, "metadata": metadata}
        content |= {key: value for key, value in told.items() if value is not None}
        version = await self._write(template_id, content)
        if label is not None:
            await self.label(template_id, label, version)
        return version

    async def label(self, template_id: str, label: str, version: str) -> None:
        """Move a label to a version; every reader follows.

        Raises:
            UnknownTemplate: there is no such version.
        """
        if check_id(label, what="label") == LATEST:
            raise TemplateRefused(template_id, f"the label {LATEST!r} moves by itself")
        target = await self.get(template_id, version)
        head, before = await self._move(template_id, label, target.version)
        if before != target.version:
            await self._tell(target, head, "labelled", label=label, previous_version=before)

    async def unlabel(self, template_id: str, label: str) -> None:
        """Take a label away.

        Raises:
            UnknownTemplate: there is no such label.
        """
        head, before = await self._move(template_id, label, None)
        if before is None:
            raise UnknownTemplate(template_id, label=label)
        await self._tell(await self.get(template_id, before), head, "unlabelled", label=label, previous_version=before)

    async def _write(self, template_id: str, content: dict[str, Any]) -> str:
        store = await self.open()
        head = await self._read_head(template_id)
        if head.latest:
            newest = await self.get(template_id, str(head.latest))
            if all(newest.document.get(key) == content[key] for key in ("template", "variables")):
                return newest.version
        number = head.latest + 1
        while True:
            document = content | {"version": str(number), "created_at": codec.now()}
            codec.validate(PROMPT_TEMPLATES.message_type, document)
            try:
                await store.create(f"{template_id}.version.{number}", codec.dumps(document))
                break
            except Conflict:
                number += 1  # somebody else wrote this one meanwhile, or died before the head knew it
        template = Template.of(document)
        self._versions[template_id, template.version] = template
        head, _ = await self._move(template_id, None, None, latest=number)
        await self._tell(template, head, "created")
        return template.version

    async def _move(
        self, template_id: str, label: str | None, version: str | None, *, latest: int = 0
    ) -> tuple[_Head, str | None]:
        """Write the head by compare-and-swap; return it, and where the label pointed before."""
        store = await self.open()
        for attempt in range(TRIES):
            head = await self._read_head(template_id)
            before = head.labels.get(label) if label else None
            labels = {name: target for name, target in head.labels.items() if name != label}
            if label and version:
                labels[label] = version
            if labels == head.labels and latest <= head.latest:
                return head, before
            moved = _Head(latest=max(latest, head.latest), labels=labels, revision=0, read_at=time.monotonic())
            value = codec.dumps({"latest": moved.latest, "labels": labels})
            key = f"{template_id}.head"
            try:
                written = store.update(key, value, head.revision) if head.revision else store.create(key, value)
                moved.revision = await written
            except Conflict:
                await asyncio.sleep(random.uniform(0.0, PAUSE * min(attempt + 1, 10)))
                continue
            self._keep(template_id, moved)
            return moved, before
        raise Conflict(BUCKET, f"{template_id}.head", expected=head.revision)

    async def _tell(self, template: Template, head: _Head, action: str, **what: Any) -> None:
        event = template.document | {"action": action, "labels": head.labels, "revision": head.revision}
        event |= {"timestamp": codec.now()} | {key: value for key, value in what.items() if value is not None}
        await self._bus.publish(PROMPT_TEMPLATES, event)

    # --- reading ----------------------------------------------------------------------------------------------------

    async def get(self, template_id: str, version: str | None = None, *, label: str | None = None) -> Template:
        """Return a version: the one named, else the one that the label points to (default ``production``).

        A cached label answers at once; when it may be stale, it is refreshed meanwhile.

        Raises:
            UnknownTemplate: no such template, version or label.
        """
        check_id(template_id, what="template_id")
        if version is None:
            head = await self._head(template_id)
            version = head.version(template_id, label or PRODUCTION)
        cached = self._versions.get((template_id, version))
        return cached or await self._read_version(template_id, version)

    async def render(
        self,
        template_id: str,
        variables: Mapping[str, Any] | None = None,
        *,
        version: str | None = None,
        label: str | None = None,
    ) -> Rendered:
        """Render a version with the values of its variables.

        Raises:
            UnknownTemplate: no such template, version or label.
            VariableError: a variable is missing, not declared, or of another type; it says which.
            RenderFailed: the template failed, took too long or grew too large.
        """
        template = await self.get(template_id, version, label=label)
        named = label or (PRODUCTION if version is None else None)
        attributes = {
            semconv.PROMPT_NAME: template_id,
            semconv.PROMPT_VERSION: template.version,
        } | ({semconv.PROMPT_LABEL: named} if named else {})
        with self._bus.telemetry.operation(PROMPT_TEMPLATE_RENDER, attributes) as operation:
            values = check_values(template_id, template.version, template.variables, variables or {})
            text = await self._renderer.render(template_id, template.version, template.template, values)
            operation.set(semconv.PROMPT_CHARACTERS, len(text))
            if captures_content() and operation.recording:
                operation.set(semconv.INPUT_VALUE, codec.dumps(values).decode())
                operation.set(semconv.OUTPUT_VALUE, text)
        return Rendered(text=text, template_id=template_id, version=template.version, label=named)

    async def templates(self) -> list[str]:
        """Return the ids of all templates."""
        store = await self.open()
        return sorted(key.removesuffix(".head") for key in await store.keys() if key.endswith(".head"))

    async def labels(self, template_id: str) -> dict[str, str]:
        """Return where each label points now, as the store has it, not the cache.

        Raises:
            UnknownTemplate: no such template.
        """
        head = await self._read_head(template_id)
        if not head.latest:
            raise UnknownTemplate(template_id)
        return dict(head.labels)

    async def history(self, template_id: str) -> pd.DataFrame:
        """Return a row for each version, the newest first: labels, when, who, what for, variables, characters, hash.

        Raises:
            UnknownTemplate: no such template.
        """
        import pandas as pd

        labels = await self.labels(template_id)
        store = await self.open()
        prefix = f"{template_id}.version."
        versions = [key.removeprefix(prefix) for key in await store.keys(prefix)]
        rows = []
        for version in sorted(versions, key=int, reverse=True):
            template = await self.get(template_id, version)
            rows.append(
                {
                    "version": version,
                    "labels": ", ".join(sorted(label for label, target in labels.items() if target == version)),
                    "created_at": template.document.get("created_at", ""),
                    "created_by": template.document.get("created_by", ""),
                    "description": template.document.get("description", ""),
                    "variables": ", ".join(template.variables),
                    "characters": len(template.template),
                    "sha256": template.sha256,
                }
            )
        return pd.DataFrame(rows)

    async def diff(self, template_id: str, old: str, new: str) -> str:
        """Return a unified diff of two versions, variables included; "" when they are the same.

        Raises:
            UnknownTemplate: no such version.
        """
        one, other = await self.get(template_id, old), await self.get(template_id, new)
        names = (f"{template_id}@{old}", f"{template_id}@{new}")
        lines = difflib.unified_diff(_lines(one), _lines(other), *names, lineterm="")
        return "\n".join(lines)

    # --- the cache --------------------------------------------------------------------------------------------------

    async def _head(self, template_id: str) -> _Head:
        head = self._heads.get(template_id)
        if head is None:
            return await asyncio.shield(self._refresh(template_id))
        if time.monotonic() - head.read_at > self._max_age:
            head.read_at = time.monotonic()  # the next reader does not refresh again
            self._refresh(template_id).add_done_callback(self._refreshed)
        return head

    def _refresh(self, template_id: str) -> asyncio.Task[_Head]:
        """Return the one task that reads a template's head, and what its labels point to, anew."""
        task = self._refreshing.get(template_id)
        if task is None:
            task = self._refreshing[template_id] = asyncio.ensure_future(self._load(template_id))
            task.add_done_callback(lambda _: self._refreshing.pop(template_id, None))
        return task

    def _refreshed(self, task: asyncio.Task[_Head]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.warning("a prompt template is served as it was last read: %s", type(error).__name__)

    async def _load(self, template_id: str) -> _Head:
        head = await self._read_head(template_id)
        if not head.latest:
            raise UnknownTemplate(template_id)
        for version in {*head.labels.values(), str(head.latest)}:
            if (template_id, version) not in self._versions:
                await self._read_version(template_id, version)
        self._keep(template_id, head)
        return head

    async def _on_event(self, message: Message) -> None:
        """Take the version and the labels of an event over, the version first: no reader waits for it."""
        event = message.data
        template_id, revision = event["template_id"], event.get("revision", 0)
        try:
            template = Template.of(event)
        except KitError as error:
            self._log.warning("an event of template %s is not usable: %s", template_id, type(error).__name__)
            return
        if template.sha256 == _hash(template.template):
            self._versions.setdefault((template_id, template.version), template)
        for _ in range(2):  # a refresh already under way may have read what was before this event
            known = self._heads.get(template_id)
            if known is None or revision <= known.revision:
                return
            try:
                await asyncio.shield(self._refresh(template_id))
            except KitError as error:
                self._log.warning("template %s is served as it was last read: %s", template_id, type(error).__name__)
                return

    def _keep(self, template_id: str, head: _Head) -> None:
        known = self._heads.get(template_id)
        if known is None or head.revision >= known.revision:
            self._heads[template_id] = head

    async def _read_head(self, template_id: str) -> _Head:
        store = await self.open()
        entry = await store.get(f"{check_id(template_id, what='template_id')}.head")
        if entry is None or entry.value is None:
            return _Head(latest=0, labels={}, revision=0, read_at=time.monotonic())
        stored = codec.loads(entry.value)
        return _Head(
            latest=stored["latest"], labels=stored["labels"], revision=entry.revision, read_at=time.monotonic()
        )

    async def _read_version(self, template_id: str, version: str) -> Template:
        store = await self.open()
        if not (version.isascii() and version.isdigit()):
            raise UnknownTemplate(template_id, version=version)
        entry = await store.get(f"{template_id}.version.{version}")
        if entry is None or entry.value is None:
            raise UnknownTemplate(template_id, version=version)
        template = self._versions[template_id, version] = Template.of(codec.loads(entry.value))
        return template


_HAPPENED = frozenset({"action", "label", "labels", "previous_version", "revision", "timestamp"})


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _lines(template: Template) -> list[str]:
    declared = [f"{{# {name}: {variable.document()} #}}" for name, variable in sorted(template.variables.items())]
    return [*declared, *template.template.splitlines()]
