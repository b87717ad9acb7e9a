"""`python -m nacos_proxy.cli.health`: a container's health check; is the proxy of these settings ready?

Not for: people (`nacos-proxy doctor`). It asks `/readyz` where the settings say that the proxy listens, with TLS or on
a Unix socket where they say so, and knows no flags: the variables and the file. Exit codes: 0 ready or degraded, 1 not.
It runs every few seconds, so it imports little; of the answer's certificate nothing is asked, as it is told nothing.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import sys

from nacos_proxy.app.settings import BadSettings, Settings, load

MOST = 10_000  # bytes of the answer that are read
PATIENCE = 2.0
ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # who listens everywhere is here, too


def ready(s: Settings, patience: float = PATIENCE) -> tuple[bool, str]:
    """Whether it is, and what was seen. `patience`: seconds for a connection, and for each part of the answer."""
    try:
        connection = _connected(s, patience)
    except OSError as error:
        return False, f"no answer: {error.strerror or error}"
    asking = http.client.HTTPConnection("localhost")
    try:
        asking.sock = connection if s.tls_cert is None else _encrypted(connection)
        asking.request("GET", "/readyz")
        reply = asking.getresponse()
        return reply.status == 200, reply.read(MOST).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        if s.tls_client_ca is not None and not isinstance(error, TimeoutError):
            return True, "it answers, and says more to those alone who show a certificate"
        return False, f"no answer: {error}"
    finally:
        asking.close()
        connection.close()  # where TLS has not taken it over


def _connected(s: Settings, patience: float) -> socket.socket:
    if s.uds is None:
        return socket.create_connection((ANY.get(s.host, s.host), s.port), patience)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(patience)
    try:
        connection.connect(str(s.uds))
    except OSError:
        connection.close()
        raise
    return connection


def _encrypted(connection: socket.socket) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(connection)


def main() -> int:
    try:
        well, seen = ready(load({}).settings)
    except BadSettings as error:
        well, seen = False, str(error)
    print(seen)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
