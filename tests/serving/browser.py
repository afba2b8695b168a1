"""A headless Chromium whose microphone plays a file, and visits that no page gets through with a fault."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Playwright, ViewportSize, expect

from serving.fake_api import ELSEWHERE, RECORDING

PHONE: ViewportSize = {"width": 360, "height": 640}
DESKTOP: ViewportSize = {"width": 1280, "height": 800}

# the browser's own words on an answer with an error status, and on a header that means nothing outside of HTTPS
_NO_FAULTS = ("Failed to load resource", "The Cross-Origin-Opener-Policy header has been ignored")
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def chromium_path() -> str:
    """Where Chromium is. Without it tests are skipped; in CI they fail, so that they are never skipped unseen."""
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        reason = f"there is no Chromium on the path (looked for {', '.join(_NAMES)})"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@contextmanager
def chromium(playwright: Playwright, microphone: Path | None, *, allow: bool = True) -> Iterator[Browser]:
    """Run Chromium for the block.

    Args:
        playwright: that is running.
        microphone: a 16-bit WAV file that is played from its beginning whenever a page opens the microphone, then
            silence; None: the machine has no microphone.
        allow: whether pages may use the microphone; no page can ask.
    """
    arguments = [
        "--no-sandbox",
        "--disable-background-networking",
        f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1",
    ]
    if allow:
        arguments.append("--use-fake-ui-for-media-stream")
    if microphone is not None:
        arguments += [
            "--use-fake-device-for-media-stream",
            f"--use-file-for-fake-audio-capture={microphone.absolute()}%noloop",
        ]
    browser = playwright.chromium.launch(executable_path=chromium_path(), args=arguments)
    try:
        yield browser
    finally:
        browser.close()


@dataclass
class Visit:
    """A page that is open, and what is seen of it."""

    page: Page
    requests: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def hear(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith(_NO_FAULTS):
            self.faults.append(message.text)


@contextmanager
def visit(browser: Browser, url: str, **context: Any) -> Iterator[Page]:
    """Open a page for the block. At its end there was no error, no violation of the policy, no request elsewhere.

    Args:
        browser: with or without a microphone.
        url: of the page.
        context: options of the browser's context.
    """
    opened = browser.new_context(**{"viewport": DESKTOP, "locale": "en-GB", **context})
    opened.set_default_timeout(10_000)
    seen = Visit(opened.new_page())
    seen.page.on("console", seen.hear)
    seen.page.on("pageerror", lambda error: seen.faults.append(str(error)))
    seen.page.on("dialog", lambda dialog: seen.faults.append(dialog.message))
    opened.on("request", lambda request: seen.requests.append(request.url))
    seen.page.goto(url)
    try:
        yield seen.page
    finally:
        opened.close()
    assert not seen.faults, seen.faults
    hosts = {urlsplit(request).netloc for request in seen.requests if not request.startswith(("blob:", "data:"))}
    assert hosts == {urlsplit(url).netloc}, hosts


def speak_button(page: Page) -> Locator:
    """The button to press for speaking."""
    return page.locator(".speak:visible")


def hold_to_speak(page: Page, seconds: float) -> None:
    """Press the button with the mouse, and let it go so many seconds after the page began to listen."""
    box = speak_button(page).bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    wait_until_listening(page)
    page.wait_for_timeout(seconds * 1000)
    page.mouse.up()


def choose_file(page: Page, content: bytes) -> None:
    """Give the page a recording from disk."""
    speak_button(page).wait_for()  # now it takes files
    page.set_input_files("#file", {"name": "a.wav", "mimeType": "audio/wav", "buffer": content})


def ask_with_a_file(page: Page) -> None:
    """Get answers without speaking, which takes no time."""
    choose_file(page, RECORDING)
    expect(page.locator("#results:not([aria-busy])")).to_be_visible()


def cards(page: Page) -> list[str]:
    """What stands under the answers, the best first."""
    return page.locator(".card").all_inner_texts()


def wait_until_listening(page: Page) -> None:
    """Wait until the microphone is open."""
    page.locator("[data-state=listening]").wait_for()


def _names_of_controls(page: Page) -> dict[str, list[str]]:
    """Role -> the names that assistive technology is told, of everything that can be used now."""
    session = page.context.new_cdp_session(page)
    found: dict[str, list[str]] = {}
    for node in session.send("Accessibility.getFullAXTree")["nodes"]:
        role: str = node.get("role", {}).get("value", "")
        if not node["ignored"] and role in ("button", "checkbox", "slider", "textbox", "spinbutton", "Date", "dialog"):
            found.setdefault(role, []).append(node.get("name", {}).get("value", ""))
    return found


def check_controls(page: Page, *, overflow_of: str = "document.documentElement") -> None:
    """Every control has a name and is large enough for a finger, and nothing is wider than the screen."""
    names = _names_of_controls(page)
    assert names["button"], names
    assert all(all(given) for given in names.values()), names
    small = page.evaluate(
        """() => [...document.querySelectorAll("button, input, summary")]
            .filter((one) => one.checkVisibility({ visibilityProperty: true }))
            .map((one) => [one, (one.closest("label") ?? one).getBoundingClientRect()])
            .filter(([one, box]) => box.height < 43.9 || box.width < 43.9)
            .map(([one, box]) => `${one.id || one.textContent} ${box.width} x ${box.height}`)"""
    )
    assert not small, small
    wider = page.evaluate(f"{overflow_of}.scrollWidth - {overflow_of}.clientWidth")
    assert wider == 0, f"{wider} pixels too wide"


def likeness(heard: NDArray[np.float32], said: NDArray[np.float32]) -> float:
    """The largest correlation of one waveform (S,) with another (R,), wherever it begins: from 0 to 1."""
    size = len(heard) + len(said)
    product = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(said, size)), size)
    return float(np.abs(product).max() / (np.linalg.norm(heard) * np.linalg.norm(said)))
