"""The wrk scripts and the resource usage of a process."""

import os

from loadtest.load import Usage, find_program, random_targets, unique_headers


def test_random_targets_prepares_each_target_once() -> None:
    script = random_targets(["/a", "/b"])
    assert 'targets = {"/a","/b"}' in script
    assert script.count("wrk.format") == 1


def test_unique_headers_differ_for_each_request() -> None:
    assert 'wrk.headers["RequestId"]' in unique_headers()


def test_usage_counts_from_its_start_and_memory_is_the_peak() -> None:
    usage = Usage(os.getpid())
    figures = usage.figures(0)
    assert figures["cpu_s_per_1000"] >= 0.0
    assert figures["memory"] >= 0.9 * usage.resident() > 1.0


def test_find_program_is_none_if_it_is_not_installed() -> None:
    assert find_program("no-such-program-anywhere") is None
    assert find_program("sh") is not None
