"""The command measures each run's own network, reuses what it has, and writes files that can be read."""

import base64
import contextlib
import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steppe.analysis import cross_run, diagnose_runs, load_run, suite
from steppe.analysis.endpoint_plane import Resolution
from steppe.analysis.suite import SuiteSettings
from steppe.cli.main import main
from steppe.config import Data, Optim, Study
from steppe.diagnostics.corruptions import STANDARD
from steppe.errors import InputError
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

METHODS = ("plain", "ema:decay=0.9", "dml")
QUICK = {
    "rho": 0.1, "steps": 2, "pairs": 1, "line": 3, "plane": 3, "top": 1, "products": 2, "probes": 1, "lanczos": 2,
    "trained": 30, "draws": 1, "halvings": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def quick() -> Iterator[pytest.MonkeyPatch]:
    """Few points, three corruptions, two draws: each part has its own tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            diagnose_runs,
            "fit_to_budget",
            lambda trained, images, *_, bounds: SuiteSettings(len(images), **QUICK, bounds=bounds),
        )
        patch.setattr(cross_run, "Resolution", lambda samples: Resolution(samples, side=3, path=3))
        patch.setattr(suite, "FAMILIES", {"weather": ("fog",), "digital": ("contrast", "pixelate")})
        patch.setattr(suite, "STANDARD", ("fog", "contrast", "pixelate"))
        patch.setattr(suite, "DRAWS", 2)
        yield patch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("comparison")
    data = Data(train=60, val=20, test=20, size=18)
    study = Study(methods=METHODS, seeds=(0,), epochs=2, batch=20, data=data, optim=Optim(lr=1e-3))
    for job in prepare(study, out, "steppe compare").jobs:
        assert engine.train_run(job.run, job.folder, engine.load_data(job.run))["status"] == "ok"
    return out


@pytest.fixture(scope="module")
def output(folder: Path, quick: pytest.MonkeyPatch) -> str:
    """Diagnose the comparison, with bounds, and return what is printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["diagnose", str(folder), "--bounds"]) == 0
    return printed.getvalue()


@pytest.fixture(scope="module")
def homes(folder: Path) -> dict[str, Path]:
    runs = json.loads((folder / "compare.json").read_text())["runs"]
    return {run["method"]: folder / "runs" / run["digest"] for run in runs}


def content(home: Path, name: str = "diagnosis") -> dict[str, Any]:
    values: dict[str, Any] = json.loads((home / f"{name}.json").read_text())
    return values


def test_all_measures_are_of_the_run_s_network_on_the_same_images(output, homes):
    assert "diagnosis.html" in output and all(method in output for method in METHODS)
    for method, home in homes.items():
        result, val = content(home), content(home, "result")["val"]["last"]
        assert (result["which"], result["part"], result["settings"]["samples"]) == ("last", "validation", 20)
        assert result["loss"] == pytest.approx(val["loss"], abs=1e-6), method
        assert result["line"]["loss"][1] == result["plane"]["loss"][1][1] == result["loss"]
        # the line is the plane's first axis, the second axis is another
        assert result["plane"]["loss"][1][2] == result["line"]["loss"][2] != result["plane"]["loss"][2][1]
        assert result["calibration"]["nll"] == pytest.approx(result["loss"], abs=1e-6)
        assert result["robustness"]["clean"] == result["accuracy"] == result["line"]["accuracy"][1]
        assert result["sharpness"]["steps"] >= result["sharpness"]["sam"]
        assert sum(result["hessian"]["density"]["weights"]) == pytest.approx(1)
        trained = load_run.load(home)
        moved = [p.detach().double() - trained.start[n].double() for n, p in trained.model.named_parameters()]
        distance = torch.cat([t.reshape(-1) for t in moved]).norm()
        assert result["complexity"]["norms"]["distance"] == pytest.approx(float(distance), rel=1e-6)


def test_an_interrupted_diagnosis_resumes_with_the_same_settings(output, folder, homes, capsys, monkeypatch):
    files = [*(home / "diagnosis.json" for home in homes.values()), folder / "diagnosis-ends.json"]
    before = {file: file.stat().st_mtime_ns for file in files}
    (homes["dml"] / "diagnosis.json").write_text("{")
    measured = []
    monkeypatch.setattr(
        diagnose_runs,
        "run_suite",
        lambda trained, *rest: measured.append(trained) or suite.run_suite(trained, *rest),
    )
    monkeypatch.setattr(diagnose_runs, "fit_to_budget", lambda *_, **__: pytest.fail("the settings exist"))
    assert main(["diagnose", str(folder), "--bounds", "--json"]) == 0
    assert {Path(home) for home in json.loads(capsys.readouterr().out)} == set(homes.values())
    assert [trained.folder for trained in measured] == [homes["dml"]]
    assert content(homes["dml"])["which"] == "last"
    changed = [file for file in files if file.stat().st_mtime_ns != before[file]]
    assert changed == [homes["dml"] / "diagnosis.json"]


