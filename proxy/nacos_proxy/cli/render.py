"""The command `render`: files that follow services, and commands that run when a file has changed."""

from __future__ import annotations

import signal

import click

from nacos_proxy.cli.client_options import COMMAND, DURATION, Parameter, Session, client_command, view_options
from nacos_proxy.cli.commands import Runner
from nacos_proxy.cli.files import CannotReplace
from nacos_proxy.cli.pauses import read_wait
from nacos_proxy.cli.render_loop import RenderLoop
from nacos_proxy.cli.targets import Spec, Target, read_spec
from nacos_proxy.cli.templates import TemplateError

SPEC = Parameter("TEMPLATE:FILE[:COMMAND]", read_spec)
WAIT = Parameter("MIN[:MAX]", read_wait)


@client_command("render", short_help="Keep files current, from templates.")
@click.argument("specs", nargs=-1, required=True, type=SPEC, metavar="TEMPLATE:FILE[:COMMAND]…")
@view_options
@click.option(
    "--check", type=COMMAND, metavar="COMMAND", help="Replace a file only if this succeeds; {} is the new file."
)
@click.option("--wait", type=WAIT, default="500ms", show_default=True, help="How long changes settle: MIN[:MAX].")
@click.option("--timeout", type=DURATION, default="30s", show_default=True, help="How long a command may take.")
@click.option("--allow-empty", is_flag=True, help="Let a list without instances replace one that has some.")
@click.option("--once", is_flag=True, help="Write the files, run the commands and stop.")
@click.option("--dry", is_flag=True, help="Print the texts and stop; write and run nothing.")
def render(
    session: Session,
    specs: tuple[Spec, ...],
    view: dict[str, str],
    check: tuple[str, ...] | None,
    wait: tuple[float, float],
    timeout: float,
    allow_empty: bool,
    once: bool,
    dry: bool,
) -> None:
    """Keep files current that show services, from Jinja2 templates, until a signal ends it.

    \b
    nacos-proxy render 'nginx@orders,stock:/etc/nginx/conf.d/nacos.conf:nginx -s reload'
    nacos-proxy render orders.j2:/etc/app/orders.conf --once

    TEMPLATE is a file, or a built-in template with the names of its services: nginx@, haproxy@, caddy@ or hosts@. FILE
    is replaced as a whole, and COMMAND runs, only if the text has changed. Commands are split into words as a shell
    does, but run without one. A colon in a name is written \\:. SIGHUP reads the templates again. --selector and such
    hold for each call of service() that does not say otherwise.
    """
    try:
        targets = [Target(spec, view=view, **session.scope) for spec in specs]
    except (TemplateError, CannotReplace) as error:
        raise click.UsageError(str(error)) from error
    if len({target.path for target in targets}) < len(targets):
        raise click.UsageError("two templates write the same file")
    runner = Runner(timeout)
    loop = RenderLoop(session, targets, runner, check=check or (), wait=wait, allow_empty=allow_empty)
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if dry:
            loop.print_all()
        elif once:
            loop.once()
        else:
            loop.forever()
    except KeyboardInterrupt:
        if once or dry:
            raise  # it is not done
    except (TemplateError, OSError) as error:
        raise click.ClickException(str(error)) from error
    finally:
        loop.close()
        runner.close()
        signal.signal(signal.SIGTERM, previous)
