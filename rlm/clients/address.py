"""Address and API key of an OpenAI-compatible endpoint, from arguments or the environment, checked."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from rlm.clients.chat_format import Dialect
from rlm.clients.error_mapping import redact
from rlm.errors import AuthenticationFailed, SettingsError

__all__ = ["EndpointAddress", "is_like_a_key"]

OPENAI_URL = "https://api.openai.com/v1"
OPENAI_HOST = "api.openai.com"
SHORTEST_KEY_CHARS = 20


@dataclass(frozen=True, slots=True)
class EndpointAddress:
    """URL and key of an endpoint; `name`, its host and port, is what errors and caches call it."""

    url: str
    name: str
    key: str = field(repr=False)

    @classmethod
    def of(cls, api_key: str | None, base_url: str | None) -> EndpointAddress:
        """Read the arguments, by default `OPENAI_API_KEY` and `OPENAI_BASE_URL`, else OpenAI's own URL.

        Raises:
            AuthenticationFailed: neither a key nor a URL is given, or the key holds a character that no key has.
            SettingsError: the URL is not one of a server, or holds credentials.
        """
        given_url = (base_url or os.environ.get("OPENAI_BASE_URL") or "").strip()
        key = (api_key or os.environ.get("OPENAI_API_KEY") or "").strip()
        url = given_url or OPENAI_URL
        name = _host_and_port(url)
        if not key and not given_url:
            raise AuthenticationFailed(
                "there is no API key and no endpoint: set OPENAI_API_KEY or pass api_key=; or name a server of your "
                "own with base_url= (--base-url), such as http://localhost:11434/v1; or ask without a "
                "model: RLM_REPL(client='offline'), --client offline"
            )
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise AuthenticationFailed(
                "the API key holds a character that no key has: check OPENAI_API_KEY or api_key="
            )
        return cls(url, name, key)

    @property
    def dialect(self) -> Dialect:
        """The parameters to try first: OpenAI renamed the output cap, most other servers know the old name."""
        return Dialect("max_completion_tokens" if self.name == OPENAI_HOST else "max_tokens")


def is_like_a_key(text: str) -> bool:
    """Return True if a text, such as the name given for a model, has the form of an API key."""
    return len(text) >= SHORTEST_KEY_CHARS and redact(text) == "[key]"


def _host_and_port(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = None, None, None
    if parts is None or host is None or parts.scheme not in ("http", "https"):
        raise SettingsError(f"base_url={redact(url)!r}: must be a URL such as http://localhost:11434/v1")
    if parts.username is not None:
        raise SettingsError(
            f"the base_url of {host} holds a user name, which cannot be sent beside a key: pass the key as api_key, "
            "and the URL without it"
        )
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{port}" if port else host
