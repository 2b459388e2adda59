"""A headless Chromium, driven through the pipe it offers, where one is installed; no further package is needed."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_chromium() -> str | None:
    """Return the program, which the variable CHROMIUM may name, or None."""
    return next(filter(None, map(shutil.which, (os.environ.get("CHROMIUM", ""), *NAMES))), None)


class Browser:
    """One page of a Chromium of its own (DevTools protocol: JSON messages that end in a zero byte)."""

    def __init__(self, program: str, profile: Path, *, width: int = 1280, height: int = 900) -> None:
        to_browser, from_browser = os.pipe(), os.pipe()

        def pipes() -> None:  # in the child: the browser reads from 3 and writes to 4
            reading, writing = os.dup(to_browser[0]), os.dup(from_browser[1])
            os.dup2(reading, 3)
            os.dup2(writing, 4)

        self._process = subprocess.Popen(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--disable-extensions", "--disable-background-networking", "--hide-scrollbars",
             "--remote-debugging-pipe", f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank"],
            preexec_fn=pipes, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_browser[0])
        os.close(from_browser[1])
        self._to, self._from, self._rest, self._number, self._session = to_browser[1], from_browser[0], b"", 0, None
        self.events: list[dict] = []
        page = next(t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: object) -> dict:
        """Return the answer to a command; events that come meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        number = self._number
        while (answer := self._read()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self, *, patience: float = 60) -> dict:
        while b"\0" not in self._rest:
            assert select.select([self._from], [], [], patience)[0], "the browser does not answer"
            part = os.read(self._from, 1 << 20)
            assert part, "the browser has ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, url: str) -> None:
        """Load a page, all of it."""
        self.events.clear()
        self.send("Page.navigate", url=url)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def run(self, script: str) -> object:
        """Return the value of an expression in the page."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key, such as `j`, `Enter` or `ArrowRight`."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key,
                      windowsVirtualKeyCode={"Enter": 13}.get(key, 0), **({"text": text} if kind == "keyDown" else {}))

    def choose(self, selector: str, path: Path) -> None:
        """Choose a file in a file input."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def wait(self, condition: str, *, patience: float = 60) -> None:
        """Wait until an expression in the page is true."""
        until = time.monotonic() + patience
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < until, f"{condition} did not come true"
            time.sleep(0.05)

    def shows(self) -> bytes:
        """Return what the window shows, as PNG."""
        return base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])

    def problems(self, *allowed: str) -> list[object]:
        """Return errors of scripts and policies, and addresses asked for that are not files, data, or allowed, by their
        beginnings."""
        found = [event["params"] for event in self.events if event.get("method") == "Runtime.exceptionThrown"]
        found += [event["params"]["entry"] for event in self.events if event.get("method") == "Log.entryAdded"]
        asked = (event["params"]["request"]["url"] for event in self.events
                 if event.get("method") == "Network.requestWillBeSent")
        return found + [url for url in asked if not url.startswith(("file:", "data:", *allowed))]

    def close(self) -> None:
        """End the browser."""
        os.close(self._to)  # it ends with its pipe
        for _ in range(50):
            if self._process.poll() is not None:
                break
            time.sleep(0.1)
        else:
            self._process.kill()
        self._process.wait()
        os.close(self._from)
