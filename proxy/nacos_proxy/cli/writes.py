"""The commands that write: register, deregister, modify, drain, maintenance, beat."""

from __future__ import annotations

import shlex
import signal
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import click

from nacos_proxy.cli.client_options import (
    ADDRESS,
    DURATION,
    WEIGHT,
    Session,
    client_command,
    metadata_of,
    warn,
)
from nacos_proxy.cli.rest_client import ApiProblem, Unreached, address_segment, service_path

COMMAND_TTL = 30.0  # seconds after the last heartbeat for a COMMAND without a check until it counts as failed
DRAIN_ATTEMPTS = 60  # once a second, while the proxy restarts
COMMAND_BEAT = 5.0  # seconds between two heartbeats for a COMMAND


@client_command("register")
@click.argument("service")
@click.argument("address", metavar="IP:PORT", type=ADDRESS)
@click.option("--weight", type=WEIGHT)
@click.option("--cluster", default="")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE")
@click.option("--ephemeral/--persistent", default=True)
@click.option("--enabled/--disabled", default=True)
@click.option("--healthy/--unhealthy", default=True)
@click.option("--managed", is_flag=True, help="Let the proxy send its heartbeats.")
@click.option("--check-http", metavar="URL", help="Managed: healthy while this URL answers with 2xx.")
@click.option("--check-tcp", metavar="HOST:PORT", help="Managed: healthy while this accepts connections.")
@click.option("--check-ttl", metavar="DURATION", help="Managed: healthy while `beat` is called at least this often.")
@click.option("--interval", default="5s", show_default=True, help="Managed: time between two checks.")
@click.option("--failures", default=3, show_default=True, help="Managed: failures in a row that stop its heartbeats.")
@click.option("--deregister-after", metavar="DURATION", help="Managed: deregister it after it failed for this long.")
@click.argument("command", nargs=-1, metavar="[-- COMMAND …]")
def register(session: Session, service: str, address: str, command: tuple[str, ...], **options: Any) -> None:
    """Register an instance.

    With --managed and a COMMAND: run the command, send heartbeats while it runs, deregister the instance when it ends.
    """
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
        raise SystemExit(_run_managed(session, service, address, body, command))
    registered = session.json("POST", service_path(service, "instances"), body)
    session.show(registered, lambda: click.echo(f"registered {address} in {service}"))


def _run_managed(session: Session, service: str, address: str, body: dict[str, Any], command: tuple[str, ...]) -> int:
    """Runs the command and returns its exit code. SIGINT and SIGTERM stop the command first, then us."""
    stops = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    received: list[int] = []  # signals during the start, when an exception would leave the command running
    for number in stops:
        signal.signal(number, lambda number, _: received.append(number))
    try:
        child = subprocess.Popen(command)
    except OSError as error:
        raise click.UsageError(f"{shlex.join(command)} cannot be run: {error.strerror}") from error
    path = service_path(service, "instances", address_segment(address))
    try:
        for number in stops:
            signal.signal(number, signal.default_int_handler)
        if received:
            raise KeyboardInterrupt
        session.call("POST", service_path(service, "instances"), body)
        while _still_runs(child, COMMAND_BEAT):
            if "ttl" in body["managed"]["check"]:
                _warn_on_failure(lambda: session.call("PUT", f"{path}/beat"))
    except KeyboardInterrupt:
        pass
    finally:
        if child.poll() is None:
            child.terminate()
        code = child.wait()
        _warn_on_failure(lambda: session.call("DELETE", path))
    return code if code >= 0 else 128 - code  # as a shell reports a signal


