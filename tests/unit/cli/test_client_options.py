"""The shared options of the client commands, and how answers are printed."""

from __future__ import annotations

import json
from typing import Any

import click
import httpx
import pytest

from nacos_proxy.cli.client_options import (
    ADDRESS,
    DURATION,
    WEIGHT,
    Session,
    address_of,
    line_of,
    metadata_of,
    row_of,
    title_of,
)
from nacos_proxy.cli.failures import ApiProblem, Unreached
from nacos_proxy.cli.rest_client import RestClient
from tests.helpers.live import ProxyProcess
from tests.unit.cli.answers import answered_by
from tests.unit.conftest import Run


def host(**more: Any) -> dict[str, Any]:
    plain = {"ip": "10.0.0.1", "port": 80, "clusterName": "DEFAULT", "weight": 1.0, "metadata": {}}
    return {**plain, "enabled": True, "healthy": True, "ephemeral": True, **more}


def test_row_of_shows_an_instance_as_cells() -> None:
    shown = [tuple(text for text, _ in row_of(one)) for one in (
        host(),
        host(ip="2001:db8::1", enabled=False, ephemeral=False, weight=2.5, metadata={"zone": "a", "v": None}),
        host(ip="10.0.0.3", healthy=False),
    )]  # fmt: skip
    assert shown == [
        ("10.0.0.1:80", "DEFAULT", "1", "healthy", "ephemeral", ""),
        ("[2001:db8::1]:80", "DEFAULT", "2.5", "disabled", "persistent", "zone=a v=null"),
        ("10.0.0.3:80", "DEFAULT", "1", "unhealthy", "ephemeral", ""),
    ]


def test_title_of_and_line_of_escape_control_characters() -> None:
    nasty = host(ip="\x1b[2J", clusterName="c\n", metadata={"\x1b]0;title\x07": "x\x9b"})
    assert title_of({"name": "a\x1b[31m", "namespaceId": "n\r", "stale": True}) == r"a\x1b[31m (n\r) STALE"
    line = click.unstyle(line_of("+", "green", "a\x1b", nasty, "poll"))
    assert line == r"+ a\x1b  \x1b[2J:80  c\n  1  healthy  ephemeral  \x1b]0;title\x07=x\x9b  (poll)"
    assert address_of(nasty) == r"\x1b[2J:80"
    assert address_of(host(ip="[2001:db8::7]")) == address_of(host(ip="2001:db8::7")) == "[2001:db8::7]:80"


def test_client_command_shows_its_own_options_first(cli: Run) -> None:
    text = cli("get", "--help").output
    places = [text.index(part) for part in ("\nOptions:\n", "--healthy-only", "of every client command", "--server")]
    assert places == sorted(places)


def test_metadata_of_parses_pairs() -> None:
    assert metadata_of(["a=b", "c=d=e", "f="]) == {"a": "b", "c": "d=e", "f": ""}
    for wrong in ("a", "=b"):
        with pytest.raises(click.UsageError, match="key=value"):
            metadata_of([wrong])


def test_parameter_types_convert_or_refuse() -> None:
    assert ADDRESS.convert("[::1]:80", None, None) == "[::1]:80"
    assert DURATION.convert("500ms", None, None) == 0.5
    assert WEIGHT.convert("2.5", None, None) == 2.5
    for kind, wrong in (
        (ADDRESS, "10.0.0.1"),
        (DURATION, "soon"),
        (WEIGHT, "nan"),
        (WEIGHT, "heavy"),
    ):
        with pytest.raises(click.UsageError):
            kind.convert(wrong, None, None)


def test_client_command_takes_the_server_from_flag_or_variable(cli: Run, running: ProxyProcess) -> None:
    by_flag = cli("list", "--json", "--server", running.url)
    by_variable = cli("list", "--json", NACOS_PROXY_SERVER=running.url.removeprefix("http://"))
    assert by_flag.exit_code == by_variable.exit_code == 0
    assert cli("list", "--server", "ftp://x").exit_code == 2


def test_client_command_sends_namespace_and_group(ask: Run) -> None:
    where = ("--namespace", "dev", "--group", "G")
    assert ask("register", "placed", "10.0.0.1:80", *where).exit_code == 0
    body = json.loads(ask("get", "placed", "--json", *where).output)
    assert (body["namespaceId"], body["name"]) == ("dev", "G@@placed")
    assert ask("get", "placed").exit_code == 1
    assert ask("get", "placed", "--group", "G", NACOS_PROXY_NAMESPACE="dev").exit_code == 0


@pytest.mark.parametrize("local", [True, False])
def test_session_show_warns_if_the_proxy_answered_without_nacos(
    local: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    headers = {"nacos-proxy-answer": "local" if local else "upstream"}
    answers = answered_by(lambda request: httpx.Response(200, json={"weight": 1}, headers=headers))
    with RestClient("http://127.0.0.1:1", connect=answers) as client:
        session = Session(client, "", "", "json")
        session.show(client.json("PATCH", "/api/v1/services/a/instances/b"), lambda: None)
    out, err = capsys.readouterr()
    assert json.loads(out) == {"weight": 1}
    assert ("Nacos is down" in err) is local


def test_session_takes_only_answers_of_a_proxy_and_says_if_it_is_too_old() -> None:
    with RestClient(
        "http://127.0.0.1:1", connect=answered_by(lambda request: httpx.Response(200, text="hello"))
    ) as client:
        with pytest.raises(Unreached, match="is not a nacos-proxy"):
            Session(client, "", "").call("PUT", "/api/v1/services/a/instances/b/beat")
    old = answered_by(lambda request: httpx.Response(200, json={"version": "0.1.0"}))
    with RestClient("http://127.0.0.1:1", connect=old) as client, pytest.raises(ApiProblem, match=r"version 0\.1\.0;"):
        Session(client, "", "").status()
    gone = answered_by(lambda request: httpx.Response(204))
    with RestClient("http://127.0.0.1:1", connect=gone) as client:
        Session(client, "", "").call("DELETE", "/api/v1/services/a/instances/b")
