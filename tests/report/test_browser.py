"""The page in a real Chromium: switches, sorting, values, keyboard, print, dark and narrow, size, silence."""

from __future__ import annotations

import json
import re
import statistics
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.browsing import Visit, chromium
from support.recorded import METHODS, Folder, grid

from steppe.report.comparison.page import write


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def home(tmp_path_factory: Any) -> Path:
    """Return a folder of nine methods and one of two networks, with its page."""
    folder = Folder(tmp_path_factory.mktemp("page"))
    grid(folder)
    folder.method("dml")
    for seed in range(3):
        folder.run("dml", seed, 0.93, outputs=("network 1", "network 2", "ensemble"), watch=True)
    folder.write()
    (folder.path / "diagnosis.html").write_text("<!doctype html><title>Diagnosis</title>")
    write(folder.path)
    return folder.path


@pytest.fixture
def visit(browser: Any, home: Path) -> Iterator[Visit]:
    found = Visit(browser, f"file://{home}/report.html", viewport={"width": 1280, "height": 900})
    yield found
    assert found.said == []
    assert [a.split(":")[0] for a in found.asked if a != f"file://{home}/report.html"] in ([], ["data"], ["blob"])
    found.context.close()


def curves(home: Path, method: str) -> list[tuple[Any, Any]]:
    """Return metrics and timing of each finished run of a method, as they are on disk."""
    found = []
    for run in json.loads((home / "compare.json").read_text())["runs"]:
        folder = home / "runs" / run["digest"]
        result = folder / "result.json"
        if run["method"] == method and result.exists() and json.loads(result.read_text())["status"] == "ok":
            lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
            times = [json.loads(x) for x in (folder / "timing.jsonl").read_text().splitlines()]
            found.append((lines, times))
    return found


def at_budget(home: Path, cost: Any) -> dict[str, str]:
    """Return each method's validation accuracy at the least total cost of any run, as the table prints it."""
    runs = {m: [(cost(*r), [x["val_accuracy"] for x in r[0]]) for r in curves(home, m)] for m in (*METHODS, "dml")}
    least = min(x[-1] for found in runs.values() for x, _ in found)
    shown = {}
    for method, found in runs.items():
        values = [100 * np.interp(least, x, y) for x, y in found]
        shown[method] = f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"
    return shown


COSTS = {
    "epochs": lambda lines, times: [x["epoch"] for x in lines],
    "gradients": lambda lines, times: [x["gradients"] for x in lines],
    "seconds": lambda lines, times: [x["seconds"] for x in times],
}


@pytest.mark.parametrize("mode", COSTS)
def test_the_switch_changes_the_table_and_the_axis(visit: Visit, home: Path, mode: str) -> None:
    as_run = dict(zip(visit.column("method"), visit.column("last"), strict=True))
    visit.compare(mode)
    found = dict(zip(visit.column("method"), visit.column("val"), strict=True))
    assert found == at_budget(home, COSTS[mode])
    if mode != "epochs":
        assert found["sam"] != as_run["sam"]
    axis = {"epochs": "Epochs", "gradients": "Gradient evaluations", "seconds": "Training seconds"}[mode]
    drawn = visit.page.locator(".curves .chart text").all_text_contents()
    assert axis in drawn
    assert "the table's budget" in drawn
    about = visit.page.locator(".mode:not([hidden]) .about").inner_text()
    assert "read off the training curves" in about
    assert "No run was planned for this budget" in about
    assert visit.page.locator('input[data-name="compare"]:checked').count() == 2
    visit.compare("run", where=1)
    assert dict(zip(visit.column("method"), visit.column("last"), strict=True)) == as_run


def test_the_switch_works_by_keyboard(visit: Visit) -> None:
    visit.page.locator('input[data-name="compare"]').first.focus()
    for _ in range(2):
        visit.page.keyboard.press("ArrowRight")
    assert visit.page.locator(".mode:not([hidden])").get_attribute("data-mode") == "gradients"


def test_columns_are_sorted_by_keyboard(visit: Visit) -> None:
    head = visit.page.locator('.mode:not([hidden]) th[data-key="last"]')
    head.locator("button").focus()
    visit.page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    values = [float(v.split()[0]) for v in visit.column("last")]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) > 5
    visit.page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "ascending"
    assert [float(v.split()[0]) for v in visit.column("last")] == values[::-1]
    visit.page.locator('.mode:not([hidden]) th[data-key="plain"] button').press("Enter")
    assert head.get_attribute("aria-sort") is None
    # plain has no difference to itself and stays last, in either order
    assert visit.column("method")[-1] == "plain"
    visit.page.locator('.mode:not([hidden]) th[data-key="plain"] button').press("Enter")
    assert visit.column("method")[-1] == "plain"