def _still_runs(child: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def _warn_on_failure(call: Callable[[], object]) -> None:
    try:
        call()
    except (ApiProblem, Unreached) as error:
        warn(error)


@client_command("deregister")
@click.argument("service")
@click.argument("address", metavar="IP:PORT", type=ADDRESS)
@click.option("--cluster", default="")
@click.option("--ephemeral/--persistent", default=True)
def deregister(session: Session, service: str, address: str, cluster: str, ephemeral: bool) -> None:
    """Deregister an instance. An unknown instance is no error."""
    path = service_path(service, "instances", address_segment(address))
    session.call("DELETE", path, cluster=cluster, ephemeral=str(ephemeral).lower())
    session.show({"deregistered": address}, lambda: click.echo(f"deregistered {address} from {service}"))


@client_command("modify")
@click.argument("service")
@click.argument("address", metavar="IP:PORT", type=ADDRESS)
@click.option("--cluster", default="")
@click.option("--weight", type=WEIGHT)
@click.option("--enabled/--disabled", default=None)
@click.option("--metadata", multiple=True, metavar="KEY=VALUE")
def modify(session: Session, service: str, address: str, cluster: str, weight: float | None,
           enabled: bool | None, metadata: tuple[str, ...]) -> None:  # fmt: skip
    """Change the given properties of an instance and nothing else."""
    body: dict[str, Any] = {"weight": weight} if weight is not None else {}
    body |= {"enabled": enabled} if enabled is not None else {}
    body |= {"metadata": metadata_of(metadata)} if metadata else {}
    if not body:
        raise click.UsageError("nothing to change: give --weight, --enabled or --disabled, or --metadata")
    path = service_path(service, "instances", address_segment(address))
    changed = session.json("PATCH", path, body, cluster=cluster)
    session.show(changed, lambda: click.echo(f"changed {address} of {service}"))


@client_command("drain")
@click.argument("service")
@click.argument("address", metavar="IP:PORT", type=ADDRESS)
@click.option("--wait", type=DURATION, default="20s", show_default=True, help="Time for consumers to notice.")
@click.option("--cluster", default="")
@click.option("--cancel", is_flag=True, help="Bring the instance back.")
def drain(session: Session, service: str, address: str, wait: float, cluster: str, cancel: bool) -> None:
    """Take an instance out of traffic, wait, and deregister it; for a hook that runs before the instance ends.

    The proxy goes on if this command is interrupted. If the proxy restarts meanwhile, this command waits for it.
    """
    path = service_path(service, "instances", address_segment(address), "drain")
    if cancel:
        body = session.json("DELETE", path)
        return session.show(body, lambda: click.echo(f"{address} of {service} is not drained any more"))
    query = {**session.scope, "wait": f"{wait:g}s", "cluster": cluster}
    pause, left = threading.Event(), DRAIN_ATTEMPTS
    while True:
        try:
            body = session.client.json("POST", path, query, max_wait=wait)
            return session.show(body, lambda: click.echo(f"drained {address} of {service}"))
        except (ApiProblem, Unreached) as error:
            restarting = error.status == 503 if isinstance(error, ApiProblem) else left < DRAIN_ATTEMPTS
            left -= 1
            if not restarting or not left:
                raise
            warn(f"{error} Trying again.")
        pause.wait(1.0)


@client_command("maintenance")
@click.argument("service")
@click.argument("address", metavar="IP:PORT", type=ADDRESS)
@click.option("--on/--off", required=True, help="Begin or end it.")
@click.option("--reason", default="", help="Shown in the status.")
@click.option("--cluster", default="")
def maintenance(session: Session, service: str, address: str, on: bool, reason: str, cluster: str) -> None:
    """Keep a managed instance out of traffic, until it is switched off again."""
    path = service_path(service, "instances", address_segment(address), "maintenance")
    if on:
        body = session.json("PUT", path, {"reason": reason}, cluster=cluster)
        return session.show(body, lambda: click.echo(f"{address} of {service} is in maintenance"))
    body = session.json("DELETE", path, cluster=cluster)
    session.show(body, lambda: click.echo(f"{address} of {service} is in traffic again"))


@client_command("beat")
@click.argument("service")
@click.argument("address", metavar="IP:PORT", type=ADDRESS)
@click.option("--cluster", default="")
@click.option("--every", type=DURATION, help="Send one every DURATION until interrupted.")
@click.option("--count", type=click.IntRange(min=1), help="Stop after this many heartbeats.")
def beat(session: Session, service: str, address: str, cluster: str, every: float | None, count: int | None) -> None:
    """Send a heartbeat. With --every, report a failure and go on."""
    path = service_path(service, "instances", address_segment(address), "beat")
    pause, left = threading.Event(), count or (1 if every is None else 0)
    try:
        while True:
            try:
                body = session.json("PUT", path, cluster=cluster)
                text = f"next beat in {body['clientBeatInterval'] / 1000:g} s"
                session.show(body, lambda text=text: click.echo(text))
            except (Unreached, ApiProblem) as error:
                if every is None or (isinstance(error, ApiProblem) and not error.temporary):
                    raise
                warn(f"{error} Trying again.")
            left -= 1
            if left == 0:
                return
            pause.wait(every)
    except KeyboardInterrupt:
        return
