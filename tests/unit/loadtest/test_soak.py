import pytest

from loadtest.soak import Look, judge


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
