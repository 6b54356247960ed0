"""The process that runs cells: one namespace, and a fork before every cell.

A worker waits on its channel. FORK makes a copy of it, with a channel and an output of its own; the copy runs one
cell and then waits in its turn. Everything here may be attacked by the cell it runs, since it shares the process
with it. What must hold even then is the supervisor's: time, memory, life and death, and what reaches the host.
"""

from __future__ import annotations

import _ast as ast  # the part in C, as of `socket`: the rest would be a tenth of a guest's start, each
import _socket as socket
import array
import builtins
import contextlib
import gc
import io
import linecache
import os
import select
import signal
import sys
import traceback
import types
import warnings

from . import calls, frames, hardening, limits, values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn, Self

__all__ = ["Repl", "Worker", "start"]

PREVIEW_CHARS = 200
ECHO_CHARS = 200_000
COMPARED_VALUES = 2_000_000
MOST_DESCRIPTORS = 1024


class Worker:
    """One process of the fork chain."""

    def __init__(self, channel: calls.Channel, leash: int, context: Any, settings: dict[str, Any]) -> None:
        self._channel = channel
        self._leash = leash
        self._settings = settings
        self._repl = Repl(self._call, context, settings)
        self._last_child = 0
        self._handlers: dict[int, Any] = {}

    def _call(self, *call: Any) -> Any:
        return self._channel.call(*call)

    def serve(self) -> NoReturn:
        """Do what the supervisor asks, for ever."""
        while True:
            kind, number, payload, descriptors = self._receive()
            if kind == frames.FORK:
                self._fork(descriptors)
            elif kind == frames.REAP:
                self._channel.send(frames.STATUS, self._reap(number))
            elif kind == frames.RUN:
                self._run(values.decode(payload))
            elif kind == frames.ASK:
                with limits.limited():
                    told = self._repl.tell(values.decode(payload))
                self._channel.send(frames.TOLD, 0, told)

    def _receive(self) -> tuple[int, int, bytes, list[int]]:
        """The next message with the descriptors that came along; nobody else reads while no cell runs.

        Replies to calls that a cell did not wait for are passed over.
        """
        descriptors: list[int] = []
        while True:
            message = self._channel.message()
            if message is None:
                data, came_along = receive_with_descriptors(self._channel.incoming)
                self._channel.take_in(data)
                descriptors += came_along
            elif message[0] != frames.REPLY:
                return (*message, descriptors)

    def _fork(self, descriptors: list[int]) -> None:
        """Make the process for the next cell. The copy goes on from here with the new channel."""
        if self._last_child:
            self._reap(self._last_child)
        dice = sys.modules.get("random")
        rolled = dice.getstate() if dice is not None else None
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # a thread that a cell left is no reason to warn
            pid = fork_or_bury()
        if pid:
            self._last_child = pid
            for descriptor in descriptors:
                os.close(descriptor)
            return
        self._last_child = 0
        if dice is not None:
            dice.setstate(rolled)  # a fork reseeds it
        self._become(descriptors)

    def _become(self, descriptors: list[int]) -> None:
        old, old_leash = self._channel.incoming, self._leash
        incoming, outgoing, self._leash = adopt(descriptors)
        self._channel = calls.Channel(incoming, outgoing, self._settings["shelf_bytes"])
        close_all_of(old, old_leash)
        self._channel.send(frames.HELLO, os.getpid())

    def _reap(self, pid: int) -> int:
        try:
            status = os.waitpid(pid, 0)[1]
        except ChildProcessError:
            status = 0
        if pid == self._last_child:
            self._last_child = 0
        return status

    def _run(self, cell: dict[str, Any]) -> None:
        self._channel.open_to_cells()
        try:
            restore_handlers(self._handlers)
            try:
                with limits.limited():
                    outcome = self._repl.execute(cell)
            finally:
                cancel_timers()
                self._handlers = set_handlers_aside()
            report = self._repl.report(outcome)
        finally:
            self._channel.close_to_cells()
        self._channel.send(frames.DONE, report.keeps_state, report.parts)


def cancel_timers() -> None:
    """A timer of a cell ends with it: it would go off in a process that waits, and end it."""
    for name in ("ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF"):
        signal.setitimer(getattr(signal, name), 0)


