"""Files are replaced whole, with their rights, through links, and never half."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from nacos_proxy.cli.files import CannotReplace, beside, read_text, real_path, replace_file


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def test_replace_file_makes_a_new_file_that_all_can_read(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        assert replace_file(tmp_path / "new", b"text")
    finally:
        os.umask(before)
    assert (read_text(tmp_path / "new"), mode_of(tmp_path / "new"), names(tmp_path)) == (b"text", 0o644, ["new"])


def test_replace_file_keeps_mode_and_owner(tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_text("before")
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 12345, 23456)
    owner = (path.stat().st_uid, path.stat().st_gid)
    before = path.stat().st_ino
    replace_file(path, b"after")
    assert (read_text(path), mode_of(path)) == (b"after", 0o640)
    assert (path.stat().st_uid, path.stat().st_gid) == owner
    assert path.stat().st_ino != before


def test_replace_file_leaves_the_old_file_if_the_check_refuses_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_text("before")
    seen = list[tuple[bytes | None, bytes]]()

    def check(new: Path) -> bool:
        seen.append((read_text(new), path.read_bytes()))
        return False

    assert not replace_file(path, b"after", check=check)
    assert (seen, path.read_text(), names(tmp_path)) == ([(b"after", b"before")], "before", ["old"])


def test_replace_file_leaves_nothing_behind_if_the_check_raises(tmp_path: Path) -> None:
    def check(new: Path) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(tmp_path / "new", b"text", check=check)
    assert names(tmp_path) == []


def test_replace_file_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    left = beside(tmp_path / "file", "nacos-proxy-new")
    victim = tmp_path / "victim"
    victim.write_text("safe")
    left.symlink_to(victim)
    replace_file(tmp_path / "file", b"text")
    assert (victim.read_text(), names(tmp_path)) == ("safe", ["file", "victim"])


def test_real_path_is_what_a_link_points_to(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to("there/file")
    assert real_path(link) == tmp_path / "there" / "file"
    replace_file(real_path(link), b"text")
    assert (link.is_symlink(), link.read_text()) == (True, "text")


def test_real_path_refuses_what_cannot_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path, tmp_path / "nowhere" / "file", tmp_path / "loop", Path("/dev/null")):
        with pytest.raises(CannotReplace):
            real_path(path)


def test_read_text_of_a_missing_file_is_none(tmp_path: Path) -> None:
    assert read_text(tmp_path / "nowhere") is None
