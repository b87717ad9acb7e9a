"""The JSON of hosts, lists and answers to beats, read and written, for all dialects, UDP push and our own API.

Between two lists of a thousand hosts usually only one host changes. So for large services this module keeps the value
or the JSON of each host, and reuses it while all fields are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple, TypeVar, cast

import orjson

from nacos_proxy.model.calls import BeatResult, GetInstance
from nacos_proxy.model.errors import Malformed, Misplaced
from nacos_proxy.model.heartbeats import DEFAULT_BEAT_INTERVAL, beat_interval, beat_timeout, delete_timeout
from nacos_proxy.model.services import DEFAULT_CLUSTER, EMPTY, GROUP_SEPARATOR, Instance, Metadata, ServiceKey, Snapshot
from nacos_proxy.wire.http import HttpReply
from nacos_proxy.wire.nacos.base import ServiceView
from nacos_proxy.wire.nacos.shapes import as_json, dumps

LARGE = 100  # hosts: from this size on, the lookup in a memo costs less than it saves

K = TypeVar("K")
V = TypeVar("V")


class _Memo(dict[K, V]):
    """A bounded memo. A full one is cleared, so each host in use is read or written once more."""

    def put(self, key: K, value: V) -> V:
        if len(self) >= 16_384:
            self.clear()
        self[key] = value
        return value


_Fields = tuple[str, int, str, float, bool, bool, bool, str]
_instances = _Memo[_Fields, Instance]()
_fragments = _Memo[tuple[_Fields, str], tuple[Metadata, orjson.Fragment]]()


def instance_id_of(instance: Instance, key: ServiceKey) -> str:
    return instance.instance_id or f"{instance.ip}#{instance.port}#{instance.cluster}#{key.grouped}"


def host_json(instance: Instance, key: ServiceKey) -> dict[str, Any]:
    """A host as lists, pushes and our own API show it: the fields of Nacos 2.5.1 in its order, then `extra`."""
    return _host_json(instance, key, _metadata_json(instance.metadata))


def _metadata_json(metadata: Metadata) -> dict[str, Any]:
    """The fields of a host that its metadata decides.

    Metadata is sorted by key, because legacy clients compare hosts as text (nacos-http.md 10.1).
    """
    meta = {name: metadata[name] for name in sorted(metadata)}
    fields: dict[str, Any] = {
        "metadata": meta,
        "instanceHeartBeatInterval": beat_interval(meta),
        "instanceHeartBeatTimeOut": beat_timeout(meta),
        "ipDeleteTimeout": delete_timeout(meta),
    }
    if (generator := meta.get("preserved.instance.id.generator", None if meta else "simple")) is not None:
        fields["instanceIdGenerator"] = generator
    return fields


def _host_json(instance: Instance, key: ServiceKey, of_metadata: Mapping[str, Any]) -> dict[str, Any]:
    host: dict[str, Any] = {
        "instanceId": instance_id_of(instance, key),
        "ip": instance.ip,
        "port": instance.port,
        "weight": instance.weight,
        "healthy": instance.healthy,
        "enabled": instance.enabled,
        "ephemeral": instance.ephemeral,
        "clusterName": instance.cluster,
        "serviceName": key.grouped,
        **of_metadata,
    }
    for name in sorted(instance.extra):
        host.setdefault(name, instance.extra[name])
    return host


def hosts_json(hosts: Sequence[Instance], key: ServiceKey) -> list[Any]:
    """Each host as `host_json`. For large services they are JSON fragments, which only orjson can write."""
    if len(hosts) < LARGE:
        shared: dict[int, dict[str, Any]] = {}  # by the identity of the metadata, which most hosts of a service share
        for host in hosts:
            if id(host.metadata) not in shared:
                shared[id(host.metadata)] = _metadata_json(host.metadata)
        return [_host_json(host, key, shared[id(host.metadata)]) for host in hosts]
    grouped = key.grouped
    return [_fragment(host, key, grouped) for host in hosts]


def _fragment(i: Instance, key: ServiceKey, grouped: str) -> Any:
    if i.extra or type(i.weight) is not float:  # 1, 1.0 and True are equal as keys, but differ as JSON
        return host_json(i, key)
    fields = ((i.ip, i.port, i.cluster, i.weight, i.healthy, i.enabled, i.ephemeral, i.instance_id), grouped)
    known = _fragments.get(fields)
    if known is None or known[0] != i.metadata:
        known = _fragments.put(fields, (i.metadata, orjson.Fragment(dumps(host_json(i, key)))))
    return known[1]


# The fields of hosts and lists that any Nacos or r-nacos shows. They are read or ignored; all others become `extra`.
_HOST = frozenset(
    "instanceId ip port weight healthy enabled ephemeral clusterName serviceName metadata instanceHeartBeatInterval "
    "instanceHeartBeatTimeOut ipDeleteTimeout instanceIdGenerator service marked valid dom".split()
)
_LIST = frozenset(
    "name groupName clusters cacheMillis hosts lastRefTime checksum allIPs allIps reachProtectionThreshold valid "
    "dom useSpecifiedURL env metadata protectThreshold reachLocalSiteCallThreshold".split()
)


class Hosts(NamedTuple):
    """The hosts of a list, and a text for each host that is unreadable and left out."""

    instances: tuple[Instance, ...]
    unreadable: tuple[str, ...] = ()


def read_each(hosts: Sequence[Any], key: ServiceKey) -> Hosts:
    """Reads the hosts of one service, and leaves out the unreadable ones.

    Raises `Misplaced` if a host belongs to another service, and `Malformed` if no item looks like a host.
    """
    grouped, bare, large = key.grouped, key.name, len(hosts) >= LARGE
    found: list[Instance] = []
    unreadable: list[str] = []
    any_host, metadata = not hosts, EMPTY
    for host in hosts:
        try:
            name: Any = host.get("serviceName")
            if name and name != grouped and name != bare:
                check_named(key, name)
            instance = read_host(host, grouped, large=large, like=metadata)
            found.append(instance)
            metadata = instance.metadata
        except Misplaced:
            raise
        except (Malformed, AttributeError) as error:
            any_host = any_host or (isinstance(host, dict) and ("ip" in host or "port" in host))
            unreadable.append(f"{error}: {host!r}"[:200])
    if not found and not any_host:
        raise Malformed(f"no item of the list is a host: {unreadable[0]}")
    return Hosts(tuple(found), tuple(unreadable))


def check_named(key: ServiceKey, *names: object) -> None:
    """Raises `Misplaced` if an answer names another service, with or without the group. Ignores what is not text.

    1.x shows most agents `dom` and the hosts' `serviceName` without the group (nacos-http.md 2.6). Servers trim the
    names in requests.
    """
    for name in names:
        if not isinstance(name, str) or name in (key.grouped, key.name) or not (name := name.strip()):
            continue
        if name not in (key.name.strip(), key.grouped.strip(), f"{key.group}{GROUP_SEPARATOR}{key.name.strip()}"):
            raise Misplaced(f"asked for {key.grouped!r}, but the answer is about {name[:200]!r}")


def read_host(host: Any, grouped: str, *, large: bool = False, like: Metadata = EMPTY) -> Instance:
    """Reads a host of 1.x, 2.x, 3.x or r-nacos. Raises `Malformed`.

    The usual instance id (or r-nacos's `ip#port`) becomes ''. Unknown fields become `extra`. `large`: use the memo,
    because the host is one of many and probably unchanged. `like` is used instead of equal metadata: the hosts of a
    service usually have the same, which is then kept once.
    """
    try:
        ip, port, weight = host["ip"], host["port"], host.get("weight", 1.0)
        cluster = host.get("clusterName") or DEFAULT_CLUSTER
        healthy, metadata = host.get("healthy"), host.get("metadata") or EMPTY
        instance_id = host.get("instanceId") or ""
        extra = EMPTY if host.keys() <= _HOST else _unknown_fields(host, _HOST)
    except (KeyError, TypeError, AttributeError) as error:
        raise Malformed(f"a host without ip or port: {error}") from error
    if type(ip) is not str or type(cluster) is not str or type(instance_id) is not str:
        raise Malformed("ip, clusterName or instanceId of a host is not text")
    if not ip or ip.isspace():
        raise Malformed("a host with an empty ip")
    if instance_id == f"{ip}#{port}#{cluster}#{grouped}" or instance_id == f"{ip}#{port}":
        instance_id = ""
    fields = (
        ip,
        port if type(port) is int and 0 <= port <= 65535 else _port(port),
        DEFAULT_CLUSTER if cluster == DEFAULT_CLUSTER else cluster,  # one object for all instances
        weight if type(weight) is float else _weight(weight),
        (host.get("valid") is not False) if healthy is None else healthy is True,
        host.get("enabled") is not False,
        host.get("ephemeral") is not False,
        instance_id,
    )
    known = _instances.get(fields) if large and not extra else None
    if known is not None and known.metadata == metadata:
        return known
    metadata = like if metadata == like else read_metadata(metadata) if metadata else EMPTY
    instance = Instance(*fields[:7], metadata, instance_id, extra)
    return _instances.put(fields, instance) if large and not extra else instance


def read_requested(call: GetInstance, value: Any) -> Instance:
    """Reads the requested instance. Raises `Malformed`, and `Misplaced` for another instance.

    The cluster may differ: r-nacos treats it as a hint.
    """
    found = read_host(value, call.service.grouped)
    check_named(call.service, value.get("service"), value.get("serviceName"))
    if (found.ip, found.port) != (call.ip.strip(), call.port):
        raise Misplaced(f"asked for {call.ip}:{call.port}, but the answer is about {found.address}")
    return found


def _unknown_fields(fields: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """The unknown fields of a server, which are passed on."""
    return {name: value for name, value in fields.items() if name not in known}


def read_metadata(value: Any) -> Metadata:
    """A server's metadata. As in Nacos, scalars become text, and null stays null. Raises `Malformed`."""
    if not isinstance(value, dict):
        raise Malformed("metadata is not an object")
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
            raise Malformed(f"metadata {name!r} is not text")
    return text


def _port(value: Any) -> int:
    if isinstance(value, str) and len(value) <= 5 and value.isascii() and value.isdecimal() and int(value) <= 65535:
        return int(value)
    raise Malformed("port of a host is not a number from 0 to 65535")


def _weight(value: Any) -> float:
    """A weight that is not finite becomes 0, which means no traffic. Nacos can show "NaN" (nacos-http.md 1.7)."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0.0 if value is not None else 1.0
    return number if isfinite(number) else 0.0


def list_json(view: ServiceView, clusters: str) -> dict[str, Any]:
    """A list as v1 and v2 show it: the fields of 2.5.1 in its order, then `extra`."""
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


_MAX_LONG = (1 << 63) - 1  # Java's long; `lastRefTime` is incremented on each change and must fit into 64 bits


class Listing(NamedTuple):
    """A server's list. `protected`: protection masks health, so true health needs another read (nacos-http.md 5.5)."""

    snapshot: Snapshot
    protected: bool


def read_listing(key: ServiceKey, value: Any) -> Listing:
    """Reads a list, also of 1.x and r-nacos, which leave out or add fields. Raises `Malformed`.

    A list lacks the threshold, and reveals `masking` only while protection masks health.
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
        cache_millis=millis if type(millis) is int and 0 < millis <= _MAX_LONG else 10_000,
        extra=EMPTY if answer.keys() <= _LIST else _unknown_fields(answer, _LIST),
        last_ref_time=moment if type(moment) is int and 0 < moment <= _MAX_LONG else 0,
        by_cluster="useSpecifiedURL" in answer and "protectThreshold" not in answer,  # 1.x; r-nacos writes both
        unreadable=hosts.unreadable,
    )
    return Listing(snapshot, protected)


def write_statuses(_call: Any, view: ServiceView) -> HttpReply:
    """Every instance with its health, as `instance/statuses` shows it."""
    instances = view.snapshot.instances
    return as_json({"ips": [f"{i.ip}:{i.port}_{'true' if i.healthy else 'false'}" for i in instances]})


_BEAT = frozenset({"clientBeatInterval", "code", "lightBeatEnabled"})


def beat_json(beat: BeatResult) -> dict[str, Any]:
    """The answer to a beat in v1, v2 and our own API, then the server's other fields."""
    answer = {"clientBeatInterval": beat.interval, "code": beat.code, "lightBeatEnabled": beat.light}
    return {**answer, **{name: beat.extra[name] for name in beat.extra if name not in answer}}


def write_beat(_call: Any, beat: BeatResult) -> HttpReply:
    return as_json(beat_json(beat))


def read_beat_result(value: Any) -> BeatResult:
    """Reads the answer to a beat; 1.4.6 leaves out lightBeatEnabled. Raises `Malformed`."""
    answer = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    code, interval = answer.get("code"), answer.get("clientBeatInterval", DEFAULT_BEAT_INTERVAL)
    if type(code) is not int or type(interval) is not int:
        raise Malformed("the answer to a beat without code or interval")
    extra = {name: item for name, item in answer.items() if name not in _BEAT}
    return BeatResult(code, interval, answer.get("lightBeatEnabled") is not False, extra or EMPTY)
