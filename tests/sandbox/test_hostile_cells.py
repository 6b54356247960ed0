# ruff: noqa: ASYNC240 - a test may look for a file
"""Cells written by an enemy. Each names its outcome, and after each the same session answers a plain cell.

They run in one session after the other, as the user of the test run and, where that is root, as an ordinary user
too; at the highest tier the machine gives, and without namespaces.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from rlm.sandbox.launchers import Launcher
from rlm.sandbox.session import open_session
from rlm.settings import SandboxSettings

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="the tiers beyond `process` are Linux's"),
]

SECRET = "sk-canary-5f3a"
SETTINGS = SandboxSettings(
    cell_timeout_s=0.4, memory_bytes=512 << 20, scratch_bytes=8 << 20, answer_bytes=1 << 20, processes=24
)
PATIENT = dataclasses.replace(
    SETTINGS, cell_timeout_s=10.0, memory_bytes=384 << 20
)  # where the memory must run out before the time
REFUSED = "refused"  # the cell catches PermissionError and prints this


@dataclass(frozen=True)
class Attack:
    name: str
    code: str
    outcome: str = "ok"  # one of a few, separated by |
    shows: str = ""  # stdout, or the error, contains this
    state: str = ""  # "" where it follows from the outcome


def must_be_refused(body):
    """A cell that prints `refused` where the kernel says no, and `DONE` where the attack worked."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return f"try:\n{lines}\n    print('DONE')\nexcept OSError: print('refused')"


def syscall(number, *arguments):
    """A cell that makes a raw system call (x86_64) and prints its errno's name, or DONE."""
    listed = ", ".join([f"ctypes.c_long({number})", *map(str, arguments)])
    return (
        "import ctypes, errno, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        f"r = libc.syscall({listed})\n"
        "print('DONE' if r >= 0 else errno.errorcode[ctypes.get_errno()].replace('EPERM', 'refused'))"
    )


def refused(name, body):
    return Attack(name, must_be_refused(body), shows=REFUSED)


SECRETS = [
    Attack("environment", "import os\nprint([v for v in os.environ.values() if 'canary' in v], os.environ.get('OPENAI_API_KEY'))", shows="[] None"),
    refused("proc_environ", "print(open('/proc/self/environ').read())"),
    refused("parents_environ", "import os\nprint(open(f'/proc/{os.getppid()}/environ', 'rb').read())"),
    refused("proc_1", "print(open('/proc/1/cmdline').read())"),
    refused("proc_list", "import os\nos.listdir('/proc')"),
    refused("parents_memory", "import os\nopen(f'/proc/{os.getppid()}/mem', 'rb').read(1)"),
    refused("own_memory_file", "open('/proc/self/mem', 'r+b')"),
    Attack("garbage_collector", "import gc\nprint([o for o in gc.get_objects() if type(o) is dict and 'OPENAI_API_KEY' in o and o is not globals()])", shows="[]"),
    Attack("frames", "import sys\nf = sys._getframe()\nfound = False\nwhile f:\n  found |= any('canary' in str(v)[:200] for k, v in list(f.f_locals.items()) if k == 'settings')\n  f = f.f_back\nprint(found)", shows="False"),
    Attack("argv", "import sys\nprint(sys.argv, [m for m in sys.modules if m.startswith('rlm')])", shows="[''] []"),
]  # fmt: skip

