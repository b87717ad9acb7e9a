"""Beats on behalf of services: the checks are real, on loopback; the time between them is the test's."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest

from nacos_proxy.background.health_checker import HealthChecker, HealthCheckerPolicy
from nacos_proxy.catalog.health_checks import CheckSpec, Maintenance
from nacos_proxy.catalog.registrations import CONNECTION, Registration
from nacos_proxy.core.agent import Agent
from nacos_proxy.model.calls import Beat, Deregister, Fetch, Register, Update
from nacos_proxy.model.errors import BadCall, Unreachable
from nacos_proxy.model.services import Instance
from tests.helpers.build import KEY, agent, instance, key, snapshot
from tests.helpers.clock import FakeClock, settle
from tests.helpers.live import free_port
from tests.helpers.scripted import ScriptedRegistry, Shelf

WORKER = instance("127.0.0.1", 8080)
INTERVAL = 5.0


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def registry() -> ScriptedRegistry:
    return ScriptedRegistry(Shelf())


@pytest.fixture
def owner(registry: ScriptedRegistry, clock: FakeClock) -> Agent:
    return agent(registry, clock)


@pytest.fixture
async def checker(owner: Agent) -> AsyncIterator[HealthChecker]:
    async with checking(owner) as checker:
        yield checker


@asynccontextmanager
async def checking(owner: Agent, **policy: object) -> AsyncIterator[HealthChecker]:
    checker = HealthChecker(owner, HealthCheckerPolicy(**policy))  # type: ignore[arg-type]
    checker.start()
    try:
        yield checker
    finally:
        await checker.stop()


def ttl(seconds: float = 30.0, **more: object) -> CheckSpec:
    return CheckSpec("ttl", interval=INTERVAL, ttl=seconds, **more)  # type: ignore[arg-type]


@asynccontextmanager
async def answering(answer: bytes | None) -> AsyncIterator[int]:
    """A server on a free port that gives each request this answer; None: it takes the request and says nothing."""
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        if answer is None:
            await left.wait()
        else:
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        left.set()
        server.close()
        await settle()


def http(port: int, **more: object) -> CheckSpec:
    return CheckSpec("http", f"http://127.0.0.1:{port}/health", INTERVAL, **more)  # type: ignore[arg-type]


def reply(status: str, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", "Content-Length: 0", "Connection: close", *headers, "", ""]).encode()


async def until(condition: Callable[[], object]) -> None:
    """A check over a socket needs turns of the loop, not time."""
    while not condition():
        await asyncio.sleep(0)


def actions(checker: HealthChecker) -> dict[str, int]:
    (managed,) = checker
    return managed.actions


# what a check says


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (reply("200 OK"), ""),
        (reply("204 No Content"), ""),
        (reply("302 Found", "Location: http://127.0.0.1:1/"), "answered 302"),
        (reply("429 Too Many Requests"), "answered 429"),
        (reply("503 Service Unavailable"), "answered 503"),
        (b"no http\r\n\r\n", "illegal"),
        (b"", "disconnected"),
    ],
)
async def test_http_check_passes_only_with_2xx(
    checker: HealthChecker, clock: FakeClock, answer: bytes, error: str
) -> None:
    async with answering(answer) as port:
        await checker.register(KEY, WORKER, http(port))
        await clock.advance(1)
        await until(lambda: actions(checker))
    (managed,) = checker
    assert error in managed.last_error
    assert bool(managed.last_error) is bool(error)


async def test_tcp_check_passes_if_something_listens(checker: HealthChecker, clock: FakeClock) -> None:
    closed = free_port()
    async with answering(b"") as port:
        for number, target in ((1, port), (2, closed)):
            spec = CheckSpec("tcp", f"127.0.0.1:{target}", INTERVAL)
            await checker.register(KEY, instance("127.0.0.1", number), spec)
        await clock.advance(1)
        await until(lambda: all(managed.actions for managed in checker))
    errors = {managed.instance.port: managed.last_error for managed in checker}
    assert errors[1] == ""
    assert "refused" in errors[2] or "Connect call failed" in errors[2]


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 200 OK\r\nX-Slow: "])
async def test_http_check_has_one_time_limit_for_the_whole_answer(
    checker: HealthChecker, clock: FakeClock, answer: bytes | None
) -> None:
    """Silence, or a head that never ends: a limit for each byte would wait for ever."""

    ended = asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer or b"")
        while answer and not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.001)
        with suppress(ConnectionError):
            await reader.read()
        writer.close()
        ended.set()

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    await checker.register(KEY, WORKER, http(server.sockets[0].getsockname()[1], timeout=0.5))
    await clock.advance(1)
    await until(lambda: actions(checker))
    (managed,) = checker
    assert managed.last_error == "no answer in 0.5 s"
    await ended.wait()
    server.close()


@pytest.mark.parametrize("target", ["http://127.0.0.1:1/\x01", "http://127.0.0.1:99999/", "https://127.0.0.1:1/"])
async def test_check_that_raises_is_a_failure(
    checker: HealthChecker, clock: FakeClock, target: str, caplog: pytest.LogCaptureFixture
) -> None:
    await checker.register(KEY, WORKER, CheckSpec("http", target, INTERVAL))
    await clock.advance(1)
    await until(lambda: actions(checker))
    (managed,) = checker
    assert managed.last_error
    assert managed.due_at > clock.now()
    assert "Traceback" not in caplog.text


async def test_ttl_check_passes_while_heard_is_called(
    checker: HealthChecker, registry: ScriptedRegistry, clock: FakeClock
) -> None:
    await checker.register(KEY, WORKER, ttl(12, failures=1))
    for _ in range(4):
        await clock.advance(10)
        assert checker.heard(KEY, "127.0.0.1", 8080)
    assert actions(checker).keys() == {"beat"}
    await clock.advance(20)
    (managed,) = checker
    assert (managed.passing, managed.last_error) == (False, "no sign of life for 12 s")
    assert not checker.heard(KEY, "127.0.0.2", 8080)


# what follows from it


async def test_register_sends_beats_with_all_data(
    checker: HealthChecker, registry: ScriptedRegistry, clock: FakeClock
) -> None:
    full = instance("127.0.0.1", 8080, weight=2.0, cluster="c1", metadata={"zone": "a"})
    await checker.register(KEY, full, ttl())
    await clock.advance(11)
    assert registry.sent(Register) == [Register(KEY, full)]
    beats = registry.sent(Beat)
    assert len(beats) == 3
    assert [beat.full for beat in beats] == [full] * 3


@pytest.mark.parametrize(
    ("metadata", "seconds"),
    [({}, 5), ({"preserved.heart.beat.interval": "3000"}, 3), ({"preserved.heart.beat.interval": "1"}, 1)],
)
async def test_beats_are_as_frequent_as_nacos_expects_however_rare_the_checks(
    checker: HealthChecker, registry: ScriptedRegistry, clock: FakeClock, metadata: dict[str, str], seconds: int
) -> None:
    """An interval of ten minutes made a passing instance unhealthy after 15 s, again and again."""
    await checker.register(
        KEY, instance("127.0.0.1", 8080, metadata=metadata), CheckSpec("ttl", interval=600, ttl=3600)
    )
    await clock.advance(61)
    assert actions(checker) == {"beat": 1}, "it was checked once"
    assert len(registry.sent(Beat)) == 1 + 60 // seconds


async def test_beats_are_not_delayed_by_a_slow_check(
    checker: HealthChecker, registry: ScriptedRegistry, clock: FakeClock
) -> None:
    async with answering(None) as port:
        await checker.register(KEY, WORKER, http(port, timeout=600))
        await clock.advance(16)
        assert (actions(checker), len(registry.sent(Beat))) == ({}, 3)
        await checker.stop()


@pytest.mark.parametrize(("failures", "interval"), [(1, 1), (3, 60)])
async def test_restore_of_a_failing_instance_sends_no_beat(
    checker: HealthChecker, owner: Agent, registry: ScriptedRegistry, clock: FakeClock, failures: int, interval: float
) -> None:
    """The first beat waits for the first check that passes, also while there are too few failures to say so."""
    spec = CheckSpec("tcp", f"127.0.0.1:{free_port()}", interval=interval, failures=failures)
    remembered(owner, spec.dump())
    assert checker.restore_all() == 1
    await clock.advance(1)
    await until(lambda: actions(checker))
    await clock.advance(100)
    assert registry.sent(Beat) == []


async def test_beats_stop_after_failures_in_a_row_and_return_with_the_first_pass(
    checker: HealthChecker, registry: ScriptedRegistry, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nacos_proxy")
    await checker.register(KEY, WORKER, ttl(4, failures=3))
    await clock.advance(14)  # a pass, two failures that are not yet enough
    assert actions(checker) == {"beat": 3}
    await clock.advance(60)
    assert (actions(checker)["beat"], len(registry.sent(Beat))) == (3, 3)
    checker.heard(KEY, "127.0.0.1", 8080)
    await clock.advance(2)
    assert actions(checker)["beat"] == 4
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said == [
        f"the check of 127.0.0.1:8080 of {KEY} fails, its beats stop: no sign of life for 4 s",
        f"the check of 127.0.0.1:8080 of {KEY} passes again",
    ]


async def test_check_that_fails_too_long_deregisters_the_instance(
    checker: HealthChecker, registry: ScriptedRegistry, clock: FakeClock
) -> None:
    await checker.register(KEY, WORKER, ttl(1, failures=1, deregister_after=20.0))
    await clock.advance(24)
    assert len(checker) == 1
    await clock.advance(6)
    assert [call.ip for call in registry.sent(Deregister)] == ["127.0.0.1"]
    assert len(checker) == 0


async def test_beat_that_fails_is_followed_by_the_next_one(
    checker: HealthChecker, registry: ScriptedRegistry, clock: FakeClock
) -> None:
    await checker.register(KEY, WORKER, ttl())
    working = registry.script
    registry.script = lambda call: Unreachable("away", arrived=False)
    await clock.advance(11)
    registry.script = working
    await clock.advance(5)
    (managed,) = checker
    assert managed.passing
    assert isinstance(registry.calls[-1], Beat)


async def test_beat_has_the_data_that_was_modified_since(
    checker: HealthChecker, owner: Agent, registry: ScriptedRegistry, clock: FakeClock
) -> None:
    """A server that lost the instance takes the data of the beat for its registration."""
    await checker.register(KEY, WORKER, ttl())
    await owner.write(Update(KEY, "127.0.0.1", 8080, weight=7.0, enabled=True, partial=True))
    await clock.advance(6)
    assert registry.sent(Beat)[-1].full.weight == 7.0


async def test_beat_is_not_sent_for_an_instance_that_was_deregistered_in_any_way(
    checker: HealthChecker, owner: Agent, registry: ScriptedRegistry, clock: FakeClock
) -> None:
    """A v1 DELETE does not know that the instance is managed."""
    await checker.register(KEY, WORKER, ttl())
    await clock.advance(1)
    await owner.write(Deregister(KEY, "127.0.0.1", 8080))
    await clock.advance(30)
    assert len(checker) == 0
    assert isinstance(registry.calls[-1], Deregister)


async def test_check_that_failed_long_is_still_known_when_it_passes_again(
    checker: HealthChecker, owner: Agent, clock: FakeClock
) -> None:
    """Silence as long as that makes the ledger forget others; this one has to survive a restart of ours."""
    await checker.register(KEY, WORKER, ttl(1, failures=1))
    await clock.advance(120)
    owner.catalog.registrations.expire(clock.now())
    checker.heard(KEY, "127.0.0.1", 8080)
    await clock.advance(6)
    known = owner.catalog.registrations.find(KEY, "127.0.0.1", 8080)
    assert known is not None
    assert known.check == ttl(1, failures=1).dump()


# bounds


async def test_checks_that_are_slow_do_not_starve_the_others(owner: Agent, clock: FakeClock) -> None:
    async with answering(None) as port, checking(owner, max_checks=2) as checker:
        for number in range(3):
            await checker.register(KEY, instance("127.0.0.1", number), http(port, timeout=0.02))
        await checker.register(KEY, WORKER, ttl())
        managed = {m.instance.port: m for m in checker}
        while not managed[8080].actions:
            await clock.advance(6)
            await asyncio.sleep(0.005)
        assert managed[8080].passing


async def test_checks_that_hang_leave_room_for_others_and_for_checks_of_their_owner_that_answer(
    owner: Agent, clock: FakeClock
) -> None:
    async with answering(None) as port, answering(reply("200 OK")) as well, checking(owner, max_checks=8) as checker:
        await checker.register(KEY, WORKER, http(well), "10.0.0.1")
        await clock.advance(1)
        await until(lambda: actions(checker))
        for number in range(1, 20):
            await checker.register(KEY, instance("127.0.0.1", number), http(port, timeout=600), "10.0.0.1")
        await clock.advance(1)
        await checker.register(KEY, instance("127.0.0.1", 9000), http(well), "10.0.0.2")
        managed = {m.instance.port: m for m in checker}
        await clock.advance(5)
        await until(lambda: managed[8080].actions == {"beat": 2} and managed[9000].actions == {"beat": 1})
        assert all(managed[number].actions == {} for number in range(1, 20)), "those still hang"
        await checker.stop()


async def test_checks_of_one_instance_do_not_overlap(checker: HealthChecker, clock: FakeClock) -> None:
    asked, ended = 0, asyncio.Event()

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        with suppress(ConnectionError):
            await reader.read()
        writer.close()
        ended.set()

    server = await asyncio.start_server(count, "127.0.0.1", 0)
    await checker.register(KEY, WORKER, http(server.sockets[0].getsockname()[1], timeout=600))
    await clock.advance(1)
    await until(lambda: asked)
    await clock.advance(60)
    assert asked == 1
    await checker.stop()
    await ended.wait()
    server.close()


async def test_register_refuses_more_than_max_instances(owner: Agent) -> None:
    async with checking(owner, max_instances=1) as checker:
        await checker.register(KEY, WORKER, ttl())
        await checker.register(KEY, WORKER, ttl(60))
        with pytest.raises(BadCall, match="1 instances of this client are managed already") as refused:
            await checker.register(KEY, instance("127.0.0.1", 2), ttl())
        assert refused.value.status == 429
        assert len(checker) == 1


async def test_register_leaves_room_for_other_clients(owner: Agent) -> None:
    async with checking(owner, max_instances=4) as checker:
        for number in range(2):
            await checker.register(KEY, instance("127.0.0.1", number), ttl(), "10.0.0.1")
        with pytest.raises(BadCall, match="2 instances of this client are managed already") as refused:
            await checker.register(KEY, instance("127.0.0.1", 9), ttl(), "10.0.0.1")
        assert refused.value.status == 429
        await checker.register(KEY, instance("127.0.0.1", 9), ttl(), "10.0.0.2")


@pytest.mark.parametrize("host", ["192.0.2.1", "example.org", "metadata.google.internal", "0.0.0.0", "[2001:db8::1]"])
async def test_validate_refuses_other_hosts(checker: HealthChecker, registry: ScriptedRegistry, host: str) -> None:
    for spec in (CheckSpec("http", f"http://{host}:80/"), CheckSpec("tcp", f"{host}:80")):
        with pytest.raises(BadCall, match="managed_allow") as refused:
            await checker.register(KEY, WORKER, spec)
        assert refused.value.status == 403
    assert registry.calls == []


async def test_validate_accepts_networks_of_the_setting(owner: Agent) -> None:
    async with checking(owner, allow=(ipaddress.ip_network("192.0.2.0/24"),)) as checker:
        checker.validate(CheckSpec("tcp", "192.0.2.1:80"))
        with pytest.raises(BadCall):
            checker.validate(CheckSpec("tcp", "198.51.100.1:80"))


async def test_register_that_the_upstream_refuses_is_not_checked(
    checker: HealthChecker, registry: ScriptedRegistry
) -> None:
    registry.script = lambda call: Unreachable("away", arrived=False)
    with pytest.raises(Unreachable):
        await checker.register(KEY, WORKER, ttl())
    assert len(checker) == 0


# our own restart and end


def remembered(owner: Agent, managed: dict[str, object], worker: Instance = WORKER) -> Registration:
    registration = Registration(KEY, worker, owner.clock.now(), check=managed)
    owner.catalog.registrations.restore(registration)
    return registration


async def test_restore_all_finds_what_was_checked_before_a_restart(
    checker: HealthChecker, owner: Agent, registry: ScriptedRegistry, clock: FakeClock
) -> None:
    remembered(owner, ttl().dump())
    assert checker.restore_all() == 1
    await clock.advance(1)
    assert registry.sent(Beat)[0].full == WORKER


@pytest.mark.parametrize(
    "managed",
    [{"check": {"tcp": "192.0.2.1:80"}}, {"check": {}}, {"check": {"ttl": "soon"}}, {"interval": "5s"}, {"else": 1}],
)
async def test_restore_all_logs_and_skips_a_check_that_is_not_allowed_any_more(
    checker: HealthChecker, owner: Agent, managed: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    """The setting that allowed it is gone, or the state file is of another version."""
    registration = remembered(owner, managed)
    remembered(owner, ttl().dump(), instance("127.0.0.1", 2))
    assert checker.restore_all() == 1
    assert registration.check is None
    assert f"127.0.0.1:8080 of {KEY} is not managed any more and has to beat by itself" in caplog.text


async def test_restore_all_leaves_the_instances_of_connections_alone(checker: HealthChecker, owner: Agent) -> None:
    registration = remembered(owner, dict(CONNECTION))
    assert checker.restore_all() == 0
    assert registration.of_connection


async def test_a_connection_that_publishes_a_managed_instance_takes_it_over(
    checker: HealthChecker, owner: Agent, registry: ScriptedRegistry, clock: FakeClock
) -> None:
    await checker.register(KEY, WORKER, ttl())
    known = owner.catalog.registrations.find(KEY, WORKER.ip, WORKER.port)
    assert known is not None
    known.check = CONNECTION
    owner.registrations_changed(KEY)
    await clock.advance(10)
    assert len(checker) == 0 and registry.sent(Beat) == []


async def test_register_takes_an_instance_over_from_its_connection(checker: HealthChecker, owner: Agent) -> None:
    registration = remembered(owner, dict(CONNECTION))
    await checker.register(KEY, WORKER, ttl())
    assert registration.check == ttl().dump() and len(checker) == 1


async def test_restore_all_shortens_a_timeout_of_an_older_version_and_keeps_the_owner(
    checker: HealthChecker, owner: Agent
) -> None:
    check = {"interval": "5s", "timeout": "604800s", "check": {"tcp": "127.0.0.1:80"}, "owner": "10.0.0.1"}
    registration = remembered(owner, check)
    assert checker.restore_all() == 1
    (managed,) = checker
    assert (managed.spec.timeout, managed.owner) == (5.0, "10.0.0.1")
    assert registration.check == {**managed.spec.dump(), "owner": "10.0.0.1"}


async def test_register_calls_on_registration_when_the_check_is_known(checker: HealthChecker, owner: Agent) -> None:
    heard: list[object] = []

    def listen() -> None:
        known = owner.catalog.registrations.find(KEY, "127.0.0.1", 8080)
        heard.append(known and known.check)

    owner.on_registration.append(listen)
    await checker.register(KEY, WORKER, ttl())
    assert heard[-1] == ttl().dump()


async def test_stop_deregisters_only_on_demand(owner: Agent, registry: ScriptedRegistry) -> None:
    for deregister, left in ((False, []), (True, ["127.0.0.1", "127.0.0.1"])):
        checker = HealthChecker(owner, HealthCheckerPolicy())
        checker.start()
        await checker.register(KEY, WORKER, ttl())
        await checker.register(key("other"), WORKER, ttl())
        await checker.stop(deregister=deregister)
        assert [call.ip for call in registry.sent(Deregister)] == left


async def test_stop_does_not_wait_for_an_upstream_that_is_silent(owner: Agent, registry: ScriptedRegistry) -> None:
    checker = HealthChecker(owner, HealthCheckerPolicy(max_stop=0.01))
    checker.start()
    for number in range(20):
        await checker.register(KEY, instance("127.0.0.1", number), ttl())
    registry.script = lambda call: asyncio.get_running_loop().create_future()
    await checker.stop(deregister=True)
    assert len(registry.sent(Deregister)) == 20


async def test_stop_ends_the_checks_in_flight(
    owner: Agent, registry: ScriptedRegistry, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with answering(None) as port:
        checker = HealthChecker(owner, HealthCheckerPolicy())
        checker.start()
        await checker.register(KEY, WORKER, http(port, timeout=600))
        await clock.advance(1)
        await checker.stop()
    await settle()
    assert registry.sent(Beat) == []
    assert "failed" not in caplog.text


async def test_ttl_check_does_not_count_the_time_in_which_the_process_stood_still(
    checker: HealthChecker, registry: ScriptedRegistry, clock: FakeClock
) -> None:
    await checker.register(KEY, WORKER, ttl(10, failures=1, deregister_after=20.0))
    await clock.advance(6)
    clock.jump(60)
    await clock.advance(1)
    assert [managed.passing for managed in checker] == [True]
    await clock.advance(10)
    assert [managed.passing for managed in checker] == [False]
    clock.jump(60)
    await clock.advance(1)
    assert registry.sent(Deregister) == [], "nor was it looked at for so long"
    await clock.advance(30)
    assert len(registry.sent(Deregister)) == 1


# maintenance

OFF = replace(WORKER, enabled=False)


async def test_maintain_disables_the_instance_and_ends_its_beats_while_its_checks_go_on(
    checker: HealthChecker, registry: ScriptedRegistry, clock: FakeClock
) -> None:
    await checker.register(KEY, WORKER, ttl(1000.0))
    written = await checker.maintain(KEY, WORKER.ip, WORKER.port, "disk swap")
    assert written is not None and written.result == OFF and registry.sent(Register)[-1] == Register(KEY, OFF)
    await clock.advance(30)
    assert registry.sent(Beat) == [] and actions(checker)["beat"] > 3
    again = await checker.maintain(KEY, WORKER.ip, WORKER.port, "and a new fan")
    assert again is not None and len(registry.sent(Register)) == 2, "only the reason changes"
    (checked,) = checker
    assert checked.maintenance == Maintenance("and a new fan", clock.wall() - 30)
    ended = await checker.maintain(KEY, WORKER.ip, WORKER.port, None)
    assert ended is not None and ended.result == WORKER and registry.sent(Register)[-1] == Register(KEY, WORKER)
    await clock.advance(6)
    assert len(registry.sent(Beat)) == 1


async def test_maintain_survives_a_restart_and_a_registration_by_its_service(
    checker: HealthChecker, owner: Agent, registry: ScriptedRegistry, clock: FakeClock
) -> None:
    saved: list[object] = []

    async def persist(keys: object) -> None:
        saved.append(keys)

    checker.persist_with(persist)
    await checker.register(KEY, WORKER, ttl(1000.0), "127.0.0.1")
    await checker.maintain(KEY, WORKER.ip, WORKER.port, "disk swap")
    assert saved == [[(KEY, WORKER.ip, WORKER.port)]]
    async with checking(owner) as restarted:
        assert restarted.restore_all() == 1
        (checked,) = restarted
        assert (checked.maintenance, checked.owner) == (Maintenance("disk swap", clock.wall()), "127.0.0.1")
        await restarted.register(KEY, WORKER, ttl(500.0))
        assert registry.sent(Register)[-1] == Register(KEY, OFF)
        (checked,) = restarted
        assert checked.maintenance is not None and checked.spec.ttl == 500.0
        await clock.advance(10)
        assert registry.sent(Beat) == []


async def test_maintain_modifies_an_instance_that_the_server_still_shows(
    checker: HealthChecker, registry: ScriptedRegistry, clock: FakeClock
) -> None:
    await checker.register(KEY, WORKER, ttl(1000.0))
    shelf = registry.script
    registry.script = lambda call: snapshot(WORKER) if isinstance(call, Fetch) else shelf(call)
    await checker.maintain(KEY, WORKER.ip, WORKER.port, "")
    await clock.advance(3)
    assert [update.enabled for update in registry.sent(Update)] == [False]
    registry.script = lambda call: Unreachable("reset", arrived=True) if isinstance(call, Fetch) else shelf(call)
    await checker.maintain(KEY, WORKER.ip, WORKER.port, None)
    await clock.advance(3)
    assert len(registry.sent(Update)) == 1


async def test_maintain_is_for_managed_instances(checker: HealthChecker, owner: Agent) -> None:
    await owner.write(Register(KEY, WORKER))
    assert await checker.maintain(KEY, WORKER.ip, WORKER.port, "x") is None
