"""The statistics of the load tests."""

from loadtest.rounds import Sample, Series, Spread, interleave


def test_interleave_lets_each_contender_go_first_as_often_as_last() -> None:
    assert list(interleave(["a", "b"], 2)) == [(0, "a"), (0, "b"), (1, "b"), (1, "a")]


def test_spread_is_median_minimum_and_maximum() -> None:
    assert Spread.of([3, 1, 2]) == Spread(2, 1, 3)


def series() -> Series:
    taken = Series("reads")
    for rates in ({"a": 10.0, "b": 5.0}, {"b": 10.0, "a": 40.0}, {"a": 90.0, "b": 30.0}):
        for contender, rate in rates.items():
            taken.add(Sample(contender, {"rate": rate}))
    return taken


def test_series_ratio_compares_round_by_round() -> None:
    assert series().ratio("a", "b", "rate") == Spread(3.0, 2.0, 4.0)


def test_series_has_no_spread_of_a_figure_that_was_not_measured() -> None:
    assert series().spread("a", "p99") is None
    assert series().ratio("a", "b", "p99") is None


def test_series_keeps_the_order_of_contenders_and_figures() -> None:
    taken = series()
    assert taken.contenders == ["a", "b"]
    assert taken.figures == ["rate"]
