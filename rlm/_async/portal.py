"""The one bridge between blocking callers and the event loop.

Everything below the facade is async. A caller that blocks, or that runs an event loop of its own, crosses here:

    with lease() as portal:
        portal.call(function, argument)             # blocks only this thread
        await portal.acall(function, argument)      # from any asyncio or trio loop, which it never blocks

All leases of a process share one daemon thread with one event loop, so connections outlive a call, and no call
costs a thread. The thread starts with the first call and ends with the last lease. Leases that are never closed are closed
at exit: what is still running is cancelled, and may clean up.

After `os.fork` the child has no such thread; a lease that it inherited, like a new one, starts a thread at its next call.
What was made on the parent's loop (connections, processes, locks) stays the parent's: the child must neither use nor
close it, but pass it to `leave_to_parent` and make its own.

The loop is asyncio, driven through anyio. asyncio appears here by name, and only here, because tasks must be
handed over without waiting for the other loop, which anyio does not offer in public.
"""

from __future__ import annotations

import asyncio
import atexit
import math
import os
import sys
import threading
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar, TypeVarTuple, Unpack

import anyio
import anyio.to_thread

from rlm._async.twins import BlockingContext

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from contextvars import Context

__all__ = ["Portal", "lease", "leave_to_parent"]

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

EXIT_GRACE_S = 5.0
"""How long the interpreter waits at exit for cancelled tasks to clean up, in seconds."""


def lease(when_closed: str = "this portal is closed") -> Portal:
    """Return a new lease on the process's loop thread, which starts with the first call. Close it, or use `with`.

    Args:
        when_closed: message of the error that its use after `close` raises; it names the object that holds the lease.
    """
    return Portal(when_closed)


def leave_to_parent(*things: object) -> None:
    """In a forked child: keep these objects alive and untouched, so that no finalizer runs.

    Finalizers of transports and processes act on what is shared with the parent: they unregister its files from
    its selector and kill its guests.
    """
    _of_the_parent.extend(things)