def set_handlers_aside() -> dict[int, Any]:
    """While no cell runs no handler of a cell does; those to put back when the next one runs."""
    aside: dict[int, Any] = {}
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if callable(handler) and not isinstance(handler, signal.Handlers):
            aside[number] = handler
            signal.signal(number, signal.SIG_IGN)
        elif number == signal.SIGCHLD and handler is signal.SIG_IGN:
            aside[number] = handler
    if signal.SIGCHLD in aside:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, nobody could learn how a child ended
    return aside


def restore_handlers(handlers: dict[int, Any]) -> None:
    """Put the handlers of cells back in their place."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


def adopt(descriptors: list[int]) -> tuple[int, int, int]:
    """Take over a channel, an output and a leash: 1 and 2 are the cell's, the others are out of its way."""
    channel, stdout, stderr, leash = descriptors
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.close(stdout)
    os.close(stderr)
    channel = limits.raise_descriptor(channel)
    return channel, channel, limits.raise_descriptor(leash)


def fork_or_bury() -> int:
    """Fork; where there is no room for a process, take leave of a cell's dead children first, which take up room."""
    try:
        return os.fork()
    except BlockingIOError:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        return os.fork()


def close_all_of(*descriptors: int) -> None:
    """Close descriptors together with every copy that a cell made of them."""
    marks = {mark(descriptor) for descriptor in descriptors}
    for descriptor in open_descriptors():
        with contextlib.suppress(OSError):
            if mark(descriptor) in marks:
                os.close(descriptor)


def open_descriptors() -> list[int]:
    """The numbers in use. A cell may not list its own folder in /proc, so the kernel is asked about every number."""
    import resource

    poller = select.poll()
    most = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], MOST_DESCRIPTORS)
    for descriptor in range(most):
        poller.register(descriptor, 0)
    unused = {descriptor for descriptor, event in poller.poll(0) if event & select.POLLNVAL}
    return [descriptor for descriptor in range(most) if descriptor not in unused]


def mark(descriptor: int) -> tuple[int, int]:
    """What the copies of one descriptor have in common."""
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def receive_with_descriptors(descriptor: int) -> tuple[bytes, list[int]]:
    """Read what has arrived, nothing only at the end of the stream, with the descriptors that came along."""
    descriptors = array.array("i")
    channel = socket.socket(fileno=descriptor)
    try:
        room = socket.CMSG_LEN(4 * descriptors.itemsize)
        data, ancillary, _, _ = channel.recvmsg(frames.FRAME_BYTES, room)
    finally:
        channel.detach()
    for level, kind, piece in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(piece[: len(piece) - len(piece) % descriptors.itemsize])
    return data, list(descriptors)


class Report:
    """What a cell's process says of the cell: the encoded report, and whether its state is worth keeping."""

    __slots__ = ("keeps_state", "parts")

    def __init__(self, parts: values.Parts, *, keeps_state: bool) -> None:
        self.parts = parts
        self.keeps_state = keeps_state


class Final:
    """The answer a cell gave, encoded at the moment it was given, so that what cannot cross fails in the cell.

    Calling `FINAL` again replaces it: the last call counts. It counts more than `answer["ready"]`.
    """

    def __init__(self, limit: int) -> None:
        self.given: tuple[str, values.Parts] | None = None
        self._limit = limit

    def give(self, source: str, value: Any) -> None:
        try:
            self.given = (source, values.encode(value, limit=self._limit))
        except values.TooLarge as problem:
            raise ValueError(f"{source}: the answer is {problem.reason}; give a shorter one") from None
        except values.Uncrossable as problem:
            raise TypeError(
                f"{source}: the answer holds {problem.reason}, at answer{problem.path}; "
                "give str, numbers, lists, dicts or other plain values"
            ) from None


