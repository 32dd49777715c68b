"""Notebooks as files: which ones, which parameters, what is kept of them."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
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

    Papermill reads them line by line and misses a default with ``=`` in it and a type with ``|``.

    Raises:
        ReportError: it is not a Python notebook, or its parameters cell is not valid Python.
    """
    notebook = read(path)
    if notebook.metadata.get("kernelspec", {}).get("language", "python") != "python":
        raise ReportError(f"{path.stem}: only Python notebooks can have parameters")
    found: dict[str, dict[str, str]] = {}
    for cell in notebook.cells:
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", []):
            try:
                found |= _assigned(cell.source)
            except (SyntaxError, ValueError) as fault:
                raise ReportError(f"{path.stem}: its parameters cell is not valid Python: {fault}") from fault
            break
    return found


def _assigned(source: str) -> dict[str, dict[str, str]]:
    """Return the names that a cell assigns at the top level, with annotation, value and trailing comment."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    found = {}
    for node in ast.parse(source).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if not isinstance(target, ast.Name) or value is None:
            continue
        annotation = getattr(node, "annotation", None)
        kind = annotation.value if isinstance(annotation, ast.Constant) else annotation and ast.unparse(annotation)
        found[target.id] = {
            "name": target.id, "inferred_type_name": str(kind), "help": comments.get(node.end_lineno or 0, "").strip(),
            "default": ast.get_source_segment(source, value) or ast.unparse(value),
        }  # fmt: skip
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
    kinds, finite = _kinds(parameter["inferred_type_name"]), ""
    for kind in kinds:
        with suppress(KeyError, ValueError, SyntaxError, RecursionError, MemoryError):
            value = _READERS[kind](text)
            if _is_finite(value):
                return value
            finite = "finite "
    expected = f"{finite}{' or '.join(kinds)} expected"
    raise ReportError(f"parameter {name}={text[:80]}: {expected} ({parameter['help'] or 'no help'})")


def _kinds(annotation: str) -> list[str]:
    """Return the types that an annotation allows, text last because any value can be text."""
    try:
        found = [*_alternatives(ast.parse(annotation.strip(), mode="eval").body)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ["anything"]
    plain = [_name_of(kind).lower() for kind in found]
    if plain == ["none"] or not set(plain) <= _READERS.keys():
        return ["anything"]
    return sorted(plain, key=lambda kind: kind == "str")


def _alternatives(node: ast.expr) -> Iterator[ast.expr]:
    """Yield the types of ``A | B``, ``Union[A, B]`` and ``Optional[A]``; of any other annotation itself."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        yield from _alternatives(node.left)
        yield from _alternatives(node.right)
    elif isinstance(node, ast.Subscript) and (name := _name_of(node)) in ("Optional", "Union"):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        for part in inner:
            yield from _alternatives(part)
        if name == "Optional":
            yield ast.Constant(None)
    else:
        yield node


def _name_of(node: ast.expr) -> str:
    """Return the last part of a type's name, without its parameters: ``list`` of ``typing.list[int]``."""
    if isinstance(node, ast.Subscript):
        return _name_of(node.value)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else str(getattr(node, "value", ""))


def _literal(text: str) -> Any:
    """Return a value written as JSON or Python."""
    try:
        return json.loads(text)
    except ValueError:
        return ast.literal_eval(text)


def _of(*types: type) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        if type(value := _literal(text)) not in types:
            raise ValueError(text)
        return value

    return read


def _anything(text: str) -> Any:
    """Return a value for a parameter without a type: a number, a Boolean, None, a list … or a text."""
    try:
        return _literal(text)
    except (ValueError, SyntaxError):
        return text


def _is_finite(value: Any) -> bool:
    """Return whether a report can hold a value: its JSON has no infinity."""
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, TypeError):
        return False
    return True


_READERS: Mapping[str, Callable[[str], Any]] = {
    "none": lambda text: {"none": None, "null": None}[text.lower()],
    "bool": lambda text: {"true": True, "1": True, "false": False, "0": False}[text.lower()],
    "int": lambda text: int(text.replace("_", "")), "float": float, "str": str, "list": _of(list), "dict": _of(dict),
    "sequence": _of(list), "mapping": _of(dict), "tuple": _of(tuple, list), "anything": _anything,
}  # fmt: skip


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
