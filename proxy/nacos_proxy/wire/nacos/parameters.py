"""Reads request parameters as a Nacos server does (nacos-http.md 1.2, 1.6, 1.7): Java's numbers and booleans, metadata,
names, and the parameter check that runs before every controller.

Errors come in Nacos's order: first unreadable metadata, beats and instances, then the check itself, then the values
that the controller requires, with the controller's message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from math import isfinite
from typing import Any, NoReturn, cast
from urllib.parse import unquote_plus

from nacos_proxy.model.errors import BadCall, Malformed, Violation
from nacos_proxy.model.limits import NACOS
from nacos_proxy.model.services import DEFAULT_CLUSTER, EMPTY, GROUP_SEPARATOR, Instance, Metadata, ServiceKey
from nacos_proxy.wire.http import HttpRequest
from nacos_proxy.wire.nacos.shapes import read_exactly

UNGROUPED = "Param 'serviceName' is illegal, it should be format as 'groupName@@serviceName'"

_TRIM = "".join(map(chr, range(33)))  # what Java's trim() removes
_INT = re.compile(r"[+-]?[0-9]{1,10}")
_DOUBLE = re.compile(r"([+-]?(?:NaN|Infinity|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?))[fFdD]?")
TRUE = frozenset({"true", "yes", "on", "y", "t"})  # as `BooleanUtils.toBoolean`; compare with lower-case text
_SPRING = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}


class Parameters:
    """The parameters of one request (`HttpRequest.parameters`)."""

    __slots__ = ("_values", "rules")

    def __init__(self, request: HttpRequest) -> None:
        self._values = request.parameters
        self.rules = request.rules

    def raw(self, name: str) -> str | None:
        return self._values.get(name)

    def text(self, *names: str, default: str = "") -> str:
        """The first of these parameters that is not blank, trimmed."""
        return self._untrimmed(*names).strip(_TRIM) or default

    def _untrimmed(self, *names: str) -> str:
        for name in names:
            value = self._values.get(name)
            if value and value.strip(_TRIM):
                return value
        return ""

    def key(self) -> ServiceKey:
        return ServiceKey.of(self.text("serviceName"), self.text("groupName"), self.text("namespaceId"))

    @classmethod
    def filtered(cls, request: HttpRequest) -> Parameters:
        """The parameters after v1's ServiceNameFilter, which trims the name and refuses `@@x` and `g@@`."""
        p = cls(request)
        name = p.text("serviceName")
        if name:
            p._values["serviceName"] = name
        if GROUP_SEPARATOR in name:
            check_grouped(name, Violation.EMPTY_GROUP)
        return p

    def check(self, *, address: bool = True, clusters: bool = False) -> Metadata:
        """Runs the parameter check and returns the parsed metadata.

        `address` false: checks only the names. `clusters`: also checks each cluster of a list, untrimmed.
        """
        rules, metadata = self.rules, self.metadata() if address else EMPTY
        name, group = self._untrimmed("serviceName", "serviceNameParam"), self._untrimmed("groupName", "groupNameParam")
        rules.service(ServiceKey.of(name, group, self._untrimmed("namespaceId")))
        for cluster in self._untrimmed("clusters").split(",") if clusters else ():
            rules.cluster(cluster)
        if address:
            rules.cluster(self._untrimmed("clusterName", "cluster"))
            self.check_address()
            rules.metadata(metadata)
        return metadata

    def metadata(self) -> Metadata:
        """The parsed metadata. Servers without a parameter check refuse it in the controller, as plain text."""
        try:
            return self.rules.kept(parse_metadata(self.text("metadata")))
        except BadCall as error:
            if self.rules is NACOS:
                raise
            raise BadCall("metadata", Violation.OTHER, error.text, value=error.value) from None

    def check_address(self) -> None:
        self.rules.ip(self._untrimmed("ip"))
        if port := self._untrimmed("port", "checkPort"):
            self.rules.port(port)

    def check_instances(self, instances: Iterable[Instance]) -> None:
        """Checks cluster, ip and port of instances in a JSON parameter."""
        for instance in instances:
            self.rules.cluster(instance.cluster)
            self.rules.ip(instance.ip)
            self.rules.port(instance.port)

    def required(self, name: str) -> str:
        if not self.raw(name):
            raise BadCall(name, Violation.MISSING, f"Param '{name}' is required.")
        return self.text(name)

    def request_param(self, name: str) -> str:
        """As `required`, with the message of Spring instead of the controller's."""
        if not self.raw(name):
            raise BadCall(name, Violation.MISSING, f"Parameter '{name}' is missing")
        return self.text(name)

    def required_key(self) -> ServiceKey:
        if not self.required("serviceName"):
            check_grouped("", Violation.GROUPED_NAME)
        return self.key()

    def required_address(self) -> tuple[str, int]:
        ip = self.required("ip")
        if not ip:
            raise BadCall("ip", Violation.MISSING, "Param 'ip' is required.")
        return ip, to_int("port", self.required("port"))

    def yes(self, *names: str, default: bool) -> bool:
        """A boolean of v1: any other text than those in `TRUE` is false."""
        value = self.text(*names)
        return value.lower() in TRUE if value else default

    def exactly_true(self, name: str, default: bool = False) -> bool:
        value = self.text(name)
        return value.lower() == "true" if value else default

    def boolean(self, name: str, default: bool | None = None) -> bool | None:
        """A boolean of v2 and v3, as Spring converts it. Raises `BadCall`."""
        value = self.text(name)
        if not value:
            return default
        found = _SPRING.get(value.lower())
        if found is None:
            raise BadCall(name, Violation.NOT_A_BOOLEAN, f"Invalid boolean value '{value}'", value=value, status=500)
        return found

    def flag(self, name: str, default: bool) -> bool:
        return self.boolean(name, default) is True

    def integer(self, name: str, default: int) -> int:
        value = self.text(name)
        return to_int(name, value) if value else default

    def lenient_integer(self, name: str, default: int = 0) -> int:
        """0 if the text is not a number (`NumberUtils.toInt`)."""
        value = self.text(name)
        return (int(value) if _INT.fullmatch(value) else 0) if value else default

    def double(self, name: str) -> float | None:
        value = self.text(name)
        return to_double(name, value) if value else None

    def finite(self, name: str, default: float) -> float:
        number = self.double(name)
        if number is not None and not isfinite(number):
            raise _not_a_number(name, self.text(name))
        return default if number is None else number

    def lenient_double(self, name: str) -> float:
        """0.0 if the text is not a number (`NumberUtils.toFloat`)."""
        found = _DOUBLE.fullmatch(self.text(name))
        number = float(found[1]) if found else 0.0
        return number if isfinite(number) else 0.0

    def selector(self) -> str:
        """The selector as JSON text, '' for none. Clients may have URL-encoded it twice."""
        text = self.text("selector")
        if not text:
            return ""
        try:
            kind = read_exactly(unquote_plus(text))["type"]
        except (Malformed, TypeError, KeyError):
            kind = None
        if kind not in ("none", "label"):
            raise BadCall("selector", Violation.SELECTOR, "not match any type of selector!")
        return unquote_plus(text)


