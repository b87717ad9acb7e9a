"""`nacos-proxy render` with real nginx, HAProxy and Caddy, as docs/recipes has them: services scale under load."""

from __future__ import annotations

import getpass
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.e2e.test_tools import SAFE, TRAPS, checked, tool
from tests.helpers.live import Process, ProxyProcess, free_port
from tests.helpers.recipes import block
from tests.helpers.scaling import Backends, scales, steady


class Command(Process):
    """A command line of a recipe, against a proxy."""

    def __init__(self, proxy: ProxyProcess, command: str, *more: str) -> None:
        program, *arguments = shlex.split(command)
        assert program == "nacos-proxy"
        environ = {**os.environ, "NACOS_PROXY_SERVER": proxy.url, "PATH": f"{os.environ['PATH']}:/usr/sbin"}
        super().__init__([sys.executable, "-m", "nacos_proxy", *arguments, *more], env=environ)


class Rendering(Command):
    """`nacos-proxy render` as a recipe has it."""

    def start(self) -> None:
        """Returns when the file is there."""
        super().start()
        self.wait_for(re.compile("wrote /"))


def script(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


# Each starts one program with the files and the command of its recipe, and returns the port that it listens on.


def nginx(directory: Path, proxy: ProxyProcess, stack: ExitStack) -> int:
    program, port, config = tool("nginx"), free_port(), directory / "nginx.conf"
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {directory}/{kind};" for kind in kinds)
    here = {"/etc/nginx/nacos": f"{directory}/nacos"}
    site = block("nginx", "site.conf", {**here, "listen 80": f"listen 127.0.0.1:{port}"})
    config.write_text(
        f"daemon off; pid {directory}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {temporary}\n{site}}}\n"
    )
    (directory / "nacos").mkdir()
    check = script(directory / "check-nginx", block("nginx", "check-nginx"))
    reload = script(
        directory / "reload", f"#!/bin/sh\n[ ! -e {directory}/pid ] || nginx -s reload -c {config} -e stderr\n"
    )
    here |= {"nginx -s reload": reload, "/usr/local/bin/check-nginx": check}
    command = block("nginx", "render", here)
    stack.enter_context(Rendering(proxy, command, "--allow-empty"))
    stack.enter_context(Process([program, "-c", str(config), "-e", "stderr"]))
    return port


def haproxy(directory: Path, proxy: ProxyProcess, stack: ExitStack) -> int:
    program, port, pid, config = tool("haproxy"), free_port(), directory / "pid", directory / "haproxy.cfg"
    config.write_text(block("haproxy", "haproxy.cfg", {"bind :80": f"bind 127.0.0.1:{port}"}))
    # What ExecReload in Debian's unit of HAProxy does.
    reload = script(directory / "reload", f"#!/bin/sh\n[ ! -e {pid} ] || kill -USR2 $(cat {pid})\n")
    here = {"/etc/haproxy": str(directory), "systemctl reload haproxy": reload}
    command = block("haproxy", "render", here)
    stack.enter_context(Rendering(proxy, command, "--allow-empty"))
    run = [program, "-W", "-p", str(pid), "-f", str(config), "-f", str(directory / "nacos.cfg")]
    stack.enter_context(Process(run))
    return port


def caddy(directory: Path, proxy: ProxyProcess, stack: ExitStack) -> int:
    program, port, admin, config = tool("caddy"), free_port(), free_port(), directory / "Caddyfile"
    file = block("caddy", "Caddyfile", {"/etc/caddy": str(directory), ":80": f"http://127.0.0.1:{port}"})
    config.write_text(f"{{\n\tadmin 127.0.0.1:{admin}\n}}\n{file}")
    (directory / "nacos").mkdir()
    # Until Caddy runs, the reload fails and is tried again.
    stack.enter_context(Rendering(proxy, block("caddy", "render", {"/etc/caddy": str(directory)}), "--allow-empty"))
    stack.enter_context(Process([program, "run", "--config", str(config)], env={**os.environ, "HOME": str(directory)}))
    return port


@pytest.fixture(params=["embedded", "away"])
def proxy(request: pytest.FixtureRequest) -> Iterator[ProxyProcess]:
    """A proxy with a registry of its own, or with an upstream that does not answer."""
    away = ("--upstream", f"http://127.0.0.1:{free_port()}") if request.param == "away" else ()
    with ProxyProcess(*away) as proxy:
        yield proxy


@pytest.fixture
def running() -> Iterator[ProxyProcess]:
    with ProxyProcess() as proxy:
        yield proxy


def test_render_recipes_scale_without_a_failed_request(proxy: ProxyProcess, tmp_path: Path) -> None:
    """One load through all three programs: a request fails only while nothing is registered."""
    programs: list[Callable[[Path, ProxyProcess, ExitStack], int]] = [nginx, haproxy, caddy]
    with ExitStack() as stack:
        backends = stack.enter_context(Backends(proxy.url, "orders"))
        backends.scale(1)
        urls = list[str]()
        for program in programs:
            (directory := tmp_path / program.__name__).mkdir()
            urls.append(f"http://127.0.0.1:{program(directory, proxy, stack)}/")
        with httpx.Client(transport=httpx.HTTPTransport(retries=8), trust_env=False) as http:
            for url in urls:
                http.get(url)  # until it listens
        turns = itertools.cycle(urls)

        def ask() -> str:
            return httpx.get(next(turns), trust_env=False, timeout=5.0).raise_for_status().text

        with steady(ask) as load:
            scales(backends, load)


def run(proxy: ProxyProcess, *arguments: str) -> None:
    """A command of `nacos-proxy`, which must succeed."""
    with Command(proxy, shlex.join(["nacos-proxy", *arguments])) as command:
        assert command.wait() == 0, command.log


def test_hosts_recipe_is_followed_by_dnsmasq(running: ProxyProcess, tmp_path: Path) -> None:
    dnsmasq, dig, port = tool("dnsmasq"), tool("dig"), free_port()
    here = {"/etc/dnsmasq.nacos": str(tmp_path)}
    config = tmp_path / ".dnsmasq.conf"
    config.write_text(
        f"{block('commands', 'dnsmasq.conf', here)}port={port}\nlisten-address=127.0.0.1\nbind-interfaces\nno-resolv\n"
        f"no-hosts\nkeep-in-foreground\nlog-facility=-\npid-file=\nuser={getpass.getuser()}\n"
    )
    run(running, "register", "orders", "10.0.0.1:80", "--persistent")
    render = Rendering(running, block("commands", "render", here), "--wait", "10ms")
    with render, Process([dnsmasq, f"--conf-file={config}"]) as server:

        def asked() -> list[str]:
            command = [dig, "+short", "+tries=1", "@127.0.0.1", "-p", str(port), "orders"]
            return sorted(subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.split())

        server.wait_for(re.compile(r"read .*/hosts - 1 names"))
        assert asked() == ["10.0.0.1"]
        run(running, "register", "orders", "10.0.0.2:80", "--persistent")
        server.wait_for(re.compile(r"read .*/hosts - 2 names"))
        assert asked() == ["10.0.0.1", "10.0.0.2"]
        said = len(server.log.splitlines())
        run(running, "deregister", "orders", "10.0.0.1:80", "--persistent")
        server.wait_for(re.compile(r"read .*/hosts - 1 names"), since=said)
        assert asked() == ["10.0.0.2"]


def test_watch_recipe_tells_what_has_changed(running: ProxyProcess, tmp_path: Path) -> None:
    command = block(
        "commands", "watch", {"/usr/local/bin/on-change --verbose": f"{sys.executable} {tmp_path}/on-change"}
    )
    (tmp_path / "on-change").write_text(block("commands", "on-change"))
    run(running, "register", "stock", "10.0.0.1:80", "--persistent")
    with Command(running, command) as watch:
        watch.wait_for(re.compile(r"added stock 10\.0\.0\.1 80"))
        run(running, "deregister", "stock", "10.0.0.1:80", "--persistent")
        watch.wait_for(re.compile(r"removed stock 10\.0\.0\.1 80"))


def test_render_recipe_has_a_template_for_all_services(running: ProxyProcess, tmp_path: Path) -> None:
    run(running, "register", "all/1", "10.0.0.1:80", "--metadata", "zone=a;b", "--group", "peers")
    (tmp_path / "app.j2").write_text(block("render", "peers.j2"))
    spec = f"{tmp_path}/app.j2:{tmp_path}/peers.conf"
    run(running, "render", spec, "--once", "--group", "peers")
    assert (tmp_path / "peers.conf").read_text() == "[all_1]\npeer = 10.0.0.1:80    ; zone a_b\n"


def test_render_recipe_templates_of_your_own_are_read_by_the_programs(running: ProxyProcess, tmp_path: Path) -> None:
    """The template for nginx is rendered without an instance, too: nginx refuses an upstream without a server."""
    (tmp_path / "nginx.j2").write_text(block("nginx", "orders.j2"))
    (tmp_path / "haproxy.j2").write_text(block("haproxy", "nacos.j2"))
    (tmp_path / "nginx.conf").write_text(f"pid {tmp_path}/pid; events {{}} http {{ include {tmp_path}/orders.conf; }}")
    (tmp_path / "haproxy.cfg").write_text(block("haproxy", "haproxy.cfg"))
    render = ("render", f"{tmp_path}/nginx.j2:{tmp_path}/orders.conf", f"{tmp_path}/haproxy.j2:{tmp_path}/nacos.cfg")
    for server in ("server 127.0.0.1:1 down;", "server 10.0.0.1:80 weight=1"):
        run(running, *render, "--once", "--allow-empty")
        checked(tool("nginx"), "-t", "-c", str(tmp_path / "nginx.conf"), "-e", "stderr")
        checked(tool("haproxy"), "-c", "-f", str(tmp_path / "haproxy.cfg"), "-f", str(tmp_path / "nacos.cfg"))
        assert server in (tmp_path / "orders.conf").read_text()
        run(running, "register", "orders", "10.0.0.1:80", "--persistent", "--metadata", "zone=a")
    assert "10.0.0.1:80" in (tmp_path / "nacos.cfg").read_text()


def test_rendered_files_of_hostile_instances_are_read_by_the_programs(running: ProxyProcess, tmp_path: Path) -> None:
    """Addresses, names and metadata that Nacos accepts and that could end a line, a quote or a block."""
    with httpx.Client(base_url=running.url, trust_env=False) as http:
        for form in (*TRAPS, *SAFE):
            metadata = json.dumps({"zone": 'a";}\nserver 10.9.9.9:1;\n#', "x\ny": "{$HOME}"})
            whole = {**form, "serviceName": "hostile", "weight": "2.5", "ephemeral": "false", "metadata": metadata}
            http.post("/nacos/v1/ns/instance", data=whole).raise_for_status()
    kinds = ("nginx", "haproxy", "caddy", "hosts")
    run(running, "render", *(f"{kind}@hostile:{tmp_path}/{kind}" for kind in kinds), "--once")
    nginx_config = f"pid {tmp_path}/pid; events {{}} http {{ include {tmp_path}/nginx; }}\n"
    (tmp_path / "nginx.conf").write_text(nginx_config)
    (tmp_path / "haproxy.cfg").write_text(block("haproxy", "haproxy.cfg").replace("orders", "hostile"))
    (tmp_path / "Caddyfile").write_text(
        f"import {tmp_path}/caddy\n:80 {{\n\treverse_proxy {{\n\t\timport hostile\n\t}}\n}}\n"
    )
    checked(tool("nginx"), "-t", "-c", str(tmp_path / "nginx.conf"), "-e", "stderr")
    checked(tool("haproxy"), "-c", "-f", str(tmp_path / "haproxy.cfg"), "-f", str(tmp_path / "haproxy"))
    adapted = checked(tool("caddy"), "adapt", "--config", str(tmp_path / "Caddyfile"))
    assert "10.9.9.9" not in adapted + "".join((tmp_path / kind).read_text() for kind in kinds)
    dialled = set(re.findall(r'"dial":"([^"]+)"', adapted))
    assert {"[2001:db8::7]:8091", "localhost:8091"} < dialled and len(dialled) == 3
