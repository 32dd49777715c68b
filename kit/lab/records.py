"""Numbers that leave a notebook: shown in it, collected by the report, compared by the gates.

A record is display data of its own MIME type with a text fallback. The report finds it in the executed notebook,
writes it to ``reports/<notebook>.json`` and renders its headlines and verdicts from that file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from kit.errors import ReportError

MIME = "application/vnd.kit.record+json"


@dataclass(frozen=True)
class Headline:
    """One number for the front page.

    Attributes:
        label: what it is, e.g. ``recall@5``.
        value: the number, or a text where no number says it.
        unit: its unit; seconds (``s``) are shown as ms, µs or ns where that reads better.
        beside: what to compare it with, in words.
    """

    label: str
    value: float | str
    unit: str = ""
    beside: str = ""


def record(
    name: str,
    values: Mapping[str, Any] | Sequence[Any] | None = None,
    *,
    title: str = "",
    headlines: Iterable[Headline] = (),
    verdicts: Iterable[Mapping[str, Any]] = (),
) -> None:
    """Display a record, so that the report finds it.

    Args:
        name: its name within the notebook, e.g. ``retrieval``.
        values: any JSON, numpy scalars and arrays included.
        title: a line for people.
        headlines: numbers for the front page.
        verdicts: rows of targets and what was measured, as ``Verdicts`` makes them.

    Raises:
        ReportError: a value that JSON cannot hold, e.g. a NaN.
    """
    body = {
        "name": name,
        "title": title or name,
        "values": plain(values if values is not None else {}, name),
        "headlines": [plain(asdict(headline), name) for headline in headlines],
        "verdicts": [plain(dict(row), name) for row in verdicts],
    }
    from IPython.display import publish_display_data

    labels = [headline["label"] for headline in body["headlines"]] or list(_names(body["values"]))
    publish_display_data({MIME: body, "text/plain": f"record {name}: {', '.join(labels)}"})


def _names(values: Any) -> Iterator[str]:
    """Yield what the fallback text names: keys, or how many items."""
    if isinstance(values, dict):
        yield from list(values)[:8]
    else:
        yield f"{len(values)} items"


def plain(value: Any, where: str = "record") -> Any:
    """Return a value as JSON holds it: numpy scalars and arrays, dataclasses, paths and tuples made plain.

    Raises:
        ReportError: a value that JSON cannot hold.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not isfinite(value):
            raise ReportError(f"record {where!r}: {value} is no JSON number")
        return float(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, where) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value), where)
    if isinstance(value, Path):
        return value.as_posix()
    tolist: Callable[[], Any] | None = getattr(value, "tolist", None)  # numpy scalars and arrays, pandas columns
    if tolist is not None:
        return plain(tolist(), where)
    raise ReportError(f"record {where!r}: a {type(value).__name__} is no JSON value")


def collect(notebook: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the records in an executed notebook, each with the index of its cell."""
    found = []
    for index, cell in enumerate(notebook["cells"]):
        for output in cell.get("outputs", ()):
            body = output.get("data", {}).get(MIME)
            if body is not None:
                found.append({**body, "cell": index})
    return found


@contextmanager
def expect(error: type[BaseException]) -> Iterator[None]:
    """Show an error that is the point of a cell, in one line, and go on.

    Raises:
        ReportError: nothing was raised. Another error passes through.
    """
    try:
        yield
    except error as fault:
        import sys

        sys.stdout.write(f"{type(fault).__name__}: {fault}\n")
    else:
        raise ReportError(f"expected a {error.__name__}, and nothing was raised")
