"""The wrk scripts and the resource usage of a process."""

import os

from loadtest.load import Usage, find_program, in_turn, random_targets


def test_random_targets_prepares_each_target_once() -> None:
    script = random_targets(["/a", "/b"])
    assert 'targets = {"/a","/b"}' in script
    assert script.count("wrk.format") == 1


def test_in_turn_puts_a_new_id_between_the_prepared_halves() -> None:
    script = in_turn(["GET /a\r\nRequestId: {id}\r\nHost: {host}\r\n\r\n", "GET /b\r\nRequestId: {id}\r\n\r\n"])
    assert 'before = {"GET /a\\r\\nRequestId: ","GET /b\\r\\nRequestId: "}' in script
    assert 'after = {"\\r\\nHost: {host}\\r\\n\\r\\n","\\r\\n\\r\\n"}' in script
    assert "before[i] .. stamp .." in script


def test_in_turn_repeats_requests_without_an_id() -> None:
    assert "return before[n]" in in_turn(["GET /a\r\n\r\n"])


def test_usage_counts_from_its_start_and_memory_is_the_peak() -> None:
    usage = Usage(os.getpid())
    figures = usage.figures(0)
    assert figures["cpu_s_per_1000"] >= 0.0
    assert figures["memory"] >= 0.9 * usage.resident() > 1.0


def test_find_program_is_none_if_it_is_not_installed() -> None:
    assert find_program("no-such-program-anywhere") is None
    assert find_program("sh") is not None
