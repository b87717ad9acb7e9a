"""Settings on the command line: an option for each, `nacos-proxy config`, and docs/configuration.md."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import click

from nacos_proxy.app.failures import BadSettings
from nacos_proxy.app.setting_types import format_value, kind_of
from nacos_proxy.app.settings import ESSENTIAL, REMOVED, Loaded, Row, Settings, groups, load, misspelt_variables
from nacos_proxy.model.masking import MASK

MATTER_MOST = "The ten that matter most"

_EPILOG = (
    "Each option can also be set as NACOS_PROXY_<NAME> in the environment and as <name> in the TOML file. Do not write "
    "secrets on the command line: every user of this host can read it. Exit codes: 0 done, 2 invalid settings."
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

The ten settings that matter most come first. They are bold in the tables of their groups.
"""
_TABLE = """
| setting | default | meaning |
| --- | --- | --- |
"""


def sections() -> dict[str, list[str]]:
    """The names of all settings, each once, by the title of their section: the essential ones first, then by group."""
    rest = {title: [name for name in names if name not in ESSENTIAL] for title, names in groups().items()}
    return {MATTER_MOST: list(ESSENTIAL), **rest}


class SettingsCommand(click.Command):
    """Its `--help` shows the options in the sections of the settings, and its own at the end."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        titles = {name: title for title, names in sections().items() for name in names}
        parts: dict[str, list[tuple[str, str]]] = {title: [] for title in sections()}
        for param in self.get_params(ctx):
            if (record := param.get_help_record(ctx)) is not None:
                parts.setdefault(titles.get(param.name or "", "Options"), []).append(record)
        for title, records in parts.items():
            with formatter.section(title):
                formatter.write_dl(records)


def settings_options(function: Callable[..., None]) -> Callable[..., None]:
    """`--config` and one option for each setting. The command's class is `SettingsCommand`."""
    for name in reversed([name for names in sections().values() for name in names]):
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


@click.command(cls=SettingsCommand, epilog=_EPILOG, short_help="Print the settings and where each came from.")
@click.option("--json", "form", flag_value="json", help="Print JSON.")
@click.option("--toml", "form", flag_value="toml", help="Print a configuration file; secrets are left out.")
@click.option("--docs", "form", flag_value="docs", help="Print docs/configuration.md.")
@click.argument("action", type=click.Choice(["show", "validate"]), default="show", metavar="[validate]")
@settings_options
def config(file: Path | None, form: str | None, action: str, **flags: Any) -> None:
    """Print the effective settings and where each came from. Secrets are masked.

    \b
    nacos-proxy config validate --config FILE

    prints each problem for which `serve` would refuse the settings, and those of service files, and exits with 2 if
    there is one. It reads the files of passwords, tokens and certificates; `nacos-proxy doctor` also tries the servers
    and the ports.
    """
    if action == "validate":
        _validate(file, flags)
        return
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
        for heading, rows in _by_section(loaded):
            click.secho(heading, dim=True)
            for row in rows:
                line = f"{row.name:<{width}} = {row.value or '-':<28} {row.source}"
                click.secho(line, bold=row.source != "default")


def _by_section(loaded: Loaded) -> Iterator[tuple[str, list[Row]]]:
    """A comment with the title of each section, and its rows."""
    rows = {row.name: row for row in loaded.rows()}
    for title, names in sections().items():
        yield f"# {title}", [rows[name] for name in names]


def _validate(file: Path | None, flags: dict[str, Any]) -> None:
    from nacos_proxy.cli.validation import problems  # it imports the proxy, which takes a second

    loaded = loaded_from(file, flags)
    if found := problems(loaded):
        raise BadSettings("\n".join(found))
    changed = sum(row.source != "default" for row in loaded.rows())
    click.echo(f"the settings are valid: {changed} set, {len(Settings.model_fields) - changed} by default")


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
    for heading, rows in _by_section(loaded):
        lines += [f"#{heading}", ""]
        for row in rows:
            kind = kind_of(Settings.model_fields[row.name])
            value = row.value if kind in ("switch", "number") else json.dumps(row.value, ensure_ascii=False)
            comment = MASK in row.value or (not row.value and kind in ("path", "secret"))
            lines += [f"# {row.description}", f"{'# ' if comment else ''}{row.name} = {value}", ""]
    return "\n".join(lines)


def documentation() -> str:
    """docs/configuration.md. Its groups have all their settings, the essential ones in bold."""
    parts = [_DOCS]
    for title, names in {MATTER_MOST: list(ESSENTIAL), **groups()}.items():
        parts += [f"\n## {title}\n", _TABLE, *(_table_row(name, title != MATTER_MOST) for name in names)]
    return "".join(parts)


def _table_row(name: str, mark: bool) -> str:
    field, default = Settings.model_fields[name], _default(name)
    shown = default if field.default_factory is not None else f"`{default}`" if default else "-"
    choices = f" One of {', '.join(get_args(field.annotation))}." if kind_of(field) == "choice" else ""
    bold = "**" if mark and name in ESSENTIAL else ""
    return f"| {bold}`{name}`{bold} | {shown} | {(field.description or '').replace('|', '/')}{choices} |\n"
