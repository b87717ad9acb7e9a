"""How log lines look."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from typing import Any

import pytest

from nacos_proxy.app.logs import (
    LINES,
    JsonFormatter,
    LineCounter,
    TextFormatter,
    announce,
    log_access,
    set_up,
)
from nacos_proxy.model.printable import printable
from nacos_proxy.request_context import Answered, RequestContext, work_for
from nacos_proxy.runtime import spawn

ANSWERED = Answered("PUT", "/a%2Fb", "token=x&c=d", "/{name}", 200, 0.01234567, 5, "10.0.0.9", "it-1")


def record(message: str, *arguments: object, error: bool = False) -> logging.LogRecord:
    return logging.LogRecord(
        "nacos_proxy.poller", logging.WARNING, "f.py", 1, message, arguments, sys.exc_info() if error else None
    )


@pytest.fixture
def untouched() -> Iterator[None]:
    """Puts the process's logging back as it was."""
    loggers = [logging.getLogger(name) for name in (None, "nacos_proxy", "nacos_proxy.access", "nacos_proxy.start")]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
    logging.captureWarnings(False)
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks


def logged(style: str, write: Callable[[], object], level: str = "info") -> str:
    """What `write` puts into the log."""
    with redirect_stderr(io.StringIO()) as said:
        set_up(level, style)  # type: ignore[arg-type]
        write()
    return said.getvalue()


def objects(write: Callable[[], object], level: str = "info") -> list[dict[str, Any]]:
    return [json.loads(line) for line in logged("json", write, level).splitlines()]


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


TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d")


def test_formatters_write_the_time_with_its_zone() -> None:
    assert TIME.match(TextFormatter().format(record("it")))
    assert TIME.fullmatch(json.loads(JsonFormatter().format(record("it")))["time"])


@pytest.mark.parametrize("formatter", [TextFormatter, JsonFormatter])
async def test_formatters_name_the_request_that_a_line_is_about(formatter: type[logging.Formatter]) -> None:
    lines: list[str] = []

    async def a_request() -> None:
        work_for(RequestContext("it-1"))
        lines.append(formatter().format(record("upstream lost")))

    await spawn(a_request(), name="request")
    assert lines[0].endswith("upstream lost (request it-1)") or json.loads(lines[0])["requestId"] == "it-1"
    assert "equest" not in formatter().format(record("upstream lost"))


@pytest.mark.usefixtures("untouched")
def test_log_access_writes_one_line_for_people() -> None:
    line = logged("text", lambda: log_access(ANSWERED), "error")
    assert line.endswith(
        "nacos_proxy.access: 10.0.0.9 PUT /a%2Fb?token=********&c=d 200, 5 bytes, 12.346 ms (request it-1)\n"
    )
    repeated = Answered("GET", "/a", "", "/a", 304, 0.0, 0, "", "", repeated=True)
    assert logged("text", lambda: log_access(repeated)).endswith("access: - GET /a 304, 0 bytes, repeated\n")


@pytest.mark.usefixtures("untouched")
def test_log_access_writes_fields_for_programs() -> None:
    (line,) = objects(lambda: log_access(ANSWERED), "error")
    del line["time"]
    assert line == {
        "level": "info",
        "logger": "nacos_proxy.access",
        "message": "PUT /a%2Fb 200",
        "method": "PUT",
        "route": "/{name}",
        "path": "/a%2Fb",
        "query": "token=********&c=d",
        "status": 200,
        "durationMs": 12.346,
        "bytes": 5,
        "client": "10.0.0.9",
        "repeated": False,
        "requestId": "it-1",
    }


@pytest.mark.usefixtures("untouched")
def test_set_up_puts_warnings_into_the_log() -> None:
    def warn() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            warnings.warn("old", DeprecationWarning, stacklevel=1)

    (line,) = objects(warn)
    assert (line["logger"], line["level"]) == ("py.warnings", "warning")
    assert "DeprecationWarning: old" in line["message"]


@pytest.mark.usefixtures("untouched")
def test_set_up_puts_what_nothing_caught_into_the_log() -> None:
    def fail() -> None:
        raise RuntimeError("broken")

    def uncaught() -> None:
        try:
            fail()
        except RuntimeError as error:
            sys.excepthook(type(error), error, error.__traceback__)
            sys.unraisablehook(Unraisable(error))
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()

    lines = objects(uncaught)
    assert [line["message"] for line in lines] == ["the proxy failed", "an exception was ignored", "a thread failed"]
    assert all(line["error"].endswith("RuntimeError: broken") for line in lines)


class Unraisable:
    """As `sys.unraisablehook` gets it."""

    def __init__(self, error: BaseException) -> None:
        self.exc_type, self.exc_value, self.exc_traceback = type(error), error, error.__traceback__
        self.err_msg, self.object = None, None


@pytest.mark.usefixtures("untouched")
def test_announce_writes_a_line_each_even_if_the_log_level_is_error() -> None:
    lines = objects(lambda: announce("listening on http://a\nstate: b", "json"), "error")
    assert [line["message"] for line in lines] == ["listening on http://a", "state: b"]


def test_announce_prints_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    announce("listening on http://a\nstate: b", "text")
    assert capsys.readouterr().out == "listening on http://a\nstate: b\n"


@pytest.mark.parametrize(("style", "formatter"), [("text", TextFormatter), ("json", JsonFormatter)])
@pytest.mark.usefixtures("untouched")
def test_set_up_chooses_formatter_and_level(style: str, formatter: type[logging.Formatter]) -> None:
    set_up("debug", style)  # type: ignore[arg-type]
    handler, counter = logging.getLogger().handlers
    assert isinstance(handler.formatter, formatter)
    assert logging.getLogger("nacos_proxy.agent").isEnabledFor(logging.DEBUG)
    assert not logging.getLogger("httpx").isEnabledFor(logging.INFO)
    assert counter is LINES


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


def test_line_counter_counts_by_level() -> None:
    counter = LineCounter()
    counter.handle(record("upstream %s is lost", "a:8848"))
    assert {level: number for level, number in counter.lines.items() if number} == {"warning": 1}
    assert counter.lines.keys() == {"debug", "info", "warning", "error", "critical"}