class Portal(BlockingContext):
    """A lease on the loop thread that all leases of this process share.

    It may be used from any number of threads and loops at once, and as a context manager.
    """

    def __init__(self, when_closed: str) -> None:
        self._thread: _LoopThread | None = None
        self._when_closed = when_closed
        self._closed = False

    def call(self, function: Callable[[Unpack[Arguments]], Awaitable[T]], *arguments: *Arguments) -> T:
        """Run `function(*arguments)` on the portal's loop and block this thread until it is done.

        An exception it raises is raised here, as it is. Ctrl-C cancels it, waits until it has cleaned up, and
        is raised again; a second Ctrl-C does not wait.

        Raises:
            RuntimeError: on the portal's own loop, where blocking would wait for itself forever; after
                `close`; when the last lease was closed while the call ran.
        """
        thread = self._running_thread()
        if thread.is_current():
            raise _called_on_own_loop()
        call = thread.submit(function, arguments)
        try:
            return call.outcome.result()
        except BaseException:
            # An exception of the call itself also passes here; its call is done, so there is nothing to cancel.
            thread.cancel_and_wait(call)
            call.forget()
            raise

    async def acall(self, function: Callable[[Unpack[Arguments]], Awaitable[T]], *arguments: *Arguments) -> T:
        """Run `function(*arguments)` on the portal's loop and wait for it from any other loop, or from it.

        Cancelling the waiting task cancels the function and waits until it has cleaned up.

        Raises:
            RuntimeError: after `close`; when the last lease was closed while the call ran.
        """
        thread = await self._usable_thread()
        if thread.is_current():
            return await function(*arguments)
        done = anyio.Event()
        wake = _waker(done.set)
        call = thread.submit(function, arguments)
        call.outcome.add_done_callback(lambda _: wake())
        try:
            await done.wait()
        except BaseException:
            thread.cancel(call)
            with anyio.CancelScope(shield=True):
                await done.wait()
            call.forget()
            raise
        return call.outcome.result()

    async def afinish(
        self, function: Callable[[Unpack[Arguments]], Awaitable[T]], *arguments: *Arguments
    ) -> T:
        """Run `function(*arguments)` to its end in a task of its own, even if the caller is cancelled.

        This is for closing, which may be called by the very task that closing has to cancel and await: on the portal's
        own loop the waiting can be cancelled, and the function goes on. On other loops it cannot.

        Raises:
            RuntimeError: as `acall`.
        """
        with anyio.CancelScope(shield=True):
            thread = await self._usable_thread()
        done = anyio.Event()
        wake = _waker(done.set)
        call = thread.submit(function, arguments)
        call.outcome.add_done_callback(lambda _: wake())
        with anyio.CancelScope(shield=not thread.is_current()):
            await done.wait()
        return call.outcome.result()

    def start(
        self, function: Callable[[Unpack[Arguments]], Awaitable[object]], *arguments: *Arguments
    ) -> None:
        """Start `function(*arguments)` on the portal's loop without waiting for it; the end of the loop cancels it.

        Raises:
            RuntimeError: after `close`.
        """
        thread = self._thread
        if thread is None or not thread.is_usable():
            thread = self._running_thread()
        thread.submit(function, arguments)

    def post(self, function: Callable[[], object]) -> None:
        """Call a plain function soon on the portal's loop, from any thread or finalizer; takes no lock.

        Does nothing when the loop has ended or belongs to another process.
        """
        thread = self._thread
        if thread is not None and thread.is_usable():
            thread.post(function)

    def require_another_thread(self) -> None:
        """Check, before anything is done, that blocking here would not wait for itself.

        Raises:
            RuntimeError: this is the portal's own loop.
        """
        thread = self._thread
        if thread is not None and thread.is_current():
            raise _called_on_own_loop()

    def iterate(self, produce: Callable[[Callable[[T], None]], Awaitable[object]]) -> Iterator[T]:
        """Run `produce(put)` on the portal's loop and yield, in this thread, each item it puts.

        Leaving the iteration early cancels `produce` and waits until it has cleaned up. An exception it raises is
        raised here, after all that was put before.

        Raises:
            RuntimeError: as `call`.
        """
        thread = self._running_thread()
        if thread.is_current():
            raise _called_on_own_loop()
        made: SimpleQueue[T | _End] = SimpleQueue()
        call = thread.submit(produce, (made.put,))
        call.outcome.add_done_callback(lambda _: made.put(_END))
        try:
            while not isinstance(item := made.get(), _End):
                yield item
        finally:
            thread.cancel_and_wait(call)
        call.outcome.result()

    async def aiterate(self, produce: Callable[[Callable[[T], None]], Awaitable[object]]) -> AsyncIterator[T]:
        """Run `produce(put)` on the portal's loop and yield, on any other loop, each item it puts; see `iterate`.

        Leave it early only through `contextlib.aclosing`, which waits for the cleaning up.
        """
        made: deque[T] = deque()
        wakes = _Wakes()

        def put(item: T) -> None:
            made.append(item)
            wakes.wake()

        thread = await self._usable_thread()
        call = thread.submit(produce, (put,))
        call.outcome.add_done_callback(lambda _: wakes.wake())
        try:
            while made or not call.outcome.done():
                while made:
                    yield made.popleft()
                await wakes.wait_until(lambda: bool(made) or call.outcome.done())
        finally:
            thread.cancel(call)
            with anyio.CancelScope(shield=True):
                await wakes.wait_until(call.outcome.done)
        call.outcome.result()

    def close(self) -> None:
        """End the lease; the last one cancels what still runs, and ends the thread. Idempotent."""
        with _lock:
            thread, self._thread = self._thread, None
            self._closed = True
            is_last = thread is not None and _release(thread)
        if thread is not None and is_last:
            thread.stop()

    async def aclose(self) -> None:
        """Like `close`, without blocking the loop it is called on."""
        thread = self._thread
        if thread is not None and thread.is_current():
            self.close()  # which does not wait here: the loop ends when this task lets it
            return
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.close)

    async def _usable_thread(self) -> _LoopThread:
        """Return the thread; if it has to be started, do so without blocking this loop."""
        thread = self._thread
        if self._closed or thread is None or not thread.is_usable():
            return await anyio.to_thread.run_sync(self._running_thread)
        return thread

    def _running_thread(self) -> _LoopThread:
        with _lock:
            if self._closed:
                raise RuntimeError(self._when_closed)
            if self._thread is None or not self._thread.is_usable():
                self._thread = _acquire()
            return self._thread


