"""The report in headless Chromium: playback, ratings by keyboard and by touch, export, and saved state."""

import json
import shutil

import pytest

from sctok.evaluation.report.mushra import load_ratings, score_ratings
from sctok.evaluation.report.page import ReportConfig, write_report

from .example_runs import write_run

playwright = pytest.importorskip("playwright.sync_api", reason="pip install sctok[browser] to test pages in a browser")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]

FILES = (("speech/one", "speech"), ("music/two", "music"))
SECONDS = 3.0
SOUNDS = 5
PHONE = {"viewport": {"width": 390, "height": 800}, "is_mobile": True, "has_touch": True}
TOO_LONG = "new Promise((_, fail) => setTimeout(() => fail(new Error('nothing happened')), 60000))"
BROKEN_STORAGE = "Object.defineProperty(window, 'localStorage', { get() { throw new Error('denied'); } });"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        # Without a sandbox, Chromium also starts as root, for example in containers.
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return write_report(folder / "report.html", [write_run(folder / "run", files=FILES, seconds=SECONDS)]).path


@pytest.fixture
def visit(browser):
    """Return a function that opens a file in a new context; console errors and network requests fail the test."""
    contexts, complaints = [], []

    def open_page(path, script="", **options):
        context = browser.new_context(accept_downloads=True, **options)
        context.set_default_timeout(60_000)
        contexts.append(context)
        if script:
            context.add_init_script(script)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or complaints.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def begin(page, name="Ana"):
    page.fill("#listener", name)
    page.keyboard.press("Enter")
    page.wait_for_selector(".trial")


