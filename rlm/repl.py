"""`REPLEnv`: a guest in your hand, without a root model. `Sub_RLM`: a model to ask, one prompt or many.

Both keep the names and forms that rlm-minimal made known. They block; their async forms are `RLM_REPL.abare_session`
and `RLM_REPL.aask_model`, `aask_models`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from rlm.clients.base import messages_of
from rlm.errors import ContextError, SessionClosed
from rlm.rlm_repl import RLM_REPL
from rlm.settings import SandboxSettings
from rlm.values import Call, FailedCall, Reply

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from rlm.clients.base import Client, Prompt
    from rlm.clients.function import ClientFunction
    from rlm.session import RLMSession
    from rlm.values import Variable

__all__ = ["REPLEnv", "REPLResult", "Sub_RLM"]


@dataclass(frozen=True, slots=True)
class REPLResult:
    """What a cell left behind.

    `stderr` holds the traceback too. `execution_time` is in seconds.

    `locals` maps each variable to its value, or to a `Variable` that describes it where the value cannot cross to
    the host. Nothing of it is fetched before it is looked at: the names are those at the first look, a value is the
    one at its first access, and what was not looked at before `REPLEnv.close` raises `SessionClosed`.
    """

    stdout: str
    stderr: str
    locals: Mapping[str, Any] = field(repr=False)
    execution_time: float


class REPLEnv:
    """A REPL in a guest of its own, with `context`, `llm_query` and `llm_batch`.

    Args:
        recursive_model: the model that `llm_query` asks.
        context_str: the context as text; or
        context_json: the context as plain Python values.
        setup_code: a cell to run first.
        client, api_key, base_url, cell_timeout_s: as for `RLM_REPL`.

    Raises:
        ContextError: both contexts are given, or one of a type that cannot cross.
        RuntimeError: the setup code raised; the message is its traceback.
    """

    def __init__(
        self,
        recursive_model: str = "gpt-5-nano",
        context_str: str | None = None,
        context_json: Any = None,
        setup_code: str | None = None,
        *,
        client: Client | ClientFunction | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        cell_timeout_s: float = SandboxSettings().cell_timeout_s,
    ) -> None:
        if context_str is not None and context_json is not None:
            raise ContextError("give context_str or context_json, not both")
        self._closed = False
        self._rlm = RLM_REPL(
            recursive_model=recursive_model,
            client=client,
            api_key=api_key,
            base_url=base_url,
            cell_timeout_s=cell_timeout_s,
        )
        try:
            self._session = self._rlm.bare_session(context_json if context_str is None else context_str)
            if setup_code is not None:
                self._set_up(setup_code)
        except BaseException:
            self._rlm.close()
            raise

    def code_execution(self, code: str) -> REPLResult:
        """Run a cell; an exception in it is told in `stderr`, and the variables before it are kept.

        Raises:
            SessionClosed: after `close`.
        """
        if self._closed:
            raise SessionClosed("this REPLEnv was closed: make a new one")
        result = self._session.run(code)
        return REPLResult(
            stdout=result.stdout,
            stderr="\n".join(filter(None, (result.stderr, result.error))),
            locals=_Locals(self._session),
            execution_time=result.execution_time,
        )

    def close(self) -> None:
        """End the guest. Idempotent."""
        self._closed = True
        self._session.close()
        self._rlm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _set_up(self, code: str) -> None:
        result = self._session.run(code)
        if result.outcome != "ok":
            raise RuntimeError(f"the setup code failed: {result.error}")


class Sub_RLM:  # noqa: N801 - the name that rlm-minimal made known
    """A model to ask from a script, through the same scheduler that serves the cells. Also a context manager.

    Args:
        model: the model to ask.
        client, api_key, base_url: as for `RLM_REPL`.
    """

    def __init__(
        self,
        model: str = "gpt-5-nano",
        *,
        client: Client | ClientFunction | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
    ) -> None:
        self.model = model
        self._rlm = RLM_REPL(recursive_model=model, client=client, api_key=api_key, base_url=base_url)
        self._closed = False

    def completion(self, prompt: Prompt) -> str:
        """Ask once: a text, or messages.

        Raises:
            CallError: the call failed for good.
            TypeError: the prompt is neither text nor messages.
            RuntimeError: after `close`.
        """
        self._require_open()
        return self._rlm.ask_model(self._call(prompt)).text

    def batch_completion(self, prompts: Iterable[Prompt], max_concurrent: int = 10) -> list[str]:
        """Ask many prompts at once; answers in order. A slot that failed is a `FailedCall`: falsy, with `.error`.

        Raises:
            SettingsError: `max_concurrent` is below 1.
            TypeError: the prompts are a single text, or one of them is no prompt.
        """
        if isinstance(prompts, str):
            raise TypeError("batch_completion takes many prompts and was given one text: put it in a list")
        self._require_open()
        calls = [self._call(prompt) for prompt in prompts]
        replies = self._rlm.ask_models(calls, max_concurrent=max_concurrent)
        return [reply.text if isinstance(reply, Reply) else FailedCall(reply) for reply in replies]

    def close(self) -> None:
        """Close connections. Idempotent."""
        self._closed = True
        self._rlm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError("this Sub_RLM was closed: make a new one")

    def _call(self, prompt: Prompt) -> Call:
        return Call(model=self.model, messages=messages_of(prompt), role="sub")


class _Locals(Mapping[str, Any]):
    """The variables of a session, each fetched when it is first looked at."""

    def __init__(self, session: RLMSession) -> None:
        self._session = session
        self._values: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            described = self._described[name]
            try:
                self._values[name] = self._session.fetch(name)
            except (ContextError, KeyError):  # it cannot cross, or a later cell deleted it
                self._values[name] = described
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._described)

    def __len__(self) -> int:
        return len(self._described)

    def __contains__(self, name: object) -> bool:
        return name in self._described

    @cached_property
    def _described(self) -> dict[str, Variable]:
        return {variable.name: variable for variable in self._session.variables()}
