"""The README and the examples run, as they stand, without a key."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from rlm import ScriptedClient

ROOT = Path(__file__).parent.parent


def run(*arguments):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout


def test_the_long_document_example_reads_sections_in_one_batch_and_answers():
    printed = run("examples/long_document.py")
    assert "sections read in one batch" in printed
    assert "[ok, " in printed


def test_the_long_document_example_takes_a_file_and_a_question(tmp_path):
    path = tmp_path / "contract.txt"
    path.write_text("Rent is due monthly. The tenant may terminate with three months' notice. " * 3)
    assert "three months' notice" in run(
        "examples/long_document.py", str(path), "When may the tenant terminate?"
    )


@pytest.mark.slow
def test_the_batch_example_shows_that_a_batch_is_faster_and_the_same():
    printed = run("examples/batch.py")
    factor = float(re.search(r"([\d.]+) times faster", printed)[1])
    assert factor > 3
    assert "same answers: True" in printed


def test_the_interactive_example_answers_and_runs_the_users_code():
    printed = run("examples/interactive.py")
    assert "Your own cell says:" in printed
    assert "mentions" in printed
    assert re.search(r"^Spent: \d+ calls, 0 tokens, \$0.0000\.$", printed, re.MULTILINE)


class WithClient(ast.NodeTransformer):
    """Gives every `RLM_REPL(...)` of a script the argument `client=client`, and changes nothing else."""

    def __init__(self):
        self.changed = 0

    def visit_Call(self, node):
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "RLM_REPL":
            node.keywords.append(ast.keyword("client", ast.Name("client", ast.Load())))
            self.changed += 1
        return node


def test_the_python_of_the_readme_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    (tmp_path / "contract.txt").write_text("Ada lets a house to Bob, who may leave at any time.")
    monkeypatch.chdir(tmp_path)
    client = ScriptedClient(lambda call: "```repl\nFINAL(context.split(',')[0])\n```")
    namespace = {"client": client}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        with_client = WithClient()
        tree = ast.fix_missing_locations(with_client.visit(ast.parse(block)))
        assert with_client.changed == 1
        exec(compile(tree, "README.md", "exec"), namespace)
    assert capsys.readouterr().out.startswith("Ada lets a house to Bob\nok 1 Usage(")
    assert anyio.run(namespace["parties"]) == "Ada lets a house to Bob"
    assert namespace["session"].answers == ["Ada lets a house to Bob"] * 2
    assert len(client.calls) == 4


def test_the_readme_is_short_enough_to_read_standing():
    assert len((ROOT / "README.md").read_text().split()) < 700
