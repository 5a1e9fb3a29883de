"""Recipes at work: their rows train, the command takes them, a scale keeps their shape."""

import dataclasses
import json
import math
from collections.abc import Iterator
from functools import partial
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


STAND_IN = "resnet-thin"  # in the place of other packages' networks for ImageNet


def tiny(name: str, data: str, model: str, row: str, places: dict[str, str]) -> Run:
    options = {"dataset": places[data], "batch": 4, "data.size": _SIZES.get(model, 8), "method": row}
    if recipes.load(name).settings.get("data.legacy_share"):
        options["data.legacy_share"] = 0.5  # a hundredth of these few is none
    if model in models.names():
        return recipe_scaling.scaled_run(f"{name}:{model}", 1e-6, options)[0]
    chosen = recipes.load(name).choose([model.rpartition("/")[2].partition(":")[0]], options)
    options |= {**{k: v for k, v in chosen.values.items() if k not in options}, "model": STAND_IN, "epochs": 1}
    return recipe_scaling.scaled_run(name, 1e-6, options)[0]


_SIZES = {"cifar10-fast": 12, "simple-cnn": 24, "inception-resnet-sadt": 32}
_SIZES |= dict.fromkeys(("vgg16-bn", "vgg16-okdph", "vgg16-sadt"), 32)
SLOW = {"wrn-28-10-rwp", "vgg16-okdph"}


def rows() -> Iterator[tuple[str, str, str, str, Run]]:
    for name in recipes.names():
        recipe = recipes.load(name)
        for data, model, row in product(recipe.data, recipe.models, recipe.methods):
            run = recipe.choose([data, row], {"model": model, "dataset": f"{data}:x"}).run()
            yield name, data, model, row, run


def trained_rows() -> Iterator[object]:
    """Yield the first row of each pair of a network and a class of methods."""
    first = {}
    for name, data, model, row, run in rows():
        network = model if model in models.names() else STAND_IN
        first.setdefault((network, type(run.method).__name__), (name, data, model, row))
    for (network, method), values in first.items():
        slow = pytest.mark.slow if network in SLOW else ()
        yield pytest.param(*values, id=f"{network}-{method}", marks=slow)


@pytest.mark.parametrize(("name", "data", "model", "row"), [*trained_rows()])
def test_every_class_of_methods_trains_every_network(name, data, model, row, places, tmp_path):
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


@pytest.mark.slow
def test_the_method_of_every_row_is_built_for_its_network():
    runs = {(run.model, run.label, run.dataset): run for *_, run in rows() if run.model in models.names()}
    assert len(runs) > 300
    with torch.device("meta"):
        for run in runs.values():
            make = partial(models.build, run.model, classes=10, channels=3, size=32)
            net = run.method.build(make)
            assert next(net.parameters()).is_meta


@every_recipe
def test_every_recipe_runs_from_the_command_to_its_result(name, places, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = recipes.load(name)
    row = list(recipe.methods)[-1]
    size = str(_SIZES.get(recipe.models[0], 8))
    few = "20" if recipe.data[0] != "cifar100" else "120"
    part = ["--data.legacy_share", "0.5"] if "data.legacy_share" in recipe.settings else ["--data.train", few]
    options = ["--dataset", places[recipe.data[0]], "--model", STAND_IN, "--data.size", size, *part]
    assert main(["train", f"recipe={name}:{row}", "scale=1e-6", *options]) == 0
    output = capsys.readouterr().out
    assert f"recipe {name}, row {row}: " in output
    assert "scale 1e-06: " in output
    (folder,) = (tmp_path / "out" / "runs").iterdir()
    config, result = (json.loads((folder / f"{f}.json").read_text()) for f in ("config", "result"))
    assert result["status"] == "ok" and result["epochs"] == config["epochs"] == 1
    assert config["optim"]["lr"] == recipe.settings["optim.lr"]
    assert config["model"] == STAND_IN


def test_a_scale_takes_a_smaller_part_of_a_published_list():
    run = recipes.load("okdph-table4-10").choose([], {"dataset": "cifar10:x"}).run()
    small = recipe_scaling.scaled(run, 5000, 0.25)
    assert small.data.train is None
    assert 5000 * small.data.legacy_share / 0.1 == pytest.approx(2500, abs=small.batch)
    assert recipe_scaling.scaled(run, 5000, 0.25, fixed=["data.legacy_share"]).data.legacy_share == 0.1


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
    assert dataclasses.replace(small, data=run.data, epochs=epochs, batch=batch) == run


def test_what_is_given_is_not_scaled(places):
    options = {"dataset": places["cifar10"], "epochs": 7, "batch": 9, "data.train": 50}
    run, _ = recipe_scaling.scaled_run("rwp-table1", 0.01, options)
    assert (run.epochs, run.batch, run.data.train) == (7, 9, 50)
    run, lines = recipe_scaling.scaled_run("rwp-table1", 0.25, {"dataset": places["cifar10"]})
    assert (run.epochs, run.batch, run.data.train) == (100, 25, 50)
    assert lines[1] == "scale 0.25: 50 of 99 training images, 100 of 200 epochs, batches of 25"


# -- the command -----------------------------------------------------------------------------------------


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["train", "--plan", *arguments]) == 0
    return capsys.readouterr().out


def test_flags_and_files_win_over_the_recipe_even_where_they_state_a_default(places, tmp_path, capsys):
    """Run's own defaults are 16 epochs and batches of 32."""
    where = ["--recipe", "rwp-table1", "--dataset", places["cifar10"], "--model", "simple-cnn"]
    assert "282 steps, 2 an epoch" in planned(capsys, *where, "--scale", "0.5")  # 70 images, batches of 35
    plan = planned(capsys, *where, "--epochs", "16", "--batch", "32")
    assert "64 steps, 4 an epoch" in plan
    before = planned(capsys, "--epochs", "16", "--batch", "32", *where)
    assert before == plan
    file = tmp_path / "mine.yaml"
    file.write_text("epochs: 16\nbatch: 32\noptim:\n  schedule: constant\n")
    plan = planned(capsys, *where, "--config", str(file))
    assert "64 steps, 4 an epoch" in plan and "learning rate  constant: 0.1\n" in plan


def test_the_short_form_and_the_options_are_the_same(places, capsys):
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


@pytest.mark.slow
def test_rows_of_a_recipe_are_compared(places, tmp_path, capsys):
    recipe = ["recipe=rwp-table1:plain:sam:cifar100", "scale=1e-6", "--models", "resnet-thin", "--seeds", "3"]
    data = ["--datasets", places["cifar100"], "--data.size", "8", "--data.test", "100"]
    assert main(["compare", *recipe, *data, "--out", str(tmp_path / "out")]) == 0
    assert "recipe rwp-table1, settings for cifar100" in capsys.readouterr().out
    described = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert described["study"]["methods"] == ["plain", "sam:rho=0.1"]
    assert described["study"]["optim"]["weight_decay"] == 0.001
    assert {run["seed"] for run in described["runs"]} == {3}
