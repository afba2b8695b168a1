"""The page that asks for pictures, on a machine without a microphone: files, answers, the large picture, errors."""

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from media import encode_image
from serving.browser import PHONE, ask_with_a_file, cards, check_controls, choose_file, chromium, speak_button, visit
from serving.fake_api import RECORDING, FakeApi, FakeItem, drawings, serve

NAMES = ("boat", "beach", "ocean", "canoe", "fish", "bridge")
HOSTILE = '<img src=x onerror="alert(1)">.jpg'
PANORAMA = encode_image(Image.new("RGB", (1600, 100), "teal"), "JPEG")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright, chromium(playwright, None) as running:
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


def test_a_machine_without_a_microphone_is_told_so(page: Page) -> None:
    speak_button(page).click()
    expect(page.locator("#notice")).to_contain_text("No microphone was found")


@pytest.mark.parametrize(("kind", "content"), [("audio/wav", RECORDING), ("image/jpeg", PANORAMA)])
def test_a_dropped_file_is_asked_as_it_is(page: Page, fake: FakeApi, kind: str, content: bytes) -> None:
    speak_button(page).wait_for()
    drop = """([content, type]) => {
        const bytes = Uint8Array.from(atob(content), (one) => one.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "question", { type }));
        const options = { dataTransfer: transfer, bubbles: true, cancelable: true };
        for (const name of ["dragenter", "dragover", "drop"]) {
            document.body.dispatchEvent(new DragEvent(name, options));
        }
    }"""
    page.evaluate(drop, [base64.b64encode(content).decode(), kind])
    expect(page.locator(".card")).to_have_count(6)
    assert fake.uploads == [content]
    expect(page.locator("#asked")).to_be_visible(visible=kind == "image/jpeg")
    expect(page.locator("#play-question")).to_be_visible(visible=kind == "audio/wav")
    # only a recording can be looked along with
    page.locator(".card").first.click()
    expect(page.locator("#look")).to_be_visible(visible=kind == "audio/wav")


def test_a_file_that_is_too_large_is_not_sent(page: Page, fake: FakeApi) -> None:
    choose_file(page, bytes(fake.most + 1))
    expect(page.locator("#notice")).to_contain_text("the server takes at most 0.5 MB")
    assert fake.uploads == []


def test_filters_and_the_number_of_answers_are_asked_with(page: Page, fake: FakeApi) -> None:
    ask_with_a_file(page)
    page.locator("#filters").click()
    page.locator("#path").fill("nothing/*")
    page.locator("#since").fill("2024-05-01")
    page.locator("#top").fill("3")
    page.get_by_role("button", name="Apply").click()
    expect(page.get_by_text("No picture passes the filters.")).to_be_visible()
    expect(page.locator("#filters")).to_have_text("Filters on")
    assert fake.queries[-1] == {"top": "3", "path": "nothing/*", "since": "2024-05-01"}
    assert fake.uploads[-1] == RECORDING


def test_a_question_that_nothing_fits_is_said_to_be_one(page: Page, fake: FakeApi) -> None:
    fake.fits = False
    ask_with_a_file(page)
    banner = "Nothing here fits well: even the best score is what mismatched pictures get."
    expect(page.get_by_text(banner)).to_be_visible()
    expect(page.locator(".card")).to_have_count(6)
    expect(page.locator("#status")).to_contain_text("Nothing here fits well. 6 pictures.")
    fake.fits = None
    ask_with_a_file(page)
    expect(page.locator("#banner")).not_to_be_visible()


def test_scores_are_shown_on_demand(page: Page) -> None:
    ask_with_a_file(page)
    expect(page.locator(".scores").first).not_to_be_visible()
    page.get_by_label("Details").check()
    assert page.locator(".scores").first.inner_text().split() == ["coarse", "0.380", "fine", "\N{MINUS SIGN}0.14"]
    expect(page.locator("#timings")).to_contain_text("encode 120 ms")


