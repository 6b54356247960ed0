"""A client given by the user: an object with `complete`, or a plain async function, checked when it is given."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from rlm.clients.error_mapping import redact
from rlm.errors import SettingsError
from rlm.values import Reply

if TYPE_CHECKING:
    from rlm.clients.base import Client
    from rlm.values import Call

__all__ = ["ClientFunction", "FunctionClient", "as_client"]

ClientFunction: TypeAlias = Callable[[list[dict[str, str]], str], Awaitable[str | Reply]]
"""`async def ask(messages, model)`: messages as `{"role": …, "content": …}`, returns the answer's text or a `Reply`."""

ACCEPTED = "pass an async function, `async def ask(messages, model) -> str`, or an object with `async def complete(call)`"


class FunctionClient:
    """Client that answers each call with an async function.

    The function gets the messages as a new list of `{"role": …, "content": …}` dicts, as provider SDKs take them, and
    the name of the model. It makes one attempt and raises when it fails; see `sdk_errors_as_call_errors` for the
    errors that are retried. A function that returns a `str` reports no token counts, so they are estimated; one that
    returns a `Reply` may report them, the finish reason and the cost. It sees no temperature, output cap or schema:
    a client that needs these implements `complete(call)`.
    """

    def __init__(self, function: ClientFunction) -> None:
        self._function = function

    def __repr__(self) -> str:
        return f"{type(self).__name__}({_name(self._function)})"

    async def complete(self, call: Call) -> Reply:
        """Call the function.

        Raises:
            SettingsError: it returned neither a `str` nor a `Reply`.
            Exception: raised by the function.
        """
        messages = [{"role": message.role, "content": message.content} for message in call.messages]
        answer: object = await self._function(
            messages, call.model
        )  # may return anything, in spite of its type
        if isinstance(answer, Reply):
            return answer if answer.model else replace(answer, model=call.model)
        if isinstance(answer, str):
            return Reply(text=answer, model=call.model)
        raise SettingsError(
            f"client={_name(self._function)} returned {redact(repr(answer))[:200]}: it must return the text of the answer as a str, "
            "or a Reply"
        )


def as_client(value: Client | ClientFunction) -> Client:
    """Return the client itself, or one made of an async function.

    Raises:
        SettingsError: it is neither; the message says what to pass.
    """
    given: Any = value  # may be anything, in spite of its type
    if isinstance(given, type):
        raise SettingsError(
            f"client={given.__name__} is a class: pass an instance, client={given.__name__}(...)"
        )
    if (complete := getattr(given, "complete", None)) is not None:
        if not _is_async(complete):
            raise SettingsError(f"client={_name(given)}: its `complete` is no async function: {ACCEPTED}")
        return value  # type: ignore[return-value]
    if not callable(given):
        raise SettingsError(f"client={redact(repr(given))[:200]} has no method `complete`: {ACCEPTED}")
    if not _is_async(given):
        raise SettingsError(f"client={_name(given)} is no async function: {ACCEPTED}")
    try:
        inspect.signature(given).bind([], "a model")
    except TypeError as error:
        raise SettingsError(f"client={_name(given)} does not take (messages, model): {ACCEPTED}") from error
    return FunctionClient(given)


def _is_async(function: Any) -> bool:
    """Return True for an async function, a partial of one, a decorated one, or an object with async `__call__`."""
    function = inspect.unwrap(function)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _name(value: Any) -> str:
    return str(getattr(value, "__qualname__", None) or type(value).__name__)
