"""A browser without a window, driven over its DevTools pipe (no port, no package)."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glint.conflicts import decisions
from glint.review import report
from glint.review.chart import chart
from glint.review.report import Card, Exhibit, Group, Page, Review, Side, Strip, Tab

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


class Browser:
    """One tab. `requests` are the addresses that its page asked for; `errors` what it threw."""

    def __init__(self, program: str, folder: Path) -> None:
        down_r, down_w = os.pipe()
        up_r, up_w = os.pipe()

        def pipes() -> None:
            spare = (os.dup(down_r), os.dup(up_w))  # 3 or 4 may be one of the ends
            os.dup2(spare[0], 3)
            os.dup2(spare[1], 4)

        arguments = ["--remote-debugging-pipe", f"--user-data-dir={folder}", "about:blank"]
        self.process = subprocess.Popen(
            [program, *FLAGS, *QUIET, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(3, 4, down_r, up_w),
            preexec_fn=pipes,
        )
        os.close(down_r)
        os.close(up_w)
        self._out, self._in = down_w, os.fdopen(up_r, "rb", buffering=0)
        self._rest, self._number, self._session = b"", 0, ""
        self.requests: list[str] = []
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        made = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = made["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = self._in.read(1 << 16)
            assert piece, "the browser is gone"
            self._rest += piece
        raw, _, self._rest = self._rest.partition(b"\0")
        told: dict[str, Any] = json.loads(raw)
        if told.get("method") == "Network.requestWillBeSent":
            self.requests.append(told["params"]["request"]["url"][:200])
        if told.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.errors.append(json.dumps(told["params"])[:500])
        return told

    def call(self, method: str, **options: Any) -> dict[str, Any]:
        self._number += 1
        about = {"sessionId": self._session} if self._session else {}
        text = {"id": self._number, "method": method, "params": options, **about}
        os.write(self._out, json.dumps(text).encode() + b"\0")
        while (told := self._message()).get("id") != self._number:
            pass
        assert "error" not in told, told
        result: dict[str, Any] = told["result"]
        return result

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.until("document.readyState === 'complete' && location.protocol !== 'about:'")

    def begin(self, page: Page | str, path: Path | None = None) -> None:
        """Write a page to `path` and open it, or open an address; wait until it can be used."""
        if path is not None:
            assert isinstance(page, Page)
            report.write(path, page)
            page = path.as_uri()
        assert isinstance(page, str)
        self.open(page)
        self.until("document.documentElement.dataset.ready === 'yes'")

    def value(self, script: str) -> Any:
        got = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in got, got
        return got["result"].get("value")

    def text(self, name: str) -> str:
        text: str = self.value(f"document.getElementById('{name}').textContent")
        return text

    def until(self, script: str, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not self.value(script):
            assert time.monotonic() < end, script
            time.sleep(0.02)

    def press(self, *keys: str, shift: bool = False) -> None:
        """Press keys: a string of letters, or the name of a key."""
        for key in [one for many in keys for one in ([many] if many[:1].isupper() else many)]:
            text = {} if len(key) > 1 else {"text": key}
            for kind in ("keyDown", "keyUp"):
                held = {"modifiers": 8} if shift else {}
                self.call("Input.dispatchKeyEvent", type=kind, key=key, **text, **held)

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, **more)

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Give the left, top, width and height of the first element, on the screen."""
        found = self.value(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)});"
            "const b = one.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()"
        )
        return found[0], found[1], found[2], found[3]

    def click(self, selector: str, *, shift: bool = False) -> None:
        """Click the middle of an element, scrolled to where nothing covers it."""
        self.value(
            f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})"
        )
        left, top, width, height = self.box(selector)
        held = {"modifiers": 8} if shift else {}
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, left + width / 2, top + height / 2, clickCount=1, **held)

    def choose(self, name: str, value: str) -> None:
        """Set a field as a person does."""
        self.value(
            f"(() => {{ const box = document.getElementById('{name}'); box.value = '{value}';"
            "for (const kind of ['input', 'change']) { box.dispatchEvent(new Event(kind)); } })()"
        )

    def screen(self, width: int, height: int, dark: bool) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 500,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def downloaded(self, folder: Path, page: Page) -> list[decisions.Said]:
        """Press download and read the file as `apply` does."""
        folder.mkdir()
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        self.value("document.getElementById('download').click()")
        path = folder / "decisions.jsonl"
        end = time.monotonic() + 20
        while not path.exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        return decisions.read(path, page.review.report)

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._out)
        self._in.close()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Callable[[], Browser]]:
    """Start browsers, each with a profile of its own; skip where none is installed."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium on this machine")
    started: list[Browser] = []

    def start() -> Browser:
        started.append(Browser(program, tmp_path / f"profile-{len(started)}"))
        return started[-1]

    yield start
    for one in started:
        one.close()


REPORT = "sha256:" + "ab" * 32


def _pairs(count: int, face: bytes = b"", faced: int = 0) -> Page:
    rng = np.random.default_rng(3)
    score = np.sort(rng.uniform(0, 1.3, count))[::-1]
    verdict = np.where(score > 0.9, "merge", np.where(score > 0.6, "mask", "keep"))
    cards = [
        Card(
            Side(2 * k, f"person {2 * k}", str(2 * k), 1 + k % 7, (face,) * 6 * (k < faced)),
            Side(2 * k + 1, "<b>&", str(2 * k + 1), 2, (face,) * 6 * (k < faced)),
            float(score[k]) / 1.4,
            0.5,
            0.4,
            float(score[k]),
            float(score[k]) / 1.5,
            0.8,
            str(verdict[k]),
            "",
            float(score[k]) / 1.4,
        )
        for k in range(count)
    ]
    cosine = score / 1.4
    drawn = [
        chart(
            title,
            name,
            [("pairs", "pairs", values, True), ("same", "split", values[: count // 3], False)],
            [(0.4, "filter")],
            start=0.0,
            stop=stop,
            cut=name,
            note="One sentence.",
        )
        for title, name, values, stop in (
            ("by cosine", "cosine", cosine, 1.0),
            ("by strength", "strength", score / 1.5, 1.0),
        )
    ]
    sides = [dataclasses.replace(one, faces=(face,) * 3) for one in (cards[0].a, cards[0].b)]
    sides.append(cards[1].a)
    return Page(
        title="Identities that look like one person",
        facts=[("digest", "d")],
        counts=[("merge", "1", "pairs to merge"), ("", "12", "groups")],
        charts=drawn,
        cards=cards,
        groups=[Group(1, sides, [[1, 0.9, 0.3], [0.9, 1, 0.8], [0.3, 0.8, 1]], "a chain")],
        review=Review(REPORT, 10_000, int((score > 0.9).sum()), (), "Estimate: 0.5 are wrong."),
        split={"cosine": cosine[::3].tolist(), "strength": (score[::3] / 1.5).tolist()},
    )


@pytest.fixture
def pairs() -> Callable[..., Page]:
    """Draw a page of pairs (2k, 2k + 1), most alike first: `pairs(count, face, faced)`."""
    return _pairs


@pytest.fixture
def pictures(jpeg: Callable[[int], bytes]) -> Page:
    """Draw a page with images to act on: two sets of one label, six outliers, repeats."""
    face = jpeg(1)

    def strip(title: str, rows: range, label: int, to: int = -1, shown: int = 9) -> Strip:
        faces = [face] * min(shown, len(rows))
        return Strip(title, "words", faces, rows, True, label, to, f"id {to}" if to >= 0 else "")

    sets = [
        strip("Ann, first set", range(10, 14), 5),
        strip("Ann, second set", range(14, 17), 5, -1, 2),
    ]
    odd = [
        Exhibit("keep", "outlier", [strip("not Bo?", range(row, row + 1), 6, 7),
                                    Strip("Bo", "words", [face] * 5, range(40, 45))], [("z", "9")])
        for row in range(20, 26)
    ]  # fmt: skip
    twins = [strip("Cy", range(30, 32), 1, 2), strip("Di", range(32, 34), 2, 1)]
    inside = [Exhibit("mask", "two people?", sets, []), *odd]
    repeats = [Exhibit("mask", "same bytes", twins, [])]
    return dataclasses.replace(
        _pairs(60, face, 10),
        tabs=[
            Tab("inside", "Inside", "words", inside, 0, "f"),
            Tab("duplicates", "Repeated", "words", repeats, 0, "f"),
        ],
    )
