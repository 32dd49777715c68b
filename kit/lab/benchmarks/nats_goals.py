"""What became of messaging's targets and goals: the verdicts on what ``Messaging`` measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from kit.lab import targets
from kit.lab.bench import SPECIFICATION, Comparison, Target, Verdict, Verdicts
from kit.lab.benchmarks.contest import NOT_INSTALLED
from kit.lab.benchmarks.nats import (
    ALONE,
    BARE,
    CODEC,
    FASTSTREAM,
    FASTSTREAM_RESULTS,
    KIT,
    RAW,
    SAMPLED,
    TOGETHER,
    UNSAMPLED,
)
from kit.lab.quantities import quantity

if TYPE_CHECKING:
    import pandas as pd

_THROUGHPUT, _JOBS = "64 in flight, codec and sampled trace", "jobs end to end, against FastStream"
AGAINST = {FASTSTREAM: (_THROUGHPUT, _JOBS)}
"""The goals that are set against a peer which may not be installed: without it they have no verdict."""


def specified(agents: Comparison, jobs: Comparison, queuing: Comparison) -> Verdicts:
    """Return the verdicts on the specification's targets: percentiles of all samples, the raw socket as limit.

    Their ratios are those of the medians, the kit's to the limit's: a round has too few samples for a 95th percentile.
    """
    agent_target, rag_target, gateway_target = SPECIFICATION[:3]
    rag = rag_target.verdict(jobs.rate(SAMPLED), limit=jobs.rate(TOGETHER), ratio=jobs.ratio(SAMPLED, to=TOGETHER))
    return Verdicts((_p95(agent_target, agents), rag, decidable(_p95(gateway_target, queuing))))


def _p95(target: Target, result: Comparison) -> Verdict:
    measured, limit = result.percentile(KIT, 95), result.percentile(RAW, 95)
    return target.verdict(measured, limit=limit, ratio=result.ratio(KIT, to=RAW))


def decidable(verdict: Verdict) -> Verdict:
    """Return a verdict on a latency, undecided instead of missed where this machine cannot decide.

    Where the limit alone takes more than half of the time that the target allows, the machine is too busy, or its disk
    too slow, to say anything about what stands on top of it.
    """
    slow = verdict.limit is not None and verdict.limit > verdict.target.bound / 2
    return replace(verdict, state="undecided") if slow and verdict.state == "missed" else verdict


def reasons(verdicts: Iterable[Verdict], missing: Iterable[str] = ()) -> str:
    """Return for each goal that is not reached what was measured, and what stands between it and its limit.

    Args:
        missing: peers that are not installed: a goal against one of them has a line that says so.
    """
    absent = [f"{goal}: not measured, {peer} is {NOT_INSTALLED}" for peer in missing for goal in AGAINST[peer]]
    return targets.reasons(verdicts, _reason, absent)


def _reason(row: Verdict) -> str:
    said = row.cells()
    text = f"{row.target.name}: {said['measured']}, goal {said['target']}: "
    if row.state == "undecided":
        return f"{text}undecided, since it lies within the interval"
    if row.limit is None:
        return f"{text}no limit is known"
    within = row.limit <= row.target.bound if row.target.better == "lower" else row.limit >= row.target.bound
    if not within:
        return f"{text}the raw socket, at {said['limit']}, does not reach it in this run either"
    return f"{text}the raw socket reaches it, at {said['limit']}: what lies between is what the kit does for a message"


def latency_goals(result: Comparison) -> Verdicts:
    """Return the verdicts on request and reply against bare nats-py."""
    goals = {CODEC: 1.10, UNSAMPLED: 1.25, SAMPLED: 1.55}
    floor = result.ratio(RAW).value
    return Verdicts(
        _goal(f"request/reply, {layer}", bound, "p50 against bare nats-py").verdict(
            result.ratio(layer).value, limit=floor, ratio=result.ratio(layer), interval=result.ratio(layer)
        )
        for layer, bound in goals.items()
    )


def throughput_goals(result: Comparison) -> Verdicts:
    """Return the verdicts on requests per second, many in flight."""
    rows = [_rate(result, "64 in flight, codec only", CODEC, BARE, 0.65)]
    if FASTSTREAM in result.samples:
        rows.append(_rate(result, _THROUGHPUT, SAMPLED, FASTSTREAM, 1.0))
    return Verdicts(rows)


def job_goals(result: Comparison) -> Verdicts:
    """Return the verdicts on jobs per second, end to end; the limit is a raw socket that stores them as one batch."""
    rows = [_rate(result, "jobs end to end", CODEC, BARE, 0.85, TOGETHER)]
    if FASTSTREAM in result.samples:
        rows.append(_rate(result, _JOBS, CODEC, FASTSTREAM, 2.0, TOGETHER))
    return Verdicts(rows)


def job_rates(result: Comparison) -> pd.DataFrame:
    """Return the kit's rate over FastStream's, with and without results, with and without batches and a trace."""
    import pandas as pd

    peers = [name for name in (FASTSTREAM, FASTSTREAM_RESULTS) if name in result.samples]
    rows = {
        f"kit, {mine}": {f"rate over {peer}": str(result.ratio(mine, to=peer).inverse()) for peer in peers}
        or {f"rate over {FASTSTREAM}": NOT_INSTALLED}
        for mine in (CODEC, SAMPLED, ALONE)
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("jobs")


def per_job(jobs: Comparison, work: Comparison) -> pd.DataFrame:
    """Return the time of one job, for how much of it this process ran, and that beside the kit's, by contender.

    Args:
        jobs, work: the same contenders by the clock on the wall, and by the processor's.
    """
    import pandas as pd

    each = {name: jobs.percentile(name) / jobs.operations for name in jobs.samples}
    ran = {name: work.percentile(name) / work.operations for name in jobs.samples}
    rows = {
        name: {
            "time a job": quantity(each[name], "s"),
            "of it Python's": quantity(ran[name], "s"),
            "share": f"{100 * ran[name] / each[name]:.0f} %",
            "Python's, beside the kit's": "1" if name == CODEC else str(work.ratio(name, to=CODEC)),
        }
        for name in jobs.samples
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("jobs")


def _goal(name: str, bound: float, metric: str) -> Target:
    return Target(name, bound, unit="×", metric=metric, component="NATS", goal=True)


def _rate(result: Comparison, name: str, mine: str, theirs: str, bound: float, limit: str = RAW) -> Verdict:
    ratio = result.ratio(mine, to=theirs)  # of time: what the baseline compares
    goal = replace(_goal(name, bound, f"rate against {theirs}"), better="higher")
    peak = 1 / result.ratio(limit, to=theirs).value
    return goal.verdict(1 / ratio.value, limit=peak, ratio=ratio, interval=ratio.inverse())