def check_grouped(name: str, violation: Violation) -> None:
    """Requires `group@@name` with both parts, as `NamingUtils.checkServiceNameFormat` does."""
    parts = split(name, GROUP_SEPARATOR)
    if len(parts) <= 1:
        raise BadCall("serviceName", violation, UNGROUPED, value=name)
    if not parts[0]:
        raise BadCall("serviceName", violation, "Param 'serviceName' is illegal, groupName can't be empty", value=name)


def split(text: str, separator: str) -> list[str]:
    """As Java's `String.split`, which drops empty parts at the end."""
    parts = text.split(separator)
    while len(parts) > 1 and not parts[-1]:
        parts.pop()
    return parts if parts != [""] or not text else []


def to_int(name: str, value: str) -> int:
    if _INT.fullmatch(value) is None:
        raise _not_a_number(name, value)
    return int(value)


def to_double(name: str, value: str) -> float:
    found = _DOUBLE.fullmatch(value)
    if found is None:
        raise _not_a_number(name, value)
    return float(found[1])


def _not_a_number(name: str, value: str) -> BadCall:
    return BadCall(name, Violation.NOT_A_NUMBER, f'For input string: "{value}"', value=value)


def parse_metadata(text: str) -> dict[str, str | None]:
    """Parses a JSON object, or else `k=v,k=v` (`UtilsAndCommons.parseMetadata`). Numbers keep their text."""
    if not text:
        return {}
    try:
        return _strings(_load(text))
    except (ValueError, RecursionError):
        return _pairs(text)


