# ruff: noqa: ASYNC240, PTH208 - a test may look for a file, and list names
"""What ARCHITECTURE.md promises of files, folders, priorities and limits, each tried."""

from __future__ import annotations

import ast
import dataclasses
import errno
import os
import shutil
import socket
import sys
from pathlib import Path

import pytest

from rlm.sandbox.guest import folders, hardening, landlock, trials
from rlm.sandbox.launchers import Launcher
from rlm.sandbox.scratch import Scratch, remove_abandoned
from rlm.sandbox.session import open_session
from rlm.settings import SandboxSettings

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="the tiers beyond `process` are Linux's"),
]

SETTINGS = SandboxSettings(cell_timeout_s=5.0, memory_bytes=512 << 20, scratch_bytes=8 << 20, processes=24)
ORDINARY = Launcher(
    name="ordinary user",
    prefix=("setpriv", "--reuid", "1777", "--regid", "1777", "--clear-groups", "--"),
    python="/usr/bin/python3",
)


async def serve(call):
    return "answered"


def needs_ordinary_user():
    if os.geteuid() != 0 or shutil.which("setpriv") is None or not Path("/usr/bin/python3").exists():
        pytest.skip("needs root, setpriv and a system interpreter")


@pytest.fixture(params=["as we are", "as an ordinary user", "without namespaces"])
async def session(request):
    if request.param == "as an ordinary user":
        needs_ordinary_user()
    tier = "confined" if request.param == "without namespaces" else "isolated"
    launcher = ORDINARY if request.param == "as an ordinary user" else None
    opened = await open_session(dataclasses.replace(SETTINGS, highest_tier=tier), launcher=launcher)
    yield opened
    await opened.aclose()


@pytest.fixture
async def watched_session():
    """One whose processes and bytes are counted by looking: an ordinary user's, without namespaces."""
    needs_ordinary_user()
    opened = await open_session(dataclasses.replace(SETTINGS, highest_tier="confined"), launcher=ORDINARY)
    yield opened
    await opened.aclose()


CALLS = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def ask(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *arguments)
    return errno.errorcode[ctypes.get_errno()] if result < 0 else 'DONE'
"""


async def test_a_datagram_pair_cannot_be_had_and_a_hosts_socket_hears_nothing(session, tmp_path):
    path = tmp_path / "socket"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    listener.bind(str(path))
    path.chmod(0o777)
    code = (
        "import socket\n"
        "for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_RAW):\n"
        f"  try: socket.socketpair(type=kind)[0].sendto(b'x', {str(path)!r}); print('DONE')\n"
        "  except PermissionError: print('refused')"
    )
    result = await session.run(code, serve=serve)
    assert result.stdout == "refused\n" * 3, result
    with listener, pytest.raises(BlockingIOError):
        listener.recv(1)


async def test_ordinary_python_works_in_a_cell(session):
    code = """
import asyncio, os, select, shutil, tempfile, threading, time
async def main():
    await asyncio.sleep(0)
    return await asyncio.to_thread(lambda: 'loop')
print(asyncio.run(main()))
with tempfile.TemporaryDirectory() as folder:
    source, target = os.path.join(folder, 'a'), os.path.join(folder, 'b')
    with open(source, 'w') as file: file.write('copied')
    with open(source, 'r+') as file: file.truncate(4)
    shutil.copyfile(source, target)
    shutil._copyxattr(source, target)
    print(open(target).read())
    os.truncate(target, 2)
    with open(target, 'w') as file: file.write('anew')
    print(open(target).read(), os.listxattr.__name__)
