"""Prompts: immutable versions, labels that move, rendering within bounds, contexts within a token budget.

    store = PromptStore(bus)
    version = await store.create("qa", "Answer {{ question }} from:\\n{{ context }}", {"question": str, "context": str})
    await store.label("qa", "production", version)
    prompt = await store.render("qa", {"question": "…", "context": "…"})       # Rendered: text, version

Every reader follows PROMPT_TEMPLATES events; ``serve`` answers PROMPT_CONTEXT requests.
"""

from kit.components.prompts.context import Context, Included, LeftOut, build_context
from kit.components.prompts.errors import (
    BudgetTooSmall,
    ForbiddenInTemplate,
    MissingVariable,
    PromptError,
    RenderFailed,
    RenderTooLarge,
    RenderTooLong,
    SuperfluousVariable,
    TemplateRefused,
    UndeclaredVariable,
    UnknownTemplate,
    VariableError,
    WrongVariableType,
)
from kit.components.prompts.service import request_context, serve
from kit.components.prompts.store import LATEST, PRODUCTION, PromptStore, Rendered, Template
from kit.components.prompts.tokens import TokenCount, TokenCounter, estimate_tokens

__all__ = [
    "LATEST",
    "PRODUCTION",
    "BudgetTooSmall",
    "Context",
    "ForbiddenInTemplate",
    "Included",
    "LeftOut",
    "MissingVariable",
    "PromptError",
    "PromptStore",
    "RenderFailed",
    "RenderTooLarge",
    "RenderTooLong",
    "Rendered",
    "SuperfluousVariable",
    "Template",
    "TemplateRefused",
    "TokenCount",
    "TokenCounter",
    "UndeclaredVariable",
    "UnknownTemplate",
    "VariableError",
    "WrongVariableType",
    "build_context",
    "estimate_tokens",
    "request_context",
    "serve",
]
