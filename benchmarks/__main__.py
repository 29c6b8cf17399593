"""What it costs: `python -m benchmarks throughput | growth | backlog | flushed | start_many | each | table | ...`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import contenders
from benchmarks.backlog import backlog
from benchmarks.batches import batches
from benchmarks.brokers import brokers, services
from benchmarks.each import each
from benchmarks.eventsourcing import eventsourcing
from benchmarks.flushed import flushed
from benchmarks.growth import growth
from benchmarks.growth import tell as growth_told
from benchmarks.measure import run_here
from benchmarks.report import Report
from benchmarks.start_many import start_many
from benchmarks.table import table
from benchmarks.throughput import tell as throughput_told
from benchmarks.throughput import throughput
from benchmarks.waiting import waiting

HERE = Path(__file__).parent


def draw(command: str, samples: dict[str, Any]) -> None:
    report = Report(command)
    if command == "throughput":
        throughput_told(report, samples["contenders"], samples["absent"], rounds=0, steps=samples["steps"])
    else:
        growth_told(report, samples, rounds=0)
    report.draw()


def _measured(given: argparse.Namespace) -> Report:
    rounds, seconds = given.rounds, given.seconds_per_round
    match given.command:
        case "throughput":
            return throughput(given.only, rounds, seconds, given.steps)
        case "growth" | "eventsourcing" | "waiting" as command:
            return {"growth": growth, "eventsourcing": eventsourcing, "waiting": waiting}[command](rounds, seconds)
        case "backlog":
            return backlog(given.sagas, rounds, given.away)
        case "flushed":
            return flushed(given.sagas, rounds)
        case "start_many":
            return start_many(given.sagas, rounds)
        case "each":
            return each(given.items, rounds)
        case "batches" | "brokers" | "services" as command:
            return {"batches": batches, "brokers": brokers, "services": services}[command](rounds, given.messages)
        case _:
            return table(given.finished, rounds, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_ in (
        ("throughput", "beside other systems"),
        ("growth", "as steps, payload, sagas in flight and workers grow"),
        ("backlog", "that nobody served for a while, and how recovery gets on with it"),
        ("flushed", "messages that were lost, or a sleep that ends for many: what recovery spends to send them"),
        ("start_many", "thousands of sagas started one by one, and in one call"),
        ("each", "an item of a fan-out, as the number of items in one saga grows"),
        ("table", "with millions of finished sagas in the table, deleting them, and with nothing to do"),
        ("waiting", "steps that wait, as for another service, in the slots of one worker"),
        ("eventsourcing", "an event store, beside the library of that name"),
        ("brokers", "messages through the brokers of events, beside FastStream"),
        ("batches", "what a message costs its consumer, one by one and in batches"),
        ("services", "fifty types of events and ten services on each broker, beside FastStream"),
    ):
        command = commands.add_parser(name, help=help_)
        command.add_argument("--rounds", type=int, default=5 if name == "throughput" else 3)
        command.add_argument("--seconds-per-round", type=float, default=4.0)
        command.add_argument("--json", type=Path, default=HERE / "results" / f"{name}.json")
        command.add_argument("--write", action="store_true", help="also into the page of docs/")
    commands.choices["throughput"].add_argument("--steps", type=int, default=4)
    commands.choices["throughput"].add_argument(
        "--only", nargs="+", choices=contenders.ALL, default=list(contenders.ALL), metavar="CONTENDER"
    )
    commands.choices["each"].add_argument("--items", type=int, nargs="+", default=[10, 1_000, 10_000])
    commands.choices["backlog"].add_argument("--sagas", type=int, default=10_000)
    commands.choices["flushed"].add_argument("--sagas", type=int, default=2_000)
    commands.choices["start_many"].add_argument("--sagas", type=int, default=10_000)
    commands.choices["backlog"].add_argument("--away", type=float, default=180.0, help="seconds that nobody serves it")
    commands.choices["table"].add_argument("--finished", type=int, default=1_000_000, help="sagas in the table")
    plot = commands.add_parser("plot", help="draw docs/*.svg again from what --json has saved")
    plot.add_argument("command_drawn", choices=["throughput", "growth"])
    plot.add_argument("json", type=Path)
    for name in ("brokers", "services", "batches"):
        commands.choices[name].add_argument("--messages", type=int, default=2_000)
    one = commands.add_parser("one", help="one round of one contender, in this process (the others call it)")
    one.add_argument("order", type=json.loads)
    given = parser.parse_args()
    if given.command == "one":
        print(json.dumps(run_here(**given.order)))
        return
    if given.command == "plot":
        draw(given.command_drawn, json.loads(given.json.read_text())["samples"])
        return
    report = _measured(given)
    report.show()
    report.save(given.json)
    if given.write:
        report.write()


if __name__ == "__main__":
    main()
