"""What a name in DNS asks for.

    name, in front of the zone                  | what it asks for
    --------------------------------------------|------------------------------------------------------------
    <alias>                                     | the service that the settings give this name
    <8 or 32 hex digits>.addr                   | that address; the targets of SRV records are such names
    <view>.view                                 | reserved
    _<service>._tcp[.<group>[.<namespace>]]     | the service (RFC 2782)
    _<service>._<selector>[.<group>[.<ns>]]     | its instances whose metadata match, in Consul's place of a tag
    <service>.<group>.<namespace>               | the service, as Nacos's own istio module writes it
    <service>.<group>  <service>.<namespace>    | short forms
    <service>                                   |

DNS compares names without their case, Nacos with it. So an `Index` of the known services leads from one to the other.
Nacos writes a group's `_` as `-` (nacos: IstioCrdUtil). A service name may contain dots, therefore a name can have
several readings: the first one that is known counts, else the first one that exists.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import dns.exception
import dns.name
import dns.reversename

from nacos_proxy.model.selectors import ANY, Selector
from nacos_proxy.model.services import DEFAULT_GROUP, DEFAULT_NAMESPACE, ServiceKey

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Folded = tuple[str, str, str]

MAX_SPELLINGS = 6  # services that one name may make us read
PROTOCOLS = ("tcp", "udp")
_RESERVED = ("addr", "view")
_HEX = re.compile(r"(?:[0-9a-f]{8}|[0-9a-f]{32})")
_LABEL = re.compile(r"[^\x00-\x20\x7f-\uffff@/\\]+")  # other names need an alias
_ALIAS = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # namespaces that the console has made


@dataclass(frozen=True, slots=True)
class Outside:
    """Not a name of a zone of ours."""


@dataclass(frozen=True, slots=True)
class Apex:
    """The zone itself."""


@dataclass(frozen=True, slots=True)
class Between:
    """No name of a service, but others may be below it: it exists without records (RFC 8020)."""


@dataclass(frozen=True, slots=True)
class Nothing:
    """A name that no service can have."""


@dataclass(frozen=True, slots=True)
class OfAddress:
    """An address, by its hex digits, or the reverse name of one."""

    address: Address
    reverse: bool = False


@dataclass(frozen=True, slots=True)
class OfService:
    """The services that the name may mean, of which the first one that exists counts; only what `selector` matches.

    `between`: if none of them exists, the name is a namespace or a group. `clashing`: the name means several known
    services, which differ only in case.
    """

    services: tuple[ServiceKey, ...]
    selector: Selector = ANY
    between: bool = False
    clashing: bool = False


Asked = Outside | Apex | Between | Nothing | OfAddress | OfService


@dataclass(frozen=True, slots=True)
class Question:
    """A name as asked, its zone (the root for a name outside) and what it asks for."""

    name: dns.name.Name
    zone: dns.name.Name
    asked: Asked


def folded(namespace: str, group: str, name: str) -> Folded:
    return namespace.lower(), _folded_group(group), name.lower()


def _folded_group(group: str) -> str:
    return group.lower().replace("_", "-")


@dataclass(slots=True)
class Index:
    """The services that have had instances, and their groups and namespaces, by names without case."""

    _services: dict[Folded, tuple[ServiceKey, ...]] = field(default_factory=lambda: {})
    _groups: dict[str, str] = field(default_factory=lambda: {})
    _namespaces: dict[str, str] = field(default_factory=lambda: {})

    def __post_init__(self) -> None:
        self.know(DEFAULT_NAMESPACE, DEFAULT_GROUP)

    def know(self, namespace: str, group: str) -> None:
        """A namespace and a group that exist."""
        self._namespaces.setdefault(namespace.lower(), namespace)
        self._groups.setdefault(_folded_group(group), group)

    def add(self, key: ServiceKey) -> None:
        place = folded(*key)
        known = self._services.get(place, ())
        if key not in known:
            self._services[place] = (*known, key)
            self.know(key.namespace, key.group)

    def find(self, namespace: str, group: str, name: str) -> tuple[ServiceKey, ...]:
        """The known services of this name in any case. More than one: they clash."""
        return self._services.get(folded(namespace, group, name), ())

    def namespace(self, label: str) -> str | None:
        """The namespace that a label names; None if it is none."""
        folded = label.lower()
        return self._namespaces.get(folded) or (folded if _UUID.fullmatch(folded) else None)

    def group(self, label: str) -> str | None:
        return self._groups.get(_folded_group(label))

    def __contains__(self, key: ServiceKey) -> bool:
        return key in self._services.get(folded(*key), ())

    def __len__(self) -> int:
        return len(self._services)


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to read the labels of a name."""

    namespace: str
    group: str
    name: str