class Repl:
    """The namespace of the cells and how they run in it."""

    def __init__(
        self,
        call: Callable[..., Any],
        context: Any,
        settings: dict[str, Any],
    ) -> None:
        self._final = Final(settings["answer_bytes"])
        self._limit = settings["answer_bytes"]
        self._context = Pristine(context)
        self._flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        self.module = types.ModuleType("__main__")
        self.names = self.module.__dict__
        self.names["__builtins__"] = builtins
        self._reserved = {**calls.namespace(call), **self._answer_functions()}
        self._builtins = dict(vars(builtins))
        sys.modules["__main__"] = self.module
        self._provide()
        self._first_names = frozenset(self.names)

    def execute(self, cell: dict[str, Any]) -> tuple[str, str]:
        """Run one cell, whatever it does short of taking the process with it; its outcome and traceback."""
        self._final.given = None
        if cell["fresh_answer"]:
            self.names["answer"] = fresh_answer()
        streams = streams_of_process()
        sys.stdin, sys.stdout, sys.stderr = NoInput(), *streams
        outcome = self._execute(cell["code"], f"<cell {cell['cell']}>")
        restore_builtins(self._builtins)
        for stream in (sys.stdout, sys.stderr, *streams):
            flush(stream)
        return outcome

    def report(self, outcome: tuple[str, str]) -> Report:
        """What there is to say of the cell that was executed."""
        kind, error = outcome
        if kind == "memory":
            return Report(values.encode((kind, error, None, None)), keeps_state=False)
        return self._report(kind, error)

    def tell(self, question: dict[str, Any]) -> values.Parts:
        """What variables there are, or the value of one; asked of a copy that is thrown away afterwards."""
        if question["what"] == "variables":
            return values.encode(
                [describe(name, value, plain=question["plain"]) for name, value in self._users()]
            )
        name = question["name"]
        if name not in self.names:
            return values.encode(("missing", [name for name, _ in self._users()]))
        try:
            value = values.encode(self.names[name], limit=self._limit)
            return values.encode_tuple(values.encode("value"), value)
        except values.Uncrossable as problem:
            return values.encode(("uncrossable", f"{name}{problem.path}: {problem.reason}"))

    # --- running ---------------------------------------------------------------------------------------------

    def _execute(self, code: str, filename: str) -> tuple[str, str]:
        """Run the code; the outcome and the traceback. The border of a cell: it may raise anything."""
        lines = code.splitlines(keepends=True)
        linecache.cache[filename] = (len(code), None, lines, filename)
        try:
            with Steps() as steps:
                for step in self._compile(code, filename):
                    steps.take(step, self.names)
        except SystemExit as error:
            return "exited", explain(error)
        except MemoryError as error:
            return "memory", explain(error)
        except BaseException as error:  # noqa: BLE001 - the border of a cell
            return "raised", explain(error)
        return "ok", ""

    def _compile(self, code: str, filename: str) -> Iterator[types.CodeType]:
        """The statements as one piece of code, and a trailing expression as another that shows its value."""
        tree = compile(code, filename, "exec", self._flags | ast.PyCF_ONLY_AST, dont_inherit=True)
        body = tree.body
        last = (
            body.pop()
            if body and isinstance(body[-1], ast.Expr) and shows_its_value(body[-1], code)
            else None
        )
        if body or last is None:
            yield self._code(tree, filename, "exec")
        if last is not None:
            yield self._code(ast.Interactive([last]), filename, "single")

    def _code(self, tree: ast.Module | ast.Interactive, filename: str, mode: str) -> types.CodeType:
        made: types.CodeType = compile(tree, filename, mode, self._flags, dont_inherit=True)
        self._flags |= made.co_flags & FUTURE_FLAGS  # a `from __future__` holds for the cells that follow
        return made

    def _report(self, outcome: str, error: str) -> Report:
        """Put names back in their place and look at what the cell gave as its answer."""
        draft, problem = self._judge_answer()
        if problem:
            outcome, error = "raised", (error + "\n" if error else "") + problem
        self._provide()
        head = (outcome, error, draft)
        if self._final.given is None:
            return Report(values.encode((*head, None)), keeps_state=True)
        source, value = self._final.given
        self._final.given = None
        given = values.encode_tuple(values.encode(source), value)
        return Report(values.encode_tuple(*map(values.encode, head), given), keeps_state=True)

    def _judge_answer(self) -> tuple[Any, str]:
        """The draft to report, and what was wrong with an answer that was ready but cannot cross."""
        answer = self.names.get("answer")
        if not isinstance(answer, dict):
            answer = self.names["answer"] = {**fresh_answer(), "content": "" if answer is None else answer}
        content = dict.get(answer, "content")
        try:
            ready = bool(dict.get(answer, "ready"))
            if ready and self._final.given is None:
                self._final.give("answer", content)
                dict.__setitem__(answer, "ready", False)  # given once; a later cell does not give it again
                return None, ""
        except Exception as error:  # noqa: BLE001 - the truth of `ready` is a cell's object too
            dict.__setitem__(answer, "ready", False)
            return None, explain(error)
        return self._crossable(content), ""

    def _crossable(self, draft: Any) -> Any:
        """A draft only informs, so what of it cannot cross goes as text."""
        try:
            values.encode(draft, limit=self._limit)
        except values.Uncrossable:
            return preview(draft, plain=True)
        return draft

    # --- names -----------------------------------------------------------------------------------------------

    def _provide(self) -> None:
        """Put the reserved names back, whatever a cell did to them."""
        self.names.update(self._reserved)
        self.names["__builtins__"] = builtins
        self.names["__name__"] = "__main__"
        self.names["context"] = self._context.restored()
        sys.modules["__main__"] = self.module
        if not isinstance(self.names.get("answer"), dict):
            self.names["answer"] = fresh_answer()

    def _users(self) -> list[tuple[str, Any]]:
        """The names that cells made, in the order they made them."""
        return [
            (name, value)
            for name, value in list(self.names.items())
            if type(name) is str
            and name not in self._first_names
            and name != "_"
            and not name.startswith("__")
        ]

    def _answer_functions(self) -> dict[str, Any]:
        def FINAL(value: Any) -> None:  # noqa: N802 - the name models know
            """Give the answer of the whole run. The cell goes on; a later call replaces it."""
            self._final.give("FINAL", value)

        def FINAL_VAR(name: str) -> None:  # noqa: N802 - the name models know
            """Give the variable of this name as the answer of the whole run."""
            if not isinstance(name, str):
                raise TypeError(
                    f'FINAL_VAR takes the name of a variable, as in FINAL_VAR("result"), not {type(name).__name__}'
                )
            wanted = name.strip()
            if wanted not in self.names:
                there = ", ".join(sorted(name for name, _ in self._users())) or "none yet"
                raise NameError(f"FINAL_VAR: there is no variable {wanted!r}; the variables are: {there}")
            value = self.names[wanted]
            if wanted == "answer" and isinstance(value, dict) and value.keys() == fresh_answer().keys():
                value = value["content"]  # `answer = "Paris"` has become the content of the reserved dict
            self._final.give("FINAL_VAR", value)

        def SHOW_VARS() -> str:  # noqa: N802 - the name models know
            """The variables there are, one a line, each with its type, length and the head of its value."""
            rows = [describe(name, value, plain=False) for name, value in self._users()]
            return Shown(
                "\n".join(f"{row[0]}: {row[1]}{sized(row[2])} = {row[3]}" for row in rows)
                or "no variables yet"
            )

        functions: dict[str, Any] = {"FINAL": FINAL, "FINAL_VAR": FINAL_VAR, "SHOW_VARS": SHOW_VARS}
        for function in functions.values():
            function.__module__ = "builtins"
            function.__qualname__ = function.__name__
        return functions


