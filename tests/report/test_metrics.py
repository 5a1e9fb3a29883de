"""Pages, tables, figures and sentences about other metrics than accuracy, against numbers computed here."""

import csv
import io
import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
from support.recorded import Folder, terminal
from support.recorded import html as page_html

from steppe.records import Comparison, load
from steppe.report._html import embedded
from steppe.report.comparison import classes, conclusions, curves, deployables, equal_budget, page, pareto, tables
from steppe.report.comparison._template_context import context
from steppe.report.comparison.summary import ResultRow, rows
from steppe.report.diagnosis import page as diagnosis
from steppe.report.metric_text import decimals

RMSE = {"name": "RMSE", "unit": "mm", "higher": False, "percent": False}
PERPLEXITY = {"name": "perplexity", "unit": "", "higher": False, "percent": False}
F1 = {"name": "macro F1", "unit": "", "higher": True, "percent": True}
TABLE = {"train": 3000, "val": 500, "test": 2500, "classes": 0, "features": 8, "task": "regression"}
TEXT = {"train": 900, "val": 100, "test": 120, "classes": 0, "vocabulary": 96, "length": 64}
DATA: dict[str, dict[str, Any]] = {
    "bones": TABLE | {"metric": RMSE},
    "documents": TEXT | {"task": "language modelling", "metric": PERPLEXITY},
    "photos": {"train": 800, "val": 99, "test": 100, "classes": 2, "channels": 3, "size": 9, "task": "multi-label"}
    | {"metric": F1},
}
VALUES = {
    "bones": {
        "plain": [0.0213, 0.0219, 0.0216],
        "two-step": [0.0212, 0.0217, 0.0216],
        "sam": [0.0191, 0.0196, 0.0197],
    },
    "documents": {"plain": [25.31, 25.9, 25.2], "two-step": [24.1, 24.9, 24.3], "sam": [26.0, 26.9, 26.1]},
    "photos": {"plain": [0.61, 0.62, 0.64], "two-step": [0.64, 0.65, 0.66], "sam": [0.7, 0.72, 0.73]},
}
BEST = {"bones": "sam", "documents": "two-step", "photos": "sam"}
T2 = 4.302652729911275  # t(0.975; 2)


def comparison(path: Path, *names: str) -> Comparison:
    """Write the data sets of these names, with a method of two networks that is tested after each epoch."""
    folder = Folder(path)
    folder.about = DATA
    for label in ("plain", "two-step", "sam"):
        folder.method(label, controls=["two-step"] if label == "sam" else [])
    folder.method("dml")
    for name in names:
        for label, values in VALUES[name].items():
            for seed, value in enumerate(values):
                folder.run(label, seed, value, dataset=name)
        for seed in range(3):
            value = VALUES[name]["plain"][seed] * 1.001
            folder.run("dml", seed, value, dataset=name, outputs=("network 1", "ensemble"), watch=True)
    return load(folder.write())


@pytest.fixture(scope="module")
def records(tmp_path_factory: Any) -> dict[str, Comparison]:
    """Return a comparison on each data set."""
    return {name: comparison(tmp_path_factory.mktemp(name), name) for name in DATA}


def texts(record: Comparison) -> dict[str, str]:
    """Return every text that a report consists of, without scripts, styles and levels of confidence."""
    table = rows(record)
    parts = deployables.parts(record)
    html = page.html(record, table, "version")
    content = page.files(record, table)
    content["terminal"] = terminal(tables.terminal(table), *deployables.terminal(parts))
    content["sentence"] = "\n".join([conclusions.sentence(table), *conclusions.remarks(table)])
    figures = curves.figure(record), pareto.figure(record)
    content["axes"] = "\n".join(a.get_title(loc="left") + a.get_xlabel() for f in figures if f for a in f.axes)
    content["data"] = re.search(r'type="application/json"[^>]*>(.*?)</script>', html, re.S)[1]  # type: ignore[index]
    inert = r"<(script|style).*?</\1>|base64,[^\"]*|(width|style)[=:].*?[\";]"
    content["report.html"] = re.sub(inert, "", html, flags=re.S)
    content["table.tex"] = re.sub(r"^% ", "", content["table.tex"], flags=re.M)
    return {n: re.sub(r"\b(95|5)(\s|&nbsp;|\\)*%", "", t).replace("100%", "") for n, t in content.items()}


