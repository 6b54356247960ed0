"""A circuit breaker per model: an endpoint that is down is not sent every call, nor forever."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal, TypeAlias

import anyio

from rlm.errors import (
    AuthenticationFailed,
    CallError,
    CircuitOpen,
    QuotaExhausted,
    RateLimited,
    TransientError,
    UnknownModel,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rlm.settings import SchedulerSettings

__all__ = ["Circuit", "CircuitBreaker"]

PERMANENT_FAILURES = 3
FIRST_PROBE_S = 1.0

State: TypeAlias = Literal["closed", "waiting", "open"]


class CircuitBreaker:
    """Lets requests through while their model answers.

    After some failures in a row, one call at a time probes the endpoint while the others wait: an outage of seconds costs
    no answer. If the endpoint has not recovered within `breaker_patience_s`, all waiting calls fail with the
    original error, and so does every later call, except for a probe every `breaker_pause_s`. If waiting cannot
    help, as with a refused key, or if the endpoint has never answered, the calls fail at once.
    """

    def __init__(self, settings: SchedulerSettings) -> None:
        self._settings = settings
        self._circuits: dict[str, Circuit] = {}
        self._changed: dict[str, anyio.Event] = {}

    def ever_answered(self, model: str) -> bool:
        """Return True if this model has answered at least once."""
        return self._circuit(model).ever_answered

    @asynccontextmanager
    async def admit(self, model: str) -> AsyncIterator[None]:
        """Wait until the model may be asked; send the request inside, and its end updates the circuit.

        Raises:
            CircuitOpen: the model failed too often for too long; `.cause` is its last error.
        """
        circuit = self._circuit(model)
        probing = await self._wait(model, circuit)
        try:
            yield
        except CallError as error:
            circuit.failed(error, probing=probing, now=anyio.current_time())
            raise
        except BaseException:
            circuit.unknown(probing=probing)
            raise
        else:
            circuit.answered()
        finally:
            self._announce(model)

    async def _wait(self, model: str, circuit: Circuit) -> bool:
        while True:
            now = anyio.current_time()
            wait_s = circuit.wait(now)
            if wait_s == 0:
                return circuit.start()
            with anyio.move_on_after(wait_s):
                await self._changed.setdefault(model, anyio.Event()).wait()

    def _announce(self, model: str) -> None:
        changed = self._changed.pop(model, None)
        if changed is not None:
            changed.set()

    def _circuit(self, model: str) -> Circuit:
        circuit = self._circuits.get(model)
        if circuit is None:
            circuit = self._circuits[model] = Circuit(model, self._settings)
        return circuit


class Circuit:
    """The state of one model's circuit: closed, waiting for it to recover, or open; no clock, no I/O.

    Attributes:
        state: closed (calls pass), waiting (one probe at a time), or open (calls fail).
        ever_answered: True once the endpoint has answered.
    """

    def __init__(self, model: str, settings: SchedulerSettings) -> None:
        self.state: State = "closed"
        self.ever_answered = False
        self._model = model
        self._settings = settings
        self._failures = 0
        self._permanent = 0
        self._cause: CallError | None = None
        self._since = 0.0
        self._probing = False
        self._probe_at = 0.0
        self._probe_pause = FIRST_PROBE_S

    def wait(self, now: float) -> float:
        """Return the seconds after which to call this again; 0 means that the request may be sent.

        Raises:
            CircuitOpen: the request must not be sent.
        """
        if self.state == "closed":
            return 0.0
        if not self._probing and now >= self._probe_at:
            return 0.0
        if self.state == "waiting":
            return math.inf if self._probing else self._probe_at - now
        assert self._cause is not None, "a circuit opens because of something"  # noqa: S101 - tells mypy
        raise CircuitOpen(
            f"{self._model} was not called, because it failed {self._failures} times in a row: {self._cause}",
            cause=self._cause,
            model=self._model,
        )

    def start(self) -> bool:
        """Record that a request is sent; return True if it is the probe of a model that failed."""
        if self.state == "closed":
            return False
        self._probing = True
        return True

    def answered(self) -> None:
        """Record an answer: the endpoint works."""
        self.ever_answered = True
        self.state = "closed"
        self._failures = self._permanent = 0
        self._probing = False
        self._probe_pause = FIRST_PROBE_S

    def failed(self, error: CallError, *, probing: bool, now: float) -> None:
        """Record a failed request."""
        if isinstance(error, RateLimited):
            self._rate_limited()
        elif _is_permanent(error) or isinstance(error, TransientError):
            self._count(error, probing=probing, now=now)
        else:
            self.answered()  # the endpoint works: it refused the content of the request

    def unknown(self, *, probing: bool) -> None:
        """Record a request whose end says nothing about the endpoint."""
        if probing:
            self._probing = False

    def _rate_limited(self) -> None:
        self.ever_answered = True
        if self.state != "closed":
            self.answered()

    def _count(self, error: CallError, *, probing: bool, now: float) -> None:
        self._failures += 1
        self._permanent = self._permanent + 1 if _is_permanent(error) else 0
        self._cause = error
        if self.state == "closed":
            self._leave_closed(now)
        elif probing:
            self._probe_failed(now)

    def _leave_closed(self, now: float) -> None:
        if self._permanent >= PERMANENT_FAILURES:
            self._open(now)
        elif self._failures >= self._settings.breaker_failures:
            if not self.ever_answered:
                self._open(now)
                return
            self.state = "waiting"
            self._since = now
            self._probe_at = now + self._probe_pause

    def _probe_failed(self, now: float) -> None:
        self._probing = False
        patient = self.state == "waiting" and now - self._since < self._settings.breaker_patience_s
        if not patient or self._permanent >= PERMANENT_FAILURES:
            self._open(now)
            return
        self._probe_pause = min(self._probe_pause * 2, self._settings.breaker_pause_s)
        self._probe_at = now + self._probe_pause

    def _open(self, now: float) -> None:
        self.state = "open"
        self._probe_at = now + self._settings.breaker_pause_s


def _is_permanent(error: CallError) -> bool:
    return isinstance(error, (AuthenticationFailed, QuotaExhausted, UnknownModel))
