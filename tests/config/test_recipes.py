"""Recipes at work: every row trains, the command takes them, a scale keeps their shape."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import islice, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from steppe import models
from steppe.cli.main import main
from steppe.config import Optim, Run, recipes
from steppe.experiments import recipe_scaling
from steppe.training import run as engine
from steppe.training.evaluation import to_model_format
from steppe.training.trainer import Trainer

every_recipe = pytest.mark.parametrize("name", recipes.names())


def rows() -> list[tuple[str, str, str, str]]:
    return [
        (name, data, model, row)
        for name in recipes.names()
        for held in [recipes.load(name)]
        for data, model, row in product(held.data, held.models, held.methods)
    ]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Generated images in the three forms that recipes take: CIFAR-10, CIFAR-100, a folder per class."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for kind, header, classes in (("cifar10", 1, 10), ("cifar100", 2, 100)):
        (root / kind).mkdir()
        files = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"] if header == 1 else ["train", "test"]
        for file in files:
            images = rng.integers(
                0, 256, (4 * classes // (1 if header == 2 else 2), 3072 + header), dtype=np.uint8
            )
            images[:, header - 1] = np.arange(len(images)) % classes
            (root / kind / f"{file}.bin").write_bytes(images.tobytes())
    for part, label, number in product(("train", "val"), ("heron", "ibis", "kite", "rook"), range(8)):
        path = root / "folder" / part / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return {kind: f"{kind}:{root / kind}" for kind in ("cifar10", "cifar100", "folder")}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPPE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


# -- they train ------------------------------------------------------------------------------------------


def tiny(name: str, data: str, model: str, row: str, places: dict[str, str]) -> Run:
    """The row on generated images: the recipe's own network if it is here and not an ImageNet one."""
    wanted = model if model in models.names() else "resnet-thin"
    fixed = {"dataset": places[data], "batch": 4, "data.size": _SIZES.get(model, 8), "method": row}
    if recipes.load(name).settings.get("data.legacy_share"):
        fixed["data.legacy_share"] = 0.5  # a hundredth of these few is none
    if wanted != model:
        chosen = recipes.load(name).choose([model.rpartition("/")[2].partition(":")[0]], fixed)
        fixed |= {**{k: v for k, v in chosen.values.items() if k not in fixed}, "model": wanted}
        fixed["epochs"] = 1
    return recipe_scaling.scaled_run(f"{name}:{model}" if wanted == model else name, 1e-6, fixed)[0]


_SIZES = {
    "cifar10-fast": 12,
    "vgg16-bn": 32,
    "vgg16-okdph": 32,
    "vgg16-sadt": 32,
    "inception-resnet-sadt": 32,
    "simple-cnn": 24,
}


def slow(name: str, data: str, model: str, row: str) -> bool:
    """Whether this row takes long and another one like it does not."""
    if model == "wrn-28-10-rwp":
        return (name, data, row) != ("rwp-table1", "cifar100", "rwp")
    if name.startswith("sadt"):
        return (data, model) != ("cifar10", "simple-cnn") or row not in ("agc", "sadt-v2")
    if name.startswith("okdph"):
        first = (data, model) == (recipes.load(name).data[0], recipes.load(name).models[0])
        return not first or (row != "okdph-2" and (name, row) != ("okdph-table4-10", "pcl-2"))
    return "figure" in name and row not in ("sam-0.1", "rwp-0.01", "rwp-0", "rwp-0.5", "mixed-0.2", "noise-0.01")


@pytest.mark.parametrize(
    ("name", "data", "model", "row"),
    [pytest.param(*one, marks=[pytest.mark.slow] if slow(*one) else []) for one in rows()],
)
def test_every_row_trains(name, data, model, row, places, tmp_path):
    run = tiny(name, data, model, row, places)
    assert run.epochs == 1
    with torch.random.fork_rng():
        images = engine.load_data(run)
        trainer = Trainer(run, tmp_path, images)
        before = [p.detach().clone() for p in trainer.step.runtime.params]
        # warm-up begins at a rate of 0; fusion as released can throw the first update away
        steps = 2 if name in ("rwp-table5", "saf-table1") or name.startswith("okdph") else 1
        for batch in islice(trainer.loader.epoch(1), steps):
            out = trainer.step(to_model_format(batch, before[0]))
            assert not out.skipped and bool(out.loss.isfinite())
    after = trainer.step.runtime.params
    assert all(bool(p.isfinite().all()) for p in after)
    assert sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) > len(before) / 2


