"""Released schemas never change: ``schemas/released.json`` keeps the SHA-256 of each."""

from __future__ import annotations

import hashlib
from pathlib import Path

from . import exact
from .contracts import Registry, registry

LEDGER = "released.json"


def _hashes(folder: Path) -> dict[str, str]:
    known = Registry(folder)
    files = [f"{name}/{version}.json" for name in known.message_types() for version in known.versions(name)]
    return {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in files}


def check_released(folder: Path | None = None) -> tuple[str, ...]:
    """Return what was done to released schemas, or left undone: one sentence each; none means all is well.

    Args:
        folder: of the schemas; None is the kit's.
    """
    folder = folder or registry().folder
    ledger, found = exact.loads((folder / LEDGER).read_bytes()), _hashes(folder)
    changed = [
        f"{file} was changed: add a version instead" for file in ledger if found.get(file, ledger[file]) != ledger[file]
    ]
    missing = [f"{file} was removed: released schemas stay" for file in ledger if file not in found]
    unlisted = [f"{file} is not released yet: run kit.codec.release()" for file in found if file not in ledger]
    return (*changed, *missing, *unlisted)


def release(folder: Path | None = None) -> tuple[str, ...]:
    """Enter new schemas into the ledger, and return which; what is in it already is never touched.

    Args:
        folder: of the schemas; None is the kit's.
    """
    folder = folder or registry().folder
    file = folder / LEDGER
    ledger = exact.loads(file.read_bytes()) if file.is_file() else {}
    new = {name: digest for name, digest in _hashes(folder).items() if name not in ledger}
    file.write_bytes(exact.dumps(dict(sorted({**ledger, **new}.items())), indent=True) + b"\n")
    return tuple(new)