def test_the_order_of_rows_outlives_the_switch(visit: Visit) -> None:
    visit.page.locator('.mode:not([hidden]) th[data-key="method"] button').press("Enter")
    visit.compare("seconds")
    assert visit.column("method") == sorted([*METHODS, "dml"])
    assert (
        visit.page.locator('.mode:not([hidden]) th[aria-sort="ascending"]').get_attribute("data-key") == "method"
    )


def values(visit: Visit) -> dict[str, str]:
    """Return what stands beside the methods' names."""
    keys = visit.page.locator(".key li button")
    names, found = keys.locator(".label").all_inner_texts(), keys.locator(".value").all_inner_texts()
    return dict(zip(names, found, strict=True))


def mean_at(home: Path, method: str, epoch: int) -> str:
    found = [100 * lines[epoch - 1]["val_accuracy"] for lines, _ in curves(home, method)]
    return f"{statistics.mean(found):.1f}"


def test_pointing_at_a_curve_shows_its_values(visit: Visit, home: Path) -> None:
    chart = visit.page.locator(".curves .chart")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    # the axis runs from 46 pixels to 8 before the right edge, epochs from 1 to 12
    x = box["x"] + 46 + (box["width"] - 54) * (5 - 1) / 11
    visit.page.mouse.move(x, box["y"] + 100)
    assert values(visit) == {m: mean_at(home, m, 5) for m in (*METHODS, "dml")}
    said = visit.page.locator(".readout").inner_text()
    name = re.search(r"Epochs: 5\. (\S+): ([\d.]+) %, seeds [\d.]+ to [\d.]+, n=[23]\.", said)
    assert name
    assert name[2] == mean_at(home, name[1], 5)
    visit.page.mouse.move(5, 5)
    assert set(values(visit).values()) == {""}


def test_values_are_read_by_keyboard(visit: Visit, home: Path) -> None:
    readout = visit.page.locator(".readout")
    visit.page.locator(".curves .chart").focus()
    visit.page.keyboard.press("End")
    order = sorted((*METHODS, "dml"), key=lambda m: -float(mean_at(home, m, 12)))
    ends = {m: mean_at(home, m, 12) for m in order}
    assert values(visit) == ends
    assert f"Epochs: 12. {order[0]}: {ends[order[0]]} %" in readout.inner_text()
    visit.page.keyboard.press("ArrowDown")
    second = re.search(r"12\. (\S+): ([\d.]+) %", readout.inner_text())
    assert second
    assert float(second[2]) == float(ends[order[1]])
    visit.page.keyboard.press("ArrowLeft")
    assert values(visit)["plain"] == mean_at(home, "plain", 11)
    visit.page.keyboard.press("Escape")
    assert "arrow keys" in readout.inner_text()


def test_a_method_can_be_hidden_and_shown(visit: Visit) -> None:
    lines = visit.page.locator(".curves .chart path.curve")
    assert lines.count() == 10
    visit.page.locator(".key li button").nth(3).press("Enter")
    assert lines.count() == 9
    assert visit.page.locator(".key li button").nth(3).get_attribute("aria-pressed") == "false"
    visit.page.get_by_role("button", name="Hide all").click()
    assert lines.count() == 0
    visit.page.get_by_role("button", name="Show all").click()
    assert lines.count() == 10


def test_tables_can_be_saved_from_the_page_alone(visit: Visit, home: Path) -> None:
    links = visit.page.locator(".downloads a")
    assert links.count() == 5
    for i, name in enumerate(("table.csv", "table.md", "table.tex", "budgets.csv", "outputs.csv")):
        with visit.page.expect_download() as waiting:
            links.nth(i).click()
        assert waiting.value.suggested_filename == name
        assert Path(waiting.value.path()).read_bytes() == (home / name).read_bytes()
    visit.asked.clear()


@pytest.mark.parametrize("which", ["curves", "cost"])
def test_charts_can_be_saved_as_svg(visit: Visit, which: str) -> None:
    card = visit.page.locator(f"#{which} .card")
    with visit.page.expect_download() as waiting:
        card.get_by_role("button", name="Save as SVG").locator("visible=true").click()
    assert waiting.value.suggested_filename.endswith("digits-simple-cnn.svg")
    tree = ET.parse(waiting.value.path())
    assert tree.getroot().tag == "{http://www.w3.org/2000/svg}svg"
    texts = {node.text for node in tree.iter() if node.tag.endswith("}text")}
    assert {*METHODS, "dml"} <= texts
    painted = [n.get("style") or "" for n in tree.iter() if n.get("class") in ("curve", "mark", "whisker")]
    assert len(painted) > 10
    assert all("rgb(" in style for style in painted)
    assert "font-family: sans-serif" in (tree.getroot().get("style") or "")
    assert all("font-size" in (node.get("style") or "") for node in tree.iter() if node.tag.endswith("}text"))
    visit.asked.clear()


