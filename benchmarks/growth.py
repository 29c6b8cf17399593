"""How the cost grows with steps, payload, sagas in flight and workers."""

from __future__ import annotations

from typing import Any

from benchmarks.measure import Sample, round_of
from benchmarks.plot import bars
from benchmarks.report import Report, median, ratio, spread

OURS, BASE = "sagas_redis", "celery_chain"

#: What is varied -> the options of each point. The rest is as in `throughput`: 4 steps, no payload, one worker.
POINTS: dict[str, dict[str, Any]] = {
    "4 steps, 0 kB, 1 worker": {},
    "1 step": {"steps": 1},
    "16 steps": {"steps": 16},
    "64 steps": {"steps": 64},
    "input of 1 kB": {"payload": 1_000},
    "input of 32 kB": {"payload": 32_000},
    "input of 512 kB": {"payload": 512_000},
    "1 in flight": {"in_flight": 1},
    "100 in flight": {"in_flight": 100},
    "10,000 in flight": {"backlog": 10_000},
    "2 workers": {"workers": 2},
}


def growth(rounds: int, seconds: float) -> Report:
    """Every point in each round, ours and the plain chain of the same options one after the other."""
    report = Report("growth")
    samples: dict[str, dict[str, list[Sample]]] = {point: {OURS: [], BASE: []} for point in POINTS}
    for number in range(rounds):
        for point, options in POINTS.items():
            # A backlog takes minutes: once is enough.
            if "backlog" in options and number:
                continue
            print(f"round {number + 1} of {rounds}: {point} ", end="", flush=True)
            found = [round_of(name, options, seconds=seconds) for name in (OURS, BASE)]
            print(*(each if isinstance(each, str) else f"{each['rate']:.0f}/s" for each in found))
            for name, each in zip((OURS, BASE), found, strict=True):
                if not any(isinstance(other, str) for other in found):
                    assert not isinstance(each, str)
                    samples[point][name].append(each)
    tell(report, samples, rounds)
    return report


def tell(report: Report, samples: dict[str, dict[str, list[Sample]]], rounds: int) -> None:
    """Make the table of what was measured."""
    report.samples = samples
    report.table(
        f"{OURS}, beside a plain Celery chain of the same steps, payload and workers; {rounds} rounds",
        ["", "sagas/s", f"of {BASE}", "CPU ms", f"of {BASE}", "worker", "database", "commits", "redispatches"],
        [_row(point, samples[point]) for point in samples],
    )
    report.plots["growth.svg"] = bars(
        "As it grows",
        f"rate of {OURS}, as a multiple of the rate of a plain Celery chain: median, lowest to highest",
        {
            point: [ours["rate"] / base["rate"] for ours, base in zip(found[OURS], found[BASE], strict=True)]
            for point, found in samples.items()
        },
        ours=list(samples),
        around=1.0,
    )
    report.notes.append(
        "10,000 in flight: all are started before any is worked on, once; the rate is that of working them off."
    )


def _row(point: str, samples: dict[str, list[Sample]]) -> list[str]:
    ours, base = samples[OURS], samples[BASE]

    def both(what: str) -> tuple[list[float], list[float]]:
        return [sample[what] for sample in ours], [sample[what] for sample in base]

    def middle(what: str, digits: int = 1) -> str:
        value = median(sample[what] for sample in ours)
        return "-" if value is None else f"{value:.{digits}f}"

    return [
        point,
        spread(both("rate")[0]),
        ratio(*both("rate")),
        spread(both("cpu")[0], 1),
        ratio(*both("cpu")),
        middle("cpu worker"),
        middle("cpu database"),
        middle("writes"),
        middle("redispatches", 2),
    ]
