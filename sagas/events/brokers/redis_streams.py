"""A broker on Redis Streams, through redis-py: a stream for each queue, which holds its unacknowledged messages.

Publishing is one script that adds a message to the stream of every queue bound to its topic. Messages of different
topics therefore stay in order, and an acknowledged message is deleted at once: nothing has to be trimmed.

    sagas:exchange:<exchange>        marks the exchange as declared
    sagas:topic:<exchange>:<topic>   the set of queues bound to the topic
    sagas:queue:<queue>              the stream; its one group is `readers`
    sagas:kept:<queue>               a stream of what was published while the key of the queue was not a stream
    sagas:reader:<reader>            expires when the reader is dead
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import msgspec
import redis
import uuid_utils
from redis.backoff import NoBackoff
from redis.retry import Retry

from sagas.durations import seconds, whole_number
from sagas.errors import BrokerUnavailable, ConfigurationError, InvalidMessage, NoHandler, QueueMismatch
from sagas.events.brokers import Delivery, Outgoing, Reader, Topology
from sagas.events.brokers.shared import Heartbeat, exchange_of, in_forks, text_of, texts

__all__ = ["RedisBroker"]

logger = logging.getLogger(__name__)

_GROUP = "readers"

#: The most messages and bytes that one script adds: Redis does nothing else meanwhile.
_BATCH = 200
_BATCH_BYTES = 8 * 1024 * 1024

# The script answers "wrong <queue>" if the key of a queue is not a stream. Messages kept meanwhile are added later.
_DECLARE = """
local exchange, made = ARGV[1], {}
if redis.call('SET', 'sagas:exchange:' .. exchange, '1', 'NX') then made[#made + 1] = 'exchange ' .. exchange end
local queue
for i = 2, #ARGV, 2 do
    if ARGV[i] == 'queue' then
        queue = ARGV[i + 1]
        local stream, kept = 'sagas:queue:' .. queue, 'sagas:kept:' .. queue
        local kind = redis.call('TYPE', stream).ok
        if kind ~= 'stream' and kind ~= 'none' then
            made[#made + 1] = 'wrong ' .. queue
        else
            local created = redis.pcall('XGROUP', 'CREATE', stream, 'readers', '0', 'MKSTREAM')
            if not created.err then
                made[#made + 1] = 'queue ' .. queue
            elseif not string.find(created.err, 'BUSYGROUP') then
                return created
            end
            for _, entry in ipairs(redis.call('XRANGE', kept, '-', '+')) do
                redis.call('XADD', stream, '*', unpack(entry[2]))
            end
            redis.call('DEL', kept)
        end
    elseif redis.call('SADD', 'sagas:topic:' .. exchange .. ':' .. ARGV[i + 1], queue) == 1 then
        made[#made + 1] = 'binding ' .. ARGV[i + 1] .. ' -> ' .. queue
    end
end
return made
"""

# All queues are looked up before anything is added.
_PUBLISH = """
local exchange, targets, unheard = ARGV[1], {}, {'unheard'}
for i = 2, #ARGV, 4 do
    if ARGV[i] ~= '' then
        if redis.call('EXISTS', 'sagas:queue:' .. ARGV[i]) == 0 then return {'queue', ARGV[i]} end
        targets[i] = {ARGV[i]}
    else
        if redis.call('EXISTS', 'sagas:exchange:' .. exchange) == 0 then return {'exchange', exchange} end
        local topic = 'sagas:topic:' .. exchange .. ':' .. ARGV[i + 1]
        targets[i] = redis.call('SUNION', topic, (string.gsub(topic, '%.[^.]*$', '.*')))
        if #targets[i] == 0 then unheard[#unheard + 1] = ARGV[i + 1] end
    end
end
for i = 2, #ARGV, 4 do
    for _, queue in ipairs(targets[i]) do
        local stream = 'sagas:queue:' .. queue
        local kind = redis.call('TYPE', stream).ok
        if kind ~= 'stream' and kind ~= 'none' then stream = 'sagas:kept:' .. queue end
        redis.call('XADD', stream, '*', 'about', ARGV[i + 2], 'body', ARGV[i + 3])
    end
end
return unheard
"""

# Takes over as many messages of dead readers as fit, the oldest first. Dead readers without messages are removed.
_TAKE_OVER = """
local stream, me, limit, dead = KEYS[1], ARGV[1], tonumber(ARGV[2]), {}
for i = 3, #ARGV do redis.call('DEL', 'sagas:reader:' .. ARGV[i]) end
for _, row in ipairs(redis.call('XINFO', 'CONSUMERS', stream, 'readers')) do
    local consumer = {}
    for i = 1, #row, 2 do consumer[row[i]] = row[i + 1] end
    if consumer.name ~= me and redis.call('EXISTS', 'sagas:reader:' .. consumer.name) == 0 then
        if consumer.pending == 0 then
            redis.call('XGROUP', 'DELCONSUMER', stream, 'readers', consumer.name)
        else
            dead[consumer.name] = true
        end
    end
end
local taken, from = {}, '-'
while next(dead) and #taken < limit do
    local pending = redis.call('XPENDING', stream, 'readers', from, '+', 1000)
    if #pending == 0 then break end
    local ids, times = {}, {}
    for _, entry in ipairs(pending) do
        if dead[entry[2]] and #taken + #ids < limit then
            ids[#ids + 1] = entry[1]
            times[entry[1]] = entry[4]
        end
        from = '(' .. entry[1]
    end
    if #ids > 0 then
        for _, entry in ipairs(redis.call('XCLAIM', stream, 'readers', me, 0, unpack(ids))) do
            if entry and entry[2] then taken[#taken + 1] = {entry[1], entry[2], times[entry[1]] + 1} end
        end
    end
end
return taken
"""


class _About(msgspec.Struct, omit_defaults=True):
    """What is stored of a message beside its body."""

    topic: str
    headers: dict[str, str]
    key: str | None = None


class RedisBroker:
    """Carries messages through Redis 6.2 or newer; not through a Redis Cluster.

    `url`: as redis-py reads it, `redis://127.0.0.1:6379/1`. `lease`: seconds of silence after which a reader counts as
    dead, and others take over its messages; a thread sends heartbeats while the reader's own thread works. `timeout`:
    how long Redis may take to answer. `max_message_size`: the largest body, in bytes. Other options go to
    `redis.Redis.from_url`.

    Messages are as durable as Redis is configured to be. Without `appendonly yes`, a restart loses all of them. Without
    `appendfsync always`, a crash loses the last second. A failover loses what the replica had not received. `declare`
    refuses a Redis that may evict keys.
    """

    def __init__(
        self,
        url: str,
        *,
        lease: float | timedelta = 30.0,
        timeout: float | timedelta = 10.0,
        max_message_size: int = 64 * 1024 * 1024,
        **options: Any,
    ) -> None:
        self.lease = seconds(lease, "RedisBroker: lease", ConfigurationError)
        self.max_message_size = whole_number(max_message_size, "RedisBroker: max_message_size", ConfigurationError)
        self.timeout = seconds(timeout, "RedisBroker: timeout", ConfigurationError)
        # A command that was sent may have been executed: the caller decides whether to send it again.
        self.client = redis.Redis.from_url(
            url,
            protocol=2,
            socket_timeout=self.timeout,
            socket_connect_timeout=self.timeout,
            retry=Retry(NoBackoff(), 0),
            **options,
        )
        # Unparsed: redis-py would turn an entry into a dict and keep only the last of several fields with one name.
        self.client.set_response_callback("XREADGROUP", lambda answer, **_: answer)
        self._declare = self.client.register_script(_DECLARE)
        self._publish = self.client.register_script(_PUBLISH)
        self.take_over = self.client.register_script(_TAKE_OVER)
        self._topology: dict[str, Topology] = {}  # what was declared, by exchange
        self._exchange: str | None = None
        #: Names of readers in this process that are dead, and that could not yet be removed from Redis.
        self.dead: defaultdict[str, list[str]] = defaultdict(list)
        self.heartbeat = Heartbeat(self.lease)
        in_forks(self)

    def __repr__(self) -> str:
        where = self.client.connection_pool.connection_kwargs
        return f"<RedisBroker {where.get('host', where.get('path'))}:{where.get('port', '')}/{where.get('db', 0)}>"

    def declare(self, topology: Topology) -> Sequence[str]:
        with self.asked():
            self._check_eviction()
            made = self._make(topology)
        self._exchange = topology.exchange
        before = self._topology.get(topology.exchange, Topology(topology.exchange, ()))
        queues = {queue.name: queue for queue in (*before.queues, *topology.queues)}
        self._topology[topology.exchange] = Topology(topology.exchange, tuple(queues.values()))
        if wrong := [what.removeprefix(_WRONG) for what in made if what.startswith(_WRONG)]:
            raise QueueMismatch({queue: self._mismatch(queue) for queue in wrong})
        return made

    def mismatches(self, topology: Topology) -> Mapping[str, str]:
        with self.asked():
            kinds = {queue.name: self.client.type(_stream(queue.name)) for queue in topology.queues}
        return {queue: self._mismatch(queue) for queue, kind in kinds.items() if kind not in (b"stream", b"none")}

    def _mismatch(self, queue: str) -> str:
        return (
            f"the key {_stream(queue)!r} of {self!r} is not a stream: another program created it. It stays as it is. "
            f"This process does not read the queue {queue!r}; messages published to it are kept in "
            f"'sagas:kept:{queue}'. Rename the key, or give this app its own database: the queue is then declared "
            "again automatically"
        )

    def _make(self, topology: Topology) -> list[str]:
        arguments = [topology.exchange]
        for queue in topology.queues:
            arguments += ["queue", queue.name]
            for topic in queue.topics:
                arguments += ["topic", topic]
        return [made.decode() for made in self._declare(args=arguments)]

    def _check_eviction(self) -> None:
        memory = self.client.info("memory")
        policy = memory.get("maxmemory_policy", "noeviction")
        if policy.startswith("allkeys") and memory.get("maxmemory"):
            raise ConfigurationError(
                f"{self!r} has maxmemory-policy {policy}: when Redis is full, it deletes queues with all their "
                "messages. Set maxmemory-policy noeviction; publishing then fails when Redis is full, and is retried"
            )

    def heal(self) -> None:
        """Declare this process's topology again after Redis was flushed."""
        for topology in self._topology.values():
            for made in self._make(topology):
                if not made.startswith(_WRONG):
                    logger.error("%r was flushed; created again: %s", self, made)

    def publish(self, messages: Sequence[Outgoing]) -> Collection[str]:
        if any(message.queue is None for message in messages):
            exchange_of(self._exchange)
        for message in messages:
            if len(message.body) > self.max_message_size:
                raise InvalidMessage(
                    f"a message of {len(message.body):,} bytes is too large for {self!r}: the limit is "
                    f"{self.max_message_size:,} bytes (max_message_size). Store the data elsewhere and publish a "
                    "reference"
                )
        unheard: set[str] = set()
        for batch in _batches(messages):
            unheard.update(self._publish_batch(batch))
        return unheard

    def _publish_batch(self, messages: Sequence[Outgoing]) -> Collection[str]:
        arguments: list[bytes | str] = [self._exchange or ""]
        for message in messages:
            about = _About(topic=message.topic, headers=dict(message.headers), key=message.key)
            arguments += [message.queue or "", message.topic, msgspec.json.encode(about), message.body]
        with self.asked():
            answer, *names = self._publish(args=arguments)
            if answer != b"unheard":
                self.heal()
                answer, *names = self._publish(args=arguments)
        if answer != b"unheard":
            raise NoHandler(f"there is no {answer.decode()} {names[0].decode()!r} to publish to. Declare it")
        return {name.decode() for name in names}

    def unbind(self, exchange: str, queue: str, topics: Iterable[str]) -> None:
        with self.asked():
            for topic in topics:
                self.client.srem(f"sagas:topic:{exchange}:{topic}", queue)

    def delete(self, queue: str) -> None:
        with self.asked():
            for topic in self.client.scan_iter(match="sagas:topic:*", count=1000):
                self.client.srem(topic, queue)
            self.client.delete(_stream(queue))

    def reader(self, queue: str) -> Reader:
        return _Reader(self, queue)

    def given_up(self, queue: str) -> str | None:  # noqa: ARG002 - it never gives up on a message
        return None

    def depth(self, queue: str) -> int:
        with self.asked():
            questions = self.client.pipeline()
            questions.exists(_stream(queue))
            questions.xlen(_stream(queue))
            there, depth = questions.execute()
        if not there:
            raise BrokerUnavailable(f"there is no queue {queue!r}. Declare it")
        return int(depth)

    def close(self) -> None:
        self.client.close()

    def after_fork(self) -> None:
        self.dead.clear()  # redis-py itself handles the fork

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Raise `BrokerUnavailable` for every Redis error."""
        try:
            yield
        except redis.RedisError as error:
            raise BrokerUnavailable(f"{self!r}: {error}") from error


class _Reader:
    def __init__(self, broker: RedisBroker, queue: str) -> None:
        self._broker = broker
        self._queue = queue
        self._stream = _stream(queue)
        self._begin()

    def __repr__(self) -> str:
        return f"<reader {self._name} of {self._queue}>"

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()  # between this reader's thread and the heartbeat
        self._is_known = False
        self._rename()

    def _rename(self) -> None:
        """Take a new name. The reader with the old name counts as dead, and its messages are delivered again."""
        self._name = f"{self._pid}-{uuid_utils.uuid4()}"
        self._next_look = 0.0  # when to look again for dead readers

    def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        if self._pid != os.getpid():
            self._begin()
        try:
            with self._broker.asked():
                return self._receive(limit, timeout)
        except BrokerUnavailable as error:
            # Messages on their way to this reader may be lost, while Redis believes that they were delivered.
            self._end()
            if not isinstance(error.__cause__, redis.ResponseError) or not _is_missing(error.__cause__):
                raise
            with self._broker.asked():
                self._broker.heal()
            raise BrokerUnavailable(f"there was no queue {self._queue!r} at {self._broker!r}. Declare it") from error

    def _receive(self, limit: int, timeout: float) -> list[Delivery]:
        if not self._is_known:
            self._is_known = True
            self.beat()
            self._broker.heartbeat.add(self)
        give_up = time.monotonic() + timeout
        while True:
            now = time.monotonic()
            if now >= self._next_look:
                # Messages that this reader had under an earlier name are older than all that it can read.
                dead = self._broker.dead[self._queue]
                taken = self._broker.take_over(keys=[self._stream], args=[self._name, limit, *dead])
                del dead[:]
                if len(taken) < limit:  # else there may be more
                    self._next_look = now + self._broker.lease / 3
                if taken:
                    return [
                        self._delivery(entry, fields, deliveries)
                        for entry, fields, deliveries in sorted(taken, key=_place)
                    ]
            wait = min(give_up - now, self._next_look - now, self._broker.timeout / 2)
            if entries := self._read(limit, wait):
                return [self._delivery(entry, fields, 1) for entry, fields in entries]
            if time.monotonic() >= give_up:
                return []

    def _read(self, limit: int, wait: float) -> list[tuple[bytes, list[bytes]]]:
        block = max(1, round(wait * 1000))  # 0 would block forever
        read: Any = self._broker.client.xreadgroup(_GROUP, self._name, {self._stream: ">"}, count=limit, block=block)
        return read[0][1] if read else []

    def _delivery(self, entry: bytes, fields: Sequence[bytes], deliveries: int) -> Delivery:
        about, body, others = _read(fields)
        return Delivery(
            queue=self._queue,
            topic=text_of(about.topic),
            body=body,
            headers=texts([*about.headers.items(), *others]),
            key=None if about.key is None else text_of(about.key),
            deliveries=deliveries,
            tag=entry,
        )

    def ack(self, *deliveries: Delivery) -> None:
        tags = [delivery.tag for delivery in deliveries]
        commands = self._broker.client.pipeline()
        commands.xack(self._stream, _GROUP, *tags)
        commands.xdel(self._stream, *tags)
        try:
            commands.execute()
        except redis.RedisError as error:
            logger.warning("%r: an acknowledgement failed; its messages will be redelivered: %s", self, error)
            self._end()

    def beat(self) -> None:
        """Stay alive for one more lease."""
        with self._lock:
            if self._is_known:
                self._broker.client.set(_alive(self._name), "1", px=round(self._broker.lease * 1000))

    def close(self) -> None:
        if self._pid == os.getpid():
            self._end()

    def _end(self) -> None:
        """End this reader's lease, so that others may take over. The next `receive` starts under a new name."""
        self._broker.heartbeat.discard(self)
        with self._lock:
            if not self._is_known:
                return
            self._is_known = False
            try:
                self._broker.client.delete(_alive(self._name))
            except redis.RedisError as error:
                logger.debug("%r: could not report its end to Redis: %s", self, error)
                self._broker.dead[self._queue].append(self._name)
            self._rename()


_ABOUT = msgspec.json.Decoder(_About)

#: The prefix of the declare script's answer for a queue whose key is not a stream.
_WRONG = "wrong "


def _read(fields: Sequence[bytes]) -> tuple[_About, bytes, list[tuple[bytes, bytes]]]:
    """Return an entry's description of the message, its body, and the fields that this library did not write.

    Any program may add entries. If an entry has no body field of ours, all of its fields are returned as others.
    """
    pairs = list(zip(fields[::2], fields[1::2], strict=True))
    names = [name for name, _ in pairs]
    about, body = _About(topic="", headers={}), b""
    if names.count(b"body") == 1:
        body = next(value for name, value in pairs if name == b"body")
        pairs = [(name, value) for name, value in pairs if name != b"body"]
    if names.count(b"about") == 1:
        try:
            about = _ABOUT.decode(next(value for name, value in pairs if name == b"about"))
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass  # the field stays among the others
        else:
            pairs = [(name, value) for name, value in pairs if name != b"about"]
    return about, body, pairs


def _batches(messages: Sequence[Outgoing]) -> Iterator[list[Outgoing]]:
    batch: list[Outgoing] = []
    size = 0
    for message in messages:
        if batch and (len(batch) == _BATCH or size + len(message.body) > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += len(message.body)
    if batch:
        yield batch


def _stream(queue: str) -> str:
    return f"sagas:queue:{queue}"


def _alive(reader: str) -> str:
    return f"sagas:reader:{reader}"


def _place(taken: Sequence[Any]) -> tuple[int, int]:
    milliseconds, _, number = taken[0].partition(b"-")
    return int(milliseconds), int(number)


def _is_missing(error: redis.ResponseError) -> bool:
    return "NOGROUP" in str(error) or "no such key" in str(error)
