"""The report's page in a real browser: whole, silent, off the network, at every width and in both looks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import chromium
from helpers_telemetry import Run
from mindspeed_moe import cli
from oracle.expert_load import ExpertLoad, loads_of

pytestmark = pytest.mark.browser

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
CHARTS = ("load", "imbalance", "sent", "sent-all", "dropped")
DESKTOP, PHONE = (1280, 900), (390, 844)
RUN = Run(experts=32, ep=4, tp=2, layers=(3, 4, 11), steps=tuple(range(10, 310, 10)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, ExpertLoad]]:
    folder = tmp_path_factory.mktemp("made")
    RUN.write(folder / "telemetry", dropped=5)
    page = folder / "report.html"
    assert cli.main(["report", str(folder / "telemetry"), "--output", str(page)]) == 0
    return page, loads_of(folder / "telemetry")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium(), args=list(ARGUMENTS))
        yield running
        running.close()


@dataclass
class Visit:
    """One page that is open, and everything that it complained about or asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def wait(self, *words: str) -> None:
        """Wait until the charts show this: layer, unit, look, width."""
        self.page.wait_for_selector("body" + "".join(f'[data-drawn~="{word}"]' for word in words), timeout=600_000)

    def until(self, name: str, script: str, wanted: Any) -> None:
        """Wait until a chart has come so far; the page itself may not evaluate strings."""
        end = time.monotonic() + 600
        while (found := self.chart(name, script)) != wanted:
            assert time.monotonic() < end, f"{name}: {script} is {found}, not {wanted}"
            time.sleep(0.05)

    def chart(self, name: str, script: str) -> Any:
        return self.page.evaluate(f"(() => {{ const chart = document.getElementById('{name}'); return {script}; }})()")


@pytest.fixture
def visit(browser: Any, made: tuple[Path, dict[int, ExpertLoad]]) -> Iterator[Callable[..., Visit]]:
    contexts = []

    def visit(size: tuple[int, int] = DESKTOP, look: str = "light", path: Path = made[0]) -> Visit:
        touch = size == PHONE
        viewport = {"width": size[0], "height": size[1]}
        context = browser.new_context(viewport=viewport, color_scheme=look, has_touch=touch, is_mobile=touch)
        contexts.append(context)
        one = Visit(context.new_page())
        one.page.on("console", lambda message: one.complaints.append(f"{message.type}: {message.text}"))
        one.page.on("pageerror", lambda error: one.complaints.append(str(error)))
        one.page.on("request", lambda request: one.requests.append(request.url))
        one.page.goto(path.as_uri())
        one.wait(look, str(size[0]))
        return one

    yield visit
    for context in contexts:
        context.close()