class Steps:
    """Runs pieces of code one after the other; those that await share one event loop, made when first needed."""

    def __init__(self) -> None:
        self._runner: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._runner is not None:
            self._runner.close()

    def take(self, code: types.CodeType, names: dict[str, Any]) -> None:
        """Run one piece."""
        awaited = eval(code, names)  # noqa: S307 - running a cell's code is what this process is for
        if code.co_flags & COROUTINE:
            if self._runner is None:
                import asyncio

                self._runner = asyncio.Runner()
            self._runner.run(awaited)


COROUTINE = 0x80  # inspect.CO_COROUTINE; inspect takes long to import
FUTURE_FLAGS = 0x1FF0000 & ~ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


class Pristine:
    """The context as it was loaded, and the way back to it.

    Text, bytes, numbers: nobody can change them, so the name is bound again. Of containers the shape is copied (a
    list's slots, a dict's keys; texts are shared) and compared after each cell, at the speed of `==`. Beyond
    COMPARED_VALUES values the comparison would cost more than it is worth, and only the outermost is looked at.
    """

    def __init__(self, value: Any) -> None:
        self._value = value
        self._copy = copy_shape(value)
        self._small = count_values(value, COMPARED_VALUES) < COMPARED_VALUES

    def restored(self) -> Any:
        """The context for the next cell: as it is where nothing changed it, else a fresh copy."""
        if self._copy is not self._value and not self._unchanged():
            self._value = copy_shape(self._copy)
        return self._value

    def _unchanged(self) -> bool:
        try:
            if not self._small:
                return len(self._value) == len(self._copy)
            return bool(self._value == self._copy)
        except Exception:  # noqa: BLE001 - a cell's object in there may compare as it likes
            return False


