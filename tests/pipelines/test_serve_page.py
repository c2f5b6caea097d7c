"""The page at /, in a browser: what is pasted or dropped is drawn, at two widths, light and dark, without errors."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from tests.pipelines.servers import trained, within

pytest.importorskip("litserve")
api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")]
LOOKS = [(390, "light"), (1280, "dark")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        # Containers have no user namespaces, which its sandbox wants.
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(params=LOOKS, ids=["390-light", "1280-dark"])
def page(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    width, scheme = request.param
    opened = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    yield opened
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the window"
    opened.close()
    # What the tests provoke themselves.
    assert [text for text in problems if "status of 4" not in text] == []


def answered(page: Any) -> str:
    page.wait_for_selector("#results article")
    return page.inner_text("#results")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def test_dna_is_pasted_and_its_probabilities_are_bars(page: Any, folder: Path) -> None:
    with within(trained(folder / "dna", "dna"), token="t") as client:
        page.goto(f"http://127.0.0.1:{client.port}/")
        page.fill("#token", "t")
        page.press("#token", "Tab")
        page.fill("#text", "ACGT ttga\nGATTACA")
        page.click("#go")
        text = answered(page)
        labels = client.ask("GET", "/info")[1]["labels"]
        result = client.predict({"sequence": "ACGTttgaGATTACA"})[0]
        assert all(label in text for label in labels)
        assert f"{max(result['probabilities'].values()) * 100:.1f} %" in text
        assert page.locator("table.bars tr").count() == 2
        width = page.evaluate("document.querySelector('.bar i').getBoundingClientRect().width")
        whole = page.evaluate("document.querySelector('.bar').getBoundingClientRect().width")
        assert width / whole == pytest.approx(max(result["probabilities"].values()), abs=0.02)
        page.fill("#text", "EFILP")
        page.click("#go")
        page.wait_for_selector("#error:not(:empty)")
        assert "not DNA" in page.inner_text("#error")
        # The answer to what was asked before is no longer shown beneath.
        assert page.locator("#results article").count() == 0
        page.fill("#text", ">one\nACGT\n><img src=x onerror=alert(1)>\nACGG\n")
        page.click("#go")
        page.wait_for_selector("#results article:nth-child(2)")
        assert page.locator("#results img").count() == 0 and "one" in page.inner_text("#results")
        page.goto(f"http://127.0.0.1:{client.port}/docs")
        page.wait_for_selector("section")
        assert "/predict" in page.inner_text("main") and "/stream" in page.inner_text("main")


def test_a_csv_is_dropped_and_its_forecast_has_bands(page: Any, folder: Path) -> None:
    times = pd.date_range("2024-01-01", periods=200, freq="h")
    waves = {f"demand_{i}": 50 + 10 * np.sin(np.arange(200) / 4 + i) for i in range(1, 5)}
    table = pd.DataFrame({"date": times, **waves}).to_csv(index=False)
    with within(trained(folder / "timeseries", "timeseries")) as client:
        page.goto(f"http://127.0.0.1:{client.port}/")
        page.wait_for_selector("#about:has-text('demand_1')")
        transfer = page.evaluate_handle(
            "text => { const t = new DataTransfer(); t.items.add(new File([text], 'load.csv')); return t; }", table
        )
        page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
        assert "load" in answered(page)
        # Three bands, what was observed, and the median.
        assert page.locator("svg path").count() == 5
        before = page.locator("svg path").first.get_attribute("d")
        page.select_option("select", "2")
        assert page.locator("svg path").first.get_attribute("d") != before
        assert "demand_3" in str(page.locator("svg").get_attribute("aria-label"))


def test_a_wav_is_chosen(page: Any, folder: Path) -> None:
    file = io.BytesIO()
    sf.write(file, np.sin(np.arange(4000) / 5) * 0.3, 8000, format="WAV")
    with within(trained(folder / "audio", "audio")) as client:
        page.goto(f"http://127.0.0.1:{client.port}/?example")
        answered(page)
        page.set_input_files("#file", {"name": "door.wav", "mimeType": "audio/wav", "buffer": file.getvalue()})
        page.click("#go")
        page.wait_for_selector("h2:has-text('door')")
        assert page.locator("table.bars tr").count() == 2