@dataclass(slots=True)
class Names:
    """Reads names. `zones` are the zones that we serve; `namespace` and `group` are those of short forms.

    `aliases`: services by the alias that stands in front of the zone.
    """

    zones: tuple[dns.name.Name, ...]
    namespace: str = DEFAULT_NAMESPACE
    group: str = DEFAULT_GROUP
    aliases: Mapping[str, ServiceKey] = field(default_factory=lambda: {})
    index: Index = field(default_factory=Index)

    def __post_init__(self) -> None:
        self.zones = tuple(sorted(self.zones, key=len, reverse=True))  # one may be inside another
        self.index.know(self.namespace, self.group)
        self.aliases = {name.lower(): key for name, key in self.aliases.items()}
        for key in self.aliases.values():
            self.index.add(key)

    def read(self, name: dns.name.Name) -> Question:
        """What a name asks for."""
        for zone in self.zones:
            if name.is_subdomain(zone):
                return Question(name, zone, self._inside(name.relativize(zone).labels))
        return Question(name, dns.name.root, _reverse(name))

    def _inside(self, raw: Sequence[bytes]) -> Asked:
        labels = [label.decode("latin-1") for label in raw]
        if not labels:
            return Apex()
        if (alias := self.aliases.get(".".join(labels).lower())) is not None:
            return OfService((alias,))
        last = labels[-1].lower()
        if last in _RESERVED:
            if len(labels) == 1:
                return Between()
            return _address(labels[:-1]) if last == "addr" else Nothing()
        if not all(_LABEL.fullmatch(label) for label in labels):
            return Nothing()
        if labels[0].startswith("_"):
            return self._underscored(labels)
        known = self.index
        between = (len(labels) == 1 and (known.namespace(last) or known.group(last)) is not None) or (
            len(labels) == 2 and known.namespace(labels[1]) is not None and known.group(labels[0]) is not None
        )
        return self._service(list(self._readings(labels)), between=between)

    def _underscored(self, labels: list[str]) -> Asked:
        """`_service._tcp[.group[.namespace]]`. The service may have dots, so its end is the next underscore."""
        end = next((n for n in range(1, len(labels)) if labels[n].startswith("_")), 0)
        if not end:
            return Between() if labels[0][1:].lower() in PROTOCOLS else Nothing()
        name, tag, rest = ".".join(labels[:end])[1:], labels[end][1:], labels[end + 1 :]
        if not name or not tag or len(rest) > 2:
            return Nothing()
        group, namespace = [*rest, *("", "")[len(rest) :]]
        try:
            selector = ANY if tag.lower() in PROTOCOLS else Selector.parse(tag)
        except ValueError:
            return Nothing()
        return self._service([Reading(namespace or self.namespace, group or self.group, name)], selector)

    def _readings(self, labels: Sequence[str]) -> Iterable[Reading]:
        """From the right: a known namespace, then a known group; what remains is the service.

        Where one of the two may be one that we do not know yet, there are several readings.
        """

        def service(*, without: int) -> str:
            return ".".join(labels[: len(labels) - without])

        number, last = len(labels), labels[-1]
        if number > 1 and (namespace := self.index.namespace(last)):
            if number > 2 and self.index.group(labels[-2]):
                yield Reading(namespace, labels[-2], service(without=2))
                return
            yield Reading(namespace, self.group, service(without=1))
            if number > 2:
                yield Reading(namespace, labels[-2], service(without=2))
        elif number > 1 and self.index.group(last):
            yield Reading(self.namespace, last, service(without=1))
        else:
            yield Reading(self.namespace, self.group, service(without=0))
            if number > 2:
                yield Reading(last, labels[-2], service(without=2))
            if number > 1:
                yield Reading(self.namespace, last, service(without=1))

    def _service(self, readings: Sequence[Reading], selector: Selector = ANY, *, between: bool = False) -> OfService:
        for reading in readings:
            if known := self.index.find(reading.namespace, reading.group, reading.name):
                return OfService(known, selector, clashing=len(known) > 1)
        spellings = (key for lower in (False, True) for reading in readings for key in self._spelled(reading, lower))
        return OfService(tuple(dict.fromkeys(spellings))[:MAX_SPELLINGS], selector, between)

    def _spelled(self, reading: Reading, lower: bool) -> Iterable[ServiceKey]:
        """How the service may be spelled: as asked, or in lower case; `-` in a group may stand for `_`."""
        namespace = self.index.namespace(reading.namespace) or reading.namespace
        group = self.index.group(reading.group)
        name = reading.name.lower() if lower else reading.name
        for spelled in (group,) if group else (reading.group, reading.group.replace("-", "_")):
            yield ServiceKey(namespace, spelled, name)


