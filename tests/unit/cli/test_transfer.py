"""`nacos-proxy export` and `import`: moving the instances of a namespace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.live import ProxyProcess
from tests.unit.conftest import Run


def test_import_of_an_export_makes_the_same_instances(ask: Run, cli: Run, tmp_path: Path) -> None:
    space = ("-n", "moving")
    ask("register", "m1", "10.0.0.1:80", *space, "--persistent", "--weight", "2.5", "--metadata", "zone=a")
    ask("register", "m1", "[2001:db8::1]:80", *space, "--persistent", "--cluster", "c1", "--disabled")
    ask("register", "m2", "10.0.0.2:80", *space, "-g", "other", "--persistent", "--metadata", "名=订单")
    ask("register", "m3", "10.0.0.3:80", *space)
    exported = ask("export", *space)
    assert exported.exit_code == 0
    assert exported.stderr == "exported 4 instances of 3 services of namespace moving\n"
    assert [json.loads(line)["service"] for line in exported.stdout.splitlines()] == ["m1", "m1", "m3", "m2"]
    assert ask("export", *space, "-g", "other").stdout.splitlines() == exported.stdout.splitlines()[3:]
    file = tmp_path / "instances.jsonl"
    file.write_text(exported.stdout + "\n", encoding="utf-8")

    with ProxyProcess() as target:
        there = ("--server", target.url)
        dry = cli("import", str(file), "--dry", *there)
        assert dry.stdout.splitlines()[0] == "moving DEFAULT_GROUP@@m1 10.0.0.1:80 persistent"
        assert dry.stdout.splitlines()[-1] == "3 to register, 0 already there, 1 ephemeral left out (--ephemeral)"
        assert cli("export", *space, *there).stdout == ""
        done = cli("import", str(file), *there)
        assert done.stdout == "3 registered, 0 already there, 1 ephemeral left out (--ephemeral)\n"
        without_m3 = [line for line in exported.stdout.splitlines() if "m3" not in line]
        assert cli("export", *space, *there).stdout.splitlines() == without_m3
        again = cli("import", str(file), "--ephemeral", "-o", "json", *there)
        assert json.loads(again.stdout) == {"registered": 1, "unchanged": 3, "different": 0, "skipped": 0, "failed": 0}
        assert cli("export", *space, *there).stdout == exported.stdout
        moved = cli("import", str(file), "-n", "elsewhere", "-g", "g2", *there)
        assert moved.stdout.startswith("3 registered")
        names = cli("list", "-A", "-n", "elsewhere", "-o", "name", *there).stdout
        assert names == "g2@@m1\ng2@@m2\n"


def line(**more: object) -> str:
    given = {"namespace": "imported", "group": "g", "service": "s", "ip": "10.0.0.1", "port": 80, "cluster": "DEFAULT"}
    given |= {"weight": 1, "enabled": True, "healthy": True, "ephemeral": False, "metadata": {}}
    return json.dumps({**given, **more}) + "\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no json\n", "line 2: "),
        ("[1]\n", "line 2: it is not a JSON object"),
        (line(port="80"), "line 2: port is missing or has another type"),
        (line(weight=True), "line 2: weight is missing"),
        (line(ip=""), "line 2: ':80' is not ip:port"),
    ],
)
def test_import_registers_nothing_if_a_line_is_wrong(ask: Run, tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "lines"
    file.write_text(line() + text)
    done = ask("import", str(file))
    assert (done.exit_code, said in done.stderr, "Nothing was registered." in done.stderr) == (2, True, True)
    assert ask("export", "-n", "imported").stdout == ""


def test_import_goes_on_after_a_refusal(ask: Run, tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_text(line(namespace="partly", port=70000) + line(namespace="partly"))
    done = ask("import", str(file))
    assert (done.exit_code, done.stdout) == (1, "1 registered, 0 already there, 1 failed\n")
    assert "g@@s 10.0.0.1:70000: " in done.stderr
    assert ask("import", str(file)).stdout == "0 registered, 1 already there, 1 failed\n"


def test_import_leaves_an_instance_that_differs_unless_told_to_replace_it(ask: Run, tmp_path: Path) -> None:
    ask("register", "kept", "10.0.0.1:80", "--persistent", "--weight", "7", "-n", "imported", "-g", "g")
    file = tmp_path / "old.jsonl"
    file.write_text(line(service="kept") + line(service="kept", ip="10.0.0.2"))
    done = ask("import", str(file))
    assert done.stdout == "1 registered, 0 already there, 1 different, left as they are\n"
    assert "10.0.0.1:80 is there, but differs" in done.stderr
    weights = [
        host["weight"]
        for host in json.loads(ask("get", "kept", "-n", "imported", "-g", "g", "-o", "json").output)["hosts"]
    ]
    assert weights == [7.0, 1.0]
    assert ask("import", str(file), "--replace").stdout == "1 registered, 1 already there\n"
