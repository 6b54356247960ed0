"""Real processes: exit codes, what goes to stdout and what to stderr, pipes, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from openai_server import OpenAIServer, failed

RLM = [sys.executable, "-m", "rlm"]
CELL = "```repl\nprint(len(context))\n```"


def clean_environment(**more):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    return {**kept, "PYTHONUNBUFFERED": "1", **more}


def rlm(*arguments, folder, stdin=b"", **environment):
    return subprocess.run(
        [*RLM, *arguments],
        input=stdin,
        capture_output=True,
        cwd=folder,
        env=clean_environment(**environment),
        timeout=60,
        check=False,
    )


def complaint(done):
    """The one line on stderr."""
    assert b"Traceback" not in done.stderr
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.txt").write_text("A tenant who leaves early must pay a fee of three rents.\n" * 50)
    return tmp_path


@pytest.fixture
def server():
    with OpenAIServer(lambda request: "FINAL(three rents)") as server:
        yield server


def test_the_answer_alone_is_on_stdout(folder, server):
    done = rlm("ask", "a.txt", "-q", "What fee?", "-m", "gpt-5", "--base-url", server.base_url, folder=folder)
    assert (done.returncode, done.stdout) == (0, b"three rents\n")
    assert b"answered: 1 turn, 1 call" in done.stderr


def test_quiet_means_nothing_on_stderr_and_json_is_one_object(folder, server):
    done = rlm(
        "ask",
        "-",
        "-q",
        "?",
        "--json",
        "--quiet",
        "--base-url",
        server.base_url,
        folder=folder,
        stdin=b"piped \xc3\xa9",
    )
    assert done.stderr == b""
    answer = json.loads(done.stdout)
    assert (answer["answer"], answer["status"], answer["model"], answer["turns"]) == (
        "three rents",
        "ok",
        "gpt-5",
        1,
    )
    assert answer["usage"]["total_tokens"] == server.input_tokens + server.output_tokens


@pytest.mark.parametrize("options", [[], ["--quiet"]])
def test_prompts_that_failed_are_told_next_to_the_answer(folder, options):
    def respond(request):
        if request.prompt == "bad":
            return failed(400, "no")
        return "```repl\nFINAL(llm_batch(['good', 'bad'])[0])\n```" if request.number == 0 else "fine"

    with OpenAIServer(respond) as server:
        done = rlm("ask", "a.txt", "-q", "?", *options, "--base-url", server.base_url, folder=folder)
    assert (done.returncode, done.stdout) == (0, b"fine\n")
    assert b"warning: 1 of 2 prompts to sub-models failed: BadRequest (1); the first: " in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (["ask", "a.txt", "-q", "?"], 2, "UsageError"),
        (["ask", "a.txt", "-q", "?", "--max-iterations", "0"], 2, "BadParameter"),
        (["ask", "missing.txt", "-q", "?"], 2, "ContextError"),
        (["ask", "a.txt", "-q", "?", "--base-url", "http://127.0.0.1:9/v1"], 5, "ConnectionFailed"),
        (["map", "missing.csv", "-p", "x", "-o", "o.csv"], 2, "UsageError"),
    ],
)
def test_with_json_a_failure_is_one_object_on_stdout(folder, arguments, code, kind):
    done = rlm(*arguments, "--json", folder=folder)
    failure = json.loads(done.stdout)
    assert (done.returncode, failure["status"]) == (code, "failed")
    assert (failure["error"]["type"], failure["error"]["exit_code"]) == (kind, code)
    assert f"rlm: {failure['error']['message']}" == complaint(done)


def test_the_environment_names_the_models(folder, server):
    done = rlm("ask", "a.txt", "-q", "?", "--json", "--quiet", "--base-url", server.base_url,
               folder=folder, RLM_MODEL="a", RLM_RECURSIVE_MODEL="b")  # fmt: skip
    answer = json.loads(done.stdout)
    assert (answer["model"], answer["recursive_model"]) == ("a", "b")


def test_a_question_that_is_the_name_of_a_file_is_noted_before_it_is_paid_for(folder, server):
    ask = ("ask", "a.txt", "--quiet", "--base-url", server.base_url)
    assert b"note: the question is the text 'a.txt', not" in rlm(*ask, "-q", "a.txt", folder=folder).stderr
    assert rlm(*ask, "-q", "Which fee?", folder=folder).stderr == b""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_and_the_script_gets_the_names(folder, shell):
    done = rlm("completion", shell, folder=folder)
    assert (done.returncode, b"_RLM_COMPLETE" in done.stdout) == (0, True)
    asked = {
        "_RLM_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": "rlm ask --max",
        "COMP_CWORD": "--max" if shell == "fish" else "2",
    }
    offered = rlm(folder=folder, **asked)
    assert (offered.returncode, b"--max-depth" in offered.stdout) == (0, True), offered


def test_a_pipe_is_the_data(folder):
    done = rlm(
        "ask", "-q", "Which fee must a tenant pay who leaves early?", "--quiet", "--client", "offline", folder=folder,
        stdin=(folder / "a.txt").read_bytes(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"three rents" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        (["ask", "a.txt"], b"", "no question"),
        (["ask", "a.txt", "-q", " "], b"", "no question"),
        (["ask", "a.txt", "What fee?"], b"", "did you mean rlm ask a.txt -q 'What fee?'?"),
        (["ask", "What fee?"], b"", "did you mean rlm ask FILE -q 'What fee?'?"),
        (
            ["ask", "a.txt", "-q", "What fee?", "-q", "Who?"],
            b"",
            "2 questions: ask takes one, rlm chat takes",
        ),
        (
            ["ask", "https://example.com/a", "-q", "?"],
            b"",
            "fetch its text first: curl -sL https://example.com/a |",
        ),
        (["ask", "a.txt", "-q", "?", "--base-url", ""], b"", "--base-url is empty"),
        (["help", "ask"], b"", "did you mean rlm ask --help?"),
        (["version"], b"", "did you mean rlm --version?"),
        (["ask", "missing.txt", "-q", "?"], b"", "missing.txt: there is no such file"),
        (["ask", ".", "-q", "?"], b"", "is a folder"),
        (["ask", "binary", "-q", "?"], b"", "binary: not utf-8 text"),
        (["ask", "nul", "-q", "?"], b"", "looks like a binary file"),
        (["ask", "empty", "-q", "?"], b"", "empty: empty"),
        (["ask", "-q", "?"], b"", "standard input: empty"),
        (["ask", "-q", "?"], b" \r\n\r\n", "standard input: empty"),
        (["ask", "empty", "blank", "-q", "?"], b"", "empty, blank: empty"),
        (["ask", "-", "-", "-q", "?"], b"x", "named twice"),
        (["ask", "a.txt", "-q", "?", "--encoding", "klingon"], b"", "no encoding 'klingon'"),
        (["ask", "a.txt", "-q", "?", "--client", "openai"], b"", "no key and no endpoint"),
        (["ask", "a.txt", "-q", "?", "-m", "gpt-5"], b"", "no key and no endpoint"),
        (["ask", "a.txt", "-q", "?", "--max-iterations", "0"], b"", "--max-iterations"),
        (["ask", "a.txt", "-q", "?", "--timeout", "-1"], b"", "--timeout"),
        (["ask", "a.txt", "-q", "?", "--max-concurrent", "many"], b"", "--max-concurrent"),
        (["ask", "\x1b[2J", "-q", "?"], b"", "\\x1b[2J: there is no such file"),
        (["chat", "-"], b"", "questions are read from stdin"),
        (["chat"], b"", "no data"),
        (["aks", "a.txt", "-q", "?"], b"", "there is no command 'aks'. Did you mean 'ask'?"),
        (["zzz"], b"", "there is no command 'zzz'"),
        (["a.txt", "-q", "What fee?"], b"", "did you mean rlm ask a.txt -q 'What fee?'?"),
        (["-q", "What fee?", "a.txt"], b"", "did you mean rlm ask -q 'What fee?' a.txt?"),
        (["What fee?"], b"", "did you mean rlm ask FILE -q 'What fee?'?"),
        (["-x"], b"", "No such option '-x'"),
        (["ask", "a.txt", "-q", "?"], b"", "no key and no endpoint: set OPENAI_API_KEY"),
        (["chat", "a.txt"], b"", "--client offline answers by rules, without a model"),
        (["ask", "a.txt", "--question", "?"], b"", "there is no option --question: use -q/--query"),
        (["ask", "a.txt", "-q", "?", "--max-concurrency", "3"], b"", "use --max-concurrent"),
        (["ask", "a.txt", "-q", "?", "--offline"], b"", "use --client offline"),
        (
            ["ask", "a.txt", "-q", "?", "--modle", "x"],
            b"",
            "(Did you mean one of: '--child-model', '--model'?)",
        ),
    ],
)
def test_bad_input_is_one_line_and_code_2(folder, arguments, stdin, words):
    (folder / "binary").write_bytes(b"\x89PNG\r\n\xff\xfe\x00")
    (folder / "nul").write_bytes(b"abc\0def")
    (folder / "empty").write_bytes(b"")
    (folder / "blank").write_bytes(b" \r\n\t")
    done = rlm(*arguments, folder=folder, stdin=stdin)
    assert (done.returncode, done.stdout) == (2, b"")
    assert words in complaint(done)


def test_a_file_that_is_named_twice_is_read_once_and_told(folder, server):
    (folder / "same.txt").symlink_to("a.txt")
    (folder / "copy.txt").write_bytes((folder / "a.txt").read_bytes())
    ask = ["-q", "?", "--base-url", server.base_url]
    done = rlm("ask", "a.txt", "./a.txt", "same.txt", *ask, folder=folder)
    assert done.returncode == 0
    assert b"note: ./a.txt is a.txt, which is named more than once, and read once\n" in done.stderr
    assert b"note: same.txt is a.txt, which" in done.stderr
    assert b"is a str of 2,850 characters" in done.stderr
    done = rlm("ask", "a.txt", "copy.txt", *ask, folder=folder)
    assert b"note:" not in done.stderr
    assert b"is a dict" in done.stderr


def test_an_endpoint_that_does_not_answer_is_code_5_at_once(folder):
    started_at = time.monotonic()
    done = rlm("ask", "a.txt", "-q", "?", "--base-url", "http://127.0.0.1:9/v1", folder=folder)
    assert done.returncode == 5
    assert "127.0.0.1:9" in complaint(done)
    assert time.monotonic() - started_at < 15


def test_an_unknown_model_is_code_5_and_lists_the_models(folder):
    with OpenAIServer(
        lambda request: failed(404, "The model does not exist", code="model_not_found"),
        models=["llama", "qwen"],
    ) as server:
        done = rlm(
            "ask", "a.txt", "-q", "?", "-m", "lama", "--quiet", "--base-url", server.base_url, folder=folder
        )
    assert done.returncode == 5
    assert "llama, qwen" in complaint(done)


def test_a_limit_is_code_3_with_the_partial_answer_on_stdout(folder):
    with OpenAIServer(lambda request: "```repl\nanswer['content'] = 'a draft'\n```") as server:
        done = rlm(
            "ask",
            "a.txt",
            "-q",
            "?",
            "--max-iterations",
            "2",
            "--quiet",
            "--base-url",
            server.base_url,
            folder=folder,
        )
    assert (done.returncode, done.stdout) == (3, b"a draft\n")
    assert "stopped: no answer within 2 turns; the answer is partial" in complaint(done)


def test_verbose_tells_the_error_then_its_causes_and_then_where(folder):
    done = rlm("ask", "a.txt", "-q", "?", "-v", "--base-url", "http://127.0.0.1:9/v1", folder=folder)
    message, *causes, hint = done.stderr.decode().splitlines()
    assert message.startswith("rlm: no answer from 127.0.0.1:9")
    assert any(line.startswith("  because of ConnectionRefusedError: ") for line in causes)
    assert any(line.startswith("  ConnectionFailed at ") for line in causes)
    assert len(causes) < 12
    assert "-vv" in hint


def test_twice_verbose_shows_the_whole_traceback(folder):
    done = rlm("ask", "missing", "-q", "?", "-vv", folder=folder)
    assert done.returncode == 2
    assert done.stderr.startswith(b"rlm: missing: there is no such file")
    assert b"Traceback" in done.stderr


def test_a_host_that_is_not_there_is_told_without_an_errno(folder):
    done = rlm("ask", "a.txt", "-q", "?", "--base-url", "http://nowhere.invalid/v1", folder=folder)
    assert done.returncode == 5
    assert "the host nowhere.invalid was not found: check base_url (--base-url)" in complaint(done)


def shell(line, folder):
    return subprocess.run(
        ["bash", "-c", line],
        capture_output=True,
        cwd=folder,
        env=clean_environment(),
        timeout=60,
        check=False,
    )


def test_a_reader_that_leaves_is_no_trouble(folder, server):
    done = shell(
        f"{sys.executable} -m rlm ask a.txt -q x --quiet --base-url {server.base_url} | true; echo ${{PIPESTATUS[0]}}",
        folder,
    )
    assert (done.stdout, done.stderr) == (b"0\n", b"")


@pytest.mark.parametrize(
    ("redirection", "code", "words"), [(">&-", 0, b""), (">/dev/full", 1, b"No space left")]
)
def test_a_stdout_that_is_closed_or_full_is_told_in_one_line(folder, server, redirection, code, words):
    done = shell(
        f"{sys.executable} -m rlm ask a.txt -q x --quiet --base-url {server.base_url} {redirection}", folder
    )
    assert (done.returncode, b"Traceback" in done.stderr) == (code, False)
    assert words in done.stderr
    assert done.stderr.count(b"\n") == (1 if words else 0)


def test_a_chat_without_stdin_ends_at_once(folder):
    done = shell(f"{sys.executable} -m rlm chat a.txt --client offline <&-", folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_ctrl_c_cancels_at_once_and_shows_what_was_spent(folder):
    with OpenAIServer(lambda request: CELL, plan=[None]) as server:
        server.latency_s = 0.0
        process = subprocess.Popen(
            [*RLM, "ask", "a.txt", "-q", "?", "--base-url", server.base_url],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder, env=clean_environment(),
        )  # fmt: skip
        until = time.monotonic() + 30
        while server.requests < 1 and time.monotonic() < until:
            time.sleep(0.02)  # another process is on its way to its first call
        server.latency_s = 60.0
        while server.at_once < 1 and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout) == (130, b"")
    assert b"interrupted; spent: " in stderr
    assert b"Traceback" not in stderr


def test_chat_reads_lines_from_a_pipe_and_goes_on_after_an_error(folder):
    script = b"What fee must a tenant pay?\n!x = len(context)\n?x\n!1/0\n/nope\n!x + 1\n/cost\n/quit\n!print('never')\n"
    done = rlm("chat", "a.txt", "--client", "offline", "--quiet", folder=folder, stdin=script)
    assert done.returncode == 1
    assert b"three rents" in done.stdout
    assert b"2850\n" in done.stdout
    assert b"2851\n" in done.stdout
    assert b"never" not in done.stdout
    assert b"ZeroDivisionError" in done.stderr
    assert b"there is no command /nope" in done.stderr


def test_the_demo_answers_with_a_quote_without_key_and_network(folder):
    done = rlm("demo", folder=folder)
    assert done.returncode == 0, done.stderr
    assert b"before really leaving the" in done.stdout
    assert b"context[" in done.stdout
    assert b"NO LANGUAGE MODEL" in done.stderr


def test_the_demo_says_when_the_text_does_not_have_it(folder):
    done = rlm("demo", "-q", "What is the population of Berlin?", folder=folder)
    assert done.returncode == 0
    assert b"NOT FOUND" in done.stdout


def test_doctor_opens_a_guest_and_never_shows_a_key(folder):
    with OpenAIServer() as server:
        keys = {"OPENAI_API_KEY": "sk-very-secret-key", "OPENAI_BASE_URL": server.base_url}
        done = rlm("doctor", folder=folder, **keys)
    assert done.returncode == 0, done.stdout
    assert b"guest: " in done.stdout
    assert b"OPENAI_API_KEY is set" in done.stdout
    assert b"\nok    in all: runs work here" in done.stdout
    assert b"secret" not in done.stdout + done.stderr


def test_doctor_tells_of_an_endpoint_that_does_not_answer(folder):
    done = rlm("doctor", folder=folder, OPENAI_BASE_URL="http://127.0.0.1:9/v1")
    assert b"\nnote  models: no OPENAI_API_KEY; endpoint: http://127.0.0.1:9/v1: no answer" in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("ask",),
        ("chat",),
        ("map",),
        ("count",),
        ("split",),
        ("demo",),
        ("doctor",),
        ("config",),
        ("config", "set"),
        ("completion",),
    ],
)
def test_help_fits_a_terminal_of_80_columns(folder, command):
    done = rlm(*command, "--help", folder=folder, COLUMNS="80", PYTHONIOENCODING="utf-8")
    assert max(map(len, done.stdout.decode().splitlines())) < 80


def test_help_loads_no_heavy_package(folder):
    code = (
        "import sys; from rlm.cli import main; main(['--help']);"
        "print(sorted({'openai', 'rich', 'tiktoken', 'anyio', 'dotenv', 'asyncio'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=folder, check=True)
    assert done.stdout.decode().splitlines()[-1] == "[]"