FILES = [
    refused("etc_shadow", "open('/etc/shadow').read()"),
    refused("etc_passwd", "open('/etc/passwd').read()"),
    refused("list_root", "import os\nos.listdir('/')"),
    refused("home", "import os\nos.listdir('/root')"),
    refused("canary_file", f"open({os.fspath(Path(__file__))!r}).read()"),
    refused("write_tmp", "open('/tmp/rlm-attack-canary', 'w').write('x')"),
    refused("write_stdlib", "import os\nopen(os.path.join(os.path.dirname(os.__file__), 'rlm_attack.py'), 'w')"),
    refused("symlink_escape", "import os\nos.path.lexists('s') and os.remove('s')\nos.symlink('/etc/passwd', 's')\nopen('s').read()"),
    Attack("hard_link", "import os\ntry: os.link('/etc/passwd', 'h'); print('DONE')\nexcept OSError: print('refused')", shows=REFUSED),
    refused("chmod", "import os\nos.chmod('/tmp', 0o777)"),
    refused("chown", "import os\nos.chown('/tmp', 0, 0)"),
    refused("utime", "import os\nos.utime('/tmp')"),
    refused("delete", f"import os\nos.remove({os.fspath(Path(__file__))!r})"),
    refused("rename_out", "import os\nopen('mine', 'w').close()\nos.rename('mine', '/tmp/rlm-attack-canary')"),
    refused("device", "open('/dev/mem', 'rb')"),
    Attack("one_huge_file", "f = open('big', 'wb')\ntry:\n  for _ in range(64): f.write(b'x' * (1 << 20))\n  f.flush(); print('DONE')\nexcept OSError: print('refused')", shows=REFUSED),
    Attack("many_files", "try:\n  for i in range(4000):\n    with open(f'f{i}', 'wb') as f: f.write(b'x' * (1 << 16))\n  print('DONE')\nexcept OSError: print('refused')\nimport time; time.sleep(0.3)", outcome="ok|memory"),
    Attack("clean_up", "import os\nfor name in os.listdir('.'): os.remove(name)\nprint(os.listdir('.'))", shows="[]"),
]  # fmt: skip

NETWORK = [
    refused("tcp", "import socket\nsocket.create_connection(('127.0.0.1', 80), 1)"),
    refused("udp", "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM)"),
    refused("unix", "import socket\nsocket.socket(socket.AF_UNIX)"),
    refused("raw", "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_RAW)"),
    refused("packet", "import socket\nsocket.socket(socket.AF_PACKET, socket.SOCK_RAW)"),
    refused("netlink", "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)"),
    refused("vsock", "import socket\nsocket.socket(socket.AF_VSOCK)"),
    Attack("dns", "import socket\ntry: socket.getaddrinfo('example.com', 80); print('DONE')\nexcept OSError: print('refused')", shows=REFUSED),
    Attack("urllib", "import urllib.request\ntry: urllib.request.urlopen('http://1.1.1.1', timeout=1); print('DONE')\nexcept OSError: print('refused')", shows=REFUSED),
    Attack("io_uring", syscall(425, 4, 0), shows=REFUSED),
]  # fmt: skip

PROCESSES = [
    refused("shell", "import subprocess\nsubprocess.run(['/bin/sh', '-c', 'id'])"),
    refused("execv", "import os\nos.execv('/bin/true', ['true'])"),
    refused("posix_spawn", "import os\nos.posix_spawn('/bin/true', ['true'], {})"),
    Attack("os_system", "import os\nprint(os.system('touch /tmp/rlm-attack-canary') != 0)", shows="True"),
    refused("kill_parent", "import os\nos.kill(os.getppid(), 9)"),
    refused("kill_all", "import os\nos.kill(-1, 9)"),
    refused("kill_group", "import os\nos.killpg(0, 9)"),
    refused("setsid", "import os\nos.setsid()"),
    refused("setuid", "import os\nos.setuid(0)"),
    Attack("ptrace", syscall(101, 16, "os.getppid()", 0, 0), shows=REFUSED),
    Attack("namespaces", syscall(272, 0x10000000), shows=REFUSED),
    Attack("clone_namespace", syscall(56, 0x10000000 | 17, 0, 0, 0, 0), shows=REFUSED),
    Attack("bpf", syscall(321, 0, 0, 0), shows=REFUSED),
    Attack("keyctl", syscall(250, 0, 0), shows=REFUSED),
    Attack("mount", syscall(165, 0, 0, 0, 0, 0), shows=REFUSED),
    Attack("x32_numbers", syscall(0x40000000 + 59, 0, 0, 0), shows="ENOSYS"),
    Attack("limits_of_ancestor", "import os, resource\ntry: resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0)); print('DONE')\nexcept PermissionError: print('refused')", shows=REFUSED),
    Attack("fork_bomb", "import os, time\nwhile True:\n  try: os.fork()\n  except OSError: time.sleep(0.01)", outcome="timeout|memory"),
    Attack("daemon", "import os, time\nif os.fork() == 0:\n  if os.fork() == 0:\n    time.sleep(60)\n  os._exit(0)\nprint('left')", shows="left"),
]  # fmt: skip

