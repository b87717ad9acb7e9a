"""`python -m nacos_proxy.cli.health`: the health check of a container, which asks the proxy for `/readyz`.

It takes the address from the settings (environment and file, no flags). Exit codes: 0 ready or degraded, 1 not ready.
With `--live` it asks for `/healthz`, and 0 says that the process answers, even while Nacos is down.
It runs every few seconds, so it imports little. It sends no secret, so it does not verify the certificate.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import sys

from nacos_proxy.app.failures import BadSettings
from nacos_proxy.app.settings import Settings, load

MAX_ANSWER = 10_000  # bytes
TIMEOUT = 2.0  # seconds
READY, LIVE = "/readyz", "/healthz"
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # the address to connect to, if the proxy listens on all addresses


def ready(s: Settings, timeout: float = TIMEOUT, path: str = READY) -> tuple[bool, str]:
    """Whether the proxy is ready, and its answer. `timeout`: seconds for connecting and for each part of the answer."""
    try:
        connection = _connect(s, timeout)
    except OSError as error:
        return False, f"no answer: {error.strerror or error}"
    http_connection = http.client.HTTPConnection("localhost")
    try:
        http_connection.sock = connection if s.tls_cert is None else _start_tls(connection)
        http_connection.request("GET", path)
        reply = http_connection.getresponse()
        return reply.status == 200, reply.read(MAX_ANSWER).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        if s.tls_client_ca is not None and not isinstance(error, TimeoutError):
            return True, "the proxy answers, but requires a client certificate"
        return False, f"no answer: {error}"
    finally:
        http_connection.close()
        connection.close()  # no effect after TLS took it over


def _connect(s: Settings, timeout: float) -> socket.socket:
    if s.uds is None:
        return socket.create_connection((LOOPBACK.get(s.host, s.host), s.port), timeout)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    try:
        connection.connect(str(s.uds))
    except OSError:
        connection.close()
        raise
    return connection


def _start_tls(connection: socket.socket) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(connection)


def main() -> int:
    path = LIVE if sys.argv[1:] == ["--live"] else READY
    try:
        is_ready, answer = ready(load({}).settings, path=path)
    except BadSettings as error:
        is_ready, answer = False, str(error)
    print(answer)
    return 0 if is_ready else 1


if __name__ == "__main__":
    sys.exit(main())
