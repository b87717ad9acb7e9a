"""All formats by name. For a new one, add a module beside this one and its name here."""

from __future__ import annotations

from nacos_proxy.wire.discovery import endpointslice, haproxy, nginx, prometheus, text, traefik

FORMATS = {it.FORMAT.name: it.FORMAT for it in (prometheus, traefik, endpointslice, text, nginx, haproxy)}