def fresh_answer() -> dict[str, Any]:
    """The `answer` that a question begins with."""
    return {"content": "", "ready": False}


def copy_shape(value: Any) -> Any:
    """A copy of all that can be changed in a value, sharing what cannot."""
    kind = type(value)
    if kind is list:
        return [copy_shape(item) for item in value]
    if kind is dict:
        return {key: copy_shape(item) for key, item in value.items()}
    if kind is tuple:
        copied = tuple([copy_shape(item) for item in value])
        return value if all(map(same, copied, value)) else copied
    if kind is set or kind is bytearray:
        return kind(value)
    return value


def same(one: object, other: object) -> bool:
    """Whether two names are of one object."""
    return one is other


def count_values(value: Any, most: int) -> int:
    """How many values a value is made of, counted up to `most`."""
    kind = type(value)
    count = 1
    if kind in (list, tuple, set, frozenset, dict):
        count += len(value)
        for item in value.values() if kind is dict else value:
            if count >= most:
                break
            if type(item) in (list, tuple, set, frozenset, dict):
                count += count_values(item, most - count)
    return count


# --- what a cell sees and shows ------------------------------------------------------------------------------


class NoInput(io.TextIOBase):
    """The stdin of a cell: nobody is there."""

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]  # noqa: ARG002
        """Refuse, with what to do instead."""
        raise EOFError("a cell cannot read input: nobody is there to type; the data is in `context`")

    def read(self, size: int | None = -1, /) -> str:  # noqa: ARG002
        """Nothing, as at the end of a file."""
        return ""

    def readable(self) -> bool:
        """It can be asked."""
        return True


class Shown(str):  # noqa: SLOT000 - there is one at a time
    """A text that a trailing expression shows as it is, without quotes."""

    def __repr__(self) -> str:
        return str.__str__(self)


def streams_of_process() -> tuple[io.TextIOBase, io.TextIOBase]:
    """New text files on descriptors 1 and 2."""
    one, two = (text_stream(io.FileIO(descriptor, "w", closefd=False)) for descriptor in (1, 2))
    return one, two


def text_stream(raw: io.RawIOBase) -> io.TextIOWrapper:
    """A text file, sent on at each line; a lone surrogate is shown by its number."""
    return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace", line_buffering=True)


def flush(stream: Any) -> None:
    """Push out what is waiting, where that can be done."""
    with contextlib.suppress(Exception):  # a cell may have closed it, or put anything in its place
        stream.flush()


def show(value: Any) -> None:
    """Echo the value of a trailing expression, as the REPL does; of a very long text, its head and tail."""
    if value is None:
        return
    text = preview_long(value) if type(value) in (str, bytes) and len(value) > ECHO_CHARS else repr(value)
    print(text)  # noqa: T201 - the cell's own output
    sys.modules["__main__"].__dict__["_"] = value


def preview_long(value: Any) -> str:
    """The head and tail of a long text, and its length, without ever making a copy of the whole."""
    half = ECHO_CHARS // 4
    return f"{value[:half]!r}\n… ({len(value):,} in all) …\n{value[-half:]!r}"


def shows_its_value(last: ast.Expr, code: str) -> bool:
    """Whether a trailing expression is echoed: not where a `;` follows it."""
    lines = code.encode("utf-8", "surrogatepass").splitlines()
    if last.end_lineno is None or last.end_col_offset is None:
        return True
    rest = lines[last.end_lineno - 1][last.end_col_offset :] if last.end_lineno <= len(lines) else b""
    return not rest.lstrip(b" \t)").startswith(b";")


