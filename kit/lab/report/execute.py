"""A process that executes notebooks one after another: jobs come in as JSON lines, events go out as JSON lines.

Notebooks run in processes of their own because papermill changes the working directory of the whole process, and
because a report outlives an executor that died. One executor takes many notebooks: importing papermill takes longer
than many a notebook.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from papermill import PapermillExecutionError, execute_notebook
from papermill.engines import NBClientEngine, NotebookExecutionManager, papermill_engines
from traitlets.config import Config

Emit = Callable[[dict[str, Any]], None]
ENGINE = "kit"


def main() -> int:
    """Execute jobs until there are no more."""
    emit = _channel()
    papermill_engines.register(ENGINE, _engine(emit))
    emit({"event": "ready"})
    for line in sys.stdin:
        emit({"event": "done", **_execute(json.loads(line), emit)})
    return 0


def _channel() -> Emit:
    """Where events go: the standard output, which nobody else gets from now on."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def emit(event: dict[str, Any]) -> None:
        channel.write(json.dumps(event) + "\n")

    return emit


def _execute(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Run one notebook; whatever it raised becomes part of the answer."""
    began = time.monotonic()
    progress: dict[str, Any] = {"cell": None}

    def watch(event: dict[str, Any]) -> None:
        progress["cell"] = event.get("cell", progress["cell"])

    _Manager.watch = staticmethod(watch)
    failure: dict[str, Any] | None = None
    try:
        execute_notebook(
            job["input"],
            job["output"],
            parameters=job["parameters"],
            engine_name=ENGINE,
            kernel_name=job["kernel"],
            cwd=job["cwd"],
            progress_bar=False,
            execution_timeout=job["timeout"],
        )
    except PapermillExecutionError as fault:
        failure = {"error": fault.ename, "message": fault.evalue, "number": fault.exec_count, "source": fault.source}
    except Exception as fault:  # noqa: BLE001 (a dead kernel, a cell past its time, a broken file: reported)
        failure = {"error": type(fault).__name__, "message": _first_lines(str(fault)), "number": None, "source": ""}
    if failure is not None:
        failure["cell"] = progress["cell"]
    return {"seconds": time.monotonic() - began, "failure": failure}


def _first_lines(text: str, count: int = 3) -> str:
    return "\n".join(text.strip().splitlines()[:count])


class _Manager(NotebookExecutionManager):  # type: ignore[misc]
    """Papermill's book-keeping, which also tells which cell it is at."""

    emit: Emit
    watch: Emit

    def cell_start(self, cell: Any, cell_index: int | None = None, **kwargs: Any) -> None:
        event = {"event": "cell", "cell": cell_index, "of": len(self.nb.cells)}
        type(self).watch(event)
        type(self).emit(event)
        super().cell_start(cell, cell_index, **kwargs)


def _engine(emit: Emit) -> type[NBClientEngine]:
    """Return papermill's own engine, with our book-keeping and an encrypted transport where the kernel has one."""
    _Manager.emit = staticmethod(emit)

    class Engine(NBClientEngine):  # type: ignore[misc]
        @classmethod
        def execute_notebook(cls, nb: Any, kernel_name: str, output_path: str | None = None, **kwargs: Any) -> Any:
            manager = _Manager(nb, output_path=output_path, progress_bar=False, log_output=False)
            manager.notebook_start()
            for known in ("progress_bar", "log_output", "autosave_cell_every"):
                kwargs.pop(known, None)
            # ipykernel 7.3 and later warns in the first cell unless its manager has decided about encryption.
            config = Config({"KernelManager": {"transport_encryption": "auto"}})
            try:
                cls.execute_managed_notebook(manager, kernel_name, config=config, **kwargs)
            finally:
                manager.notebook_complete()
            return manager.nb

    return Engine


if __name__ == "__main__":
    sys.exit(main())
