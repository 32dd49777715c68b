"""What became of messaging's targets and goals: the verdicts on what ``Messaging`` measured."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kit.lab.bench import SPECIFICATION, Comparison, Target, Verdict, Verdicts
from kit.lab.benchmarks.nats import BARE, CODEC, FASTSTREAM, RAW, SAMPLED, STORED, UNSAMPLED
from kit.lab.quantities import quantity

if TYPE_CHECKING:
    import pandas as pd


def quiet_p95(samples: NDArray[np.float64]) -> float:
    """Return the 95th percentile in the quieter rounds: the first quartile of the rounds' percentiles.

    What runs beside a measurement only ever adds to it, and adds to the highest percentiles first.

    Args:
        samples: float64 (rounds, samples), in any unit; the result has the same.
    """
    return float(np.percentile(np.percentile(samples, 95, axis=1), 25))


def specified(agents: Comparison, jobs: Comparison, queuing: Comparison) -> Verdicts:
    """Return the verdicts on the specification's targets."""
    agent_target, rag_target, gateway_target = SPECIFICATION[:3]
    floor = quiet_p95(queuing.samples[BARE]) / 1e9
    gateway_target = replace(gateway_target, goal=floor > gateway_target.bound / 2)  # see decidable()
    return Verdicts(
        (
            agent_target.verdict(quiet_p95(agents.samples["kit"]) / 1e9),
            rag_target.verdict(jobs.rate(SAMPLED), limit=jobs.rate(BARE)),
            gateway_target.verdict(quiet_p95(queuing.samples["kit"]) / 1e9, limit=floor),
        )
    )


def decidable(verdicts: Verdicts) -> Verdicts:
    """Return the verdicts that this machine can decide.

    Where bare JetStream alone takes more than half of the time that a target allows, the machine is too busy, or its
    disk too slow, to say anything about what stands on top of it.
    """
    return Verdicts(
        row
        for row in verdicts
        if row.target.better == "higher" or row.limit is None or row.limit <= row.target.bound / 2
    )


def latency_goals(result: Comparison) -> Verdicts:
    """Return the verdicts on request and reply against bare nats-py."""
    goals = {CODEC: 1.10, UNSAMPLED: 1.25, SAMPLED: 1.55}
    floor = result.ratio(RAW).value
    return Verdicts(
        _goal(f"request/reply, {layer}", bound, "p50 against bare nats-py").verdict(
            result.ratio(layer).value, limit=floor, ratio=result.ratio(layer)
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
    """Return the verdicts on jobs per second, end to end; the limit is what is only stored, by no client library."""
    rows = [_rate(result, "jobs end to end", CODEC, BARE, 0.85, STORED)]
    if FASTSTREAM in result.samples:
        rows.append(_rate(result, "jobs end to end, against FastStream", CODEC, FASTSTREAM, 2.0, STORED))
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
    return goal.verdict(1 / ratio.value, limit=1 / result.ratio(limit, to=theirs).value, ratio=ratio)
