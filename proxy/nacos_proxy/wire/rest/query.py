"""The parameters of our own API: pydantic models of query strings, and readers of values in queries and paths.

Errors name the parameter as our API calls it; the rules are Nacos's own (nacos-http.md 1.6).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo, WithJsonSchema, model_validator

from nacos_proxy.model.addresses import plain_ip
from nacos_proxy.model.calls import ListServices
from nacos_proxy.model.errors import BadCall, Violation
from nacos_proxy.model.limits import NACOS, Rules, check_port
from nacos_proxy.model.selectors import Selector
from nacos_proxy.model.services import ServiceKey
from nacos_proxy.model.views import ENOUGH, Preference, View

MAX_PAGE = 10**9 - 1
MAX_PAGE_SIZE = 1000
MAX_WAIT = 300.0
ALL = "*"
TOKENS = ("accessToken", "access_token")  # the guard takes an API token from these
CREDENTIALS = (*TOKENS, "username", "password")  # Nacos clients send these with any call

# The name in Nacos's checks → the name in our API.
_OUR_NAMES = {
    "namespaceId/tenant": "namespace",
    "serviceName": "service",
    "Metadata": "metadata",
    "clusterName": "cluster",
}
_TRUE, _FALSE = frozenset({"true", "1", "yes", "on"}), frozenset({"false", "0", "no", "off"})
_WAIT = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(ms|s|m)?")
_SHARE = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,9})?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, None: 1.0}
_ADDRESS = re.compile(r"(?:\[(?P<inside>.*)\]|(?P<bare>.*)):(?P<port>[0-9]+)")


class Query(BaseModel):
    """The parameters of one operation. An empty value counts as absent. An unknown name is an error."""

    @model_validator(mode="before")
    @classmethod
    def _only_known(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        for name in given:
            if name not in cls.model_fields and name not in CREDENTIALS:
                raise unknown(name, [*cls.model_fields])
        return {name: value for name, value in given.items() if value != ""}


def _read_flag(text: str | bool, info: ValidationInfo) -> bool:
    if isinstance(text, bool):  # older FastAPI passes the default itself
        return text
    name, word = info.field_name or "", text.lower()
    if word not in _TRUE and word not in _FALSE:
        raise illegal(name, f"Param '{name}' is illegal, it must be true or false.", word)
    return word in _TRUE


def bounded(minimum: int, maximum: int) -> BeforeValidator:
    """Reads a number in decimal digits. pydantic's own reader would also take '+1', ' 1' and '1.0'."""

    def read(text: str | int, info: ValidationInfo) -> int:
        if isinstance(text, int):  # older FastAPI passes the default itself
            return text
        name = info.field_name or ""
        if not (text.isascii() and text.isdecimal() and len(text) < 10 and minimum <= int(text) <= maximum):
            raise illegal(name, f"Param '{name}' is illegal, it must be a number from {minimum} to {maximum}.", text)
        return int(text)

    return BeforeValidator(read)


def _read_share(text: Any) -> float | None:
    if not isinstance(text, str):  # older FastAPI passes the default itself
        return text
    if not (_SHARE.fullmatch(text) and float(text) <= 1):
        raise illegal("prefer_min", "Param 'prefer_min' is illegal, it must be a number from 0 to 1.", text)
    return float(text)


def _distinct(values: Sequence[str], info: ValidationInfo) -> list[str]:
    found = list(dict.fromkeys(value for value in values if value))
    if not found:
        raise missing(info.field_name or "")
    return found


Flag = Annotated[bool, BeforeValidator(_read_flag)]
HealthyOnly = Annotated[Flag, Field(description="Only healthy instances.")]
Names = Annotated[
    list[str],
    BeforeValidator(_distinct),
    Field(description="The service's name, or `group@@name`.", json_schema_extra={"example": ["orders"]}),
]


class ServiceQuery(Query):
    """The namespace and group of the service that the path names."""

    namespace: Annotated[str, Field(description="The namespace's id; `public` if left out.")] = ""
    group: Annotated[
        str, Field(description="The group; `DEFAULT_GROUP` if left out. A `group@@` in the name wins.")
    ] = ""

    def service_key(self, service: str, rules: Rules = NACOS) -> ServiceKey:
        """The key of `name` or `group@@name`. Raises `BadCall`."""
        group, separator, name = service.partition("@@")
        if not (name if separator else service).strip():
            raise missing("service")
        if separator and not group:
            raise illegal("service", "Param 'service' is illegal, the group before '@@' is empty.", service)
        key = ServiceKey.of(service, self.group, self.namespace)
        checked(rules.service, key)
        return key

    def list_call(self, rules: Rules = NACOS, page: int = 1, size: int = 100) -> ListServices:
        """The call that lists the group's services. Raises `BadCall`."""
        key = ServiceKey.of("*", self.group, self.namespace)
        checked(rules.service, key)
        return ListServices(key.namespace, key.group, page, size)