def explain(error: BaseException) -> str:
    """The traceback as Python shows it, without the frames of the harness; whatever the exception is made of."""
    try:
        story = traceback.TracebackException.from_exception(error, compact=True)
        leave_out_harness(story, 0)
        return "".join(story.format()).rstrip("\n")
    except BaseException as failure:  # noqa: BLE001 - an exception made to break its own report
        return f"{type.__getattribute__(type(error), '__name__')} (and showing it raised {type(failure).__name__})"


def leave_out_harness(story: traceback.TracebackException | None, depth: int) -> None:
    """Remove the harness's own frames from a traceback and from those it is chained to."""
    if story is None or depth > values.DEPTH:
        return
    kept = [entry for entry in story.stack if not entry.filename.startswith("<guest/")]
    story.stack = traceback.StackSummary.from_list(kept)
    leave_out_harness(story.__cause__, depth + 1)
    leave_out_harness(story.__context__, depth + 1)
    for inner in getattr(story, "exceptions", None) or ():
        leave_out_harness(inner, depth + 1)


def describe(name: str, value: Any, *, plain: bool) -> tuple[str, str, int | None, str]:
    """A variable's name, type, length and preview; `plain` calls no code of the value's own class."""
    kind = type(value)
    length = len(value) if kind in SIZED else None
    if length is None and not plain:
        try:
            measured = len(value)
            length = measured if type(measured) is int else None
        except Exception:  # noqa: BLE001 - a cell's class may do anything in __len__
            length = None
    return (
        name[:PREVIEW_CHARS],
        str(type.__getattribute__(kind, "__name__"))[:PREVIEW_CHARS],
        length,
        preview(value, plain=plain),
    )


SIZED = frozenset({str, bytes, bytearray, list, tuple, dict, set, frozenset})


def preview(value: Any, *, plain: bool) -> str:
    """The head of a value's repr, made without building the whole; `plain` calls no code of its own class."""
    import reprlib

    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = PREVIEW_CHARS
    try:
        if type(value) in (str, bytes, bytearray):
            text = repr(value[:PREVIEW_CHARS])
        elif plain and type(value) not in (int, float, bool, complex, type(None)):
            text = object.__repr__(value)
        else:
            text = short.repr(value)
        return str.__str__(text)[:PREVIEW_CHARS]
    except Exception as error:  # noqa: BLE001 - a cell's class may do anything in __repr__
        return f"<its repr raised {type(error).__name__}>"


def sized(length: int | None) -> str:
    """A length for a table."""
    return "" if length is None else f" of {length:,}"


def restore_builtins(pristine: dict[str, Any]) -> None:
    """Give back the builtins that a cell deleted or replaced; what it added stays."""
    now = vars(builtins)
    dict.update(now, pristine)
    sys.displayhook = show
    sys.excepthook = sys.__excepthook__


def forgive_refused_modes() -> None:
    """Let `shutil.copy` and its kin copy files: that a copy keeps a mode and times of its own here is no failure."""
    import shutil

    for name in ("copymode", "copystat"):
        setattr(shutil, name, _forgiving(getattr(shutil, name)))


def _forgiving(function: Callable[..., None]) -> Callable[..., None]:
    def copied(*arguments: Any, **options: Any) -> None:
        with contextlib.suppress(PermissionError):
            function(*arguments, **options)

    copied.__name__, copied.__doc__ = function.__name__, function.__doc__
    return copied


def start(descriptors: list[int], context: Any, settings: dict[str, Any]) -> NoReturn:
    """Become the first worker, in a process the supervisor has just forked; never returns to it."""
    try:
        sys.displayhook = show
        sys.argv = [""]
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        *ends, leash = adopt(descriptors)
        hardening.confine(settings)
        forgive_refused_modes()
        worker = Worker(calls.Channel(*ends), leash, context, settings)
        gc.collect()
        gc.freeze()
        worker._channel.send(frames.HELLO, os.getpid())  # noqa: SLF001 - its own module
        worker.serve()
    finally:
        os._exit(70)
