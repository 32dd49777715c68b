"""What the gateway refuses, and how providers fail.

    ComponentError
    └── GatewayError
        ├── RateLimited          over the tenant's allowance; says when to come back
        ├── BudgetExceeded       would exceed the tenant's budget; says the limit and when it resets
        ├── PriceUnknown         a model without a known price was asked for under a budget
        ├── ProviderFailed       the model's provider failed; says with which status, and whether a retry may help
        ├── ResponseInvalid      the response broke the check that the request asked for
        ├── RequestExpired       nobody waits for the answer any more
        └── RequestRefused       something in the request cannot be passed on

Messages name limits, models and statuses, never what people wrote.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from kit.errors import ComponentError, escape_text


class GatewayError(ComponentError):
    """The gateway refused a request or failed at it.

    Attributes:
        retryable: whether the same request may succeed later.
    """

    retryable = False


class RateLimited(GatewayError):
    """A tenant used up what a model allows it in a window of time.

    Attributes:
        retry_after: seconds until the request would be let through.
    """

    retryable = True
    content_free = True  # numbers only

    def __init__(self, model: str, *, limit: float, window: float, retry_after: float, unit: str = "requests") -> None:
        self.model, self.limit, self.window, self.unit = model, limit, window, unit
        self.retry_after = retry_after
        super().__init__(f"rate limit of {limit:g} {unit} in {window:g} s is used up: retry after {retry_after:.2f} s")


class BudgetExceeded(GatewayError):
    """A request would exceed the tenant's budget.

    Attributes:
        limit: the budget in ``currency``.
        reset_at: when the period ends (UTC, RFC 3339), or None for a budget without end.
        retry_after: seconds until then, or None.
    """

    content_free = True  # amounts, and a date that the request's own timestamp shares

    def __init__(
        self, *, limit: float, spent: float, estimated: float, currency: str, period: str, reset_at: str | None
    ) -> None:
        self.limit, self.spent, self.estimated, self.currency = limit, spent, estimated, currency
        self.period, self.reset_at = period, reset_at
        self.retry_after = None if reset_at is None else _until(reset_at)
        resets = f"resets at {reset_at}" if reset_at is not None else "never resets"
        super().__init__(
            f"budget of {limit:g} {currency} per {period} has {max(limit - spent, 0.0):g} {currency} left, "
            f"{estimated:g} {currency} would be needed: it {resets}"
        )


class PriceUnknown(GatewayError):
    """A model has no known price, so that nobody can say whether it would exceed a budget.

    Attributes:
        model: its name; a price of 0 in the gateway's settings says that it is free.
    """

    content_free = True  # a model's name, as on every span

    def __init__(self, model: str) -> None:
        self.model = model
        super().__init__(
            f"no price is known for the model {model}, and a budget bounds what may be spent: "
            "give input_cost_per_token and output_cost_per_token in the gateway's settings, 0 where it is free"
        )


class ProviderFailed(GatewayError):
    """The provider of a model failed, after the retries and fallbacks that were left to it.

    Attributes:
        status_code: HTTP status, or None if no answer came.
        kind: LiteLLM's name for the failure, e.g. ``Timeout``; ``UnknownProvider`` if the model's name has none,
            ``MissingKey`` if the gateway's environment has no key for it; ``MalformedAnswer``, ``NoAnswer``,
            ``AnswerCut`` and ``AnswerTooLarge`` for unusable answers.
        retry_after: seconds that the provider asked to wait, or None.
        worked: whether the provider may have worked and may charge for it.
        final: whether no other model should be tried.
        answer: LiteLLM's unusable response, or None.
        said: its text.
    """

    content_free = True  # a status and LiteLLM's name for it, never what the provider said
    worked = final = False
    answer: Any = None
    said = ""

    def __init__(
        self,
        model: str,
        *,
        kind: str,
        status_code: int | None,
        retryable: bool,
        retry_after: float | None = None,
        missing: str = "",
    ) -> None:
        self.model, self.kind, self.status_code = model, kind, status_code
        self.retryable = retryable
        self.retry_after = retry_after
        status = f" with status {status_code}" if status_code is not None else ""
        hint = f": {missing} is not set where the gateway runs" if missing else ""
        super().__init__(f"the provider failed{status} ({kind}){hint}")


def timed_out(model: str = "") -> ProviderFailed:
    """Return the failure of a provider that did not answer in time."""
    failed = ProviderFailed(model, kind="Timeout", status_code=408, retryable=False)
    failed.worked = True
    return failed


def unusable(model: str, kind: str, *, retryable: bool, answer: Any = None, said: str = "") -> ProviderFailed:
    """Return the failure of a provider that sent an unusable answer, which must be paid for."""
    failed = ProviderFailed(model, kind=kind, status_code=None, retryable=retryable)
    failed.worked, failed.answer, failed.said = True, answer, said
    return failed


class ResponseInvalid(GatewayError):
    """A response broke the check that the request asked for, in every attempt."""

    def __init__(self, level: str, *, detail: str, attempts: int = 1) -> None:
        self.level, self.detail, self.attempts = level, detail, attempts
        self.content_free_start = f"response failed its check '{level}' in {attempts} attempt(s): "
        self.content_free = level != "json_schema"  # whose path names keys that a model may have made up
        super().__init__(self.content_free_start + detail)


class RequestExpired(GatewayError):
    """A request waited in the queue until nobody waited for its answer."""

    content_free = True  # a number only

    def __init__(self, *, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"request was older than its timeout of {seconds:g} s when a worker came to it")


class RequestRefused(GatewayError):
    """Something in a request cannot be passed on to a provider."""


def _until(time: str) -> float:
    return max((datetime.fromisoformat(time) - datetime.now(UTC)).total_seconds(), 0.0)


def error_of(error_type: str, detail: str, model: str = "", retry_after: float | None = None) -> GatewayError | None:
    """Rebuild the gateway's error at the caller from what was sent of it, or return None for any other.

    Args:
        error_type: class name of the error at the worker.
        detail: its message.
        model: the model that was asked for.
        retry_after: seconds that the worker said to wait.
    """
    rebuild = _REBUILD.get(error_type)
    error = None if rebuild is None else rebuild(detail, model, retry_after)
    if error is not None:
        error.args = (detail,)
    return error


def _numbers(detail: str) -> list[float]:
    return [float(number) for number in re.findall(r"(?<![\w:.-])\d+(?:\.\d+)?(?:e-?\d+)?(?![\w:-])", detail)]


def _found(pattern: str, detail: str, default: str = "") -> str:
    """What the only group of a pattern matches."""
    match = re.search(pattern, detail)
    return match.group(1) if match else default


def _rate_limited(detail: str, model: str, retry_after: float | None) -> RateLimited | None:
    if len(numbers := _numbers(detail)) < 3:
        return None
    limit, window, after = numbers[:3]
    unit = _found(r"\d (requests|tokens) in", detail, "requests")
    return RateLimited(
        model, limit=limit, window=window, retry_after=after if retry_after is None else retry_after, unit=unit
    )


def _budget_exceeded(detail: str, model: str, retry_after: float | None) -> BudgetExceeded | None:
    if len(numbers := _numbers(detail)) < 3:
        return None
    limit, left, estimated = numbers[:3]
    currency = _found(r"budget of \S+ ([A-Z]{3})", detail, "USD")
    return BudgetExceeded(
        limit=limit, spent=limit - left, estimated=estimated, currency=currency,
        period=_found(r"per (\w+) has", detail, "day"), reset_at=_found(r"resets at (\S+)", detail) or None,
    )  # fmt: skip


def _provider_failed(detail: str, model: str, retry_after: float | None) -> ProviderFailed:
    status = next(iter(_numbers(detail)), None)
    return ProviderFailed(
        model, kind=_found(r"\((\w+)\)", detail), status_code=None if status is None else int(status), retryable=False,
        retry_after=retry_after,
    )  # fmt: skip


_REBUILD: dict[str, Callable[[str, str, float | None], GatewayError | None]] = {
    "RateLimited": _rate_limited,
    "BudgetExceeded": _budget_exceeded,
    "PriceUnknown": lambda detail, model, _: PriceUnknown(_found(r"the model (\S{1,200}), and a", detail, model)),
    "ProviderFailed": _provider_failed,
    "ResponseInvalid": lambda detail, *_: ResponseInvalid(
        _found(r"check '(\w+)'", detail), detail=detail.partition(": ")[2],
        attempts=int(_found(r"in (\d+) attempt", detail, "1")),
    ),
    "RequestExpired": lambda detail, *_: RequestExpired(seconds=next(iter(_numbers(detail)), 0.0)),
    "RequestRefused": lambda detail, *_: RequestRefused(detail),
}  # fmt: skip


def as_data(error: BaseException) -> dict[str, Any]:
    """Return an error as the ``error`` object of responses and chunks."""
    return {
        "type": type(error).__name__,
        "message": escape_text(str(error), 2000),
        "retryable": bool(getattr(error, "retryable", False)),
    }
