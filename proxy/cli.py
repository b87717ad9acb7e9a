"""The command line: `nacos-proxy serve|config|demo|doctor` and the client commands of `cli_client`.

Exit codes: 0 done, 1 refused or not found, 2 usage or settings, 3 no proxy answers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from proxy import __version__
from proxy.cli_client import COMMANDS
from proxy.demo import demo
from proxy.doctor import doctor
from proxy.logs import set_up
from proxy.rest_client import Problem, Unreached
from proxy.server import run
from proxy.serving import CannotStart
from proxy.settings import BadSettings, Loaded, Settings, load, text_of

# Asked for first in --help; the rest follows in the order of the class.
COMMON = ("upstream", "host", "port", "uds", "username", "password_file", "state_dir", "log_level")

_EPILOG = (
    "Every option is also NACOS_PROXY_<NAME> in the environment and <name> in the TOML file: see `nacos-proxy config`."
)


class Group(click.Group):
    """Says what went wrong in a sentence, with the exit code that its kind has."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Problem as error:
            _fail(str(error), 1)
        except (BadSettings, CannotStart, ValueError) as error:
            _fail(str(error), 2)
        except Unreached as error:
            _fail(str(error), 3)
        except BrokenPipeError:
            sys.stderr.close()
            raise SystemExit(0) from None


def _fail(text: str, code: int) -> None:
    click.secho(f"nacos-proxy: {text}", fg="red", err=True)
    raise SystemExit(code)


@click.group(
    cls=Group,
    epilog=__doc__.splitlines()[2] if __doc__ else "",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="nacos-proxy")
def main() -> None:
    """A local caching discovery proxy for Nacos."""


def settings_options(function: Callable[..., None]) -> Callable[..., None]:
    """One option for each setting."""
    names = [*COMMON, *(name for name in Settings.model_fields if name not in COMMON)]
    for name in reversed(names):
        field = Settings.model_fields[name]
        default = text_of(field.get_default(call_default_factory=True))
        flag = f"--{name.replace('_', '-')}"
        text = f"{field.description} [{default or 'none'}]"
        if field.annotation is bool:
            option = click.option(f"{flag}/--no-{name.replace('_', '-')}", name, default=None, help=text)
        else:
            option = click.option(flag, name, default=None, metavar=_metavar(name), help=text)
        function = option(function)
    return click.option("--config", "file", type=click.Path(path_type=Path), help="TOML file with settings.")(function)


def _metavar(name: str) -> str:
    for ending, metavar in (("_file", "FILE"), ("_dir", "DIRECTORY"), ("port", "NUMBER"), ("_ttl", "DURATION")):
        if name.endswith(ending):
            return metavar
    return "VALUE"


def _loaded(file: Path | None, flags: dict[str, Any]) -> Loaded:
    return load({name: value for name, value in flags.items() if value is not None}, file)


@main.command(epilog=_EPILOG)
@settings_options
def serve(file: Path | None, **flags: Any) -> None:
    """Run the proxy until it is told to stop.

    \b
    nacos-proxy serve                                      on the embedded registry
    nacos-proxy serve --upstream http://10.0.0.1:8848      in front of a Nacos server
    nacos-proxy serve --upstream 10.0.0.1:8848,10.0.0.2:8848 --username app --password-file /run/secrets/nacos
    """
    loaded = _loaded(file, flags)
    set_up(loaded.settings.log_level, loaded.settings.log_format)
    raise SystemExit(run(loaded))


@main.command(epilog=_EPILOG)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--docs", is_flag=True, help="Print docs/configuration.md.")
@settings_options
def config(file: Path | None, as_json: bool, docs: bool, **flags: Any) -> None:
    """Print the effective settings, secrets masked, with where each came from."""
    if docs:
        click.echo(documentation(), nl=False)
        return
    rows = _loaded(file, flags).rows()
    if as_json:
        click.echo(json.dumps({row.name: {"value": row.value, "source": row.source} for row in rows}, indent=1))
        return
    width = max(len(row.name) for row in rows)
    for row in rows:
        line = f"{row.name:<{width}} = {row.value or '-':<28} {row.source}"
        click.secho(line, bold=row.source != "default")


def documentation() -> str:
    """docs/configuration.md, made from the class."""
    lines = ["# Configuration", ""]
    lines += [
        "Made by `nacos-proxy config --docs`; a test holds it to the code. A flag beats the environment, which beats"
    ]
    lines += [
        "the TOML file (`--config`, `NACOS_PROXY_CONFIG`, or `config.toml` in the user's configuration directory),"
    ]
    lines += [
        "which beats the default. The setting `cache_ttl` is `--cache-ttl`, `NACOS_PROXY_CACHE_TTL`, and `cache_ttl`"
    ]
    lines += [
        "in the file. Durations are written `500ms`, `5s`, `10m`, `24h`, `7d`, `forever`; sizes `64KiB`, `1MiB`.",
        "",
    ]
    lines += ["On SIGHUP the tokens, the allowed hosts and the log level are read again.", ""]
    lines += ["| setting | default | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = "the user's state directory" if name == "state_dir" else text_of(field.get_default()) or "-"
        lines.append(f"| `{name}` | `{default}` | {(field.description or '').replace('|', '/')} |")
    return "\n".join(lines) + "\n"


main.add_command(demo)
main.add_command(doctor)
for _command in COMMANDS:
    main.add_command(_command)
