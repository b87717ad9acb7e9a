"""What a worker inherits; that workers live, die and come back is held by `tests/e2e/test_workers.py`."""

from __future__ import annotations

from proxy.workers import environment


def test_a_worker_is_told_nothing_that_the_service_manager_says_to_the_first_process() -> None:
    ours = {"PATH": "/bin", "NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1", "LISTEN_FDS": "1", "NACOS_PROXY_PORT": "0"}
    assert environment(ours) == {"PATH": "/bin", "NACOS_PROXY_PORT": "0"}
