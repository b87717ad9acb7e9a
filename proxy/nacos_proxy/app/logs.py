"""Logging: where log lines go and how they look."""

from __future__ import annotations

import json
import logging
import sys
from types import TracebackType
from typing import Literal

from nacos_proxy.model.masking import masked

ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def printable(text: str) -> str:
    """Escapes control characters, so that text from outside is safe for a terminal and stays on one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


class TextFormatter(logging.Formatter):
    """For people: each message on one line, even if it quotes several; tracebacks follow on lines of their own."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(masked(record.message))
        return super().formatMessage(record)

    def formatException(self, ei: ExceptionInfo) -> str:
        return masked(super().formatException(ei))


class JsonFormatter(logging.Formatter):
    """For programs: each line is a JSON object with time, level, logger, message, and for errors the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": masked(record.getMessage()),
        }
        if record.exc_info:
            line["error"] = masked(self.formatException(record.exc_info))
        return json.dumps(line)


def set_up(level: str, style: Literal["text", "json"]) -> None:
    """Logs to standard error: our lines from `level` on, warnings and errors of libraries."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("nacos_proxy", "uvicorn.access"):
        logging.getLogger(name).setLevel(level.upper())
