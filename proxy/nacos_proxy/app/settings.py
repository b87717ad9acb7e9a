"""Every setting: its name, type, default and meaning; and where its value comes from.

A flag beats an environment variable `NACOS_PROXY_<NAME>`, which beats the TOML file, which beats the default. An empty
variable counts as not set, because compose files produce such variables.
"""

from __future__ import annotations

import difflib
import os
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from platformdirs import user_config_path, user_state_path
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from nacos_proxy.app.failures import BadSettings
from nacos_proxy.app.setting_types import (
    PROXY,
    Address,
    ContextPath,
    DnsAddresses,
    DnsAliases,
    DnsZones,
    Duration,
    Networks,
    OptionalPath,
    SecretList,
    SelectorText,
    Size,
    TextList,
    Url,
    check_proxies,
    display_value,
    format_value,
    kind_of,
    server_url,
    unix_path,
)
from nacos_proxy.wire.webhooks import WebhookTarget, parse_webhooks

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PREFIX = "NACOS_PROXY_"

# Variables of the command-line client and of our tests, which are not settings.
OTHER_VARIABLES = frozenset({"CONFIG", "SERVER", "SERVER_CA", "SERVER_CERT", "TOKEN", "TEST_RNACOS"})

# Settings of earlier versions, and what to do instead.
REMOVED = {
    "workers": "remove it: the proxy is one process now, which is enough for the reads of one host. If one core is not "
    "enough, run another proxy, with its own port and state_dir, for some of the clients"
}


class TokenRight(NamedTuple):
    """An API token and its right: read, write or admin."""

    secret: str
    right: Literal["read", "write", "admin"]


def _group(title: str) -> Callable[..., Any]:
    """A function that makes the settings of one group: `group(default, description, **bounds)`.

    There is no other way to make a setting, so each one has a group. A default that is a function is called.
    """

    def setting(default: Any, description: str, **bounds: Any) -> Any:
        value = {"default_factory" if callable(default) else "default": default}
        return Field(**value, description=description, json_schema_extra={"group": title}, **bounds)

    return setting


_upstream = _group("Upstream")
_listening = _group("Listening")
_reads = _group("Reads and cache")
_fresh = _group("Push and polling")
_events = _group("Events to clients, webhooks")
_writes = _group("Writes, managed instances")
_dns = _group("DNS and load balancers")
_access = _group("Access")
_limits = _group("Limits")
_process = _group("State and process")
_logs = _group("Logs")

# The ten settings that an operator decides on first, in this order.
ESSENTIAL = (
    "upstream",
    "username",
    "password_file",
    "auth",
    "host",
    "port",
    "tokens_file",
    "state_dir",
    "cache_stale_if_error",
    "log_level",
)


