"""Gate 3, API contract: released schemas do not change, the catalogue is complete, and packages import one way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from kit.catalogue import MESSAGE_TYPES, METRICS, OPERATIONS, SPANS
from kit.lab.gates.changes import blobs_at, git
from kit.lab.gates.model import Check, Context, judge, unseen
from kit.lab.project import project_root


def contracts(_: Context) -> Check:
    """Judge whether the versions within a major are compatible, by schema and by every stored fixture."""
    from kit import codec

    if broken := list(_not_json("schemas")):
        return judge("contracts", "", broken, "git checkout restores it; released schemas stay as they are")
    schemas = sum(len(codec.versions(message_type)) for message_type in codec.message_types())
    findings = [*codec.check_released(), *(str(found) for found in codec.check_compatibility())]
    summary = f"{schemas} schemas of {len(codec.message_types())} message types"
    return judge("contracts", summary, findings, "leave released schemas as they are; add a new minor version")


def released(context: Context) -> Check:
    """Judge whether every schema of the base is still there, byte for byte, whatever ``released.json`` says."""
    name, base = "released", context.change.base
    if not base:
        return unseen(name, "not measured: no base to compare with", "run it in a git checkout with its history")
    before = {path: blob for path, blob in blobs_at(base, "schemas").items() if path.count("/") == 2}
    findings = []
    for path, blob in before.items():
        if not (project_root() / path).is_file():
            findings.append(f"{path} was released at {base} and is missing now")
        elif git("hash-object", path) != blob:
            findings.append(f"{path} was released at {base} and has changed")
    findings += [f"{path} was a fixture at {base} and is missing now" for path in _fixtures_gone(base)]
    remedy = f"git checkout {base} -- schemas data restores it; then add a new version and call kit.codec.release()"
    return judge(name, f"{len(before)} schemas of {base} are unchanged", findings, remedy)


def _not_json(folder: str) -> Iterator[str]:
    root = project_root()
    for path in sorted((root / folder).rglob("*.json")):
        try:
            json.loads(path.read_bytes())
        except ValueError as error:
            yield f"{path.relative_to(root)} is not JSON: {error}"


def _fixtures_gone(base: str) -> Iterator[str]:
    return (path for path in blobs_at(base, "data/contracts") if not (project_root() / path).is_file())


def catalogue(_: Context) -> Check:
    """Judge whether names are unique, and every message type has its schema and fixtures."""
    summary = f"{len(OPERATIONS)} operations, {len(SPANS)} spans, {len(METRICS)} metrics, {len(MESSAGE_TYPES)} types"
    return judge("catalogue", summary, _catalogue_findings(), "add a row, its schema and its fixtures together")


def _catalogue_findings() -> Iterator[str]:
    from kit import codec

    for what, names in (
        ("subject", [row.prefix for row in OPERATIONS]),
        ("operation", [row.name for row in OPERATIONS]),
        ("span", [row.name for row in SPANS]),
        ("metric", [row.name for row in METRICS]),
    ):
        yield from (f"{what} {name} occurs {count} times" for name, count in Counter(names).items() if count > 1)
    known = set(codec.message_types())
    yield from (f"message type {name} has no schema" for name in MESSAGE_TYPES if name not in known)
    yield from (f"schema {name} is in no row of the catalogue" for name in sorted(known - set(MESSAGE_TYPES)))
    fixtures = project_root() / "data" / "contracts"
    for name in sorted(known & set(MESSAGE_TYPES)):
        for version in codec.versions(name):
            for kind in ("valid", "invalid"):
                if not any((fixtures / name / version / kind).glob("*")):
                    yield f"{name} {version} has no {kind} fixture"


def imports(_: Context) -> Check:
    """Judge whether packages import one way, and only each other's public names."""
    tool = find_tool("lint-imports")
    if tool is None:
        return unseen("imports", "not measured: import-linter is not installed", "pip install -e '.[test]'")
    command = [tool, "--no-cache", "--config", str(project_root() / "pyproject.toml")]
    done = run_tool(command)
    broken = [line.strip() for line in done.stdout.splitlines() if "BROKEN" in line or line.strip().startswith("- ")]
    kept = sum(line.rstrip().endswith("KEPT") for line in done.stdout.splitlines())
    if (done.returncode or not kept) and not broken:
        broken = (done.stdout + done.stderr).strip().splitlines()[-3:]
    remedy = "import only what a lower package's __init__ exports; components communicate over the bus"
    return judge("imports", f"{kept} rules kept", broken, remedy)


def run_tool(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a tool in the project and return its output without colours."""
    colours = {"FORCE_COLOR", "CLICOLOR_FORCE", "PY_COLORS", "MYPY_FORCE_COLOR"}
    variables = {name: value for name, value in os.environ.items() if name not in colours} | {"NO_COLOR": "1"}
    return subprocess.run(
        command, cwd=project_root(), capture_output=True, text=True, check=False, timeout=600.0, env=variables
    )


def find_tool(name: str) -> str | None:
    """Return the path of a command, preferring this environment's."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
