"""How many messages a second the brokers of events carry, beside FastStream on the same servers."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.processes import ROOT
from benchmarks.report import Report, ratio, spread
from tests.servers import Kafka, RabbitMQ, Redis

WHO = ("sagas", "faststream")


def brokers(rounds: int, messages: int) -> Report:
    """One queue: each broker in each round, by both; which goes first turns. The first round only warms the servers."""
    report = Report("brokers")
    _measure(
        report,
        "brokers_round",
        f"{messages:,} messages of 500 bytes, 100 in flight; a second; median (lowest..highest) of {rounds} rounds",
        rounds,
        messages,
    )
    report.notes += [
        "sagas reads once all are published, FastStream while it publishes: it has no way to do it apart.",
        "Redis keeps nothing on disk, and Kafka and RabbitMQ have one node. One publisher and one reader.",
    ]
    return report


def services(rounds: int, messages: int) -> Report:
    """Fifty types of events and ten services that listen to ten of them each, as `brokers` does for one queue."""
    report = Report("services")
    _measure(
        report,
        "services_round",
        f"{messages:,} events of 50 types, 10 services; a second; median (lowest..highest) of {rounds} rounds",
        rounds,
        messages,
    )
    report.notes += [
        "All services start, connect or join their groups once all is published. Each event is handled by two of them.",
        "On Kafka, sagas has one topic for all types, which each service reads whole; FastStream one for each type.",
    ]
    return report


def _measure(report: Report, module: str, title: str, rounds: int, messages: int) -> None:
    samples: dict[str, dict[str, list[dict[str, float]]]] = {}
    with RabbitMQ() as rabbitmq, Redis() as redis, Kafka() as kafka:
        servers = {"memory": "", "rabbitmq": rabbitmq.url, "redis": redis.url, "kafka": kafka.address}
        for number in range(rounds + 1):
            for kind, address in servers.items():
                for who in WHO[:: 1 if number % 2 else -1]:
                    if (kind, who) == ("memory", "faststream"):
                        continue
                    sample = _round(module, who, kind, address, messages)
                    print(f"round {number} of {rounds}: {kind}, {who}: {sample}", flush=True)
                    if number:
                        samples.setdefault(kind, {}).setdefault(who, []).append(sample)
    report.samples = {"brokers": samples}
    report.table(
        title,
        ["", "published", "of FastStream", "published and handled", "of FastStream"],
        [
            [f"{kind}, {who}", *(cell for what in ("publish", "through") for cell in _cells(of, who, what))]
            for kind, of in samples.items()
            for who in of
        ],
    )


def _cells(samples: dict[str, list[dict[str, float]]], who: str, what: str) -> tuple[str, str]:
    ours = [sample[what] for sample in samples[who]]
    theirs = [sample[what] for sample in samples.get("faststream", ())]
    return spread(ours), ratio(ours, theirs) if theirs else "-"


def _round(module: str, who: str, kind: str, address: str, messages: int) -> dict[str, float]:
    command = [sys.executable, "-m", f"benchmarks.{module}", who, kind, address, str(messages)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{kind}, {who}:\n{done.stderr[-2000:]}")
    sample: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return sample