def test_a_network_that_cannot_be_measured_is_named_and_the_others_are_measured(
    output, folder, homes, tmp_path, capsys, monkeypatch
):
    out = shutil.copytree(folder, tmp_path / "comparison")
    (out / homes["plain"].relative_to(folder) / "diagnosis.json").unlink()

    def refuse(*_: Any) -> None:
        raise InputError("the network has no Hessian (cdist)")

    monkeypatch.setattr(diagnose_runs, "run_suite", refuse)
    assert main(["diagnose", str(out), "--bounds"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "[1/3] plain seed 0: not measured: the network has no Hessian (cdist)" in printed
    page = (out / "diagnosis.html").read_text()
    assert "Not measured: plain, seed 0: the network has no Hessian (cdist)" in page
    assert "Not measured" not in (folder / "diagnosis.html").read_text()
    (ends,) = json.loads((out / "diagnosis-ends.json").read_text()).values()
    assert ends["methods"] == list(METHODS[1:])
    home = out / homes["plain"].relative_to(folder)
    assert main(["diagnose", str(home), "--bounds"]) == 2  # a run on its own, tried again
    assert "the network has no Hessian (cdist)" in capsys.readouterr().err


def test_endpoints_have_their_own_losses_and_paths(output, folder, homes):
    file = folder / "diagnosis-ends.json"
    (result,) = json.loads(file.read_text()).values()
    assert result["methods"] == list(METHODS) and result["seed"] == 0
    losses = [content(home, "result")["val"]["last"]["loss"] for home in homes.values()]
    assert result["own"] == pytest.approx(losses, abs=1e-6)
    assert list(result["paths"]) == list(METHODS[1:])
    for method, path in result["paths"].items():
        trained = load_run.load(homes[method])
        x = torch.cat([p.x for p in trained.surface(trained.images.train).batch.parts()])
        # 60 training images are fewer than the statistics need: one batch
        for module in trained.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        torch.optim.swa_utils.update_bn([x], trained.model)
        assert path["loss"][-1] == pytest.approx(trained.surface(trained.images.val).loss(), rel=1e-4)
        assert path["barrier"] >= 0
        assert path["loss"][0] == result["paths"][METHODS[1]]["loss"][0]
    file.write_text("{")  # a damaged file is replaced
    assert main(["diagnose", str(folder), "--bounds"]) == 0
    assert json.loads(file.read_text())["digits, simple-cnn"]["paths"] == result["paths"]


def test_the_page_has_every_figure_and_loads_nothing(output, folder, homes):
    text = (folder / "diagnosis.html").read_text()
    assert len(list(folder.glob("diagnosis-*.svg"))) == 7
    assert text.count("<svg") == 2 * 7  # each also for narrow pages
    # one script, which the policy names by its digest, and its data
    assert not re.search(r'\b(src|href)="[^#"]', text) and text.count("<script") == 2
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    (numbers,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    (data,) = json.loads(numbers)
    assert text.count("<canvas") == len(data["surfaces"]) == len(METHODS)
    planes = [content(home)["plane"] for home in homes.values()]
    for surface, plane in zip(data["surfaces"], planes, strict=True):
        assert surface["at"] == plane["at"]
        np.testing.assert_allclose(surface["loss"], plane["loss"], rtol=1e-4)
    assert data["scale"]["low"] == min(v for plane in planes for row in plane["loss"] for v in row)
    for method, home in homes.items():
        row = re.search(rf'<tr><th scope="row" class="left">{method}</th>(.*?)</tr>', text, re.DOTALL)
        assert row
        cells = re.findall(r"<td>(.*?)</td>", row[1])
        assert len(cells) == len(MEASURES) + 1
        assert cells[1] == f"{100 * content(home, 'result')['test']['last']['accuracy']:.1f}"


def test_bounds_are_printed_and_on_the_page(output, folder, homes):
    # with two draws and a union bound over 11 scales everything is vacuous
    for method, home in homes.items():
        bounds = content(home)["complexity"]["bounds"]
        assert [b["kind"] for b in bounds] == ["mcallester", "seeger", "catoni"]
        for bound in bounds:
            assert bound["vacuous"] and bound["value"] >= 1 and bound["samples"] == 30
            assert f"{method} seed 0, {bound['kind']}: vacuous (sigma" in output
    text = (folder / "diagnosis.html").read_text()
    assert text.count("<td>vacuous</td>") == 3 * len(METHODS) and "McAllester, %" in text


def test_one_run_on_training_images(output, homes, capsys):
    assert main(["diagnose", str(homes["plain"]), "--on", "train", "--which", "best"]) == 0
    assert "diagnosis.json" in capsys.readouterr().out
    result = content(homes["plain"])
    assert (result["which"], result["part"], result["settings"]["samples"]) == ("best", "training", 60)
    assert result["epoch"] == content(homes["plain"], "result")["val"]["best"]["epoch"]
    assert "bounds" not in result["complexity"]


def test_published_corruptions_are_compared_with_the_test_images(output, homes, tmp_path, capsys):
    home = homes["plain"]
    images = load_run.load(home).images.test
    x = np.moveaxis(images.x.numpy(), 1, -1)
    for name in STANDARD:
        # the test images themselves, at the highest severity black
        np.save(tmp_path / f"{name}.npy", np.concatenate([x, x, x, x, 0 * x]))
    np.save(tmp_path / "labels.npy", np.tile(images.y.numpy(), 5))
    assert main(["diagnose", str(home), "--corruptions", str(tmp_path)]) == 0
    result, accuracy = content(home)["robustness"], content(home, "result")["test"]["last"]["accuracy"]
    assert result["origin"] == content(home)["corruptions"] == tmp_path.name
    assert result["clean"] == accuracy
    assert result["severities"][:4] == pytest.approx([accuracy] * 4)
    assert result["mean"] == pytest.approx((4 * accuracy + result["severities"][4]) / 5)
    np.save(tmp_path / "fog.npy", np.zeros((100, 18, 18, 3), np.uint8))
    assert main(["diagnose", str(home), "--corruptions", str(tmp_path), "--again"]) == 2
    assert "give the files of the same data set" in capsys.readouterr().err


def test_a_budget_that_the_fewest_images_exceed_is_reported(homes, caplog):
    trained = load_run.load(homes["dml"])
    least = suite.fit_to_budget(trained, trained.images.val, 1e-3).samples
    (message,) = caplog.messages
    assert message.startswith("seconds is 0.001, less than the ") and f"on {least} samples, the fewest" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nowhere", "nowhere has no config.json; give the folder of a run, or of a comparison"),
        ("RUN --which first", "which is 'first'; choose one of last, best"),
        ("RUN --on test", "on is 'test'; choose one of val, train"),
        ("", "not given: FOLDERS"),
    ],
)
def test_bad_input_is_one_line(homes, arguments, message, capsys):
    assert main(["diagnose", *arguments.replace("RUN", str(homes["dml"])).split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_differences_to_plain_are_paired_by_seed():
    def run(seed: int, sharp: float) -> DiagnosedRun:
        record = Record("d", "m", "net", "data", seed, [], [], None)
        return DiagnosedRun(record, {"sharpness": {"sam": sharp}})

    measure = MEASURES[2]
    rows = [
        DiagnosisRow("plain", [run(0, 1.0), run(1, 5.0), run(2, 3.0)], {}),
        DiagnosisRow("sam", [run(1, 4.0), run(0, 0.5), run(7, 99.0)], {}),
    ]
    differences = differences_to_plain(rows, measure)
    assert set(differences) == {"sam"}
    assert differences["sam"].mean == pytest.approx(-0.75) and differences["sam"].n == 2
    assert differences_to_plain(rows[1:], measure) == {}


def test_numbers_have_their_significant_digits():
    assert [digits(v, 3) for v in (561.2, 2.3, -0.03897, 9.996)] == ["561", "2.30", "-0.0390", "10.00"]
    assert [digits(v, 2) for v in (178.4, 1e-9, 0.0)] == ["180", "1.0e-09", "0.0"]


def test_rank_correlation_of_hand_values():
    def row(accuracy: float, sharp: float | None) -> DiagnosisRow:
        value = None if sharp is None else Spread(sharp, None, 1)
        return DiagnosisRow("m", [], {MEASURES[0].name: Spread(accuracy, None, 1), MEASURES[2].name: value})

    # of 6 pairs 5 are in opposite order and one is not: tau = (1 - 5) / 6
    result = rank_correlation([row(1, 9), row(2, 7), row(3, 8), row(4, 2)], MEASURES[2])
    assert result and result.tau == pytest.approx(-4 / 6) and result.n == 4
    # exact: 8 of the 24 orders are as far from 0
    assert result.p == pytest.approx(8 / 24)
    assert rank_correlation([row(1, 2), row(2, 3)], MEASURES[2]) is None
    assert rank_correlation([row(1, 2), row(2, 2), row(3, 2)], MEASURES[2]) is None
    assert rank_correlation([row(1, 2), row(2, 3), row(3, None)], MEASURES[2]) is None
