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


_CLIENT_TYPES = {"java": "Java", "python": "Python", "c": "C", "go": "Go", "csharp": "CSharp"}
_LONG = re.compile(r"[+-]?[0-9]{1,18}")
_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?[fFdD]?")


def with_switch(switches: Mapping[str, Any], entry: str, value: str) -> Mapping[str, Any]:
    """The switches after a PUT; unchanged if the name is unknown. Raises `BadCall` with Nacos's text."""
    if entry == "pushVersion":
        return {**switches, **_read_push_version(value)}
    if entry not in _ENTRIES:
        return switches
    name, read = _ENTRIES[entry]
    return {**switches, name: read(value)}


def _bad_value(text: str) -> BadCall:
    return BadCall("value", Violation.SWITCH, text)


def _read_true(value: str) -> bool:
    return value.lower() == "true"


def _read_truthy(value: str) -> bool:
    return value.lower() in TRUE


def _read_long(value: str) -> int:
    if _LONG.fullmatch(value) is None:
        raise _bad_value(f'For input string: "{value}"')
    return int(value)


def _long_reader(minimum: int, text: str) -> Callable[[str], int]:
    def read(value: str) -> int:
        number = _read_long(value)
        if number < minimum:
            raise _bad_value(text)
        return number

    return read


def _read_threshold(value: str) -> float:
    if _FLOAT.fullmatch(value) is None:
        raise _bad_value(f'For input string: "{value}"')
    number = float(value.rstrip("fFdD"))
    if number <= 0:
        raise _bad_value(f"distroThreshold can not be zero or negative: {number}")
    return number


def _read_push_version(value: str) -> dict[str, str]:
    kind, _, version = value.partition(":")
    version = version.partition(":")[0]
    if re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+", version) is None:
        raise _bad_value("illegal version, must match: [0-9]+\\.[0-9]+\\.[0-9]+")
    if kind not in _CLIENT_TYPES:
        raise _bad_value(f"unsupported client type: {kind}")
    return {f"push{_CLIENT_TYPES[kind]}Version": version}


def _read_limited_urls(value: str) -> dict[str, int]:
    codes: dict[str, int] = {}
    for piece in filter(None, value.split(",")):
        url, separator, code = piece.partition(":")
        if not separator:
            raise _bad_value("invalid input for limited urls")
        if not url:
            raise _bad_value("url can not be empty, url: ")
        if (number := _read_long(code.partition(":")[0])) <= 0:
            raise _bad_value(f"illegal normal status code: {number}")
        codes[url] = number
    return codes


def _health_reader(checked: bool, **defaults: float) -> Callable[[str], dict[str, Any]]:
    def read(value: str) -> dict[str, Any]:
        try:
            given: Any = read_exactly(value)
            params = {name: type(default)(given.get(name, default)) for name, default in defaults.items()}
        except (Malformed, ValueError, TypeError, AttributeError):
            raise _bad_value("json param invalid.") from None
        if any(not abs(number) < 1 << 31 for number in params.values()):  # excludes NaN, too
            raise _bad_value("json param invalid.")
        if checked and params["min"] < 500:
            raise _bad_value("min check time for http or tcp is too small(<500)")
        if checked and params["max"] < 3000:
            raise _bad_value("max check time for http or tcp is too small(<3000)")
        if checked and not 0 <= params["factor"] <= 1:
            raise _bad_value("malformed factor")
        return params

    return read


_SERVICE_SYNC = "serviceStatusSynchronizationPeriodMillis"
_SERVER_SYNC = "serverStatusSynchronizationPeriodMillis"
_ENTRIES: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "distroThreshold": ("distroThreshold", _read_threshold),
    "clientBeatInterval": ("clientBeatInterval", _read_long),
    "pushCacheMillis": (
        "defaultPushCacheMillis",
        _long_reader(10_000, "min cache time for http or tcp is too small(<10000)"),
    ),
    "defaultCacheMillis": ("defaultCacheMillis", _long_reader(1_000, "min default cache time  is too small(<1000)")),
    "masters": ("masters", lambda value: value.split(",")),
    "distro": ("distroEnabled", _read_true),
    "check": ("healthCheckEnabled", _read_true),
    "pushEnabled": ("pushEnabled", _read_true),
    _SERVICE_SYNC: (_SERVICE_SYNC, _long_reader(5_000, f"{_SERVICE_SYNC} is too small(<5000)")),
    _SERVER_SYNC: (_SERVER_SYNC, _long_reader(1_000, f"{_SERVER_SYNC} is too small(<15000)")),
    "healthCheckTimes": ("checkTimes", _read_long),
    "disableAddIP": ("disableAddIP", _read_true),
    "sendBeatOnly": ("sendBeatOnly", _read_true),
    "limitedUrlMap": ("limitedUrlMap", _read_limited_urls),
    "overriddenServerStatus": ("overriddenServerStatus", lambda value: "" if value == "null" else value),
    "defaultInstanceEphemeral": ("defaultInstanceEphemeral", _read_true),
    "distroServerExpiredMillis": ("distroServerExpiredMillis", _read_long),
    "lightBeatEnabled": ("lightBeatEnabled", _read_truthy),
    "autoChangeHealthCheckEnabled": ("autoChangeHealthCheckEnabled", _read_truthy),
    "httpHealthParams": ("httpHealthParams", _health_reader(True, max=5000, min=500, factor=0.85)),
    "tcpHealthParams": ("tcpHealthParams", _health_reader(True, max=5000, min=1000, factor=0.75)),
    "mysqlHealthParams": ("mysqlHealthParams", _health_reader(False, max=3000, min=2000, factor=0.65)),
}
