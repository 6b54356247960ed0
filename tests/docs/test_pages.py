"""The README and the pages of the documentation run as they are written, and their links lead somewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lease_model import lease_server

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "pages").glob("*.md"))
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
REPOSITORY = "https://github.com/rlm-cells/rlm-cells/blob/main/"


def blocks_of(path):
    return BLOCK.findall(path.read_text(encoding="utf-8"))


@pytest.fixture
def newcomer(tmp_path):
    """A folder with the files that the documents speak of, and a shell in it whose endpoint is a local server."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copy(ROOT / "examples" / "data" / "lease.txt", tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    stub = programs / "ollama"
    stub.write_text('#!/bin/sh\n[ -n "$OLLAMA_CONTEXT_LENGTH" ] && echo serving\n')
    stub.chmod(0o755)
    with lease_server() as server:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "RLM_"))
        } | {
            "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OPENAI_BASE_URL": server.base_url,
            "OPENAI_API_KEY": "of-the-test",
            "PYTHONPATH": str(ROOT),
            "XDG_CONFIG_HOME": str(tmp_path / "config"),
        }

        def run(*command, text=""):
            done = subprocess.run(
                command,
                check=False,
                cwd=tmp_path,
                env=environment,
                input=text,
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout + done.stderr

        run.base_url = server.base_url
        yield run


def run_block(newcomer, kind, code):
    if kind == "python":
        return newcomer(sys.executable, "-W", "error", "-c", code)
    lines = [line for line in code.splitlines() if not line.startswith((". .venv/", "python3 -m venv "))]
    script = "\n".join(lines).replace("http://localhost:11434/v1", newcomer.base_url)
    return newcomer("bash", "-euo", "pipefail", "-c", script)


def test_the_readme_runs_from_top_to_bottom(newcomer):
    blocks = blocks_of(ROOT / "README.md")
    printed = [run_block(newcomer, kind, code) for kind, code in blocks]
    assert [kind for kind, _ in blocks] == ["sh", "sh", "python", "sh", "sh", "sh"]
    assert all("11.4: If the goods lift is out of service" in text for text in printed[1:4])
    assert "consumer price index" in printed[4]


def test_the_readme_sets_up_with_two_commands_that_ci_runs():
    commands = re.findall(r"^python3 -m venv .*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert [command.split(" && ")[-1] for command in commands] == [
        ".venv/bin/rlm demo",
        ".venv/bin/python -m pytest",
    ]


def test_the_links_of_the_readme_are_absolute_and_lead_to_files_of_the_repository():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((\S+?)\)", text)
    assert len(links) > 10
    for link in links:
        assert link.startswith("https://"), link
        if link.startswith(REPOSITORY):
            assert (ROOT / link.removeprefix(REPOSITORY).partition("#")[0]).is_file(), link
        if "raw.githubusercontent.com" in link:
            assert (ROOT / link.partition("/main/")[2]).is_file(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, newcomer):
    blocks = blocks_of(page)
    for kind in ("sh", "python"):
        code = "\n".join(code for language, code in blocks if language == kind)
        if code:
            run_block(newcomer, kind, code)


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "ARCHITECTURE.md", "examples/README.md"]
)
def test_relative_links_of_a_document_lead_to_files(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(((?!https?:|#)\S+?)\)", text):
        assert ((ROOT / name).parent / link.partition("#")[0]).exists(), link


def test_the_question_of_the_readme_costs_what_the_readme_says():
    printed = subprocess.run(
        [sys.executable, "docs/cost.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    calls, read, written = (
        int(number.replace(",", "")) for number in re.findall(r"([\d,]+) (?:calls|input|output)", printed)
    )
    said = re.search(
        r"takes (\d+) calls and about ([\d,]+) input and ([\d,]+) output", (ROOT / "README.md").read_text()
    )
    assert calls == int(said[1])
    assert read == pytest.approx(int(said[2].replace(",", "")), rel=0.15)
    assert written == pytest.approx(int(said[3].replace(",", "")), rel=0.15)


def test_the_files_that_a_document_names_exist():
    for document in ("SECURITY.md", "CONTRIBUTING.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        for path in re.findall(r"`((?:tests|rlm|docs|examples)/[\w/.]+?\.\w+)`", text):
            assert "NAME" in path or (ROOT / path).exists(), path
        for name in re.findall(r"`(test_\w+\.py)`", text):
            assert list((ROOT / "tests").rglob(name)), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_block_of_a_page_imports_what_it_uses(page):
    for kind, code in blocks_of(page):
        if kind == "python":
            names = {"RLM_REPL", "Path", "Budget"} & set(re.findall(r"\b(\w+)\(", code))
            imported = set(re.findall(r"\w+", " ".join(re.findall(r"import (.*)", code))))
            assert names <= imported, code