class PageQuery(ServiceQuery):
    page: Annotated[int, Field(ge=1, le=MAX_PAGE, description="Counts from 1."), bounded(1, MAX_PAGE)] = 1
    size: Annotated[int, Field(ge=1, le=MAX_PAGE_SIZE, description="Per page."), bounded(1, MAX_PAGE_SIZE)] = 100


class FilterQuery(ServiceQuery):
    """A filter for the instances of a service."""

    clusters: Annotated[
        list[str],
        WithJsonSchema({"type": "string"}),
        Field(
            default_factory=list, description="Only instances of these clusters, separated by commas; all if left out."
        ),
    ]
    healthy_only: HealthyOnly = False
    selector: Annotated[
        str,
        Field(
            description="Only instances whose metadata match, in Kubernetes' grammar: "
            "`zone=a,version!=1,canary,!old,region in (x,y)`.",
            examples=["zone=a"],
        ),
    ] = ""

    def view(self, rules: Rules = NACOS) -> View:
        """Raises `BadCall` if a cluster's name breaks the rules, or for an invalid selector."""
        parts = [part.strip() for value in dict.fromkeys(self.clusters) for part in value.split(",")]
        for part in parts:
            checked(rules.cluster, part, "clusters")
        clusters = ",".join(part for part in parts if part)
        view = View(clusters, self.healthy_only, read_selector("selector", self.selector), self._preference())
        return _shared_view(view) if view.size <= SHORT else view

    def _preference(self) -> Preference | None:
        return None


class ViewQuery(FilterQuery):
    """A filter, and which instances come first."""

    prefer: Annotated[
        str,
        Field(
            description="A selector of near instances: only these, while enough of the healthy weight is theirs; "
            "otherwise all, the near ones first.",
            examples=["zone=a"],
        ),
    ] = ""
    prefer_min: Annotated[
        float | None,
        BeforeValidator(_read_share),
        WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1, "default": ENOUGH}),
        Field(description="The share of the healthy weight that is enough for `prefer`."),
    ] = None

    def _preference(self) -> Preference | None:
        selector = read_selector("prefer", self.prefer)
        if selector:
            return Preference(selector, ENOUGH if self.prefer_min is None else self.prefer_min)
        if self.prefer_min is not None:
            raise illegal("prefer_min", "Param 'prefer_min' needs 'prefer': name the instances that come first.")
        return None


class ServicesQuery(ViewQuery):
    """Several services by name, or `*` for all of a group, or of all groups."""

    service: Names

    def keys(self, max_keys: int, rules: Rules = NACOS) -> list[ServiceKey] | None:
        """At most `max_keys` keys; None means all of the group. Raises `BadCall`."""
        if len(self.service) > max_keys:
            raise illegal("service", f"Param 'service' is given more than {max_keys} times.")
        if ALL not in self.service:
            return [self.service_key(name, rules) for name in self.service]
        if len(self.service) > 1:
            raise illegal("service", "Param 'service' is illegal, '*' stands alone.")
        return None


class InstanceQuery(ServiceQuery):
    """The cluster of the instance whose address is in the path."""

    cluster: Annotated[str, Field(description="The instance's cluster.")] = ""

    def checked_cluster(self, rules: Rules = NACOS) -> str:
        """`cluster`, '' if none is named. Raises `BadCall`."""
        checked(rules.cluster, self.cluster)
        return self.cluster


class KindQuery(InstanceQuery):
    ephemeral: Annotated[
        Flag, Field(description="Whether the instance is ephemeral (kept by beats) or persistent.")
    ] = True


class DeregisterQuery(InstanceQuery):
    ephemeral: Annotated[
        Flag | None,
        WithJsonSchema({"type": "boolean"}),
        Field(description="Whether the instance is ephemeral; if left out, as it is listed."),
    ] = None


class DrainQuery(InstanceQuery):
    wait: Annotated[
        str,
        Field(
            description="How long the instance stays registered out of traffic, so that all its consumers notice; at "
            "most 5m.",
            examples=["20s"],
        ),
    ] = "20s"

    def seconds(self) -> float:
        """Raises `BadCall`."""
        seconds = _read_time("wait", self.wait)
        if seconds > MAX_WAIT:
            raise illegal("wait", f"Param 'wait' is illegal, it must be at most {MAX_WAIT / 60:g}m.", self.wait)
        return seconds