def test_a_picture_is_enlarged_and_left_by_keyboard(page: Page) -> None:
    ask_with_a_file(page)
    page.locator(".card").nth(1).focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="beach.jpg")
    expect(dialog).to_be_visible()
    expect(page.locator("#large-close")).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("dialog", name="ocean.jpg")).to_be_visible()
    expect(page.locator("#large-status")).to_have_text("3: ocean.jpg")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#previous")).to_be_disabled()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("dialog", name="boat.jpg")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator(".card").first).to_be_focused()


def test_more_like_this_and_back(page: Page) -> None:
    ask_with_a_file(page)
    page.locator(".card").first.click()
    page.get_by_role("button", name="More like this").click()
    expect(page.locator("#results-title")).to_have_text("Like boat.jpg")
    assert cards(page)[0].split() == ["1", "bridge.jpg"]
    page.get_by_role("button", name="Back", exact=True).click()
    assert cards(page)[0].split() == ["1", "boat.jpg"]
    expect(page.get_by_role("button", name="Back", exact=True)).to_have_count(0)


def test_names_are_text_and_nothing_else(page: Page, fake: FakeApi) -> None:
    fake.items[0] = FakeItem(HOSTILE, fake.items[0].image, path=f"a/{HOSTILE}")
    ask_with_a_file(page)
    expect(page.locator(".card .name").first).to_have_text(HOSTILE)
    page.locator(".card").first.click()
    expect(page.get_by_role("dialog", name=HOSTILE)).to_be_visible()
    expect(page.locator("#large-facts")).to_contain_text(f"a/{HOSTILE}")
    assert page.locator("img[onerror], script:not([src])").count() == 0


def centre_of_heat(page: Page) -> float:
    """Where the heat is, from left (0) to right (1): the mean of the columns, weighted by how yellow they are."""
    return float(
        page.evaluate(
            """() => {
                const canvas = document.getElementById("heat");
                const { data, width, height } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
                let [sum, total] = [0, 0];
                for (let pixel = 0; pixel < width * height; pixel += 1) {
                    const heat = Math.max(0, data[pixel * 4 + 1] - 60) * data[pixel * 4 + 3];
                    sum += heat * (((pixel % width) + 0.5) / width);
                    total += heat;
                }
                return sum / total;
            }"""
        )
    )


def test_the_heat_map_lies_on_the_picture_and_follows_the_moment(page: Page, fake: FakeApi) -> None:
    fake.items[0] = FakeItem("panorama.jpg", PANORAMA)
    ask_with_a_file(page)
    page.locator(".card").first.click()
    page.get_by_role("button", name="Where the model looked").click()
    heat, picture = page.locator("#heat"), page.locator("#large-picture")
    expect(heat).to_be_visible()
    expect(page.locator("#attention")).to_contain_text("Cross-attention, not an explanation")
    assert heat.bounding_box() == picture.bounding_box()
    box = heat.bounding_box()
    assert box is not None
    assert box["width"] / box["height"] == pytest.approx(16, rel=0.02)
    assert centre_of_heat(page) == pytest.approx(0.5, abs=0.1)  # the average of left to right
    moment = page.get_by_role("slider", name="Moment of the question")
    moment.fill("0.1")
    assert centre_of_heat(page) < 0.2
    moment.fill("2")
    assert centre_of_heat(page) > 0.8
    moment.fill("0.1")
    page.locator("#play-moments").click()
    expect(moment).to_have_js_property("value", "2")
    assert centre_of_heat(page) > 0.8
    # the next picture gets its own
    page.locator("#next").click()
    expect(page.get_by_role("dialog", name="beach.jpg")).to_be_visible()
    expect(heat).to_be_visible()


@pytest.mark.parametrize(("evenness", "flat"), [(0, False), (90, False), (200, True)])
def test_a_map_that_shows_next_to_nothing_says_so(page: Page, fake: FakeApi, evenness: int, flat: bool) -> None:
    fake.evenness = evenness  # of 255: the mean is then below or above half of the largest
    ask_with_a_file(page)
    page.locator(".card").first.click()
    page.get_by_role("button", name="Where the model looked").click()
    expect(page.locator("#heat")).to_be_visible()
    expect(page.get_by_text("everywhere nearly alike")).to_be_visible(visible=flat)


