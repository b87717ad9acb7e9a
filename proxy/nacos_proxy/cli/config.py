"""Settings on the command line: an option for each, `nacos-proxy config`, and docs/configuration.md."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from nacos_proxy.app.setting_types import format_value, kind_of
from nacos_proxy.app.settings import REMOVED, Loaded, Settings, load, misspelt_variables
from nacos_proxy.model.masking import MASK

# The first ones in --help; the others follow in the order of the class.
COMMON = ("upstream", "host", "port", "uds", "username", "password_file", "state_dir", "log_level")

_EPILOG = (
    "Each option can also be set as NACOS_PROXY_<NAME> in the environment and as <name> in the TOML file. Do not write "
    "secrets on the command line: every user of this host can read it."
)
_DOCS = """\
# Configuration

This page is the output of `nacos-proxy config --docs`; a test compares the two. A flag beats the environment, which
beats the TOML file (`--config`, `NACOS_PROXY_CONFIG`, or `config.toml` in the user's configuration directory), which
beats the default. The setting `cache_ttl` is `--cache-ttl`, `NACOS_PROXY_CACHE_TTL`, and `cache_ttl` in the file. An
empty variable counts as not set. `nacos-proxy config` prints the effective settings and where each came from;
`nacos-proxy config --toml` prints them as a file to start from.

Write durations as `500ms`, `5s`, `10m`, `24h`, `7d` or `forever`; sizes as `64KiB` or `1MiB`; lists with commas, or as
a list in the file. On SIGHUP, the proxy reads the API tokens, the allowed hosts, the log level and the service files
again.

| setting | default | meaning |
| --- | --- | --- |
"""


def settings_options(function: Callable[..., None]) -> Callable[..., None]:
    """`--config` and one option for each setting."""
    names = [*COMMON, *(name for name in Settings.model_fields if name not in COMMON)]
    for name in reversed(names):
        field = Settings.model_fields[name]
        flag = f"--{name.replace('_', '-')}"
        text = f"{field.description} [{_default(name) or 'none'}]"
        kind = kind_of(field)
        if kind == "switch":
            option = click.option(f"{flag}/--no-{name.replace('_', '-')}", name, default=None, help=text)
        else:
            metavar = f"[{'|'.join(get_args(field.annotation))}]" if kind == "choice" else kind.upper()
            option = click.option(flag, name, default=None, metavar=metavar, help=text)
        function = option(function)
    for name in REMOVED:
        function = click.option(f"--{name.replace('_', '-')}", name, default=None, hidden=True)(function)
    return click.option("--config", "file", type=click.Path(path_type=Path), help="TOML file with settings.")(function)


def _default(name: str) -> str:
    field = Settings.model_fields[name]
    if field.default_factory is not None:
        return "the user's state directory"
    return format_value(field.default, kind_of(field))


def loaded_from(file: Path | None, flags: dict[str, Any]) -> Loaded:
    """The settings, with the flags from click; warns of misspelt variables. Raises `BadSettings`."""
    for warning in misspelt_variables(os.environ):
        click.secho(f"nacos-proxy: {warning}", fg="yellow", err=True)
    return load({name: value for name, value in flags.items() if value is not None}, file)


@click.command(epilog=_EPILOG, short_help="Print the effective settings and where each came from.")
@click.option("--json", "form", flag_value="json", help="Print JSON.")
@click.option("--toml", "form", flag_value="toml", help="Print a configuration file; secrets are left out.")
@click.option("--docs", "form", flag_value="docs", help="Print docs/configuration.md.")
@settings_options
def config(file: Path | None, form: str | None, **flags: Any) -> None:
    """Print the effective settings and where each came from. Secrets are masked."""
    if form == "docs":
        click.echo(documentation(), nl=False)
        return
    loaded = loaded_from(file, flags)
    for warning in _broken_service_files(loaded.settings):
        click.secho(f"nacos-proxy: {warning}", fg="yellow", err=True)
    if form == "json":
        rows = {row.name: {"value": row.value, "source": row.source} for row in loaded.rows()}
        click.echo(json.dumps(rows, indent=1, ensure_ascii=False))
    elif form == "toml":
        click.echo(as_toml(loaded), nl=False)
    else:
        width = max(len(name) for name in Settings.model_fields)
        for row in loaded.rows():
            line = f"{row.name:<{width}} = {row.value or '-':<28} {row.source}"
            click.secho(line, bold=row.source != "default")


def _broken_service_files(s: Settings) -> list[str]:
    from nacos_proxy.background.service_files import read_files  # it imports the proxy, which takes a second
    from nacos_proxy.wire.service_files import BadFile

    if s.services_dir is None:
        return []
    try:
        return [f"{name}: {text}" for name, text in read_files(s.services_dir).items() if isinstance(text, str)]
    except BadFile as error:
        return [f"services_dir {s.services_dir} {error}"]


def as_toml(loaded: Loaded) -> str:
    """A configuration file with the same effect. Secrets and unset settings are commented out."""
    lines: list[str] = []
    for row in loaded.rows():
        kind = kind_of(Settings.model_fields[row.name])
        value = row.value if kind in ("switch", "number") else json.dumps(row.value, ensure_ascii=False)
        comment = MASK in row.value or (not row.value and kind in ("path", "secret"))
        lines += [f"# {row.description}", f"{'# ' if comment else ''}{row.name} = {value}", ""]
    return "\n".join(lines)


def documentation() -> str:
    rows: list[str] = []
    for name, field in Settings.model_fields.items():
        default = _default(name)
        shown = default if field.default_factory is not None else f"`{default}`" if default else "-"
        choices = f" One of {', '.join(get_args(field.annotation))}." if kind_of(field) == "choice" else ""
        rows.append(f"| `{name}` | {shown} | {(field.description or '').replace('|', '/')}{choices} |\n")
    return _DOCS + "".join(rows)
