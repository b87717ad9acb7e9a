"""Webhooks: posts the snapshots and changes of services to URLs that the operator chose, each until it is accepted.

One request at a time for each webhook, so that a slow one delays no other. While it fails, newer states replace those
that wait (`catalog.deliveries`).
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import httpx
import orjson

from nacos_proxy.catalog.deliveries import Deliveries, Delivery, Verdict, verdict
from nacos_proxy.catalog.hub import Event, Filter
from nacos_proxy.core.agent import Agent
from nacos_proxy.model.backoff import Backoff
from nacos_proxy.model.services import Change
from nacos_proxy.model.views import View
from nacos_proxy.runtime import stop
from nacos_proxy.wire.rest.bodies import change_json, snapshot_json
from nacos_proxy.wire.webhooks import WebhookTarget, headers

log = logging.getLogger("nacos_proxy.webhooks")

CLIENT = "webhooks"  # they share one client's part of the polls


@dataclass(frozen=True, slots=True)
class WebhooksPolicy:
    """`timeout`: seconds for a whole request. `max_answer`: bytes of an answer that are read at most."""

    targets: tuple[WebhookTarget, ...] = ()
    secret: str = field(default="", repr=False)
    user_agent: str = "nacos-proxy"
    timeout: float = 10.0
    pauses: Backoff = Backoff(initial=1.0, maximum=60.0, jitter=0.5)  # noqa: RUF009 - a frozen value
    max_answer: int = 4096


class Webhooks:
    """All webhooks of one agent: `start`, then `stop`. `discover(namespace, group)`: find all services of the group."""

    def __init__(
        self,
        agent: Agent,
        policy: WebhooksPolicy,
        *,
        discover: Callable[[str, str], None],
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._agent = agent
        self._policy = policy
        self._discover = discover
        self._hooks = [Webhook(n, target, agent, policy, rng) for n, target in enumerate(policy.targets, 1)]
        self._tasks: list[asyncio.Task[None]] = []
        self._client: httpx.AsyncClient | None = None

    def start(self) -> None:
        if not self._hooks:
            return
        self._client = client = httpx.AsyncClient(
            verify=ssl.create_default_context(), trust_env=False, follow_redirects=False, timeout=None
        )
        for group in {target.everything for target in self._policy.targets if target.everything is not None}:
            self._discover(*group)
        keep = self._agent.supervisor.keep
        self._tasks = [keep(partial(hook.run, client), name=f"webhook {hook.number}") for hook in self._hooks]

    async def stop(self) -> None:
        """Ends the requests under way. At the next start, each webhook begins with snapshots."""
        for task in self._tasks:
            await stop(task)
        if self._client is not None:
            await self._client.aclose()

    def __iter__(self) -> Iterator[Webhook]:
        return iter(self._hooks)


class Webhook:
    """One webhook. `number` counts from 1, in the order of the setting. `outcomes`: its requests by outcome."""

    def __init__(
        self,
        number: int,
        target: WebhookTarget,
        agent: Agent,
        policy: WebhooksPolicy,
        rng: Callable[[], float],
    ) -> None:
        self.number = number
        self.host = target.host
        self.state: Literal["ok", "failing", "ended"] = "ok"
        self.error = ""
        self.outcomes: Counter[Verdict] = Counter()
        self._target = target
        self._agent = agent
        self._policy = policy
        self._rng = rng
        self._deliveries = Deliveries()
        self._woken = asyncio.Event()
        self._failures = 0  # in a row

    @property
    def pending(self) -> int:
        """Services with something to deliver, without the one under way."""
        return len(self._deliveries)

    def status(self) -> Mapping[str, Any]:
        shown = {"webhook": self.number, "host": self.host, "state": self.state, "error": self.error}
        return {**shown, "pending": self.pending, "outcomes": dict(self.outcomes)}

    async def run(self, client: httpx.AsyncClient) -> None:
        """Returns when the webhook is gone."""
        interest, hub = Filter(self._target.keys, self._target.everything), self._agent.catalog.hub
        mailbox, known = await self._agent.watch(interest, _no_wake_up, client=CLIENT)
        try:
            for snapshot in known:
                self._deliveries.put(Delivery(snapshot, hub.last_id))
            mailbox.attach(self._put)
            while self.state != "ended":
                self._woken.clear()
                delivery = self._deliveries.take()
                if delivery is None:
                    await self._woken.wait()
                else:
                    await self._deliver(client, delivery)
        finally:
            self._agent.unwatch(mailbox)

    def _put(self, event: Event) -> None:
        if isinstance(event.body, Change):
            self._deliveries.put(Delivery(event.body, self._agent.catalog.hub.id_of(event)))
            self._woken.set()

    async def _deliver(self, client: httpx.AsyncClient, delivery: Delivery) -> None:
        if (encoded := self._encode(delivery)) is None:
            return
        outcome, error = await self._post(client, *encoded, delivery.event_id)
        self.outcomes[outcome] += 1
        self._note(outcome, error)
        if outcome == "failed":
            self._deliveries.put_back(delivery)
            pause = self._policy.pauses.delay(self._failures, self._rng)
            self._failures += 1
            await self._agent.clock.sleep_until(self._agent.clock.now() + pause)
        else:
            self._failures = 0

    def _encode(self, delivery: Delivery) -> tuple[str, bytes] | None:
        """The event and its data. None for a change that readers cannot see, unless one before it may have arrived."""
        body = delivery.body
        if isinstance(body, Change):
            if (shown := change_json(body, View())) is not None:
                return "change", orjson.dumps(shown)
            if not delivery.tried:
                return None
            body = body.after
        stale = self._agent.catalog.cache.lookup(body.key, self._agent.clock.now()).stale
        return "snapshot", orjson.dumps(snapshot_json(body, View(), stale=stale))

    async def _post(self, client: httpx.AsyncClient, event: str, body: bytes, event_id: str) -> tuple[Verdict, str]:
        """The outcome, and the error, '' if there is none."""
        more = headers(event, event_id, self._agent.clock.wall(), self._policy.secret, body)
        sent = {**more, "user-agent": self._policy.user_agent}
        try:
            # One limit for the whole request, because a server that sends a byte now and then would hold it for ever.
            status = await asyncio.wait_for(self._status(client, body, sent), self._policy.timeout)
        except asyncio.TimeoutError:
            return "failed", f"no answer in {self._policy.timeout:g} s"
        except (httpx.HTTPError, OSError) as error:
            return "failed", str(error) or type(error).__name__
        except Exception as error:  # whatever breaks the client; its text may quote the URL
            return "failed", type(error).__name__
        outcome = verdict(status)
        return outcome, "" if outcome == "delivered" else f"it answered {status}"

    async def _status(self, client: httpx.AsyncClient, body: bytes, sent: Mapping[str, str]) -> int:
        """Reads a short answer to its end, so that its connection can be used again."""
        async with client.stream("POST", self._target.url, content=body, headers=sent) as reply:
            size = 0
            async for chunk in reply.aiter_raw():
                size += len(chunk)
                if size > self._policy.max_answer:
                    break
            return reply.status_code

    def _note(self, outcome: Verdict, error: str) -> None:
        """Log each transition once."""
        before, self.error = self.state, error
        self.state = "ok" if outcome == "delivered" else "ended" if outcome == "gone" else "failing"
        if self.state == "ended":
            self._deliveries.clear()
            log.error("webhook %d (%s) ends until the next start: %s", self.number, self.host, error)
        elif self.state == "failing" != before:
            what = "is given up for this event" if outcome == "refused" else "is tried again, ever more rarely"
            log.warning("webhook %d (%s) fails and %s: %s", self.number, self.host, what, error)
        elif self.state == "ok" != before:
            log.warning("webhook %d (%s) works again", self.number, self.host)


def _no_wake_up() -> None:
    """Events go to the sink of the mailbox."""
