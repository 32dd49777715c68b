"""What a change contains: its commits since the merge base, and the working tree."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from kit.errors import ConfigurationError
from kit.lab.gates.evidence import test_functions
from kit.lab.project import project_root

BASE_VARIABLE = "KIT_BASE"
"""Names the base branch; CI sets it to the target branch of the pull request."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change against its base.

    Attributes:
        base: short hash of the commit to compare with; empty without a git history.
        files: paths that differ, including uncommitted ones.
        reasons: values of its commits' trailers, by the trailer's name in lower case.
    """

    base: str
    files: frozenset[str]
    reasons: dict[str, list[str]]

    def touches(self, *prefixes: str) -> bool:
        """Return whether any changed path begins with one of these prefixes."""
        return any(path.startswith(prefixes) for path in self.files)


def git(*arguments: str) -> str:
    """Return git's output in the project without the last newline; empty if git fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", "-c", "core.quotePath=off", *arguments], cwd=project_root(), capture_output=True, check=False,
            encoding="utf-8", errors="replace", timeout=60.0,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.rstrip("\n") if done.returncode == 0 else ""


def changed_since(base: str = "") -> Change:
    """Return what differs from a base: the one given, else the merge base with ``main``.

    On ``main`` itself, or on no branch, the base is the commit before the last.

    Raises:
        ConfigurationError: the given base is not in the history.
    """
    commit = _base(base or os.environ.get(BASE_VARIABLE, ""))
    if not commit:
        return Change(base="", files=frozenset(), reasons={})
    files = {*git("diff", "--name-only", "--no-renames", commit).splitlines()}
    files |= {*git("ls-files", "--others", "--exclude-standard").splitlines()}
    reasons: dict[str, list[str]] = {}
    for line in git("log", "--format=%(trailers:only,unfold)", f"{commit}..HEAD").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            reasons.setdefault(name.strip().lower(), []).append(value.strip())
    return Change(base=git("rev-parse", "--short=10", commit), files=frozenset(files), reasons=reasons)


def _base(named: str) -> str:
    if named:
        for candidate in (f"origin/{named}", named):
            if found := git("merge-base", "HEAD", candidate):
                return found
        raise ConfigurationError(
            f"the base {named!r} is not in the history: git fetch origin {named} (in a shallow clone with --unshallow)"
            ", or name another with --base"
        )
    head = git("rev-parse", "HEAD")
    bases = {git("merge-base", "HEAD", candidate) for candidate in ("origin/main", "main")} - {""}
    if apart := bases - {head}:
        return min(apart, key=lambda base: int(git("rev-list", "--count", f"{base}..HEAD")))
    branch = git("symbolic-ref", "--quiet", "--short", "HEAD")
    return head if bases and branch not in ("", "main") else git("rev-parse", "--quiet", "--verify", "HEAD~1")


@cache
def tests_at(commit: str) -> dict[str, list[str]]:
    """Return the test functions at a commit: by name, the files that have one of that name."""
    paths = git("ls-tree", "-r", "--name-only", commit, "--", "tests").splitlines()
    return _by_name((path, git("show", f"{commit}:{path}")) for path in paths if path.endswith(".py"))


def tests_now() -> dict[str, list[str]]:
    """Return the test functions in the working tree: by name, the files that have one of that name."""
    root = project_root()
    paths = sorted((root / "tests").rglob("*.py"))
    return _by_name((str(path.relative_to(root)), path.read_text(errors="replace")) for path in paths)


def _by_name(files: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path, text in files:
        for name in test_functions(text):
            found.setdefault(name, []).append(path)
    return found


def blobs_at(commit: str, folder: str) -> dict[str, str]:
    """Return the git objects of the files in a folder at a commit: path to id."""
    lines = git("ls-tree", "-r", commit, "--", folder).splitlines()
    return {line.split("\t", 1)[1]: line.split()[2] for line in lines}