class Settings(BaseModel):
    """All settings. Durations are seconds, or text such as 500ms, 5s, 24h, forever; sizes are bytes, or 64KiB."""

    model_config = ConfigDict(extra="forbid", validate_default=True, hide_input_in_errors=True)

    upstream: TextList = _upstream(
        ("embedded",),
        "Comma-separated Nacos servers; 'embedded': a registry in the proxy; proxy+http://HOST:8840: another proxy.",
    )
    require_upstream: bool = _upstream(False, "Refuse to start with the embedded registry.")
    endpoint: Url = _upstream("", "URL of an address server, which lists the Nacos servers, one per line.")
    namespace: str = _upstream("", "Namespace for the client commands and for short names in DNS; empty: public.")
    username: str = _upstream("", "User name at the upstream; empty: no login.")
    password: SecretStr = _upstream(SecretStr(""), "Password of username.")
    password_file: OptionalPath = _upstream(None, "File that contains the password, instead of password.")
    upstream_token: SecretStr = _upstream(SecretStr(""), "API token of the upper proxy, if upstream is one.")
    upstream_token_file: OptionalPath = _upstream(None, "File that contains the token, instead of upstream_token.")
    auth: Literal["proxy", "client"] = _upstream(
        "proxy", "Account for upstream calls: the proxy's, or each client's own."
    )
    identity_key: str = _upstream("", "Header by which Nacos servers recognise each other.")
    identity_value: SecretStr = _upstream(SecretStr(""), "Value of the header identity_key.")
    upstream_dialect: Literal["auto", "v1", "v2", "v3"] = _upstream(
        "auto", "Nacos API for calls to the upstream; auto: what the upstream supports."
    )
    upstream_context_path: ContextPath = _upstream(
        "/nacos", "Path prefix of the Nacos API of the upstream; / for none."
    )
    parameter_check: Literal["auto", "on", "off"] = _upstream(
        "auto", "Check names and metadata as Nacos 2.3 does; auto: if all servers of the upstream do so."
    )
    upstream_timeout: Duration = _upstream(5.0, "How long a call to the upstream may take, after it is connected.")
    upstream_connect_timeout: Duration = _upstream(1.0, "How long connecting to the upstream may take.")
    upstream_tls_ca: OptionalPath = _upstream(None, "PEM file of authorities for the upstream; unset: the system's.")
    upstream_tls_cert: OptionalPath = _upstream(None, "PEM file with the client certificate for the upstream.")
    upstream_tls_key: OptionalPath = _upstream(None, "PEM file with the key of upstream_tls_cert.")
    upstream_tls_sni: str = _upstream("", "Name in the upstream's certificate, if it is not the host name.")
    upstream_tls_verify: bool = _upstream(True, "Verify the upstream's certificate.")
    breaker_failures: int = _upstream(3, "Consecutive failures after which the upstream counts as down.", ge=1)
    breaker_longest: Duration = _upstream(5.0, "Maximum time between two probes of an upstream that is down.")

    host: str = _listening("127.0.0.1", "Address to listen on. If other hosts can reach it, an API token is required.")
    port: int = _listening(8840, "Port to listen on; 0 chooses a free one.", ge=0, le=65535)
    uds: OptionalPath = _listening(None, "Unix socket to listen on, instead of host and port.")
    reuse_port: bool = _listening(False, "Share host, port and grpc_port with other processes that set this, too.")
    grpc: bool = _listening(True, "Serve Nacos over gRPC, for SDKs from 2.0 on.")
    grpc_port: int = _listening(0, "Port for gRPC; 0: port + 1000, where SDKs expect it.", ge=0, le=65535)
    context_path: ContextPath = _listening("/nacos", "Path prefix of the Nacos API for clients; / for none.")
    tls_cert: OptionalPath = _listening(
        None, "PEM file with the certificate chain of this proxy, which then serves TLS."
    )
    tls_key: OptionalPath = _listening(None, "PEM file with the key of tls_cert, if it is not in the same file.")
    tls_client_ca: OptionalPath = _listening(None, "PEM file of authorities that must sign client certificates.")

    cache_ttl: Duration = _reads(10.0, "How long a snapshot of a service is fresh.")
    cache_negative_ttl: Duration = _reads(2.0, "How long a snapshot is fresh if the service never had an instance.")
    cache_stale_if_error: Duration = _reads(86_400.0, "How long a stale snapshot may be served if refreshing fails.")
    cache_max_services: int = _reads(10_000, "Maximum number of cached services.", ge=1)
    cache_max_unknown: int = _reads(1_000, "Maximum number of cached services that never had an instance.", ge=1)
    cold_wait: Duration = _reads(2.5, "How long an uncached read, or a heartbeat, waits for the upstream.")
    empty_list_share: float = _reads(
        0.5, "After an outage, a list that loses more than this share of the instances is read again first.", ge=0, le=1
    )
    empty_list_confirm: Duration = _reads(5.0, "How soon a list with such a loss is read again.")
    fast_path: bool = _reads(True, "Answer repeated reads from prepared bytes.")

    push: Literal["auto", "on", "off"] = _fresh(
        "auto",
        "Let the upstream push changes: by gRPC from Nacos 2.0 on, by UDP before. on: report it if gRPC cannot work.",
    )
    push_port: int = _fresh(0, "gRPC port of the upstream; 0: its HTTP port + 1000.", ge=0, le=65535)
    push_udp_port: int = _fresh(0, "Port that receives UDP push; 0 chooses a free one.", ge=0, le=65535)
    poll_interval_subscribed: Duration = _fresh(1.0, "How often a service with subscribers is polled.")
    poll_interval_read: Duration = _fresh(5.0, "How often a service without subscribers is polled.")
    poll_safety: Duration = _fresh(30.0, "How often a service is polled while push works.")
    poll_budget: float = _fresh(
        200.0, "Maximum number of polls per second, shared fairly among clients; with auth = client, per account.", gt=0
    )
    watch_idle: Duration = _fresh(600.0, "How long a service is polled after its last read.")

    events_history: int = _events(4096, "Number of events that are kept for subscribers that reconnect.", ge=0)
    events_heartbeat: Duration = _events(15.0, "How often a comment is sent on an idle event stream.")
    events_retry: Duration = _events(2.0, "How soon a subscriber should reconnect.")
    udp_push: bool = _events(True, "Push changes by UDP to legacy clients that ask for it.")
    udp_push_allow: Networks = _events((), "Networks that may receive UDP push, besides this host.")
    webhooks: SecretList = _events(
        SecretStr(""),
        "Comma-separated webhooks, each as 'SERVICE … URL': their services' changes are posted to the URL.",
    )
    webhook_secret: SecretStr = _events(SecretStr(""), "Key with which the requests to webhooks are signed.")
    webhook_secret_file: OptionalPath = _events(None, "File that contains the key, instead of webhook_secret.")

    outage_writes: bool = _writes(True, "During an outage, accept writes of ephemeral instances and send them later.")
    overlay_grace: Duration = _writes(3.0, "How long an accepted write stays visible until the upstream lists it.")
    services_dir: OptionalPath = _writes(
        None,
        "Directory of service files (*.toml), such as /etc/nacos-proxy/services.d, which declare instances to keep.",
    )
    managed_allow: Networks = _writes((), "Networks that checks of managed instances may reach, besides this host.")
    managed_deregister: bool = _writes(False, "Deregister managed instances when the proxy stops.")

    dns: DnsAddresses = _dns((), "Addresses for DNS by UDP and TCP, such as 127.0.0.1:8853; unset: no DNS.")
    dns_zone: DnsZones = _dns(("nacos",), "Zones in which services have names; the first one is the usual one.")
    dns_aliases: DnsAliases = _dns(
        (), "More names in DNS, comma-separated: users=public/DEFAULT_GROUP@@providers:com.acme.Users:1.0:."
    )
    dns_prefer: SelectorText = _dns("", "Selector of near instances, which DNS answers first, such as zone=a.")
    dns_ttl: Duration = _dns(5.0, "The longest time that resolvers may keep an answer.")
    dns_allow: Networks = _dns((), "Networks that may use DNS, besides this host.")
    agent_check: Address = _dns("", "Address (host:port) for agent checks of HAProxy; empty: none.")

    tokens: SecretList = _access(SecretStr(""), "Comma-separated API tokens: read:TOKEN, write:TOKEN or admin:TOKEN.")
    tokens_file: OptionalPath = _access(None, "File with API tokens, one right:token per line.")
    insecure: bool = _access(False, "Start without an API token, even if other hosts can connect.")
    allowed_hosts: TextList = _access((), "Allowed values of the Host header, besides this host's names; '*' for any.")
    cors_origins: TextList = _access((), "Origins of web pages that may use the API; '*' for any.")

    max_connections: int = _limits(0, "Maximum open connections, with TLS handshakes; 0: the system's limit.", ge=0)
    max_head: Size = _limits(65_536, "Maximum size of a request line with headers.")
    max_body: Size = _limits(1 << 20, "Maximum size of a request body of the naming API.")
    subscribers_per_client: int = _limits(
        20_000, "Maximum event streams and gRPC subscriptions of an address or account.", ge=1
    )
    services_per_client: int = _limits(500, "Maximum number of services of one event stream.", ge=1)
    watched_per_client: int = _limits(10_000, "Maximum services that an address or account watches.", ge=1)

    state_dir: Path = _process(lambda: user_state_path("nacos-proxy"), "Directory for the last known state.")
    disk: bool = _process(True, "Keep the last known state on disk.")
    drain_timeout: Duration = _process(10.0, "How long a stop waits for requests to finish.")

    access_log: bool = _logs(False, "Log each request, whatever the log level.")
    log_level: Literal["debug", "info", "warning", "error"] = _logs("info", "Minimum level of log lines.")
    log_format: Literal["text", "json"] = _logs("text", "Format of log lines.")
    traces: Url = _logs(
        "", "URL of an OpenTelemetry collector (OTLP over HTTP), such as http://127.0.0.1:4318; empty: no traces."
    )

    @model_validator(mode="after")
    def _check_combinations(self) -> Settings:
        for needs, needed in (
            ("tls_key", "tls_cert"), ("tls_client_ca", "tls_cert"), ("upstream_tls_key", "upstream_tls_cert"),
            ("identity_value", "identity_key"), ("password", "username"), ("password_file", "username"),
            ("webhook_secret", "webhooks"), ("webhook_secret_file", "webhooks"),
        ):  # fmt: skip
            if format_value(getattr(self, needs)) and not getattr(self, needed):
                raise ValueError(f"{needs} is set and {needed} is not; set both")
        if self.password_file is not None and self.password.get_secret_value():
            raise ValueError("password and password_file are both set; choose one")
        if self.webhook_secret_file is not None and self.webhook_secret.get_secret_value():
            raise ValueError("webhook_secret and webhook_secret_file are both set; choose one")
        if self.auth == "client" and self.username:
            raise ValueError("username is for auth = proxy; with auth = client, clients use accounts of their own")
        webhooks = self.read_webhooks()
        if self.auth == "client" and webhooks:
            raise ValueError("webhooks are for auth = proxy; with auth = client, the proxy has no account to read with")
        if self.auth == "client" and self.services_dir is not None:
            raise ValueError(
                "services_dir is for auth = proxy; with auth = client, the proxy has no account to register with"
            )
        if self.upstream_token_file is not None and self.upstream_token.get_secret_value():
            raise ValueError("upstream_token and upstream_token_file are both set; choose one")
        if (self.upstream_token_file is not None or self.upstream_token.get_secret_value()) and not self.of_proxy:
            raise ValueError("upstream_token is for an upper proxy: write upstream as proxy+http://HOST:8840")
        check_proxies(self.upstream)
        if self.of_proxy and self.endpoint:
            raise ValueError("endpoint lists Nacos servers, and upstream names a proxy; choose one")
        if "embedded" in self.upstream and len(self.upstream) > 1:
            raise ValueError("upstream contains servers and 'embedded'; choose one")
        if self.require_upstream and self.embedded:
            raise ValueError(
                "upstream is not set: set it to your Nacos, such as http://10.0.0.1:8848. "
                "The embedded registry is for development; require_upstream forbids it"
            )
        if not self.upstream and not self.endpoint:
            raise ValueError("upstream is empty; set it to a server, or to 'embedded'")
        return self

    @property
    def embedded(self) -> bool:
        """Whether the embedded registry is used, without a Nacos server."""
        return self.upstream == ("embedded",) and not self.endpoint

    @property
    def of_proxy(self) -> bool:
        """Whether the upstream is another proxy."""
        return any(url.startswith(PROXY) for url in self.upstream)

    @property
    def upstream_urls(self) -> tuple[str, ...]:
        """The servers as URLs of HTTP."""
        return tuple(map(server_url, self.upstream))

    @property
    def upstream_uds(self) -> str:
        """The Unix socket of the upper proxy; '' if it has none."""
        return unix_path(self.upstream[0]) if self.upstream else ""

    def read_upstream_token(self) -> str:
        """The upper proxy's API token, from `upstream_token_file` if that is set. Raises `BadSettings`."""
        if self.upstream_token_file is None:
            return self.upstream_token.get_secret_value()
        return _read(self.upstream_token_file, f"upstream_token_file: {self.upstream_token_file}").strip()

    def read_password(self) -> str:
        """The password at the upstream, from `password_file` if that is set. Raises `BadSettings`."""
        if self.password_file is None:
            return self.password.get_secret_value()
        return _read(self.password_file, f"password_file: {self.password_file}").strip()

    def read_webhooks(self) -> tuple[WebhookTarget, ...]:
        """The webhooks. Raises `ValueError`."""
        return parse_webhooks(self.webhooks.get_secret_value())

    def read_webhook_secret(self) -> str:
        """The key for signatures, from `webhook_secret_file` if that is set. Raises `BadSettings`."""
        if self.webhook_secret_file is None:
            return self.webhook_secret.get_secret_value()
        return _read(self.webhook_secret_file, f"webhook_secret_file: {self.webhook_secret_file}").strip()

    def read_tokens(self) -> tuple[TokenRight, ...]:
        """The API tokens of `tokens` and `tokens_file`. Raises `BadSettings`."""
        lines = self.tokens.get_secret_value().split(",")
        if self.tokens_file is not None:
            lines += _read(self.tokens_file, f"tokens_file: {self.tokens_file}").splitlines()
        return tuple(_token(line.strip()) for line in lines if line.strip() and not line.strip().startswith("#"))


