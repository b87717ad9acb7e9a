import pytest

from loadtest.soak import Look, judge, slope
from loadtest.soak_clients import Error, Outage, differences, hosts_of, unexplained
from tests.faults.load import Acknowledged, Read


def looks(memory: list[float], files: list[int]) -> list[Look]:
    return [Look(float(n), m, f, {}) for n, (m, f) in enumerate(zip(memory, files, strict=True))]


def test_judge_finds_growth_in_the_first_quarter_flat() -> None:
    verdicts = judge(looks([40.0, 60.0, *[80.0] * 8], [10, 20, *[30] * 8]))
    assert [(v.name, v.flat) for v in verdicts] == [("memory", True), ("files", True)]


def test_judge_finds_steady_growth_of_memory() -> None:
    memory, files = judge(looks([100.0 + 2 * n for n in range(40)], [30] * 40))
    assert not memory.flat and files.flat
    assert memory.late - memory.early == pytest.approx(40.0)


def test_judge_finds_files_that_are_never_closed() -> None:
    memory, files = judge(looks([100.0] * 40, [30 + n for n in range(40)]))
    assert memory.flat and not files.flat


def test_slope_is_by_the_hour_and_of_the_last_half() -> None:
    assert slope([(0.0, 10.0), (60.0, 11.0), (120.0, 12.0)]) == pytest.approx(60.0)
    memory, files = judge(looks([100.0 - n for n in range(20)] + [50.0 + n for n in range(20)], [30] * 40))
    assert memory.per_hour == pytest.approx(3600.0)
    assert files.per_hour == 0.0


def test_only_an_outage_explains_an_error_until_shortly_after_it() -> None:
    errors = [Error(9.0, "reads, status 503"), Error(12.0, "beats, status 503"), Error(27.0, "beats, status 503")]
    assert unexplained(errors, [Outage(10.0, 16.0)]) == [
        "reads, status 503 after 9.0 s",
        "beats, status 503 after 27.0 s",
    ]


def test_differences_names_the_services_and_addresses() -> None:
    host = {"ip": "10.0.0.1", "port": 80, "healthy": True, "enabled": True, "weight": 1.0, "ephemeral": True,
            "metadata": {"n": "1"}}  # fmt: skip
    truth = {"a": hosts_of({"hosts": [host]}), "b": {}}
    assert differences("a list", {"a": hosts_of({"hosts": [host]})}, truth) == []
    assert differences("a list", {"a": hosts_of({"hosts": [{**host, "metadata": {}}]})}, truth) == [
        "a list: a differs in 10.0.0.1:80"
    ]
    assert differences("a list", {}, truth) == ["a list: a differs in 10.0.0.1:80"]


def test_lost_by_names_what_a_killed_server_did_not_keep_and_nothing_that_was_written_since() -> None:
    writes = Acknowledged({"kept", "lost", "removed since"}, {"gone", "back"})
    before = writes.copy()
    writes.there = {"kept", "lost", "new"}
    writes.gone |= {"removed since"}
    assert writes.lost_by(frozenset({"kept", "back", "removed since"}), before) == {"lost", "back"}
    assert (writes.there, writes.gone, writes.unknown) == ({"kept", "new"}, {"gone", "removed since"}, {"lost", "back"})


@pytest.mark.parametrize(("lost", "rebuilding", "missing"), [(2, False, 2), (2, True, 0), (3, True, 3)])
def test_a_read_may_lack_up_to_half_while_the_upstream_rebuilds_its_lists(
    lost: int, rebuilding: bool, missing: int
) -> None:
    must = frozenset(f"10.0.0.{n}:80" for n in range(4))
    read = Read("a", must, frozenset(), 200, frozenset(sorted(must)[lost:]), rebuilding=rebuilding)
    assert len(read.missing) == missing


@pytest.mark.parametrize(("rebuilding", "ghosts"), [(False, {"b"}), (True, set[str]())])
def test_a_read_may_show_what_was_deregistered_while_the_upstream_rebuilds_its_lists(
    rebuilding: bool, ghosts: set[str]
) -> None:
    read = Read("a", frozenset(), frozenset({"b", "c"}), 200, frozenset({"b"}), rebuilding=rebuilding)
    assert read.ghosts == ghosts
