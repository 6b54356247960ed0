"""OpenAI's Batch API: files of requests that are answered within a day, at half the price.

`OpenAIBatches` uploads a file, starts a batch of it, asks how it is, and reads its results line by line. What goes
into the files and what comes of the lines is `bulk/batch_api.py`'s. The format is the one of
https://platform.openai.com/docs/api-reference/batch.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import anyio
import anyio.to_thread

from rlm.clients.chat_format import Dialect
from rlm.clients.error_mapping import call_error, read_failure, redact
from rlm.clients.openai import AsyncOpenAIClient
from rlm.errors import BadReply, BadRequest, ConnectionFailed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

    import openai

__all__ = ["BatchState", "OpenAIBatches"]

URL: Final = "/v1/chat/completions"
TAG: Final = "rlm_tag"
OURS_AMONG: Final = 1_000
"""How many of the account's latest batches are searched for one whose number was lost."""
ENDED: Final = frozenset({"completed", "expired", "cancelled", "failed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchState:
    """How a batch is; the files are there when it has ended, each only where it has lines.

    `code` and `problem` say why a batch failed as a whole.
    """

    id: str
    status: str
    output_file: str | None = None
    error_file: str | None = None
    code: str = ""
    problem: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.status in ENDED


class OpenAIBatches:
    """Batches at one endpoint; an async context manager. Small failures are asked again by the openai package.

    Args:
        api_key: by default `OPENAI_API_KEY`.
        base_url: by default `OPENAI_BASE_URL`, else OpenAI.
        timeout_s: seconds one request to the API may take; an upload is one.
    """

    def __init__(
        self, *, api_key: str | None = None, base_url: str | None = None, timeout_s: float = 600.0
    ) -> None:
        # The client's way to read key and endpoint, and its checks; nothing is sent through it.
        self._settings = AsyncOpenAIClient(api_key=api_key, base_url=base_url, timeout_s=timeout_s)
        self.endpoint = self._settings.endpoint
        self._timeout_s = timeout_s
        self._sdk: openai.AsyncOpenAI | None = None

    async def __aenter__(self) -> Self:
        self._sdk = await anyio.to_thread.run_sync(self._build)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._sdk is not None:
            with anyio.CancelScope(shield=True):
                await self._sdk.close()
            self._sdk = None

    @property
    def dialect(self) -> Dialect:
        """The parameters that requests are written with."""
        return Dialect("max_completion_tokens" if self.endpoint == "api.openai.com" else "max_tokens")

    async def start(self, path: Path, tag: str) -> BatchState:
        """Upload a file of requests and start a batch of it; `tag` finds it again.

        Raises:
            CallError: the endpoint refuses, or cannot be reached.
        """
        with self._errors_of_ours():
            uploaded = await self._client.files.create(file=path, purpose="batch")
            batch = await self._client.batches.create(
                input_file_id=uploaded.id,
                endpoint=URL,
                completion_window="24h",
                metadata={TAG: tag},
            )
        return _state(batch)

    async def find(self, tag: str) -> BatchState | None:
        """The batch with this tag, or None where it was never started.

        Raises:
            CallError: the endpoint refuses, or cannot be reached.
        """
        with self._errors_of_ours():
            seen = 0
            async for batch in self._client.batches.list(limit=100):
                if (batch.metadata or {}).get(TAG) == tag:
                    return _state(batch)
                seen += 1
                if seen >= OURS_AMONG:
                    break
        return None

    async def look(self, batch_id: str) -> BatchState:
        """How a batch is now; asked once, since whoever waits for it looks again.

        Raises:
            CallError: the endpoint refuses, or cannot be reached; its `status` is 404 where there is no such batch.
        """
        with self._errors_of_ours(f"batch {batch_id}"):
            return _state(await self._client.with_options(max_retries=0).batches.retrieve(batch_id))

    async def cancel(self, batch_id: str) -> BatchState:
        """Ask for the end of a batch; what is answered by then is still to be had, and to be paid for.

        Raises:
            CallError: the endpoint refuses, or cannot be reached.
        """
        with self._errors_of_ours():
            return _state(await self._client.batches.cancel(batch_id))

    async def lines(self, file_id: str) -> AsyncGenerator[dict[str, Any], None]:
        """The lines of a file of results, as they come, but for those that are no JSON objects.

        Raises:
            CallError: the endpoint refuses, cannot be reached, or broke off in the middle of a line; its `status` is
                404 where there is no such file any more.
        """
        rest = b""
        with self._errors_of_ours(f"file {file_id}"):
            async with self._client.files.with_streaming_response.content(file_id) as response:
                # Not `iter_lines`, which takes for the end of a line what JSON may hold: U+2028 and its like.
                async for data in response.iter_bytes():
                    *whole, rest = (rest + data).split(b"\n")
                    for text in whole:
                        if (line := _line(text)) is not None:
                            yield line
        if rest.strip():
            if (line := _line(rest)) is None:
                raise BadReply(f"{self.endpoint} broke off in a result of a batch: {redact(repr(rest[:80]))}")
            yield line

    @property
    def _client(self) -> openai.AsyncOpenAI:
        if self._sdk is None:
            raise RuntimeError("OpenAIBatches is used inside of `async with`")
        return self._sdk

    def _build(self) -> openai.AsyncOpenAI:
        """In a thread: it imports the package and reads the trusted certificates."""
        import openai

        settings = self._settings
        key, url = settings._key or "none", settings._url  # noqa: SLF001 - this is a part of the same client
        return openai.AsyncOpenAI(api_key=key, base_url=url, timeout=self._timeout_s, max_retries=5)

    @contextmanager
    def _errors_of_ours(self, wanted: str = "") -> Iterator[None]:
        import httpx2
        import openai

        try:
            yield
        except openai.NotFoundError as error:
            if not wanted:
                raise BadRequest(f"{self.endpoint} has no Batch API there (404)", status=404) from error
            raise BadRequest(
                f"{self.endpoint} has no {wanted} (404): it is another account's, or was removed", status=404
            ) from error
        except openai.APIStatusError as error:
            failure = read_failure(error.status_code, error.body, error.response.headers)
            raise call_error(failure, "batches", self.endpoint) from error
        except (openai.OpenAIError, httpx2.HTTPError) as error:  # the latter where results break off
            raise ConnectionFailed(
                f"no answer from {self.endpoint} about a batch: {redact(str(error))}"
            ) from error


def _state(batch: Any) -> BatchState:
    errors = (batch.errors.data or []) if batch.errors is not None else []
    first = errors[0] if errors else None
    return BatchState(
        id=batch.id,
        status=batch.status,
        output_file=batch.output_file_id,
        error_file=batch.error_file_id,
        code=str(first.code or "") if first is not None else "",
        problem=redact(str(first.message or "")) if first is not None else "",
    )


def _line(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) else None