def _token(line: str) -> TokenRight:
    right, separator, secret = line.partition(":")
    if not separator or right not in ("read", "write", "admin") or len(secret) < 8:
        raise BadSettings(
            "write an API token as right:token; the right is read, write or admin, the token has at least 8 characters"
        )
    return TokenRight(secret, right)  # pyright: ignore[reportArgumentType] - narrowed above


def _read(file: Path, what: str) -> str:
    """The text of a file. Refuses a file that everybody can write: any user could give themselves every right."""
    try:
        with file.open() as opened:
            mode = os.fstat(opened.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & stat.S_IWOTH:
                raise BadSettings(f"{what} can be written by every user of this host: run chmod o-w on it")
            return opened.read()
    except UnicodeDecodeError as error:
        raise BadSettings(f"{what} is not a text file") from error
    except OSError as error:
        raise BadSettings(f"{what} cannot be read: {error.strerror}") from error


def groups() -> dict[str, list[str]]:
    """The names of all settings by the title of their group, in the order of the class."""
    found: dict[str, list[str]] = {}
    for name, field in Settings.model_fields.items():
        found.setdefault(cast("dict[str, str]", field.json_schema_extra)["group"], []).append(name)
    return found


class Row(NamedTuple):
    """One effective setting: its value as text, with secrets masked, and where it came from."""

    name: str
    value: str
    source: str
    description: str


class Loaded(NamedTuple):
    """The settings, and the source of each that is not the default: a flag, the environment or `file`."""

    settings: Settings
    sources: Mapping[str, str]
    flags: Mapping[str, Any]
    file: Path | None

    def reload(self) -> Loaded:
        """Reads the environment and the file again, and keeps the flags. Raises `BadSettings`."""
        return load(self.flags, self.file)

    def rows(self) -> list[Row]:
        """Every effective setting, in the order of the class."""
        return [
            Row(
                name,
                display_value(name, getattr(self.settings, name), kind_of(field)),
                self.sources.get(name, "default"),
                field.description or "",
            )
            for name, field in Settings.model_fields.items()
        ]


def load(flags: Mapping[str, Any], file: Path | None = None, environ: Mapping[str, str] = os.environ) -> Loaded:
    """Reads flags, environment and a file: `file`, else NACOS_PROXY_CONFIG, else the user's. Raises `BadSettings`."""
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    file = file or _default_file(environ)
    if file is not None:
        for name, value in _toml(file).items():
            values[name], sources[name] = value, f"file {file}"
    for name in (*Settings.model_fields, *REMOVED):
        value = environ.get(PREFIX + name.upper(), "")
        # Kubernetes sets NACOS_PROXY_PORT=tcp://… in every pod if there is a Service named nacos-proxy.
        if value and not (name == "port" and value.startswith("tcp://")):
            values[name], sources[name] = value, f"environment {PREFIX}{name.upper()}"
    for name, value in flags.items():
        values[name], sources[name] = value, f"flag --{name.replace('_', '-')}"
    for name in REMOVED.keys() & sources.keys():
        raise BadSettings(f"{name} ({sources[name]}) was removed: {REMOVED[name]}")
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise BadSettings(_explain(error, values, sources)) from error
    return Loaded(settings, sources, dict(flags), file)


def misspelt_variables(environ: Mapping[str, str]) -> list[str]:
    """A warning for each variable whose name is almost that of a setting."""
    warnings: list[str] = []
    for name in (variable.removeprefix(PREFIX) for variable in environ if variable.startswith(PREFIX)):
        near = difflib.get_close_matches(name.lower(), Settings.model_fields, 1, cutoff=0.85)
        if near and name.lower() not in Settings.model_fields and name not in OTHER_VARIABLES:
            suggestion = f"{PREFIX}{near[0].upper()}"
            warnings.append(f"{PREFIX}{name} is not a setting and has no effect; did you mean {suggestion}?")
    return warnings


def _default_file(environ: Mapping[str, str]) -> Path | None:
    if named := environ.get(PREFIX + "CONFIG"):
        return Path(named)
    try:
        users = user_config_path("nacos-proxy") / "config.toml"
        return users if users.is_file() else None
    except (PermissionError, RuntimeError):  # a home directory of somebody else, or none at all
        return None


def _toml(file: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(_read(file, f"the configuration file {file}"))
    except tomllib.TOMLDecodeError as error:
        raise BadSettings(f"the configuration file {file} is not valid TOML: {error}") from error
    for name, value in values.items():
        if name not in Settings.model_fields and name not in REMOVED:
            near = difflib.get_close_matches(name, Settings.model_fields, 1)
            hint = f"; did you mean {near[0]}?" if near else "; `nacos-proxy config` lists them"
            if isinstance(value, dict):
                hint = "; settings do not belong in a table: write a line like cache_ttl = '10s'"
            raise BadSettings(f"the configuration file {file} has no setting {name!r}{hint}")
    return values


def _explain(error: ValidationError, values: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    lines: list[str] = []
    for problem in error.errors():
        reason = problem["msg"].removeprefix("Value error, ")
        if not problem["loc"]:
            lines.append(f"{reason}.")
            continue
        name = str(problem["loc"][0])
        field, value = Settings.model_fields[name], values.get(name)
        shown = display_value(name, value, "text") if isinstance(value, str) else value
        given = "" if kind_of(field) == "secret" else f" {shown!r}"
        lines.append(f"{name}{given} ({sources.get(name, 'default')}): {reason}. {field.description or ''}")
    return "\n".join(lines)
