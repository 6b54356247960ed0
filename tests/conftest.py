from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend():
    """Tests marked `anyio` run on asyncio, the backend of the portal, unless they ask for another."""
    return "asyncio"


@pytest.fixture
def virtual_time():
    """Run as `anyio.run(main, **virtual_time)`: an hour passes as soon as every task sleeps."""
    from virtual_clock import VirtualClock

    return {"backend": "trio", "backend_options": {"clock": VirtualClock()}}
