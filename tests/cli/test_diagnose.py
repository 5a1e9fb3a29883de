"""The command: what it measures is the run's own network, what it knows it keeps, what it writes can be read."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steppe import methods
from steppe.analysis import cross_run, load_run
from steppe.analysis import suite as measure
from steppe.analysis.endpoint_plane import Extent, NotComparable, endpoint_plane
from steppe.analysis.suite import SuiteSettings
from steppe.cli.commands import diagnose
from steppe.cli.main import main
from steppe.config import Data, Optim, Study
from steppe.diagnostics.corruptions import STANDARD
from steppe.experiments import prepare
from steppe.records import Record
from steppe.report.comparison.summary import Spread
from steppe.report.diagnosis.conclusions import digits
from steppe.report.diagnosis.summary import (
    MEASURES,
    DiagnosedRun,
    DiagnosisRow,
    differences_to_plain,
    rank_correlation,
)
from steppe.training import run as engine
from steppe.training.checkpoint import sharded
from steppe.training.factories import make_network

SPECS = ("plain", "ema:decay=0.9", "swa:start=0.5", "dml")
QUICK = {
    "rho": 0.1, "steps": 2, "pairs": 1, "line": 3, "plane": 3, "top": 1, "products": 2, "probes": 1, "lanczos": 2,
    "trained": 30, "draws": 1, "halvings": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("comparison")
    data = Data(train=60, val=20, test=20, size=18)
    study = Study(methods=SPECS, seeds=(0,), epochs=2, batch=20, data=data, optim=Optim(lr=1e-3))
    for job in prepare(study, out, "steppe compare").jobs:
        assert engine.train_run(job.run, job.folder, engine.load_data(job.run))["status"] == "ok"
    return out


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        diagnose,
        "affordable",
        lambda trained, images, *_, bounds: SuiteSettings(len(images), **QUICK, bounds=bounds),
    )
    monkeypatch.setattr(cross_run, "Extent", lambda samples: Extent(samples, side=3, path=3))
    # all 15 are tested one by one; here a few are enough
    monkeypatch.setattr(measure, "FAMILIES", {"weather": ("fog",), "digital": ("contrast", "pixelate")})
    monkeypatch.setattr(measure, "STANDARD", ("fog", "contrast", "pixelate"))


def homes(folder: Path) -> dict[str, Path]:
    listed = json.loads((folder / "compare.json").read_text())["runs"]
    return {run["method"]: folder / "runs" / run["digest"] for run in listed}


def content(home: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((home / "diagnosis.json").read_text())
    return found


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("which", ["last", "best"])
def test_what_is_loaded_is_what_the_run_validated(folder, spec, which):
    home = homes(folder)[spec]
    trained = load_run.load(home, which)
    expected = json.loads((home / "result.json").read_text())["val"][which]
    found = trained.surface(trained.images.val).value()
    assert found.loss == pytest.approx(expected["loss"], abs=1e-6)
    assert found.accuracy == expected["accuracy"]
    assert trained.epoch == expected.get("epoch", 2)


def test_an_average_is_measured_and_not_the_weights_below_it(folder):
    home = homes(folder)["ema:decay=0.9"]
    trained = load_run.load(home)
    below = sharded.read(home / engine.CHECKPOINT).part("net")
    assert not torch.equal(trained.model.state_dict()["fc1.weight"], below["fc1.weight"])


def test_of_several_peers_the_deployed_one_is_measured(folder):
    trained = load_run.load(homes(folder)["dml"])
    alone = load_run.load(homes(folder)["plain"])
    assert {n: p.shape for n, p in trained.model.named_parameters()} == {
        n: p.shape for n, p in alone.model.named_parameters()
    }
    assert set(trained.start) == set(trained.model.state_dict())


def test_the_start_is_that_of_the_seed(folder):
    trained = load_run.load(homes(folder)["plain"])
    with torch.random.fork_rng():
        begun = make_network(trained.run, methods.parse("plain"), trained.images).state_dict()
    assert all(torch.equal(trained.start[k], v) for k, v in begun.items())
    assert not torch.equal(trained.start["fc1.weight"], trained.model.state_dict()["fc1.weight"])


def test_a_comparison_is_measured_drawn_and_kept(folder, quick, capsys, monkeypatch):
    assert main(["diagnose", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "diagnosis.html" in said and all(spec in said for spec in SPECS)
    for spec, home in homes(folder).items():
        found = content(home)
        val = json.loads((home / "result.json").read_text())["val"]["last"]
        # everything is of one network on one set of images: its origin is the run's own loss
        assert found["loss"] == pytest.approx(val["loss"], abs=1e-6), spec
        assert found["line"]["loss"][1] == found["plane"]["loss"][1][1] == found["loss"]
        # the line is the plane's first axis, and the second is another
        assert found["plane"]["loss"][1][2] == found["line"]["loss"][2] != found["plane"]["loss"][2][1]
        assert found["calibration"]["nll"] == pytest.approx(found["loss"], abs=1e-6)
        assert found["robustness"]["clean"] == found["accuracy"] == found["line"]["accuracy"][1]
        assert found["sharpness"]["steps"] >= found["sharpness"]["sam"]
        assert (found["which"], found["part"], found["settings"]["samples"]) == ("last", "validation", 20)
    before = {home: (home / "diagnosis.json").stat().st_mtime_ns for home in homes(folder).values()}
    (homes(folder)["dml"] / "diagnosis.json").unlink()
    measured = []
    monkeypatch.setattr(
        diagnose,
        "diagnose",
        lambda trained, *rest: measured.append(trained.run.method) or measure.diagnose(trained, *rest),
    )
    # what was stopped goes on with the same images, whatever the machine would allow now
    monkeypatch.setattr(diagnose, "affordable", lambda *_, **__: pytest.fail("the settings are known"))
    assert main(["diagnose", str(folder), "--json"]) == 0
    given = json.loads(capsys.readouterr().out)
    assert measured == ["dml"]
    assert {Path(k) for k in given} == set(before)
    del before[homes(folder)["dml"]]
    assert all((home / "diagnosis.json").stat().st_mtime_ns == t for home, t in before.items())


def test_ends_are_seen_from_each_other(folder, quick):
    assert main(["diagnose", str(folder)]) == 0
    path = folder / "diagnosis-ends.json"
    (found,) = json.loads(path.read_text()).values()
    assert found["methods"] == list(SPECS) and found["seed"] == 0
    own = [
        json.loads((home / "result.json").read_text())["val"]["last"]["loss"] for home in homes(folder).values()
    ]
    assert found["own"] == pytest.approx(own, abs=1e-6)
    assert list(found["paths"]) == list(SPECS[1:])
    for spec, way in found["paths"].items():
        trained = load_run.load(homes(folder)[spec])
        x = torch.cat([p.x for p in trained.surface(trained.images.train).batch.parts()])
        # all 60 training images are fewer than are asked for, so the statistics are those of one batch
        for module in trained.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        torch.optim.swa_utils.update_bn([x], trained.model)
        assert way["loss"][-1] == pytest.approx(trained.surface(trained.images.val).loss(), rel=1e-4)
        assert way["barrier"] >= 0
        assert way["loss"][0] == found["paths"][SPECS[1]]["loss"][0]
    x, y = np.array(found["places"]).T
    assert min(found["xs"]) < x.min() and max(found["xs"]) > x.max()
    assert min(found["ys"]) < y.min() and max(found["ys"]) > y.max()
    before = path.stat().st_mtime_ns
    assert main(["diagnose", str(folder)]) == 0
    assert path.stat().st_mtime_ns == before
    path.write_text("{")
    (homes(folder)["dml"] / "diagnosis.json").write_text("{")
    assert main(["diagnose", str(folder)]) == 0
    assert json.loads(path.read_text())["digits, simple-cnn"]["paths"] == found["paths"]
    assert content(homes(folder)["dml"])["which"] == "last"


def test_runs_of_different_starts_have_no_plane(folder):
    home = homes(folder)["plain"]
    trained = load_run.load(home)
    other = dataclasses.replace(trained, start={k: v + 1 for k, v in trained.start.items()})
    with pytest.raises(NotComparable, match="no plane through them"):
        endpoint_plane({"a": trained, "b": other}, trained.images.val, Extent(10), lambda _: None)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href") and v and not v.startswith("#")]


def _plane(home: Path) -> list[float]:
    return [v for line in content(home)["plane"]["loss"] for v in line]


def test_the_page_has_every_figure_and_loads_nothing(folder, quick):
    assert main(["diagnose", str(folder)]) == 0
    text = (folder / "diagnosis.html").read_text()
    page = _Page()
    page.feed(text)
    assert page.tags.count("svg") == len(list(folder.glob("diagnosis-*.svg"))) == 7
    # one script, its own, which the policy names by its digest; and the numbers that it draws
    assert not page.loads and page.tags.count("script") == 2
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert len(script) == 1 and f"script-src 'sha256-{digest}'" in text
    (numbers,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    (drawn,) = json.loads(numbers)
    assert page.tags.count("canvas") == len(drawn["surfaces"]) == len(SPECS)
    for surface, home in zip(drawn["surfaces"], homes(folder).values(), strict=True):
        held = content(home)["plane"]
        assert surface["at"] == held["at"]
        np.testing.assert_allclose(surface["loss"], held["loss"], rtol=1e-4)
    assert drawn["scale"]["low"] == min(v for home in homes(folder).values() for v in _plane(home))
    assert "A rank correlation over a handful of methods" in text
    for spec, home in homes(folder).items():
        row = re.search(rf'<tr><th scope="row" class="left">{spec}</th>(.*?)</tr>', text, re.DOTALL)
        assert row
        cells = re.findall(r"<td>(.*?)</td>", row[1])
        assert len(cells) == len(MEASURES) + 1
        accuracy = json.loads((home / "result.json").read_text())["test"]["last"]["accuracy"]
        assert cells[1] == f"{100 * accuracy:.1f}"


def test_one_run_alone_on_training_images(folder, quick, capsys):
    home = homes(folder)["plain"]
    assert main(["diagnose", str(home), "--on", "train", "--which", "best"]) == 0
    said = capsys.readouterr().out
    assert "diagnosis.json" in said
    found = content(home)
    assert (found["which"], found["part"], found["settings"]["samples"]) == ("best", "training", 60)
    assert found["epoch"] == json.loads((home / "result.json").read_text())["val"]["best"]["epoch"]


def test_noise_norms_and_their_start_are_the_run_s(folder, quick):
    assert main(["diagnose", str(folder)]) == 0
    for home in homes(folder).values():
        found = content(home)["complexity"]
        assert "bounds" not in found
        trained = load_run.load(home)
        moved = sum(
            float((p.detach().double() - trained.start[n].double()).square().sum())
            for n, p in trained.model.named_parameters()
        )
        assert found["norms"]["distance"] == pytest.approx(moved**0.5, rel=1e-6)
        density = content(home)["hessian"]["density"]
        assert sum(density["weights"]) == pytest.approx(1)
    text = (folder / "diagnosis.html").read_text()
    assert "Tolerated noise, norms</h3>" in text and "vacuous</td>" not in text


def test_published_files_are_measured_beside_the_test_images(folder, quick, tmp_path, capsys):
    home = homes(folder)["plain"]
    images = load_run.load(home).images.test
    x = np.moveaxis(images.x.numpy(), 1, -1)
    for name in STANDARD:
        # what is "published" here is the test images themselves, at all severities but the last, which is black
        np.save(tmp_path / f"{name}.npy", np.concatenate([x, x, x, x, 0 * x]))
    np.save(tmp_path / "labels.npy", np.tile(images.y.numpy(), 5))
    assert main(["diagnose", str(home), "--corruptions", str(tmp_path)]) == 0
    found = content(home)["robustness"]
    accuracy = json.loads((home / "result.json").read_text())["test"]["last"]["accuracy"]
    assert found["origin"] == content(home)["corruptions"] == tmp_path.name
    assert found["clean"] == accuracy
    assert found["severities"][:4] == pytest.approx([accuracy] * 4)
    assert found["mean"] == pytest.approx((4 * accuracy + found["severities"][4]) / 5)
    np.save(tmp_path / "fog.npy", np.zeros((100, 18, 18, 3), np.uint8))
    assert main(["diagnose", str(home), "--corruptions", str(tmp_path), "--again"]) == 2
    assert "give the files of the same data set" in capsys.readouterr().err


def test_differences_to_plain_are_paired_by_seed():
    def run(seed: int, sharp: float) -> DiagnosedRun:
        record = Record("d", "m", "net", "data", seed, [], [], None)
        return DiagnosedRun(record, {"sharpness": {"sam": sharp}})

    measure = MEASURES[2]
    rows = [
        DiagnosisRow("plain", [run(0, 1.0), run(1, 5.0), run(2, 3.0)], {}),
        DiagnosisRow("sam", [run(1, 4.0), run(0, 0.5), run(7, 99.0)], {}),
    ]
    found = differences_to_plain(rows, measure)
    assert set(found) == {"sam"}
    assert found["sam"].mean == pytest.approx(-0.75) and found["sam"].n == 2
    assert differences_to_plain(rows[1:], measure) == {}


def test_the_budget_sets_the_images(folder):
    trained = load_run.load(homes(folder)["plain"])
    many = trained.images.train
    few, more = (measure.affordable(trained, many, seconds) for seconds in (1e-6, 1e6))
    assert (few.samples, few.trained, more.samples, more.trained) == (32, 32, 60, 60)
    # bounds take their time from everything else
    assert SuiteSettings(1, bounds=True).passes[0] - SuiteSettings(1).passes[0] == 11 * 30
    chosen = measure.subset(many, 50)
    assert len(chosen) == 50 and torch.equal(chosen.x, measure.subset(many, 50).x)
    assert chosen.y.bincount().max() - chosen.y.bincount().min() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nowhere", "nowhere has no config.json; give the folder of a run, or of a comparison"),
        ("RUN --seconds 0", "seconds is 0.0; give a number above 0"),
        ("RUN --which first", "which is 'first'; choose one of last, best"),
        ("RUN --on test", "on is 'test'; choose one of val, train"),
        ("", "folders"),
    ],
)
def test_bad_input_is_one_line(folder, arguments, message, capsys):
    given = arguments.replace("RUN", str(homes(folder)["plain"])).split()
    assert main(["diagnose", *given]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_an_unknown_setting_and_missing_weights_are_named(folder, tmp_path):
    config = json.loads((homes(folder)["plain"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(engine.InputError, match="has no checkpoint; train the run first"):
        load_run.load(tmp_path)
    with pytest.raises(engine.InputError, match="no weights of a best epoch"):
        load_run.load(tmp_path, "best")
    (tmp_path / "config.json").write_text(json.dumps(config | {"warp": 9}))
    with pytest.raises(engine.InputError, match="the setting 'warp', which this version does not know"):
        load_run.read_run(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("dataset", 3), ("method", None), ("seed", True), ("threads", 1.5), ("match", "x"), ("m", "x")],
)
def test_a_setting_of_another_type_is_damage(key, value, folder, tmp_path):
    config = json.loads((homes(folder)["plain"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(engine.InputError, match=f"config.json is damaged \\({key} is"):
        load_run.read_run(tmp_path)


@pytest.mark.parametrize(
    ("value", "count", "shown"),
    [
        (561.2, 3, "561"),
        (2.3, 3, "2.30"),
        (-0.03897, 3, "-0.0390"),
        (178.4, 2, "180"),
        (1e-9, 2, "1.0e-09"),
        (0.0, 2, "0.0"),
        (9.996, 3, "10.00"),
    ],
)
def test_numbers_have_their_significant_digits(value, count, shown):
    assert digits(value, count) == shown


def test_rank_correlation_of_hand_values():
    def row(accuracy: float, sharp: float | None) -> DiagnosisRow:
        value = None if sharp is None else Spread(sharp, None, 1)
        return DiagnosisRow("m", [], {MEASURES[0].name: Spread(accuracy, None, 1), MEASURES[2].name: value})

    # of 6 pairs 5 are in opposite order and one is not: tau = (1 - 5) / 6
    found = rank_correlation([row(1, 9), row(2, 7), row(3, 8), row(4, 2)], MEASURES[2])
    assert found and found.tau == pytest.approx(-4 / 6) and found.n == 4
    # exact: of the 24 orders 8 are as far from 0
    assert found.p == pytest.approx(8 / 24)
    assert rank_correlation([row(1, 2), row(2, 3)], MEASURES[2]) is None
    assert rank_correlation([row(1, 2), row(2, 2), row(3, 2)], MEASURES[2]) is None
    assert rank_correlation([row(1, 2), row(2, 3), row(3, None)], MEASURES[2]) is None


def test_bounds_are_made_where_they_are_asked_for(folder, quick, capsys, monkeypatch):
    monkeypatch.setattr(measure, "DRAWS", 2)
    assert main(["diagnose", str(folder), "--bounds"]) == 0
    said = capsys.readouterr().out
    # two draws say next to nothing: with a union bound over 11 scales everything is vacuous
    for spec, home in homes(folder).items():
        found = content(home)
        assert [b["kind"] for b in found["complexity"]["bounds"]] == ["mcallester", "seeger", "catoni"]
        for bound in found["complexity"]["bounds"]:
            assert bound["vacuous"] and bound["value"] >= 1 and bound["samples"] == 30
            assert f"{spec} seed 0, {bound['kind']}: vacuous (sigma" in said
    text = (folder / "diagnosis.html").read_text()
    assert text.count("<td>vacuous</td>") == 3 * len(SPECS)
    assert "McAllester, %" in text and "PAC-Bayes bound" in text
