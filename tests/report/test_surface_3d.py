"""The surfaces of the page in a real browser: drawn, rotated by keyboard and mouse, reset, light and dark."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.browsing import Visit
from support.recorded import Folder

from steppe.report.diagnosis.page import write

SIDE = [-1.0, -0.5, 0.0, 0.5, 1.0]
PIXELS = "canvas => canvas.toDataURL()"


def diagnosed(steep: float) -> dict[str, Any]:
    """A diagnosis of a bowl, with numbers of no meaning elsewhere."""
    loss = [[0.1 + steep * (x**2 + 2 * y**2) for x in SIDE] for y in SIDE]
    loss[0][0] = None  # type: ignore[call-overload]
    return {
        "settings": {"samples": 9, "trained": 9, "rho": 0.05, "steps": 5, "gamma": 0.02, "lanczos": 3},
        "which": "last", "part": "validation", "loss": 0.1, "accuracy": 0.9,
        "sharpness": {"sam": steep, "steps": steep, "adaptive": steep, "filter": {"mean": steep}},
        "hessian": {
            "values": [steep], "trace": {"mean": 9 * steep},
            "density": {"nodes": [0.0, steep], "weights": [0.9, 0.1]},
        },
        "line": {"at": SIDE, "loss": [0.1 + steep * x**2 for x in SIDE], "accuracy": [0.5, 0.7, 0.9, 0.7, 0.5]},
        "plane": {"at": SIDE, "loss": loss},
        "filters": {"quantiles": [0.5, 0.6, 0.7], "variation": 0.1},
        "calibration": {"ece": 0.02},
        "robustness": {
            "origin": "generated", "clean": 0.9, "mean": 0.6, "severities": [0.6] * 5,
            "families": {"noise": 0.5, "blur": 0.6},
        },
        "complexity": {
            "norms": {"distance": 1.0, "margin": 1.0, "spectral": 1.0, "neyshabur": 9.0, "bartlett": 9.0},
            "isotropic": {"sigma": 0.1, "start": 9.0}, "magnitude": {"sigma": 0.1, "start": 9.0},
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Folder(tmp_path_factory.mktemp("page"))
    for label, steep in (("plain", 3.0), ("sam", 1.0), ("<b>odd</b>", 2.0)):
        folder.method(label)
        home = folder.run(label, 0, 0.9)
        (home / "diagnosis.json").write_text(json.dumps(diagnosed(steep)))
    folder.write()
    return write(folder.path)


@pytest.fixture
def visit(browser: Any, page: Path) -> Iterator[Visit]:
    visit = Visit(browser, page.as_uri(), viewport={"width": 1200, "height": 800})
    yield visit
    visit.context.close()


def settled(visit: Visit) -> list[str]:
    """Return all canvases as pictures, once they are drawn."""
    visit.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return [canvas.evaluate(PIXELS) for canvas in visit.page.locator("canvas").all()]


def test_every_method_has_a_surface_and_nothing_is_loaded(visit, page):
    pictures = settled(visit)
    assert len(pictures) == len(set(pictures)) == 3
    blank = visit.page.evaluate("() => document.createElement('canvas').toDataURL()")
    assert all(len(picture) > 10 * len(blank) for picture in pictures)
    captions = visit.page.locator(".surfaces figcaption").all_inner_texts()
    assert captions == ["plain, seed 0", "sam, seed 0", "<b>odd</b>, seed 0"]
    assert visit.messages == [] and visit.requests == [page.as_uri()]


def test_arrow_keys_turn_all_together_and_the_button_puts_them_back(visit):
    first = settled(visit)
    turn, tilt = (visit.page.locator(f'.surfaces input[name="{name}"]') for name in ("turn", "tilt"))
    turn.focus()
    visit.page.keyboard.press("ArrowRight")
    turned = settled(visit)
    assert all(a != b for a, b in zip(first, turned, strict=True))
    tilt.focus()
    visit.page.keyboard.press("End")
    assert tilt.input_value() == "90"
    assert all(a != b for a, b in zip(turned, settled(visit), strict=True))
    visit.page.get_by_role("button", name="Reset").press("Enter")
    assert settled(visit) == first


def test_the_mouse_turns_them_and_past_half_a_turn_they_go_on(visit):
    first = settled(visit)
    canvas = visit.page.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for _ in range(2):
        visit.page.mouse.move(x, y)
        visit.page.mouse.down()
        visit.page.mouse.move(x + 150, y + 20)
        visit.page.mouse.up()
    # -35 degrees, and 0.6 of them back for each pixel: -215 is 145
    assert visit.page.locator('.surfaces input[name="turn"]').input_value() == "145"
    assert all(a != b for a, b in zip(first, settled(visit), strict=True))
    visit.page.mouse.move(x, y)
    assert visit.page.locator('.surfaces input[name="turn"]').input_value() == "145"


def test_a_dark_page_has_light_text(visit):
    light = settled(visit)
    visit.page.emulate_media(color_scheme="dark")
    assert all(a != b for a, b in zip(light, settled(visit), strict=True))
    visit.page.emulate_media(color_scheme="light")
    assert settled(visit) == light
