"""Blocking and async methods from one body.

class Session(BlockingContext, AsyncContext):
    @on_portal
    async def aask(self, query: str) -> Answer:  # awaitable on any event loop
        ...  # this body runs on the portal's loop

    ask = blocking(aask)  # the same for callers without an event loop
"""

from __future__ import annotations

import inspect
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from rlm._async.portal import Portal

__all__ = ["AsyncContext", "BlockingContext", "blocking", "on_portal", "refuse_renamed"]

P = ParamSpec("P")
R = TypeVar("R")

RENAMED = {"question": "query", "max_concurrency": "max_concurrent"}
"""Keywords of other libraries → ours."""


class _HasPortal(Protocol):
    @property
    def _portal(self) -> Portal: ...


S = TypeVar("S", bound=_HasPortal)


def on_portal(
    body: Callable[Concatenate[S, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """Run an async method on the loop of `self._portal`; its caller may await it on any loop."""

    @wraps(body)
    async def method(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        _require_known(body, body.__name__, kwargs)
        return await self._portal.acall(partial(body, self, *args, **kwargs))

    return method


def blocking(
    method: Callable[Concatenate[S, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[S, P], R]:
    """Return the twin of a method made by `on_portal` that blocks its thread until the body is done.

    The name is that of the async method without its leading "a"; signature and docstring are the same.
    """
    body: Callable[Concatenate[S, P], Coroutine[Any, Any, R]] = inspect.unwrap(method)

    @wraps(body)
    def twin(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        _require_known(body, twin.__name__, kwargs)
        return self._portal.call(partial(body, self, *args, **kwargs))

    twin.__signature__ = inspect.signature(body)  # type: ignore[attr-defined]
    del twin.__wrapped__
    twin.__name__ = method.__name__.removeprefix("a")
    twin.__qualname__ = f"{method.__qualname__.rpartition('.')[0]}.{twin.__name__}"
    return twin


def refuse_renamed(keywords: dict[str, Any]) -> None:
    """Point from a keyword that other libraries have to ours.

    Raises:
        TypeError: one of them was given.
    """
    for theirs in RENAMED.keys() & keywords.keys():
        raise TypeError(f"{theirs}= is called {RENAMED[theirs]}= here")


def _require_known(body: Callable[..., Any], method: str, keywords: dict[str, Any]) -> None:
    if not keywords:
        return
    refuse_renamed(keywords)
    parameters = inspect.signature(body).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in keywords.keys() - parameters.keys():
        known = ", ".join(f"{one}=" for one in list(parameters)[1:]) or "none"
        raise TypeError(
            f"{method}() has no keyword {name}= (it has: {known}); options such as model= are given to "
            f"{body.__qualname__.rpartition('.')[0]}(...)"
        )


class BlockingContext:
    """A context manager that calls `close` at its end."""

    def close(self) -> None:
        """Release what the object holds."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncContext:
    """An async context manager that awaits `aclose` at its end."""

    async def aclose(self) -> None:
        """Release what the object holds."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