class _PortalCall(Generic[T]):
    """One call of a function on the loop; `outcome` is resolved when its task has ended, not before."""

    def __init__(self, function: Callable[..., Awaitable[T]], arguments: tuple[Any, ...]) -> None:
        self.outcome: Future[T] = Future()
        self._function = function
        self._arguments = arguments
        self._scope: anyio.CancelScope | None = None
        self._cancelled = False

    async def run(self) -> None:
        with anyio.CancelScope() as self._scope:
            if self._cancelled:
                self._scope.cancel()
            try:
                result = await self._function(*self._arguments)
            except anyio.get_cancelled_exc_class() as error:
                if (
                    anyio.current_effective_deadline() == -math.inf
                ):  # this call or the whole loop was cancelled
                    self.fail(RuntimeError("the call was cancelled because its portal was closed"))
                    raise
                # Re-raised, it would end the task group, and with it all other calls.
                self.fail(_stray_cancellation(error))
            except BaseException as error:  # noqa: BLE001 - the border to another thread: the caller gets every exception
                self.fail(error)
            else:
                if not self.outcome.done():
                    self.outcome.set_result(result)

    def cancel(self) -> None:
        self._cancelled = True
        if self._scope is not None:
            self._scope.cancel()

    def forget(self) -> None:
        """Drop a result that came too late to be returned: in a reference cycle, it would live on for a while."""
        self.outcome = Future()

    def fail(self, error: BaseException) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(error)


