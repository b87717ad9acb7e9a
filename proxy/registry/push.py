"""gRPC push of Nacos 2.0 on, by the official Rust SDK's binding: the optional extra `push`. Says that, never what.

Not for: snapshots; the HTTP list stays their one source. Without the extra, or where the gRPC port is closed, this says
that it is not alive, and the poller keeps time.

What the binding does, seen with 0.8.0 against r-nacos: its constructor blocks, up to 4.5 s where nobody answers, so it
runs in a thread and only after the port took a connection. It has one namespace per client and never lets a
connection or a subscription go, so what is no longer wanted is only ignored. It reconnects and subscribes anew by
itself, but says nothing of a loss: calls just wait. Hence the probe, a query that must be answered in time. It calls
listeners in a thread of its own, with the instances but not the service. Below HOME it writes log files, and panics
where it cannot, and a file for each service, named as the service is: what is no plain file name is not given to it.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from proxy.model import ServiceKey
from proxy.runtime import Clock, spawn, stop

log = logging.getLogger("nacos_proxy.push")

MODULE = "nacos_sdk_rust_binding_py"
LONGEST_NAME = 200  # bytes, of the 255 that a file name may have
MOST_REMINDERS = 100


@dataclass(frozen=True, slots=True)
class PushPolicy:
    """Seconds and numbers. `servers` are the upstream's URLs; gRPC is at their port + `offset`.

    A probe goes out every `probe` and must be answered within `answer`; push counts as alive once it has been for
    `settle`, the time in which the SDK subscribes anew after a loss. `home` is where the SDK puts its files. Services
    that cannot be given to it are told of every `remind`, as if they had changed.
    """

    servers: tuple[str, ...]
    username: str = ""
    password: str = field(default="", repr=False)
    home: str = ""
    offset: int = 1000
    probe: float = 5.0
    answer: float = 3.0
    settle: float = 10.0
    pause: float = 1.0
    longest_pause: float = 30.0
    remind: float = 5.0
    together: int = 100
    most: int = 20_000
    namespaces: int = 16


Told = Callable[[Any], None]


class Client(Protocol):
    """What is used of the SDK's client."""

    def subscribe(self, service: str, group: str, clusters: list[str] | None, listener: Told, /) -> Awaitable[Any]: ...

    def get_all_instances(
        self, service: str, group: str, clusters: list[str] | None, subscribe: bool, /
    ) -> Awaitable[Any]: ...


Connect = Callable[[PushPolicy, str], Awaitable[Client]]


def pushable(key: ServiceKey) -> bool:
    """Whether a service may become the name of a file of the SDK's."""
    return "/" not in key.name and "\\" not in key.name and len(key.grouped.encode()) <= LONGEST_NAME


def available() -> bool:
    """Whether the extra is installed."""
    return importlib.util.find_spec(MODULE) is not None


async def connect(policy: PushPolicy, namespace: str) -> Client:
    """A client of the SDK for one namespace. Raises `OSError` where no gRPC port answers, else `RuntimeError`."""
    await _reach(policy)
    return await asyncio.get_running_loop().run_in_executor(None, _construct, policy, namespace)


async def _reach(policy: PushPolicy) -> None:
    last: OSError = OSError("no server is named")
    for url in policy.servers:
        parts = urlsplit(url)
        try:
            dial = asyncio.open_connection(parts.hostname, (parts.port or 8848) + policy.offset)
            _, writer = await asyncio.wait_for(dial, policy.answer)
        except asyncio.TimeoutError:
            last = OSError(f"the gRPC port of {parts.hostname} does not answer")
        except OSError as error:
            last = error
        else:
            writer.transport.abort()
            return
    raise last


def _construct(policy: PushPolicy, namespace: str) -> Client:
    """Blocks. The SDK reads HOME and RUST_LOG once, when it is first used."""
    os.environ.setdefault("RUST_LOG", "off")
    before = os.environ.get("HOME")
    if policy.home:
        Path(policy.home).mkdir(parents=True, exist_ok=True)
        os.environ["HOME"] = policy.home
    try:
        sdk = importlib.import_module(MODULE)
        addresses = ",".join(urlsplit(url).netloc for url in policy.servers)
        options = sdk.ClientOptions(
            addresses,
            namespace,
            app_name="nacos-proxy",
            username=policy.username or None,
            password=policy.password or None,
            naming_push_empty_protection=False,
        )
        return sdk.AsyncNacosNamingClient(options)
    except BaseException as error:  # a panic in Rust is no Exception
        raise RuntimeError(f"the SDK cannot be used: {error}") from error
    finally:
        if policy.home:
            if before is None:
                os.environ.pop("HOME", None)
            else:
                os.environ["HOME"] = before


