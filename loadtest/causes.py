"""Why a goal is missed, by the goal's name. The page shows the causes of those goals only."""

from __future__ import annotations

from collections.abc import Mapping

_WRITE = (
    "76 % of the CPU is the interpreter and 13 % the kernel (`perf record`). A repeated write has no task and no "
    "parse; what is left is some hundred calls of Python functions, of which none takes more than 6 % (`cProfile`). "
    "nginx uses an eighth of that, so it leaves both cores to wrk and r-nacos, while the proxy keeps one of them busy."
)
_START = "Python needs most of it to import what the process consists of; the rest is reading the state file."
_BARE = (
    "25 % of the CPU is the interpreter (`perf record`), for some forty lines that look a head up and check that it "
    "may be answered. The bare protocol spends 9 % there and checks nothing."
)
_P99 = (
    "One turn of the event loop serves all connections that are ready, so a turn in which the proxy also polls, "
    "subscribes or collects garbage delays all of them."
)

CAUSES: Mapping[str, str] = {
    "reads as the Java SDK polls, compared with nginx's cache": "Within the spread of the rounds.",
    "reads as the Python SDK asks, compared with nginx's cache": (
        "This SDK opens a connection for each request. To accept one, to make its protocol object and to close it "
        "costs uvloop and Python twice what it costs nginx."
    ),
    "p99 of these reads, compared with nginx's cache: the worst": (
        "The worst is that of the Python SDK, which opens a connection for each request."
    ),
    "identical heads, compared with nginx's cache": (
        "The bare protocol on uvloop is the limit of one Python process, and is itself only 1.45 times as fast as "
        "nginx on this machine. The goal was set on one where nginx served half as many."
    ),
    "random services, compared with our reads of one": (
        "Within the spread of the rounds. The answers of 1,000 services are 5 MB, more than a core's cache holds."
    ),
    "p99 of identical heads, compared with the same": _P99,
    "p99 over 200 connections, compared with the same": _P99,
    "beats, compared with nginx as a reverse proxy": _WRITE,
    "registrations, compared with the same": _WRITE,
    "a beat over one connection: added to the median": _WRITE,
    "a registration over one connection: the same": _WRITE,
    "first read of a cold service: added to the median": (
        "It is some 1,000 calls of Python functions, which keep a core busy for most of that time, with push or "
        "without. A quarter is to read the list of ten instances, a quarter the exchange with the server; the rest is "
        "spread over the way through the app (`cProfile`)."
    ),
    "identical heads, compared with a bare protocol on uvloop": _BARE,
    "tiers: attempts to reconnect within 100 ms, of its hosts": (
        "The hosts share one process. It stands still for half a second while it learns that 334 connections are lost, "
        "and the attempts that were due meanwhile come at once. In every other 100 ms they are about 20 % at most."
    ),
    "start to the first answer, 10,000 services on disk": _START,
}
