"""Hosts, lists of hosts and answers to beats as JSON, both ways: what v1, v2, v3, pushes and our own API share.

Not for: what stands around them (`{code, message, data}`, the dialects), which hosts show (`model.Snapshot.select`).

Of a service of a thousand instances mostly one has changed. So what was read or written of a host of such a service is
remembered, and used again where it is the same to the last field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple, cast

import orjson

from nacos_proxy.model.calls import BeatResult, GetInstance
from nacos_proxy.model.errors import Malformed, Misplaced
from nacos_proxy.model.heartbeats import (
    DEFAULT_BEAT_INTERVAL,
    beat_interval,
    beat_timeout,
    delete_timeout,
)
from nacos_proxy.model.services import (
    DEFAULT_CLUSTER,
    EMPTY,
    GROUP_SEPARATOR,
    Instance,
    Metadata,
    ServiceKey,
    Snapshot,
)
from nacos_proxy.wire.http import HttpReply
from nacos_proxy.wire.nacos.base import ServiceView
from nacos_proxy.wire.nacos.shapes import as_json, dumps

LARGE = 100  # hosts from which on it pays to look for what was read or written before
_REMEMBERED = 16_384  # hosts; beyond that all is forgotten, which costs one reading more

_Fields = tuple[str, int, str, float, bool, bool, bool, str]
_read: dict[_Fields, Instance] = {}
_written: dict[tuple[_Fields, str], tuple[Metadata, Any]] = {}


def host_json(instance: Instance, key: ServiceKey) -> dict[str, Any]:
    """A host as lists, pushes and our own API show it: the fields of Nacos 2.5.1 in its order, then a server's own.

    Metadata is in the order of its keys: legacy clients compare hosts as text (nacos-http.md 10.1).
    """
    meta = {name: instance.metadata[name] for name in sorted(instance.metadata)}
    host: dict[str, Any] = {
        "instanceId": instance.instance_id or f"{instance.ip}#{instance.port}#{instance.cluster}#{key.grouped}",
        "ip": instance.ip,
        "port": instance.port,
        "weight": instance.weight,
        "healthy": instance.healthy,
        "enabled": instance.enabled,
        "ephemeral": instance.ephemeral,
        "clusterName": instance.cluster,
        "serviceName": key.grouped,
        "metadata": meta,
        "instanceHeartBeatInterval": beat_interval(meta),
        "instanceHeartBeatTimeOut": beat_timeout(meta),
        "ipDeleteTimeout": delete_timeout(meta),
    }
    if (generator := meta.get("preserved.instance.id.generator", None if meta else "simple")) is not None:
        host["instanceIdGenerator"] = generator
    for name in sorted(instance.extra):
        host.setdefault(name, instance.extra[name])
    return host


def hosts_json(hosts: Sequence[Instance], key: ServiceKey) -> list[Any]:
    """Each as `host_json` shows it; of a large service as JSON that is ready, which orjson alone can write."""
    if len(hosts) < LARGE:
        return [host_json(host, key) for host in hosts]
    grouped = key.grouped
    return [_ready(host, key, grouped) for host in hosts]


def _ready(i: Instance, key: ServiceKey, grouped: str) -> Any:
    if i.extra or type(i.weight) is not float:  # 1, 1.0 and true are alike as keys, and differ as JSON
        return host_json(i, key)
    place = ((i.ip, i.port, i.cluster, i.weight, i.healthy, i.enabled, i.ephemeral, i.instance_id), grouped)
    known = _written.get(place)
    if known is None or known[0] != i.metadata:
        if len(_written) >= _REMEMBERED:
            _written.clear()
        known = _written[place] = (i.metadata, orjson.Fragment(dumps(host_json(i, key))))
    return known[1]


# What a host and a list may hold beside the fields above, from Nacos 1.x and r-nacos: known, and not passed on.
_HOST = frozenset(
    "instanceId ip port weight healthy enabled ephemeral clusterName serviceName metadata instanceHeartBeatInterval "
    "instanceHeartBeatTimeOut ipDeleteTimeout instanceIdGenerator service marked valid dom".split()
)
_LIST = frozenset(
    "name groupName clusters cacheMillis hosts lastRefTime checksum allIPs allIps reachProtectionThreshold valid "
    "dom useSpecifiedURL env metadata protectThreshold reachLocalSiteCallThreshold".split()
)


class Hosts(NamedTuple):
    """The hosts of a list, and what is wrong with each that cannot be read and is left out."""

    instances: tuple[Instance, ...]
    unreadable: tuple[str, ...] = ()


def read_each(hosts: Sequence[Any], key: ServiceKey) -> Hosts:
    """Hosts of one service; one that cannot be read hides no other.

    Raises `Misplaced` where one is of another service, and `Malformed` where none is even meant to be a host: that is
    no list.
    """
    grouped, bare, large = key.grouped, key.name, len(hosts) >= LARGE
    found: list[Instance] = []
    unreadable: list[str] = []
    meant = not hosts
    for host in hosts:
        try:
            said: Any = host.get("serviceName")
            if said and said != grouped and said != bare:
                check_named(key, said)
            found.append(read_host(host, grouped, large=large))
        except Misplaced:
            raise
        except (Malformed, AttributeError) as error:
            meant = meant or (isinstance(host, dict) and ("ip" in host or "port" in host))
            unreadable.append(f"{error}: {host!r}"[:200])
    if not found and not meant:
        raise Malformed(f"a list without a host in it: {unreadable[0]}")
    return Hosts(tuple(found), tuple(unreadable))


def check_named(key: ServiceKey, *said: object) -> None:
    """What an answer says of whose it is, bare or with the group; what is no text says nothing. Raises `Misplaced`.

    1.x shows `dom` and the hosts' `serviceName` bare to most agents (nacos-http.md 2.6). Servers trim what they are asked.
    """
    for name in said:
        if not isinstance(name, str) or name in (key.grouped, key.name) or not (name := name.strip()):
            continue
        if name not in (key.name.strip(), key.grouped.strip(), f"{key.group}{GROUP_SEPARATOR}{key.name.strip()}"):
            raise Misplaced(f"asked for {key.grouped!r}, and was told of {name[:200]!r}")


def read_host(host: Any, grouped: str, *, large: bool = False) -> Instance:
    """The other direction of `host_json`, tolerant of 1.x, 2.x, 3.x and r-nacos. Raises `Malformed`.

    An instance id that is the ordinary one (or r-nacos's `ip#port`) becomes ''; fields that no Nacos knows are `extra`.
    `large`: it is one of many, and likely as it was.
    """
    try:
        ip, port, weight = host["ip"], host["port"], host.get("weight", 1.0)
        cluster = host.get("clusterName") or DEFAULT_CLUSTER
        healthy, metadata = host.get("healthy"), host.get("metadata") or EMPTY
        instance_id = host.get("instanceId") or ""
        extra = EMPTY if host.keys() <= _HOST else _own(host, _HOST)
    except (KeyError, TypeError, AttributeError) as error:
        raise Malformed(f"a host without ip or port: {error}") from error
    if type(ip) is not str or type(cluster) is not str or type(instance_id) is not str:
        raise Malformed("ip, clusterName or instanceId of a host is no text")
    if not ip or ip.isspace():
        raise Malformed("a host with an empty ip")
    if instance_id == f"{ip}#{port}#{cluster}#{grouped}" or instance_id == f"{ip}#{port}":
        instance_id = ""
    fields = (
        ip,
        port if type(port) is int and 0 <= port <= 65535 else _port(port),
        cluster,
        weight if type(weight) is float else _weight(weight),
        (host.get("valid") is not False) if healthy is None else healthy is True,
        host.get("enabled") is not False,
        host.get("ephemeral") is not False,
        instance_id,
    )
    known = _read.get(fields) if large and not extra else None
    if known is not None and known.metadata == metadata:
        return known
    made = Instance(*fields[:7], read_metadata(metadata) if metadata else EMPTY, instance_id, extra)
    if large and not extra:
        if len(_read) >= _REMEMBERED:
            _read.clear()
        _read[fields] = made
    return made


def read_asked(call: GetInstance, value: Any) -> Instance:
    """The one instance that was asked for. Raises `Misplaced` for another one, and `Malformed`.

    The cluster may be another: r-nacos takes it for a hint.
    """
    found = read_host(value, call.service.grouped)
    check_named(call.service, value.get("service"), value.get("serviceName"))
    if (found.ip, found.port) != (call.ip.strip(), call.port):
        raise Misplaced(f"asked for {call.ip}:{call.port}, and was told of {found.address}")
    return found


def _own(fields: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """A server's fields that we do not know, to be passed on."""
    return {name: value for name, value in fields.items() if name not in known}


def read_metadata(value: Any) -> Metadata:
    """Metadata of a server; scalars become text, as in Nacos, and null stays null. Raises `Malformed`."""
    if not isinstance(value, dict):
        raise Malformed("metadata is no object")
    given = cast("dict[str, Any]", value)
    if all(type(item) is str for item in given.values()):
        return given
    text: dict[str, str | None] = {}
    for name, item in given.items():
        if isinstance(item, bool):
            text[name] = "true" if item else "false"
        elif isinstance(item, str | int | float):
            text[name] = str(item)
        elif item is None:
            text[name] = None
        else:
            raise Malformed(f"metadata {name!r} is no text")
    return text


def _port(value: Any) -> int:
    if isinstance(value, str) and len(value) <= 5 and value.isascii() and value.isdecimal() and int(value) <= 65535:
        return int(value)
    raise Malformed("port of a host is no number from 0 to 65535")


def _weight(value: Any) -> float:
    """Nacos can hold NaN and shows it as text (nacos-http.md 1.7): 0, that is no traffic, for what is not finite."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0.0 if value is not None else 1.0
    return number if isfinite(number) else 0.0


def list_json(view: ServiceView, clusters: str) -> dict[str, Any]:
    """A list as v1 and v2 show it: the fields of 2.5.1 in its order, then a server's own."""
    snapshot = view.snapshot
    key = snapshot.key
    answer: dict[str, Any] = {
        "name": key.grouped,
        "groupName": key.group,
        "clusters": clusters,
        "cacheMillis": snapshot.cache_millis,
        "hosts": hosts_json(view.selection.hosts, key),
        "lastRefTime": snapshot.last_ref_time,
        "checksum": "",
        "allIPs": False,
        "reachProtectionThreshold": view.selection.protected,
        "valid": True,
    }
    for name in sorted(snapshot.extra):
        answer.setdefault(name, snapshot.extra[name])
    return answer


_LONGEST = (1 << 63) - 1  # Java's; to a moment one is added for each change, and JSON ends at 64 bits


class Listing(NamedTuple):
    """A list as a server showed it. `protected`: health is masked and needs a second look (nacos-http.md 5.5)."""

    snapshot: Snapshot
    protected: bool


def read_listing(key: ServiceKey, value: Any) -> Listing:
    """The other direction of `list_json`, tolerant of what 1.x and r-nacos leave out or add. Raises `Malformed`.

    The threshold is not in it; `masking` is known to hold only where the list says that it masks.
    """
    if not isinstance(value, dict) or not isinstance(value.get("hosts"), list):  # pyright: ignore[reportUnknownMemberType]
        raise Malformed("a list without hosts")
    answer = cast("dict[str, Any]", value)
    check_named(key, answer.get("name"), answer.get("dom"))
    millis, moment = answer.get("cacheMillis"), answer.get("lastRefTime")
    hosts = read_each(cast("list[Any]", answer["hosts"]), key)
    protected = answer.get("reachProtectionThreshold") is True
    snapshot = Snapshot.of(
        key,
        hosts.instances,
        masking=protected,
        cache_millis=millis if type(millis) is int and 0 < millis <= _LONGEST else 10_000,
        extra=EMPTY if answer.keys() <= _LIST else _own(answer, _LIST),
        last_ref_time=moment if type(moment) is int and 0 < moment <= _LONGEST else 0,
        by_cluster="useSpecifiedURL" in answer and "protectThreshold" not in answer,  # 1.x; r-nacos writes both
        unreadable=hosts.unreadable,
    )
    return Listing(snapshot, protected)


def write_statuses(_call: Any, view: ServiceView) -> HttpReply:
    """Every instance with its health, as `instance/statuses` shows it."""
    instances = view.snapshot.instances
    return as_json({"ips": [f"{i.ip}:{i.port}_{'true' if i.healthy else 'false'}" for i in instances]})


_BEAT = frozenset({"clientBeatInterval", "code", "lightBeatEnabled"})


def write_beat(_call: Any, beat: BeatResult) -> HttpReply:
    """The answer to a beat on v1 and v2; neither wraps it."""
    answer = {"clientBeatInterval": beat.interval, "code": beat.code, "lightBeatEnabled": beat.light}
    return as_json({**answer, **{name: beat.extra[name] for name in beat.extra if name not in answer}})


def read_beat_result(value: Any) -> BeatResult:
    """The other direction of `write_beat`; 1.4.6 leaves lightBeatEnabled out. Raises `Malformed`."""
    answer = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    code, interval = answer.get("code"), answer.get("clientBeatInterval", DEFAULT_BEAT_INTERVAL)
    if type(code) is not int or type(interval) is not int:
        raise Malformed("the answer to a beat without code or interval")
    extra = {name: item for name, item in answer.items() if name not in _BEAT}
    return BeatResult(code, interval, answer.get("lightBeatEnabled") is not False, extra or EMPTY)
