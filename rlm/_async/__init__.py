"""Plumbing for asynchronous code: the portal for blocking callers, semaphores, closing, loading ahead."""

from __future__ import annotations
