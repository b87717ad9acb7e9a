"""`nacos-proxy`: the group of all commands, and the exit code of each kind of failure.

`serve` and `doctor` import the proxy when they run, because that takes a second.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from nacos_proxy import __version__
from nacos_proxy.app.logs import printable, set_up
from nacos_proxy.app.settings import BadSettings
from nacos_proxy.cli.client_options import EXIT_CODES
from nacos_proxy.cli.config import config, loaded_from, settings_options
from nacos_proxy.cli.demo import demo
from nacos_proxy.cli.reads import get, list_services, pick, watch
from nacos_proxy.cli.render import render
from nacos_proxy.cli.rest_client import ApiProblem, Unreached
from nacos_proxy.cli.writes import beat, deregister, drain, maintenance, modify, register


class Group(click.Group):
    """Turns a failure of a command into a message and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        if os.environ.get("NO_COLOR"):
            ctx.color = False  # inherited by the contexts of the commands
        try:
            return super().invoke(ctx)
        except ApiProblem as error:
            _fail(str(error), 1)
        except BadSettings as error:
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


@main.command(epilog="Exit codes: 0 stopped by a signal, 2 invalid settings, port or state directory in use.")
@settings_options
def serve(file: Path | None, **flags: Any) -> None:
    """Run the proxy until a signal stops it.

    \b
    nacos-proxy serve                                      with the embedded registry
    nacos-proxy serve --upstream http://10.0.0.1:8848      in front of a Nacos server
    nacos-proxy serve --upstream 10.0.0.1:8848,10.0.0.2:8848 --username app --password-file /run/secrets/nacos

    Each option can also be set as NACOS_PROXY_<NAME> in the environment and as <name> in the TOML file; `nacos-proxy
    config` prints the effective settings. Do not write secrets on the command line: every user of this host can read
    it.
    """
    from nacos_proxy.app.process import CannotStart
    from nacos_proxy.app.server import run

    loaded = loaded_from(file, flags)
    set_up(loaded.settings.log_level, loaded.settings.log_format)
    # After a graceful stop, uvicorn raises the signal again. SIGTERM then becomes KeyboardInterrupt, as SIGINT does.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = run(loaded)
    except CannotStart as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        code = 0
    finally:
        signal.signal(signal.SIGTERM, before)
    raise SystemExit(code)


@click.command(
    epilog="Exit codes: 0 all checks passed, 1 a check failed, 2 invalid settings.",
    short_help="Check the upstream, login, push, clock, state, port and service files.",
)
@settings_options
def doctor(file: Path | None, **flags: Any) -> None:
    """Check the upstream, the login, the push port, the clock, the state directory, the ports and the service files.

    Uses the same settings as `serve`: flags, environment and file.
    """
    from nacos_proxy.cli.doctor import examine

    raise SystemExit(examine(loaded_from(file, flags).settings))


for _command in (
    config,
    demo,
    doctor,
    get,
    list_services,
    watch,
    render,
    pick,
    register,
    deregister,
    modify,
    drain,
    maintenance,
    beat,
):
    main.add_command(_command)
