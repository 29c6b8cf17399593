"""The Oban jobs of the benchmark: each is a no-op step that enqueues the next one. `oban start` imports this module."""

from __future__ import annotations

from typing import Any

from oban import worker  # type: ignore[import-not-found, unused-ignore]

QUEUE = "bench"


class Step:
    """A step, with `left` steps behind it."""

    async def process(self, job: Any) -> None:
        if left := job.args["left"]:
            await registered.enqueue({"left": left - 1})


registered: Any = worker(queue=QUEUE)(Step)