def tab_to(page, label):
    """Press Tab until the element with this label has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        focus = "(document.activeElement.getAttribute('aria-label') || document.activeElement.textContent).trim()"
        if page.evaluate(focus) == label:
            return
    raise AssertionError(f"Tab does not reach {label!r}")


def until(page, condition):
    """Wait for a condition. The page's policy forbids the `eval` that Playwright's own waiting needs."""
    look = f"const look = () => (({condition}) ? done() : requestAnimationFrame(look)); look();"
    page.evaluate(f"Promise.race([new Promise((done) => {{ {look} }}), {TOO_LONG}])")


def playing(page, condition="true"):
    until(page, f"Deck.current?.playing && Deck.current.position > 0.02 && ({condition})")


def test_only_one_player_plays_at_a_time(visit, report):
    page = visit(report)
    first, second = (page.get_by_role("button", name=f"Play {name}", exact=True).first for name in ("tiny", "opus-6"))
    first.click()
    playing(page, "Deck.current.slot === 'clip0-2'")
    second.click()
    playing(page, "Deck.current.slot === 'clip0-3'")
    assert page.locator(".playing").count() == 1
    second.click()
    until(page, "!Deck.current.playing")
    assert page.locator(".playing").count() == 0


def test_a_click_on_a_spectrogram_plays_from_that_position(visit, report):
    page = visit(report)
    picture = page.locator(".clip").nth(1).locator(".picture").nth(1)
    box = picture.bounding_box()
    picture.click(position={"x": box["width"] * 0.5, "y": 10})
    playing(page, f"Deck.current.voice.offset > {0.48 * SECONDS} && Deck.current.voice.offset < {0.52 * SECONDS}")


def test_arrow_keys_move_the_playhead_of_all_rows(visit, report):
    page = visit(report)
    pictures = page.locator(".clip").first.locator(".picture")
    pictures.first.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "PageUp"):
        page.keyboard.press(key)
    assert {pictures.nth(i).get_attribute("aria-valuenow") for i in range(SOUNDS)} == {"2.5"}


def test_column_headers_sort_tables_and_empty_cells_stay_last(visit, report):
    page = visit(report)
    table = page.locator("table").first

    def codecs():
        return [cell.strip() for cell in table.locator("tbody th").all_inner_texts()]

    table.get_by_role("button", name="visqol").click()
    assert codecs() == ["opus-12", "opus-6", "tiny"]
    table.get_by_role("button", name="visqol").click()
    assert codecs() == ["tiny", "opus-6", "opus-12"]
    assert table.locator("[aria-sort]").get_attribute("aria-sort") == "ascending"
    for _ in range(2):
        table.get_by_role("button", name="tokens").click()
        assert codecs()[0] == "tiny"


def test_tables_and_players_work_without_javascript(visit, report):
    page = visit(report, java_script_enabled=False)
    assert page.locator("table").first.is_visible()
    assert page.locator("audio").first.is_visible()
    assert page.get_by_text("needs JavaScript").is_visible()


def test_a_listening_test_by_keyboard_gives_ratings_that_are_scored(visit, report, tmp_path):
    page = visit(report)
    page.focus("#listener")
    page.keyboard.type("Ana Ö.")
    page.keyboard.press("Enter")
    for clip in range(len(FILES)):
        page.get_by_role("heading", name=f"Clip {clip + 1} of 2").wait_for()
        page.keyboard.press("1")
        playing(page)
        for number in range(1, SOUNDS + 1):
            tab_to(page, f"Rating of sound {number}")
            page.keyboard.press("End")
            page.keyboard.press("ArrowDown")
        page.keyboard.press("n")
    page.get_by_role("heading", name="Done").wait_for()
    with page.expect_download() as download:
        tab_to(page, "Download ratings (JSON)")
        page.keyboard.press("Enter")
    download.value.save_as(tmp_path / download.value.suggested_filename)
    (scores,) = score_ratings(load_ratings([tmp_path]))
    assert scores.listeners == ("Ana Ö.",)
    found = {(r.role, r.codec): (r.mean, r.n) for r in scores.ratings if r.domain == "all"}
    names = [
        ("reference", "reference"),
        ("anchor", "low-pass 3.5 kHz"),
        *(("codec", c) for c in ("tiny", "opus-6", "opus-12")),
    ]
    assert found == dict.fromkeys(names, (99, 2))


def test_the_next_clip_needs_a_rating_of_every_sound(visit, report):
    page = visit(report)
    begin(page)
    page.get_by_label("Rating of sound 1").press("ArrowUp")
    page.get_by_role("button", name="Next clip").click()
    assert page.get_by_role("status").inner_text() == "Sound 2 has no rating yet."
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Rating of sound 2"


def test_enter_accepts_the_position_of_the_slider(visit, report):
    page = visit(report)
    begin(page)
    assert page.locator(".trial .score").first.inner_text() == "–"
    page.get_by_label("Rating of sound 1").press("Enter")
    assert page.locator(".trial .score").first.inner_text() == "50"


def test_a_reload_keeps_ratings_order_and_position(visit, report):
    page = visit(report)
    begin(page, "Bo")
    for number in range(1, SOUNDS + 1):
        page.get_by_label(f"Rating of sound {number}").fill(str(10 * number))
    page.get_by_role("button", name="Next clip").click()
    page.get_by_label("Rating of sound 3").fill("77")
    page.reload()
    assert page.get_by_text("Started by Bo: 1 of 2 clips rated.").is_visible()
    page.get_by_role("button", name="Resume").click()
    assert page.locator(".trial .score").all_inner_texts() == ["–", "–", "77", "–", "–"]
    page.keyboard.press("p")
    page.get_by_role("heading", name="Clip 1 of 2").wait_for()
    assert page.locator(".trial .score").all_inner_texts() == ["10", "20", "30", "40", "50"]


def test_switching_keeps_the_position_and_the_loop(visit, report):
    page = visit(report)
    begin(page)
    page.get_by_label("Position", exact=True).fill("1")
    page.keyboard.press("[")
    page.get_by_label("Position", exact=True).fill("2")
    page.keyboard.press("]")
    assert page.evaluate("Deck.current === null")
    page.keyboard.press("0")
    playing(page, "Deck.current.position >= 1 && Deck.current.position <= 2")
    page.keyboard.press("3")
    playing(
        page, "Deck.current.slot.startsWith('clip') && Deck.current.voice.offset >= 1 && Deck.current.position <= 2"
    )
    assert page.evaluate("[Deck.current.voice.source.loopStart, Deck.current.voice.source.loopEnd]") == [1, 2]


def test_names_of_rated_sounds_are_hidden(visit, report):
    page = visit(report)
    begin(page)
    shown = page.inner_text("body")
    assert not any(name in shown for name in ("tiny", "opus", "3.5 kHz", "speech", "music"))


def test_a_phone_rates_by_touch_without_horizontal_scrolling(visit, report):
    page = visit(report, **PHONE)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.fill("#listener", "Cleo")
    page.get_by_role("button", name="Begin").tap()
    page.wait_for_selector(".trial")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="Play sound 2").tap()
    playing(page)
    slider = page.get_by_label("Rating of sound 2")
    box = slider.bounding_box()
    assert box["height"] >= 32
    slider.tap(position={"x": box["width"] * 0.8, "y": box["height"] / 2})
    assert 75 <= int(page.locator(".trial .score").nth(1).inner_text()) <= 85


def test_without_storage_the_page_warns_and_still_exports(visit, report, tmp_path):
    page = visit(report, script=BROKEN_STORAGE)
    begin(page)
    assert page.get_by_text("download the ratings before you close").is_visible()
    for clip in range(len(FILES)):
        page.get_by_role("heading", name=f"Clip {clip + 1} of 2").wait_for()
        for number in range(1, SOUNDS + 1):
            page.get_by_label(f"Rating of sound {number}").fill("95")
        page.keyboard.press("n")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert len(json.loads(download.value.path().read_text())["trials"]) == 2


def test_the_page_for_listeners_has_only_the_test(visit, tmp_path):
    run = write_run(tmp_path / "run", files=FILES[:1], seconds=0.5)
    page = visit(write_report(tmp_path / "test.html", [run], config=ReportConfig(listening_only=True)).path)
    begin(page)
    page.keyboard.press("2")
    playing(page)
