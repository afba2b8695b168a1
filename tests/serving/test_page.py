"""The page that asks for pictures, spoken to: headless Chromium with a microphone that plays a recording."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Browser, Page, Playwright, expect, sync_playwright

from media import raw_wav
from saysee.features.audio import load_waveform
from serving.browser import (
    ask_with_a_file,
    cards,
    chromium,
    hold_to_speak,
    likeness,
    speak_button,
    visit,
    wait_until_listening,
)
from serving.fake_api import CORPUS, ELSEWHERE, RECORDING, FakeApi, drawings, serve

NAMES = ("boat", "beach", "ocean", "canoe", "fish", "bridge")


@pytest.fixture(scope="module")
def said() -> NDArray[np.float32]:
    """What is said to the microphone: a word with silence around it, (S,) at 16 kHz."""
    word = load_waveform(CORPUS / "audio" / "es-art4apps" / "boat.ogg")
    return np.concatenate([np.zeros(4_000, np.float32), word, np.zeros(3_000, np.float32)])


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def microphone(said: NDArray[np.float32], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("microphone") / "said.wav"
    path.write_bytes(raw_wav((said * 32_767).astype(np.int16)))
    return path


@pytest.fixture(scope="module")
def browser(playwright: Playwright, microphone: Path) -> Iterator[Browser]:
    with chromium(playwright, microphone) as running:
        yield running


@pytest.fixture
def fake() -> FakeApi:
    return FakeApi(drawings(*NAMES))


@pytest.fixture
def url(fake: FakeApi) -> Iterator[str]:
    with serve(fake) as address:
        yield address


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    with visit(browser, url) as opened:
        yield opened


def duration(recording: bytes) -> float:
    return len(load_waveform(recording)) / 16_000


def test_what_is_said_while_the_button_is_held_is_asked(page: Page, fake: FakeApi, said: NDArray[np.float32]) -> None:
    expect(page.locator("#about")).to_have_text("6 pictures, model words")
    hold_to_speak(page, len(said) / 16_000 + 0.3)
    expect(page.locator(".card")).to_have_count(6)
    assert [text.split() for text in cards(page)] == [[str(n), f"{name}.jpg"] for n, name in enumerate(NAMES, 1)]
    expect(page.locator("#status")).to_have_text("6 pictures. Best: boat.jpg.")
    (recording,) = fake.uploads
    assert fake.queries == [{"top": "12"}]
    assert likeness(load_waveform(recording), said) > 0.95  # but for the encoding
    # thumbnails are shown, and the question can be played again
    page.wait_for_function("() => [...document.querySelectorAll('.card img')].every((one) => one.naturalWidth > 0)")
    page.get_by_role("button", name="Play your question").click()
    expect(page.locator("#play-question")).to_contain_text("Pause")


def test_the_space_bar_held_anywhere_speaks(page: Page, fake: FakeApi) -> None:
    speak_button(page).wait_for()
    page.keyboard.down("Space")
    wait_until_listening(page)
    page.wait_for_timeout(700)
    page.keyboard.up("Space")
    expect(page.locator(".card")).to_have_count(6)
    assert 0.5 < duration(fake.uploads[0]) < 2.0
    # but in a text field it is a space, and on a picture a tap enlarges
    page.locator("#filters").click()
    page.locator("#path").press_sequentially("a b")
    assert page.locator("#path").input_value() == "a b"
    page.keyboard.press("Escape")
    page.locator(".card").nth(2).focus()
    page.keyboard.press("Space")
    expect(page.locator("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    # while holding it on a picture speaks
    page.locator(".card").nth(2).focus()
    page.keyboard.down("Space")
    wait_until_listening(page)
    page.wait_for_timeout(500)
    page.keyboard.up("Space")
    expect(page.locator("dialog")).not_to_be_visible()
    expect(page.locator("[data-state=rest]")).to_have_count(1)
    expect(page.locator("#results[aria-busy]")).to_have_count(0)  # it is asked and answered
    assert len(fake.uploads) == 2


@pytest.mark.parametrize("press", ["click", "tap of the space bar", "Enter", "screen reader"])
def test_it_can_be_pressed_twice_instead_of_held(page: Page, fake: FakeApi, press: str) -> None:
    button = speak_button(page)
    button.focus()
    presses: dict[str, Callable[[], None]] = {
        "click": partial(button.click),
        "tap of the space bar": partial(page.keyboard.press, "Space"),
        "Enter": partial(page.keyboard.press, "Enter"),
        "screen reader": partial(button.dispatch_event, "click"),
    }
    presses[press]()
    wait_until_listening(page)
    expect(button).to_have_attribute("aria-pressed", "true")
    page.wait_for_timeout(500)
    expect(page.locator("#speak-hint")).to_contain_text("Press again")
    presses[press]()
    expect(page.locator(".card")).to_have_count(6)
    expect(button).to_have_attribute("aria-pressed", "false")
    assert 0.4 < duration(fake.uploads[0]) < 2.0


def test_it_stops_at_the_limit_of_the_server(browser: Browser, fake: FakeApi) -> None:
    fake.seconds = 1.3
    with serve(fake) as url, visit(browser, url) as page:
        speak_button(page).click()
        expect(page.locator(".card")).to_have_count(6)
        assert 0.7 < duration(fake.uploads[0]) <= 1.3


@pytest.mark.parametrize("way", ["Escape", "Cancel"])
def test_what_is_cancelled_is_not_asked(page: Page, fake: FakeApi, way: str) -> None:
    ask_with_a_file(page)
    speak_button(page).click()
    wait_until_listening(page)
    expect(page.locator("#play-question")).not_to_be_visible()
    page.wait_for_timeout(500)
    if way == "Escape":
        page.keyboard.press("Escape")
    else:
        page.get_by_role("button", name="Cancel").click()
    expect(page.locator("[data-state=rest]")).to_have_count(1)
    page.wait_for_timeout(200)
    assert fake.uploads == [RECORDING]
    expect(page.locator("#play-question")).to_be_visible()  # the question before is still there


def test_a_microphone_that_may_not_be_used_is_explained(
    playwright: Playwright, microphone: Path, url: str, fake: FakeApi
) -> None:
    with chromium(playwright, microphone, allow=False) as browser, visit(browser, url) as page:
        speak_button(page).click()
        expect(page.get_by_role("alert").first).to_contain_text("This page may not use the microphone. Allow it")
        expect(page.get_by_role("alert").first).to_contain_text("drop a recording on this page instead")
        ask_with_a_file(page)
        expect(page.locator("#notice")).not_to_be_visible()
        assert len(fake.uploads) == 1


def test_an_address_that_gets_no_microphone_is_explained(browser: Browser, url: str) -> None:
    with visit(browser, url.replace("127.0.0.1", ELSEWHERE)) as page:
        speak_button(page).click()
        expect(page.locator("#notice")).to_contain_text("over HTTPS or from this very machine")
        expect(page.locator("#notice")).to_contain_text("--cert and --key")
