"""The `Client` protocol: the one thing a provider must offer, one async method; and what a prompt may be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from rlm.errors import CallError, ConnectionFailed
from rlm.values import Message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rlm.values import Call, Reply

__all__ = ["Client", "Prompt", "StreamingClient", "check_reachable", "messages_of"]

Prompt: TypeAlias = "str | Iterable[Message | Mapping[str, str]]"
"""A text, which becomes a user message, or messages as values or as `{"role": …, "content": …}`."""


@runtime_checkable
class Client(Protocol):
    """Answers calls.

    `complete` makes one attempt and raises a `CallError` where it fails: retries, limits, caches and budgets are
    the scheduler's, which is itself a `Client`. It is called from many tasks of one event loop at once. A client
    may also have `async def aclose(self)`, called once when its owner is closed; `endpoint: str`, which names where
    it asks, so that stored answers of two endpoints are never mixed up; `only_model: str`, the one name it answers
    under, whatever model is asked for; and `async def available_models(self) -> tuple[str, ...]`.
    """

    async def complete(self, call: Call) -> Reply:
        """Ask the model once."""
        ...


@runtime_checkable
class StreamingClient(Client, Protocol):
    """A client that can also give an answer as it is written."""

    def stream(self, call: Call) -> AsyncIterator[str | Reply]:
        """Ask the model once and yield its text piece by piece, at last the whole `Reply`.

        It is left early only by closing it, which ends the request.
        """
        ...


async def check_reachable(client: Client) -> None:
    """List the models of the endpoint, where the client can, to fail at once when no server answers.

    Raises:
        ConnectionFailed: no server answers at the endpoint.
    """
    available_models = getattr(client, "available_models", None)
    if available_models is None:
        return
    try:
        await available_models()
    except ConnectionFailed:
        raise
    except CallError:
        pass  # not every endpoint lists its models, nor every key may ask


def messages_of(prompt: Prompt) -> tuple[Message, ...]:
    """The messages that a prompt stands for.

    Raises:
        TypeError: it is neither text nor messages.
    """
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    if isinstance(prompt, (Message, Mapping)):
        return (_message(prompt),)
    if not isinstance(prompt, Iterable):
        raise TypeError(f"a prompt is a text or messages, not {prompt!r:.200}")
    return tuple(_message(message) for message in prompt)


def _message(message: object) -> Message:
    if isinstance(message, Message):
        return message
    if isinstance(message, Mapping):
        role, content = message.get("role"), message.get("content")
        if role in ("system", "user", "assistant") and isinstance(content, str):
            return Message(role, content)
    shown: Any = dict(message) if isinstance(message, Mapping) else message
    raise TypeError(
        f"a message is a dict with a role (system, user, assistant) and a text as content, not {shown!r:.200}"
    )
