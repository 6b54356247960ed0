from __future__ import annotations

import os
import signal
import threading

import pytest

from rlm._async import preload


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_fork_waits_for_what_is_being_loaded():
    begun, loaded = threading.Event(), []

    def slow():
        begun.set()
        threading.Event().wait(0.2)
        loaded.append(1)

    thread = threading.Thread(target=preload.load, args=(slow,))
    thread.start()
    assert begun.wait(20)
    child = os.fork()
    if not child:
        signal.alarm(20)
        preload.load(lambda: None)
        os._exit(0 if loaded else 1)
    assert os.waitpid(child, 0)[1] == 0
    thread.join()
