"""What a message costs its consumer: a transaction for each, and batches."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.processes import ROOT
from benchmarks.report import Report, ratio, spread
from tests.servers import Postgres, RabbitMQ, Redis

SIZES = (1, 10, 50)


def batches(rounds: int, messages: int) -> Report:
    """Work off the same backlog with each size; which goes first turns. The first round only warms the servers."""
    report = Report("batches")
    samples: dict[str, dict[int, list[dict[str, float]]]] = {}
    with Postgres() as postgres, RabbitMQ() as rabbitmq, Redis() as redis:
        for number in range(rounds + 1):
            for kind, address in {"redis": redis.url, "rabbitmq": rabbitmq.url}.items():
                for size in SIZES[:: 1 if number % 2 else -1]:
                    sample = _round(kind, address, postgres.database(), size, messages)
                    print(f"round {number} of {rounds}: {kind}, batches of {size}: {sample}", flush=True)
                    if number:
                        samples.setdefault(kind, {}).setdefault(size, []).append(sample)
    report.samples = {"batches": samples}
    report.table(
        f"{messages:,} messages that wait, a handler with one insert, PostgreSQL; median (lowest..highest) of {rounds} "
        "rounds",
        ["", "CPU of the consumer per message, µs", "of one by one", "a second", "of one by one"],
        [
            [
                f"{kind}, `batch_size={size}`",
                spread([sample["cpu"] for sample in of[size]]),
                ratio(*([sample["cpu"] for sample in of[each]] for each in (size, 1))),
                spread([sample["rate"] for sample in of[size]]),
                ratio(*([sample["rate"] for sample in of[each]] for each in (size, 1))),
            ]
            for kind, of in samples.items()
            for size in SIZES
        ],
    )
    report.notes += [
        "The consumer is one process with four threads. Its CPU time includes receiving and acknowledging.",
    ]
    return report


def _round(kind: str, address: str, database: str, size: int, messages: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.batches_round", kind, address, database, str(size), str(messages)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{kind}, batches of {size}:\n{done.stderr[-2000:]}")
    sample: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return sample
