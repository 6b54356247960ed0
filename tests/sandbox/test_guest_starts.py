# ruff: noqa: ASYNC221 - a test may wait for a program and look for a file
"""Guests start under the conditions that hosts really have, or say in one sentence why not and what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlm.cli import doctor
from rlm.errors import GuestStartFailed
from rlm.sandbox.launchers import Launcher, interpreter, local
from rlm.sandbox.launchers.start_failures import guest_failure
from rlm.sandbox.session import open_session

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parent.parent.parent
RUN_A_CELL = """
import anyio
from rlm.sandbox.session import open_session

async def refuse(call):
    raise AssertionError(call)

async def main():
    session = await open_session()
    await session.load("data")
    result = await session.run("print(len(context))", serve=refuse)
    await session.aclose()
    print(session.isolation.python, result.stdout.strip())
"""
STARTS = RUN_A_CELL + "\nanyio.run(main)\n"
REFUSED = RUN_A_CELL + (
    "\nfrom rlm.errors import GuestStartFailed\ntry:\n    anyio.run(main)\n"
    "except GuestStartFailed as error:\n    print('refused:', error)\n"
)
PYENV = Path.home() / ".pyenv" / "versions"
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Linux")
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="root")


def host(code, *, options=(), prefix=(), python=sys.executable, **variables):
    """Run a host program of its own; return its last line."""
    # The paths are in the program: -E and -I ignore PYTHONPATH.
    paths = f"import sys; sys.path[:0] = {[str(ROOT), *filter(None, sys.path)]!r}\n"
    environment = {"PATH": os.environ.get("PATH", ""), **variables}
    done = subprocess.run(
        [*prefix, python, *options, "-c", paths + code],
        capture_output=True, text=True, env=environment, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


async def starts(launcher):
    """Start a guest and run a cell in it; return the version of its Python."""

    async def refuse(call):
        raise AssertionError(call)

    session = await open_session(launcher=launcher)
    try:
        await session.load("data")
        assert (await session.run("print(len(context))", serve=refuse)).stdout == "4\n"
        return session.isolation.python
    finally:
        await session.aclose()


def versions(*minors):
    return [path for minor in minors for path in sorted(PYENV.glob(f"3.{minor}.*/bin/python3.{minor}"))]


# --- the state of the host's process ---------------------------------------------------------------------------


def test_a_guest_starts_with_256_open_files():
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
    assert host(limit + STARTS).endswith(" 4")


def test_a_hard_limit_of_open_files_that_is_too_low_is_named_with_the_cure():
    seen = host("import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))\n" + REFUSED)
    assert "the hard limit of open files is 256, and a guest needs 320: raise it" in seen
    assert "\n" not in seen


@pytest.mark.parametrize(
    "before",
    [
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
    ],
    ids=["SIGCHLD ignored", "all signals blocked"],
)
def test_a_guest_starts_where_the_host_ignores_or_blocks_signals(before):
    assert host(f"import signal\n{before}\n" + STARTS).endswith(" 4")


@pytest.mark.parametrize("options", [("-E",), ("-I",), ("-s", "-P"), ("-OO",), ("-X", "utf8=0")])
def test_a_guest_starts_whatever_options_the_host_was_started_with(options):
    assert host(STARTS, options=options).endswith(" 4")


def test_a_guest_starts_without_home_and_path():
    assert host(STARTS, PATH="").endswith(" 4")


@LINUX
async def test_a_guest_starts_without_user_namespaces_and_says_so():
    launcher = Launcher(
        name="no namespaces",
        prefix=("unshare", "-Ur", "sh", "-c", 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"', "sh"),
        python=sys.executable,
    )
    if (
        shutil.which("unshare") is None
        or subprocess.run([*launcher.prefix, "true"], capture_output=True, check=False).returncode != 0
    ):
        pytest.skip("unshare cannot start here")
    session = await open_session(launcher=launcher)
    await session.aclose()
    assert session.isolation.tier != "isolated"
    assert session.isolation.missing["namespaces"]


# --- folders -----------------------------------------------------------------------------------------------------


@LINUX
@AS_ROOT
@pytest.mark.parametrize("with_folder", [True, False])
def test_on_a_read_only_machine_tmpdir_is_used_and_its_absence_is_named(with_folder, tmp_path):
    folders = "for d in /tmp /var/tmp /usr/tmp; do [ ! -d $d ] ||"
    make_read_only = (
        f"mount -t tmpfs none {tmp_path} && mount -o remount,bind,ro / && cd / && "
        f"{folders} mount --rbind $d $d; done; {folders} mount -o remount,bind,ro $d || exit 1; done"
    )
    read_only = ("unshare", "-m", "--", "sh", "-c", f'{make_read_only}; exec "$@"', "sh")
    if subprocess.run([*read_only, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("unshare -m and mount cannot be used here")
    seen = host(REFUSED, prefix=read_only, **({"TMPDIR": str(tmp_path)} if with_folder else {}))
    if with_folder:
        assert seen.endswith(" 4")
    else:
        assert "No usable temporary directory" in seen
        assert seen.endswith("set TMPDIR to a folder that this user may write to")


# --- interpreters ------------------------------------------------------------------------------------------------


def needing(tmp_path, variable, error):
    """Make a python3 that refuses to start without a variable."""
    wrapper = tmp_path / "python3"
    wrapper.write_text(
        f'#!/bin/sh\n[ -n "${variable}" ] || {{ echo "{error}" >&2; exit 127; }}\nexec {sys.executable} "$@"\n'
    )
    wrapper.chmod(0o755)
    return str(wrapper)


MISSING_LIBRARY = (
    "python3: error while loading shared libraries: libpython3.so.1.0: cannot open shared object file"
)


async def test_a_python_that_needs_a_library_path_gets_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", needing(tmp_path, "LD_LIBRARY_PATH", MISSING_LIBRARY))
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/modules/python/lib")
    assert await starts(local())


async def test_a_python_that_does_not_find_its_library_is_refused_with_the_variable_to_set(
    tmp_path, monkeypatch
):
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    python = needing(tmp_path, "LD_LIBRARY_PATH", MISSING_LIBRARY)
    with pytest.raises(GuestStartFailed, match=r"libpython3\.so\.1\.0.*: set LD_LIBRARY_PATH") as caught:
        await open_session(launcher=local(python=python))
    assert "\n" not in str(caught.value)


async def test_a_python_that_needs_pythonhome_gets_it(tmp_path, monkeypatch):
    python = needing(tmp_path, "PYTHONHOME", "ModuleNotFoundError: No module named 'encodings'")
    monkeypatch.delenv("PYTHONHOME", raising=False)
    with pytest.raises(GuestStartFailed, match="does not find its standard library: set PYTHONHOME"):
        await open_session(launcher=local(python=python))
    monkeypatch.setattr(sys, "executable", python)
    monkeypatch.setenv("PYTHONHOME", sys.base_prefix)
    assert await starts(local()) == sys.version.split()[0]
    assert "PYTHONHOME" not in local(python="/usr/bin/python3").variables()


@pytest.mark.parametrize("path", ["3.12", "3.13", "/usr/bin/python3"])
async def test_a_guest_starts_on_another_python_than_the_hosts(path):
    python = Path(path)
    if not python.is_absolute():
        found = versions(int(path.split(".")[1]))
        if not found:
            pytest.skip(f"no Python {path} of pyenv here")
        python = found[0]
    if not python.exists():
        pytest.skip(f"no {python} here")
    said = subprocess.run([python, "--version"], capture_output=True, text=True, check=True).stdout
    if tuple(map(int, said.split()[1].split(".")[:2])) < (3, 11):
        pytest.skip(f"{python} is {said}")
    assert await starts(local(python=str(python))) == said.split()[1]


@pytest.mark.parametrize("minor", [6, 7, 8, 9, 10])
async def test_a_python_that_is_too_old_is_refused_in_one_sentence(minor):
    found = versions(minor)
    if not found:
        pytest.skip(f"no Python 3.{minor} of pyenv here")
    with pytest.raises(
        GuestStartFailed, match=r"3\.11.*: pass local\(python=\.\.\.\) with a newer one$"
    ) as caught:
        await open_session(launcher=local(python=str(found[0])))
    assert "\n" not in str(caught.value)


async def test_a_guest_starts_in_a_venv_of_a_venv(tmp_path):
    python = sys.executable
    for name in ("outer", "inner"):
        subprocess.run([python, "-m", "venv", "--without-pip", tmp_path / name], check=True)
        python = str(tmp_path / name / "bin" / "python")
    assert await starts(local(python=python)) == sys.version.split()[0]
    assert host(STARTS, python=python).endswith(" 4")


@pytest.fixture
def application(tmp_path):
    """A program that leaves a mark when it is started."""
    program = tmp_path / "myapp"
    program.write_text(f"#!/bin/sh\necho started >> {tmp_path}/mark\n")
    program.chmod(0o755)
    yield str(program)
    assert not (tmp_path / "mark").exists(), "the application was started again"


@pytest.mark.parametrize("frozen", [True, False])
async def test_an_application_is_not_started_again_but_a_python_is_found(application, frozen, monkeypatch):
    monkeypatch.setattr(sys, "executable", application)
    monkeypatch.setattr(sys, "frozen", frozen, raising=False)
    interpreter._other_python.cache_clear()
    assert await starts(local())


async def test_a_python_is_found_where_the_executable_is_unknown(monkeypatch):
    monkeypatch.setattr(sys, "executable", "")
    assert await starts(local())


async def test_a_frozen_application_that_is_named_python_is_not_started_again(
    tmp_path, application, monkeypatch
):
    named = tmp_path / "python3"
    shutil.copy(application, named)
    monkeypatch.setattr(sys, "executable", str(named))
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    interpreter._other_python.cache_clear()
    assert await starts(local())


def test_an_application_without_any_python_is_refused_with_the_cure(application, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", application)
    monkeypatch.setattr(sys, "_base_executable", application)
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    interpreter._other_python.cache_clear()
    with pytest.raises(
        GuestStartFailed, match=r"myapp is an application and not Python.*pass launcher=local\(python="
    ):
        local()
    interpreter._other_python.cache_clear()


def test_the_library_path_of_a_frozen_application_does_not_reach_another_python(application, monkeypatch):
    monkeypatch.setattr(sys, "executable", application)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/tmp/_MEI123")
    monkeypatch.delenv("LD_LIBRARY_PATH_ORIG", raising=False)
    assert "LD_LIBRARY_PATH" not in local().variables()
    monkeypatch.setenv("LD_LIBRARY_PATH_ORIG", "/opt/lib")
    assert local().variables()["LD_LIBRARY_PATH"] == "/opt/lib"


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/usr/bin/python3", True), ("/opt/python3.13t", True), ("/opt/Python", True), ("/usr/bin/python3-dbg", True),
     ("/usr/bin/uwsgi", False), ("/app/pythonista/app", False), ("", False)],
)  # fmt: skip
def test_an_interpreter_is_known_by_its_name(path, expected):
    assert interpreter.is_python(path) is expected


def test_doctor_shows_the_python_that_it_found_for_an_application(application, monkeypatch):
    monkeypatch.setattr(sys, "executable", application)
    interpreter._other_python.cache_clear()
    findings = {finding.what: finding for finding in doctor._isolation()}
    assert findings["guest"].state != "bad"
    assert findings["guest's python"].words.endswith(
        f"because {application} is an application and not Python"
    )


def test_doctor_shows_in_one_sentence_why_a_guest_cannot_start(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", needing(tmp_path, "LD_LIBRARY_PATH", MISSING_LIBRARY))
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    (finding,) = doctor._isolation()
    assert finding.state == "bad"
    assert finding.words.startswith("the guest did not start with the local launcher: ")
    assert "set LD_LIBRARY_PATH" in finding.words
    assert "\n" not in finding.words


# --- sentences ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "cure"),
    [
        ("Error loading shared library libpython3.11.so.1.0: No such file (musl)", "set LD_LIBRARY_PATH"),
        ("dyld: Library not loaded: @rpath/libpython3.11.dylib", "DYLD_LIBRARY_PATH"),
        ("Unknown option: -I\nusage: python [option]", "older than Python 3.11"),
        ("pyenv: python3.13: command not found", "pyenv prefix"),
        ("Traceback:\nOSError: [Errno 12] Cannot allocate memory", "ulimit -v"),
        ("BlockingIOError: [Errno 11] Resource temporarily unavailable", "ulimit -u"),
        ("first\nlast", "its log ends: last"),
        ("", "exit status 3 and wrote nothing to its log; try its command by hand: env"),
    ],
)
def test_each_known_reason_is_one_sentence_with_its_cure(log, cure):
    seen = guest_failure(Launcher(name="env", prefix=("env",)), "the guest has ended", log, 3)
    assert cure in seen
    assert "\n" not in seen
