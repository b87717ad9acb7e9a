"""The status page: one HTML document made from the status object.

Anyone who can register an instance can put text on it. So all text is escaped, none of it becomes a link, and the
Content-Security-Policy forbids scripts and loading anything.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import urlencode

from nacos_proxy.model.services import EMPTY, Metadata

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#1c2733;background:#fff}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #dde3ea}
td{overflow-wrap:anywhere}th{color:#5a6b7d;font-weight:600;white-space:nowrap}th,td{vertical-align:top}
a{color:inherit}
code{font:13px ui-monospace,monospace}.ready,.up,.fresh,.ok{color:#11703a}.degraded,.stale{color:#8a5a00}
.unready,.down,.expired,.missing,.failing,.lost{color:#a3160c}.muted{color:#5a6b7d}
@media(prefers-color-scheme:dark){body{color:#dbe4ee;background:#141a21}th,td{border-color:#2b3642}
th,.muted{color:#93a4b7}.ready,.up,.fresh,.ok{color:#5fd28c}.degraded,.stale{color:#e8b04a}
.unready,.down,.expired,.missing,.failing,.lost{color:#ff8d80}}
"""
_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
MAX_HOSTS = 50
_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def page(
    status: Mapping[str, Any],
    rows_of_services: Sequence[str],
    ready: str,
    reasons: Sequence[str],
    carried: Mapping[str, str] = EMPTY,
) -> bytes:
    """The document in UTF-8. It reloads itself every five seconds.

    The caller makes `rows_of_services` with `service_row`, with pauses, so as not to block the event loop. `carried`
    are parameters for the links: the token in the page's own address, because a link sends no header.
    """
    rows = "".join(f"<tr><th>{_text(name)}</th><td>{value}</td></tr>" for name, value in _facts(status, ready, reasons))
    services = "".join(rows_of_services)
    if not services:
        services = '<tr><td colspan="6" class="muted">no service was read or registered yet</td></tr>'
    hidden = status["servicesTotal"] - len(rows_of_services)
    more = f'<p class="muted">and {hidden} more</p>' if hidden else ""
    head = "<tr><th>Service</th><th>State</th><th>Age</th><th>Healthy</th><th>Listeners</th><th>Instances</th></tr>"
    more_query = _text(f"?{urlencode(carried)}") if carried else ""
    html = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="5">'
        '<meta name="viewport" content="width=device-width"><title>nacos-proxy</title>'
        f"<style>{_STYLE}</style></head><body><h1>nacos-proxy {_text(status['version'])}</h1>"
        f'<p><a href="/docs">API</a> · <a href="/status{more_query}">status</a> · '
        f'<a href="/metrics{more_query}">metrics</a></p>'
        f"<table>{rows}</table><h2>Services ({_text(status['servicesTotal'])})</h2>"
        f"<table>{head}{services}</table>{more}</body></html>"
    )
    return html.encode("utf-8", "replace")


def _facts(status: Mapping[str, Any], ready: str, reasons: Sequence[str]) -> list[tuple[str, str]]:
    """Facts about the whole proxy: names, and values in HTML."""
    upstream, push, disk = (status[name] for name in ("upstream", "push", "disk"))
    reason = f": {_text(upstream['reason'])}" if upstream["reason"] else ""
    note = f", {_text(upstream['note'])}" if "note" in upstream else ""
    servers = "".join(f"<br>{_server(server)}" for server in upstream.get("servers", ()))
    return [
        ("State", _state(ready) + "".join(f"<br>{_text(reason)}" for reason in reasons)),
        ("Upstream", f"{_state(upstream['state'])} for {_time(upstream['forSeconds'])}{note}{reason}{servers}"),
        ("Push", f"{_state(push['state'])} {_text(push.get('reason', ''))}"),
        ("Disk", f"{_state(disk['state'])} {_text(disk.get('reason', ''))}"),
        *([("Service files", _service_files(status["serviceFiles"]))] if "serviceFiles" in status else []),
        *([("Webhooks", "<br>".join(map(_webhook, status["webhooks"])))] if status.get("webhooks") else []),
        ("Event streams", _text(status["subscribers"]["streams"])),
        *([("gRPC", _grpc(status["grpc"]))] if "grpc" in status else []),
        *([("DNS", _dns(status["dns"]))] if "dns" in status else []),
        ("Registered here", _text(status["registrations"])),
        *(
            [("Out of traffic", _out_of_traffic(out))]
            if (out := status.get("outOfTraffic", EMPTY)).get("shown")
            else []
        ),
        *((_text(name.replace("_", " ")).capitalize(), _count(value)) for name, value in status["counts"].items()),
        ("Up for", _time(status["uptimeSeconds"])),
    ]


