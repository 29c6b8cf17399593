"""The Temporal application: a workflow whose steps are no-op activities. Run as a program it is the worker."""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta

from temporalio import activity, workflow  # type: ignore[import-not-found, unused-ignore]
from temporalio.client import Client  # type: ignore[import-not-found, unused-ignore]
from temporalio.worker import Worker  # type: ignore[import-not-found, unused-ignore]

QUEUE = "bench"


@activity.defn  # type: ignore[untyped-decorator, unused-ignore]
async def step() -> int:
    return 0


@workflow.defn  # type: ignore[untyped-decorator, unused-ignore]
class Bench:
    @workflow.run  # type: ignore[untyped-decorator, unused-ignore]
    async def run(self, steps: int) -> int:
        total = 0
        for _ in range(steps):
            total += await workflow.execute_activity(step, start_to_close_timeout=timedelta(seconds=60))
        return total


async def main(address: str) -> None:
    client = await Client.connect(address)
    await Worker(client, task_queue=QUEUE, workflows=[Bench], activities=[step]).run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
