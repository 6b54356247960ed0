"""`REPLEnv`: run cells in a guest without a root model. `Sub_RLM`: ask a model, one prompt or many.

Both keep the names and signatures that rlm-minimal made known. They block; their async forms are `RLM_REPL.abare_session`,
`aask_model` and `aask_models`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rlm._async.twins import BlockingContext
from rlm.clients.base import messages_of
from rlm.errors import ContextError, SessionClosed
from rlm.rlm_repl import RLM_REPL
from rlm.settings import SandboxSettings
from rlm.values import Call, FailedCall, Reply

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rlm.clients.base import Client, Prompt
    from rlm.clients.function import ClientFunction
    from rlm.session import RLMSession
    from rlm.values import Variable

__all__ = ["REPLEnv", "REPLResult", "Sub_RLM"]


@dataclass(frozen=True, slots=True)
class REPLResult:
    """Result of a cell.

    Attributes:
        stdout: what the cell printed.
        stderr: what it wrote to stderr, and the traceback of an exception.
        locals: each variable → its value, or a `Variable` that describes it when the value cannot be sent to the host. Nothing
            is fetched before it is read: the names are those of the first read, a value is that of its first
            access; what was not read before `REPLEnv.close` raises `SessionClosed`.
        execution_time: seconds.
    """

    stdout: str
    stderr: str
    locals: Mapping[str, Any] = field(repr=False)
    execution_time: float


class REPLEnv(BlockingContext):
    """A REPL in a guest of its own, with `context`, `llm_query` and `llm_batch`.

    Args:
        recursive_model: the model that `llm_query` calls; by default as for `RLM_REPL`.
        context_str: the context as text; or
        context_json: the context as plain Python values.
        setup_code: a cell to run first.
        client: as for `RLM_REPL`.
        api_key: the provider's key; by default `OPENAI_API_KEY`.
        base_url: any OpenAI-compatible endpoint; by default `OPENAI_BASE_URL`.
        cell_timeout_s: seconds of work a cell may take.

    Raises:
        ContextError: both contexts are given, or one of a type that cannot be sent to the guest.
        RuntimeError: the setup code raised; the message is its traceback.
    """

    def __init__(
        self,
        recursive_model: str | None = None,
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
        """Run a cell. The traceback of an exception is in `stderr`; variables assigned before it are kept.

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

    def _set_up(self, code: str) -> None:
        result = self._session.run(code)
        if result.outcome != "ok":
            raise RuntimeError(f"the setup code failed: {result.error}")


class Sub_RLM(BlockingContext):  # noqa: N801 - the name that rlm-minimal made known
    """Client for one model, through the same scheduler that serves the cells. Also a context manager.

    Args:
        model: the model to call; by default the `recursive_model` of `RLM_REPL`.
        client: as for `RLM_REPL`.
        api_key: the provider's key; by default `OPENAI_API_KEY`.
        base_url: any OpenAI-compatible endpoint; by default `OPENAI_BASE_URL`.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        client: Client | ClientFunction | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
    ) -> None:
        self._rlm = RLM_REPL(recursive_model=model, client=client, api_key=api_key, base_url=base_url)
        self.model = self._rlm.settings.recursive_model if model is None else model
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

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError("this Sub_RLM was closed: make a new one")

    def _call(self, prompt: Prompt) -> Call:
        return Call(model=self.model, messages=messages_of(prompt), role="sub")


class _Locals(Mapping[str, Any]):
    """Variables of a session, each fetched when it is first read."""

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