def _service_files(files: Mapping[str, Any]) -> str:
    errors = "".join(f"<br>{_text(name)}: {_text(error)}" for name, error in files["errors"].items())
    return f"{_state(files['state'])} {_text(files['files'])} in {_text(files['directory'])}{errors}"


def _webhook(hook: Mapping[str, Any]) -> str:
    error = f" {_text(hook['error'])}" if hook["error"] else ""
    return f"{_text(hook['webhook'])} <code>{_text(hook['host'])}</code> {_state(hook['state'])}{error}"


def _out_of_traffic(out: Mapping[str, Any]) -> str:
    lines = [_out(row) for row in out["shown"]]
    more = out["instances"] - len(lines)
    return "<br>".join([*lines, *([f'<span class="muted">and {more} more</span>'] if more else [])])


def _out(row: Mapping[str, Any]) -> str:
    time = f"for {_time(row['forSeconds'])}" if "forSeconds" in row else f"{_time(row['secondsLeft'])} left"
    reason = f": {_text(row['reason'])}" if row["reason"] else ""
    head = f"<code>{_text(row['address'])}</code> {_text(row['service'])} {_state(row['state'])}"
    return f'{head} <span class="muted">{time}</span>{reason}'


def _grpc(grpc: Mapping[str, Any]) -> str:
    if grpc["state"] == "off":
        return f"{_state('off')} {_text(grpc['reason'])}"
    return f"{_state(grpc['state'])} on port {_text(grpc['port'])}, {_text(grpc['sessionsTotal'])} sessions"


def _dns(dns: Mapping[str, Any]) -> str:
    if dns["state"] == "off":
        return f"{_state('off')} {_text(dns['reason'])}"
    return f"{_state(dns['state'])} on {_text(', '.join(dns['addresses']))}, {_count(dns['answers'])}"


def _server(server: Mapping[str, Any]) -> str:
    version = f" version {_text(server['version'])}" if server["version"] else ""
    error = f" {_text(server['error'])}" if server["error"] else ""
    tail = f'<span class="muted">{_text(server["latencyMs"])} ms{error}</span>'
    return f"<code>{_text(server['url'])}</code> {_state(server['state'])}{version} {tail}"


def service_row(row: Mapping[str, Any]) -> str:
    """A service of the status object as a row of the table, in HTML."""
    group, _, service = row["service"].partition("@@")
    name = f'{_text(service)}<br><span class="muted">{_text(group)} in {_text(row["namespaceId"])}</span>'
    age = "" if row["ageSeconds"] is None else _time(row["ageSeconds"])
    error = f'<br><span class="muted">{_text(row["error"])}</span>' if row["error"] else ""
    cells = (
        name,
        _state(row["state"]) + error,
        age,
        f"{_text(row['healthy'])} of {_text(row['instances'])}",
        _text(row["subscribers"]),
        _hosts(row.get("hosts", ()), row["instances"]),
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _hosts(hosts: Sequence[tuple[str, str, float, bool, bool, Metadata]], number: int) -> str:
    lines = [_host(*host) for host in hosts[:MAX_HOSTS]]
    if number > len(lines):
        lines.append(f'<span class="muted">and {number - len(lines)} more</span>')
    return "<br>".join(lines)


def _host(address: str, cluster: str, weight: float, healthy: bool, enabled: bool, metadata: Metadata) -> str:
    state = "off" if not enabled else "ok" if healthy else "down"
    pairs = " ".join(f"{name}={'null' if value is None else value}" for name, value in sorted(metadata.items()))
    tail = f' <span class="muted">{_text(cluster)} weight {_text(f"{weight:g}")} {_text(pairs)}</span>'
    return f"<code>{_text(address)}</code> {_state(state)}{tail}"


def _count(value: Mapping[str, int] | int) -> str:
    """A number, or numbers by their names."""
    if isinstance(value, int):
        return _text(value)
    return ", ".join(f"{number} {_text(name)}" for name, number in value.items()) or "0"


def _time(seconds: float) -> str:
    """In the two largest units: `3 d 4 h`, `59 s`."""
    left, parts = int(seconds), list[str]()
    for unit, size in _UNITS:
        number, left = divmod(left, size)
        if number or (unit == "s" and not parts):
            parts.append(f"{number} {unit}")
        elif parts:
            break
    return " ".join(parts[:2])


def _state(state: str) -> str:
    """In its colour."""
    return f'<span class="{_text(state)}">{_text(state)}</span>'


def _text(value: object) -> str:
    return escape(str(value), quote=True)