@pytest.mark.parametrize("look", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_opens(visit: Callable[..., Visit], tmp_path: Path, size: tuple[int, int], look: str) -> None:
    one = visit(size, look)
    for unit in ("times", "tokens"):
        one.page.click(f"[data-unit={unit}]")
        one.wait(unit)
        one.page.screenshot(path=tmp_path / f"{size[0]}-{look}-{unit}.png", full_page=True)
    assert one.complaints == []
    outside = [url for url in one.requests if not url.startswith(("file:", "data:", "blob:"))]
    assert outside == []
    assert sum(url.startswith("file:") for url in one.requests) == 1
    assert one.page.evaluate("document.documentElement.scrollWidth") == size[0]
    for name in CHARTS:
        box = one.page.locator(f"#{name} .main-svg").first.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= size[0]
        assert box["height"] > 100
    background = one.page.evaluate("getComputedStyle(document.body).backgroundColor")
    levels = [int(part) for part in background.removeprefix("rgb(").removesuffix(")").split(",")]
    assert (sum(levels) > 3 * 128) == (look == "light")


def check_charts(one: Visit, layer: int, loads: dict[int, ExpertLoad]) -> None:
    expected = loads[layer]
    assert one.chart("load", "chart.data[0].z") == [
        list(column) for column in zip(*expected.tokens.values(), strict=True)
    ]
    for name, values in (("imbalance", expected.imbalance), ("dropped", expected.dropped)):
        # The selected layer is drawn last, on top of the others.
        assert one.chart(name, "chart.data.at(-1).name") == f"layer {layer}"
        assert one.chart(name, "chart.data.at(-1).y") == pytest.approx(list(values.values()), rel=1e-4)
        assert one.chart(name, "chart.data.length") == len(loads)
        widths = one.chart(name, "chart.data.map((trace) => trace.line.width)")
        assert widths[-1] > max(widths[:-1])
    both = sum(np.array(one.sent) for one in loads.values())
    for name, sent in (("sent", expected.sent), ("sent-all", both)):
        np.testing.assert_allclose(one.chart(name, "chart.data[0].z"), sent, rtol=1e-6)


def test_every_chart_has_its_data_and_follows_the_layer(
    visit: Callable[..., Visit], made: tuple[Path, dict[int, ExpertLoad]]
) -> None:
    one = visit()
    one.page.click("[data-unit=tokens]")
    one.wait("tokens", "3")
    check_charts(one, 3, made[1])
    one.page.select_option("#layer", "11")
    one.wait("11")
    check_charts(one, 11, made[1])
    assert one.page.inner_text("#sent-title") == "Layer 11"
    one.page.click("#before")
    one.wait("4")
    check_charts(one, 4, made[1])
    assert one.complaints == []


def test_times_the_mean(visit: Callable[..., Visit], made: tuple[Path, dict[int, ExpertLoad]]) -> None:
    one = visit()
    rows = list(made[1][3].tokens.values())
    hover = one.chart("load", "chart.data[0].customdata[5][7]")
    times = rows[7][5] / (sum(rows[7]) / 32)
    assert hover == ["step 80", 0, f"{rows[7][5]:,}", f"{times:.2f}".rstrip("0").rstrip("."), "the mean"]
    assert 2 ** one.chart("load", "chart.data[0].z[5][7]") == pytest.approx(times)


def test_values_show_where_the_mouse_stands(
    visit: Callable[..., Visit], made: tuple[Path, dict[int, ExpertLoad]]
) -> None:
    one = visit()
    one.page.click("[data-unit=tokens]")
    one.wait("tokens")
    layer, middle = made[1][3], RUN.steps[15]
    for name, rows, columns, told in (
        ("load", 32, 30, ("expert 16, EP rank 2", f"step {middle}", f"{layer.tokens[middle][16]:,} tokens")),
        ("sent", 4, 4, ("from EP rank 2", "to EP rank 2", f"{layer.sent[2][2] / 1e6:.1f} MB")),
    ):
        one.page.locator(f"#{name}").scroll_into_view_if_needed()
        box = one.page.locator(f"#{name} .nsewdrag").first.bounding_box()
        x, y = ((number // 2 + 0.5) / number for number in (columns, rows))  # the middle of a cell
        one.page.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * y)
        one.until(name, "chart.querySelectorAll('.hoverlayer .hovertext').length", 1)
        text = one.chart(name, "chart.querySelector('.hoverlayer .hovertext').textContent")
        assert all(part in text for part in told), (text, told)
    assert one.complaints == []


def test_the_switch_changes_the_look_and_the_charts(visit: Callable[..., Visit]) -> None:
    one = visit()
    before = one.chart("imbalance", "chart.data.at(-1).line.color")
    assert one.page.inner_text("#look") == "Dark look"
    one.page.click("#look")
    one.wait("dark")
    assert one.page.inner_text("#look") == "Light look"
    assert one.chart("imbalance", "chart.data.at(-1).line.color") != before
    one.page.emulate_media(color_scheme="dark")
    one.page.click("#look")
    one.wait("light")  # what was chosen stands against the system's


def test_it_follows_the_system(visit: Callable[..., Visit]) -> None:
    one = visit()
    one.page.emulate_media(color_scheme="dark")
    one.wait("dark")


def test_the_charts_over_steps_share_their_zoom(visit: Callable[..., Visit]) -> None:
    one = visit()
    whole = one.chart("dropped", "chart.layout.xaxis.range")
    assert whole == [-0.5, 29.5]
    box = one.page.locator("#load .nsewdrag").first.bounding_box()
    y = box["y"] + box["height"] / 2
    one.page.mouse.move(box["x"] + box["width"] / 3, y)
    one.page.mouse.down()
    one.page.mouse.move(box["x"] + box["width"] * 2 / 3, y, steps=5)
    one.page.mouse.up()
    columns = one.chart("load", "chart.layout.xaxis.range")
    assert columns == [pytest.approx(9.5, abs=0.5), pytest.approx(19.5, abs=0.5)]
    one.until("dropped", "chart.layout.xaxis.range", columns)
    shown = [int(text) for text in one.chart("imbalance", "chart.layout.xaxis.ticktext")]
    assert shown
    assert all(100 <= step <= 210 for step in shown)
    one.page.mouse.dblclick(box["x"] + box["width"] / 2, y)
    for name in ("load", "imbalance", "dropped"):
        one.until(name, "chart.layout.xaxis.range", whole)
    assert one.chart("load", "chart.layout.yaxis.range") == [31.5, -0.5]
    assert one.complaints == []


def test_a_layer_is_selected_in_the_table(visit: Callable[..., Visit]) -> None:
    one = visit()
    one.page.click("td button[data-layer='11']")
    one.wait("11")
    assert one.page.input_value("#layer") == "11"


def test_it_turns_with_the_window(visit: Callable[..., Visit]) -> None:
    one = visit()
    one.page.set_viewport_size({"width": 600, "height": 900})
    one.wait("600")
    assert one.page.evaluate("document.documentElement.scrollWidth") == 600


def test_holes_in_the_data(visit: Callable[..., Visit], tmp_path: Path) -> None:
    Run(steps=(1, 2, 3, 40)).write(tmp_path / "in", dropped=None)
    (tmp_path / "in" / "rank00001.000001.jsonl").unlink()
    assert cli.main(["report", str(tmp_path / "in"), "--output", str(tmp_path / "out.html")]) == 0
    one = visit(path=tmp_path / "out.html")
    one.page.click("[data-unit=tokens]")
    one.wait("tokens")
    cells = one.chart("load", "chart.data[0].z")
    assert [[cell is None for cell in row] for row in cells[3:5]] == [[False] * 3 + [True, False], [True] * 5]
    assert one.chart("dropped", "chart.layout.annotations[0].text") == "not known"
    assert one.page.inner_text("#dropped-told") == "Not known for this layer."
    assert one.complaints == []


def test_an_old_browser_is_told_and_waits_for_nothing(browser: Any, made: tuple[Path, dict[int, ExpertLoad]]) -> None:
    page = browser.new_context(viewport={"width": DESKTOP[0], "height": DESKTOP[1]}).new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto(made[0].as_uri())
    page.wait_for_selector("#trouble", state="visible")
    assert "They need a browser of 2023 or later." in page.inner_text("#trouble")
    shown = "getComputedStyle(document.getElementById('load'), '::before').content"
    assert page.evaluate(shown) == "none"
    page.evaluate("delete document.body.dataset.failed")
    assert page.evaluate(shown) == '"Drawing …"', "as long as nothing has failed"
    page.context.close()


def test_what_files_say_does_nothing(visit: Callable[..., Visit], tmp_path: Path) -> None:
    evil = "</script><script>window.hit=1</script><img src=x onerror='window.hit=2'>"
    folder = Run(layers=(3,)).write(tmp_path / "<img src=x onerror=window.hit=3>")
    for path in folder.iterdir():
        path.write_text(path.read_text().replace('"device":"cpu"', f'"device":"{evil}"') + evil + "\n")
    assert cli.main(["report", str(folder), "--output", str(tmp_path / "out.html")]) == 0
    one = visit(path=tmp_path / "out.html")
    assert one.page.evaluate("window.hit") is None
    assert (one.complaints, len([url for url in one.requests if not url.startswith("data:")])) == ([], 1)
    assert "onerror" in one.page.inner_text("header.top")
