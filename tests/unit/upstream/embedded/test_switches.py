"""Switches and server state are those of the recordings of 2.5.1, and switches take the same values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from nacos_proxy.model.errors import BadCall
from nacos_proxy.upstream.embedded.switches import STATE, SWITCHES, with_switch
from tests.helpers.recordings import load


@pytest.mark.parametrize(("case", "ours"), [("v1 operator switches", SWITCHES), ("v1 server state", STATE)])
def test_switches_and_state_have_the_fields_of_the_recordings_in_order(case: str, ours: Mapping[str, Any]) -> None:
    [recorded] = [row.body for row in load("nacos-2.5.1") if row.case == case]
    assert list(ours) == list(recorded)
    assert {name for name in ours if type(ours[name]) is not type(recorded[name])} == set()


@pytest.mark.parametrize(
    ("entry", "value", "changed"),
    [
        ("distroThreshold", "0.5", {"distroThreshold": 0.5}),
        ("clientBeatInterval", "3000", {"clientBeatInterval": 3000}),
        ("pushCacheMillis", "10000", {"defaultPushCacheMillis": 10000}),
        ("masters", "a,b", {"masters": ["a", "b"]}),
        ("distro", "FALSE", {"distroEnabled": False}),
        ("check", "yes", {"healthCheckEnabled": False}),
        ("healthCheckTimes", "5", {"checkTimes": 5}),
        ("lightBeatEnabled", "no", {"lightBeatEnabled": False}),
        ("autoChangeHealthCheckEnabled", "YES", {"autoChangeHealthCheckEnabled": True}),
        ("pushVersion", "csharp:1.2.3", {"pushCSharpVersion": "1.2.3"}),
        ("limitedUrlMap", "/a:500,/b:404:x", {"limitedUrlMap": {"/a": 500, "/b": 404}}),
        ("overriddenServerStatus", "null", {"overriddenServerStatus": ""}),
        ("httpHealthParams", '{"max":4000}', {"httpHealthParams": {"max": 4000, "min": 500, "factor": 0.85}}),
        ("mysqlHealthParams", '{"min":1}', {"mysqlHealthParams": {"max": 3000, "min": 1, "factor": 0.65}}),
        ("healthCheckEnabled", "false", {}),
        ("", "", {}),
    ],
)
def test_with_switch_sets_one_switch(entry: str, value: str, changed: Mapping[str, Any]) -> None:
    assert with_switch(SWITCHES, entry, value) == {**SWITCHES, **changed}
    assert SWITCHES["masters"] is None


@pytest.mark.parametrize(
    ("entry", "value", "said"),
    [
        ("distroThreshold", "abc", 'For input string: "abc"'),
        ("distroThreshold", "-1", "distroThreshold can not be zero or negative: -1.0"),
        ("clientBeatInterval", "", 'For input string: ""'),
        ("clientBeatInterval", "9" * 30, f'For input string: "{"9" * 30}"'),
        ("pushCacheMillis", "9999", "min cache time for http or tcp is too small(<10000)"),
        (
            "serviceStatusSynchronizationPeriodMillis",
            "1",
            "serviceStatusSynchronizationPeriodMillis is too small(<5000)",
        ),
        ("pushVersion", "java:1", r"illegal version, must match: [0-9]+\.[0-9]+\.[0-9]+"),
        ("pushVersion", "cobol:1.0.0", "unsupported client type: cobol"),
        ("limitedUrlMap", "/a", "invalid input for limited urls"),
        ("limitedUrlMap", ":500", "url can not be empty, url: "),
        ("limitedUrlMap", "/a:0", "illegal normal status code: 0"),
        ("tcpHealthParams", "oops", "json param invalid."),
        ("tcpHealthParams", "[1]", "json param invalid."),
        ("tcpHealthParams", '{"min":1}', "min check time for http or tcp is too small(<500)"),
        ("tcpHealthParams", '{"factor":2}', "malformed factor"),
    ],
)
def test_with_switch_refuses_a_wrong_value_with_the_text_of_nacos(entry: str, value: str, said: str) -> None:
    with pytest.raises(BadCall) as caught:
        with_switch(SWITCHES, entry, value)
    assert caught.value.text == said