def _address(labels: Sequence[str]) -> Asked:
    digits = labels[0].lower()
    if len(labels) > 1 or _HEX.fullmatch(digits) is None:
        return Nothing()
    return OfAddress(ipaddress.ip_address(bytes.fromhex(digits)))


def _reverse(name: dns.name.Name) -> Asked:
    try:
        return OfAddress(ipaddress.ip_address(dns.reversename.to_address(name)), reverse=True)
    except (dns.exception.DNSException, ValueError):
        return Outside()


def address_labels(address: Address) -> bytes:
    """The name of an address in front of a zone, in wire format: `0a000001.addr`."""
    digits = address.packed.hex().encode()
    return bytes((len(digits),)) + digits + b"\x04addr"


def service_name(key: ServiceKey, zone: dns.name.Name) -> dns.name.Name | None:
    """The full name of a service; None if DNS cannot carry it."""
    labels = [*key.name.split("."), key.group.replace("_", "-"), key.namespace]
    if not all(_LABEL.fullmatch(label) for label in labels):
        return None
    try:
        return dns.name.Name((*(label.encode("latin-1") for label in labels), *zone.labels))
    except dns.exception.DNSException:  # a label or the name is too long
        return None


def parse_zone(text: str) -> dns.name.Name:
    """A zone such as `nacos` or `nacos.internal`. Raises `ValueError`."""
    try:
        zone = dns.name.from_text(text)
    except (dns.exception.DNSException, UnicodeError) as error:
        raise ValueError(f"{text!r} is not a name of DNS: {error}") from None
    if zone == dns.name.root:
        raise ValueError("the root cannot be a zone; write a name such as nacos")
    return zone


def parse_aliases(text: Iterable[str]) -> dict[str, ServiceKey]:
    """Aliases such as `users=public/DEFAULT_GROUP@@providers:com.acme.Users:1.0:`. Raises `ValueError`."""
    found: dict[str, ServiceKey] = {}
    for item in text:
        alias, separator, service = item.partition("=")
        namespace, slash, grouped = service.partition("/")
        grouped = grouped if slash else namespace
        name = alias.strip().lower()
        if not separator or not grouped.strip() or _ALIAS.fullmatch(name) is None:
            raise ValueError(f"{item!r} is not an alias; write it like users=public/DEFAULT_GROUP@@com.acme.Users")
        if (last := name.rpartition(".")[2]) in _RESERVED:
            raise ValueError(f"{item!r}: names that end in {last} are reserved; choose another alias")
        found[name] = ServiceKey.of(grouped.strip(), namespace=namespace.strip() if slash else None)
    return found
