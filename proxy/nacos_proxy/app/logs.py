"""Logging: where log lines go and how they look.

While the proxy serves with `log_format = json`, everything that it writes is one JSON object a line: log lines of ours
and of libraries, the access log, warnings, what nothing caught, and the lines that tell where it listens.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections import Counter
from types import TracebackType
from typing import Any, Literal, NamedTuple

from nacos_proxy.model.masking import masked
from nacos_proxy.model.printable import printable
from nacos_proxy.request_context import Answered, current_request

ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
Style = Literal["text", "json"]

log = logging.getLogger("nacos_proxy")
access = logging.getLogger("nacos_proxy.access")
announcements = logging.getLogger("nacos_proxy.start")


_BASE = logging.Formatter()


def _time(record: logging.LogRecord) -> str:
    """With its zone (RFC 3339), so that lines of several hosts can be compared."""
    moment, _, zone = _BASE.formatTime(record, "%Y-%m-%dT%H:%M:%S %z").partition(" ")
    return f"{moment}.{int(record.msecs):03}{zone[:3]}:{zone[3:]}"


class _AccessRecord(NamedTuple):
    """The message of a line of the access log, which each formatter writes in its own way."""

    answered: Answered

    def __str__(self) -> str:
        it = self.answered
        target = f"{it.path}?{it.query}" if it.query else it.path
        took = "repeated" if it.repeated else f"{_milliseconds(it):g} ms"
        return f"{it.client or '-'} {it.method or '-'} {target or '-'} {it.status}, {it.size} bytes, {took}"

    def fields(self) -> dict[str, Any]:
        it = self.answered
        return {
            "message": f"{it.method or '-'} {masked(it.path) or '-'} {it.status}",
            "method": it.method,
            "route": it.route,
            "path": masked(it.path),
            "query": masked(it.query),
            "status": it.status,
            "durationMs": _milliseconds(it),
            "bytes": it.size,
            "client": it.client,
            "repeated": it.repeated,
            **({"requestId": it.id} if it.id else {}),
        }


def _milliseconds(answered: Answered) -> float:
    return round(answered.seconds * 1000, 3)


def _request_id(record: logging.LogRecord) -> str:
    if isinstance(record.msg, _AccessRecord):
        return record.msg.answered.id
    request = current_request()
    return "" if request is None else request.id


class TextFormatter(logging.Formatter):
    """For people: each message on one line, even if it quotes several; tracebacks follow on lines of their own."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return _time(record)

    def formatMessage(self, record: logging.LogRecord) -> str:
        id = _request_id(record)
        about = f" (request {id})" if id else ""
        record.message = printable(masked(record.message.rstrip()) + about)
        return super().formatMessage(record)

    def formatException(self, ei: ExceptionInfo) -> str:
        return masked(super().formatException(ei))


class JsonFormatter(logging.Formatter):
    """For programs: each line is a JSON object with time, level, logger and message.

    Lines about a request have its `requestId`, errors their traceback as `error`, the access log fields of its own.
    """

    def format(self, record: logging.LogRecord) -> str:
        request = current_request()
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": "",
            **({} if request is None else request.log_fields),
        }
        if isinstance(record.msg, _AccessRecord):
            line |= record.msg.fields()
        else:
            line["message"] = masked(record.getMessage().rstrip())
        if record.exc_info:
            line["error"] = masked(self.formatException(record.exc_info))
        return json.dumps(line)


class LineCounter(logging.Handler):
    """Counts the lines of the log, by level."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: Counter[str] = Counter(debug=0, info=0, warning=0, error=0, critical=0)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines[record.levelname.lower()] += 1


LINES = LineCounter()  # of this process, as is the log


def set_up(level: str, style: Style) -> None:
    """Logs to standard error: our lines from `level` on, warnings and errors of libraries, all of the access log."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler, LINES]
    root.setLevel(logging.WARNING)
    log.setLevel(level.upper())
    for logger in (access, announcements):
        logger.setLevel(logging.INFO)
    logging.captureWarnings(True)
    if style == "json":  # a traceback in text would be many lines that no program can read
        sys.excepthook = _log_uncaught
        threading.excepthook = lambda it: log.critical("a thread failed", exc_info=it.exc_value)
        sys.unraisablehook = lambda it: log.error("%s", it.err_msg or "an exception was ignored", exc_info=it.exc_value)


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    log.critical("the proxy failed", exc_info=(kind, error, traceback))


def announce(text: str, style: Style) -> None:
    """Tells, line by line, what runs and where it listens: on standard output, or in the log if that is JSON."""
    if style == "text":
        print(text, flush=True)
        return
    for line in text.splitlines():
        announcements.info("%s", line)


def log_access(answered: Answered) -> None:
    """One line of the access log."""
    access.info(_AccessRecord(answered))
