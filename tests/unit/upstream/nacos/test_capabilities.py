"""What is learned about a server's dialects, call by call."""

from __future__ import annotations

import pytest

from nacos_proxy.model.calls import CreateService, Fetch, Register, Update
from nacos_proxy.upstream.nacos.capabilities import ORDER, Capabilities
from tests.helpers.build import KEY

FETCH = Fetch(KEY)


def test_capabilities_dialects_for_starts_with_the_oldest_dialect_while_nothing_is_known() -> None:
    capabilities = Capabilities()
    assert (capabilities.dialects_for(FETCH, ORDER), capabilities.version, capabilities.dialects) == (
        ["v1", "v2", "v3"],
        "",
        [],
    )


@pytest.mark.parametrize(
    ("version", "expected"),
    [("1.4.8", False), ("2.2.4", False), ("2.3.0", True), ("2.10.1-SNAPSHOT", True), ("3.0.3", True), ("x", False)],
)
def test_capabilities_has_parameter_check_from_2_3_on(version: str, expected: bool) -> None:
    capabilities = Capabilities()
    assert not capabilities.has_parameter_check
    capabilities.set_version({"version": version})
    assert capabilities.has_parameter_check is expected
    capabilities.forget()
    assert not capabilities.has_parameter_check


def test_capabilities_gone_counts_only_for_its_kind_of_call() -> None:
    capabilities = Capabilities()
    assert not capabilities.gone("v1", Update)
    assert capabilities.dialects_for(Update(KEY, "10.0.0.1", 80), ORDER) == ["v2", "v3"]
    assert capabilities.dialects_for(FETCH, ORDER) == ["v1", "v2", "v3"]


def test_capabilities_dialects_for_tries_all_again_if_each_was_refused() -> None:
    capabilities = Capabilities()
    for name in ORDER:
        capabilities.gone(name, Fetch)
    assert capabilities.dialects_for(FETCH, ORDER) == ["v1", "v2", "v3"]
    assert capabilities.dialects_for(FETCH, ("v2",)) == ["v2"]


def test_capabilities_gone_after_it_worked_forgets_everything_else() -> None:
    capabilities = Capabilities()
    capabilities.set_version({"version": "3.0.3"})
    capabilities.version_asked_at = 7.0
    capabilities.worked("v1", Fetch)
    capabilities.gone("v1", Update)
    assert capabilities.gone("v1", Fetch)
    assert capabilities.dialects_for(Update(KEY, "10.0.0.1", 80), ORDER) == ["v1", "v2", "v3"]
    assert capabilities.dialects_for(FETCH, ORDER) == ["v2", "v3"]
    assert (capabilities.version, capabilities.version_asked_at, capabilities.dialects) == ("", float("-inf"), [])


@pytest.mark.parametrize(("version", "plan"), [("3.0.3", ["v1", "v3"]), ("2.5.1", ["v1", "v2", "v3"])])
def test_capabilities_dialects_for_a_server_of_3_leaves_out_v2(version: str, plan: list[str]) -> None:
    capabilities = Capabilities()
    capabilities.set_version({"version": version})
    assert capabilities.dialects_for(FETCH, ORDER) == plan
    assert capabilities.dialects_for(FETCH, ("v2",)) == ["v2"]  # the setting says so


def test_capabilities_dialects_for_an_ephemeral_service_starts_with_the_newest() -> None:
    assert Capabilities().dialects_for(CreateService(KEY, ephemeral=True), ORDER) == ["v3", "v2", "v1"]
    assert Capabilities().dialects_for(CreateService(KEY), ORDER) == ["v1", "v2", "v3"]


@pytest.mark.parametrize("state", [{}, {"version": None}, {"version": ""}])
def test_capabilities_set_version_without_a_version(state: dict[str, str | None]) -> None:
    capabilities = Capabilities()
    capabilities.set_version(state)
    assert capabilities.version == ""


def test_capabilities_dialects_are_those_that_worked() -> None:
    capabilities = Capabilities()
    capabilities.worked("v3", Fetch)
    capabilities.worked("v1", Register)
    assert capabilities.dialects == ["v1", "v3"]
