"""Where the project's folders are, from a notebook, from the command line and from a test."""

from __future__ import annotations

import os
from pathlib import Path

import kit

REPORTS_VARIABLE = "KIT_REPORTS"  # set by `kit report --output`, so that notebooks write their samples there too


def project_root() -> Path:
    """Return the folder with ``notebooks/``, ``data/`` and ``reports/``: the checkout, else the working directory."""
    checkout = Path(kit.__file__).resolve().parent.parent
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def reports_folder() -> Path:
    """Return the folder that reports and raw samples are written to, made when it is missing."""
    folder = Path(os.environ.get(REPORTS_VARIABLE) or project_root() / "reports")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
