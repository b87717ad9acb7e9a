"""Why instances that are registered here get no traffic: drains and maintenance, as JSON."""

from __future__ import annotations

from typing import Any

from nacos_proxy.catalog.drains import Drain
from nacos_proxy.catalog.registrations import Registration
from nacos_proxy.core.agent import Agent


def drain_json(drain: Drain, now: float, state: str = "") -> dict[str, Any]:
    """`state`: another one than it has."""
    return {
        "name": drain.service.grouped,
        "namespaceId": drain.service.namespace,
        "address": drain.instance.address,
        "state": state or drain.state(now),
        "secondsLeft": round(max(0.0, drain.until - now), 3),
        "error": drain.error,
    }


def states_json(agent: Agent, registration: Registration | None) -> dict[str, Any]:
    """`drain` and `maintenance` of an instance, as far as there are any."""
    if registration is None:
        return {}
    now, found = agent.clock.now(), dict[str, Any]()
    if (drain := agent.catalog.drains.find(registration.key, now)) is not None:
        shown = drain_json(drain, now)
        found["drain"] = {name: shown[name] for name in ("state", "secondsLeft", "error")}
    if registration.check is not None and "maintenance" in registration.check:
        found["maintenance"] = registration.check["maintenance"]
    return found
