"""Service files: TOML that declares instances of this host, which the proxy registers and keeps without any API call.

Keys before the first `[[instance]]` hold for all instances of the file. Without such a table, the file is one instance.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field, ValidationError

from nacos_proxy.model.calls import Register
from nacos_proxy.model.errors import BadCall
from nacos_proxy.model.limits import NACOS, Rules
from nacos_proxy.wire.rest.bodies import Metadata, RegisterBody, RequestBody, Weight, read_register
from nacos_proxy.wire.rest.query import ServiceQuery, read_address, refusal

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_NO_TTL = "check.ttl needs a client that sends signs of life, and a file has none: use check.http or check.tcp"
# The name in the `managed` object of the REST API → the name in a file. Longer names come first.
_NAMES = (
    ("managed.deregisterAfter", "deregister_after"),
    ("managed.check.", "check."),
    ("managed.", "check."),
    ("managed", "check"),
)


class BadFile(Exception):
    """Its text says which line or field of a file is wrong, and what is allowed."""


class Declared(NamedTuple):
    """One instance of a file. `managed` is as in the REST API, None without a check. `where` begins its errors."""

    where: str
    register: Register
    managed: Mapping[str, Any] | None


def _read_check(value: object) -> object:
    if not isinstance(value, dict):
        raise BadFile("check is a table: write check.http = '/health', or check.tcp = true")
    return value  # pyright: ignore[reportUnknownVariableType]


class _Instance(RequestBody):
    service: str
    address: str
    group: str = ""
    namespace: str = ""
    cluster: str = ""
    weight: Weight = 1.0
    metadata: Metadata = Field(default_factory=lambda: {})
    ephemeral: bool = True
    enabled: bool = True
    check: Annotated[dict[str, Any] | None, BeforeValidator(_read_check)] = None
    deregister_after: Any = None


class _Check(RequestBody):
    http: str = ""
    tcp: bool | str = False
    interval: Any = None
    timeout: Any = None
    failures: Any = None


def parse(text: str, rules: Rules = NACOS) -> tuple[Declared, ...]:
    """The instances of a file. Raises `BadFile`."""
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadFile(f"not valid TOML: {error}") from None
    tables = document.pop("instance", None)
    if tables is None:
        return (_read("", document, rules),)
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):  # pyright: ignore[reportUnknownVariableType]
        raise BadFile("instance is a table: write [[instance]], and its fields below")
    return tuple(_read(f"instance {n}: ", {**document, **table}, rules) for n, table in enumerate(tables, 1))  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def as_written(error: BadCall) -> str:
    """The error's text with the names that a file uses."""
    text = re.sub(r"Param '([^']*)'", r"\1", error.text)
    for ours, theirs in _NAMES:
        text = text.replace(ours, theirs)
    return text


def _read(where: str, table: Mapping[str, Any], rules: Rules) -> Declared:
    try:
        given = _validated(_Instance, table)
        key = ServiceQuery(namespace=given.namespace, group=given.group).service_key(given.service, rules)
        ip, port = read_address(given.address, rules)
        fields = given.given("service", "group", "namespace", "address", "check", "deregister_after")
        register = read_register(key, RegisterBody(ip=ip, port=port, **fields), rules)
        return Declared(where, register, _managed(given, register))
    except BadCall as error:
        raise BadFile(where + as_written(error)) from None
    except BadFile as error:
        raise BadFile(f"{where}{error}") from None


def _validated(model: type[Any], table: Mapping[str, Any]) -> Any:
    try:
        return model.model_validate(table)
    except ValidationError as error:
        raise refusal(error.errors()) from None


def _managed(given: _Instance, register: Register) -> Mapping[str, Any] | None:
    """The `managed` object of the REST API that means the same."""
    if given.check is None:
        if given.deregister_after is not None:
            raise BadFile("deregister_after needs a check; add check.http or check.tcp")
        return None
    if not register.instance.ephemeral:
        raise BadFile(
            "check is for ephemeral instances: Nacos itself checks persistent ones; remove check or ephemeral"
        )
    if "ttl" in given.check:
        raise BadFile(_NO_TTL)
    try:
        check: _Check = _validated(_Check, given.check)
    except BadCall as error:
        raise BadFile(f"check: {as_written(error)}") from None
    if bool(check.http) == bool(check.tcp):
        raise BadFile("check has one of http and tcp: write check.http = '/health', or check.tcp = true")
    how: dict[str, Any] = {"interval": check.interval, "timeout": check.timeout, "failures": check.failures}
    how["deregisterAfter"] = given.deregister_after
    return {"check": _target(check, register)} | {name: value for name, value in how.items() if value is not None}


def _target(check: _Check, register: Register) -> Mapping[str, str]:
    """A path or `true` is about the instance's own address."""
    own = check.tcp is True or check.http.startswith("/")
    address = register.instance.address
    if own and not register.instance.port:
        raise BadFile("check is relative to the address, which has port 0: write a URL, or tcp = 'host:port'")
    if check.http:
        return {"http": f"http://{address}{check.http}" if own else check.http}
    return {"tcp": address if own else str(check.tcp)}
