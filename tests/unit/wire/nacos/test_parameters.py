"""Parameters as Nacos reads them; the words are those of the recordings and of nacos-http.md 1.6, 1.7."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model.errors import BadCall, Violation
from nacos_proxy.model.services import ServiceKey
from nacos_proxy.wire.http import HttpRequest
from nacos_proxy.wire.nacos.forms import metadata_text
from nacos_proxy.wire.nacos.parameters import (
    UNGROUPED,
    Parameters,
    check_grouped,
    parse_metadata,
    read_beat,
    read_instances,
    split,
    to_double,
    to_int,
)
from tests.helpers.build import instance
from tests.helpers.pair import METADATA, TEXT


def of(**values: str) -> Parameters:
    return Parameters(HttpRequest("GET", "/", tuple(values.items())))


def refused(**values: str) -> BadCall:
    with pytest.raises(BadCall) as caught:
        of(**values).check()
    return caught.value


def test_parameters_text_is_the_first_that_is_not_blank() -> None:
    p = of(clusterName=" \t", cluster=" c1 ")
    assert p.text("clusterName", "cluster") == "c1"
    assert p.text("nothing", default="DEFAULT") == "DEFAULT"
    assert p.raw("clusterName") == " \t" and p.raw("nothing") is None


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"serviceName": "s"}, ServiceKey("public", "DEFAULT_GROUP", "s")),
        ({"serviceName": "s", "groupName": "", "namespaceId": ""}, ServiceKey("public", "DEFAULT_GROUP", "s")),
        ({"serviceName": "g@@s", "groupName": "h"}, ServiceKey("public", "g", "s")),
        ({"serviceName": "s", "groupName": "h", "namespaceId": "n"}, ServiceKey("n", "h", "s")),
    ],
)
def test_parameters_key_reads_prefix_or_group(values: dict[str, str], key: ServiceKey) -> None:
    assert of(**values).key() == key


@pytest.mark.parametrize(
    ("name", "text"), [("@@x", "groupName can't be empty"), ("g@@", "format as"), ("@@", "format")]
)
def test_parameters_filtered_refuses_half_a_name(name: str, text: str) -> None:
    with pytest.raises(BadCall, match=text) as caught:
        Parameters.filtered(HttpRequest("GET", "/", (("serviceName", name),)))
    assert caught.value.violation is Violation.EMPTY_GROUP


def test_parameters_filtered_trims_the_name() -> None:
    assert Parameters.filtered(HttpRequest("GET", "/", (("serviceName", " s "),))).check() == {}
    assert refused(serviceName=" s ").violation is Violation.ILLEGAL


@pytest.mark.parametrize(
    ("values", "parameter", "text"),
    [
        ({"namespaceId": "n" * 65}, "namespaceId/tenant", "the param length should not exceed 64."),
        ({"namespaceId": "a b", "serviceName": "a b"}, "namespaceId/tenant", "illegal characters"),
        ({"serviceName": "x" * 513}, "serviceName", "the param length should not exceed 512."),
        ({"serviceName": "服务"}, "serviceName", "illegal characters"),
        ({"serviceName": "a@@b@@c"}, "serviceName", "illegal characters"),
        ({"serviceNameParam": "a b"}, "serviceName", "illegal characters"),
        ({"groupName": "a,b", "clusterName": "a b"}, "group", "illegal characters"),
        ({"groupNameParam": "(", "serviceName": ""}, "group", "illegal characters"),
        ({"clusterName": "a,b", "ip": "a b"}, "cluster", "illegal characters"),
        ({"cluster": "a b"}, "cluster", "illegal characters"),
        ({"ip": "a b", "port": "x"}, "ip", "illegal characters"),
        ({"port": "abc"}, "port", "between 0 and 65535."),
        ({"port": " 80"}, "port", "between 0 and 65535."),
        ({"port": "70000"}, "port", "between 0 and 65535."),
        ({"checkPort": "-1"}, "port", "between 0 and 65535."),
        ({"metadata": '{"a":"%s"}' % ("x" * 1024)}, "Metadata", "should not exceed 1024."),
    ],
)
def test_parameters_check_names_the_first_illegal_value(values: dict[str, str], parameter: str, text: str) -> None:
    error = refused(**values)
    assert (error.parameter, error.violation) == (parameter, Violation.ILLEGAL)
    assert error.text.startswith(f"Param '{parameter}' is illegal, ") and text in error.text


def test_parameters_check_parses_metadata_first() -> None:
    assert refused(metadata="{oops", namespaceId="a b").violation is Violation.METADATA


def test_parameters_check_checks_each_cluster_of_a_list() -> None:
    """2.5.1 was asked of each; a part that is blank is none."""
    for legal in ("a,b_c,,d-e", "a, ", "a, ,b", " ", ",", ""):
        assert of(serviceName="s", clusters=legal).check(address=False, clusters=True) == {}
    for illegal in ("a,b c", " B", "B ", "a, B", "a#b"):
        with pytest.raises(BadCall, match="'cluster'"):
            of(serviceName="s", clusters=illegal).check(address=False, clusters=True)


def test_parameters_check_instances_checks_each_instance() -> None:
    p = Parameters(HttpRequest("PUT", "/"))
    p.check_instances([instance()])
    for wrong in (instance(cluster="a b"), instance(ip="a b"), instance(port=70000)):
        with pytest.raises(BadCall):
            p.check_instances([wrong])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", UNGROUPED),
        ("s", UNGROUPED),
        ("g@@", UNGROUPED),
        ("@@s", "Param 'serviceName' is illegal, groupName can't be empty"),
    ],
)
def test_check_grouped_requires_two_parts(name: str, text: str) -> None:
    check_grouped("g@@s", Violation.GROUPED_NAME)
    with pytest.raises(BadCall) as caught:
        check_grouped(name, Violation.GROUPED_NAME)
    assert caught.value.text == text


# what v1's controllers want


def test_parameters_required_and_request_param_have_different_messages() -> None:
    for values in ({}, {"ip": ""}):
        with pytest.raises(BadCall) as caught:
            of(**values).required("ip")
        assert (caught.value.text, caught.value.violation) == ("Param 'ip' is required.", Violation.MISSING)
    with pytest.raises(BadCall, match=r"Parameter 'key' is missing"):
        of().request_param("key")
    assert of(ip=" x ").required("ip") == of(ip=" x ").request_param("ip") == "x"


def test_parameters_required_key_and_required_address() -> None:
    assert of(serviceName="s", ip="10.0.0.1", port="+80").required_key().name == "s"
    assert of(ip="10.0.0.1", port="+80").required_address() == ("10.0.0.1", 80)
    with pytest.raises(BadCall, match="format as"):
        of(serviceName="  ").required_key()
    with pytest.raises(BadCall, match="Param 'ip' is required"):
        of(ip=" ", port="80").required_address()
    with pytest.raises(BadCall, match='For input string: ""'):
        of(ip="x", port=" ").required_address()


# values


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("YES", True), ("on", True), ("y", True), ("t", True), ("1", False), ("maybe", False)],
)
def test_parameters_yes_is_false_unless_the_text_means_true(text: str, value: bool) -> None:
    assert of(a=text).yes("a", default=True) is value


def test_parameters_booleans_have_defaults() -> None:
    assert of().yes("a", default=True) and of(a=" ").yes("a", default=True)
    assert of().exactly_true("a", default=True) and not of(a="yes").exactly_true("a")
    assert of(a="TRUE").exactly_true("a")
    assert of().boolean("a") is None and of().flag("a", True)


@pytest.mark.parametrize(("text", "value"), [("true", True), ("On", True), ("1", True), ("0", False), ("no", False)])
def test_parameters_boolean_reads_as_spring_does(text: str, value: bool) -> None:
    assert of(a=text).boolean("a") is value


def test_parameters_boolean_refuses_other_text() -> None:
    with pytest.raises(BadCall, match="maybe") as caught:
        of(a="maybe").flag("a", True)
    assert caught.value.violation is Violation.NOT_A_BOOLEAN


@pytest.mark.parametrize("text", ["x", "", "1.0", "0x1", "\uff11", "99999999999", "1 "])
def test_to_int_reads_as_java_does(text: str) -> None:
    with pytest.raises(BadCall) as caught:
        to_int("udpPort", text)
    assert caught.value.text == f'For input string: "{text}"'


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1.0), ("2.5", 2.5), (".5", 0.5), ("5.", 5.0), ("1e3", 1000.0), ("-1", -1.0), ("1f", 1.0), ("1D", 1.0)],
)
def test_to_double_reads_as_java_does(text: str, value: float) -> None:
    assert to_double("weight", text) == value


@pytest.mark.parametrize("text", ["abc", "nan", "inf", "1,5", "1_0", "", "0x1", "\uff11"])
def test_to_int_and_to_double_refuse_with_the_message_of_java(text: str) -> None:
    with pytest.raises(BadCall) as caught:
        to_double("weight", text)
    assert (caught.value.text, caught.value.violation) == (f'For input string: "{text}"', Violation.NOT_A_NUMBER)


def test_parameters_numbers_have_defaults_and_lenient_variants() -> None:
    p = of(a="x", b="7", c="NaN", d="0.5", e="1e999")
    assert p.integer("nothing", 3) == 3 and p.integer("b", 3) == 7
    assert p.lenient_integer("a", 3) == 0 and p.lenient_integer("nothing", 3) == 3 and p.lenient_integer("b") == 7
    assert p.double("nothing") is None and p.double("d") == 0.5
    assert [p.lenient_double(name) for name in ("a", "c", "d", "e", "nothing")] == [0.0, 0.0, 0.5, 0.0, 0.0]
    assert p.finite("d", 0.0) == 0.5 and p.finite("nothing", 0.25) == 0.25
    with pytest.raises(BadCall):
        p.finite("c", 0.0)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", ""),
        ('{"type":"none"}', '{"type":"none"}'),
        ("%7B%22type%22%3A%22label%22%2C%22expression%22%3A%22a%22%7D", '{"type":"label","expression":"a"}'),
    ],
)
def test_parameters_selector_may_be_encoded_twice(text: str, value: str) -> None:
    assert of(selector=text).selector() == value


@pytest.mark.parametrize("text", ["x", "{}", "[]", '{"type":"odd"}', '{"type":[]}', "[" * 5000, "null"])
def test_parameters_selector_refuses_an_unknown_type(text: str) -> None:
    with pytest.raises(BadCall, match="not match any type of selector!") as caught:
        of(selector=text).selector()
    assert caught.value.violation is Violation.SELECTOR


# metadata, beats, instances


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", {}),
        ('{"a":"1"}', {"a": "1"}),
        ('{"a":1,"b":1.10,"c":true,"d":null,"e":false}', {"a": "1", "b": "1.10", "c": "true", "d": None, "e": "false"}),
        ("null", {}),
        ('{"a":"1"} behind', {"a": "1"}),
        ('{"a":"1"}{"b":', {"a": "1"}),
        ("a=1,b=2", {"a": "1", "b": "2"}),
        ("a=1,", {"a": "1"}),
        (",", {}),
        ("=b", {"": "b"}),
        ("a=b=", {"a": "b"}),
        ('"a=b"', {'"a': 'b"'}),
    ],
)
def test_parse_metadata_reads_json_or_pairs(text: str, value: dict[str, str | None]) -> None:
    assert parse_metadata(text) == value


@pytest.mark.parametrize(
    "text", ["{oops", "oops", "a=", "a=b=c", "a=1,,b=2", '{"a":{}}', "[1]", "null x", '{"a":"\\ud800"}', "[" * 9999]
)
def test_parse_metadata_refuses_with_the_whole_text(text: str) -> None:
    with pytest.raises(BadCall) as caught:
        parse_metadata(text)
    assert caught.value.text == f"metadata format incorrect:{text}"


@given(METADATA)
def test_parse_metadata_reads_any_written_metadata(metadata: dict[str, str]) -> None:
    assert parse_metadata(metadata_text(metadata)) == metadata


@pytest.mark.parametrize(
    ("text", "parts"), [("", [""]), (",", []), ("a,b,,", ["a", "b"]), (",a", ["", "a"]), ("a", ["a"])]
)
def test_split_works_as_in_java(text: str, parts: list[str]) -> None:
    assert split(text, ",") == parts


def test_read_beat_reads_an_instance() -> None:
    beat = read_beat(
        '{"serviceName":"g@@s","ip":"10.0.0.1","port":"80","cluster":"c1","metadata":{"a":1},"scheduled":true}'
    )
    assert beat == instance(cluster="c1", weight=0.0, metadata={"a": "1"})
    persistent = read_beat('{"ip":"10.0.0.1","port":80,"weight":2,"ephemeral":false}', "c2")
    assert persistent == instance(cluster="c2", weight=2.0, ephemeral=False)
    nested = read_beat('{"ip":"10.0.0.1","port":80.0,"ephemeral":0,"own":' + "[" * 400 + "]" * 400 + "} behind", "c2")
    assert nested == instance(cluster="c2", weight=0.0, ephemeral=False)
    assert read_beat("") is None
    empty = read_beat("{}")
    assert empty is not None and (empty.ip, empty.port) == ("", 0)


def test_read_instances_reads_a_list() -> None:
    assert read_instances("") == ()
    text = '[{"ip":"10.0.0.1","port":"80","clusterName":"c1","ephemeral":"false"},{"ip":"10.0.0.2","port":81}]'
    assert read_instances(text) == (
        instance(cluster="c1", ephemeral=False),
        instance("10.0.0.2", 81),
    )


ODD_BEATS = [
    "{oops",
    "[]",
    "1",
    "null",
    '{"port":"x"}',
    '{"port":[]}',
    '{"weight":"NaN"}',
    '{"weight":NaN}',
    '{"weight":1e999}',
    '{"ip":"\\ud800"}',
    '{"metadata":"a=b"}',
    '{"metadata":{"a":{}}}',
    "[" * 9999,
]


@pytest.mark.parametrize("text", ODD_BEATS)
def test_read_beat_refuses_what_is_not_a_beat(text: str) -> None:
    with pytest.raises(BadCall) as caught:
        read_beat(text)
    assert (caught.value.parameter, caught.value.violation, caught.value.status) == ("beat", Violation.BODY, 500)


@pytest.mark.parametrize("text", ["{}", "[1]", "[null]", "x", '[{"port":"x"}]'])
def test_read_instances_refuses_what_is_not_a_list_of_instances(text: str) -> None:
    with pytest.raises(BadCall) as caught:
        read_instances(text)
    assert caught.value.parameter == "instances"


@given(st.sampled_from([parse_metadata, read_beat, read_instances]), TEXT)
def test_readers_of_parameters_raise_nothing_but_bad_call(read: Any, text: str) -> None:
    try:
        read(text)
    except BadCall:
        pass