@every_recipe
def test_every_recipe_runs_from_the_command_to_its_result(name, places, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    held = recipes.load(name)
    size = str(_SIZES.get(held.models[0], 8))
    words = [f"recipe={name}:{list(held.methods)[-1]}", "scale=1e-6", "--dataset", places[held.data[0]]]
    few = "20" if held.data[0] != "cifar100" else "120"
    part = ("--data.legacy_share", "0.5") if "data.legacy_share" in held.settings else ("--data.train", few)
    given = ["--model", "resnet-thin", "--data.size", size, *part]
    assert main(["train", *words, *given]) == 0
    said = capsys.readouterr().out
    assert f"recipe {name}, row {list(held.methods)[-1]}: " in said
    assert "scale 1e-06: " in said
    (folder,) = (tmp_path / "out" / "runs").iterdir()
    config, result = (json.loads((folder / f"{f}.json").read_text()) for f in ("config", "result"))
    assert result["status"] == "ok" and result["epochs"] == config["epochs"] == 1
    assert config["optim"]["lr"] == held.settings["optim.lr"]
    assert config["model"] == "resnet-thin"


def test_a_scale_takes_a_smaller_part_of_a_published_list():
    held = recipes.load("okdph-table4-10").choose([], {"dataset": "cifar10:x"}).run()
    small = recipe_scaling.scaled(held, 5000, 0.25)
    assert small.data.train is None
    assert 5000 * small.data.legacy_share / 0.1 == pytest.approx(2500, abs=small.batch)
    assert recipe_scaling.scaled(held, 5000, 0.25, fixed=["data.legacy_share"]).data.legacy_share == 0.1


# -- scale -----------------------------------------------------------------------------------------------


@given(st.floats(1e-6, 1, exclude_max=True), st.integers(40, 2_000_000), st.integers(1, 400), st.integers(2, 4096))
def test_a_scale_shrinks_images_and_epochs_alike_and_nothing_else(scale, images, epochs, batch):
    run = Run(epochs=epochs, batch=batch, optim=Optim(lr=0.3, warmup=0.1), method="saf:start=0.05")
    small = recipe_scaling.scaled(run, images, scale, least=20)
    train = small.data.train
    assert train is not None and 20 <= train <= images and 1 <= small.epochs <= epochs
    if train > 20 and small.epochs > 1:
        exact = scale * images * epochs
        assert train * small.epochs == pytest.approx(exact, rel=0.5 / (small.epochs - 0.5) + 8 / train + 0.05)
        assert train / images == pytest.approx(math.sqrt(scale), abs=8 / images)
    assert train % small.batch == 0 or train % small.batch >= 8 or train - train % small.batch < 20
    assert small.batch <= train // 2 and (small.batch == batch or small.batch == train // 2)
    kept = dataclasses.replace(small, data=run.data, epochs=epochs, batch=batch)
    assert kept == run


def test_what_is_given_is_not_scaled(places):
    given = {"dataset": places["cifar10"], "epochs": 7, "batch": 9, "data.train": 50}
    run, _ = recipe_scaling.scaled_run("rwp-table1", 0.01, given)
    assert (run.epochs, run.batch, run.data.train) == (7, 9, 50)
    run, said = recipe_scaling.scaled_run("rwp-table1", 0.25, {"dataset": places["cifar10"]})
    assert (run.epochs, run.batch, run.data.train) == (100, 25, 50)
    assert said[1] == "scale 0.25: 50 of 99 training images, 100 of 200 epochs, batches of 25"


# -- the command -----------------------------------------------------------------------------------------


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["train", "--plan", *arguments]) == 0
    return capsys.readouterr().out


