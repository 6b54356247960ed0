"""Every exception this package raises.

RLMError
 ├── SettingsError (ValueError)        a setting has a value that cannot work
 ├── ContextError (ValueError)         the context is missing, empty, unreadable or of a type that cannot be sent to the guest
 ├── MissingExtra (ImportError)        an optional dependency is not installed
 ├── SchemaError (ValueError)          a schema for answers is wrong, or uses a keyword that cannot be checked
 ├── InputError (ValueError)           rows cannot be read, or a template does not fit them
 ├── OutputError                       a file cannot be written, or would be overwritten
 ├── JournalError                      a journal cannot be written, read or understood
 │    └── JournalLocked                another process writes to this journal
 ├── JobStopped                        a job over rows ended before its last row; `.cause`
 ├── CallError                         a request to a model failed for good
 │    ├── AuthenticationFailed         the key is missing, wrong or not allowed to do this
 │    ├── UnknownModel                 the endpoint has no such model; `.available` lists what it has
 │    ├── BadRequest                   the endpoint refuses the request; sending it again changes nothing
 │    │    └── ContextTooLong          the prompt does not fit the model's window
 │    ├── QuotaExhausted               the account has no credit left; waiting does not help
 │    ├── Refused                      the provider's filter or the model declined to answer
 │    ├── OutputTruncated              the reply was cut at the output cap; `.text` is its first part
 │    ├── PromptTruncated              the endpoint read only a part of the prompt and did not say so
 │    ├── InvalidAnswer                the reply does not meet its schema, nor does the repaired one; `.text`
 │    ├── CircuitOpen                  the endpoint failed so often that calls fail without being sent; `.cause`
 │    └── TransientError               the same request may succeed later
 │         ├── RateLimited             429; `.retry_after` seconds if the provider said so
 │         ├── ServerError             5xx, 408, 409, 425
 │         ├── ConnectionFailed        no connection, or it broke
 │         ├── CallTimedOut            no complete reply within the deadline
 │         └── BadReply                not a reply: garbage, no choices, no content
 ├── LimitReached                      a limit of the run was reached; `.limit`, `.spent`, `.partial`
 │    ├── BudgetExceeded               dollars, tokens or calls
 │    └── DeadlineExceeded             wall clock
 ├── HostCallRefused                   a cell called a function of the host that it may not call
 └── SandboxError
      ├── GuestStartFailed             the guest did not start; `.log` is what it wrote
      ├── GuestDied                    the guest ended, and its variables are lost
      ├── ProtocolViolation            the guest sent a message that the protocol does not allow, and was killed
      ├── IsolationUnavailable         this machine does not support the isolation that was asked for
      └── SessionClosed                a closed session was used

Only a `TransientError` is retried. A `CallError` or `HostCallRefused` that reaches a cell is raised there as
`LLMError`; every other error ends the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from rlm.values import Usage

__all__ = [
    "AuthenticationFailed",
    "BadReply",
    "BadRequest",
    "BudgetExceeded",
    "CallError",
    "CallTimedOut",
    "CircuitOpen",
    "ConnectionFailed",
    "ContextError",
    "ContextTooLong",
    "DeadlineExceeded",
    "GuestDied",
    "GuestStartFailed",
    "HostCallRefused",
    "InputError",
    "InvalidAnswer",
    "IsolationUnavailable",
    "JobStopped",
    "JournalError",
    "JournalLocked",
    "LimitReached",
    "MissingExtra",
    "OutputError",
    "OutputTruncated",
    "PromptTruncated",
    "ProtocolViolation",
    "QuotaExhausted",
    "RLMError",
    "RateLimited",
    "Refused",
    "SandboxError",
    "SchemaError",
    "ServerError",
    "SessionClosed",
    "SettingsError",
    "TransientError",
    "UnknownModel",
]


class RLMError(Exception):
    """Root of the tree: `except RLMError` catches every error that this package raises on purpose.

    Every error of the tree can be copied and pickled with all its attributes.
    """

    def __reduce__(self) -> tuple[object, ...]:
        # By default, unpickling calls the constructor with the message alone; many constructors here need more.
        return _without_constructor, (type(self), self.args), self.__dict__


class SettingsError(RLMError, ValueError):
    """A setting has a value that cannot work; the message names the setting, the value and what to give instead."""


class ContextError(RLMError, ValueError):
    """The context is missing, empty, unreadable, or holds a type that cannot be sent to the guest."""


class MissingExtra(RLMError, ImportError):
    """An optional dependency is not installed; the message is the command that installs it."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"an extra package is needed for {feature}: pip install 'rlm-cells[{extra}]'")
        self.feature = feature
        self.extra = extra


class SchemaError(RLMError, ValueError):
    """A schema for answers is wrong, or uses a keyword that cannot be checked; the message says where."""


class InputError(RLMError, ValueError):
    """Rows cannot be read, or a template does not fit them; raised before any call."""


class OutputError(RLMError):
    """A file cannot be written, or exists and would be overwritten."""


class JournalError(RLMError):
    """A journal cannot be written, read or understood; its earlier records are unchanged."""


class JournalLocked(JournalError):
    """Another process writes to this journal."""


