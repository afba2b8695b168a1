"""The page that records captions, in headless Chromium with a microphone that plays a recording."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Browser, Page, expect, sync_playwright

from media import raw_wav
from saysee.features.audio import load_waveform
from serving.browser import (
    PHONE,
    check_controls,
    choose_file,
    chromium,
    hold_to_speak,
    likeness,
    visit,
    wait_until_listening,
)
from serving.fake_api import CORPUS, RECORDING, FakeApi, drawings, serve

FIRST, SECOND, THIRD = (f"{number:032x}" for number in range(3))


@pytest.fixture(scope="module")
def said() -> NDArray[np.float32]:
    """What is said to the microphone, (S,) at 16 kHz."""
    return load_waveform(CORPUS / "audio" / "es-art4apps" / "boat.ogg")


@pytest.fixture(scope="module")
def browser(said: NDArray[np.float32], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    path: Path = tmp_path_factory.mktemp("microphone") / "said.wav"
    path.write_bytes(raw_wav((said * 32_767).astype(np.int16)))
    with sync_playwright() as playwright, chromium(playwright, path) as running:
        yield running


@pytest.fixture
def fake() -> FakeApi:
    return FakeApi(drawings("boat", "beach", "ocean", "canoe"), mode="record")


@pytest.fixture
def page(browser: Browser, fake: FakeApi) -> Iterator[Page]:
    with serve(fake) as url, visit(browser, url) as opened:
        yield opened


def begin(page: Page, speaker: str = "Ana", language: str = "español") -> None:
    page.get_by_label("Who speaks?").fill(speaker)
    page.get_by_label("In which language?").fill(language)
    page.get_by_role("button", name="Begin").click()
    expect(page.locator("#studio")).to_be_visible()


def test_what_is_said_of_a_picture_is_played_and_kept(page: Page, fake: FakeApi, said: NDArray[np.float32]) -> None:
    begin(page)
    expect(page.locator("#position")).to_have_text("1 of 4")
    hold_to_speak(page, len(said) / 16_000 + 0.2)
    expect(page.locator("#play-take")).to_contain_text("Pause")  # it plays by itself
    assert fake.recorded == {}  # until it is kept
    page.get_by_role("button", name="Keep").click()
    expect(page.locator("#position")).to_have_text("2 of 4")
    ((key, recording),) = fake.recorded.items()
    assert key == (FIRST, "Ana", "español")
    assert likeness(load_waveform(recording), said) > 0.95
    expect(page.locator("#about")).to_have_text("4 pictures, 1 recording so far")


def test_it_works_by_keyboard_alone(page: Page, fake: FakeApi) -> None:
    expect(page.get_by_label("Who speaks?")).to_be_focused()
    page.keyboard.type("Jo Ann")
    page.keyboard.press("Tab")
    page.keyboard.type("Kriol")
    page.keyboard.press("Enter")
    expect(page.locator("#position")).to_have_text("1 of 4")
    page.keyboard.press("s")
    expect(page.locator("#position")).to_have_text("2 of 4")
    for _ in range(2):  # said again: the second is kept
        page.keyboard.press("Space")
        wait_until_listening(page)
        page.wait_for_timeout(400)
        page.keyboard.press("Space")
        expect(page.locator("#keep")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.locator("#position")).to_have_text("3 of 4")
    assert list(fake.recorded) == [(SECOND, "Jo Ann", "Kriol")]
    # somebody who dictates turns the keys off
    page.get_by_label("Keys").uncheck()
    page.locator("body").press("s")
    page.wait_for_timeout(200)
    expect(page.locator("#position")).to_have_text("3 of 4")


def test_it_goes_on_where_it_stopped_and_with_what_was_skipped(page: Page, fake: FakeApi) -> None:
    done = ((FIRST, "Ana", "español"), (THIRD, "Ana", "español"), (SECOND, "Bo", "español"))
    fake.recorded = dict.fromkeys(done, RECORDING)
    begin(page)
    expect(page.locator("#position")).to_have_text("2 of 4")
    page.get_by_role("button", name="Skip").click()
    expect(page.locator("#position")).to_have_text("4 of 4")
    choose_file(page, RECORDING)
    page.get_by_role("button", name="Keep").click()
    expect(page.get_by_role("heading", name="That was the last picture.")).to_be_focused()
    expect(page.locator("#end-text")).to_contain_text("1 picture was skipped.")
    # the name and the language are remembered, what has been recorded is with the server
    page.reload()
    expect(page.get_by_label("Who speaks?")).to_have_value("Ana")
    assert page.locator("#speakers option").evaluate_all("all => all.map((one) => one.value)") == ["Ana", "Bo"]
    page.get_by_role("button", name="Begin").click()
    expect(page.locator("#position")).to_have_text("2 of 4")
    choose_file(page, RECORDING)
    page.get_by_role("button", name="Keep").click()
    expect(page.get_by_role("heading", name="All pictures are done.")).to_be_focused()
    assert len(fake.recorded) == 5


def test_back_plays_what_was_kept_and_can_delete_it(page: Page, fake: FakeApi) -> None:
    begin(page)
    choose_file(page, RECORDING)
    page.get_by_role("button", name="Keep").click()
    expect(page.locator("#position")).to_have_text("2 of 4")
    page.get_by_role("button", name="Back").click()
    expect(page.locator("#position")).to_have_text("1 of 4")
    page.get_by_role("button", name="Play").click()
    expect(page.locator("#play-take")).to_contain_text("Play", use_inner_text=True)
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Yes, delete it").click()
    expect(page.locator("#play-take")).not_to_be_visible()
    assert fake.recorded == {}
    page.get_by_role("button", name="Skip").click()
    expect(page.locator("#position")).to_have_text("2 of 4")


def test_what_is_refused_is_said_and_the_take_is_not_lost(page: Page, fake: FakeApi) -> None:
    begin(page)
    choose_file(page, RECORDING)
    fake.refusals.append((422, {}, "the recording is silent"))
    page.get_by_role("button", name="Keep").click()
    expect(page.locator("#notice")).to_contain_text("The recording is silent.")
    page.get_by_role("button", name="Keep").click()
    expect(page.locator("#position")).to_have_text("2 of 4")
    assert list(fake.recorded.values()) == [RECORDING]


def test_a_phone_shows_all_of_it(browser: Browser, fake: FakeApi) -> None:
    options = {"viewport": PHONE, "is_mobile": True, "has_touch": True}
    with serve(fake) as url, visit(browser, url, **options) as page:
        expect(page.get_by_label("Who speaks?")).to_be_visible()
        check_controls(page)
        begin(page, "a name that is long and goes on and on and on and on")
        check_controls(page)
        choose_file(page, RECORDING)
        expect(page.locator("#keep")).to_be_visible()
        check_controls(page)