class _LoopThread:
    """A daemon thread with an event loop, and the calls on it. `leases` is guarded by the module's lock."""

    def __init__(self) -> None:
        self.leases = 0
        self._process = os.getpid()
        self._calls: set[_PortalCall[Any]] = set()
        self._stopping = False
        self._ended = False
        self._tasks: anyio.abc.TaskGroup
        started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="rlm-portal", daemon=True)
        self._thread.start()
        self._loop = started.result()

    def submit(self, function: Callable[..., Awaitable[T]], arguments: tuple[Any, ...]) -> _PortalCall[T]:
        call = _PortalCall(function, arguments)
        self._calls.add(call)
        call.outcome.add_done_callback(lambda _: self._calls.discard(call))
        if not self.post(self._start, call):
            call.fail(_closed_meanwhile())
        return call

    def cancel(self, call: _PortalCall[Any]) -> None:
        self.post(call.cancel)

    def cancel_and_wait(self, call: _PortalCall[Any]) -> None:
        """Cancel a call that has not ended, and block until it has cleaned up.

        A generator may be collected on any thread, this one included, which would wait for itself: then the call is
        only cancelled.
        """
        if not call.outcome.done():
            self.cancel(call)
            if not self.is_current():
                call.outcome.exception()

    def stop(self) -> None:
        """Cancel what runs, and wait for the thread's end unless this is that thread."""
        self.post(self._stop)
        if not self.is_current():
            self._thread.join()

    def stop_within(self, seconds: float) -> None:
        self.post(self._stop)
        self._thread.join(seconds)

    def is_current(self) -> bool:
        return threading.get_ident() == self._thread.ident

    def is_usable(self) -> bool:
        """Return True if the thread runs: not in a forked child, nor after its loop has ended."""
        return self._process == os.getpid() and not self._ended

    def post(self, function: Callable[..., object], *arguments: object) -> bool:
        try:
            self._loop.call_soon_threadsafe(function, *arguments, context=_context_of_caller())
        except RuntimeError:  # the loop is closed
            return False
        return True

    def _start(self, call: _PortalCall[Any]) -> None:
        if self._stopping:
            call.fail(_closed_meanwhile())
        else:
            try:
                self._tasks.start_soon(call.run)
            except RuntimeError:  # the task group has ended, and the loop is about to
                call.fail(_closed_meanwhile())

    def _stop(self) -> None:
        self._stopping = True
        self._tasks.cancel_scope.cancel()

    def _run(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        try:
            anyio.run(self._serve, started, backend_options={"loop_factory": self._new_loop})
        except BaseException as error:  # noqa: BLE001 - the thread's border: the thread that waits for the start must get it
            if not started.done():
                started.set_exception(error)
        finally:
            self._ended = True
            for call in list(self._calls):
                call.fail(_closed_meanwhile())

    def _new_loop(self) -> asyncio.AbstractEventLoop:
        """Make a loop that marks this thread as unusable at the moment it stops.

        When a callback raises SystemExit, asyncio first leaves `run_forever` and only then cancels the tasks. A caller
        whose call is cancelled there may call again at once, and must not be given the loop that is ending.
        """
        loop = asyncio.new_event_loop()
        run_forever = loop.run_forever

        def run_until_it_stops() -> None:
            try:
                run_forever()
            finally:
                self._ended = True

        loop.run_forever = run_until_it_stops  # type: ignore[method-assign]
        return loop

    async def _serve(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        async with anyio.create_task_group() as self._tasks:
            started.set_result(asyncio.get_running_loop())
            await anyio.sleep_forever()


_lock = threading.Lock()
_shared: _LoopThread | None = None
_of_the_parent: list[object] = []


def _acquire() -> _LoopThread:
    """Count one lease more on the shared thread, and return it; called with the lock held."""
    global _shared  # noqa: PLW0603 - one loop per process is the point
    if _shared is None or not _shared.is_usable():
        _shared = _LoopThread()
    _shared.leases += 1
    return _shared


def _release(thread: _LoopThread) -> bool:
    """Count one lease less; return True if it was the last. Called with the lock held."""
    global _shared  # noqa: PLW0603 - one loop per process is the point
    if not thread.is_usable():
        return False
    thread.leases -= 1
    if thread.leases:
        return False
    if _shared is thread:
        _shared = None
    return True


@atexit.register
def _close_at_exit() -> None:
    if _shared is not None and _shared.is_usable():
        _shared.stop_within(EXIT_GRACE_S)


def _forget_after_fork() -> None:
    global _lock, _shared  # noqa: PLW0603 - another thread of the parent may have held the lock
    _lock = threading.Lock()
    _shared = None


os.register_at_fork(after_in_child=_forget_after_fork)


def _called_on_own_loop() -> RuntimeError:
    return RuntimeError(
        "a blocking call was made on the event loop that would have to run it: "
        "await the async twin of this method instead"
    )


def _stray_cancellation(error: BaseException) -> RuntimeError:
    stray = RuntimeError(
        "the call ended in a cancellation that the portal did not request: something that it awaited was cancelled, or "
        f"raised {type(error).__name__} itself"
    )
    stray.__cause__ = error
    return stray


def _closed_meanwhile() -> RuntimeError:
    return RuntimeError("the portal was closed before the call was done")


def _context_of_caller() -> Context:
    """Copy the caller's context variables, such as a trace; mark the loop as asyncio, since the caller's may be trio."""
    context = copy_context()
    if sniffio := sys.modules.get("sniffio"):  # how anyio tells loops apart where trio is installed
        context.run(sniffio.current_async_library_cvar.set, "asyncio")
    return context


class _End:
    """Marks the end of an iteration."""


_END = _End()


class _Wakes:
    """Lets one task wait, on the loop it was made on, for a condition that other threads make true."""

    def __init__(self) -> None:
        self._event = anyio.Event()
        self.wake = _waker(self._set)

    async def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Wait until `is_so()` returns True; it is called again after each `wake`."""
        while not is_so():
            await self._event.wait()
            self._event = anyio.Event()

    def _set(self) -> None:
        self._event.set()


def _waker(function: Callable[[], object]) -> Callable[[], None]:
    """Return a function that calls `function` soon on the loop that runs now, from any thread, without waiting."""
    try:
        post: Callable[..., object] = asyncio.get_running_loop().call_soon_threadsafe
    except RuntimeError:
        import trio

        post = trio.lowlevel.current_trio_token().run_sync_soon

    def wake() -> None:
        with suppress(RuntimeError):  # the waiting loop is gone, and the waiter with it
            post(function)

    return wake