DEATHS = [
    Attack("os_exit", "import os\nos._exit(0)", "exited"),
    Attack("sys_exit", "import sys\nsys.exit(3)", "exited", state="kept"),
    Attack("segfault", "import ctypes\nctypes.string_at(0)", "crashed"),
    Attack("abort", "import os\nos.abort()", "crashed"),
    Attack("stack", "import sys\nsys.setrecursionlimit(10**8)\nclass A:\n  def __getattr__(self, n): return getattr(self, n + 'x')\nf = lambda: A().x\nf()", "crashed|raised|memory|timeout"),
    Attack("recursion", "def f(): f()\nf()", "raised", "RecursionError"),
    refused("signal_self", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"),
    refused("stop_self", "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)"),
    Attack("alarm", "import signal, time\nsignal.alarm(1)\nsignal.setitimer(signal.ITIMER_REAL, 0.05)\ntime.sleep(5)", "crashed"),
    Attack("at_fork_hook", "import os\nos.register_at_fork(after_in_child=lambda: os._exit(1))"),
    Attack("keyboard_interrupt", "raise KeyboardInterrupt", "raised", "KeyboardInterrupt"),
]  # fmt: skip

HANGS = [
    Attack("loop_that_swallows", "while True:\n  try:\n    while True: pass\n  except BaseException: pass", "timeout"),
    Attack("regex", "import re\nre.match('(a+)+$', 'a' * 64 + 'b')", "timeout"),
    Attack("big_integers", "x = 10 ** (10 ** 9)", "timeout|memory"),
    Attack("sleep", "import time\ntime.sleep(3600)", "timeout"),
    Attack("thread", "import threading\nthreading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()"),
    Attack("atexit", "import atexit, time\natexit.register(time.sleep, 3600)"),
    Attack("ignored_signals", "import signal\nfor s in range(1, 65):\n  try: signal.signal(s, signal.SIG_IGN)\n  except (OSError, ValueError): pass\nwhile True: pass", "timeout"),
]  # fmt: skip

MEMORY = [
    Attack("list", "x = []\nwhile True: x.append(' ' * (1 << 24))", "memory"),
    Attack("string", "x = 'a' * (1 << 40)", "memory"),
    Attack("caught", "try: x = bytearray(1 << 40)\nexcept MemoryError: print('caught')", "ok", "caught"),
    Attack("memory_of_children", "import os, time\nfor _ in range(100):\n  if os.fork() == 0:\n    x = bytearray(1 << 24); time.sleep(60)\n", "raised|timeout|memory|ok"),
    Attack("threads", "import threading, time\nfor _ in range(10**6): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()", "raised|timeout|memory|protocol|ok"),
    Attack("descriptors", "import os\nwhile True: os.dup(0)", "raised", "Too many open files"),
    Attack("memfd", "import os\ntry: os.memfd_create('x'); print('DONE')\nexcept PermissionError: print('refused')", "ok", REFUSED),
]  # fmt: skip

CHANNEL = [
    Attack("flood", "import os\nwhile True: os.write(1, b'x' * 65536)", "timeout"),
    Attack("garbage_on_every_fd", "import os\nfor fd in range(300):\n  try: os.write(fd, b'\\xff' * 100)\n  except OSError: pass", "protocol|ok|crashed"),
    Attack("forged_done", "import os, struct\nframe = struct.pack('>BBII', 20, 0, 1, 10) + b't\\0\\0\\0\\4' + b'N' * 5\nfor fd in range(3, 400):\n  try: os.write(fd, frame)\n  except OSError: pass\nwhile True: pass", "protocol"),
    Attack("forged_reply", "import os, struct\nframe = struct.pack('>BBII', 4, 0, 1, 1) + b'N'\nfor fd in range(3, 400):\n  try: os.write(fd, frame)\n  except OSError: pass", "protocol|ok"),
    Attack("giant_header", "import os, struct\nframe = struct.pack('>BBII', 19, 0, 1, 0xFFFFFFFF)\nfor fd in range(3, 400):\n  try: os.write(fd, frame)\n  except OSError: pass\nwhile True: pass", "protocol"),
    Attack("garbage_call", "import os, struct\nframe = struct.pack('>BBII', 19, 0, 7, 3) + b'zzz'\nfor fd in range(3, 400):\n  try: os.write(fd, frame)\n  except OSError: pass\nwhile True: pass", "protocol"),
    Attack("closed_descriptors", "import os\nos.closerange(0, 1024)", "exited|protocol|crashed"),
    Attack("forked_child_speaks", "import os, struct, time\nframe = struct.pack('>BBII', 19, 0, 7, 1) + b'N'\nif os.fork() == 0:\n  for fd in range(3, 400):\n    try: os.write(fd, frame)\n    except OSError: pass\n  os._exit(0)\ntime.sleep(5)", "protocol"),
    Attack("forked_child_calls", "import os\nr, w = os.pipe()\nif os.fork() == 0:\n  try: llm_query('x')\n  except LLMError as e: os.write(w, str(e).encode())\n  os._exit(0)\nprint(os.read(r, 100))", "ok", "a forked child of a cell cannot call"),
    Attack("forked_child_returns", "import os\nos.fork()\nprint('twice')", "ok|protocol"),
    Attack("unread_replies", "import _thread\nfor i in range(15): _thread.start_new_thread(llm_query, ('x' * 100000,))\nwhile True: pass", "timeout"),
]  # fmt: skip

NAMESPACE = [
    Attack("builtins_deleted", "import builtins\nfor n in list(vars(builtins)): delattr(builtins, n)", "ok|raised"),
    Attack("json_and_os_patched", "import json, os, time, sys, io\njson.dumps = json.loads = os.read = os.write = os.fork = os.getpid = time.monotonic = None\nsys.modules.clear()", "ok|raised|exited|protocol"),
    Attack("api_redefined", "llm_query = FINAL = answer = context = None\ndel FINAL_VAR"),
    Attack("evil_repr", "class E:\n  def __repr__(self): raise SystemExit('evil')\nE()", "exited", state="kept"),
    Attack("endless_repr", "class E:\n  def __repr__(self):\n    while True: pass\nE()", "timeout"),
    Attack("evil_exception", "class E(BaseException):\n  def __str__(self): raise E\n  __repr__ = __str__\n  __class__ = property(lambda s: 1/0)\nraise E", "raised"),
    Attack("endless_exception", "class E(Exception):\n  def __str__(self):\n    while True: pass\nraise E", "timeout"),
    Attack("globals_cleared", "globals().clear()", "ok|raised"),
    Attack("stdout_replaced", "import sys\nsys.stdout = sys.stderr = sys.displayhook = sys.excepthook = None\n1", "ok|raised"),
    Attack("main_replaced", "import sys\nsys.modules['__main__'] = None\nsys.path[:] = []\nsys.meta_path[:] = []", "ok|protocol"),
    Attack("trace_function", "import sys, threading\ndef t(*a): raise RuntimeError('traced')\nsys.settrace(t); sys.setprofile(t)", "ok|raised|exited|protocol"),
    Attack("evil_name", "globals()[type('S', (str,), {'__eq__': lambda s, o: 1/0, '__hash__': str.__hash__})('x')] = 1", "ok|raised|exited"),
]  # fmt: skip

ANSWERS = [
    Attack("300_mb", "FINAL('x' * 300_000_000)", "raised", "larger than"),
    Attack("bytes", "FINAL(b'\\0\\xff')"),
    Attack("nan", "FINAL(float('nan'))"),
    Attack("unserialisable", "FINAL(object())", "raised", "cannot be sent"),
    Attack("ready_unserialisable", "answer['content'] = open; answer['ready'] = True", "raised", "cannot be sent"),
    Attack("self_containing", "x = []; x.append(x)\nFINAL(x)", "raised", "contains itself"),
    Attack("lying_str", "class S(str):\n  def encode(self, *a): return b'lie'\n  def __len__(self): return 10**12\n  def __str__(self): return 'lie'\nFINAL(S('truth'))"),
    Attack("lying_int", "class I(int):\n  def to_bytes(self, *a, **k): return b'x' * 10**9\n  def __add__(self, o): return 'lie'\nFINAL(I(2**100))"),
    Attack("lying_dict", "class D(dict):\n  def items(self): return [(open, open)]\n  def __iter__(self): raise ValueError\nFINAL(D(a=1))"),
    Attack("colliding_keys", "FINAL({i * (2**61 - 1): 0 for i in range(1, 1500)})", "protocol", state="kept"),
    Attack("huge_int", "FINAL(1 << 100_000)"),
]  # fmt: skip

TEXT = [
    Attack("nul", "print('a\\0b')", shows="a\0b"),
    Attack("lone_surrogate", "print('\\ud800')", shows="\\ud800"),
    Attack("broken_utf8", "import os\nos.write(1, b'\\xff\\xfe')", shows="��"),
    Attack("terminal_codes", "print('\\x1b[2J\\x1b]0;title\\x07')", shows="\x1b[2J"),
    Attack("surrogate_in_code", "x = '\ud800'\n", "raised", "surrogates not allowed"),
    Attack("nul_in_code", "x = 1\0", "raised", "null bytes"),
    Attack("answer_with_surrogates", "FINAL('\\ud83d\\ude00\\0')"),
]  # fmt: skip

GROUPS = {
    "secrets": SECRETS, "files": FILES, "network": NETWORK, "processes": PROCESSES, "deaths": DEATHS,
    "hangs": HANGS, "memory": MEMORY, "channel": CHANNEL, "namespace": NAMESPACE, "answers": ANSWERS, "text": TEXT,
}  # fmt: skip

KEPT = {"ok", "raised"}


def ordinary_user():
    """Start guests as a user that is not root, with an interpreter that such a user can read."""
    python = "/usr/bin/python3"
    if os.geteuid() != 0 or shutil.which("setpriv") is None or not Path(python).exists():
        pytest.skip("needs root, setpriv and a system interpreter of Python 3.11 or newer")
    prefix = ("setpriv", "--reuid", "1777", "--regid", "1777", "--clear-groups", "--")
    return Launcher(name="ordinary user", prefix=prefix, python=python)


@pytest.fixture(
    params=[
        "as we are",
        pytest.param("as an ordinary user", marks=pytest.mark.slow),
        pytest.param("without namespaces", marks=pytest.mark.slow),
    ]
)
def guest(request):
    """A launcher, and the highest tier that may be used with it."""
    launcher = ordinary_user() if request.param == "as an ordinary user" else None
    return launcher, "confined" if request.param == "without namespaces" else "isolated"


async def serve(call):
    return "answered"


async def plain_cell(session, code):
    """Run a cell that a busy machine may make wait longer than the short limit of these sessions."""
    for _ in range(5):
        result = await session.run(code, serve=serve)
        if result.outcome != "timeout":
            break
    return result


async def check(session, attack):
    """Run the attack, then see that the session still answers and still has what it had."""
    result = await session.run(attack.code, serve=serve)
    assert result.outcome in attack.outcome.split("|"), (attack.name, result)
    assert attack.shows in result.stdout + result.error, (attack.name, result)
    state = attack.state or ("kept" if result.outcome in KEPT else "rolled back")
    assert result.state == state, (attack.name, result)
    assert SECRET not in result.stdout + result.stderr + result.error
    plain = await plain_cell(session, "print(1 + 1, len(context), llm_query('x'))")
    assert (plain.stdout, plain.outcome, plain.state) == ("2 7 answered\n", "ok", "kept"), (
        attack.name,
        plain,
    )
    if "clear" not in attack.name:
        mine = await plain_cell(session, "mine")
        assert "kept" in mine.stdout, (attack.name, mine)
    else:
        await session.run("mine = 'kept'", serve=serve)


@pytest.mark.parametrize("group", GROUPS)
async def test_hostile_cells_reach_nothing_and_cost_only_themselves(group, guest, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    settings = PATIENT if group in ("memory", "answers") else SETTINGS
    launcher, tier = guest
    session = await open_session(dataclasses.replace(settings, highest_tier=tier), launcher=launcher)
    try:
        assert session.isolation.tier != "process", session.isolation
        await session.load("context")
        await session.run("mine = 'kept'", serve=serve)
        for attack in GROUPS[group]:
            await check(session, attack)
    finally:
        await session.aclose()
    assert not Path("/tmp/rlm-attack-canary").exists()


def test_there_are_at_least_sixty_hostile_cells():
    assert sum(map(len, GROUPS.values())) >= 60
