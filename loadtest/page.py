"""Writes `docs/performance.md` and `docs/sizing.md` from the results, so no figure in them is typed by hand."""

from __future__ import annotations

from collections.abc import Sequence

from loadtest import goals
from loadtest.causes import CAUSES
from loadtest.report import Result, table

HEAD = """# Performance

Written by `python -m loadtest docs` from the JSON files in `loadtest/results/`; `python -m loadtest all` makes those.
Machine: {machine}.

Absolute figures depend on the machine and on what else runs on it, so only ratios within one run count. All contenders
run on loopback with one worker each, in alternating order, and ratios are computed round by round. A figure is the
median of the rounds, with the minimum and the maximum in brackets. Times are in milliseconds. `memory` is a process's
peak resident MiB since its start, `cpu_s_per_1000` the CPU seconds for 1,000 requests. The load comes from wrk on the
same two cores; `nginx return 200` shows how much of it there can be.

"""
NOTES = """
## gRPC

- A `ServiceQuery` takes about 0.14 ms of CPU here and 0.03 ms in r-nacos, which uses both cores. 70 % of it is HTTP/2
  in `h2`, in Python (by profile). Frames of our own, without its general state machine, would about double the rate.
- A list is encoded once for all subscribers. What a push then costs is one HTTP/2 frame and one acknowledgement for
  each of them.

## What makes it fast

- A request head that equals an earlier one is not parsed, even if the ids of SDKs and tracers in it are new. A bounded
  table has its answer, as long as that is fresh and its service unchanged. A head that differs in other irrelevant
  headers is parsed and looked up by the relevant ones. Neither case starts a task.
- A poll with a UDP port is such a read. About once a second, its repetition renews the client's subscription.
- A change drops the answers of its service before any subscriber hears of it; a poll without a change keeps them.
- An event is encoded and framed once for all readers with the same view, and written straight to their connections.
- A poll with an unchanged answer is recognised by its digest and not parsed. If one of a thousand instances changed,
  the others are neither rebuilt nor encoded again.
- A list over gRPC, as an answer or as a push, is encoded once as long as its service is unchanged.
- A beat or registration that came before, with new ids, is sent on without a parse, a task or a new encoding: the bytes
  for the server are kept, too. Only an answer that is not the usual one takes the way of other calls.
  An answer to a beat with the same bytes as the last one is not read again.
- A start reads no more of the state on disk than its first answers need; the rest follows a second later.

Settings: `fast_path = false` answers every request in full; `poll_*` and `push` decide what idling costs
([Configuration](configuration.md)).

## Repeating the measurements

<!-- not run: takes about an hour -->
```sh
python -m loadtest all             # about an hour; leaves out r-nacos, nginx, nchan and wrk if not installed
python -m loadtest soak            # another hour
python -m loadtest reads --quick --only "Java SDK polls"  # a few seconds, to see whether it runs
python -m loadtest docs            # this page, from the results
```
"""

