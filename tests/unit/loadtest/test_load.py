"""What is said to wrk, and what a process used."""

import os

from loadtest.load import Usage, find_program, random_targets, unique_headers


def test_random_targets_are_all_prepared_once() -> None:
    script = random_targets(["/a", "/b"])
    assert 'targets = {"/a","/b"}' in script
    assert script.count("wrk.format") == 1


def test_each_request_has_a_header_of_its_own() -> None:
    assert 'wrk.headers["RequestId"]' in unique_headers()


def test_usage_counts_from_its_making_and_memory_is_the_most_that_there_was() -> None:
    usage = Usage(os.getpid())
    figures = usage.figures(0)
    assert figures["cpu_s_per_1000"] >= 0.0
    assert figures["memory"] >= 0.9 * usage.resident() > 1.0


def test_a_program_that_is_not_there_is_none() -> None:
    assert find_program("no-such-program-anywhere") is None
    assert find_program("sh") is not None