class GrpcPush:
    """Implements `Watchable`; the tasks start with the first service that is watched, and end with `close`."""

    def __init__(self, policy: PushPolicy, clock: Clock, connect: Connect = connect) -> None:
        self.policy = policy
        self.clock = clock
        self.connect = connect
        self.overflow = False
        self._wanted: frozenset[ServiceKey] = frozenset()
        self._feeds: dict[str, _Feed] = {}
        self._told: dict[ServiceKey, None] = {}
        self._wake = asyncio.Event()
        self._closed = False
        self._odd: set[ServiceKey] = set()
        self._reminding: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        feeds = self._feeds.values()
        return bool(feeds) and not self.overflow and all(feed.alive for feed in feeds)

    @property
    def subscriptions(self) -> int:
        """How many the SDK holds, wanted or not."""
        return sum(len(feed.subscribed) for feed in self._feeds.values())

    def watch(self, services: Collection[ServiceKey]) -> None:
        wanted = frozenset(services)
        if wanted == self._wanted or self._closed:
            return
        added, self._wanted = wanted - self._wanted, wanted
        for key in added:
            feed = self._feed(key.namespace) if pushable(key) else None
            if feed is not None:
                feed.want(key)
        self._odd = {key for key in wanted if not pushable(key)}
        if self._odd and self._reminding is None:
            self._reminding = spawn(self._remind(), name="push reminders")
        held = sum(feed.asked for feed in self._feeds.values())
        missing = any(key.namespace not in self._feeds for key in wanted - self._odd)
        self.overflow = missing or held >= self.policy.most or len(self._odd) > MOST_REMINDERS

    def _feed(self, namespace: str) -> _Feed | None:
        feed = self._feeds.get(namespace)
        if feed is None and len(self._feeds) < self.policy.namespaces:
            feed = self._feeds[namespace] = _Feed(self, namespace)
        return feed

    async def _remind(self) -> None:
        while True:
            await self.clock.sleep_until(self.clock.now() + self.policy.remind)
            for key in self._odd:
                self.tell(key)

    async def changes(self) -> AsyncIterator[ServiceKey]:
        while not self._closed:
            if not self._told:
                self._wake.clear()
                await self._wake.wait()
                continue
            key = next(iter(self._told))
            del self._told[key]
            yield key

    def tell(self, key: ServiceKey) -> None:
        """A service changed; collapsed with what waits to be yielded."""
        if key in self._wanted:
            self._told[key] = None
            self._wake.set()

    async def close(self) -> None:
        self._closed = True
        self._wake.set()
        await stop(self._reminding)
        for feed in self._feeds.values():
            await feed.close()


class _Feed:
    """The client of one namespace. `asked` counts the subscriptions made or under way."""

    def __init__(self, push: GrpcPush, namespace: str) -> None:
        self.namespace = namespace
        self.asked = 0
        self.subscribed: set[ServiceKey] = set()
        self._push = push
        self._loop = asyncio.get_running_loop()
        self._known: set[ServiceKey] = set()
        self._waiting: list[ServiceKey] = []
        self._wake = asyncio.Event()
        self._answered_since: float | None = None
        self._tasks = [spawn(self._run(), name=f"push of {namespace}")]
        self._under_way: set[asyncio.Task[None]] = set()

    @property
    def alive(self) -> bool:
        since = self._answered_since
        return since is not None and self._push.clock.now() - since >= self._push.policy.settle

    def want(self, key: ServiceKey) -> None:
        if key not in self._known and self.asked < self._push.policy.most:
            self._known.add(key)
            self.asked += 1
            self._waiting.append(key)
            self._wake.set()

    async def _run(self) -> None:
        client = await self._connected()
        self._tasks.append(spawn(self._probe(client), name=f"push probe of {self.namespace}"))
        while True:
            self._wake.clear()
            while self._waiting and len(self._under_way) < self._push.policy.together:
                self._start(client, self._waiting.pop(0))
            await self._wake.wait()

    async def _connected(self) -> Client:
        policy, clock = self._push.policy, self._push.clock
        pause = policy.pause
        while True:
            try:
                return await self._push.connect(policy, self.namespace)
            except (OSError, RuntimeError) as error:
                log.info("no push for %s yet: %s", self.namespace, error)
            await clock.sleep_until(clock.now() + pause)
            pause = min(pause * 2, policy.longest_pause)

    def _start(self, client: Client, key: ServiceKey) -> None:
        task = spawn(self._subscribe(client, key), name=f"subscribe {key}")
        self._under_way.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._wake.set()

    async def _subscribe(self, client: Client, key: ServiceKey) -> None:
        """Never cancelled while the server is away: the SDK would subscribe all the same, and twice on a retry."""
        clock = self._push.clock
        try:
            await client.subscribe(key.name, key.group, None, lambda _: self._heard(key))
        except Exception as error:  # the SDK raises RuntimeError, and what it likes
            log.info("no push of %s: %s", key, error)
            await clock.sleep_until(clock.now() + self._push.policy.longest_pause)
            self._waiting.append(key)
            return
        self.subscribed.add(key)
        self._push.tell(key)  # what changed before this moment nobody has told

    def _heard(self, key: ServiceKey) -> None:
        """In a thread of the SDK's."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._push.tell, key)

    async def _probe(self, client: Client) -> None:
        policy, clock = self._push.policy, self._push.clock
        while True:
            begin = clock.now()
            if not await self._answers(client):
                self._answered_since = None
            elif self._answered_since is None:
                self._answered_since = begin
            await clock.sleep_until(begin + policy.probe)

    async def _answers(self, client: Client) -> bool:
        """Whether a query of one of the services comes back in time."""
        clock = self._push.clock
        key = next(iter(self._known))
        asked = spawn(self._ask(client, key), name="push probe")
        timer = spawn(clock.sleep_until(clock.now() + self._push.policy.answer), name="push probe's end")
        try:
            await asyncio.wait({asked, timer}, return_when=asyncio.FIRST_COMPLETED)
            return asked.done() and asked.result()
        finally:
            asked.cancel()
            timer.cancel()

    async def _ask(self, client: Client, key: ServiceKey) -> bool:
        try:
            await client.get_all_instances(key.name, key.group, None, False)
        except Exception as error:
            log.info("push of %s does not answer: %s", self.namespace, error)
            return False
        return True

    async def close(self) -> None:
        for task in (*self._tasks, *self._under_way):
            await stop(task)
