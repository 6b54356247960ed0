"""Ways to ask a model: `openai` over HTTP, `scripted` for tests, `offline` with no model at all."""

from __future__ import annotations
