"""One round of one contender, in a process of its own; what it does wrong ends with it."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.contenders import Base, load
from benchmarks.processes import ROOT, cpu_seconds, end_tree

__all__ = ["Sample", "round_of", "run_here"]

#: What a round tells: figure -> value.
Sample = dict[str, float]

#: Sagas that are run before anything is measured, to fill caches and pools and to learn the rate.
_WARM_UP = 40


def run_here(name: str, options: Mapping[str, Any], seconds: float, latencies: int, *, started: bool) -> Sample:
    """Set a contender up, measure it, and end what it started.

    With the option `backlog` so many sagas are started before any is worked on, and the rate is that of working it off.
    """
    others = {option: value for option, value in options.items() if option != "backlog"}
    backlog = int(options.get("backlog", 0))
    contender = load(name, others)
    try:
        contender.setup()
        contender.run(_WARM_UP // 2)
        rate = _WARM_UP / contender.run(_WARM_UP)
        n = backlog or min(max(int(rate * seconds), 20), 10_000)
        return _measure(contender, n, latencies, started=started, backlog=bool(backlog))
    finally:
        contender.teardown()


def _measure(contender: Base, n: int, latencies: int, *, started: bool, backlog: bool) -> Sample:
    before, counted = _cpu(contender), contender.extra()
    took = (contender.run_started(n) if backlog else None) or contender.run(n)
    sample = {"n": n, "rate": n / took}
    for role, spent in _cpu(contender).items():
        sample[f"cpu {role}"] = (spent - before[role]) / n * 1000
    sample["cpu"] = sum(value for what, value in sample.items() if what.startswith("cpu "))
    for what, count in contender.extra().items():
        sample[what] = (count - counted[what]) / n
    if started and (took_started := contender.run_started(n)) is not None:
        sample["rate started"] = n / took_started
    if latencies:
        took_each = sorted(contender.one() for _ in range(latencies))
        sample["p50"] = statistics.median(took_each) * 1000
        sample["p99"] = statistics.quantiles(took_each, n=100, method="inclusive")[98] * 1000
    return sample


def _cpu(contender: Base) -> dict[str, float]:
    return {
        "publisher": cpu_seconds([contender.publisher()], tree=False),
        **{role: cpu_seconds(roots) for role, roots in contender.roots().items()},
    }


def round_of(
    name: str, options: Mapping[str, Any] | None = None, *, seconds: float, latencies: int = 0, started: bool = False
) -> Sample | str:
    """Run one round in a child process. Returns what it measured, or why it could not."""
    order = {
        "name": name,
        "options": dict(options or {}),
        "seconds": seconds,
        "latencies": latencies,
        "started": started,
    }
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "benchmarks", "one", json.dumps(order)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = child.communicate(timeout=180 + 10 * seconds)
    except subprocess.TimeoutExpired:
        return "it did not come to its end in time"
    finally:
        end_tree(child.pid)
    if child.returncode != 0:
        return (errors.strip().splitlines() or ["it failed"])[-1]
    sample: Sample = json.loads(output.strip().splitlines()[-1])
    return sample
