"""Chromium through the W3C WebDriver protocol, which is JSON over HTTP: no package is needed for it."""

import base64
import json
import os
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no chromium, chromium-browser or google-chrome with its chromedriver"
)
_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=1250,2000", "--hide-scrollbars"),
]
_TIMEOUT_SECONDS = 60


class Browser:
    """One window."""

    def __init__(self, session_url: str) -> None:
        self._session_url = session_url

    def open(self, path: Path) -> None:
        self._call("url", {"url": path.absolute().as_uri()})

    def run(self, script: str) -> Any:
        """The value of a function body; the driver runs it whatever the page's policy says."""
        return self._call("execute/sync", {"script": script, "args": []})

    def click(self, selector: str) -> None:
        element = self._call("element", {"using": "css selector", "value": selector})
        self._call(f"element/{next(iter(element.values()))}/click", {})

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(_request("GET", f"{self._session_url}/screenshot")))

    def _call(self, command: str, body: dict[str, Any]) -> Any:
        return _request("POST", f"{self._session_url}/{command}", body)


@contextmanager
def started_browser(directory: Path) -> Iterator[Browser]:
    """Start a driver and a browser, with all that they write in `directory`."""
    assert DRIVER is not None
    log = directory / "chromedriver.log"
    command = [DRIVER, "--port=0", f"--log-path={log}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        port = _port_of(process)
        options = {"binary": CHROMIUM, "args": [*_FLAGS, f"--user-data-dir={directory / 'profile'}"]}
        capabilities = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}
        session = _request("POST", f"http://127.0.0.1:{port}/session", {"capabilities": capabilities})
        session_url = f"http://127.0.0.1:{port}/session/{session['sessionId']}"
        try:
            yield Browser(session_url)
        finally:
            _request("DELETE", session_url)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(_TIMEOUT_SECONDS)


def _port_of(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    for line in process.stdout:
        if "started successfully on port" in line:
            return int(line.rstrip(" .\n").rsplit(" ", 1)[1])
    raise AssertionError("chromedriver ended without a port")


def _request(method: str, url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=_TIMEOUT_SECONDS) as answer:
        return json.load(answer)["value"]
