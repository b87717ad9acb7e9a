"""Every setting once: its flag, variable, place in the file, default and meaning. Imports nothing of ours.

A flag beats an environment variable `NACOS_PROXY_<NAME>`, which beats the TOML file, which beats the default.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from platformdirs import user_state_path
from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "": 1.0}
_SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def _duration(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    if text in ("forever", "inf"):
        return math.inf
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|)", text)
    if found is None:
        raise ValueError("a duration is written like 500ms, 5s, 10m, 24h, 7d or forever")
    return float(found[1]) * _UNITS[found[2]]


def _size(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(\d+)\s*([kmg]?)(?:i?b)?", value.strip().lower())
    if found is None:
        raise ValueError("a size is written like 8192, 64KiB or 1MiB")
    return int(found[1]) * _SIZES[found[2]]


def _several(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Duration = Annotated[float, BeforeValidator(_duration), Field(ge=0)]
Size = Annotated[int, BeforeValidator(_size), Field(ge=0)]
Several = Annotated[tuple[str, ...], BeforeValidator(_several)]


class Settings(BaseSettings):
    """All settings with their defaults."""

    model_config = SettingsConfigDict(env_prefix="NACOS_PROXY_", extra="forbid", enable_decoding=False)

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8840
    uds: Path | None = None
    upstream: Several = ("embedded",)
    upstream_dialect: Literal["auto", "v1", "v2", "v3"] = "auto"
    upstream_context_path: str = "/nacos"
    context_path: str = "/nacos"
    endpoint: str = ""
    namespace: str = ""
    username: str = ""
    password: SecretStr = SecretStr("")
    identity_key: str = ""
    identity_value: SecretStr = SecretStr("")
    auth: Literal["proxy", "client"] = "proxy"
    push: Literal["auto", "on", "off"] = "auto"
    cache_ttl: Duration = 10.0
    cache_negative_ttl: Duration = 2.0
    cache_stale_if_error: Duration = 86_400.0
    cache_max_services: int = 10_000
    cache_max_unknown: int = 1_000
    poll_interval_subscribed: Duration = 1.0
    poll_interval_read: Duration = 5.0
    poll_safety: Duration = 30.0
    poll_budget: float = 200.0
    watch_idle: Duration = 600.0
    overlay_grace: Duration = 3.0
    fast_path: bool = True
    state_dir: Path = Field(default_factory=lambda: user_state_path("nacos-proxy"))
    disk: bool = True
    drain_timeout: Duration = 10.0
    insecure: bool = False
    empty_list_share: float = 0.5
    empty_list_confirm: Duration = 5.0
    breaker_failures: int = 3
    breaker_longest: Duration = 5.0
    cold_wait: Duration = 2.5
    events_history: int = 4096
    events_heartbeat: Duration = 15.0
    events_retry: Duration = 2.0
    subscribers_per_client: int = 20_000
    services_per_client: int = 500
    max_body: Size = 1 << 20
    max_connections: int = 0
    max_head: Size = 65_536
    access_log: bool = False
    udp_push: bool = True
    udp_push_allow: Several = ()
    managed_allow: Several = ()
    managed_deregister: bool = False
    allowed_hosts: Several = ()
    cors_origins: Several = ()

    log_level: str = "info"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None

    @classmethod
    def again(cls, settings: Settings) -> Settings:
        return settings

    def all_tokens(self) -> tuple[Any, ...]:
        return ()
