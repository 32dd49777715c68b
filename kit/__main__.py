"""The command line: ``python -m kit``, also installed as ``kit``."""

from __future__ import annotations

import sys

from kit.lab.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