thread = threading.Thread(target=print, args=('thread',)); thread.start(); thread.join()
print(len(os.sched_getaffinity(0)) > 0, os.getpriority(os.PRIO_PROCESS, 0) is not None, os.isatty(0))
"""
    result = await session.run(code, serve=serve)
    assert result.stdout == "loop\ncopi\nanew listxattr\nthread\nTrue True False\n", result


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86-64")
async def test_priorities_watches_and_attributes_are_refused(session):
    numbers = {
        "setpriority": 141, "sched_setparam": 142, "sched_setscheduler": 144, "sched_setaffinity": 203,
        "ioprio_set": 251, "sched_setattr": 314, "inotify_init": 253, "inotify_init1": 294, "inotify_add_watch": 254,
    }  # fmt: skip
    attributes = {"getxattr": 191, "lgetxattr": 192, "fgetxattr": 193, "listxattr": 194, "llistxattr": 195,
                  "flistxattr": 196, "getxattrat": 464, "listxattrat": 465}  # fmt: skip
    newer = {"open_tree_attr": 467, "file_getattr": 468, "file_setattr": 469}
    listed = {**numbers, **attributes, **newer}
    code = f"{CALLS}\nprint({{name: ask(number, 0, 0, 0, 0, 0) for name, number in {listed!r}.items()}})"
    code += "\nprint([ask(16, 1, request, 0) for request in (0x5412, 0x8901, 0x8902, 0x8912, 0x89ff)])"
    result = await session.run(code, serve=serve)
    told, requests = map(ast.literal_eval, result.stdout.splitlines())
    assert told == (
        dict.fromkeys(numbers, "EPERM")
        | dict.fromkeys(attributes, errno.errorcode[errno.ENOTSUP])
        | dict.fromkeys(newer, "ENOSYS")
    )
    assert requests == ["EPERM"] * 5


def in_a_confined_child(scratch, *attempts):
    """What each attempt gives in a process that confined itself, and which of the attempts of a probe held."""
    settings = {"scratch": str(scratch), "confine": True, "counts_processes": False, "memory_bytes": 1 << 30,
                "processes": 24, "scratch_bytes": 8 << 20}  # fmt: skip

    def work():
        held, missing = hardening.confine_and_try(settings)
        return repr((held, missing, [tried(attempt) for attempt in attempts])).encode()

    return ast.literal_eval(trials.in_child(work).decode())


def tried(attempt):
    try:
        attempt()
    except OSError as error:
        return type(error).__name__
    return "DONE"


@pytest.mark.parametrize("version", [2, None])
def test_no_file_outside_is_truncated_whatever_landlock_knows(version, tmp_path, monkeypatch):
    if version is not None:
        monkeypatch.setattr(landlock, "kernel_version", lambda: version)
    scratch, outside, readable = tmp_path / "scratch", tmp_path / "outside", tmp_path / "readable"
    for folder in (scratch, outside, readable):
        folder.mkdir()
        (folder / "file").write_text("precious")
    monkeypatch.syspath_prepend(str(readable))
    ways = [
        lambda: os.truncate(outside / "file", 0),
        lambda: os.close(os.open(outside / "file", os.O_RDONLY | os.O_TRUNC)),
        lambda: os.close(os.open(outside / "file", 3 | os.O_TRUNC)),
        lambda: os.truncate(readable / "file", 0),
        lambda: os.close(os.open(readable / "file", os.O_RDONLY | os.O_TRUNC)),
        lambda: os.close(os.open(readable / "file", 3 | os.O_TRUNC)),
    ]
    inside = [
        lambda: (scratch / "file").write_text("anew"),
        lambda: os.ftruncate(os.open(scratch / "file", os.O_RDWR), 1),
    ]
    held, missing, told = in_a_confined_child(scratch, *ways, *inside)
    assert told == ["PermissionError"] * len(ways) + ["DONE"] * len(inside)
    assert (outside / "file").read_text() == (readable / "file").read_text() == "precious"
    assert (scratch / "file").read_text() == "a"
    assert set(held) == set(trials.ATTEMPTS), missing


def test_a_probe_that_could_truncate_does_not_claim_files(tmp_path, monkeypatch):
    monkeypatch.setattr(landlock, "kernel_version", lambda: 2)
    monkeypatch.setattr(landlock, "handles_truncation", lambda: True)
    if not os.access(os.__file__, os.W_OK):
        pytest.skip("this user could not truncate the library anyway")
    before = Path(os.__file__).stat()
    held, _, _ = in_a_confined_child(tmp_path)
    assert "files" not in held
    after = Path(os.__file__).stat()
    assert (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)


def deep(folder, levels, name="d"):
    """Make folders in folders, deeper than any path may be; give a descriptor of the innermost."""
    inner = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=inner)
        outer, inner = inner, os.open(name, os.O_RDONLY, dir_fd=inner)
        os.close(outer)
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=inner))
    os.close(inner)


def test_a_link_that_takes_a_folders_place_leads_the_emptying_nowhere(tmp_path, monkeypatch):
    victim, scratch = tmp_path / "victim", tmp_path / "scratch"
    for folder in (victim, scratch, scratch / "d", scratch / "d" / "e"):
        folder.mkdir()
    (victim / "precious").write_text("p")
    (scratch / "link").symlink_to(victim)
    looks_like_a_folder = folders._is_folder

    def swapped_after_the_look(name, parent):
        is_folder = looks_like_a_folder(name, parent)
        if is_folder:
            os.rename(name, f"{name}-moved", src_dir_fd=parent, dst_dir_fd=parent)
            os.symlink(victim, name, dir_fd=parent)
        return is_folder

    with monkeypatch.context() as patch:
        patch.setattr(folders, "_is_folder", swapped_after_the_look)
        folders.empty_folder(str(scratch))
    assert os.listdir(victim) == ["precious"]
    folders.empty_folder(str(scratch))
    assert not os.listdir(scratch)
    assert os.listdir(victim) == ["precious"]


@pytest.mark.parametrize("name", ["d", "d" * 250])
def test_a_folder_deeper_than_any_path_is_emptied_with_few_descriptors(name, tmp_path):
    deep(tmp_path, 3_000, name)
    folders.empty_folder(str(tmp_path))
    assert not os.listdir(tmp_path)


def test_an_ordinary_user_removes_folders_that_cannot_be_read(tmp_path):
    for place in ("unread", "unread/inner", "unread/inner/last"):
        (tmp_path / place).mkdir()
    (tmp_path / "unread/inner/last/file").write_text("x")
    for place in ("unread/inner/last", "unread/inner", "unread"):
        (tmp_path / place).chmod(0o300 if place == "unread" else 0)

    def empty():
        if os.geteuid() == 0:
            os.setresuid(1777, 1777, 1777)
        folders.empty_folder(".")
        return repr(os.listdir(".")).encode()

    here = Path.cwd()
    try:
        os.chdir(tmp_path)
        for place in (tmp_path, *tmp_path.rglob("*")):
            os.chown(place, 1777 if os.geteuid() == 0 else -1, -1)
        told = trials.in_child(empty)
    finally:
        os.chdir(here)
    assert told == b"[]"


async def test_a_folder_too_deep_for_a_path_is_removed_with_its_session():
    """Made between two cells: while one runs, such a depth counts as too much where there are no namespaces."""
    session = await open_session(SandboxSettings(highest_tier="confined"))
    try:
        home = Path((await session.run("import os; print(os.getcwd())", serve=serve)).stdout.strip())
        deep(home, 1_500, "d" * 250)
    finally:
        await session.aclose()
    assert not home.exists()


async def test_entries_run_out_as_bytes_do(session):
    if "scratch quota" not in session.isolation.levels:
        pytest.skip("counted by looking here")
    code = (
        "import os\ntry:\n"
        "  for i in range(100_000): os.close(os.open(f'e{i}', os.O_CREAT))\n"
        "except OSError: print('refused', i < 2100)"
    )
    assert (await session.run(code, serve=serve)).stdout == "refused True\n"


async def ends_for_too_much(session, code):
    """The cell is ended, its folder empty if that was it, and the next cell goes on."""
    result = await session.run(code + "\nimport time; time.sleep(3)", serve=serve)
    assert (result.outcome, result.state) == ("memory", "rolled back"), result
    plain = await session.run("print('on')", serve=serve)
    assert plain.stdout == "on\n", plain
    return result.error


async def test_orphans_and_threads_are_counted_where_the_kernel_does_not(watched_session):
    orphans = (
        "import os, time\nfor i in range(40):\n  p = os.fork()\n  if p == 0:\n"
        "    if os.fork() == 0: time.sleep(60)\n    os._exit(0)\n  os.waitpid(p, 0)"
    )
    threads = (
        "import threading\nthreading.stack_size(32768)\nnever = threading.Event()\n"
        "for i in range(40): threading.Thread(target=never.wait, daemon=True).start()"
    )
    if "process limit" not in watched_session.isolation.missing:
        pytest.skip("the kernel counts here")
    for code in (orphans, threads):
        assert "processes and threads" in await ends_for_too_much(watched_session, code)
    ended = "import os, time\nfor i in range(60):\n  p = os.fork()\n  if p == 0:\n    if os.fork() == 0: os._exit(0)\n    os._exit(0)\n  os.waitpid(p, 0); time.sleep(0.002)\nprint('all ended')"
    assert (await watched_session.run(ended, serve=serve)).stdout == "all ended\n"


async def test_what_a_folder_hides_is_too_much(watched_session):
    for code in (
        "import os\nfor i in range(3000): os.close(os.open(f'e{i}', os.O_CREAT))",
        "import os\nos.mkdir('unread', 0o300)",
        "import os\nhome = os.getcwd()\nfor i in range(200): os.mkdir('d'); os.chdir('d')\nos.chdir(home)",
        "for i in range(4):\n  with open(f'f{i}', 'wb') as f: f.write(bytes(3 << 20))",
    ):
        assert "its folder" in await ends_for_too_much(watched_session, code)
        assert (await watched_session.run("import os\nprint(os.listdir())", serve=serve)).stdout == "[]\n"


async def test_the_folder_a_guest_made_itself_is_not_swept_by_another_host():
    launcher = Launcher(name="own files", prefix=(), python=sys.executable, shares_files=False)
    opened = await open_session(dataclasses.replace(SETTINGS, highest_tier="confined"), launcher=launcher)
    try:
        written = "import os\nopen('kept', 'w').close()\nprint(os.getcwd())"
        home = (await opened.run(written, serve=serve)).stdout.strip()
        remove_abandoned.cache_clear()
        Scratch().remove()
        assert (await opened.run("import os\nprint(os.listdir())", serve=serve)).stdout == "['kept']\n"
    finally:
        await opened.aclose()
    assert not Path(home).exists()


@pytest.mark.parametrize("name", ["copy", "copy2"])
async def test_a_file_can_be_copied_and_no_mode_can_be_changed(session, name):
    code = (
        "import os, shutil\nopen('a', 'w').write('text')\nos.makedirs('d', exist_ok=True)\n"
        f"print(shutil.{name}('a', 'b'), open('b').read(), shutil.copytree('d', 'e'))\n"
        "for change in (lambda: os.chmod('b', 0o777), lambda: os.utime('b', (1, 1))):\n"
        "  try: change(); print('DONE')\n  except PermissionError: print('refused')"
    )
    result = await session.run(code, serve=serve)
    assert result.stdout == "b text e\nrefused\nrefused\n", result
