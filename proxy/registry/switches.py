"""What the embedded registry says of itself, as Nacos 2.5.1 does.

Source: recordings (recordings "v1 operator switches", "v1 server state")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
