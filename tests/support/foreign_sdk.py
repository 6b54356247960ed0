"""A fake SDK of a provider that this package does not know, with errors shaped like those of real SDKs."""

from __future__ import annotations

from types import SimpleNamespace


class ForeignError(Exception):
    """Base class, like `anthropic.APIError`."""


def with_status_code(status, message="oh", **headers):
    """`anthropic.APIStatusError`: `status_code`, a response with headers, a parsed body."""
    error = ForeignError(f"Error code: {status} - {message}")
    error.status_code = status
    error.response = SimpleNamespace(status_code=status, headers=headers)
    error.body = {"type": "error", "error": {"type": "some_error", "message": message}}
    return error


def with_code(status, message="oh"):
    """`google.genai.errors.APIError`: the number is in `code`, and `status` is a word."""
    error = ForeignError(f"{status} RESOURCE_EXHAUSTED. {message}")
    error.code, error.status = status, "RESOURCE_EXHAUSTED"
    return error


def with_status(status, message="oh", **headers):
    """`aiohttp.ClientResponseError`: `status` and `headers` of the error itself."""
    error = ForeignError(message)
    error.status, error.headers = status, headers
    return error


def with_response(status, message="oh", **headers):
    """`httpx.HTTPStatusError`: only the response knows the number."""
    error = ForeignError(message)
    error.response = SimpleNamespace(status_code=status, headers=headers)
    return error


def caused_by(cause, message="Connection error."):
    """`anthropic.APIConnectionError`: the reason is the cause of the cause."""
    middle = ForeignError("All connection attempts failed")
    middle.__cause__ = cause
    error = ForeignError(message)
    error.__cause__ = middle
    return error
