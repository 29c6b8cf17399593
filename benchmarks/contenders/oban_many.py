"""Oban as in `oban`, with all flows of a round started by one `enqueue_many`, which its documentation recommends."""

from __future__ import annotations

from benchmarks.contenders import oban


class Contender(oban.Contender):
    note = "one enqueue_many; else as oban"

    async def enqueue(self, n: int) -> None:
        await self._client.enqueue_many([self._first() for _ in range(n)])
