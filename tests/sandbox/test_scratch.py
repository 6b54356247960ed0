from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rlm.sandbox.scratch import Scratch, remove_abandoned

MAKE_AND_DIE = """
import os, signal
from rlm.sandbox.scratch import Scratch
scratch = Scratch()
print(scratch.path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    remove_abandoned.cache_clear()  # as in a process that has just begun
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_a_folder_is_there_until_it_is_removed():
    scratch = Scratch()
    (Path(scratch.path) / "file").write_text("x")
    scratch.remove()
    scratch.remove()
    assert not Path(scratch.path).exists()


def test_a_folder_that_cannot_be_locked_is_not_made(tmp_path):
    """The loop that looks for another one does not end where no descriptor is left."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    Scratch().remove()
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            Scratch()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_host_that_was_killed_is_removed_with_the_next_one():
    died = subprocess.run([sys.executable, "-c", MAKE_AND_DIE], capture_output=True, text=True, check=False)
    dead = died.stdout.strip()
    assert Path(dead).is_dir()
    Scratch().remove()
    assert not Path(dead).exists()


def test_the_folder_of_a_host_that_lives_is_left_alone():
    living = Scratch()
    remove_abandoned.cache_clear()
    Scratch().remove()
    assert Path(living.path).is_dir()
    living.remove()
