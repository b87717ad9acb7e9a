"""The commands that write: register, deregister, modify, drain, maintenance, beat."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
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
    pause,
    warn,
)
from nacos_proxy.cli.completion import addresses, service_names
from nacos_proxy.cli.failures import ApiProblem, Unreached
from nacos_proxy.cli.rest_client import address_segment, service_path
from nacos_proxy.model.printable import printable

_TIMES = ("instanceHeartBeatInterval", "instanceHeartBeatTimeOut", "ipDeleteTimeout")  # milliseconds
COMMAND_TTL = 30.0  # seconds after the last heartbeat for a COMMAND without a check until it counts as failed
DRAIN_ATTEMPTS = 60  # once a second, while the proxy restarts
COMMAND_BEAT = 5.0  # seconds between two heartbeats for a COMMAND


@client_command("register")
@click.argument("service", shell_complete=service_names)
@click.argument("address", metavar="IP:PORT", type=ADDRESS, shell_complete=addresses)
@click.option("--weight", type=WEIGHT, help="Its share of the traffic, beside those of the others [1].")
@click.option("--cluster", default="", help="Its cluster [DEFAULT].")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="May be given several times.")
@click.option(
    "--ephemeral/--persistent", default=True, help="Lives by heartbeats, or until it is deregistered [ephemeral]."
)
@click.option("--enabled/--disabled", default=True, help="Whether it gets traffic [enabled].")
@click.option("--healthy/--unhealthy", default=True, help="Its health at first [healthy].")
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
    if options["ephemeral"] and not options["managed"] and not session.for_programs:
        click.echo(_needs_beats(session, service, address, options["cluster"], registered), err=True)


def _needs_beats(session: Session, service: str, address: str, cluster: str, registered: dict[str, Any]) -> str:
    """What becomes of an ephemeral instance without heartbeats, and how to send them."""
    interval, sick, gone = (registered[name] / 1000 for name in _TIMES)
    given = {"--namespace": session.scope["namespace"], "--group": session.scope["group"], "--cluster": cluster}
    options = [word for option, value in given.items() if value for word in (option, value)]
    command = shlex.join(["nacos-proxy", "beat", service, address, *options, "--every", f"{interval:g}s"])
    return printable(
        f"It is ephemeral: without heartbeats it is unhealthy after {sick:g} s and gone after {gone:g} s. Send them "
        f"with `{command}`, or register it with --managed (the proxy sends them) or --persistent (it needs none)."
    )


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
@click.argument("service", shell_complete=service_names)
@click.argument("address", metavar="IP:PORT", type=ADDRESS, shell_complete=addresses)
@click.option("--cluster", default="", help="Its cluster [DEFAULT].")
@click.option("--ephemeral/--persistent", default=None, help="Its kind [as it is listed].")
def deregister(session: Session, service: str, address: str, cluster: str, ephemeral: bool | None) -> None:
    """Deregister an instance. An unknown instance is no error."""
    path = service_path(service, "instances", address_segment(address))
    session.call("DELETE", path, cluster=cluster, ephemeral="" if ephemeral is None else str(ephemeral).lower())
    session.show({"deregistered": address}, lambda: click.echo(f"deregistered {address} from {service}"))


@client_command("modify")
@click.argument("service", shell_complete=service_names)
@click.argument("address", metavar="IP:PORT", type=ADDRESS, shell_complete=addresses)
@click.option("--cluster", default="", help="Its cluster [DEFAULT].")
@click.option("--weight", type=WEIGHT, help="Its share of the traffic, beside those of the others.")
@click.option("--enabled/--disabled", default=None, help="Whether it gets traffic.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="May be given several times.")
def modify(session: Session, service: str, address: str, cluster: str, weight: float | None,
           enabled: bool | None, metadata: tuple[str, ...]) -> None:  # fmt: skip
    """Change some properties of an instance, and nothing else."""
    body: dict[str, Any] = {"weight": weight} if weight is not None else {}
    body |= {"enabled": enabled} if enabled is not None else {}
    body |= {"metadata": metadata_of(metadata)} if metadata else {}
    if not body:
        raise click.UsageError("nothing to change: give --weight, --enabled or --disabled, or --metadata")
    path = service_path(service, "instances", address_segment(address))
    changed = session.json("PATCH", path, body, cluster=cluster)
    session.show(changed, lambda: click.echo(f"changed {address} of {service}"))


@client_command("drain", short_help="Take an instance out of traffic, then deregister it.")
@click.argument("service", shell_complete=service_names)
@click.argument("address", metavar="IP:PORT", type=ADDRESS, shell_complete=addresses)
@click.option("--wait", type=DURATION, default="20s", show_default=True, help="Time for consumers to notice.")
@click.option("--cluster", default="", help="Its cluster [DEFAULT].")
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
    left = DRAIN_ATTEMPTS
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
        pause(1.0)


@client_command("maintenance", short_help="Keep an instance out of traffic for a while.")
@click.argument("service", shell_complete=service_names)
@click.argument("address", metavar="IP:PORT", type=ADDRESS, shell_complete=addresses)
@click.option("--on/--off", required=True, help="Begin or end it.")
@click.option("--reason", default="", help="Shown in the status.")
@click.option("--cluster", default="", help="Its cluster [DEFAULT].")
def maintenance(session: Session, service: str, address: str, on: bool, reason: str, cluster: str) -> None:
    """Keep a managed instance out of traffic, until it is switched off again."""
    path = service_path(service, "instances", address_segment(address), "maintenance")
    if on:
        body = session.json("PUT", path, {"reason": reason}, cluster=cluster)
        return session.show(body, lambda: click.echo(f"{address} of {service} is in maintenance"))
    body = session.json("DELETE", path, cluster=cluster)
    session.show(body, lambda: click.echo(f"{address} of {service} is in traffic again"))


@client_command("beat", short_help="Send heartbeats for an ephemeral instance.")
@click.argument("service", shell_complete=service_names)
@click.argument("address", metavar="IP:PORT", type=ADDRESS, shell_complete=addresses)
@click.option("--cluster", default="", help="Its cluster [DEFAULT].")
@click.option("--every", type=DURATION, help="Send one every DURATION until interrupted.")
@click.option("--count", type=click.IntRange(min=1), help="Stop after this many heartbeats.")
@click.option("-v", "--verbose", is_flag=True, help="With --every: print a line for each.")
def beat(session: Session, service: str, address: str, every: float | None, count: int | None, **options: Any) -> None:
    """Send a heartbeat for an ephemeral instance. A persistent one needs none.

    With --every: go on after a failure, and print only what changes.
    """
    send = Heartbeats(session, service, address, options["cluster"], every, options["verbose"])
    left = count or (1 if every is None else 0)
    try:
        while True:
            send.one()
            left -= 1
            if left == 0:
                return
            pause(every or 0)
    except KeyboardInterrupt:
        return


class Heartbeats:
    """Sends heartbeats for one instance. Every `every` seconds: tells what begins, fails and works again, once each."""

    def __init__(
        self, session: Session, service: str, address: str, cluster: str, every: float | None, verbose: bool
    ) -> None:
        self._session = session
        self._service = service
        self._address = address
        self._cluster = cluster
        self._every = every
        self._verbose = verbose or every is None
        self._number = 0
        self._failure = ""

    def one(self) -> None:
        """Raises `Unreached` or `ApiProblem` if a single one was to be sent, or no other will succeed."""
        path = service_path(self._service, "instances", address_segment(self._address))
        try:
            body = self._session.json("PUT", f"{path}/beat", cluster=self._cluster)
        except (Unreached, ApiProblem) as error:
            if isinstance(error, ApiProblem) and error.status == 404:
                raise self._unknown(path, error) from error
            if self._every is None or (isinstance(error, ApiProblem) and not error.temporary):
                raise
            if str(error) != self._failure:
                warn(f"{error} Trying again.")
            self._failure = str(error)
            return
        self._session.show(body, lambda: self._tell(body["clientBeatInterval"] / 1000))
        self._number, self._failure = self._number + 1, ""

    def _tell(self, interval: float) -> None:
        if self._every is not None and not self._number:
            about = f"{self._address} of {self._service}"
            click.echo(f"sending heartbeats for {about} every {self._every:g} s, until Ctrl-C")
            if self._every > interval:
                warn(f"Nacos expects one every {interval:g} s.")
        elif self._failure:
            click.echo("heartbeats are accepted again")
        if self._verbose:
            click.echo(f"next beat in {interval if self._every is None else self._every:g} s")
        sys.stdout.flush()

    def _unknown(self, path: str, error: ApiProblem) -> ApiProblem:
        about = f"{self._address} of {self._service}"
        try:
            found = self._session.json("GET", path, cluster=self._cluster)
        except ApiProblem as missing:
            if missing.status != 404:
                return error
            named = shlex.join([self._service, self._address])
            return ApiProblem(404, f"{about} is not registered. `nacos-proxy register {named}` registers it.")
        if found.get("ephemeral", True):
            return error
        return ApiProblem(404, f"{about} is persistent: it needs no heartbeats.")
