import base64
import hashlib
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from support.recorded import Folder, grid, html

from steppe.records import load
from steppe.report import plotting
from steppe.report._html import embedded
from steppe.report.comparison import curves
from steppe.report.comparison.curves import series
from steppe.report.comparison.page import write
from steppe.report.formatting import images_summary
from steppe.report.style import styles

HOSTILE = "<script>alert(1)</script>"
GROUP = ("digits", "simple-cnn")
VOID = {"meta", "br", "input", "link", "img", "hr"}


class Page(HTMLParser):
    """Collects elements and text, and checks that tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.scripts: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag: Any, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: Any, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: Any) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: Any) -> None:
        if self.stack and self.stack[-1] == "script":
            self.scripts.append(data)
        self.cells.append(data)


@pytest.fixture(scope="module")
def home(tmp_path_factory: Any) -> Path:
    """Return the folder of nine methods and three seeds, with its report."""
    folder = Folder(tmp_path_factory.mktemp("page"))
    grid(folder)
    return write(folder.write()).parent


@pytest.fixture(scope="module")
def text(home: Path) -> str:
    return (home / "report.html").read_text(encoding="utf-8")


def test_the_page_loads_nothing_and_only_its_own_script_may_run(text: str) -> None:
    parsed = Page(text)
    assert not re.search(r"https?:", text)
    assert "@import" not in text
    assert not [tag for tag, _ in parsed.elements if tag in ("link", "iframe", "img", "object", "embed", "base")]
    for tag, attributes in parsed.elements:
        assert "src" not in attributes
        for name in ("href", "xlink:href"):
            # what is saved from the page is held by it
            kinds = ("#", "data:text/", "data:application/x-tex") if "download" in attributes else "#"
            assert (attributes.get(name) or "#").startswith(kinds), tag
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", text))
    policy = text.split('http-equiv="Content-Security-Policy" content="')[1].split('"')[0]
    script = text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_the_page_contains_what_was_run_and_is_reproducible(home: Path, text: str) -> None:
    assert {p.name for p in home.iterdir()} - {"runs", "compare.json"} == {
        "report.html", "table.csv", "table.md", "table.tex", "budgets.csv", "curves.svg", "curves.png", "cost.svg"
    }  # fmt: skip
    assert len(text) < 1_000_000
    assert (home / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert html(home) == text
    content = " ".join(Page(text).cells)
    for part in (
        "loss is not finite at step 123 (epoch 4)",
        "steppe compare --methods plain sam",
        "digits: 1,294 training, 143 validation and 360 test images of 10 classes; 8x8 scans.",
        "used exactly twice per run",
        "its own gradient applied twice",
        "two fresh gradients and two steps on the same batch",
        "Sadt-V1(sigma=0.0001)",
        "2.15.0",
    ):
        assert part in content
    assert content.count("1,294 training") == 1


@pytest.mark.parametrize(
    ("about", "text"),
    [
        (
            {"train": 60, "val": 0, "test": 12, "classes": 2},
            "x: 60 training, 0 validation and 12 test images of 2",
        ),
        ({"train": 60}, "x: 60 training images."),
        (
            {"train": None, "skipped": 3, "classes": 7, "new": {"a": 1}},
            "x: images of unknown number of 7 classes.",
        ),
        ({}, "x: images of unknown number."),
        (
            {"test": 9, "note": "a\nb", "skipped": ["c.png"]},
            "x: 9 test images; a b; 1 image left out that cannot be",
        ),
    ],
)
def test_the_images_are_described_by_what_the_record_has(about: Any, text: str) -> None:
    assert images_summary("x", about).startswith(text)


def test_text_from_runs_is_inert(folder: Any) -> None:
    content = {"a": "</script><!--&"}
    assert not set("<>&") & set(embedded(content)) and json.loads(embedded(content)) == content
    for label in ("plain", HOSTILE, "__proto__", "$x_1^{$", "_hidden"):
        folder.method(label, summary=HOSTILE, resolved=f'"{HOSTILE}', controls=[HOSTILE])
        for seed in range(2):
            folder.run(label, seed, 0.9 + 0.01 * seed)
    folder.run("plain", 2, None, "failed", HOSTILE + "\u202e\x1b[31m")
    folder.compare["command"] = f"steppe {HOSTILE} </code>"
    folder.compare["environment"] = {HOSTILE: HOSTILE}
    folder.compare["data"]["digits"]["note"] = HOSTILE
    folder.write()
    text = write(folder.path).read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    parsed = Page(text)
    assert [a.get("type") for tag, a in parsed.elements if tag == "script"] == ["application/json", None]
    assert not [name for _, a in parsed.elements for name in a if name.startswith("on")]
    assert HOSTILE not in (folder.path / "curves.svg").read_text(encoding="utf-8")
    assert HOSTILE not in (folder.path / "cost.svg").read_text(encoding="utf-8")


def test_the_embedded_curves_are_the_mean_over_seeds(home: Path, text: str) -> None:
    data = json.loads(Page(text).scripts[0])
    line = data["groups"][0][0]
    runs = [r for r in load(home).records if r.method == "plain"]
    expected = sum(100 * r.metrics[4]["val_accuracy"] for r in runs) / 3
    assert line["y"]["val_accuracy"]["mean"][4] == pytest.approx(expected, rel=1e-4)
    assert line["x"]["gradients"][-1] == 252
    assert len(data["styles"]) == 9


def test_a_comparison_that_has_hardly_begun_has_a_page(folder: Any) -> None:
    folder.method("plain")
    for epochs in (0, 1):
        folder.run("plain", epochs, None, "unfinished", epochs=epochs)
        assert "No run has finished yet." in html(folder.write())


def test_one_epoch_and_one_seed_are_singular(folder: Any) -> None:
    folder.compare["study"]["epochs"] = 1
    for method in ("plain", "sam"):
        folder.method(method)
        folder.run(method, 0, 0.9, epochs=1)
    text = html(folder.write())
    assert "1 seed · 1 epoch · " in text
    assert not re.search(r"\b1 (epochs|seeds|runs|images|methods|gradient evaluations)\b", text)


def test_missing_numbers_leave_gaps(folder: Any) -> None:
    folder.method("plain")
    home = folder.run("plain", 0, 0.9)
    lines = [json.loads(x) for x in (home / "metrics.jsonl").read_text().splitlines()]
    lines[2]["val_loss"] = None
    (home / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (home / "timing.jsonl").write_text("")
    assert "Training curves" in html(folder.write())
    (line,) = series(load(folder.path), GROUP)
    assert line.y["val_loss"].mean[2] is None
    assert set(line.x["seconds"]) == {None}


def test_environments_folders_and_unreadable_images_are_named(full: Any) -> None:
    home = next((full.path / "runs").iterdir())
    result = json.loads((home / "result.json").read_text())
    result["environment"] |= {"torch": "2.11.0", "device": "NVIDIA"}
    (home / "result.json").write_text(json.dumps(result))
    full.compare["data"]["digits"]["skipped"] = [f"cat/{i}.jpg" for i in range(5)]
    text = html(full.write(), "version")
    assert "The runs have different environments: torch, device." in text
    assert "5 images left out that cannot be read: cat/0.jpg, cat/1.jpg, cat/2.jpg and 2 more" in text
    for home in (full.path / "runs").iterdir():
        assert f"<code>runs/{home.name}</code>" in text


def test_curves_have_four_panels_and_a_line_per_method(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # torchmetrics imports it too, in tests that run in this process
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    comparison = load(home)
    figure = curves.figure(comparison, 8)
    assert len(figure.axes) == 4
    assert all(len(axes.lines) == 9 for axes in figure.axes)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == list(comparison.methods)
    # on the page it has the page's colours
    svg = plotting.inline(figure)
    for style in styles(comparison).values():
        assert f"stroke: var(--{style.light[1:]}, {style.light})" in svg
    assert not re.search(r": #", svg)
    assert "matplotlib.pyplot" not in sys.modules


def test_methods_differ_by_more_than_colour(folder: Any, home: Path) -> None:
    style_of = styles(load(home))
    assert len({(s.light, s.dash, s.marker) for s in style_of.values()}) == 9
    assert style_of["repeat-step"].dash
    assert not style_of["plain"].dash
    for i in range(40):
        folder.method(f"m{i}")
    style_of = styles(load(folder.write()))
    assert len({(s.light, s.dash, s.marker) for s in style_of.values()}) >= 32


def test_curves_stop_where_all_seeds_have_been(folder: Any) -> None:
    folder.method("plain")
    folder.run("plain", 0, 0.9, epochs=12)
    folder.run("plain", 1, 0.9, epochs=7)
    folder.run("plain", 2, None, "unfinished", epochs=3)
    folder.write()
    (line,) = series(load(folder.path), GROUP)
    assert (line.n, len(line.x["epochs"])) == (2, 7)
    (thin,) = series(load(folder.path), GROUP, points=3)
    assert thin.x["epochs"] == [1, 4, 7]


def test_a_loss_that_begins_far_above_the_rest_leaves_its_panel_and_the_title_says_so(folder):
    folder.method("plain")
    for seed in range(2):
        home = folder.run("plain", seed, 0.9, epochs=20)
        lines = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
        lines[0]["val_loss"] = 90.0
        (home / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawing = curves.figure(load(folder.write()))
    panels = {panel.get_title(loc="left"): panel.get_ylim() for panel in drawing.axes}
    assert "Training loss" in panels  # it falls by less
    later = [line["val_loss"] for line in lines[2:]]
    assert max(later) < panels["Validation loss, first epochs cut off"][1] < 5
