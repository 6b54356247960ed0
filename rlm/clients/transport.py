"""Connections of the OpenAI clients: one pool per event loop, built with the openai package's own HTTP client.

The package supplies headers (key, organisation, project) and the HTTP client; requests skip its typed resources. That
takes half the CPU of `chat.completions.create` and keeps the response headers. With the extra `[fast]` the requests go
over aiohttp, which halves it again. Importing the package takes a second, so it happens in a thread.
"""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import anyio
import anyio.lowlevel
import anyio.to_thread

from rlm._async.portal import leave_to_parent
from rlm._async.preload import load
from rlm.clients.error_mapping import redact
from rlm.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    import httpx2

    from rlm.clients.address import EndpointAddress

__all__ = ["ConnectionPool", "ConnectionPools", "warm_up"]

NO_KEY = "none"
"""Sent to local servers without a key: they accept any, but the package and some servers require one."""

CONNECT_TIMEOUT_S = 60.0
KEEP_ALIVE_S = 30.0
FIRST_CONNECTIONS = 128
"""Connections that may open at once at the start, above the scheduler's first limit; see `ConnectionPool.connection`."""


def warm_up() -> None:
    """Start to import the openai package in a thread; return at once."""
    if not _loaded.is_set():
        threading.Thread(target=load, args=(_load,), name="rlm-import-openai", daemon=True).start()


class ConnectionPools:
    """Connection pools of one client, one per event loop, each built with the first request on that loop.

    A forked child builds new pools and neither uses nor closes those of its parent.
    """

    def __init__(self, address: EndpointAddress, *, timeout_s: float, max_connections: int) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._max_connections = max_connections
        self._by_loop: WeakKeyDictionary[_Loop, ConnectionPool] = WeakKeyDictionary()
        self._process = os.getpid()
        self._closed = False

    def __len__(self) -> int:
        return len(self._of_this_process())

    async def of_running_loop(self) -> ConnectionPool:
        """Return the pool of the running event loop.

        Raises:
            RuntimeError: the pools are closed.
            SettingsError: the environment (proxies, certificates) or the URL keeps the HTTP client from being built.
        """
        if self._closed:
            raise RuntimeError("this client is closed")
        loop = _running_loop()
        if (pool := self._of_this_process().get(loop)) is not None:
            return pool
        async with loop.building:
            pools = self._of_this_process()
            if (pool := pools.get(loop)) is None:
                http, headers = await anyio.to_thread.run_sync(self._build, _on_asyncio())
                closer = _close_with_the_loop(http)
                await anext(closer)
                pool = pools[loop] = ConnectionPool(
                    http, headers, self._address.url, closer, self._max_connections
                )
        return pool

    async def aclose(self) -> None:
        """Close the pool of the running loop; each other loop closes its own when it ends. Idempotent."""
        self._closed = True
        pools = self._of_this_process()
        pool = pools.pop(_running_loop(), None)
        pools.clear()
        if pool is not None:
            with anyio.CancelScope(shield=True):
                await pool.closer.aclose()

    def _of_this_process(self) -> WeakKeyDictionary[_Loop, ConnectionPool]:
        if self._process != os.getpid():
            leave_to_parent(*self._by_loop.items())
            self._by_loop, self._process = WeakKeyDictionary(), os.getpid()
        return self._by_loop

    def _build(self, on_asyncio: bool) -> tuple[httpx2.AsyncClient, httpx2.Headers]:
        """Build the HTTP client, in a thread: this imports the package and reads the trusted certificates."""
        load(_load)
        import httpx2
        import openai

        connect_s = min(CONNECT_TIMEOUT_S, self._timeout_s)
        timeout = httpx2.Timeout(self._timeout_s, connect=connect_s, pool=None)
        limits = httpx2.Limits(
            max_connections=self._max_connections,
            max_keepalive_connections=self._max_connections,
            keepalive_expiry=KEEP_ALIVE_S,
        )
        try:
            http = _http_client(timeout, limits, fast=on_asyncio and find_spec("aiohttp") is not None)
            sdk = openai.AsyncOpenAI(
                api_key=self._address.key or NO_KEY, base_url=self._address.url, http_client=http
            )
        except (openai.OpenAIError, ValueError, ImportError, OSError) as error:
            # Both constructors read more of the environment than we do: proxies, certificates, credentials.
            message = redact(f"the HTTP client cannot be set up: {error}", self._address.key)
            raise SettingsError(" ".join(message.split())) from error
        headers = {**sdk.default_headers, **sdk.auth_headers}
        return http, httpx2.Headers(
            {name: value for name, value in headers.items() if isinstance(value, str)}
        )


class ConnectionPool:
    """Connections of one event loop; their number grows with each success.

    Attributes:
        closer: closes the connections when it is closed, at the latest with the loop.
    """

    def __init__(
        self,
        http: httpx2.AsyncClient,
        headers: httpx2.Headers,
        base_url: str,
        closer: AsyncGenerator[None, None],
        max_connections: int,
    ) -> None:
        import httpx2

        self.closer = closer
        self._http = http
        self._headers = headers
        base = httpx2.URL(base_url)
        self._urls = {
            path: base.copy_with(path=f"{base.path.rstrip('/')}/{path}")
            for path in ("chat/completions", "models")
        }
        self._allowed = min(FIRST_CONNECTIONS, max_connections)
        self._max_connections = max_connections
        self._connections = anyio.Semaphore(self._allowed, fast_acquire=True)

    async def send(
        self, method: str, path: str, content: bytes | None = None, *, stream: bool = False
    ) -> httpx2.Response:
        """Send one request; with `stream` the body of the response is left to be read and closed by the caller."""
        request = self._http.build_request(method, self._urls[path], headers=self._headers, content=content)
        return await self._http.send(request, stream=stream)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[None]:
        """Wait for one of the connections that may be open; each success allows one more, a failure none less.

        This keeps 1,000 TLS handshakes from coinciding. It is no limit of the load: that is the scheduler's
        `ConcurrencyLimit`, which starts lower and grows no faster.
        """
        async with self._connections:
            yield
        if self._allowed < self._max_connections:
            self._allowed += 1
            self._connections.release()


class _Loop:
    """Identity of one event loop: a key that lives exactly as long as the loop."""

    def __init__(self) -> None:
        self.building = anyio.Lock()


_loaded = threading.Event()
_loops: anyio.lowlevel.RunVar[_Loop] = anyio.lowlevel.RunVar("rlm.clients.transport")


def _load() -> None:
    import openai  # noqa: F401 - imported for its side effect: later imports are instant

    _loaded.set()


def _running_loop() -> _Loop:
    try:
        return _loops.get()
    except LookupError:
        loop = _Loop()
        _loops.set(loop)
        return loop


async def _close_with_the_loop(http: httpx2.AsyncClient) -> AsyncGenerator[None, None]:
    """Close the connections when this generator is closed.

    An event loop closes all open async generators when it ends, so a client that was never closed leaves no
    connection and no warning behind.
    """
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await http.aclose()


def _http_client(timeout: httpx2.Timeout, limits: httpx2.Limits, *, fast: bool) -> httpx2.AsyncClient:
    import openai

    if fast:
        with suppress(RuntimeError):  # aiohttp is too old, or openai was installed without its aiohttp bridge
            return openai.DefaultAioHttpClient(timeout=timeout, limits=limits)
    return openai.DefaultAsyncHttpxClient(timeout=timeout, limits=limits)


def _on_asyncio() -> bool:
    """Return True on asyncio, the only event loop that aiohttp runs on."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
