"""`PrivateDirectory` follows no links and uses no files of other users."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from nacos_proxy.background.state_file import FILE, StateFile
from nacos_proxy.private_directory import PrivateDirectory, UnsafeDirectory

FILES = ("lock", FILE, f"{FILE}-wal", f"{FILE}-shm", f"{FILE}-journal")
REPOSITORY = Path(__file__).parents[2]
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    path.mkdir(0o700)
    return path


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    path = tmp_path / "precious"
    path.write_text("somebody's own")
    path.chmod(0o644)
    return path


def untouched(path: Path) -> bool:
    return path.read_text() == "somebody's own" and stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("name", FILES)
def test_open_follows_no_link(home: Path, precious: Path, name: str) -> None:
    """Once the target of `lock` was overwritten, and the target of the state file got another mode."""
    (home / name).symlink_to(precious)
    with pytest.raises(
        UnsafeDirectory, match=f"{home / name} is a link, and writing to it could destroy .*: remove it"
    ):
        StateFile(home)
    assert untouched(precious)


@pytest.mark.parametrize("name", FILES)
def test_open_creates_no_file_through_a_dangling_link(home: Path, tmp_path: Path, name: str) -> None:
    (home / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeDirectory, match="is a link"):
        StateFile(home)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", FILES)
def test_open_refuses_a_file_with_several_names(home: Path, precious: Path, name: str) -> None:
    (home / name).hardlink_to(precious)
    with pytest.raises(UnsafeDirectory, match="is one file under several names"):
        StateFile(home)
    assert untouched(precious)


@pytest.mark.parametrize("name", FILES)
def test_open_refuses_a_pipe_without_waiting_for_it(home: Path, name: str) -> None:
    os.mkfifo(home / name)
    with pytest.raises(UnsafeDirectory, match="is no file: remove it"):
        StateFile(home)


def test_set_aside_follows_no_link(home: Path, precious: Path) -> None:
    (home / FILE).write_text("no database")
    (home / f"{FILE}.corrupt-1").symlink_to(precious.parent / "nothing")
    state = StateFile(home)
    assert state.set_aside == home / f"{FILE}.corrupt-2"
    state.close()


def as_user(uid: int, directory: Path) -> str:
    """Runs `stand_in` as this user in a child process that begins as root: only root may be able to read Python."""
    code = f"from {__name__} import stand_in; stand_in({uid}, {str(directory)!r})"
    command = [sys.executable, "-c", code]
    # Coverage could not write its data as this user.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    env["PYTHONPATH"] = f"{REPOSITORY / 'proxy'}:{REPOSITORY}"
    ended = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def stand_in(uid: int, directory: str) -> None:
    """Becomes the user, opens the directory, and prints the path used or the refusal."""
    os.chdir(directory)
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    try:
        home = PrivateDirectory(Path("."))
        home.own(*FILES)
    except UnsafeDirectory as error:
        said = f"refused: {error}"
    else:
        said = str(home.path)
    sys.stdout.write(said)


@ROOT
@pytest.mark.parametrize("name", FILES)
def test_open_refuses_a_file_of_a_third_user(home: Path, name: str) -> None:
    (home / name).touch()
    os.chown(home, 12345, 12345)
    os.chown(home / name, 23456, 23456)
    said = as_user(12345, home)
    assert said.startswith(f"refused: {name} belongs to user 23456, and this process is user 12345: chown it to 12345")


@ROOT
def test_open_accepts_a_file_of_the_owner_of_the_directory(home: Path) -> None:
    """Some mounts show one owner for all files."""
    home.chmod(0o755)
    (home / FILE).touch(0o644)
    assert as_user(12345, home) == "."


@ROOT
def test_private_directory_of_somebody_else_is_used_with_a_warning(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.chown(home, 12345, 12345)
    StateFile(home).close()
    assert f"{home} belongs to user 12345, and this process is user 0" in caplog.text


@ROOT
def test_private_directory_moves_to_a_subdirectory_if_anybody_can_write(home: Path) -> None:
    """An `emptyDir` of Kubernetes belongs to root."""
    home.chmod(0o777)
    assert as_user(12345, home) == "nacos-proxy"
    made = (home / "nacos-proxy").stat()
    assert (made.st_uid, stat.S_IMODE(made.st_mode)) == (12345, 0o700)


@ROOT
@pytest.mark.parametrize("planted", ["link", "directory"])
def test_private_directory_refuses_a_subdirectory_that_somebody_else_made(
    home: Path, tmp_path: Path, planted: str
) -> None:
    home.chmod(0o777)
    precious = tmp_path / "precious"
    precious.mkdir(0o755)
    os.chown(precious, 12345, 12345)
    if planted == "link":
        (home / "nacos-proxy").symlink_to(precious)
    else:
        (home / "nacos-proxy").mkdir(0o777)
        os.chown(home / "nacos-proxy", 23456, 23456)
    said = as_user(12345, home)
    assert said.startswith("refused: nacos-proxy is a link" if planted == "link" else "refused: nacos-proxy belongs to")
    assert stat.S_IMODE(precious.stat().st_mode) == 0o755 and list(precious.iterdir()) == []


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777, 0o775])
def test_private_directory_closes_a_directory_of_ours_to_others(
    home: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    home.chmod(mode)
    StateFile(home).close()
    assert stat.S_IMODE(home.stat().st_mode) == mode & ~0o022
    assert f"others could write to {home}; they cannot any more" in caplog.text


def test_own_closes_files_to_others(home: Path) -> None:
    StateFile(home).close()
    for name in ("lock", FILE):
        (home / name).chmod(0o666)
    state = StateFile(home)
    assert {stat.S_IMODE((home / name).stat().st_mode) for name in FILES if (home / name).exists()} == {0o600}
    state.close()


def test_private_directory_may_itself_be_a_link(home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    (tmp_path / "link").symlink_to(home)
    StateFile(tmp_path / "link").close()
    assert (home / FILE).exists() and caplog.text == ""
