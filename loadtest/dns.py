"""Answers a second by DNS (A, 8 addresses, by UDP), beside CoreDNS's cache, unbound and dnsmasq: one thread each."""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import dns.exception
import dns.message
import dns.query

from loadtest import contenders
from loadtest.contenders import Contender, Missing, free_port, register_all
from loadtest.load import Usage, find_program
from loadtest.rounds import Sample, Series, interleave

HOSTS = 8
MANY = 1000
ADDRESSES = [f"10.1.0.{n + 1}" for n in range(HOSTS)]
READY_WITHIN = 30.0


@dataclass(slots=True)
class Server:
    """A running server for the names `SERVICE.ZONE`, with the port of its DNS."""

    name: str
    port: int
    pid: int
    zone: str
    stop: Callable[[], None] = field(repr=False)


def _program(name: str, package: str) -> str:
    found = find_program(name) or next((p for p in (f"/usr/sbin/{name}",) if Path(p).is_file()), None)
    if found is None:
        raise Missing(f"{name} is not installed ({package})")
    return found


def _start(name: str, port: int, command: Sequence[str], zone: str, folder: tempfile.TemporaryDirectory[str]) -> Server:
    log = Path(folder.name) / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder.name)

    def stop() -> None:
        process.terminate()
        process.wait(10)
        folder.cleanup()

    deadline = time.perf_counter() + READY_WITHIN
    while not _answers(port, f"loadtest-0.{zone}"):
        if process.poll() is not None or time.perf_counter() > deadline:
            text = log.read_text(errors="replace")[-2000:]
            stop()
            raise RuntimeError(f"{name} did not start: {text}")
    return Server(name, port, process.pid, zone, stop)


def _answers(port: int, name: str) -> bool:
    with contextlib.suppress(OSError, dns.exception.DNSException):
        answer = dns.query.udp(dns.message.make_query(name, "A"), "127.0.0.1", port=port, timeout=0.5)
        return len(answer.answer) == 1 and len(answer.answer[0]) == HOSTS
    return False


def proxy(services: Sequence[str]) -> Server:
    port = free_port()
    ours: Contender = contenders.proxy("embedded", "--dns", f"127.0.0.1:{port}", "--no-grpc")
    register_all(ours.url, services, HOSTS)
    if not _answers(port, f"{services[0]}.nacos"):
        ours.stop()
        raise RuntimeError("the proxy does not answer by DNS")
    return Server("nacos-proxy", port, ours.process.pid, "nacos", ours.stop)


def coredns(services: Sequence[str]) -> Server:
    """Its cache in front of its own template: what it does for a name that another server knows."""
    program = _program("coredns", "https://github.com/coredns/coredns/releases")
    port, source, folder = free_port(), free_port(), tempfile.TemporaryDirectory()
    answers = "\n".join(f'        answer "{{{{ .Name }}}} 60 IN A {address}"' for address in ADDRESSES)
    config = Path(folder.name) / "Corefile"
    config.write_text(
        f"test:{source} {{\n    bind 127.0.0.1\n    template IN A {{\n{answers}\n    }}\n}}\n"
        f".:{port} {{\n    bind 127.0.0.1\n    cache 60\n    loadbalance\n    forward . 127.0.0.1:{source}\n}}\n"
    )
    return _start("CoreDNS cache", port, ["env", "GOMAXPROCS=1", program, "-conf", str(config)], "test", folder)


def unbound(services: Sequence[str]) -> Server:
    port, folder = free_port(), tempfile.TemporaryDirectory()
    config = Path(folder.name) / "unbound.conf"
    rows = "".join(f'    local-data: "{name}.test. 60 A {ip}"\n' for name in services for ip in ADDRESSES)
    config.write_text(
        f'server:\n    interface: 127.0.0.1@{port}\n    num-threads: 1\n    chroot: ""\n    username: ""\n'
        f'    pidfile: ""\n    use-syslog: no\n    rrset-roundrobin: yes\n    local-zone: "test." static\n{rows}'
    )
    return _start("unbound", port, [_program("unbound", "Debian: unbound"), "-d", "-c", str(config)], "test", folder)


def dnsmasq(services: Sequence[str]) -> Server:
    port, folder = free_port(), tempfile.TemporaryDirectory()
    hosts = Path(folder.name) / "hosts"
    hosts.write_text("".join(f"{ip} {name}.test\n" for name in services for ip in ADDRESSES))
    command = [_program("dnsmasq", "Debian: dnsmasq"), "--keep-in-foreground", "--conf-file=/dev/null", "--no-hosts"]
    command += [f"--addn-hosts={hosts}", "--no-resolv", "--listen-address=127.0.0.1", "--bind-interfaces"]
    command += [f"--port={port}", "--pid-file=", "--user=root", "--cache-size=10000", "--local-ttl=60"]
    return _start("dnsmasq", port, command, "test", folder)


def measure(server: Server, services: Sequence[str], seconds: float) -> Sample:
    """dnsperf with one thread, 4 sockets and 100 queries under way."""
    usage = Usage(server.pid)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as queries:
        queries.write("".join(f"{name}.{server.zone} A\n" for name in services))
        queries.flush()
        command = ["dnsperf", "-s", "127.0.0.1", "-p", str(server.port), "-d", queries.name, "-c", "4", "-q", "100"]
        command += ["-T", "1", "-e", "-l", str(max(1, round(seconds)))]
        said = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=True).stdout

    def figure(pattern: str) -> float:
        found = re.search(pattern, said)
        if found is None:
            raise RuntimeError(f"dnsperf printed no {pattern}: {said}")
        return float(found[1])

    done = figure(r"Queries completed: +(\d+)")
    if figure(r"Queries lost: +(\d+)") > done / 1000 or "NOERROR" not in said:
        raise RuntimeError(f"{server.name} lost queries: {said}")
    mean = 1000 * figure(r"Average Latency \(s\): +([\d.]+)")
    return Sample(server.name, {"rate": figure(r"per second: +([\d.]+)"), "mean": mean, **usage.figures(done)})


def run(quick: bool, upstream: str | None, say: Callable[[str], None]) -> Iterator[tuple[Series, str, str]]:
    """Yields each question's series with its baseline and the figure that counts."""
    _program("dnsperf", "Debian: dnsperf")
    seconds, rounds, many = (2.0, 2, 100) if quick else (6.0, 5, MANY)
    services = [f"loadtest-{n}" for n in range(many)]
    field: list[Server] = []
    try:
        for start in (coredns, unbound, dnsmasq, proxy):
            try:
                field.append(start(services))
            except Missing as error:
                say(f"left out: {error}")
        for question, asked in (("DNS, one service of 8 hosts", services[:1]), (f"DNS, {many} services", services)):
            series = Series(question)
            by_name = {server.name: server for server in field}
            for server in field:
                measure(server, asked, 1.0)
            for number, name in interleave(list(by_name), rounds):
                series.add(measure(by_name[name], asked, seconds))
                say(f"{question}, round {number + 1}, {name}: {series.samples[-1].figures['rate']:,.0f}/s")
            yield series, field[0].name, "rate"
    finally:
        for server in field:
            server.stop()
