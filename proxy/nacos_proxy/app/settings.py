"""Every setting once: its flag, variable, place in the file, default and meaning.

Not for: how a value is written (`spelling`), what the command line shows of it (`cli_config`).

A flag beats an environment variable `NACOS_PROXY_<NAME>`, which beats the TOML file, which beats the default. The same
names everywhere: the setting `cache_ttl` is `--cache-ttl`, `NACOS_PROXY_CACHE_TTL`, and `cache_ttl` in the file. An
empty variable counts as not set, as compose files make them.
"""

from __future__ import annotations

import difflib
import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from platformdirs import user_config_path, user_state_path
from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from nacos_proxy.app.setting_types import (
    ContextPath,
    Duration,
    File,
    Networks,
    Secrets,
    Several,
    Size,
    Url,
    kind_of,
    shown_text,
    text_of,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PREFIX = "NACOS_PROXY_"

# Variables of the command line's clients and of our tests, which are no settings.
OTHER_VARIABLES = frozenset({"CONFIG", "SERVER", "SERVER_CA", "SERVER_CERT", "TOKEN", "TEST_RNACOS"})


# Settings of earlier versions, and what to do instead.
REMOVED = {
    "workers": "there is one process now, and it answers more reads than a host asks for: remove it. Where one core "
    "is not enough, run another proxy with a port and a state_dir of its own for some of the clients"
}


class BadSettings(Exception):
    """What is wrong, where it came from, and what is allowed; told to the operator as it stands."""


class TokenRight(NamedTuple):
    """An API token and its right: read, write or admin."""

    secret: str
    right: Literal["read", "write", "admin"]


class Settings(BaseSettings):
    """All settings. Durations are seconds, or text such as 500ms, 5s, 24h, forever; sizes bytes, or 64KiB."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", enable_decoding=False, hide_input_in_errors=True
    )

    # where it listens
    host: str = Field("127.0.0.1", description="Address to listen on; beyond loopback an API token is needed.")
    port: int = Field(8840, ge=0, le=65535, description="Port to listen on; 0 takes any free one.")
    uds: File = Field(None, description="Unix socket to listen on in place of host and port.")
    context_path: ContextPath = Field("/nacos", description="Path below which clients find the Nacos API; / for none.")
    tls_cert: File = Field(None, description="PEM certificate chain with which this proxy serves TLS.")
    tls_key: File = Field(None, description="PEM key of tls_cert, where it is not in the same file.")
    tls_client_ca: File = Field(None, description="PEM authorities: clients must show a certificate of one of them.")
    # the upstream
    upstream: Several = Field(("embedded",), description="Nacos servers, separated by commas, or 'embedded' for none.")
    require_upstream: bool = Field(False, description="Refuse to start on the embedded registry.")
    endpoint: Url = Field("", description="URL of an address server that names the Nacos servers, one a line.")
    namespace: str = Field("", description="Namespace of the command-line client; '' is public.")
    username: str = Field("", description="Account at the upstream; '' logs in nowhere.")
    password: SecretStr = Field(SecretStr(""), description="Password of username.")
    password_file: File = Field(None, description="File that holds the password, in place of password.")
    auth: Literal["proxy", "client"] = Field(
        "proxy", description="Whose account reads and writes use: the proxy's, or each client's own token."
    )
    identity_key: str = Field("", description="Header by which the upstream knows its own servers.")
    identity_value: SecretStr = Field(SecretStr(""), description="Value of identity_key.")
    upstream_dialect: Literal["auto", "v1", "v2", "v3"] = Field(
        "auto", description="Nacos API to speak; auto finds out."
    )
    parameter_check: Literal["auto", "on", "off"] = Field(
        "auto", description="Nacos's check of names and metadata (2.3 and later); auto: where all servers have it."
    )
    upstream_context_path: ContextPath = Field("/nacos", description="Path below which the upstream has its API.")
    upstream_timeout: Duration = Field(
        5.0, description="How long a call to the upstream may take, once it has a connection."
    )
    upstream_connect_timeout: Duration = Field(1.0, description="How long a connection to the upstream may take.")
    upstream_tls_ca: File = Field(None, description="PEM authorities for an https upstream, in place of the system's.")
    upstream_tls_cert: File = Field(None, description="PEM client certificate for the upstream.")
    upstream_tls_key: File = Field(None, description="PEM key of upstream_tls_cert.")
    upstream_tls_sni: str = Field(
        "", description="Name to ask the upstream's certificate for, where it is not its host."
    )
    upstream_tls_verify: bool = Field(True, description="Whether the upstream's certificate is checked.")
    push: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Push from the upstream; auto: gRPC where installed, else UDP. 1.x has UDP alone.",
    )
    push_port: int = Field(0, ge=0, le=65535, description="gRPC port of the upstream; 0 is its HTTP port + 1000.")
    push_udp_port: int = Field(0, ge=0, le=65535, description="Port that hears UDP push; 0 takes any free one.")
    breaker_failures: int = Field(3, ge=1, description="Failures in a row after which the upstream counts as down.")
    breaker_longest: Duration = Field(5.0, description="Longest pause between two probes of an upstream that is down.")
    outage_writes: bool = Field(
        True, description="Whether writes about ephemeral instances are accepted here while the upstream is away."
    )
    # the cache
    cache_ttl: Duration = Field(10.0, description="How long a snapshot counts as fresh.")
    cache_negative_ttl: Duration = Field(2.0, description="The same for a service that nobody registered.")
    cache_stale_if_error: Duration = Field(86_400.0, description="How long a stale snapshot is served at the most.")
    cache_max_services: int = Field(10_000, ge=1, description="Services in the cache at the most.")
    cache_max_unknown: int = Field(
        1_000, ge=1, description="Services that nobody registered, in the cache at the most."
    )
    cold_wait: Duration = Field(
        2.5, description="How long a read of an unknown service, or a beat, waits for the upstream."
    )
    overlay_grace: Duration = Field(3.0, description="How long an accepted write shows before the upstream lists it.")
    empty_list_share: float = Field(
        0.5, ge=0, le=1, description="Share of a service that a list may lose after an outage."
    )
    empty_list_confirm: Duration = Field(5.0, description="When a list that lost more is looked at again.")
    # keeping it fresh
    poll_interval_subscribed: Duration = Field(1.0, description="How often a service with subscribers is asked for.")
    poll_interval_read: Duration = Field(5.0, description="How often a service that is only read is asked for.")
    poll_safety: Duration = Field(30.0, description="How often either is asked for while push is alive.")
    poll_budget: float = Field(
        200.0, gt=0, description="Polls a second, shared fairly by all who listen; with auth = client, of each tenant."
    )
    watch_idle: Duration = Field(600.0, description="How long a service is kept fresh after its last read.")
    # events
    events_history: int = Field(4096, ge=0, description="Events from which a reader can resume.")
    events_heartbeat: Duration = Field(15.0, description="How often an idle event stream gets a comment.")
    events_retry: Duration = Field(2.0, description="How soon a reader is told to come back.")
    udp_push: bool = Field(True, description="UDP push to legacy clients that ask for it.")
    udp_push_allow: Networks = Field((), description="Networks that may be pushed to besides this host.")
    # who may ask
    tokens: Secrets = Field(SecretStr(""), description="API tokens: right:token, separated by commas (read:…,admin:…).")
    tokens_file: File = Field(None, description="File with one right:token a line.")
    insecure: bool = Field(False, description="Listen beyond loopback without an API token.")
    allowed_hosts: Several = Field((), description="Names that Host may carry besides this host's own; '*' for any.")
    cors_origins: Several = Field((), description="Origins whose web pages may read the API; '*' for any.")
    max_connections: int = Field(
        0, ge=0, description="Connections at once, including TLS handshakes; 0 is no bound but the system's."
    )
    max_head: Size = Field(65_536, description="Largest request head.")
    max_body: Size = Field(1 << 20, description="Largest request body of the naming API.")
    subscribers_per_client: int = Field(
        20_000, ge=1, description="Event streams from one address; with auth = client, from one address and tenant."
    )
    services_per_client: int = Field(500, ge=1, description="Services that one event stream may name.")
    watched_per_client: int = Field(
        10_000, ge=1, description="Services that all streams of one address, or tenant (auth = client), may name."
    )
    # state and process
    state_dir: Path = Field(
        default_factory=lambda: user_state_path("nacos-proxy"), description="Directory of the last known state."
    )
    disk: bool = Field(True, description="Whether the last known state is kept on disk.")
    drain_timeout: Duration = Field(10.0, description="How long a stop waits for requests under way.")
    managed_allow: Networks = Field((), description="Networks that managed checks may reach besides this host.")
    managed_deregister: bool = Field(False, description="Whether managed instances are deregistered at a stop.")
    fast_path: bool = Field(True, description="Whether repeated reads are answered from prepared bytes.")
    access_log: bool = Field(False, description="Whether each request is logged.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["text", "json"] = Field("text", description="Log lines for people or for programs.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)

    @model_validator(mode="after")
    def _fit_together(self) -> Settings:
        for needs, needed in (
            ("tls_key", "tls_cert"), ("tls_client_ca", "tls_cert"), ("upstream_tls_key", "upstream_tls_cert"),
            ("identity_value", "identity_key"), ("password", "username"), ("password_file", "username"),
        ):  # fmt: skip
            if text_of(getattr(self, needs)) and not getattr(self, needed):
                raise ValueError(f"{needs} is set and {needed} is not; it needs both")
        if self.password_file is not None and self.password.get_secret_value():
            raise ValueError("password and password_file are both set; choose one")
        if self.auth == "client" and self.username:
            raise ValueError("auth = client asks with each client's own token; username goes with auth = proxy")
        if "embedded" in self.upstream and len(self.upstream) > 1:
            raise ValueError("upstream names servers or 'embedded', not both")
        if self.require_upstream and self.embedded:
            raise ValueError(
                "no upstream is named: set upstream to your Nacos, such as http://10.0.0.1:8848. "
                "The embedded registry is for development; require_upstream refuses it"
            )
        if not self.upstream and not self.endpoint:
            raise ValueError("upstream is empty; name a server, or 'embedded' for none")
        return self

    @property
    def embedded(self) -> bool:
        """Whether there is no server behind."""
        return self.upstream == ("embedded",) and not self.endpoint

    def secret(self) -> str:
        """The upstream's password, from its file where that is named. Raises `BadSettings`."""
        if self.password_file is None:
            return self.password.get_secret_value()
        return _read(self.password_file, f"password_file: {self.password_file}").strip()

    def all_tokens(self) -> tuple[TokenRight, ...]:
        """The API tokens with their rights. Raises `BadSettings`."""
        lines = self.tokens.get_secret_value().split(",")
        if self.tokens_file is not None:
            lines += _read(self.tokens_file, f"tokens_file: {self.tokens_file}").splitlines()
        return tuple(_token(line.strip()) for line in lines if line.strip() and not line.strip().startswith("#"))


def _token(line: str) -> TokenRight:
    right, separator, secret = line.partition(":")
    if not separator or right not in ("read", "write", "admin") or len(secret) < 8:
        raise BadSettings(
            "a token is written right:token, with the right read, write or admin and at least 8 characters"
        )
    return TokenRight(secret, right)  # pyright: ignore[reportArgumentType] - narrowed above


def _read(file: Path, what: str) -> str:
    """Who may read it is for others to choose; who can write secrets or settings could give himself any right."""
    try:
        with file.open() as opened:
            mode = os.fstat(opened.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & stat.S_IWOTH:
                raise BadSettings(f"{what} can be written by anybody on this host: chmod o-w it")
            return opened.read()
    except UnicodeDecodeError as error:
        raise BadSettings(f"{what} is no text") from error
    except OSError as error:
        raise BadSettings(f"{what} cannot be read: {error.strerror}") from error


class Row(NamedTuple):
    """One effective setting: its value as text, secrets masked, and where it came from."""

    name: str
    value: str
    source: str
    description: str


class Loaded(NamedTuple):
    """The settings, where each came from, and from which file."""

    settings: Settings
    sources: Mapping[str, str]
    flags: Mapping[str, Any]
    file: Path | None

    def again(self) -> Loaded:
        """The same flags, with environment and file as they are now."""
        return load(self.flags, self.file)

    def rows(self) -> list[Row]:
        """Every setting in the order of the class: what is in effect, and where it came from."""
        return [
            Row(
                name,
                shown_text(name, getattr(self.settings, name), kind_of(field)),
                self.sources.get(name, "default"),
                field.description or "",
            )
            for name, field in Settings.model_fields.items()
        ]


def load(flags: Mapping[str, Any], file: Path | None = None, environ: Mapping[str, str] = os.environ) -> Loaded:
    """From flags, environment and file: the named one, else the variable's, else the user's. Raises `BadSettings`."""
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    file = file or _default_file(environ)
    if file is not None:
        for name, value in _toml(file).items():
            values[name], sources[name] = value, f"file {file}"
    for name in (*Settings.model_fields, *REMOVED):
        value = environ.get(PREFIX + name.upper(), "")
        # Kubernetes sets NACOS_PROXY_PORT=tcp://… in every pod beside a Service that is called nacos-proxy.
        if value and not (name == "port" and value.startswith("tcp://")):
            values[name], sources[name] = value, f"environment {PREFIX}{name.upper()}"
    for name, value in flags.items():
        values[name], sources[name] = value, f"flag --{name.replace('_', '-')}"
    for name in REMOVED.keys() & sources.keys():
        raise BadSettings(f"{name} ({sources[name]}) was removed: {REMOVED[name]}")
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise BadSettings(_why(error, values, sources)) from error
    return Loaded(settings, sources, dict(flags), file)


def misspelt(environ: Mapping[str, str]) -> list[str]:
    """A sentence for each variable that looks like a setting's and is none."""
    given = (name.removeprefix(PREFIX) for name in environ if name.startswith(PREFIX))
    found: list[str] = []
    for name in given:
        near = difflib.get_close_matches(name.lower(), Settings.model_fields, 1, cutoff=0.85)
        if near and name.lower() not in Settings.model_fields and name not in OTHER_VARIABLES:
            found.append(f"{PREFIX}{name} is no setting and does nothing; did you mean {PREFIX}{near[0].upper()}?")
    return found


def _default_file(environ: Mapping[str, str]) -> Path | None:
    named = environ.get(PREFIX + "CONFIG")
    if named:
        return Path(named)
    usual = user_config_path("nacos-proxy") / "config.toml"
    return usual if usual.is_file() else None


def _toml(file: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(_read(file, f"the configuration file {file}"))
    except tomllib.TOMLDecodeError as error:
        raise BadSettings(f"the configuration file {file} is no TOML: {error}") from error
    for name, value in values.items():
        if name not in Settings.model_fields and name not in REMOVED:
            near = difflib.get_close_matches(name, Settings.model_fields, 1)
            hint = f"; did you mean {near[0]}?" if near else "; `nacos-proxy config` lists them"
            if isinstance(value, dict):
                hint = "; settings stand in no table, a line is written like cache_ttl = '10s'"
            raise BadSettings(f"the configuration file {file} has no setting {name!r}{hint}")
    return values


def _shown_value(name: str, value: object) -> object:
    return shown_text(name, value, "text") if isinstance(value, str) else value


def _why(error: ValidationError, values: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    lines: list[str] = []
    for problem in error.errors():
        reason = problem["msg"].removeprefix("Value error, ")
        if not problem["loc"]:
            lines.append(f"{reason}.")
            continue
        name = str(problem["loc"][0])
        field = Settings.model_fields[name]
        given = "" if kind_of(field) == "secret" else f" {_shown_value(name, values.get(name))!r}"
        lines.append(f"{name}{given} ({sources.get(name, 'default')}): {reason}. {field.description or ''}")
    return "\n".join(lines)
