"""The page in a real Chromium: switches, sorting, values, keyboard, print, dark and narrow, size, silence."""

import re
import statistics
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.browsing import Visit
from support.recorded import METHODS, Folder, grid, html

from steppe.records import load
from steppe.report.comparison.page import write


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
    visit = Visit(browser, f"file://{home}/report.html", viewport={"width": 1280, "height": 900})
    yield visit
    assert visit.messages == []
    kinds = {address.split(":")[0] for address in visit.requests if address != f"file://{home}/report.html"}
    assert kinds in (set(), {"data"}, {"blob"})
    visit.context.close()


def curves(home: Path, method: str) -> list[tuple[Any, Any]]:
    """Return metrics and timing of each finished run of a method."""
    return [(r.metrics, r.timing) for r in load(home).records if r.method == method and r.status == "ok"]


def at_budget(home: Path, cost: Any) -> dict[str, str]:
    """Return each method's validation accuracy at the least total cost of any run, as the table prints it."""
    runs = {m: [(cost(*r), [x["val_accuracy"] for x in r[0]]) for r in curves(home, m)] for m in (*METHODS, "dml")}
    least = min(x[-1] for own in runs.values() for x, _ in own)
    values = {m: [100 * np.interp(least, x, y) for x, y in own] for m, own in runs.items()}
    return {m: f"{statistics.mean(v):.1f} ± {statistics.stdev(v):.1f}" for m, v in values.items()}


COSTS = {
    "epochs": lambda lines, times: [x["epoch"] for x in lines],
    "gradients": lambda lines, times: [x["gradients"] for x in lines],
    "seconds": lambda lines, times: [x["seconds"] for x in times],
}


@pytest.mark.parametrize("mode", COSTS)
def test_the_switch_changes_the_table_and_the_axis(visit: Visit, home: Path, mode: str) -> None:
    as_run = dict(zip(visit.column("method"), visit.column("last"), strict=True))
    visit.compare(mode)
    values = dict(zip(visit.column("method"), visit.column("val"), strict=True))
    assert values == at_budget(home, COSTS[mode])
    if mode != "epochs":
        assert values["sam"] != as_run["sam"]
    axis = {"epochs": "Epochs", "gradients": "Gradient evaluations", "seconds": "Training seconds"}[mode]
    assert {axis, "the table's budget"} <= set(visit.page.locator(".curves .chart text").all_text_contents())
    about = visit.page.locator(".mode:not([hidden]) .about").inner_text()
    assert "interpolated between epochs" in about
    assert visit.page.locator('input[data-name="compare"]:checked').count() == 2
    visit.compare("run", where=1)
    assert dict(zip(visit.column("method"), visit.column("last"), strict=True)) == as_run


def test_columns_are_sorted_and_the_table_is_switched_by_keyboard(visit: Visit) -> None:
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
    for _ in range(2):
        visit.page.locator('.mode:not([hidden]) th[data-key="plain"] button').press("Enter")
        assert head.get_attribute("aria-sort") is None
        # plain has no difference to itself and stays last, in either order
        assert visit.column("method")[-1] == "plain"
    # the switch keeps the order of rows
    visit.page.locator('.mode:not([hidden]) th[data-key="method"] button').press("Enter")
    visit.page.locator('input[data-name="compare"]').first.focus()
    for _ in range(2):
        visit.page.keyboard.press("ArrowRight")
    assert visit.page.locator(".mode:not([hidden])").get_attribute("data-mode") == "gradients"
    assert visit.column("method") == sorted([*METHODS, "dml"])
    head = visit.page.locator('.mode:not([hidden]) th[aria-sort="ascending"]')
    assert head.get_attribute("data-key") == "method"


def values_at(visit: Visit) -> dict[str, str]:
    """Return the values next to the methods' names."""
    keys = visit.page.locator(".key li button")
    names, values = keys.locator(".label").all_inner_texts(), keys.locator(".value").all_inner_texts()
    return dict(zip(names, values, strict=True))


def mean_at(home: Path, method: str, epoch: int) -> str:
    return f"{statistics.mean(100 * lines[epoch - 1]['val_accuracy'] for lines, _ in curves(home, method)):.1f}"


