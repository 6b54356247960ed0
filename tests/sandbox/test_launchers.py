# ruff: noqa: ASYNC240 - a test may look for a folder
"""Every launcher that can start on this machine passes the public checks."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlm.errors import GuestStartFailed, IsolationUnavailable, SettingsError
from rlm.sandbox.launchers import Launcher, local
from rlm.sandbox.session import open_session
from rlm.settings import SandboxSettings
from rlm.testing import launcher_checks
from rlm.testing.launcher_checks import check_launcher

pytestmark = pytest.mark.anyio

SYSTEM_PYTHON = "/usr/bin/python3"
CONFINED = "confined" if sys.platform == "linux" else "process"
LAUNCHERS = {
    "plain": (local(), {"highest_tier": "process"}),
    "confined": (local(), {"highest_tier": "confined"}),
    "isolated": (local(), {}),
    "nice": (Launcher(name="nice", prefix=("nice", "-n", "5"), python=sys.executable, shares_files=True), {}),
    "env, no folder of ours": (Launcher(name="env", prefix=("env", "A=1"), python=sys.executable), {}),
    "a shell, as ssh has": (
        Launcher(name="sh", prefix=("sh", "-c", 'eval "$*"', "sh"), python=sys.executable, through_shell=True),
        {},
    ),
    "unshare": (Launcher(name="unshare", prefix=("unshare", "-Urnpm", "--fork"), python=sys.executable), {}),
    "setpriv": (
        Launcher(
            name="setpriv",
            prefix=("setpriv", "--reuid", "1778", "--regid", "1778", "--clear-groups", "--"),
            python=SYSTEM_PYTHON,
        ),
        {},
    ),
    "bwrap": (
        Launcher(
            name="bwrap",
            prefix=("bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/usr", "/usr", "--symlink",
                    "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64", "--symlink", "usr/bin", "/bin",
                    "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"),
            python=SYSTEM_PYTHON,
        ),
        {},
    ),
}  # fmt: skip


def can_start(launcher):
    """Whether the prefix can run anything here."""
    if launcher.python == SYSTEM_PYTHON and not Path(SYSTEM_PYTHON).exists():
        return False
    if launcher.name == "setpriv" and os.geteuid() != 0:
        return False
    if not launcher.prefix or launcher.through_shell:
        return True
    if shutil.which(launcher.prefix[0]) is None:
        return False
    return (
        subprocess.run(
            [*launcher.prefix, launcher.python, "-c", ""], capture_output=True, check=False
        ).returncode
        == 0
    )


AT_ONCE = ("isolated", "a shell, as ssh has", "bwrap")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in AT_ONCE else pytest.mark.slow) for name in LAUNCHERS]
)
async def test_every_launcher_here_passes_the_checks(name):
    launcher, changes = LAUNCHERS[name]
    if not can_start(launcher):
        pytest.skip(f"{name} cannot start here")
    checks = await check_launcher(launcher, settings=dataclasses.replace(launcher_checks.SETTINGS, **changes))
    assert len(checks) > 20
    assert [str(check) for check in checks if not check.passed] == []


async def test_a_launcher_that_does_not_exist_is_named():
    with pytest.raises(GuestStartFailed, match="the nowhere launcher did not start"):
        await open_session(launcher=Launcher(name="nowhere", prefix=("/no/such/command",)))


@pytest.mark.parametrize("free", [0, 1, 2, 3, 5, 8])
async def test_where_too_few_descriptors_are_left_no_guest_starts_and_nothing_stays(
    free, tmp_path, monkeypatch
):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    await (await open_session()).aclose()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, limits[1]))
    held = []
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(free):
            os.close(held.pop())
        with pytest.raises(GuestStartFailed, match="Too many open files"):
            await open_session()
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert list(tmp_path.iterdir()) == []
    await (await open_session()).aclose()


async def test_a_guest_that_ends_at_once_shows_its_log():
    launcher = Launcher(name="broken", prefix=("sh", "-c", "echo oh dear >&2; exit 3"))
    with pytest.raises(GuestStartFailed, match="oh dear") as caught:
        await open_session(launcher=launcher)
    assert caught.value.log == "oh dear"


async def test_a_guest_that_never_gets_ready_is_given_up():
    launcher = Launcher(name="silent", prefix=("sh", "-c", "exec sleep 60"))
    with pytest.raises(GuestStartFailed, match=r"not ready within 0\.3 seconds"):
        await open_session(SandboxSettings(start_timeout_s=0.3), launcher=launcher)


async def test_a_guest_below_the_minimum_tier_does_not_start():
    launcher = Launcher(
        name="no namespaces",
        prefix=("unshare", "-Ur", "sh", "-c", 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"', "sh"),
        python=sys.executable,
    )
    if not can_start(launcher):
        pytest.skip("unshare cannot start here")
    with pytest.raises(IsolationUnavailable, match="'isolated' is required, but here a guest reaches"):
        await open_session(SandboxSettings(minimum_tier="isolated"), launcher=launcher)


@pytest.mark.parametrize(
    "tier",
    ["process", pytest.param("confined", marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux"))],
)
async def test_the_report_names_the_tier_and_what_is_missing(tier):
    session = await open_session(SandboxSettings(highest_tier=tier))
    await session.aclose()
    assert session.isolation.tier == tier
    assert "namespaces" not in session.isolation.levels
    if tier == "process":
        assert session.isolation.missing["files"]


@pytest.mark.parametrize("tier", ["process", "isolated"])
async def test_a_scratch_folder_of_the_guests_own_is_removed(tier):
    launcher = Launcher(name="env", prefix=("env", "A=1"), python=sys.executable)
    session = await open_session(SandboxSettings(highest_tier=tier), launcher=launcher)
    result = await session.run(
        "import os\nopen('file', 'w').close()\nprint(os.getcwd(), end='')", serve=nobody
    )
    assert Path(result.stdout).name.startswith("rlm-own-")
    await session.aclose()
    assert not Path(result.stdout).exists()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("tier", ["process", "isolated"])
async def test_the_folder_of_a_guest_that_was_killed_is_removed_by_the_next_one(tier, tmp_path):
    launcher = Launcher(name="env", prefix=("env", f"TMPDIR={tmp_path}"), python=sys.executable)
    settings = SandboxSettings(highest_tier=tier)
    killed, living = [await open_session(settings, launcher=launcher) for _ in range(2)]
    result = await killed.run("import os\nprint(os.getcwd(), end='')", serve=nobody)
    own = await living.run("open('file', 'w').close()\nimport os\nprint(os.getcwd(), end='')", serve=nobody)
    killed._guest.kill()
    await killed.aclose()
    assert Path(result.stdout).exists()
    third = await open_session(settings, launcher=launcher)
    assert not Path(result.stdout).exists()
    assert (await living.run("os.path.exists('file')", serve=nobody)).stdout == "True\n"
    await third.aclose()
    await living.aclose()
    assert own.stdout
    assert list(tmp_path.iterdir()) == []


async def nobody(call):
    raise AssertionError(call)


def test_an_unknown_tier_is_refused():
    with pytest.raises(SettingsError, match="must be one of 'process', 'confined', 'isolated'"):
        SandboxSettings(minimum_tier="strict")


def test_secrets_of_this_process_are_not_in_the_guests_environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("HOME", "/somewhere")
    assert "sk-secret" not in local().variables().values()
    assert "HOME" not in local().variables()
    assert Launcher(name="ssh", inherit=("HOME",)).variables()["HOME"] == "/somewhere"


def test_a_command_for_a_shell_is_quoted():
    launcher = Launcher(name="ssh", prefix=("ssh", "host"), through_shell=True)
    words = launcher.command()
    assert words[:2] == ["ssh", "host"]
    assert words[-1].startswith("'")
