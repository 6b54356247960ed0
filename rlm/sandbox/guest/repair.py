"""Repair of what a cell changes in the interpreter that it shares with later cells and with the worker's own code.

What is not repaired here counts as damage: a worker that cannot fork the next one is rolled back (`supervisor`).
"""

from __future__ import annotations

import _locale
import _signal  # type: ignore[import-not-found]  # `signal` makes an enum of every number: 0.3 ms a cell
import builtins
import contextlib
import gc
import linecache
import os
import resource
import signal
import sys
import threading
import types

from .echo import show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = [
    "FORKS_WORKERS",
    "allow_copies_without_mode",
    "cancel_timers",
    "make_repair",
    "restore_handlers",
    "suspend_handlers",
]

SIGNALS = tuple(sorted(_signal.valid_signals()))
CONSTANTS = (str, bytes, int, float, tuple, frozenset)
FORKS_WORKERS: list[bool] = []
"""Not empty while a worker forks the next one."""
# Modules, or packages with all their modules, that a worker's own code does not use once it serves.
NOT_REPAIRED = frozenset(
    {
        "__main__", "posix", "re", "_sre", "enum", "copyreg", "stat", "token", "_weakrefset", "collections", "ctypes", "_ctypes", "shutil", "bz2", "_bz2", "lzma", "_lzma", "zlib", "mmap", "zipimport", "keyword",
        "_compression", "fnmatch", "guest.supervisor", "guest.cell_watch", "guest.worker_process", "guest.pipes",
        "guest.hardening", "guest.landlock", "guest.seccomp", "guest.namespaces", "guest.users", "guest.folders",
        "guest.trials", "guest.libc",
    }
)  # fmt: skip


def make_repair() -> Callable[[], list[str]]:
    """Copy what cells share with this code now, before any cell; return the function that puts it back.

    That function is called right after the cell. Until it has put back the functions and the builtins, it uses only
    its own variables, which a cell does not reach by name. It returns the names of the modules that a cell had
    blocked, for a word to the user. Kept are what a cell may want for later cells and what does no harm: imported
    modules and their contents, further entries of `sys.path`, variables of the environment, warnings filters.
    """
    forbid_audit_hooks()
    guard_fork_hooks()
    set_recursion_limit, recursion_limit = sys.setrecursionlimit, sys.getrecursionlimit()
    set_trace, set_profile, update = sys.settrace, sys.setprofile, dict.update
    builtin_names, pristine_builtins = vars(builtins), dict(vars(builtins))
    contents = [(vars(module), pristine_contents(module)) for module in repaired_modules()]
    put_back_rest = InterpreterState().put_back

    def repair() -> list[str]:
        set_recursion_limit(recursion_limit)
        set_trace(None)
        set_profile(None)
        update(builtin_names, pristine_builtins)
        for names, pristine in contents:
            update(names, pristine)
        return put_back_rest()

    return repair


def repaired_modules() -> list[types.ModuleType]:
    """Return the modules that a worker's own code uses, directly or through others."""
    return [
        module
        for name, module in sys.modules.items()
        if name not in NOT_REPAIRED and name.partition(".")[0] not in NOT_REPAIRED
    ]


def pristine_contents(module: types.ModuleType) -> dict[str, Any]:
    """Return the functions, classes and modules in a module; of a module of the guest, the constants too.

    Other variables are state, which changes with every fork and call.
    """
    is_own = module.__name__.startswith("guest.")
    return {
        name: value
        for name, value in vars(module).items()
        if callable(value) or isinstance(value, types.ModuleType) or (is_own and isinstance(value, CONSTANTS))
    }