def test_a_busy_server_is_asked_again(page: Page, fake: FakeApi) -> None:
    fake.refusals.extend([(503, {"Retry-After": "1"}, "busy")] * 2)
    choose_file(page, RECORDING)
    expect(page.locator("#notice")).to_contain_text("The server is busy. It is asked again in 1 s.")
    expect(page.locator(".card")).to_have_count(6)
    expect(page.locator("#notice")).not_to_be_visible()
    assert not fake.refusals


def test_what_the_server_refuses_is_said_in_its_words(page: Page, fake: FakeApi) -> None:
    ask_with_a_file(page)
    fake.refusals.append((422, {}, "the recording holds no speech: say it <b>closer</b>"))
    choose_file(page, RECORDING)
    expect(page.locator("#notice")).to_contain_text("The recording holds no speech: say it <b>closer</b>.")
    expect(page.locator(".card")).to_have_count(6)  # of the question before
    expect(page.locator("#notice-again")).not_to_be_visible()


def test_a_server_that_is_gone_can_be_tried_again(page: Page) -> None:
    speak_button(page).wait_for()
    page.route("**/api/search*", lambda route: route.abort("connectionrefused"))
    choose_file(page, RECORDING)
    expect(page.locator("#notice")).to_contain_text("The server does not answer.")
    page.unroute("**/api/search*")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".card")).to_have_count(6)


def test_a_token_is_asked_for_and_kept_for_the_tab(browser: Browser, fake: FakeApi) -> None:
    fake.token = "right"
    with serve(fake) as url, visit(browser, url) as page:
        field = page.get_by_role("textbox", name="Token")
        expect(field).to_be_focused()
        field.fill("wrong")
        page.get_by_role("button", name="Go on").click()
        expect(page.locator("#token-fault")).to_have_text("That is not the token of this server.")
        field.fill("right")
        field.press("Enter")
        ask_with_a_file(page)
        page.reload()
        ask_with_a_file(page)
        assert page.evaluate("[sessionStorage['saysee-token'], localStorage.length]") == ["right", 0]


def test_a_token_in_the_address_is_taken_and_taken_out(browser: Browser, fake: FakeApi) -> None:
    fake.token = "right"
    with serve(fake) as url, visit(browser, f"{url}/#token=right") as page:
        ask_with_a_file(page)
        assert page.url == f"{url}/"


def test_a_phone_shows_all_of_it(browser: Browser, url: str, fake: FakeApi) -> None:
    long = "a_name_without_any_space_that_goes_on_and_on_and_on_and_on_and_on.jpg"
    fake.items[0] = FakeItem(long, fake.items[0].image)
    with visit(browser, url, viewport=PHONE, is_mobile=True, has_touch=True) as page:
        speak_button(page).wait_for()
        check_controls(page)
        page.locator("#filters").click()
        check_controls(page)
        page.locator("#filters").click()
        ask_with_a_file(page)
        page.get_by_label("Details").check()
        check_controls(page)
        page.locator(".card").first.click()
        page.get_by_role("button", name="Where the model looked").click()
        expect(page.locator("#attention")).to_be_visible()
        check_controls(page, overflow_of="document.getElementById('large')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_it_lies_on(browser: Browser, url: str, scheme: Any) -> None:
    """WCAG 2.2, 1.4.3 and 1.4.11: a contrast of 4.5 for text, of 3 for the edge of a control."""
    with visit(browser, url, color_scheme=scheme) as page:
        style = "getComputedStyle(document.documentElement)"
        names = ("ink", "soft", "voice", "on-voice", "edge", "paper", "card", "tint")
        colours = {name: page.evaluate(f"{style}.getPropertyValue('--{name}')").strip() for name in names}
    for above, below, least in (
        *((above, below, 4.5) for above in ("ink", "soft", "voice") for below in ("paper", "card")),
        ("ink", "tint", 4.5),
        ("on-voice", "voice", 4.5),
        ("edge", "paper", 3.0),
        ("edge", "card", 3.0),
    ):
        light, dark = sorted((luminance(colours[above]), luminance(colours[below])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= least, f"{above} on {below}"


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb`, as WCAG defines it."""
    channels = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
