"""Two processes never write one state file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nacos_proxy.background.state_lock import StateLocked, lock
from nacos_proxy.private_directory import Home


def test_who_comes_second_is_told_who_was_first(tmp_path: Path) -> None:
    home = Home(tmp_path)
    held = lock(home)
    with pytest.raises(StateLocked, match=f"process {os.getpid()}"):
        lock(home)
    os.close(held)
    os.close(lock(home))
    home.close()