@pytest.mark.parametrize("name", ["bones", pytest.param("documents", marks=pytest.mark.slow)])
def test_no_text_speaks_of_percent_or_accuracy_and_the_best_method_is_the_smallest(
    records: Any, name: str
) -> None:
    content = texts(records[name])
    for file, text in content.items():
        match = re.search(r".{,40}(accura|%|percent|image|\bpoints\b|nats).{,40}", text, re.I)
        assert match is None, (file, match)
    means = {label: statistics.mean(values) for label, values in VALUES[name].items()}
    best = min(means, key=lambda label: means[label])
    assert best == BEST[name]
    metric = DATA[name]["metric"]
    assert (
        f"Over 3 seeds, {best} has the lowest mean test {metric['name']} (lower is better), "
        in content["sentence"]
    )
    for file in ("report.html", "table.md", "table.tex", "terminal", "sentence", "axes", "data"):
        assert metric["name"].lower() in content[file].lower(), file
        assert "lower is better" in content[file] or "below 0 is better" in content[file], file
        assert metric["unit"] in content[file]
    assert ("2,500 test rows." in content["report.html"]) == (name == "bones")
    described = "120 test sequences of 64 tokens, vocabulary of 96."
    assert (described in content["report.html"]) == (name == "documents")


@pytest.mark.parametrize("name", list(DATA))
def test_differences_have_the_sign_and_unit_of_the_metric(records: Any, name: str) -> None:
    record = records[name]
    table = {row.method: row for row in rows(record)}
    scale = 100 if DATA[name]["metric"]["percent"] else 1
    plain = VALUES[name]["plain"]
    for method, values in VALUES[name].items():
        row = table[method]
        assert row.last.mean == pytest.approx(scale * statistics.mean(values), rel=1e-12)
        if method == "plain":
            continue
        d = [scale * (a - b) for a, b in zip(values, plain, strict=True)]
        half = T2 * statistics.stdev(d) / math.sqrt(3)
        expected = (statistics.mean(d), statistics.mean(d) - half, statistics.mean(d) + half)
        assert (row.difference.mean, row.difference.low, row.difference.high) == pytest.approx(expected, rel=1e-9)
        (line,) = [x for x in csv.DictReader(io.StringIO(tables.csv([*table.values()]))) if x["method"] == method]
        assert float(line["minus_plain"]) == pytest.approx(expected[0])
        better = "higher" if DATA[name]["metric"]["higher"] else "lower"
        assert (line["metric"], line["better"]) == (DATA[name]["metric"]["name"], better)
    places = table["sam"].decimals
    amount = f"{table['sam'].difference.mean:+.{places}f}"
    unit = {"bones": "mm ", "documents": "", "photos": "points "}[name]
    assert f"{amount} [" in terminal(tables.terminal([*table.values()]))
    if BEST[name] == "sam":
        assert f": {amount} {unit}[" in conclusions.sentence([*table.values()])
    else:
        remarks = " ".join(conclusions.remarks([*table.values()]))
        assert "two-step is significantly better than plain and sam and dml are significantly worse" in remarks


def test_the_front_has_the_methods_that_no_cheaper_one_beats(records: Any) -> None:
    record = records["documents"]
    layout: Any = pareto.place(record, ("documents", "simple-cnn"), "gradients")
    points = {p.method: (p.cost, p.value.mean) for p in layout.points}
    expected = [
        m
        for m, (c, v) in points.items()
        if not any(d <= c and w <= v and (d, w) != (c, v) for d, w in points.values())
    ]
    assert {p.method for p in layout.front} == set(expected) == {"plain", "two-step"}
    corners = pareto.stairs(layout.front)
    assert [y for _, y in corners] == sorted((y for _, y in corners), reverse=True)