SIZING = """# Sizing

How much CPU and memory does the proxy of one host need? The table is written by `python -m loadtest docs` from a run of
`python -m loadtest sizing`, which takes about five minutes.
Machine: {machine}. Its load average was {load} before the run (0: nothing else ran).

A *reader* is a client that has an event stream of one service and reads some service once a second. One service
changes every second. Push is off, so the proxy polls all services: with push it needs less. CPU is in percent of one
core; *idle* is without readers. The memory is the peak since the start, of the whole process. If there are fewer reads
a second than readers, the machine was too busy to make them all, and the CPU of that row is too low.

| on the host | CPU, idle | CPU | memory | reads | requests to Nacos |
| --- | ---: | ---: | ---: | ---: | ---: |
{rows}

## How to read it

- **Most hosts are in the first two rows.** A host watches the services that its own applications use, not all
  services of the company. Start with one core that is not reserved and 150 MiB, and look at `process_cpu_seconds_total`
  and `process_resident_memory_bytes` in `/metrics`.
- **CPU** is mostly polling: one request to Nacos for each watched service. With gRPC push (Nacos from 2.0 on) a service
  is polled every 30 s instead of every 1 to 5 s ([compared](performance.md#scale-watched-services-push-on)).
- **`poll_budget`** (200 a second) bounds the polls, whatever is watched. With more than 1,000 watched services and no
  push, lists become older than `poll_interval_read`. Beyond `cache_ttl`, a read is answered as before and causes one
  more request to Nacos, and `/readyz` says `polling`.
- **Reads** that repeat cost about 10 µs of CPU each, up to tens of thousands a second
  ([reads](performance.md#reads-one-hot-service)). The proxy makes an answer anew if its service has changed, or if the
  request was not sent twice before; that costs about 0.5 ms.
- **Memory** grows with the number of instances, and with each open event stream by about 8 KiB
  ([fanout](performance.md#fanout-10000-readers)), with each SDK over gRPC by about 21 KiB.
- **Writes** cost about 0.2 ms of CPU each; 1,000 instances with a heartbeat every 5 s are 4 % of a core
  ([writes](performance.md#writes-beats-as-the-java-sdk-32-connections)).

The proxy is one process and uses one core. If that is not enough for a host, run
[several processes](recipes/tiers.md#several-processes-on-one-host) on one port.

## Limits to raise on a large host

| setting | raise it if |
| --- | --- |
| `cache_max_services` (10,000) | the host reads more services |
| `poll_budget` (200) | `/readyz` says `polling`, and Nacos can take more |
| `watched_per_client` (10,000), `subscribers_per_client` (20,000) | many clients share one address |
| `LimitNOFILE` of the systemd unit (65,536) | more connections are open at once |
"""
IS_SIZING = "sizing"
DETAILS = ("p999", "errors", "requests")  # in the results' own tables
SECTIONS = (
    ("Requests as SDKs send them", ("SDK",)),
    ("First reads", ("misses",)),
    ("Reads that repeat", ("one hot", "200 connections", "at random", "beside")),
    ("Idle, start, memory, soak", ("scale", "start", "memory", "soak")),
    ("Tiers", ("tiers",)),
    ("Events", ("fanout", "propagation")),
    ("Over gRPC", ("gRPC",)),
    ("Over DNS", ("DNS",)),
    ("Others", ("",)),
)


def sizing(results: Sequence[Result]) -> str:
    """Markdown. Raises `ValueError` if there are no results."""
    found = [result for result in results if result.series.question.startswith(IS_SIZING)]
    if not found:
        raise ValueError("no results: run `python -m loadtest sizing` first")
    rows: list[str] = []
    for sample in found[0].series.samples:
        f = sample.figures
        rows.append(
            f"| {sample.contender} | {f['cpu_percent_idle']:.1f} % | {f['cpu_percent']:.1f} % | {f['memory']:.0f} MiB |"
            f" {f['reads_a_second']:.0f}/s | {f['upstream_a_second']:.0f}/s |"
        )
    load = f"{found[0].series.samples[0].figures['load']:.1f}"
    return SIZING.format(load=load, machine=found[0].machine, rows="\n".join(rows))


def page(results: Sequence[Result]) -> str:
    """Markdown. Raises `ValueError` if there are no results."""
    if not results:
        raise ValueError("no results: run `python -m loadtest all` first")
    by_question = {result.series.question: result.series for result in results}
    machines = sorted({result.machine for result in results})
    parts = [HEAD.format(machine="; ".join(machines)), "## Goals\n\n", goals.table(by_question), "\n"]
    parts += [_causes(goals.missed(by_question)), NOTES]
    left = [result for result in results if not result.series.question.startswith(IS_SIZING)]
    for title, words in SECTIONS:
        chosen = [result for word in words for result in left if word in result.series.question]
        if chosen:
            parts += [f"\n## {title}\n", *map(_result, chosen)]
            left = [result for result in left if result not in chosen]
    return "".join(parts)


def _causes(missed: Sequence[goals.Goal]) -> str:
    if not missed:
        return ""
    by_cause: dict[str, list[str]] = {}
    for goal in missed:
        by_cause.setdefault(CAUSES.get(goal.what, "not known yet."), []).append(goal.what)
    lines = [f"- **{'; '.join(names)}**: {cause}" for cause, names in by_cause.items()]
    return "\n## Why some goals were not reached\n\n" + "\n".join(lines) + "\n"


def _result(result: Result) -> str:
    series = result.series
    errors = any(sample.figures.get("errors") for sample in series.samples)
    shown = [name for name in series.figures if name not in DETAILS or (name == "errors" and errors)]
    text = f"\n### {series.question[:1].upper()}{series.question[1:]}\n\n{table(series, result.baseline, shown)}\n"
    chart = f"\n![{series.question}](../loadtest/results/{result.stem}.svg)\n"
    return text + (chart if len(series.contenders) > 1 else "")
