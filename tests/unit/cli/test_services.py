"""`nacos-proxy list`, and the names in all groups and namespaces."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from nacos_proxy.cli.client_options import Session
from nacos_proxy.cli.failures import ApiProblem
from nacos_proxy.cli.names import Name, elsewhere, hint_at
from nacos_proxy.cli.services import all_pages, list_services, short
from nacos_proxy.cli.transfer import export
from tests.unit.conftest import Run


def test_list_shows_what_the_proxy_knows_of_each_service(ask: Run) -> None:
    ask("register", "l2", "10.0.0.1:80", "--group", "listed")
    ask("register", "l1", "10.0.0.1:80", "-g", "listed", "--unhealthy")
    assert ask("get", "l1", "l2", "-g", "listed").exit_code == 0
    done = ask("list", "-g", "listed")
    header, first, second = (line.split() for line in done.stdout.splitlines())
    assert header == ["SERVICE", "INSTANCES", "HEALTHY", "STATE", "AGE"]
    assert (first[:4], second[:4]) == (["l1", "1", "0", "fresh"], ["l2", "1", "1", "fresh"])
    assert done.stderr == "2 services\n"
    assert ask("list", "-g", "listed", "-o", "name").stdout == "l1\nl2\n"
    assert ask("list", "-g", "listed", "-o", "wide").stdout.splitlines()[0].split()[-3:] == [
        "SUBSCRIBERS",
        "REVISION",
        "ERROR",
    ]


def test_list_says_what_is_on_a_page(ask: Run) -> None:
    for name in ("p1", "p2"):
        ask("register", name, "10.0.0.1:80", "--group", "paged")
    page = ask("list", "--group", "paged", "--size", "1", "--page", "2", "-o", "name")
    assert (page.stdout, page.stderr) == ("p2\n", "2 services, 1 on page 2\n")
    assert json.loads(ask("list", "--group", "paged", "--json").output)["services"] == ["p1", "p2"]
    nothing = ask("list", "--group", "unused")
    assert (nothing.stdout, "-A shows all groups and namespaces" in nothing.stderr) == ("", True)


def test_list_all_shows_groups_and_namespaces(ask: Run) -> None:
    ask("register", "everywhere", "10.0.0.1:80", "-n", "space1", "-g", "g1")
    ask("register", "everywhere", "10.0.0.1:80", "-n", "space2")
    assert ask("get", "everywhere", "-n", "space2").exit_code == 0
    assert ask("get", "mistyped").exit_code == 1
    rows = [line.split()[:3] for line in ask("list", "-A").stdout.splitlines()]
    assert rows[0] == ["NAMESPACE", "GROUP", "SERVICE"]
    assert rows[1:] == sorted(rows[1:])
    assert ["space1", "g1", "everywhere"] in rows
    assert ["space2", "DEFAULT_GROUP", "everywhere"] in rows
    assert ["public", "DEFAULT_GROUP", "mistyped"] not in rows
    assert ask("list", "-A", "-n", "space1", "-o", "name").stdout == "g1@@everywhere\n"
    assert "space1/g1@@everywhere\n" in ask("list", "-A", "-g", "g1", "-o", "name").stdout
    (row,) = yaml.safe_load(ask("list", "-A", "-n", "space2", "-o", "yaml").stdout)["services"]
    assert (row["name"], row["instances"], row["state"]) == ("everywhere", 1, "fresh")
    assert ask("list", "-A", "--page", "2").exit_code == 2


def test_get_and_pick_name_the_group_and_namespace_that_have_the_service(ask: Run) -> None:
    ask("register", "hidden", "10.0.0.1:80", "-g", "legacy")
    ask("register", "hidden", "10.0.0.1:80", "-n", "other")
    for where in (("-g", "legacy"), ("-n", "other")):  # so the proxy has them in its cache
        assert ask("get", "hidden", *where).exit_code == 0
    done = ask("get", "hidden")
    assert (done.exit_code, done.stderr) == (
        1,
        "nacos-proxy: hidden has no instance in group DEFAULT_GROUP of namespace public. It is in group legacy: "
        "-g legacy; namespace other: --namespace other.\n",
    )
    assert "It is in group legacy: -g legacy" in ask("pick", "hidden").stderr
    assert ask("get", "legacy@@hidden", "-o", "name").stdout == "10.0.0.1:80\n"
    assert "It is in" not in ask("get", "hidden", "-o", "json").stderr


class Answers:
    """A client whose answers a function gives."""

    local = False

    def __init__(self, answer: Callable[[str, dict[str, str]], Any]) -> None:
        self._answer = answer

    def json(self, method: str, path: str, query: Any = None, body: Any = None) -> Any:
        return self._answer(path, dict(query or {}))


def row(service: str, instances: int = 1) -> dict[str, Any]:
    return {"service": service, "namespaceId": "public", "instances": instances, "healthy": instances, "state": "fresh",
            "ageSeconds": 1.0, "subscribers": 0, "revision": "r", "error": None}  # fmt: skip


def without_a_list_of_all_groups(path: str, query: dict[str, str]) -> Any:
    """Answers as the proxy does in front of r-nacos."""
    if path == "/status":
        return {"services": [row("g@@known"), row("g@@asked", 0)]}
    if path == "/api/v1/services":
        names = {"g": ["known", "new"], "DEFAULT_GROUP": ["plain"]}[query["group"]]
        return {"namespaceId": "public", "groupName": query["group"], "count": len(names), "services": names, "page": 1}
    if path.endswith("/instances"):
        return {"instances": [], "stale": True}
    raise ApiProblem(501, "the server has no list of all names")


def run(command: Any, answer: Callable[[str, dict[str, str]], Any], output: str = "", **options: Any) -> None:
    session = Session(Answers(answer), "", "", output)  # pyright: ignore[reportArgumentType]
    command.callback.__wrapped__(session, **options)


def test_list_all_says_if_nacos_does_not_list_all_groups(capsys: pytest.CaptureFixture[str]) -> None:
    run(list_services, without_a_list_of_all_groups, everything=True, page=None, size=None)
    out, err = capsys.readouterr()
    assert [line.split()[2] for line in out.splitlines()] == ["SERVICE", "asked", "known"]
    assert "Nacos does not list all groups, so this shows only the services that the proxy knows" in err
    run(list_services, without_a_list_of_all_groups, "json", everything=True, page=None, size=None)
    assert json.loads(capsys.readouterr().out)["complete"] is False


def test_export_names_the_groups_that_it_knows(capsys: pytest.CaptureFixture[str]) -> None:
    run(export, without_a_list_of_all_groups)
    out, err = capsys.readouterr()
    assert out == ""
    assert "only those that the proxy knows are exported: DEFAULT_GROUP, g. Name others with -g (" in err
    assert "Nacos has not confirmed these lists lately: DEFAULT_GROUP@@plain, g@@known, g@@new" in err
    assert "exported 0 instances of 3 services of namespace public" in err


def test_all_pages_asks_until_it_has_all() -> None:
    names = [f"s{number:04}" for number in range(2500)]
    asked: list[str] = []

    def answer(_: str, query: dict[str, str]) -> Any:
        first = (int(query["page"]) - 1) * int(query["size"])
        asked.append(query["page"])
        return {"count": len(names), "services": names[first : first + int(query["size"])][::-1]}

    session = Session(Answers(answer), "", "")  # pyright: ignore[reportArgumentType]
    body = all_pages(session)
    assert (body["services"], body["count"], asked) == (names, 2500, ["1", "2", "3"])


def test_elsewhere_asks_nacos_only_if_the_proxy_does_not_know() -> None:
    wanted = Name("public", "DEFAULT_GROUP", "known")
    session = Session(Answers(without_a_list_of_all_groups), "", "")  # pyright: ignore[reportArgumentType]
    assert elsewhere(session, wanted) == [Name("public", "g", "known")]
    assert elsewhere(session, wanted._replace(service="asked")) == []


def test_list_shows_no_counts_of_a_service_that_is_not_fetched_yet(capsys: pytest.CaptureFixture[str]) -> None:
    def answer(path: str, query: dict[str, str]) -> Any:
        if path == "/status":
            return {"services": [{**row("DEFAULT_GROUP@@new", 0), "ageSeconds": None, "state": "missing"}]}
        return {"META-INF/services": {"public": ["DEFAULT_GROUP@@new"]}}

    run(list_services, answer, everything=True, page=None, size=None)
    assert capsys.readouterr().out.splitlines()[1].split() == ["public", "DEFAULT_GROUP", "new", "-", "-", "-", "-"]
    run(list_services, answer, "json", everything=True, page=None, size=None)
    (shown,) = json.loads(capsys.readouterr().out)["services"]
    assert (shown["name"], shown["instances"], shown["state"]) == ("new", None, None)
    session = Session(Answers(answer), "", "")  # pyright: ignore[reportArgumentType]
    assert elsewhere(session, Name("other", "DEFAULT_GROUP", "new")) == [Name("public", "DEFAULT_GROUP", "new")]


def test_hint_at_counts_the_places_that_it_leaves_out() -> None:
    wanted = Name("public", "g", "a")
    others = [Name(f"n{number}", "g", "a") for number in range(5)]
    assert hint_at(wanted, others).endswith("namespace n2: --namespace n2 (and 2 more).")
    assert hint_at(wanted, []) == ""


def test_hint_at_gives_options_that_a_shell_takes_as_they_are() -> None:
    """People paste them, and anybody can register a service in a group of any name."""
    assert hint_at(Name("public", "g", "a"), [Name("public", "x$(reboot)", "a")]).endswith(": -g 'x$(reboot)'.")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0s"), (9.949, "9.9s"), (9.96, "10s"), (185, "3m5s"), (7200, "2h"), (7201, "2h"), (370_000, "4d6h")],
)
def test_short_shows_two_units_at_most(seconds: float, text: str) -> None:
    assert short(seconds) == text
