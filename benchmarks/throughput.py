"""How many sagas of no-op steps a second, at what CPU and latency, beside other systems and plain Celery."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import contenders
from benchmarks.measure import Sample, round_of
from benchmarks.plot import bars
from benchmarks.report import Report, median, ratio, spread

BASE = "celery_chain"
LATENCIES = 50


def throughput(names: Sequence[str], rounds: int, seconds: float, steps: int) -> Report:
    """Every contender in each round, one after the other; the order turns from round to round."""
    report = Report("throughput")
    samples: dict[str, dict[int, Sample]] = {name: {} for name in names}
    absent: dict[str, str] = {}
    for number in range(rounds):
        turn = number % len(names)
        for name in [*names[turn:], *names[:turn]]:
            if name in absent:
                continue
            print(f"round {number + 1} of {rounds}: {name} ", end="", flush=True)
            options = {"steps": steps}
            found = round_of(name, options, seconds=seconds, latencies=LATENCIES, started=True)
            if isinstance(found, str):
                print(found)
                if number == 0:
                    absent[name] = found
                continue
            print(f"{found['rate']:.0f}/s")
            samples[name][number] = found
    _scale_floors(samples)
    tell(report, samples, absent, rounds, steps)
    return report


def tell(
    report: Report, samples: dict[str, dict[int, Sample]], absent: dict[str, str], rounds: int, steps: int
) -> None:
    """Make the tables of what was measured."""
    report.samples = {"contenders": samples, "absent": absent, "steps": steps}
    known = [name for name in samples if samples[name]]
    report.table(
        f"Sagas of {steps} no-op steps; median (lowest..highest) of {rounds} rounds",
        ["", "sagas/s", f"of {BASE}", "sagas/s, started before", "of the same", "p50 ms", "p99 ms"],
        [_speed_row(name, samples) for name in known],
    )
    report.table(
        "CPU milliseconds a saga, medians",
        ["", "all", f"of {BASE}", "publisher", "worker", "database", "broker", "commits a saga"],
        [_cpu_row(name, samples) for name in known],
    )
    report.plots["throughput.svg"] = bars(
        f"Sagas of {steps} no-op steps",
        "sagas a second: median, lowest to highest",
        {name: _all(name, "rate", samples) for name in known},
        ours=[name for name in known if name.startswith("sagas_")],
    )
    report.notes += [f"{name}: {contenders.load(name, {}).note}." for name in known]
    report.notes += [f"{name}: not measured: {why}." for name, why in absent.items()]


_FLOORS = ("floor", "floor_grouped")


def _scale_floors(samples: dict[str, dict[int, Sample]]) -> None:
    """Let the floors commit as often as the library did in that round."""
    for number, floor in [each for name in _FLOORS for each in samples.get(name, {}).items()]:
        ours = samples.get("sagas_redis", {}).get(number)
        if ours and "writes" in ours:
            factor = floor["writes"] / ours["writes"]
            floor["rate"] *= factor
            for what in floor:
                if what.startswith(("cpu", "p", "writes")):
                    floor[what] /= factor


def _paired(name: str, what: str, samples: dict[str, dict[int, Sample]]) -> tuple[list[float], list[float]]:
    """Return a figure and the base's, of the rounds that have both."""
    base = samples.get(BASE, {})
    both = [number for number, sample in samples[name].items() if what in sample and what in base.get(number, {})]
    return [samples[name][number][what] for number in both], [base[number][what] for number in both]


def _all(name: str, what: str, samples: dict[str, dict[int, Sample]]) -> list[float]:
    return [sample[what] for sample in samples[name].values() if what in sample]


def _speed_row(name: str, samples: dict[str, dict[int, Sample]]) -> list[str]:
    return [
        name,
        spread(_all(name, "rate", samples)),
        ratio(*_paired(name, "rate", samples)),
        spread(_all(name, "rate started", samples)),
        ratio(*_paired(name, "rate started", samples)),
        spread(_all(name, "p50", samples), 1),
        spread(_all(name, "p99", samples), 1),
    ]


def _cpu_row(name: str, samples: dict[str, dict[int, Sample]]) -> list[str]:
    def middle(what: str) -> str:
        value = median(_all(name, what, samples))
        return "-" if value is None else f"{value:.2f}"

    roles = [middle(f"cpu {role}") for role in ("publisher", "worker", "database", "broker")]
    return [name, middle("cpu"), ratio(*_paired(name, "cpu", samples)), *roles, middle("writes")]
