from __future__ import annotations

from nacos_proxy.frontends.dns.budget import Budget


def test_budget_take_bounds_each_client_and_all_of_them() -> None:
    budget = Budget(per_client=2, total=3, burst=2)
    assert [budget.take("a", 1, 0.0) for _ in range(5)] == [True] * 4 + [False]
    assert [budget.take("b", 1, 0.0) for _ in range(3)] == [True] * 2 + [False]
    assert not budget.take("c", 1, 0.0)


def test_budget_take_fills_up_with_time() -> None:
    budget = Budget(per_client=2, total=100, burst=1)
    assert budget.take("a", 2, 0.0)
    assert not budget.take("a", 1, 0.4)
    assert budget.take("a", 1, 0.5)
    assert budget.take("a", 2, 100.0)
    assert not budget.take("a", 1, 100.0)
    assert not budget.take("b", 3, 100.0)
