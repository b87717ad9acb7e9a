"""Drives a headless Chromium through chromedriver over plain HTTP (W3C WebDriver).

`asked` reads Chromium's own network log, so it includes requests that a page makes by itself.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from nacos_proxy.runtime import SystemClock
from tests.helpers.live import Process

WAIT_SECONDS = 60.0
STARTED = re.compile(r"was started successfully on port (\d+)")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element's id, WebDriver 12.
SELECT_ALL = "\ue009a\ue000"  # Ctrl+A, and all keys up again, WebDriver 17.4.2.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1600",
)


class BrowserError(Exception):
    """An error that chromedriver reported."""


class Browser:
    """One window. Commands return when they are done; `until` waits for what a page does by itself."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._clock = SystemClock()

    def go(self, url: str) -> None:
        """Returns when the page has loaded."""
        self._do("POST", "url", {"url": url})

    @property
    def url(self) -> str:
        return str(self._do("GET", "url"))

    @property
    def text(self) -> str:
        """The visible text of the page."""
        return str(self.run("return document.body.innerText"))

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of JavaScript that ends with `return …`; waits for a promise."""
        return self._do("POST", "execute/sync", {"script": script, "args": list(arguments)})

    def click(self, css: str) -> None:
        found = self._do("POST", "element", {"using": "css selector", "value": css})
        self._do("POST", f"element/{found[ELEMENT]}/click", {})

    def fill(self, css: str, text: str) -> None:
        """Replaces the text in a field."""
        found = self._do("POST", "element", {"using": "css selector", "value": css})
        self._do("POST", f"element/{found[ELEMENT]}/value", {"text": SELECT_ALL + text})

    def until(self, script: str, *arguments: Any) -> Any:
        """Runs the script again and again; returns its first true value."""
        end = self._clock.now() + WAIT_SECONDS
        while not (found := self.run(script, *arguments)):
            if self._clock.now() > end:
                raise BrowserError(f"never came true: {script}\n{self.text[:2000]}")
        return found

    def asked(self) -> list[str]:
        """The URLs that were requested since the last call, without Chromium's own pages."""
        messages = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("data:", "chrome:", "blob:", "about:"))]

    def complaints(self) -> list[str]:
        """The console messages since the last call: script errors, policy violations, failed loads."""
        return [entry["message"] for entry in self._log("browser")]

    def emulate(self, width: int, height: int, *, dark: bool = False) -> None:
        """Makes the page so large, which a window cannot always be, in the light or the dark colours."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._do("POST", "goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics})
        media = {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
        self._do("POST", "goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": media})

    def press(self, keys: str) -> None:
        """Types into what has the focus. Special keys are code points of WebDriver 17.4.2."""
        down_and_up = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._do("POST", "actions", {"actions": [{"type": "key", "id": "keys", "actions": down_and_up}]})

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._do("GET", "screenshot")))

    def _log(self, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._do("POST", "se/log", {"type": kind})
        return found

    def _do(self, method: str, command: str, body: Any = None) -> Any:
        reply = self._http.request(method, command, json=body)
        value = reply.json()["value"]
        if reply.is_error:
            raise BrowserError(f"{command}: {value['message'] if isinstance(value, dict) else value}")
        return value


def missing() -> str:
    """Why no browser can run here; '' if one can."""
    wanted = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"not installed: {', '.join(wanted)}" if wanted else ""


@contextmanager
def browsing(flags: Sequence[str] = ()) -> Iterator[Browser]:
    """A browser with a new, empty profile."""
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        with Process(["chromedriver", "--port=0"]) as driver:
            port = driver.wait_for(STARTED)[1]
            base = f"http://127.0.0.1:{port}/session"
            with httpx.Client(trust_env=False, timeout=60) as http:
                reply = http.post(base, json=_capabilities([*FLAGS, *flags, f"--user-data-dir={profile}"])).json()
                if "sessionId" not in reply["value"]:
                    raise BrowserError(reply["value"]["message"])
                session = f"{base}/{reply['value']['sessionId']}"
                http.base_url = f"{session}/"
                try:
                    yield Browser(http)
                finally:
                    http.delete(session).raise_for_status()


def _capabilities(arguments: Sequence[str]) -> dict[str, Any]:
    options = {"args": list(arguments), "binary": shutil.which("chromium")}
    logs = {"browser": "ALL", "performance": "ALL"}
    return {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": logs}}}
