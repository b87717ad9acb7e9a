"""Two processes never write one state file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from proxy.lock import StateLocked, lock


def test_who_comes_second_is_told_who_was_first(tmp_path: Path) -> None:
    held = lock(tmp_path)
    with pytest.raises(StateLocked, match=f"process {os.getpid()}"):
        lock(tmp_path)
    os.close(held)
    os.close(lock(tmp_path))
