"""A real Chromium, over the WebDriver protocol (https://www.w3.org/TR/webdriver2/); it needs no package of Python."""

import base64
import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
ENTER, DOWN = "\ue007", "\ue015"  # keys, as the protocol has them
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    """A session of chromedriver."""

    def __init__(self, server: str, profile: Path, *flags: str) -> None:
        options = {"args": [*FLAGS, f"--user-data-dir={profile}", *flags]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"performance": "ALL"}}
        reply = _call("POST", f"{server}/session", {"capabilities": {"alwaysMatch": wanted}})
        self.url = f"{server}/session/{reply['sessionId']}"

    def open(self, path: Path, fragment: str = "") -> None:
        """Load a file as a new page, and wait until its scripts have run."""
        self.post("url", url="about:blank")
        self.post("url", url=path.resolve().as_uri() + fragment)

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what the body of a JavaScript function returns."""
        return self.post("execute/sync", script=script, args=arguments)

    def wait(self, script: str, *arguments: Any) -> None:
        """Wait until the expression is true."""
        for _ in range(300):
            if self.run(f"return !!({script})", *arguments):
                return
            time.sleep(0.1)
        raise AssertionError(f"never true: {script}")

    def click(self, selector: str) -> None:
        """Click an element as a mouse does."""
        self.post(f"element/{self._find(selector)}/click")

    def type(self, selector: str, text: str) -> None:
        """Type into an element as a keyboard does."""
        self.post(f"element/{self._find(selector)}/value", text=text)

    def press(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.post("actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])

    def texts(self, selector: str) -> list[str]:
        """Return the text of each element that the selector matches."""
        found = self.run("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector)
        assert isinstance(found, list)
        return found

    def requests(self) -> list[str]:
        """Return the URL of each request since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.post("se/log", type="performance")]
        sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in sent]

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as PNG."""
        path.write_bytes(base64.b64decode(_call("GET", f"{self.url}/screenshot")))

    def post(self, command: str, **body: Any) -> Any:
        """Send a command of the session."""
        return _call("POST", f"{self.url}/{command}", body)

    def _find(self, selector: str) -> str:
        found = self.post("element", using="css selector", value=selector)[_ELEMENT]
        assert isinstance(found, str)
        return found


@contextmanager
def browser(folder: Path, *flags: str) -> Iterator[Browser]:
    """Start chromedriver and a browser with a new profile in `folder`, and end both."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = f"http://127.0.0.1:{port}"
    with (folder / "chromedriver.log").open("w") as log:
        process = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=log, stderr=log)
        try:
            _wait_for(server)
            session = Browser(server, folder / "profile", *flags)
            try:
                yield session
            finally:
                _call("DELETE", session.url)
        finally:
            process.terminate()
            process.wait()


def _wait_for(server: str) -> None:
    for _ in range(200):
        try:
            if _call("GET", f"{server}/status")["ready"]:
                return
        except URLError:
            time.sleep(0.1)
    raise AssertionError("chromedriver does not answer")


def _call(method: str, url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows nothing of this machine
    try:
        with opener.open(request, timeout=200) as reply:
            return json.load(reply)["value"]
    except urllib.error.HTTPError as error:
        with error:
            raise AssertionError(json.load(error)["value"]["message"]) from None
