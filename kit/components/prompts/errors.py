"""What the prompt store and the renderer refuse, by name.

    ComponentError
    └── PromptError
        ├── UnknownTemplate          no such template, version or label
        ├── TemplateRefused          a template that cannot be stored: syntax, size, or a tag that has no place here
        │   └── UndeclaredVariable   it uses a variable that it does not declare
        ├── VariableError            the values do not fit what the template declares
        │   ├── MissingVariable
        │   ├── SuperfluousVariable
        │   └── WrongVariableType
        ├── RenderFailed             the template failed while it was rendered
        │   ├── ForbiddenInTemplate  it reached for what the sandbox denies
        │   ├── RenderTooLong        it did not end within its time
        │   └── RenderTooLarge       it needs more characters or memory than it may
        └── BudgetTooSmall           not one sentence fits the token budget

No message carries the value of a variable: names, types, sizes and line numbers only.
"""

from __future__ import annotations

from collections.abc import Sequence

from kit.errors import ComponentError


class PromptError(ComponentError):
    """A prompt could not be stored, found, rendered or built."""

    retryable = False
    content_free = True  # names, types, sizes, and words of a template's code; never of its text or of a value


class UnknownTemplate(PromptError):
    """No such template, version or label."""

    def __init__(self, template_id: str, *, version: str | None = None, label: str | None = None) -> None:
        self.template_id, self.version, self.label = template_id, version, label
        which = f"version {version}" if version else f"label {label!r}" if label else "version at all"
        super().__init__(f"template {template_id!r} has no {which}")


class TemplateRefused(PromptError):
    """The template cannot be stored; the message says why, and on which line."""

    def __init__(self, template_id: str, reason: str, *, line: int | None = None) -> None:
        self.template_id, self.reason, self.line = template_id, reason, line
        where = f"template {template_id!r}{f', line {line}' if line else ''}"
        super().__init__(f"{where}: {reason}")


class UndeclaredVariable(TemplateRefused):
    """The template uses variables that it does not declare."""

    def __init__(self, template_id: str, names: Sequence[str]) -> None:
        self.names = tuple(names)
        super().__init__(template_id, f"it uses {_listed(names)}: declare every variable with its type")


class VariableError(PromptError):
    """The values given do not fit the variables declared."""

    def __init__(self, template_id: str, version: str, names: Sequence[str], reason: str) -> None:
        self.template_id, self.version, self.names = template_id, version, tuple(names)
        super().__init__(f"template {template_id!r} version {version}: {reason}")


class MissingVariable(VariableError):
    """A declared variable without a default was not given."""

    def __init__(self, template_id: str, version: str, names: Sequence[str]) -> None:
        super().__init__(template_id, version, names, f"missing {_listed(names)}")


class SuperfluousVariable(VariableError):
    """A variable was given that the template does not declare."""

    def __init__(self, template_id: str, version: str, names: Sequence[str]) -> None:
        super().__init__(template_id, version, names, f"not declared: {_listed(names)}")


class WrongVariableType(VariableError):
    """A value is not of its variable's declared type."""

    def __init__(self, template_id: str, version: str, name: str, *, expected: str, actual: str) -> None:
        self.name, self.expected, self.actual = name, expected, actual
        super().__init__(template_id, version, [name], f"{name!r} must be {expected}, not {actual}")


class RenderFailed(PromptError):
    """The template failed while it was rendered."""

    def __init__(self, template_id: str, version: str, reason: str, *, line: int | None = None) -> None:
        self.template_id, self.version, self.reason, self.line = template_id, version, reason, line
        where = f"template {template_id!r} version {version}{f', line {line}' if line else ''}"
        super().__init__(f"{where}: {reason}")


class ForbiddenInTemplate(RenderFailed):
    """The template reached for something that the sandbox denies."""


class RenderTooLong(RenderFailed):
    """Rendering did not end within its time limit and was stopped."""

    def __init__(self, template_id: str, version: str, *, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(template_id, version, f"rendering did not end within {seconds:g} s and was stopped")


class RenderTooLarge(RenderFailed):
    """Rendering needs more characters or memory than it may."""

    def __init__(self, template_id: str, version: str, *, what: str) -> None:
        super().__init__(template_id, version, what)


class BudgetTooSmall(PromptError):
    """Not one sentence of the passages fits the token budget."""

    def __init__(self, budget: int, *, smallest: int) -> None:
        self.budget, self.smallest = budget, smallest
        super().__init__(f"nothing fits {budget} tokens: the smallest piece needs {smallest}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
