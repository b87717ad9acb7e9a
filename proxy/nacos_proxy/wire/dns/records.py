"""The records of a service: A, AAAA, SRV, TXT and PTR, and the SOA of a zone; in wire format."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, ip_address

import dns.name
import dns.rdataclass
from dns.rdatatype import AAAA, NS, PTR, SOA, SRV, TXT, A, RdataType
from dns.rdtypes.ANY import SOA as soa

from nacos_proxy.model.services import Instance
from nacos_proxy.wire.discovery.addresses import host_of
from nacos_proxy.wire.dns.names import Address, address_labels

WEIGHT_OF_ONE = 6400
MAX_WEIGHT = 65280
MIN_WEIGHT = 256
NEGATIVE_TTL = 0  # seconds; the SOA's minimum: no resolver should remember that a service has no instance
MAX_TEXT = 1024  # bytes of one TXT record


@dataclass(frozen=True, slots=True)
class Record:
    """A record without its name. `glue`: the address of the target, whose name is the `rdata` from byte 6 on."""

    rdtype: RdataType
    rdata: bytes
    glue: Record | None = None


def address_record(address: Address) -> Record:
    return Record(A if isinstance(address, IPv4Address) else AAAA, address.packed)


@lru_cache(maxsize=16_384)
def _host(ip: str) -> Address | str:
    """What a registered address is for other programs: an IP address, a host name, or '' for neither."""
    host = host_of(ip)
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        return host


def carried(hosts: Iterable[Instance]) -> list[Instance]:
    """Those whose address and weight DNS can carry."""
    return [i for i in hosts if i.weight < math.inf and _host(i.ip) != ""]


def address_records(hosts: Iterable[Instance], rdtype: RdataType) -> list[Record]:
    """The A or AAAA records of instances, each address once. DNS cannot say the port; host names are no address."""
    found = dict.fromkeys(host for i in hosts if not isinstance(host := _host(i.ip), str))
    return [record for record in map(address_record, found) if record.rdtype == rdtype]


def service_records(tiers: Sequence[Sequence[Instance]], zone: dns.name.Name) -> list[list[Record]]:
    """SRV records by tier; the first tier has priority 1, the lowest number, which clients prefer.

    Targets are names in `zone`; host names stand for themselves.
    """
    weights, suffix = iter(srv_weights([i.weight for tier in tiers for i in tier])), zone.to_wire() or b""
    return [_services(tier, weights, suffix, priority) for priority, tier in enumerate(tiers, 1)]


def _services(tier: Iterable[Instance], weights: Iterator[int], suffix: bytes, priority: int) -> list[Record]:
    found: dict[Record, None] = {}
    for instance in tier:
        host, weight = _host(instance.ip), next(weights)
        if isinstance(host, str):
            target, glue = dns.name.from_text(host).to_wire() or b"", None
        else:
            target, glue = address_labels(host) + suffix, address_record(host)
        if 0 < instance.port <= 65535:
            found[Record(SRV, struct.pack("!HHH", priority, weight, instance.port) + target, glue)] = None
    return list(found)


def srv_weights(weights: Sequence[float]) -> list[int]:
    """Weights for SRV records, in proportion.

    HAProxy divides them by 256 and rounds up (haproxy: src/resolvers.c), so small numbers would all become 1. If the
    greatest would not fit, all become smaller.
    """
    scale = min(WEIGHT_OF_ONE, MAX_WEIGHT / max(weights, default=1.0))
    return [min(MAX_WEIGHT, max(MIN_WEIGHT, round(weight * scale))) for weight in weights]


def text_records(hosts: Iterable[Instance]) -> list[Record]:
    """One TXT record for each instance: its address, then its metadata (RFC 1464), as far as they fit."""
    return [Record(TXT, rdata) for rdata in dict.fromkeys(map(_text, hosts))]


def _text(instance: Instance) -> bytes:
    written = b""
    for name, text in [("instance", instance.address), *sorted(instance.metadata.items())]:
        # RFC 1464 2: a grave accent quotes what would end the name
        quoted = name.replace("`", "``").replace("=", "`=")
        string = f"{quoted}={text or ''}".encode("utf-8", "replace")
        if len(string) <= 255 and len(written) + len(string) < MAX_TEXT:
            written += bytes((len(string),)) + string
    return written


def pointer_records(names: Iterable[dns.name.Name]) -> list[Record]:
    return [Record(PTR, name.to_wire() or b"") for name in dict.fromkeys(names)]


@lru_cache(maxsize=64)
def authority(zone: dns.name.Name) -> Record:
    """The SOA of a zone."""
    server, mailbox = _inside(b"ns", zone), _inside(b"hostmaster", zone)
    rdata = soa.SOA(dns.rdataclass.IN, SOA, server, mailbox, 1, 3600, 600, 86400, NEGATIVE_TTL)
    return Record(SOA, rdata.to_wire() or b"")


def zone_records(zone: dns.name.Name, rdtype: RdataType) -> list[Record]:
    """The records of the zone itself."""
    if rdtype == SOA:
        return [authority(zone)]
    return [Record(NS, _inside(b"ns", zone).to_wire() or b"")] if rdtype == NS else []


def _inside(label: bytes, zone: dns.name.Name) -> dns.name.Name:
    return dns.name.Name((label, *zone.labels))
