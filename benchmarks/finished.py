"""Finished sagas by the million, made by the database itself."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta

import psycopg

__all__ = ["STEPS", "fill"]

STEPS = ("reserve_stock", "authorize_card", "quote_shipping", "capture_payment")

#: Sagas of one transaction.
_CHUNK = 100_000

#: Orders, 4 of 100 compensated, and few with a failed step that was tried again. The ids are in the order of time.
_INSERT = """
with times as (
  select i, i %% 25 = 0 as undone, md5(i::text) as digits,
    %(first)s::timestamptz + %(pause)s::interval * i as at
  from generate_series(%(begin)s::bigint, %(end)s::bigint - 1) as i
), numbered as (
  select *, lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') as clock from times
), chunk as materialized (
  select i, undone, at, substr(clock, 1, 8) || '-' || substr(clock, 9, 4) || '-7' || substr(digits, 1, 3) || '-8'
    || substr(digits, 4, 3) || '-' || substr(digits, 7, 12) as id
  from numbered
), saga as (
  insert into sagas_saga (id, name, version, key, outline, correlation_id, input, status, direction, epoch, revision,
    idle_checks, error, created_at, updated_at, stage_ready_at)
  select id, (array['place_order', 'place_order', 'place_order', 'refund', 'restock'])[i %% 5 + 1], 1, 'order-' || i,
    %(outline)s, id,
    format('{"sku":"article-%%s","quantity":%%s,"amount":"%%s.50","address":"%%s Long Street"}',
      i %% 5000, 1 + i %% 4, i %% 300, i),
    case when undone then 'COMPENSATED' else 'COMPLETED' end, case when undone then 'BACKWARD' else 'FORWARD' end,
    1, 6, 0, case when undone then 'card declined' end,
    at, at + interval '180 ms', at + interval '180 ms'
  from chunk order by id
)
insert into sagas_step (saga_id, seq, node, stage, kind, status, started_seq, failures, lost, result, started_at,
  finished_at)
select id, number, (%(steps)s::text[])[number], number - 1, 'step',
  case when undone then 'COMPENSATED' else 'DONE' end, number, case when i %% 100 = 1 then 1 else 0 end, 0,
  format('{"id":"%%s-%%s","at":"%%s"}', (%(steps)s::text[])[number], i, at + number * interval '40 ms'),
  at + number * interval '40 ms', at + number * interval '40 ms' + interval '30 ms'
from chunk cross join generate_series(1, 4) as number where not undone or number <= 2
order by id, number
"""


def fill(url: str, number: int, *, first: datetime, pause: timedelta, begin: int = 0) -> float:
    """Make finished sagas, oldest first. Returns the seconds that it took.

    `begin`: the number of the first one. Each number can be used once, and begins `pause` after the one before it.
    `first`: when number 0 began, or would have.
    """
    began = time.perf_counter()
    with psycopg.connect(url, autocommit=True) as connection:
        # Neither a disk sync for each chunk, nor a look at the saga of each step, which was made in the same statement.
        connection.execute("set synchronous_commit = off")
        connection.execute("set session_replication_role = replica")
        values = {
            "first": first,
            "pause": pause,
            "outline": json.dumps([{"step": name} for name in STEPS]),
            "steps": list(STEPS),
        }
        for chunk in range(begin, begin + number, _CHUNK):
            connection.execute(_INSERT, {**values, "begin": chunk, "end": min(chunk + _CHUNK, begin + number)})
    return time.perf_counter() - began
