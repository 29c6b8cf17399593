"""`python -m tests.faults.long --sagas 1000 --broker redis --database postgres --pool prefork --seconds 300 --seed 1`"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
from dataclasses import replace

from tests.faults.long.storm import Settings, report, storm


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.long", description="Sagas in a storm of faults.")
    parser.add_argument("--sagas", type=int, default=1000)
    parser.add_argument("--broker", choices=["redis", "rabbitmq"], default="redis")
    parser.add_argument("--database", choices=["postgres", "sqlite"], default="postgres")
    parser.add_argument("--pool", choices=["prefork", "threads"], default="prefork")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    parser.add_argument("--all", action="store_true", help="every pool with every broker and every database")
    given = parser.parse_args()
    one = Settings(given.sagas, given.broker, given.database, given.pool, given.seconds, given.seed)
    runs = [one]
    if given.all:
        matrix = itertools.product(["prefork", "threads"], ["redis", "rabbitmq"], ["postgres", "sqlite"])
        runs = [replace(one, pool=pool, broker=broker, database=database) for pool, broker, database in matrix]
    ok = True
    for run in runs:
        outcome = storm(run)
        print(report(outcome), flush=True)
        ok = ok and outcome.ok
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
