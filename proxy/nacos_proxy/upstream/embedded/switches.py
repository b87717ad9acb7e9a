"""The switches of the embedded registry, their valid values, and its server state, all as in Nacos 2.5.1.

Source: recordings "v1 operator switches", "v1 server state"; nacos-http.md 2.14 (`SwitchManager`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from nacos_proxy.model.errors import BadCall, Malformed, Violation
from nacos_proxy.wire.nacos.parameters import TRUE
from nacos_proxy.wire.nacos.shapes import read_exactly

SWITCHES: Mapping[str, Any] = {
    "masters": None,
    "adWeightMap": {},
    "defaultPushCacheMillis": 10000,
    "clientBeatInterval": 5000,
    "defaultCacheMillis": 3000,
    "distroThreshold": 0.7,
    "healthCheckEnabled": True,
    "autoChangeHealthCheckEnabled": True,
    "distroEnabled": True,
    "enableStandalone": True,
    "pushEnabled": True,
    "checkTimes": 3,
    "httpHealthParams": {"max": 5000, "min": 500, "factor": 0.85},
    "tcpHealthParams": {"max": 5000, "min": 1000, "factor": 0.75},
    "mysqlHealthParams": {"max": 3000, "min": 2000, "factor": 0.65},
    "incrementalList": [],
    "serverStatusSynchronizationPeriodMillis": 2000,
    "serviceStatusSynchronizationPeriodMillis": 5000,
    "disableAddIP": False,
    "sendBeatOnly": False,
    "lightBeatEnabled": True,
    "limitedUrlMap": {},
    "distroServerExpiredMillis": 10000,
    "pushGoVersion": "0.1.0",
    "pushJavaVersion": "0.1.0",
    "pushPythonVersion": "0.4.3",
    "pushCVersion": "1.0.12",
    "pushCSharpVersion": "0.9.0",
    "enableAuthentication": False,
    "overriddenServerStatus": None,
    "defaultInstanceEphemeral": True,
    "healthCheckWhiteList": [],
    "name": "00-00---000-NACOS_SWITCH_DOMAIN-000---00-00",
    "checksum": None,
}

STATE: Mapping[str, str | None] = {
    "defaultMaxSize": "102400",
    "auth_system_type": "nacos",
    "auth_enabled": "false",
    "defaultMaxAggrSize": "1024",
    "maxHealthCheckFailCount": "12",
    "maxContent": "10485760",
    "console_ui_enabled": "true",
    "defaultMaxAggrCount": "10000",
    "defaultGroupQuota": "200",
    "config_retention_days": "30",
    "auth_admin_request": "false",
    "startup_mode": "standalone",
    "isHealthCheck": "true",
    "version": "2.5.1",
    "function_mode": None,
    "isManageCapacity": "true",
    "isCapacityLimitCheck": "false",
    "datasource_platform": "",
    "notifyConnectTimeout": "100",
    "server_port": "8848",
    "notifySocketTimeout": "200",
    "defaultClusterQuota": "100000",
    "plugin_datasource_log_enabled": "false",
    "login_page_enabled": "false",
}


_CLIENTS = {"java": "Java", "python": "Python", "c": "C", "go": "Go", "csharp": "CSharp"}
_LONG = re.compile(r"[+-]?[0-9]{1,18}")
_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?[fFdD]?")


def with_switch(switches: Mapping[str, Any], entry: str, value: str) -> Mapping[str, Any]:
    """The switches after a PUT; unchanged if the name is unknown. Raises `BadCall` with Nacos's text."""
    if entry == "pushVersion":
        return {**switches, **_push_version(value)}
    if entry not in _ENTRIES:
        return switches
    name, read = _ENTRIES[entry]
    return {**switches, name: read(value)}


def _refused(text: str) -> BadCall:
    return BadCall("value", Violation.SWITCH, text)


def _true(value: str) -> bool:
    return value.lower() == "true"


def _yes(value: str) -> bool:
    return value.lower() in TRUE


def _long(value: str) -> int:
    if _LONG.fullmatch(value) is None:
        raise _refused(f'For input string: "{value}"')
    return int(value)


