"""The report as Chromium shows it, without a window and spoken to in its own protocol over a pipe."""

import json
import os
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from test_report import SECTIONS, make_run

from plumage.report.page import write_report

fcntl = pytest.importorskip("fcntl")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"]


pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


def pipe() -> list[int]:
    """The ends that are read from and written to, out of the way of the descriptors that Chromium takes."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return moved


class Browser:
    """One page. events: (method, parameters) of all that was reported since ``open``."""

    def __init__(self, profile: Path):
        assert CHROMIUM
        (self._from, to_us), (from_us, self._to) = pipe(), pipe()
        flags = [*FLAGS, f"--user-data-dir={profile}", "about:blank"]
        # It reads from descriptor 3 and writes to descriptor 4.
        plumbing = ["bash", "-c", f'exec 3<&{from_us} 4>&{to_us}; exec "$@"', "bash", CHROMIUM, *flags]
        silent = subprocess.DEVNULL
        self._process = subprocess.Popen(plumbing, pass_fds=(from_us, to_us), stdout=silent, stderr=silent)
        os.close(to_us)
        os.close(from_us)
        self._number, self._read, self._session = 0, b"", ""
        self.events: list[tuple[str, dict[str, Any]]] = []

    def __enter__(self) -> "Browser":
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def _message(self, patience: float = 60) -> dict[str, Any]:
        while b"\0" not in self._read:
            assert select.select([self._from], [], [], patience)[0], "the browser is silent"
            part = os.read(self._from, 1 << 20)
            assert part, "the browser is gone"
            self._read += part
        message, _, self._read = self._read.partition(b"\0")
        return json.loads(message)

    def call(self, method: str, **parameters: object) -> Any:
        self._number += 1
        order = {"id": self._number, "method": method, "params": parameters}
        order |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(order).encode() + b"\0")
        while (message := self._message()).get("id") != self._number:
            self._note(message)
        assert "error" not in message, message
        return message["result"]

    def _note(self, message: dict[str, Any]) -> str:
        self.events.append((message["method"], message["params"]))
        return message["method"]

    def open(self, page: Path, width: int, scheme: str = "light") -> None:
        """Waits until all of it is loaded."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=page.absolute().as_uri())
        while "Page.loadEventFired" not in [method for method, _ in self.events]:
            self._note(self._message())

    def evaluate(self, script: str) -> Any:
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    @property
    def complaints(self) -> list[str]:
        """Whatever went to the console, and each request that left the page."""
        console = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        found = [str(parameters) for method, parameters in self.events if method in console]
        requests = [each["request"]["url"] for method, each in self.events if method == "Network.requestWillBeSent"]
        return found + [
            url for url in requests if not url.startswith("data:") and url != self.evaluate("location.href")
        ]

    @property
    def too_wide(self) -> list[str]:
        """What ends beyond the window's edge and is not in a box that scrolls by itself."""
        return self.evaluate("""[...document.querySelectorAll("*")].filter(each => !each.parentElement?.closest(".wide")
            && each.getBoundingClientRect().right > innerWidth).map(each => each.outerHTML.slice(0, 100))""")

    @property
    def empty(self) -> list[str]:
        """What has no size although it should, unless it is folded away, and images that could not be drawn."""
        return self.evaluate("""[...document.querySelectorAll("h1, h2, h3, p, section, figure, img, td, dd, pre")]
            .filter(each => !each.closest("details") && each.textContent + each.querySelector("img") + each.src)
            .filter(each => !(each.offsetWidth > 2 && each.offsetHeight > 2) || each.naturalWidth === 0)
            .map(each => each.outerHTML.slice(0, 100))""")

    def count(self, selector: str) -> int:
        return self.evaluate(f"document.querySelectorAll({selector!r}).length")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A report of one run with 200 classes and pictures that compress badly; and of two."""
    home, names = tmp_path_factory.mktemp("runs"), [f"Species of Bird {n}" for n in range(200)]
    runs = [make_run(home / f"smoothing={e},seed=0", names, 60, each=12, smoothing=e, side=224) for e in (0.1, 0.0)]
    write_report(runs[:1], home / "one.html")
    write_report(runs, home / "two.html")
    return home


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_run_of_two_hundred_classes(browser, pages, width, scheme):
    browser.open(pages / "one.html", width, scheme)
    assert browser.complaints == browser.too_wide == browser.empty == []
    assert browser.evaluate("[...document.querySelectorAll('h2')].map(each => each.textContent)") == SECTIONS
    assert browser.count("img[src^='data:image/svg']") == 7
    assert browser.count("img[src^='data:image/jpeg']") == 12 + 24
    assert (browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)") == (
        scheme == "light"
    )
    assert (pages / "one.html").stat().st_size <= 3_000_000


@pytest.mark.parametrize("width", [1280, 390])
def test_runs_side_by_side(browser, pages, width):
    browser.open(pages / "two.html", width)
    assert browser.complaints == browser.too_wide == browser.empty == []
    assert browser.count("section") == 5
    assert browser.count("img[src^='data:image/svg']") == 4


def test_it_would_be_noticed(browser, tmp_path):
    (tmp_path / "page.html").write_text(
        "<p>text<p><img src='data:image/svg+xml,<svg'><figure><img src='http://127.0.0.1:9/x.png'></figure>"
        "<div style='width: 2000px'>wide</div><section style='height: 0'>flat</section><script>undefined.x</script>"
    )
    browser.open(tmp_path / "page.html", 390)
    said = " ".join(browser.complaints)
    assert "TypeError" in said
    assert "http://127.0.0.1:9/x.png" in browser.complaints
    assert [each.split()[0] for each in browser.too_wide] == ["<div"]
    assert [each.split()[0] for each in browser.empty][-1] == "<section"
    assert sum(each.startswith("<img") for each in browser.empty) == 2
