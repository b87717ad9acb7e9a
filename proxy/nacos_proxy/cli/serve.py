"""The commands that use the settings of the proxy: serve, doctor.

They import the proxy when they run, because that takes long and `--help` does not need it.
"""

from __future__ import annotations

import gc
import logging
import signal
from pathlib import Path
from typing import Any

import click

from nacos_proxy.app.failures import CannotStart
from nacos_proxy.app.logs import set_up
from nacos_proxy.cli.config import SettingsCommand, loaded_from, settings_options

log = logging.getLogger("nacos_proxy.serve")


@click.command(
    cls=SettingsCommand,
    epilog="Exit codes: 0 stopped by a signal, 2 invalid settings, port or state directory in use.",
)
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
    gc.disable()  # until the app is ready: a start makes much and drops little, so collections only delay it
    from nacos_proxy.app.listening import listen

    loaded = loaded_from(file, flags)
    set_up(loaded.settings.log_level, loaded.settings.log_format)
    # After a graceful stop, uvicorn raises the signal again. SIGTERM then becomes KeyboardInterrupt, as SIGINT does.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        listening = listen(loaded.settings)  # before the long import: clients wait, and are not refused
        from nacos_proxy.app.server import run

        code = run(loaded, listening)
    except CannotStart as error:
        if loaded.settings.log_format == "text":
            raise
        log.critical("%s", error)
        code = 2
    except KeyboardInterrupt:
        code = 0
    finally:
        gc.enable()
        signal.signal(signal.SIGTERM, before)
    raise SystemExit(code)


@click.command(
    cls=SettingsCommand,
    epilog="Exit codes: 0 all checks passed, 1 a check failed, 2 invalid settings.",
    short_help="Check what the proxy needs: upstream, login, ports, disk.",
)
@settings_options
def doctor(file: Path | None, **flags: Any) -> None:
    """Check the upstream, the login, the push port, the clock, the state directory, the ports and the service files.

    Uses the same settings as `serve`: flags, environment and file.
    """
    from nacos_proxy.cli.doctor import examine

    raise SystemExit(examine(loaded_from(file, flags).settings))
