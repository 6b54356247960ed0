"""The `Client` protocol, one async method, and the forms of a prompt."""

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
"""A text, which becomes a user message, or messages, each a `Message` or `{"role": …, "content": …}`."""


@runtime_checkable
class Client(Protocol):
    """Interface to the models of one provider.

    `complete` makes one attempt; retries, rate limits, caching and budgets belong to the scheduler. Many tasks of one
    event loop call it concurrently. It raises a `CallError` of `rlm.errors`, or an exception of the provider's SDK,
    which `clients.error_mapping.sdk_errors_as_call_errors` maps to one.

    A client may also have:

    - `async def aclose(self)`, called once when its owner is closed;
    - `endpoint: str`, the name of the server, which keeps the cached answers of two servers apart;
    - `only_model: str`, if it answers under one name for all models;
    - `async def available_models(self) -> tuple[str, ...]`, called once to fail fast when the server is down;
    - `stream`, see `StreamingClient`.
    """

    async def complete(self, call: Call) -> Reply:
        """Send one request and return its reply."""
        ...


@runtime_checkable
class StreamingClient(Client, Protocol):
    """Client that can also deliver an answer while it is generated."""

    def stream(self, call: Call) -> AsyncIterator[str | Reply]:
        """Send one request; yield parts of the text as they arrive, then the complete `Reply`.

        The caller closes the iterator to stop early, which must end the request.
        """
        ...


async def check_reachable(client: Client) -> None:
    """List the models of the endpoint, if the client can, to fail at once when no server answers.

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
        pass  # some endpoints do not list their models, and some keys may not


def messages_of(prompt: Prompt) -> tuple[Message, ...]:
    """Return a prompt as messages.

    Raises:
        TypeError: it is neither a text nor messages.
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
