"""The shared options of the client commands, and how answers are printed."""

from __future__ import annotations

import json
from typing import Any

import click
import httpx
import pytest
from rich.console import Console

from nacos_proxy.cli.client_options import (
    ADDRESS,
    DURATION,
    WEIGHT,
    WIDE,
    Session,
    address_of,
    line_of,
    metadata_of,
    table_of,
)
from nacos_proxy.cli.rest_client import RestClient
from tests.helpers.live import ProxyProcess
from tests.unit.conftest import Run


def host(**more: Any) -> dict[str, Any]:
    plain = {"ip": "10.0.0.1", "port": 80, "clusterName": "DEFAULT", "weight": 1.0, "metadata": {}}
    return {**plain, "enabled": True, "healthy": True, "ephemeral": True, **more}


def printed(shown: object) -> str:
    console = Console(width=WIDE, color_system=None)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


def test_table_of_has_a_row_for_each_instance() -> None:
    hosts = [
        host(),
        host(ip="2001:db8::1", enabled=False, ephemeral=False, weight=2.5, metadata={"zone": "a", "v": "2"}),
        host(ip="10.0.0.3", healthy=False),
    ]
    text = printed(table_of({"name": "g@@orders", "namespaceId": "public", "stale": True}, hosts))
    lines = [line.replace("│", " ").split() for line in text.splitlines()]
    assert lines[0] == ["g@@orders", "(public)", "STALE"]
    assert lines[4:7] == [
        ["10.0.0.1:80", "DEFAULT", "1", "healthy", "ephemeral"],
        ["[2001:db8::1]:80", "DEFAULT", "2.5", "disabled", "persistent", "zone=a", "v=2"],
        ["10.0.0.3:80", "DEFAULT", "1", "unhealthy", "ephemeral"],
    ]


def test_table_of_and_line_of_escape_control_characters() -> None:
    nasty = host(ip="\x1b[2J", clusterName="[red]c\n", metadata={"\x1b]0;title\x07": "[bold]x\x9b"})
    body = {"name": "a\x1b[31m", "namespaceId": "n\r"}
    for text in (printed(table_of(body, [nasty])), printed(line_of("+", "green", "a\x1b", nasty, "poll"))):
        assert not set(text) & set("\x1b\x07\x9b\r")
        assert "[bold]x" in text
        assert "[red]c\\n" in text
    assert address_of(nasty) == r"\x1b[2J:80"
    assert address_of(host(ip="[2001:db8::7]")) == address_of(host(ip="2001:db8::7")) == "[2001:db8::7]:80"


def test_console_does_not_fold_lines_in_a_pipe(ask: Run) -> None:
    long = "x" * 300
    assert ask("register", "wide", "10.0.0.1:80", "--metadata", f"key={long}").exit_code == 0
    assert f"key={long}" in ask("get", "wide").output


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
    answers = httpx.MockTransport(lambda request: httpx.Response(200, json={"weight": 1}, headers=headers))
    with RestClient("http://127.0.0.1:1", transport=answers) as client:
        session = Session(client, "", "", as_json=True)
        session.show(client.json("PATCH", "/api/v1/services/a/instances/b"), lambda: None)
    out, err = capsys.readouterr()
    assert json.loads(out) == {"weight": 1}
    assert ("Nacos is down" in err) is local
