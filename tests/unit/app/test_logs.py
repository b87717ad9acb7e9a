"""How log lines look."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator

import pytest

from nacos_proxy.app.logs import JsonFormatter, TextFormatter, printable, set_up


def record(message: str, *arguments: object, error: bool = False) -> logging.LogRecord:
    return logging.LogRecord(
        "nacos_proxy.poller", logging.WARNING, "f.py", 1, message, arguments, sys.exc_info() if error else None
    )


@pytest.fixture
def untouched() -> Iterator[None]:
    """Puts the process's logging back as it was."""
    loggers = [logging.getLogger(name) for name in (None, "nacos_proxy", "uvicorn.access")]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


def test_text_formatter_writes_time_level_logger_and_message() -> None:
    line = TextFormatter().format(record("upstream %s is lost", "a:8848"))
    assert line.endswith(" WARNING nacos_proxy.poller: upstream a:8848 is lost")


def test_text_formatter_keeps_a_message_on_one_line() -> None:
    line = TextFormatter().format(record("said %s", "a\nb\x1b[2J"))
    assert line.endswith(r"said a\nb\x1b[2J")
    assert "\n" not in line


def test_text_formatter_appends_the_traceback() -> None:
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        text, structured = (each().format(record("failed", error=True)) for each in (TextFormatter, JsonFormatter))
    assert text.splitlines()[1].startswith("Traceback")
    assert "RuntimeError: broken" in json.loads(structured)["error"]


def test_json_formatter_writes_one_object() -> None:
    line = JsonFormatter().format(record("said %s", "a\nb\x1bä"))
    assert "\n" not in line
    assert line.isascii()
    found = json.loads(line)
    assert (found["level"], found["logger"], found["message"]) == ("warning", "nacos_proxy.poller", "said a\nb\x1bä")
    assert "error" not in found


@pytest.mark.parametrize(("style", "formatter"), [("text", TextFormatter), ("json", JsonFormatter)])
@pytest.mark.usefixtures("untouched")
def test_set_up_chooses_formatter_and_level(style: str, formatter: type[logging.Formatter]) -> None:
    set_up("debug", style)  # type: ignore[arg-type]
    (handler,) = logging.getLogger().handlers
    assert isinstance(handler.formatter, formatter)
    assert logging.getLogger("nacos_proxy.agent").isEnabledFor(logging.DEBUG)
    assert not logging.getLogger("httpx").isEnabledFor(logging.INFO)


def test_printable_keeps_printable_text() -> None:
    assert printable("orders ä 服务") == "orders ä 服务"
    assert printable("\x9b31m\r\u202e") == r"\x9b31m\r\u202e"


@pytest.mark.parametrize("formatter", [TextFormatter, JsonFormatter])
def test_formatters_mask_secrets_of_a_target(formatter: type[logging.Formatter]) -> None:
    target = "/nacos/v1/ns/instance/list?accessToken=eyJhbGci.x-y_z&serviceName=a&username=u&password=p%40ss"
    line = formatter().format(record('127.0.0.1:1 - "GET %s HTTP/1.1" 200', target))
    assert "eyJ" not in line and "p%40ss" not in line
    assert "serviceName=a&username=u" in line


@pytest.mark.parametrize("formatter", [TextFormatter, JsonFormatter])
def test_formatters_mask_secrets_of_a_traceback(formatter: type[logging.Formatter]) -> None:
    try:
        raise ValueError("cannot ask http://app:hunter2@nacos/list?token=hunter2")
    except ValueError:
        line = formatter().format(record("failed", error=True))
    assert "ValueError" in line and "hunter2" not in line.replace('raise ValueError("cannot ask http', "")