def test_pointing_at_a_curve_shows_its_values(visit: Visit, home: Path) -> None:
    chart = visit.page.locator(".curves .chart")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    # the axis runs from 46 pixels to 8 before the right edge, epochs from 1 to 12
    x = box["x"] + 46 + (box["width"] - 54) * (5 - 1) / 11
    visit.page.mouse.move(x, box["y"] + 100)
    assert values_at(visit) == {m: mean_at(home, m, 5) for m in (*METHODS, "dml")}
    text = visit.page.locator(".readout").inner_text()
    name = re.search(r"Epochs: 5\. (\S+): ([\d.]+) %, seeds [\d.]+ to [\d.]+, n=[23]\.", text)
    assert name
    assert name[2] == mean_at(home, name[1], 5)
    visit.page.mouse.move(5, 5)
    assert set(values_at(visit).values()) == {""}


def test_values_are_read_by_keyboard(visit: Visit, home: Path) -> None:
    readout = visit.page.locator(".readout")
    visit.page.locator(".curves .chart").focus()
    visit.page.keyboard.press("End")
    ends = {m: mean_at(home, m, 12) for m in (*METHODS, "dml")}
    assert values_at(visit) == ends
    first, second = sorted(ends, key=lambda m: -float(ends[m]))[:2]
    assert f"Epochs: 12. {first}: {ends[first]} %" in readout.inner_text()
    visit.page.keyboard.press("ArrowDown")
    value = re.search(r"12\. \S+: ([\d.]+) %", readout.inner_text())
    assert value
    assert value[1] == ends[second]
    visit.page.keyboard.press("ArrowLeft")
    assert values_at(visit)["plain"] == mean_at(home, "plain", 11)
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
    names = ("table.csv", "table.md", "table.tex", "budgets.csv", "outputs.csv")
    assert links.count() == len(names)
    for i, name in enumerate(names):
        with visit.page.expect_download() as waiting:
            links.nth(i).click()
        assert waiting.value.suggested_filename == name
        assert Path(waiting.value.path()).read_bytes() == (home / name).read_bytes()
    visit.requests.clear()


@pytest.mark.parametrize(("which", "name"), [("curves", "val_accuracy"), ("cost", "cost")])
def test_charts_can_be_saved_as_svg(visit: Visit, which: str, name: str) -> None:
    with visit.page.expect_download() as waiting:
        visit.page.locator(f"#{which}").get_by_role("button", name="Save as SVG").click()
    assert waiting.value.suggested_filename == f"{name}-digits-simple-cnn.svg"
    tree = ET.parse(waiting.value.path())
    assert tree.getroot().tag == "{http://www.w3.org/2000/svg}svg"
    texts = [node for node in tree.iter() if node.tag.endswith("}text")]
    assert {*METHODS, "dml"} <= {(node.text or "").strip() for node in texts}
    assert all("font-size" in (node.get("style") or "") for node in texts)
    paths = [node.get("style") or "" for node in tree.iter() if node.tag.endswith("}path")]
    assert len(paths) > 10
    assert sum("rgb(" in style for style in paths) > 10
    assert "font-family: sans-serif" in (tree.getroot().get("style") or "")
    visit.requests.clear()


def test_fronts_outputs_and_the_link_to_the_diagnosis(visit: Visit, home: Path) -> None:
    texts = visit.page.locator(".said").all_inner_texts()
    assert [text.split(":")[0].split("accuracy and ")[1] for text in texts] == [
        "gradient evaluations", "training seconds"
    ]  # fmt: skip
    table = visit.page.get_by_role("region", name="What each method can deploy").locator("table")
    lines = [row.split() for row in table.locator("tbody tr").all_inner_texts()]
    assert ["dml", "ensemble", "94.0", "±", "0.0", "94.1", "±", "0.0"] in lines
    assert len(lines) == 5
    visit.page.get_by_role("link", name="Sharpness, landscapes and robustness").click()
    assert visit.page.title() == "Diagnosis"
    visit.requests.remove(f"file://{home}/diagnosis.html")


def luminance(colour: str) -> float:
    channels = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: float, b: float) -> float:
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)