def _load(text: str) -> Any:
    """Parses JSON, with numbers as their original text. Like Jackson, ignores what follows an object or a list.

    Raises `ValueError` and `RecursionError`.
    """
    text = text.strip(_BLANK)
    value: Any
    value, end = _DECODER.raw_decode(text)
    if end < len(text) and text[0] not in "[{":
        raise ValueError("more than one value")
    return value


def _no_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_no_constant)
_BLANK = " \t\n\r"


def _strings(value: Any) -> dict[str, str | None]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("no object")
    found: dict[str, str | None] = {}
    for name, item in cast("dict[str, Any]", value).items():
        if isinstance(item, bool):
            found[name] = "true" if item else "false"
        elif isinstance(item, str | None):
            (name + (item or "")).encode()  # raises ValueError for a lone surrogate, which JSON can escape
            found[name] = item
        else:
            raise ValueError("no text")
    return found


def _pairs(text: str) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for piece in split(text, ","):
        parts = split(piece, "=")
        if len(parts) != 2:
            message = f"metadata format incorrect:{text}"
            raise BadCall("metadata", Violation.METADATA, message, value=text, status=500)
        found[parts[0]] = parts[1]
    return found


def read_beat(text: str, cluster: str = DEFAULT_CLUSTER) -> Instance | None:
    """The instance of a full beat (`RsInfo`), by default with weight 0.0 and `cluster`; None for a light beat."""
    if not text:
        return None
    value = _json_parameter("beat", text)
    if not isinstance(value, dict):
        raise _unreadable("beat", "an object was expected")
    given = cast("dict[str, Any]", value)
    return _instance("beat", given if given.get("cluster") else {**given, "cluster": cluster}, "cluster", 0.0)


def read_instances(text: str) -> tuple[Instance, ...]:
    """The instances of a metadata batch."""
    if not text:
        return ()
    value = _json_parameter("instances", text)
    if not isinstance(value, list):
        raise _unreadable("instances", "a list was expected")
    items = cast("list[Any]", value)
    return tuple(_instance("instances", item, "clusterName", 1.0) for item in items)


def _json_parameter(name: str, text: str) -> Any:
    try:
        return _load(text)
    except RecursionError as error:
        raise _unreadable(name, "nested too deeply") from error
    except ValueError as error:
        raise _unreadable(name, str(error)) from error


def _instance(name: str, value: Any, cluster: str, weight: float) -> Instance:
    try:
        metadata = value.get("metadata")
        number = float(value.get("weight", weight))
        if not isfinite(number):
            raise ValueError(f"{number} is no weight")
        ip, name_of_cluster = str(value.get("ip") or ""), str(value.get(cluster) or DEFAULT_CLUSTER)
        (ip + name_of_cluster).encode()
        return Instance(
            ip,
            0 if value.get("port") is None else _to_whole_number(value["port"]),
            name_of_cluster,
            number,
            ephemeral=str(value.get("ephemeral", True)).lower() not in ("false", "0"),
            metadata=_strings(metadata) if metadata else EMPTY,
        )
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise _unreadable(name, str(error)) from error


def _to_whole_number(text: str) -> int:
    """As Jackson reads a number into an integer: it drops the fraction."""
    whole, point, rest = text.partition(".")
    if point and not rest.isdecimal():
        raise ValueError(f"{text} is no number")
    return int(whole)


def _unreadable(name: str, why: str) -> BadCall:
    return BadCall(name, Violation.BODY, why, status=500)