class InterpreterState:
    """Pristine copies of what is neither a builtin nor a function of a module."""

    def __init__(self) -> None:
        self._modules = sys.modules
        self._pristine_modules = {name: module for name, module in sys.modules.items() if name != "__main__"}
        self._known_modules = dict(self._pristine_modules)
        self._own_names = [
            (vars(module), frozenset(vars(module)))
            for module in repaired_modules()
            if module.__name__.startswith("guest.")
        ]
        self._classes = [
            (
                value,
                {name: item for name, item in vars(value).items() if name not in ("__dict__", "__weakref__")},
            )
            for names, _ in self._own_names
            for value in names.values()
            if isinstance(value, type) and value.__module__ == names["__name__"]
        ]
        self._lists = [
            (sys, name, getattr(sys, name), list(getattr(sys, name))) for name in ("meta_path", "path_hooks")
        ]
        self._path = sys.path, list(sys.path)
        self._callbacks = gc.callbacks, list(gc.callbacks)
        self._environment = os.environ, dict(os.environ)
        self._line_cache = linecache.cache
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._switch_interval = sys.getswitchinterval()
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._locale = _locale.setlocale(_locale.LC_ALL)
        self._limits = [
            (number, *resource.getrlimit(number))
            for name in dir(resource)
            if name.startswith("RLIMIT_")
            for number in (getattr(resource, name),)
        ]

    def put_back(self) -> list[str]:
        """Put everything back; return the names of the modules that were blocked."""
        for names, own in self._own_names:
            if len(names) != len(own):
                for name in names.keys() - own:
                    del names[name]  # it may hide a builtin
        for kind, attributes in self._classes:
            current = vars(kind)
            for name, value in attributes.items():
                if current.get(name) is not value:
                    type.__setattr__(kind, name, value)
        self._put_back_variables()
        self._put_back_process()
        self._put_back_import_lists()
        return self._put_back_modules()

    def _put_back_variables(self) -> None:
        """Put back hooks of `sys`, the environment's lost variables, the cache of source lines."""
        sys.displayhook = show
        sys.excepthook = sys.__excepthook__
        os.environ = self._environment[0]  # noqa: B003 - the same object again, if a cell replaced it
        for name, value in self._environment[1].items():
            if name not in os.environ:
                os.environ[name] = value
        if linecache.cache is not self._line_cache:
            linecache.cache = self._line_cache

    def _put_back_process(self) -> None:
        """Put back what belongs to the process: callbacks, signal mask, umask, locale, soft limits."""
        gc.callbacks, gc.callbacks[:] = self._callbacks
        if gc.get_debug():
            gc.set_debug(0)
        threading.settrace(None)
        threading.setprofile(None)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        sys.setswitchinterval(self._switch_interval)
        os.umask(self._umask)
        if _locale.setlocale(_locale.LC_ALL) != self._locale:
            _locale.setlocale(_locale.LC_ALL, self._locale)
        for number, soft, hard in self._limits:
            if resource.getrlimit(number) != (soft, hard):
                with contextlib.suppress(ValueError, OSError):  # a hard limit that was lowered stays
                    resource.setrlimit(number, (soft, hard))

    def _put_back_import_lists(self) -> None:
        """Remove import hooks that a cell defined, and return to `sys.path` what it removed."""
        for owner, name, pristine_list, pristine in self._lists:
            current = getattr(owner, name, None)
            added = [hook for hook in current if hook not in pristine] if isinstance(current, list) else []
            pristine_list[:] = [hook for hook in added if not is_of_cell(hook)] + pristine
            setattr(owner, name, pristine_list)
        path, pristine_path = self._path
        current_path: Any = sys.path  # a cell may have put anything there
        if current_path is not path or not set(pristine_path) <= set(filter(is_text, path)):
            added = [item for item in current_path if is_text(item)] if isinstance(current_path, list) else []
            path[:] = [*added, *(item for item in pristine_path if item not in added)]
            sys.path = path

    def _put_back_modules(self) -> list[str]:
        sys.modules = self._modules
        modules: dict[str, Any] = self._modules
        blocked = [name for name, module in modules.items() if module is None]
        for name, module in self._pristine_modules.items():
            if modules.get(name) is not module:
                modules[name] = module
        for name in blocked:
            if name in self._known_modules:
                modules[name] = self._known_modules[name]
            else:
                del modules[name]
        if len(modules) != len(self._known_modules):
            self._known_modules = {name: module for name, module in modules.items() if module is not None}
        return blocked


def is_text(value: Any) -> bool:
    return type(value) is str


def is_of_cell(value: Any) -> bool:
    """Return True if a cell has defined a function, or the class of an object."""
    defined = value if isinstance(value, (type, types.FunctionType)) else type(value)
    return getattr(defined, "__module__", "__main__") == "__main__"


def forbid_audit_hooks() -> None:
    """Have `sys.addaudithook` raise: such a hook acts on all later cells and on this code, and cannot be removed."""

    def addaudithook(hook: Any) -> None:  # noqa: ARG001
        raise RuntimeError("a cell cannot add an audit hook: it could not be removed for the next cell")

    sys.addaudithook = addaudithook


def guard_fork_hooks() -> None:
    """Have hooks that a cell registers act in the cell's own forks only: they cannot be removed either."""
    import posix

    register = os.register_at_fork

    def register_at_fork(**hooks: Any) -> None:
        """Register callables to be called when forking a new process."""
        register(**{when: _in_cells_only(hook) if is_of_cell(hook) else hook for when, hook in hooks.items()})

    os.register_at_fork = posix.register_at_fork = register_at_fork


def _in_cells_only(hook: Callable[[], object]) -> Callable[[], None]:
    def in_cell() -> None:
        if not FORKS_WORKERS:
            hook()

    return in_cell


def cancel_timers() -> None:
    """Cancel the timers of a cell: their signals would otherwise end the waiting worker."""
    for name in ("ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF"):
        signal.setitimer(getattr(signal, name), 0)


def suspend_handlers() -> dict[int, Any]:
    """Ignore each signal that a cell handles, and return its handlers for `restore_handlers`.

    While no cell runs, a handler of a cell would run inside the worker's own code, and may raise in it.
    """
    handlers: dict[int, Any] = {}
    for number in SIGNALS:
        handler = _signal.getsignal(number)
        if callable(handler):
            handlers[number] = handler
            _signal.signal(number, _signal.SIG_IGN)
        elif number == _signal.SIGCHLD and handler == _signal.SIG_IGN:
            handlers[number] = handler
    if signal.SIGCHLD in handlers:
        # Ignored, the kernel would reap children itself, and REAP could not learn how one ended.
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    return handlers


def restore_handlers(handlers: dict[int, Any]) -> None:
    """Install the handlers of earlier cells again, for the cell that begins."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


def allow_copies_without_mode() -> None:
    """Make `shutil.copy` and similar functions succeed although seccomp refuses to set the copy's mode and times."""
    import shutil

    for name in ("copymode", "copystat"):
        setattr(shutil, name, _without_permission_error(getattr(shutil, name)))


def _without_permission_error(function: Callable[..., None]) -> Callable[..., None]:
    def copied(*arguments: Any, **options: Any) -> None:
        with contextlib.suppress(PermissionError):
            function(*arguments, **options)

    copied.__name__, copied.__doc__ = function.__name__, function.__doc__
    return copied
