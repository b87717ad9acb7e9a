"""`nacos-proxy completion`, and the names that a shell completes: they come from the running proxy.

A shell waits while it completes, so an answer that takes longer than `PATIENCE` is left out, and no failure is shown.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

import click

from nacos_proxy.cli.failures import ApiProblem, Unreached
from nacos_proxy.cli.rest_client import RestClient, service_path
from nacos_proxy.model.addresses import address_of

_PLAIN = re.compile(r"[\w@%+=:,./\[\]-]+", re.ASCII)
PATIENCE = 1.0  # seconds
SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_NACOS_PROXY_COMPLETE"  # that click reads


@click.command(
    "completion", short_help="Print the script for completion in a shell.", epilog="Exit codes: 0 done, 2 wrong usage."
)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes commands, options, services and addresses.

    \b
    bash:  nacos-proxy completion bash > ~/.local/share/bash-completion/completions/nacos-proxy
    zsh:   nacos-proxy completion zsh > a file `_nacos-proxy` in a directory of $fpath
    fish:  nacos-proxy completion fish > ~/.config/fish/completions/nacos-proxy.fish

    Names of services, and addresses, come from the running proxy. NACOS_PROXY_SERVER says where it is.
    """
    from click.shell_completion import ShellComplete, get_completion_class  # other commands do not need it

    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(context.find_root().command, {}, "nacos-proxy", VARIABLE)
    click.echo(ShellComplete.source(script))  # bash's own `source` would run bash to ask for its version


def service_names(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Services of the namespace and group; with `@@` in the text, of all groups."""
    group = context.params.get("group") or "DEFAULT_GROUP"

    def ask(client: RestClient, scope: dict[str, str], found: set[str]) -> None:
        space = {"namespace": scope["namespace"] or "public"}
        # Without empty lists: the cache has one of each name that somebody only asked for.
        rows = client.json("GET", "/status", {**space, "limit": "1000", "search": incomplete})["services"]
        grouped = {str(row["service"]) for row in rows if row["instances"] or row["ageSeconds"] is None}
        if "@@" in incomplete:
            found |= grouped
            return
        found |= {name.removeprefix(f"{group}@@") for name in grouped if name.startswith(f"{group}@@")}
        found |= set(client.json("GET", "/api/v1/services", {**scope, "size": "1000"})["services"])

    return _answers(context, incomplete, ask)


def addresses(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Addresses of the service that was named before."""
    service = context.params.get("service")

    def ask(client: RestClient, scope: dict[str, str], found: set[str]) -> None:
        hosts = client.json("GET", service_path(str(service), "instances"), scope)["instances"]
        found |= {address_of(host["ip"], host["port"]) for host in hosts}

    return _answers(context, incomplete, ask) if service else []


def groups(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Groups, or namespaces, that the proxy knows: by the name of the option."""
    field = "groups" if parameter.name == "group" else "namespaces"

    def ask(client: RestClient, _: dict[str, str], found: set[str]) -> None:
        found |= set(client.json("GET", "/status", {"limit": "0"})["summary"][field])

    return _answers(context, incomplete, ask)


def _answers(
    context: click.Context, incomplete: str, ask: Callable[[RestClient, dict[str, str], set[str]], None]
) -> list[str]:
    given = context.params
    found: set[str] = set()

    def run() -> None:
        with suppress(Unreached, ApiProblem, ValueError, KeyError, TypeError):
            server = given.get("server") or "http://127.0.0.1:8840"
            with RestClient(
                server, given.get("token") or "", ca=given.get("ca") or "", cert=given.get("cert") or ""
            ) as client:
                ask(client, {name: given.get(name) or "" for name in ("namespace", "group")}, found)

    asking = threading.Thread(target=run, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return matching(tuple(found), incomplete)


def matching(names: Iterable[str], incomplete: str) -> list[str]:
    """Those that begin so, if they are plain: a shell runs what it finds in them, and anybody can register a name."""
    return sorted(name for name in names if name.startswith(incomplete) and _PLAIN.fullmatch(name))
