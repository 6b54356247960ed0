"""Jobs over rows with the Batch API of a provider."""

from __future__ import annotations