def refusal(errors: Sequence[Any]) -> BadCall:
    """The first of pydantic's errors (`ValidationError.errors()`) as ours; missing fields come last."""
    error = min(errors, key=lambda error: error["type"] == "missing")
    name = ".".join(str(part) for part in error["loc"] if part not in ("body", "query", "path"))
    if error["type"] == "missing":
        return missing(name)
    expected = _EXPECTED.get(error["type"])
    if error["type"] == "literal_error":
        expected = "one of: " + error["ctx"]["expected"].replace(" or ", ", ").replace("'", "")
    text = f"it must be {expected}." if expected else error["msg"]
    return BadCall(name, Violation.BODY, f"Param '{name}' is illegal, {text}")


_EXPECTED = {
    "string_type": "a text",
    "bool_type": "true or false",
    "float_type": "a number",
    "int_type": "a whole number",
}


def unknown(name: str, known: Collection[str], violation: Violation = Violation.ILLEGAL) -> BadCall:
    """The error for an unknown name: to ignore a misspelt one would route traffic elsewhere unnoticed."""
    name = name[:100]
    close = get_close_matches(name, known, 1)
    hint = f"; did you mean '{close[0]}'?" if close else "."
    text = f"Param '{name}' is not known here{hint} Known are: {', '.join(known) or 'none'}."
    return BadCall(name, violation, text)


def illegal(parameter: str, text: str, value: str = "", violation: Violation = Violation.ILLEGAL) -> BadCall:
    return BadCall(parameter, violation, text, value=value[:200])


def missing(parameter: str) -> BadCall:
    return BadCall(parameter, Violation.MISSING, f"Param '{parameter}' is required.")


def checked(check: Callable[[Any], object], value: Any, parameter: str = "") -> None:
    """Runs one of Nacos's checks; its error names our parameter (`parameter`, or else by the table of names)."""
    try:
        check(value)
    except BadCall as error:
        ours = parameter or _OUR_NAMES.get(error.parameter, error.parameter)
        text = error.text.replace(f"'{error.parameter}'", f"'{ours}'")
        raise BadCall(ours, error.violation, text, value=error.value, status=error.status) from None


def read_namespace(text: str, rules: Rules = NACOS) -> str:
    """A namespace's id, `public` for ''. Raises `BadCall`."""
    key = ServiceKey.of(ALL, "", text)
    checked(rules.service, key)
    return key.namespace


SHORT = 256  # characters: longer views are not cached


@lru_cache(maxsize=1024)
def _shared_view(view: View) -> View:
    """Returns one object for equal views: thousands of readers share it, and identity is faster than equality."""
    return view


def read_selector(parameter: str, text: str) -> Selector:
    """Raises `BadCall`, which names the place of the error."""
    try:
        return Selector.parse(text)
    except ValueError as error:
        raise illegal(parameter, f"Param '{parameter}' is illegal, {error}.", text) from None


def read_wait(text: str) -> float:
    """Reads `30s`, `1500ms`, `2m` or plain seconds, as seconds; cut to five minutes. Raises `BadCall`."""
    return min(_read_time("wait", text), MAX_WAIT)


def _read_time(parameter: str, text: str) -> float:
    match = _WAIT.fullmatch(text)
    if match is None:
        raise illegal(parameter, f"Param '{parameter}' is illegal, it must be a time like 30s, 1500ms or 2m.", text)
    return float(match[1]) * _UNITS[match[2]]


class InstanceAddress(NamedTuple):
    ip: str
    port: int


def read_address(text: str, rules: Rules = NACOS) -> InstanceAddress:
    """Reads `ip:port`. IPv6 may have brackets, and becomes canonical (`plain_ip`). Raises `BadCall`."""
    match = _ADDRESS.fullmatch(text)
    bare = "" if match is None else match["bare"] or ""
    if match is None or (
        ":" in bare and plain_ip(f"[{bare}]").startswith("[")
    ):  # without brackets only IPv6 may have ':'
        expected = "Param 'address' is illegal, it must be ip:port, an IPv6 address in brackets ([::1]:8080)."
        raise illegal("address", expected, text)
    return InstanceAddress(read_ip(plain_ip(bare or match["inside"] or ""), rules), read_port(match["port"]))


def read_ip(ip: str, rules: Rules) -> str:
    if not ip.strip():
        raise missing("ip")
    checked(rules.ip, ip)
    return ip


def read_port(port: str | int) -> int:
    """No rules make this check lenient, because nobody can connect to another port. Raises `BadCall`."""
    checked(check_port, port)
    return check_port(port)
