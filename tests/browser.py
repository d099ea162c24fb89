"""A headless Chromium over chromedriver's HTTP protocol, with the standard library alone."""

import base64
import json
import shutil
import subprocess
import time
import urllib.request

import ports

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {
    "Escape": "\ue00c",
    "Enter": "\ue007",
    "ArrowDown": "\ue015",
    "ArrowUp": "\ue013",
    "Tab": "\ue004",
}


def available() -> bool:
    return bool(shutil.which("chromedriver")) and bool(
        shutil.which("chromium") or shutil.which("google-chrome")
    )


class Browser:
    """One window. Use as a context manager."""

    def __init__(self, width=1280, height=900, dark=False):
        port = ports.free_pair()
        self.driver = subprocess.Popen(
            [shutil.which("chromedriver"), f"--port={port}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.base = f"http://127.0.0.1:{port}"
        arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
        ]
        options = {
            "args": [*arguments, f"--window-size={max(width, 500)},{height}"],
            "binary": shutil.which("chromium") or shutil.which("google-chrome"),
            # Chromium's windows are at least 500 wide: a phone is a device metric.
            **(
                {
                    "mobileEmulation": {
                        "deviceMetrics": {"width": width, "height": height, "pixelRatio": 2}
                    }
                }
                if width < 500
                else {}
            ),
        }
        capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        for _ in range(600):
            try:
                self.session = self._send(
                    "POST", "/session", {"capabilities": {"alwaysMatch": capabilities}}
                )["sessionId"]
                break
            except (ConnectionError, urllib.error.URLError) as error:
                if isinstance(error, urllib.error.HTTPError):
                    raise
                time.sleep(0.1)
        if dark:
            self.cdp(
                "Emulation.setEmulatedMedia",
                features=[{"name": "prefers-color-scheme", "value": "dark"}],
            )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        try:
            self._send("DELETE", f"/session/{self.session}")
        finally:
            self.driver.terminate()
            self.driver.wait()

    def _send(self, method, path, body=None):
        data = None if method in ("GET", "DELETE") else json.dumps(body or {}).encode()
        request = urllib.request.Request(
            self.base + path, data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=300) as reply:
            return json.load(reply)["value"]

    def command(self, method, path, body=None):
        return self._send(method, f"/session/{self.session}{path}", body)

    def cdp(self, name, **parameters):
        return self.command("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def open(self, path):
        self.command("POST", "/url", {"url": f"file://{path}"})

    def run(self, script, *arguments):
        """The value of a script's `return`."""
        return self.command("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def text(self, selector):
        return self.run(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)", selector
        )

    def wait(self, script, *arguments, seconds=60):
        """Waits until a script returns something true, and returns that."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := self.run(script, *arguments):
                return value
            time.sleep(0.02)
        raise AssertionError(f"{script} is still false after {seconds} s; the page: {self.log()}")

    def back(self):
        self.command("POST", "/back")

    def forward(self):
        self.command("POST", "/forward")

    def reload(self):
        self.command("POST", "/refresh")

    def click(self, selector):
        element = self.command("POST", "/element", {"using": "css selector", "value": selector})[
            ELEMENT
        ]
        self.command("POST", f"/element/{element}/click")

    def enter_frame(self, selector):
        """Makes a frame the place of the following commands, until a page is opened."""
        frame = self.command("POST", "/element", {"using": "css selector", "value": selector})
        self.command("POST", "/frame", {"id": frame})

    def tap(self, selector):
        """Touches the middle of an element."""
        x, y = self.run(
            "const b = document.querySelector(arguments[0]); b.scrollIntoView({block: 'center'});"
            "const r = b.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]",
            selector,
        )
        actions = [
            {"type": "pointerMove", "duration": 0, "x": round(x), "y": round(y)},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]
        finger = {"type": "pointer", "id": "finger", "parameters": {"pointerType": "touch"}}
        self.command("POST", "/actions", {"actions": [finger | {"actions": actions}]})

    def press(self, *keys):
        for key in keys:
            value = KEYS.get(key, key)
            actions = [{"type": "keyDown", "value": value}, {"type": "keyUp", "value": value}]
            self.command(
                "POST",
                "/actions",
                {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]},
            )

    def log(self):
        return [entry["message"] for entry in self.command("POST", "/se/log", {"type": "browser"})]

    def picture(self, path):
        path.write_bytes(base64.b64decode(self.command("GET", "/screenshot")))
