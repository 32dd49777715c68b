"""What a telemetry is told by its environment, for as long as it starts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def telemetry_variables(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for as long as a telemetry reads them, and keep others of its kind out."""
    names = ("OTEL_SDK_DISABLED", "OTEL_TRACES_SAMPLER")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)
