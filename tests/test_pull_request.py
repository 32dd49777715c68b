"""A pull request's description ticks what a measurement shows, and leaves everything else open with the reason."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from kit.lab import pull_request
from kit.lab.cli import main
from kit.lab.gates import GATES, Check, Gate, State
from kit.lab.gates.changes import Change
from kit.lab.pull_request import PullRequest, week_of_project

FILES = {
    "kit/nats/store.py", "kit/components/agents/agent.py", "tests/test_agents.py", "notebooks/02_nats.ipynb",
    "tests/benchmarks/benchmark_nats_performance.py",
}  # fmt: skip


def gates(**states: State) -> list[Gate]:
    """Return all gates, passed but for the checks that are named."""
    return [
        Gate(
            name=name,
            title=title,
            checks=tuple(
                Check(name=check, state=states.get(check.replace("-", "_"), "passed"), summary=f"{check} seen")
                for check in checks
            ),
        )
        for name, (title, checks) in GATES.items()
    ]


def request(tmp_path: Path, **states: State) -> PullRequest:
    return PullRequest(
        change=Change(base="0123456789", files=frozenset(FILES), reasons={}), gates=gates(**states), reports=tmp_path,
        commits=["Send messages to agents"], branch="feature/nats-integration-week-2", week=2, topic="Agent Messaging",
    )  # fmt: skip


def test_the_title_is_the_specifications(tmp_path: Path) -> None:
    assert request(tmp_path).title == "[Integration] NATS Integration - Week 2: Agent Messaging"


@pytest.mark.parametrize(
    ("branch", "title"),
    [
        ("feature/nats-integration-week-2", "[Integration] NATS Integration - Week 2: Agent Framework"),
        ("feature/agent-messaging", "[Integration] NATS Integration - Week 2: Agent Messaging"),
        ("main", "[Integration] NATS Integration - Week 2: Send messages to agents"),
    ],
)
def test_the_topic_comes_from_the_branch_else_from_the_commit(tmp_path: Path, branch: str, title: str) -> None:
    assert replace(request(tmp_path), branch=branch, topic="").title == title


def test_the_description_has_the_specifications_sections_and_ticks_what_passed(tmp_path: Path) -> None:
    text = request(tmp_path).description()
    assert text.startswith("## Integration: NATS with Agent Framework\n")
    for section in ("Changes", "Tests", "Documentation", "Validation", "Related"):
        assert f"\n### {section}\n" in text
    for box in ("Integration tests passing", "Performance benchmarks meeting targets", "Integration guide updated"):
        assert f"\n- [x] {box}\n" in text
    assert "- Send messages to agents" in text
    assert "- Code coverage: ✅ Pass (coverage seen)" in text
    assert "- [ ] Code review: by the other team" in text
    assert "- [ ] Error handling is comprehensive (for the reviewers)" in text


def test_what_failed_or_was_not_measured_stays_open_and_says_why(tmp_path: Path) -> None:
    text = request(tmp_path, targets="not measured", coverage="failed", guides="failed").description()
    assert "- [ ] Performance benchmarks meeting targets (targets: targets seen)" in text
    assert "- Performance benchmarks: ⬜ targets seen" in text
    assert "- [ ] Test coverage > 80% (coverage: failed, coverage seen)" in text
    assert "- [ ] Integration guide updated (guides: failed, guides seen)" in text
    assert "- [x] Integration tests passing" in text


def test_a_box_that_asks_for_a_change_stays_open_without_one(tmp_path: Path) -> None:
    nothing = replace(request(tmp_path), change=Change(base="0123456789", files=frozenset(), reasons={}))
    text = nothing.description()
    assert "- [ ] Integration tests added and passing (none changed)" in text
    assert "- [ ] Performance benchmarks added and meeting targets (none changed)" in text
    assert text.count("- [ ] Integration guide updated (none changed)") == 2
    assert "- [x] Integration tests added and passing" in request(tmp_path).description()


def test_the_core_comes_from_the_branch_where_no_path_names_it(tmp_path: Path) -> None:
    nothing = Change(base="0123456789", files=frozenset(), reasons={})
    empty = replace(request(tmp_path), change=nothing, topic="", commits=[])
    assert empty.title == "[Integration] NATS Integration - Week 2: no change"
    assert "- nothing is committed yet" in empty.description()


def test_the_closest_target_is_named_with_its_measurement(tmp_path: Path) -> None:
    row = {"name": "agent messaging latency", "measured": 8e-3, "target": 10e-3, "unit": "s", "better": "lower"}
    row |= {"state": "met", "met": True, "goal": False}
    row["ratio"] = None
    body = {
        "notebook": "32",
        "good": True,
        "records": [{"verdicts": [row]}],
        "failure": None,
        "comparison": "same",
        "verdict": "",
    }
    (tmp_path / "32.json").write_text(
        json.dumps(body | {"parameters": {}, "environment": {"commit": "", "cpu": "", "cores": 2, "python": ""}})
    )
    text = request(tmp_path).description()
    assert "(closest: agent messaging latency 8.00 ms, target ≤ 10.0 ms)" in text


def test_weeks_begin_on_monday(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull_request, "git", lambda *_: "2026-11-26\n2026-11-24")
    assert [week_of_project(date(2026, 11, day)) for day in (24, 29, 30)] == [1, 1, 2]
    assert week_of_project() == 1


def test_the_command_prints_the_title(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pr", "--title-only", "--week", "3", "--topic", "Agent Messaging"]) == 0
    assert capsys.readouterr().out.strip().endswith("Integration - Week 3: Agent Messaging")
