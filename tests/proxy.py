"""A TCP proxy on 127.0.0.1, in front of a server, that can hurt the connections that go through it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self

from sqlalchemy import make_url

from tests.servers import free_port

_SO_ATTACH_FILTER = 26  # Linux; the socket module does not name it


class Proxy:
    """Stands in front of 127.0.0.1:port, on a port of its own. What hurts lasts until `heal()`.

    A connection that has lost bytes never works again, and nobody is told: also after `heal()` it stays open and
    silent. It is then new connections that work.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = free_port()
        self._links: set[_Link] = set()
        self._delay = 0.0
        self._hangs = False
        self._dropped: ctypes.Array[ctypes.c_char] | None = None
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def url(self, url: str) -> str:
        """Return the URL of the server, by way of this proxy."""
        return make_url(url).set(port=self.port).render_as_string(hide_password=False)

    def delay(self, seconds: float) -> None:
        """Hold back every piece of data for so long."""
        self._do(lambda: setattr(self, "_delay", seconds))

    def hang(self) -> None:
        """Swallow what is sent, on the connections of now and the new ones. Each end is told that it has arrived."""

        def hang() -> None:
            self._hangs = True
            for link in self._links:
                link.lost = True

        self._do(hang)

    def drop(self) -> None:
        """Answer no packet of the clients' any more, as a host that is gone: nobody is told that anything has arrived.

        A filter in the kernel does it, on each socket; new connections cannot be made.
        """
        # One instruction of the classic Berkeley packet filter: "return 0", keep nothing of the packet.
        instruction = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
        program = struct.pack("HP", 1, ctypes.addressof(instruction))

        def drop() -> None:
            assert self._server is not None
            for link in self._links:
                link.lost = True
            ours = [*self._server.sockets, *(link.client.get_extra_info("socket") for link in self._links)]
            for each in ours:
                each.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

        self._do(drop)

    def cut(self) -> None:
        """Reset all connections, on both sides."""

        def cut() -> None:
            for link in self._links:
                link.reset()

        self._do(cut)

    def refuse(self) -> None:
        """Take no new connections. Those that are there go on."""
        self._do(self._close)

    def heal(self) -> None:
        """Let new connections through, and old ones that have lost nothing."""

        async def heal() -> None:
            self._delay, self._hangs = 0.0, False
            self._close()  # its socket may have a filter
            await self._listen()

        self._run(heal())

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        async def stop() -> None:
            self._close()
            for link in self._links:
                link.reset()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.gather(*others, return_exceptions=True)

        self._run(stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # -- in the thread --------------------------------------------------------------------------------------------

    def _run(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(30)

    def _do(self, what: Callable[[], None]) -> None:
        async def do() -> None:
            what()

        self._run(do())

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    def _close(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _accept(self, from_client: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            from_server, server = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:  # the server is down: the client is to see what it would see without us
            client.transport.abort()
            return
        link = _Link(client, server, lost=self._hangs)
        self._links.add(link)
        try:
            await asyncio.gather(self._pump(link, from_client, server), self._pump(link, from_server, client))
        finally:
            self._links.discard(link)
            link.reset()

    async def _pump(self, link: _Link, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65_536):
                await asyncio.sleep(self._delay)
                if not link.lost:
                    sink.write(data)
                    await sink.drain()
        if not link.lost:  # else the other end is not told of the end either
            sink.close()


class _Link:
    """A connection from a client, and ours to the server."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter, *, lost: bool) -> None:
        self.client = client
        self.server = server
        self.lost = lost  #: it swallows what it is sent

    def reset(self) -> None:
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):  # it is closed
                at_once = struct.pack("ii", 1, 0)
                end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
            end.transport.abort()
