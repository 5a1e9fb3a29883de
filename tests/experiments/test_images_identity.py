"""Images belong to a run: other images are not mixed with it, and its own are found from any folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.photos import class_folders, picture

from steppe import InputError, records
from steppe.cli.main import main
from steppe.config import Data, Run, Study
from steppe.data.normalize import Normalizer
from steppe.experiments import comparison
from steppe.training import run as engine
from steppe.training.export import export

OPTIONS = ["--data.size", "18", "--batch", "4", "--epochs", "1", "--data.augment", "none"]
COMPARE = ["compare", "--methods", "plain", "--seeds", "0", "--jobs", "1", "--datasets", "folder:photos", *OPTIONS]


@pytest.fixture(autouse=True)
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STEPPE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    class_folders(tmp_path / "here" / "photos")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def run_of(dataset: str = "folder:photos", **fields: Any) -> Run:
    return Run(dataset=dataset, data=Data(size=18, augment=()), batch=4, epochs=1, **fields)


def train(run: Run, out: Path) -> Path:
    folder = out / "runs" / engine.digest(run)
    engine.train_run(run, folder, engine.load_data(run))
    return folder


def study(*methods: str) -> Study:
    data = Data(size=18, augment=())
    return Study(methods=methods, seeds=(0,), datasets=("folder:photos",), data=data, batch=4, epochs=1)


def test_runs_on_other_images_never_stand_in_one_table(start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = start / "out"
    train(run_of(), out)
    assert not comparison.prepare(study("plain"), out, "steppe compare").open
    class_folders(start / "there" / "photos", per_class=9)
    monkeypatch.chdir(start / "there")  # another folder of the same relative name
    with pytest.raises(InputError, match="other images than folder:photos has now; choose another --out"):
        comparison.prepare(study("plain", "sam"), out, "steppe compare")
    monkeypatch.chdir(start / "here")
    picture(999).save("photos/cat/more.png")  # an image more
    with pytest.raises(InputError, match="was trained on other images"):
        comparison.prepare(study("plain"), out, "steppe compare")
    assert comparison.prepare(study("sam"), out, "steppe compare").open  # a run that is not there yet


@pytest.mark.slow
def test_the_commands_print_images_and_classes_once_and_refuse_others(
    start: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(start / "out")]
    assert main([*COMPARE, *out]) == 0
    text = capsys.readouterr().out
    line = "folder:photos: 14 training, 2 validation and 4 test images of 2 classes (cat, dog); test images: a"
    assert text.count(line) == 1
    assert line.partition(": ")[2] in (start / "out" / "report.html").read_text()
    picture(999).save("photos/cat/more.png")
    assert main([*COMPARE, *out]) == 2
    assert main(["train", "--dataset", "folder:photos", *OPTIONS, *out]) == 2
    assert "was trained on other images than folder:photos has now" in capsys.readouterr().err


def test_a_stopped_run_does_not_resume_with_other_images(start: Path) -> None:
    run = run_of()
    folder = train(run, start / "out")
    (folder / engine.RESULT).unlink()
    picture(999).save("photos/cat/000.png")  # the same number of images
    with pytest.raises(InputError, match="was trained on other images"):
        engine.train_run(run, folder, engine.load_data(run))
    assert not (folder / engine.RESULT).exists()


def test_a_table_of_runs_on_different_images_is_refused(start: Path) -> None:
    """As after a change of the folder while the comparison runs."""
    study = Study(
        methods=("plain",), seeds=(0,), datasets=("folder:photos",), data=Data(size=18), batch=4, epochs=1
    )
    out = start / "out"
    grid = comparison.prepare(study, out, "steppe compare")
    picture(999).save("photos/cat/more.png")
    train(grid.jobs[0].run, out)
    with pytest.raises(InputError, match="other images of folder:photos than this comparison; remove it"):
        records.load(out)


def test_the_images_of_a_run_are_found_from_any_folder(start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = train(run_of(), start / "out")
    expected = engine.load_images(folder)
    monkeypatch.chdir(start)
    images = engine.load_images(folder)
    assert images.name == "folder:photos" and torch.equal(images.train.x, expected.train.x)
    assert main(["export", str(folder), str(start / "flat")]) == 0
    assert json.loads((start / "flat" / "model.json").read_text())["dataset"] == "folder:photos"
    (start / "here" / "photos").rename(start / "photos")  # moved: the path as given is tried then
    assert torch.equal(engine.load_images(folder).train.x, expected.train.x)
    (start / "photos" / "cat" / "000.png").unlink()
    with pytest.raises(InputError, match="was trained on other images"):
        engine.load_images(folder)
    with pytest.raises(InputError, match="was trained on other images"):
        main(["--debug", "diagnose", str(folder), "--seconds", "1"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "normalize"), [("simple-cnn", "unit"), ("simple-cnn", "standard"), ("cifar10-fast", "standard")]
)
def test_export_needs_no_images(start: Path, model: str, normalize: str) -> None:
    """The record has the classes, the shape and the normalisation; the files equal those of a run with images."""
    data = Data(size=32, augment=(), normalize=normalize)  # type: ignore[arg-type]
    run = Run(dataset="folder:photos", data=data, model=model, batch=4, epochs=1)
    folder = train(run, start / "out")
    images = engine.load_images(folder)
    (start / "here" / "photos").rename(start / "elsewhere")
    content = export(folder, start / "flat")
    normalizer = Normalizer.of(normalize, images.train)
    assert content["classes"] == ["cat", "dog"] and content["input"]["shape"] == [None, 3, 32, 32]
    assert (content["input"]["mean"], content["input"]["std"]) == ([*normalizer.mean], [*normalizer.std])
    (start / "elsewhere").rename(start / "here" / "photos")
    stored = json.loads((folder / engine.CONFIG).read_text())
    stored["images"].pop("mean")  # as in older records, which need the images
    (folder / engine.CONFIG).write_text(json.dumps(stored))
    assert export(folder, start / "again") == content
    saved = [load_file(start / name / "model.safetensors") for name in ("flat", "again")]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[1])


def test_a_damaged_record_of_the_images_is_one_line(start: Path) -> None:
    folder = train(run_of(), start / "out")
    stored = json.loads((folder / engine.CONFIG).read_text())
    for name in ("classes", "channels", "size", "mean", "std", "train"):
        damaged = stored | {"images": stored["images"] | {name: "x" if name in ("size", "train") else None}}
        (folder / engine.CONFIG).write_text(json.dumps(damaged))
        with pytest.raises(InputError, match=r"config.json is damaged \(images"):
            export(folder, start / "flat")


@pytest.mark.parametrize("loss", ["moved", "not mounted"])
def test_finished_runs_are_printed_without_their_images(
    start: Path, loss: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    out = start / "out"
    train(run_of(), out)
    comparison.prepare(study("plain"), out, "steppe compare")
    (start / "here" / "photos").rename(start / "elsewhere")
    if loss == "not mounted":
        (start / "here" / "photos").mkdir()
    command = ["train", "--dataset", "folder:photos", *OPTIONS, "--out", str(out)]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "the run is finished and needs no images (" in text and "test accuracy" in text
    assert main([*command, "--seed", "1"]) == 2 and main([*command, "--plan"]) == 2
    grid = comparison.prepare(study("plain"), out, "steppe compare")
    assert not grid.open and grid.images["folder:photos"]["names"] == ["cat", "dog"]
    assert "the runs are finished and need no images" in caplog.text
    assert records.load(out).records[0].status == "ok"
    with pytest.raises(InputError, match="photos"):
        comparison.prepare(study("plain", "sam"), out, "steppe compare")


def test_built_in_data_and_older_records_have_no_fingerprint(start: Path) -> None:
    run = Run(data=Data(train=40, val=10, test=10, augment=()), epochs=1)
    folder = train(run, start / "out")
    assert "images" not in json.loads((folder / engine.CONFIG).read_text())
    older = train(run_of(seed=3), start / "out")
    content = json.loads((older / engine.CONFIG).read_text())
    assert content.pop("images")["path"] == str(start / "here" / "photos")
    (older / engine.CONFIG).write_text(json.dumps(content))
    assert len(engine.load_images(older).train) == 14
