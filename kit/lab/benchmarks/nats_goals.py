"""What became of messaging's targets and goals: the verdicts on what ``Messaging`` measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from kit.lab.bench import SPECIFICATION, Comparison, Target, Verdict, Verdicts
from kit.lab.benchmarks.nats import BARE, CODEC, FASTSTREAM, KIT, RAW, SAMPLED, TOGETHER, UNSAMPLED
from kit.lab.quantities import quantity

if TYPE_CHECKING:
    import pandas as pd


def specified(agents: Comparison, jobs: Comparison, queuing: Comparison) -> Verdicts:
    """Return the verdicts on the specification's targets: percentiles of all samples, the raw socket as limit."""
    agent_target, rag_target, gateway_target = SPECIFICATION[:3]
    return Verdicts(
        (
            agent_target.verdict(agents.percentile(KIT, 95), limit=agents.percentile(RAW, 95)),
            rag_target.verdict(jobs.rate(SAMPLED), limit=jobs.rate(TOGETHER)),
            decidable(gateway_target.verdict(queuing.percentile(KIT, 95), limit=queuing.percentile(RAW, 95))),
        )
    )


def decidable(verdict: Verdict) -> Verdict:
    """Return a verdict on a latency, undecided instead of missed where this machine cannot decide.

    Where the limit alone takes more than half of the time that the target allows, the machine is too busy, or its disk
    too slow, to say anything about what stands on top of it.
    """
    slow = verdict.limit is not None and verdict.limit > verdict.target.bound / 2
    return replace(verdict, state="undecided") if slow and verdict.state == "missed" else verdict


def reasons(verdicts: Iterable[Verdict]) -> str:
    """Return for each goal that is not reached what was measured, and what stands between it and its limit."""
    lines = [_reason(row) for row in verdicts if not row.met]
    return "\n".join(lines) or "every goal is reached"


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
        rows.append(_rate(result, "64 in flight, codec and sampled trace", SAMPLED, FASTSTREAM, 1.0))
    return Verdicts(rows)


def job_goals(result: Comparison) -> Verdicts:
    """Return the verdicts on jobs per second, end to end; the limit is a raw socket that stores them as one batch."""
    rows = [_rate(result, "jobs end to end", CODEC, BARE, 0.85, TOGETHER)]
    if FASTSTREAM in result.samples:
        rows.append(_rate(result, "jobs end to end, against FastStream", CODEC, FASTSTREAM, 2.0, TOGETHER))
    return Verdicts(rows)


def per_job(jobs: Comparison, work: Comparison) -> pd.DataFrame:
    """Return the time of one job and how much of it this process ran, by contender, beside the kit's.

    Args:
        jobs, work: the same contenders by the clock on the wall, and by the processor's.
    """
    import pandas as pd

    rows = {
        name: {
            "time a job": quantity(jobs.percentile(name) / jobs.operations, "s"),
            "of it Python's": quantity(work.percentile(name) / work.operations, "s"),
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
