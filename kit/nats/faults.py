"""Errors on the wire: what of an exception leaves the process, and what it becomes on the other side."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kit.catalogue import ERROR, Operation
from kit.codec import encode
from kit.errors import CodecError, ConfigurationError, PayloadTooLarge, RemoteError, escape_text

if TYPE_CHECKING:
    from kit.otel import Operation as Recorded

_LONGEST = 500  # characters of an error's message
_LONGEST_NAME = 200  # … of its class name, as the contract of errors says
_CUT = "…"
_WHOLE = 8  # characters from which on a value of the data is cut out wherever it stands
_PROSE = 16  # … and a common run of lower-case words; shorter ones are just language
_QUOTED = re.compile(r"'([^']{3,})'|\"([^\"]{3,})\"|`([^`]{3,})`")
_PLAIN = re.compile(r"[a-z ,.]*")
_SEARCHED = 1 << 20  # characters of the data that are searched


class Fault:
    """What is told of an exception.

    Attributes:
        error_type: its class name.
        detail: its message, without content of the message that was handled.
        retryable: whether the same message may succeed later.
        path: JSON pointer to the fault, when data broke their contract.
        retry_after: seconds to wait before trying again, when the error says so.
        refused: whether the message broke its contract, and no handler got to see it.
    """

    __slots__ = ("detail", "error", "error_type", "path", "refused", "retry_after", "retryable")

    def __init__(self, error: BaseException, data: Any = None, *, refused: bool = False) -> None:
        self.error = error
        self.refused = refused
        self.error_type = escape_text(type(error).__name__, _LONGEST_NAME) or "Exception"
        self.detail = told(error, data)
        self.retryable = is_retryable(error)
        path = _said(error, "path") if isinstance(error, CodecError) else None
        self.path = escape_text(path) if isinstance(path, str) else None
        after = _said(error, "retry_after")
        self.retry_after = float(after) if isinstance(after, int | float) and 0 <= after < 1e9 else None

    def encoded(self, operation: Operation, attempts: int | None = None) -> bytes:
        """Return the "error" message that answers in place of a result."""
        data: dict[str, Any] = {
            "error_type": self.error_type,
            "message": self.detail,
            "retryable": self.retryable,
            "operation": operation.name,
            "component": operation.component,
        }
        if self.path is not None:
            data["path"] = self.path
        if attempts is not None:
            data["attempts"] = max(attempts, 1)
        if self.retry_after is not None:
            data["retry_after"] = self.retry_after
        return encode(ERROR, data)

    def record(self, operation: Recorded) -> None:
        """Mark the operation's span as failed; like the answer, without content (``word_errors``)."""
        operation.fail_by(self.error)


def told(error: BaseException, data: Any) -> str:
    """Return an error's message without the content of the data, such that it can be sent whatever it quotes.

    The codec names paths and rules, never values. A component may say the same of its errors (``content_free``), or of
    what their messages begin with (``content_free_start``): ids, columns and versions stand in the data too, and are
    what the caller has to know.
    """
    said = _said(error, "__str__")
    said = said if isinstance(said, str) else ""
    if isinstance(error, CodecError) or _said(error, "content_free") is True:
        return escape_text(said, _LONGEST)
    start = _said(error, "content_free_start")
    start = start if isinstance(start, str) and said.startswith(start) else ""
    return escape_text(start + without_content(said[len(start) :], data), _LONGEST)


def _said(error: BaseException, name: str) -> Any:
    """Return what an error says of itself; None when it cannot even do that."""
    try:
        return str(error) if name == "__str__" else getattr(error, name, None)
    except BaseException:  # noqa: BLE001 - foreign code
        return None


def is_retryable(error: BaseException) -> bool:
    """Say whether the same message may succeed later: what the error says of itself, else by its kind."""
    said = _said(error, "retryable")
    if isinstance(said, bool):
        return said
    return not isinstance(error, CodecError | ConfigurationError | PayloadTooLarge)


def remote_error(subject: str, data: dict[str, Any]) -> RemoteError:
    """Return what an "error" message raises at the caller."""
    return RemoteError(
        subject,
        error_type=data["error_type"],
        detail=data["message"],
        retryable=bool(data["retryable"]),
        retry_after=data.get("retry_after"),
    )


def without_content(detail: str, data: Any) -> str:
    """Return an error's message with every piece of the data cut out, in upper or lower case.

    Cut out are the data's values, quoted pieces that stand in the data, and longer runs of characters that do. What is
    left can be sent, whatever it quotes.
    """
    detail = detail[:_LONGEST]
    values = list(_texts(data))
    if not values or not detail:
        return escape_text(detail, _LONGEST)
    for value in sorted({value for value in values if _WHOLE <= len(value) <= len(detail)}, key=len, reverse=True):
        detail = re.sub(re.escape(value), _CUT, detail, flags=re.IGNORECASE)
    text = "\0".join(values)[:_SEARCHED]
    detail = _QUOTED.sub(lambda found: f"'{_CUT}'" if _inside(found, text) else found[0], detail)
    detail = _cut_runs(detail, detail, text)
    return escape_text(_cut_runs(detail, _lower(detail), text.lower()), _LONGEST)


def _inside(found: re.Match[str], text: str) -> bool:
    quoted = next(group for group in found.groups() if group is not None)
    return quoted in text


def _lower(detail: str) -> str:
    """Return a text in lower case, character by character: some grow in it."""
    return "".join(low if len(low := character.lower()) == 1 else character for character in detail)


def _texts(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict):
        for value in data.values():
            yield from _texts(value)
    elif isinstance(data, list):
        for value in data:
            yield from _texts(value)


def _cut_runs(detail: str, compared: str, text: str) -> str:
    """Cut out of ``detail`` the runs at which ``compared``, as long as it is, stands in the text."""
    kept: list[str] = []
    start = 0
    while start < len(detail):
        end = start + _WHOLE
        if end > len(detail) or compared[start:end] not in text:
            kept.append(detail[start])
            start += 1
            continue
        while end < len(detail) and compared[start : end + 1] in text:
            end += 1
        run = compared[start:end]
        kept.append(detail[start:end] if len(run) < _PROSE and _PLAIN.fullmatch(run) else _CUT)
        start = end
    return "".join(kept)
