"""What notebooks, the command line and CI stand on.

Names are loaded when first used: a benchmark does not wait for the report, nor the command line for pandas.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kit.lab import bench, charts, tables
    from kit.lab.project import project_root, reports_folder
    from kit.lab.records import Headline, expect, record
    from kit.lab.session import Lab, start

__all__ = [
    "Headline",
    "Lab",
    "bench",
    "charts",
    "eventually",
    "expect",
    "project_root",
    "record",
    "reports_folder",
    "start",
    "tables",
]

_HOMES = {
    "Headline": "kit.lab.records",
    "Lab": "kit.lab.session",
    "eventually": "kit.lab.session",
    "expect": "kit.lab.records",
    "project_root": "kit.lab.project",
    "record": "kit.lab.records",
    "reports_folder": "kit.lab.project",
    "start": "kit.lab.session",
}
_MODULES = {"bench", "charts", "tables"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_MODULES})