def test_the_front_and_the_way_to_the_diagnosis(visit: Visit, home: Path) -> None:
    assert "On the Pareto front" in visit.page.locator(".said").first.inner_text()
    assert visit.page.locator(".front").first.get_attribute("d").startswith("M")
    visit.page.get_by_role("link", name="Sharpness, landscapes and robustness").click()
    assert visit.page.title() == "Diagnosis"
    visit.asked.remove(f"file://{home}/diagnosis.html")


def test_what_can_be_deployed_is_a_table_of_its_own(visit: Visit) -> None:
    table = visit.page.get_by_role("region", name="What each method can deploy").locator("table")
    rows = [row.split() for row in table.locator("tbody tr").all_inner_texts()]
    assert ["dml", "ensemble", "94.0", "±", "0.0", "94.1", "±", "0.0"] in rows
    assert len(rows) == 5


def luminance(colour: str) -> float:
    channels = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


READABLE = (
    ".lede, .about, .foot, tbody th, td, .pm, .muted, .sub, thead button, .choice span, .said, dt, dd, .remarks li"
)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(browser: Any, home: Path, scheme: Any) -> None:
    visit = Visit(browser, f"file://{home}/report.html", color_scheme=scheme)
    ground = luminance(visit.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (ground < 0.05) == (scheme == "dark")
    script = "what => [...document.querySelectorAll(what)].map(n => [n.className, getComputedStyle(n).color])"
    for name, colour in visit.page.evaluate(script, READABLE):
        light, dark = sorted((luminance(colour), ground), reverse=True)
        # WCAG 2, success criterion 1.4.3
        assert (light + 0.05) / (dark + 0.05) >= 4.5, name
    script = "[...document.querySelectorAll('.chart path.curve')].map(n => getComputedStyle(n).stroke)"
    for colour in visit.page.evaluate(script):
        light, dark = sorted((luminance(colour), ground), reverse=True)
        # success criterion 1.4.11, for what is drawn
        assert (light + 0.05) / (dark + 0.05) >= 3
    visit.context.close()


@pytest.mark.parametrize("width", [390, 768])
def test_a_narrow_window_scrolls_tables_and_not_the_page(browser: Any, home: Path, width: int) -> None:
    visit = Visit(browser, f"file://{home}/report.html", viewport={"width": width, "height": 800})
    for mode in ("run", "gradients"):
        visit.compare(mode)
        assert visit.page.evaluate("document.documentElement.scrollWidth") == width
    tools = visit.page.locator("#curves .tools button").first.bounding_box()
    assert tools["height"] < 40
    visit.context.close()


def test_the_page_prints(visit: Visit) -> None:
    visit.page.emulate_media(media="print", color_scheme="dark")
    for hidden in (".switch", ".tools", ".downloads", ".skip", "[data-copy]"):
        assert not visit.page.locator(hidden).first.is_visible(), hidden
    for shown in ("table.sortable", ".curves .chart", ".said"):
        assert visit.page.locator(shown).first.is_visible(), shown
    assert luminance(visit.page.evaluate("getComputedStyle(document.body).backgroundColor")) > 0.9
    # A4 landscape less its margins: a table wider than this would be cut off
    visit.page.set_viewport_size({"width": 1000, "height": 700})
    wide = "[...document.querySelectorAll('.mode:not([hidden]) table')].map(t => t.scrollWidth)"
    assert max(visit.page.evaluate(wide)) <= 1000
    pdf = visit.page.pdf(prefer_css_page_size=True)
    assert pdf[:5] == b"%PDF-"
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 12


def test_without_script_the_page_still_has_table_curves_and_downloads(browser: Any, home: Path) -> None:
    visit = Visit(browser, f"file://{home}/report.html", java_script_enabled=False)
    assert visit.page.locator(".mode").locator("visible=true").count() == 1
    assert not visit.page.locator(".switch").is_visible()
    assert visit.page.locator("noscript svg").is_visible()
    assert visit.page.locator(".downloads a").first.get_attribute("href").startswith("data:text/csv")
    visit.context.close()