def test_budgets_and_best_of_all_follow_the_direction(records: Any) -> None:
    record = records["bones"]
    (dml,) = [row for row in rows(record) if row.method == "dml"]
    runs = [r for r in record.records if r.method == "dml"]
    lowest = [
        min(v for x in r.metrics for v in (x["test_metric"], *(o["metric"] for o in x["test_outputs"].values())))
        for r in runs
    ]
    assert dml.best_of_all.mean == pytest.approx(statistics.mean(lowest))
    (budget, *_) = equal_budget.budgets(record, ("bones", "simple-cnn"))
    plain = [r.metrics[-1]["val_metric"] for r in record.records if r.method == "plain"]
    assert budget.rows[0].value.mean == pytest.approx(statistics.mean(plain))
    data = json.loads(embedded(page.about_curves(record, ("bones", "simple-cnn"))))
    assert list(data) == ["val_metric", "val_loss", "train_metric", "train_loss"]
    axis = "Validation RMSE, mm (lower is better)"
    assert data["val_metric"] == {"axis": axis, "unit": " mm", "places": dml.decimals}


def test_different_metrics_have_tables_of_their_own_and_are_put_together_by_rank(tmp_path: Path) -> None:
    record = comparison(tmp_path, *DATA)
    table = rows(record)
    for title in ("bones, simple-cnn: test RMSE, mm (lower", "photos, simple-cnn: test macro F1, % (higher"):
        assert f"### {title} is better)" in tables.markdown(table)
    for text in (
        # sam is 1st, 4th and 1st; two-step 2nd, 1st and 2nd; plain 3rd, 2nd and 4th; dml 4th, 3rd and 3rd
        "Mean rank of each method over the 3 tables, 1 is best: two-step 1.7, sam 2.0, plain 3.0, dml 3.3.",
        "bones, simple-cnn: Over 3 seeds, sam has the lowest mean test RMSE (lower is better), 0.0",
        "photos, simple-cnn: Over 3 seeds, sam has the highest mean test macro F1 (higher is better), 71.7 ±",
    ):
        assert text in conclusions.sentence(table)
    content = context(record, table, {})
    assert (content["metric"].differences, content["samples"]) == ("in the unit of each metric", "samples")
    assert conclusions.ranking([row for row in table if row.dataset == "bones"]) == ""


@pytest.mark.slow
def test_a_page_of_several_metrics_leaves_none_out(tmp_path: Path) -> None:
    content = texts(comparison(tmp_path, *DATA))
    for name, unit in (("RMSE", ", mm (lower"), ("perplexity", " (lower"), ("macro F1", ", % (higher")):
        assert f"Test {name} after the last epoch{unit} is better)" in content["report.html"]
        assert f"Validation {name}{unit} is better)" in content["data"]
    assert "Metric against cost" in content["report.html"] and "accuracy" not in content["report.html"]


def test_two_digits_of_the_spread_are_printed() -> None:
    assert decimals([0.0213, 0.02], [0.00031, 0.00025, 0.0004]) == 5
    assert decimals([25.3], [0.412]) == 2
    assert decimals([52310.0], [1234.0]) == 0
    assert decimals([2.0, 3.0], []) == 2  # a tenth of the range
    assert decimals([250.0], [0.0]) == 1  # a hundredth of the value
    assert decimals([0.0], []) == 2


