"""`python -m nacos_proxy.cli.manual > docs/nacos-proxy.1`: the manual page, made from what `--help` says."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator

import click

from nacos_proxy.app.settings import REMOVED, Settings
from nacos_proxy.cli.client_options import SHARED, ClientCommand
from nacos_proxy.cli.main import SECTIONS, main

_INTRODUCTION = """\
.TH NACOS-PROXY 1 "" nacos-proxy "User Commands"
.SH NAME
nacos-proxy \\- local caching discovery proxy for Nacos
.SH SYNOPSIS
.B nacos-proxy
.I COMMAND
.RI [ OPTION "...] [" ARGUMENT ...]
.SH DESCRIPTION
nacos-proxy runs beside your services, in front of a Nacos server. It answers reads from memory, sends writes through to
Nacos, and pushes every change to its subscribers.
.B nacos-proxy serve
runs it; the other commands ask a proxy that runs.
"""


def page() -> str:
    """The page, in roff with the macros of man(7)."""
    return _INTRODUCTION + "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    root = click.Context(main, info_name="nacos-proxy")
    for heading, names in SECTIONS.items():
        yield f".SH {_text(heading.upper())}"
        for name in names:
            command = main.get_command(root, name)
            assert command is not None
            yield from _command(command, click.Context(command, info_name=name, parent=root))
    get = main.get_command(root, "get")
    assert get is not None
    yield ".SH OPTIONS OF EVERY CLIENT COMMAND"
    context = click.Context(get, info_name="get", parent=root)
    yield from _options((p for p in get.params if p.name in SHARED), context)
    yield ".SH EXIT STATUS"
    yield _text((main.epilog or "").removeprefix("Exit codes: "))
    yield ".SH ENVIRONMENT"
    yield "NACOS_PROXY_SERVER, NACOS_PROXY_TOKEN, NACOS_PROXY_SERVER_CA, NACOS_PROXY_SERVER_CERT and"
    yield "NACOS_PROXY_NAMESPACE stand for the options of client commands. NACOS_PROXY_CONFIG names the TOML file of"
    yield ".BR serve ;"
    yield "each of its options is also a variable NACOS_PROXY_<NAME>. NO_COLOR turns colours off."


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f".SS {_text(' '.join([command.name or '', *command.collect_usage_pieces(context)]))}"
    yield from _paragraphs(command.help or "")
    own = [p for p in command.params if not (isinstance(command, ClientCommand) and p.name in SHARED)]
    if context.info_name != "serve" and any(p.name == "upstream" for p in own):  # it takes settings
        own = [p for p in own if p.name not in {*Settings.model_fields, *REMOVED, "file"}]
        yield ".PP"
        yield "It also takes the options of"
        yield ".BR serve ."
    yield from _options(own, context)
    if command.epilog and command.epilog != main.epilog:
        yield ".PP"
        yield _text(command.epilog)


def _options(parameters: Iterable[click.Parameter], context: click.Context) -> Iterator[str]:
    for parameter in parameters:
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context)) is not None:
            yield ".TP"
            yield f".B {_text(record[0])}"
            yield _text(record[1]) or "\\&"


def _paragraphs(text: str) -> Iterator[str]:
    """The help of a command. After \\b, a paragraph keeps its lines."""
    for number, paragraph in enumerate(re.split(r"\n\s*\n", inspect.cleandoc(text))):
        if number:
            yield ".PP"
        if paragraph.startswith("\b"):
            yield ".nf"
            yield from map(_text, paragraph.splitlines()[1:])
            yield ".fi"
        else:
            yield _text(" ".join(paragraph.split()))


def _text(text: str) -> str:
    """Text without meaning for roff."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    escaped = re.sub(r"[^\x00-\x7f]", lambda found: f"\\[u{ord(found[0]):04X}]", escaped)
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


if __name__ == "__main__":
    click.echo(page(), nl=False)