READABLE = (
    ".lede, .about, .foot, tbody th, td, .pm, .muted, .sub, thead button, .choice span, .said, dt, dd, .remarks li"
)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_figures_are_readable_in_light_and_dark(browser: Any, home: Path, scheme: Any) -> None:
    visit = Visit(browser, f"file://{home}/report.html", color_scheme=scheme)
    ground = luminance(visit.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (ground < 0.05) == (scheme == "dark")
    script = "what => [...document.querySelectorAll(what)].map(n => [n.className, getComputedStyle(n).color])"
    for name, colour in visit.page.evaluate(script, READABLE):
        # WCAG 2, success criterion 1.4.3
        assert contrast(luminance(colour), ground) >= 4.5, name
    script = "([what, paint]) => [...document.querySelectorAll(what)].map(n => getComputedStyle(n)[paint])"
    drawings = ([".chart path.curve", "stroke"], ["#cost text", "fill"])
    colours = [colour for drawing in drawings for colour in visit.page.evaluate(script, drawing)]
    assert len(colours) > 20
    for colour in colours:
        # success criterion 1.4.11, for what is drawn
        assert contrast(luminance(colour), ground) >= 3
    visit.context.close()


def test_a_narrow_window_scrolls_tables_and_not_the_page(browser: Any, home: Path) -> None:
    visit = Visit(browser, f"file://{home}/report.html", viewport={"width": 390, "height": 800})
    for mode in ("run", "gradients"):
        visit.compare(mode)
        assert visit.page.evaluate("document.documentElement.scrollWidth") == 390
    assert visit.page.locator("#curves .tools button").first.bounding_box()["height"] < 40
    # the cost chart fits the screen, and what is saved is the chart that is shown
    assert not visit.page.locator("#cost .large").is_visible()
    box = visit.page.locator("#cost .small svg").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    with visit.page.expect_download() as waiting:
        visit.page.locator("#cost").get_by_role("button", name="Save as SVG").click()
    assert int(ET.parse(waiting.value.path()).getroot().get("width") or 0) < 400
    # the methods' column stays, leaves room for the others, and nothing shows through it
    visit.page.locator(".mode:not([hidden]) .scroll").evaluate("box => { box.scrollLeft = 260; }")
    script = """() => [...document.querySelectorAll('.mode:not([hidden]) tr > :first-child')].map(cell => {
        const box = cell.getBoundingClientRect();
        cell.scrollIntoView({ block: 'center', behavior: 'instant' });
        const y = cell.getBoundingClientRect().top + box.height - 12;
        const over = [10, 40, 70, box.width - 8].map(x => document.elementFromPoint(box.left + x, y));
        return [box.left, box.width, over.every(node => cell.contains(node))];
    })"""
    for left, width, uncovered in visit.page.evaluate(script):
        assert left < 20 and 80 < width < 150 and uncovered
    visit.context.close()


def test_the_page_prints(visit: Visit) -> None:
    visit.page.emulate_media(media="print", color_scheme="dark")
    for hidden in (".switch", ".tools", ".downloads", ".skip", "[data-copy]"):
        assert not visit.page.locator(hidden).first.is_visible(), hidden
    for visible in ("table.sortable", ".curves .chart", "#cost .large svg", ".said"):
        assert visit.page.locator(visible).first.is_visible(), visible
    assert luminance(visit.page.evaluate("getComputedStyle(document.body).backgroundColor")) > 0.9
    # A4 landscape less its margins: a table wider than this would be cut off
    visit.page.set_viewport_size({"width": 1000, "height": 700})
    wide = "[...document.querySelectorAll('.mode:not([hidden]) table')].map(t => t.scrollWidth)"
    assert max(visit.page.evaluate(wide)) <= 1000
    pdf = visit.page.pdf(prefer_css_page_size=True)
    assert pdf[:5] == b"%PDF-"
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 12


def test_without_script_the_page_has_table_figures_and_downloads(browser: Any, home: Path) -> None:
    visit = Visit(browser, f"file://{home}/report.html", java_script_enabled=False)
    assert visit.page.locator(".mode").locator("visible=true").count() == 1
    assert not visit.page.locator(".switch").is_visible()
    assert visit.page.locator("noscript svg").is_visible()
    assert visit.page.locator("#cost .large svg").is_visible()
    assert visit.page.locator(".downloads a").first.get_attribute("href").startswith("data:text/csv")
    visit.context.close()


@pytest.mark.slow
def test_a_large_comparison_opens_fast_and_stays_small(browser: Any, tmp_path: Path) -> None:
    """33 methods, 10 seeds and 200 epochs."""
    folder = Folder(tmp_path)
    for i, label in enumerate(["plain", *(f"method-{i}" for i in range(1, 33))]):
        folder.method(label)
        for seed in range(10):
            folder.run(label, seed, 0.9 + 0.001 * (i % 7) + 0.002 * seed, epochs=200)
    text = html(folder.write())
    assert len(text.encode()) < 3_000_000
    (tmp_path / "report.html").write_text(text)
    visit = Visit(browser, f"file://{tmp_path}/report.html")
    session = visit.context.new_cdp_session(visit.page)
    # the processor's seconds, whatever else the machine does
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    visit.page.reload()
    spent = {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}
    assert 0 < spent["TaskDuration"] < 3
    assert visit.page.locator(".curves .chart path.curve").count() == 33
    assert visit.messages == []
    visit.context.close()
