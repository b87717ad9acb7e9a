"""A file that is kept current: its specification, its text, and what it was made from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nacos_proxy.cli.files import CannotReplace
from nacos_proxy.cli.lists import Lists
from nacos_proxy.cli.targets import Spec, Target, read_spec


def test_read_spec_reads_files_built_in_templates_and_commands() -> None:
    assert read_spec("a.j2:/etc/a") == Spec(Path("a.j2"), (), Path("/etc/a"))
    assert read_spec("./nginx:a:sh -c 'x:y'") == Spec(Path("nginx"), (), Path("a"), ("sh", "-c", "x:y"))
    assert read_spec(r"a\:b:c\:d:e \: f") == Spec(Path("a:b"), (), Path("c:d"), ("e", ":", "f"))
    assert read_spec("haproxy@g@@orders,stock,:h.cfg") == Spec("haproxy", ("g@@orders", "stock"), Path("h.cfg"))
    assert read_spec(r"hosts@providers\:x.Y\:1:h") == Spec("hosts", ("providers:x.Y:1",), Path("h"))
    assert read_spec("other@orders:f") == Spec(Path("other@orders"), (), Path("f"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", r"is not TEMPLATE:FILE"),
        (":a", r"is not TEMPLATE:FILE"),
        ("a:", r"is not TEMPLATE:FILE"),
        ("a:b:", "the command is empty"),
        ("a:b:'", "No closing quotation"),
        ("nginx:f", "name its services, as in nginx@orders, or write ./nginx"),
        ("caddy@,:f", "name its services"),
    ],
)
def test_read_spec_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_spec(text)


def host(ip: str) -> dict[str, Any]:
    whole = {"ip": ip, "port": 80, "weight": 1.0, "healthy": True, "enabled": True, "ephemeral": True}
    return {**whole, "clusterName": "DEFAULT", "serviceName": "DEFAULT_GROUP@@orders", "metadata": {}}


class Host:
    """A directory with a template, and the instances that a proxy answers."""

    def __init__(self, directory: Path) -> None:
        self.template = directory / "t.j2"
        self.file = directory / "out"
        self.template.write_text("{{ service('orders') | caddy }}.\n")
        self.ips = ["10.0.0.1", "10.0.0.2"]

    def target(self, *command: str) -> Target:
        return Target(Spec(self.template, (), self.file, command))

    def ask(self, path: str, query: Mapping[str, str]) -> Any:
        return {"revision": "", "hosts": [host(ip) for ip in self.ips]}

    def update(self, target: Target, *, allow_empty: bool = False, check: bool = True) -> str:
        """What `render` does, in short. Returns the text of the file."""
        made = target.render(Lists(self.ask), allow_empty=allow_empty)
        if made.text == made.before:
            target.confirm(made)
        elif not made.reader.blocked:
            assert target.write(made, lambda new: check and new.read_bytes() == made.text) is check
        return self.file.read_text() if self.file.exists() else ""


@pytest.fixture
def here(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_target_keeps_the_last_instances_also_after_a_restart(here: Host) -> None:
    target = here.target()
    assert here.update(target) == "10.0.0.1:80 10.0.0.2:80.\n"
    here.ips = ["10.0.0.2"]
    assert here.update(target) == "10.0.0.2:80.\n"
    here.ips = []
    assert here.update(target) == "10.0.0.2:80.\n"
    assert here.update(here.target()) == "10.0.0.2:80.\n"
    assert here.update(here.target(), allow_empty=True) == ".\n"
    assert here.update(here.target()) == ".\n"
    here.ips = ["10.0.0.3"]
    assert here.update(here.target()) == "10.0.0.3:80.\n"


def test_target_keeps_a_file_of_which_nothing_is_known(here: Host) -> None:
    here.file.write_text("10.0.0.9:80.\n")
    here.ips = []
    assert here.update(here.target()) == "10.0.0.9:80.\n"
    assert here.update(here.target(), allow_empty=True) == ".\n"


def test_target_writes_an_empty_list_where_there_is_no_file(here: Host) -> None:
    here.update(here.target())
    here.file.unlink()
    here.ips = []
    assert here.update(here.target()) == ".\n"


def test_target_adopts_a_file_that_has_the_right_text(here: Host) -> None:
    here.file.write_text("10.0.0.1:80 10.0.0.2:80.\n")
    before = here.file.stat().st_mtime_ns
    here.update(here.target("x"))
    here.ips = []
    target = here.target("x")
    assert here.update(target) == "10.0.0.1:80 10.0.0.2:80.\n"
    assert (here.file.stat().st_mtime_ns, target.command_due) == (before, False)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"lists": {"x": []}, "command_due": 1}', b"\xff"])
def test_target_treats_a_file_with_damaged_origin_as_unknown(here: Host, damage: bytes) -> None:
    here.update(here.target())
    here.file.with_name(".out.nacos-proxy").write_bytes(damage)
    here.ips = []
    assert here.update(here.target()) == "10.0.0.1:80 10.0.0.2:80.\n"


def test_target_remembers_that_its_command_must_still_succeed(here: Host) -> None:
    target = here.target("x")
    here.update(target)
    assert (target.command_due, here.target("x").command_due, here.target().command_due) == (True, True, False)
    here.update(again := here.target("x"))
    assert again.command_due
    again.command_done()
    assert (again.command_due, here.target("x").command_due) == (False, False)


def test_target_whose_check_refuses_stays_as_it_is(here: Host) -> None:
    target = here.target("x")
    assert here.update(target, check=False) == ""
    here.update(target)
    target.command_done()
    here.ips = ["10.0.0.7"]
    assert here.update(target, check=False) == "10.0.0.1:80 10.0.0.2:80.\n"
    assert (target.command_due, sorted(os.listdir(here.file.parent))) == (False, [".out.nacos-proxy", "out", "t.j2"])


def test_target_follows_a_link_and_reads_its_template_again(here: Host, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    here.file.symlink_to("one/out")
    target = here.target()
    here.update(target)
    here.file.unlink()
    here.file.symlink_to("two/out")
    here.template.write_text("new {{ service('orders') | caddy }}")
    target.reload()
    assert here.update(target) == "new 10.0.0.1:80 10.0.0.2:80"
    assert ((tmp_path / "one" / "out").read_text(), here.file.is_symlink()) == ("10.0.0.1:80 10.0.0.2:80.\n", True)


def test_target_without_a_directory_is_an_error(here: Host) -> None:
    here.file = here.file / "nowhere" / "file"
    with pytest.raises(CannotReplace):
        here.target()
