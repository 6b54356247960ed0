"""The one bridge between blocking callers and the event loop.

Everything below the facade is async. A caller that is not, or that runs a loop of its own, crosses here:

    with lease() as portal:
        portal.call(function, argument)             # blocks this thread only
        await portal.acall(function, argument)      # from any asyncio or trio loop, which it never blocks

All leases of a process share one daemon thread with one event loop, so connections outlive a call, and no call
costs a thread. The thread starts with the first call and ends with the last lease. A process that never closes
its leases has them closed at exit: what is still running is cancelled, and may clean up.

After `os.fork` the child has no thread; a lease it inherited, like a new one, gets it a thread of its own at the
next call. What was made on the parent's loop (connections, processes, locks) stays the parent's: the child must
neither use nor close it, but `leave_to_parent`, and whoever holds such a thing has to make it anew there.

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
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, TypeVarTuple, Unpack

import anyio
import anyio.to_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from contextvars import Context
    from types import TracebackType

__all__ = ["Portal", "lease", "leave_to_parent"]

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

EXIT_GRACE_S = 5.0
"""How long the interpreter waits at exit for cancelled tasks to clean up, in seconds."""


def lease(when_closed: str = "this portal is closed") -> Portal:
    """A new lease on the process's loop thread, which starts with the first call. Close it, or use `with`.

    Args:
        when_closed: what to say to whoever uses it after `close`, in words of the one who holds it.
    """
    return Portal(when_closed)


def leave_to_parent(*things: object) -> None:
    """In a forked child: never touch these again, and let no finalizer do so either.

    Finalizers of transports and processes act on what is shared with the parent: they unregister its files from
    its selector and kill its guests.
    """
    _of_the_parent.extend(things)


class Portal:
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
        job = thread.submit(function, arguments)
        try:
            return job.outcome.result()
        except BaseException:
            # An exception of the job itself also passes here; its job is done, so there is nothing to cancel.
            thread.cancel_and_wait(job)
            job.forget()
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
        job = thread.submit(function, arguments)
        job.outcome.add_done_callback(lambda _: wake())
        try:
            await done.wait()
        except BaseException:
            thread.cancel(job)
            with anyio.CancelScope(shield=True):
                await done.wait()
            job.forget()
            raise
        return job.outcome.result()

    async def afinish(
        self, function: Callable[[Unpack[Arguments]], Awaitable[T]], *arguments: *Arguments
    ) -> T:
        """Run `function(*arguments)` to its end in a task of its own, whatever becomes of the one that waits.

        For closing things, which may be asked for by the very task that the closing has to cancel and await: on
        the portal's own loop the waiting can be cancelled, and the function goes on. On other loops it cannot.

        Raises:
            RuntimeError: as `acall`.
        """
        with anyio.CancelScope(shield=True):
            thread = await self._usable_thread()
        done = anyio.Event()
        wake = _waker(done.set)
        job = thread.submit(function, arguments)
        job.outcome.add_done_callback(lambda _: wake())
        with anyio.CancelScope(shield=not thread.is_current()):
            await done.wait()
        return job.outcome.result()

    def start(
        self, function: Callable[[Unpack[Arguments]], Awaitable[object]], *arguments: *Arguments
    ) -> None:
        """Start `function(*arguments)` on the portal's loop and wait for nothing; the loop's end cancels it.

        Raises:
            RuntimeError: after `close`.
        """
        thread = self._thread
        if thread is None or not thread.is_usable():
            thread = self._running_thread()
        thread.submit(function, arguments)

    def post(self, function: Callable[[], object]) -> None:
        """Call a plain function soon on the portal's loop, from wherever, such as a finalizer; takes no lock.

        Where there is no loop (any more, or in this process), nothing is called.
        """
        thread = self._thread
        if thread is not None and thread.is_usable():
            thread.post(function)

    def require_another_thread(self) -> None:
        """Find out, before anything is done, whether blocking here would wait for itself.

        Raises:
            RuntimeError: this is the portal's own loop.
        """
        thread = self._thread
        if thread is not None and thread.is_current():
            raise _called_on_own_loop()

    def iterate(self, produce: Callable[[Callable[[T], None]], Awaitable[object]]) -> Iterator[T]:
        """Run `produce(put)` on the portal's loop and yield, in this thread, whatever it puts.

        Leaving the iteration early cancels `produce` and waits until it has cleaned up. An exception it raises is
        raised here, after all that was put before.

        Raises:
            RuntimeError: as `call`.
        """
        thread = self._running_thread()
        if thread.is_current():
            raise _called_on_own_loop()
        made: SimpleQueue[T | _End] = SimpleQueue()
        job = thread.submit(produce, (made.put,))
        job.outcome.add_done_callback(lambda _: made.put(_END))
        try:
            while not isinstance(item := made.get(), _End):
                yield item
        finally:
            thread.cancel_and_wait(job)
        job.outcome.result()

    async def aiterate(self, produce: Callable[[Callable[[T], None]], Awaitable[object]]) -> AsyncIterator[T]:
        """Run `produce(put)` on the portal's loop and yield, on any other loop, whatever it puts; see `iterate`.

        Leave it early only through `contextlib.aclosing`, which waits for the cleaning up.
        """
        made: deque[T] = deque()
        wakes = _Wakes()

        def put(item: T) -> None:
            made.append(item)
            wakes.wake()

        thread = await self._usable_thread()
        job = thread.submit(produce, (put,))
        job.outcome.add_done_callback(lambda _: wakes.wake())
        try:
            while made or not job.outcome.done():
                while made:
                    yield made.popleft()
                await wakes.wait_until(lambda: bool(made) or job.outcome.done())
        finally:
            thread.cancel(job)
            with anyio.CancelScope(shield=True):
                await wakes.wait_until(job.outcome.done)
        job.outcome.result()

    def close(self) -> None:
        """Give the lease back; the last one out cancels what still runs, and ends the thread. Idempotent."""
        with _lock:
            thread, self._thread = self._thread, None
            self._closed = True
            last_out = thread is not None and _give_back(thread)
        if thread is not None and last_out:
            thread.stop()

    async def aclose(self) -> None:
        """Like `close`, without blocking the loop it is called on."""
        thread = self._thread
        if thread is not None and thread.is_current():
            self.close()  # which does not wait here: the loop ends when this task lets it
            return
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def _usable_thread(self) -> _LoopThread:
        """The thread, started off this loop where it has to be started."""
        thread = self._thread
        if self._closed or thread is None or not thread.is_usable():
            return await anyio.to_thread.run_sync(self._running_thread)
        return thread

    def _running_thread(self) -> _LoopThread:
        with _lock:
            if self._closed:
                raise RuntimeError(self._when_closed)
            if self._thread is None or not self._thread.is_usable():
                self._thread = _take()
            return self._thread


class _Job(Generic[T]):
    """One function on its way through the loop; `outcome` is resolved when its task has ended, not before."""

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
                ):  # this job or the whole loop was cancelled
                    self.fail(RuntimeError("the call was cancelled because its portal was closed"))
                    raise
                # Passed on, it would end the task group, and with it the calls of everybody else.
                self.fail(_stray_cancellation(error))
            except BaseException as error:  # noqa: BLE001 - the border to another thread: all of it belongs to the caller
                self.fail(error)
            else:
                if not self.outcome.done():
                    self.outcome.set_result(result)

    def cancel(self) -> None:
        self._cancelled = True
        if self._scope is not None:
            self._scope.cancel()

    def forget(self) -> None:
        """Let go of a result that came too late for anybody to take it; in a cycle, it would live on for a while."""
        self.outcome = Future()

    def fail(self, error: BaseException) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(error)


class _LoopThread:
    """A daemon thread with an event loop, and the jobs on it. `leases` is guarded by the module's lock."""

    def __init__(self) -> None:
        self.leases = 0
        self._process = os.getpid()
        self._jobs: set[_Job[Any]] = set()
        self._stopping = False
        self._ended = False
        self._tasks: anyio.abc.TaskGroup
        started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="rlm-portal", daemon=True)
        self._thread.start()
        self._loop = started.result()

    def submit(self, function: Callable[..., Awaitable[T]], arguments: tuple[Any, ...]) -> _Job[T]:
        job = _Job(function, arguments)
        self._jobs.add(job)
        job.outcome.add_done_callback(lambda _: self._jobs.discard(job))
        if not self.post(self._start, job):
            job.fail(_closed_meanwhile())
        return job

    def cancel(self, job: _Job[Any]) -> None:
        self.post(job.cancel)

    def cancel_and_wait(self, job: _Job[Any]) -> None:
        """Cancel the job and block until it has cleaned up, where it has not ended.

        A generator may be collected on any thread, this one included, which would wait for itself: there the
        job is only cancelled.
        """
        if not job.outcome.done():
            self.cancel(job)
            if not self.is_current():
                job.outcome.exception()

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
        """Whether the thread is there: it is not in a forked child, nor after its loop has ended."""
        return self._process == os.getpid() and not self._ended

    def post(self, function: Callable[..., object], *arguments: object) -> bool:
        try:
            self._loop.call_soon_threadsafe(function, *arguments, context=_context_of_caller())
        except RuntimeError:  # the loop is closed
            return False
        return True

    def _start(self, job: _Job[Any]) -> None:
        if self._stopping:
            job.fail(_closed_meanwhile())
        else:
            try:
                self._tasks.start_soon(job.run)
            except RuntimeError:  # the task group has ended, and the loop is about to
                job.fail(_closed_meanwhile())

    def _stop(self) -> None:
        self._stopping = True
        self._tasks.cancel_scope.cancel()

    def _run(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        try:
            anyio.run(self._serve, started, backend_options={"loop_factory": self._new_loop})
        except BaseException as error:  # noqa: BLE001 - the thread's border: whoever waits for it must hear
            if not started.done():
                started.set_exception(error)
        finally:
            self._ended = True
            for job in list(self._jobs):
                job.fail(_closed_meanwhile())

    def _new_loop(self) -> asyncio.AbstractEventLoop:
        """Make a loop that marks this thread as unusable at the moment it stops.

        When a callback raises SystemExit, asyncio first leaves `run_forever` and only then cancels the tasks. A caller
        whose job is cancelled there may call again at once, and must not be given the loop that is ending.
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


def _take() -> _LoopThread:
    """One more lease on the shared thread; called with the lock held."""
    global _shared  # noqa: PLW0603 - one loop per process is the point
    if _shared is None or not _shared.is_usable():
        _shared = _LoopThread()
    _shared.leases += 1
    return _shared


def _give_back(thread: _LoopThread) -> bool:
    """One lease less; whether it was the last. Called with the lock held."""
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


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


def _called_on_own_loop() -> RuntimeError:
    return RuntimeError(
        "a blocking call was made on the event loop that would have to answer it: "
        "await the async twin of this method instead"
    )


def _stray_cancellation(error: BaseException) -> RuntimeError:
    stray = RuntimeError(
        "the call ended in a cancellation that nobody here asked for: something that it awaited was cancelled, or "
        f"raised {type(error).__name__} by itself"
    )
    stray.__cause__ = error
    return stray


def _closed_meanwhile() -> RuntimeError:
    return RuntimeError("the portal was closed before the call was done")


def _context_of_caller() -> Context:
    """The caller's context variables, such as a trace, corrected where they say that this is a trio loop."""
    context = copy_context()
    if sniffio := sys.modules.get("sniffio"):  # how anyio tells loops apart where trio is installed
        context.run(sniffio.current_async_library_cvar.set, "asyncio")
    return context


class _End:
    """Stands after the last item of an iteration."""


_END = _End()


class _Wakes:
    """Lets one task wait, on the loop it was made on, for what other threads bring about."""

    def __init__(self) -> None:
        self._event = anyio.Event()
        self.wake = _waker(self._set)

    async def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Wait until `is_so()`, which is asked again after each `wake`."""
        while not is_so():
            await self._event.wait()
            self._event = anyio.Event()

    def _set(self) -> None:
        self._event.set()


def _waker(function: Callable[[], object]) -> Callable[[], None]:
    """What calls `function` soon on the loop that runs now, from any thread, without waiting for it."""
    try:
        post: Callable[..., object] = asyncio.get_running_loop().call_soon_threadsafe
    except RuntimeError:
        import trio

        post = trio.lowlevel.current_trio_token().run_sync_soon

    def wake() -> None:
        with suppress(RuntimeError):  # the waiting loop is gone, and the waiter with it
            post(function)

    return wake
