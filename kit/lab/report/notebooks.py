"""Notebooks as files: which ones, which parameters, what is kept of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from kit.errors import ReportError

INJECTED = "injected-parameters"  # papermill's tag on the cell it adds
MARKER = "papermill-error-cell-tag"  # papermill's tag on the cells that point to a failure
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def find(folder: Path, only: Iterable[str] = ()) -> list[Path]:
    """Return the notebooks in a folder whose name contains, or matches, one of the patterns (all without any).

    Raises:
        ReportError: no such folder, or a pattern that fits no notebook; it lists those there are.
    """
    if not folder.is_dir():
        raise ReportError(f"no folder {folder}: run from the project, or say where by --notebooks")
    every = sorted(folder.glob("*.ipynb"))
    if not every:
        raise ReportError(f"no notebooks in {folder}")
    chosen: set[Path] = set()
    for pattern in only:
        fitting = {path for path in every if fnmatch(path.stem, pattern) or pattern.removesuffix(".ipynb") in path.stem}
        if not fitting:
            raise ReportError(f"no notebook fits {pattern!r}; there are: {', '.join(path.stem for path in every)}")
        chosen |= fitting
    return sorted(chosen) if only else every


def read(path: Path) -> NotebookNode:
    """Return a notebook.

    Raises:
        ReportError: the file is not one.
    """
    try:
        notebook: NotebookNode = nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, AttributeError, KeyError) as fault:
        raise ReportError(f"{path} is not a notebook: {fault}") from fault
    return notebook


def kernel_name(notebook: NotebookNode) -> str:
    """Return the kernel a notebook asks for; Python's, where it asks for none."""
    return str(notebook.metadata.get("kernelspec", KERNELSPEC)["name"])


def runs_alone(notebook: NotebookNode, name: str) -> bool:
    """Return whether nothing else may run beside it: benchmarks, and what says so in its metadata."""
    return bool(notebook.metadata.get("kit", {}).get("alone", "benchmark" in name))


def parameters_for(paths: Iterable[Path], given: Mapping[str, str]) -> dict[Path, dict[str, Any]]:
    """Return which of the given parameters each notebook takes, as values of the type it declares.

    Raises:
        ReportError: a parameter that none of them has, or a value of another type; it lists the known ones.
    """
    paths = list(paths)
    if not given:
        return {path: {} for path in paths}
    known = {path: declared(path) for path in paths}
    every = {name: parameter for parameters in known.values() for name, parameter in parameters.items()}
    if unknown := [name for name in given if name not in every]:
        raise ReportError(f"unknown parameter {', '.join(unknown)}; known ones:\n{_listing(known)}")
    return {
        path: {name: typed(name, text, parameters[name]) for name, text in given.items() if name in parameters}
        for path, parameters in known.items()
    }


def declared(path: Path) -> dict[str, dict[str, str]]:
    """Return the parameters that a notebook declares: name, inferred type, default, help.

    Raises:
        ReportError: papermill cannot tell its language.
    """
    from papermill import inspect_notebook

    try:
        found: dict[str, dict[str, str]] = inspect_notebook(path)
    except ValueError as fault:
        raise ReportError(f"{path.stem}: no parameters without a kernelspec in its metadata ({fault})") from fault
    return found


def _listing(known: Mapping[Path, Mapping[str, Mapping[str, str]]]) -> str:
    lines = []
    for path, parameters in known.items():
        for name, parameter in parameters.items():
            kind = parameter["inferred_type_name"]
            annotation = f": {kind}" if kind != "None" else ""
            lines.append(f"  {path.stem}: {name}{annotation} = {parameter['default']}  {parameter['help']}".rstrip())
    return "\n".join(lines) or "  none: these notebooks have no cell tagged `parameters`"


def typed(name: str, text: str, parameter: Mapping[str, str]) -> Any:
    """Return a parameter's value as its notebook declares it.

    Raises:
        ReportError: the text is no value of that type.
    """
    kind = parameter["inferred_type_name"].replace(" ", "")
    optional = kind.removesuffix("|None")
    if kind != optional and text == "None":
        return None
    try:
        if optional == "bool":
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if optional in ("int", "float"):
            return int(text.replace("_", "")) if optional == "int" else float(text)
    except (KeyError, ValueError) as fault:
        raise ReportError(f"parameter {name}={text}: {optional} expected ({parameter['help'] or 'no help'})") from fault
    if optional == "str":
        return text
    return _guess(text)


def _guess(text: str) -> Any:
    """A value for a parameter that declares no type: a number, a truth value, None or a text."""
    from ast import literal_eval

    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def without_machinery(notebook: NotebookNode) -> NotebookNode:
    """Return an executed notebook without the cells that papermill added, in place."""
    added = {INJECTED, MARKER}
    notebook.cells = [cell for cell in notebook.cells if not added & set(cell.metadata.get("tags", []))]
    return notebook


def for_commit(notebook: NotebookNode, root: Path | None = None) -> NotebookNode:
    """Return an executed notebook as it is committed: outputs and counts kept, what changes with every run dropped.

    Args:
        root: a folder whose absolute path is replaced by ``.`` wherever it occurs in an output.
    """
    notebook = without_machinery(nbformat.from_dict(notebook))
    kept = notebook.metadata.get("kit")
    notebook.metadata = NotebookNode(kernelspec=KERNELSPEC, language_info={"name": "python"})
    if kept:
        notebook.metadata["kit"] = kept
    for cell in notebook.cells:
        cell.metadata = NotebookNode({key: value for key, value in cell.metadata.items() if key in ("tags", "jupyter")})
        for output in cell.get("outputs", ()):
            if "metadata" in output:
                output.metadata = NotebookNode()
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return _relocated(notebook, root) if root is not None else notebook


def _relocated(notebook: NotebookNode, root: Path) -> NotebookNode:
    """Replace the project's absolute path in every output's texts."""
    prefix = re.compile(re.escape(str(root.resolve())) + r"(?=[/\s'\":),]|$)")

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return prefix.sub(".", value)
        if isinstance(value, list):
            return [clean(item) for item in value]
        return NotebookNode({key: clean(item) for key, item in value.items()}) if isinstance(value, dict) else value

    for cell in notebook.cells:
        if cell.get("outputs"):
            cell.outputs = [clean(output) for output in cell.outputs]
    return notebook


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook the way it is committed: sorted keys, one indent, a newline at the end."""
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def headings(notebook: NotebookNode) -> tuple[str, str]:
    """Return a notebook's title (its H1) and the paragraph below it, as plain text."""
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        title, _, rest = cell.source.strip().partition("\n")
        paragraphs = [text.strip() for text in re.split(r"\n\s*\n", rest) if text.strip()]
        return _unmarked(title.lstrip("# ")), _unmarked(paragraphs[0]) if paragraphs else ""
    return "", ""


def _unmarked(markdown: str) -> str:
    """Markdown's links, code and emphasis as bare words."""
    text = re.sub(r"!?\[([^\[\]]*)\]\([^()]*\)", r"\1", markdown)
    return re.sub(r"[`*]|(?<!\w)_|_(?!\w)", "", " ".join(text.split()))
