"""What a newcomer installs is what the project says it needs, in one place, for every way of setting up."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import kit

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


REQUIRED = {_name(requirement) for requirement in PROJECT["project"]["dependencies"]}
OPTIONAL = {
    _name(requirement) for extra in PROJECT["project"]["optional-dependencies"].values() for requirement in extra
}


def _imports(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every top-level module that is imported from outside the standard library."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found = [node.module]
            else:
                continue
            for name in {name.partition(".")[0] for name in found} - set(sys.stdlib_module_names) - {"kit"}:
                yield name, path


def test_what_the_package_imports_is_declared() -> None:
    providers = metadata.packages_distributions()
    missing = {
        f"{name} ({path.relative_to(ROOT)})"
        for name, path in _imports(ROOT / "kit")
        if not {_name(provider) for provider in providers.get(name, [name])} & (REQUIRED | OPTIONAL)
    }
    assert sorted(missing) == []


def test_the_conda_environment_takes_everything_from_pyproject() -> None:
    text = (ROOT / "environment.yml").read_text()
    assert f"python{PROJECT['project']['requires-python']}" in text.replace(" ", "")
    assert re.search(r"^\s+- -e \.\[", text, re.M), "it installs the project itself, with its extras"
    listed = {_name(line) for line in re.findall(r"^\s+- (?!-)([\w.-]+.*)$", text, re.M)}
    assert listed <= {"python", "pip", "pip:", "conda-forge"}, "dependencies stand once, in pyproject.toml"
    extras = set(re.findall(r"-e \.\[([^\]]*)\]", text)[0].split(","))
    assert extras <= set(PROJECT["project"]["optional-dependencies"])


def test_the_lock_pins_every_dependency() -> None:
    lock = ROOT / "requirements.lock"
    assert lock.is_file()
    pinned = {_name(line) for line in lock.read_text().splitlines() if "==" in line and not line.startswith("#")}
    assert sorted(REQUIRED - pinned) == []


def test_every_supported_python_is_tested() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    versions = re.findall(r'"(3\.\d+)"', workflow)
    low, high = re.findall(r"3\.(\d+)", PROJECT["project"]["requires-python"])
    assert versions == [f"3.{minor}" for minor in range(int(low), int(high))]
    assert ".ci/run" in workflow, "the workflow runs what a developer runs"


def test_the_package_says_that_it_is_typed_and_brings_its_templates() -> None:
    package = Path(kit.__file__).parent
    assert (package / "py.typed").is_file()
    templates = package / "lab" / "report" / "templates"
    assert {path.name for path in templates.iterdir()} >= {"style.css", "front.html.j2", "kit"}


def test_the_command_is_installed_as_kit() -> None:
    (script,) = [entry for entry in metadata.entry_points(group="console_scripts") if entry.name == "kit"]
    assert script.value == "kit.__main__:main"
    assert callable(script.load())


def test_the_schemas_go_into_the_wheel() -> None:
    include = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert include["schemas"] == "kit/_schemas"


def test_build_products_are_not_committed() -> None:
    done = subprocess.run(
        ["git", "ls-files", "reports", "notebooks"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    committed = done.stdout.split()
    assert [path for path in committed if path.endswith((".html", "executor-1.log"))] == []


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_committed_notebook_was_executed_top_to_bottom_and_carries_nothing_volatile(path: Path) -> None:
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert set(notebook["metadata"]) <= {"kernelspec", "language_info", "kit"}
    assert {key for cell in notebook["cells"] for key in cell["metadata"]} <= {"tags", "jupyter"}
    assert all("id" in cell for cell in notebook["cells"])
    assert str(ROOT) not in path.read_text()
