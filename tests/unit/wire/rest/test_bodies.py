"""The JSON of our own API, without a server."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nacos_proxy.model.calls import BeatResult
from nacos_proxy.model.errors import BadCall
from nacos_proxy.model.services import Change
from nacos_proxy.model.views import View
from nacos_proxy.wire.nacos.hosts import beat_json
from nacos_proxy.wire.rest.bodies import (
    BeatBody,
    RegisterBody,
    change_json,
    etag,
    read_beat,
    read_object,
    read_register,
    snapshot_json,
    tag_matches,
)
from nacos_proxy.wire.rest.query import InstanceAddress, KindQuery, refusal
from tests.helpers.build import KEY, instance, snapshot

A, B = instance("10.0.0.1"), instance("10.0.0.2", cluster="c2")
ALL = View()


def change(before: Any, after: Any) -> Change:
    return Change(before, after, "poll")


def ips(rows: list[dict[str, Any]]) -> list[str]:
    return [row["ip"] for row in rows]


def test_snapshot_json_has_the_fields_of_a_nacos_list_then_ours() -> None:
    shown = snapshot_json(snapshot(A, extra={"env": "x", "stale": 1}), View("DEFAULT"), stale=True)
    assert list(shown)[:10] == (
        "name groupName clusters cacheMillis hosts lastRefTime checksum allIPs reachProtectionThreshold valid".split()
    )
    assert (shown["env"], shown["stale"], shown["clusters"], shown["namespaceId"]) == ("x", True, "DEFAULT", "public")


def test_snapshot_json_shows_all_as_healthy_under_protection() -> None:
    sick = snapshot(A, instance("10.0.0.3", healthy=False), threshold=0.5)
    shown = snapshot_json(sick, ALL)
    assert (shown["reachProtectionThreshold"], [h["healthy"] for h in shown["hosts"]]) == (True, [True, True])
    assert snapshot_json(sick, View("", True))["reachProtectionThreshold"] is False


def test_change_json_has_added_removed_and_modified() -> None:
    heavier = instance("10.0.0.1", weight=5.0)
    new = instance("10.0.0.9")
    shown = change_json(change(snapshot(A, B), snapshot(heavier, new)), ALL)
    assert shown is not None
    assert (ips(shown["added"]), ips(shown["modified"]), ips(shown["removed"])) == (
        ["10.0.0.9"],
        ["10.0.0.1"],
        ["10.0.0.2"],
    )
    assert (ips(shown["hosts"]), shown["source"]) == (["10.0.0.1", "10.0.0.9"], "poll")


@pytest.mark.parametrize("view", [View("c2"), View("", True)])
def test_change_json_is_none_if_the_view_hides_the_change(view: View) -> None:
    unseen = instance("10.0.0.7", healthy=False)
    assert change_json(change(snapshot(B), snapshot(B, unseen)), view) is None
    assert change_json(change(snapshot(B), snapshot(B, unseen)), ALL) is not None


def test_change_json_shows_a_disabled_instance_as_removed() -> None:
    shown = change_json(change(snapshot(A), snapshot(instance("10.0.0.1", enabled=False))), ALL)
    assert shown is not None and ips(shown["removed"]) == ["10.0.0.1"] and shown["modified"] == []


@given(st.sets(st.integers(0, 5)), st.sets(st.integers(0, 5)), st.booleans())
def test_change_json_leads_a_reader_to_the_current_hosts(before: set[int], after: set[int], healthy_only: bool) -> None:
    def built(numbers: set[int], weight: float) -> Any:
        return snapshot(*(instance(f"10.0.0.{n}", weight=weight, healthy=n % 2 == 0) for n in numbers))

    view = View("", healthy_only)
    first, second = built(before, 1.0), built(after, 2.0)
    hosts = {h["instanceId"]: h for h in snapshot_json(first, view)["hosts"]}
    shown = change_json(change(first, second), view)
    for row in (shown or {"added": [], "modified": [], "removed": []})["removed"]:
        del hosts[row["instanceId"]]
    if shown is not None:
        hosts |= {h["instanceId"]: h for h in (*shown["added"], *shown["modified"])}
    assert list(sorted(hosts)) == sorted(h["instanceId"] for h in snapshot_json(second, view)["hosts"])
    assert all(hosts[h["instanceId"]] == h for h in snapshot_json(second, view)["hosts"])


def test_read_register_reads_every_field_and_has_defaults() -> None:
    whole = instance(
        "::1", 0, cluster="c", weight=0.5, metadata={"a": ""}, ephemeral=False, enabled=False, healthy=False
    )
    body = {"ip": "[::1]", "port": 0, "cluster": "c", "weight": 0.5, "metadata": {"a": ""}}
    body |= {"ephemeral": False, "enabled": False, "healthy": False, "managed": {"x": 1}}
    read = RegisterBody.model_validate(body)
    assert (read_register(KEY, read).instance, read.managed) == (whole, {"x": 1})
    assert read_register(KEY, RegisterBody(ip="a", port=1)).instance == instance("a", 1)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-9, 99999) | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*RegisterBody.model_fields]) | st.text(max_size=3), inner, max_size=6)
        ),
        max_leaves=12,
    )
)
def test_read_register_reads_any_body_or_raises_bad_call(body: Any) -> None:
    try:
        data = orjson.dumps(body)
    except TypeError:
        return  # a whole number that JSON has no place for
    try:
        read_register(KEY, RegisterBody.model_validate(read_object(data)))
    except ValidationError as error:
        assert refusal(error.errors()).text
    except BadCall as error:
        assert 400 <= error.status < 500 and error.text


def test_read_register_refuses_beat_timeouts_out_of_order() -> None:
    body = {"ip": "a", "port": 1, "metadata": {"preserved.heart.beat.interval": "60000"}}
    with pytest.raises(BadCall) as caught:
        read_register(KEY, RegisterBody.model_validate(body))
    assert caught.value.parameter == "metadata"


def test_read_beat_is_light_without_a_body_and_full_with_one() -> None:
    place, query = InstanceAddress("10.0.0.1", 80), KindQuery.model_validate({"ephemeral": "false", "cluster": "c"})
    light = read_beat(KEY, place, query, None)
    assert (light.full, light.ephemeral, light.cluster) == (None, False, "c")
    full = read_beat(KEY, place, query, BeatBody(weight=2))
    assert full.full == instance("10.0.0.1", cluster="c", weight=2.0, ephemeral=False)


def test_beat_json_passes_unknown_fields_on() -> None:
    shown = beat_json(BeatResult(extra={"code": 0, "more": [1]}))
    assert shown == {"clientBeatInterval": 5000, "code": 10200, "lightBeatEnabled": True, "more": [1]}


def test_etag_differs_by_revision_and_variant() -> None:
    assert etag("r") == etag("r", "", False) == '"r"'
    assert len({etag("r"), etag("s"), etag("r", "a", ""), etag("r", "", "a"), etag("r", True)}) == 5


@pytest.mark.parametrize(
    ("header", "matches"),
    [
        ('"r"', True),
        ('W/"r"', True),
        ('"a", "r"', True),
        ("*", True),
        ("", False),
        ('"rr"', False),
        ("r", False),
    ],
)
def test_tag_matches_reads_if_none_match(header: str, matches: bool) -> None:
    assert tag_matches(header, '"r"') is matches
