"""Templates of `render`: Jinja2 in a sandbox, its functions and filters, and the templates that are built in.

Pure but for reading template files. Which lists a template gets is decided in `cli/lists.py`.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nacos_proxy.cli.lists import BadRequest, Group, Reader, Service
from nacos_proxy.model.services import EMPTY, Instance, ServiceKey
from nacos_proxy.wire.discovery import haproxy, nginx, text
from nacos_proxy.wire.discovery.addresses import host_of
from nacos_proxy.wire.discovery.base import Format, Shown

_FIRST = "# Written by nacos-proxy render: changes to this file are lost.\n"
BUILT_IN = {
    "nginx": _FIRST
    + """\
{% for name in names %}
upstream {{ name | word }} {
{% set lines = service(name) | nginx %}
{% if lines %}
{{ lines | indent(4, first=true) }}
{% else %}
    server 127.0.0.1:1 down;
{% endif %}
}
{% endfor %}
""",
    "haproxy": _FIRST
    + """\
{% for name in names %}
backend {{ name | word }}
    balance roundrobin
{% set lines = service(name) | haproxy %}
{% if lines %}
{{ lines | indent(4, first=true) }}
{% endif %}
{% endfor %}
""",
    "caddy": _FIRST
    + """\
{% for name in names %}
({{ name | word }}) {
{% set addresses = service(name) | caddy %}
{% if addresses %}
	to {{ addresses }}
{% endif %}
}
{% endfor %}
""",
    "hosts": _FIRST
    + """\
{% for name in names %}
{% set lines = service(name) | hosts(name.split("@@")[-1]) %}
{% if lines %}
{{ lines }}
{% endif %}
{% endfor %}
""",
}

_NOT_IN_WORDS = re.compile(r"[^0-9A-Za-z_.:-]")


class TemplateError(Exception):
    """A template cannot be read or rendered; the message has its name and line."""


class Scope(NamedTuple):
    """What holds for calls in a template that name nothing else. `view`: parameters of the REST API."""

    namespace: str = ""
    group: str = ""
    view: Mapping[str, str] = EMPTY


DEFAULT = Scope()


class Template:
    """One template.

    Raises `TemplateError` if it cannot be read, has a syntax error, or uses names that do not exist.
    """

    def __init__(self, source: Path | str, names: Sequence[str] = (), scope: Scope = DEFAULT) -> None:
        """`source`: a file, or the name of a built-in template, which gets the services `names`."""
        self.name = f"{source}@{','.join(names)}" if names else str(source)
        self._names = tuple(names)
        self._default = ServiceKey.of("*", scope.group, scope.namespace)
        self._view = scope.view
        try:
            self._template = self._load(source)
        except jinja2.TemplateSyntaxError as error:
            place = f"{error.filename or self.name}:{error.lineno}"
            raise TemplateError(f"{place}: {error.message}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise TemplateError(f"{self.name} cannot be read: {getattr(error, 'strerror', None) or error}") from error

    def _load(self, source: Path | str) -> jinja2.Template:
        if isinstance(source, str):
            return _environment(jinja2.DictLoader(BUILT_IN)).get_template(source)
        text = source.read_text("utf-8")
        environment = _environment(jinja2.FileSystemLoader(source.parent))
        unknown = meta.find_undeclared_variables(environment.parse(text, filename=str(source)))
        if unknown := sorted(unknown - environment.globals.keys() - _FUNCTIONS):
            raise TemplateError(f"{source}: there is no {', '.join(unknown)}; known are service and services")
        return environment.get_template(source.name)

    def render(self, reader: Reader) -> str:
        """Raises `TemplateError`, and what the reader raises, but `BadRequest`."""

        def service(
            name: object,
            *,
            group: str = "",
            namespace: str = "",
            clusters: str = "",
            healthy_only: bool = False,
            selector: str = "",
            prefer: str = "",
            prefer_min: object = "",
            usable: bool = True,
        ) -> list[Instance]:
            if not isinstance(name, str) or not name:
                raise BadRequest(f"service() needs a name, not {name!r}")
            key = ServiceKey.of(name, group or self._default.group, namespace or self._default.namespace)
            given = {
                "clusters": clusters,
                "healthy_only": "true" if healthy_only else "",
                "selector": selector,
                "prefer": prefer,
                "prefer_min": prefer_min,
            }
            filters = tuple((name, str(text) or self._view.get(name, "")) for name, text in given.items())
            return reader.service(Service(key, tuple(row for row in filters if row[1]), usable))

        def services(*, group: str = "", namespace: str = "") -> Sequence[str]:
            return reader.names(Group(namespace or self._default.namespace, group or self._default.group))

        try:
            return self._template.render(service=service, services=services, names=self._names)
        except _FAULTS as error:
            raise TemplateError(f"{self.name}{self._line_of(error)}: {error}") from error

    def _line_of(self, error: BaseException) -> str:
        """The template's last line in the traceback: Jinja2 gives its frames the lines of the template."""
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == (self._template.filename or "<template>")]
        return f":{lines[-1]}" if lines else ""


# What the expressions of a template can raise, apart from the reader's own errors.
_FAULTS = (jinja2.TemplateError, BadRequest, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_FUNCTIONS = frozenset({"service", "services"})


def _environment(loader: jinja2.BaseLoader) -> jinja2.Environment:
    environment = ImmutableSandboxedEnvironment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(_FILTERS)
    return environment


# filters: what they write cannot be anything but the lines that they are for, whatever was registered


def _lines(shape: Format, instances: Sequence[Instance]) -> str:
    """The lines of a format, none of which names the service."""
    written = shape.of([Shown(ServiceKey("", "", ""), instances)])
    assert isinstance(written, bytes)
    return written.decode().rstrip("\n")


def _nginx(instances: Sequence[Instance], host_names: bool = False) -> str:
    """`server` lines. Host names only on request: nginx refuses its whole file if one does not resolve."""
    found = [i for i in instances if host_names or _is_ip(i.ip)]
    return _lines(nginx.FORMAT, found)


def _haproxy(instances: Sequence[Instance]) -> str:
    """`server` lines."""
    return _lines(haproxy.FORMAT, instances)


def _caddy(instances: Sequence[Instance]) -> str:
    """Addresses in a row."""
    return _lines(text.FORMAT, instances).replace("\n", " ")


def _hosts(instances: Sequence[Instance], name: str) -> str:
    """Lines of a hosts file. Raises `BadRequest` if `name` is no host name."""
    host = host_of(name)
    if not host or _is_ip(host):
        raise BadRequest(f"{name!r} is not a host name: give one, as in hosts('orders')")
    addresses = dict.fromkeys(i.ip for i in instances if _is_ip(i.ip))
    return "\n".join(f"{ip}\t{host}" for ip in addresses)


def _word(text: object) -> str:
    """A text in which all but letters, digits, `_`, `.`, `:` and `-` is `_`: one word in any configuration."""
    return _NOT_IN_WORDS.sub("_", str(text))


def _is_ip(text: str) -> bool:
    host = host_of(text)
    return host.startswith("[") or (bool(host) and host.rpartition(".")[2].isdecimal())


_FILTERS: dict[str, Callable[..., str]] = {
    "nginx": _nginx,
    "haproxy": _haproxy,
    "caddy": _caddy,
    "hosts": _hosts,
    "word": _word,
}
