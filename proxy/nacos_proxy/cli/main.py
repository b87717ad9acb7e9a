"""`nacos-proxy`: the group of all commands, and the exit code of each kind of failure.

A command's module is imported when the command runs, because a script that calls one should not wait for the others.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

import click

from nacos_proxy import __version__
from nacos_proxy.app.failures import BadSettings, CannotStart
from nacos_proxy.cli.failures import EXIT_CODES, ApiProblem, Unreached
from nacos_proxy.model.printable import printable

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# The commands, in the order and with the headings of `--help`: where each is.
SECTIONS: dict[str, dict[str, str]] = {
    "Run the proxy": {
        "serve": "serve:serve",
        "config": "config:config",
        "doctor": "serve:doctor",
        "demo": "demo:demo",
    },
    "Look at the proxy": {
        "status": "status:status",
        "top": "top:top",
        "version": "status:version",
    },
    "Find instances": {
        "get": "reads:get",
        "list": "services:list_services",
        "pick": "reads:pick",
        "watch": "reads:watch",
        "render": "render:render",
    },
    "Register instances": {
        "register": "writes:register",
        "beat": "writes:beat",
        "modify": "writes:modify",
        "deregister": "writes:deregister",
        "drain": "writes:drain",
        "maintenance": "writes:maintenance",
    },
    "Move, and set up": {
        "export": "transfer:export",
        "import": "transfer:import_",
        "completion": "completion:completion",
    },
}
COMMANDS = {name: place for commands in SECTIONS.values() for name, place in commands.items()}


class Group(click.Group):
    """Imports commands when they are needed, and turns a failure of one into a message and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        return getattr(import_module(f"nacos_proxy.cli.{module}"), name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:  # it looks for similar names in `commands`, which has none here
            raise click.NoSuchCommand(error.command_name, possibilities=COMMANDS, ctx=ctx) from None

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names only: with the help of each command, every module would be imported."""
        from click.shell_completion import CompletionItem  # a command does not need it

        names = [CompletionItem(name) for name in COMMANDS if name.startswith(incomplete)]
        return names or click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, COMMANDS))
        for heading, names in SECTIONS.items():
            commands = [(name, self.get_command(ctx, name)) for name in names]
            limit = formatter.width - 6 - width
            rows = [(f"{name:<{width}}", command.get_short_help_str(limit)) for name, command in commands if command]
            with formatter.section(heading):
                formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        if os.environ.get("NO_COLOR"):
            ctx.color = False  # inherited by the contexts of the commands
        try:
            return super().invoke(ctx)
        except ApiProblem as error:
            _fail(str(error), 1)
        except (BadSettings, CannotStart) as error:
            _fail(str(error), 2)
        except Unreached as error:
            _fail(str(error), 3)
        except BrokenPipeError:
            # The reader of our output, such as `head`, has left. Without dup2, Python reports that again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0) from None


def _fail(text: str, code: int) -> NoReturn:
    for line in text.splitlines():
        click.secho(f"nacos-proxy: {printable(line)}", fg="red", err=True)
    raise SystemExit(code)


@click.group(cls=Group, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nacos-proxy")
def main() -> None:
    """A local caching discovery proxy for Nacos."""
