"""The commands that change: register, deregister, modify, beat."""

from __future__ import annotations

import shlex
import signal
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import click

from nacos_proxy.cli.client_options import (
    AddressParameter,
    Asked,
    Seconds,
    Weight,
    client_command,
    metadata_of,
    warn,
)
from nacos_proxy.cli.rest_client import (
    ApiProblem,
    Unreached,
    place_of,
    service_path,
)

COMMAND_TTL = 30.0  # seconds that a command without a check of its own is believed to live
COMMAND_BEAT = 5.0  # seconds between two looks at it


@client_command("register")
@click.argument("service")
@click.argument("address", metavar="IP:PORT", type=AddressParameter())
@click.option("--weight", type=Weight())
@click.option("--cluster", default="")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE")
@click.option("--ephemeral/--persistent", default=True)
@click.option("--enabled/--disabled", default=True)
@click.option("--healthy/--unhealthy", default=True)
@click.option("--managed", is_flag=True, help="Let the proxy beat for it.")
@click.option("--check-http", metavar="URL", help="Managed: it lives while this answers with 2xx.")
@click.option("--check-tcp", metavar="HOST:PORT", help="Managed: it lives while this accepts connections.")
@click.option("--check-ttl", metavar="DURATION", help="Managed: it lives while `beat` comes this often.")
@click.option("--interval", default="5s", show_default=True, help="Managed: how often the check runs.")
@click.option("--failures", default=3, show_default=True, help="Managed: failures in a row until its beats stop.")
@click.option("--deregister-after", metavar="DURATION", help="Managed: how long it may fail until it is deregistered.")
@click.argument("command", nargs=-1, metavar="[-- COMMAND …]")
def register(asked: Asked, service: str, address: str, command: tuple[str, ...], **options: Any) -> None:
    """Register an instance. With --managed and a COMMAND: run it, beat for it, deregister when it ends."""
    ip, _, port = address.rpartition(":")
    body: dict[str, Any] = {"ip": ip.strip("[]"), "port": int(port), "metadata": metadata_of(options["metadata"])}
    body |= {name: options[name] for name in ("ephemeral", "enabled", "healthy")}
    body |= {"weight": options["weight"]} if options["weight"] is not None else {}
    body |= {"clusterName": options["cluster"]} if options["cluster"] else {}
    checks = {kind: options[f"check_{kind}"] for kind in ("http", "tcp", "ttl") if options[f"check_{kind}"]}
    if (checks or command) and not options["managed"]:
        raise click.UsageError("a check or a COMMAND needs --managed")
    if options["managed"]:
        check = checks or ({"ttl": f"{COMMAND_TTL:g}s"} if command else {})
        if len(check) != 1:
            raise click.UsageError("--managed needs one of --check-http, --check-tcp, --check-ttl")
        body["managed"] = {"interval": options["interval"], "failures": options["failures"], "check": check}
        body["managed"] |= {"deregisterAfter": options["deregister_after"]} if options["deregister_after"] else {}
    if command:
        raise SystemExit(_run_managed(asked, service, address, body, command))
    made = asked.client.json("POST", service_path(service, "instances"), asked.where, body)
    asked.show(made, lambda: click.echo(f"registered {address} in {service}"))


def _run_managed(asked: Asked, service: str, address: str, body: dict[str, Any], command: tuple[str, ...]) -> int:
    """The exit code of the command; its instance lives as long as it does. Told to stop, we stop it first."""
    stops = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    told: list[int] = []  # while the command is being started: an interrupt would leave it behind without us
    for number in stops:
        signal.signal(number, lambda number, _: told.append(number))
    try:
        child = subprocess.Popen(command)
    except OSError as error:
        raise click.UsageError(f"{shlex.join(command)} cannot be run: {error.strerror}") from error
    path = service_path(service, "instances", place_of(address))
    try:
        for number in stops:
            signal.signal(number, signal.default_int_handler)
        if told:
            raise KeyboardInterrupt
        asked.client.call("POST", service_path(service, "instances"), asked.where, body)
        while _runs(child, COMMAND_BEAT):
            if "ttl" in body["managed"]["check"]:
                _quietly(lambda: asked.client.call("PUT", f"{path}/beat", asked.where))
    except KeyboardInterrupt:
        pass
    finally:
        if child.poll() is None:
            child.terminate()
        code = child.wait()
        _quietly(lambda: asked.client.call("DELETE", path, asked.where))
    return code if code >= 0 else 128 - code  # as a shell tells of a signal


def _runs(child: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether it still runs after so long."""
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def _quietly(call: Callable[[], object]) -> None:
    try:
        call()
    except (ApiProblem, Unreached) as error:
        warn(error)


@client_command("deregister")
@click.argument("service")
@click.argument("address", metavar="IP:PORT", type=AddressParameter())
@click.option("--cluster", default="")
@click.option("--ephemeral/--persistent", default=True)
def deregister(asked: Asked, service: str, address: str, cluster: str, ephemeral: bool) -> None:
    """Deregister an instance; of an unknown one it is a success."""
    query = {**asked.where, "cluster": cluster, "ephemeral": str(ephemeral).lower()}
    asked.client.call("DELETE", service_path(service, "instances", place_of(address)), query)
    asked.show({"deregistered": address}, lambda: click.echo(f"deregistered {address} from {service}"))


@client_command("modify")
@click.argument("service")
@click.argument("address", metavar="IP:PORT", type=AddressParameter())
@click.option("--cluster", default="")
@click.option("--weight", type=Weight())
@click.option("--enabled/--disabled", default=None)
@click.option("--metadata", multiple=True, metavar="KEY=VALUE")
def modify(asked: Asked, service: str, address: str, cluster: str, weight: float | None, enabled: bool | None,
           metadata: tuple[str, ...]) -> None:  # fmt: skip
    """Change what is named and nothing else."""
    body: dict[str, Any] = {"weight": weight} if weight is not None else {}
    body |= {"enabled": enabled} if enabled is not None else {}
    body |= {"metadata": metadata_of(metadata)} if metadata else {}
    if not body:
        raise click.UsageError("name what to change: --weight, --enabled or --disabled, --metadata")
    query = {**asked.where, "cluster": cluster}
    made = asked.client.json("PATCH", service_path(service, "instances", place_of(address)), query, body)
    asked.show(made, lambda: click.echo(f"changed {address} of {service}"))


@client_command("beat")
@click.argument("service")
@click.argument("address", metavar="IP:PORT", type=AddressParameter())
@click.option("--cluster", default="")
@click.option("--every", type=Seconds(), help="Keep beating until interrupted.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many beats.")
def beat(asked: Asked, service: str, address: str, cluster: str, every: float | None, count: int | None) -> None:
    """Send a heartbeat. With --every a beat that fails is tried again with the next one."""
    path = service_path(service, "instances", place_of(address), "beat")
    pause, left = threading.Event(), count or (1 if every is None else 0)
    try:
        while True:
            try:
                body = asked.client.json("PUT", path, {**asked.where, "cluster": cluster})
                asked.show(body, lambda body=body: click.echo(f"next beat in {body['clientBeatInterval'] / 1000:g} s"))
            except (Unreached, ApiProblem) as error:
                if every is None or (isinstance(error, ApiProblem) and not error.passing):
                    raise
                warn(f"{error} Trying again.")
            left -= 1
            if left == 0:
                return
            pause.wait(every)
    except KeyboardInterrupt:
        return