def test_flags_and_files_win_over_the_recipe_even_where_they_state_a_default(places, tmp_path, capsys):
    """Run's own defaults are 16 epochs and batches of 32."""
    where = ["--recipe", "rwp-table1", "--dataset", places["cifar10"], "--model", "simple-cnn"]
    assert "282 steps, 2 an epoch" in planned(capsys, *where, "--scale", "0.5")  # 70 images, batches of 35
    told = planned(capsys, *where, "--epochs", "16", "--batch", "32")
    assert "64 steps, 4 an epoch" in told
    before = planned(capsys, "--epochs", "16", "--batch", "32", *where)
    assert before == told
    file = tmp_path / "mine.yaml"
    file.write_text("epochs: 16\nbatch: 32\noptim:\n  schedule: constant\n")
    told = planned(capsys, *where, "--config", str(file))
    assert "64 steps, 4 an epoch" in told and "learning rate  0.1\n" in told


def test_words_and_flags_ask_for_the_same(places, capsys):
    where = ["--dataset", places["cifar10"], "--model", "simple-cnn"]
    flags = planned(capsys, "--recipe", "rwp-table1:sam", "--scale", "0.01", *where)
    assert planned(capsys, "recipe=rwp-table1:sam", "scale=0.01", *where) == flags
    assert flags.startswith("recipe rwp-table1, row sam: sam:rho=0.05 with simple-cnn on cifar10:")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train recipe=rwp-tabel1", "unknown recipe 'rwp-tabel1'; did you mean 'rwp-table1'"),
        ("train recipe=rwp-table1:cifar", "unknown variant of recipe rwp-table1 'cifar'; did you mean 'cifar10'"),
        ("train recipe=rwp-table1 scale=0", "scale is 0; give a share of the recipe's computation"),
        ("train recipe=rwp-table1 scale=1.5", "scale is 1.5; give a share"),
        ("train recipe=rwp-table1 scale=some", "scale is 'some'; give a number"),
        ("train scale=0.1", "scale is 0.1 and there is no recipe to scale; add --recipe NAME"),
        ("train recipe=rwp-table1 --dataset cifar10:nowhere", "cifar10 is not in nowhere; give cifar10:PATH"),
        ("train recipe=rwp-table5", "recipe rwp-table5 has no dataset; give --dataset folder:PATH, the images of"),
        ("train recipe=rwp-table1 --dataset digits --method rwp:gama=1", "of rwp 'gama'; did you mean 'gamma'"),
        ("train recipe=rwp-table1 --lr 1", "did you mean 'optim.lr'"),
        (
            "compare recipe=rwp-table1",
            "epochs 200 for plain, 400 for rwp:gamma=0.01,alpha=0.5,batches=2, 200 for sam",
        ),
        (
            "compare recipe=rwp-table1 --methods sam --datasets cifar10 cifar100",
            "compare on one of them at a time",
        ),
        ("show rwp-table3", "unknown method 'rwp-table3'"),
    ],
)
def test_what_a_recipe_cannot_do_is_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEPPE_DATA", str(tmp_path / "nowhere"))
    assert main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("steppe: error: ") and error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.rglob("runs"))


def test_rows_of_a_recipe_are_compared(places, tmp_path, capsys):
    words = ["recipe=rwp-table1:plain:sam:cifar100", "scale=1e-6", "--models", "resnet-thin", "--seeds", "3"]
    given = [
        "--datasets",
        places["cifar100"],
        "--data.size",
        "8",
        "--data.test",
        "100",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(["compare", *words, *given]) == 0
    assert "recipe rwp-table1, settings for cifar100" in capsys.readouterr().out
    described = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert described["study"]["methods"] == ["plain", "sam:rho=0.1"]
    assert described["study"]["optim"]["weight_decay"] == 0.001
    assert {run["seed"] for run in described["runs"]} == {3}
