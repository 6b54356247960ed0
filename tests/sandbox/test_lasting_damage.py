"""What a cell does to the interpreter that later cells share: repaired, or the cell is rolled back, or the loss is told.

No cell may end the session: at most it costs itself. `mine` must be as before, unless a result says that variables are lost.
"""

from __future__ import annotations

import anyio
import pytest

from rlm.sandbox.session import open_session
from rlm.settings import SandboxSettings

pytestmark = pytest.mark.anyio

TIERS = ("process", "confined", "isolated")

# Repaired: the cell is kept, and the next one finds nothing of it.
REPAIRED = {
    "standard descriptors closed in pairs": "import os\nos.close(0); os.close(1)",
    "the first 200 descriptors closed": "import os\nos.closerange(0, 200)",
    "stdin as a file that closes it": "open(0).close(); open(2, 'w').close()",
    "a class of io replaced": "import io\nio.BufferedWriter = 'gone'",
    "io mocked and never put back": "from unittest import mock\nmock.patch('io.FileIO').start()",
    "the cache of linecache removed": "import linecache\nlinecache.cache = 5",
    "a method of the worker replaced": "import sys\nsys.modules['guest.repl'].Repl._execute = lambda *a: 1 / 0",
    "a function of the worker that exits": "import sys, os\nsys.modules['guest.worker'].fork = lambda: os._exit(0)",
    "a name that hides a builtin in the worker": "import sys\nsys.modules['guest.repl'].compile = None",
    "os.read replaced": "import os\nos.read = lambda *a: b''",
    "a trace function that raises": "import sys\ndef t(f, e, a): raise ValueError('traced') if f.f_code.co_name == 'streams_of_process' else None\nsys.settrace(t)",
    "a hook after a fork that closes descriptors": "import os\nos.register_at_fork(after_in_child=lambda: os.closerange(0, 9))",
    "a hook before every second fork": "import os\nn = []\nos.register_at_fork(before=lambda: n.append(1) or len(n) % 2 == 0 and os._exit(9))",
    "a callback of the collector that exits": "import gc, os\ngc.set_threshold(20)\nn = []\ngc.callbacks.append(lambda *a: n.append(1) or len(n) > 9 and os._exit(1))",
    "modules replaced by None": "import sys\nfor n in ('os', 'select', 'json', 'struct'): sys.modules[n] = None",
    "an empty module table": "import sys\nsys.modules.clear()",
    "an import hook that raises": "import sys\nclass H:\n  def find_spec(self, *a): raise OSError('hooked')\nsys.meta_path.insert(0, H())",
    "sys.path emptied": "import sys\nsys.path = []\nsys.meta_path.clear()",
    "all signals blocked": "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
    "a mask that forbids reading own files": "import os\nos.umask(0o777)",
    "an emptied environment": "import os\nos.environ.clear()",
    "a soft limit of open files": "import resource\nh = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\nresource.setrlimit(resource.RLIMIT_NOFILE, (0, h))",
    "warnings as errors": "import warnings\nwarnings.simplefilter('error')",
    "a draft whose keys collide": "answer['content'] = {i * (2**61 - 1): 1 for i in range(1, 3000)}",
    "a draft as deep as an answer may be": "x = 1\nfor _ in range(249): x = [x]\nanswer['content'] = x",
    "an error text of megabytes": "try: raise ValueError('y' * (3 << 20))\nfinally: pass",
}  # fmt: skip
# Damage: the cell is rolled back, or it costs a few cells, and the session goes on.
DAMAGE = {
    "code of the worker replaced": "import sys\nsys.modules['guest.repl'].Repl.execute.__code__ = (lambda self, cell: 1 / 0).__code__",
    "code of the worker that exits": "import os, sys\nW = sys.modules['guest.worker'].Worker\nW._run.__code__ = (lambda self, cell: __import__('os')._exit(0)).__code__",
    "a seccomp filter of its own": "import ctypes, struct\nlibc = ctypes.CDLL(None)\np = b''.join(struct.pack('=HBBI', *l) for l in [(32, 0, 0, 0), (21, 0, 1, 16), (6, 0, 0, 0x50005), (21, 0, 1, 22), (6, 0, 0, 0x50005), (6, 0, 0, 0x7fff0000)])\nb = ctypes.create_string_buffer(p)\nh = ctypes.create_string_buffer(struct.pack('@HP', 6, ctypes.addressof(b)))\nlibc.prctl(22, 2, h, 0, 0)",
    "memory that no fork inherits": "import ctypes, gc\nlibc = ctypes.CDLL(None)\na = id(FINAL) & ~4095\nlibc.madvise(ctypes.c_void_p(a), 4096, 10)",
    "a hard limit of memory": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 20, 1 << 20))",
    "a timer thread that exits": "import threading, os\nthreading.Timer(0.2, os._exit, (0,)).start()",
    "an alarm of POSIX timers": "import ctypes\nlibc = ctypes.CDLL(None)\nt = ctypes.c_void_p()\nv = (ctypes.c_byte * 64)()\nv[8] = 9\nlibc.timer_create(1, v, ctypes.byref(t))\nlibc.timer_settime(t, 0, (ctypes.c_long * 4)(0, 0, 0, 200_000_000), None)",
    "a thread that holds the interpreter": "import threading, time, re\ndef f(): time.sleep(0.02); re.match('(a+)+$', 'a' * 60 + 'b')\nthreading.Thread(target=f, daemon=True).start()",
}  # fmt: skip


