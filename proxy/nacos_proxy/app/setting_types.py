"""The types of settings: durations, sizes, lists, paths, URLs; parsed from text and formatted as text. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic.fields import FieldInfo

from nacos_proxy.model.durations import format_duration, parse_duration
from nacos_proxy.model.masking import MASK, shown_url
from nacos_proxy.model.selectors import Selector
from nacos_proxy.wire.dns.names import parse_aliases, parse_zone

_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}

_URL_SETTINGS = ("upstream", "endpoint", "traces")


def _parse_size(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(\d+)\s*([kmg]?)(?:i?b)?", value.strip().lower())
    if found is None:
        raise ValueError("write a size like 8192, 64KiB or 1MiB")
    return int(found[1]) * _BYTES[found[2]]


PROXY = "proxy+"
"""Begins the URL of an upstream that is another proxy."""
_UNIX = f"{PROXY}unix://"
_PROXY_PORT = 8840


def check_proxies(upstream: tuple[str, ...]) -> None:
    """Raises `ValueError` if proxies are mixed with other servers, or with proxies that are reached in another way."""
    schemes = {url.partition("://")[0] if url.startswith(PROXY) else "" for url in upstream}
    if schemes == {""}:
        return
    if "" in schemes:
        raise ValueError(f"upstream contains proxies ({PROXY}…) and other servers; choose one kind")
    unknown = schemes - {f"{PROXY}http", f"{PROXY}https", f"{PROXY}unix"}
    if unknown:
        raise ValueError(
            f"{min(unknown)!r} in upstream is unknown: write proxy+http://, proxy+https:// or proxy+unix://"
        )
    if len(schemes) > 1:
        raise ValueError("the proxies in upstream are reached in different ways; choose one")
    if schemes == {f"{PROXY}unix"} and (len(upstream) > 1 or not all(unix_path(url)[:1] == "/" for url in upstream)):
        raise ValueError(f"write one Unix socket with its whole path, such as {_UNIX}/run/nacos-proxy/upper.sock")


def unix_path(url: str) -> str:
    """The path of the Unix socket in the URL of a proxy; '' if it has none."""
    return url.removeprefix(_UNIX) if url.startswith(_UNIX) else ""


def server_url(url: str) -> str:
    """The URL for HTTP. A proxy listens on port 8840 if none is given; on a Unix socket, any host will do."""
    if not url.startswith(PROXY):
        return url
    if unix_path(url):
        return "http://localhost"
    plain = url.removeprefix(PROXY)
    scheme, _, rest = plain.partition("://")
    host, slash, path = rest.partition("/")
    named = scheme == "https" or re.search(r":[0-9]*$", host) is not None
    return plain if named else f"{scheme}://{host}:{_PROXY_PORT}{slash}{path}"


def _parse_list(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _join_secrets(value: Any) -> Any:
    """Joins a TOML list with commas, because the setting is one `SecretStr`. Errors quote no secret."""
    if not isinstance(value, list):
        return value
    given: list[Any] = list(value)  # pyright: ignore[reportUnknownArgumentType]
    if not all(isinstance(item, str) for item in given):
        raise ValueError("each item of the list must be a string in quotes")
    if any("," in item for item in given):
        raise ValueError("an item of the list contains a comma")
    return ",".join(given)


def _empty_to_none(value: Any) -> Any:
    return None if value == "" else value


def _parse_context_path(value: str) -> str:
    path = value.strip().strip("/")
    if re.fullmatch(r"[\w.~/-]*", path, re.ASCII) is None or ".." in path or "//" in path:
        raise ValueError("write a context path like /nacos, or / for none")
    return f"/{path}" if path else ""


def _check_url(value: str) -> str:
    if value:
        try:
            parts = urlsplit(value)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good:
            raise ValueError("write a URL like http://10.0.0.1:8080/nacos/serverlist")
    return value


def split_address(value: str) -> tuple[str, int]:
    """Host and port of `127.0.0.1:8841` or `[::1]:8841`. Raises `ValueError`."""
    host, _, port = value.strip().rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or (":" in bare) != (bare != host) or re.fullmatch("[0-9]{1,5}", port) is None or int(port) > 65535:
        raise ValueError("write an address like 127.0.0.1:8841 or [::1]:8841")
    return bare, int(port)


def _check_address(value: str) -> str:
    if value:
        split_address(value)
    return value.strip()


def _check_networks(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        try:
            ipaddress.ip_network(value, strict=False)
        except ValueError:
            raise ValueError(f"{value!r} is not a network; write it like 10.0.0.0/8 or fd00::/8") from None
    return values


def parse_dns_address(text: str) -> tuple[str, int]:
    """As `split_address`, and the host is an IP address that answers can come from. Raises `ValueError`."""
    host, port = split_address(text)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f"{host!r} is not an IP address; write one like 127.0.0.1:8853 or [::1]:8853") from None
    if address.is_unspecified:  # UDP would answer from another address than was asked
        raise ValueError(f"{text!r} stands for all addresses; name those to listen on, separated by commas")
    return str(address), port


def _check(parse: Callable[[str], object]) -> Callable[[tuple[str, ...]], tuple[str, ...]]:
    """A check of each part of a list."""

    def check(values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            parse(value)
        return values

    return check


def _check_selector(value: str) -> str:
    try:
        Selector.parse(value)
    except ValueError as error:
        raise ValueError(f"{error}; write a selector like zone=a") from None
    return value


Duration = Annotated[float, BeforeValidator(parse_duration), Field(ge=0)]
Size = Annotated[int, BeforeValidator(_parse_size), Field(ge=0)]
TextList = Annotated[tuple[str, ...], BeforeValidator(_parse_list)]
SecretList = Annotated[SecretStr, BeforeValidator(_join_secrets)]
Networks = Annotated[TextList, AfterValidator(_check_networks)]
OptionalPath = Annotated[Path | None, BeforeValidator(_empty_to_none)]
Address = Annotated[str, AfterValidator(_check_address)]
DnsAddresses = Annotated[TextList, AfterValidator(_check(parse_dns_address))]
DnsZones = Annotated[TextList, AfterValidator(_check(parse_zone)), Field(min_length=1)]
DnsAliases = Annotated[TextList, AfterValidator(_check(lambda text: parse_aliases([text])))]
SelectorText = Annotated[str, AfterValidator(_check_selector)]
Url = Annotated[str, AfterValidator(_check_url)]
ContextPath = Annotated[str, AfterValidator(_parse_context_path)]


Kind = Literal["switch", "choice", "duration", "size", "list", "path", "secret", "number", "text"]
_KINDS: dict[Any, Kind] = {  # by the parser of a type, else by the type
    parse_duration: "duration",
    _parse_size: "size",
    _parse_list: "list",
    _empty_to_none: "path",
    _join_secrets: "secret",
    bool: "switch",
    SecretStr: "secret",
    Path: "path",
    int: "number",
    float: "number",
}


def kind_of(field: FieldInfo) -> Kind:
    functions = {item.func for item in field.metadata if isinstance(item, BeforeValidator)}
    if functions:
        return _KINDS[functions.pop()]
    if get_origin(field.annotation) is Literal:
        return "choice"
    return _KINDS.get(field.annotation, "text")


def format_value(value: object, kind: Kind = "text") -> str:
    """A value as text for a flag or a variable; secrets are masked."""
    if kind == "duration" and isinstance(value, float):
        return format_duration(value)
    if kind == "size" and isinstance(value, int):
        unit = next((unit for unit in "gmk" if value and value % _BYTES[unit] == 0), "")
        return f"{value // _BYTES[unit]}{unit.upper()}iB" if unit else str(value)
    if isinstance(value, SecretStr):
        return MASK if value.get_secret_value() else ""
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return ""
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def display_value(name: str, value: object, kind: Kind) -> str:
    """As `format_value`, and masks the login in a URL, too."""
    if name in _URL_SETTINGS:
        parts = value if isinstance(value, tuple) else (value,)  # pyright: ignore[reportUnknownVariableType]
        return ",".join(shown_url(str(part)) for part in parts)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return format_value(value, kind)
