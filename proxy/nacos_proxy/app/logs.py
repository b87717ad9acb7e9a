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
    """For people. A message is one line, whatever it quotes; the traceback of an error follows it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(masked(record.message))
        return super().formatMessage(record)

    def formatException(self, ei: ExceptionInfo) -> str:
        return masked(super().formatException(ei))


class JsonFormatter(logging.Formatter):
    """For programs: one JSON object a line: time, level, logger, message; and error, a traceback, if there is one."""

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
    """Logs the whole process to standard error; of libraries, only warnings and errors."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("nacos_proxy", "uvicorn.access"):
        logging.getLogger(name).setLevel(level.upper())
