"""Service files on a real directory; the upstream is a function, and the time is the test's."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nacos_proxy.background.health_checker import HealthChecker, HealthCheckerPolicy
from nacos_proxy.background.service_files import MAX_INSTANCES, ServiceFiles, read_files
from nacos_proxy.background.state_rows import SavedRegistration, load_registration, registration_row
from nacos_proxy.catalog.health_checks import CheckedInstance
from nacos_proxy.core.agent import Agent
from nacos_proxy.model.calls import Beat, Deregister, Register, Update
from nacos_proxy.model.errors import Reason, Refused
from nacos_proxy.model.limits import LENIENT
from nacos_proxy.model.services import Instance
from nacos_proxy.runtime import Supervisor
from nacos_proxy.wire.service_files import BadFile
from tests.helpers.build import agent, key
from tests.helpers.clock import FakeClock
from tests.helpers.live import free_port
from tests.helpers.scripted import ScriptedRegistry, Shelf
from tests.helpers.world import AWAY

LEGACY = key("legacy")
HERE = 'service = "legacy"\naddress = "127.0.0.1:{}"\n'


class Host:
    """A proxy with service files, on a registry that a test may take away; a second one may follow on its state."""

    def __init__(self, directory: Path | None, clock: FakeClock, shelf: Shelf) -> None:
        self.clock, self.shelf = clock, shelf
        self.directory = directory
        self.registry = ScriptedRegistry(shelf)
        self.agent: Agent = agent(self.registry, clock)
        self.checker = HealthChecker(self.agent, HealthCheckerPolicy())
        self.files = ServiceFiles(self.checker, Supervisor(clock), directory, lambda: LENIENT)

    async def begin(self) -> None:
        self.checker.restore_all()
        await self.files.reload()
        self.checker.start()
        await self.clock.advance(1)

    async def reload(self) -> None:
        await self.files.reload()
        await self.clock.advance(1)

    def write(self, **files: str) -> None:
        assert self.directory is not None
        for name, text in files.items():
            (self.directory / f"{name}.toml").write_text(text)

    def remove(self, name: str) -> None:
        assert self.directory is not None
        (self.directory / f"{name}.toml").unlink()

    async def until(self, condition: Callable[[], object]) -> None:
        """Checks over a socket need turns of the loop besides time."""
        while not condition():
            await self.clock.advance(0.25)

    @property
    def registered(self) -> list[str]:
        return sorted(i.address for i in self.shelf.of(LEGACY).instances)

    def kept(self) -> CheckedInstance:
        (checked,) = self.checker
        return checked


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def host(tmp_path: Path, clock: FakeClock) -> AsyncIterator[Host]:
    async with running(Host(tmp_path, clock, Shelf())) as host:
        yield host


async def listening(port: int) -> asyncio.Server:
    return await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", port)


@asynccontextmanager
async def running(host: Host) -> AsyncIterator[Host]:
    try:
        yield host
    finally:
        await host.checker.stop()


@asynccontextmanager
async def restarted(before: Host, directory: Path | None = None) -> AsyncIterator[Host]:
    """A new process on the state file of `before`."""
    after = Host(directory or before.directory, before.clock, before.shelf)
    for r in before.agent.catalog.registrations:
        row = registration_row(SavedRegistration(r.service, r.instance, r.beats, r.check, 0.0))
        restored = load_registration(r.service, row[5])
        restored.last_heard = before.clock.now()
        after.agent.catalog.registrations.restore(restored)
    async with running(after):
        await after.begin()
        yield after


# what files register


async def test_load_registers_what_the_files_declare_and_beats_for_it(host: Host) -> None:
    host.write(a=HERE.format(1), b=HERE.format(2) + 'weight = 3\nmetadata.zone = "b"\n')
    await host.begin()
    assert host.shelf.of(LEGACY).find("127.0.0.1", 2) == Instance("127.0.0.1", 2, weight=3.0, metadata={"zone": "b"})
    await host.clock.advance(20)
    assert {beat.port for beat in host.registry.sent(Beat)} == {1, 2}
    assert len(host.registry.sent(Register)) == 2


async def test_load_registers_an_instance_once_its_check_passes(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    port = free_port()
    host.write(a=HERE.format(port) + "check.tcp = true\n")
    await host.begin()
    await host.until(lambda: host.kept().last_error)
    assert host.registered == []
    async with await listening(port):
        await host.until(lambda: host.registered)
    said = f"registered 127.0.0.1:{port} of public/DEFAULT_GROUP@@legacy, as the service file a.toml declares"
    assert said in caplog.text


async def test_load_registers_again_after_deregister_after_when_the_check_passes(host: Host) -> None:
    port = free_port()
    times = 'check.failures = 1\ncheck.interval = "1s"\nderegister_after = "3s"\n'
    host.write(a=HERE.format(port) + "check.tcp = true\n" + times)
    await host.begin()
    async with await listening(port):
        await host.until(lambda: host.registered)
    await host.until(lambda: not host.registered)
    for _ in range(5):
        await host.clock.advance(1)
        await host.until(lambda: host.kept().last_error)
    assert (host.kept().phase, len(host.registry.sent(Deregister))) == ("waiting", 1)
    async with await listening(port):
        await host.until(lambda: host.registered)
    assert (host.kept().phase, len(host.registry.sent(Register))) == ("registered", 2)


async def test_load_keeps_a_persistent_instance_without_beats(host: Host) -> None:
    host.write(a=HERE.format(1) + "ephemeral = false\n")
    await host.begin()
    await host.clock.advance(20)
    assert host.shelf.of(LEGACY).find("127.0.0.1", 1) == Instance("127.0.0.1", 1, ephemeral=False)
    assert host.registry.sent(Beat) == []
    host.remove("a")
    await host.reload()
    assert host.registered == []


async def test_load_registers_when_the_upstream_is_back(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    host.write(a=HERE.format(1))
    host.registry.script = lambda call: AWAY
    await host.begin()
    await host.clock.advance(30)
    assert host.kept().refused == "connection refused"
    assert caplog.text.count("cannot be registered yet") == 1
    host.registry.script = host.shelf
    await host.clock.advance(30)
    assert (host.registered, host.kept().refused) == (["127.0.0.1:1"], "")


# changes


async def test_reload_applies_added_changed_and_removed_files(host: Host) -> None:
    host.write(a=HERE.format(1), b=HERE.format(2))
    await host.begin()
    host.write(a=HERE.format(1) + "weight = 5\n", c=HERE.format(3))
    host.remove("b")
    await host.reload()
    assert host.registered == ["127.0.0.1:1", "127.0.0.1:3"]
    found = host.shelf.of(LEGACY).find("127.0.0.1", 1)
    assert found is not None and found.weight == 5.0


async def test_reload_keeps_the_old_value_alive_while_the_upstream_refuses_the_new_one(host: Host) -> None:
    host.write(a=HERE.format(1))
    await host.begin()
    host.write(a=HERE.format(1) + "weight = 5\n")
    refusal = Refused(Reason.OTHER, "no")
    host.registry.script = lambda call: refusal if isinstance(call, Register) else host.shelf(call)
    await host.reload()
    await host.clock.advance(60)
    assert (host.kept().phase, host.kept().refused) == ("waiting", "no")
    assert len(host.registry.sent(Beat)) > 10
    host.registry.script = host.shelf
    await host.clock.advance(6)
    assert host.shelf.of(LEGACY).instances == (Instance("127.0.0.1", 1, weight=5.0),)


async def test_reload_after_a_change_of_address_deregisters_the_old_one(host: Host) -> None:
    host.write(a=HERE.format(1))
    await host.begin()
    host.write(a=HERE.format(2))
    await host.reload()
    assert host.registered == ["127.0.0.1:2"]
    assert len(host.checker) == 1


async def test_reload_after_a_change_of_cluster_or_kind_deregisters_the_old_one(host: Host) -> None:
    host.write(a=HERE.format(1))
    await host.begin()
    host.write(a=HERE.format(1) + 'cluster = "c1"\n')
    await host.reload()
    host.write(a=HERE.format(1) + 'cluster = "c1"\nephemeral = false\n')
    await host.reload()
    gone = [(call.cluster, call.ephemeral) for call in host.registry.sent(Deregister)]
    assert gone == [("DEFAULT", True), ("c1", True)]
    assert host.shelf.of(LEGACY).instances == (Instance("127.0.0.1", 1, "c1", ephemeral=False),)


async def test_reload_of_an_unchanged_file_keeps_what_the_api_modified(host: Host) -> None:
    host.write(a=HERE.format(1))
    await host.begin()
    await host.agent.write(Update(LEGACY, "127.0.0.1", 1, weight=0.0, partial=True))
    await host.reload()
    async with restarted(host) as after:
        found = after.shelf.of(LEGACY).find("127.0.0.1", 1)
        assert found is not None and found.weight == 0.0
        assert after.registry.sent(Register) == []
        after.write(a=HERE.format(1) + "weight = 2\n")
        await after.reload()
        found = after.shelf.of(LEGACY).find("127.0.0.1", 1)
        assert found is not None and found.weight == 2.0


async def test_reload_registers_again_what_the_api_deregistered(host: Host) -> None:
    host.write(a=HERE.format(1))
    await host.begin()
    await host.agent.write(Deregister(LEGACY, "127.0.0.1", 1))
    await host.clock.advance(20)
    assert (host.registered, len(host.checker)) == ([], 0)
    await host.reload()
    assert host.registered == ["127.0.0.1:1"]


async def test_reload_with_a_renamed_file_writes_nothing(host: Host) -> None:
    host.write(a=HERE.format(1))
    await host.begin()
    host.remove("a")
    host.write(b=HERE.format(1))
    await host.reload()
    assert [len(host.registry.sent(kind)) for kind in (Register, Deregister)] == [1, 0]
    (registration,) = host.agent.catalog.registrations
    assert registration.check is not None and registration.check["file"] == "b.toml"


async def test_reload_with_a_renamed_file_leaves_a_client_its_registration_until_the_check_passes(host: Host) -> None:
    host.write(a=HERE.format(free_port()) + "check.tcp = true\n")
    await host.begin()
    await host.until(lambda: host.kept().last_error)
    await host.agent.write(Register(LEGACY, host.kept().instance))
    host.remove("a")
    host.write(b=HERE.format(host.kept().instance.port) + "check.tcp = true\n")
    await host.reload()
    (registration,) = host.agent.catalog.registrations
    assert (host.kept().file, registration.check) == ("b.toml", None)
    host.remove("b")
    await host.reload()
    assert (len(host.checker), len(host.registered)) == (0, 1)


async def test_a_withdrawn_instance_is_deregistered_when_the_upstream_is_back(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host.write(a=HERE.format(1))
    await host.begin()
    host.remove("a")
    host.registry.script = lambda call: AWAY
    await host.reload()
    await host.clock.advance(20)
    assert len(host.checker) == 1 and "cannot be deregistered yet" in caplog.text
    host.registry.script = host.shelf
    await host.clock.advance(20)
    assert (host.registered, len(host.checker)) == ([], 0)


async def test_a_file_that_comes_back_before_its_instance_left_keeps_it(host: Host) -> None:
    host.write(a=HERE.format(1))
    await host.begin()
    host.remove("a")
    host.registry.script = lambda call: AWAY
    await host.reload()
    host.write(a=HERE.format(1))
    await host.reload()
    host.registry.script = host.shelf
    await host.clock.advance(30)
    assert (host.registered, host.kept().phase) == (["127.0.0.1:1"], "registered")


# restarts


async def test_restart_deregisters_what_a_removed_file_declared(host: Host) -> None:
    host.write(a=HERE.format(1), b=HERE.format(2))
    await host.begin()
    host.remove("a")
    async with restarted(host) as after:
        assert after.registered == ["127.0.0.1:2"]
        assert after.registry.sent(Register) == []


async def test_restart_without_the_setting_deregisters_all(host: Host) -> None:
    host.write(a=HERE.format(1))
    await host.begin()
    host.directory = None
    async with restarted(host) as after:
        assert after.registered == []


@pytest.mark.parametrize("broken", ["service = ", 'service = "legacy"\n', b"\xff"])
async def test_a_broken_file_keeps_what_it_declared_also_over_a_restart(
    host: Host, broken: str | bytes, caplog: pytest.LogCaptureFixture
) -> None:
    host.write(a=HERE.format(1), b=HERE.format(2))
    await host.begin()
    assert host.directory is not None
    (host.directory / "a.toml").write_bytes(broken if isinstance(broken, bytes) else broken.encode())
    host.write(c=HERE.format(3))
    await host.reload()
    await host.reload()
    assert host.registered == ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]
    assert list(host.files.errors) == ["a.toml"]
    assert caplog.text.count("the service file a.toml is not used") == 1
    async with restarted(host) as after:
        await after.clock.advance(10)
        assert after.registered == host.registered
        assert {beat.port for beat in after.registry.sent(Beat)} == {1, 2, 3}
        after.write(a=HERE.format(4))
        await after.reload()
        assert after.registered == ["127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:4"]


async def test_a_missing_directory_changes_nothing(host: Host, tmp_path: Path) -> None:
    host.write(a=HERE.format(1))
    await host.begin()
    tmp_path.rename(tmp_path.with_name("away"))
    await host.reload()
    assert host.registered == ["127.0.0.1:1"]
    assert host.files.errors == {str(tmp_path): "cannot be read: No such file or directory"}


async def test_stop_with_deregister_covers_instances_of_files(tmp_path: Path, clock: FakeClock) -> None:
    host = Host(tmp_path, clock, Shelf())
    host.write(a=HERE.format(1), b=HERE.format(1).replace("legacy", "down") + 'check.http = "http://127.0.0.1:1/"\n')
    await host.begin()
    await host.checker.stop(deregister=True)
    assert host.registered == []
    assert [call.service for call in host.registry.sent(Deregister)] == [LEGACY]


# reading


def test_read_files_ignores_hidden_files_backups_and_others(tmp_path: Path) -> None:
    for name in (
        "b.toml",
        "a.toml",
        ".a.toml",
        ".#a.toml",
        "a.toml~",
        "#a.toml#",
        "a.toml.swp",
        "README",
        "a.toml.bak",
    ):
        (tmp_path / name).write_text(HERE.format(ord(name[0])))
    assert list(read_files(tmp_path)) == ["a.toml", "b.toml"]
    assert read_files(None) == {}


def test_read_files_refuses_what_others_can_write_and_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(HERE.format(1))
    (tmp_path / "a.toml").chmod(0o646)
    (tmp_path / "b.toml").mkdir()
    os.mkfifo(tmp_path / "c.toml")
    (tmp_path / "d.toml").symlink_to(tmp_path / "missing")
    (tmp_path / "e.toml").write_text("#" * 70_000)
    assert read_files(tmp_path) == {
        "a.toml": "every user of this host can write to it: run chmod o-w on it",
        "b.toml": "cannot be read: Is a directory",
        "c.toml": "is no file; remove it",
        "d.toml": "cannot be read: No such file or directory",
        "e.toml": "is larger than 64 KiB; divide it",
    }
    tmp_path.chmod(0o777)
    with pytest.raises(BadFile, match="every user of this host can write to it"):
        read_files(tmp_path)


def test_read_files_follows_links_as_kubernetes_makes_them(tmp_path: Path) -> None:
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / "a.toml").write_text(HERE.format(1))
    (tmp_path / "a.toml").symlink_to("..data/a.toml")
    assert not isinstance(read_files(tmp_path)["a.toml"], str)


def test_read_files_names_duplicates(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(HERE.format(1))
    (tmp_path / "b.toml").write_text(HERE.format(1) + "weight = 2\n")
    (tmp_path / "c.toml").write_text('service = "c"\naddress = "h:1"\n[[instance]]\n[[instance]]\n')
    found = read_files(tmp_path)
    assert not isinstance(found["a.toml"], str)
    assert found["b.toml"] == (
        "declares 127.0.0.1:1 of public/DEFAULT_GROUP@@legacy and so does a.toml: remove one of them"
    )
    assert found["c.toml"] == "declares h:1 of public/DEFAULT_GROUP@@c twice"


def test_read_files_refuses_too_many_instances(tmp_path: Path) -> None:
    tables = "".join(f'[[instance]]\naddress = "h:{port}"\n' for port in range(MAX_INSTANCES))
    (tmp_path / "a.toml").write_text(f'service = "a"\n{tables}')
    (tmp_path / "b.toml").write_text(HERE.format(1))
    assert read_files(tmp_path)["b.toml"] == "with it, the files declare more than 1000 instances"


def test_read_files_names_a_check_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(HERE.format(1) + 'check.tcp = true\ncheck.interval = "soon"\n')
    (tmp_path / "b.toml").write_text(HERE.format(2) + 'check.http = "ftp://x"\n')
    (tmp_path / "c.toml").write_text(HERE.format(3) + 'check.tcp = true\nderegister_after = "x"\n')
    assert read_files(tmp_path) == {
        "a.toml": "check.interval is a duration such as '5s' or '500ms', not 'soon'",
        "b.toml": "check.http is a URL such as http://127.0.0.1:8080/health",
        "c.toml": "deregister_after is a duration such as '5s' or '500ms', not 'x'",
    }


async def test_maintenance_of_an_instance_of_a_file_outlasts_a_changed_file_and_a_restart(host: Host) -> None:
    host.write(a=HERE.format(1))
    await host.begin()
    await host.checker.maintain(LEGACY, "127.0.0.1", 1, "disk swap")
    host.write(a=HERE.format(1) + "weight = 5\n")
    await host.reload()
    await host.clock.advance(60)

    def shown() -> tuple[float, bool]:
        found = host.shelf.of(LEGACY).find("127.0.0.1", 1)
        assert found is not None
        return found.weight, found.enabled

    assert shown() == (5.0, False)
    async with restarted(host) as again:
        await again.clock.advance(60)
        assert again.kept().maintenance is not None
        assert shown() == (5.0, False)
        await again.checker.maintain(LEGACY, "127.0.0.1", 1, None)
        await again.clock.advance(10)
        assert shown() == (5.0, True)
        again.remove("a")
        await again.checker.maintain(LEGACY, "127.0.0.1", 1, "gone for good")
        await again.reload()
        assert again.registered == []