def test_a_name_or_unit_from_a_record_is_inert(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.about = {"x": TABLE | {"metric": RMSE | {"name": "<b>R\nMSE</b>", "unit": "$m_{\x1b|"}}}
    for label, value in (("plain", 2.0), ("sam", 1.0)):
        folder.method(label)
        folder.run(label, 0, value, dataset="x")
    html = page_html(folder.write(), "version")
    assert "<b>R" not in html and "\x1b" not in html
    assert "&lt;b&gt;R MSE&lt;/b&gt;" in html


def test_a_row_by_itself_is_accuracy() -> None:
    assert ResultRow("digits", "net", "plain").text.is_accuracy


def test_accuracies_of_classes_have_tables_of_their_own(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.about = {"tail": {"train": 640, "test": 60, "classes": 12, "per_class": [400, *[20] * 10, 5]}}
    for label in ("plain", "sam"):
        folder.method(label)
        for seed in range(2):
            home = folder.run(label, seed, 0.7, dataset="tail")
            result = json.loads((home / "result.json").read_text())
            result["test"]["last"] |= {
                "groups": {"many": 0.9, "few": 0.2 + 0.1 * seed},
                "per_class": [0.9, *[0.5 + 0.01 * seed] * 10, None],
            }
            (home / "result.json").write_text(json.dumps(result))
    of_groups, of_classes = classes.tables(load(folder.write()))
    assert of_groups.heads == ["many", "few"] and "many are more than 100, few fewer than 20" in of_groups.note
    assert of_groups.lines()[0] == ("plain", ["90.0 ± 0.0", "25.0 ± 7.1"])
    assert len(of_classes.columns) == 10 and 11 not in of_classes.columns and "10 of 12 classes" in of_classes.note
    lines = list(csv.DictReader(io.StringIO(classes.csv([of_groups, of_classes]))))
    assert len(lines) == 2 * (2 + 12) and lines[1]["classes"] == "few"
    assert float(lines[1]["test_last_mean"]) == pytest.approx(25)
    assert "few" in terminal(*classes.terminal([of_groups]))
    assert '<th scope="col">few</th>' in page_html(folder.path, "version")
    assert classes.tables(comparison(tmp_path / "none", "bones")) == []


@pytest.mark.slow
def test_a_diagnosis_of_a_regression_speaks_its_metric_and_loss(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.about = DATA
    side = [-1.0, 0.0, 1.0]
    for i, (label, steep) in enumerate((("plain", 3.0), ("sam", 1.0), ("gc", 2.0), ("ema", 2.5), ("swa", 1.5))):
        folder.method(label)
        # the flatter, the lower the RMSE
        home = folder.run(label, 0, 0.02 + 0.001 * steep, dataset="bones")
        content: dict[str, Any] = {
            "settings": {"samples": 9, "trained": 9, "rho": 0.05, "steps": 5, "gamma": 0.02, "lanczos": 3},
            "which": "last", "part": "validation", "loss": 0.1, "accuracy": None,
            "sharpness": {"sam": steep, "steps": steep, "adaptive": steep, "filter": {"mean": steep}},
            "hessian": {
                "values": [steep], "trace": {"mean": steep},
                "density": {"nodes": [0.0, steep], "weights": [0.9, 0.1]},
            },
            "line": {"at": side, "loss": [steep, 0.1, steep], "accuracy": [None] * 3},
            "plane": {"at": side, "loss": [[steep + i] * 3] * 3},
            "filters": {"quantiles": [0.5, 0.6], "variation": 0.1},
        }  # fmt: skip
        content |= dict.fromkeys(("calibration", "margins", "complexity", "robustness"))
        (home / "diagnosis.json").write_text(json.dumps(content))
    text = diagnosis.write(folder.write()).read_text()
    text = re.sub(r"<(script|style).*?</\1>|(width|style)[=:].*?[\";]", "", text, flags=re.S)
    match = re.search(r".{,60}(accura|\bnats\b|image|cross-entropy|\bECE\b|corrupt).{,60}", text, re.I)
    assert match is None, match
    assert "Sharpness and test RMSE: " in text and "Mean squared error on the rows measured." in text
    assert "SAM sharpness (flatter is better, tau +1.00" in text
    assert "the points would rise from lower left to upper right, and tau would be near 1." in text
    printed = terminal(*diagnosis.terminal(folder.path), width=160)
    assert "Test RMSE, mm" in printed and "tau with RMSE" in printed and "0.0210" in printed
