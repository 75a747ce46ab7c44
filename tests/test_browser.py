"""The report as Chromium shows it, without a window and spoken to in its own protocol over a pipe."""

import json
import os
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from test_report import LOOK_FIRST, SECTIONS, enriched, make_run

import plumage.report.page
from plumage.report.html import TEMPLATES, jpeg
from plumage.report.page import write_report
from plumage.report.reading import read_run

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


# Of text and pictures in boxes that scroll, what is seen without scrolling counts.
UNTIDY = """(() => {
  const name = each => each.outerHTML.slice(0, 90), found = [], boxes = []
  const all = [...document.body.querySelectorAll("*")].filter(each =>
    each.checkVisibility({contentVisibilityAuto: true}))
  const seen = new Set(all)
  for (const each of all) {
    const style = getComputedStyle(each)
    const shaded = style.overflowX == "auto" && style.backgroundImage.includes("gradient")
    if (each.clientWidth && each.scrollWidth > each.clientWidth + 1 && !shaded) found.push("cut: " + name(each))
  }
  const add = (each, rect) => {
    const frame = each.closest(".wide")?.getBoundingClientRect()
    const right = Math.min(rect.right, frame?.right ?? Infinity), left = Math.max(rect.left, frame?.left ?? 0)
    if (right - left > 1 && rect.height > 1) boxes.push({each, left, right, top: rect.top, bottom: rect.bottom})
  }
  for (const each of all.filter(each => each.matches("img"))) add(each, each.getBoundingClientRect())
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), range = document.createRange()
  for (let node; (node = walker.nextNode());) {
    const each = node.parentElement
    if (!node.data.trim() || !seen.has(each)) continue
    range.selectNodeContents(node)
    const box = each.closest("td, th, dt, dd, li, p, h1, h2, h3, figcaption, figure, summary, pre, nav, div")
    const within = box.getBoundingClientRect()
    for (const rect of range.getClientRects()) {
      add(each, rect)
      if (rect.left < within.left - 1 || rect.right > within.right + 1 || rect.top < within.top - 1
          || rect.bottom > within.bottom + 1) found.push("out of its box: " + name(box))
    }
  }
  boxes.sort((one, other) => one.top - other.top)
  let above = []
  for (const box of boxes) {
    above = above.filter(other => other.bottom > box.top + 1)
    for (const other of above) if (Math.min(box.right, other.right) - Math.max(box.left, other.left) > 1
        && box.each !== other.each) found.push("overlap: " + name(box.each) + " and " + name(other.each))
    above.push(box)
  }
  return found.slice(0, 10)
})()"""

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

    @property
    def untidy(self) -> list[str]:
        """What is wider than its box, without a sign that it scrolls; text out of its box; and what overlaps."""
        return self.evaluate(UNTIDY)

    def count(self, selector: str) -> int:
        return self.evaluate(f"document.querySelectorAll({selector!r}).length")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Reports of runs of 2 to 1,000 classes, an ablation and five folds, with pictures that compress badly."""
    kinds = ["Bird", "Ruby-throated Hummingbird of the East", "鳥", "a_long-name" * 4]
    home = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plumage.report.page, "read_run", lambda path: enriched(read_run(path)))
        patch.setitem(TEMPLATES.filters, "heat", lambda pixels, evidence: jpeg(pixels))
        TEMPLATES.cache.clear()
        for count, each in ((2, 12), (15, 24), (30, 12), (200, 12), (1000, 2)):
            names = [f"{kinds[n % 4]} {n}" for n in range(count)]
            run = make_run(home / f"{count} classes", names, 20, each=each, noise=2.2, side=224)
            split = (run / "split.csv").read_text()
            (run / "split.csv").write_text(split + f"another.jpg,{names[1]},train\n")
            write_report([run], home / f"{count}.html")
    for name, options in (("ablation", ABLATION), ("folds", FOLDS)):
        runs = [make_run(home / name / f"{n}", names[:9], 20, each=12, **each) for n, each in enumerate(options)]
        write_report(runs, home / f"{name}.html")
    return home


ABLATION = [{"smoothing": e, "seed": seed, "noise": 2 + e} for seed in range(3) for e in (0.1, 0.0)]
FOLDS = [{"fold": f"{fold}/5", "noise": 1.5 + fold / 10} for fold in range(1, 6)]


@pytest.mark.parametrize("media", ["light", "dark", "narrow", "print"])
@pytest.mark.parametrize("name", ["2", "15", "30", "200", "1000", "ablation", "folds"])
def test_nothing_overlaps_and_nothing_is_cut(browser, pages, name, media):
    width = {"narrow": 390, "print": 718}.get(media, 1280)  # A4 within its margins
    browser.open(pages / f"{name}.html", width, "dark" if media == "dark" else "light")
    if media == "print":
        browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.complaints == browser.too_wide == browser.empty == browser.untidy == []
    assert (pages / f"{name}.html").stat().st_size <= 4_000_000


def test_what_is_folded_away_is_printed(browser, pages):
    browser.open(pages / "200.html", 718)
    folded = "[...document.querySelectorAll('details > :not(summary)')]"
    shown = folded + ".map(each => each.checkVisibility({contentVisibilityAuto: true}))"
    assert set(browser.evaluate(shown)) == {False}
    browser.call("Emulation.setEmulatedMedia", media="print")
    browser.evaluate("document.body.offsetHeight")
    assert set(browser.evaluate(shown)) == {True}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_run_of_two_hundred_classes(browser, pages, scheme):
    browser.open(pages / "200.html", 1280, scheme)
    headings = browser.evaluate("[...document.querySelectorAll('h2')].map(each => each.textContent)")
    assert headings == [*LOOK_FIRST, "Suspects", *SECTIONS[len(LOOK_FIRST) :]]
    assert browser.count("img[src^='data:image/svg']") == 8
    assert browser.count("img[src^='data:image/jpeg']") == 12 + 2 * 24 + 2 * 8 + 3
    assert (browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)") == (
        scheme == "light"
    )
    targets = "[...document.querySelectorAll('nav a')].map(each => document.querySelector(each.hash)?.tagName)"
    assert set(browser.evaluate(targets)) == {"SECTION"}


def test_runs_side_by_side(browser, pages):
    browser.open(pages / "ablation.html", 1280)
    assert browser.count("section") == 6
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


def test_what_is_untidy_would_be_noticed(browser, tmp_path):
    line = "white-space: nowrap; width: 90px"
    (tmp_path / "page.html").write_text(
        f"<p>{'plain ' * 90}</p><p style='{line}'>{'out ' * 9}</p>"
        f"<p style='{line}; overflow: hidden'>{'hidden ' * 9}</p>"
        f"<div style='{line}; overflow-x: auto'>{'unsigned ' * 9}</div>"
        f"<div style='{line}; overflow-x: auto; background: linear-gradient(red, blue)'>{'signed ' * 9}</div>"
        "<h1>one</h1><h2 style='margin-top: -40px'>other</h2>"
        "<details><summary>closed</summary><h2 style='margin-top: -40px'>unseen</h2></details>"
    )
    browser.open(tmp_path / "page.html", 800)
    found = " ".join(browser.untidy)
    assert [word in found for word in ("out out", "hidden", "unsigned", "overlap: <h2")] == [True] * 4
    assert not any(words in found for words in ("plain", ">signed signed", "unseen"))