async def serve(call):
    return "answered"


async def opened(tier):
    settings = SandboxSettings(highest_tier=tier, cell_timeout_s=5, memory_bytes=512 << 20)
    session = await open_session(settings)
    await session.load("context")
    await session.run("mine = 'kept'", serve=serve)
    return session


async def goes_on(session):
    """Return True if a plain cell runs and has its variable; else a result must have said that variables are lost."""
    lost = False
    for _ in range(2):
        result = await session.run("print(len(context), llm_query('x'), globals().get('mine'))", serve=serve)
        lost |= result.state == "lost"
        if result.outcome == "ok":
            break
    assert result.stdout in ("7 answered kept\n", "7 answered None\n"), result
    assert "kept" in result.stdout or lost, result
    return "kept" in result.stdout


async def test_a_cell_that_damages_the_interpreter_is_repaired_and_kept():
    session = await opened("isolated")
    for name, code in REPAIRED.items():
        result = await session.run(code, serve=serve)
        assert result.state == "kept", (name, result)
        assert await goes_on(session), name
    await session.aclose()


@pytest.mark.slow
@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", [*REPAIRED, *DAMAGE])
async def test_no_damage_ends_the_session(name, tier):
    session = await opened(tier)
    await session.run({**REPAIRED, **DAMAGE}[name], serve=serve)
    await anyio.sleep(0.3)
    await session.variables()
    await goes_on(session)
    final = (await session.run("FINAL('done')", serve=serve)).final
    assert final is not None
    assert final.value == "done"
    await session.aclose()


async def test_what_cannot_be_repaired_is_rolled_back():
    session = await opened("isolated")
    result = await session.run(DAMAGE["code of the worker replaced"], serve=serve)
    assert (result.outcome, result.state) == ("protocol", "rolled back"), result
    assert await goes_on(session)
    await session.aclose()


async def test_an_audit_hook_is_refused_since_it_could_not_be_removed():
    session = await opened("isolated")
    result = await session.run("import sys; sys.addaudithook(print)", serve=serve)
    assert "RuntimeError: a cell cannot add an audit hook" in result.error
    await session.aclose()


async def test_a_checkpoint_that_dies_while_no_cell_runs_costs_no_variable_in_silence():
    session = await opened("isolated")
    await session.run(DAMAGE["a timer thread that exits"], serve=serve)
    await anyio.sleep(0.4)
    await session.variables()
    await anyio.sleep(0.2)
    assert await goes_on(session)
    await session.aclose()


async def test_three_cells_that_die_without_a_sign_of_life_make_the_guest_begin_anew():
    session = await opened("isolated")
    for _ in range(3):
        result = await session.run("import os; os._exit(1)", serve=serve)
        assert result.state == "rolled back"
    result = await session.run("print('mine' in globals())", serve=serve)
    assert (result.stdout, result.state) == ("False\n", "lost")
    await session.aclose()


async def test_a_blocked_module_is_put_back_with_a_word_to_the_model():
    session = await opened("isolated")
    result = await session.run("import sys, json; sys.modules['json'] = None", serve=serve)
    assert "sys.modules['json']" in result.stderr
    assert (await session.run("import json; print(json.dumps(1))", serve=serve)).stdout == "1\n"
    await session.aclose()
