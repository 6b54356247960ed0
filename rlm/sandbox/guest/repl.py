"""The REPL of one worker: the namespace of the cells, running a cell, its answer, and what later cells find."""

from __future__ import annotations

import _ast as ast  # the part in C: the rest would be a tenth of a guest's start
import builtins
import linecache
import operator
import sys
import types

from . import api, values
from .console import PoliteExit, console_names, plain_spaces, questions_as_help
from .echo import NoInput, Shown, describe, flush, is_echoed, of_length, preview, streams_of_process
from .failures import format_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Self

__all__ = ["CellReport", "Repl"]


COMPARED_VALUES = 2_000_000
COROUTINE = 0x80  # inspect.CO_COROUTINE; inspect takes long to import
FUTURE_FLAGS = 0x1FF0000 & ~ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


class Repl:
    """The namespace of the cells and the context, and the answer that a cell gives.

    Reserved names (`context`, `llm_query`, `FINAL`, …) are put back after each cell.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        context: Any,
        settings: dict[str, Any],
    ) -> None:
        self._final = FinalAnswer(settings["answer_bytes"])
        self._limit = settings["answer_bytes"]
        self._context = PristineContext(context)
        self._flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        self.module = types.ModuleType("__main__")
        self.names = self.module.__dict__
        self.names["__builtins__"] = builtins
        self._reserved = {**api.namespace(call), **self._answer_functions()}
        vars(builtins).update(console_names())
        self._call = call
        self.repair: Callable[[], list[str]] = list
        sys.modules["__main__"] = self.module
        self._restore_names()
        self._first_names = frozenset(self.names)

    def execute(self, cell: dict[str, Any]) -> tuple[str, str]:
        """Run one cell and return its outcome and traceback; what the cell raises does not leave this method."""
        self._final.given = None
        if cell["fresh_answer"]:
            self.names["answer"] = fresh_answer()
        is_rehearsal = cell.get("rehearsal", False)
        names = {"ask": self._call} if is_rehearsal else self.names
        repair = self.repair  # bound now: the cell may replace the attribute
        streams = streams_of_process()
        sys.stdin, sys.stdout, sys.stderr = NoInput(), *streams
        outcome = self._execute(cell["code"], f"<cell {cell['cell']}>", names)
        put_back = [] if is_rehearsal else repair()
        if put_back:
            listed = "], sys.modules[".join(map(repr, put_back))
            streams[1].write(f"put back after this cell: sys.modules[{listed}]\n")
        for stream in (sys.stdout, sys.stderr, *streams):
            flush(stream)
        return outcome

    def report(self, outcome: tuple[str, str]) -> CellReport:
        """Return the report of the cell that has run, and put the reserved names back."""
        kind, error = outcome
        if (
            kind == "memory"
        ):  # half of a statement may be done, and gigabytes in use: the checkpoint is better
            nothing = values.encode(None)
            return CellReport([*values.encode((kind, error, None)), *nothing, *nothing], keeps_state=False)
        return self._report(kind, error)

    def rehearsal_report(self, outcome: tuple[str, str]) -> CellReport:
        """Return the report of a rehearsal, which leaves the answer and the names as they are."""
        nothing = values.encode(None)
        return CellReport([*values.encode((*outcome, None)), *nothing, *nothing], keeps_state=True)

    def inspect(self, question: dict[str, Any]) -> values.Parts:
        """Return the encoded list of variables, or the value of one. The supervisor kills this process afterwards."""
        if question["what"] == "variables":
            return values.encode(
                [describe(name, value, safe=question["safe"]) for name, value in self._user_variables()]
            )
        name = question["name"]
        if name not in self.names:
            return values.encode(("missing", [name for name, _ in self._user_variables()]))
        try:
            value = values.encode(self.names[name], limit=self._limit, max_values=values.MOST_VALUES - 2)
            return values.encode_tuple(values.encode("value"), value)
        except values.Uncrossable as problem:
            return values.encode(("uncrossable", f"{name}{problem.path}: {problem.reason}"))

    # --- running ---------------------------------------------------------------------------------------------

    def _execute(self, code: str, filename: str, names: dict[str, Any]) -> tuple[str, str]:
        """Compile and run the code; return outcome and traceback."""
        lines = code.splitlines(keepends=True)
        linecache.cache[filename] = (len(code), None, lines, filename)
        try:
            with CodeRunner() as runner:
                for part in self._compile(code, filename):
                    runner.run(part, names)
        except PoliteExit:
            return "ok", ""
        except SystemExit as error:
            return "exited", format_error(error)
        except MemoryError as error:
            return "memory", format_error(error)
        except BaseException as error:  # noqa: BLE001 - the border of a cell
            return "raised", format_error(error)
        return "ok", ""

    def _compile(self, code: str, filename: str) -> Iterator[types.CodeType]:
        """Yield the statements as one code object, and a trailing expression as another that echoes its value."""
        tree, code = self._parse(code, filename)
        body = tree.body
        last = body.pop() if body and isinstance(body[-1], ast.Expr) and is_echoed(body[-1], code) else None
        if body or last is None:
            yield self._code(tree, filename, "exec")
        if last is not None:
            yield self._code(ast.Interactive([last]), filename, "single")

    def _parse(self, code: str, filename: str) -> tuple[ast.Module, str]:
        """Return the tree and the code; code that is no Python is parsed again without what people paste or ask."""
        flags = self._flags | ast.PyCF_ONLY_AST
        try:
            return compile(code, filename, "exec", flags, dont_inherit=True), code
        except SyntaxError:
            readable = questions_as_help(plain_spaces(code))
            if readable == code:
                raise
        return compile(readable, filename, "exec", flags, dont_inherit=True), readable

    def _code(self, tree: ast.Module | ast.Interactive, filename: str, mode: str) -> types.CodeType:
        made: types.CodeType = compile(tree, filename, mode, self._flags, dont_inherit=True)
        self._flags |= made.co_flags & FUTURE_FLAGS  # a `from __future__` holds for the cells that follow
        return made

    def _report(self, outcome: str, error: str) -> CellReport:
        """Return the report of a cell whose state is kept."""
        draft, problem = self._take_answer()
        if problem:
            outcome, error = "raised", (error + "\n" if error else "") + problem
        self._restore_names()
        source, value = self._final.given or (None, values.encode(None))
        self._final.given = None
        return CellReport([*values.encode((outcome, error, source)), *value, *draft], keeps_state=True)

    def _take_answer(self) -> tuple[values.Parts, str]:
        """Give `answer` as the final answer if it is ready; return the draft, and the error if it cannot be sent to the host."""
        answer = self.names.get("answer")
        if not isinstance(answer, dict):
            answer = self.names["answer"] = {**fresh_answer(), "content": "" if answer is None else answer}
        content = dict.get(answer, "content")
        try:
            ready = bool(dict.get(answer, "ready"))
            if ready and self._final.given is None:
                self._final.give("answer", content)
                dict.__setitem__(answer, "ready", False)  # a later cell must not give it again
                return values.encode(None), ""
        except Exception as error:  # noqa: BLE001 - the truth of `ready` is a cell's object too
            dict.__setitem__(answer, "ready", False)
            return values.encode(None), format_error(error)
        return self._draft(content), ""

    def _draft(self, draft: Any) -> values.Parts:
        """Return the draft, or a preview of one that cannot be sent: a draft only informs, it must not fail the cell."""
        try:
            return values.encode(draft, limit=self._limit, max_values=values.MOST_VALUES)
        except Exception:  # noqa: BLE001 - also what a cell's own object raises while it is encoded
            return values.encode(preview(draft, safe=True))

    # --- names -----------------------------------------------------------------------------------------------

    def _restore_names(self) -> None:
        """Put the reserved names back."""
        self.names.update(self._reserved)
        self.names["__builtins__"] = builtins
        self.names["__name__"] = "__main__"
        self.names["context"] = self._context.restored()
        sys.modules["__main__"] = self.module
        if not isinstance(self.names.get("answer"), dict):
            self.names["answer"] = fresh_answer()

    def _user_variables(self) -> list[tuple[str, Any]]:
        """Return the variables that cells have made, in that order."""
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
                there = ", ".join(sorted(name for name, _ in self._user_variables())) or "none yet"
                raise NameError(f"FINAL_VAR: there is no variable {wanted!r}; the variables are: {there}")
            value = self.names[wanted]
            if wanted == "answer" and isinstance(value, dict) and value.keys() == fresh_answer().keys():
                value = value["content"]  # `answer = "Paris"` has become the content of the reserved dict
            self._final.give("FINAL_VAR", value)

        def SHOW_VARS() -> str:  # noqa: N802 - the name models know
            """List the variables, one a line, each with its type, length and the head of its value."""
            rows = [describe(name, value, safe=False) for name, value in self._user_variables()]
            return Shown(
                "\n".join(f"{row[0]}: {row[1]}{of_length(row[2])} = {row[3]}" for row in rows)
                or "no variables yet"
            )

        functions: dict[str, Any] = {"FINAL": FINAL, "FINAL_VAR": FINAL_VAR, "SHOW_VARS": SHOW_VARS}
        for function in functions.values():
            function.__module__ = "builtins"
            function.__qualname__ = function.__name__
        return functions


class CellReport:
    """The encoded report of a cell, and whether the state of its process is worth keeping."""

    __slots__ = ("keeps_state", "parts")

    def __init__(self, parts: values.Parts, *, keeps_state: bool) -> None:
        self.parts = parts
        self.keeps_state = keeps_state


class FinalAnswer:
    """The answer that a cell gives, encoded at that moment: what cannot be sent raises in the cell, at the call.

    A second call of `FINAL` replaces it. It takes precedence over `answer["ready"]`.
    """

    def __init__(self, limit: int) -> None:
        self.given: tuple[str, values.Parts] | None = None
        self._limit = limit

    def give(self, source: str, value: Any) -> None:
        try:
            self.given = (source, values.encode(value, limit=self._limit, max_values=values.MOST_VALUES))
        except values.TooLarge as problem:
            raise ValueError(f"{source}: the answer is {problem.reason}; give a shorter one") from None
        except values.Uncrossable as problem:
            raise TypeError(
                f"{source}: the answer holds {problem.reason}, at answer{problem.path}; "
                "give str, numbers, lists, dicts or other plain values"
            ) from None


class CodeRunner:
    """Runs the code objects of a cell in turn; those that await share one event loop, made when first needed."""

    def __init__(self) -> None:
        self._runner: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._runner is not None:
            self._runner.close()
            # The runner leaves "no event loop"; with a new policy `asyncio.get_event_loop()` makes one when asked.
            asyncio = sys.modules.get("asyncio")
            if asyncio is not None and sys.version_info < (3, 14):
                asyncio.set_event_loop_policy(None)

    def run(self, code: types.CodeType, names: dict[str, Any]) -> None:
        """Run one code object."""
        awaited = eval(code, names)  # noqa: S307 - running a cell's code is what this process is for
        if code.co_flags & COROUTINE:
            if self._runner is None:
                import asyncio

                self._runner = asyncio.Runner()
            self._runner.run(awaited)


class PristineContext:
    """The context as it was loaded, to be restored after a cell has changed it.

    Text, bytes and numbers cannot change, so binding the name again is enough. Of containers the shape is copied (a
    list's slots, a dict's keys; texts are shared) and compared after each cell, at the speed of `==`. Beyond
    COMPARED_VALUES values that would cost too much, and only the length of the outermost container is compared.
    """

    def __init__(self, value: Any) -> None:
        self._value = value
        self._copy = copy_shape(value)
        self._small = count_values(value, COMPARED_VALUES) < COMPARED_VALUES

    def restored(self) -> Any:
        """Return the context for the next cell: the same object if it is unchanged, else a fresh copy."""
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
    """Return the `answer` that a question begins with."""
    return {"content": "", "ready": False}


def copy_shape(value: Any) -> Any:
    """Return a copy of all that can be changed in a value, sharing the rest."""
    kind = type(value)
    if kind is list:
        return [copy_shape(item) for item in value]
    if kind is dict:
        return {key: copy_shape(item) for key, item in value.items()}
    if kind is tuple:
        copied = tuple([copy_shape(item) for item in value])
        return value if all(map(operator.is_, copied, value)) else copied
    if kind is set or kind is bytearray:
        return kind(value)
    return value


def count_values(value: Any, limit: int) -> int:
    """Return the number of values in a value, counted up to `limit`."""
    kind = type(value)
    count = 1
    if kind in (list, tuple, set, frozenset, dict):
        count += len(value)
        for item in value.values() if kind is dict else value:
            if count >= limit:
                break
            if type(item) in (list, tuple, set, frozenset, dict):
                count += count_values(item, limit - count)
    return count