class JobStopped(RLMError):
    """A job over rows ended before its last row; the answers so far are in its checkpoint.

    `cause` is the error that stopped it, or None if no error did, such as after too many failed rows.
    """

    def __init__(self, message: str, *, cause: Exception | None = None) -> None:
        super().__init__(message)
        self.cause = cause


class CallError(RLMError):
    """A request to a model failed for good.

    Attributes:
        model: the model that was called, or ''.
        status: the HTTP status, or None.
        usage: what the provider billed for the failed request, or None if it did not say.
    """

    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, model: str = "", status: int | None = None, usage: Usage | None = None
    ) -> None:
        super().__init__(message)
        self.model = model
        self.status = status
        self.usage = usage


class AuthenticationFailed(CallError):
    """The key is missing, wrong, or not allowed to do this (401, 403)."""


class UnknownModel(CallError):
    """The endpoint has no such model; `available` lists the models it has, if it can list them."""

    def __init__(
        self, message: str, *, available: tuple[str, ...] = (), model: str = "", status: int | None = None
    ) -> None:
        super().__init__(message, model=model, status=status)
        self.available = available


class BadRequest(CallError):
    """The endpoint refuses the request (400, 404, 413, 422); sending it again changes nothing."""


class ContextTooLong(BadRequest):
    """The prompt does not fit the model's window."""


class QuotaExhausted(CallError):
    """The account has no credit left (429 `insufficient_quota`, 402): waiting does not help."""


class Refused(CallError):
    """The provider's filter or the model declined to answer."""


class OutputTruncated(CallError):
    """The reply was cut at the output cap (`finish_reason: length`); `text` is its first part."""

    def __init__(self, message: str, *, text: str, model: str = "", usage: Usage | None = None) -> None:
        super().__init__(message, model=model, usage=usage)
        self.text = text


class PromptTruncated(CallError):
    """The endpoint read only a part of the prompt and did not say so."""


class InvalidAnswer(CallError):
    """The reply does not meet its schema, and neither does the one after a request to repair it; `text` is the last."""

    def __init__(self, message: str, *, text: str, model: str = "", usage: Usage | None = None) -> None:
        super().__init__(message, model=model, usage=usage)
        self.text = text


class TransientError(CallError):
    """A failure after which the same request may succeed later.

    `retry_after` is the number of seconds that the provider asked to wait, or None.
    """

    retryable: ClassVar[bool] = True

    def __init__(
        self,
        message: str,
        *,
        model: str = "",
        status: int | None = None,
        usage: Usage | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, model=model, status=status, usage=usage)
        self.retry_after = retry_after


class RateLimited(TransientError):
    """The provider wants fewer requests (429)."""


class ServerError(TransientError):
    """The provider failed (5xx) or asked to try again (408, 409, 425)."""


class ConnectionFailed(TransientError):
    """No connection to the endpoint, or it broke before the reply was complete.

    `sent` is False if the request never reached the endpoint, so that nothing can have been billed.
    """

    def __init__(
        self,
        message: str,
        *,
        model: str = "",
        status: int | None = None,
        usage: Usage | None = None,
        retry_after: float | None = None,
        sent: bool = True,
    ) -> None:
        super().__init__(message, model=model, status=status, usage=usage, retry_after=retry_after)
        self.sent = sent


class CallTimedOut(TransientError):
    """No complete reply within the deadline."""


class BadReply(TransientError):
    """HTTP status 200, but not a reply: garbage, no choices, no content."""


class CircuitOpen(CallError):
    """The endpoint failed so often in a row that calls fail without being sent; `cause` is the last failure."""

    def __init__(self, message: str, *, cause: CallError, model: str = "") -> None:
        super().__init__(message, model=model)
        self.cause = cause


class LimitReached(RLMError):
    """A limit of the run was reached.

    Attributes:
        name: the unit of the limit: dollars, tokens, calls, seconds or turns.
        limit: the limit.
        spent: what was used of it.
        partial: the best answer so far, or None.
    """

    def __init__(
        self, message: str, *, name: str, limit: float, spent: float, partial: object = None
    ) -> None:
        super().__init__(message)
        self.name = name
        self.limit = limit
        self.spent = spent
        self.partial = partial


class BudgetExceeded(LimitReached):
    """The next call could cost more dollars, tokens or calls than are left, so it was not made."""


class DeadlineExceeded(LimitReached):
    """The time of the run is over."""


class HostCallRefused(RLMError):
    """A cell called a function of the host that it may not call, or with arguments that it may not use."""


class SandboxError(RLMError):
    """The guest, or the connection to it, failed."""


class GuestStartFailed(SandboxError):
    """The guest did not start; `log` is what it wrote before it ended."""

    def __init__(self, message: str, *, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class GuestDied(SandboxError):
    """The guest ended, and its variables are lost."""


class ProtocolViolation(SandboxError):
    """The guest sent a message that the protocol does not allow, and was killed."""


class IsolationUnavailable(SandboxError):
    """This machine does not support the isolation that was asked for; the message says what it supports."""


class SessionClosed(SandboxError):
    """A closed session was used."""


def _without_constructor(kind: type[RLMError], arguments: tuple[object, ...]) -> RLMError:
    return kind.__new__(kind, *arguments)
