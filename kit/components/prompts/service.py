"""The prompt service: contexts on request, and its clients' side of it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kit import codec
from kit.catalogue import PROMPT_CONTEXT, PROMPT_TOKENS_ESTIMATED
from kit.components import Service
from kit.components.prompts.context import DEFAULT_MODEL, Context, build_context
from kit.components.prompts.errors import BudgetTooSmall
from kit.components.prompts.store import PRODUCTION, PromptStore, Rendered
from kit.components.prompts.tokens import TokenCounter
from kit.otel import semconv

if TYPE_CHECKING:
    from kit.nats import Bus, Message

BUDGET = 2000  # tokens, where a request names none
CONTEXT = "context"  # the variable by which a template takes the context
HISTORY_SHARE = 0.5  # of the budget that the conversation so far may take at most


async def serve(bus: Bus, *, concurrency: int = 8, render_seconds: float = 1.0, render_chars: int = 200_000) -> Service:
    """Serve PROMPT_CONTEXT: build contexts, and render templates with them where a request names one.

    Args:
        concurrency: requests at once.
        render_seconds: time one rendering may take.
        render_chars: characters one rendering may yield.
    """
    store = PromptStore(bus, seconds=render_seconds, max_chars=render_chars)
    await store.open()
    worker = await bus.serve(PROMPT_CONTEXT, _Builder(bus, store).answer, concurrency=concurrency)
    return Service([worker], store.close)


async def request_context(
    bus: Bus,
    items: Sequence[Mapping[str, Any] | str],
    *,
    token_budget: int = BUDGET,
    model: str = DEFAULT_MODEL,
    query: str | None = None,
    timeout: float = 5.0,
    **fields: Any,
) -> dict[str, Any]:
    """Ask the prompt service for a context; return the ``prompt_context``.

    Args:
        items: texts, or mappings with ``item_id`` and ``content`` and, as wanted, ``title``, ``score`` and others.
        fields: further fields of the ``prompt_context_request``: ``template_id``, ``variables``, ``history`` …

    Raises:
        RemoteError: the service refused, e.g. ``BudgetTooSmall`` or ``MissingVariable``.
    """
    data: dict[str, Any] = {
        "request_id": secrets.token_hex(8),
        "tenant_id": bus.tenant_id,
        "timestamp": codec.now(),
        "items": [
            {"item_id": str(number), "content": item} if isinstance(item, str) else dict(item)
            for number, item in enumerate(items, start=1)
        ],
        "token_budget": token_budget,
        "model": model,
    }
    if query is not None:
        data["query"] = query
    return (await bus.request(PROMPT_CONTEXT, data | fields, timeout=timeout)).data


class _Builder:
    """Answers requests for a context."""

    def __init__(self, bus: Bus, store: PromptStore) -> None:
        self._telemetry, self._store = bus.telemetry, store

    async def answer(self, message: Message) -> dict[str, Any]:
        """Build the context, render the template with it, put both into the conversation."""
        started, data = time.perf_counter(), message.data
        model = data.get("model", DEFAULT_MODEL)
        counter = await asyncio.to_thread(TokenCounter, model)  # the first use of a vocabulary takes 0.3 s
        budget = data.get("token_budget", BUDGET)
        room = budget - data.get("reserve", 0)
        frame = await self._frame(data, counter)
        history, forgotten = _recent(data.get("history", []), counter, int((room - frame) * HISTORY_SHARE))
        spoken = sum(counter.count(turn["content"]) for turn in history)
        if room - frame - spoken <= 0:
            raise BudgetTooSmall(budget, smallest=data.get("reserve", 0) + frame + spoken + 1)
        built = await asyncio.to_thread(
            build_context,
            data.get("items", []),
            room - frame - spoken,
            query=data.get("query"),
            separator=data.get("separator", "\n\n"),
            counter=counter,
        )
        rendered = await self._render(data, built)
        self._record(built, model)
        answer = self._answer(data, built, budget, rendered, counter)
        if data.get("history"):
            last = {"role": "user", "content": rendered.text if rendered else built.text}
            answer["messages"] = [*history, last]
            answer["metadata"] = {"history_left_out": forgotten}
        return answer | {"duration": time.perf_counter() - started}

    async def _frame(self, data: dict[str, Any], counter: TokenCounter) -> int:
        """Return the tokens that the template takes without a context."""
        if "template_id" not in data:
            return 0
        values = {CONTEXT: ""} | data.get("variables", {})
        return counter.count((await self._rendered(data, values)).text)

    async def _render(self, data: dict[str, Any], built: Context) -> Rendered | None:
        if "template_id" not in data:
            return None
        return await self._rendered(data, {CONTEXT: built.text} | data.get("variables", {}))

    async def _rendered(self, data: dict[str, Any], values: dict[str, Any]) -> Rendered:
        template_id, version, label = data["template_id"], data.get("version"), data.get("label")
        template = await self._store.get(template_id, version, label=label)
        if CONTEXT not in template.variables:
            values = {name: value for name, value in values.items() if name != CONTEXT}
        return await self._store.render(template_id, values, version=template.version)

    def _record(self, built: Context, model: str) -> None:
        self._telemetry.record(PROMPT_TOKENS_ESTIMATED, built.tokens, model=model)
        self._telemetry.annotate(
            {
                semconv.PROMPT_TOKENS: built.tokens,
                semconv.PROMPT_TOKEN_BUDGET: built.budget,
                semconv.PROMPT_TOKEN_ESTIMATOR: built.estimator,
                semconv.PROMPT_ITEMS_INCLUDED: len(built.included),
                semconv.PROMPT_ITEMS_TRUNCATED: sum(item.truncated for item in built.included),
                semconv.PROMPT_ITEMS_LEFT_OUT: len(built.left_out),
            }
        )

    def _answer(
        self, data: dict[str, Any], built: Context, budget: int, rendered: Rendered | None, counter: TokenCounter
    ) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "request_id": data["request_id"],
            "tenant_id": data["tenant_id"],
            "timestamp": codec.now(),
            "context": built.text,
            "tokens": built.tokens,
            "token_budget": budget,
            "model": built.model,
            "estimator": built.estimator,
        } | built.account()
        if rendered is not None:
            answer["prompt"] = rendered.text
            answer["prompt_tokens"] = counter.count(rendered.text)
            answer["template_id"], answer["version"] = rendered.template_id, rendered.version
            if "version" not in data:
                answer["label"] = data.get("label", PRODUCTION)
        return answer


def _recent(history: Sequence[dict[str, Any]], counter: TokenCounter, room: int) -> tuple[list[dict[str, Any]], int]:
    """Return the newest turns that fit, in their order, and how many older ones do not."""
    kept: list[dict[str, Any]] = []
    for turn in reversed(history):
        room -= counter.count(turn["content"])
        if room < 0:
            break
        kept.insert(0, turn)
    return kept, len(history) - len(kept)
