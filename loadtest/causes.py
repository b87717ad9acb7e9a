"""Why a goal is missed, by the goal's name. The page shows the causes of those goals only."""

from __future__ import annotations

from collections.abc import Mapping

_POLL = (
    "A poll names the client's UDP port, so each must renew a subscription to pushes: it takes the whole way through "
    "the proxy. nginx answers it from its cache and the server never hears of the subscriber."
)
_WRITE = (
    "A write is received, parsed, sent on over a second connection, and remembered, in Python. Half of its CPU are "
    "system calls and what uvicorn and httptools do for any request."
)
_START = "Python needs most of it to import what the process consists of; the rest is reading the state file."

CAUSES: Mapping[str, str] = {
    "reads as the Java SDK polls, compared with nginx's cache": _POLL,
    "reads as the Go SDK polls, compared with nginx's cache": _POLL,
    "reads as the Node SDK polls, compared with nginx's cache": _POLL,
    "reads as the Python SDK asks, compared with nginx's cache": (
        "This SDK opens a connection for each request. To accept and close one costs asyncio several times what it "
        "costs nginx."
    ),
    "beats, compared with nginx as a reverse proxy": _WRITE,
    "registrations, compared with the same": _WRITE,
    "a beat over one connection: added to the median": _WRITE,
    "a registration over one connection: the same": _WRITE,
    "start to the first answer, 10,000 services on disk": _START,
    "p99 over 200 connections, compared with the same": (
        "One turn of the event loop serves all connections that are ready, and the garbage collector runs between them."
    ),
}
