"""ARCHITECTURE.md is held to what the code does, and the code to ARCHITECTURE.md."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import FunctionType

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "rlm").rglob("*.py"))


def table():
    """The rows of the table of rooms: file pattern → the rooms it may import, or None for everything."""
    rows = []
    for line in (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines():
        cells = [part.strip() for part in line.strip("| ").split("|")]
        if len(cells) == 3 and cells[0].startswith("`rlm/"):
            allowed = {"—": set(), "everything": None}.get(
                cells[2], {name.strip() for name in cells[2].split(",")}
            )
            rows += [(pattern.strip("` "), allowed) for pattern in cells[0].split(",")]
    return rows


def row_of(file):
    return next((row for row in table() if row[0] == file), None) or next(
        (row for row in table() if fnmatch(file, row[0])), None
    )


def imports_at_run_time(file):
    """Names of our own modules that the file imports, anywhere but under `if TYPE_CHECKING`."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    found = set()

    def visit(node):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return {name.removeprefix("rlm.") for name in found if name == "rlm" or name.startswith("rlm.")}


def is_inside(name, room):
    return name == room or name.startswith(f"{room}.")


@pytest.mark.parametrize("file", FILES)
def test_a_room_imports_only_what_the_table_allows(file):
    row = row_of(file)
    if row is None:
        assert file.endswith("/__init__.py"), f"{file} has no line in the table of ARCHITECTURE.md"
        return
    _, allowed = row
    if allowed is not None:
        strangers = {
            name for name in imports_at_run_time(file) if not any(is_inside(name, room) for room in allowed)
        }
        assert not strangers


@pytest.mark.parametrize("pattern", [pattern for pattern, _ in table()])
def test_every_line_of_the_table_has_a_file(pattern):
    assert any(fnmatch(file, pattern) for file in FILES)


@pytest.mark.parametrize("file", FILES)
def test_every_room_says_what_it_is_for_and_what_it_offers(file):
    if file.startswith(("rlm/offline/cells/", "rlm/sandbox/guest/")):
        return  # these run in the guest, not as modules of the package
    module = importlib.import_module(file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    assert module.__doc__
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and isinstance(value, (type, FunctionType))
        and value.__module__ == module.__name__
    }
    assert public <= set(module.__all__) if public else True


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_the_package_loads_no_heavy_library_and_starts_no_thread():
    heavy = "{'openai', 'rich', 'tiktoken', 'anyio', 'click', 'dotenv', 'httpx2', 'asyncio', 'genai_prices'}"
    printed = run_python(
        f"import sys, threading, rlm; print(sorted({heavy} & set(sys.modules)), threading.active_count())"
    )
    assert printed.strip() == "[] 1"


def test_the_facade_loads_neither_openai_nor_rich_nor_tiktoken():
    printed = run_python(
        "import sys, rlm; rlm.RLM_REPL; print(sorted({'openai', 'rich', 'tiktoken'} & set(sys.modules)))"
    )
    assert printed.strip() == "[]"


def test_every_exported_name_can_be_imported():
    import rlm

    assert all(hasattr(rlm, name) for name in rlm.__all__)


def test_the_settings_that_messages_and_the_readme_name_are_at_the_front_door():
    import rlm

    assert {"Budget", "Price", "SandboxSettings", "SchedulerSettings"} <= set(rlm.__all__)


@pytest.mark.parametrize(
    "path",
    [
        "rlm.rlm_repl:RLM_REPL",
        "rlm.repl:REPLEnv",
        "rlm.repl:Sub_RLM",
        "rlm.utils.llm:OpenAIClient",
        "rlm.utils.prompts:system_prompt",
    ],
)
def test_the_import_paths_of_rlm_minimal_work(path):
    module, name = path.split(":")
    assert hasattr(importlib.import_module(module), name)


def test_the_tree_of_errors_in_the_docstring_is_the_tree_there_is():
    from rlm import errors

    for name in errors.__all__:
        assert name in errors.__doc__, f"{name} is missing from the tree drawn in errors.py"
        bases = [base.__name__ for base in getattr(errors, name).__bases__ if base.__module__ == "rlm.errors"]
        lines = errors.__doc__.splitlines()
        line = next(index for index, text in enumerate(lines) if f" {name} " in f" {text} ")
        depth = lines[line].index(name)
        parents = [text for text in lines[:line] if text.strip() and _indent(text) < depth]
        if bases:
            assert bases[0] in parents[-1], (
                f"{name} is drawn below {parents[-1]!r}, and derives from {bases[0]}"
            )


def _indent(text):
    return next((index for index, character in enumerate(text) if character.isalpha()), 0)


def test_a_class_name_stands_for_one_thing():
    files_by_name = {}
    for file in FILES:
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                files_by_name.setdefault(node.name.lstrip("_"), []).append(file)
    repeated = {name for name, files in files_by_name.items() if len(files) > 1}
    assert repeated == {"FailedCall"}  # a failed call of the host, and the same in a cell
