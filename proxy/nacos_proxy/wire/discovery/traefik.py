"""Traefik's HTTP provider: a load balancer for each service. Routers are elsewhere and name it as `orders@http`.

Tried with Traefik 3.7.13: routers of a service without servers answer 503, those of an unknown service 404. It accepts
`{}` and an empty list of servers, but refuses an empty map of services.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nacos_proxy.model.services import DEFAULT_GROUP, Instance, ServiceKey
from nacos_proxy.wire.discovery.addresses import OMITTED, place, scheme, usable, weighted_servers
from nacos_proxy.wire.discovery.base import Format, Shown

_MAX_WEIGHT = 10_000  # that of Nacos; Traefik has none
_SCHEMES = {"https": "https", "h2c": "h2c", "grpc": "h2c"}


def service_name(key: ServiceKey) -> str:
    """`orders`, or `group/orders` in another group than the default one. No two services have the same name.

    Traefik reads `@` as the start of a provider's name.
    """
    name = key.name if key.group == DEFAULT_GROUP and "/" not in key.name else f"{key.group}/{key.name}"
    return name.replace("%", "%25").replace("@", "%40")


def _write(shown: Sequence[Shown]) -> dict[str, Any]:
    services = {service_name(one.key): {"loadBalancer": {"servers": _servers(one)}} for one in shown}
    return {"http": {"services": services}} if services else {}


def _servers(shown: Shown) -> list[dict[str, Any]]:
    return [{"url": url, "weight": weight} for url, weight in weighted_servers([shown], _MAX_WEIGHT, _url)]


def _url(host: Instance) -> str:
    return f"{_SCHEMES.get(scheme(host.metadata), 'http')}://{place(host)}"


FORMAT = Format(
    name="traefik",
    summary="Services for Traefik's HTTP provider",
    description="A load balancer for each service, by its name (`group/name` outside of `DEFAULT_GROUP`). Metadata "
    "`secure=true` or `protocol=https` makes an `https` server, `protocol=h2c` or `grpc` one of HTTP/2 without TLS. A "
    f"service without a server stays in the answer, so that Traefik answers 503 and not 404. {OMITTED}",
    example={
        "http": {"services": {"orders": {"loadBalancer": {"servers": [{"url": "http://10.0.0.5:8080", "weight": 1}]}}}}
    },
    write=_write,
    carries=usable,
    several=True,
)
