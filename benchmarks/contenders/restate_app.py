"""The Restate service, for hypercorn: one handler of no-op steps."""

from __future__ import annotations

import os
from typing import Any

import restate  # type: ignore[import-not-found, unused-ignore]

STEPS = int(os.environ.get("BENCH_STEPS", "4"))

service = restate.Service("bench")


def step() -> int:
    return 0


async def run(ctx: Any, _given: dict[str, str]) -> int:
    total = 0
    for number in range(STEPS):
        total += await ctx.run_typed(f"step_{number}", step)
    return total


service.handler()(run)
app = restate.app([service])
