"""`nacos-proxy top`: a table of services that is drawn again and again."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import click

from nacos_proxy.cli.client_options import DURATION, Session, client_command, pause
from nacos_proxy.cli.failures import Unreached
from nacos_proxy.cli.services import COLOURS, short
from nacos_proxy.cli.tables import Cell, cut, lines_of, screen_width
from nacos_proxy.model.printable import printable

SORTS = ("name", "namespace", "state", "age", "instances", "healthy", "subscribers")
LARGEST_FIRST = ("state", "age", "instances", "subscribers")
COLUMNS = ("SERVICE", "NAMESPACE", "INSTANCES", "HEALTHY", "STATE", "AGE", "SUBSCRIBERS", "CHANGED", "ERROR")
_BESIDE_ROWS = 4  # lines on the screen: two of totals, the header, and what is left out
# The second screen, without a cursor, where lines that are too long end at its edge; and back.
_ENTER, _LEAVE, _HOME = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l", "\x1b[H"
_REST_OF_LINE, _REST_OF_SCREEN = "\x1b[K", "\x1b[J"


@client_command("top", short_help="Watch services, rates and ages in a table.", outputs=("json",), n_is_namespace=False)
@click.argument("search", default="")
@click.option("--sort", type=click.Choice(SORTS), default="name", show_default=True, help="How the table is ordered.")
@click.option("--reverse", is_flag=True, help="The other way round.")
@click.option("--every", type=DURATION, default="2s", show_default=True, help="Time between two rounds.")
@click.option("-n", "--count", type=click.IntRange(min=1), help="Stop after this many rounds.")
def top(session: Session, search: str, sort: str, reverse: bool, every: float, count: int | None) -> None:
    """Show the services that the proxy knows, with rates and ages, until Ctrl-C.

    SEARCH leaves only the services with this text in their name or group. CHANGED counts the rounds in which the
    instances of a service changed. State, age, instances and subscribers begin with the largest.
    """
    order = "-" if (sort in LARGEST_FIRST) != reverse else ""
    query = {**session.scope, "search": search, "sort": f"{order}{sort}"}
    screen = sys.stdout.isatty() and session.output == ""
    rounds, left = Rounds(), count or 0
    try:
        with _own_screen() if screen else nullcontext():
            while True:
                rows = shutil.get_terminal_size().lines - _BESIDE_ROWS if screen else 1000
                try:
                    body = session.status(**query, limit=str(max(rows, 1)))
                except Unreached as error:
                    if not rounds.number:
                        raise
                    body = None
                    _draw([printable(str(error))], screen)
                if body is not None:
                    rounds.add(body)
                    session.show(body, lambda body=body: _draw(list(lines(body, rounds, every)), screen))
                left -= 1
                if left == 0:
                    return
                pause(every)
    except KeyboardInterrupt:
        return


class Rounds:
    """What differs between the answers: totals a second, and the services that changed."""

    def __init__(self) -> None:
        self.number = 0
        self.changed: dict[tuple[str, str], int] = {}  # services, and in how many rounds they changed
        self.reads = self.changes = 0.0  # a second
        self._revisions: dict[tuple[str, str], str | None] = {}
        self._totals = (0.0, 0, 0)

    def add(self, body: dict[str, Any]) -> None:
        before, (uptime, reads, changes) = self._totals, self._totals
        self._totals = uptime, reads, changes = totals_of(body)
        seconds = uptime - before[0]
        if self.number and seconds > 0:
            self.reads, self.changes = (reads - before[1]) / seconds, (changes - before[2]) / seconds
        elif self.number:  # the proxy was restarted
            self.reads = self.changes = 0.0
        for row in body["services"]:
            key = (row["namespaceId"], row["service"])
            if self._revisions.get(key, row["revision"]) != row["revision"]:
                self.changed[key] = self.changed.get(key, 0) + 1
            self._revisions[key] = row["revision"]
        self.number += 1


def totals_of(body: dict[str, Any]) -> tuple[float, int, int]:
    """Seconds that the proxy runs, its reads and its changes."""
    return body["uptimeSeconds"], body["summary"]["reads"], sum(body["counts"]["changes"].values())


def lines(body: dict[str, Any], rounds: Rounds, every: float) -> Iterator[str]:
    """The screen: totals, then the services."""
    summary, width = body["summary"], screen_width()
    rates = f"{rounds.reads:.1f} reads/s, {rounds.changes:.1f} changes/s" if rounds.number > 1 else "rates follow"
    upstream = body["upstream"]["state"]
    totals = [
        f"nacos-proxy {body['version']} {body['status']}, upstream {upstream}, up {short(body['uptimeSeconds'])}",
        f"{summary['services']} services, {summary['healthy']} of {summary['instances']} instances healthy, "
        f"{body['subscribers']['streams']} streams, {rates}, every {short(every)}",
    ]
    bad = body["status"] != "ready"
    yield click.style(cut(totals[0], width or 10_000), fg="yellow" if bad else None, bold=True)
    yield cut(totals[1], width or 10_000)
    yield from lines_of(COLUMNS, [_row(row, rounds) for row in body["services"]], width)
    if left := body["servicesFound"] - len(body["services"]):
        yield f"… and {left} more"


def _row(row: dict[str, Any], rounds: Rounds) -> tuple[Cell, ...]:
    times = rounds.changed.get((row["namespaceId"], row["service"]), 0)
    sick = row["healthy"] < row["instances"]
    return (
        Cell(row["service"]),
        Cell(row["namespaceId"]),
        Cell(str(row["instances"])),
        Cell(str(row["healthy"]), "yellow" if sick else ""),
        Cell(row["state"], COLOURS.get(row["state"], "")),
        Cell("-" if row["ageSeconds"] is None else short(row["ageSeconds"])),
        Cell(str(row["subscribers"])),
        Cell(str(times) if times else "-", "cyan" if times else ""),
        Cell(row["error"] or "", "red"),
    )


def _draw(drawn: list[str], screen: bool) -> None:
    if not screen:
        click.echo("\n".join(drawn) + "\n")
        return
    if click.get_current_context().color is False:  # `click.echo` would remove what moves the cursor, too
        drawn = list(map(click.unstyle, drawn))
    sys.stdout.write(_HOME + f"{_REST_OF_LINE}\r\n".join(drawn) + _REST_OF_LINE + _REST_OF_SCREEN)
    sys.stdout.flush()


@contextmanager
def _own_screen() -> Generator[None, None, None]:
    """The first screen comes back as it was, at SIGTERM, too."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.stdout.write(_ENTER)
    try:
        yield
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        signal.signal(signal.SIGTERM, before)
