"""What is learned of a server, call by call."""

from __future__ import annotations

import pytest

from nacos_proxy.model.calls import (
    CreateService,
    Fetch,
    Register,
    Update,
)
from nacos_proxy.upstream.nacos.capabilities import ORDER, Capabilities
from tests.helpers.build import KEY

FETCH = Fetch(KEY)


def test_nothing_is_known_at_first_and_the_oldest_dialect_comes_first() -> None:
    spoken = Capabilities()
    assert (spoken.plan(FETCH, ORDER), spoken.version, spoken.dialects) == (["v1", "v2", "v3"], "", [])


@pytest.mark.parametrize(
    ("version", "checks"),
    [("1.4.8", False), ("2.2.4", False), ("2.3.0", True), ("2.10.1-SNAPSHOT", True), ("3.0.3", True), ("x", False)],
)
def test_servers_have_the_parameter_check_from_2_3_on_and_are_not_known_to_before_they_tell(
    version: str, checks: bool
) -> None:
    spoken = Capabilities()
    assert not spoken.checks
    spoken.told({"version": version})
    assert spoken.checks is checks
    spoken.forget()
    assert not spoken.checks


def test_a_refusal_counts_for_its_kind_of_call_alone() -> None:
    spoken = Capabilities()
    assert not spoken.gone("v1", Update)
    assert spoken.plan(Update(KEY, "10.0.0.1", 80), ORDER) == ["v2", "v3"]
    assert spoken.plan(FETCH, ORDER) == ["v1", "v2", "v3"]


def test_where_every_dialect_was_refused_all_are_tried_again() -> None:
    spoken = Capabilities()
    for name in ORDER:
        spoken.gone(name, Fetch)
    assert spoken.plan(FETCH, ORDER) == ["v1", "v2", "v3"]
    assert spoken.plan(FETCH, ("v2",)) == ["v2"]


def test_a_refusal_of_what_worked_forgets_all_but_itself() -> None:
    spoken = Capabilities()
    spoken.told({"version": "3.0.3"})
    spoken.asked_at = 7.0
    spoken.worked("v1", Fetch)
    spoken.gone("v1", Update)
    assert spoken.gone("v1", Fetch)
    assert spoken.plan(Update(KEY, "10.0.0.1", 80), ORDER) == ["v1", "v2", "v3"]
    assert spoken.plan(FETCH, ORDER) == ["v2", "v3"]
    assert (spoken.version, spoken.asked_at, spoken.dialects) == ("", float("-inf"), [])


@pytest.mark.parametrize(("version", "plan"), [("3.0.3", ["v1", "v3"]), ("2.5.1", ["v1", "v2", "v3"])])
def test_a_server_of_3_is_not_asked_in_v2(version: str, plan: list[str]) -> None:
    spoken = Capabilities()
    spoken.told({"version": version})
    assert spoken.plan(FETCH, ORDER) == plan
    assert spoken.plan(FETCH, ("v2",)) == ["v2"]  # the setting says so


def test_an_ephemeral_service_is_created_in_the_newest_dialect() -> None:
    assert Capabilities().plan(CreateService(KEY, ephemeral=True), ORDER) == ["v3", "v2", "v1"]
    assert Capabilities().plan(CreateService(KEY), ORDER) == ["v1", "v2", "v3"]


@pytest.mark.parametrize("state", [{}, {"version": None}, {"version": ""}])
def test_a_server_that_tells_no_version_has_none(state: dict[str, str | None]) -> None:
    spoken = Capabilities()
    spoken.told(state)
    assert spoken.version == ""


def test_what_works_is_shown() -> None:
    spoken = Capabilities()
    spoken.worked("v3", Fetch)
    spoken.worked("v1", Register)
    assert (spoken.dialects, spoken.dialect) == (["v1", "v3"], "v1")
