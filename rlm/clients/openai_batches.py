"""OpenAI's Batch API: files of requests that are answered within a day, at half the price.

`OpenAIBatches` uploads a file, starts a batch of it, retrieves its state, and reads its results line by line.
`bulk/batch_api` writes the files and interprets the lines. The format is specified at
https://platform.openai.com/docs/api-reference/batch.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import anyio
import anyio.to_thread

from rlm.clients.address import EndpointAddress
from rlm.clients.error_mapping import call_error, failure_in, redact
from rlm.clients.transport import NO_KEY
from rlm.errors import BadReply, BadRequest, ConnectionFailed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

    import openai

    from rlm.clients.chat_format import Dialect

__all__ = ["BatchState", "OpenAIBatches"]

URL: Final = "/v1/chat/completions"
TAG: Final = "rlm_tag"
SEARCHED_BATCHES: Final = 1_000
"""How many of the account's latest batches `find` reads."""
ENDED: Final = frozenset({"completed", "expired", "cancelled", "failed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchState:
    """State of a batch. Once it has ended, each file that has lines is set.

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
        """True once no more results will come."""
        return self.status in ENDED


class OpenAIBatches:
    """Client of the Batch API at one endpoint; an async context manager. The openai package retries transient errors.

    Args:
        api_key: by default `OPENAI_API_KEY`.
        base_url: by default `OPENAI_BASE_URL`, else OpenAI.
        timeout_s: limit of seconds for each request to the API; an upload is one request.
    """

    def __init__(
        self, *, api_key: str | None = None, base_url: str | None = None, timeout_s: float = 600.0
    ) -> None:
        self._address = EndpointAddress.of(api_key, base_url)
        self.endpoint = self._address.name
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
        """The parameters that request bodies are written with."""
        return self._address.dialect

    async def start(self, path: Path, tag: str) -> BatchState:
        """Upload a file of requests and start a batch of it, which `find` finds by its `tag`.

        Raises:
            CallError: the endpoint refuses, or cannot be reached.
        """
        with self._mapped_errors():
            uploaded = await self._client.files.create(file=path, purpose="batch")
            batch = await self._client.batches.create(
                input_file_id=uploaded.id,
                endpoint=URL,
                completion_window="24h",
                metadata={TAG: tag},
            )
        return _state(batch)

    async def find(self, tag: str) -> BatchState | None:
        """Return the batch with this tag, or None if none was started.

        Raises:
            CallError: the endpoint refuses, or cannot be reached.
        """
        with self._mapped_errors():
            seen = 0
            async for batch in self._client.batches.list(limit=100):
                if (batch.metadata or {}).get(TAG) == tag:
                    return _state(batch)
                seen += 1
                if seen >= SEARCHED_BATCHES:
                    break
        return None

    async def retrieve(self, batch_id: str) -> BatchState:
        """Return the current state of a batch. Makes one request without retries, since the caller polls.

        Raises:
            CallError: the endpoint refuses, or cannot be reached; its `status` is 404 if there is no such batch.
        """
        with self._mapped_errors(f"batch {batch_id}"):
            return _state(await self._client.with_options(max_retries=0).batches.retrieve(batch_id))

    async def cancel(self, batch_id: str) -> BatchState:
        """Request the end of a batch; requests answered before it are still delivered and billed.

        Raises:
            CallError: the endpoint refuses, or cannot be reached.
        """
        with self._mapped_errors():
            return _state(await self._client.batches.cancel(batch_id))

    async def lines(self, file_id: str) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the lines of a result file as they arrive, without those that are no JSON objects.

        Raises:
            CallError: the endpoint refuses, cannot be reached, or breaks off in the middle of a line; its `status` is
                404 if the file does not exist any more.
        """
        rest = b""
        with self._mapped_errors(f"file {file_id}"):
            async with self._client.files.with_streaming_response.content(file_id) as response:
                # `iter_lines` would also split at characters that JSON strings may hold, such as U+2028.
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
            raise RuntimeError("use OpenAIBatches inside of `async with`")
        return self._sdk

    def _build(self) -> openai.AsyncOpenAI:
        """Build the SDK client, in a thread: this imports the package and reads the trusted certificates."""
        import openai

        return openai.AsyncOpenAI(
            api_key=self._address.key or NO_KEY,
            base_url=self._address.url,
            timeout=self._timeout_s,
            max_retries=5,
        )

    @contextmanager
    def _mapped_errors(self, wanted: str = "") -> Iterator[None]:
        import httpx2
        import openai

        try:
            yield
        except openai.NotFoundError as error:
            if not wanted:
                raise BadRequest(f"{self.endpoint} has no Batch API there (404)", status=404) from error
            raise BadRequest(
                f"{self.endpoint} has no {wanted} (404): it belongs to another account, or was removed",
                status=404,
            ) from error
        except openai.APIStatusError as error:
            raise call_error(failure_in(error.response), "batches", self.endpoint) from error
        except (openai.OpenAIError, httpx2.HTTPError) as error:  # the latter when results break off
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
