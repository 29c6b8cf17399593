"""How busy the slots of one worker are with steps that wait, as for another service.

All sagas are started before any is worked on: one caller may start fewer than a worker could carry.
"""

from __future__ import annotations

from typing import Any

from benchmarks.measure import Sample, round_of
from benchmarks.report import Report, median, ratio, spread

BASE = "celery_chain"
STEPS, SLOTS = 4, 64

#: Seconds that a step waits.
PAUSES = (0.05, 0.2, 0.5)

#: Row -> contender and pool.
ROWS = {
    "sagas, start()": ("sagas_redis", "threads"),
    "sagas, start_many()": ("sagas_start_many", "threads"),
    "celery_chain": (BASE, "threads"),
    "sagas, start(), gevent": ("sagas_redis", "gevent"),
}


def waiting(rounds: int, seconds: float) -> Report:
    """Every row in each round, one after the other.

    `seconds`: what the sagas of a round take if no slot is ever idle.
    """
    report = Report("waiting")
    samples: dict[str, list[Sample]] = {}
    for number in range(rounds):
        for pause in PAUSES:
            for row, (name, pool) in ROWS.items():
                sagas = SLOTS * max(round(seconds / (STEPS * pause)), 1)
                options: dict[str, Any] = {"pool": pool, "slots": SLOTS, "pause": pause, "backlog": sagas}
                print(f"round {number + 1} of {rounds}: {row}, {pause * 1000:.0f} ms ", end="", flush=True)
                found = round_of(name, {**options, "steps": STEPS}, seconds=seconds)
                print(found if isinstance(found, str) else f"{found['rate'] / _ideal(pause):.0%}")
                if not isinstance(found, str):
                    samples.setdefault(_label(row, pause), []).append(found)
    report.samples = samples
    report.table(
        f"Sagas of {STEPS} steps that wait; one worker, {SLOTS} slots; median (lowest..highest) of {rounds} rounds",
        ["", "sagas/s", "% of the ideal", "of celery_chain", "CPU ms a saga", "worker", "cores of the worker"],
        [_row(row, pause, samples) for pause in PAUSES for row in ROWS if _label(row, pause) in samples],
    )
    report.notes.append(
        "All sagas are started before any is worked on. Ideal: no slot is ever idle until the last saga ends. It is "
        + ", ".join(f"{_ideal(pause):.0f} sagas/s at {pause * 1000:.0f} ms" for pause in PAUSES)
        + "."
    )
    return report


def _ideal(pause: float) -> float:
    return SLOTS / (STEPS * pause)


def _label(row: str, pause: float) -> str:
    return f"{pause * 1000:.0f} ms: {row}"


def _row(row: str, pause: float, samples: dict[str, list[Sample]]) -> list[str]:
    mine = samples[_label(row, pause)]
    base = samples.get(_label(BASE, pause), [])
    both = min(len(mine), len(base))
    rates = [sample["rate"] for sample in mine]
    return [
        _label(row, pause),
        spread(rates),
        spread([rate / _ideal(pause) * 100 for rate in rates]),
        ratio(rates[:both], [sample["rate"] for sample in base[:both]]),
        spread([sample["cpu"] for sample in mine], 1),
        f"{median(sample['cpu worker'] for sample in mine):.1f}",
        spread([sample["cpu worker"] * sample["rate"] / 1000 for sample in mine], 2),
    ]