def _at_least(minimum: int, text: str) -> Callable[[str], int]:
    def read(value: str) -> int:
        number = _long(value)
        if number < minimum:
            raise _refused(text)
        return number

    return read


def _threshold(value: str) -> float:
    if _FLOAT.fullmatch(value) is None:
        raise _refused(f'For input string: "{value}"')
    number = float(value.rstrip("fFdD"))
    if number <= 0:
        raise _refused(f"distroThreshold can not be zero or negative: {number}")
    return number


def _push_version(value: str) -> dict[str, str]:
    kind, _, version = value.partition(":")
    version = version.partition(":")[0]
    if re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+", version) is None:
        raise _refused("illegal version, must match: [0-9]+\\.[0-9]+\\.[0-9]+")
    if kind not in _CLIENTS:
        raise _refused(f"unsupported client type: {kind}")
    return {f"push{_CLIENTS[kind]}Version": version}


def _limited(value: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for piece in filter(None, value.split(",")):
        url, separator, code = piece.partition(":")
        if not separator:
            raise _refused("invalid input for limited urls")
        if not url:
            raise _refused("url can not be empty, url: ")
        if (number := _long(code.partition(":")[0])) <= 0:
            raise _refused(f"illegal normal status code: {number}")
        found[url] = number
    return found


def _health_params(checked: bool, **defaults: float) -> Callable[[str], dict[str, Any]]:
    def read(value: str) -> dict[str, Any]:
        try:
            given: Any = read_exactly(value)
            found = {name: type(default)(given.get(name, default)) for name, default in defaults.items()}
        except (Malformed, ValueError, TypeError, AttributeError):
            raise _refused("json param invalid.") from None
        if any(not abs(number) < 1 << 31 for number in found.values()):  # excludes NaN, too
            raise _refused("json param invalid.")
        if checked and found["min"] < 500:
            raise _refused("min check time for http or tcp is too small(<500)")
        if checked and found["max"] < 3000:
            raise _refused("max check time for http or tcp is too small(<3000)")
        if checked and not 0 <= found["factor"] <= 1:
            raise _refused("malformed factor")
        return found

    return read


_SYNC = "serviceStatusSynchronizationPeriodMillis"
_SERVERS = "serverStatusSynchronizationPeriodMillis"
_ENTRIES: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "distroThreshold": ("distroThreshold", _threshold),
    "clientBeatInterval": ("clientBeatInterval", _long),
    "pushCacheMillis": (
        "defaultPushCacheMillis",
        _at_least(10_000, "min cache time for http or tcp is too small(<10000)"),
    ),
    "defaultCacheMillis": ("defaultCacheMillis", _at_least(1_000, "min default cache time  is too small(<1000)")),
    "masters": ("masters", lambda value: value.split(",")),
    "distro": ("distroEnabled", _true),
    "check": ("healthCheckEnabled", _true),
    "pushEnabled": ("pushEnabled", _true),
    _SYNC: (_SYNC, _at_least(5_000, f"{_SYNC} is too small(<5000)")),
    _SERVERS: (_SERVERS, _at_least(1_000, f"{_SERVERS} is too small(<15000)")),
    "healthCheckTimes": ("checkTimes", _long),
    "disableAddIP": ("disableAddIP", _true),
    "sendBeatOnly": ("sendBeatOnly", _true),
    "limitedUrlMap": ("limitedUrlMap", _limited),
    "overriddenServerStatus": ("overriddenServerStatus", lambda value: "" if value == "null" else value),
    "defaultInstanceEphemeral": ("defaultInstanceEphemeral", _true),
    "distroServerExpiredMillis": ("distroServerExpiredMillis", _long),
    "lightBeatEnabled": ("lightBeatEnabled", _yes),
    "autoChangeHealthCheckEnabled": ("autoChangeHealthCheckEnabled", _yes),
    "httpHealthParams": ("httpHealthParams", _health_params(True, max=5000, min=500, factor=0.85)),
    "tcpHealthParams": ("tcpHealthParams", _health_params(True, max=5000, min=1000, factor=0.75)),
    "mysqlHealthParams": ("mysqlHealthParams", _health_params(False, max=3000, min=2000, factor=0.65)),
}
